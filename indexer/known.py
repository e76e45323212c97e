"""Embeddings that an index holds already, found by the SHA-256 of the image or by the item."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from indexer import manifest, version
from indexer.duplicates import Digests
from indexer.items import Image, ItemWriter
from indexer.ivfpq import Rows
from indexer.manifest import ManifestError
from indexer.records import Content, Item
from indexer.rows import Embeddings, map_rows
from indexer.version import ITEMS, ROWS, Version, VersionError

_NO_IMAGE = "0" * 64  # of rows that were given as embeddings: the digest of no image


@dataclass(frozen=True)
class _Part:
    """Rows by digest.

    Attributes:
        row: the (D,) embedding of a row.
        digests: (N,) bytes of 32, ascending.
        rows: (N,) of each digest.
    """

    row: Callable[[int], Embeddings]
    digests: Digests
    rows: Rows


class KnownRows:
    """The rows of versions and unfinished builds of one model; safe to ask from several threads at once."""

    def __init__(self, parts: Sequence[_Part], active: Version | None) -> None:
        self._parts = parts
        self._active = active

    @classmethod
    def of(cls, index_dir: Path, model: str, dim: int, unfinished: Sequence[Path]) -> tuple[Self, tuple[str, ...]]:
        """The rows of the active version and of the newest one, as far as they are of this model, and of builds.

        Args:
            index_dir: of the index.
            model: id.
            dim: D of its embeddings.
            unfinished: staging directories of builds of this model that were interrupted.

        Returns:
            The rows, and what could not be used and why: rows of a damaged version are made anew.
        """
        parts, warnings, active = [], [], None
        for number in _candidates(index_dir, model):
            try:
                opened = version.open_version(version.version_dir(index_dir, number))
                parts.append(_part(opened.embedding, _as_digests(opened.digests())))
                active = opened if number in _active(index_dir) else active
            except ManifestError as error:
                warnings.append(f"version {number} is damaged, so its embeddings are not used again: {error}")
        parts += filter(None, (_unfinished(staging, dim) for staging in unfinished))
        return cls(parts, active), tuple(warnings)

    def searched(self, item: str, sha256: str) -> bool:
        """Whether the active version is of this model and has the item with this image."""
        return self._active is not None and self._active.holds(item, sha256)

    def find(self, sha256: str) -> Embeddings | None:
        """The (D,) embedding of the image with this digest, or None where no version has it."""
        if not sha256:
            return None
        wanted = _as_digests([sha256])[0]
        for part in self._parts:
            place = int(np.searchsorted(part.digests, wanted))
            if place < len(part.digests) and part.digests[place] == wanted:
                return part.row(int(part.rows[place]))
        return None


def embeddings_of(contents: Sequence[Content], opened: Version) -> dict[str, Embeddings]:
    """The (D,) embedding of each item that the catalogue, or else a version, has one of."""
    found = {one.item.item: one.vector for one in contents if one.vector is not None}
    lacking = {one.item.item: one.item for one in contents if one.vector is None}
    held = opened.images_of([*lacking]) if lacking else {}
    rows = opened.rows_of([item for item, image in held.items() if _is_of(lacking[item], image)])
    return found | dict(zip(rows, opened.embeddings(np.array([*rows.values()], np.int64)), strict=True))


def _is_of(item: Item, image: Image) -> bool:
    """Whether what a version holds is what an item is now, not what was upserted in its place since."""
    path = None if item.source is None else os.fsencode(item.source)
    return item.mirrored or image.is_same(Image(path, item.sha256 or ""))


def _candidates(index_dir: Path, model: str) -> list[int]:
    numbers = [number for number in version.list_versions(index_dir) if _model_of(index_dir, number) == model]
    return sorted({*numbers[-1:], *(number for number in _active(index_dir) if number in numbers)}, reverse=True)


def _active(index_dir: Path) -> list[int]:
    try:
        number = version.active_version(index_dir)
    except VersionError:  # a damaged pointer, which the build that asks will put right
        return []
    return [] if number is None else [number]


def _model_of(index_dir: Path, number: int) -> str | None:
    try:
        return manifest.read_version(version.version_dir(index_dir, number)).model
    except ManifestError:  # whoever opens it hears of that; here it only has nothing to give
        return None


def _unfinished(staging: Path, dim: int) -> _Part | None:
    """The rows that an interrupted build has put on the disk; None where there are none."""
    with ItemWriter(staging / ITEMS) as items:
        digests = _as_digests(items.digests())
    try:
        rows = map_rows(staging / ROWS, len(digests), dim)
    except (OSError, ValueError):  # no file, or shorter than its items say
        return None
    return _part(lambda row: np.array(rows[row]), digests)


def _part(row: Callable[[int], Embeddings], digests: Digests) -> _Part:
    order = np.argsort(digests, kind="stable")
    return _Part(row, digests[order], order)


def _as_digests(digests: Iterable[str]) -> Digests:
    """Digests as NumPy compares them: elements lose the zero bytes at their end, and `bytes` would keep them."""
    known = bytearray()  # a list of a million texts would take four times as much
    for digest in digests:
        known += bytes.fromhex(digest or _NO_IMAGE)
    return np.frombuffer(known, "S32")
