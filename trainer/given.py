"""What a run is given: images, and labels that judge what it learns or that it learns from."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from indexer.manifest import write_atomically
from indexer.pixels import PixelSpec
from indexer.sources import Collection, SourceError
from trainer.images import ImageCache, Progress, cache_images, open_collections
from trainer.judging import embed_images, torch_embed
from trainer.known import Known, Taught, read_taught
from trainer.label_noise import LabelNoise, label_noise
from trainer.labels import Labels, read_labels
from trainer.recipe import Recipe
from trainer.start import Start
from trainer.suspects import Suspect, copies_at_odds, find_suspects

_LEFT_OUT = "left_out.json"
_MANY = 0.5  # share of labels that disagree from which they are doubted as a whole, where no share can be estimated
_KEPT_OF_SINGLES = 0.5  # of the model that a run starts from, with one label a class
_NOT_FEW = 4  # labels a class from which none of it is kept


@dataclass(frozen=True, kw_only=True)
class Doubts:
    """Labels to learn from that disagree with what a run starts from.

    Attributes:
        suspects: as `find_suspects` has them.
        compared: how many labelled images could agree or disagree.
        noise: how many labels are wrong, as far as what the run starts from can tell.
        left_out: items whose labels are not learned from, the surest to be wrong first.
        listed: the file that has these.
        at_odds: labelled images whose files are those of others labelled as something else, each with one of these.
        kept_of_wrong: the share of the model that the run starts from which stays in what it learns from the labels:
            as large as that of the wrong ones where some are left out, as others could not be told from right ones.
        kept_of_few: the same, for there are few labels of each class; see `share_of_few`.
    """

    suspects: tuple[Suspect, ...] = ()
    compared: int = 0
    noise: LabelNoise = field(default_factory=LabelNoise)
    left_out: tuple[str, ...] = ()
    listed: Path | None = None
    at_odds: tuple[tuple[str, str], ...] = ()
    kept_of_wrong: float = 0.0
    kept_of_few: float = 0.0

    @property
    def kept(self) -> float:
        """The share that stays: for whichever reason asks for more."""
        return max(self.kept_of_wrong, self.kept_of_few)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to tell of the labels as a whole."""
        return (*self._of_copies, *self._of_all, *self._of_kept)

    @property
    def _of_copies(self) -> tuple[str, ...]:
        if not self.at_odds:
            return ()
        copy, first = self.at_odds[0]
        warning = (
            f"{len(self.at_odds):,} of the labelled images are byte for byte copies of others that are labelled as "
            f"something else, for example {copy} = {first}: give both one label"
        )
        return (warning,)

    @property
    def _of_all(self) -> tuple[str, ...]:
        if self.noise.wrong_share is None and len(self.suspects) > _MANY * self.compared:
            disagreement = (
                f"the labels disagree with the model for {len(self.suspects) / self.compared:.0%} of the "
                f"{self.compared:,} images that can be compared, for example {self.suspects[0].item}, which looks "
                f"most like {self.suspects[0].like}: where they are right, it has much to learn; look at some, for "
                f"many wrong labels make it worse"
            )
            return (disagreement,)
        return self.noise.warnings(self.listed if self.left_out else None)

    @property
    def _of_kept(self) -> tuple[str, ...]:
        if not self.kept:
            return ()
        few = "as few labels a class say little of what looks alike: with four or more of each, it goes all the way"
        wrong = "for the wrong labels that it can't tell from right ones"
        warning = (
            f"the model that comes of this is {self.kept:.0%} of the way back to the one that the run starts from, "
            f"{few if self.kept_of_few > self.kept_of_wrong else wrong}"
        )
        return (warning,)


@dataclass(frozen=True)
class Given:
    """What a run learns from and is judged on.

    Attributes:
        images: what the collection was opened by.
        collection: the images.
        table: the labels' file; None without labels.
        judged: labels of which those that are not of the split train judge.
        taught: labels to learn from.
        keep_doubted: whether labels that are likely wrong are learned from all the same.
    """

    images: Path
    collection: Collection
    table: Path | None = None
    judged: Labels | None = None
    taught: Taught | None = None
    keep_doubted: bool = False

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of it can't be used, but for what is unknown."""
        labels = self.taught or self.judged
        return (*self.collection.warnings, *(labels.warnings if labels else ()))

    @property
    def warnings_of_unknown(self) -> tuple[str, ...]:
        """What to tell of the unknown paths: a sentence, or none."""
        if not self.unknown:
            return ()
        warning = (
            f"left out, as not in {self.images}: {len(self.unknown):,} of the paths of {self.table}, for example "
            f"{self.unknown[0]}; give paths relative to the folder of the images or of the table, or absolute ones"
        )
        return (warning,)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Paths of the labels that would be learned from or judged on, were they in the collection."""
        if self.taught:
            return self.taught.unknown
        return self.judged.missing if self.judged else ()

    def known(self, items: Sequence[str]) -> Known | None:
        """What it teaches of a training set of these items; None where it teaches nothing."""
        return self.taught.known(items) if self.taught else None

    def training_set(self, recipe: Recipe, run: Path, progress: Progress) -> ImageCache:
        """The images to learn from, decoded into a run's directory; raises SourceError where these are too few."""
        sources = self.judged.training(self.collection.sources) if self.judged else self.collection.sources
        cache = cache_images(sources, PixelSpec(size=recipe.data.cache_size), run / "images.u8", progress, "decode")
        if len(cache) < 2:
            example = f"; {cache.skipped[0][0]}: {cache.skipped[0][1]}" if cache.skipped else ""
            raise SourceError(
                f"{len(cache)} of the {len(sources):,} images to learn from in {self.collection.root} can be "
                f"decoded; a metric needs at least two{example}"
            )
        return cache

    def without(self, items: Iterable[str]) -> "Given":
        """The same, with nothing taught of these items."""
        return replace(self, taught=self.taught.without(items)) if self.taught else self

    def doubts(self, start: Start, spec: PixelSpec, run: Path, device: torch.device, progress: Progress) -> Doubts:
        """Compare the labels that it teaches with what a run starts from; raises SourceError where none can be."""
        if self.taught is None:
            return Doubts()
        sources = [source for source in self.collection.sources if source.item in self.taught.class_of]
        cache = cache_images(sources, spec, run / "labelled.u8", progress, "decode")
        if not len(cache):
            item, reason = cache.skipped[0]
            raise SourceError(f"none of the {len(sources):,} labelled images can be decoded; {item}: {reason}")
        embeddings = embed_images(cache, torch_embed(start.network, device), progress, device)
        known = self.taught.known(cache.items)
        suspects, compared = find_suspects(embeddings, cache.items, known)
        noise = label_noise(embeddings, cache.items, known.label)
        left_out = _settled(run / _LEFT_OUT, () if self.keep_doubted else noise.doubted)
        learned_from = self.taught.without(left_out).known(cache.items)
        has_learned = start.encoder.head_is_trained
        return Doubts(
            suspects=tuple(suspects),
            compared=compared,
            noise=noise,
            left_out=left_out,
            listed=run / _LEFT_OUT,
            at_odds=tuple(copies_at_odds(cache.items, cache.sha256, known)),
            kept_of_wrong=(noise.wrong_share or 0.0) if left_out and has_learned else 0.0,
            kept_of_few=share_of_few(learned_from.label) if has_learned else 0.0,
        )


def share_of_few(label: Tensor) -> float:
    """The share of what a model knew that is kept in what it learns from labels, as these are few of each class.

    One label a class says only what differs, and a metric that sees little loses by it what it had learned without
    labels. So half is kept then, a third with two of each class, a sixth with three, and none with four or more.

    Args:
        label: (N,) int64, the classes of images; -1 where unknown.

    Source:
        CHOICES.md, "What to keep where labels are few": measured here, as no paper has it.
    """
    counts = torch.bincount(label[label >= 0])
    if not counts.any():
        return 0.0
    a_class = (counts.sum() / (counts > 0).sum()).item()
    return _KEPT_OF_SINGLES * max(0.0, (_NOT_FEW - a_class) / (_NOT_FEW - 1))


def _settled(file: Path, found: tuple[str, ...]) -> tuple[str, ...]:
    """What a run leaves out, settled when it began: a checkpoint is of the labels that it has learned from."""
    if not file.exists():
        write_atomically(file, json.dumps(found).encode())
    return tuple(json.loads(file.read_bytes()))


def read_given(images: Sequence[Path], labels: Path | None, teach: bool, keep_doubted: bool = False) -> Given:
    """A run's images with a table of labels, to judge with or to learn from; raises LabelsError and SourceError."""
    collection = open_collections(images)
    if labels is None:
        return Given(images[0], collection)
    if not teach:
        return Given(images[0], collection, labels, read_labels(labels, collection))
    taught = read_taught(labels, collection)
    return Given(images[0], collection, labels, taught.judged, taught, keep_doubted)
