"""`kinsight finetune`: a few labels and many images, from the model that learned without any."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from clients.cli.command import kinsight
from indexer.store import Store
from trainer.recipe import load

Run = Callable[..., Result]

TINY = (
    *("--backbone", "test_resnet", "--weights", "none", "--dim", 16, "--size", 32, "--epochs", 1),
    *("--set", "run.batch_size=20"),
)
CLASSES = 4


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store, str]:
    """Forty pictures of four colours, a store, and the model in it that learned from them without labels."""
    root = tmp_path_factory.mktemp("finetune")
    rng = np.random.default_rng(3)
    (root / "pictures").mkdir()
    for number in range(40):
        colour = np.array([(200, 60, 60), (60, 200, 60), (60, 60, 200), (200, 200, 60)][number % CLASSES])
        noise = rng.integers(-50, 50, (6, 6, 3))
        picture = Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8))
        picture.resize((50, 40)).save(root / "pictures" / f"{number:02d}.png")
    store = Store(root / "store")
    words = ["train", root / "pictures", *TINY, "--store", store.root, "--json"]
    told = CliRunner().invoke(kinsight, list(map(str, words)))
    return root / "pictures", store, json.loads(told.stdout)["model"]


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
        ("path,class_id\n", "none of its 0 paths is in"),
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


@pytest.mark.slow
def test_unknown_and_damaged_labelled_images_are_told(finetune: Run, work: tuple[Path, Store, str]) -> None:
    """The rest teaches all the same; where no labelled image can be decoded, that is the error."""
    pictures, _, _ = work
    (pictures / "zz.png").write_bytes(b"no image")
    try:
        done = finetune(few_classes() + "gone.png,1,train\nzz.png,2,train\n", "--epochs", 1, "--json")
        alone = finetune("path,class_id\nzz.png,2\ngone.png,1\n")
    finally:
        (pictures / "zz.png").unlink()

    told = json.loads(done.stdout)
    assert told["unknown_labels"] == ["gone.png"]
    assert [skipped["item"] for skipped in told["skipped"]] == ["zz.png"]
    assert alone.exit_code == 1


@pytest.mark.slow
def test_a_stopped_finetuning_goes_on_with_its_labels(finetune: Run, work: tuple[Path, Store, str]) -> None:
    """A finished run that is resumed gives its model again; its recipe can't be changed on the way."""
    first = json.loads(finetune(few_classes(), "--epochs", 1, "--run", "again", "--json").stdout)
    second = json.loads(finetune(few_classes(), "--resume", "again", "--json").stdout)
    assert second["model"] == first["model"]
    assert finetune(few_classes(), "--resume", "again", "--epochs", 2).exit_code == 2
    other = finetune(few_classes(wrong=2), "--resume", "again")
    assert other.exit_code == 1
    assert "or the labels to learn from, are not those" in other.stderr
