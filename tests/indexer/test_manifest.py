"""Publishing: a directory appears whole or not at all, and no changed byte goes unnoticed."""

import itertools
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from indexer import manifest
from indexer.encoder import Encoder
from indexer.manifest import MANIFEST, CorruptFile, ManifestError
from indexer.store import NotFound, Store
from indexer.version import open_version

Damage = Callable[[Path, float], None]

KILLED_BEFORE_RENAME = """
import os, signal, sys
from pathlib import Path
from indexer import manifest

Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
source = Path(sys.argv[1])
manifest.publish(source, Path(sys.argv[2]), manifest.read_version(source))
"""

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from indexer import manifest

os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
manifest.write_atomically(Path(sys.argv[1]), b"a long text")
"""


def _flip(path: Path, position: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(position * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)


def _truncate(path: Path, position: float) -> None:
    path.write_bytes(path.read_bytes()[: int(position * path.stat().st_size)])


@pytest.mark.parametrize("damage", [_flip, _truncate])
def test_a_damaged_version_is_refused_by_name(built: Path, tmp_path: Path, damage: Damage) -> None:
    """A flipped bit or a cut in any file of a version, wherever in it, is refused with the file's name."""
    names = sorted(path.name for path in built.iterdir())
    for name, position in itertools.product(names, (0.0, 0.3, 0.9)):
        copy = tmp_path / "copy"
        shutil.copytree(built, copy)
        damage(copy / name, position)
        with pytest.raises(ManifestError, match=name):
            open_version(copy)
        shutil.rmtree(copy)


@pytest.mark.parametrize("damage", [_flip, _truncate])
@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
def test_a_damaged_model_is_refused_by_name(store: Store, tiny_model: str, damage: Damage, position: float) -> None:
    """A flipped bit or a cut in any file of a model is refused with the file's name."""
    model = store.model(tiny_model)
    for name in ("model.onnx", "probe.png", "probe.npy", MANIFEST):
        copy = store.root / "copy"
        shutil.copytree(model, copy)
        damage(copy / name, min(position, 0.99))
        with pytest.raises(ManifestError, match=name):
            Encoder.open(copy)
        shutil.rmtree(copy)


def test_a_missing_file_is_refused_by_name(built: Path) -> None:
    """A version without one of its files is refused with the file's name."""
    (built / "rows.faiss").unlink()
    with pytest.raises(CorruptFile, match=r"rows\.faiss"):
        open_version(built)


def test_a_published_directory_never_changes(built: Path, tmp_path: Path) -> None:
    """Publishing onto an existing version is refused and leaves it as it was."""
    staging = tmp_path / "staging"
    shutil.copytree(built, staging)
    before = (built / MANIFEST).read_bytes()
    with pytest.raises(FileExistsError, match="never changes"):
        manifest.publish(staging, built, manifest.read_version(staging))
    assert (built / MANIFEST).read_bytes() == before


def test_a_kill_before_the_rename_publishes_nothing(built: Path, tmp_path: Path) -> None:
    """A process killed in the middle of publishing leaves no target, and the same staging publishes afterwards."""
    staging, target = tmp_path / "staging", tmp_path / "versions" / "9"
    shutil.copytree(built, staging)
    command = [sys.executable, "-c", KILLED_BEFORE_RENAME, str(staging), str(target)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not target.exists()
    manifest.publish(staging, target, manifest.read_version(staging))
    assert open_version(target).count == 60


def test_threads_that_write_one_file_don_t_disturb_each_other(tmp_path: Path) -> None:
    """As requests with the same labels do: each is served, and the file is one of theirs."""
    path, texts = tmp_path / "labels.csv", [bytes([65 + number]) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(len(texts)) as pool:
        for _ in range(10):
            assert [*pool.map(manifest.write_atomically, [path] * len(texts), texts)] == [None] * len(texts)
            assert path.read_bytes() in texts
    assert [*tmp_path.iterdir()] == [path]


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    """Its text was longer, of which nothing stays; and what it left of a manifest becomes no part of a version."""
    path, staging = tmp_path / "active", tmp_path / "staging"
    staging.mkdir()
    for written in (path, staging / MANIFEST):
        command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(written)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        assert len([*written.parent.glob(".*.tmp")]) == 1
    manifest.write_atomically(path, b"short")
    assert (path.read_bytes(), sorted(tmp_path.iterdir())) == (b"short", [path, staging])
    assert manifest.record_files(staging) == {}


def test_processes_that_write_one_file_take_turns(tmp_path: Path) -> None:
    """Also where each ends in the middle of another's write: readers see whole texts, and no temporary file stays."""
    path = tmp_path / "record.json"
    write = "import sys; from pathlib import Path; from indexer.manifest import write_atomically\n"
    write += "for _ in range(100): write_atomically(Path(sys.argv[1]), sys.argv[2].encode() * 10_000)"
    writers = [subprocess.Popen([sys.executable, "-c", write, str(path), letter]) for letter in "abc"]
    try:
        while any(writer.poll() is None for writer in writers):
            text = path.read_bytes() if path.exists() else b"a" * 10_000
            assert (len(text), len(set(text))) == (10_000, 1)
    finally:
        for writer in writers:
            writer.kill()
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert [*tmp_path.iterdir()] == [path]


def test_an_atomic_write_that_fails_keeps_the_old(tmp_path: Path) -> None:
    """A write that fails in the middle leaves the old content and no temporary file."""
    path = tmp_path / "active"
    manifest.write_atomically(path, b"1\n")
    with pytest.raises(TypeError):
        manifest.write_atomically(path, "text is not bytes")  # type: ignore[arg-type]
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"1\n", [path])


def test_a_directory_without_manifest_is_no_version(tmp_path: Path) -> None:
    """An unfinished directory is refused, saying that its manifest is not there."""
    with pytest.raises(ManifestError, match=r"no readable manifest\.json"):
        open_version(tmp_path)


def test_a_model_is_found_by_its_beginning(store: Store, make_model: Callable[..., str]) -> None:
    """A unique beginning of an id names a model; an unknown or ambiguous one lists what there is."""
    first, second = make_model(store, seed=1), make_model(store, seed=2)
    assert store.model(first[:6]).name == first
    for wrong in ("zzz", ""):
        with pytest.raises(NotFound, match=second):
            store.model(wrong)


@pytest.mark.parametrize("name", ["", "../up", "A", "a/b", "-a", "a" * 64])
def test_an_index_name_stays_inside_the_store(store: Store, name: str) -> None:
    """Names that could leave the store, or that another system can't hold, are refused."""
    with pytest.raises(ValueError, match="can't name an index"):
        store.index(name)
