"""Embeddings that versions of an index hold already, found by the SHA-256 of the image."""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np

from indexer import manifest, version
from indexer.manifest import ManifestError
from indexer.rows import Embeddings
from indexer.version import Version, VersionError

_NO_IMAGE = "0" * 64  # of rows that were given as embeddings: the digest of no image


class KnownRows:
    """The rows of some versions of one model; safe to ask from several threads at once."""

    def __init__(self, versions: Iterable[Version]) -> None:
        self._parts = [(opened, *_sorted_digests(opened)) for opened in versions]

    @classmethod
    def of(cls, index_dir: Path, model: str) -> tuple[Self, tuple[str, ...]]:
        """The rows of the active version and of the newest one, as far as they are of this model.

        Returns:
            The rows, and what could not be used and why: rows of a damaged version are made anew.
        """
        opened, warnings = [], []
        for number in _candidates(index_dir, model):
            try:
                opened.append(version.open_version(version.version_dir(index_dir, number)))
            except ManifestError as error:
                warnings.append(f"version {number} is damaged, so its embeddings are not used again: {error}")
        return cls(opened), tuple(warnings)

    def find(self, sha256: str) -> Embeddings | None:
        """The (D,) embedding of the image with this digest, or None where no version has it."""
        if not sha256:
            return None
        wanted = np.bytes_(bytes.fromhex(sha256))
        for opened, digests, rows in self._parts:
            place = int(np.searchsorted(digests, wanted))
            if place < len(digests) and digests[place] == wanted:
                return opened.embedding(int(rows[place]))
        return None


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


def _sorted_digests(opened: Version) -> tuple[np.ndarray, np.ndarray]:
    text = "".join(digest or _NO_IMAGE for digest in opened.digests())
    digests = np.frombuffer(bytes.fromhex(text), "S32")
    order = np.argsort(digests, kind="stable")
    return digests[order], order
