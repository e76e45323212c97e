"""What the catalogues know of items, as messages; reads disks, so it is called on threads."""

import json
from collections.abc import Sequence

from google.protobuf.struct_pb2 import Struct  # type: ignore[import-untyped]
from kinsight.v1 import item_service_pb2
from kinsight.v1.search_service_pb2 import SearchResponse

from indexer import filters
from indexer.columns import Columns
from indexer.delta import Mask
from indexer.filters import Expression
from indexer.live_snapshot import Snapshot
from indexer.records import Item, Payload
from indexer.version import UnknownItem
from server.indexes import ActiveIndex
from server.paging import Page, Part


def item(index: ActiveIndex, name: str) -> item_service_pb2.Item:
    """A live item; raises UnknownContent."""
    return _message(index.catalog.get(name), index.latest())


def page(index: ActiveIndex, wanted: Page, condition: str) -> Part[item_service_pb2.Item]:
    """The items of a page that a filter holds for; a page of few matches does not look for more.

    Raises:
        FilterError: the filter is not one, or names a field that no item has, or has of no such type.
    """
    snapshot, expression = index.latest(), filters.parse(condition) if condition else None
    if expression is not None:
        snapshot.columns.check(expression, snapshot.rows)
    found = index.catalog.page(wanted.after, wanted.size + 1)
    shown = found[: wanted.size]
    token = wanted.token(shown[-1].item) if len(found) > len(shown) else ""
    if expression is not None:
        holds = matching(expression, [(one.item, json.dumps(one.payload or {})) for one in shown])
        shown = [one for one, matches in zip(shown, holds, strict=True) if matches]
    return Part([_message(one, snapshot) for one in shown], token)


def with_payloads(index: ActiveIndex, response: SearchResponse) -> SearchResponse:
    """An answer whose hits carry the payloads that their items have by now."""
    known = index.catalog.known([hit.item for hit in response.hits])
    for hit in response.hits:
        found = known.get(hit.item)  # none where it was deleted since
        if found is not None and found.payload:
            hit.payload.CopyFrom(struct(found.payload))
    return response


def matching(expression: Expression, known: Sequence[tuple[str, str]]) -> Mask:
    """For which of some (id, payload as JSON text) a filter holds; a payload may be empty."""
    columns = Columns(
        lambda first, end: ((row, known[row][1]) for row in range(first, end) if known[row][1]),
        lambda first, end: ((row, known[row][0]) for row in range(first, end)),
    )
    return columns.mask(expression, len(known))


def struct(payload: Payload) -> Struct:
    """A payload as a message."""
    message = Struct()
    message.update(payload)
    return message


def _message(known: Item, snapshot: Snapshot) -> item_service_pb2.Item:
    payload = struct(known.payload) if known.payload else None
    try:
        snapshot.row_of(known.item)
        searchable = True
    except UnknownItem:
        searchable = False
    return item_service_pb2.Item(
        item=known.item,
        payload=payload,
        sequence=known.sequence,
        sha256=known.sha256 or "",
        searchable=searchable,
    )
