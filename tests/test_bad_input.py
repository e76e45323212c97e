"""Bad input through the command, with real processes: one clear line, nothing lost, the rest goes on."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from clients.cli.command import kinsight as command
from indexer.store import Store
from tests.serving import Gallery, make_gallery, photo, serving
from tests.trainer import network

SMALL = [
    *("--weights", "none", "--size", "32", "--dim", "16", "--epochs", "1"),
    *("--set", "run.least_steps=1"),
    *("--set", "run.batch_size=20", "--device", "cpu"),
]


# Set by the process itself: between fork and exec it would be the tests' own, whose gRPC writes there.
BOUNDED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
runpy.run_module("clients.cli", run_name="__main__", alter_sys=True)
"""


def kinsight(*words: object, most_file_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; a bound on a file's size fails its writes as a full disk does."""
    program = ["-m", "clients.cli"] if most_file_bytes is None else ["-c", BOUNDED, str(most_file_bytes)]
    return subprocess.run(
        [sys.executable, *program, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )


def last_line(finished: subprocess.CompletedProcess[str]) -> str:
    """The one error line of a failed command."""
    assert (finished.returncode, finished.stdout) == (1, "")
    assert "Traceback" not in finished.stderr
    return finished.stderr.splitlines()[-1]


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    """A store whose index `photos` holds six photographs."""
    return make_gallery(tmp_path / "gallery", count=6)


def test_a_query_whose_name_no_terminal_can_show_is_searched_like_any_other(gallery: Gallery, tmp_path: Path) -> None:
    """Bytes that are not UTF-8, newlines and escape codes are escaped; an impossible id costs only itself."""
    odd = tmp_path / os.fsdecode(b"caf\xe9\n\x1b[31m.png")
    odd.write_bytes(photo(3))
    with serving(gallery.store) as served:
        finished = kinsight("search", odd, os.fsdecode(b"item:\xff"), "--server", served.target, "--top-k", 1)

    (found,) = [line for line in finished.stdout.splitlines() if gallery.items[3] in line]
    assert r"caf\udce9\n\x1b[31m.png" in found
    assert finished.stderr.splitlines() == [
        r"error: item:\udcff: is not UTF-8; an item's id has such bytes percent-encoded, for example %E9"
    ]
    assert finished.returncode == 1


def test_a_grid_that_can_not_be_written_costs_no_answer(gallery: Gallery, photos: Path, tmp_path: Path) -> None:
    """The hits are printed; the error names the file."""
    grid = tmp_path / "nowhere" / "grid.png"
    with serving(gallery.store) as served:
        item = f"item:{gallery.items[0]}"
        finished = kinsight("search", item, "--server", served.target, "--grid", grid, "--images", photos)

    assert gallery.items[0] in finished.stdout
    assert finished.stderr == f"error: {grid}: No such file or directory\n"
    assert finished.returncode == 1


def test_a_disk_that_fills_while_drawing_leaves_the_grid_that_was_there(
    gallery: Gallery, photos: Path, tmp_path: Path
) -> None:
    """A grid is there whole or not at all, and the error names it."""
    grid = tmp_path / "grid.png"
    grid.write_bytes(b"the one before")
    with serving(gallery.store) as served:
        words = ("search", f"item:{gallery.items[0]}", "--server", served.target, "--grid", grid, "--images", photos)
        finished = kinsight(*words, most_file_bytes=1_000)

    assert (finished.returncode, finished.stderr) == (1, f"error: {grid}: File too large\n")
    assert grid.read_bytes() == b"the one before"
    assert [path.name for path in tmp_path.glob("*grid*")] == ["grid.png"]


@pytest.mark.slow
def test_a_disk_that_fills_while_decoding_says_how_to_go_on(photos: Path, store: Store) -> None:
    """The error is one line with the command that goes on; no model appears."""
    words = ("train", photos, "--store", store.root, *SMALL, "--backbone", "test_resnet")
    finished = kinsight(*words, most_file_bytes=100_000)

    error = last_line(finished)
    (run,) = store.runs.iterdir()
    assert f"go on with --resume {run.name}" in error
    assert not (run / "checkpoints").exists()
    assert store.model_ids() == []


def test_a_disk_that_fills_while_saving_says_how_to_go_on(photos: Path, store: Store) -> None:
    """So it is where another library was writing a checkpoint."""
    tiny = ("--backbone", network.NAME, "--set", "data.cache_size=40")
    words = ("train", photos, "--store", store.root, *SMALL, *tiny)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        finished = CliRunner().invoke(command, list(map(str, words)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    (run,) = store.runs.iterdir()
    assert (finished.exit_code, finished.stdout) == (1, "")
    assert f"go on with --resume {run.name}" in finished.stderr.splitlines()[-1]
    assert (run / "checkpoints").exists(), "it failed before there was anything to save"
    assert store.model_ids() == []
