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
from kinsight_client.models import FineTuneResult, Model, Suggestion, Suspect, TrainResult
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
    "FineTuneResult",
    "Hit",
    "ImportResult",
    "Index",
    "IndexStats",
    "InvalidArgument",
    "Item",
    "ItemResult",
    "KinsightError",
    "Model",
    "NotFound",
    "Operation",
    "Paired",
    "PermissionDenied",
    "ResourceExhausted",
    "SearchResult",
    "SnapshotResult",
    "Suggestion",
    "Suspect",
    "TrainResult",
    "Unavailable",
    "Upsert",
    "Version",
]
