"""The server: listens, watches the store, and shuts down without losing a request.

CannotListen   the address is malformed, unknown, not of this machine, not permitted, or taken
StoreServed    another process serves the store
"""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import uvloop
from google.longrunning import operations_pb2, operations_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from kinsight.v1 import (
    index_service_pb2,
    index_service_pb2_grpc,
    item_service_pb2,
    item_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
)

from indexer.catalog_file import is_read_only
from indexer.locks import Held, hold
from indexer.store import Store
from server import reflection
from server.admission import Admission
from server.folders import Folders
from server.indexes import Indexes
from server.jobs import Jobs
from server.news import News
from server.service_index import IndexService
from server.service_items import ItemService
from server.service_model import ModelService
from server.service_operations import OperationsService
from server.service_search import SearchService
from server.workers import Workers

SERVICES = tuple(
    service.full_name
    for file in (search_service_pb2, item_service_pb2, index_service_pb2, model_service_pb2, operations_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)
MAX_MESSAGE_BYTES = 32 * 2**20  # a 100-megapixel JPEG fits; gRPC answers RESOURCE_EXHAUSTED beyond it
MAX_PORT = 65_535
WATCH_INTERVAL_S = 1.0
NOTICE_S = 0.2  # between saying NOT_SERVING and closing the door, so that who watches health hears it
DRAIN_TIMEOUT_S = 10.0  # requests in progress may take this long; then they are cancelled
HARD_STOP_S = 5.0  # on top of it, should the cancelled ones hang
NO_FOLDERS = Folders()

_REFUSED = {
    errno.EADDRINUSE: "it is taken; end what listens there, or use another port (0 takes a free one)",
    errno.EADDRNOTAVAIL: "it is not an address of this machine; use one that is, 0.0.0.0 for all of them",
    errno.EACCES: "this user may not listen there; use a port from 1024 on",
}

log = logging.getLogger(__name__)


class CannotListen(OSError):
    """The address can't be listened on; the message names it."""


class StoreServed(OSError):
    """Another process serves the store; the message names it."""


class Checks(health.aio.HealthServicer):
    """The health of each service; grpcio's own lacks `List`, which reflection offers, and logs a stack for a call."""

    async def List(  # noqa: N802  gRPC's name
        self,
        request: health_pb2.HealthListRequest,  # noqa: ARG002  has no fields
        context: grpc.aio.ServicerContext[object, object],
    ) -> health_pb2.HealthListResponse:
        """Answers Health.List: what Check says of every service."""
        asked = {name: health_pb2.HealthCheckRequest(service=name) for name in ("", *SERVICES)}
        return health_pb2.HealthListResponse(
            statuses={name: await self.Check(one, context) for name, one in asked.items()}
        )


@dataclass(frozen=True)
class Running:
    """A server that was started, with the parts that its end needs."""

    grpc: grpc.aio.Server
    port: int
    health: health.aio.HealthServicer
    indexes: Indexes
    admission: Admission
    workers: Workers
    jobs: Jobs
    watch: asyncio.Task[None]


def run(
    store: Store, *, listen: str, index: str | None, ready: Callable[[int], None], folders: Folders = NO_FOLDERS
) -> None:
    """`serve` on an event loop of its own, uvloop's, which answers more queries with less of the processor."""
    uvloop.run(serve(store, listen=listen, index=index, ready=ready, folders=folders))


async def serve(
    store: Store, *, listen: str, index: str | None, ready: Callable[[int], None], folders: Folders
) -> None:
    """Serve the active versions of a store's indexes until SIGTERM or SIGINT, then drain.

    Args:
        store: where the indexes and models are; may be empty, and is watched for what appears.
        listen: `host:port`; port 0 takes a free one.
        index: serve only this index; all when None.
        ready: called with the port once requests are answered.
        folders: that requests may read from and write to.

    Raises:
        CannotListen: the address is malformed, unknown, not of this machine, not permitted, or taken.
        StoreServed: another process serves the store.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    with sole_server(store):
        running = await start(store, listen=listen, index=index, folders=folders)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        await asyncio.to_thread(running.jobs.resume)
        ready(running.port)
        await stopped.wait()
        await drain(running)


async def start(
    store: Store,
    *,
    listen: str,
    index: str | None = None,
    admission: Admission | None = None,
    folders: Folders = NO_FOLDERS,
    news: News | None = None,
) -> Running:
    """Open the indexes and answer requests on this event loop; `drain` ends it.

    Args:
        store: as of `serve`, like what follows.
        listen: `host:port`; port 0 takes a free one.
        index: serve only this index; all when None.
        admission: which requests are let in.
        folders: that requests may read from and write to.
        news: of a server of several processes, which share their port.
    """
    news = news or News.alone()
    indexes, admission, jobs = Indexes(store, index, news), admission or Admission(), Jobs(store)
    server = grpc.aio.server(
        options=[
            # Another server on the port must fail, not take half of the requests.
            ("grpc.so_reuseport", int(news.several)),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ]
    )
    port = _bind(server, listen)
    _warn_if_open(listen)
    await asyncio.to_thread(indexes.refresh)
    if not indexes.ready:
        log.warning("%s has no %s to search yet; it is served once there is", store.root, _named(index))
    workers, checks = Workers.start(indexes), Checks()
    _add_services(server, indexes, admission, workers, jobs, folders)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable(server, [*SERVICES, health.SERVICE_NAME])
    await _tell(checks, indexes)
    await server.start()
    watch = asyncio.create_task(_watch(indexes, checks))
    return Running(server, port, checks, indexes, admission, workers, jobs, watch)


def _named(index: str | None) -> str:
    return "index" if index is None else f"index {index}"


def _add_services(
    server: grpc.aio.Server,
    indexes: Indexes,
    admission: Admission,
    workers: Workers,
    jobs: Jobs,
    folders: Folders,
) -> None:
    # The generated functions have no types.
    search_service_pb2_grpc.add_SearchServiceServicer_to_server(  # type: ignore[no-untyped-call]
        SearchService(indexes, admission, workers), server
    )
    item_service_pb2_grpc.add_ItemServiceServicer_to_server(  # type: ignore[no-untyped-call]
        ItemService(indexes, admission, workers, jobs, folders), server
    )
    index_service_pb2_grpc.add_IndexServiceServicer_to_server(  # type: ignore[no-untyped-call]
        IndexService(indexes, admission, jobs, folders), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(  # type: ignore[no-untyped-call]
        ModelService(indexes, admission, jobs, folders), server
    )
    operations_pb2_grpc.add_OperationsServicer_to_server(OperationsService(indexes, admission, jobs), server)


@contextlib.contextmanager
def sole_server(store: Store) -> Iterator[None]:
    """Hold a store, which is made if need be: two servers would each search without what the other was just given.

    Raises:
        StoreServed: another process holds it.
    """
    store.root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            if not is_read_only(store.root):  # where nobody can write, any number of servers see the same
                stack.enter_context(hold(store.root / ".server"))
        except Held as error:
            raise StoreServed(
                f"process {error.pid} serves {store.root} already; end it first, or serve another store"
            ) from error
        yield


async def drain(running: Running) -> None:
    """Let requests in progress finish, refuse new ones with UNAVAILABLE, and stop."""
    log.info("shutting down")
    running.jobs.drain()
    running.watch.cancel()
    await running.health.enter_graceful_shutdown()
    running.admission.drain()
    await asyncio.sleep(NOTICE_S)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(running.grpc.stop(DRAIN_TIMEOUT_S), DRAIN_TIMEOUT_S + HARD_STOP_S)
    await running.workers.close()
    await running.jobs.close()
    running.indexes.close()


async def _watch(indexes: Indexes, checks: health.aio.HealthServicer) -> None:
    told = ""
    while True:
        await asyncio.sleep(WATCH_INTERVAL_S)
        try:
            await asyncio.to_thread(indexes.refresh)
            if told:
                log.info("the store can be read again")
            told = ""
        except Exception as error:  # the store itself, a network disk say, or there is no thread to be had
            if told != str(error):
                stack = None if isinstance(error, OSError) else error
                log.error("the store can't be read; what is open is served on: %s", error, exc_info=stack)
            told = str(error)
        await _tell(checks, indexes)


async def _tell(checks: health.aio.HealthServicer, indexes: Indexes) -> None:
    status = health_pb2.HealthCheckResponse.SERVING if indexes.ready else health_pb2.HealthCheckResponse.NOT_SERVING
    for name in ("", *SERVICES):
        await checks.set(name, status)


def _bind(server: grpc.aio.Server, listen: str) -> int:
    port_of(listen)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise CannotListen(f"can't listen on {listen}: {why_not(listen)}") from error
    return port


def port_of(listen: str) -> int:
    """The port of an address `host:port`.

    Raises:
        CannotListen: it has none; gRPC would take 443, the remainder by 65,536, or what /etc/services has by a name.
            Or it is an IPv6 address whose end may be meant as the port.
    """
    host, colon, port = listen.rpartition(":")
    if not (colon and port.isascii() and port.isdecimal()):
        raise CannotListen(f"can't listen on {listen}: {port!r} is no port; write HOST:PORT, such as 127.0.0.1:50051")
    if ":" in host and not host.startswith("["):
        raise CannotListen(f"can't listen on {listen}: an IPv6 address stands in brackets, such as [::1]:{port}")
    if int(port) > MAX_PORT:
        raise CannotListen(f"can't listen on {listen}: a port is 1 to {MAX_PORT}, or 0 for a free one")
    return int(port)


def why_not(listen: str) -> str:
    """Why an address was refused, with the remedy: gRPC only logs it, so the system is asked again.

    Args:
        listen: `host:port`, whose port is one.
    """
    host, _, port = listen.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (socket.gaierror, UnicodeError):  # the second where it can't be a host's name at all
        return f"no host is known as {host!r}; use an address of this machine, 0.0.0.0 for all of them"
    except OSError as error:
        return _REFUSED.get(error.errno or 0, str(error))
    return "the system refused it a moment ago, and would take it now; try again"


def _warn_if_open(listen: str) -> None:
    host = listen.rpartition(":")[0].strip("[]")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        loopback = host == "localhost"
    if not loopback:
        log.warning("%s can be reached from other machines, and there is no authentication", listen)
