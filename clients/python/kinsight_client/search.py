"""The calls of SearchService."""

from pathlib import Path

from kinsight.v1 import search_service_pb2 as pb
from kinsight.v1.search_service_pb2_grpc import SearchServiceStub

from kinsight_client import messages
from kinsight_client.calls import Call, Channel
from kinsight_client.messages import Embedding, SearchResult


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
            TypeError: not exactly one query is given.
            OSError: the image's path can't be read.
        """
        if sum(query is not None for query in (image, embedding, item)) != 1:
            raise TypeError("search by exactly one of image, embedding and item")
        request = pb.SearchRequest(
            image=None if image is None else messages.image_bytes(image),
            embedding=None if embedding is None else messages.embedding_message(embedding),
            item=item,
            top_k=top_k,
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
            request.params.CopyFrom(pb.SearchParams(nprobe=nprobe, exact=exact, target_recall=target_recall))
        return Call(self._stub.Search, request, messages.search_result)

    def embed(self, image: bytes | Path, *, index: str = "") -> Call[Embedding]:
        """The embedding of an image under the model of an index, to keep and search with later.

        Raises:
            KinsightError: see `kinsight_client.errors`.
            OSError: the image's path can't be read.
        """
        request = pb.EmbedRequest(index=index, image=messages.image_bytes(image))
        return Call(self._stub.Embed, request, messages.embedding_of)
