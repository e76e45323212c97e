"""Which images of a collection a person should label.

BudgetOutOfRange   as many images can't be chosen
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from indexer.encoder import Encoder as RuntimeEncoder
from indexer.pixels import PixelSpec
from indexer.sources import Source, SourceError, decode_all, open_collection
from trainer.environment import choose_device
from trainer.images import Progress
from trainer.judging import embed_sources
from trainer.parts.selection import select
from trainer.sheet import Picture

_PICTURE = PixelSpec(size=160)  # large enough to tell a class by


class BudgetOutOfRange(ValueError):
    """The budget is below 1 or above the number of images."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """Images that are most worth labelling.

    Attributes:
        sources: of the images, those that stand for most others first.
        images: how many they were chosen among.
        skipped: (item, reason) of each image that could not be decoded.
        warnings: what of the collection could not be used.
    """

    sources: tuple[Source, ...]
    images: int
    skipped: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def suggest(
    model: Path, images: Path, budget: int, *, seed: int = 0, device: str = "auto", progress: Progress
) -> Suggestion:
    """Choose the images of a collection to label, as a model of a store sees them.

    Args:
        model: its directory.
        images: what `indexer.sources.open_collection` takes.
        budget: how many to choose, from 1 to the number of images.
        seed: of the choice.
        device: auto, cpu or cuda.
        progress: hears the stage `judge`.

    Raises:
        ManifestError: the model can't be opened.
        SourceError: the collection can't be read, or none of its images can be decoded.
        BudgetOutOfRange: it is not 1 to the number of images.
    """
    chosen = choose_device(device)
    runtime = RuntimeEncoder.open(model, device="cpu" if chosen.type == "cpu" else "cuda")
    collection = open_collection(images)
    if not 1 <= budget <= len(collection.sources):
        raise BudgetOutOfRange(
            f"the budget is {budget:,}; it must be 1 to {len(collection.sources):,}, the images in {images}"
        )
    sources = [source for source in collection.sources if _nameable(source)]
    unnamed = [source.item for source in collection.sources if not _nameable(source)]
    embeddings, items, damaged = embed_sources(sources, runtime, progress)
    skipped = [*((item, "its path is not UTF-8, as tables are") for item in unnamed), *damaged]
    if not items:
        item, reason = skipped[0]
        raise SourceError(f"none of the {len(skipped):,} images in {images} can be used; {item}: {reason}")
    rows = select(embeddings.to(chosen), min(budget, len(items)), seed=seed)
    by_item = {source.item: source for source in sources}
    return Suggestion(
        sources=tuple(by_item[items[row]] for row in rows.tolist()),
        images=len(items),
        skipped=tuple(skipped),
        warnings=collection.warnings,
    )


def _nameable(source: Source) -> bool:
    """Whether a table, which is UTF-8, can name an image."""
    return source.relative == source.relative.encode(errors="replace").decode()


def pictures(sources: Sequence[Source]) -> list[Picture]:
    """What a contact sheet shows of images that can be decoded."""
    return [
        Picture(path=decoded.source.relative, pixels=torch.from_numpy(decoded.pixels.copy()), aspect=decoded.aspect)
        for decoded in decode_all(sources, _PICTURE)
        if decoded.pixels is not None
    ]
