"""What is known of indexes, versions and measurements, as messages; reads disks, so it is called on threads."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]
from kinsight.v1 import index_service_pb2 as pb
from kinsight.v1 import model_service_pb2

from indexer import manifest, version
from indexer.manifest import ManifestError, VersionManifest
from indexer.stats import stats
from indexer.store import NotFound, Store
from server.errors import VersionNotFound
from server.indexes import ActiveIndex, Indexes


def index(store: Store, indexes: Indexes, name: str) -> pb.Index:
    """An index as it is now; raises VersionError where its pointer is damaged, CatalogError where its catalogue is.

    Number, model and items are of the version that is searched: one that another process has activated is not until
    it is swapped in. The etag is of the pointer, which the next activation moves.
    """
    index_dir = store.index(name)
    active, before = version.pointer(index_dir)
    previous = before if before in version.list_versions(index_dir) else 0  # it may be removed
    served = indexes.served(name)
    return pb.Index(
        index=name,
        active_version=served.number if served else active,
        previous_version=previous,
        model=served.model if served else "",
        items=served.latest().count if served else 0,
        etag=f"{active}-{previous}",
        problem=indexes.problem(name),
    )


def one_version(store: Store, name: str, number: int) -> pb.Version:
    """A version; one whose manifest is damaged is refused, for that reason.

    Raises:
        VersionNotFound: there is none of this number.
    """
    index_dir = store.index(name)
    _check_there(index_dir, number)
    try:
        found = manifest.read_version(version.version_dir(index_dir, number))
    except ManifestError as error:
        _check_there(index_dir, number)  # else it was deleted a moment ago
        return pb.Version(index=name, version=number, state=pb.Version.STATE_REFUSED, refusal=str(error))
    return _version(found, version.pointed(index_dir)[:1] == (number,))


def _check_there(index_dir: Path, number: int) -> None:
    known = version.list_versions(index_dir)
    if number not in known:
        there = ", ".join(map(str, known)) or "none"
        raise VersionNotFound(f"index {index_dir.name} has no version {number}; it has: {there}")


def evaluation(number: int, recall: Mapping[str, Any], comparison: Mapping[str, Any] | None) -> pb.Evaluation:
    """What was measured of a version, from the result of an operation."""
    return pb.Evaluation(
        version=number,
        recall_at_10=recall["recall_at_10"],
        recall_low=recall["low"],
        recall_high=recall["high"],
        recall_queries=recall["queries"],
        comparison=_comparison(comparison) if comparison else None,
    )


def index_stats(store: Store, served: ActiveIndex) -> pb.IndexStats:
    """What an index holds and takes."""
    snapshot = served.latest()
    found = stats(store.index(served.name), snapshot, served.catalog)
    memory = {
        "codes": found.serving_bytes,
        "delta": snapshot.delta.vectors.nbytes,
        "ids": served.items.nbytes,
        "payloads": snapshot.columns.nbytes,
    }
    return pb.IndexStats(
        index=served.name,
        version=served.number,
        model=served.model,
        items=found.items,
        delta_items=found.delta_items,
        hidden_items=found.hidden_items,
        pending_items=found.pending_items,
        sequence=found.sequence,
        recall_at_10=found.recall_at_10,
        list_imbalance=found.list_imbalance,
        memory_bytes=memory,
        disk_bytes=found.disk_bytes,
    )


def model(directory: Path) -> model_service_pb2.Model:
    """What the model in a directory is; raises ManifestError."""
    found = manifest.read_model(directory)
    return model_service_pb2.Model(
        model=found.id,
        backbone=found.backbone,
        objective=found.objective,
        dimension=found.dim,
        images=found.images,
        labelled=found.labelled,
        metrics=found.metrics,
        create_time=timestamp(found.created),
        licence=found.licence,
        calibration=calibration(found.calibration) if found.calibration else None,
    )


def calibration(found: Mapping[str, Any]) -> model_service_pb2.Calibration:
    """How a model was calibrated, from its manifest or the result of an operation."""
    names = ("method", "ece_pairs", "ece_hits", "images", "classes", "same", "different")
    return model_service_pb2.Calibration(**{name: found[name] for name in names}, things=found.get("things", 0))


def model_or_id(store: Store, identity: str) -> model_service_pb2.Model:
    """What a model is; nothing but its id where it has been removed or damaged since."""
    try:
        return model(store.model(identity))
    except (NotFound, ManifestError):
        return model_service_pb2.Model(model=identity)


def timestamp(text: str) -> Timestamp | None:
    """A time that was written as ISO 8601; None for none."""
    if not text:
        return None
    message = Timestamp()
    message.FromDatetime(datetime.fromisoformat(text))
    return message


def _version(found: VersionManifest, active: bool) -> pb.Version:
    state = pb.Version.STATE_REFUSED if found.refused else pb.Version.STATE_READY
    return pb.Version(
        index=found.index,
        version=found.version,
        state=pb.Version.STATE_ACTIVE if active else state,
        model=found.model,
        dimension=found.dim,
        items=found.count,
        sequence=found.sequence,
        factory=found.plan["factory"],
        bytes=sum(file.bytes for file in found.files.values()),
        recall_at_10=found.recall.get("recall_at_10", 0.0),
        create_time=timestamp(found.created),
        refusal="" if active else found.refused,
    )


def _comparison(found: Mapping[str, Any]) -> pb.Comparison:
    return pb.Comparison(
        active_version=found["active"],
        active_model=found["model"],
        items=found["compared"],
        overlap_at_10=found["overlap_at_10"],
        rank_correlation=found["rank_correlation"],
        contrast=pb.PairedMeasure(**found["contrast"]),
        label_recall_at_1=pb.PairedMeasure(**found["recall_at_1"]) if found["recall_at_1"] else None,
        labelled_items=found["labelled"],
    )
