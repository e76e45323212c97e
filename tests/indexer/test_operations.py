"""Records of long work: who works on what, and what a crash or a cancel leaves."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from pathlib import Path

import pytest

from indexer import operations
from indexer.locks import hold
from indexer.operations import (
    NoSuchOperation,
    Operation,
    OperationEnded,
    OperationRunning,
    Recorder,
    cancel,
    delete,
    find,
    list_operations,
    queue,
    running,
)

# Works on an operation until it is killed or interrupted; says so once it has begun.
WORKER = """
import sys, time
from pathlib import Path
from indexer.operations import running

with running(Path(sys.argv[1]), sys.argv[2]) as recorder:
    recorder.progress("embed", 5, 100)
    print("begun", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """An operation, and the process that works on it."""
    identity = queue(tmp_path, "rebuild", "street", ["rebuild", "street"]).id
    # SIGINT may be ignored here, in the background of a script; what a child inherits is the default.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-c", WORKER, str(tmp_path), identity]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        signal.signal(signal.SIGINT, before)
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield identity, process
        process.kill()


def test_an_operation_ends_as_its_block_does(tmp_path: Path) -> None:
    """Queued, running, then done with a result, failed with the error's words and types, or cancelled."""
    done = queue(tmp_path, "build", "street", ["index", "build"], request_id="r1")
    assert (done.state, find(tmp_path, done.id)) == ("queued", done)
    with running(tmp_path, done.id) as recorder:
        assert (find(tmp_path, done.id).state, find(tmp_path, done.id).pid) == ("running", os.getpid())
        recorder.finish({"version": 3})
    ended = find(tmp_path, done.id)
    assert (ended.state, ended.result, ended.arguments, ended.request_id) == (
        "done",
        {"version": 3},
        ("index", "build"),
        "r1",
    )
    for error, state in ((FileNotFoundError("no such folder"), "failed"), (KeyboardInterrupt(), "cancelled")):
        identity = queue(tmp_path, "build", "street", []).id
        with pytest.raises(type(error)), running(tmp_path, identity):
            raise error
        found = find(tmp_path, identity)
        assert (found.state, found.error) == (state, str(error))
        assert found.error_types[0] == type(error).__name__
    assert "OSError" in find(tmp_path, list_operations(tmp_path)[1].id).error_types


def test_progress_tells_rate_and_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate counts what was done since the stage began, not what an earlier process did."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with running(tmp_path, queue(tmp_path, "build", "street", []).id) as recorder:
        recorder.progress("embed", 500, 1_000)
        now = 110.0
        recorder.progress("embed", 600, 1_000)
        found = find(tmp_path, recorder.operation.id)
        assert (found.stage, found.done, found.total, found.rate, found.eta_s) == ("embed", 600, 1_000, 10.0, 40.0)
        recorder.progress("train", 0, 1)
        found = find(tmp_path, recorder.operation.id)
        assert (found.stage, found.rate, found.eta_s) == ("train", 0.0, None)


def test_what_is_found_wrong_is_read_while_the_work_goes_on(tmp_path: Path) -> None:
    """At once and in order, however often progress is written; who goes on with the work finds it anew."""
    identity = queue(tmp_path, "train", "", []).id
    with suppress(OSError), running(tmp_path, identity) as recorder:
        recorder.progress("decode", 0, 10)
        for warning in ("one", "two"):
            recorder.warn(warning)
            recorder.progress("decode", 5, 10)
        assert find(tmp_path, identity).warnings == ("one", "two")
        raise OSError("no space")
    assert find(tmp_path, identity).warnings == ("one", "two")
    path = tmp_path / f"{identity}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "running"}))  # as if it had been killed
    with running(tmp_path, identity) as recorder:
        recorder.warn("one")
        assert find(tmp_path, identity).warnings == ("one",)


def test_the_record_of_a_kinsight_that_kept_no_warnings_is_read(tmp_path: Path) -> None:
    """What it left is gone on with."""
    queued = queue(tmp_path, "train", "", ["train"])
    path = tmp_path / f"{queued.id}.json"
    path.write_text(json.dumps({name: value for name, value in vars(queued).items() if name != "warnings"}))
    assert find(tmp_path, queued.id) == queued


def test_who_goes_on_with_work_knows_since_when_it_is_asked_for(tmp_path: Path) -> None:
    """As of who asked for it, or else of the first process that worked on it."""
    for since, expected in ((None, 7), (0, 0), (5, 5)):
        queued = queue(tmp_path, "import", "street", [])
        if since is not None:
            assert Recorder(tmp_path, queued).begun_since(since) == since
        identity = queued.id
        path = tmp_path / f"{identity}.json"
        with running(tmp_path, identity) as recorder:
            assert recorder.begun_since(7) == expected
            left = path.read_text()
        path.write_text(left)  # as if it had been killed
        with running(tmp_path, identity) as recorder:
            assert recorder.begun_since(9) == expected


@pytest.mark.parametrize("error", [OSError("no space"), KeyboardInterrupt(), None])
def test_what_has_ended_has_no_time_left(tmp_path: Path, error: BaseException | None) -> None:
    """Cancelled or failed with half of it done, it will never be."""
    identity = queue(tmp_path, "build", "street", []).id
    with suppress(OSError, KeyboardInterrupt), running(tmp_path, identity) as recorder:
        recorder.progress("embed", 0, 1_000)
        recorder.operation = dataclasses.replace(recorder.operation, done=500, rate=10.0, eta_s=50.0)
        recorder.write()
        assert find(tmp_path, identity).eta_s == 50
        if error:
            raise error
    assert (find(tmp_path, identity).done, find(tmp_path, identity).eta_s) == (500, None)


def test_work_goes_on_where_its_progress_can_not_be_written(small_disk: Path) -> None:
    """A disk that was full for a moment ended hours of training; how the work ended is told as ever."""
    directory = small_disk / "operations"
    identity, filler = queue(directory, "train", "", []).id, small_disk / "filler"
    with running(directory, identity) as recorder:
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        recorder.progress("train", 1, 2)
        filler.unlink()
    assert (find(directory, identity).state, find(directory, identity).stage) == ("done", "train")
    assert [path.suffix for path in sorted(directory.iterdir())] == [".json", ".lock"]


def test_a_killed_operation_is_interrupted_and_goes_on(
    tmp_path: Path, worker: tuple[str, subprocess.Popen[str]]
) -> None:
    """While its process lives nobody else may work on it; after SIGKILL it reads interrupted, and may be taken up."""
    identity, process = worker
    found = find(tmp_path, identity)
    assert (found.state, found.pid, found.done) == ("running", process.pid, 5)
    with pytest.raises(OperationRunning, match=f"process {process.pid} works on"), running(tmp_path, identity):
        pass
    with pytest.raises(OperationRunning, match="is running; cancel it first"):
        delete(tmp_path, identity)
    process.kill()
    process.wait()
    assert [one.state for one in list_operations(tmp_path)] == ["interrupted"]
    with running(tmp_path, identity):
        assert find(tmp_path, identity).state == "running"
    assert find(tmp_path, identity).state == "done"


def test_cancelling_interrupts_the_process(tmp_path: Path, worker: tuple[str, subprocess.Popen[str]]) -> None:
    """A running operation gets SIGINT and ends cancelled; what nobody works on is marked; what ended is refused."""
    identity, process = worker
    assert cancel(tmp_path, identity).state == "running"
    process.wait(10)
    assert find(tmp_path, identity).state == "cancelled"
    with pytest.raises(OperationEnded, match="is cancelled already"):
        cancel(tmp_path, identity)
    with pytest.raises(OperationEnded, match="is cancelled: start it anew"), running(tmp_path, identity):
        pass
    queued = queue(tmp_path, "build", "street", [])
    assert cancel(tmp_path, queued.id).state == find(tmp_path, queued.id).state == "cancelled"
    delete(tmp_path, queued.id)
    assert [one.id for one in list_operations(tmp_path)] == [identity]


@pytest.mark.parametrize("identity", ["nosuch", "", "../catalog", "a/b", "A", "\0"])
def test_an_unknown_id_is_refused(tmp_path: Path, identity: str) -> None:
    """Whatever an id holds, it names a record of this store or nothing."""
    for function in (find, cancel, delete):
        with pytest.raises(NoSuchOperation):
            function(tmp_path, identity)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"state": "sleeping"}'])
def test_a_damaged_record_is_named_and_hides_no_other(tmp_path: Path, text: str) -> None:
    """A record that is none is an error by name; the list shows the others."""
    kept, damaged = queue(tmp_path, "build", "a", []), queue(tmp_path, "build", "b", [])
    path = tmp_path / f"{damaged.id}.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | json.loads(text)) if "state" in text else text)
    with pytest.raises(NoSuchOperation, match=f"{damaged.id}.json"):
        find(tmp_path, damaged.id)
    assert list_operations(tmp_path) == [kept]


def test_old_records_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once they need not be remembered; the newest stay, and every unfinished one."""
    monkeypatch.setattr(operations, "KEPT", 2)

    def queued_next() -> str:
        time.sleep(0.002)  # the records' times, by which they are sorted, are of milliseconds
        return queue(tmp_path, "build", "street", []).id

    unfinished = queued_next()
    ended = []
    for _ in range(4):
        ended.append(queued_next())
        cancel(tmp_path, ended[-1])
    queued = queued_next()
    assert [one.id for one in list_operations(tmp_path)] == [unfinished, *ended, queued]
    monkeypatch.setattr(operations, "REMEMBERED", timedelta(0))
    last = queued_next()
    assert [one.id for one in list_operations(tmp_path)] == [unfinished, ended[-1], queued, last]


def test_what_ended_within_a_day_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long ago it began: the same request again would do all of it again."""
    monkeypatch.setattr(operations, "KEPT", 1)
    asked = cancel(tmp_path, queue(tmp_path, "build", "street", [], request_id="long").id)
    for day in (1, 2):
        one = dataclasses.replace(asked, id=f"2020010{day}-000000-000-build-street-0000")
        one = one if day == 1 else dataclasses.replace(one, updated="2020-01-03T00:00:00.000+00:00")
        (tmp_path / f"{one.id}.json").write_text(json.dumps(dataclasses.asdict(one)))
    last = queue(tmp_path, "build", "street", []).id
    assert [one.id for one in list_operations(tmp_path)] == ["20200101-000000-000-build-street-0000", asked.id, last]


def test_a_start_reads_what_ended_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand records of a day would take seconds each time; those that were removed are forgotten."""
    ended = [cancel(tmp_path, queue(tmp_path, "build", "street", [str(n)]).id).id for n in range(3)]
    left = queue(tmp_path, "build", "street", []).id
    ledger, read = operations.Ledger(tmp_path), list[str]()
    first = ledger.operations()
    assert first == list_operations(tmp_path)
    reading = operations._read

    def noted(directory: Path, identity: str) -> Operation:
        read.append(identity)
        return reading(directory, identity)

    monkeypatch.setattr(operations, "_read", noted)
    assert (ledger.operations(), read) == (first, [left])
    cancel(tmp_path, left)
    delete(tmp_path, ended[1])
    assert [(one.id, one.state) for one in ledger.operations()] == [
        (identity, "cancelled") for identity in (ended[0], ended[2], left)
    ]
    read.clear()
    newest = queue(tmp_path, "build", "street", []).id
    assert (len(ledger.operations()), read) == (4, [newest])


def test_cancelling_waits_for_who_is_just_taking_the_operation_up(tmp_path: Path) -> None:
    """Between the lock and the record nobody's number is known: not the canceller's own group gets the signal."""
    identity = queue(tmp_path, "rebuild", "street", ["rebuild", "street"]).id
    slow = "import time, indexer.operations as o; r = o._read; o._read = lambda *a: (print('held', flush=True), "
    slow += "time.sleep(1), r(*a))[2]\n"
    handled = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    worker = [sys.executable, "-c", handled + slow + WORKER, str(tmp_path), identity]
    canceller = "import sys; from pathlib import Path; from indexer.operations import cancel; "
    canceller += "print(cancel(Path(sys.argv[1]), sys.argv[2]).state)"
    with subprocess.Popen(worker, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        command = [sys.executable, "-c", handled + canceller, str(tmp_path), identity]
        done = subprocess.run(
            command, capture_output=True, text=True, start_new_session=True, timeout=30, check=False
        )
        try:
            assert (done.returncode, done.stdout) == (0, "running\n"), done.stderr
            process.wait(10)
        finally:
            process.kill()
    assert find(tmp_path, identity).state == "cancelled"


@pytest.mark.parametrize("there", [True, False], ids=["another process has its number", "no process has its number"])
def test_cancelling_interrupts_no_process_of_another_container(
    tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What works in one goes by the number that it has there; here it is another's, or a wait for ever."""
    monkeypatch.setattr(operations, "TAKEN_UP_S", 0.3)
    identity = queue(tmp_path, "rebuild", "street", ["rebuild", "street"]).id
    with subprocess.Popen(["sleep", "60"]) as other, running(tmp_path, identity) as recorder:
        if not there:
            other.kill()
            other.wait()
        recorder.operation = dataclasses.replace(recorder.operation, pid=other.pid)
        recorder.write()
        (tmp_path / f"{identity}.lock").write_text(f"{other.pid}\n")
        try:
            with pytest.raises(OperationRunning, match=f"process {other.pid} works on {identity}, but none of that"):
                cancel(tmp_path, identity)
            assert (other.poll() is None) == there
        finally:
            other.kill()


def test_an_interrupt_as_soon_as_the_record_is_there_is_a_cancellation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who cancels has the process's number from the record: nothing may lie between that and being heard."""
    identity = queue(tmp_path, "rebuild", "street", ["rebuild", "street"]).id
    write = operations._write

    def write_then_interrupt(directory: Path, operation: Operation) -> None:
        write(directory, operation)
        if operation.state == "running":
            raise KeyboardInterrupt

    monkeypatch.setattr(operations, "_write", write_then_interrupt)
    with pytest.raises(KeyboardInterrupt), running(tmp_path, identity):
        pytest.fail("it went on")
    assert find(tmp_path, identity).state == "cancelled"


def test_cancelling_what_ends_at_that_moment_leaves_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operation that is done between the look at it and the mark stays done."""
    identity = queue(tmp_path, "rebuild", "street", ["rebuild", "street"]).id

    def held_later(path: Path) -> AbstractContextManager[None]:
        monkeypatch.undo()
        with running(tmp_path, identity) as recorder:
            recorder.finish({"version": 3})
        return hold(path)

    monkeypatch.setattr(operations, "hold", held_later)
    with pytest.raises(OperationEnded, match="is done already"):
        cancel(tmp_path, identity)
    assert (find(tmp_path, identity).state, find(tmp_path, identity).result) == ("done", {"version": 3})
