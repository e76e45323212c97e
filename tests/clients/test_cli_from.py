"""`kinsight train` as another program runs it: from a model, on several collections, with progress to read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clients.cli.command import kinsight
from clients.cli.output import JSON_INTERVAL_S, JsonProgress
from indexer.store import Store
from tests.conftest import School
from tests.trainer import network
from trainer.recipe import load

TINY = (
    *("--backbone", network.NAME, "--weights", "none", "--dim", 16, "--size", 32, "--epochs", 1),
    *("--set", "run.least_steps=1"),
    *("--set", "run.batch_size=20"),
)


@pytest.fixture
def run(store: Store) -> Callable[..., Result]:
    """Runs the command in this process on `store`."""
    return lambda *words: CliRunner().invoke(kinsight, [*map(str, words), "--store", str(store.root)])


@pytest.mark.slow
def test_a_program_trains_from_a_model_and_reads_progress(
    run: Callable[..., Result], store: Store, photos: Path
) -> None:
    """The second run has the name and the recipe that it was given, its progress is JSON, and it can be resumed."""
    first = json.loads(run("train", photos / "garden", *TINY, "--json").stdout)
    words = ("train", photos / "garden", photos / "street", "--progress", "json", "--json")
    second = run(*words, "--from", first["model"][:6], "--run", "job-1")

    assert second.exit_code == 0, second.stderr
    told = json.loads(second.stdout)
    assert (told["run"], told["images"], told["warnings"]) == ("job-1", 60, [])
    assert load(store.runs / "job-1" / "recipe.toml").encoder.from_model == first["model"]
    lines = [json.loads(line) for line in second.stderr.splitlines() if line.startswith("{")]
    assert {line["stage"] for line in lines} == {"decode", "judge", "embed", "train", "export"}
    assert [line for line in lines if line["stage"] == "train"][-1] == {"stage": "train", "done": 3, "total": 3}

    again = run(*words, "--resume", "job-1")
    assert json.loads(again.stdout)["model"] == told["model"]


def test_an_unknown_model_or_a_taken_name_is_one_line(
    run: Callable[..., Result], photos: Path, store: Store, tiny_school: School
) -> None:
    """Starting from what is not there, or a second run of one name, fails before any work."""
    missing = run("train", photos, *TINY, "--from", "beef")
    assert missing.exit_code == 1
    assert "no model 'beef'" in missing.stderr

    (learned,) = tiny_school.store.runs.iterdir()
    shutil.copytree(learned, store.runs / "mine")
    taken = run("train", photos, *TINY, "--run", "mine")
    assert taken.exit_code == 1
    assert "there is a run 'mine'" in taken.stderr
    assert run("train", photos, "--resume", "mine", "--from", "beef").exit_code == 2


def test_a_model_that_learned_from_labels_alone_says_how_to_learn_on(
    run: Callable[..., Result], store: Store, photos: Path, tmp_path: Path, tiny_school: School
) -> None:
    """Its own recipe can't do without labels, which is said before any work; another recipe can."""
    labels = tmp_path / "labels.csv"
    rows = [f"{path},{number % 3}" for number, path in enumerate(sorted(photos.rglob("*.*"))[:12])]
    labels.write_text("\n".join(["path,class_id", *rows]))
    first = tiny_school.model
    shutil.copytree(tiny_school.store.root, store.root)
    words = ("--labels", labels, "--method", "supervised", "--epochs", 1, "--json")
    taught = json.loads(run("finetune", first, photos, *words).stdout)["model"]

    refused = run("train", photos, "--from", taught, "--run", "on")
    assert refused.exit_code == 1
    assert f"model {taught} was learned by supervised, which needs labels" in refused.stderr
    assert "decode" not in refused.stderr
    assert not (store.runs / "on").exists()

    again = run("train", photos, "--recipe", "stml", *TINY, "--from", taught, "--run", "on")
    assert again.exit_code == 0, again.stderr


def test_json_progress_tells_at_most_one_line_in_a_while_and_each_end(capsys: pytest.CaptureFixture[str]) -> None:
    """Between two lines of a stage lies the interval, except before its last."""
    now_s = 5.0
    report = JsonProgress(lambda: now_s)
    for done in range(1, 11):
        now_s += JSON_INTERVAL_S / 4
        report("train", done, 10)
        report("judge", done, 10)

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    trained = [line["done"] for line in lines if line["stage"] == "train"]
    assert trained == [1, 5, 9, 10]
    assert [line["done"] for line in lines if line["stage"] == "judge"] == trained
