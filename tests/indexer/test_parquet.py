"""Images in Parquet tables: which column, which ids, read some rows at a time, and what damage costs."""

import io
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from indexer import recorded
from indexer.adopt import open_catalog
from indexer.entries import list_entries
from indexer.importing import import_items
from indexer.pixels import PixelSpec
from indexer.sources import SourceError, decode_all, open_collection
from indexer.store import Store

SPEC = PixelSpec(size=8)


def png(number: int) -> bytes:
    """A small picture; each number another."""
    data = io.BytesIO()
    Image.new("RGB", (20 + number % 50, 20), (number % 256, number // 256, 30)).save(data, "PNG")
    return data.getvalue()


def hugging_face(count: int, first: int = 0) -> pa.Table:
    """A table as `datasets` writes it: a struct of bytes and path, and a label."""
    numbers = range(first, first + count)
    images = [{"bytes": png(number), "path": f"{number:04d}.png"} for number in numbers]
    return pa.table({"image": images, "label": [number % 3 for number in numbers]})


def written(path: Path, columns: Any, rows_in_group: int = 40) -> Path:
    """A Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        columns if isinstance(columns, pa.Table) else pa.table(columns), path, row_group_size=rows_in_group
    )
    return path


@pytest.mark.parametrize("rows_in_group", [7, 40, 1_000])
def test_images_come_from_their_rows(tmp_path: Path, rows_in_group: int) -> None:
    """Each row gives its exact bytes, in any order of reading, whatever the row groups; the paths are the ids."""
    collection = open_collection(written(tmp_path / "train.parquet", hugging_face(150), rows_in_group))
    sources = collection.sources
    assert [source.item for source in sources] == [f"{number:04d}.png" for number in range(150)]
    for order in (range(150), range(149, -1, -1), (140, 3, 75, 74, 3, 149, 0)):
        assert all(sources[row].read() == png(row) for row in order)
    assert [decoded.error for decoded in decode_all(sources, SPEC, workers=5)] == [None] * 150
    assert sources[3].path == tmp_path / "train.parquet" / "0003.png"


@pytest.mark.parametrize(
    ("columns", "items"),
    [
        ({"image": [png(0), png(1)]}, ["t.parquet/0", "t.parquet/1"]),
        ({"image": [png(0), png(1)], "path": ["a/0.png", "a/1.png"]}, ["a/0.png", "a/1.png"]),
        ({"image": [png(0), png(1)], "path": ["a.png", "a.png"]}, ["t.parquet/0", "t.parquet/1"]),
        ({"img": [{"bytes": png(0), "path": None}, {"bytes": png(1), "path": "b"}]}, ["t.parquet/0", "t.parquet/1"]),
        ({"jpg": [png(0), png(1)], "caption": ["x", "y"]}, ["t.parquet/0", "t.parquet/1"]),
        ({"image": [png(0), png(1)], "thumbnail": [b"", b""]}, ["t.parquet/0", "t.parquet/1"]),
        ({"image": [png(0), png(1)], "path": ["../up.png", "/abs\n.png"]}, ["up.png", "abs%0A.png"]),
        ({"Image": [png(0), png(1)], "Path": ["0.png", "1.png"]}, ["0.png", "1.png"]),
        ({"Image": [b"", b""], "image": [png(0), png(1)]}, ["t.parquet/0", "t.parquet/1"]),
    ],
)
def test_the_column_and_the_ids_are_found(tmp_path: Path, columns: dict[str, Any], items: list[str]) -> None:
    """A column `image`, in any case, or else the only one; ids are the paths if there are any and no two agree."""
    sources = open_collection(written(tmp_path / "t.parquet", columns)).sources
    assert [(source.item, source.read()) for source in sources] == list(zip(items, (png(0), png(1)), strict=True))


@pytest.mark.parametrize("name", ["path", "Path "])
def test_a_table_of_paths_stays_one(tmp_path: Path, name: str) -> None:
    """Bytes that are not called `image` beside a column `path` are no images: the paths are, as ever."""
    (tmp_path / "a.png").write_bytes(png(0))
    table = written(tmp_path / "t.parquet", {name: ["a.png"], "image": ["a"], "thumbnail": [png(1)]})
    (source,) = open_collection(table).sources
    assert (source.item, source.read()) == ("a.png", png(0))


def test_a_folder_of_tables_is_one_collection(tmp_path: Path) -> None:
    """Ids begin with the table's path, so that none comes twice; a table without images is told, not fatal."""
    written(tmp_path / "train" / "0.parquet", hugging_face(2))
    written(tmp_path / "train" / "1.parquet", {"image": [png(2)]})
    written(tmp_path / "labels.parquet", {"path": ["x"], "class_id": [1]})
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    collection = open_collection(tmp_path)
    items = ["train/0.parquet/0000.png", "train/0.parquet/0001.png", "train/1.parquet/0"]
    assert [source.item for source in collection.sources] == items
    assert [source.read() for source in collection.sources] == [png(0), png(1), png(2)]
    broken, labels = collection.warnings
    assert "broken.parquet can't be read as a table" in broken
    assert "labels.parquet has no column of images" in labels


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [png(0)], "b": [png(1)]}, "has images in a, b; call the one to use `image`"),
        ({"a": [1]}, "has no column path; its columns are: a"),
        ({"image": pa.array([], pa.binary())}, "no image in"),
    ],
)
def test_a_table_that_can_not_be_meant_is_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    """Several columns of images, none, or one without rows: the error says which there are."""
    with pytest.raises(SourceError, match=message):
        open_collection(written(tmp_path / "t.parquet", columns))


def test_a_row_without_bytes_is_one_bad_image(tmp_path: Path) -> None:
    """A missing image is named by its row, and the others are read."""
    sources = open_collection(written(tmp_path / "t.parquet", {"image": [png(0), None, png(2)]})).sources
    errors = [decoded.error for decoded in decode_all(sources, SPEC)]
    assert errors == [None, "row 1 of its table holds no bytes", None]


def test_damage_costs_its_row_group(tmp_path: Path) -> None:
    """Images of a row group whose pages are damaged are named with the reason; those of the others are read."""
    table = written(tmp_path / "t.parquet", hugging_face(120), 40)
    column = pq.ParquetFile(table).metadata.row_group(1).column(0)
    data = bytearray(table.read_bytes())
    begin = column.dictionary_page_offset or column.data_page_offset
    data[begin : begin + 40] = b"\xff" * 40
    table.write_bytes(data)
    decoded = list(decode_all(open_collection(table).sources, SPEC))
    assert [d.row for d in decoded if d.error] == list(range(40, 80))
    assert all("its table is damaged in row group 1" in d.error for d in decoded if d.error)


@pytest.mark.parametrize("kept_bytes", [0, 5, 2_000])
def test_a_cut_table_is_refused(tmp_path: Path, kept_bytes: int) -> None:
    """Parquet keeps its directory at the end: a table that is cut has none, and is refused by name."""
    table = written(tmp_path / "t.parquet", hugging_face(20))
    table.write_bytes(table.read_bytes()[:kept_bytes])
    with pytest.raises(SourceError, match=r"t\.parquet can't be read as a table"):
        open_collection(table)


def test_a_table_written_anew_is_read_anew(tmp_path: Path) -> None:
    """The rows kept of a table are not those of the table that replaced it."""
    table = written(tmp_path / "t.parquet", hugging_face(3))
    first = open_collection(table).sources[0]
    state, data = first.state(), first.read()
    written(table, hugging_face(4, first=10))
    again = open_collection(table).sources[0]
    assert (data, again.read()) == (png(0), png(10))
    assert again.state() != state


def test_memory_holds_pages_not_the_table(tmp_path: Path) -> None:
    """A table of 160 MB in one row group, its pages of 1 MB, is read with less than half of that in memory."""
    table = tmp_path / "t.parquet"
    zeros = [bytes(20_000 + number) for number in range(8_000)]  # not images: reading is what is measured
    layout = {"compression": "none", "use_dictionary": False, "write_batch_size": 50, "data_page_size": 2**20}
    pq.write_table(pa.table({"image": zeros}), table, **layout)
    script = (
        "import re, sys; from pathlib import Path\n"
        "from indexer.sources import open_collection\n"
        "sources = open_collection(Path(sys.argv[1])).sources\n"
        "peak_kib = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "before = peak_kib(); lengths = [len(source.read()) for source in sources]\n"
        "print(lengths == list(range(20_000, 28_000)), peak_kib() - before)"
    )
    # arrow's own allocator gives memory back by a clock: on a busy machine it would be measured, not what is held
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    command = [sys.executable, "-c", script, str(table)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    whole, grown_kib = done.stdout.split()
    assert whole == "True"
    assert int(grown_kib) < 80_000


def shuffled(folder: Path, count: int) -> tuple[Path, list[str]]:
    """A table of paths into a table of images whose names sort otherwise than they lie, and these as they lie."""
    names = [f"{number * 7 % count:04d}.png" for number in range(count)]
    images = [{"bytes": png(number), "path": name} for number, name in enumerate(names)]
    written(folder / "images.parquet", {"image": images}, count)
    table = folder / "table.csv"
    table.write_text("\n".join(["path", *(f"images.parquet/{name}" for name in sorted(names)), "other.png", ""]))
    return table, names


def test_a_table_of_paths_is_read_as_its_images_lie(tmp_path: Path, store: Store, index: Path) -> None:
    """By name each image would be looked for from the start of its row group, a time that grows by the square.

    So would it when the catalogue lists what was imported, for another model to embed.
    """
    table, names = shuffled(tmp_path, 60)
    (tmp_path / "other.png").write_bytes(png(99))
    wanted = [f"images.parquet/{name}" for name in names]

    sources = open_collection(table).sources

    assert [source.item for source in sources] == ["other.png", *wanted]
    assert [source.read() for source in sources[1:]] == [png(number) for number in range(60)]
    import_items(index.name, table, store=store, progress=lambda *_: None)
    listed = [entry.item for entry in list_entries((), open_catalog(index), mirror=False).entries]
    assert [item for item in listed if item in wanted] == wanted


def test_a_table_that_is_gone_leaves_the_order_of_names(tmp_path: Path) -> None:
    """A path into a table that is not there, is damaged or lacks it is one bad image; the others are read."""
    table, names = shuffled(tmp_path, 30)
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    paths = ["gone.parquet/b.png", "gone.parquet/a.png", "damaged.parquet/a.png", "images.parquet/no.png"]
    table.write_text("\n".join(["path", *paths, *(f"images.parquet/{name}" for name in names), ""]))

    decoded = [*decode_all(open_collection(table).sources, SPEC)]

    assert {one.source.item for one in decoded if one.error} == set(paths)
    assert len(decoded) == len(paths) + len(names)


def test_threads_that_read_at_once_list_a_table_once(tmp_path: Path) -> None:
    """Each of sixteen would hold a list of its own of the same million images."""
    (tmp_path / "images.csv").write_text("path\nimages.parquet/0.png\n")
    (source,) = open_collection(tmp_path / "images.csv").sources  # before there is a table to list
    images = [{"bytes": png(0), "path": f"{number}.png"} for number in range(20_000)]
    written(tmp_path / "images.parquet", {"image": images}, 1_000)
    listed, together = recorded._listed.cache_info().misses, threading.Barrier(4)

    def read(_: int) -> bytes:
        together.wait()
        return source.read()

    with ThreadPoolExecutor(4) as pool:
        assert {*pool.map(read, range(4))} == {png(0)}
    assert recorded._listed.cache_info().misses == listed + 1
