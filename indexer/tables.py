"""CSV and Parquet tables of text: paths of images, labels."""

import csv
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from indexer.source import SourceError, shown

_DELIMITERS = (",", ";", "\t")  # spreadsheets write semicolons where the comma is in numbers
_TOLD = re.compile(r'"?sep=(.)"?', re.IGNORECASE)  # the first line by which Excel is told what parts cells
_PATHS = ("path", "path_a", "path_b")  # whose spaces may be those of a file's name
_BATCH = 4_096  # rows of a Parquet table that are read at a time
_BUFFER_BYTES = 2**20  # of a column's stream; without it a whole row group, often the whole file, is read at once
_UNEVEN = "it has {} cells, and the header {}; a cell with what parts cells in it needs quotes"
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


class Rows:
    """The rows of a CSV or Parquet table, which are read one after the other whenever they are iterated over.

    Attributes:
        columns: those of the columns asked for that there are.
    """

    def __init__(self, path: Path, columns: Iterable[str], optional: Iterable[str] = ()) -> None:
        """Open a table; arguments as of `read_table`, raises SourceError where that raises UnreadableLabels."""
        self._path = path
        wanted = (*columns, *optional)
        self._is_parquet = path.suffix.lower() == ".parquet"
        with _translated(path):
            names = _parquet_names(path) if self._is_parquet else _csv_names(path)
        self._spelled = {name: there for name in wanted if (there := _spelled(path, name, names)) is not None}
        if missing := [name for name in columns if name not in self._spelled]:
            raise SourceError(
                f"{shown(path)} has no column {', '.join(missing)}; its columns are: "
                f"{', '.join(dict.fromkeys(names)) or 'none, it is empty'}"
            )
        self.columns = (*self._spelled,)

    def __iter__(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Where each row is, as `place` takes it, and its cells in the order of `columns`; raises SourceError."""
        for number, cells in self.each():
            if isinstance(cells, str):
                raise SourceError(f"{shown(self._path)}, {self.place(number)}: {cells}")
            yield number, cells

    def each(self) -> Iterator[tuple[int, tuple[str, ...] | str]]:
        """As iterating; where a row can't be used, the reason why is in the place of its cells."""
        spelled = [*self._spelled.values()]
        rows = _parquet_rows(self._path, spelled) if self._is_parquet else _csv_rows(self._path, spelled)
        meant = [_MEANT.get(name, str.strip) for name in self.columns]
        with _translated(self._path):
            for number, cells in rows:
                if isinstance(cells, str):
                    yield number, cells
                elif bad := [cell for cell in cells if "\0" in cell]:
                    yield number, f"{self.columns[cells.index(bad[0])]} {bad[0]!r} holds a NUL; save it as UTF-8 text"
                else:
                    yield number, tuple(mean(cell) for mean, cell in zip(meant, cells, strict=True))

    def place(self, number: int) -> str:
        """Where a row stands in the file, for messages: its line, or its number from 1."""
        return f"{'row' if self._is_parquet else 'line'} {number}"


class UnreadableLabels(SourceError):
    """A table of labels can't be read, or lacks a column: who sent it looks at that, and not at the images."""


def read_table(path: Path, columns: Iterable[str], optional: Iterable[str] = ()) -> Table:
    """Columns of labels, a CSV (UTF-8, header line) or Parquet table, as text; `optional` ones where they exist.

    Cells of a CSV are parted by commas, or by semicolons or tabs where its header is, or as its first line `sep=;`
    says. Names of columns are taken in any case, one spelled as asked for first. Spaces around them and around cells
    are left out, but for those of paths; classes are as `class_name` has them. What a Parquet table has no value for
    is empty text.

    Raises:
        UnreadableLabels: the file can't be read, is not such a table, lacks a column of `columns`, or has one twice.
    """
    try:
        return _read(path, Rows(path, columns, optional))
    except SourceError as error:
        raise UnreadableLabels(str(error)) from error


def _read(path: Path, rows: Rows) -> Table:
    read: dict[str, list[str]] = {name: [] for name in rows.columns}
    appends = [cells.append for cells in read.values()]
    numbers = array("q")
    for number, cells in rows:
        numbers.append(number)
        for append, cell in zip(appends, cells, strict=True):
            append(cell)
    return Table(read, None if path.suffix.lower() == ".parquet" else numbers)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise SourceError(f"{shown(path)}{_undecoded(path)} is not UTF-8 text; save the table as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise unreadable(path, error) from error


def class_name(cell: str) -> str:
    """What a class is called, whatever typed it: without spaces around it, and é as one character, never as two."""
    return unicodedata.normalize("NFC", cell.strip())


# What a cell of a column stands for; of others, what is between the spaces around it.
_MEANT: Mapping[str, Callable[[str], str]] = {"class_id": class_name} | dict.fromkeys(_PATHS, str)


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


def _csv_names(path: Path) -> list[str]:
    with _csv(path) as rows:
        _, header = next(rows, (1, []))
    return [name.strip() for name in header]


def _csv_rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[int, list[str] | str]]:
    """The line of each row, and its cells in some columns, or the reason why not."""
    with _csv(path) as rows:
        _, header = next(rows, (1, []))
        names = [name.strip() for name in header]
        places = [names.index(name) for name in wanted]
        for line, cells in rows:
            if cells and len(cells) != len(names):
                yield line, _UNEVEN.format(len(cells), len(names))
            elif any(cells):  # as spreadsheets leave below a table
                yield line, [cells[place] for place in places]


@contextmanager
def _csv(path: Path) -> Iterator[Iterator[tuple[int, list[str]]]]:
    """The lines of a CSV file from its header on, each row with the one that it begins in."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        first = file.readline()
        told = _TOLD.fullmatch(first.rstrip("\r\n"))
        if not told:
            file.seek(0)
        yield _numbered(file, told[1], 2) if told else _numbered(file, _delimiter(first), 1)


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


def _parquet_names(path: Path) -> list[str]:
    with _parquet(path) as file:
        names: list[str] = file.schema_arrow.names
    return names


def _parquet_rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """The number of each row, from 1, and its cells in some columns, as text."""
    with _parquet(path) as file:
        first = 1
        # Only these: a table may hold the images themselves in another column.
        for batch in file.iter_batches(_BATCH, columns=[*wanted]):
            columns = [_texts(path, name, first, batch.column(name)) for name in wanted]
            yield from enumerate(map(list, zip(*columns, strict=True)), first)
            first += len(batch)


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            yield file
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from error


def _texts(path: Path, name: str, first: int, cells: Iterable[Any]) -> list[str]:
    """The cells of a column from some row on."""
    texts = []
    for row, cell in enumerate(cells, first):
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
