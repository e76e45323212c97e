"""CSV and Parquet tables of text: paths of images, labels."""

import csv
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from indexer.source import SourceError, shown

_DELIMITERS = (",", ";", "\t")  # spreadsheets write semicolons where the comma is in numbers
_PATHS = ("path", "path_a", "path_b")  # whose spaces may be those of a file's name


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

    Cells of a CSV are parted by commas, or by semicolons or tabs where its header is. Spaces around names of columns
    and around cells are left out, but for those of paths. What a Parquet table has no value for is empty text.

    Raises:
        SourceError: the file can't be read, is not such a table, or lacks a column of `columns`.
    """
    wanted = (*columns, *optional)
    try:
        names, table = _read_parquet(path, wanted) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except UnicodeDecodeError as error:
        raise SourceError(f"{shown(path)} is not UTF-8 text: {error}; save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise SourceError(f"{shown(path)} can't be read as a table: {error}") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise SourceError(
            f"{shown(path)} has no column {', '.join(missing)}; its columns are: {names or 'none, it is empty'}"
        )
    chosen = {
        name: table[name] if name in _PATHS else [cell.strip() for cell in table[name]]
        for name in wanted
        if name in table
    }
    for name, cells in chosen.items():
        for row, cell in enumerate(cells):
            if "\0" in cell:
                where = f"{shown(path)}, {table.place(row)}"
                raise SourceError(f"{where}: {name} {cell!r} holds a NUL; save it as UTF-8 text")
    return Table(chosen, table.lines)


def _read_csv(path: Path) -> tuple[str, Table]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        delimiter = _delimiter(file.readline())
        file.seek(0)
        rows = _numbered(file, delimiter)
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
    return ", ".join(columns), Table(columns, lines)


def _delimiter(header: str) -> str:
    """What parts a header into names of which one is of paths, as every table has; the comma where nothing does."""
    for delimiter in _DELIMITERS:
        names = next(csv.reader([header], delimiter=delimiter), [])
        if any(name.strip() in _PATHS for name in names):
            return delimiter
    return _DELIMITERS[0]


def _numbered(file: TextIO, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows, each with the line that it begins in; raises csv.Error with that of the first that can't be read."""
    rows, line = csv.reader(file, delimiter=delimiter, strict=True), 1
    try:
        for cells in rows:
            yield line, cells
            line = rows.line_num + 1  # a cell in quotes may go over several lines
    except csv.Error as error:
        raise csv.Error(f"line {line}: {error}; is a quote there not closed?") from error


def _read_parquet(path: Path, wanted: tuple[str, ...]) -> tuple[str, Table]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            # Only these: a table may hold the images themselves in another column.
            table = file.read(columns=[name for name in wanted if name in names])
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from error
    columns = {
        name: ["" if cell is None else str(cell) for cell in table.column(name).to_pylist()]
        for name in table.column_names
    }
    return ", ".join(names), Table(columns, None)
