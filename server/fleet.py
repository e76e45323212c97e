"""A server of several processes on one port: the kernel shares connections out, each process answers its own.

One interpreter answers some 2,000 searches a second, whatever the machine: more cores take more of it. The processes
share nothing but the store, whose catalogues take one writer at a time, and counters (`server.news`), by which each
hears before a search that another one committed something. A version that one of them activates is served by the
others a second later.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import uvloop

from indexer.store import Store
from server import app
from server.app import CannotListen, port_of, sole_server, why_not
from server.folders import Folders
from server.news import News, shared_counters

RESTART_PAUSE_S = 1.0  # before a process that died is replaced: one that can't run is not to spin

_SPAWN = multiprocessing.get_context("spawn")  # gRPC does not survive a fork

log = logging.getLogger(__name__)


class ProcessFailed(OSError):
    """A process of the server ended before it could answer; its log says why."""


@dataclass(frozen=True)
class Share:
    """What one process needs to know of its server.

    Attributes:
        store, listen, index, folders: as of `server.app.serve`; the port is never 0.
        counters: of the server's news.
        number: of the process, from 0.
        resumes: whether it goes on with long work that was interrupted.
    """

    store: Store
    listen: str
    index: str | None
    folders: Folders
    counters: Any
    number: int
    resumes: bool


@dataclass(frozen=True)
class _Member:
    """A process of the server; it ends when its tether closes, as that also does where this process is killed."""

    share: Share
    process: SpawnProcess
    tether: Connection


def run(
    store: Store, *, listen: str, index: str | None, ready: Callable[[int], None], folders: Folders, processes: int
) -> None:
    """Serve a store with several processes until SIGTERM or SIGINT; then each drains as one alone does.

    A process that dies is replaced: what it had not answered fails, and its clients' next requests reach another.

    Args:
        store: as of `server.app.serve`, like what follows.
        listen: `host:port`; port 0 takes a free one.
        index: serve only this index; all when None.
        ready: called with the port once all processes answer.
        folders: that requests may read from and write to.
        processes: how many, at least 2.

    Raises:
        CannotListen, StoreServed: as of `server.app.serve`.
        ProcessFailed: a process ended before all were ready.
    """
    with sole_server(store), _reserve(listen) as reserved, _told_to_end() as end:
        os.environ["PYTHONSAFEPATH"] = "1"  # as -P does: what lies in this folder is not ours, whatever it is called
        port = reserved.getsockname()[1]
        address = f"{listen.rpartition(':')[0]}:{port}"
        counters = shared_counters(_SPAWN, processes)
        shares = [Share(store, address, index, folders, counters, place, place == 0) for place in range(processes)]
        members = [_start(share) for share in shares]
        try:
            for member in members:
                _await_ready(member)
            ready(port)
            while end not in wait([end, *(member.process.sentinel for member in members)]):
                if end in wait([end], timeout=RESTART_PAUSE_S):
                    break
                members = [member if member.process.is_alive() else _replaced(member) for member in members]
        finally:
            for member in members:
                member.tether.close()
            for member in members:
                member.process.join()


def _start(share: Share) -> _Member:
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_serve, args=(share, theirs), name=f"server-{share.number}")
    process.start()
    theirs.close()  # so that its end is seen here
    return _Member(share, process, ours)


def _await_ready(member: _Member) -> None:
    try:
        member.tether.recv()
    except EOFError:
        member.process.join()
        number, code = _end_of(member)
        why = "see its message above"
        if code == -signal.SIGKILL:  # it had no time for one
            why = "the system kills one so where memory runs out: use fewer --processes, or free some memory"
        raise ProcessFailed(
            f"process {number} of the server ended with exit code {code} before it could answer; {why}"
        ) from None


def _replaced(member: _Member) -> _Member:
    log.error("process %d of the server ended (exit code %s): starting another one", *_end_of(member))
    member.tether.close()
    try:
        return _start(replace(member.share, resumes=True))
    except OSError as error:  # of memory or processes, which there may be again in a moment; the others answer
        log.error("process %d of the server can't be started again yet: %s", member.share.number, error)
        return member


def _end_of(member: _Member) -> tuple[int, int | None]:
    return member.share.number, member.process.exitcode


@contextmanager
def _told_to_end() -> Iterator[Connection]:
    """A connection that can be waited on for SIGTERM or SIGINT."""
    end, teller = _SPAWN.Pipe(duplex=False)
    before = {
        number: signal.signal(number, lambda *_: teller.send(None)) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reserve(listen: str) -> socket.socket:
    """A socket that holds the address without listening: only this server's processes can take its port."""
    host, port = listen.rpartition(":")[0].strip("[]"), port_of(listen)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)  # fails where anybody listens, also one who would share the port
        reserved = socket.socket(family, kind, protocol)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(address)
    except (OSError, UnicodeError) as error:  # the second where it can't be a host's name at all
        raise CannotListen(f"can't listen on {listen}: {why_not(listen)}") from error
    return reserved


def _serve(share: Share, tether: Connection) -> None:
    """One process of the server."""
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s %(levelname)s process {share.number}: %(message)s")
    # A terminal sends the one to all processes, and who stops a service the other; the tether ends this one, drained.
    # The second is not ignored, which its children would inherit.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)
    uvloop.run(_serve_until_closed(share, tether))


async def _serve_until_closed(share: Share, tether: Connection) -> None:
    closed = asyncio.Event()
    news = News(share.counters, share.number)
    running = await app.start(share.store, listen=share.listen, index=share.index, folders=share.folders, news=news)
    asyncio.get_running_loop().add_reader(tether.fileno(), closed.set)
    if share.resumes:
        await asyncio.to_thread(running.jobs.resume)
    tether.send(None)
    await closed.wait()
    await app.drain(running)
