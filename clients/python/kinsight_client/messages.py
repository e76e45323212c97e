"""What both clients share: requests from arguments, results from responses, and how the channel behaves."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from kinsight.v1 import search_service_pb2 as pb

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
# The two messages of a health check that matter, as bytes: an empty HealthCheckRequest asks for the whole server,
# and a HealthCheckResponse is one enum. It spares every user of the client one more package.
HEALTH_REQUEST = b""
HEALTH_SERVING = b"\x08\x01"

# gRPC's own retries: UNAVAILABLE only, the one code that says that the request was not worked on. Searches change
# nothing, so a repeated one is harmless. Five attempts wait 3 s together, enough for a server that restarts.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "kinsight.v1.SearchService"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
CHANNEL_OPTIONS = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # A request is only retried while a copy is kept; gRPC's 256 KiB would leave out most photographs.
    ("grpc.per_rpc_retry_buffer_size", 64 * 2**20),
    # Reconnect as quickly as the retries come; gRPC's 1 s to 120 s would fail them all on one refused connection.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


@dataclass(frozen=True)
class Hit:
    """One item that was found.

    Attributes:
        item: its id in the index.
        similarity: cosine between the query and the item, -1 to 1; higher is nearer.
    """

    item: str
    similarity: float


@dataclass(frozen=True)
class SearchResult:
    """The answer to a search.

    Attributes:
        hits: nearest first.
        index: name of the index that was searched.
        version: its version.
        model: id of the model whose metric the similarities are in.
    """

    hits: tuple[Hit, ...]
    index: str
    version: int
    model: str


@dataclass(frozen=True, eq=False)
class Embedding:
    """An embedding and the model that made it.

    Attributes:
        model: the model's id.
        values: (D,) float32; unit length when the server made it.
    """

    model: str
    values: npt.NDArray[np.float32]


def search_request(
    *,
    image: bytes | Path | None,
    embedding: Embedding | None,
    item: str | None,
    top_k: int,
    index: str,
    nprobe: int | None,
    exact: bool,
) -> pb.SearchRequest:
    """The request of a search.

    Raises:
        TypeError: not exactly one of image, embedding and item is given.
        OSError: the image's path can't be read.
    """
    if sum(query is not None for query in (image, embedding, item)) != 1:
        raise TypeError("search by exactly one of image, embedding and item")
    request = pb.SearchRequest(index=index, top_k=top_k)
    if nprobe is not None or exact:
        request.params.CopyFrom(pb.SearchParams(nprobe=nprobe, exact=exact))
    if embedding is not None:
        request.embedding.model = embedding.model
        request.embedding.values.extend(np.asarray(embedding.values, np.float32).tolist())
    if image is not None:
        request.image = image_bytes(image)
    if item is not None:
        request.item = item
    return request


def image_bytes(image: bytes | Path) -> bytes:
    """The bytes of an image given as such or as the path of a file; raises OSError."""
    return image.read_bytes() if isinstance(image, Path) else image


def search_result(response: pb.SearchResponse) -> SearchResult:
    """The typed form of a response."""
    hits = tuple(Hit(hit.item, hit.similarity) for hit in response.hits)
    return SearchResult(hits, response.index, response.version, response.model)


def embedding_of(response: pb.EmbedResponse) -> Embedding:
    """The typed form of a response."""
    return Embedding(response.embedding.model, np.array(response.embedding.values, np.float32))
