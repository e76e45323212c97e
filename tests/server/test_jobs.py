"""How many operations a server has at work."""

import asyncio
import shutil
import tempfile
import time
from pathlib import Path

import grpc
import pytest
from google.longrunning import operations_pb2
from kinsight.v1.index_service_pb2 import EvaluateVersionRequest, RestoreIndexRequest, SnapshotIndexRequest
from kinsight.v1.item_service_pb2 import ExportItemsRequest, ImportItemsRequest

from indexer import operations
from indexer.operations import Operation
from indexer.snapshot import snapshot
from server import jobs
from server.errors import BuildInProgress
from server.folders import Folders
from server.jobs import Job, Jobs
from tests.serving import Stubs, build_photos, photo, reason_of, serving
from tests.waiting import until


def test_no_more_operations_than_the_bound_are_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks in a loop does not take the machine's memory from searches; repetitions start nothing."""
    monkeypatch.setattr(jobs, "MAX_AT_WORK", 2)
    store = build_photos(tmp_path)
    folders = Folders((tmp_path,), (tmp_path,))
    with serving(store, folders=folders) as served, Stubs(served.target) as stubs:
        copied = SnapshotIndexRequest(request_id="once", directory=str(tmp_path / "snapshot"))
        begun = [
            stubs.indexes.SnapshotIndex(copied),
            stubs.indexes.EvaluateVersion(EvaluateVersionRequest()),
        ]
        with pytest.raises(grpc.RpcError) as refused:
            stubs.indexes.EvaluateVersion(EvaluateVersionRequest())
        assert reason_of(refused.value) == ("RESOURCE_EXHAUSTED", "TOO_MANY_OPERATIONS")
        assert f"the oldest being {begun[0].name};" in (refused.value.details() or "")
        assert stubs.indexes.SnapshotIndex(copied).name == begun[0].name
        assert len(stubs.operations.ListOperations(operations_pb2.ListOperationsRequest()).operations) == 2
        stubs.ended(begun[0])
        last = stubs.ended(stubs.indexes.EvaluateVersion(EvaluateVersionRequest()))
        assert not last.HasField("error")


def test_modules_where_a_server_was_started_are_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of somebody's own called `clients` failed every operation, though the server searched."""
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients/__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    with serving(build_photos(tmp_path)) as served, Stubs(served.target) as stubs:
        done = stubs.ended(stubs.indexes.EvaluateVersion(EvaluateVersionRequest()))
        assert not done.HasField("error"), done.error


def test_a_repetition_of_what_made_something_finds_its_operation(tmp_path: Path) -> None:
    """Also once it is done and what it made is there, which would be refused to another request."""
    store = build_photos(tmp_path)
    folders = Folders((tmp_path,), (tmp_path,))
    table, copy = str(tmp_path / "items.parquet"), str(tmp_path / "copy")
    with serving(store, folders=folders) as served, Stubs(served.target) as stubs:
        for method, request in (
            (stubs.items.ExportItems, ExportItemsRequest(path=table, request_id="export")),
            (stubs.indexes.SnapshotIndex, SnapshotIndexRequest(directory=copy, request_id="snapshot")),
            (stubs.indexes.RestoreIndex, RestoreIndexRequest(index="again", directory=copy, request_id="restore")),
        ):
            done = stubs.ended(method(request))
            assert not done.HasField("error")
            assert method(request).name == done.name
            request.request_id = "another"
            with pytest.raises(grpc.RpcError) as refused:
                method(request)
            assert reason_of(refused.value)[0] == "ALREADY_EXISTS"


def test_a_repetition_of_what_read_something_finds_its_operation(tmp_path: Path) -> None:
    """Also where that is gone by now, which would be refused to another request."""
    store = build_photos(tmp_path)
    new, copy = tmp_path / "new", tmp_path / "copy"
    new.mkdir()
    (new / "new.png").write_bytes(photo(100))
    with serving(store, folders=Folders((tmp_path,), (tmp_path,))) as served, Stubs(served.target) as stubs:
        snapshot(store, "photos", copy, progress=lambda *_: None)
        for method, request, source in (
            (stubs.items.ImportItems, ImportItemsRequest(path=str(new), request_id="import"), new),
            (
                stubs.indexes.RestoreIndex,
                RestoreIndexRequest(index="again", directory=str(copy), request_id="restore"),
                copy,
            ),
        ):
            done = stubs.ended(method(request))
            assert not done.HasField("error")
            shutil.rmtree(source)
            assert method(request).name == done.name
        with pytest.raises(grpc.RpcError) as refused:
            stubs.items.ImportItems(ImportItemsRequest(index="photos", path=str(new), request_id="another"))
        assert reason_of(refused.value) == ("NOT_FOUND", "PATH_NOT_FOUND")


def test_processes_of_one_server_start_a_request_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it reaches two of them at the same time, as when a client's connection is lost."""
    store = build_photos(tmp_path)
    first, second = Jobs(store), Jobs(store)
    read = operations.Ledger.operations

    def read_slowly(ledger: operations.Ledger) -> list[Operation]:
        found = read(ledger)
        time.sleep(0.2)
        return found

    monkeypatch.setattr(operations.Ledger, "operations", read_slowly)
    job = Job("evaluate", "photos", ("index", "evaluate", "photos"))

    async def start_both() -> tuple[Operation, Operation]:
        try:
            return await asyncio.gather(first.start(job, "once"), second.start(job, "once"))
        finally:
            await first.close()
            await second.close()

    one, other = asyncio.run(start_both())
    assert one.id == other.id


def test_what_no_process_can_be_started_for_is_not_taken_for_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same request again begins it; it was found as queued for ever, and kept other builds from the index."""
    store = build_photos(tmp_path)
    queued = [operations.queue(store.operations, "evaluate", "photos", [], request_id=name).id for name in "ab"]
    serving_jobs, job = Jobs(store), Job("rebuild", "photos", ("rebuild", "photos"))

    async def start() -> Operation:
        with monkeypatch.context() as patched:
            patched.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
            serving_jobs.resume()
            until(lambda: len(caplog.records) == len(queued))
            with pytest.raises(FileNotFoundError, match="gone"):
                await serving_jobs.start(job, "once")
        try:
            return await serving_jobs.start(job, "once")
        finally:
            await serving_jobs.close()

    begun = asyncio.run(start())
    assert [one.id for one in operations.list_operations(store.operations)] == [*queued, begun.id]
    assert [record.message.split(" can't be gone on with: ")[0] for record in caplog.records] == queued


def test_processes_of_one_server_build_an_index_once_at_a_time(tmp_path: Path) -> None:
    """Though the process of the first build has not come so far as to hold the index; nor where it waits its turn.

    Nor is a version of it deleted, which would keep that process from the index.
    """
    store = build_photos(tmp_path)
    first, second = Jobs(store), Jobs(store)
    job = Job("rebuild", "photos", ("rebuild", "photos"))

    async def start_both() -> None:
        try:
            begun = await first.start(job)
            with pytest.raises(BuildInProgress, match=f"operations/{begun.id} is building index photos already"):
                await second.start(job)
            with pytest.raises(BuildInProgress, match=f"operations/{begun.id} is building"), second.unbuilt("photos"):
                pass
        finally:
            await first.close()
        left = operations.find(store.operations, begun.id)
        assert left.state in ("queued", "interrupted")
        with pytest.raises(BuildInProgress, match=begun.id):
            await second.start(job)
        await second.close()

    asyncio.run(start_both())
