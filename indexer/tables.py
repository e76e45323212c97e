"""CSV and Parquet tables of text: paths of images, labels."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from indexer.source import SourceError, shown

_DELIMITERS = (",", ";", "\t")  # spreadsheets write semicolons where the comma is in numbers
_PATHS = ("path", "path_a", "path_b")  # whose spaces may be those of a file's name


def read_table(path: Path, columns: Iterable[str], optional: Iterable[str] = ()) -> dict[str, list[str]]:
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
        for row, cell in enumerate(cells, start=1):
            if "\0" in cell:
                raise SourceError(f"{shown(path)}, row {row}: {name} {cell!r} holds a NUL; save it as UTF-8 text")
    return chosen


def _read_csv(path: Path) -> tuple[str, dict[str, list[str]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        delimiter = _delimiter(file.readline())
        file.seek(0)
        rows = csv.DictReader(file, delimiter=delimiter, strict=True)
        rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
        table: dict[str, list[str]] = {name: [] for name in rows.fieldnames or ()}
        for row in _each(rows):
            # DictReader files surplus cells under None and fills missing ones with None.
            if None in row or None in row.values():
                raise csv.Error(f"line {rows.line_num} has not the header's {len(table)} cells")
            if not any(row.values()):  # as spreadsheets leave below a table
                continue
            for name, cell in row.items():
                table[name].append(cell)
    return ", ".join(table), table


def _delimiter(header: str) -> str:
    """What parts a header into names of which one is of paths, as every table has; the comma where nothing does."""
    for delimiter in _DELIMITERS:
        names = next(csv.reader([header], delimiter=delimiter), [])
        if any(name.strip() in _PATHS for name in names):
            return delimiter
    return _DELIMITERS[0]


def _each(rows: "csv.DictReader[str]") -> Iterator[dict[str | Any, str | Any]]:
    """The rows; raises csv.Error with the line of the first that can't be read."""
    try:
        yield from rows
    except csv.Error as error:
        raise csv.Error(f"line {rows.line_num + 1}: {error}; is a quote there not closed?") from error


def _read_parquet(path: Path, wanted: tuple[str, ...]) -> tuple[str, dict[str, list[str]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            # Only these: a table may hold the images themselves in another column.
            table = file.read(columns=[name for name in wanted if name in names])
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from error
    return ", ".join(names), {
        name: ["" if cell is None else str(cell) for cell in table.column(name).to_pylist()]
        for name in table.column_names
    }
