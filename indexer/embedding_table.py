"""A Parquet table of embeddings, as an export writes it, read some rows at a time.

ModelMismatch   (a SourceError) its embeddings were made by other models than the one that is wanted
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from indexer import records
from indexer.parquet import image_column, open_parquet, readable
from indexer.records import Upsert
from indexer.repeats import Repeats
from indexer.rows import Embeddings
from indexer.source import SourceError, shown
from indexer.tables import is_called

ITEM, EMBEDDING, PAYLOAD, MODEL = "item", "embedding", "payload", "model"  # its columns
_SURVEYED = 65_536  # rows whose ids are read at a time


class ModelMismatch(SourceError):
    """A table has no embedding of the model that is wanted; similarities between two models would mean nothing."""


class Given(NamedTuple):
    """What one row gives: an upsert, or the reason why none.

    Attributes:
        name: the item's id, or the row's number where it has none that can be one.
        row: its number, counted from 1.
    """

    name: str
    row: int
    upsert: Upsert | None = None
    error: str = ""


def is_embedding_table(path: Path) -> bool:
    """Whether a file is a Parquet table with columns `item` and `embedding`, and not one of images or of their paths.

    Raises:
        SourceError: it is a Parquet table by its name, and can't be read.
    """
    if path.suffix.lower() != ".parquet" or not path.is_file() or image_column(path):
        return False
    names = open_parquet(path).schema_arrow.names
    return {ITEM, EMBEDDING}.issubset(names) and not any(is_called(name, ["path"]) for name in names)


class EmbeddingTable:
    """An opened table.

    Attributes:
        path: of its file.
        rows: how many it has.
    """

    def __init__(self, path: Path, model: str) -> None:
        """Open a table, and read the ids and models of all of its rows.

        Args:
            path: of a Parquet file with the columns `item` (text), `embedding` (lists of numbers), `model` (text: the
                id of the one that made it) and, if there are any, `payload` (text: a JSON object).
            model: whose embeddings are wanted; rows of others are none that can be used.

        Raises:
            SourceError: it can't be read, has no row, or its columns are not as said above.
            ModelMismatch: none of its rows is of the model.
        """
        self.path = path
        self._model = model
        self._file = open_parquet(path)
        self.rows = self._file.metadata.num_rows
        self._check_columns()
        models = set[str | None]()
        self._repeats = Repeats(self._ids(models))
        if model not in models:
            others = ", ".join(sorted(str(one) for one in models if one)) or "none that it names"
            raise ModelMismatch(
                f"the embeddings of {shown(path)} were made by another model ({others}); the index holds embeddings "
                f"of model {model!r}: export them from an index of that model, or import the images"
            )

    def read(self, dim: int, count: int) -> Iterator[list[Given]]:
        """What the rows give, in their order, up to `count` at a time, with embeddings of `dim` values.

        An embedding of unit length is given as it is, another one scaled to it. Of rows of the same id, the first may
        be used.

        Raises:
            SourceError: the table is damaged; the rows before were given.
        """
        columns = [name for name in (ITEM, EMBEDDING, PAYLOAD, MODEL) if name in self._file.schema_arrow.names]
        done = 0
        for batch in self._batches(count, columns):
            items, models = _cells(batch.column(ITEM)), _cells(batch.column(MODEL))
            payloads = _cells(batch.column(PAYLOAD)) if PAYLOAD in columns else [None] * len(batch)
            embeddings, errors = _units(batch.column(EMBEDDING), dim, self._model)
            rows = range(done + 1, done + 1 + len(batch))
            yield [*map(self._given, rows, items, models, embeddings, errors, payloads)]
            done += len(batch)

    def _given(
        self, row: int, item: Any, model: Any, embedding: Embeddings, error: str | None, payload: Any
    ) -> Given:
        try:
            _check_item(item)
            if (first := self._repeats.first(item, row)) != row:
                error = f"the item comes again; row {first} is the first of it"
            if error is None and model != self._model:
                error = f"the embedding was made by model {model!r}, not by {self._model!r}"
            if error is not None:
                return Given(item, row, error=error)
            return Given(item, row, Upsert(item, embedding, self._model, payload=_payload(payload)))
        except records.InvalidItem as problem:
            return Given(f"row {row}", row, error=str(problem))
        except records.InvalidPayload as problem:
            return Given(item, row, error=str(problem))

    def _ids(self, models: set[str | None]) -> Iterator[Any]:
        """The ids of all rows; adds to the models that their embeddings were made by."""
        for batch in self._batches(_SURVEYED, [ITEM, MODEL]):
            models.update(batch.column(MODEL).unique().to_pylist())
            yield from _cells(batch.column(ITEM))

    def _batches(self, count: int, columns: Sequence[str]) -> Iterator[Any]:
        with readable(self.path):
            yield from self._file.iter_batches(count, columns=columns)

    def _check_columns(self) -> None:
        from pyarrow import types

        schema = self._file.schema_arrow
        if MODEL not in schema.names:
            raise SourceError(
                f"{shown(self.path)} has no column {MODEL}, the id of the model that made each embedding; add it"
            )
        if not self.rows:
            raise SourceError(f"{shown(self.path)} has no row")
        for name in {ITEM, PAYLOAD, MODEL}.intersection(schema.names):
            kind = schema.field(name).type
            if types.is_dictionary(kind):
                kind = kind.value_type
            if not (types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)):
                raise SourceError(f"{shown(self.path)}: column {name} is of type {kind}; save it as text")
        kind = schema.field(EMBEDDING).type
        is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        if not is_list or not (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)):
            raise SourceError(
                f"{shown(self.path)}: column {EMBEDDING} is of type {kind}; save it as lists of 32-bit floats"
            )


def _cells(column: Any) -> list[Any]:
    """A column's values; in place of text that is not UTF-8 its bytes."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        return [_cell(cell) for cell in column]
    return values


def _cell(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        return error.object


def _check_item(item: Any) -> None:
    """Raise InvalidItem where a cell can't be the id of an item."""
    if item is None:
        raise records.InvalidItem("there is no item id")
    if isinstance(item, bytes):
        raise records.InvalidItem(f"item id {item[:40]!r} is not UTF-8 text")
    records.check_item(item)
    records.check_printable(item)


def _payload(text: Any) -> records.Payload | None:
    if isinstance(text, bytes):
        raise records.InvalidPayload(f"the payload {text[:40]!r} is not UTF-8 text")
    return records.read_payload(text) if text else None


def _units(column: Any, dim: int, model: str) -> tuple[Embeddings, list[str | None]]:
    """The (B, dim) embeddings of a column of lists, scaled to unit length, and what is wrong with each or None."""
    import pyarrow
    import pyarrow.compute

    lists = column.cast(pyarrow.large_list(pyarrow.float64()))
    sizes = pyarrow.compute.list_value_length(lists).fill_null(-1).to_numpy()
    # What is null in a list becomes NaN.
    values = lists.flatten().to_numpy(zero_copy_only=False)
    embeddings = np.zeros((len(sizes), dim))
    there = sizes == dim
    starts = np.cumsum(np.maximum(sizes, 0)) - sizes
    embeddings[there] = values[starts[there][:, None] + np.arange(dim)]
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt(np.vecdot(embeddings, embeddings))
    errors = [None if size == dim else _wrong_size(size, dim, model) for size in sizes.tolist()]
    for place in np.flatnonzero(there & ~(np.isfinite(lengths) & (lengths > 0))).tolist():
        errors[place] = (
            "the embedding is all zero, which has no direction"
            if lengths[place] == 0
            else "the embedding holds NaN or infinity; every value must be a finite number"
        )
    wrong = np.array([error is not None for error in errors])
    # As an index has it, unit length within the tolerance, so that what was exported comes back bit by bit.
    lengths[wrong | (np.abs(lengths - 1) <= records.UNIT_TOLERANCE)] = 1
    embeddings[wrong] = 0
    return (embeddings / lengths[:, None]).astype(np.float32), errors


def _wrong_size(size: int, dim: int, model: str) -> str:
    if size < 0:
        return "there is no embedding"
    return f"the embedding has {size} values; those of model {model} have {dim}"
