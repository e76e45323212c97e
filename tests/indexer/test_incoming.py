"""What an import goes through, and how the rows that name something again are told without holding a table."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexer.incoming import open_incoming
from indexer.repeats import Repeats
from indexer.source import SourceError
from indexer.sources import open_collection


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_is_gone_through_as_it_is_listed(tmp_path: Path, ending: str) -> None:
    """The same images with the same payloads, and the same that are left out; in the order of the table."""
    table = tmp_path / f"t.{ending}"
    paths, payloads = ["b.png", "a.png", "", "b.png", "/elsewhere/c.png"], ['{"x": 1}', "", "", "[1]", "wren"]
    if ending == "csv":
        cells = ['"' + payload.replace('"', '""') + '"' for payload in payloads]
        table.write_text("Path,n,payload\n" + "".join(f"{a},1,{b}\n" for a, b in zip(paths, cells, strict=True)))
    else:
        pq.write_table(pa.table({"payload": payloads, "Path": paths}), table, row_group_size=2)

    incoming, listed = open_incoming(table), open_collection(table)
    found = [*incoming.wanted]

    assert (incoming.total, [one.item for one in found][:2]) == (5, ["b.png", "a.png"])
    usable = {one.item: one for one in found if not one.error}
    assert {item: one.source for item, one in usable.items()} == {one.item: one for one in listed.sources}
    assert {item: one.payload for item, one in usable.items() if one.payload} == listed.payloads
    assert sorted((one.item, one.error) for one in found if one.error) == sorted(listed.unused)


def test_images_in_archives_come_in_the_order_in_which_they_lie_there(tmp_path: Path) -> None:
    """Whatever the order of the table: going back in one means to read it again."""
    names = [f"{number}.png" for number in range(6)]
    cells = [{"bytes": b"", "path": name} for name in names]
    pq.write_table(pa.table({"image": cells}), tmp_path / "images.parquet")
    rows = [f"images.parquet/{name}" for name in reversed(names)]
    (tmp_path / "t.csv").write_text("\n".join(["path", *rows, ""]))
    found = [one.item for one in open_incoming(tmp_path / "t.csv").wanted]
    assert found == [f"images.parquet/{name}" for name in names]


def test_a_table_that_can_not_be_read_to_its_end_is_refused_before_anything_is_taken(tmp_path: Path) -> None:
    """And one that names no image."""
    (tmp_path / "t.csv").write_text('path,payload\na.png,\n"b.png\n')
    with pytest.raises(SourceError, match=r"line 3: .* is a quote there not closed"):
        open_incoming(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("path,payload\n,{}\n")
    with pytest.raises(SourceError, match=r"no image in .*1 rows of .* line 2 of .* has no path"):
        open_incoming(tmp_path / "t.csv")


def test_ids_of_one_hash_are_not_taken_for_one() -> None:
    """Only equal ids come again, each after its own first row."""
    ids = [-1, -2, "a", -2, -1, "a", "b"]
    assert hash(-1) == hash(-2)
    repeats = Repeats(ids)
    assert [repeats.first(one, row) for row, one in enumerate(ids)] == [0, 1, 2, 1, 0, 2, 6]
