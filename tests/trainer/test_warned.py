"""What a training finds wrong is told when it is found, hours before it may end."""

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.trainer import small
from trainer.images import Progress
from trainer.objectives.stml import STML
from trainer.report import REPORT
from trainer.run import train
from trainer.run_directory import SKIPPED, list_skipped
from trainer.stages import Warn
from trainer.train_report import TrainReport


@pytest.fixture
def faulty(photos: Path) -> Path:
    """Labels of the photos, of which two can't be decoded, one is a copy, and three are not there."""
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff damaged")
    (photos / "empty.jpg").touch()
    (photos / "copy.png").write_bytes((photos / "street" / "00.png").read_bytes())
    rows = ["broken.jpg,0", "empty.jpg,1", *(f"gone{number}.jpg,0" for number in range(3))]
    rows += [f"{path.relative_to(photos)},{int(path.stem) % 4}" for path in sorted(photos.rglob("[0-9]*.*"))]
    (photos / "labels.csv").write_text("\n".join(["path,class_id", *rows, rows[-1]]) + "\n")
    return photos


def learned(
    images: Path, warn: Warn, progress: Progress, name: str | None = None, resume: str | None = None
) -> TrainReport:
    """One epoch on the images, judged by their labels, in a store beside them."""
    return train(
        images,
        models=images.parent / "m",
        runs=images.parent / "r",
        recipe=small.one_epoch(),
        labels=images / "labels.csv",
        name=name,
        resume=resume,
        progress=progress,
        warn=warn,
    )


def test_what_is_wrong_is_told_before_what_takes_long(faulty: Path) -> None:
    """Labels of nothing before any image is decoded, damage and copies before anything is learned; each once."""
    heard: list[str] = []
    tables: set[int] = set()

    def progress(stage: str, *_: int) -> None:
        if stage not in heard:
            heard.append(stage)
        if stage == "train":
            tables.add(len(list(faulty.parent.glob(f"r/*/{SKIPPED}"))))

    done = learned(faulty, heard.append, progress)

    table = faulty / "labels.csv"
    unknown, repeated, decode, damaged, copies, *later = heard
    assert [decode, *later] == ["decode", "judge", "embed", "train", "export"]
    assert unknown.startswith(f"left out, as not in {faulty}: 3 of the paths of {table}, for example gone0.jpg; ")
    assert repeated == f"{table}: 1 rows repeat an earlier one"
    assert damaged.startswith("skipped 2 of the 63 images, for example broken.jpg: ")
    assert damaged.endswith(f"; {faulty.parent / 'r' / done.run / SKIPPED} lists them all")
    assert copies == "1 image is a byte for byte copy of another: street/00.png = copy.png"
    assert tables == {1}
    assert done.warnings == (repeated,)
    # Once, though they are to be learned from and judged on.
    assert [item for item, _ in done.skipped] == ["broken.jpg", "empty.jpg"]


def test_a_model_that_tells_nothing_apart_is_told(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that became all the same make embeddings that are, whatever the loss is; of others nothing is told."""

    @torch.no_grad()
    def flatten(objective: STML, _: float) -> None:
        norms = [part for part in objective.encoder.backbone.modules() if isinstance(part, nn.BatchNorm2d)]
        norms[-1].weight.zero_()
        norms[-1].bias.fill_(1)

    heard: list[str] = []
    (photos / "labels.csv").write_text(
        "path,class_id\n" + "".join(f"{path.relative_to(photos)},{path.stem[-1]}\n" for path in photos.rglob("*.png"))
    )
    assert learned(photos, heard.append, small.silent).warnings == ()
    monkeypatch.setattr(STML, "after_step", flatten)
    done = learned(photos, heard.append, small.silent)

    assert done.warnings == (heard[-1],)
    assert heard[-1].endswith("the same embedding: training has collapsed; lower optimizer.lr")


def test_a_run_that_goes_on_tells_again(faulty: Path) -> None:
    """Whoever goes on with it may not have seen it; also where its images are decoded already."""
    first: list[str] = []

    def stop(stage: str, *_: int) -> None:
        if stage == "export":
            raise small.Stopped

    with pytest.raises(small.Stopped):
        learned(faulty, first.append, stop, name="mine")
    assert len(first) == 4
    for decoded in (True, False):
        for pixels in [] if decoded else (faulty.parent / "r" / "mine").glob("*.u8"):
            pixels.unlink()
        again: list[str] = []
        with pytest.raises(small.Stopped):
            learned(faulty, again.append, stop, resume="mine")
        assert again == first


def test_what_goes_wrong_at_the_end_is_told_too(photos: Path, tmp_path: Path) -> None:
    """Every warning of a run is heard, the last one as well."""
    heard: list[str] = []

    def progress(stage: str, *_: int) -> None:
        if stage == "export":
            (tmp_path / "r" / "mine" / REPORT).mkdir(exist_ok=True)

    done = train(
        photos,
        models=tmp_path / "m",
        runs=tmp_path / "r",
        recipe=small.one_epoch(),
        name="mine",
        progress=progress,
        warn=heard.append,
    )
    assert tuple(heard) == done.warnings
    assert heard[0].startswith("the report could not be written: ")


def test_the_table_of_skipped_images_has_each_with_its_reason(tmp_path: Path) -> None:
    """Whatever their names are made of; where none was skipped there is no table, nor that of an earlier process."""
    skipped = [(f"{number}.jpg", 'truncated, "late"') for number in range(3)] + [("\ud800\n.jpg", "empty")]
    with list_skipped(tmp_path, skipped).open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["item", "reason"]
    assert [tuple(row) for row in rows] == [*skipped[:-1], ("\\ud800\n.jpg", "empty")]
    list_skipped(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
