"""Training on data as people have it: archives, damaged files, copies."""

import dataclasses
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from indexer.pixels import PixelSpec
from indexer.sources import Source, open_collection
from tests.trainer import network
from trainer.images import ImageCache, all_the_same, cache_images, duplicates
from trainer.labels import read_labels
from trainer.recipe import load, override
from trainer.run import train

TINY = (
    *("data.size=32", "data.cache_size=40", f"encoder.backbone={network.NAME}", "encoder.weights=none"),
    *("encoder.dim=16", "run.batch_size=100", "run.epochs=1", "run.least_steps=1"),
)


def silent(stage: str, done: int, total: int) -> None:
    """No progress shown."""


def pictures(count: int) -> dict[str, bytes]:
    """Distinct small pictures, PNG, by name."""
    rng = np.random.default_rng(3)
    found = {}
    for number in range(count):
        data = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((44, 40), Image.Resampling.BICUBIC).save(data, "PNG")
        found[f"{number:04d}.png"] = data.getvalue()
    return found


def write_folder(folder: Path, images: dict[str, bytes]) -> Path:
    """A folder of these files."""
    folder.mkdir()
    for name, data in images.items():
        (folder / name).write_bytes(data)
    return folder


def write_archives(root: Path, images: dict[str, bytes]) -> Path:
    """`folder`, `shard.tar` and `images.parquet` of the same images."""
    folder = write_folder(root / "folder", images)
    with tarfile.open(root / "shard.tar", "w") as tar:
        for name in images:
            tar.add(folder / name, name)
    rows = [{"bytes": data, "path": name} for name, data in images.items()]
    pq.write_table(pa.table({"image": rows}), root / "images.parquet")
    return root


def cached(sources: Sequence[Source], file: Path) -> ImageCache:
    """The sources decoded."""
    return cache_images(sources, PixelSpec(size=8), file, silent, "decode")


def test_the_same_images_teach_the_same_from_anywhere(tmp_path: Path) -> None:
    """A folder, a tar shard and a Parquet table of the same images give the same pixels in the same order."""
    write_archives(tmp_path, pictures(40))
    names = ("folder", "shard.tar", "images.parquet")
    first, *others = (cached(open_collection(tmp_path / name).sources, tmp_path / f"{name}.u8") for name in names)
    assert all(np.array_equal(first.pixels, other.pixels) for other in others)
    assert all(first.sha256.tolist() == other.sha256.tolist() for other in others)
    assert len(first) == 40


def test_an_archive_written_anew_is_decoded_anew(tmp_path: Path) -> None:
    """The cache of an archive is not taken for that of another with the same names."""
    write_archives(tmp_path, pictures(4))
    first = cached(open_collection(tmp_path / "shard.tar").sources, tmp_path / "c.u8").sha256.tolist()
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name in ("0001.png", "0000.png", "0002.png", "0003.png"):
            tar.add(tmp_path / "folder" / name, name)
    again = cached(open_collection(tmp_path / "shard.tar").sources, tmp_path / "c.u8").sha256.tolist()
    assert again == [first[1], first[0], first[2], first[3]]


@pytest.mark.parametrize(("name", "prefix"), [("shard.tar", "shard.tar/"), ("images.parquet", "")])
def test_labels_name_images_of_an_archive_by_their_ids(name: str, prefix: str, tmp_path: Path) -> None:
    """A table of labels judges images that lie in a tar shard or a Parquet table."""
    images = pictures(6)
    write_archives(tmp_path, images)
    lines = [f"{prefix}{image},{number % 3}" for number, image in enumerate(images)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,class_id", *lines]) + "\n")
    collection = open_collection(tmp_path / name)
    labels = read_labels(tmp_path / "labels.csv", collection)
    assert labels.unknown == {}
    assert [labels.class_of[source.item] for source in collection.sources] == [0, 1, 2, 0, 1, 2]


def test_one_file_in_a_hundred_damaged_costs_only_itself(tmp_path: Path) -> None:
    """A run names empty, cut, flipped and foreign files with their reasons, and learns from all others."""
    images = pictures(400)
    flipped = bytearray(images["0300.png"])
    flipped[len(flipped) // 2] ^= 0x40
    damaged = {
        "0000.png": (b"", "empty: 0 bytes"),
        "0100.png": (images["0100.png"][: len(images["0100.png"]) // 2], "damaged: "),
        "0200.png": (b"a text that was given the name of an image", "not an image of an accepted format"),
        "0300.png": (bytes(flipped), "damaged: "),
    }
    copy = {"copy.png": images["0399.png"]}
    folder = write_folder(tmp_path / "folder", images | copy | {name: data for name, (data, _) in damaged.items()})
    recipe = override(load("stml"), *TINY)
    report = train(folder, models=tmp_path / "models", runs=tmp_path / "runs", recipe=recipe, progress=silent)
    assert report.images == 397
    assert [item for item, _ in report.skipped] == sorted(damaged)
    assert all(reason.startswith(damaged[item][1]) for item, reason in report.skipped)
    assert dataclasses.astuple(report.duplicates) == (1, (("0399.png", "copy.png"),))
    _, *listed = (tmp_path / "runs" / report.run / "skipped.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in listed] == sorted(damaged)


def test_an_image_to_learn_from_and_to_judge_on_is_no_copy_of_itself(tmp_path: Path) -> None:
    """Copies are found across what is learned from and judged on; an image that serves for both counts once."""
    images = pictures(6)
    sources = open_collection(write_folder(tmp_path / "folder", images | {"copy.png": images["0001.png"]})).sources
    every, half, rest = (
        cached(part, tmp_path / f"{name}.u8")
        for name, part in (("every", sources), ("half", sources[:3]), ("rest", sources[3:]))
    )
    for learned, judged in ((every, None), (every, every), (every, rest), (half, rest)):
        assert dataclasses.astuple(duplicates(learned, judged)) == (1, (("0001.png", "copy.png"),))
    assert duplicates(half, None).copies == 0


def test_one_image_many_times_is_warned_of(tmp_path: Path) -> None:
    """A training set of copies of one file has nothing to teach, and any other has no such warning."""
    images = pictures(2)
    same = write_folder(tmp_path / "same", {f"{number}.png": images["0000.png"] for number in range(20)})
    (warning,) = all_the_same(cached(open_collection(same).sources, tmp_path / "same.u8"))
    assert warning.startswith("all 20 images to learn from are one and the same file: nothing can be learned")
    (same / "other.png").write_bytes(images["0001.png"])
    assert all_the_same(cached(open_collection(same).sources, tmp_path / "other.u8")) == ()
