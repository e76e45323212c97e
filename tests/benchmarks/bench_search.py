"""Search by embedding over gRPC against the same search in-process: `python tests/benchmarks/bench_search.py`.

100,000 × 128 clustered embeddings, top_k 10, at the least nprobe with recall@10 >= 0.99. The clients are processes of
their own, on the same machine as the server: ours, one query after the other over a stream, with a call for each, and
in batches of 100; and h2load (of Debian's nghttp2-client) where it is installed, which stands for clients in C, Go or
Rust, that take less of the cores they share with the server. An echo, a gRPC server that answers the same message
without looking at the query, is the ceiling of any Python server of one process there. A process of 8 threads or 8
tasks is measured with one client for all, which sends their searches together, and with a client for each, which does
not. All of one server is measured in turns, and the rows are medians. Prints a table and one JSON line; takes eight
minutes.
"""

import asyncio
import json
import logging
import multiprocessing
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import cache
from itertools import chain, cycle
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import uvloop
from kinsight.v1.search_service_pb2 import (
    SearchRequest,
    SearchResponse,
    StreamSearchRequest,
    StreamSearchResponse,
)
from kinsight.v1.search_service_pb2 import SearchResult as SearchResultMessage
from kinsight.v1.search_service_pb2_grpc import SearchServiceServicer, add_SearchServiceServicer_to_server
from kinsight_client import AsyncClient, Client, Embedding, KinsightError, SearchResult
from kinsight_client.search import SearchCalls

from indexer.store import Store
from indexer.version import Version, open_version

Floats = npt.NDArray[np.float32]
Query = dict[str, Any]  # arguments of Client.search
Row = dict[str, float]

COUNT, DIM, CLUSTERS, QUERIES, TOP_K, BATCH = 100_000, 128, 1_000, 2_000, 10, 100
RECALL = 0.99
SETTING = "GRPC_EXPERIMENTS"  # of the environment, see server/__init__.py
PROCESSES = os.cpu_count() or 1
AT_ONCE, TURNS = 8, 3  # threads or tasks of a process, and how often each row is measured
H2LOAD = shutil.which("h2load")
SECONDS = float(os.environ.get("BENCH_SECONDS", "5"))  # of each measurement


def main() -> None:
    """Build, measure in-process, measure with 1 and 8 clients, print."""
    # Not imported above, because the server's setting of gRPC comes with it: the clients, which import this file too,
    # are to have gRPC as it comes.
    from tests.serving import make_model, make_version

    embeddings, queries = clustered(np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as root:
        store = Store(Path(root))
        # Searching by embedding never runs the model, but a server refuses an index whose model it lacks.
        model = make_model(store, dim=DIM)
        items = [f"class {row % 1000:04d}/image {row:06d}.jpg" for row in range(COUNT)]
        version = open_version(make_version(store, "clustered", 1, model, items, embeddings))
        nprobe, recall = operating_point(version, queries)
        in_process = measure_in_process(version, queries, nprobe)
        searches = [{"embedding": Embedding(model, query), "top_k": TOP_K, "nprobe": nprobe} for query in queries]
        served = {
            "echo": measure_served(run_echo, model, searches),
            "Search": measure_served(run_server, root, searches, batches=True, shared=True),
            f"Search, {PROCESSES} processes": measure_served(run_fleet, root, searches, batches=True),
        }
    print(f"{COUNT:,} x {DIM}, top_k {TOP_K}, nprobe {nprobe}, recall@10 {recall:.4f}, {os.cpu_count()} cores")
    print_rows(in_process, served)
    print(json.dumps({"recall_at_10": recall, "nprobe": nprobe, "in_process": in_process, "served": served}))


def clustered(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Embeddings (N, D) and queries (Q, D) around the same 1,000 centres, unit length."""
    centres = rng.normal(size=(CLUSTERS, DIM))
    rows = centres[rng.integers(0, CLUSTERS, COUNT + QUERIES)] + 0.6 * rng.normal(size=(COUNT + QUERIES, DIM))
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit[:COUNT], unit[COUNT:]


def operating_point(version: Version, queries: Floats) -> tuple[int, float]:
    """The least power of two as nprobe that reaches the recall at this version's k_factor, and its recall."""
    _, exact = version.search(queries, TOP_K, exact=True)
    recall = 0.0
    for nprobe in (1, 2, 4, 8, 16, 32, 64, 128):
        _, found = version.search(queries, TOP_K, nprobe=nprobe)
        recall = float(np.mean([len(np.intersect1d(a, b)) / TOP_K for a, b in zip(exact, found, strict=True)]))
        if recall >= RECALL:
            return nprobe, recall
    sys.exit(f"recall@10 is {recall:.4f} at best, below {RECALL}: nothing to compare")


def measure_in_process(version: Version, queries: Floats, nprobe: int) -> dict[str, float]:
    """Queries/s of one thread: the search of one query at a time and of 16, each with the lookup of its items."""
    rates = {}
    for batch in (1, 16):
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < SECONDS / 2:
            first = done % (QUERIES - batch)
            _, rows = version.search(queries[first : first + batch], TOP_K, nprobe=nprobe)
            version.items(rows.ravel())
            done += batch
        rates[f"batches of {batch}"] = done / (time.perf_counter() - start)
    return rates


def run_server(root: str, port: Connection) -> None:
    """The process of a server of one."""
    from server.app import run

    logging.disable()
    run(Store(Path(root)), listen="127.0.0.1:0", index=None, ready=port.send)


def run_fleet(root: str, port: Connection) -> None:
    """The first process of a server with one for each core."""
    from server.app import NO_FOLDERS
    from server.fleet import run

    logging.disable()
    store = Store(Path(root))
    run(store, listen="127.0.0.1:0", index=None, ready=port.send, folders=NO_FOLDERS, processes=PROCESSES)


class Echo(SearchServiceServicer):
    """Answers as many hits as asked for, always the same ones."""

    def __init__(self, model: str) -> None:
        """The answer names `model`."""
        hits = [{"item": "class 0001/image 000001.jpg", "similarity": 0.5}] * TOP_K
        self._answer = SearchResponse(hits=hits, index="clustered", version=1, model=model)

    async def Search(self, request: SearchRequest, context: object) -> SearchResponse:  # noqa: N802 - gRPC's name
        """The answer."""
        return self._answer

    async def StreamSearch(  # noqa: N802 - gRPC's name
        self, requests: AsyncIterator[StreamSearchRequest], context: object
    ) -> AsyncIterator[StreamSearchResponse]:
        """The answer to each of a message's queries."""
        async for message in requests:
            yield StreamSearchResponse(results=[SearchResultMessage(response=self._answer)] * len(message.requests))


def run_echo(model: str, port: Connection) -> None:
    """The echo's process."""

    async def serve() -> None:
        server = grpc.aio.server()
        number = server.add_insecure_port("127.0.0.1:0")
        add_SearchServiceServicer_to_server(Echo(model), server)  # type: ignore[no-untyped-call]
        await server.start()
        port.send(number)
        await server.wait_for_termination()

    uvloop.run(serve())


@cache
def server_setting() -> str:
    """The server's setting of gRPC, taken out of this process: its clients have gRPC as it comes."""
    import server  # noqa: F401 - sets it

    return os.environ.pop(SETTING)


def measure_served(
    target: Callable[[str, Connection], None],
    subject: str,
    queries: Sequence[Query],
    *,
    batches: bool = False,
    shared: bool = False,
) -> dict[str, Row]:
    """Start a server process, and measure it with 1 and with 8 clients of each kind."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    server = context.Process(target=target, args=(subject, theirs))
    os.environ[SETTING] = server_setting()  # gRPC reads it when it is imported
    server.start()
    del os.environ[SETTING]
    address = f"127.0.0.1:{mine.recv()}"
    served: dict[str, Row] = {}
    kinds = {"": run_client}
    if "embedding" in queries[0]:  # images go by calls anyway
        kinds[", a call a search"] = run_caller
    if batches:
        kinds[f", batches of {BATCH}"] = run_batch_client
    for clients in (1, 8):
        turns: dict[str, list[Row]] = {}
        for _ in range(TURNS):
            for how, client in kinds.items():
                row = measure_clients(client, address, server.pid or 0, queries, clients)
                turns.setdefault(f"{clients} clients{how}", []).append(row)
        served |= medians(turns)
        if H2LOAD:
            served[f"{clients} clients in C"] = measure_h2load(address, queries[0], clients)
    if shared:
        served |= measure_shared(address, server.pid or 0, queries)
    server.terminate()
    server.join()
    return served


def measure_clients(
    client: Callable[..., list[float]], target: str, server: int, queries: Sequence[Query], clients: int
) -> Row:
    """Queries/s of all clients together, the latency of a query or of its batch that a client sees, and the server's
    processor time of a query.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(clients, _remember, (context.Barrier(clients),)) as pool:
        arguments = [(target, queries[number::clients]) for number in range(clients)]
        before_s = cpu_s(server)
        latencies = np.concatenate([np.array(found) for found in pool.starmap(client, arguments, chunksize=1)])
        server_s = cpu_s(server) - before_s
    return {
        "queries_per_s": len(latencies) / SECONDS,
        "p50_ms": float(np.percentile(latencies, 50)) * 1000,
        "p99_ms": float(np.percentile(latencies, 99)) * 1000,
        "server_cpu_us": server_s / len(latencies) * 1e6,
    }


def measure_shared(target: str, server: int, queries: Sequence[Query]) -> dict[str, Row]:
    """As `measure_clients`, with the processor time of a query, of a process with 8 threads or tasks; medians."""
    rows: dict[str, list[Row]] = {}
    for _ in range(TURNS):
        for run, name in ((run_threads, "threads"), (run_tasks, "tasks")):
            for clients, what in ((AT_ONCE, ", a client each"), (1, " of one client")):
                row = measure_process(run, target, server, queries, clients)
                rows.setdefault(f"{AT_ONCE} {name}{what}", []).append(row)
    return medians(rows)


def medians(turns: dict[str, list[Row]]) -> dict[str, Row]:
    """Of each row, of all its turns."""
    return {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in turns.items()
    }


def measure_process(run: Callable[..., Any], target: str, server: int, queries: Sequence[Query], clients: int) -> Row:
    """One turn of a process that shares so many clients."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(int)  # the process has started, which is none of what it does
        before_s = cpu_s(server)
        latencies, client_s = pool.apply(run, (target, queries, clients))
        server_s = cpu_s(server) - before_s
    return {
        "queries_per_s": len(latencies) / SECONDS,
        "p50_ms": float(np.percentile(latencies, 50)) * 1000,
        "p99_ms": float(np.percentile(latencies, 99)) * 1000,
        "client_cpu_us": client_s / len(latencies) * 1e6,
        "server_cpu_us": server_s / len(latencies) * 1e6,
    }


def cpu_s(process: int) -> float:
    """The processor time that a process and its children have taken."""
    directory = Path(f"/proc/{process}")
    user, system = (directory / "stat").read_text().rpartition(")")[2].split()[11:13]
    children = (directory / f"task/{process}/children").read_text().split()
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") + sum(cpu_s(int(child)) for child in children)


def measure_h2load(target: str, query: Query, clients: int) -> Row:
    """As `measure_clients`, by clients in C that send one request after the other; h2load tells no percentiles."""
    request = SearchCalls(grpc.insecure_channel(target)).search(**query).request.SerializeToString()
    with tempfile.NamedTemporaryFile() as body:
        body.write(b"\0" + struct.pack(">I", len(request)) + request)
        body.flush()
        load = ("-c", str(clients), "-m", "1", "-D", str(int(SECONDS)), "--warm-up-time", "1", "-d", body.name)
        headers = ("-H", "content-type: application/grpc", "-H", "te: trailers")
        url = f"http://{target}/kinsight.v1.SearchService/Search"
        said = subprocess.run([H2LOAD or "", *load, *headers, url], capture_output=True, text=True, check=True).stdout
    rate, mean = re.search(r"([\d.]+) req/s", said), re.search(r"request: .*?\S+ +\S+ +([\d.]+)(us|ms)", said)
    errors = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", said)
    if not rate or not mean or not errors or any(map(int, errors.groups())):
        raise SystemExit(f"h2load: {said}")
    return {"queries_per_s": float(rate[1]), "mean_ms": float(mean[1]) * (1 if mean[2] == "ms" else 1e-3)}


def _remember(all_connected: Barrier) -> None:
    wait_for_all.barrier = all_connected  # type: ignore[attr-defined] # a pool's arguments can't carry one


def wait_for_all() -> None:
    """Return once all client processes have called it."""
    wait_for_all.barrier.wait()  # type: ignore[attr-defined]


def run_client(target: str, queries: Sequence[Query]) -> list[float]:
    """The client process: one search after the other for SECONDS; returns each one's seconds."""
    latencies: list[float] = []
    with Client(target) as client:
        client.search(**queries[0])
        wait_for_all()
        end = time.perf_counter() + SECONDS
        while (start := time.perf_counter()) < end:
            result = client.search(**queries[len(latencies) % len(queries)])
            latencies.append(time.perf_counter() - start)
            check(result)
    return latencies


def run_caller(target: str, queries: Sequence[Query]) -> list[float]:
    """As `run_client`, with a call for each search, as clients make them that were not written here."""
    latencies: list[float] = []
    with grpc.insecure_channel(target) as channel:
        calls = SearchCalls(channel)

        def search(query: Query) -> SearchResult:
            call = calls.search(**query)
            return call.read(call.method(call.request, timeout=10))

        search(queries[0])
        wait_for_all()
        end = time.perf_counter() + SECONDS
        while (start := time.perf_counter()) < end:
            result = search(queries[len(latencies) % len(queries)])
            latencies.append(time.perf_counter() - start)
            check(result)
    return latencies


def run_threads(target: str, queries: Sequence[Query], clients: int) -> tuple[list[float], float]:
    """The process of 8 threads that search for SECONDS with so many clients; each search's seconds, and the CPU's."""
    made = [Client(target) for _ in range(clients)]
    latencies: list[list[float]] = [[] for _ in range(AT_ONCE)]

    def search(number: int, client: Client) -> None:
        for query in cycle(queries[number::AT_ONCE]):
            if (start := time.perf_counter()) >= end:
                return
            check(client.search(**query))
            latencies[number].append(time.perf_counter() - start)

    for client in made:
        client.search(**queries[0])
    began_s, end = time.process_time(), time.perf_counter() + SECONDS
    threads = [threading.Thread(target=search, args=one) for one in zip(range(AT_ONCE), cycle(made), strict=False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _gathered(latencies, began_s)


def run_tasks(target: str, queries: Sequence[Query], clients: int) -> tuple[list[float], float]:
    """As `run_threads`, with tasks."""
    return asyncio.run(_run_tasks(target, queries, clients))


async def _run_tasks(target: str, queries: Sequence[Query], clients: int) -> tuple[list[float], float]:
    made = [AsyncClient(target) for _ in range(clients)]
    latencies: list[list[float]] = [[] for _ in range(AT_ONCE)]

    async def search(number: int, client: AsyncClient) -> None:
        for query in cycle(queries[number::AT_ONCE]):
            if (start := time.perf_counter()) >= end:
                return
            check(await client.search(**query))
            latencies[number].append(time.perf_counter() - start)

    for client in made:
        await client.search(**queries[0])
    began_s, end = time.process_time(), time.perf_counter() + SECONDS
    await asyncio.gather(*(search(*one) for one in zip(range(AT_ONCE), cycle(made), strict=False)))
    for client in made:
        await client.close()
    return _gathered(latencies, began_s)


def _gathered(latencies: Iterable[list[float]], began_s: float) -> tuple[list[float], float]:
    return [*chain.from_iterable(latencies)], time.process_time() - began_s


def check(result: SearchResult) -> None:
    """End the process unless all hits are there."""
    if len(result.hits) != TOP_K:
        raise SystemExit(f"{len(result.hits)} hits instead of {TOP_K}")


def run_batch_client(target: str, queries: Sequence[Query]) -> list[float]:
    """As `run_client`, in batches; a query's seconds are those of its batch."""
    latencies: list[float] = []
    options = {name: value for name, value in queries[0].items() if name != "embedding"}
    batch = [query["embedding"] for query in queries[:BATCH]]
    with Client(target) as client:
        client.search_many(embeddings=batch, **options)
        wait_for_all()
        end = time.perf_counter() + SECONDS
        while (start := time.perf_counter()) < end:
            results = client.search_many(embeddings=batch, **options)
            latencies += [time.perf_counter() - start] * len(results)
            if any(isinstance(result, KinsightError) or len(result.hits) != TOP_K for result in results):
                raise SystemExit(f"not {TOP_K} hits for each of a batch")
    return latencies


def print_rows(in_process: dict[str, float], served: dict[str, dict[str, Row]]) -> None:
    """The table; ratios are to the first row."""
    base = next(iter(in_process.values()))
    print(f"{'':56}{'queries/s':>10}{'of in-process':>15}")
    for name, rate in in_process.items():
        print(f"{'in-process, ' + name:56}{rate:10,.0f}{rate / base:15.2f}")
    for name, rows in served.items():
        for clients, row in rows.items():
            rate, label = row["queries_per_s"], f"gRPC {name}, {clients}"
            times = ", ".join(
                f"{key[:-3].replace('_', ' ')} {value:.{'2f' if unit == 'ms' else '0f'}} {unit}"
                for key, value in row.items()
                if (unit := key[-2:]) in ("ms", "us")
            )
            print(f"{label:56}{rate:10,.0f}{rate / base:15.2f}  {times}")


if __name__ == "__main__":
    main()
