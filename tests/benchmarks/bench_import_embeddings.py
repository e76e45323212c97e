"""What it costs to import a table of embeddings, and what becomes of it when it is killed in the middle.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_import_embeddings.py 1000000 [FOLDER]

One row of a hundred is bad, in each of the ways that there are. A server is asked for the import; it and the process
of the import are killed with half of the rows done, and the next server goes on. Every good row must be in the
catalogue then, written once, and every bad one in the table of failures. Needs 0.5 KB of disk a row, below FOLDER.
"""

import csv
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from kinsight_client import Client

from indexer.build import build
from indexer.catalog import Catalog
from indexer.store import Store
from tests.benchmarks.bench_import import BASE, DIM, NAME, bytes_of, children, serving, wait_for, write_pictures
from tests.serving import make_model

CHUNK, BAD_EVERY = 100_000, 100
KINDS = (
    *("no embedding", "too short", "NaN", "infinity", "zero", "another model"),
    *("no id", "long id", "no JSON", "no object", "too large", "again"),
)
GIVE_UP_S = 4 * 3600.0
Row = dict[str, Any]


def main(count: int, within: str | None) -> None:
    """Write the table, take each step, print."""
    with tempfile.TemporaryDirectory(dir=within) as root:
        store, model = prepared(Path(root))
        bad = write_table(Path(root) / "new.parquet", model, count)
        told({"rows": count, "bad": len(bad), **killed(store, Path(root), count, bad)})
        told(restarted(store))


def told(figures: Row) -> None:
    """Print what is known by now: ten million rows take a while."""
    print(json.dumps(figures), flush=True)


def prepared(root: Path) -> tuple[Store, str]:
    """A store with a small index."""
    store = Store(root / "store")
    model = make_model(store, dim=DIM)
    write_pictures(root / "base", BASE, seed=0, spoiled=False)
    build(NAME, root / "base" / "table.csv", model=model, store=store, progress=lambda *_: None)
    return store, model


def write_table(path: Path, model: str, count: int) -> list[str]:
    """Embeddings in the columns of an export; gives what each bad row is listed as."""
    rng, bad = np.random.default_rng(4), list[str]()
    kinds = {"item": pa.string(), "embedding": pa.list_(pa.float32()), "payload": pa.string(), "model": pa.string()}
    with pq.ParquetWriter(path, pa.schema(kinds)) as writer:
        for first in range(0, count, CHUNK):
            vectors = rng.standard_normal((min(CHUNK, count - first), DIM), np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            rows = range(first, first + len(vectors))
            columns: dict[str, list[Any]] = {
                "item": [name(row) for row in rows],
                "embedding": [*vectors],
                "payload": [f'{{"place": {row}}}' for row in rows],
                "model": [model] * len(rows),
            }
            for row in rows[BAD_EVERY // 2 :: BAD_EVERY]:
                one = {column: cells[row - first] for column, cells in columns.items()}
                spoil(KINDS[row // BAD_EVERY % len(KINDS)], one, row)
                for column, cells in columns.items():
                    cells[row - first] = one[column]
                usable = one["item"] and len(one["item"]) < 100
                bad.append(one["item"] if usable else f"row {row + 1}")
            writer.write_table(pa.table(columns, pa.schema(kinds)))
    return bad


def name(row: int) -> str:
    """The id of a good row's item."""
    return f"item {row:010}"


def spoil(kind: str, one: Row, row: int) -> None:
    """Make a row bad in one way."""
    vector = one["embedding"].copy()
    vector[0] = {"NaN": np.nan, "infinity": np.inf}.get(kind, vector[0])
    changes: dict[str, Row] = {
        "no embedding": {"embedding": None},
        "too short": {"embedding": vector[1:]},
        "zero": {"embedding": np.zeros_like(vector)},
        "another model": {"model": "another"},
        "no id": {"item": None},
        "long id": {"item": "x" * 5_000},
        "no JSON": {"payload": "{"},
        "no object": {"payload": "[1]"},
        "too large": {"payload": json.dumps({"note": "x" * 70_000})},
        "again": {"item": name(row - 1)},
    }
    one.update(changes.get(kind, {"embedding": vector}))


class Watch:
    """What processes have used, by their ids; they are looked at while they run, as their parents may be killed."""

    def __init__(self) -> None:
        self.cpu_s: dict[int, float] = {}
        self.peak_bytes: dict[int, int] = {}

    def look(self, processes: list[int]) -> None:
        """Note what they have used by now."""
        for process in processes:
            with suppress(OSError, IndexError):
                spent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
                self.cpu_s[process] = sum(map(int, spent)) / os.sysconf("SC_CLK_TCK")
                self.peak_bytes[process] = bytes_of(process, "VmHWM") or self.peak_bytes.get(process, 0)


def killed(store: Store, folder: Path, count: int, bad: list[str]) -> Row:
    """The import, killed in the middle with its server; what the next one did, and what is there and listed then."""
    imports, servers, failures = Watch(), Watch(), folder / "failures.csv"
    words = ("--allow-read", str(folder), "--allow-write", str(folder))
    started = time.perf_counter()
    with serving(store, *words) as server, Client(server.target) as client:
        operation = client.items.import_from(folder / "new.parquet", failures=failures, index=NAME)
        with closing(Catalog(store.index(NAME))) as catalog:
            while (done := catalog.sequence() - BASE) < count // 2:
                imports.look(children(store))
                servers.look([server.process.pid])
                assert time.perf_counter() - started < GIVE_UP_S
                time.sleep(0.5)
        server.process.kill()
        for child in children(store):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    first_s, started = time.perf_counter() - started, time.perf_counter()
    told({"killed_at": done, "until_killed_s": first_s})
    with serving(store, *words) as server, Client(server.target) as client:
        answered_s = time.perf_counter() - started
        while client.operations.get(operation.id).state in ("queued", "running", "interrupted"):
            imports.look(children(store))
            servers.look([server.process.pid])
            assert time.perf_counter() - started < GIVE_UP_S
            time.sleep(0.5)
        second_s = time.perf_counter() - started
        report = client.operations.wait(operation)
        wait_for(lambda: client.indexes.get(NAME).items, BASE + count - len(bad))
        servers.look([server.process.pid])
    with closing(Catalog(store.index(NAME))) as catalog:
        assert catalog.count() == BASE + count - len(bad), "lost"
        assert catalog.sequence() == catalog.count(), "written twice"
    with failures.open() as file:
        listed = [row["item"] for row in csv.DictReader(file)]
    assert sorted(listed) == sorted(bad), {*listed} ^ {*bad}
    assert (report.imported + report.unchanged, report.failed) == (count - len(bad), len(bad))
    return {
        "then_unchanged": report.unchanged,
        "then_imported": report.imported,
        "listed": len(listed),
        "restart_to_answer_s": answered_s,
        "then_s": second_s,
        "import_cpu_s": [*imports.cpu_s.values()],
        "import_peak_bytes": [*imports.peak_bytes.values()],
        "server_cpu_s": [*servers.cpu_s.values()],
        "server_peak_bytes": [*servers.peak_bytes.values()],
        "table_bytes": (folder / "new.parquet").stat().st_size,
        "catalogue_bytes": catalog.path.stat().st_size,
    }


def restarted(store: Store) -> Row:
    """A restart beside all that no rebuild has folded in."""
    started = time.perf_counter()
    with serving(store) as server:
        answers_s = time.perf_counter() - started
        return {"restart_s": answers_s, "restart_cpu_s": server.cpu_s(), "restart_own_bytes": server.own_bytes()}


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000, sys.argv[2] if len(sys.argv) > 2 else None)
