"""Long work: child processes of the `kinsight` command, which outlive no server but can be gone on with by the next.

A child writes the record of its operation in the store (`indexer.operations`); a server only starts children, and
says what became of one that could not say it itself. What a child does never touches serving.
"""

import asyncio
import logging
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from indexer import operations, staging
from indexer.catalog import RequestReused
from indexer.locks import is_held, turn
from indexer.operations import Ledger, NoSuchOperation, Operation, OperationError
from indexer.priority import put_behind
from indexer.store import Store
from server.errors import BuildInProgress, LearningInProgress, OperationFailed, TooManyOperations

MAX_AT_WORK = 8  # operations; each is a process with an index or a model in its memory
END_TIMEOUT_S = 5.0  # until a child that was asked to end is killed
HEARD_TIMEOUT_S = 2.0  # in which this process hears of the end that was sent to it and to all its children at once
SETTLE_EVERY_S = 5.0  # where the disk refuses to take how an operation ended
LOOK_EVERY_S = 5.0  # for what ends in other processes and makes room for an operation of an earlier server
BUILDS = ("build", "rebuild")
LEARNING = ("train", "finetune")
_TOLD_CHARACTERS = 500  # of what a child that failed wrote last

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """Something long to do.

    Attributes:
        kind: of the operation.
        index: what it is about; empty where that is no index.
        words: of the `kinsight` command, without --store.
        since: the last change of the index before this was asked for, where that is of weight.
        check: raises where it can't be begun now; not called for a repetition, which would find what the first made.
    """

    kind: str
    index: str
    words: tuple[str, ...]
    check: Callable[[], None] = lambda: None
    since: int | None = None

    @property
    def learns(self) -> bool:
        """Whether it trains a model."""
        return _learns(self.kind, self.words)


class Jobs:
    """The operations of a store, and the processes that this server started for them."""

    def __init__(self, store: Store) -> None:
        self.directory = store.operations
        self.store = store
        self._ledger = Ledger(self.directory)  # only who holds `_starting` may ask it
        self._processes: dict[str, subprocess.Popen[bytes]] = {}  # by operation
        self._waiting = set[str]()  # operations of an earlier server whose turn is still to come
        self._cancelled = set[str]()
        self._starting = threading.Lock()
        self._ended = threading.Condition(self._starting)  # told of the end of a process
        self._ending = threading.Event()

    async def start(self, job: Job, request_id: str = "") -> Operation:
        """Start a job, or find the operation that the same request started before.

        Raises:
            RequestReused: the request id came with another job before.
            BuildInProgress: a version of that index is being built.
            LearningInProgress: a model is being trained.
            TooManyOperations: as many are at work as may be.
            RequestError: as the job's `check` raises it.
        """
        return await asyncio.to_thread(self._start, job, request_id)

    def resume(self) -> None:
        """Go on with what an earlier server of this store started and did not see the end of.

        What may run beside the others begins at once: an import is not to wait for a training of hours.
        """
        with self._starting:
            known = self._ledger.operations()
            # Only servers give request ids: what somebody started by hand is theirs to go on with.
            left = [one for one in known if _is_unfinished(one) and one.request_id and one.id not in self._processes]
            self._waiting = {one.id for one in left}
        threading.Thread(target=self._go_on, args=(left,), daemon=True).start()

    async def cancel(self, identity: str) -> None:
        """Ask the process of an operation to end; nothing happens to one that has ended.

        Raises:
            NoSuchOperation: there is no such one.
        """
        self._cancelled.add(identity)
        with suppress(operations.OperationEnded):
            await asyncio.to_thread(operations.cancel, self.directory, identity)

    def drain(self) -> None:
        """Leave what ends from now on without saying how to the next server, which goes on with it."""
        self._ending.set()

    async def close(self) -> None:
        """End all processes as if they had been killed, so that the next server goes on with what they did."""
        self.drain()
        await asyncio.to_thread(self._end)

    @contextmanager
    def unbuilt(self, index: str) -> Iterator[None]:
        """Keep builders off an index: one may be taking embeddings from a version, or be about to activate another.

        Raises:
            BuildInProgress: one is at work, or was started and has not got so far as to hold the index.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            with self._starting, turn(self.directory / ".starting"):
                if busy := _builds(_at_work(self._ledger.operations()), index):
                    raise BuildInProgress(f"operations/{busy[0]} is building index {index}; wait for it or cancel it")
                try:
                    stack.enter_context(staging.sole_builder(self.store.index(index)))
                except staging.BuildInProgress as error:
                    raise BuildInProgress(f"index {index} is in use: {error}") from error
            yield

    def _start(self, job: Job, request_id: str) -> Operation:
        arguments = (*job.words, "--store", str(self.store.root.absolute()), "--json")
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._starting, turn(self.directory / ".starting"):  # each process sees what the one before it started
            known = self._ledger.operations()
            for operation in known:
                if request_id and operation.request_id == request_id:
                    _check_same(operation, arguments)
                    return operations.find(self.directory, operation.id)  # with its result
            job.check()
            self._check_room(job, known)
            asked = request_id or str(uuid.uuid4())
            operation = operations.queue(self.directory, job.kind, job.index, arguments, request_id=asked)
            try:
                if job.since is not None:
                    operations.Recorder(self.directory, operation).begun_since(job.since)
                self._spawn(operation)
            except BaseException:  # the same request again would find what nobody works on
                operations.withdraw(self.directory, operation.id)
                raise
            return operation

    def _go_on(self, left: Sequence[Operation]) -> None:
        waiting = list(left)
        while waiting and not self._ending.is_set():
            with self._ended:
                operation = self._next(waiting)
                if operation is None:
                    self._ended.wait(LOOK_EVERY_S)
                    continue
                waiting.remove(operation)
                self._waiting.remove(operation.id)
                problem = "" if operation.id in self._cancelled else self._gone_on_with(operation)
            if problem:  # told to who waits for it, and not with the lock: the disk may refuse that until later
                self._settle(operation.id, problem)

    def _gone_on_with(self, operation: Operation) -> str:
        """Start the process of an operation that an earlier server left; what kept it from that, if anything did."""
        log.info("going on with %s", operation.id)
        try:
            self._spawn(operation)
        except Exception as error:  # whatever is wrong with one, the others are gone on with
            log.exception("%s can't be gone on with", operation.id)
            return f"no process could be started for it: {error}"
        return ""

    def _next(self, waiting: Sequence[Operation]) -> Operation | None:
        """The first that may run beside all that is at work; None where all have to wait."""
        try:
            known = self._ledger.operations()
        except OSError as error:
            log.error("what an earlier server left waits, as the operations can't be read: %s", error)
            return None
        begun = [one for one in known if one.id in self._processes or one.state == "running"]
        if len(begun) >= MAX_AT_WORK:
            return None
        return next((one for one in waiting if not any(_exclude(one, other) for other in begun)), None)

    def _check_room(self, job: Job, known: Sequence[Operation]) -> None:
        at_work = _at_work(known)
        if job.kind in BUILDS:
            busy = _builds(at_work, job.index)
            if busy or is_held(self.store.index(job.index) / ".builder"):
                doing = f"operations/{busy[0]}" if busy else "another process"
                raise BuildInProgress(f"{doing} is building index {job.index} already; wait for it or cancel it")
        if job.learns:
            busy = [one.id for one in at_work if _learns(one.kind, one.arguments)]
            if busy or is_held(self.store.root / ".learner"):
                doing = f"operations/{busy[0]}" if busy else "another process"
                raise LearningInProgress(f"{doing} is learning in this store already; wait for it or cancel it")
        begun = [one for one in at_work if one.id in self._processes or not self._waits_for_its_turn(one)]
        if len(begun) >= MAX_AT_WORK:
            raise TooManyOperations(
                f"{len(begun)} operations are at work, the most at a time, the oldest being operations/{begun[0].id}"
                "; wait for one or cancel one"
            )

    def _waits_for_its_turn(self, operation: Operation) -> bool:
        """Whether it is one of an earlier server's that this one goes on with later."""
        return operation.id in self._waiting or operation.state == "interrupted"

    def _spawn(self, operation: Operation) -> None:
        """Start the process of an operation, which is followed to its end; one that can't be is ended at once."""
        # -P: what lies in the folder that the server was started in is not ours, whatever it is called.
        words = [sys.executable, "-P", "-m", "clients.cli", *operation.words(self.store.root)]
        nothing = subprocess.DEVNULL
        with ExitStack() as stack:
            told = stack.enter_context(tempfile.TemporaryFile())
            # A group of its own: Ctrl-C in the terminal would cancel it, instead of leaving it to the next server.
            process = subprocess.Popen(  # noqa: S603  our own command
                words, stdin=nothing, stdout=nothing, stderr=told, process_group=0
            )
            stack.callback(_kill, process)
            put_behind(process.pid)  # searches come first
            self._processes[operation.id] = process
            stack.callback(self._processes.pop, operation.id)
            threading.Thread(target=self._follow, args=(operation.id, process, told), daemon=True).start()
            stack.pop_all()  # all that is up to who follows the process now

    def _follow(self, identity: str, process: subprocess.Popen[bytes], told: IO[bytes]) -> None:
        try:
            with told:
                code = process.wait()
                if code == -signal.SIGTERM:  # which whoever stops a service sends to all of its processes
                    self._ending.wait(HEARD_TIMEOUT_S)
                self._settle(identity, _ended(code, told))
        finally:
            with self._ended:
                del self._processes[identity]
                self._ended.notify_all()

    def _settle(self, identity: str, problem: str) -> None:
        """See to it that the record of an operation says how that ended, also on a disk that is full until later."""
        complained = False
        while not self._ending.is_set():
            try:
                self._write_end(identity, problem)
                if not _is_unfinished(operations.find(self.directory, identity)):
                    return
            except NoSuchOperation:  # removed since
                return
            except OSError as error:
                if not complained:
                    log.error("how %s ended can't be written yet: %s", identity, error)
                complained = True
            self._ending.wait(SETTLE_EVERY_S)

    def _write_end(self, identity: str, problem: str) -> None:
        """Write how an operation ended where its process did not."""
        with suppress(OperationFailed, OperationError):  # the first is ours; the other: it did write it
            if identity in self._cancelled:
                operations.cancel(self.directory, identity)
                return
            with operations.running(self.directory, identity) as recorder:
                raise OperationFailed(f"{problem}; {self._again(recorder.operation)}")

    def _again(self, operation: Operation) -> str:
        """How to go on with what was killed: a request has no word for the run of a training to go on with."""
        again = "the same request again, by another request_id,"
        if operation.kind in LEARNING and (self.store.runs / operation.id).exists():  # called as the operation
            resume = f"kinsight {operation.kind} --resume {operation.id}"
            return f"{resume} on the server's machine goes on where it was, and {again} begins anew"
        return f"{again} {'begins anew' if operation.kind in LEARNING else 'goes on where it was'}"

    def _end(self) -> None:
        with self._starting:  # who is about to start one sees that we are ending
            processes = list(self._processes.values())
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _is_unfinished(operation: Operation) -> bool:
    """Whether it waits for a process, or lost the one that it had."""
    return operation.state in ("queued", "interrupted")


def _at_work(known: Sequence[Operation]) -> list[Operation]:
    """Those that a process works on, or is to."""
    # Only servers give request ids: what waits for a process is waited for by this one or another of this server.
    return [one for one in known if one.state == "running" or (_is_unfinished(one) and one.request_id)]


def _builds(at_work: Sequence[Operation], index: str) -> list[str]:
    return [one.id for one in at_work if one.kind in BUILDS and one.index == index]


def _exclude(one: Operation, other: Operation) -> bool:
    """Whether two can't run at the same time: both would build the same index, or both learn."""
    if _learns(one.kind, one.arguments) and _learns(other.kind, other.arguments):
        return True
    return one.kind in BUILDS and other.kind in BUILDS and one.index == other.index


def _learns(kind: str, words: Sequence[str]) -> bool:
    return kind in LEARNING or "--learn" in words or "--finetune" in words


def _check_same(operation: Operation, arguments: Sequence[str]) -> None:
    if _without_store(operation.arguments) != _without_store(arguments):
        raise RequestReused(
            f"request id {operation.request_id!r} came before with another request, operations/{operation.id}; "
            "use a new id"
        )


def _without_store(arguments: Sequence[str]) -> Sequence[str]:
    """Words without the path of the store, which may be spelled, and lie, otherwise than when they were asked for."""
    place = len(arguments) - arguments[::-1].index("--store") - 1
    return (*arguments[:place], *arguments[place + 2 :])


def _ended(code: int, told: IO[bytes]) -> str:
    if code < 0:
        return f"its process was killed by signal {-code} ({signal.strsignal(-code)})"
    told.seek(0)
    last = told.read().decode(errors="replace").strip()[-_TOLD_CHARACTERS:]
    return f"its process ended with exit code {code}: {last or 'it said nothing'}"
