"""The training set: images decoded once into a memory-mapped uint8 cache."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indexer.manifest import write_atomically
from indexer.pixels import PixelSpec
from indexer.sources import (
    Collection,
    Digests,
    Duplicates,
    Source,
    decode_all,
    find_duplicates,
    open_collection,
)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ImageCache:
    """Decoded images, squares of one size.

    Attributes:
        pixels: (N, S, S, 3) uint8; memory-mapped from a file.
        aspect: (N,) float32, width over height of each original, so that crops keep its true geometry.
        items: the N item ids.
        skipped: (item, reason) of every image that could not be decoded; these have no row.
        sha256: (N,) of the image files, bytes of 32; empty for images that never were files.
    """

    pixels: Tensor
    aspect: Tensor
    items: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    sha256: Digests = field(default_factory=lambda: np.empty(0, "S32"))

    def __len__(self) -> int:
        return len(self.items)

    def to(self, device: torch.device) -> "ImageCache":
        """The cache on a device, where it fits in half of its free memory; otherwise itself."""
        if device.type != "cuda" or self.pixels.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
            return self
        return replace(self, pixels=self.pixels.to(device), aspect=self.aspect.to(device))


def open_collections(images: Sequence[Path]) -> Collection:
    """The images of one or more collections as one, in their order; a file that several name is there once.

    Items keep their ids. Of two images with one id, that of a later collection gets the collection's number before
    its own. The root is the first one's.

    Raises:
        SourceError: one can't be read, or holds no image.
    """
    first, *others = (open_collection(each) for each in images)
    if not others:
        return first
    by_item = {source.item: source for source in first.sources}
    paths = {source.path.absolute() for source in first.sources}
    for number, collection in enumerate(others, start=2):
        for source in collection.sources:
            if source.path.absolute() in paths:
                continue
            paths.add(source.path.absolute())
            item = source.item
            while item in by_item:
                item = f"{number}:{item}"
            by_item[item] = replace(source, item=item)
    return Collection(
        root=first.root,
        sources=tuple(by_item.values()),
        ignored=sum(collection.ignored for collection in (first, *others)),
        warnings=tuple(warning for collection in (first, *others) for warning in collection.warnings),
    )


def cache_images(
    sources: Sequence[Source], spec: PixelSpec, file: Path, progress: Progress, stage: str
) -> ImageCache:
    """Decode sources once into a cache file, or reopen the file where it already holds these sources, whole.

    Args:
        sources: what to decode; damaged ones are named in `skipped`, not cached.
        spec: how each becomes a square of S pixels.
        file: where the pixels go; a `.json` beside it, written last, says that it is complete.
        progress: called with the stage and how many sources are done.
        stage: its name.

    Raises:
        OSError: the disk is full.
    """
    receipt = file.with_suffix(".json")
    key = _digest(sources, spec)
    facts = _decoded_before(receipt, file, key, spec)
    if facts:
        progress(stage, len(sources), len(sources))
    else:
        receipt.unlink(missing_ok=True)  # it must not vouch for pixels that are being overwritten
        facts = {"key": key, **_decode_to_file(sources, spec, file, progress, stage)}
        write_atomically(receipt, json.dumps(facts).encode())
    count = len(facts["items"])
    shape = (count, spec.size, spec.size, 3)
    pixels = np.memmap(file, np.uint8, "r+", shape=shape) if count else np.empty(shape, np.uint8)
    return ImageCache(
        pixels=torch.from_numpy(pixels),
        aspect=torch.tensor(facts["aspect"], dtype=torch.float32),
        items=tuple(facts["items"]),
        skipped=tuple((item, reason) for item, reason in facts["skipped"]),
        sha256=np.frombuffer(bytes.fromhex(facts["sha256"]), "S32"),
    )


def duplicates(learned: ImageCache, judged: ImageCache | None) -> Duplicates:
    """The images to learn from and to judge on whose files are the same; one that is both counts once."""
    if judged is None:
        return find_duplicates(learned.items, learned.sha256)
    both = set(learned.items)
    rows = [row for row, item in enumerate(judged.items) if item not in both]
    items = (*learned.items, *(judged.items[row] for row in rows))
    return find_duplicates(items, np.concatenate((learned.sha256, judged.sha256[rows])))


def all_the_same(cache: ImageCache) -> tuple[str, ...]:
    """A warning where a training set is one image many times; otherwise nothing."""
    if len(np.unique(cache.sha256)) > 1:
        return ()
    return (f"all {len(cache):,} images to learn from are one and the same file: nothing can be learned from them",)


def _decoded_before(receipt: Path, file: Path, key: str, spec: PixelSpec) -> dict[str, Any] | None:
    """What the receipt says of these sources; None where it or the pixels are not there or not whole."""
    try:
        facts: dict[str, Any] = json.loads(receipt.read_bytes())
        # A map of a shorter file would silently end in black images.
        count = len(facts["items"])
        whole = file.stat().st_size == count * spec.size * spec.size * 3 and len(facts["sha256"]) == 2 * 32 * count
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if whole and facts["key"] == key else None


def _decode_to_file(
    sources: Sequence[Source], spec: PixelSpec, file: Path, progress: Progress, stage: str
) -> dict[str, object]:
    items: list[str] = []
    aspects: list[float] = []
    skipped: list[tuple[str, str | None]] = []
    digests = bytearray()
    with file.open("wb") as out:
        for decoded in decode_all(sources, spec):
            if decoded.pixels is None:
                skipped.append((decoded.source.item, decoded.error))
            else:
                out.write(decoded.pixels.tobytes())
                items.append(decoded.source.item)
                aspects.append(decoded.aspect)
                digests += bytes.fromhex(decoded.sha256)
            progress(stage, decoded.row + 1, len(sources))
    return {"items": items, "aspect": aspects, "skipped": skipped, "sha256": digests.hex()}


def _digest(sources: Sequence[Source], spec: PixelSpec) -> str:
    digest = hashlib.sha256(repr(spec).encode())
    for source in sources:
        digest.update(f"{source.item}\n{source.state()}\n".encode())
    return digest.hexdigest()
