"""Use a Kinsight server from Python: `Client` for blocking code, `AsyncClient` for asyncio."""

from kinsight_client.async_client import AsyncClient
from kinsight_client.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    KinsightError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from kinsight_client.messages import (
    Embedding,
    ExportResult,
    Hit,
    ImportResult,
    Item,
    ItemResult,
    SearchResult,
    Upsert,
)
from kinsight_client.operations import Operation
from kinsight_client.sync_client import Client
from kinsight_client.versions import (
    BuildResult,
    Comparison,
    Evaluation,
    Index,
    IndexStats,
    Paired,
    SnapshotResult,
    Version,
)

__all__ = [
    "Aborted",
    "AlreadyExists",
    "AsyncClient",
    "BuildResult",
    "Cancelled",
    "Client",
    "Comparison",
    "DataLoss",
    "DeadlineExceeded",
    "Embedding",
    "Evaluation",
    "ExportResult",
    "FailedPrecondition",
    "Hit",
    "ImportResult",
    "Index",
    "IndexStats",
    "InvalidArgument",
    "Item",
    "ItemResult",
    "KinsightError",
    "NotFound",
    "Operation",
    "Paired",
    "PermissionDenied",
    "ResourceExhausted",
    "SearchResult",
    "SnapshotResult",
    "Unavailable",
    "Upsert",
    "Version",
]
