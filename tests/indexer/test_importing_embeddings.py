"""Importing tables of embeddings: what an export wrote, and what others did."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexer import importing_embeddings
from indexer.catalog import Catalog, CatalogCorrupt
from indexer.embedding_table import EmbeddingTable, ModelMismatch
from indexer.exporting import export_items
from indexer.import_report import ImportReport
from indexer.importing import import_items
from indexer.rebuild import rebuild
from indexer.records import Upsert
from indexer.rows import Embeddings
from indexer.source import SourceError
from indexer.store import Store
from tests.conftest import TINY_DIM, nested, publish_tiny_model
from tests.serving import build_photos, make_version

NAME = "photos"


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def imported(table: Path, store: Store, **more: Any) -> ImportReport:
    return import_items(NAME, table, store=store, **{"progress": quiet} | more)


@pytest.fixture
def fresh(tmp_path: Path) -> tuple[Store, str]:
    """A store with an index of two items, and the id of its model."""
    store = Store(tmp_path / "fresh")
    model = publish_tiny_model(store)
    make_version(store, NAME, 1, model, ["first", "second"], units(2, seed=9))
    return store, model


def units(count: int, seed: int = 0) -> Embeddings:
    rows = np.random.default_rng(seed).standard_normal((count, TINY_DIM))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def write(path: Path, columns: dict[str, Any], kind: pa.DataType | None = None) -> Path:
    """A table of these columns, in row groups of three."""
    embedding = pa.array(list(columns["embedding"]), kind or pa.list_(pa.float32()))
    pq.write_table(pa.table({**columns, "embedding": embedding}), path, row_group_size=3)
    return path


def columns_of(model: str, rows: Embeddings, **more: Any) -> dict[str, Any]:
    return {
        "item": [f"item {row}" for row in range(len(rows))],
        "embedding": rows,
        "model": [model] * len(rows),
    } | more


def test_what_was_exported_is_imported_bit_by_bit(tmp_path: Path, fresh: tuple[Store, str]) -> None:
    """Items of the version and upserted ones, with payloads and without; once more, and nothing changes."""
    store, table, again = build_photos(tmp_path, 6), tmp_path / "items.parquet", tmp_path / "again.parquet"
    other, model = fresh
    with closing(Catalog(store.index(NAME))) as catalog:
        catalog.upsert([Upsert("new", units(1)[0], model, payload={"ö": [1, None]})], dim=TINY_DIM)
        catalog.upsert([Upsert("001.png", payload={"year": 2026}), Upsert("002.png", payload={})], dim=TINY_DIM)
    export_items(NAME, table, store=store, progress=quiet)

    assert imported(table, other).imported == 7

    with closing(Catalog(other.index(NAME))) as catalog:
        sequence = catalog.sequence()
        report = imported(table, other)
        assert (report.imported, report.unchanged, catalog.sequence()) == (0, 7, sequence)
    export_items(NAME, again, store=other, progress=quiet)
    before, after = (pq.read_table(path).to_pylist() for path in (table, again))
    assert [row["payload"] for row in before if row["item"] in ("001.png", "002.png")] == ['{"year": 2026}', "{}"]
    assert len(before) == 7
    assert [row for row in after if row["item"] not in ("first", "second")] == before
    assert rebuild(NAME, store=other, progress=quiet).reused == 7


def test_an_index_takes_its_own_export_as_unchanged(tmp_path: Path) -> None:
    """Its items keep their images, and where only a payload differs, that alone is changed."""
    store, table = build_photos(tmp_path, 4), tmp_path / "items.parquet"
    export_items(NAME, table, store=store, progress=quiet)
    rows = pq.read_table(table)
    payloads = pa.array([None, '{"a": 1}', None, None], pa.string())
    pq.write_table(rows.set_column(rows.column_names.index("payload"), "payload", payloads), table)

    report = imported(table, store)

    assert (report.imported, report.unchanged) == (1, 3)
    with closing(Catalog(store.index(NAME))) as catalog:
        known = catalog.get("001.png")
        assert (known.payload, known.source is not None) == ({"a": 1}, True)


def test_a_damaged_payload_is_refused_by_name(tmp_path: Path, fresh: tuple[Store, str]) -> None:
    """What the catalogue holds is compared with the rows before its checksum is."""
    store, model = fresh
    table = write(tmp_path / "items.parquet", columns_of(model, units(2), payload=['{"a": 1}', None]))
    assert imported(table, store).imported == 2
    with closing(sqlite3.connect(store.index(NAME) / "catalog.sqlite")) as damaged, damaged:
        damaged.execute("""UPDATE items SET payload = '{"a' WHERE item = 'item 0'""")

    with pytest.raises(CatalogCorrupt, match="item 0"):
        imported(table, store)


def test_every_bad_row_is_listed_and_the_others_are_taken(tmp_path: Path, fresh: tuple[Store, str]) -> None:
    """Each with its number and what is wrong with it, in all the ways in which a row can be."""
    store, model = fresh
    good: list[Any] = units(19).tolist()
    rows = [
        ("good", good[0], '{"a": 1}', model),
        ("short", good[1][:-1], None, model),
        ("long", [*good[2], 0.5], None, model),
        ("absent", None, None, None),
        ("nan", [float("nan"), *good[3][1:]], None, model),
        ("inf", [float("inf"), *good[4][1:]], None, model),
        ("null within", [None, *good[5][1:]], None, model),
        ("zero", [0.0] * TINY_DIM, None, model),
        (None, good[6], None, model),
        ("", good[7], None, model),
        ("x" * 5000, good[8], None, model),
        ("two\nlines", good[9], None, model),
        ("no JSON", good[10], "{", model),
        ("no object", good[11], "[1]", model),
        ("too large", good[12], json.dumps({"x": "y" * 2**16}), model),
        ("too deep", good[13], json.dumps(nested(31)), model),
        ("other model", good[14], None, "somebody's"),
        ("good", good[15], '{"a": 2}', model),
        ("scaled", (np.array(good[16]) * 7).tolist(), "", model),
        ("last", good[17], "{}", model),
    ]
    items, embeddings, payloads, models = map(list, zip(*rows, strict=True))
    table = write(
        tmp_path / "t.parquet", {"item": items, "embedding": embeddings, "payload": payloads, "model": models}
    )
    listed: list[tuple[str, str]] = []

    report = imported(table, store, left_out=lambda item, reason: listed.append((item, reason)))

    assert (report.imported, report.failed, listed) == (3, 17, report.failures)
    told = {reason.partition(":")[0]: (item, reason) for item, reason in listed}
    assert sorted(int(row.removeprefix("row ")) for row in told) == list(range(2, 19))
    expected = {
        2: ("short", "31 values"),
        3: ("long", "33 values"),
        4: ("absent", "no embedding"),
        5: ("nan", "NaN or infinity"),
        6: ("inf", "NaN or infinity"),
        7: ("null within", "NaN or infinity"),
        8: ("zero", "all zero"),
        9: ("row 9", "no item id"),
        10: ("row 10", "0 bytes"),
        11: ("row 11", "5,000 bytes"),
        12: ("row 12", "control characters"),
        13: ("no JSON", "not a JSON object"),
        14: ("no object", "not a JSON object"),
        15: ("too large", "at most 65,536"),
        16: ("too deep", "30 deep"),
        17: ("other model", model),
        18: ("good", "row 1 is the first"),
    }
    for row, (item, reason) in expected.items():
        assert told[f"row {row}"][0] == item
        assert reason in told[f"row {row}"][1]
    with closing(Catalog(store.index(NAME))) as catalog:
        assert {one.item for one in catalog.page()} == {"first", "second", "good", "scaled", "last"}
        assert catalog.get("good").payload == {"a": 1}
        scaled = catalog.embedding("scaled", model, None)
        assert scaled is not None
        np.testing.assert_allclose(scaled, np.array(good[16]), atol=1e-6)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), TINY_DIM)], ids=str
)
def test_lists_of_other_types_are_taken(tmp_path: Path, fresh: tuple[Store, str], kind: pa.DataType) -> None:
    """As other programs write them, some of them null; ids and models as dictionaries, and no payloads."""
    store, model = fresh
    columns = columns_of(model, units(5), embedding=[*units(4), None])
    columns["item"] = pa.array(columns["item"]).dictionary_encode()
    columns["model"] = pa.array(columns["model"]).dictionary_encode()

    report = imported(write(tmp_path / "t.parquet", columns, kind), store)

    assert (report.imported, [item for item, _ in report.failures]) == (4, ["item 4"])
    with closing(Catalog(store.index(NAME))) as catalog:
        found = catalog.embedding("item 3", model, None)
        assert found is not None
        np.testing.assert_array_equal(found, units(4)[3])


def test_text_that_is_not_utf_8_fails_its_row_alone(tmp_path: Path, fresh: tuple[Store, str]) -> None:
    """An id and a payload, each in one row."""
    store, model = fresh
    items = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    payloads = pa.array([b"{}", b"{}", b"\xff"]).view(pa.string())

    report = imported(write(tmp_path / "t.parquet", columns_of(model, units(3), item=items, payload=payloads)), store)

    assert (report.imported, [item for item, _ in report.failures]) == (1, ["row 2", "c"])


def test_embeddings_of_another_model_are_refused_by_name(tmp_path: Path, fresh: tuple[Store, str]) -> None:
    """Before anything is taken, naming the model of the index; so is a table whose columns are not as they must."""
    store, model = fresh
    rows = units(2)
    for problem, columns in {
        "made by another model.*somebody's.*" + model: columns_of("somebody's", rows),
        "no column model": {"item": ["a", "b"], "embedding": rows},
        "item is of type int64": columns_of(model, rows, item=[1, 2]),
        "payload is of type struct": columns_of(model, rows, payload=[{"a": 1}, {"a": 2}]),
        "has no row": columns_of(model, rows[:0]),
    }.items():
        with pytest.raises(SourceError, match=problem):
            imported(write(tmp_path / "t.parquet", columns), store)
    with pytest.raises(SourceError, match="embedding is of type double"):
        imported(write(tmp_path / "t.parquet", columns_of(model, rows, embedding=[1.0, 2.0]), pa.float64()), store)
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(SourceError, match="can't be read as a table"):
        imported(tmp_path / "t.parquet", store)
    with closing(Catalog(store.index(NAME))) as catalog:
        assert catalog.sequence() == 0


def test_it_ends_where_another_model_is_activated_meanwhile(
    tmp_path: Path, fresh: tuple[Store, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was taken by then stays."""
    store, model = fresh
    monkeypatch.setattr(importing_embeddings, "_ROWS", 3)

    def progress(stage: str, done: int, total: int) -> None:
        if done == 3:
            make_version(store, NAME, 2, publish_tiny_model(store, seed=1), ["first"], units(1))

    with pytest.raises(ModelMismatch, match=f"not of '{model}'"):
        imported(write(tmp_path / "t.parquet", columns_of(model, units(7))), store, progress=progress)
    with closing(Catalog(store.index(NAME))) as catalog:
        assert catalog.count() == 2 + 3


def test_what_people_change_meanwhile_stays_so(
    tmp_path: Path, fresh: tuple[Store, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it goes on after it was killed in the middle, too; and what is there by then is not written again."""
    store, model = fresh
    monkeypatch.setattr(importing_embeddings, "_ROWS", 3)
    table = write(tmp_path / "t.parquet", columns_of(model, units(9)))

    class Killed(Exception):
        pass

    with closing(Catalog(store.index(NAME))) as catalog:

        def progress(stage: str, done: int, total: int) -> None:
            if done == 6:
                catalog.delete(["item 1"])
                theirs = [
                    Upsert(item, units(1, 5)[0], model, payload={"by": "a user"}) for item in ("item 2", "item 8")
                ]
                catalog.upsert(theirs, dim=TINY_DIM)
                raise Killed

        began = catalog.sequence()
        with pytest.raises(Killed):
            imported(table, store, progress=progress)
        before = catalog.sequence()

        report = imported(table, store, since=lambda _: began)

        assert (report.imported, report.unchanged, catalog.sequence()) == (2, 4, before + 2)
        assert [item for item, why in report.failures if "since the import began" in why] == [
            "item 1",
            "item 2",
            "item 8",
        ]
        assert catalog.known(["item 1"]) == {}
        assert {catalog.get(item).payload["by"] for item in ("item 2", "item 8")} == {"a user"}  # type: ignore[index]


def test_a_table_is_read_some_rows_at_a_time(tmp_path: Path) -> None:
    """Across its row groups, up to as many as are wanted, each row once."""
    table = EmbeddingTable(write(tmp_path / "t.parquet", columns_of("m", units(10))), "m")
    batches = [*table.read(TINY_DIM, 4)]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert [one.row for batch in batches for one in batch] == list(range(1, 11))
