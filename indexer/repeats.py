"""Which ids of a list that is too long to be held come more than once."""

from collections.abc import Hashable, Iterable

import numpy as np


class Repeats:
    """Tells the first row of each id of a list that was gone through before; going through it takes 8 bytes an id."""

    def __init__(self, ids: Iterable[Hashable]) -> None:
        """Go through the list."""
        hashes = np.fromiter(map(hash, ids), np.int64)
        hashes.sort()
        self._again = frozenset(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        self._first = dict[Hashable, int]()  # of ids that may come again: two of them may have one hash

    def first(self, identity: Hashable, row: int) -> int:
        """The row that an id came with first; to be asked for every row of the list, in its order."""
        return self._first.setdefault(identity, row) if hash(identity) in self._again else row
