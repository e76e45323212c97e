"""Every file of a small store damaged, one at a time: refused by name, or answered as if nothing were.

`pytest tests/test_damage.py -m slow -s` tells what came of it; with DAMAGES=1000 in the environment, so many bits of
each file are flipped. What opens the damaged files are processes of their own, whose crash would be seen.
"""

import dataclasses
import hashlib
import itertools
import logging
import multiprocessing
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
from google.rpc import code_pb2

from indexer import filters, manifest, pixels, plan
from indexer.build import build
from indexer.catalog import Catalog
from indexer.encoder import Encoder
from indexer.plan import Plan
from indexer.rebuild import rebuild
from indexer.records import Upsert
from indexer.requests import RequestReused
from indexer.store import Store
from server import answers
from server.indexes import ActiveIndex, Indexes
from tests.serving import CURVE, SPEC, make_model, photo

FLIPS = int(os.environ.get("DAMAGES", "60"))
ALL_BELOW = 64  # bytes: of smaller files every byte is damaged
BATCH = 50
PROCESSES = 2
BATCH_S = 600
IMAGES = 36
NO_FILE = ("directory", "dangling")
NAME, CATALOG = "photos", "indexes/photos/catalog.sqlite"

Told = dict[str, Any]
_numbers = itertools.count()


class Damage(NamedTuple):
    """What is done to a file: a bit is flipped at a place, it is cut there, another one's content replaces it."""

    file: str
    kind: str
    place: int = 0
    bit: int = 0
    other: str = ""


class Refusal(NamedTuple):
    """The answer to a client."""

    code: str
    message: str


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "ivfpq"])
@pytest.mark.parametrize("left", ["closed", "killed"])
def test_no_damage_of_a_file_is_answered_wrongly(tmp_path: Path, kind: str, left: str) -> None:
    """Of two versions, the model and the catalogue, as a server leaves it that ends, and one that is killed."""
    root = tmp_path / "store"
    _make_store(root, kind, killed=left == "killed")
    damages = [*_damages(root)]
    random.Random(0).shuffle(damages)
    came = Counter[tuple[str, str, str]]()
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        batches = [damages[first : first + BATCH] for first in range(0, len(damages), BATCH)]
        for outcomes in pool.map(_outcomes, [root] * len(batches), batches, timeout=BATCH_S * len(batches)):
            came.update(outcomes)
    for outcome, count in sorted(came.items()):
        print(count, *outcome, sep="\t")
    assert not [outcome for outcome in came if outcome[2].startswith("wrong")]
    assert sum(came.values()) == len(damages)
    assert {outcome for _, _, outcome in came} >= {"as before", "refused", "the version before"}


def _make_store(root: Path, kind: str, *, killed: bool) -> None:
    """Two versions, payloads, upserts and deletions before and after the second, a calibrated model."""
    store, images = Store(root), root.with_name("images")
    images.mkdir()
    for seed in range(IMAGES):
        (images / f"{seed:03}.png").write_bytes(photo(seed))
    model = make_model(store)
    manifest.amend_model(store.model(model), dataclasses.asdict(CURVE))
    with patch.object(plan, "plan", _small_ivfpq if kind == "ivfpq" else plan.plan):
        build(NAME, images, model=model, store=store, device="cpu", progress=_quiet)
        with closing(Catalog(store.index(NAME))) as catalog:
            _change(catalog, model, _embedding(store, model), first=0)
        rebuild(NAME, store=store, device="cpu", min_recall=0.0, progress=_quiet)
    with closing(Catalog(store.index(NAME))) as catalog:
        _change(catalog, model, _embedding(store, model), first=1)
        if killed:  # then SQLite's log holds what came last
            shutil.copytree(root, root.with_name("left"))
    if killed:
        shutil.rmtree(root)
        root.with_name("left").rename(root)


def _small_ivfpq(count: int, dim: int, **_: object) -> Plan:
    train_rows = count - plan.held_out(count)
    return dataclasses.replace(
        plan._flat(count, dim, "small"),
        kind="ivfpq",
        factory=f"IVF4,PQ{dim // 2}x4fs",
        nlist=4,
        nprobe=4,
        k_factor=10,
        train_rows=train_rows,
    )


def _embedding(store: Store, model: str) -> Callable[[int], np.ndarray]:
    encoder = Encoder.open(store.model(model), threads=1)
    return lambda seed: encoder.embed(np.stack([pixels.decode(photo(seed), SPEC)]))[0]


def _change(catalog: Catalog, model: str, embed: Callable[[int], np.ndarray], *, first: int) -> None:
    """Upserts, new payloads and deletions, others where `first` is another."""
    seeds = range(100 + 10 * first, 105 + 10 * first)
    upserts = [Upsert(f"up {seed}", embed(seed), model, image=photo(seed), payload={"n": seed}) for seed in seeds]
    dim = len(embed(0))
    catalog.upsert(upserts, dim=dim, request_id=f"upsert {first}")
    named = [Upsert(f"{seed:03}.png", payload={"n": seed, "name": "wren"}) for seed in range(first, IMAGES, 3)]
    catalog.upsert(named, dim=dim)
    catalog.delete([f"{5 + first:03}.png", f"up {seeds[0]}"], request_id=f"delete {first}")


def _quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def _damages(root: Path) -> Iterator[Damage]:
    """Of every file: its first and last bytes, and others at random; cut, longer, and not a file."""
    rng = random.Random(1)
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        file, size = path.relative_to(root).as_posix(), path.stat().st_size
        places = {*range(16), *range(size - 16, size), *(rng.randrange(size) for _ in range(FLIPS) if size)}
        for place in sorted(place for place in (range(size) if size <= ALL_BELOW else places) if 0 <= place < size):
            yield Damage(file, "flip", place, rng.randrange(8))
        cuts = {0, 1, size // 2, size - 4096, size - 1, *(rng.randrange(size) for _ in range(FLIPS // 6) if size)}
        for place in sorted(place for place in (range(size) if size <= ALL_BELOW else cuts) if 0 <= place < size):
            yield Damage(file, "cut", place)
        for byte in (0, ord("\n"), ord("1")):
            yield Damage(file, "append", byte)
        for kind in ("delete", *NO_FILE):
            yield Damage(file, kind)
        other = path.parents[1] / {"1": "2", "2": "1"}.get(path.parent.name, "none") / path.name
        if other.exists():
            yield Damage(file, "replace", other=other.relative_to(root).as_posix())


def _outcomes(whole: Path, damages: list[Damage]) -> Counter[tuple[str, str, str]]:
    """What comes of each of some damages, in a copy of the store."""
    logging.disable()
    came = Counter[tuple[str, str, str]]()
    for damage in damages:
        # Another path each time: SQLite takes files at the path of a database that is still open for that one's.
        root = whole.with_name(f"copy-{os.getpid()}-{next(_numbers)}") / "store"
        _copy(whole, root)
        _do(root, damage)
        found = _told(root, None if damage.file.startswith("models") else _encoder(whole))
        shown = "/".join(part for part in Path(damage.file).parts if len(part) != manifest.ID_LENGTH)
        came[shown, damage.kind, _outcome(damage, found, *_expected(whole))] += 1
        shutil.rmtree(root.parent)
    return came


@cache
def _encoder(whole: Path) -> Encoder:
    store = Store(whole)
    return Encoder.open(store.model(store.model_ids()[0]), threads=1)


@cache
def _expected(whole: Path) -> tuple[Told, Told]:
    """What a whole store tells, and one whose second version is gone."""
    root = whole.with_name(f"expected-{os.getpid()}") / "store"
    _copy(whole, root)
    expected = _told(root, _encoder(whole))
    _copy(whole, root)
    shutil.rmtree(root / "indexes" / NAME / "versions" / "2")
    before = _told(root, _encoder(whole))
    assert (expected["version"], before["version"]) == (2, 1)
    assert not [one for one in (*expected.values(), *before.values()) if isinstance(one, Refusal)]
    return expected, before


def _copy(whole: Path, root: Path) -> None:
    shutil.rmtree(root.parent, ignore_errors=True)
    shutil.copytree(whole, root)


def _do(root: Path, damage: Damage) -> None:
    path = root / damage.file
    content = path.read_bytes()
    path.unlink()
    match damage.kind:
        case "flip":
            flipped = bytearray(content)
            flipped[damage.place] ^= 1 << damage.bit
            path.write_bytes(flipped)
        case "cut":
            path.write_bytes(content[: damage.place])
        case "append":
            path.write_bytes(content + bytes([damage.place]))
        case "directory":
            path.mkdir()
        case "dangling":
            path.symlink_to("nowhere")
        case "replace":
            path.write_bytes((root / damage.other).read_bytes())


def _told(root: Path, encoder: Encoder | None) -> Told:
    """What a server that is started tells of the index: answers, or refusals."""
    indexes = Indexes(Store(root))
    if encoder is not None:  # opening it takes most of the time
        indexes._encoders[encoder.model] = encoder
    try:
        indexes.refresh()
        index = _or_refused(lambda: indexes.get(NAME))
        if isinstance(index, Refusal):
            return {"index": index}
        told = {part: _or_refused(ask) for part, ask in _questions(index).items()}
        return {"version": index.number, "problem": indexes.problem(NAME), **told}
    finally:
        indexes.close()


def _or_refused(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception as error:
        status = answers.status_of(error)
        return Refusal(code_pb2.Code.Name(status.code), status.message)


def _questions(index: ActiveIndex) -> dict[str, Callable[[], Any]]:
    """All that clients can ask for; the last bits of similarities differ with where in memory the numbers lie."""
    snapshot, catalog = index.snapshot, index.catalog
    queries = np.random.default_rng(5).standard_normal((4, SPEC.size)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)

    def search(**how: Any) -> list[list[tuple[str, float]]]:
        found = zip(*snapshot.search(queries, 12, **how), strict=True)
        return [[*zip(snapshot.items(rows), near.round(5).tolist(), strict=True)] for near, rows in found]

    def digests() -> list[str]:
        kept = [item.sha256 for item in catalog.page(limit=1_000) if item.source is None and item.sha256]
        return [hashlib.sha256(catalog.image(sha256)).hexdigest() for sha256 in kept]

    def repeated(request: str) -> str:
        try:
            return str(catalog.delete(["000.png"], request_id=request))
        except RequestReused as error:
            return str(error)

    return {
        "search": search,
        "exact": lambda: search(exact=True),
        "filtered": lambda: search(mask=snapshot.matching(filters.parse('n >= 8 AND name = "wren"'))),
        "items": lambda: index.items.of(np.arange(index.version.count)),
        "rows": lambda: index.version.rows_of([f"{seed:03}.png" for seed in range(IMAGES)]),
        "payloads": lambda: catalog.known(snapshot.items(range(snapshot.rows))),
        "page": lambda: catalog.page(limit=1_000),
        "images": digests,
        "curve": lambda: index.calibration and index.calibration.probability([0.1, 0.9995]).tolist(),
        "deleted": catalog.deleted,
        "changes": lambda: [(change[:3], change.vector is None) for change in catalog.changes(0, index.model)],
        "pending": lambda: list(catalog.pending("another")),
        "count": catalog.count,
        "repeated": lambda: [repeated(f"delete {number}") for number in range(2)],
    }


def _outcome(damage: Damage, found: Told, expected: Told, before: Told) -> str:
    if found == expected:
        return "as before"
    refused = [one for one in found.values() if isinstance(one, Refusal)]
    if wrong := [one for one in refused if not _is_told(damage, one)]:
        return f"wrong: {damage} {wrong[0]}"
    if "index" in found:
        return "refused"
    was = expected
    if found["version"] != expected["version"]:
        was = before
        if not _is_told(damage, Refusal("DATA_LOSS", found["problem"])):
            return f"wrong: {damage} {found['problem']}"
    known = {part: one for part, one in found.items() if not isinstance(one, Refusal) and part != "problem"}
    if wrong_parts := {part: one for part, one in known.items() if one != was[part]}:
        return f"wrong: {damage} {wrong_parts}"
    if refused:
        return "partly refused"
    return "the version before" if was is before else "as before"


def _is_told(damage: Damage, refusal: Refusal) -> bool:
    """Whether a refusal is loss of data, and names what was damaged: the file, or what is lost with it.

    What SQLite can't open at all may as well be a disk that refuses.
    """
    path = Path(damage.file)
    codes = ["DATA_LOSS"]
    names = [damage.file]
    if damage.file.startswith(CATALOG):
        names, codes = [CATALOG], ["DATA_LOSS", "RESOURCE_EXHAUSTED"] if damage.kind in NO_FILE else codes
    if path.name == manifest.MANIFEST:  # without it there is no version, and no model; another one names other files
        names += [path.parent.as_posix(), "has no version 2", "no model"]
    return refusal.code in codes and any(name in refusal.message for name in names)
