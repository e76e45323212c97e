"""Which images to label: Unsupervised Selective Labeling against a plain loop, and what it promises."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.parts import selection
from trainer.parts.kmeans import kmeans
from trainer.parts.selection import density, select


def groups(sizes: list[int], spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit-length rows around as many centres, and which each is of."""
    draw = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(len(sizes), 16, generator=draw), dim=1)
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    noise = torch.randn(len(group), 16, generator=draw)
    return F.normalize(centres[group] + spread * noise, dim=1), group


def naive(rows: Tensor, budget: int, neighbours: int, spread: float, alpha: float, momentum: float) -> list[int]:
    """The authors' steps, row by row, from the same clusters."""
    squared = [[float((a - b).square().sum()) for b in rows] for a in rows]
    utility = [neighbours / sum(sorted(distances)[:neighbours]) for distances in squared]
    cluster = kmeans(rows, budget, seed=0).of_row.tolist()
    nearness = [0.0] * len(rows)

    def best() -> list[int]:
        score = [u - spread * r for u, r in zip(utility, nearness, strict=True)]
        return [
            max((i for i in range(len(rows)) if cluster[i] == number), key=score.__getitem__)
            for number in range(budget)
        ]

    chosen = best()
    for _ in range(3):
        for i in range(len(rows)):
            raw = sum(1 / squared[i][j] ** alpha for j in chosen if cluster[j] != cluster[i])
            nearness[i] = momentum * nearness[i] + (1 - momentum) * raw
        chosen = best()
    return sorted(chosen, key=lambda row: -utility[row])


@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_that_of_the_authors_steps(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Density, one row of each cluster, and away from the others, whatever the tiles."""
    rows, _ = groups([9, 5, 12, 4], 0.4, seed)
    monkeypatch.setattr(selection, "_ROWS", 7)
    found = select(rows, 5, neighbours=4, spread=2.0, alpha=1.0, momentum=0.5, iterations=3)
    assert found.tolist() == naive(rows, 5, 4, 2.0, 1.0, 0.5)


def test_every_group_is_chosen_from_however_small() -> None:
    """Ten labels reach ten groups, where the same number drawn at random misses some."""
    rows, group = groups([200, 150, 100, 60, 40, 30, 20, 15, 10, 8], 0.02)
    assert sorted(group[select(rows, 10)].tolist()) == list(range(10))
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:10]
    assert len(group[drawn].unique()) < 10  # type: ignore[no-untyped-call]


def test_what_is_chosen_stands_for_others() -> None:
    """An outlier is not chosen while its group has images that have more like them."""
    rows, group = groups([30, 30], 0.1)
    outlier = F.normalize(
        rows[group == 1].mean(0) + 0.5 * torch.randn(16, generator=torch.Generator().manual_seed(9)), dim=0
    )
    found = select(torch.cat([rows, outlier[None]]), 2)
    assert len(rows) not in found.tolist()
    assert density(torch.cat([rows, outlier[None]]), 20)[-1] < density(rows, 20).min()


def test_copies_are_chosen_only_where_nothing_else_is_left() -> None:
    """With fewer distinct images than labels to spend, each distinct one is chosen, and the budget is kept."""
    distinct = F.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    rows = distinct.repeat(4, 1)
    found = select(rows, 5).tolist()
    assert len(set(found)) == 5
    assert {row % 3 for row in found} == {0, 1, 2}


def test_the_whole_collection_is_chosen_once() -> None:
    """A budget of all images has each once; of one image, that one."""
    rows, _ = groups([6, 6], 0.3)
    assert sorted(select(rows, 12).tolist()) == list(range(12))
    assert select(rows[:1], 1).tolist() == [0]


@pytest.mark.parametrize("budget", [0, 13])
def test_a_budget_out_of_range_is_refused(budget: int) -> None:
    """The error has the number of images."""
    rows, _ = groups([6, 6], 0.3)
    with pytest.raises(ValueError, match=f"the budget is {budget}; it must be 1 to 12"):
        select(rows, budget)
