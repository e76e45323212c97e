"""What a run is given: images, and labels that judge what it learns or that it learns from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from indexer.pixels import PixelSpec
from indexer.sources import Collection, SourceError
from trainer.images import ImageCache, Progress, cache_images
from trainer.judging import embed_images, torch_embed
from trainer.known import Known, Taught, read_taught
from trainer.labels import Labels, read_labels
from trainer.recipe import Recipe
from trainer.start import Start
from trainer.suspects import Suspect, find_suspects


@dataclass(frozen=True)
class Given:
    """What a run learns from and is judged on.

    Attributes:
        collection: the images.
        judged: labels of which those that are not of the split train judge.
        taught: labels to learn from.
    """

    collection: Collection
    judged: Labels | None
    taught: Taught | None

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

    def suspects(
        self, start: Start, spec: PixelSpec, run: Path, device: torch.device, progress: Progress
    ) -> tuple[list[Suspect], int]:
        """The labels that it teaches and that disagree with what a run starts from, as `find_suspects` has them."""
        if self.taught is None:
            return [], 0
        sources = [source for source in self.collection.sources if source.item in self.taught.class_of]
        cache = cache_images(sources, spec, run / "labelled.u8", progress, "decode")
        if not len(cache):
            item, reason = cache.skipped[0]
            raise SourceError(f"none of the {len(sources):,} labelled images can be decoded; {item}: {reason}")
        embeddings = embed_images(cache, torch_embed(start.network, device), progress)
        return find_suspects(embeddings, cache.items, self.taught.known(cache.items))


def read_given(collection: Collection, labels: Path | None, teach: bool) -> Given:
    """A run's images with a table of labels, to judge with or to learn from; raises LabelsError and SourceError."""
    if labels is None:
        return Given(collection, None, None)
    if not teach:
        return Given(collection, read_labels(labels, collection), None)
    taught = read_taught(labels, collection)
    return Given(collection, taught.judged, taught)
