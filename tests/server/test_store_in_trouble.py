"""What happens to a store while it is served: its disk fills or refuses, and what lies in it goes."""

import ctypes
import logging
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2
from kinsight.v1.index_service_pb2 import (
    ActivateVersionRequest,
    BuildVersionRequest,
    EvaluateVersionRequest,
    SnapshotIndexRequest,
)

from indexer import operations
from indexer.build import WriteFailed
from indexer.version import active_version, next_number
from server import answers, app, jobs
from server.folders import Folders
from server.indexes import Indexes
from tests.serving import Stubs, build_photos, make_gallery, make_model, make_version, reason_of, serving
from tests.waiting import PROCESS_S, until


def _refusal(call: Any, request: Any) -> tuple[tuple[str, str], str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=30)
    return reason_of(caught.value), caught.value.details() or ""


def _fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def test_a_full_disk_is_told_to_clients_and_once_to_the_operator(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Long work is neither begun nor a failure of the server; once there is room again, it is begun."""
    monkeypatch.setattr(answers, "_told_at_s", {})
    store = build_photos(small_disk)
    with serving(store) as served, Stubs(served.target) as stubs, caplog.at_level(logging.ERROR):
        filler = _fill(small_disk)
        for _ in range(2):
            reason, text = _refusal(stubs.indexes.EvaluateVersion, EvaluateVersionRequest())
            assert reason == ("RESOURCE_EXHAUSTED", "STORE_NOT_ACCESSIBLE")
            assert text.endswith(".json: No space left on device; free some space and try again")
        filler.unlink()
        assert not stubs.ended(stubs.indexes.EvaluateVersion(EvaluateVersionRequest())).HasField("error")
    (record,) = caplog.records
    assert record.message.startswith(f"requests fail: STORE_NOT_ACCESSIBLE: {store.operations}")
    assert record.exc_info is None


def test_what_ended_for_want_of_space_is_told_once_there_is_some(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The operation would not be done until a restart of the server, and keep every other build from the index."""
    monkeypatch.setattr(jobs, "SETTLE_EVERY_S", 0.1)
    store = build_photos(small_disk)
    with serving(store) as served, Stubs(served.target) as stubs, caplog.at_level(logging.ERROR):
        begun = stubs.indexes.BuildVersion(BuildVersionRequest())
        filler = _fill(small_disk)
        until(lambda: bool(caplog.records), PROCESS_S)
        filler.unlink()
        assert "its process ended with exit code 1" in stubs.ended(begun).error.message
        stubs.indexes.BuildVersion(BuildVersionRequest())
    (record,) = caplog.records
    identity = begun.name.removeprefix("operations/")
    assert record.message.startswith(f"how {identity} ended can't be written yet: [Errno 28] No space left on device")


def test_work_that_finds_no_space_says_so_by_its_status(small_disk: Path, tmp_path: Path) -> None:
    """As a request does: INTERNAL blamed the server for a disk that is full."""
    store = build_photos(tmp_path)
    queued = operations.queue(store.operations, "rebuild", "photos", ())
    with pytest.raises(WriteFailed), operations.running(store.operations, queued.id):
        raise WriteFailed("can't write a version: No space left on device; free some space and build again")
    _fill(small_disk)
    with serving(store, folders=Folders((), (small_disk,))) as served, Stubs(served.target) as stubs:
        copied = stubs.indexes.SnapshotIndex(SnapshotIndexRequest(directory=str(small_disk / "copy")))
        built = operations_pb2.GetOperationRequest(name=f"operations/{queued.id}")
        for failed in (stubs.ended(copied), stubs.operations.GetOperation(built)):
            assert reason_of(failed.error) == ("RESOURCE_EXHAUSTED", "STORE_NOT_ACCESSIBLE")
            assert "No space left on device" in failed.error.message


def test_a_read_only_disk_is_told(small_disk: Path) -> None:
    """By the name of the file that would have been written."""
    store = build_photos(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with serving(store) as served, Stubs(served.target) as stubs:
        reason, text = _refusal(stubs.indexes.ActivateVersion, ActivateVersionRequest(version=1))
        assert reason == ("RESOURCE_EXHAUSTED", "STORE_NOT_ACCESSIBLE")
        refused = f"{store.index('photos')}/.pointing: Read-only file system"
        assert text == f"{refused}; check the disk and its permissions and try again"


@pytest.fixture
def permissions_hold() -> Iterator[None]:
    """For this thread, also where root runs the tests: it gives up leave to read and write everything."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the interface; this thread
    held = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, held) == 0
    without = (ctypes.c_uint32 * 6)(held[0] & ~0b110, *held[1:])  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, without) == 0
    yield
    assert libc.capset(header, held) == 0


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        yield
    finally:
        path.chmod(mode)


@pytest.mark.usefixtures("permissions_hold")
@pytest.mark.parametrize("part", ["indexes/photos", "indexes/photos/versions", "indexes/photos/active"])
def test_an_index_that_can_not_be_read_is_not_taken_for_gone(
    part: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A slip of permissions is told once, searches go on, and what comes later is taken in without a restart."""
    own = make_gallery(tmp_path, count=6)
    indexes = Indexes(own.store)
    indexes.refresh()
    with _locked(own.store.root / part), caplog.at_level(logging.WARNING):
        for _ in range(2):
            indexes.refresh()
        assert own.store.index_names() == ["photos"]
        assert indexes.get("photos").snapshot.search(own.embeddings[:1], 1)[1].tolist() == [[0]]
    (record,) = caplog.records
    assert "version 1 is served on" in record.message
    assert str(own.store.root / part) in record.message
    assert record.exc_info is None
    make_version(own.store, "photos", 2, own.model, own.items[:3], own.embeddings[:3])
    indexes.refresh()
    assert indexes.get("photos").number == 2


@pytest.mark.usefixtures("permissions_hold")
def test_a_store_that_can_not_be_read_is_told_once_and_when_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server looks every second: its log is not to fill with the same stack."""
    monkeypatch.setattr(app, "WATCH_INTERVAL_S", 0.02)
    own = make_gallery(tmp_path, count=6)
    with caplog.at_level(logging.INFO, "server.app"), serving(own.store) as served, Stubs(served.target) as stubs:
        with _locked(own.store.indexes):
            time.sleep(0.3)
            assert stubs.found(item=own.items[2], top_k=1) == [own.items[2]]
        time.sleep(0.3)
    told = [record.message for record in caplog.records if "can" in record.message]
    assert told == [
        f"the store can't be read; what is open is served on: [Errno 13] Permission denied: '{own.store.indexes}'",
        "the store can be read again",
    ]
    assert "Traceback" not in caplog.text


def test_whatever_keeps_a_server_from_looking_once_it_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where threads are short for a moment, say: what was activated after that was never served."""
    monkeypatch.setattr(app, "WATCH_INTERVAL_S", 0.02)
    own = make_gallery(tmp_path, count=6)

    def fail() -> None:
        raise RuntimeError("can't start new thread")

    with caplog.at_level(logging.ERROR, "server.app"), serving(own.store) as served:
        indexes = served.running.indexes
        with monkeypatch.context() as patched:
            patched.setattr(indexes, "refresh", fail)
            until(lambda: "can't start new thread" in caplog.text)
        make_version(own.store, "photos", 2, own.model, own.items[:3], own.embeddings[:3])
        until(lambda: indexes.get("photos").number == 2)


@pytest.mark.usefixtures("permissions_hold")
def test_directories_that_can_not_be_read_are_not_taken_for_empty(tmp_path: Path) -> None:
    """Neither by a server, which would let go of all indexes, nor by who lists its long work."""
    own = make_gallery(tmp_path, count=6)
    indexes = Indexes(own.store)
    indexes.refresh()
    operations.queue(own.store.operations, "build", "photos", ())
    with _locked(own.store.indexes), pytest.raises(PermissionError, match="indexes"):
        indexes.refresh()
    assert indexes.ready
    with _locked(own.store.operations), pytest.raises(PermissionError, match="operations"):
        operations.list_operations(own.store.operations)


def test_a_version_that_replaces_a_lost_one_is_swapped_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was lost is searched until then; by its number the next one would be taken for it."""
    own = make_gallery(tmp_path, count=6)
    indexes = Indexes(own.store)
    indexes.refresh()
    index_dir = own.store.index("photos")
    shutil.rmtree(index_dir / "versions" / "1")
    make_version(own.store, "photos", 7, own.model, own.items[:3], own.embeddings[:3], activated=False)
    with caplog.at_level(logging.ERROR):
        indexes.refresh()
    (record,) = caplog.records
    what, why = record.message.split("; version 1 is served on: ")
    assert what == "index photos: the activated version can't be opened"
    assert "it has: 7; it is the active one: restore its directory, activate another, or rebuild the index" in why
    shutil.rmtree(index_dir / "versions" / "7")
    number = next_number(index_dir)
    make_version(own.store, "photos", number, own.model, own.items[:3], own.embeddings[:3])
    indexes.refresh()
    assert (indexes.get("photos").number, indexes.get("photos").snapshot.count) == (2, 3)


def test_a_version_whose_model_is_gone_is_not_activated(tmp_path: Path) -> None:
    """The server could not open it, and after a restart nothing would be served."""
    own = make_gallery(tmp_path, count=6)
    other = make_model(own.store, seed=1)
    make_version(own.store, "photos", 2, other, own.items[:3], own.embeddings[:3], activated=False)
    with serving(own.store) as served, Stubs(served.target) as stubs:
        own.store.model(other).rename(tmp_path / "away")
        reason, text = _refusal(stubs.indexes.ActivateVersion, ActivateVersionRequest(version=2))
        assert reason == ("DATA_LOSS", "MODEL_MISSING")
        assert other in text
        assert active_version(own.store.index("photos")) == 1
        (tmp_path / "away").rename(own.store.models / other)
        assert stubs.indexes.ActivateVersion(ActivateVersionRequest(version=2)).active_version == 2
