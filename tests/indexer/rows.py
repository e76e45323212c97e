"""Items with payloads for columns to read: given ones, and random ones with every type of value."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

from indexer.columns import Columns
from indexer.filters import parse


class Rows:
    """Items with payloads, and how often columns read them."""

    def __init__(self, payloads: Iterable[Any] = ()) -> None:
        self.payloads = list(payloads)
        self.reads: list[tuple[int, int]] = []
        self.columns = Columns(
            self._read, lambda first, end: ((row, f"dir/{row:03d}.jpg") for row in range(first, end))
        )

    def found(self, text: str) -> list[int]:
        return [int(row) for row in np.flatnonzero(self.columns.mask(parse(text), len(self.payloads)))]

    def _read(self, first: int, end: int) -> Iterator[tuple[int, str]]:
        self.reads.append((first, end))
        for row in reversed(range(first, end)):
            if self.payloads[row] is not None:
                yield row, json.dumps(self.payloads[row])


LEAVES = st.sampled_from(
    [None, True, False, 0, 1, -1, 2.5, 10**400, "", "a", "b", "ab", "aé", "é", "\ud7ff", "\ue000", "\U0010ffff", "1"]
)
PAYLOADS = st.none() | st.dictionaries(
    st.sampled_from("xyz"),
    LEAVES | st.lists(LEAVES | st.lists(LEAVES, max_size=1), max_size=3) | st.fixed_dictionaries({"x": LEAVES}),
    max_size=3,
)


def values_of(payload: Any, field: tuple[str, ...]) -> list[Any]:
    for name in field:
        if not isinstance(payload, dict) or name not in payload:
            return []
        payload = payload[name]
    return [payload]
