"""The calls of ModelService."""

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import TypeAlias

from kinsight.v1 import model_service_pb2 as pb
from kinsight.v1.labels_pb2 import LabelledImage, LabelledPair, Labels
from kinsight.v1.model_service_pb2_grpc import ModelServiceStub

from kinsight_client import messages, models
from kinsight_client.calls import Call, Channel, Pages, unique
from kinsight_client.models import CalibrationResult, FineTuneResult, Model, Suggestion, TrainResult
from kinsight_client.operations import Operation, operation_of

# A table on the server's machine; the class of each path; or pairs of paths and whether both show the same.
GivenLabels: TypeAlias = str | PathLike[str] | Mapping[str, str] | Sequence[tuple[str, str, bool]]

PAGE_SIZE = 1000
EPOCHS = "1 or more, less than 2^31, or 0 for the recipe's own"
_SEED = "0 or more, less than 2^31"


class ModelCalls:
    """Learns models, and asks which images are worth labelling.

    Paths are absolute ones on the server's machine, in folders that it was allowed to read. Every method may raise
    `KinsightError`: see `kinsight_client.errors`; and ValueError, where a number is beyond 32 bits or labels are
    empty, and TypeError, where one is neither a path and its class nor a pair.
    """

    def __init__(self, channel: Channel) -> None:
        self._stub = ModelServiceStub(channel)  # type: ignore[no-untyped-call] # generated without types

    def list(self) -> Pages[Model]:
        """Go through the models of the server, oldest first."""
        request = pb.ListModelsRequest(page_size=PAGE_SIZE)
        return Pages(self._stub.ListModels, request, lambda response: map(models.model_of, response.models))

    def get(self, model: str) -> Call[Model]:
        """What the model of this id is, or whose id begins so."""
        return Call(self._stub.GetModel, pb.GetModelRequest(model=model), models.model_of)

    def train(
        self,
        *images: "str | PathLike[str]",
        model: str = "",
        recipe: str = "",
        labels: "str | PathLike[str]" = "",
        epochs: int = 0,
        seed: int | None = None,
        request_id: str = "",
    ) -> Call[Operation[TrainResult]]:
        """Begin to learn a model from images without labels; only one learns at a time, another is `Aborted`.

        Args:
            images: collections; it learns from all together.
            model: id of the model to start from; empty for pretrained weights.
            recipe: name of one that the server has; empty for the model's own, or stml.
            labels: a table with the columns path and class_id, only to judge with; empty for none.
            epochs: passes over the images; 0 for the recipe's.
            seed: of everything random; None for the recipe's.
            request_id: marks repetitions, which get the same operation; one of its own if empty.
        """
        request = pb.TrainRequest(
            request_id=request_id or unique(),
            images=[fspath(path) for path in images],
            model=model,
            recipe=recipe,
            labels=fspath(labels),
            epochs=messages.sendable("epochs", epochs, EPOCHS),
            seed=messages.sendable("seed", seed, _SEED),
        )
        return Call(self._stub.Train, request, operation_of)

    def finetune(
        self,
        model: str,
        images: "str | PathLike[str]",
        labels: GivenLabels,
        *,
        method: str = "",
        epochs: int = 0,
        seed: int | None = None,
        keep_doubted: bool = False,
        request_id: str = "",
    ) -> Call[Operation[FineTuneResult]]:
        """Begin to learn on from a model with a few labels and all images of a collection.

        Args:
            model: its id.
            images: the collection.
            labels: a table on the server's machine; or the class of each path, "" where nobody has said it yet; or
                (path, path, whether both show the same). Paths are relative to the collection, or absolute on the
                server's machine.
            method: of learning; empty for the server's, stml-semi.
            epochs: passes over the images; 0 for the model's recipe's.
            seed: of everything random; None for the recipe's.
            keep_doubted: learn also from labels that are likely wrong, which are left out otherwise, where many are.
            request_id: as for `train`.
        """
        request = pb.FineTuneRequest(
            request_id=request_id or unique(),
            model=model,
            images=fspath(images),
            labels=labels_message(labels),
            method=method,
            epochs=messages.sendable("epochs", epochs, EPOCHS),
            seed=messages.sendable("seed", seed, _SEED),
            keep_doubted=keep_doubted,
        )
        return Call(self._stub.FineTune, request, operation_of)

    def suggest(
        self,
        model: str,
        images: "str | PathLike[str]",
        budget: int,
        *,
        method: str = "",
        labels: GivenLabels | None = None,
        seed: int = 0,
        request_id: str = "",
    ) -> Call[Operation[Suggestion]]:
        """Begin to choose the images of a collection that are most worth labelling.

        Args:
            model: id of the model that sees them.
            images: the collection.
            budget: how many to choose, 1 to all that have no label.
            method: of choosing; empty for the server's, usl.
            labels: as for `finetune`, of images that are labelled already; None for none.
            seed: of the choice.
            request_id: as for `train`.
        """
        request = pb.SuggestLabelsRequest(
            request_id=request_id or unique(),
            model=model,
            images=fspath(images),
            budget=messages.sendable("budget", budget, "1 to the number of images"),
            method=method,
            labels=None if labels is None else labels_message(labels),
            seed=messages.sendable("seed", seed, _SEED),
        )
        return Call(self._stub.SuggestLabels, request, operation_of)

    def calibrate(
        self,
        model: str,
        images: "str | PathLike[str]",
        labels: GivenLabels,
        *,
        things: int = 0,
        request_id: str = "",
    ) -> Call[Operation[CalibrationResult]]:
        """Begin to fit with which probability images of a similarity under a model show the same thing.

        Args:
            model: its id.
            images: a collection.
            labels: as for `finetune`, of images that the model did not learn from.
            things: how many different things the collection shows that is searched, where labels are classes; 0 for
                as many as are labelled.
            request_id: as for `train`.
        """
        request = pb.CalibrateRequest(
            request_id=request_id or unique(),
            model=model,
            images=fspath(images),
            labels=labels_message(labels),
            things=messages.sendable("things", things, "2 or more, less than 2^31, or 0 for the labelled"),
        )
        return Call(self._stub.Calibrate, request, operation_of)


def labels_message(labels: GivenLabels) -> Labels:
    """The message of labels; raises TypeError or ValueError, which says which are none."""
    if isinstance(labels, str | PathLike):
        return Labels(path=fspath(labels))
    if not labels:
        raise ValueError("labels are empty; give the class of an image or more, or pairs of them")
    if isinstance(labels, Mapping):
        return Labels(images=[_labelled(path, name) for path, name in labels.items()])
    return Labels(pairs=[_pair(row) for row in labels])


def _labelled(path: str, name: str) -> LabelledImage:
    if not isinstance(path, str) or not isinstance(name, str):  # what protobuf says of it names neither
        raise TypeError(f"the label {path!r}: {name!r} is not of a str each, the path and the class")
    return LabelledImage(path=path, class_id=name)


def _pair(row: tuple[str, str, bool]) -> LabelledPair:
    match row:
        case (str(a), str(b), same) if same in (True, False):
            relation = LabelledPair.RELATION_SAME if same else LabelledPair.RELATION_DIFFERENT
            return LabelledPair(path_a=a, path_b=b, relation=relation)
    raise TypeError(f"the label {row!r} is not (path, path, True where both show the same, else False)")
