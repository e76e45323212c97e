"""How many operations a server has at work."""

import asyncio
import os
import re
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
from indexer.priority import OOM_SCORE
from indexer.snapshot import snapshot
from indexer.store import Store
from server import jobs
from server.errors import BuildInProgress
from server.folders import Folders
from server.jobs import Job, Jobs
from tests.serving import Stubs, build_photos, photo, reason_of, serving
from tests.waiting import PROCESS_S, until


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


def test_long_work_is_ended_before_its_server_where_memory_runs_out(tmp_path: Path) -> None:
    """Whatever it does: only what trained within a rebuild was."""
    own = Path("/proc/self/oom_score_adj").read_text()
    with serving(build_photos(tmp_path)) as served, Stubs(served.target) as stubs:
        begun = stubs.indexes.EvaluateVersion(EvaluateVersionRequest())
        (child,) = (process.pid for process in served.running.jobs._processes.values())
        assert int(Path(f"/proc/{child}/oom_score_adj").read_text()) == max(OOM_SCORE, int(own))
        stubs.ended(begun)


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


def test_a_repetition_finds_its_operation_however_the_store_is_called(tmp_path: Path) -> None:
    """After a restart by another path of the same store, it was said to be another request."""
    store = build_photos(tmp_path)
    (tmp_path / "link").symlink_to(store.root)
    request = ExportItemsRequest(path=str(tmp_path / "items.parquet"), request_id="export")
    names = []
    for root in (store.root, tmp_path / "link"):
        with serving(Store(root), folders=Folders((), (tmp_path,))) as served, Stubs(served.target) as stubs:
            names.append(stubs.ended(stubs.items.ExportItems(request)).name)
            with pytest.raises(grpc.RpcError) as refused:
                stubs.items.ExportItems(ExportItemsRequest(path=str(tmp_path / "other"), request_id="export"))
            assert reason_of(refused.value) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    assert names[0] == names[1]


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
            until(lambda: {operations.find(store.operations, one).state for one in queued} == {"failed"})
            with pytest.raises(FileNotFoundError, match="gone"):
                await serving_jobs.start(job, "once")
        try:
            return await serving_jobs.start(job, "once")
        finally:
            await serving_jobs.close()

    begun = asyncio.run(start())
    assert [one.id for one in operations.list_operations(store.operations)] == [*queued, begun.id]
    for one, record in zip(queued, caplog.records, strict=True):
        assert record.message == f"{one} can't be gone on with"
        told = operations.find(store.operations, one).error
        assert re.fullmatch("no process could be started for it: .*gone.*; the same request again, .*", told)


def test_a_process_that_can_not_be_followed_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It went on behind the server's back; who waited for what was left by an earlier server waited for ever."""
    store, begun = build_photos(tmp_path), list[int]()
    words = ("index", "evaluate", "photos")
    queued = [operations.queue(store.operations, "evaluate", "photos", words, request_id=name).id for name in "ab"]
    serving_jobs, job = Jobs(store), Job("evaluate", "photos", words)

    def fail(pid: int) -> None:
        begun.append(pid)
        raise IndexError("list index out of range")  # where a system's /proc is not as expected

    async def start() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(jobs, "put_behind", fail)
            serving_jobs.resume()
            until(lambda: {operations.find(store.operations, one).state for one in queued} == {"failed"})
            with pytest.raises(IndexError):
                await serving_jobs.start(job, "once")
        assert [one.id for one in operations.list_operations(store.operations)] == queued
        assert not serving_jobs._processes
        try:
            again = await serving_jobs.start(job, "once")
            until(lambda: operations.find(store.operations, again.id).state == "done", PROCESS_S)
        finally:
            await serving_jobs.close()

    asyncio.run(start())
    assert len(begun) == 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in begun)


@pytest.mark.parametrize(
    ("kind", "began", "told"),
    [
        ("train", True, "kinsight train --resume {id} on the server's machine goes on where it was, and {again} "),
        ("finetune", True, "kinsight finetune --resume {id} on the server's machine goes on where it was"),
        ("train", False, "{again} begins anew"),
        ("rebuild", False, "{again} goes on where it was"),
    ],
)
def test_who_hears_of_a_killed_process_hears_how_to_go_on(tmp_path: Path, kind: str, began: bool, told: str) -> None:
    """The same request was said to go on with a training, too, which began anew by it."""
    store = Store(tmp_path)
    started = asyncio.run((working := Jobs(store)).start(Job(kind, "photos", (kind, "nowhere"))))
    if began:
        (store.runs / started.id).mkdir(parents=True)
    working._processes[started.id].kill()
    until(lambda: operations.find(store.operations, started.id).state == "failed", PROCESS_S)
    again = "the same request again, by another request_id,"
    error = operations.find(store.operations, started.id).error
    assert f"killed by signal 9 (Killed); {told.format(id=started.id, again=again)}" in error


def test_what_an_earlier_server_left_waits_only_for_what_excludes_it(tmp_path: Path) -> None:
    """A second build of an index for the first, while all else goes on beside it."""
    store, labels = build_photos(tmp_path), tmp_path / "labels.csv"
    os.mkfifo(labels)  # which the first build reads for as long as nobody writes

    def left(name: str, kind: str, *words: str) -> str:
        return operations.queue(store.operations, kind, "photos", words, request_id=name).id

    def state(identity: str) -> str:
        return operations.find(store.operations, identity).state

    first = left("a", "rebuild", "rebuild", "photos", "--labels", str(labels))
    second = left("b", "rebuild", "rebuild", "photos")
    beside = [left(name, "evaluate", "index", "evaluate", "photos") for name in "cd"]
    resumed = Jobs(store)
    try:
        resumed.resume()
        # Its process may take the first up only after the quick ones have ended.
        until(lambda: [state(one) for one in (first, *beside)] == ["running", "done", "done"], PROCESS_S)
        assert state(second) == "queued"
        labels.write_text("nothing")
        until(lambda: state(second) == "done", PROCESS_S)
        assert state(first) == "failed"
    finally:
        asyncio.run(resumed.close())


def test_no_more_than_the_bound_are_gone_on_with_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many that were left would take all memory at once, where one after the other they fit."""
    monkeypatch.setattr(jobs, "MAX_AT_WORK", 1)
    store = build_photos(tmp_path)
    words = ("index", "evaluate", "photos")
    queued = [operations.queue(store.operations, "evaluate", "photos", words, request_id=name).id for name in "ab"]
    resumed, most = Jobs(store), 0
    try:
        resumed.resume()
        ended = 0
        while ended < len(queued):
            states = [operations.find(store.operations, one).state for one in queued]
            ended, most = states.count("done"), max(most, len(resumed._processes))
            assert "failed" not in states
            time.sleep(0.01)
        assert most == 1
    finally:
        asyncio.run(resumed.close())


@pytest.mark.parametrize(
    ("one", "other", "excluded"),
    [
        (("train",), ("finetune",), True),
        (("train",), ("rebuild", "photos", "--learn"), True),
        (("rebuild", "other", "--finetune", "few.csv"), ("rebuild", "photos", "--learn"), True),
        (("rebuild", "photos"), ("rebuild", "photos"), True),
        (("rebuild", "other"), ("rebuild", "photos"), False),
        (("train",), ("rebuild", "photos"), False),
        (("train",), ("import", "photos"), False),
    ],
)
def test_only_learning_and_builds_of_an_index_exclude_each_other(
    one: tuple[str, ...], other: tuple[str, ...], excluded: bool, tmp_path: Path
) -> None:
    """Of what an earlier server left; a rebuild may be both."""
    begun, waiting = (operations.queue(tmp_path, words[0], "".join(words[1:2]), words) for words in (one, other))
    assert jobs._exclude(begun, waiting) == jobs._exclude(waiting, begun) == excluded


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
