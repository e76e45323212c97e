"""Which images to label: Unsupervised Selective Labeling against a plain loop, and what it promises."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.parts import coverage, selection
from trainer.parts.coverage import in_order, reasons
from trainer.parts.kmeans import kmeans
from trainer.parts.selection import density, select


def groups(sizes: list[int], spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit-length rows around as many centres, and which each is of."""
    draw = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(len(sizes), 16, generator=draw), dim=1)
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    noise = torch.randn(len(group), 16, generator=draw)
    return F.normalize(centres[group] + spread * noise, dim=1), group


def naive(
    rows: Tensor, budget: int, neighbours: int, spread: float, alpha: float, momentum: float, labelled: list[int]
) -> set[int]:
    """The authors' steps, row by row, from the same clusters; those with a labelled row are done with."""
    squared = [[float((a - b).square().sum()) for b in rows] for a in rows]
    utility = [neighbours / sum(sorted(distances)[:neighbours]) for distances in squared]
    cluster = kmeans(rows, budget + len(labelled), seed=0).of_row.tolist()
    free = sorted({*cluster} - {cluster[row] for row in labelled}, key=lambda one: (-cluster.count(one), one))[
        :budget
    ]
    nearness = [0.0] * len(rows)

    def best() -> list[int]:
        score = [u - spread * r for u, r in zip(utility, nearness, strict=True)]
        return [
            max((i for i in range(len(rows)) if cluster[i] == number), key=score.__getitem__)
            for number in sorted(free)
        ]

    chosen = best()
    for _ in range(3):
        for i in (i for i in range(len(rows)) if cluster[i] in free):
            raw = sum(1 / squared[i][j] ** alpha for j in chosen + labelled if cluster[j] != cluster[i])
            nearness[i] = momentum * nearness[i] + (1 - momentum) * raw
        chosen = best()
    return set(chosen)


@pytest.mark.parametrize("labelled", [[], [0, 3], [10, 11, 12]], ids=["none", "one group", "another"])
@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_that_of_the_authors_steps(
    seed: int, labelled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Density, one row of each cluster, and away from the others, whatever the tiles, and whatever is labelled."""
    rows, _ = groups([9, 5, 12, 4], 0.4, seed)
    monkeypatch.setattr(selection, "_ROWS", 7)
    known = torch.tensor(labelled, dtype=torch.int64)
    found = select(
        rows, 5, labelled=known, utility=density(rows, 4), spread=2.0, alpha=1.0, momentum=0.5, iterations=3
    )
    assert set(found.tolist()) == naive(rows, 5, 4, 2.0, 1.0, 0.5, labelled)


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


@pytest.mark.parametrize(
    ("budget", "labelled", "most"), [(0, 0, "12, the number of images$"), (13, 0, "12"), (10, 3, "9")]
)
def test_a_budget_out_of_range_is_refused(budget: int, labelled: int, most: str) -> None:
    """The error has the number of images that can be chosen."""
    rows, _ = groups([6, 6], 0.3)
    with pytest.raises(ValueError, match=f"the budget is {budget}; it must be 1 to {most}"):
        select(rows, budget, labelled=torch.arange(labelled))


def test_what_is_labelled_is_covered() -> None:
    """With half of the groups labelled, the others are chosen from; what is left of a covered group comes last."""
    rows, group = groups([40, 40, 40, 40, 40, 40], 0.02)
    labelled = torch.tensor([0, 45, 90])
    assert sorted(group[select(rows, 3, labelled=labelled)].tolist()) == [3, 4, 5]
    everything = select(rows[:3], 2, labelled=torch.tensor([1]))
    assert sorted(everything.tolist()) == [0, 2]


@pytest.mark.parametrize("labelled", [[], [0, 20]], ids=["none", "two"])
def test_each_next_one_adds_most(labelled: list[int]) -> None:
    """The order is that of a loop that tries all that are left, also where a few images stand for all."""
    rows, _ = groups([20, 9, 30, 4, 6, 12], 0.3)
    chosen = torch.tensor([3, 25, 30, 41, 60, 64, 70, 75, 80])
    covered = (rows[labelled] @ rows.T).max(0).values if labelled else torch.full((len(rows),), -1.0)
    left, order = chosen.tolist(), []
    while left:
        order.append(max(left, key=lambda row: torch.maximum(covered, rows @ rows[row]).sum().item()))
        covered = torch.maximum(covered, rows @ rows[order[-1]])
        left.remove(order[-1])
    assert in_order(rows, chosen, torch.tensor(labelled, dtype=torch.int64)).tolist() == order


def test_reasons_are_those_of_plain_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each stands for, its density rank, and the nearest one before it, copies and labelled ones included."""
    rows, _ = groups([20, 9, 30], 0.3)
    rows[7] = rows[3]
    chosen, labelled = torch.tensor([3, 7, 25, 40]), torch.tensor([2, 50])
    monkeypatch.setattr(coverage, "_ROWS", 3)
    told = reasons(rows, chosen, labelled, density(rows))

    everyone = [*chosen.tolist(), *labelled.tolist()]
    own = [
        row if row in everyone else max(everyone, key=lambda one: float(rows[row] @ rows[one])) for row in range(59)
    ]
    assert told.stands_for.tolist() == [own.count(row) for row in chosen.tolist()]
    ranked = sorted(range(59), key=lambda row: -float(density(rows)[row]))
    assert told.density_rank.tolist() == [ranked.index(row) + 1 for row in chosen.tolist()]
    for place, row in enumerate(chosen.tolist()):
        before = [*labelled.tolist(), *chosen.tolist()[:place]]
        nearest = max(before, key=lambda one: float(rows[row] @ rows[one]))
        assert told.nearest[place] == nearest
        assert told.similarity[place] == pytest.approx(float(rows[row] @ rows[nearest]), abs=1e-6)
    alone = reasons(rows, chosen[:1], chosen[:0], density(rows))
    assert (alone.stands_for.tolist(), alone.nearest.tolist()) == ([59], [-1])
    assert alone.similarity.isnan().all()
