"""What goes into a catalogue and comes out of it, and when an item of a batch is refused.

Refused                  (a CatalogError) an item was not taken; `reason` names the kind
├── InvalidItem, DuplicateItem, ItemNotFound
├── InvalidPayload, PayloadTooLarge
└── InvalidEmbedding
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from indexer.catalog_file import CatalogError
from indexer.items import Image
from indexer.rows import Embeddings

MAX_PAYLOAD_BYTES = 64 * 2**10
# Each object takes three of the hundred levels of messages that protobuf reads, and answers have some around them.
MAX_PAYLOAD_DEPTH = 30
MAX_ITEM_BYTES = 4_096  # of an item id, as UTF-8: the longest path
UNIT_TOLERANCE = 1e-3  # of an embedding's length

Payload = Mapping[str, Any]  # a JSON object
FLOAT32 = np.dtype("<f4")  # as embeddings are stored
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_LONG_NUMBER = re.compile(r"\d{300}")  # the largest 64-bit float has 309 digits
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class Refused(CatalogError):
    """One item of a batch was not taken, for the reason named."""

    reason: ClassVar[str] = ""


class InvalidItem(Refused):
    """An item id is empty, too long or not text."""

    reason = "INVALID_ITEM"


class DuplicateItem(Refused):
    """An item came twice in one batch; the first was taken."""

    reason = "DUPLICATE_ITEM"


class ItemNotFound(Refused):
    """There is no item of that id to delete, or to give a payload."""

    reason = "ITEM_NOT_FOUND"


class InvalidPayload(Refused):
    """A payload is not a JSON object."""

    reason = "INVALID_PAYLOAD"


class PayloadTooLarge(Refused):
    """A payload is larger than 64 KiB."""

    reason = "PAYLOAD_TOO_LARGE"


class InvalidEmbedding(Refused):
    """An embedding is not of the model's dimension, not finite or not of unit length."""

    reason = "INVALID_EMBEDDING"


# This and what else there is of every item of a batch are tuples: a frozen dataclass takes twice the time to make.
class Upsert(NamedTuple):
    """An item to add, or to put in the place of the one that has its id.

    With an embedding, an image or a source, these replace what the item was searched by; with none of them, the item
    must be there, and only its payload changes.

    Attributes:
        item: its id.
        embedding: (D,) float32, unit length, with the id of the `model` that made it.
        image: bytes to keep, to embed with other models; None where there are none or `source` has them.
        source: where the image lies, if not here.
        sha256: of the image, hex digits; taken from `image` when that is given.
        payload: a JSON object; None keeps the stored one.
    """

    item: str
    embedding: Embeddings | None = None
    model: str | None = None
    image: bytes | None = None
    source: Path | None = None
    sha256: str | None = None
    payload: Payload | None = None


class Outcome(NamedTuple):
    """What became of one item of a batch.

    Attributes:
        item: its id.
        sequence: of the change; 0 where it was refused, and where there was nothing left to delete.
        reason: "" where it was taken, else the kind of refusal, such as PAYLOAD_TOO_LARGE.
        message: why it was refused, for a person.
    """

    item: str
    sequence: int
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Item:
    """What the catalogue knows of a live item.

    Attributes:
        item: its id.
        sequence: of its last change.
        mirrored: a build found it in its collection; else it was upserted.
        payload: a JSON object, or None.
        source: where the image lies; None where it is kept in the catalogue, or there is none.
        sha256: of the image; None without one.
    """

    item: str
    sequence: int
    mirrored: bool
    payload: Payload | None
    source: Path | None
    sha256: str | None


@dataclass(frozen=True)
class Content:
    """A live item, and its embedding by the model asked for or None."""

    item: Item
    vector: Embeddings | None


class Change(NamedTuple):
    """An item whose state may differ from what a version holds.

    Attributes:
        item: its id.
        sequence: of the change.
        live: False for deleted ones, ones that left the mirrored collection, and ones of which nothing but another
            model's embedding is known.
        vector: the bytes of (D,) FLOAT32 by the model asked for; None without one: what the version holds of the item
            stays, if that is of the same image.
        payload: a JSON object as text, or None.
        image: that was upserted; None without one, and of an item of a collection, whose image is the version's own.
    """

    item: str
    sequence: int
    live: bool
    vector: bytes | None
    payload: str | None
    image: Image | None = None


def check_item(item: str) -> None:
    """Raise InvalidItem where `item` can't be the id of an item."""
    try:
        size = len(item.encode())
    except UnicodeEncodeError as error:
        raise InvalidItem(f"item id {item[:40]!r} is not text: {error.reason}") from error
    if not 0 < size <= MAX_ITEM_BYTES or "\0" in item:
        raise InvalidItem(
            f"item id {item[:40]!r} has {size:,} bytes; it must have 1 to {MAX_ITEM_BYTES:,}, none of them zero"
        )


def check_printable(item: str) -> None:
    """Raise InvalidItem where `item` would break lines, or do worse to a terminal: ids of collections are escaped."""
    if _CONTROL.search(item):
        raise InvalidItem(f"item id {item[:40]!r} holds control characters; leave them out")


def read_payload(text: str) -> Payload:
    """The payload that a table has as text; raises InvalidPayload where that is not a JSON object."""
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError):
        payload = None
    if not isinstance(payload, dict):
        raise InvalidPayload(f"the payload is not a JSON object: {text[:40]}")
    return payload


def payload_text(payload: Payload | None) -> str | None:
    """A payload as it is stored: compact JSON.

    Raises:
        InvalidPayload: it is not a JSON object, deeper than 30 levels, or has an integer beyond the 64-bit floats.
        PayloadTooLarge: it has more than 64 KiB.
    """
    if payload is None:
        return None
    if not isinstance(payload, Mapping):
        raise InvalidPayload(f"the payload is of type {type(payload).__name__}; it must be a JSON object")
    try:
        text = _JSON.encode(dict(payload))
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPayload(f"the payload is not a JSON object: {error}") from error
    if size > MAX_PAYLOAD_BYTES:
        raise PayloadTooLarge(f"the payload has {size:,} bytes as JSON; at most {MAX_PAYLOAD_BYTES:,} are stored")
    # As a rule a glance at the text is enough.
    if text.count("{") + text.count("[") > MAX_PAYLOAD_DEPTH or _LONG_NUMBER.search(text):
        _check_portable(payload)
    return text


def _check_portable(payload: Payload) -> None:
    """Raise InvalidPayload where no message could carry a payload: whoever reads a list of items would get none."""
    rest: list[tuple[object, int]] = [(payload, 1)]
    while rest:
        value, depth = rest.pop()
        if isinstance(value, Mapping | list | tuple):
            if depth > MAX_PAYLOAD_DEPTH:
                raise InvalidPayload(
                    f"the payload has objects or lists within each other, more than {MAX_PAYLOAD_DEPTH} deep; keep "
                    "it flatter, or as text"
                )
            rest += [(one, depth + 1) for one in (value.values() if isinstance(value, Mapping) else value)]
        elif isinstance(value, int):
            try:
                float(value)
            except OverflowError:
                raise InvalidPayload(
                    "the payload has an integer beyond the 64-bit floats; write it as text"
                ) from None


def vector_bytes(upsert: Upsert, dim: int) -> bytes | None:
    """An embedding as it is stored: float32, little-endian, one after the other; None without one.

    Raises:
        InvalidEmbedding: it is not (dim,) float32 of unit length, or its model is not said.
    """
    vector = upsert.embedding
    if vector is None:
        return None
    if not upsert.model:
        raise InvalidEmbedding("the embedding comes without the id of its model")
    if vector.dtype != FLOAT32 or vector.shape != (dim,):
        raise InvalidEmbedding(
            f"the embedding is {vector.dtype} {vector.shape}; model {upsert.model} makes float32 ({dim},)"
        )
    precise = vector.astype(np.float64)
    length = math.sqrt(precise.dot(precise))  # half the time of NumPy's norm
    if not abs(length - 1) <= UNIT_TOLERANCE:  # NaN compares false
        raise InvalidEmbedding(f"the embedding has length {length:.4g}; it must be 1, within {UNIT_TOLERANCE}")
    return vector.tobytes()
