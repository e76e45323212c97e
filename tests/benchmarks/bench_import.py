"""What it costs to import a table of which one row in a hundred is bad, and all that comes of it.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_import.py [rows]

Over an index of 5,000 pictures, 20,000 (or so many) others of 8 × 8 pixels lie in one Parquet table, and a CSV names
them, with payloads. Bad rows are cut off, empty or absent images, payloads that are no JSON, no object or too large,
rows without a path, and rows that name an image again. Every step is a process of its own; times are CPU seconds, as
other programs on the machine do not count in them.

- bare: what nobody can leave out: each image decoded and embedded, and its embedding and payload inserted into
  SQLite, 64 to a transaction that is synced.
- import: the same by `kinsight items import`, beside a server that a client searches. Each bad row must be listed.
- killed: another import and the server are killed in the middle; some of what it had imported is deleted by the next
  server, which goes on with it. What the catalogue holds in the end must be what the import without an end holds,
  less what was deleted.
- upsert: as many embeddings by `kinsight items upsert --lines`, the client's time and the server's.
- restart: of a server beside all of that, until it answers; rebuild: folding it in.

Prints one JSON line; memory in bytes, `_row` is of each row.
"""

import csv
import json
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from kinsight_client import Client, Embedding

from indexer import pixels
from indexer.build import build
from indexer.catalog import Catalog
from indexer.encoder import Encoder
from indexer.store import Store
from tests.benchmarks.bench_scale import alone
from tests.serving import make_model

NAME, BASE, DIM, SIDE, CHUNK, BATCH = "imported", 5_000, 16, 8, 10_000, 64
BAD_EVERY = 100
KINDS = ("cut off", "empty", "absent", "no path", "no JSON", "no object", "too large", "again")
IDLE_S, PAUSE_S = 5.0, 0.02  # between searches: they are to be measured, not to keep the import from its work
DELETED = 20  # items, after the kill
COMMAND = (sys.executable, "-m", "clients.cli")

Figures = dict[str, Any]


def main(count: int) -> None:
    """Write the pictures, take each step, print."""
    with tempfile.TemporaryDirectory() as root:
        store, folder, model = prepared(Path(root), count)
        bad = write_pictures(folder, count, seed=1, spoiled=True)
        other = Store(Path(root) / "killed")
        shutil.copytree(store.root, other.root)
        bare = alone(import_bare, store.root, model, folder / "images.parquet")
        figures = imported(store, model, folder, bad) | {"bare_s": bare}
        figures["ratio"] = figures["import_s"] / bare
        figures |= killed(other, store, folder, count)
        figures |= upserted(store, model, folder / "lines.jsonl", count)
        figures |= folded(store)
    print(json.dumps({"rows": count, "bad": len(bad), **figures}))


def prepared(root: Path, count: int) -> tuple[Store, Path, str]:
    """A store with a small index, and a folder for what is imported."""
    store = Store(root / "store")
    model = make_model(store, dim=DIM)
    write_pictures(root / "base", BASE, seed=0, spoiled=False)
    build(NAME, root / "base" / "table.csv", model=model, store=store, progress=lambda *_: None)
    (root / "new").mkdir()
    write_lines(root / "new" / "lines.jsonl", model, count)
    return store, root / "new", model


def write_pictures(folder: Path, count: int, *, seed: int, spoiled: bool) -> list[str]:
    """A Parquet table of pictures, and the CSV that names them; gives the item or place of each bad row, in order."""
    folder.mkdir(exist_ok=True)
    rng, kind, bad = np.random.default_rng(seed), pa.struct([("bytes", pa.binary()), ("path", pa.string())]), []
    with (
        pq.ParquetWriter(folder / "images.parquet", pa.schema([("image", kind)])) as images,
        (folder / "table.csv").open("w", newline="") as file,
    ):
        table = csv.writer(file)
        table.writerow(["path", "payload"])
        for first in range(0, count, CHUNK):
            noise = rng.integers(0, 256, (min(CHUNK, count - first), SIDE, 3 * SIDE), dtype=np.uint8)
            cells = []
            for row, values in enumerate(noise, first):
                name, data = f"{seed}-{row:09}.png", png(values)
                path, payload = f"images.parquet/{name}", json.dumps({"place": row})
                if spoiled and row % BAD_EVERY == BAD_EVERY // 2:
                    data, path, payload = spoil(KINDS[row // BAD_EVERY % len(KINDS)], data, path, payload)
                    bad.append(path or f"line {row + 2}")
                    if path.endswith("again"):
                        path = bad[-1] = f"images.parquet/{seed}-{row - 1:09}.png"
                cells.append({"bytes": data, "path": name})
                table.writerow([path, payload])
            images.write_table(pa.table({"image": pa.array(cells, kind)}))
    return bad


def spoil(kind: str, data: bytes, path: str, payload: str) -> tuple[bytes, str, str]:
    """The image, path and payload of a row, bad in one way."""
    match kind:
        case "cut off":
            return data[:-30], path, payload
        case "empty":
            return b"", path, payload
        case "no path":
            return data, "", payload
        case "absent" | "again":
            return data, f"{path}.{kind}", payload
    return data, path, {"no JSON": "{", "no object": "[1]"}.get(kind, json.dumps({"note": "x" * 70_000}))


def png(values: np.ndarray) -> bytes:
    """A PNG of (8, 24) bytes; Pillow takes ten times as long."""
    rows = np.zeros((SIDE, 1 + 3 * SIDE), np.uint8)
    rows[:, 1:] = values
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def write_lines(file: Path, model: str, count: int) -> None:
    """Items with embeddings, as JSON Lines."""
    rng = np.random.default_rng(2)
    with file.open("w") as lines:
        for row in range(count):
            values = rng.standard_normal(DIM)
            values = (values / np.linalg.norm(values)).round(7)
            item = {"item": f"line {row:09}", "embedding": values.tolist(), "model": model, "payload": {"place": row}}
            lines.write(json.dumps(item) + "\n")


def import_bare(root: Path, model: str, images: Path) -> float:
    """CPU seconds of what nobody can leave out."""
    encoder = Encoder.open(Store(root).model(model), device="cpu")
    started = time.process_time()
    with closing(sqlite3.connect(root / "bare.sqlite", isolation_level=None)) as table:
        table.execute("PRAGMA journal_mode=WAL")
        table.execute("PRAGMA synchronous=FULL")
        table.execute("CREATE TABLE items (item TEXT PRIMARY KEY, payload TEXT, embedding BLOB)")
        for batch in pq.ParquetFile(images).iter_batches(BATCH):
            found = {}
            for cell in batch.column(0).to_pylist():
                with suppress(pixels.PixelsError):
                    found[cell["path"]] = pixels.decode(cell["bytes"], encoder.pixels)
            embeddings = encoder.embed(np.stack([*found.values()]))
            rows = [(item, '{"place":1}', row.tobytes()) for item, row in zip(found, embeddings, strict=True)]
            table.execute("BEGIN")
            table.executemany("INSERT INTO items VALUES (?, ?, ?)", rows)
            table.execute("COMMIT")
    return time.process_time() - started


@dataclass(frozen=True)
class Server:
    """A server process.

    Attributes:
        process: of `kinsight serve`.
        target: HOST:PORT.
    """

    process: subprocess.Popen[str]
    target: str

    def cpu_s(self) -> float:
        """Of all its threads, since it began."""
        spent = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, spent)) / os.sysconf("SC_CLK_TCK")

    def own_bytes(self) -> int:
        """Anonymous resident bytes."""
        return bytes_of(self.process.pid, "RssAnon")


@contextmanager
def serving(store: Store, *words: str) -> Iterator[Server]:
    """A server, killed at the end."""
    command = [*COMMAND, "serve", "--store", str(store.root), "--listen", "127.0.0.1:0", "--json", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield Server(process, f"127.0.0.1:{json.loads(process.stdout.readline())['port']}")
        finally:
            process.kill()


def spent(words: list[str], meanwhile: Callable[[], object] = lambda: time.sleep(0.1)) -> tuple[float, int, Figures]:
    """CPU seconds, most memory and answer of a command; `meanwhile` is called until it ends."""
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen([*COMMAND, *words, "--json"], stdout=told, stderr=subprocess.DEVNULL)
        peak_bytes = 0
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            # What wait4 says of memory is no less than this process had when it began the other.
            peak_bytes = bytes_of(process.pid, "VmHWM") or peak_bytes
            meanwhile()
        process.returncode = os.waitstatus_to_exitcode(status)
        told.seek(0)
        return usage.ru_utime + usage.ru_stime, peak_bytes, json.loads(told.read())


def bytes_of(process: int, name: str) -> int:
    """A figure of a process's memory; 0 where it has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


class Searches:
    """A client that searches now and then, and how long each took."""

    def __init__(self, target: str, model: str) -> None:
        self._client = Client(target)
        self._model = model
        self._rng = np.random.default_rng(3)
        self._took_s: list[float] = []

    def __call__(self) -> None:
        """One search, and a pause."""
        started = time.perf_counter()
        self._client.search(embedding=Embedding(self._model, self._rng.standard_normal(DIM, np.float32)), top_k=10)
        self._took_s.append(time.perf_counter() - started)
        time.sleep(PAUSE_S)

    def p99_ms(self) -> float:
        """Of the searches since the last call."""
        took_s, self._took_s = self._took_s, []
        return float(np.percentile(took_s, 99)) * 1e3


def imported(store: Store, model: str, folder: Path, bad: list[str]) -> Figures:
    """The import, and what was found of it; each bad row must be listed, and each other one be searched."""
    failures = folder / "failures.csv"
    with serving(store) as server:
        search, idle_until = Searches(server.target, model), time.monotonic() + IDLE_S
        while time.monotonic() < idle_until:
            search()
        idle_ms, before, started = search.p99_ms(), server.own_bytes(), time.perf_counter()
        words = ["items", "import", NAME, str(folder / "table.csv"), "--store", str(store.root)]
        cpu_s, peak_bytes, report = spent([*words, "--failures", str(failures)], search)
        took_s, busy_ms = time.perf_counter() - started, search.p99_ms()
        with Client(server.target) as client:
            wait_for(lambda: client.indexes.get(NAME).items, BASE + report["imported"])
        grown = server.own_bytes() - before
    listed = sorted(row["item"] for row in csv.DictReader(failures.open()))
    assert listed == sorted(bad), set(listed) ^ set(bad)
    return {
        "import_s": cpu_s,
        "import_rows_per_s": (report["imported"] + report["failed"]) / took_s,
        "import_peak_bytes": peak_bytes,
        "import_server_bytes_row": grown / report["imported"],
        "listed": len(listed),
        "p99_ms": {"idle": idle_ms, "importing": busy_ms},
    }


def wait_for(look: Callable[[], int], wanted: int) -> None:
    """Return once a server holds so many items: what others commit it takes in within seconds."""
    give_up_s = time.monotonic() + 1200
    while (found := look()) != wanted:
        assert time.monotonic() < give_up_s, (found, wanted)
        time.sleep(0.2)


def killed(store: Store, whole: Store, folder: Path, count: int) -> Figures:
    """Kill a server and its import in the middle; the next one goes on, and deletes what was imported before."""
    with serving(store, "--allow-read", str(folder)) as server, Client(server.target) as client:
        operation = client.items.import_from(folder / "table.csv", index=NAME)
        with closing(Catalog(store.index(NAME))) as catalog:
            while catalog.count() < BASE + count // 3:
                time.sleep(0.2)
        server.process.kill()
        for child in children(store):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    held = items_of(store)
    with serving(store, "--allow-read", str(folder)) as server, Client(server.target) as client:
        deleted = sorted(item for item, source in held.items() if "/new/" in source)[:DELETED]
        assert not [one.error for one in client.items.delete_many(deleted, index=NAME) if one.error]
        report = client.operations.wait(operation)
    found, wanted = items_of(store), items_of(whole)
    assert found.keys() == wanted.keys() - {*deleted}, "lost, or back after it was deleted"
    with closing(Catalog(store.index(NAME))) as catalog:
        # Each item of it changed once, however often it was looked at; the base's changes come before.
        changes = catalog.sequence() - BASE - DELETED
    assert changes == len(wanted) - BASE, "imported twice"
    return {"killed_at": len(held) - BASE, "then_unchanged": report.unchanged, "then_imported": report.imported}


def items_of(store: Store) -> dict[str, str]:
    """The live items of the catalogue, and where their images lie."""
    with closing(Catalog(store.index(NAME))) as catalog:
        return {row.item: os.fsdecode(row.source or b"") for row in catalog.rows()}


def children(store: Store) -> list[int]:
    """The processes of imports into a store."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"import" in words and os.fsencode(store.root) in words:
                found.append(int(process.name))
    return found


def upserted(store: Store, model: str, lines: Path, count: int) -> Figures:
    """Upserts by gRPC, beside the same client that searches."""
    with serving(store) as server:
        search, before_s, before = Searches(server.target, model), server.cpu_s(), server.own_bytes()
        words = ["items", "upsert", NAME, "--lines", str(lines), "--server", server.target]
        cpu_s, peak_bytes, report = spent(words)
        server_s, grown = server.cpu_s() - before_s, server.own_bytes() - before
        assert report["upserted"] == count
        search()
    return {
        "upsert_client_s": cpu_s,
        "upsert_server_s": server_s,
        "upsert_client_peak_bytes": peak_bytes,
        "upsert_server_bytes_row": grown / count,
    }


def folded(store: Store) -> Figures:
    """A restart beside what was imported and upserted, and the rebuild that folds it in."""
    with serving(store) as server:
        restart_s, restart_bytes = server.cpu_s(), server.own_bytes()
    cpu_s, peak_bytes, report = spent(["rebuild", NAME, "--store", str(store.root), "--min-recall", "0"])
    assert report["activated"], report["refused"]
    with serving(store) as server:
        folded_s = server.cpu_s()
    return {
        "items": report["count"],
        "restart_s": restart_s,
        "restart_own_bytes": restart_bytes,
        "rebuild_s": cpu_s,
        "rebuild_peak_bytes": peak_bytes,
        "restart_folded_s": folded_s,
    }


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
