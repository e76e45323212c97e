"""Pairs of images, the same or different."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from indexer.pairs import PAIR_COLUMNS, Pairs, PairsError, pairs_of
from indexer.tables import Table


def read(rows: Sequence[tuple[str, str, str]]) -> Pairs:
    columns = {name: [row[place] for row in rows] for place, name in enumerate(PAIR_COLUMNS)}
    return pairs_of(Path("few.csv"), Table(columns, range(2, len(rows) + 2)), lambda path: path)


@pytest.mark.parametrize("seed", range(5))
def test_things_are_those_of_a_plain_closure(seed: int) -> None:
    """Images that pairs link, over however many others, show one thing; a pair that says otherwise contradicts."""
    rng = np.random.default_rng(seed)
    contradictions = 0
    for _ in range(200):
        drawn = [(*rng.choice(7, 2, replace=False), rng.random() < 0.4) for _ in range(rng.integers(0, 8))]
        rows = [(f"i{a}", f"i{b}", "same" if same else "different") for a, b, same in drawn]
        linked = np.eye(7, dtype=bool)
        for a, b, same in drawn:
            linked[a, b] = linked[b, a] = linked[a, b] or same
        closed = np.linalg.matrix_power(linked.astype(int), 7) > 0
        if any(closed[a, b] for a, b, same in drawn if not same):
            contradictions += 1
            with pytest.raises(PairsError, match="contradicts itself"):
                read(rows)
            continue
        thing_of = read(rows).thing_of
        assert thing_of.keys() == {item for row in rows for item in row[:2]}
        for a in thing_of:
            assert [thing_of[a] == thing_of[b] for b in thing_of] == [closed[int(a[1]), int(b[1])] for b in thing_of]
    assert 0 < contradictions < 200


def test_of_a_long_chain_the_ends_are_told() -> None:
    """Frames of a film that each are the same as the next make no endless message where the last is not the first."""
    frames = [f"{number:05}.jpg" for number in range(10_001)]
    rows = [(one, following, "same") for one, following in pairwise(frames)]
    with pytest.raises(PairsError) as raised:
        read([*rows, ("00000.jpg", "10000.jpg", "different")])
    assert str(raised.value) == (
        "few.csv contradicts itself: 00000.jpg = 00001.jpg (line 2), 00001.jpg = 00002.jpg (line 3), "
        "00002.jpg = 00003.jpg (line 4), 00003.jpg = 00004.jpg (line 5), 9,992 more that are the same, "
        "09996.jpg = 09997.jpg (line 9998), 09997.jpg = 09998.jpg (line 9999), 09998.jpg = 09999.jpg (line 10000), "
        "09999.jpg = 10000.jpg (line 10001), but 00000.jpg ≠ 10000.jpg (line 10002); correct or remove one row of "
        "each chain"
    )
