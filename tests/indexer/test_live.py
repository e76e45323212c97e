"""A live index against brute force over the items that are live, whatever was done to them."""

import contextlib
import dataclasses
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from indexer import delta, ivfpq, live, live_snapshot
from indexer.adopt import adopt, switch, take_in
from indexer.catalog import CATALOG, Catalog, CatalogCorrupt
from indexer.filters import parse
from indexer.items import UnknownItem
from indexer.ivfpq import Rows
from indexer.live import LiveIndex
from indexer.live_snapshot import Snapshot
from indexer.records import Change, Upsert
from indexer.rows import Embeddings
from indexer.store import Store
from indexer.version import open_version
from tests.serving import make_version

MODEL = "model"


class Twin:
    """A live index, and the same as a dictionary."""

    def __init__(self, store: Store, count: int, dim: int, centres: int = 0) -> None:
        self.rng, self.dim = np.random.default_rng(0), dim
        self.centres = 2 * self.rng.standard_normal((centres, dim)).astype(np.float32)
        self.truth = {f"item {row}": vector for row, vector in enumerate(self.vectors(count))}
        make_version(store, "twin", 1, MODEL, list(self.truth), np.stack(list(self.truth.values())))
        self.version = open_version(store.index("twin") / "versions" / "1")
        self.catalog = Catalog(store.index("twin"))
        adopt(self.catalog, self.version)
        self.live = LiveIndex(self.version, self.catalog)

    def vectors(self, count: int) -> Embeddings:
        """(count, dim) of unit length, around the centres if there are any."""
        drawn = self.rng.standard_normal((count, self.dim))
        if len(self.centres):
            drawn += self.centres[self.rng.integers(0, len(self.centres), count)]
        return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)

    def upsert(self, *items: str) -> None:
        vectors = self.vectors(len(items))
        upserts = [Upsert(item, vector, MODEL) for item, vector in zip(items, vectors, strict=True)]
        outcomes = self.catalog.upsert(upserts, dim=self.dim)
        assert {""} >= {outcome.reason for outcome in outcomes}
        self.truth.update(zip(items, vectors, strict=True))

    def delete(self, *items: str) -> None:
        assert {""} >= {outcome.reason for outcome in self.catalog.delete(items)}
        for item in items:
            self.truth.pop(item, None)

    def anything(self) -> None:
        """Upsert new, live and deleted items, and delete some that are live."""
        ids = self.rng.permutation(3 * self.version.count)[: self.rng.integers(0, 400)]
        self.upsert(*(f"item {number}" for number in ids))
        names, most = [*self.truth], min(len(self.truth) - 20, int(self.rng.integers(0, 200)))
        self.delete(*(names[place] for place in self.rng.permutation(len(names))[:most]))

    def check(self, snapshot: Snapshot, *, k: int, allowed: Callable[[str], bool] = lambda _: True) -> None:
        """Approximate and exact searches give what brute force over the live items gives."""
        queries = self.vectors(3)
        names = [item for item in self.truth if allowed(item)]
        matrix = np.stack([self.truth[item] for item in names]) if names else np.empty((0, self.dim), np.float32)
        expected = -np.sort(-(queries @ matrix.T), axis=1)[:, :k]
        everyone = snapshot.items(range(snapshot.rows))
        mask = np.array([allowed(item) for item in everyone])
        nprobe = snapshot.version.manifest.plan["nlist"] or None
        for exact in (True, False):
            similarities, rows = snapshot.search(
                queries, k, nprobe=nprobe, k_factor=1_000, exact=exact, mask=None if mask.all() else mask
            )
            np.testing.assert_allclose(similarities, expected, atol=1e-5)
            for query, found in zip(queries, rows, strict=True):
                items = snapshot.items(found)
                assert len(set(items)) == len(items)
                own = [float(query @ self.truth[item]) for item in items]
                np.testing.assert_allclose(own, np.sort(own)[::-1], atol=1e-5)

    def close(self) -> None:
        self.catalog.close()


@pytest.fixture(params=[400, 5_000], ids=["flat", "codes"])
def twin(request: pytest.FixtureRequest, store: Store) -> Iterator[Twin]:
    """A flat version, and one with codes."""
    twin = Twin(store, request.param, dim=16)
    yield twin
    twin.close()


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Twin, Rows]]:
    """A live index of 100 clusters with a delta and hidden rows, and the cluster of each of its rows."""
    twin = Twin(Store(tmp_path_factory.mktemp("clusters")), 5_000, dim=16, centres=100)
    twin.upsert(*(f"item {number}" for number in range(0, 900, 3)))
    twin.delete(*(f"item {number}" for number in range(1, 900, 3)))
    twin.live.refresh()
    yield twin, (twin.live.snapshot.embeddings(np.arange(twin.live.snapshot.rows)) @ twin.centres.T).argmax(axis=1)
    twin.close()


def test_results_are_those_of_brute_force(twin: Twin) -> None:
    """After any sequence of upserts, deletions and refreshes the live items, and only they, are found, in order."""
    for step in range(8):
        for _ in range(step % 3 + 1):
            twin.anything()
        twin.live.refresh()
        snapshot = twin.live.snapshot
        assert snapshot.count == len(twin.truth)
        twin.check(snapshot, k=10)
    assert twin.live.snapshot.delta.sealed > 0 or twin.version.index.codes is None
    twin.check(LiveIndex(twin.version, twin.catalog).snapshot, k=10)


@pytest.mark.parametrize("share", [0.0002, 0.01, 0.3, 0.9, 1.0])
def test_masks_leave_k_full_at_every_selectivity(twin: Twin, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever share of the rows may be found, k of them are found if so many are live, by codes too."""
    monkeypatch.setattr(live_snapshot, "FEW_ROWS", 50)
    twin.anything()
    twin.live.refresh()
    chosen = {item for item in twin.truth if twin.rng.random() < share} | {next(iter(twin.truth))}
    twin.check(twin.live.snapshot, k=20, allowed=lambda item: item in chosen)
    twin.check(twin.live.snapshot, k=20, allowed=lambda _: False)


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["random", "clusters"])
def test_masks_keep_recall_at_every_selectivity(
    clusters: tuple[Twin, Rows], share: float, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least 9 in 10 of the nearest matching items are found at the cheapest point, whatever the mask leaves."""
    monkeypatch.setattr(live_snapshot, "FEW_ROWS", 20)
    twin, labels = clusters
    rng, snapshot = np.random.default_rng(7), twin.live.snapshot
    if kind == "random":
        mask = rng.random(snapshot.rows) < share
    else:  # where fewer than one cluster is wanted, a part of one
        mask = (labels < np.ceil(share * 100)) & (rng.random(snapshot.rows) < share * 100)
    mask[2] = True
    queries = snapshot.embeddings(rng.integers(0, snapshot.rows, 100))
    similarities, rows = snapshot.search(queries, 10, nprobe=4, k_factor=10, mask=mask)
    assert mask[rows].all()
    matching = np.flatnonzero(mask & snapshot.live)
    expected = -np.sort(-(queries @ snapshot.embeddings(matching).T), axis=1)[:, :10]
    assert expected.shape == similarities.shape
    assert (similarities >= expected[:, -1:] - 1e-6).mean() >= 0.9


def test_a_few_rows_that_match_are_all_compared(clusters: tuple[Twin, Rows]) -> None:
    """None of the nearest is missed, however few lists and candidates are asked for."""
    snapshot = clusters[0].live.snapshot
    mask = np.arange(snapshot.rows) % 5 == 2
    queries = snapshot.embeddings(np.arange(0, snapshot.rows, 50))
    similarities, _ = snapshot.search(queries, 10, nprobe=1, k_factor=1, mask=mask)
    expected = -np.sort(-(queries @ snapshot.embeddings(np.flatnonzero(mask & snapshot.live)).T), axis=1)[:, :10]
    np.testing.assert_allclose(similarities, expected, atol=1e-6)


def test_who_wants_fewer_neighbours_misses_no_more(twin: Twin) -> None:
    """With rows of a delta among the codes too, the first of ten neighbours are found alone."""
    twin.upsert(*(f"new {n}" for n in range(300)))
    twin.live.refresh()
    queries = twin.vectors(100)
    ten, _ = twin.live.snapshot.search(queries, 10)
    for k in (1, 2, 3, 5):
        alone, _ = twin.live.snapshot.search(queries, k)
        assert (alone >= ten[:, :k] - 1e-6).all()


def test_k_is_full_with_one_list_scanned(twin: Twin) -> None:
    """Where the lists scanned hold fewer than k live items the rest is found too."""
    twin.upsert(*(f"new {n}" for n in range(300)))
    twin.delete(*(f"item {n}" for n in range(390)))
    twin.live.refresh()
    similarities, rows = twin.live.snapshot.search(twin.vectors(4), 250, nprobe=1, k_factor=1)
    assert rows.shape == (4, 250)
    assert np.isfinite(similarities).all()
    for found in rows:
        assert set(twin.live.snapshot.items(found)) <= twin.truth.keys()


def test_everything_can_be_deleted(twin: Twin) -> None:
    """An index without a live item gives nothing; what is upserted then is found."""
    twin.delete(*list(twin.truth))
    twin.live.refresh()
    assert twin.live.snapshot.search(twin.vectors(2), 10)[1].shape == (2, 0)
    twin.upsert("item 1", "new")
    twin.live.refresh()
    twin.check(twin.live.snapshot, k=10)


def test_a_snapshot_stays_as_it_is(twin: Twin) -> None:
    """A search on an older snapshot gives what it gave, and its items, rows and embeddings are those of then."""
    twin.upsert("item 1", "new")
    twin.live.refresh()
    old, truth, queries = twin.live.snapshot, dict(twin.truth), twin.vectors(3)
    before, row = old.search(queries, 30, exact=True), old.row_of("new")
    for _ in range(5):
        twin.anything()
        twin.upsert("new")
        twin.delete("item 1")
        twin.upsert("item 1")
        twin.live.refresh()
    for found, expected in zip(old.search(queries, 30, exact=True), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert (row, truth["new"].tolist()) == (old.row_of("new"), old.embedding(row).tolist())
    assert len(truth) == old.count
    assert twin.live.snapshot.embedding(twin.live.snapshot.row_of("new")).tolist() == twin.truth["new"].tolist()


def test_searches_while_items_change_end_on_what_they_began_with(twin: Twin) -> None:
    """Eight threads search while one upserts and deletes: each result is full, and right for its own snapshot."""
    problems, done = list[str](), threading.Event()
    queries = twin.vectors(64)

    def search(number: int) -> None:
        while not done.is_set():
            snapshot = twin.live.snapshot
            similarities, rows = snapshot.search(queries[number : number + 2], 10)
            vectors = np.stack([snapshot.embedding(int(row)) for row in rows[0]])
            if not np.allclose(vectors @ queries[number], similarities[0], atol=1e-5) or rows.max() >= snapshot.rows:
                problems.append(f"thread {number} at change {snapshot.sequence}")

    threads = [threading.Thread(target=search, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        twin.anything()
        twin.live.refresh()
    done.set()
    for thread in threads:
        thread.join()
    assert problems == []
    twin.check(twin.live.snapshot, k=10)


def test_rows_name_their_items(twin: Twin) -> None:
    """Items and rows map to one another for live items; deleted ones and ones that never were are unknown."""
    twin.upsert("item 3", "new")
    twin.delete("item 4")
    twin.live.refresh()
    snapshot = twin.live.snapshot
    names = ["new", "item 3", "item 5", "new"]
    rows = [snapshot.row_of(item) for item in names]
    assert names == snapshot.items(rows)
    for item in names:
        assert twin.truth[item].tolist() == snapshot.embedding(snapshot.row_of(item)).tolist()
    for item in ("item 4", "never", "\ud800"):
        with pytest.raises(UnknownItem):
            snapshot.row_of(item)
    for row in (-1, snapshot.rows):
        with pytest.raises(IndexError):
            snapshot.embedding(row)
        with pytest.raises(IndexError):
            snapshot.items([row])


def test_wrong_masks_are_refused(twin: Twin) -> None:
    """A mask of another length or type is a ValueError that says what is expected."""
    rows = twin.live.snapshot.rows
    for mask in (np.ones(rows - 1, bool), np.ones(rows, np.uint8)):
        with pytest.raises(ValueError, match=rf"expected bool \({rows},\)"):
            twin.live.snapshot.search(twin.vectors(1), 1, mask=mask)  # type: ignore[arg-type]


def test_filters_read_payloads_by_row(twin: Twin) -> None:
    """Payloads of the version's items and of upserted ones are filtered by, and a changed payload at once."""
    twin.upsert("new 1", "new 2")
    paint = {"item 1": "red", "item 2": "blue", "new 1": "red", "new 2": "blue"}
    twin.catalog.upsert([Upsert(item, payload={"colour": colour}) for item, colour in paint.items()], dim=twin.dim)
    twin.live.refresh()
    red = parse('colour = "red"')

    def matching(snapshot: Snapshot) -> list[str]:
        _, rows = snapshot.search(twin.vectors(1), 50, mask=snapshot.matching(red))
        return sorted(snapshot.items(rows[0]))

    def both() -> list[str]:
        """By the index that saw the changes, as by one that is opened after them."""
        found = matching(twin.live.snapshot)
        assert found == matching(LiveIndex(twin.version, twin.catalog).snapshot)
        return found

    assert (
        ["item 1", "new 1"]
        == matching(twin.live.snapshot)
        == matching(LiveIndex(twin.version, twin.catalog).snapshot)
    )
    before = twin.live.snapshot
    twin.catalog.upsert([Upsert("item 1", payload={}), Upsert("item 2", payload={"colour": "red"})], dim=twin.dim)
    twin.live.refresh()
    assert (
        ["item 2", "new 1"]
        == matching(twin.live.snapshot)
        == matching(LiveIndex(twin.version, twin.catalog).snapshot)
    )
    assert matching(before) == ["item 1", "new 1"]
    twin.check(twin.live.snapshot, k=10)


def test_an_item_of_another_model_is_not_searched(twin: Twin) -> None:
    """Not by another model's embedding alone; with an image, the version's row stays until this model embeds it."""
    vectors = twin.vectors(4)
    upserts = [
        Upsert("item 1", vectors[0], "other"),
        Upsert("item 2", vectors[1], "other", image=b"another image"),
        Upsert("new", vectors[2], "other", image=b"image"),
        Upsert("never", vectors[3], "other"),
    ]
    twin.catalog.upsert(upserts, dim=twin.dim)
    twin.live.refresh()
    del twin.truth["item 1"]
    twin.check(twin.live.snapshot, k=10)
    twin.check(LiveIndex(twin.live.version, twin.catalog).snapshot, k=10)
    _, waiting = twin.catalog.pending(MODEL)
    twin.truth["new"] = twin.vectors(1)[0]
    twin.catalog.embed(waiting, MODEL, twin.truth["new"])
    twin.live.refresh()
    twin.check(twin.live.snapshot, k=10)


def test_rows_of_replaced_items_are_let_go(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upserting the same few items again and again does not grow the delta without end."""
    monkeypatch.setattr(live, "DEAD_ROWS", 100)
    for _ in range(20):
        twin.upsert(*(f"new {n}" for n in range(50)))
        twin.live.refresh()
        assert twin.live.snapshot.delta.count <= 50 + 150 + 50
        assert twin.live.snapshot.dead == twin.live.snapshot.delta.count - 50
    twin.check(twin.live.snapshot, k=10)


def test_a_quiet_index_puts_its_newest_rows_into_the_codes(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """When nothing more comes, a refresh leaves no row to be compared one by one, and the results as they were."""
    twin.upsert("new", "item 3")
    twin.live.refresh()
    before = twin.live.snapshot
    assert before.delta.sealed == 0
    monkeypatch.setattr(live, "QUIET_S", 0.0)
    twin.live.refresh()
    assert twin.live.snapshot.delta.sealed == (0 if twin.version.index.codes is None else 2)
    for snapshot in (before, twin.live.snapshot):
        twin.check(snapshot, k=10)
    twin.upsert("newer", "new")
    twin.live.refresh()
    twin.check(twin.live.snapshot, k=10)


def test_what_is_opened_is_what_grew(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening reads all changes at once and encodes them in pieces; rows and results are those of a live index."""
    monkeypatch.setattr(live, "_CHUNK", 100)
    monkeypatch.setattr(ivfpq, "ADD_CHUNK", 64)
    for first in range(0, 900, 300):
        twin.upsert(*(f"new {number}" for number in range(first, first + 300)))
        twin.live.refresh()
    twin.catalog.upsert([Upsert("item 5", payload={"year": 1999}), Upsert("new 7", payload={"year": 1999})], dim=16)
    twin.delete("item 1", "new 3")
    twin.live.refresh()
    grown, opened = twin.live.snapshot, LiveIndex(twin.version, twin.catalog).snapshot
    assert (grown.count, grown.sequence) == (opened.count, opened.sequence)
    assert opened.delta.sealed == (0 if twin.version.index.codes is None else opened.delta.count)
    queries = twin.vectors(20)
    for one in (grown, opened):
        twin.check(one, k=10)
        assert set(twin.truth) == set(one.items(np.flatnonzero(one.live)))
        dated = np.flatnonzero(one.matching(parse("year = 1999")) & one.live)
        assert {"item 5", "new 7"} == set(one.items(dated))
    similarities, rows = opened.search(queries, 10, nprobe=1)
    expected, grown_rows = grown.settled().search(queries, 10, nprobe=1)
    np.testing.assert_allclose(similarities, expected, atol=1e-6)
    assert opened.items(rows.ravel()) == grown.items(grown_rows.ravel())


def test_few_and_many_candidates_sort_alike() -> None:
    """The nearest k are the same, whether they are set apart first or not."""
    rng = np.random.default_rng(0)
    for width in (5, 50, 5_000):
        similarities = rng.standard_normal((4, width)).astype(np.float32)
        rows = np.tile(np.arange(width), (4, 1))
        found, places = delta.best(similarities, rows, 5)
        np.testing.assert_array_equal(-np.sort(-similarities, axis=1)[:, :5], found)
        np.testing.assert_array_equal(np.take_along_axis(similarities, places, 1), found)


def test_changes_of_another_process_are_taken_in(twin: Twin) -> None:
    """What another process committed is found after a refresh; without one nothing changes."""
    program = (
        "import sys; import numpy as np; from pathlib import Path; from indexer.catalog import Catalog; "
        "from indexer.records import Upsert; catalog = Catalog(Path(sys.argv[1])); "
        "catalog.upsert([Upsert('theirs', np.eye(1, 16, dtype=np.float32)[0], 'model')], dim=16); "
        "catalog.delete(['item 2'])"
    )
    subprocess.run([sys.executable, "-c", program, str(twin.catalog.path.parent)], check=True)
    assert len(twin.truth) == twin.live.snapshot.count
    assert twin.live.refresh() == 2
    assert twin.live.refresh() == 0
    del twin.truth["item 2"]
    twin.truth["theirs"] = np.eye(1, 16, dtype=np.float32)[0]
    twin.check(twin.live.snapshot, k=10)


def test_what_changes_while_an_index_is_opened_is_as_it_is_then(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """An item comes twice that is changed after it was read: a deleted one was found on, another by its old image."""
    read = twin.catalog.changes
    twin.catalog.upsert([Upsert(f"item {number}", payload={"year": 1999}) for number in range(3)], dim=twin.dim)

    def changes(after: int, model: str) -> Iterator[Change]:
        for change in read(after, model):
            yield change
            if change.item == "item 2":
                twin.delete("item 0")
                twin.upsert("item 1")

    monkeypatch.setattr(twin.catalog, "changes", changes)
    snapshot = LiveIndex(twin.version, twin.catalog).snapshot
    assert (snapshot.count, snapshot.sequence) == (len(twin.truth), twin.catalog.sequence())
    assert len(np.flatnonzero(snapshot.matching(parse("year = 1999")) & snapshot.live)) == 2
    twin.check(snapshot, k=10)
    np.testing.assert_array_equal(snapshot.embedding(snapshot.row_of("item 1")), twin.truth["item 1"])


def test_a_catalogue_older_than_its_version_is_refused(store: Store, tmp_path: Path) -> None:
    """A version made at a change that the catalogue never had is not searched: changes would go missing."""
    twin = Twin(store, 50, dim=16)
    twin.close()
    twin.version.manifest = dataclasses.replace(twin.version.manifest, sequence=7)
    with contextlib.closing(Catalog(tmp_path / "other")) as other, pytest.raises(CatalogCorrupt, match=CATALOG):
        LiveIndex(twin.version, other)


def test_what_the_next_version_lacks_is_found_until_that_is_open(tmp_path: Path) -> None:
    """Opening it takes a while, in which the version until now answers whole; what users delete meanwhile is gone."""
    store = Store(tmp_path)
    twin, other = Twin(store, 60, 8), [f"other {row}" for row in range(50)]
    make_version(store, "twin", 2, MODEL, other, twin.vectors(50))
    following = open_version(store.index("twin") / "versions" / "2")
    take_in(store.index("twin"), twin.catalog, following)
    assert switch(store.index("twin"), twin.catalog, 2) == ()
    assert twin.catalog.count() == len(other)
    twin.live.refresh()
    twin.check(twin.live.snapshot, k=10)
    twin.upsert("item 70")
    twin.delete("item 3")
    twin.live.refresh()
    twin.check(twin.live.snapshot, k=10)
    assert LiveIndex(following, twin.catalog).snapshot.count == len(other) + 1
    twin.close()
