"""Upserts as clients send them, checked and translated to what a catalogue takes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format  # type: ignore[import-untyped]
from google.protobuf.struct_pb2 import Struct  # type: ignore[import-untyped]
from kinsight.v1.item_service_pb2 import ItemUpsert

from indexer.records import DuplicateItem, InvalidItem, InvalidPayload, Upsert, check_printable
from server import answers
from server.embeddings import Floats, units
from server.indexes import ActiveIndex

MAX_ITEM_BYTES = 1024  # of an item id that a client chooses; those of collections are paths, which may be longer

Prepared = list[Upsert | Exception]


@dataclass(frozen=True)
class Batch:
    """The items of one request."""

    index: ActiveIndex
    items: Sequence[ItemUpsert]


def prepare(batches: Sequence[Batch]) -> list[Prepared | Exception]:
    """The upserts of each batch, images without their embeddings yet, or what is wrong with an item."""
    return [_prepare(batch) for batch in batches]


def _prepare(batch: Batch) -> Prepared:
    times = Counter(item.item for item in batch.items)
    embeddings = iter(units([item.embedding for item in batch.items if item.HasField("embedding")], batch.index))
    prepared: Prepared = []
    for item in batch.items:
        embedding = next(embeddings) if item.HasField("embedding") else None
        try:
            if times[item.item] > 1:
                raise DuplicateItem(f"item {item.item!r} comes {times[item.item]} times in this batch; send it once")
            prepared.append(_upsert(item, embedding, batch.index.model))
        except Exception as error:
            if not answers.foreseen(error):
                raise
            prepared.append(error)
    return prepared


def _upsert(item: ItemUpsert, embedding: Floats | Exception | None, model: str) -> Upsert:
    check_item(item.item)
    payload = payload_of(item.payload) if item.HasField("payload") else None
    if isinstance(embedding, Exception):
        raise embedding
    image = item.image if item.HasField("image") else None
    return Upsert(item.item, embedding, model, image, payload=payload)


def check_item(item: str) -> None:
    """Raise InvalidItem where a client may not name an item so."""
    size = len(item.encode())
    if not 0 < size <= MAX_ITEM_BYTES:
        raise InvalidItem(f"item id {item[:40]!r} has {size:,} bytes; it must have 1 to {MAX_ITEM_BYTES:,}")
    check_printable(item)


def payload_of(struct: Struct) -> dict[str, Any]:
    """A payload as a JSON object; raises InvalidPayload."""
    try:
        payload: dict[str, Any] = json_format.MessageToDict(struct)
    except (ValueError, json_format.Error, RecursionError) as error:
        raise InvalidPayload(f"the payload is not a JSON object: {error}") from error
    return payload
