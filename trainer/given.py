"""What a run is given: images, and labels that judge what it learns or that it learns from."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from indexer.manifest import write_atomically
from indexer.pixels import PixelSpec
from indexer.sources import Collection, SourceError
from trainer.images import ImageCache, Progress, cache_images
from trainer.judging import embed_images, torch_embed
from trainer.known import Known, Taught, read_taught
from trainer.label_noise import LabelNoise, label_noise
from trainer.labels import Labels, read_labels
from trainer.recipe import Recipe
from trainer.start import Start
from trainer.suspects import Suspect, find_suspects

_LEFT_OUT = "left_out.json"


@dataclass(frozen=True, kw_only=True)
class Doubts:
    """Labels to learn from that disagree with what a run starts from.

    Attributes:
        suspects: as `find_suspects` has them.
        compared: how many labelled images could agree or disagree.
        noise: how many labels are wrong, as far as what the run starts from can tell.
        left_out: items whose labels are not learned from, the surest to be wrong first.
    """

    suspects: tuple[Suspect, ...] = ()
    compared: int = 0
    noise: LabelNoise = field(default_factory=LabelNoise)
    left_out: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to tell of the labels as a whole."""
        return self.noise.warnings(learned_from=not self.left_out)


@dataclass(frozen=True)
class Given:
    """What a run learns from and is judged on.

    Attributes:
        collection: the images.
        judged: labels of which those that are not of the split train judge.
        taught: labels to learn from.
        keep_doubted: whether labels that are likely wrong are learned from all the same.
    """

    collection: Collection
    judged: Labels | None
    taught: Taught | None
    keep_doubted: bool = False

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of it can't be used."""
        labels = self.taught or self.judged
        return (*self.collection.warnings, *(labels.warnings if labels else ()))

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
        return Doubts(suspects=tuple(suspects), compared=compared, noise=noise, left_out=left_out)


def _settled(file: Path, found: tuple[str, ...]) -> tuple[str, ...]:
    """What a run leaves out, settled when it began: a checkpoint is of the labels that it has learned from."""
    if not file.exists():
        write_atomically(file, json.dumps(found).encode())
    return tuple(json.loads(file.read_bytes()))


def read_given(collection: Collection, labels: Path | None, teach: bool, keep_doubted: bool = False) -> Given:
    """A run's images with a table of labels, to judge with or to learn from; raises LabelsError and SourceError."""
    if labels is None:
        return Given(collection, None, None)
    if not teach:
        return Given(collection, read_labels(labels, collection), None)
    taught = read_taught(labels, collection)
    return Given(collection, taught.judged, taught, keep_doubted)
