"""The calls of IndexService."""

from os import PathLike, fspath

from kinsight.v1 import index_service_pb2 as pb
from kinsight.v1.index_service_pb2_grpc import IndexServiceStub

from kinsight_client import messages, versions
from kinsight_client.calls import Call, Channel, Pages, unique
from kinsight_client.learning import EPOCHS, GivenLabels, labels_message
from kinsight_client.operations import Operation, operation_of
from kinsight_client.versions import BuildResult, Evaluation, Index, IndexStats, SnapshotResult, Version

PAGE_SIZE = 1000
_BYTES = "1 or more, less than 2^63, or 0 for no limit"


class IndexCalls:
    """Builds versions of indexes, measures them, and chooses the one that is searched.

    Paths are absolute ones on the server's machine, in folders that it was allowed to use. `index` is the name of an
    index, empty for the server's default. Every method may raise `KinsightError`: see `kinsight_client.errors`; and
    those that take the number of a version ValueError, where it is beyond 64 bits.
    """

    def __init__(self, channel: Channel) -> None:
        self._stub = IndexServiceStub(channel)  # type: ignore[no-untyped-call] # generated without types

    def list(self) -> Pages[Index]:
        """Go through the indexes of the server in the order of their names."""
        request = pb.ListIndexesRequest(page_size=PAGE_SIZE)
        return Pages(self._stub.ListIndexes, request, lambda response: map(versions.index_of, response.indexes))

    def get(self, index: str = "") -> Call[Index]:
        """Which version of an index is searched, and its etag."""
        return Call(self._stub.GetIndex, pb.GetIndexRequest(index=index), versions.index_of)

    def stats(self, index: str = "") -> Call[IndexStats]:
        """What an index holds and takes, as it is now."""
        return Call(self._stub.GetIndexStats, pb.GetIndexStatsRequest(index=index), versions.index_stats)

    def versions(self, index: str = "") -> Pages[Version]:
        """Go through the versions of an index, newest first."""
        request = pb.ListVersionsRequest(index=index, page_size=PAGE_SIZE)
        return Pages(self._stub.ListVersions, request, lambda response: map(versions.version_of, response.versions))

    def build(
        self,
        index: str = "",
        *,
        images: "str | PathLike[str]" = "",
        model: str = "",
        learn: bool = False,
        few_labels: GivenLabels | None = None,
        method: str = "",
        keep_doubted: bool = False,
        epochs: int = 0,
        learn_memory_bytes: int = 0,
        target_recall: float | None = None,
        min_recall: float | None = None,
        activate: bool = True,
        labels: "str | PathLike[str]" = "",
        request_id: str = "",
    ) -> Call[Operation[BuildResult]]:
        """Begin to build the next version of all that is live, which is measured, and activated if it is good enough.

        Args:
            index: its name; empty for the server's default.
            images: a collection of new images that becomes part of the index; empty for none.
            model: id of the model to embed everything with; empty for the active version's.
            learn: train on from the active version's model on all images, and embed them with what comes of it.
            few_labels: learn on from the active version's model with these few labels and all images, and embed them
                with what comes of it, which is activated only where it measures better; as of `models.finetune`. A
                path of them may also be the id of an item.
            method: of learning from labels; empty for the server's, stml-semi.
            keep_doubted: learn also from labels that are likely wrong; as of `models.finetune`.
            epochs: of learning, passes over the images; 0 for the model's own recipe's.
            learn_memory_bytes: of learning, the most that it may allocate; 0 for no limit.
            target_recall: the recall@10 of searches that name none, above 0 and at most 1; None for the active
                version's, or 0.99.
            min_recall: the recall@10 that it must have to be activated, 0 to 1; None for the server's, 0.95, or
                target_recall where that is less.
            activate: whether to activate it when it is good enough.
            labels: a table with the columns path and class_id, only to judge with; empty for none.
            request_id: marks repetitions, which get the same operation; one of its own if empty.

        Raises:
            TypeError: more than one of a model, `learn` and `few_labels`.
            ValueError: epochs is beyond 32 bits, or learn_memory_bytes beyond 64.
        """
        if sum((bool(model), learn, few_labels is not None)) > 1:
            raise TypeError("learning goes on from the index's own model: give one of model, learn and few_labels")
        fine_tune = None
        if few_labels is not None:
            fine_tune = pb.FineTune(labels=labels_message(few_labels), method=method, keep_doubted=keep_doubted)
        request = pb.BuildVersionRequest(
            index=index,
            request_id=request_id or unique(),
            images=fspath(images),
            model=model or None,
            learn=learn or None,
            fine_tune=fine_tune,
            epochs=messages.sendable("epochs", epochs, EPOCHS),
            learn_memory_bytes=messages.sendable("learn_memory_bytes", learn_memory_bytes, _BYTES, 64),
            target_recall=target_recall,
            min_recall=min_recall,
            activate=activate,
            labels=fspath(labels),
        )
        return Call(self._stub.BuildVersion, request, operation_of)

    def activate(self, version: int, *, index: str = "", etag: str = "") -> Call[Index]:
        """Make a version the one that is searched. Not retried.

        If it is of another model, items of which only an embedding is known leave the search: see
        `IndexStats.pending_items`.

        Args:
            version: its number; one that was refused is activated all the same.
            index: its name; empty for the server's default.
            etag: of the `Index` that this was decided on: `Aborted` if it has changed since. Empty for in any case.
        """
        request = pb.ActivateVersionRequest(index=index, version=_number(version), etag=etag)
        return Call(self._stub.ActivateVersion, request, versions.index_of)

    def rollback(self, index: str = "", *, etag: str = "") -> Call[Index]:
        """Make the version that was active before the one that is searched; again, and it is back. Not retried.

        Items leave the search as by `activate`.

        Args:
            index: its name; empty for the server's default.
            etag: as for `activate`.
        """
        request = pb.RollbackIndexRequest(index=index, etag=etag)
        return Call(self._stub.RollbackIndex, request, versions.index_of)

    def delete_version(self, version: int, *, index: str = "") -> Call[None]:
        """Delete a version that is neither active nor the one before; `Aborted` during a build. Not retried."""
        request = pb.DeleteVersionRequest(index=index, version=_number(version))
        return Call(self._stub.DeleteVersion, request, lambda _: None)

    def evaluate(
        self, version: int = 0, *, index: str = "", labels: "str | PathLike[str]" = ""
    ) -> Call[Operation[Evaluation]]:
        """Begin to measure a version, as `build` does before it activates one. Not retried.

        Args:
            version: its number; 0 for the active one.
            index: its name; empty for the server's default.
            labels: as for `build`.
        """
        request = pb.EvaluateVersionRequest(index=index, version=_number(version), labels=fspath(labels))
        return Call(self._stub.EvaluateVersion, request, operation_of)

    def snapshot(
        self, directory: "str | PathLike[str]", *, index: str = "", request_id: str = ""
    ) -> Call[Operation[SnapshotResult]]:
        """Begin to copy an index with its model to a directory that is made.

        Args:
            directory: where to; one that is there already is `AlreadyExists`.
            index: its name; empty for the server's default.
            request_id: as for `build`.
        """
        request = pb.SnapshotIndexRequest(index=index, request_id=request_id or unique(), directory=fspath(directory))
        return Call(self._stub.SnapshotIndex, request, operation_of)

    def restore(
        self, directory: "str | PathLike[str]", *, index: str, request_id: str = ""
    ) -> Call[Operation[Index]]:
        """Begin to make an index of a snapshot.

        Args:
            directory: of the snapshot.
            index: name of the index to make; one that is there already is `AlreadyExists`.
            request_id: as for `build`.
        """
        request = pb.RestoreIndexRequest(index=index, request_id=request_id or unique(), directory=fspath(directory))
        return Call(self._stub.RestoreIndex, request, operation_of)


def _number(version: int) -> int:
    return messages.sendable("version", version, "the number of a version of the index", messages.VERSION_BITS)
