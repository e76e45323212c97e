"""Which images of a collection a person should label.

BudgetOutOfRange   as many images can't be chosen
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from indexer.encoder import Device
from indexer.encoder import Encoder as RuntimeEncoder
from indexer.finder import Finder
from indexer.pairs import PAIR_COLUMNS, PairsError, pairs_of
from indexer.pixels import PixelSpec
from indexer.sources import Collection, Source, SourceError, decode_all, open_collection, read_table
from trainer.environment import choose_device
from trainer.images import Progress
from trainer.judging import embed_sources
from trainer.labels import LabelsError, read_labels
from trainer.parts.coverage import Reasons, reasons
from trainer.parts.selection import density, select
from trainer.parts.usl_t import select_trained
from trainer.sheet import Picture

METHODS: dict[str, Callable[..., Tensor]] = {"usl": select, "usl-t": select_trained}

_PICTURE = PixelSpec(size=160)  # large enough to tell a class by
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # which end lines, or are commands to terminals


class BudgetOutOfRange(ValueError):
    """The budget is below 1 or above the number of images to choose from."""


@dataclass(frozen=True, kw_only=True)
class Suggested:
    """An image to label, and why.

    Attributes:
        source: of the image.
        stands_for: how many images are more like it than like any other suggested or labelled one, itself included.
        density_rank: 1 for the image of the collection that has most others near it.
        nearest: the image most like it of those labelled or suggested before it; None where there is none.
        similarity: to that image; None where there is none.
    """

    source: Source
    stands_for: int
    density_rank: int
    nearest: Source | None
    similarity: float | None


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """Images that are most worth labelling.

    Attributes:
        suggested: the images, so ordered that each adds most to those before it.
        images: how many they were chosen among, those labelled already included.
        labelled: how many of these were labelled already.
        skipped: (item, reason) of each image that could not be decoded.
        warnings: what of the collection or the labels could not be used.
    """

    suggested: tuple[Suggested, ...]
    images: int
    labelled: int
    skipped: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def suggest(
    model: Path,
    images: Path,
    budget: int,
    *,
    method: str = "usl",
    labels: Path | None = None,
    seed: int = 0,
    device: Device = "auto",
    progress: Progress,
) -> Suggestion:
    """Choose the images of a collection to label, as a model of a store sees them.

    Args:
        model: its directory.
        images: what `indexer.sources.open_collection` takes.
        budget: how many to choose, from 1 to the number of images without a label.
        method: one of METHODS: usl, or usl-t, which trains the clusters that it chooses from.
        labels: a table of those that are labelled already, as `kinsight finetune` takes it: what they cover needs no
            more labels. Images that it keeps for judging are left out. None where there are none.
        seed: of the choice.
        device: auto, cpu or cuda.
        progress: hears the stage `embed`.

    Raises:
        ManifestError: the model can't be opened.
        RunError: there is no such device.
        SourceError: the collection or the table can't be read, or none of the images can be decoded.
        LabelsError: the table contradicts itself, or labels no image of the collection.
        BudgetOutOfRange: it is not 1 to the number of images without a label.
    """
    chosen = choose_device(device)
    runtime = RuntimeEncoder.open(model, device=device)  # by ONNX Runtime, whose build may be another than torch's
    collection = open_collection(images)
    known = _Labelled() if labels is None else _read(labels, collection)
    sources = [source for source in collection.sources if source.item not in known.kept]
    _check_budget(budget, len(sources) - len(known.items), images, known)
    embeddings, usable, skipped = _embedded(sources, runtime, progress)
    labelled = torch.tensor([row for row, one in enumerate(usable) if one.item in known.items], dtype=torch.int64)
    available = len(usable) - len(labelled)
    if not available:
        item, reason = skipped[0]
        raise SourceError(f"none of the {len(skipped):,} images in {images} can be used; {item}: {reason}")
    embeddings = embeddings.to(chosen)
    dense = density(embeddings)
    rows = METHODS[method](embeddings, min(budget, available), labelled=labelled, utility=dense, seed=seed)
    why = reasons(embeddings, rows, labelled.to(chosen), dense)
    return Suggestion(
        suggested=_explained(why, rows, usable),
        images=len(usable),
        labelled=len(labelled),
        skipped=skipped,
        warnings=(*collection.warnings, *known.warnings),
    )


@dataclass(frozen=True)
class _Labelled:
    """What a table of labels says of a collection.

    Attributes:
        items: that are labelled, to learn from.
        kept: items that are kept for judging.
        warnings: what of the table can't be used.
    """

    items: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()


def _read(table: Path, collection: Collection) -> _Labelled:
    if "path_a" in read_table(table, [], optional=["path_a"]):
        try:
            pairs = pairs_of(table, read_table(table, PAIR_COLUMNS), Finder(collection, table))
        except PairsError as error:
            raise LabelsError(str(error)) from error
        return _Labelled(frozenset(pairs.thing_of), warnings=_unknown(table, collection, pairs.unknown))
    labels = read_labels(table, collection, to_teach=True)
    taught = frozenset(item for item in labels.class_of if labels.split_of.get(item, "train") == "train")
    kept = frozenset(source.item for source in labels.judging(collection.sources)) - taught
    return _Labelled(taught, kept, _unknown(table, collection, tuple(labels.unknown)))


def _unknown(table: Path, collection: Collection, paths: Sequence[str]) -> tuple[str, ...]:
    if not paths:
        return ()
    return (f"{table}: {len(set(paths)):,} paths are not in {collection.root}, for example {paths[0]!r}",)


def _check_budget(budget: int, available: int, images: Path, known: _Labelled) -> None:
    if 1 <= budget <= available:
        return
    without = " that have no label" if known.items or known.kept else ""
    raise BudgetOutOfRange(
        f"the budget is {budget:,}; it must be 1 to {available:,}, the images in {images}{without}"
        if available
        else f"all images in {images} are labelled already; there is none to suggest"
    )


def _embedded(
    sources: Sequence[Source], runtime: RuntimeEncoder, progress: Progress
) -> tuple[Tensor, list[Source], tuple[tuple[str, str], ...]]:
    """The embeddings of those that a table can name and that can be decoded, which these are, and the others."""
    named = [source for source in sources if not _why_unnamed(source)]
    embeddings, items, damaged = embed_sources(named, runtime, progress)
    by_item = {source.item: source for source in named}
    unnamed = ((source.item, why) for source in sources if (why := _why_unnamed(source)))
    return embeddings, [by_item[item] for item in items], (*unnamed, *damaged)


def _explained(why: Reasons, rows: Tensor, sources: Sequence[Source]) -> tuple[Suggested, ...]:
    columns = (rows, why.stands_for, why.density_rank, why.nearest, why.similarity)
    return tuple(
        Suggested(
            source=sources[row],
            stands_for=stands_for,
            density_rank=rank,
            nearest=None if nearest < 0 else sources[nearest],
            similarity=None if math.isnan(similarity) else similarity,
        )
        for row, stands_for, rank, nearest, similarity in zip(*(c.tolist() for c in columns), strict=True)
    )


def _why_unnamed(source: Source) -> str:
    """Why a table, which terminals and pages show, can't name an image; empty where it can."""
    if _CONTROL.search(source.relative):
        return "its path has control characters, such as ends of lines; rename it"
    if source.relative != source.relative.encode(errors="replace").decode():
        return "its path is not UTF-8, as tables are; rename it"
    return ""


def pictures(found: Suggestion) -> list[Picture]:
    """What a contact sheet shows of the images that are suggested."""
    numbers = {one.source.item: number for number, one in enumerate(found.suggested, start=1)}
    by_item = {one.source.item: one for one in found.suggested}
    return [
        Picture(
            path=decoded.source.relative,
            pixels=torch.from_numpy(decoded.pixels.copy()),
            aspect=decoded.aspect,
            why=_why(by_item[decoded.source.item], numbers, found.images),
        )
        for decoded in decode_all([one.source for one in found.suggested], _PICTURE)
        if decoded.pixels is not None
    ]


def _why(one: Suggested, numbers: dict[str, int], images: int) -> str:
    stands = f"stands for {one.stands_for:,} images" if one.stands_for > 1 else "stands for itself alone"
    told = f"{stands}; density rank {one.density_rank:,} of {images:,}"
    if one.nearest is None:
        return told
    number = numbers.get(one.nearest.item)
    like = f"image {number}" if number else f"{one.nearest.relative}, which has a label"
    return f"{told}; of those before it most like {like} (similarity {one.similarity:.2f})"
