"""The command's surface: help, usage, messages, and what bad input does to it."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from clients.cli.command import INTERRUPTED, kinsight
from clients.cli.expected import expected_message
from indexer.manifest import CorruptFile
from indexer.store import Store
from trainer.encoders import WeightsError

Run = Callable[..., Result]

VERBS = [
    ["train"],
    ["suggest"],
    ["finetune"],
    ["recipes"],
    ["evaluate"],
    ["index", "build"],
    ["index", "list"],
    ["index", "inspect"],
    ["index", "activate"],
    ["index", "rollback"],
    ["index", "delete-version"],
    ["index", "evaluate"],
    ["index", "stats"],
    ["index", "snapshot"],
    ["index", "restore"],
    ["rebuild"],
    ["operations", "list"],
    ["operations", "show"],
    ["operations", "cancel"],
    ["operations", "resume"],
    ["serve"],
    ["search"],
    ["demo"],
    ["doctor"],
]


@pytest.fixture
def run(store: Store) -> Run:
    """Runs the command in this process, as a user would with `--store` for the verbs that have one."""

    def invoke(*words: object, with_store: bool = True) -> Result:
        place = ["--store", str(store.root)] if with_store else []
        return CliRunner().invoke(kinsight, [*map(str, words), *place])

    return invoke


def error_line(result: Result) -> str:
    """The one error line of a command that failed as expected."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help_that_documents_its_json(verb: list[str], run: Run) -> None:
    """`--help` explains the verb and lists the keys of its JSON object."""
    result = run(*verb, "--help", with_store=False)

    assert result.exit_code == 0
    assert "--json" in result.stdout
    assert "JSON keys" in result.stdout


@pytest.mark.parametrize(
    "verb",
    [["train"], ["evaluate"], ["rebuild"], ["index", "evaluate"], ["remote", "rebuild"], ["remote", "evaluate"]],
    ids=" ".join,
)
def test_help_of_what_takes_labels_names_every_split(verb: list[str], run: Run) -> None:
    """Whoever marks rows `rest` is told that there is such a split, and whether it judges."""
    told = " ".join(run(*verb, "--help", with_store=False).stdout.split())
    assert "optionally, split (train, rest, test, or query and gallery)" in told


@pytest.mark.parametrize("group", [[], ["index"], ["items"], ["operations"], ["remote"]])
def test_help_of_a_group_tells_of_each_verb_in_a_whole_sentence(group: list[str], run: Run) -> None:
    """In a terminal of 80 columns no line of the list is cut."""
    listed = run(*group, "--help", with_store=False).stdout.partition("Commands:")[2]
    assert listed.strip()
    assert "..." not in listed


def test_help_of_the_command_lists_every_verb(run: Run) -> None:
    """The front page names all verbs."""
    result = run("--help", with_store=False)

    assert [name for (name, *_) in VERBS if f"\n  {name} " not in result.stdout] == []


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["tran"],
        ["train"],
        ["train", "photos", "--epochs", "many"],
        ["train", "photos", "--device", "abacus"],
        ["train", "photos", "--size", "0"],
        ["train", "photos", "--dim", "1"],
        ["train", "photos", "--seed", "-1"],
        ["finetune", "model", "photos", "--labels", "l.csv", "--epochs", "0"],
        ["train", "photos", "--resume", "run", "--epochs", "3"],
        ["suggest", "photos", "--model", "m", "--budget", "3", "--seed", str(2**63)],
        ["calibrate", "model", "photos", "--labels", "l.csv", "--seed", "-1"],
        ["evaluate", "model", "photos"],
        ["index", "build", "name", "photos"],
        ["index", "build", "name", "photos", "--model", "m", "--memory-budget", "lots"],
        ["index", "activate", "name", "newest"],
        ["search"],
        ["search", "a.jpg", "--grid", "g.png"],
        ["doctor", "--loudly"],
    ],
    ids=" ".join,
)
def test_a_wrong_call_exits_with_2(words: list[str], run: Run) -> None:
    """Unknown verbs and options, missing arguments and unreadable values are usage errors, before any work."""
    result = run(*words, with_store=False)

    assert result.exit_code == 2
    assert "Usage: " in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("words", "named", "right"),
    [
        (["calibrate", "m", "photos", "--labels", "l.csv", "--report"], "an HTML page", "plot.html"),
        (["suggest", "photos", "--model", "m", "--budget", "3", "--sheet"], "an HTML page", "plot.html"),
        (["search", "item:a", "--images", "photos", "--grid"], "a PNG image", "plot.png"),
        (["items", "export", "photos"], "a Parquet file", "plot.parquet"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_file_whose_name_says_that_it_holds_something_else_is_refused(
    words: list[str], named: str, right: str, run: Run, tmp_path: Path
) -> None:
    """Before any work, with a better name; a folder in its place too, and what has no suffix says nothing wrong."""

    def told(name: str) -> str:
        result = run(*words, tmp_path / name, with_store=words[0] != "search")
        return result.stderr.partition("Error: ")[2] if result.exit_code == 2 else ""

    (tmp_path / "folder").mkdir()
    option = f"Invalid value for '{words[-1] if words[-1].startswith('--') else 'FILE'}': "
    assert told("plot.jpeg") == f"{option}{tmp_path}/plot.jpeg is not how {named} is named; say {tmp_path}/{right}\n"
    assert told("folder") == f"{option}{tmp_path}/folder is a folder; name a file in it\n"
    assert told(right) == told(right.upper()) == told("plot") == ""


def test_an_empty_folder_is_one_clear_line(run: Run, tmp_path: Path, tiny_model: str) -> None:
    """Training on it and indexing it name the folder and what is accepted."""
    empty = tmp_path / "empty"
    empty.mkdir()

    for words in (["train", empty], ["index", "build", "name", empty, "--model", tiny_model]):
        line = error_line(run(*words))
        assert str(empty) in line
        assert ".jpg" in line


def test_a_missing_path_is_named(run: Run, tmp_path: Path) -> None:
    """A folder that is not there is an error that names it."""
    assert error_line(run("train", tmp_path / "nowhere")) == f"error: {tmp_path / 'nowhere'} does not exist"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("path,kind\nstreet/00.png,1\n", "has no column class_id"),
        ("path,class_id\nelsewhere/1.jpg,1\n", "none of its 1 paths"),
        ("path,class_id,split\nstreet/00.png,1,val\n", "split is 'val'"),
        ("path,class_id,split\nstreet/00.png,1,train\n", "nothing to judge on"),
    ],
    ids=["column", "paths", "split", "no test"],
)
def test_labels_that_can_not_be_used_are_explained(
    table: str, said: str, run: Run, photos: Path, tmp_path: Path, tiny_model: str
) -> None:
    """A labels table with a missing column or unknown paths stops training and judging before any work."""
    labels = tmp_path / "labels.csv"
    labels.write_text(table)

    assert said in error_line(run("train", photos, "--labels", labels))
    assert said in error_line(run("evaluate", tiny_model, photos, "--labels", labels))


def test_one_image_can_not_be_learned_from_but_can_be_indexed(run: Run, tmp_path: Path, tiny_model: str) -> None:
    """Training says that one image is too few; an index of one image works."""
    folder = tmp_path / "one"
    folder.mkdir()
    Image.new("RGB", (40, 40), "teal").save(folder / "only.png")

    assert "1 of the 1 images to learn from" in error_line(run("train", folder))
    result = run("index", "build", "one", folder, "--model", tiny_model, "--json")
    assert json.loads(result.stdout)["count"] == 1


def test_identical_images_can_be_indexed(run: Run, tmp_path: Path, tiny_model: str) -> None:
    """A folder of copies is an index like any other."""
    folder = tmp_path / "copies"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (40, 40), "teal").save(folder / f"{number}.png")

    result = run("index", "build", "copies", folder, "--model", tiny_model, "--json")

    assert json.loads(result.stdout)["count"] == 12


def test_damaged_images_are_named_and_left_out(run: Run, photos: Path, tiny_model: str) -> None:
    """The index holds the rest; stderr and JSON name each damaged image with its reason."""
    (photos / "empty.jpg").touch()
    (photos / "text.jpg").write_text("not a picture")
    whole = (photos / "street" / "04.jpg").read_bytes()
    (photos / "torn.jpg").write_bytes(whole[: len(whole) // 3])

    result = run("index", "build", "photos", photos, "--model", tiny_model, "--json")

    found = json.loads(result.stdout)
    assert found["count"] == 60
    assert sorted(entry["item"] for entry in found["skipped"]) == ["empty.jpg", "text.jpg", "torn.jpg"]
    assert all(f"skipped {entry['item']}: {entry['reason']}" in result.stderr for entry in found["skipped"])


def test_an_unknown_model_or_index_lists_what_there_is(run: Run, photos: Path, tiny_model: str) -> None:
    """The message names the store's models, indexes or versions."""
    assert tiny_model in error_line(run("index", "build", "photos", photos, "--model", "nosuch"))
    run("index", "build", "photos", photos, "--model", tiny_model)

    assert "it has: photos" in error_line(run("index", "inspect", "other"))
    assert "it has: 1" in error_line(run("index", "activate", "photos", 7))


def test_versions_are_listed_inspected_and_rolled_back(run: Run, photos: Path, tiny_model: str) -> None:
    """A second build becomes active; activating the first again is how to roll back."""
    for _ in range(2):
        run("index", "build", "photos", photos, "--model", tiny_model)

    listed = json.loads(run("index", "list", "--json").stdout)
    assert listed == {"indexes": [{"index": "photos", "versions": [1, 2], "active": 2}]}
    assert run("index", "activate", "photos", 1).exit_code == 0
    inspected = json.loads(run("index", "inspect", "photos", "--json").stdout)
    assert (inspected["version"], inspected["model"], inspected["count"]) == (1, tiny_model, 60)
    assert inspected["recall_at_10"] == 1.0


def test_an_index_whose_pointer_is_gone_is_told(run: Run, store: Store, photos: Path, tiny_model: str) -> None:
    """An empty cell alone would not say that nothing of it is searched, nor what to do."""
    run("index", "build", "photos", photos, "--model", tiny_model)
    (store.index("photos") / "active").unlink()
    listed = run("index", "list", "--json")
    assert json.loads(listed.stdout)["indexes"] == [{"index": "photos", "versions": [1], "active": None}]
    assert "no active version; activate one by `kinsight index activate`: it has 1" in listed.stderr
    assert run("index", "activate", "photos", 1).exit_code == 0
    assert run("index", "list").stderr == ""


def test_an_index_whose_active_version_is_lost_is_told_and_rolled_back(
    run: Run, store: Store, photos: Path, tiny_model: str
) -> None:
    """The other indexes are listed all the same, and no later version gets the lost one's number."""
    for name in ("photos", "photos", "prints"):
        run("index", "build", name, photos, "--model", tiny_model)
    shutil.rmtree(store.index("photos") / "versions" / "2")

    listed = run("index", "list", "--json")
    assert json.loads(listed.stdout)["indexes"] == [
        {"index": "photos", "versions": [1], "active": None},
        {"index": "prints", "versions": [1], "active": 1},
    ]
    remedy = (
        "has no version 2; it has: 1; it is the active one: restore its directory, activate another, or rebuild the "
        "index by `kinsight rebuild photos --model ID`"
    )
    assert remedy in listed.stderr
    assert remedy in error_line(run("index", "stats", "photos"))
    assert json.loads(run("index", "rollback", "photos", "--json").stdout)["version"] == 1
    built = run("index", "build", "photos", photos, "--model", tiny_model, "--json")
    assert json.loads(built.stdout)["version"] == 3


def test_an_index_that_can_not_be_is_not_waited_for(run: Run) -> None:
    """One that is not there yet may be built later; this one may not."""
    told = error_line(run("serve", "--index", "My photos", "--listen", "nowhere"))
    assert "'My photos' can't name an index" in told


def test_an_index_without_an_active_version_says_how_to_get_one(
    run: Run, store: Store, photos: Path, tiny_model: str
) -> None:
    """Every verb that would take the active one, as none is a version of its own."""
    run("index", "build", "photos", photos, "--model", tiny_model)
    (store.index("photos") / "active").unlink()
    for verb in (["stats"], ["inspect"], ["evaluate"]):
        told = error_line(run("index", *verb, "photos"))
        assert "no active version; activate one by `kinsight index activate`: it has 1" in told
    assert run("index", "inspect", "photos", "--version", 1).exit_code == 0


def test_a_tampered_version_is_refused_by_name(run: Run, store: Store, photos: Path, tiny_model: str) -> None:
    """Inspecting a version whose file was changed names the file."""
    run("index", "build", "photos", photos, "--model", tiny_model)
    rows = store.index("photos") / "versions" / "1" / "rows.faiss"
    data = bytearray(rows.read_bytes())
    data[-1] ^= 1
    rows.write_bytes(data)

    assert f"{rows} was changed" in error_line(run("index", "inspect", "photos"))


def test_an_unknown_recipe_key_names_the_nearest(run: Run, photos: Path) -> None:
    """A misspelt setting is an error that offers the right one."""
    assert "epochs" in error_line(run("train", photos, "--set", "run.epoch=3"))


def test_an_unknown_run_can_not_be_resumed(run: Run, photos: Path) -> None:
    """Resuming without other options is a right call; a run that is not there is named."""
    assert "no run 'nosuch'" in error_line(run("train", photos, "--resume", "nosuch"))


def test_foreseen_errors_are_told_and_defects_are_not_hidden() -> None:
    """What rooms and the system raise becomes a message; anything else keeps its traceback."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/store/index.faiss")

    assert expected_message(CorruptFile("model.onnx was changed")) == "model.onnx was changed"
    assert "No space left on device" in (expected_message(full) or "")
    assert expected_message(ZeroDivisionError("division by zero")) is None
    assert expected_message(click.UsageError("no such option")) is None


def test_where_memory_ran_out_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of numpy's and torch's errors, also where another was made of one, with the limit where there is one."""
    for allocate in (lambda: np.empty(10**17), lambda: torch.empty(10**17)):
        with pytest.raises((MemoryError, RuntimeError)) as full:
            allocate()
        weights = WeightsError("ImageNet weights could not be downloaded; give --weights FILE")
        weights.__cause__ = full.value
        for error in (full.value, weights):
            assert (expected_message(error) or "").startswith("memory ran out: end what else takes it")
    monkeypatch.setattr("resource.getrlimit", lambda _: (2**30, 2**30))
    assert expected_message(MemoryError()) == (
        "memory ran out: this process may take 1,073,741,824 bytes (--learn-memory, or ulimit -d); allow more"
    )


@pytest.mark.parametrize(
    ("module", "extra"), [("torch", "train"), ("faiss", "cpu"), ("grpc_health.v1", "cpu"), ("onnx", "train")]
)
def test_a_missing_library_names_the_extra_that_brings_it(module: str, extra: str) -> None:
    """A partial installation says what to install."""
    message = expected_message(ModuleNotFoundError(f"No module named {module!r}", name=module))

    assert f"pip install 'kinsight[{extra}]'" in (message or "")


def test_help_names_all_keys_of_what_is_read_from_files(run: Run, photos: Path, tiny_model: str) -> None:
    """Those of a version's manifest and of an operation's record, whatever is written into them one day."""
    run("index", "build", "photos", photos, "--model", tiny_model)
    (operation,) = json.loads(run("operations", "list", "--json").stdout)["operations"]
    inspected = json.loads(run("index", "inspect", "photos", "--json").stdout)
    for verb, found in ((("index", "inspect"), inspected), (("operations", "show"), operation)):
        named = run(*verb, "--help").stdout.partition("JSON keys")[2]
        assert set(found) <= set(re.findall(r"\w+", named))


def test_a_store_whose_path_is_not_utf8_is_refused_at_once(tmp_path: Path) -> None:
    """And not after an hour of training: no library opens files there."""
    place = tmp_path / os.fsdecode(b"caf\xe9")
    result = CliRunner().invoke(kinsight, ["train", str(tmp_path), "--store", str(place)])
    assert "is not UTF-8, and ONNX Runtime and FAISS open no other: rename its folders" in error_line(result)
    assert not place.exists()


def test_a_reader_that_has_seen_enough_is_no_error(store: Store) -> None:
    """As before `| head`, whose pipe closes: nothing is said."""
    words = [sys.executable, "-m", "clients.cli", "index", "list", "--json", "--store", str(store.root)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (1, b"")


def test_ctrl_c_while_the_verbs_load_is_no_traceback() -> None:
    """One line and the exit code that an interrupted command has."""
    script = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'clients.cli.command': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from clients.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (INTERRUPTED, "interrupted: nothing was begun\n")


def test_ctrl_c_while_a_library_of_c_loads_is_no_traceback(tmp_path: Path) -> None:
    """pybind11 turns what is raised while a module begins into an ImportError with that as its cause."""
    script = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Loading:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'faiss':\n"
        "            try:\n"
        "                signal.raise_signal(signal.SIGINT)\n"
        "            except KeyboardInterrupt as error:\n"
        "                raise ImportError('initialization failed') from error\n"
        "sys.meta_path.insert(0, Loading())\n"
        "from clients.cli import main\n"
        "main()\n"
    )
    words = ["index", "build", "photos", str(tmp_path), "--model", "any", "--store", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (INTERRUPTED, "interrupted: nothing is left half-written\n")


@pytest.mark.parametrize("name", ["Birds", "two words", "../up"])
def test_what_can_not_name_an_index_is_said_before_anything_is_recorded(
    name: str, run: Run, photos: Path, tiny_model: str
) -> None:
    """Not as the id of an operation, of which nobody spoke; and no record is left that can't be read."""
    message = error_line(run("index", "build", name, photos, "--model", tiny_model))
    assert f"{name!r} can't name an index; 1 to 63 of a-z, 0-9, _ and -" in message
    assert json.loads(run("operations", "list", "--json").stdout) == {"operations": []}
    assert "can't name an index" in error_line(run("rebuild", name))


def test_a_module_of_no_extra_is_a_defect() -> None:
    """A missing module that no extra brings keeps its traceback."""
    assert expected_message(ModuleNotFoundError("No module named 'x'", name="x")) is None


@pytest.fixture
def _ctrl_c_arrives() -> Iterator[None]:
    """Children take SIGINT even where the tests run in the background of a script, which makes them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_arrives")
def test_interrupting_a_build_ends_with_130_and_no_version(store: Store, tmp_path: Path, tiny_model: str) -> None:
    """Ctrl-C while indexing prints one line, exits with 130, and leaves no half-written version."""
    folder = tmp_path / "many"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "0.png")
    for number in range(1, 3000):
        (folder / f"{number}.png").hardlink_to(folder / "0.png")
    words = ["index", "build", "many", str(folder), "--model", tiny_model, "--store", str(store.root)]
    process = subprocess.Popen([sys.executable, "-m", "clients.cli", *words], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not list(store.indexes.glob("many/*")) and time.monotonic() < deadline:
        time.sleep(0.02)

    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)

    assert process.returncode == INTERRUPTED
    assert stderr.splitlines()[-2] == "the same command goes on from here"
    assert stderr.splitlines()[-1].startswith("interrupted: ")
    assert "Traceback" not in stderr
    assert store.index_names() == []


def test_ctrl_c_before_there_is_a_run_names_no_other(
    run: Run, store: Store, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a training stops before it has a run, an earlier run of the store is not offered in its place."""
    (store.runs / "earlier").mkdir(parents=True)
    (store.runs / "earlier" / "recipe.toml").touch()

    def read_given(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.run.read_given", read_given)
    too_early = run("train", str(photos))
    assert too_early.exit_code == INTERRUPTED
    assert "--resume" not in too_early.stderr


@pytest.mark.usefixtures("_ctrl_c_arrives")
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, -signal.SIGTERM)],
    ids=["ctrl-c", "terminated"],
)
def test_who_stops_a_training_is_told_how_to_go_on(number: int, code: int, store: Store, photos: Path) -> None:
    """By Ctrl-C, whose end a shell takes for an interruption, or by SIGTERM, of which it ends as others do."""
    network = ["--backbone", "test_resnet", "--weights", "none", "--size", "32", "--dim", "16", "--epochs", "1000"]
    words = ["train", str(photos), *network, "--store", str(store.root), "--progress", "json"]
    with subprocess.Popen(
        [sys.executable, "-m", "clients.cli", *words, "--run", "mine"], stderr=subprocess.PIPE, text=True
    ) as training:
        assert training.stderr is not None
        next(line for line in training.stderr if '"train"' in line)
        training.send_signal(number)
        _, under_way = training.communicate(timeout=60)

    assert training.returncode == code
    assert "go on with this run by --resume mine" in under_way.splitlines()
