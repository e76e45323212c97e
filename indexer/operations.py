"""Long operations of a store: one record each, written by the process that works and read by everybody.

    operations/<id>.json   the record, replaced atomically; kept for a day or more after the operation ended
    operations/<id>.lock   held by the process that works, as long as it lives

A record that says `running` while nobody holds its lock is of a process that was killed: it reads `interrupted`, and
the same arguments go on where it was.

OperationError
├── NoSuchOperation    the store has no record of that id, or it can't be read
├── OperationRunning   another process works on it
└── OperationEnded     it ended, so there is nothing to cancel or to resume
"""

import dataclasses
import errno
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, get_args

from indexer.locks import Held, hold, interrupt, is_held
from indexer.manifest import listed, write_atomically

State = Literal["queued", "running", "interrupted", "done", "failed", "cancelled"]
UNFINISHED: tuple[State, ...] = ("queued", "running", "interrupted")

WRITE_EVERY_S = 0.5  # a record is for people to watch; each write of it waits for the disk
TAKEN_UP_S = 10.0  # in which who took an operation up has written its number, also to a slow disk
REMEMBERED = timedelta(days=1)  # for which a repeated request finds its operation, however many followed
KEPT = 200  # of the newest records, however old; others that are not to be remembered go when another begins
_STAMP = "%Y%m%d-%H%M%S-%f"  # of the time when an operation began, with which its id begins

_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}")


class OperationError(Exception):
    """An operation can't be shown, cancelled or resumed; the message says why."""


class NoSuchOperation(OperationError):
    """A store has no readable record of an operation of that id."""


class OperationRunning(OperationError):
    """A process works on the operation now."""


class OperationEnded(OperationError):
    """The operation has ended."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What is known of a long operation.

    Attributes:
        id: sorts by time of beginning.
        kind: what it does, such as `rebuild`.
        index: what it does it to; empty where that is no index.
        arguments: of the `kinsight` command that does it; the same ones resume it.
        state: `queued` before a process took it up, `interrupted` where that process was killed.
        stage, done, total: what it is at.
        rate: of that stage, a second.
        eta_s: until that stage is done; None where that can't be told yet, and where nobody works on it.
        warnings: what its process has found wrong so far, each a sentence.
        started, updated: times in UTC, ISO 8601.
        pid: of the process that works on it, or did.
        since: the last change of its index's catalogue before it began; None where that is of no weight.
        error: why it failed; empty otherwise.
        error_types: names of that exception's class and those it is derived from; of the system's, its errno's too.
        request_id: whose repetition is to find this operation; empty for none.
        result: of one that is done, as its command's `--json` prints it.
    """

    id: str
    kind: str
    index: str
    arguments: tuple[str, ...]
    state: State = "queued"
    stage: str = ""
    done: int = 0
    total: int = 0
    rate: float = 0.0
    eta_s: float | None = None
    warnings: tuple[str, ...] = ()
    started: str = ""
    updated: str = ""
    pid: int = 0
    since: int | None = None
    error: str = ""
    error_types: tuple[str, ...] = ()
    request_id: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)

    def words(self, root: Path) -> list[str]:
        """Of the `kinsight` command that works on it in a store, which may lie elsewhere than when it was begun."""
        return [*self.arguments, "--store", str(root.absolute()), "--operation", self.id]


class Recorder:
    """Writes the record of an operation while it runs."""

    def __init__(self, directory: Path, operation: Operation) -> None:
        self.operation = operation
        self._directory = directory
        self._stage_began = (time.monotonic(), 0)
        self._written_at = -WRITE_EVERY_S

    def progress(self, stage: str, done: int, total: int) -> None:
        """Note that so much of a stage is done; written at most every `WRITE_EVERY_S`, and when a stage begins.

        Where it can't be written, the work goes on unwatched; how it ends is written, or is an error.
        """
        now = time.monotonic()
        began_at, first = self._stage_began
        begins = stage != self.operation.stage or done < self.operation.done
        if begins:  # a resumed stage begins above zero: only what was done since tells the rate
            self._stage_began = began_at, first = now, done
        rate = (done - first) / (now - began_at) if now > began_at else 0.0
        eta_s = (total - done) / rate if rate > 0 else None
        known = {"stage": stage, "done": done, "total": total, "rate": rate, "eta_s": eta_s}
        self.operation = dataclasses.replace(self.operation, **known)  # type: ignore[arg-type]
        if begins or now - self._written_at >= WRITE_EVERY_S:
            self._written_at = now
            with suppress(OSError):  # a disk that is full for a moment must not end the work of hours
                self.write()

    def warn(self, text: str) -> None:
        """Note what was found wrong, and write it at once where that can be."""
        self.operation = dataclasses.replace(self.operation, warnings=(*self.operation.warnings, text))
        with suppress(OSError):
            self.write()

    def begun_since(self, sequence: int) -> int:
        """The last change of the index before the work began, which is this one unless it goes on with some."""
        if self.operation.since is None:
            self.operation = dataclasses.replace(self.operation, since=sequence)
            self.write()
        return self.operation.since or 0

    def end(self, state: State, **known: Any) -> None:
        """Write how it ended."""
        self.operation = dataclasses.replace(self.operation, state=state, eta_s=None, **known)
        self.write()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Keep what it resulted in, to be written when it ends."""
        self.operation = dataclasses.replace(self.operation, result=result)

    def write(self) -> None:
        """Put the record on the disk."""
        self.operation = dataclasses.replace(self.operation, updated=_now())
        _write(self._directory, self.operation)


def queue(directory: Path, kind: str, index: str, arguments: Sequence[str], *, request_id: str = "") -> Operation:
    """Record an operation that a process is about to be started for.

    Args:
        directory: of a store's operations.
        kind: what it does.
        index: what it does it to; empty where that is no index.
        arguments: of the `kinsight` command, to which `--operation ID` is to be added.
        request_id: kept in the record.
    """
    identity = "-".join(part for part in (_stamp(datetime.now(UTC)), kind, index, secrets.token_hex(2)) if part)
    now, words = _now(), tuple(arguments)
    operation = Operation(
        id=identity, kind=kind, index=index, arguments=words, started=now, updated=now, request_id=request_id
    )
    directory.mkdir(parents=True, exist_ok=True)
    _forget_oldest(directory)
    _write(directory, operation)
    return operation


def withdraw(directory: Path, identity: str) -> None:
    """Remove the record of a queued operation for which no process could be started."""
    _remove(directory, identity)


@contextmanager
def running(directory: Path, identity: str) -> Iterator[Recorder]:
    """Work on a queued or interrupted operation; how the block ends is how the operation ended.

    Raises:
        NoSuchOperation: there is no record of it.
        OperationRunning: another process works on it.
        OperationEnded: it ended before.
    """
    path = _lock(directory, identity)
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(path))
        except Held as error:
            raise OperationRunning(f"process {error.pid} works on {identity}; cancel it first") from error
        found = _read(directory, identity)
        if found.state not in UNFINISHED:
            raise OperationEnded(f"{identity} is {found.state}: start it anew")
        begun = dataclasses.replace(found, state="running", pid=os.getpid(), error="", error_types=(), warnings=())
        recorder = Recorder(directory, begun)
        with _end_recorded(recorder):
            recorder.write()  # who reads the process's number there may interrupt it at once
            yield recorder


def find(directory: Path, identity: str) -> Operation:
    """The operation of this id; raises NoSuchOperation."""
    operation = _read(directory, identity)
    if operation.state == "running" and not is_held(_lock(directory, identity)):
        # It may have ended between the two looks.
        operation = _read(directory, identity)
        if operation.state == "running":
            return dataclasses.replace(operation, state="interrupted", rate=0.0, eta_s=None)
    return operation


def list_operations(directory: Path) -> list[Operation]:
    """Every operation of a store, oldest first; damaged records are left out.

    Raises:
        OSError: the directory can't be read.
    """
    return [*operations_after(directory, "")]


def operations_after(directory: Path, identity: str) -> Iterator[Operation]:
    """The operations whose ids follow this one, as of `list_operations`; each is read when it is asked for."""
    return filter(None, (_found(directory, one) for one in _identities(directory) if one > identity))


class Ledger:
    """The operations of a store, for who lists them again and again: those that ended are read once."""

    def __init__(self, directory: Path) -> None:
        """Nothing is read yet."""
        self._directory = directory
        self._ended: dict[str, Operation] = {}

    def operations(self) -> list[Operation]:
        """As of `list_operations`, without the results; one thread at a time may call it."""
        listed = (self._ended.get(one) or _found(self._directory, one) for one in _identities(self._directory))
        found = [dataclasses.replace(one, result={}) if one.result else one for one in listed if one is not None]
        self._ended = {one.id: one for one in found if one.state not in UNFINISHED}
        return found


def cancel(directory: Path, identity: str) -> Operation:
    """Interrupt the process that works on an operation as Ctrl-C would; one that nobody works on is just marked.

    The process ends by itself, soon; until then the operation reads `running`.

    Raises:
        NoSuchOperation: there is no record of it.
        OperationEnded: it ended before.
        OperationRunning: no process of this system works on it.
    """
    operation, lock = _unfinished(find(directory, identity)), _lock(directory, identity)
    give_up_s = time.monotonic() + TAKEN_UP_S
    while True:
        try:
            with hold(lock):
                operation = _unfinished(_read(directory, identity))  # nobody ends it while the lock is ours
                operation = dataclasses.replace(operation, state="cancelled", eta_s=None, updated=_now())
                _write(directory, operation)
                return operation
        except Held as error:
            operation = _unfinished(find(directory, identity))
            # Who has just taken the lock up has not written the record yet: its number is 0, or a dead process's.
            if error.pid == str(operation.pid) and operation.pid != os.getpid() and interrupt(operation.pid, lock):
                return operation
            if time.monotonic() > give_up_s:
                raise OperationRunning(
                    f"process {error.pid} works on {identity}, but none of that number here: cancel it where that "
                    "runs, in another container or on another machine"
                ) from error


def delete(directory: Path, identity: str) -> None:
    """Remove the record of an operation that ended.

    Raises:
        NoSuchOperation: there is no record of it.
        OperationRunning: it has not ended.
    """
    operation = find(directory, identity)
    if operation.state in UNFINISHED:
        raise OperationRunning(f"{identity} is {operation.state}; cancel it first")
    _remove(directory, identity)


def types_of(error: BaseException) -> tuple[str, ...]:
    """What a record has as the `error_types` of an exception, and with them those that it has itself.

    These are of another process, whose error ended the work of this one.
    """
    names = tuple(kind.__name__ for kind in type(error).__mro__)
    system = errno.errorcode.get(error.errno or 0) if isinstance(error, OSError) else None
    return (*names, *([system] if system else []), *getattr(error, "error_types", ()))


def _unfinished(operation: Operation) -> Operation:
    if operation.state not in UNFINISHED:
        raise OperationEnded(f"{operation.id} is {operation.state} already")
    return operation


@contextmanager
def _end_recorded(recorder: Recorder) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        cancelled = isinstance(error, KeyboardInterrupt)
        told = "" if cancelled else str(error) or type(error).__name__
        try:
            recorder.end("cancelled" if cancelled else "failed", error=told, error_types=types_of(error))
        except OSError as unwritten:  # the disk that is full is mostly why it failed
            error.add_note(f"the record of {recorder.operation.id} could not be written: {unwritten}")
        raise
    try:
        recorder.end("done")
    except OSError as error:
        identity = recorder.operation.id
        raise OSError(f"{identity} is done, but its record can't be written: {error}; check the disk") from error


def _forget_oldest(directory: Path) -> None:
    long_ago = datetime.now(UTC) - REMEMBERED
    # However many there are: what began since then is not read.
    old = takewhile(lambda identity: identity < _stamp(long_ago), _identities(directory)[:-KEPT])
    for operation in filter(None, (_found(directory, identity) for identity in old)):
        if operation.state not in UNFINISHED and operation.updated < _iso(long_ago):
            _remove(directory, operation.id)


def _identities(directory: Path) -> list[str]:
    return [name.removesuffix(".json") for name in listed(directory) if name.endswith(".json")]


def _found(directory: Path, identity: str) -> Operation | None:
    """The operation of this id; None where it was removed meanwhile, or is damaged: `find` of it says so."""
    try:
        return find(directory, identity)
    except NoSuchOperation:
        return None


def _remove(directory: Path, identity: str) -> None:
    for path in (directory / f"{identity}.json", _lock(directory, identity)):
        path.unlink(missing_ok=True)


def _lock(directory: Path, identity: str) -> Path:
    if not _ID.fullmatch(identity):
        raise NoSuchOperation(f"{identity!r} is not the id of an operation; list them to see the ids")
    return directory / f"{identity}.lock"


def _write(directory: Path, operation: Operation) -> None:
    data = json.dumps(dataclasses.asdict(operation), indent=1).encode() + b"\n"
    write_atomically(directory / f"{operation.id}.json", data)


def _read(directory: Path, identity: str) -> Operation:
    path = _lock(directory, identity).with_suffix(".json")
    try:
        fields = {"warnings": (), **json.loads(path.read_bytes())}  # an older Kinsight kept none
        lists = {name: tuple(fields[name]) for name in ("arguments", "error_types", "warnings")}
        operation = Operation(**{**fields, **lists})
    except FileNotFoundError as error:
        known = ", ".join(sorted(path.stem for path in directory.glob("*.json"))[-5:])
        raise NoSuchOperation(f"no operation {identity!r} in {directory}; the newest: {known or 'none'}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise NoSuchOperation(f"{path} is not the record of an operation: {error}; remove it") from error
    if operation.state not in get_args(State):
        raise NoSuchOperation(f"{path} has the state {operation.state!r}; remove it")
    return operation


def _now() -> str:
    return _iso(datetime.now(UTC))


def _stamp(moment: datetime) -> str:
    return moment.strftime(_STAMP)[:-3]  # milliseconds


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")
