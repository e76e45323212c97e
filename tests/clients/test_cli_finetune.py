"""`kinsight finetune`: a few labels and many images, from the model that learned without any."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file

from clients.cli.command import kinsight
from indexer.store import Store
from tests.conftest import School, copied
from trainer import checkpoint
from trainer.recipe import load, taught
from trainer.run_directory import finish_run, new_run
from trainer.start import recipe_from

Run = Callable[..., Result]

CLASSES = 4


@pytest.fixture(scope="module")
def work(tiny_school: School, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store, str]:
    """Forty pictures of four colours, a store, and the model in it that learned from them without labels."""
    school = copied(tiny_school, tmp_path_factory.mktemp("finetune"))
    return school.pictures, school.store, school.model


@pytest.fixture
def finetune(work: tuple[Path, Store, str], tmp_path: Path) -> Run:
    """Runs `kinsight finetune` in this process, with the labels that it is given as text."""
    pictures, store, model = work

    def invoke(labels: str | bytes, *words: object) -> Result:
        table = tmp_path / "few.csv"
        table.write_bytes(labels if isinstance(labels, bytes) else labels.encode())
        given = ["finetune", model[:8], pictures, "--labels", table, "--store", store.root, *words]
        return CliRunner().invoke(kinsight, list(map(str, given)))

    return invoke


def few_classes(wrong: int = 0, rest: range = range(0)) -> str:
    """Two labelled pictures of each colour to learn from, `wrong` of them wrongly, and four of each to judge on."""
    rows = [f"{number:02d}.png,{(number + (number < wrong)) % CLASSES},train" for number in range(8)]
    rows += [f"{number:02d}.png,{number % CLASSES},test" for number in range(24, 40)]
    rows += [f"{number:02d}.png,{number % CLASSES},rest" for number in rest]
    return "\n".join(["path,class_id,split", *rows]) + "\n"


@pytest.mark.parametrize("method", ["stml-semi", "cmsf-semi", "supervised"])
def test_a_few_labels_make_a_new_model_that_is_judged_beside_the_old(
    finetune: Run, work: tuple[Path, Store, str], method: str
) -> None:
    """It learns from all pictures but those to judge on, and its recipe says from which model and how."""
    _, store, model = work
    done = finetune(few_classes(), "--method", method, "--epochs", 1, "--run", method, "--no-baselines", "--json")

    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["images"] == 24
    assert told["compared"] == 8
    assert {"frozen", "start", "trained", "beats_start", "suspects"} <= set(told)
    recipe = load(store.runs / method / "recipe.toml")
    assert recipe.objective.name == method.replace("-", "_")
    assert recipe.encoder.from_model == model
    assert told["model"] != model
    assert "from 24 images, 8 of them labelled." in (store.model(told["model"]) / "card.md").read_text()


@pytest.mark.slow
def test_the_baseline_and_the_rest_of_the_classes_are_judged_beside_the_model(
    finetune: Run, work: tuple[Path, Store, str]
) -> None:
    """All four in both places; the baseline is what a run of that method gives, and rest is learned from."""
    _, store, _ = work
    table = few_classes(rest=range(8, 24))
    told = json.loads(finetune(table, "--epochs", 1, "--run", "both", "--json").stdout)
    alone = json.loads(finetune(table, "--epochs", 1, "--method", "supervised", "--json").stdout)

    assert told["images"] == 24
    assert told["compared"] == 8
    assert list(told["rest"]) == ["frozen", "start", "supervised", "trained"]
    assert {found["queries"] for found in told["rest"].values()} == {16}
    assert "supervised" not in alone
    assert set(alone["rest"]) == {"frozen", "start", "trained"}
    for found, expected in ((told, alone), (told["rest"], alone["rest"])):
        assert found["supervised"]["map_at_r"] == pytest.approx(expected["trained"]["map_at_r"], abs=1e-3)
    assert told["beats_supervised"] == (told["trained"]["recall_at_1"] > told["supervised"]["recall_at_1"])
    page = (store.runs / "both" / "report.html").read_text()
    assert page.count("<td>supervised</td>") == 2
    assert [run.name for run in store.runs.glob("both*")] == ["both"]


@pytest.mark.slow
def test_a_table_for_people_has_the_three_models_and_what_is_doubtful(finetune: Run) -> None:
    """Frozen, start and trained beside each other; the wrong labels are named first; being no better is said."""
    done = finetune(few_classes(wrong=3), "--set", "optimizer.lr=0.0", "--epochs", 1, "--no-baselines")

    assert done.exit_code == 0, done.stderr
    head = next(line for line in done.stdout.splitlines() if "frozen" in line)
    assert head.split() == ["frozen", "start", "trained"]
    assert "recall_at_1" in done.stdout
    assert "This training does not beat" in done.stdout
    lines = done.stderr.splitlines()
    first = next(
        i for i, line in enumerate(lines) if "look most like one that is labelled as something else:" in line
    )
    assert " is like " in lines[first + 1]
    assert "warning: the labels disagree with the model for" in done.stderr


@pytest.mark.slow
def test_pairs_teach_and_nothing_is_judged(finetune: Run) -> None:
    """A table of pairs is enough to learn from."""
    pairs = "path_a,path_b,relation\n00.png,04.png,same\n00.png,01.png,different\n01.png,05.png,same\n"
    done = finetune(pairs, "--epochs", 1, "--json")

    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["images"] == 40
    assert "trained" not in told


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("", "has no column path"),
        ("path,class_id\n", "has a header and no row"),
        ("path,class_id\n00.png,1\n01.png,1\n", "of 1 class"),
        ("path,class_id\n00.png,1\n00.png,2\n", "has two classes"),
        ("path,class_id\n00.png,Möwe\n".encode("latin-1"), "is not UTF-8 text"),
        ("path_a,path_b,relation\n00.png,04.png,same\n04.png,00.png,different\n", "contradicts itself: 0"),
    ],
    ids=["empty", "header", "one class", "two classes", "encoding", "contradiction"],
)
def test_labels_that_teach_nothing_are_one_line(finetune: Run, labels: str | bytes, said: str) -> None:
    """The error says what is wrong with the table, before any work."""
    done = finetune(labels)

    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said in line


@pytest.mark.parametrize(
    "words", [["--method", "cmsf-semi"], ["--set", "objective.supervised_loss=proxy_anchor"]], ids=["cmsf", "proxies"]
)
def test_pairs_are_refused_before_any_work_where_classes_are_needed(
    finetune: Run, work: tuple[Path, Store, str], words: list[str]
) -> None:
    """It was found out after all images were decoded and embedded, as an error of nobody's, and left a run."""
    _, store, _ = work
    done = finetune("path_a,path_b,relation\n00.png,04.png,same\n00.png,01.png,different\n", *words, "--run", "vain")
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert "few.csv has pairs, which tell no classes, and objective " in line
    assert not (store.runs / "vain").exists()


@pytest.mark.slow
def test_unknown_and_damaged_labelled_images_are_told(finetune: Run, work: tuple[Path, Store, str]) -> None:
    """The rest teaches all the same, and a copy labelled otherwise; where none can be decoded, that is the error."""
    pictures, _, _ = work
    for name in ("yy.png", "zz.png"):
        (pictures / name).write_bytes(b"no image")
    shutil.copy(pictures / "00.png", pictures / "xx.png")
    try:
        labels = few_classes() + "gone.png,1,train\nzz.png,2,train\nxx.png,3,train\n"
        done = finetune(labels, "--epochs", 1, "--json")
        alone = finetune("path,class_id\nyy.png,1\nzz.png,2\ngone.png,1\n")
    finally:
        for name in ("xx.png", "yy.png", "zz.png"):
            (pictures / name).unlink()

    lines = done.stderr.splitlines()
    for name, before in (("gone.png", "decode "), ("yy.png", "train "), ("for example xx.png = 00.png", "train ")):
        (line,) = [number for number, line in enumerate(lines) if name in line]
        assert line < next(number for number, line in enumerate(lines) if line.startswith(before))
    told = json.loads(done.stdout)
    assert told["unknown_labels"] == ["gone.png"]
    assert [skipped["item"] for skipped in told["skipped"]] == ["yy.png", "zz.png"]
    assert alone.exit_code == 1
    assert "error: none of the 2 labelled images can be decoded; yy.png: not an image" in alone.stderr


@pytest.mark.slow
def test_a_stopped_finetuning_goes_on_with_its_labels(finetune: Run, work: tuple[Path, Store, str]) -> None:
    """Its recipe can't be changed on the way; where it is finished, it names its model and changes nothing."""
    _, store, _ = work
    first = json.loads(finetune(few_classes(), "--epochs", 1, "--run", "again", "--json").stdout)
    report = Path(first["report"])
    written = report.stat()
    finished = finetune(few_classes(), "--resume", "again", "--json")
    assert finished.exit_code == 0
    assert json.loads(finished.stdout) == {name: first[name] for name in ("model", "run", "report")}
    assert f"run 'again' is finished: its model is {first['model']}" in finished.stderr
    assert report.stat() == written

    (store.runs / "again" / "finished.json").unlink()
    second = json.loads(finetune(few_classes(), "--resume", "again", "--json").stdout)
    assert (second["model"], second["images_per_s"]) == (first["model"], None)
    (store.runs / "again" / "finished.json").unlink()
    assert finetune(few_classes(), "--resume", "again", "--epochs", 2).exit_code == 2
    other = finetune(few_classes(wrong=2), "--resume", "again")
    assert other.exit_code == 1
    assert "or the labels to learn from, are not those" in other.stderr


def test_a_run_goes_on_only_as_what_it_was_begun_as(
    finetune: Run, work: tuple[Path, Store, str], tmp_path: Path
) -> None:
    """Another method or another model is refused, and both are named; the method may be left out."""
    pictures, store, model = work
    table = few_classes()
    first = json.loads(
        finetune(table, "--epochs", 1, "--method", "supervised", "--run", "alone", "--no-baselines", "--json").stdout
    )["model"]

    other = finetune(table, "--resume", "alone", "--method", "cmsf-semi")
    assert other.exit_code == 1
    assert "run 'alone' was begun with --method supervised, not cmsf-semi" in other.stderr
    (tmp_path / "labels.csv").write_text(table)
    words = ("finetune", first, pictures, "--labels", tmp_path / "labels.csv", "--store", store.root)
    elsewhere = CliRunner().invoke(kinsight, list(map(str, [*words, "--resume", "alone"])))
    assert elsewhere.exit_code == 1
    assert f"run 'alone' was begun from model {model}, not from {first}" in elsewhere.stderr
    unlabelled = next(path.parent for path in store.runs.glob("*/*.toml") if load(path).objective.name == "stml")
    assert "without labels: go on by `kinsight train`" in finetune(table, "--resume", unlabelled.name).stderr
    assert finetune(table, "--resume", "alone").exit_code == 0


def test_a_run_goes_on_only_with_labels_as_it_began(
    finetune: Run, work: tuple[Path, Store, str], tmp_path: Path
) -> None:
    """Also where it has no checkpoint yet: `train` does not go on without them, nor --keep-doubted with more."""
    pictures, store, model = work
    recipe = taught(recipe_from(store.model(model)), "stml_semi")
    new_run(store.runs, recipe, "labelled", teach=True)
    new_run(store.runs, recipe, "unlabelled")
    words = ["train", pictures, "--store", store.root, "--resume", "labelled"]
    without = CliRunner().invoke(kinsight, list(map(str, words)))
    assert without.exit_code == 1
    assert "run 'labelled' learns from labels: go on by `kinsight finetune`" in without.stderr
    assert "--resume labelled" in without.stderr
    more = finetune(few_classes(), "--resume", "labelled", "--keep-doubted")
    assert more.exit_code == 1
    assert "run 'labelled' began without --keep-doubted" in more.stderr
    other = finetune(few_classes(), "--resume", "unlabelled")
    assert other.exit_code == 1
    assert "run 'unlabelled' learns without labels: go on by `kinsight train`" in other.stderr
    assert not list(store.runs.glob("*labelled/*.u8"))


def test_a_finished_run_names_no_report_that_was_removed(finetune: Run, work: tuple[Path, Store, str]) -> None:
    """The model and the run are told all the same, to programs and to people."""
    _, store, model = work
    recipe = taught(recipe_from(store.model(model)), "stml_semi")
    finish_run(new_run(store.runs, recipe, "ended", teach=True), model)
    told = json.loads(finetune(few_classes(), "--resume", "ended", "--json").stdout)
    assert told == {"model": model, "run": "ended", "report": None}
    facts = finetune(few_classes(), "--resume", "ended").stdout.splitlines()
    assert [line.split() for line in facts] == [["model", model], ["run", "ended"]]


HUES = [(r, g, b) for r in (50, 200) for g in (50, 200) for b in (50, 200)]


@pytest.fixture
def mislabelled(tmp_path: Path) -> tuple[Path, Path, set[str]]:
    """Eight pictures of each of eight hues, a table with five labels of each, 16 of 40 wrong, and the wrong ones."""
    rng = np.random.default_rng(7)
    pictures, rows = tmp_path / "hues", ["path,class_id,split"]
    pictures.mkdir()
    for hue, colour in enumerate(HUES):
        for number in range(8):
            noise = rng.integers(-40, 40, (6, 6, 3))
            picture = Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))
            picture.resize((40, 40)).save(pictures / f"{hue}{number}.png")
            # The first two of each hue say another one, each time one further off.
            said = (hue + 1 + (hue + 3 * number) % 7) % 8 if number < 2 else hue
            rows.append(f"{hue}{number}.png,hue {said},{'train' if number < 5 else 'test'}")
    table = tmp_path / "hues.csv"
    table.write_text("\n".join(rows) + "\n")
    return pictures, table, {f"{hue}{number}.png" for hue in range(8) for number in range(2)}


def test_with_two_labels_in_five_wrong_the_model_gets_no_worse(
    work: tuple[Path, Store, str], mislabelled: tuple[Path, Path, set[str]]
) -> None:
    """Most wrong labels are left out, named and counted in a warning; R@1 stays at least that of the start."""
    _, store, model = work
    pictures, table, wrong = mislabelled
    words = ["finetune", model, pictures, "--labels", table, "--store", store.root, "--run", "doubted"]
    options = ["--epochs", 2, "--no-baselines", "--json"]
    done = CliRunner().invoke(kinsight, list(map(str, [*words, *options])))

    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    left_out = set(told["left_out"])
    assert told["wrong_share"] == pytest.approx(0.4, abs=0.12)
    assert len(left_out & wrong) >= 10
    assert len(left_out - wrong) <= 4
    assert told["trained"]["recall_at_1"] >= told["start"]["recall_at_1"]
    (warning,) = [line for line in told["warnings"] if "left out" in line]
    lines = done.stderr.splitlines()
    assert lines.count(f"warning: {warning}") == 1
    assert lines.index(f"warning: {warning}") < next(i for i, line in enumerate(lines) if line.startswith("train "))
    assert f"about {told['wrong_share']:.0%} of the 40 labels" in warning
    assert f"the {len(left_out)} likeliest to be wrong are left out" in warning
    card = (store.model(told["model"]) / "card.md").read_text()
    assert f"from 40 images, {40 - len(left_out)} of them labelled." in card
    assert json.loads((store.runs / "doubted" / "left_out.json").read_text()) == told["left_out"]
    share = told["wrong_share"]
    assert any(f"this is {share:.0%} of the way back" in line for line in told["warnings"])
    assert_between(store, model, told, share)


def assert_between(store: Store, model: str, told: dict[str, Any], share: float) -> None:
    """The weights that came of a run lie so far back from those learned toward the model that it began with."""
    found, _ = checkpoint.latest(store.runs / told["run"] / "checkpoints")
    assert found is not None
    learned = found.weights["averaged.module.head.weight"]
    before, after = (load_file(store.model(name) / "head.safetensors")["weight"] for name in (model, told["model"]))
    torch.testing.assert_close(after, share * before + (1 - share) * learned, rtol=0, atol=3e-7)
    assert (learned - before).abs().max() > 5e-6  # in so few steps, of which all are of the warm-up


@pytest.mark.parametrize(("a_class", "share"), [(1, 1 / 2), (2, 1 / 3), (4, 0)])
def test_with_few_labels_a_class_the_model_goes_part_of_the_way(
    work: tuple[Path, Store, str], mislabelled: tuple[Path, Path, set[str]], a_class: int, share: float
) -> None:
    """Half of the way with one label of each class, two thirds with two; with four it goes all of it."""
    _, store, model = work
    pictures, table, _ = mislabelled
    rows = [f"{hue}{number}.png,{hue}" for hue in range(8) for number in range(a_class)]
    table.write_text("\n".join(["path,class_id", *rows]) + "\n")
    words = ["finetune", model, pictures, "--labels", table, "--store", store.root, "--run", f"few-{a_class}"]
    done = CliRunner().invoke(kinsight, list(map(str, [*words, "--epochs", 2, "--no-baselines", "--json"])))
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert_between(store, model, told, share)
    warnings = [line for line in told["warnings"] if "of the way back" in line]
    assert [f"is {share:.0%} of the way back" in line for line in warnings] == ([True] if share else [])


@pytest.mark.slow
def test_doubted_labels_are_kept_where_that_is_asked_for_and_a_resumed_run_goes_on_as_it_began(
    work: tuple[Path, Store, str], mislabelled: tuple[Path, Path, set[str]]
) -> None:
    """All labels teach, which a warning says; resumed without the option, the run still learns from all."""
    _, store, model = work
    pictures, table, _ = mislabelled
    words = [*("finetune", model, pictures, "--labels", table), *("--store", store.root, "--no-baselines", "--json")]
    first = CliRunner().invoke(kinsight, list(map(str, [*words, "--run", "kept", "--epochs", 1, "--keep-doubted"])))
    (store.runs / "kept" / "finished.json").unlink()  # as if it had been killed while it wrote its report
    again = CliRunner().invoke(kinsight, list(map(str, [*words, "--resume", "kept"])))

    for done in (first, again):
        assert done.exit_code == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["left_out"] == []
        (warning,) = [line for line in told["warnings"] if "likeliest to be wrong" in line]
        assert warning.endswith("are learned from too, as was asked")
        assert not any("of the way back" in line for line in told["warnings"])
    assert json.loads(first.stdout)["model"] == json.loads(again.stdout)["model"]
