"""What a training run did, for whoever started it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from indexer.manifest import ModelManifest
from indexer.sources import Duplicates
from trainer.evaluate import Metrics
from trainer.profiling import Profile
from trainer.suspects import Suspect


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a training run did.

    Attributes:
        model: the manifest of the model that it registered.
        run: name of the run.
        report: the run's `report.html`; None where it could not be written, which is one of the warnings.
        epoch: whose encoder the model is, from 1.
        last_recall_at_1: R@1 of the last epoch's encoder, whichever was chosen; None without labels.
        images: how many images it learned from.
        skipped: (item, reason) of each image that could not be decoded.
        duplicates: images learned from or judged on whose files are the same.
        unknown_labels: paths of the labels table to learn from or judge on that are not in the collection.
        frozen: metrics of the backbone as it was before any training; None without labels.
        start: metrics of the model that the run started from; None where it started from pretrained weights.
        trained: metrics of the exported model; None without labels.
        supervised: metrics of what learned, for as many epochs, from the same labels alone; None where that was not
            asked for, or is what this run did.
        rest: metrics on the unlabelled images of classes that were learned, by the names of `judged`; empty where the
            labels table marks none as `rest`.
        suspects: labels to learn from that disagree with what the run started from, the surest first.
        compared: how many labelled images could agree or disagree.
        wrong_share: of the labels, estimated by what the run started from; None where these are too few.
        left_out: items whose labels are likely wrong and were not learned from, the surest first.
        warnings: what went wrong and was dealt with: unreadable folders, damaged archives, a damaged checkpoint.
        images_per_s: images drawn a second while training; None where a run that goes on had none left to draw.
        seconds: wall clock by stage.
        profile: where the time of the first training steps went, if that was asked for.
    """

    model: ModelManifest
    run: str
    report: Path | None
    epoch: int
    last_recall_at_1: float | None
    images: int
    skipped: tuple[tuple[str, str], ...]
    duplicates: Duplicates
    unknown_labels: tuple[str, ...]
    frozen: Metrics | None
    start: Metrics | None
    trained: Metrics | None
    supervised: Metrics | None
    rest: Mapping[str, Metrics]
    suspects: tuple[Suspect, ...]
    compared: int
    wrong_share: float | None
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    images_per_s: float | None
    seconds: Mapping[str, float]
    profile: Profile | None

    @property
    def judged(self) -> dict[str, Metrics]:
        """The metrics of each of `frozen`, `start`, `supervised` and `trained` that was judged, by these names."""
        named = {"frozen": self.frozen, "start": self.start, "supervised": self.supervised, "trained": self.trained}
        return {who: metrics for who, metrics in named.items() if metrics}

    def tables(self) -> dict[str, dict[str, dict[str, float]]]:
        """All metrics, by what was judged on and by whose they are."""
        judged = {"unseen classes": self.judged, "rest": self.rest}
        return {
            on: {who: metrics.to_dict() for who, metrics in found.items()} for on, found in judged.items() if found
        }

    @property
    def beats_frozen(self) -> bool | None:
        """Whether training raised R@1 above the frozen backbone's; None without labels."""
        return self._beats(self.frozen)

    @property
    def beats_start(self) -> bool | None:
        """Whether training raised R@1 above that of the model that it started from; None without labels or model."""
        return self._beats(self.start)

    @property
    def beats_supervised(self) -> bool | None:
        """Whether R@1 is above that of learning from the same labels alone; None where that was not judged."""
        return self._beats(self.supervised)

    def _beats(self, earlier: Metrics | None) -> bool | None:
        return self.trained.recall_at_1 > earlier.recall_at_1 if earlier and self.trained else None
