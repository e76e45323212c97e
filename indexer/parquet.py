"""Images in Parquet tables, as Hugging Face `datasets` writes them: bytes in a column, read some rows at a time.

Memory holds a few pages of the table, however large its row groups are. A page is what its writer made it: 1 MB, or
1,024 images of any size where pyarrow wrote it with its defaults (`write_batch_size` makes them smaller).
"""

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from indexer.pixels import UndecodableImage
from indexer.source import Listing, Source, SourceError, file_state, item_of, shown
from indexer.tables import is_called

_ROWS = 32  # read from the file at a time: 32 photographs of 5 MB are 160 MB
_KEPT = 4  # pieces of so many rows: threads that decode in order ask for neighbouring rows at once
_READERS = 2  # open tables: where one ends, the next begins
_BUFFER_BYTES = 2**20  # of a column's stream; without it a whole row group, often the whole file, is read at once


@dataclass(frozen=True, slots=True)
class ParquetSource(Source):
    """An image in a row of a Parquet table; one `table` and `column` for all of its images."""

    table: str
    column: str
    row: int

    def read(self) -> bytes:
        """The bytes in the row; raises PixelsError where there are none or the table is damaged."""
        data = _reader(self.table, self.column, file_state(self.table)).read(self.row)
        if data is None:
            raise UndecodableImage(f"row {self.row} of its table holds no bytes")
        return data

    def state(self) -> str:
        """The row, and size and time of change of the table."""
        return f"{self.row} {file_state(self.table)}"


@dataclass(frozen=True)
class ImageColumn:
    """Where a Parquet table has its images.

    Attributes:
        data: the column of bytes; of a column {bytes, path}, `<column>.bytes`.
        names: the column of their names, where there is one.
    """

    data: str
    names: str | None


def image_column(table: Path) -> ImageColumn | None:
    """Where a Parquet table has its images; None where it holds none, only paths perhaps.

    It is the column `image`, or the only one of `datasets`' type {bytes, path}, or in a table without a column
    `path` the only one of bytes.

    Raises:
        SourceError: the table can't be read, or it has several such columns and none is called `image`.
    """
    schema = open_parquet(table).schema_arrow
    columns = {
        field.name: ImageColumn(f"{field.name}.bytes", f"{field.name}.path")
        for field in schema
        if _is_image(field.type)
    }
    if not columns:
        names = next((name for name in schema.names if is_called(name, ["path"])), None)
        columns = {field.name: ImageColumn(field.name, names) for field in schema if _is_bytes(field.type)}
        if names and not _called_image(columns):
            return None
    chosen = _called_image(columns) or [*columns]
    if len(chosen) > 1:
        raise SourceError(f"{shown(table)} has images in {', '.join(chosen)}; call the one to use `image`")
    return columns[chosen[0]] if chosen else None


def _called_image(columns: Iterable[str]) -> list[str]:
    """Those that are called `image`, in any case; where one is spelled so, that alone."""
    called = [name for name in columns if is_called(name, ["image"])]
    return ["image"] if "image" in called else called


def list_parquet(table: Path, root: Path) -> Listing:
    """The images in the rows of a Parquet table, in their order.

    An image's path is `<table's path>/<its name>`; where names are missing or come twice, the number of the row is
    the name. A table that is a collection by itself is given as its own root; its ids are then the names alone, or
    `<file name>/<row>`.

    Raises:
        SourceError: the table can't be read, or has no images.
    """
    column = image_column(table)
    if column is None:
        raise SourceError(f"{shown(table)} has no column of images, which would be bytes, or {{bytes, path}}")
    names = _names(table, column)
    base = table.parent if table == root and not names else root
    prefix = "" if table == base else f"{table.relative_to(base).as_posix()}/"
    sources: list[Source] = []
    for row in range(open_parquet(table).metadata.num_rows):
        relative = f"{prefix}{names[row] if names else row}"
        sources.append(ParquetSource(item_of(relative), str(base), relative, str(table), column.data, row))
    return Listing(sources)


class _Reader:
    """The images of one table, front to back; going back begins at the row group again."""

    def __init__(self, table: str, column: str) -> None:
        self._file = open_parquet(Path(table))
        self._column = column
        groups = self._file.metadata
        self._starts = [0, *accumulate(groups.row_group(i).num_rows for i in range(groups.num_row_groups))]
        self._pieces: deque[tuple[int, Any]] = deque(maxlen=_KEPT)  # first row, cells
        self._coming: Iterator[Any] = iter(())
        self._next = 0  # the row that the coming piece begins with
        self._damaged: dict[int, str] = {}  # row group, reason
        self._lock = threading.Lock()

    def read(self, row: int) -> bytes | None:
        """The bytes in a row; raises UndecodableImage where the table is damaged there."""
        with self._lock:
            first, cells = self._kept(row) or self._advance(row)
        return cells[row - first].as_py()  # type: ignore[no-any-return]

    def _kept(self, row: int) -> tuple[int, Any] | None:
        return next((piece for piece in self._pieces if piece[0] <= row < piece[0] + len(piece[1])), None)

    def _advance(self, row: int) -> tuple[int, Any]:
        import pyarrow

        group = bisect_right(self._starts, row) - 1
        if group in self._damaged:  # not tried again for each of its rows
            raise UndecodableImage(self._damaged[group])
        if not self._starts[group] < self._next <= row:
            self._next = self._starts[group]
            self._coming = self._file.iter_batches(_ROWS, row_groups=[group], columns=[self._column])
        try:
            while self._next <= row:
                self._take(next(self._coming).column(0))
        except (pyarrow.ArrowException, OSError, StopIteration) as error:
            reason = " ".join("".join(char if char.isprintable() else " " for char in str(error)).split())
            self._damaged[group] = f"its table is damaged in row group {group}, after row {self._next}: {reason}"
            raise UndecodableImage(self._damaged[group]) from error
        return self._pieces[-1]

    def _take(self, cells: Any) -> None:
        from pyarrow import types

        bytes_of = cells.flatten()[0] if types.is_struct(cells.type) else cells
        self._pieces.append((self._next, bytes_of))
        self._next += len(bytes_of)


@lru_cache(maxsize=_READERS)
def _reader(table: str, column: str, state: str) -> _Reader:  # noqa: ARG001  a changed table is opened anew
    try:
        return _Reader(table, column)
    except SourceError as error:
        raise UndecodableImage(str(error)) from error


@contextmanager
def readable(table: Path) -> Iterator[None]:
    """Arrow's errors of the block, as SourceError that names the table."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{shown(table)} can't be read as a table: {error}") from error


def open_parquet(table: Path) -> Any:
    """A Parquet table of which a few pages are read at a time; raises SourceError."""
    import pyarrow.parquet

    with readable(table):
        return pyarrow.parquet.ParquetFile(table, buffer_size=_BUFFER_BYTES, pre_buffer=False)


def _names(table: Path, column: ImageColumn) -> list[str] | None:
    """The names of a table's images; None where it has none, one is missing, or two are the same."""
    if column.names is None:
        return None
    with readable(table):
        cells = open_parquet(table).read(columns=[column.names]).column(0)
        texts = (cells.flatten()[0] if "." in column.names else cells).to_pylist()
    names = [_below(str(text or "")) for text in texts]
    return names if all(names) and len(set(names)) == len(names) else None


def _below(name: str) -> str:
    """A name without what would lead out of its table's path."""
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _is_image(kind: Any) -> bool:
    from pyarrow import types

    fields = {field.name: field.type for field in kind} if types.is_struct(kind) else {}
    return "path" in fields and _is_bytes(fields.get("bytes"))
