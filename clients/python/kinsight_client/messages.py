"""What searches and items are made of: the typed forms of the messages, and how they are read and written."""

import errno
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf import struct_pb2  # type: ignore[import-untyped]
from kinsight.v1 import item_service_pb2, search_service_pb2

from kinsight_client.errors import KinsightError, from_status, too_large

Payload = Mapping[str, Any]

N = TypeVar("N", int, int | None)

VERSION_BITS = 64
MAX_MESSAGE_BYTES = 32 * 2**20  # for the server
_COMMON_BYTES = 2**10  # of a message of many, for what is said of all of them
_MAX_DEPTH = 30  # of a payload's objects and lists, for the server
_EXACT = 2**53  # integers up to here are exact as the float64 that payloads travel as


@dataclass(frozen=True, eq=False)
class Embedding:
    """An embedding and the model that made it.

    Attributes:
        model: the model's id.
        values: (D,) float32; unit length when the server made it.
    """

    model: str
    values: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Hit:
    """One item that was found.

    Attributes:
        item: its id in the index.
        similarity: cosine between the query and the item, -1 to 1; higher is nearer.
        payload: what is kept with the item; None where it was not asked for, or there is none.
        probability: that it shows the same thing as the query, 0 to 1; None where it was not asked for.
    """

    item: str
    similarity: float
    payload: Payload | None = None
    probability: float | None = None


@dataclass(frozen=True)
class SearchResult:
    """The answer to a search.

    Attributes:
        hits: nearest first; with `diversity`, in the order in which they were chosen.
        index: name of the index that was searched.
        version: its version.
        model: id of the model whose metric the similarities are in.
        false_accept_rate: the share of pairs of different things that `min_probability` lets through, as measured
            when the model was calibrated; None without `min_probability`.
    """

    hits: tuple[Hit, ...]
    index: str
    version: int
    model: str
    false_accept_rate: float | None = None


@dataclass(frozen=True, eq=False)
class Upsert:
    """An item to put into an index: an image, an embedding, or neither to change only the payload of an item there.

    Attributes:
        item: its id, 1 to 1024 bytes of UTF-8 without control characters.
        image: the bytes of an image file, or its path, which is read when it is sent.
        embedding: made by the model of the index.
        payload: a JSON object to keep with it, at most 64 KiB and 30 objects and lists deep; empty for none, None for
            the one that the item has.

    Raises:
        TypeError: there are an image and an embedding, or the id is no text.
        ValueError: the payload is not a JSON object, too deep, or has an integer beyond 2^53, NaN or infinity; a text
            is not UTF-8.
    """

    item: str
    image: bytes | Path | None = None
    embedding: Embedding | None = None
    payload: Payload | None = None

    def __post_init__(self) -> None:
        if self.image is not None and self.embedding is not None:
            raise TypeError(f"item {self.item!r} has an image and an embedding; an upsert takes one of them")
        _check_text(item_id(self.item), f"the id of item {self.item!r}")
        if self.payload is not None:
            _check_payload(self.item, self.payload)


@dataclass(frozen=True)
class ItemResult:
    """What became of one item of a batch.

    Attributes:
        item: its id.
        sequence: the number of this change; 0 where it failed, and where nothing had to change.
        error: why the item was left as it was; None where it was taken.
    """

    item: str
    sequence: int
    error: KinsightError | None


@dataclass(frozen=True)
class Item:
    """One thing that can be found in an index.

    Attributes:
        item: its id.
        payload: what is kept with it; None for nothing.
        sequence: the number of its last change in the index; the higher, the later.
        sha256: of the image file's bytes, in hexadecimal; empty for an item that was upserted by its embedding.
        searchable: False while only an embedding of another model than the index's is known.
    """

    item: str
    payload: Payload | None
    sequence: int
    sha256: str
    searchable: bool


@dataclass(frozen=True)
class ImportResult:
    """What an import did.

    Attributes:
        imported: how many items are new or changed.
        unchanged: how many were there already, with the same bytes and payload.
        failed: how many images were left out.
        failures: (item, why) of the first 1000 of them.
        warnings: what could not be used as a whole, each a sentence.
    """

    imported: int
    unchanged: int
    failed: int
    failures: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote.

    Attributes:
        path: the file, on the server's machine.
        items: how many it holds.
        bytes: its size.
        model: id of the model that made its embeddings.
        sequence: it holds every change up to this one.
    """

    path: str
    items: int
    bytes: int
    model: str
    sequence: int


def sendable(name: str, value: N, allowed: str, bits: int = 32) -> N:
    """A whole number that a message can carry, which the server may refuse; ValueError or TypeError for others.

    Args:
        name: of the argument.
        value: of it; None where it is not given.
        allowed: what the server takes, in words.
        bits: of the message's field.
    """
    if value is not None and not -(2 ** (bits - 1)) <= index(value) < 2 ** (bits - 1):
        raise ValueError(f"{name} is {value}; it must be {allowed}")
    return value


def item_id(item: str) -> str:
    """An id as it came; raises TypeError for others than texts, such as the numbers of a table's rows."""
    if not isinstance(item, str):  # what protobuf says of it names nothing
        raise TypeError(f"the id of an item is {item!r}; give it as text, {str(item)!r}")
    return item


def item_ids(items: Iterable[str]) -> Iterator[str]:
    """Ids as they came; raises TypeError for a text, which is an iterable of its letters, and as `item_id`."""
    if isinstance(items, str):
        raise TypeError(f"items is the text {items!r}; give a list of ids, [{items!r}] for one")
    return map(item_id, items)


def image_bytes(image: bytes | Path) -> bytes:
    """The bytes of an image given as such or as the path of a file; raises OSError, and TypeError for others."""
    if isinstance(image, Path):
        try:
            return image.read_bytes()
        except ValueError as error:  # no file can have that name: it has a NUL, or is no text that can be encoded
            raise OSError(errno.EINVAL, str(error), str(image)) from error
    if not isinstance(image, bytes):
        raise TypeError(f"the image is {type(image).__name__}; give the bytes of an image file, or its pathlib.Path")
    return image


def embedding_message(embedding: Embedding) -> search_service_pb2.Embedding:
    """The message of an embedding; raises ValueError where it has another shape than (D,), TypeError for others."""
    if not isinstance(embedding, Embedding):
        kind = type(embedding).__name__
        raise TypeError(f"the embedding is {kind}; give a kinsight_client.Embedding, which names its model too")
    values = np.asarray(embedding.values, np.float32)
    if values.ndim != 1:
        raise ValueError(f"the embedding has the shape {values.shape}; it must be (D,): search by one row at a time")
    return search_service_pb2.Embedding(model=embedding.model, values=values.tolist())


def embedding_of(response: search_service_pb2.EmbedResponse) -> Embedding:
    """The typed form of a response."""
    return Embedding(response.embedding.model, np.array(response.embedding.values, np.float32))


def search_result(response: search_service_pb2.SearchResponse) -> SearchResult:
    """The typed form of a response."""
    hits = tuple(Hit(hit.item, hit.similarity, _payload_of(hit), _given(hit, "probability")) for hit in response.hits)
    rate = _given(response, "false_accept_rate")
    return SearchResult(hits, response.index, response.version, response.model, rate)


def search_results(
    response: search_service_pb2.BatchSearchResponse | search_service_pb2.StreamSearchResponse,
) -> list[SearchResult | KinsightError]:
    """The typed form of a response."""
    return [from_status(result.status) or search_result(result.response) for result in response.results]


def upsert_message(upsert: Upsert) -> item_service_pb2.ItemUpsert:
    """The message of an upsert; raises OSError where the image's path can't be read."""
    message = item_service_pb2.ItemUpsert(item=upsert.item)
    if upsert.image is not None:
        message.image = image_bytes(upsert.image)
    if upsert.embedding is not None:
        message.embedding.CopyFrom(embedding_message(upsert.embedding))
    if upsert.payload is not None:
        message.payload.CopyFrom(struct_pb2.Struct())  # set, even if there is nothing in it
        message.payload.update(upsert.payload)
    return message


def unsendable(one: item_service_pb2.ItemUpsert | search_service_pb2.SearchRequest) -> KinsightError | None:
    """Why one of many is in no message that the server takes; None where it can be."""
    size = one.ByteSize()
    return too_large(size, MAX_MESSAGE_BYTES) if size > MAX_MESSAGE_BYTES - _COMMON_BYTES else None


def item_of(message: item_service_pb2.Item) -> Item:
    """The typed form of a message."""
    return Item(message.item, _payload_of(message), message.sequence, message.sha256, message.searchable)


def item_results(
    response: item_service_pb2.BatchUpsertItemsResponse | item_service_pb2.BatchDeleteItemsResponse,
) -> list[ItemResult]:
    """The typed form of a response."""
    return [ItemResult(result.item, result.sequence, from_status(result.status)) for result in response.results]


def import_result(response: item_service_pb2.ImportItemsResponse) -> ImportResult:
    """The typed form of a response."""
    failures = tuple((failure.item, failure.reason) for failure in response.failures)
    return ImportResult(response.imported, response.unchanged, response.failed, failures, tuple(response.warnings))


def export_result(response: item_service_pb2.ExportItemsResponse) -> ExportResult:
    """The typed form of a response."""
    return ExportResult(response.path, response.items, response.bytes, response.model, response.sequence)


def _given(message: Any, field: str) -> float | None:
    return getattr(message, field) if message.HasField(field) else None


def _payload_of(message: Any) -> Payload | None:
    # Asked for first, because most hits have none, and reading an absent message makes one.
    return (_plain(message.payload.fields) or None) if message.HasField("payload") else None


def _plain(fields: Any) -> dict[str, Any]:
    return {name: _plain_value(value) for name, value in fields.items()}


def _plain_value(value: Any) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return _plain(value.struct_value.fields)
    if kind == "list_value":
        return [_plain_value(one) for one in value.list_value.values]
    if kind == "number_value":
        number = value.number_value  # integers travel as float64, and are integers again here
        return int(number) if number.is_integer() and abs(number) <= _EXACT else number
    return None if kind in (None, "null_value") else getattr(value, kind)


def _check_payload(item: str, payload: object) -> None:
    if not isinstance(payload, Mapping):
        raise ValueError(f"the payload of item {item!r} is {type(payload).__name__}, not a JSON object")
    rest: list[tuple[object, int]] = [(dict(payload), 1)]
    while rest:
        value, depth = rest.pop()
        if isinstance(value, dict | list | tuple) and depth > _MAX_DEPTH:
            raise ValueError(
                f"the payload of item {item!r} has objects or lists within each other, more than {_MAX_DEPTH} deep"
            )
        if isinstance(value, str):
            _check_text(value, f"{value!r} in the payload of item {item!r}")
        elif isinstance(value, dict) and all(isinstance(name, str) for name in value):
            rest += [(one, depth + 1) for one in (*value, *value.values())]
        elif isinstance(value, list | tuple):
            rest += [(one, depth + 1) for one in value]
        elif isinstance(value, int) and abs(value) > _EXACT:
            raise ValueError(f"{value} in the payload of item {item!r} is beyond 2^53; write it as text")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(
                f"{value} in the payload of item {item!r} is no number of JSON; leave it out, or give None"
            )
        elif not isinstance(value, float | int | None):
            raise ValueError(f"{value!r} in the payload of item {item!r} can't be written as JSON")


def _check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} has half of a surrogate pair, which UTF-8 can't carry; leave it out") from error
