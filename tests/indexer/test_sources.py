"""Collections: what is found in a folder or a table, how items are named, how decoding reports damage."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from indexer.pixels import PixelSpec
from indexer.sources import SourceError, decode_all, item_of, open_collection, read_table


def _picture(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path, "PNG")
    return path


@pytest.mark.parametrize(
    ("name", "item"),
    [
        (b"a b.png", "a b.png"),
        (b"line\nbreak.png", "line%0Abreak.png"),
        (b"100%.png", "100%25.png"),
        ("straße.png".encode(), "straße.png"),
        (b"\xff\xfe.png", "%FF%FE.png"),
        (b"%FF%FE.png", "%25FF%25FE.png"),
    ],
)
def test_any_file_name_has_an_item_id_and_decodes(tmp_path: Path, name: bytes, item: str) -> None:
    """Spaces, newlines, per cent signs and bytes that are not UTF-8 give printable ids, and the file is read."""
    _picture(tmp_path / os.fsdecode(name))
    (source,) = open_collection(tmp_path).sources
    (decoded,) = decode_all([source], PixelSpec(size=4))
    assert (source.item, source.item.isprintable(), decoded.error) == (item, True, None)


def test_item_ids_are_unique() -> None:
    """Different byte strings never share an id, even where one spells the other's escape."""
    names = [b"\xff", b"%FF", b"%25FF", b"\xc3\xbf", b"%C3%BF", b"a\n", b"a%0A", b"\xff%", b"%FF%25"]
    assert len({item_of(os.fsdecode(name)) for name in names}) == len(names)


def test_a_folder_is_read_whole(tmp_path: Path) -> None:
    """Subfolders are followed, hidden files left out, other files counted, and order is by item."""
    for name in ("b/2.png", "a/1.JPG", ".hidden/3.png", ".4.png"):
        _picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    collection = open_collection(tmp_path)
    assert ([source.item for source in collection.sources], collection.ignored) == (["a/1.JPG", "b/2.png"], 2)


def test_a_store_among_the_images_adds_none(tmp_path: Path) -> None:
    """Whoever works in the folder of images has the store there too, and a model's probe is not one of them."""
    _picture(tmp_path / "1.png")
    _picture(tmp_path / "store" / "probe.png")
    model = tmp_path / "store" / "models" / "0123456789abcdef"
    _picture(model / "probe.png")
    for name in ("model.onnx", "manifest.json"):
        (model / name).touch()
    collection = open_collection(tmp_path)
    assert ([source.item for source in collection.sources], collection.ignored) == (["1.png", "store/probe.png"], 3)


def test_a_linked_folder_is_named_not_followed(tmp_path: Path) -> None:
    """Links between folders may go in circles: they are left out, which a warning says; a linked image is taken."""
    _picture(tmp_path / "elsewhere" / "b.png")
    _picture(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "link.png").symlink_to(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "circle").symlink_to(tmp_path / "photos")
    collection = open_collection(tmp_path / "photos")
    assert [source.item for source in collection.sources] == ["a.png", "link.png"]
    (warning,) = collection.warnings
    assert warning.startswith(f"linked folders in {tmp_path / 'photos'} are not followed (2, for example 'circle');")


def test_a_folder_of_linked_folders_alone_says_so(tmp_path: Path) -> None:
    """Who gathered folders by links learns why nothing was found."""
    _picture(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match=r"no image in .*linked folders .* \(1, for example 'more'\)"):
        open_collection(tmp_path / "photos")


def test_rows_without_a_path_are_told_of(tmp_path: Path) -> None:
    """With how many they are and where the first is; together they were one item, the folder of the table."""
    _picture(tmp_path / "a.png")
    table = tmp_path / "table.csv"
    table.write_text('path,payload\na.png,\n,"{""a"": 1}"\n,"{""a"": 2}"\n')
    collection = open_collection(table)
    assert [source.item for source in collection.sources] == ["a.png"]
    assert collection.warnings == (f"2 rows of {table} are left out, the first: line 3 of {table} has no path",)


def test_rows_that_name_an_image_again_are_told_of(tmp_path: Path) -> None:
    """The first is taken, with its own payload or none, and each of the others is named with its line."""
    for name in ("a.png", "b.png"):
        _picture(tmp_path / name)
    table = tmp_path / "table.csv"
    table.write_text('path,payload\na.png,\nb.png,\na.png,"{""a"": 1}"\n,\nb.png,"{""a"": 2}"\n,"{""a"": 3}"\n')
    collection = open_collection(table)
    assert [source.item for source in collection.sources] == ["a.png", "b.png"]
    assert collection.payloads == {}
    assert [(item, reason.replace(str(table), "it")) for item, reason in collection.unused] == [
        ("line 7", "line 7 of it has no path"),
        ("a.png", "line 4 of it names it again; its first row is taken"),
        ("b.png", "line 6 of it names it again; its first row is taken"),
    ]
    assert [warning.replace(str(table), "it") for warning in collection.warnings] == [
        "1 rows of it are left out, the first: line 7 of it has no path",
        "2 rows of it name images that rows before them name, and are left out, for example 'a.png'",
    ]


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    """A folder without images is refused with what was found and what is accepted."""
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SourceError, match=r"1 other files.*\.jpg"):
        open_collection(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "notes.txt"])
def test_what_is_no_collection_is_an_error(tmp_path: Path, name: str) -> None:
    """A path that is missing or is neither folder nor table is refused by name."""
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SourceError, match=name):
        open_collection(tmp_path / name)


def test_tables_list_paths(tmp_path: Path) -> None:
    """A CSV with a byte-order mark and a Parquet list the same images, relative and absolute ones, once each."""
    cells = ["a.png", str(_picture(tmp_path / "a.png")), str(_picture(tmp_path / "b c.png"))]
    (tmp_path / "t.csv").write_text("path,class_id\n" + "".join(f"{cell},1\n" for cell in cells), "utf-8-sig")
    pyarrow.parquet.write_table(pa.table({"path": cells}), tmp_path / "t.parquet")
    for table in ("t.csv", "t.parquet"):
        assert [source.item for source in open_collection(tmp_path / table).sources] == ["a.png", "b c.png"]


def test_what_a_parquet_table_has_no_value_for_is_empty_text(tmp_path: Path) -> None:
    """As in a CSV: a class that was not given is none, and not one called None."""
    pyarrow.parquet.write_table(pa.table({"path": ["a", "b"], "class_id": [7, None]}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", ["class_id"]) == {"class_id": ["7", ""]}
    pyarrow.parquet.write_table(pa.table({"path": ["a", "b"], "class_id": [7.5, math.nan]}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", ["class_id"]) == {"class_id": ["7.5", ""]}


@pytest.mark.parametrize(
    "text",
    [
        'path,class_id,note\r\n a; b.png,wren ,\r\n"c, ""d"".png", owl,\r\n',
        ' path ;class_id;note\r\n" a; b.png";wren ;\r\n"c, ""d"".png"; owl;\r\n;;\r\n\r\n',
        'note\tpath\tclass_id\n\t a; b.png\twren \n\t"c, ""d"".png"\t owl\n',
        'sep=;\r\nNote;PATH;Class_ID\r\n;" a; b.png";wren \r\n;"c, ""d"".png";owl\r\n',
        '"SEP=|"\npath|Path|class_id\n a; b.png|x|wren\n"c, ""d"".png"|y|owl\n',
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path: Path, text: str) -> None:
    """Commas, semicolons, tabs or what `sep=` tells part cells; columns are named in any case; paths keep spaces."""
    (tmp_path / "t.csv").write_text(text, "utf-8-sig", newline="")
    table = read_table(tmp_path / "t.csv", ["path", "class_id"], optional=["split"])
    assert table == {"path": [" a; b.png", 'c, "d".png'], "class_id": ["wren", "owl"]}
    assert read_table(tmp_path / "t.csv", [], optional=["path_a"]) == {}


def test_a_class_is_one_however_its_letters_are_composed(tmp_path: Path) -> None:
    """\u00e9 is one character or two, as keyboards have it: it was two classes; a file's name stays as it is."""
    cells = {"path": ["e\u0301.png", "\u00e9.png"], "class_id": ["caf\u00e9", " cafe\u0301"]}
    pyarrow.parquet.write_table(pa.table(cells), tmp_path / "t.parquet")
    rows = zip(*([name, *found] for name, found in cells.items()), strict=True)
    (tmp_path / "t.csv").write_text("\n".join(map(",".join, rows)))
    for table in ("t.parquet", "t.csv"):
        assert read_table(tmp_path / table, ["path", "class_id"]) == {**cells, "class_id": ["caf\u00e9"] * 2}


def test_bytes_in_a_parquet_table_are_text(tmp_path: Path) -> None:
    """Not every program that writes one says which columns are texts; other bytes are refused as those of a CSV."""
    pyarrow.parquet.write_table(pa.table({"path": ["é.png".encode()], "class_id": [b"cat"]}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", ["path", "class_id"]) == {"path": ["é.png"], "class_id": ["cat"]}
    pyarrow.parquet.write_table(pa.table({"path": [b"a.png", b"\xff.png"]}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=r"t\.parquet, row 2: path b'\\xff\.png' is not UTF-8 text"):
        read_table(tmp_path / "t.parquet", ["path"])


def test_times_to_the_nanosecond_are_refused_by_row_and_column(tmp_path: Path) -> None:
    """pyarrow makes no Python value of them: what it says names neither the table nor the column."""
    cells = pa.array([None, 1], pa.timestamp("ns"))
    pyarrow.parquet.write_table(pa.table({"path": ["a.png", "b.png"], "payload": cells}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=r"t\.parquet, row 2: payload of type timestamp\[ns\] can't be read"):
        open_collection(tmp_path / "t.parquet")


def test_columns_of_a_parquet_table_are_named_as_those_of_a_csv(tmp_path: Path) -> None:
    """With spaces around them, as pandas reads `path, Split` from a CSV: rows of test were learned from."""
    pyarrow.parquet.write_table(pa.table({" path": [" a.png"], " Split": [" test "]}), tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet", ["path"], optional=["split", "class_id"])
    assert table == {"path": [" a.png"], "split": ["test"]}


@pytest.mark.parametrize("names", [("split", "split"), ("Split", " SPLIT")])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    """Nothing says which of the two is meant; others may come as often as they like."""
    cells = [pa.array([cell]) for cell in ("a.png", "train", "test", "x", "y")]
    header = ("path", *names, "note", "note")
    pyarrow.parquet.write_table(pa.Table.from_arrays(cells, header), tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text(",".join(header) + "\na.png,train,test,x,y\n")
    for table in (tmp_path / "t.parquet", tmp_path / "t.csv"):
        assert read_table(table, ["path"]) == {"path": ["a.png"]}
        with pytest.raises(SourceError, match=f"{table} has 2 columns split; rename all of them but one"):
            read_table(table, ["path"], optional=["split"])


def test_a_row_of_a_table_knows_its_place_in_the_file(tmp_path: Path) -> None:
    """The line that it begins in, blank ones and those in quotes counted; a Parquet table has rows alone."""
    (tmp_path / "t.csv").write_text('path\n\na.png\n""\n"b\n\n.png"\nc.png')
    table = read_table(tmp_path / "t.csv", ["path"])
    places = dict(zip(table["path"], map(table.place, range(3)), strict=True))
    assert places == {"a.png": "line 3", "b\n\n.png": "line 5", "c.png": "line 8"}
    (tmp_path / "t.csv").write_text("sep=;\npath\n\na.png\n")
    assert read_table(tmp_path / "t.csv", ["path"]).place(0) == "line 4"
    pyarrow.parquet.write_table(pa.table({"Path": ["a", "b\0"]}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=r"t\.parquet, row 2: path .* holds a NUL"):
        read_table(tmp_path / "t.parquet", ["path"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"file,class\na.png,1\n", "no column path; its columns are: file, class"),
        (b"path,class\na.png\n", "line 2"),
        (b"path\na.png,1\n", "line 2"),
        (b"path\n\xff.png\n", "save the table as UTF-8"),
        (b"path\r\n" + b"a.png\r\n" * 9999 + b"caf\xe9.png", r"line 10001: b'caf\\xe9\.png' is not UTF-8"),
        ("path\na.png\n".encode("utf-16"), r"line 1: b'\\xff\\xfep\\x00a\\x00t\\x00h\\x00' is not UTF-8"),
        (b'path\n"a.png\n', "can't be read"),
        (b"", "no column path; its columns are: none"),
        (b"path\na.png\nb\0.png\n", "line 3: path .* holds a NUL"),
        (b'path\n\n"a\n.png"\n""\nb\0.png\n', "line 6: path .* holds a NUL"),
        (b'path,note\n\n"a\n.png",x\n,\n"b\n.png"\n', "line 6: it has 1 cells, and the header 2; "),
        (b"sep=;\nFile;Class\n", "no column path; its columns are: File, Class"),
        (b'path\r\n\r\na.png\r\n\r\n"b.png\r\nc.png\r\n', "line 5: .*; is a quote there not closed"),
    ],
)
def test_a_broken_csv_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    """A missing column, ragged lines, other encodings and open quotes are refused, never half read."""
    table = tmp_path / "t.csv"
    table.write_bytes(text)
    with pytest.raises(SourceError, match=message):
        read_table(table, ["path"])


def test_rows_that_cannot_be_used_leave_a_collection_its_others(tmp_path: Path) -> None:
    """One row of millions with a cell too many, or a NUL, is named with its line and what is wrong with it."""
    table = tmp_path / "t.csv"
    table.write_bytes(b"path,payload\na.png,{}\nb.png,{},{}\nc\0.png,{}\nd.png\ne.png,{}\n")
    collection = open_collection(table)
    assert [source.item for source in collection.sources] == ["a.png", "e.png"]
    assert collection.payloads == {"a.png": "{}", "e.png": "{}"}
    needs_quotes = "; a cell with what parts cells in it needs quotes"
    assert collection.unused == (
        ("line 3", f"line 3 of {table}: it has 3 cells, and the header 2{needs_quotes}"),
        ("line 4", f"line 4 of {table}: path 'c\\x00.png' holds a NUL; save it as UTF-8 text"),
        ("line 5", f"line 5 of {table}: it has 1 cells, and the header 2{needs_quotes}"),
    )
    assert collection.warnings == (f"3 rows of {table} are left out, the first: {collection.unused[0][1]}",)
    table.write_bytes(b"path\na.png,1\n")
    with pytest.raises(SourceError, match=r"no image in .*1 rows .* left out, .* line 2 of .*: it has 2 cells"):
        open_collection(table)


def test_a_table_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    """As labels of a collection of shards or Parquet tables may be given by its own folder; with what to give."""
    (tmp_path / "shards").mkdir()
    with pytest.raises(SourceError, match=r"/shards is a folder; name a CSV or Parquet table$"):
        read_table(tmp_path / "shards", ["path"])


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """In words, without the system's number."""
    with pytest.raises(SourceError, match=r"nope\.csv can't be read as a table: No such file or directory$"):
        read_table(tmp_path / "nope.csv", ["path"])


def test_a_broken_parquet_is_refused(tmp_path: Path) -> None:
    """A file that only calls itself Parquet is refused."""
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(SourceError, match="can't be read as a table"):
        read_table(tmp_path / "t.parquet", ["path"])


def test_an_unreadable_folder_is_reported(tmp_path: Path) -> None:
    """A folder that may not be listed is named in `warnings`, and the rest is found."""
    _picture(tmp_path / "open" / "a.png")
    (tmp_path / "closed").mkdir(mode=0)
    script = (
        "import os, sys; from pathlib import Path; from indexer.sources import open_collection\n"
        "if os.geteuid() == 0: os.chdir(sys.argv[1]); os.setgid(65534); os.setuid(65534)\n"
        "found = open_collection(Path('.')); print([s.item for s in found.sources], *found.warnings)"
    )
    for folder in [tmp_path, *list(tmp_path.parents)[:2]]:
        folder.chmod(0o755)
    printed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "['open/a.png'] unreadable folder closed: Permission denied"


def test_damage_is_reported_in_order(tmp_path: Path) -> None:
    """Each source gives one result in its order; a bad one carries its reason and stops nobody."""
    for number in range(100):
        path = _picture(tmp_path / f"{number:03d}.png")
        if number % 10 == 3:
            path.write_bytes(b"text")
    decoded = list(decode_all(open_collection(tmp_path).sources, PixelSpec(size=4), workers=3))
    assert [d.row for d in decoded] == list(range(100))
    assert [d.row for d in decoded if d.error] == list(range(3, 100, 10))
    assert all((d.pixels is None) == (d.error is not None) for d in decoded)
