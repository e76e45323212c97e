"""The client for ordinary, blocking code."""

from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from kinsight.v1 import search_service_pb2 as pb
from kinsight.v1.search_service_pb2_grpc import SearchServiceStub

from kinsight_client import messages
from kinsight_client.errors import from_rpc
from kinsight_client.messages import Embedding, SearchResult


class Client:
    """Searches on a Kinsight server. Safe to share between threads; not across a fork.

    with Client("127.0.0.1:50051") as client:
        result = client.search(image=Path("shoe.jpg"))
    """

    def __init__(self, target: str, *, timeout_s: float = 10.0) -> None:
        """Connects at the first call, and again whenever the connection is lost.

        Args:
            target: `host:port` of a server.
            timeout_s: for each call, retries included.
        """
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(target, options=messages.CHANNEL_OPTIONS)
        self._stub = SearchServiceStub(self._channel)  # type: ignore[no-untyped-call] # generated without types
        self._health: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(messages.HEALTH_CHECK)

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
    ) -> SearchResult:
        """The items nearest to exactly one of an image, an embedding and an item.

        Args:
            image: the bytes of an image file, or its path.
            embedding: made by the model of the index.
            item: id of an item of the index; it is itself among the hits.
            top_k: most hits, 1 to 1000.
            index: its name; empty for the server's default.
            nprobe: inverted lists to scan; None for what the index was measured with.
            exact: compare with every item.

        Returns:
            The hits, nearest first, with the index, version and model that they come from.

        Raises:
            KinsightError: see `kinsight_client.errors`.
            TypeError: not exactly one query is given.
            OSError: the image's path can't be read.
        """
        request = messages.search_request(
            image=image, embedding=embedding, item=item, top_k=top_k, index=index, nprobe=nprobe, exact=exact
        )
        try:
            return messages.search_result(self._stub.Search(request, timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise from_rpc(error) from error

    def embed(self, image: bytes | Path, *, index: str = "") -> Embedding:
        """The embedding of an image under the model of an index, to keep and search with later.

        Raises:
            KinsightError: see `kinsight_client.errors`.
            OSError: the image's path can't be read.
        """
        request = pb.EmbedRequest(index=index, image=messages.image_bytes(image))
        try:
            return messages.embedding_of(self._stub.Embed(request, timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise from_rpc(error) from error

    def ready(self) -> bool:
        """Whether a server answers at the target and has an index to search."""
        try:
            status = self._health(messages.HEALTH_REQUEST, timeout=self._timeout_s)
        except grpc.RpcError:  # not there, or not a server of ours: not ready either way
            return False
        return bool(status == messages.HEALTH_SERVING)

    def close(self) -> None:
        """Close the connection; calls in progress end."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
