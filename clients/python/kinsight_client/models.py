"""What a server's models are, and what learning resulted in, as typed values."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from kinsight.v1 import model_service_pb2 as pb


@dataclass(frozen=True)
class Calibration:
    """What a model was calibrated with, and how far its probabilities are off.

    Attributes:
        method: `isotonic`, or `platt` where there were few pairs.
        ece_pairs: expected calibration error over pairs that the curve was not fitted on, 0 to 1.
        ece_hits: the same over the hits of searches; None where labels were pairs.
        images: how many were labelled.
        classes: how many these have; 0 where labels were pairs.
        same: how many pairs show the same thing.
        different: how many pairs do not.
        things: how many different things a collection shows that the probabilities are for; 0 with pairs.
    """

    method: str
    ece_pairs: float
    ece_hits: float | None
    images: int
    classes: int
    same: int
    different: int
    things: int


@dataclass(frozen=True)
class Model:
    """What turns images into embeddings.

    Attributes:
        model: its id.
        backbone: the network that it is made of.
        objective: what it learned by.
        dimension: D of its embeddings.
        images: how many images it learned from.
        labelled: of how many of these it learned from labels too.
        metrics: what was measured of it; empty where no labels judged it.
        created: when it was made.
        licence: of the weights that its learning started from.
        calibration: how well probabilities of its similarities are known; None before it is calibrated.
    """

    model: str
    backbone: str
    objective: str
    dimension: int
    images: int
    labelled: int
    metrics: Mapping[str, float]
    created: datetime
    licence: str
    calibration: Calibration | None


@dataclass(frozen=True)
class TrainResult:
    """What was learned.

    Attributes:
        model: the model.
        failed: how many images could not be used.
        warnings: what a person should know, each a sentence.
        beats_start: whether its R@1 is above that of the model it started from; None where no labels judged both.
    """

    model: Model
    failed: int
    warnings: tuple[str, ...]
    beats_start: bool | None


@dataclass(frozen=True)
class Suspect:
    """A labelled image that looks most like one that is labelled as something else.

    Attributes:
        item: the image.
        like: the image that it looks like.
        similarity: of the two, -1 to 1.
        own_similarity: its greatest to an image with its own label, -1 to 1.
    """

    item: str
    like: str
    similarity: float
    own_similarity: float


@dataclass(frozen=True)
class FineTuneResult:
    """What was learned from a few labels.

    Attributes:
        model: the model.
        suspects: labels that disagree with the model that it started from, the surest first.
        compared: how many labelled images could agree or disagree.
        unknown_labels: paths of the labels that are not in the collection.
        failed: how many images could not be used.
        warnings: what a person should know, each a sentence.
        beats_start: whether its R@1 is above that of the model it started from; None where no labels judged both.
        beats_supervised: whether its R@1 is above what the same labels teach alone, without the other images; None
            where no labels judged both, as for the method "supervised".
        supervised: what was measured of that, such as "recall_at_1"; empty where `beats_supervised` is None.
    """

    model: Model
    suspects: tuple[Suspect, ...]
    compared: int
    unknown_labels: tuple[str, ...]
    failed: int
    warnings: tuple[str, ...]
    beats_start: bool | None
    beats_supervised: bool | None
    supervised: Mapping[str, float]


@dataclass(frozen=True)
class SuggestedImage:
    """An image that is worth labelling, and why.

    Attributes:
        path: as labels name it.
        stands_for: how many images are more like it than like any other suggested or labelled one, itself included.
        density_rank: 1 for the image of the collection that has most others near it.
        nearest: path of the image most like it of those labelled or suggested before it; None where there is none.
        similarity: of the two, -1 to 1; None where there is none.
    """

    path: str
    stands_for: int
    density_rank: int
    nearest: str | None
    similarity: float | None


@dataclass(frozen=True)
class Suggestion:
    """Images that are most worth labelling.

    Attributes:
        model: id of the model that saw the images.
        images: how many it chose from, those labelled already included.
        labelled: how many of these were labelled already.
        suggested: the images to label, so ordered that each adds most to those before it.
        failed: how many images could not be used.
        warnings: what a person should know, each a sentence.
    """

    model: str
    images: int
    labelled: int
    suggested: tuple[SuggestedImage, ...]
    failed: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class CalibrationResult:
    """What calibrating a model did.

    Attributes:
        model: its id.
        calibration: what was fitted.
        unknown_labels: paths of the labels that are not in the collection.
        failed: how many images could not be used.
        warnings: what a person should know, each a sentence.
    """

    model: str
    calibration: Calibration
    unknown_labels: tuple[str, ...]
    failed: int
    warnings: tuple[str, ...]


def model_of(message: pb.Model) -> Model:
    """The typed form of a message."""
    return Model(
        model=message.model,
        backbone=message.backbone,
        objective=message.objective,
        dimension=message.dimension,
        images=message.images,
        labelled=message.labelled,
        metrics=dict(sorted(message.metrics.items())),  # a message's map has no order
        created=message.create_time.ToDatetime(UTC),
        licence=message.licence,
        calibration=calibration_of(message.calibration) if message.HasField("calibration") else None,
    )


def calibration_of(message: pb.Calibration) -> Calibration:
    """The typed form of a message."""
    return Calibration(
        method=message.method,
        ece_pairs=message.ece_pairs,
        ece_hits=message.ece_hits if message.HasField("ece_hits") else None,
        images=message.images,
        classes=message.classes,
        same=message.same,
        different=message.different,
        things=message.things,
    )


def train_result(message: pb.TrainResponse) -> TrainResult:
    """The typed form of a message."""
    return TrainResult(model_of(message.model), message.failed, tuple(message.warnings), _beats_start(message))


def fine_tune_result(message: pb.FineTuneResponse) -> FineTuneResult:
    """The typed form of a message."""
    return FineTuneResult(
        model=model_of(message.model),
        suspects=tuple(Suspect(s.item, s.like, s.similarity, s.own_similarity) for s in message.suspects),
        compared=message.compared,
        unknown_labels=tuple(message.unknown_labels),
        failed=message.failed,
        warnings=tuple(message.warnings),
        beats_start=_beats_start(message),
        beats_supervised=message.beats_supervised if message.HasField("beats_supervised") else None,
        supervised=dict(sorted(message.supervised.items())),
    )


def suggestion_of(message: pb.SuggestLabelsResponse) -> Suggestion:
    """The typed form of a message."""
    return Suggestion(
        model=message.model,
        images=message.images,
        labelled=message.labelled,
        suggested=tuple(map(_suggested_image, message.suggested)),
        failed=message.failed,
        warnings=tuple(message.warnings),
    )


def _suggested_image(message: pb.SuggestedImage) -> SuggestedImage:
    return SuggestedImage(
        path=message.path,
        stands_for=message.stands_for,
        density_rank=message.density_rank,
        nearest=message.nearest or None,
        similarity=message.similarity if message.HasField("similarity") else None,
    )


def calibration_result(message: pb.CalibrateResponse) -> CalibrationResult:
    """The typed form of a message."""
    return CalibrationResult(
        message.model,
        calibration_of(message.calibration),
        tuple(message.unknown_labels),
        message.failed,
        tuple(message.warnings),
    )


def _beats_start(message: pb.TrainResponse | pb.FineTuneResponse) -> bool | None:
    return message.beats_start if message.HasField("beats_start") else None
