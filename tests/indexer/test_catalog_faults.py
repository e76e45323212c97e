"""What a catalogue's file can suffer: damage, a full disk, other processes, and a process killed at any moment."""

import contextlib
import itertools
import random
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer import catalog_file, catalog_rows
from indexer.acknowledged import note_of
from indexer.catalog import (
    CATALOG,
    Catalog,
    CatalogBusy,
    CatalogCorrupt,
    CatalogWriteFailed,
    RequestReused,
)
from indexer.records import Upsert
from indexer.rows import Embeddings

DIM = 8


def unit(seed: int) -> Embeddings:
    """(8,) float32 of unit length; another seed, another direction."""
    vector = np.random.default_rng(seed).standard_normal(DIM)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def fill(index_dir: Path, count: int = 30) -> None:
    """A catalogue of upserted and deleted items, closed, so that all of it is in its one file."""
    with contextlib.closing(Catalog(index_dir)) as catalog:
        upserts = [Upsert(f"item {n}", unit(n), "m", image=bytes([n]) * 40, payload={"n": n}) for n in range(count)]
        catalog.upsert(upserts, dim=DIM, request_id="first")
        catalog.delete(["item 3"], request_id="second")


def everything(index_dir: Path) -> Any:
    """All that a catalogue tells."""
    with contextlib.closing(Catalog(index_dir)) as catalog:
        changes = [
            (
                change.item,
                change.sequence,
                change.live,
                change.payload,
                change.vector,
            )
            for change in catalog.changes(0, "m")
        ]
        items = catalog.page(limit=1_000)
        images = [catalog.image(item.sha256) for item in items if item.sha256]
        pending = list(catalog.pending("other"))
        with pytest.raises(RequestReused):
            catalog.delete(["item 4"], request_id="second")
        return changes, items, images, pending, catalog.deleted(), catalog.sequence(), list(catalog.payloads())


def test_every_flipped_bit_is_found_or_harmless(tmp_path: Path) -> None:
    """A file with one bit flipped is refused by name, or tells exactly what it did; never anything else."""
    fill(tmp_path, 6)
    path = tmp_path / CATALOG
    whole, expected = path.read_bytes(), everything(tmp_path)
    rng, refused = random.Random(0), 0
    for _ in range(250):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        _replace(path, damaged)
        told = _unless_refused(tmp_path)
        assert told in (expected, f"{path} is damaged")
        refused += told != expected
    assert refused > 12


def _unless_refused(index_dir: Path) -> Any:
    """All that a catalogue tells, or how its refusal begins."""
    try:
        return everything(index_dir)
    except CatalogCorrupt as error:
        return str(error).partition(":")[0]


def test_a_flipped_bit_of_stored_bytes_is_found(tmp_path: Path) -> None:
    """SQLite itself does not notice changed embeddings, payloads and images; they have checksums."""
    fill(tmp_path, 6)
    path = tmp_path / CATALOG
    whole = path.read_bytes()
    for content in (unit(2).tobytes(), b'{"n":2}', bytes([2]) * 40, b"item 2"):
        damaged = bytearray(whole)
        damaged[whole.index(content) + 3] ^= 1
        _replace(path, damaged)
        with pytest.raises(CatalogCorrupt, match="is damaged"):
            everything(tmp_path)


def test_a_refused_file_is_not_kept_open(tmp_path: Path) -> None:
    """Not by the error either: who restores it puts other files in the place of what SQLite has open."""
    fill(tmp_path)
    path = tmp_path / CATALOG
    _replace(path, path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CatalogCorrupt):
        Catalog(tmp_path)
    opened = [str(one.resolve()) for one in Path("/proc/self/fd").iterdir()]
    assert not [one for one in opened if one.startswith(str(path))]


@pytest.mark.parametrize("state", [b"live", b"deleted"])
def test_a_row_of_no_known_state_is_refused(tmp_path: Path, state: bytes) -> None:
    """It is not passed over: an item would be gone, or one that was deleted be built in again."""
    fill(tmp_path, 6)
    path = tmp_path / CATALOG
    whole = path.read_bytes()
    item = b"item 3" if state == b"deleted" else b"item 2"
    damaged = bytearray(whole)
    (places,) = [match.start(1) for match in re.finditer(item + b".{0,4}(" + state + b")", whole, re.DOTALL)]
    damaged[places] ^= 1
    _replace(path, damaged)
    with contextlib.closing(Catalog(tmp_path)) as catalog:
        live: list[Callable[[], object]] = [
            catalog.page,
            lambda: catalog.get("item 2"),
            lambda: catalog.known(["item 2"]),
            lambda: [*catalog.contents()],
            lambda: [*catalog.payloads()],
        ]
        for read in live if state == b"live" else (catalog.deleted, catalog.page):
            with pytest.raises(CatalogCorrupt, match="does not match its checksum"):
                read()


def test_no_flipped_bit_of_a_state_changes_how_many_items_are_live(tmp_path: Path) -> None:
    """A deleted item's, which no search would show, was counted as a live one's."""
    fill(tmp_path, 6)
    path = tmp_path / CATALOG
    whole = path.read_bytes()
    expected = _count(tmp_path)
    states = [place for found in re.finditer(b"deleted|live", whole) for place in range(*found.span())]
    refused = 0
    for place, bit in itertools.product(states, range(8)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        _replace(path, damaged)
        counted = _count(tmp_path)
        assert counted in (expected, None)
        refused += counted is None
    assert refused > 100


def _count(index_dir: Path) -> int | None:
    """How many items are live; None where that is refused."""
    with contextlib.suppress(CatalogCorrupt), contextlib.closing(Catalog(index_dir)) as catalog:
        return catalog.count()
    return None


def test_a_schema_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """SQLite's own message quotes it, and Python can't read that."""
    fill(tmp_path, 6)
    path = tmp_path / CATALOG
    whole = path.read_bytes()
    for name in (b"CREATE TABLE items", b"CREATE INDEX changed", b"CREATE TABLE counter"):
        for place in (0, 3, 8, len(name) - 1):
            damaged = bytearray(whole)
            damaged[whole.index(name) + place] ^= 0x80
            _replace(path, damaged)
            with pytest.raises(CatalogCorrupt, match=str(path)):
                Catalog(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    """A file that lost its end, or all of it, is refused by name, and is not taken for a new one."""
    fill(tmp_path)
    path = tmp_path / CATALOG
    _replace(path, path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CatalogCorrupt, match=str(path)):
        everything(tmp_path)


def test_a_truncated_file_is_refused_without_a_full_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files are not read as a whole when they are opened; reading what is not there is refused all the same."""
    monkeypatch.setattr(catalog_file, "CHECK_BYTES", 0)
    fill(tmp_path, 200)
    path = tmp_path / CATALOG
    _replace(path, path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CatalogCorrupt, match=str(path)):
        everything(tmp_path)


@pytest.mark.parametrize("content", [b"\0" * 5000, b"not a database, but long enough to be read as one" * 100])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever lies where the catalogue should is refused by name."""
    (tmp_path / CATALOG).write_bytes(content)
    with pytest.raises(CatalogCorrupt, match=str(tmp_path / CATALOG)):
        Catalog(tmp_path)


def test_another_database_is_refused(tmp_path: Path) -> None:
    """A sound SQLite file with other tables is not a catalogue."""
    with contextlib.closing(sqlite3.connect(tmp_path / CATALOG)) as connection:
        connection.executescript(f"PRAGMA user_version={catalog_file.FORMAT}; CREATE TABLE items (item TEXT);")
    with pytest.raises(CatalogCorrupt, match="its tables are not those of a catalogue"):
        Catalog(tmp_path)


def _replace(path: Path, content: bytes | bytearray) -> None:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.write_bytes(content)


@contextlib.contextmanager
def largest_file(limit_bytes: int) -> Iterator[None]:
    """Let every file of this process end at a size: what is written behind it fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_the_disk_refuses_is_not_acknowledged(tmp_path: Path) -> None:
    """A batch that does not fit is an error and leaves no trace; earlier ones stay, and one that fits is taken."""
    catalog = Catalog(tmp_path)
    taken = list[str]()
    with largest_file(400_000), pytest.raises(CatalogWriteFailed, match=str(catalog.path)):
        _fill(catalog, taken)
    assert taken
    assert sorted(taken) == [item.item for item in catalog.page(limit=10_000)]
    catalog.upsert([Upsert("after", unit(0), "m")], dim=DIM)
    catalog.close()
    with contextlib.closing(Catalog(tmp_path)) as reopened:
        assert ["after", *sorted(taken)] == [item.item for item in reopened.page(limit=10_000)]
        assert len(taken) + 1 == reopened.sequence()


def _fill(catalog: Catalog, taken: list[str]) -> None:
    """Upsert batches for ever, noting what was acknowledged."""
    for batch in itertools.count():
        items = [f"item {batch:03} {place}" for place in range(10)]
        catalog.upsert([Upsert(item, unit(0), "m", image=item.encode() * 500) for item in items], dim=DIM)
        taken += items


def test_a_full_database_is_said_so(tmp_path: Path) -> None:
    """Where SQLite can take no more pages, as on a full disk, the message says that space is wanted."""
    fill(tmp_path)
    with contextlib.closing(Catalog(tmp_path)) as catalog:
        with catalog._file.write() as connection:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(CatalogWriteFailed, match="free some space"):
            catalog.upsert([Upsert("large", unit(0), "m", image=b"x" * 2**20)], dim=DIM)
        assert (catalog.count(), catalog.sequence()) == (29, 31)
        catalog.delete(["item 5"])
        assert catalog.count() == 28


def test_a_directory_that_can_not_be_written_is_said_so(tmp_path: Path) -> None:
    """A catalogue can't be made where a file is in the way of its directory."""
    (tmp_path / "index").write_text("a file")
    with pytest.raises(CatalogWriteFailed, match="index"):
        Catalog(tmp_path / "index")


def test_what_a_removed_catalogue_takes_is_not_acknowledged(tmp_path: Path) -> None:
    """Nor does one that was put in its place say that it was, and lacks it: that one is opened and goes on."""
    index = tmp_path / "index"
    fill(index)
    with contextlib.closing(Catalog(index)) as old:
        shutil.rmtree(index)
        with pytest.raises(CatalogWriteFailed, match=f"{old.path} was removed.*send them again"):
            old.delete(["item 4"])
        index.write_text("a file")
        with pytest.raises(CatalogWriteFailed, match=str(old.path)):
            old.delete(["item 4"])
        index.unlink()
        fill(index, 5)
        with pytest.raises(CatalogWriteFailed, match=f"{old.path} was removed.*send them again"):
            old.delete(["item 5"])
    with contextlib.closing(Catalog(index)) as new:
        assert (new.count(), new.sequence()) == (4, 6)
        new.delete(["item 4"])


def test_a_writer_that_waits_too_long_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another one writes a second one waits; in the end it says so, and nothing of it is taken. Reads go on."""
    monkeypatch.setattr(catalog_file, "BUSY_TIMEOUT_S", 0.1)
    fill(tmp_path)
    one, two = Catalog(tmp_path), Catalog(tmp_path)
    with one.transaction():
        one.delete(["item 1"])
        with pytest.raises(CatalogBusy, match="written by another process"):
            two.delete(["item 2"])
        assert two.count() == 29
    assert two.count() == 28
    two.delete(["item 2"])
    assert one.count() == 27
    one.close()
    two.close()


def test_many_threads_and_catalogues_write_in_turn(tmp_path: Path) -> None:
    """Every change gets a sequence of its own, and none is lost."""

    def write(number: int) -> list[int]:
        with contextlib.closing(Catalog(tmp_path)) as catalog:
            batches = [[Upsert(f"{number} {batch} {n}", unit(n), "m") for n in range(5)] for batch in range(10)]
            return [outcome.sequence for batch in batches for outcome in catalog.upsert(batch, dim=DIM)]

    with ThreadPoolExecutor(6) as pool:
        sequences = [sequence for part in pool.map(write, range(6)) for sequence in part]
    assert [*range(1, 301)] == sorted(sequences)
    with contextlib.closing(Catalog(tmp_path)) as catalog:
        assert (catalog.count(), catalog.sequence()) == (300, 300)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from indexer.catalog import Catalog
from indexer.records import Upsert
catalog, name = Catalog(Path(sys.argv[1])), sys.argv[2]
vector = np.zeros(8, np.float32)
vector[0] = 1
for batch in range(100_000):
    items = [f"{name} {batch} {place}" for place in range(7)]
    outcomes = catalog.upsert([Upsert(item, vector, "m", image=item.encode() * 50) for item in items], dim=8)
    gone = [outcome.item for outcome in catalog.delete(items[:2])]
    print(*("+" + outcome.item for outcome in outcomes), *("-" + item for item in gone), sep=",", flush=True)
"""


def test_whatever_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    """After SIGKILL at any moment every acknowledged upsert is there, and every acknowledged deletion holds."""
    rng, live, deleted = random.Random(1), set[str](), set[str]()
    for run in range(4):
        for line in _killed_writer(tmp_path, f"run {run}", rng.uniform(0.02, 0.4)):
            live |= {word[1:] for word in line.split(",") if word[0] == "+"}
            deleted |= {word[1:] for word in line.split(",") if word[0] == "-"}
        with contextlib.closing(Catalog(tmp_path)) as catalog:
            found = {item.item for item in catalog.page(limit=1_000_000)}
            assert live - deleted <= found
            assert deleted <= catalog.deleted()
            assert not deleted & found
            batches = Counter(item.rpartition(" ")[0] for item in found)  # also the one that was not acknowledged
            assert {5, 7} >= set(batches.values())
            changes = list(catalog.changes(0, "m"))
            assert found == {change.item for change in changes if change.vector is not None}
            assert catalog.sequence() == changes[-1].sequence
    assert len(live) > 50


def _killed_writer(index_dir: Path, name: str, after_s: float) -> list[str]:
    """The whole lines that a writing process printed before it was killed, so long after its first one."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(index_dir), name], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first, "the writer failed"
        timer = threading.Timer(after_s, process.kill)
        timer.start()
        rest = process.stdout.read()
        timer.join()
    assert process.returncode == -9
    return [first.strip(), *rest.splitlines()[: rest.count("\n")]]


def test_many_processes_make_one_catalogue(tmp_path: Path) -> None:
    """Processes that open an index without a catalogue at the same moment end with the same one, and lose nothing."""
    program = WRITER.replace("100_000", "3")
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), f"p{n}"], stdout=subprocess.DEVNULL)
        for n in range(3)
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    with contextlib.closing(Catalog(tmp_path)) as catalog:
        assert (catalog.count(), catalog.sequence()) == (3 * 3 * 5, 3 * 3 * 9)
    assert {CATALOG, note_of(tmp_path / CATALOG).name} == {path.name for path in tmp_path.iterdir()}


def test_what_fails_elsewhere_is_not_blamed_on_the_catalogue(tmp_path: Path) -> None:
    """An export onto a full disk reads it meanwhile; an error in a transaction undoes it and stays what it is."""
    upsert = Upsert("a", unit(1), "m")

    def upsert_and_fail() -> None:
        with catalog.transaction():
            catalog.upsert([upsert], dim=DIM)
            raise OSError("another file")

    with contextlib.closing(Catalog(tmp_path)) as catalog:
        with pytest.raises(OSError, match=r"^no space for the export$"), catalog.frozen():
            raise OSError("no space for the export")
        with pytest.raises(OSError, match=r"^another file$"):
            upsert_and_fail()
        assert (catalog.count(), catalog.sequence()) == (0, 0)


def test_a_row_is_sealed_as_it_always_was() -> None:
    """By another checksum every catalogue that there is would be taken for damaged."""
    assert catalog_file.seal("cat é.jpg", 7, None, 2.5) == zlib.crc32("'cat é.jpg'7None2.5".encode())
    assert catalog_file.seal("a", b"\xff\0", None, b"") == zlib.crc32(b"'a'\xff\0None")


@pytest.mark.parametrize("source", [None, b"", b"/photos/\xff \0.jpg", "a text, by damage"])
@pytest.mark.parametrize("text", ["", "it's", '{"a":"\\n é"}', "\0'\"\ud800", None])
def test_items_and_embeddings_are_sealed_as_any_row(source: Any, text: Any) -> None:
    """Their checksums have a faster way, which gives the same."""
    row = (text, 7, "live", 1, 0, text, source, text)
    assert catalog_rows.seal_of_row(row) == catalog_file.seal(*row)
    assert catalog_rows.seal_of_vector(text, text, source) == catalog_file.seal(text, text, source)
