"""The build as a whole: pictures in, a searchable version out, and every way in which it can go wrong."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from indexer import version
from indexer.build import BuildReport, NothingToIndex, build
from indexer.encoder import Encoder
from indexer.evaluate import EXACT
from indexer.pixels import decode
from indexer.plan import BudgetTooSmall
from indexer.rebuild import rebuild
from indexer.staging import BuildInProgress, sole_builder
from indexer.store import Store

# A build in a process of its own, made to save after each batch of 4, that does `{act}` once 20 images are embedded.
CHILD = """
import os, resource, signal, sys, time
from pathlib import Path
from indexer import build as module, embedding
from indexer.store import Store

embedding.BATCH, embedding.SAVE_EVERY_S = 4, 0.0

def progress(stage, done, total):
    if done >= 20:
        {act}

try:
    module.build("street", Path(sys.argv[1]), model=sys.argv[2], store=Store(Path(sys.argv[3])), progress=progress)
except module.WriteFailed as error:
    sys.exit(str(error))
"""


def _quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def _build(store: Store, model: str, images: Path) -> BuildReport:
    return build("street", images, model=model, store=store, progress=_quiet)


def _run_child(act: str, images: Path, model: str, store: Store) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD.format(act=act), str(images), model, str(store.root)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def _stagings(store: Store) -> list[Path]:
    return list(store.index("street").glob(".staging-*"))


def test_an_indexed_photograph_finds_itself_first(store: Store, tiny_model: str, photos: Path) -> None:
    """Searching by the bytes of each indexed picture returns that picture first, with similarity 1."""
    report = _build(store, tiny_model, photos)
    assert (report.count, report.skipped, version.active_version(store.index("street"))) == (60, (), 1)
    opened = version.open_version(version.version_dir(store.index("street"), 1))
    encoder = Encoder.open(store.model(tiny_model))
    for row in range(opened.count):
        path = opened.source_path(row)
        assert path is not None
        picture = decode(path.read_bytes(), encoder.pixels)
        similarities, rows = opened.search(encoder.embed(picture[None]), 5)
        assert [row] == rows[0, :1].tolist()
        np.testing.assert_allclose(1.0, similarities[0, 0], atol=1e-5)
        assert row == opened.row_of(opened.items([row])[0])


def test_a_killed_build_goes_on_where_it_was(store: Store, tiny_model: str, photos: Path) -> None:
    """After SIGKILL the old version serves; the same build then keeps the saved rows and equals a build in one go."""
    os.utime(photos / "garden" / "01.jpg", (1, 1))
    _build(store, tiny_model, photos)
    (photos / "garden" / "damaged.jpg").write_bytes(b"text")
    child = _run_child("os.kill(os.getpid(), signal.SIGKILL)", photos, tiny_model, store)
    assert (child.returncode, version.active_version(store.index("street"))) == (-signal.SIGKILL, 1)
    assert version.list_versions(store.index("street")) == [1]
    (staging,) = _stagings(store)
    (staging / ".manifest.json.1.tmp").write_text("of a build killed while publishing")
    resumed = _build(store, tiny_model, photos)
    assert 12 <= resumed.resumed <= 20
    straight = build("other", photos, model=tiny_model, store=store, progress=_quiet)
    assert (straight.resumed, resumed.count, resumed.skipped) == (0, straight.count, straight.skipped)
    for name in ("rows.faiss", "manifest.json", "items.sqlite"):
        assert {name} <= {path.name for path in version.version_dir(store.index("street"), 2).iterdir()}
    rows = [version.version_dir(store.index(i), n) / "rows.faiss" for i, n in (("street", 2), ("other", 1))]
    assert rows[0].read_bytes() == rows[1].read_bytes()
    assert (_stagings(store), version.active_version(store.index("street"))) == ([], 2)


def test_an_interrupt_leaves_only_what_can_be_resumed(store: Store, tiny_model: str, photos: Path) -> None:
    """Ctrl-C publishes nothing; a changed collection drops the rows that it left."""
    child = _run_child("raise KeyboardInterrupt", photos, tiny_model, store)
    assert "KeyboardInterrupt" in child.stderr
    assert (version.list_versions(store.index("street")), len(_stagings(store))) == ([], 1)
    (photos / "garden" / "01.jpg").unlink()
    report = _build(store, tiny_model, photos)
    assert (report.resumed, report.count, _stagings(store)) == (0, 59, [])


def test_a_full_disk_leaves_the_old_version(store: Store, tiny_model: str, photos: Path) -> None:
    """A write that fails is a clear error, its staging is removed, and the old version is active and opens."""
    _build(store, tiny_model, photos)
    (photos / "garden" / "01.jpg").unlink()
    act = "resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))"
    child = _run_child(act, photos, tiny_model, store)
    assert "can't write a version into" in child.stderr
    assert "build again" in child.stderr
    assert (child.returncode, _stagings(store), version.active_version(store.index("street"))) == (1, [], 1)
    assert version.open_version(version.version_dir(store.index("street"), 1)).count == 60


def test_a_second_builder_is_refused(store: Store, tiny_model: str, photos: Path) -> None:
    """While one process builds an index, another is refused with the first one's number; afterwards it may."""
    with sole_builder(store.index("street")), pytest.raises(BuildInProgress, match=f"process {os.getpid()} "):
        _build(store, tiny_model, photos)
    assert _build(store, tiny_model, photos).version == 1


def test_damaged_images_are_named_and_left_out(store: Store, tiny_model: str, photos: Path) -> None:
    """Bad images are counted, named with a reason in report and version, and the rest is indexed."""
    (photos / "a.jpg").write_bytes(b"")
    (photos / "b.heic").write_bytes(b"\0\0\0\x18ftypheic")
    report = _build(store, tiny_model, photos)
    assert (report.count, [item for item, _ in report.skipped]) == (60, ["a.jpg", "b.heic"])
    opened = version.open_version(version.version_dir(store.index("street"), 1))
    assert (opened.manifest.skipped, opened.skipped()) == (2, list(report.skipped))


def test_nothing_decodable_is_an_error(store: Store, tiny_model: str, tmp_path: Path) -> None:
    """A folder of text files named .jpg is refused with the first one's reason, and leaves no version."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.jpg").write_text("hello")
    with pytest.raises(NothingToIndex, match=r"a\.jpg: not an image"):
        _build(store, tiny_model, folder)
    assert (version.list_versions(store.index("street")), _stagings(store)) == ([], [])


@pytest.mark.parametrize("copies", [1, 30])
def test_one_image_and_identical_images_work(
    store: Store, tiny_model: str, photos: Path, tmp_path: Path, copies: int
) -> None:
    """One image, or many copies of one, index as flat; every copy has similarity 1 to it."""
    folder = tmp_path / "copies"
    folder.mkdir()
    for number in range(copies):
        shutil.copy(photos / "garden" / "01.jpg", folder / f"{number}.jpg")
    report = _build(store, tiny_model, folder)
    opened = version.open_version(version.version_dir(store.index("street"), 1))
    similarities, rows = opened.search(opened.embedding(0)[None], 100)
    assert (report.plan.kind, report.recall, sorted(rows[0].tolist())) == ("flat", EXACT, list(range(copies)))
    np.testing.assert_allclose(similarities, 1.0, atol=1e-5)


def test_identical_images_train_an_index_too(
    store: Store, tiny_model: str, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """4,100 copies of one image go through k-means without a crash or a warning, and ties count as found."""
    folder = tmp_path / "copies"
    folder.mkdir()
    for number in range(4_100):
        (folder / f"{number}.png").hardlink_to(photos / "street" / "00.png")
    report = _build(store, tiny_model, folder)
    assert (report.plan.kind, report.recall.recall_at_10) == ("ivfpq", 1.0)
    assert capfd.readouterr() == ("", "")


def test_a_version_can_wait_for_activation(store: Store, tiny_model: str, photos: Path) -> None:
    """Without activation the old version stays until one is activated by number; unknown numbers are refused."""
    index_dir = store.index("street")
    _build(store, tiny_model, photos)
    build("street", photos, model=tiny_model, store=store, activate=False, progress=_quiet)
    assert (version.list_versions(index_dir), version.active_version(index_dir)) == ([1, 2], 1)
    version.activate(index_dir, 2)
    assert version.active_version(index_dir) == 2
    with pytest.raises(version.NoSuchVersion, match="no version 3; it has: 1, 2"):
        version.activate(index_dir, 3)
    (index_dir / "active").write_text("two")
    with pytest.raises(version.VersionError, match="'two'"):
        version.active_version(index_dir)


def test_a_budget_is_refused_before_decoding(store: Store, tiny_model: str, photos: Path) -> None:
    """A budget that nothing fits is refused with the numbers, before anything is written."""
    with pytest.raises(BudgetTooSmall, match=r"need 37,680 bytes.*30,000 for the list of the items"):
        build("street", photos, model=tiny_model, store=store, memory_budget_bytes=37_679, progress=_quiet)
    assert not store.index("street").exists()


def test_a_budget_is_of_all_that_a_rebuild_holds(store: Store, tiny_model: str, photos: Path) -> None:
    """It is refused with the numbers of the whole index before anything is embedded, or learned."""
    _build(store, tiny_model, photos)

    def unheard(*_: object) -> str:
        raise AssertionError("it was begun")

    few = {"memory_budget_bytes": 37_679, "progress": unheard}
    for learn in (None, unheard):
        with pytest.raises(BudgetTooSmall, match="60 rows of dimension 32 need 37,680 bytes"):
            rebuild("street", store=store, learn=learn, **few)  # type: ignore[arg-type]
