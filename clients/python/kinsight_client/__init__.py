"""Search a Kinsight server from Python: `Client` for blocking code, `AsyncClient` for asyncio."""

from kinsight_client.async_client import AsyncClient
from kinsight_client.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    KinsightError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from kinsight_client.messages import Embedding, Hit, SearchResult
from kinsight_client.sync_client import Client

__all__ = [
    "AsyncClient",
    "Client",
    "DeadlineExceeded",
    "Embedding",
    "FailedPrecondition",
    "Hit",
    "InvalidArgument",
    "KinsightError",
    "NotFound",
    "ResourceExhausted",
    "SearchResult",
    "Unavailable",
]
