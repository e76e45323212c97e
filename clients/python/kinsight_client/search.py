"""The calls of SearchService."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import add, gt
from pathlib import Path
from typing import TypeAlias, TypedDict, Unpack

from kinsight.v1 import search_service_pb2 as pb
from kinsight.v1.search_service_pb2_grpc import SearchServiceStub

from kinsight_client import messages
from kinsight_client.calls import Call, Channel, Unsent, call_for
from kinsight_client.errors import KinsightError, UnreadableImage
from kinsight_client.messages import Embedding, SearchResult

# Of a batch. The server takes 256 queries, 25,600 hits, 1,000 payloads and messages of 32 MiB; and a processor
# decodes and embeds some 150 images a second, while a call has timeout_s.
MAX_QUERIES, MAX_HITS, MAX_PAYLOADS, MAX_BYTES, MAX_IMAGES = 256, 25_600, 1_000, 16 * 2**20, 100

Query: TypeAlias = pb.SearchRequest | Unsent[SearchResult | KinsightError]  # one of many


class SearchOptions(TypedDict, total=False):
    """How to search, the same for all queries of `search_many`: the arguments of `search` of these names."""

    top_k: int
    index: str
    nprobe: int | None
    exact: bool
    target_recall: float | None
    filter: str
    min_similarity: float | None
    near_duplicate_threshold: float | None
    group_by: str
    diversity: float | None
    include_payload: bool
    probability: bool
    min_probability: float | None


class SearchCalls:
    """Searches an index by image, by embedding or by item."""

    def __init__(self, channel: Channel) -> None:
        self._stub = SearchServiceStub(channel)  # type: ignore[no-untyped-call] # generated without types

    def search(
        self,
        *,
        image: bytes | Path | None = None,
        embedding: Embedding | None = None,
        item: str | None = None,
        top_k: int = 10,
        index: str = "",
        nprobe: int | None = None,
        exact: bool = False,
        target_recall: float | None = None,
        filter: str = "",  # noqa: A002  the field's word, and the server's
        min_similarity: float | None = None,
        near_duplicate_threshold: float | None = None,
        group_by: str = "",
        diversity: float | None = None,
        include_payload: bool = False,
        probability: bool = False,
        min_probability: float | None = None,
    ) -> Call[SearchResult]:
        """The items nearest to exactly one of an image, an embedding and an item.

        Quick searches that threads or tasks make at the same time through one client are sent together: by embedding
        or item, without exact, filter, near_duplicate_threshold, group_by, diversity and include_payload.

        Args:
            image: the bytes of an image file, or its path.
            embedding: made by the model of the index.
            item: id of an item of the index; it is itself among the hits.
            top_k: most hits, 1 to 1000.
            index: its name; empty for the server's default.
            nprobe: inverted lists to scan; None for what the index was measured with.
            exact: compare with every item.
            target_recall: the recall@10 to search for, above 0 and at most 1, instead of nprobe or exact.
            filter: which items to search, such as `species = "wren" AND year >= 2020`; empty for all. The language
                is described with SearchRequest.filter in proto/kinsight/v1/search_service.proto.
            min_similarity: leaves out hits of less, -1 to 1.
            near_duplicate_threshold: leaves out hits that are as similar to a better hit as this, above 0 to 1.
            group_by: a payload field; only the best hit for each of its values is kept.
            diversity: how much hits should differ from each other, 0 to 1.
            include_payload: whether hits carry their payloads.
            probability: whether hits carry their probabilities; needs a model that was calibrated.
            min_probability: leaves out hits that show the same thing with less probability, 0 to 1; no hits is then
                the answer "no good match". Asks for probabilities too.

        Returns:
            The hits, nearest first, with the index, version and model that they come from.

        Raises:
            KinsightError: see `kinsight_client.errors`.
            TypeError: not exactly one query is given, the image is neither bytes nor a Path, the embedding is no
                `Embedding`, or the id is no text.
            ValueError: the embedding has another shape than (D,), or top_k or nprobe is beyond 32 bits.
            OSError: the image's path can't be read.
        """
        if sum(query is not None for query in (image, embedding, item)) != 1:
            raise TypeError("search by exactly one of image, embedding and item")
        request = pb.SearchRequest(
            image=None if image is None else messages.image_bytes(image),
            embedding=None if embedding is None else messages.embedding_message(embedding),
            item=None if item is None else messages.item_id(item),
            top_k=messages.sendable("top_k", top_k, "1 to 1000"),
            index=index,
            filter=filter,
            min_similarity=min_similarity,
            near_duplicate_threshold=near_duplicate_threshold,
            group_by=group_by,
            diversity=diversity,
            include_payload=include_payload,
            score_kind=pb.SCORE_KIND_PROBABILITY if probability else pb.SCORE_KIND_UNSPECIFIED,
            min_probability=min_probability,
        )
        if nprobe is not None or exact or target_recall is not None:
            lists = messages.sendable("nprobe", nprobe, "1 to the number of lists of the index")
            request.params.CopyFrom(pb.SearchParams(nprobe=lists, exact=exact, target_recall=target_recall))
        return Call(self._stub.Search, request, messages.search_result)

    def search_many(
        self,
        *,
        images: Iterable[bytes | Path] = (),
        embeddings: Iterable[Embedding] = (),
        items: Iterable[str] = (),
        **options: Unpack[SearchOptions],
    ) -> Iterator[Call[list[SearchResult | KinsightError]] | list[SearchResult | KinsightError]]:
        """The items nearest to each of many queries, in as few calls as they need; cheaper than a `search` for each.

        Args:
            images: the bytes of image files, or their paths, which are read when they are sent.
            embeddings: made by the model of the index.
            items: ids of items of the index.
            **options: as for `search`.

        Returns:
            What `search` would return or raise for each query: the images first, then the embeddings, then the items.
            In the place of an image whose file can't be read, where `search` raises OSError, is an UnreadableImage.

        Raises:
            KinsightError: a call failed as a whole; see `kinsight_client.errors`.
            TypeError: `items` is a text, whose letters would be taken for ids, or one of them is no text.
            ValueError: as of `search`.
        """
        queries: Iterable[Query] = chain(
            (self._by_image(image, options) for image in images),
            (self.search(embedding=embedding, **options).request for embedding in embeddings),
            (self.search(item=item, **options).request for item in messages.item_ids(items)),
        )
        for batch in batches(queries):
            yield call_for(batch, self.batch_search)

    def batch_search(self, requests: Sequence[pb.SearchRequest]) -> Call[list[SearchResult | KinsightError]]:
        """The one call for several searches."""
        return Call(self._stub.BatchSearch, pb.BatchSearchRequest(requests=requests), messages.search_results)

    def stream_search(self, requests: Sequence[pb.SearchRequest]) -> Call[list[SearchResult | KinsightError]]:
        """One or several searches as a message of a stream."""
        return Call(self._stub.StreamSearch, pb.StreamSearchRequest(requests=requests), messages.search_results)

    def _by_image(self, image: bytes | Path, options: SearchOptions) -> Query:
        try:
            request: pb.SearchRequest = self.search(image=image, **options).request
        except OSError as error:  # so it is a path: bytes need no reading
            return Unsent(UnreadableImage(str(image), error))
        refusal = messages.unsendable(request)
        return request if refusal is None else Unsent(refusal)

    def embed(self, image: bytes | Path, *, index: str = "") -> Call[Embedding]:
        """The embedding of an image under the model of an index, to keep and search with later.

        Raises:
            KinsightError: see `kinsight_client.errors`.
            OSError: the image's path can't be read.
        """
        request = pb.EmbedRequest(index=index, image=messages.image_bytes(image))
        return Call(self._stub.Embed, request, messages.embedding_of)


def batches(queries: Iterable[Query]) -> Iterator[list[Query]]:
    """Queries in batches that a server takes; only where all are unreadable has one no request."""
    batch: list[Query] = []
    used: tuple[int, ...] = (0, 0, 0, 0, 0)
    for query in queries:
        share = _share(query)
        total = tuple(map(add, used, share))
        if batch and any(map(gt, total, (MAX_QUERIES, MAX_HITS, MAX_PAYLOADS, MAX_BYTES, MAX_IMAGES))):
            yield batch
            batch, total = [], share
        batch.append(query)
        used = total
    if batch:
        yield batch


def _share(query: Query) -> tuple[int, ...]:
    """What a query takes of the limits of a batch: queries, hits, payloads, bytes and images."""
    if isinstance(query, Unsent):
        return 0, 0, 0, 0, 0
    payloads = query.top_k if query.include_payload else 0
    return 1, max(query.top_k, 0), payloads, query.ByteSize(), int(query.HasField("image"))
