import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from indexer.encoder import Encoder as RuntimeEncoder
from indexer.manifest import read_model, verify
from indexer.pixels import PixelSpec
from indexer.sources import SourceError
from tests.conftest import School, copied
from tests.trainer import network, small
from tests.trainer.small import silent
from trainer.encoders import Encoder, make_backbone
from trainer.export import Origin, ParityError, export
from trainer.judging import evaluate
from trainer.recipe import Recipe, load, override
from trainer.run import train
from trainer.run_directory import RunError, RunFinished, new_run, sole_process

TINY = (*small.TINY, "run.epochs=2")


def tiny_recipe(*assignments: str) -> Recipe:
    recipe = load("stml")
    for assignment in (*TINY, *assignments):
        recipe = override(recipe, assignment)
    return recipe


@pytest.fixture
def labelled(photos: Path) -> Path:
    """A labels table of the photos: four classes, half of each to judge on; one is damaged and two are not there."""
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff damaged")
    rows = ["path,class_id,split", "broken.jpg,0,train", "gone.jpg,0,test", "far.jpg,0,train"]
    for path in sorted(photos.rglob("[0-9]*.*")):
        number = int(path.stem)
        rows.append(f"{path.relative_to(photos)},{number % 4},{'train' if number < 30 else 'test'}")
    table = photos / "labels.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


def test_a_run_ends_in_a_model_that_scores_what_it_says(
    photos: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registered model opens, evaluates to the metrics in its manifest, and every skipped image is named."""
    models, runs = tmp_path / "models", tmp_path / "runs"
    with monkeypatch.context() as locale:  # of one without UTF-8
        locale.setattr(io, "text_encoding", lambda encoding, _=0: encoding or "ascii")
        report = train(photos, models=models, runs=runs, recipe=tiny_recipe(), labels=labelled, progress=silent)
    directory = models / report.model.id
    verify(directory, read_model(directory))
    metrics, skipped = evaluate(directory, photos, labelled, progress=silent)
    assert metrics == report.trained
    assert skipped == (("gone.jpg", f"labelled, but not in {photos}"),)
    assert report.model.metrics["trained.recall_at_1"] == metrics.recall_at_1
    assert report.frozen is not None
    assert report.model.metrics["frozen.map_at_r"] == report.frozen.map_at_r
    assert (report.images, [item for item, _ in report.skipped]) == (30, ["broken.jpg"])
    assert report.unknown_labels == ("gone.jpg",)
    assert report.model.parity["max_abs_diff"] < 1e-4
    assert "learned with" in (directory / "card.md").read_text().lower()
    assert not list(runs.rglob("*.u8"))
    assert load(runs / report.run / "recipe.toml") == tiny_recipe()
    assert report.report == runs / report.run / "report.html"
    told = report.report.read_text()
    assert f"{report.frozen.recall_at_1:.4f}" in told
    assert f"{report.trained.recall_at_1:.4f}" in told
    assert all(name in told for name in ("broken.jpg", "gone.jpg", "relaxed contrastive f", "R@8", report.model.id))
    curve = [json.loads(line) for line in (runs / report.run / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in curve if "recall_at_1" in line]) == 2
    on = partial(
        train,
        photos,
        models=models,
        runs=runs,
        recipe=tiny_recipe(),
        labels=labelled,
        resume=report.run,
        progress=silent,
    )
    with pytest.raises(RunFinished, match=f"run '{report.run}' is finished: its model is {report.model.id}"):
        on()
    assert report.report.read_text() == told

    (runs / report.run / "finished.json").unlink()  # as if it had been killed while it wrote its report
    resumed = on()
    assert (resumed.model.id, resumed.trained) == (report.model.id, report.trained)
    assert resumed.images_per_s is None
    assert "training time since it went on" in report.report.read_text()
    assert "images/s, with judging" not in report.report.read_text()
    assert len(json.loads((runs / report.run / "environment.json").read_text())["earlier"]) == 1


def test_a_finished_run_whose_model_is_gone_exports_it_again(tiny_school: School, tmp_path: Path) -> None:
    """Its last checkpoint has all that the model is made of."""
    school = copied(tiny_school, tmp_path)
    models, runs = school.store.models, school.store.runs
    shutil.rmtree(models / school.model)
    (run,) = (path.name for path in runs.iterdir())
    again = train(school.pictures, models=models, runs=runs, recipe=small.one_epoch(), resume=run, progress=silent)
    assert again.model.id == school.model
    assert models.joinpath(school.model).is_dir()


def test_without_labels_nothing_is_judged(tiny_school: School) -> None:
    """A folder alone trains a model with no metrics and no verdict."""
    report = tiny_school.report
    assert (report.frozen, report.trained, report.beats_frozen, report.images) == (None, None, None, 40)
    assert report.report is not None
    assert "No labels were given" in report.report.read_text()
    assert not list(tiny_school.store.runs.rglob("*.u8"))


def test_whom_the_umask_lets_read_files_can_serve_a_model(tiny_school: School, tmp_path: Path) -> None:
    """The server reads every file of a model, and is often another user than who trained it."""
    (tmp_path / "plain").touch()
    store = tiny_school.store
    files = [*(store.models / tiny_school.model).iterdir(), *store.runs.rglob("*.safetensors")]
    assert {path.stat().st_mode for path in files} == {(tmp_path / "plain").stat().st_mode}


@pytest.mark.slow
def test_a_report_that_can_not_be_written_costs_only_itself(photos: Path, tmp_path: Path) -> None:
    """The model is registered, the pixels are forgotten, and a warning says why there is no report."""
    runs = tmp_path / "r"

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "export" and done == 0:
            (run,) = runs.iterdir()
            (run / "report.html").mkdir()

    recipe = tiny_recipe("run.epochs=1")
    report = train(photos, models=tmp_path / "m", runs=runs, recipe=recipe, progress=progress)
    verify(tmp_path / "m" / report.model.id, report.model)
    assert report.report is None
    (warning,) = report.warnings
    assert warning.startswith("the report could not be written: ")
    assert not list(runs.rglob("*.u8"))

    (runs / report.run / "report.html").rmdir()
    again = train(photos, models=tmp_path / "m", runs=runs, recipe=recipe, resume=report.run, progress=silent)
    assert again.model.id == report.model.id
    assert again.report == runs / report.run / "report.html"


@pytest.mark.slow
def test_labels_are_not_learned_from(photos: Path, labelled: Path, tmp_path: Path) -> None:
    """Other classes for the same split give the same model."""
    recipe = tiny_recipe("run.epochs=1")
    first = train(photos, models=tmp_path / "a", runs=tmp_path / "r", recipe=recipe, labels=labelled, progress=silent)
    rows = [row.split(",") for row in labelled.read_text().splitlines()]
    shuffled = [rows[0]] + [
        [path, str((int(label) * 7 + i) % 3), split] for i, (path, label, split) in enumerate(rows[1:])
    ]
    labelled.write_text("\n".join(",".join(row) for row in shuffled) + "\n")
    second = train(
        photos, models=tmp_path / "b", runs=tmp_path / "r", recipe=recipe, labels=labelled, progress=silent
    )
    assert first.model.id == second.model.id


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_is_an_error(tmp_path: Path, count: int) -> None:
    """No or one decodable image can't teach a metric, and the error says how many there were."""
    folder = tmp_path / "few"
    folder.mkdir()
    (folder / "broken.jpg").write_bytes(b"")
    for number in range(count):
        Image.new("RGB", (9, 9)).save(folder / f"{number}.png")
    with pytest.raises(SourceError, match=rf"{count} of the {count + 1} images .* at least two; broken\.jpg: empty"):
        train(folder, models=tmp_path / "m", runs=tmp_path / "r", recipe=tiny_recipe(), progress=silent)


def test_identical_images_train_without_a_crash(tmp_path: Path) -> None:
    """A folder of copies of one picture gives a finite model."""
    folder = tmp_path / "same"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (40, 40), "teal").save(folder / f"{number}.png")
    report = train(folder, models=tmp_path / "m", runs=tmp_path / "r", recipe=tiny_recipe(), progress=silent)
    runtime = RuntimeEncoder.open(tmp_path / "m" / report.model.id, device="cpu")
    assert np.isfinite(runtime.embed(np.zeros((1, 32, 32, 3), np.uint8))).all()


def test_images_that_go_while_it_trains_cost_no_model(photos: Path, tmp_path: Path) -> None:
    """They have been decoded: a folder that is moved, or a mount that is lost, does not end a run at its export."""

    def move_them(stage: str, *_: int) -> None:
        if stage == "train" and photos.exists():
            photos.rename(tmp_path / "elsewhere")

    report = train(
        photos, models=tmp_path / "models", runs=tmp_path / "runs", recipe=tiny_recipe(), progress=move_them
    )

    assert report.model.parity["images"] == 60
    assert report.warnings == ()


def test_one_process_at_a_time_works_on_a_run(photos: Path, tmp_path: Path) -> None:
    """Going on with a run that is not stopped is refused, with the process that is at work on it."""
    runs = tmp_path / "r"
    run = new_run(runs, tiny_recipe(), "mine")
    with sole_process(run), pytest.raises(RunError, match=f"process {os.getpid()} is at work on run 'mine' already"):
        train(photos, models=tmp_path / "m", runs=runs, recipe=tiny_recipe(), resume="mine", progress=silent)
    assert not list(runs.rglob("*.u8"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("encoder.backbone=nosuch", "no backbone is named 'nosuch'"),
        ("objective.sigma=-1", "sigma -1.0, .* must be above 0"),
        ("objective.neighbours=21", "run.batch_size is 20; it must be at least objective.neighbours, 21"),
    ],
)
def test_a_recipe_that_can_not_be_begun_is_refused_before_any_work(
    photos: Path, tmp_path: Path, setting: str, message: str
) -> None:
    """Nothing is decoded for it, and the run's name stays free."""
    done: list[str] = []
    stores = partial(train, photos, models=tmp_path / "m", runs=tmp_path / "r", name="mine")
    with pytest.raises(ValueError, match=message):
        stores(recipe=tiny_recipe(setting), progress=lambda stage, *_: done.append(stage))
    assert done == []
    assert not (tmp_path / "r").exists()


def test_an_unknown_run_or_device_is_named(photos: Path, tmp_path: Path) -> None:
    """Resuming what is not there, or a GPU that is not there, is an error with the remedy."""
    options = {"models": tmp_path / "m", "runs": tmp_path / "r", "recipe": tiny_recipe(), "progress": silent}
    with pytest.raises(RunError, match="no run 'x'"):
        train(photos, resume="x", **options)  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(RunError, match="torch sees no GPU"):
            train(photos, device="cuda", **options)  # type: ignore[arg-type]


_CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_run import tiny_recipe
from trainer.run import train
def progress(stage, done, total):
    print(stage, done, flush=True)
stores = dict(models=Path({root!r}, "m"), runs=Path({root!r}, "r"))
train(Path({photos!r}), **stores, recipe=tiny_recipe("run.epochs=40"), progress=progress)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_model(photos: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of training, then resume: the model equals that of a run never killed, to the digest."""
    program = _CHILD.format(tests=str(Path(__file__).parent), photos=str(photos), root=str(tmp_path))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("train 30"):
            break
    time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    (run,) = (tmp_path / "r").iterdir()
    torch.set_num_threads(1)
    resumed = train(
        photos, models=tmp_path / "m", runs=tmp_path / "r", recipe=tiny_recipe(), resume=run.name, progress=silent
    )
    whole = train(
        photos, models=tmp_path / "n", runs=tmp_path / "r", recipe=tiny_recipe("run.epochs=40"), progress=silent
    )
    assert resumed.model.id == whole.model.id


class _Wrong(Encoder):
    """An encoder whose ONNX graph is not what it computes: the exporter sees another branch."""

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return super().embed(images if torch.compiler.is_compiling() else images.flip(3) * 0.5)


def test_a_graph_that_disagrees_is_not_exported(tmp_path: Path) -> None:
    """Where ONNX Runtime does not reproduce torch, export refuses and leaves no model."""
    backbone = make_backbone(network.NAME, "none", size=32)
    wrong = _Wrong(backbone, nn.Linear(backbone.channels, 8))
    origin = Origin(backbone="x", weights="none", objective="stml", recipe={}, images=1, licence="none")
    sample = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    with pytest.raises(ParityError, match="does not reproduce torch"):
        export(wrong, PixelSpec(size=32), sample, tmp_path / "models", origin, lambda _: {})
    assert list((tmp_path / "models").iterdir()) == []
