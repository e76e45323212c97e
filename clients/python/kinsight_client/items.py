"""The calls of ItemService."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from os import PathLike, fspath
from pathlib import Path
from typing import TypeAlias

from kinsight.v1 import item_service_pb2 as pb
from kinsight.v1.item_service_pb2_grpc import ItemServiceStub

from kinsight_client import messages
from kinsight_client.calls import Call, Channel, Pages, Unsent, call_for, unique
from kinsight_client.errors import UnreadableImage
from kinsight_client.messages import Embedding, ExportResult, ImportResult, Item, ItemResult, Payload, Upsert
from kinsight_client.operations import Operation, operation_of

MAX_ITEMS = 1000  # of a batch, for the server
MAX_IMAGES = 100  # of a batch: a processor decodes and embeds some 150 a second, and a call has timeout_s
MAX_BYTES = 16 * 2**20  # of a batch; the server takes messages of 32 MiB
PAGE_SIZE = 1000

Wanted: TypeAlias = pb.ItemUpsert | Unsent[ItemResult]  # one of many


class ItemCalls:
    """Puts items into an index, takes them out, and reads them."""

    def __init__(self, channel: Channel) -> None:
        self._stub = ItemServiceStub(channel)  # type: ignore[no-untyped-call] # generated without types

    def upsert_many(
        self, upserts: Iterable[Upsert], *, index: str = "", request_id: str = "", searchable: bool = True
    ) -> Iterator[Call[list[ItemResult]] | list[ItemResult]]:
        """Put items into an index in as many batches as they need; each item is taken or refused on its own.

        A batch that meets no server is sent again with its request id, by which nothing is done twice. When the call
        fails nevertheless, the batches before are in the index; the same items with the same `request_id` go on.

        Args:
            upserts: the items; of an id that comes more than once, the last one stays.
            index: its name; empty for the server's default.
            request_id: marks repetitions of this call, 1 to 50 printable ASCII characters; one of its own if empty.
            searchable: wait until searches find the items, not only until they are on the server's disk.

        Returns:
            What became of each item, in their order; an UnreadableImage is the error of one whose image's path can't
            be read, where `upsert` raises OSError, and ResourceExhausted that of one too large for the server.

        Raises:
            KinsightError: a call failed; see `kinsight_client.errors`.
        """
        wait_for = pb.BatchUpsertItemsRequest.WaitFor.Value(
            "WAIT_FOR_SEARCHABLE" if searchable else "WAIT_FOR_ACKNOWLEDGED"
        )
        request_id = request_id or unique()
        for number, batch in enumerate(_batches(map(_wanted, upserts))):
            request = pb.BatchUpsertItemsRequest(index=index, request_id=f"{request_id}-{number}", wait_for=wait_for)
            yield call_for(batch, partial(self._batch_upsert, request))

    def _batch_upsert(
        self, request: pb.BatchUpsertItemsRequest, items: Sequence[pb.ItemUpsert]
    ) -> Call[list[ItemResult]]:
        request.items.extend(items)
        return Call(self._stub.BatchUpsertItems, request, messages.item_results)

    def upsert(
        self,
        item: str,
        *,
        image: bytes | Path | None = None,
        embedding: Embedding | None = None,
        payload: Payload | None = None,
        index: str = "",
    ) -> Call[ItemResult]:
        """Put an item into an index, or change it; the next search finds it. See `Upsert` for the arguments.

        Raises:
            KinsightError: it was not taken; see `kinsight_client.errors`.
            TypeError: there are an image and an embedding, or the id is no text.
            ValueError: the payload is not a JSON object, or has an integer beyond 2^53, NaN or infinity.
            OSError: the image's path can't be read.
        """
        upsert = messages.upsert_message(Upsert(item, image, embedding, payload))
        request = pb.BatchUpsertItemsRequest(index=index, request_id=unique(), items=[upsert])
        return Call(self._stub.BatchUpsertItems, request, _taken)

    def delete_many(
        self, items: Iterable[str], *, index: str = "", request_id: str = ""
    ) -> Iterator[Call[list[ItemResult]]]:
        """Take items out of an index in as many batches as they need; one that was never there is `NotFound`.

        Args:
            items: their ids.
            index: its name; empty for the server's default.
            request_id: as for `upsert_many`.

        Returns:
            What became of each item, in their order.

        Raises:
            KinsightError: a call failed; see `kinsight_client.errors`.
            TypeError: `items` is a text, whose letters would be taken for ids, or one of them is no text.
        """
        request_id, items = request_id or unique(), messages.item_ids(items)
        for number, batch in enumerate(iter(lambda: list(islice(items, MAX_ITEMS)), [])):
            request = pb.BatchDeleteItemsRequest(index=index, request_id=f"{request_id}-{number}", items=batch)
            yield Call(self._stub.BatchDeleteItems, request, messages.item_results)

    def delete(self, item: str, *, index: str = "") -> Call[ItemResult]:
        """Take an item out of an index; no search finds it again until it is upserted or imported again.

        Raises:
            KinsightError: see `kinsight_client.errors`; one that is deleted already is no error.
            TypeError: the id is no text.
        """
        request = pb.BatchDeleteItemsRequest(index=index, request_id=unique(), items=[messages.item_id(item)])
        return Call(self._stub.BatchDeleteItems, request, _taken)

    def get(self, item: str, *, index: str = "") -> Call[Item]:
        """What the index keeps of an item.

        Raises:
            KinsightError: see `kinsight_client.errors`.
            TypeError: the id is no text.
        """
        return Call(self._stub.GetItem, pb.GetItemRequest(index=index, item=messages.item_id(item)), messages.item_of)

    def list(
        self,
        *,
        filter: str = "",  # noqa: A002  the field's word, and the server's
        index: str = "",
    ) -> Pages[Item]:
        """Go through the items of an index in the order of their ids, page by page.

        Args:
            filter: which items; as for `search`.
            index: its name; empty for the server's default.

        Raises:
            KinsightError: see `kinsight_client.errors`.
        """
        request = pb.ListItemsRequest(index=index, filter=filter, page_size=PAGE_SIZE)
        return Pages(self._stub.ListItems, request, lambda response: map(messages.item_of, response.items))

    def import_from(
        self,
        path: "str | PathLike[str]",
        *,
        failures: "str | PathLike[str]" = "",
        index: str = "",
        request_id: str = "",
    ) -> Call[Operation[ImportResult]]:
        """Begin to put every image of a collection on the server's machine into an index, or a table's embeddings.

        Args:
            path: an absolute path there: a folder, a table of paths, tar shards or Parquet tables of images; or a
                Parquet table of embeddings, as `export_to` writes it.
            failures: an absolute path there, of a CSV file that is not there yet and is to list everything that is
                left out; empty for none.
            index: its name; empty for the server's default.
            request_id: marks repetitions, which get the same operation; one of its own if empty.

        Raises:
            KinsightError: see `kinsight_client.errors`.
        """
        request = pb.ImportItemsRequest(
            index=index, request_id=request_id or unique(), path=fspath(path), failures_path=fspath(failures)
        )
        return Call(self._stub.ImportItems, request, operation_of)

    def export_to(
        self, path: "str | PathLike[str]", *, index: str = "", request_id: str = ""
    ) -> Call[Operation[ExportResult]]:
        """Begin to write the items of an index, with embeddings and payloads, to a Parquet file of the server's.

        Args:
            path: an absolute path there, of a file that is not there yet.
            index: its name; empty for the server's default.
            request_id: marks repetitions, which get the same operation; one of its own if empty.

        Raises:
            KinsightError: see `kinsight_client.errors`.
        """
        request = pb.ExportItemsRequest(index=index, request_id=request_id or unique(), path=fspath(path))
        return Call(self._stub.ExportItems, request, operation_of)


def _wanted(upsert: Upsert) -> Wanted:
    try:
        message = messages.upsert_message(upsert)
    except OSError as error:  # so its image is a path: nothing else is read
        return Unsent(ItemResult(upsert.item, 0, UnreadableImage(str(upsert.image), error)))
    refusal = messages.unsendable(message)
    return message if refusal is None else Unsent(ItemResult(upsert.item, 0, refusal))


def _batches(upserts: Iterable[Wanted]) -> Iterator[list[Wanted]]:
    """Upserts in batches that a server takes, with no id twice in what is sent of one."""
    batch: list[Wanted] = []
    sent: set[str] = set()
    images = size = 0
    for upsert in upserts:
        if isinstance(upsert, Unsent):
            batch.append(upsert)
            continue
        has_image, upsert_bytes = upsert.HasField("image"), upsert.ByteSize()
        full = len(sent) == MAX_ITEMS or (has_image and images == MAX_IMAGES) or size + upsert_bytes > MAX_BYTES
        if sent and (full or upsert.item in sent):
            yield batch
            batch, sent, images, size = [], set(), 0, 0
        batch.append(upsert)
        sent.add(upsert.item)
        images, size = images + has_image, size + upsert_bytes
    if batch:
        yield batch


def _taken(response: pb.BatchUpsertItemsResponse | pb.BatchDeleteItemsResponse) -> ItemResult:
    (result,) = messages.item_results(response)
    if result.error is not None:
        raise result.error
    return result
