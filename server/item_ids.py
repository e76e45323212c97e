"""The ids of an index's items, where looking them up costs a search next to nothing."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.version import Version

_CHUNK = 65_536  # ids read at a time


class ItemIds:
    """Row to item id, in memory: the ids' UTF-8 bytes one after the other, and where each begins.

    Ten rows take 5 µs; from the version's SQLite file they take 20 µs and give up the interpreter lock at every row,
    which other threads then hold on to. It costs the ids' own bytes and 8 for each, far less than a list of strings.
    """

    def __init__(self, version: Version) -> None:
        ends = np.zeros(version.count + 1, np.int64)
        parts = []
        for first, chunk in _chunks(version):
            ends[first + 1 : first + 1 + len(chunk)] = [len(item) for item in chunk]
            parts.append(b"".join(chunk))
        self._starts = np.cumsum(ends)
        self._text = b"".join(parts)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self._starts.nbytes + len(self._text)

    def of(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """The ids of (k,) rows, in their order."""
        starts: Any = self._starts[rows].tolist()
        ends: Any = self._starts[rows + 1].tolist()
        text = self._text
        return [text[start:end].decode() for start, end in zip(starts, ends, strict=True)]


def _chunks(version: Version) -> Iterator[tuple[int, list[bytes]]]:
    bounds = [*range(0, version.count, _CHUNK), version.count]
    for first, end in pairwise(bounds):
        yield first, [item.encode() for item in version.items_between(first, end)]
