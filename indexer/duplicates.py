"""Byte-identical images of a collection, found by the SHA-256 of their files."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_GROUPS = 100  # named in a report; the count is of all
MAX_NAMED = 10  # images of one group

Digests = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class Duplicates:
    """Images whose files are byte for byte the same.

    Attributes:
        copies: how many images are copies of another that comes before them.
        groups: item ids that share one content, the first 10 of each of the first 100 groups.
    """

    copies: int
    groups: tuple[tuple[str, ...], ...]

    @property
    def summary(self) -> str:
        """How many there are, and the first of them; there must be some."""
        pairs = ", ".join(f"{group[1]} = {group[0]}" for group in self.groups[:3])
        several = f"{self.copies:,} images are byte for byte copies of others"
        said = several if self.copies > 1 else "1 image is a byte for byte copy of another"
        return f"{said}: {pairs}{', …' if self.copies > 3 else ''}"


def find_duplicates(items: Sequence[str], digests: Digests) -> Duplicates:
    """The groups of items with one digest, in order of their first appearance.

    Args:
        items: N item ids, at least one.
        digests: (N,) bytes of 32, the SHA-256 of each item's file.
    """
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    firsts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))  # of each run of equal digests
    lengths = np.diff(np.append(firsts, len(order)))
    repeated = np.flatnonzero(lengths > 1)
    shown = repeated[np.argsort(order[firsts[repeated]])][:MAX_GROUPS]
    groups = tuple(tuple(items[row] for row in order[firsts[run] :][: min(lengths[run], MAX_NAMED)]) for run in shown)
    return Duplicates(len(items) - len(firsts), groups)
