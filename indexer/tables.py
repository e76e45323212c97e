"""CSV and Parquet tables of text: paths of images, labels."""

import csv
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from indexer.source import SourceError, shown

_DELIMITERS = (",", ";", "\t")  # spreadsheets write semicolons where the comma is in numbers
_TOLD = re.compile(r'"?sep=(.)"?', re.IGNORECASE)  # the first line by which Excel is told what parts cells
_PATHS = ("path", "path_a", "path_b")  # whose spaces may be those of a file's name
_UNDECODED = re.compile(r".{,20}[\udc80-\udcff].{,20}")  # and what stands around it


@dataclass(frozen=True, eq=False)
class Table(Mapping[str, list[str]]):
    """Columns by their names, as long as each other.

    Attributes:
        columns: as the mapping has them.
        lines: of each row, the one of the file that it begins in, from 1; None where the file has no lines.
    """

    columns: Mapping[str, list[str]]
    lines: Sequence[int] | None

    def place(self, row: int) -> str:
        """Where a row, counted from 0, stands in the file, for messages: its line, or its number from 1."""
        return f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"

    def __getitem__(self, name: str) -> list[str]:
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)


def read_table(path: Path, columns: Iterable[str], optional: Iterable[str] = ()) -> Table:
    """Columns of a CSV (UTF-8, header line) or Parquet table as text, `optional` ones where they exist.

    Cells of a CSV are parted by commas, or by semicolons or tabs where its header is, or as its first line `sep=;`
    says. Names of columns are taken in any case, one spelled as asked for first. Spaces around them and around cells
    are left out, but for those of paths; classes are as `class_name` has them. What a Parquet table has no value for
    is empty text.

    Raises:
        SourceError: the file can't be read, is not such a table, lacks a column of `columns`, or has one twice.
    """
    wanted = (*columns, *optional)
    try:
        names, table = _read_parquet(path, wanted) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except UnicodeDecodeError as error:
        raise SourceError(f"{shown(path)}{_undecoded(path)} is not UTF-8 text; save the table as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise unreadable(path, error) from error
    spelled = {name: there for name in wanted if (there := _spelled(path, name, names)) is not None}
    missing = [name for name in columns if name not in spelled]
    if missing:
        raise SourceError(
            f"{shown(path)} has no column {', '.join(missing)}; its columns are: "
            f"{', '.join(dict.fromkeys(names)) or 'none, it is empty'}"
        )
    chosen = {name: _meant(name, table[there]) for name, there in spelled.items()}
    for name, cells in chosen.items():
        for row, cell in enumerate(cells):
            if "\0" in cell:
                where = f"{shown(path)}, {table.place(row)}"
                raise SourceError(f"{where}: {name} {cell!r} holds a NUL; save it as UTF-8 text")
    return Table(chosen, table.lines)


def _meant(name: str, cells: list[str]) -> list[str]:
    if name in _PATHS:
        return cells
    return [class_name(cell) if name == "class_id" else cell.strip() for cell in cells]


def class_name(cell: str) -> str:
    """What a class is called, whatever typed it: without spaces around it, and é as one character, never as two."""
    return unicodedata.normalize("NFC", cell.strip())


def unreadable(path: Path, error: OSError | csv.Error) -> SourceError:
    """The error of a table that can't be read."""
    if isinstance(error, IsADirectoryError):
        return SourceError(f"{shown(path)} is a folder; name a CSV or Parquet table")
    reason = error.strerror if isinstance(error, OSError) else None
    return SourceError(f"{shown(path)} can't be read as a table: {reason or error}")


def _spelled(path: Path, name: str, names: Sequence[str]) -> str | None:
    """What a table calls a column: a `Split` that is overlooked would let what judges be learned from."""
    found = [there for there in names if is_called(there, [name])]
    exact = [there for there in found if there == name]
    if len(exact or found) > 1:
        raise SourceError(f"{shown(path)} has {len(exact or found)} columns {name}; rename all of them but one")
    return next(iter(exact or found), None)


def is_called(there: str, names: Iterable[str]) -> bool:
    """Whether a column of a table is one of these, spelled in any case and with spaces around it."""
    return there.strip().lower() in names


def _read_csv(path: Path) -> tuple[list[str], Table]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        first = file.readline()
        told = _TOLD.fullmatch(first.rstrip("\r\n"))
        if not told:
            file.seek(0)
        rows = _numbered(file, told[1], 2) if told else _numbered(file, _delimiter(first), 1)
        _, header = next(rows, (1, []))
        names = [name.strip() for name in header]
        columns: dict[str, list[str]] = {name: [] for name in names}
        lines = array("q")
        for line, cells in rows:
            if cells and len(cells) != len(names):
                raise csv.Error(f"line {line} has not the header's {len(names)} cells")
            if not any(cells):  # as spreadsheets leave below a table
                continue
            lines.append(line)
            for name, cell in dict(zip(names, cells, strict=True)).items():
                columns[name].append(cell)
    return names, Table(columns, lines)


def _undecoded(path: Path) -> str:
    """The first place of a CSV that is not UTF-8, and what is there; empty where it was mended meanwhile."""
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        found = ((line, _UNDECODED.search(text)) for line, text in enumerate(file, start=1))
        return next((f", line {line}: {bad[0].encode(errors='surrogateescape')!r}" for line, bad in found if bad), "")


def _delimiter(header: str) -> str:
    """What parts a header into names of which one is of paths, as every table has; the comma where nothing does."""
    for delimiter in _DELIMITERS:
        names = next(csv.reader([header], delimiter=delimiter), [])
        if any(name.strip().lower() in _PATHS for name in names):
            return delimiter
    return _DELIMITERS[0]


def _numbered(file: TextIO, delimiter: str, first: int) -> Iterator[tuple[int, list[str]]]:
    """The rows from the line `first` on, each with its own; raises csv.Error with that of one that can't be read."""
    rows, line = csv.reader(file, delimiter=delimiter, strict=True), first
    try:
        for cells in rows:
            yield line, cells
            line = first + rows.line_num  # a cell in quotes may go over several lines
    except csv.Error as error:
        raise csv.Error(f"line {line}: {error}; is a quote there not closed?") from error


def _read_parquet(path: Path, wanted: tuple[str, ...]) -> tuple[list[str], Table]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            # Only these: a table may hold the images themselves in another column.
            table = file.read(columns=[name for name in names if is_called(name, wanted)])
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from error
    columns = {
        name: _texts(path, name, column) for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return names, Table(columns, None)


def _texts(path: Path, name: str, cells: Iterable[Any]) -> list[str]:
    texts = []
    for row, cell in enumerate(cells, start=1):
        try:
            texts.append(_text(cell.as_py()))
        except UnicodeDecodeError as error:
            where = f"{shown(path)}, row {row}: {name} {error.object[:40]!r}"
            raise SourceError(f"{where} is not UTF-8 text; save the column as text") from error
        except (ValueError, OverflowError) as error:  # a time that Python has no type for: to the nanosecond, say
            where = f"{shown(path)}, row {row}: {name} of type {cell.type}"
            raise SourceError(f"{where} can't be read as text; save the column as text") from error
    return texts


def _text(cell: Any) -> str:
    # A number that is none, which equals nothing, is how some programs write that there is no value.
    if cell is None or cell != cell:  # noqa: PLR0124
        return ""
    return cell.decode() if isinstance(cell, bytes) else str(cell)  # some programs write texts without saying so
