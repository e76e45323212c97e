"""What indexes and their versions are made of: the typed forms of the messages, and how they are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from kinsight.v1 import index_service_pb2 as pb


@dataclass(frozen=True)
class Index:
    """An index: a set of items, and the version that they are searched with.

    Attributes:
        index: its name.
        active_version: the version that is searched; 0 for none.
        previous_version: the one that `rollback` would activate; 0 for none.
        model: id of the active version's model; empty for none.
        items: how many items a search can find now.
        etag: changes whenever one of the two versions does.
        problem: what keeps the version that was activated last from being searched; empty as a rule.
    """

    index: str
    active_version: int
    previous_version: int
    model: str
    items: int
    etag: str
    problem: str


@dataclass(frozen=True)
class IndexStats:
    """What an index holds and takes.

    Attributes:
        index: its name.
        version: the version that is searched.
        model: id of its model.
        items: how many items a search can find.
        delta_items: how many of them are not in the version but searched beside it.
        hidden_items: how many items of the version are hidden, because they were deleted or replaced.
        pending_items: how many items no search finds, as the index's model has not embedded them, or can't.
        sequence: the number of the last change.
        recall_at_10: of the version against exact search, measured when it was built, 0 to 1.
        list_imbalance: of the inverted lists; 1 for even, 2 where a search scans twice as many codes.
        memory_bytes: by part.
        disk_bytes: by part.
    """

    index: str
    version: int
    model: str
    items: int
    delta_items: int
    hidden_items: int
    pending_items: int
    sequence: int
    recall_at_10: float
    list_imbalance: float
    memory_bytes: Mapping[str, int]
    disk_bytes: Mapping[str, int]


@dataclass(frozen=True)
class Version:
    """One version of an index.

    Attributes:
        index: name of the index.
        version: its number, 1 or more.
        state: ready, active or refused.
        model: id of the model that made its embeddings.
        dimension: D of its embeddings.
        items: how many it holds.
        sequence: it holds every change up to this one.
        factory: how it is indexed, as FAISS's factory string.
        bytes: of its files.
        recall_at_10: against exact search, measured when it was built, 0 to 1.
        created: when it was built.
        refusal: why it was not activated; empty unless it was refused.
    """

    index: str
    version: int
    state: str
    model: str
    dimension: int
    items: int
    sequence: int
    factory: str
    bytes: int
    recall_at_10: float
    created: datetime
    refusal: str


@dataclass(frozen=True)
class Paired:
    """A measure of two versions on the same items.

    Attributes:
        active: mean of the active version.
        candidate: mean of the version that was measured.
        low: lower end of the 95 % confidence interval of candidate less active, item by item.
        high: upper end.
    """

    active: float
    candidate: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """How a version compares with the active one, on items that are in both with the same image.

    Attributes:
        active_version: number of the active version.
        active_model: id of its model.
        items: how many were compared.
        overlap_at_10: which part of the 10 nearest items both found, mean, 0 to 1.
        rank_correlation: Spearman's, of an item's similarities to the others, mean, -1 to 1.
        contrast: how far the nearest 10 items stand out from the rest.
        label_recall_at_1: Recall@1 by labels; None where none were given, or no two of one class.
        labelled_items: how many labelled items both hold.
    """

    active_version: int
    active_model: str
    items: int
    overlap_at_10: float
    rank_correlation: float
    contrast: Paired
    label_recall_at_1: Paired | None
    labelled_items: int


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a version.

    Attributes:
        version: its number.
        recall_at_10: against exact search in the same version, 0 to 1.
        recall_low: lower end of its 95 % confidence interval.
        recall_high: upper end.
        recall_queries: how many queries it was measured with; 0 where search is exact anyway.
        comparison: with the active version; None where there is none other, or too few items are in both.
    """

    version: int
    recall_at_10: float
    recall_low: float
    recall_high: float
    recall_queries: int
    comparison: Comparison | None


@dataclass(frozen=True)
class BuildResult:
    """What was built; `version.state` and `version.refusal` say whether it was activated, and if not, why.

    Attributes:
        version: the version.
        evaluation: what was measured of it.
        reused: how many items took over an embedding that was known.
        embedded: how many were embedded.
        failed: how many images could not be used.
        warnings: what a person should know, each a sentence.
    """

    version: Version
    evaluation: Evaluation
    reused: int
    embedded: int
    failed: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class SnapshotResult:
    """What was copied.

    Attributes:
        directory: that was made, on the server's machine.
        version: the version that was active.
        sequence: it holds every change up to this one.
        bytes: of its files.
    """

    directory: str
    version: int
    sequence: int
    bytes: int


def index_of(message: pb.Index) -> Index:
    """The typed form of a message."""
    return Index(
        message.index,
        message.active_version,
        message.previous_version,
        message.model,
        message.items,
        message.etag,
        message.problem,
    )


def index_stats(message: pb.IndexStats) -> IndexStats:
    """The typed form of a message."""
    return IndexStats(
        index=message.index,
        version=message.version,
        model=message.model,
        items=message.items,
        delta_items=message.delta_items,
        hidden_items=message.hidden_items,
        pending_items=message.pending_items,
        sequence=message.sequence,
        recall_at_10=message.recall_at_10,
        list_imbalance=message.list_imbalance,
        memory_bytes=dict(message.memory_bytes),
        disk_bytes=dict(message.disk_bytes),
    )


def version_of(message: pb.Version) -> Version:
    """The typed form of a message."""
    return Version(
        index=message.index,
        version=message.version,
        state=pb.Version.State.Name(message.state).removeprefix("STATE_").lower(),
        model=message.model,
        dimension=message.dimension,
        items=message.items,
        sequence=message.sequence,
        factory=message.factory,
        bytes=message.bytes,
        recall_at_10=message.recall_at_10,
        created=message.create_time.ToDatetime(UTC),
        refusal=message.refusal,
    )


def evaluation_of(message: pb.Evaluation) -> Evaluation:
    """The typed form of a message."""
    return Evaluation(
        version=message.version,
        recall_at_10=message.recall_at_10,
        recall_low=message.recall_low,
        recall_high=message.recall_high,
        recall_queries=message.recall_queries,
        comparison=_comparison(message.comparison) if message.HasField("comparison") else None,
    )


def build_result(message: pb.BuildVersionResponse) -> BuildResult:
    """The typed form of a message."""
    return BuildResult(
        version=version_of(message.version),
        evaluation=evaluation_of(message.evaluation),
        reused=message.reused,
        embedded=message.embedded,
        failed=message.failed,
        warnings=tuple(message.warnings),
    )


def snapshot_result(message: pb.SnapshotIndexResponse) -> SnapshotResult:
    """The typed form of a message."""
    return SnapshotResult(message.directory, message.version, message.sequence, message.bytes)


def _comparison(message: pb.Comparison) -> Comparison:
    labelled = message.HasField("label_recall_at_1")
    return Comparison(
        active_version=message.active_version,
        active_model=message.active_model,
        items=message.items,
        overlap_at_10=message.overlap_at_10,
        rank_correlation=message.rank_correlation,
        contrast=_paired(message.contrast),
        label_recall_at_1=_paired(message.label_recall_at_1) if labelled else None,
        labelled_items=message.labelled_items,
    )


def _paired(message: pb.PairedMeasure) -> Paired:
    return Paired(message.active, message.candidate, message.low, message.high)
