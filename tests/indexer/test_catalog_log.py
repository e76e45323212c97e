"""Damage of what a killed process leaves beside its catalogue: nothing that was acknowledged is lost unnoticed."""

import contextlib
import gc
import random
import shutil
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from indexer import acknowledged
from indexer.acknowledged import NoteDamaged, note_of
from indexer.catalog import CATALOG, Catalog, CatalogCorrupt
from indexer.records import Upsert

HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24  # of SQLite's log, and of each of its frames
UPSERTS = 4

Told = list[tuple[str, int, bytes | None]]


@dataclass(frozen=True)
class Killed:
    """The files that a process left that upserted one item after the other and was killed.

    Attributes:
        files: content by name.
        told: what its catalogue tells, sound.
        ends: of each upsert, in the log.
        notes: after each upsert.
    """

    files: dict[str, bytes]
    told: Told
    ends: list[int]
    notes: list[bytes]

    @property
    def log(self) -> bytes:
        return self.files[f"{CATALOG}-wal"]

    @property
    def frame_bytes(self) -> int:
        return FRAME_HEADER_BYTES + int(struct.unpack_from(">I", self.log, 8)[0])


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """Copied while the catalogue is open: what the next process finds where this one is killed."""
    root = tmp_path_factory.mktemp("killed")
    ends, notes = list[int](), list[bytes]()
    with contextlib.closing(Catalog(root)) as catalog:
        for number in range(UPSERTS):
            vector = np.eye(8, dtype=np.float32)[number]
            catalog.upsert([Upsert(f"item {number}", vector, "m", payload={"n": number})], dim=8)
            ends.append((root / f"{CATALOG}-wal").stat().st_size)
            notes.append(note_of(root / CATALOG).read_bytes())
        names = (CATALOG, f"{CATALOG}-wal", note_of(root / CATALOG).name)
        files = {name: (root / name).read_bytes() for name in names}
    found = Killed(files, told(root), ends, notes)
    assert len(found.told) == UPSERTS
    return found


def told(index_dir: Path) -> Told:
    """All that a catalogue tells."""
    with contextlib.closing(Catalog(index_dir)) as catalog:
        return [(one.item, one.sequence, one.vector) for one in catalog.changes(0, "m")]


def told_or_refused(index_dir: Path) -> Told | str:
    """All that a catalogue tells, or how its refusal begins."""
    try:
        return told(index_dir)
    except CatalogCorrupt as error:
        return str(error).partition(":")[0]


def left(directory: Path, files: dict[str, bytes]) -> Path:
    """A directory with these files and no others."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def places(killed: Killed) -> Iterator[int]:
    """Every byte of the log's header and of each frame's, and some of each page."""
    yield from range(HEADER_BYTES)
    rng = random.Random(0)
    for start in range(HEADER_BYTES, len(killed.log), killed.frame_bytes):
        yield from range(start, start + FRAME_HEADER_BYTES)
        yield from rng.sample(range(start + FRAME_HEADER_BYTES, start + killed.frame_bytes), 12)


def test_no_flipped_bit_of_the_log_loses_a_change_unnoticed(killed: Killed, tmp_path: Path) -> None:
    """Wherever a bit of the log is flipped, the catalogue tells all of it, or is refused by name."""
    rng, refused = random.Random(1), 0
    for place in places(killed):
        log = bytearray(killed.log)
        log[place] ^= 1 << rng.randrange(8)
        at = left(tmp_path / "index", {**killed.files, f"{CATALOG}-wal": bytes(log)})
        found = told_or_refused(at)
        assert found in (killed.told, f"{at / CATALOG} is damaged"), place
        refused += found != killed.told
    assert refused > len(killed.log) // killed.frame_bytes * FRAME_HEADER_BYTES // 2


def test_a_log_that_was_cut_or_removed_is_refused(killed: Killed, tmp_path: Path) -> None:
    """At any frame, within one, and as a whole; the message says which changes are missing."""
    cuts = [*range(0, len(killed.log), killed.frame_bytes // 2), len(killed.log) - 1]
    for size in cuts:
        at = left(tmp_path / "index", {**killed.files, f"{CATALOG}-wal": killed.log[:size]})
        with pytest.raises(CatalogCorrupt, match=f"changes up to {UPSERTS} were acknowledged"):
            Catalog(at)
    files = {name: content for name, content in killed.files.items() if not name.endswith("-wal")}
    with pytest.raises(CatalogCorrupt, match="it ends at change 0, but"):
        Catalog(left(tmp_path / "index", files))


def test_a_damaged_log_is_kept(killed: Killed, tmp_path: Path) -> None:
    """Its bytes stay beside the catalogue, also when it is opened again, as SQLite lets go of what it can't read."""
    log = bytearray(killed.log)
    log[HEADER_BYTES + FRAME_HEADER_BYTES] ^= 1
    at = left(tmp_path / "index", {**killed.files, f"{CATALOG}-wal": bytes(log)})
    for _ in range(2):
        with pytest.raises(CatalogCorrupt, match=f"may be in {at / CATALOG}-wal-damaged"):
            Catalog(at)
        gc.collect()  # closes what was open
    assert (at / f"{CATALOG}-wal-damaged").read_bytes() == log


def test_a_torn_commit_that_was_not_acknowledged_is_forgotten(killed: Killed, tmp_path: Path) -> None:
    """What a power cut leaves of the last commit is no damage: all before it is told, and the log goes on."""
    note, start = killed.notes[-2], killed.ends[-2]
    for size in range(start, len(killed.log), killed.frame_bytes // 3):
        torn = {f"{CATALOG}-wal": killed.log[:size], note_of(Path(CATALOG)).name: note}
        at = left(tmp_path / "index", {**killed.files, **torn})
        assert told(at) == killed.told[:-1]
    with contextlib.closing(Catalog(at)) as catalog:
        assert catalog.upsert([Upsert("next", np.eye(8, dtype=np.float32)[0], "m")], dim=8)[0].sequence == UPSERTS
    assert acknowledged.noted(at / CATALOG) == UPSERTS


def test_a_catalogue_that_is_gone_is_not_begun_anew(killed: Killed, tmp_path: Path) -> None:
    """While the note says what was in it; without the note it is, as for an index made before there were any."""
    note = note_of(tmp_path / "index" / CATALOG)
    at = left(tmp_path / "index", {note.name: killed.notes[-1]})
    with pytest.raises(CatalogCorrupt, match=f"it is gone, but changes up to {UPSERTS} were acknowledged.*{note}"):
        Catalog(at)
    note.unlink()
    assert told(at) == []


def test_a_damaged_note_is_refused_by_name(killed: Killed, tmp_path: Path) -> None:
    """Any bit of it flipped, and any cut: by an opened catalogue too, before it acknowledges more."""
    note = note_of(tmp_path / "index" / CATALOG)
    at, whole = left(tmp_path / "index", killed.files), killed.notes[-1]
    flipped = (whole[:n] + bytes([whole[n] ^ 1 << n % 8]) + whole[n + 1 :] for n in range(len(whole)))
    for damaged in (*flipped, *(whole[:size] for size in range(len(whole))), whole + b"0"):
        note.write_bytes(damaged)
        with pytest.raises(CatalogCorrupt, match=f"{note} does not match its checksum"):
            Catalog(at)
    note.write_bytes(whole)
    with contextlib.closing(Catalog(at)) as catalog:
        note.write_bytes(whole[:-1])
        with pytest.raises(CatalogCorrupt, match=f"{note} does not match its checksum"):
            catalog.delete(["item 0"])


def test_a_note_never_goes_back(tmp_path: Path) -> None:
    """Of two processes that note their commits, the later number stays, in whatever order they come."""
    for sequence, expected in ((7, 7), (9, 9), (8, 9)):
        acknowledged.note(tmp_path / CATALOG, sequence)
        assert acknowledged.noted(tmp_path / CATALOG) == expected
    note_of(tmp_path / CATALOG).write_bytes(b"9\n")
    with pytest.raises(NoteDamaged):
        acknowledged.note(tmp_path / CATALOG, 10)


def test_a_note_that_many_begin_at_once_says_the_last_change(tmp_path: Path) -> None:
    """Threads with catalogues of their own, as processes, neither fail nor leave a part of it."""
    for number in range(20):
        catalog = tmp_path / f"{number}"
        with ThreadPoolExecutor(8) as pool:
            assert [*pool.map(partial(acknowledged.note, catalog), range(1, 9))] == [None] * 8
        assert acknowledged.noted(catalog) == 8
    assert {path.name for path in tmp_path.iterdir()} == {f"{number}-acknowledged" for number in range(20)}
