"""Copies of an index: whole, verified, and restored only where nothing is."""

import itertools
import json
import os
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from indexer import adopt, manifest, version
from indexer.build import build
from indexer.embedding import Progress
from indexer.live import LiveIndex
from indexer.rebuild import rebuild
from indexer.records import Upsert
from indexer.snapshot import DamagedSnapshot, NewerSnapshot, NotASnapshot, NotEmpty, NotThere, restore, snapshot
from indexer.stats import read_stats
from indexer.store import Store


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


@pytest.fixture
def copied(store: Store, built: Path, tiny_model: str, tmp_path: Path) -> Path:
    """A snapshot of an index of 60 pictures, one of them deleted, and one upserted item."""
    vector = np.eye(1, 32, dtype=np.float32)[0]
    with closing(adopt.open_catalog(store.index("street"))) as catalog:
        catalog.upsert([Upsert("up", embedding=vector, model=tiny_model, payload={"colour": "red"})], dim=32)
        catalog.delete(["garden/01.jpg"])
    taken = snapshot(store, "street", tmp_path / "copy", quiet)
    assert (taken.index, taken.version, taken.model, taken.items) == ("street", 1, tiny_model, 60)
    return tmp_path / "copy"


def test_a_restored_index_is_the_index(store: Store, copied: Path, tmp_path: Path) -> None:
    """Under another name in another store: the same items, payloads and deletions, searchable and rebuildable."""
    target = Store(tmp_path / "other")
    taken = restore(target, copied, "street2", quiet)
    assert (taken.index, taken.items, version.active_version(target.index("street2"))) == ("street2", 60, 1)
    opened = version.open_version(version.version_dir(target.index("street2"), 1))
    assert opened.manifest.index == "street2"
    with closing(adopt.open_catalog(target.index("street2"))) as catalog:
        found = LiveIndex(opened, catalog).snapshot
        assert catalog.get("up").payload == {"colour": "red"}
    assert (found.count, found.hidden, found.items([found.row_of("up")])) == (60, 1, ["up"])
    report = rebuild("street2", store=target, progress=quiet)
    assert (report.count, report.reused, report.decoded) == (60, 60, 0)
    assert read_stats(store.index("street"), 1).version == 1


def test_a_copy_is_not_the_original(store: Store, copied: Path, tmp_path: Path) -> None:
    """What happens to the index after the snapshot is not in it."""
    with closing(adopt.open_catalog(store.index("street"))) as catalog:
        catalog.delete(["up"])
    target = Store(tmp_path / "other")
    restore(target, copied, None, quiet)
    with closing(adopt.open_catalog(target.index("street"))) as catalog:
        assert catalog.get("up").item == "up"


def test_a_copy_holds_what_its_version_has_though_another_took_over_meanwhile(
    store: Store, built: Path, photos: Path, tiny_model: str, tmp_path: Path
) -> None:
    """Neither does it lack what that one let go of, nor will a build take in what that one brought."""
    (photos / "garden").rename(tmp_path / "garden")

    def progress(stage: str, done: int, total: int) -> None:
        if (stage, version.active_version(store.index("street"))) == ("copy", 1):
            build("street", photos, model=tiny_model, store=store, progress=quiet)

    snapshot(store, "street", tmp_path / "copy", progress)
    target = Store(tmp_path / "other")
    restore(target, tmp_path / "copy", None, quiet)
    opened = version.open_version(version.version_dir(target.index("street"), 1))
    with closing(adopt.open_catalog(target.index("street"))) as catalog:
        assert (LiveIndex(opened, catalog).snapshot.count, catalog.count()) == (60, 60)
    assert version.active_version(store.index("street")) == 2


def test_every_damaged_file_is_refused_by_name(copied: Path, tmp_path: Path) -> None:
    """A flipped bit, a missing end or a missing file of any part stops a restore before anything is written."""
    target = Store(tmp_path / "other")
    files = sorted(path for path in copied.rglob("*") if path.is_file())
    assert len(files) == 9
    for path in files:
        whole = path.read_bytes()
        path.unlink()  # not through the link into the store
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        for damaged in (flipped, whole[:-1], None):
            if damaged is not None:
                path.write_bytes(damaged)
            else:
                path.unlink()
            if path.name == "snapshot.json" and damaged == whole[:-1]:
                continue  # without the last line's end it is whole still
            with pytest.raises(DamagedSnapshot, match=path.name):
                restore(target, copied, None, quiet)
        path.write_bytes(whole)
    assert not target.root.exists()
    restore(target, copied, None, quiet)


def test_what_is_no_snapshot_is_not_called_a_damaged_one(
    store: Store, built: Path, photos: Path, tmp_path: Path
) -> None:
    """Nothing at all, a file, an empty folder, one of images, an index: each by name and with the remedy."""
    remedy = "name a folder that `kinsight index snapshot` made"
    (tmp_path / "empty").mkdir()

    def told(directory: Path, kind: type[Exception] = NotASnapshot) -> str:
        with pytest.raises(kind) as raised:
            restore(Store(tmp_path / "other"), directory, None, quiet)
        assert not (tmp_path / "other").exists()
        return str(raised.value)

    assert told(tmp_path / "nowhere", NotThere) == f"there is no {tmp_path}/nowhere to restore; {remedy}"
    file = built / "manifest.json"
    assert told(file) == f"{file} is a file, and a snapshot is a folder; {remedy}"
    for folder in (tmp_path / "empty", photos, store.index("street"), built):
        assert told(folder) == f"{folder} is no snapshot: it has no snapshot.json; {remedy}"


def test_no_flipped_bit_of_a_receipt_restores_another_index(copied: Path, tmp_path: Path) -> None:
    """Another name, version or model than it had would be as good as any."""
    target, receipt = Store(tmp_path / "other"), copied / "snapshot.json"
    whole = receipt.read_bytes()
    for place, bit in itertools.product(range(len(whole)), range(8)):
        receipt.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        with pytest.raises(DamagedSnapshot, match=str(receipt)):
            restore(target, copied, None, quiet)
    assert not target.root.exists()


def test_a_receipt_of_an_older_release_is_read(copied: Path, tmp_path: Path) -> None:
    """It has no checksum of its own."""
    receipt = json.loads((copied / "snapshot.json").read_text())
    del receipt["sha256"]
    (copied / "snapshot.json").write_text(json.dumps(receipt))
    assert restore(Store(tmp_path / "other"), copied, None, quiet).items == 60


def test_nothing_is_overwritten(store: Store, copied: Path, tmp_path: Path) -> None:
    """Neither a folder with files by a snapshot, nor an index by a restore; an empty folder is fine."""
    with pytest.raises(NotEmpty, match="is there already and not empty"):
        snapshot(store, "street", copied, quiet)
    with pytest.raises(NotEmpty, match="index 'street' is in"):
        restore(store, copied, None, quiet)
    (tmp_path / "empty").mkdir()
    assert snapshot(store, "street", tmp_path / "empty", quiet).items == 60


@pytest.mark.parametrize("leads_to", ["nowhere", "empty"])
def test_a_snapshot_does_not_go_where_a_link_is(store: Store, built: Path, tmp_path: Path, leads_to: str) -> None:
    """Refused by the link's name: the temporary directory was, once all was copied."""
    (tmp_path / "empty").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / leads_to)
    with pytest.raises(NotEmpty, match=rf"/link is a symbolic link to .*/{leads_to}; give another directory$"):
        snapshot(store, "street", link, quiet)


@pytest.mark.parametrize("second", ["one", "two"])
def test_restores_come_one_after_the_other(copied: Path, tmp_path: Path, second: str) -> None:
    """They bring the same model, and perhaps the same name: each wrote into what the other had begun."""
    target, told, copying = Store(tmp_path / "other"), dict[Progress, str](), threading.Event()

    def run(name: str, progress: Progress) -> None:
        try:
            told[progress] = restore(target, copied, name, progress).index
        except NotEmpty as refused:
            told[progress] = str(refused)

    def meanwhile(stage: str, *_: int) -> None:
        if stage == "copy":
            copying.set()

    other = threading.Thread(target=run, args=(second, meanwhile))

    def begin_another(stage: str, *_: int) -> None:
        if stage == "copy" and other.ident is None:
            other.start()
            copying.wait(0.2)

    run("one", begin_another)
    other.join()
    refused = f"index 'one' is in {target.root} already; restore under another name (--name)"
    assert told == {begin_another: "one", meanwhile: refused if second == "one" else "two"}
    for name in {"one", second}:
        assert version.open_version(version.version_dir(target.index(name), 1)).count == 60


def test_what_was_made_meanwhile_is_not_replaced(
    store: Store, copied: Path, photos: Path, tiny_model: str, tmp_path: Path
) -> None:
    """Neither an index that a build made while another was restored under its name, nor a folder that filled."""

    def build_meanwhile(stage: str, *_: int) -> None:
        if stage == "copy" and not store.index("again").exists():
            build("again", photos, model=tiny_model, store=store, progress=quiet)

    with pytest.raises(NotEmpty, match="index 'again' is in"):
        restore(store, copied, "again", build_meanwhile)
    with closing(adopt.open_catalog(store.index("again"))) as catalog:
        assert (catalog.count(), catalog.known(["up"])) == (60, {})

    def write_meanwhile(stage: str, *_: int) -> None:
        if stage == "copy" and not (tmp_path / "twice").exists():
            with pytest.raises(NotEmpty, match=f"process {os.getpid()} is writing"):
                snapshot(store, "again", tmp_path / "twice", quiet)
            (tmp_path / "twice" / "mine").mkdir(parents=True)

    with pytest.raises(NotEmpty, match="twice is there already and not empty"):
        snapshot(store, "street", tmp_path / "twice", write_meanwhile)
    assert [path.name for path in tmp_path.glob("*twice*")] == ["twice"]


def test_a_snapshot_of_a_newer_kinsight_is_not_called_damaged(copied: Path, tmp_path: Path) -> None:
    """Nothing is wrong with it: who restores it needs another Kinsight, not another copy."""
    receipt = json.loads((copied / "snapshot.json").read_text())
    del receipt["sha256"]
    receipt["format"] = 2
    receipt["sha256"] = manifest.seal(receipt)
    (copied / "snapshot.json").write_text(json.dumps(receipt))
    with pytest.raises(NewerSnapshot, match="has format 2, of a newer Kinsight; this one reads format 1"):
        restore(Store(tmp_path / "other"), copied, None, quiet)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "version/../../evil", "model/a/b", "version/.."])
def test_a_receipt_names_no_file_elsewhere(copied: Path, tmp_path: Path, name: str) -> None:
    """A receipt that leads out of its directory is refused."""
    receipt = json.loads((copied / "snapshot.json").read_text())
    del receipt["sha256"]
    receipt["files"][name] = {"bytes": 0, "sha256": ""}
    (copied / "snapshot.json").write_text(json.dumps(receipt))
    with pytest.raises(DamagedSnapshot, match="which is no file of a snapshot"):
        restore(Store(tmp_path / "other"), copied, None, quiet)


def test_a_file_that_nobody_named_is_refused(copied: Path, tmp_path: Path) -> None:
    """What lies in a snapshot beside its files is not taken along."""
    (copied / "version" / "extra").touch()
    with pytest.raises(DamagedSnapshot, match="extra is not one of the snapshot's files"):
        restore(Store(tmp_path / "other"), copied, None, quiet)
