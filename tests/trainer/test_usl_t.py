"""USL-T: its losses against plain loops, its traps, and what its clusters are chosen by."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.parts.selection import density
from trainer.parts.usl_t import (
    followed,
    global_loss,
    local_loss,
    select_trained,
    split,
    target,
    trained_clusters,
)


def logits(rows: int = 5, clusters: int = 4, seed: int = 0) -> Tensor:
    """Random ones."""
    return 3 * torch.randn(rows, clusters, generator=torch.Generator().manual_seed(seed))


def softmax(values: list[float]) -> list[float]:
    """Of a list, in Python's doubles."""
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def groups(sizes: list[int], noise: float) -> tuple[Tensor, Tensor]:
    """Unit-length rows around as many centres, and which each is of."""
    draw = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(len(sizes), 16, generator=draw), dim=1)
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return F.normalize(centres[group] + noise * torch.randn(len(group), 16, generator=draw), dim=1), group


def test_the_global_loss_is_that_of_a_plain_loop() -> None:
    """Minus the log of the greatest probability of each row, averaged."""
    given = logits()
    expected = -sum(math.log(max(softmax(row))) for row in given.tolist()) / 5
    assert global_loss(given).item() == pytest.approx(expected, rel=1e-5)


def test_the_local_loss_is_that_of_a_plain_loop() -> None:
    """Adjusted, softmax, to the power 1 / T, over the sum; then the divergence from it, averaged."""
    given, beside = logits(seed=1), logits(seed=2)
    frequency = logits(rows=1, seed=3).softmax(1)[0]
    expected = 0.0
    for row in range(5):
        adjusted = [
            value - 2.5 * math.log(share)
            for value, share in zip(beside[row].tolist(), frequency.tolist(), strict=True)
        ]
        sharp = [probability ** (1 / 0.5) for probability in softmax(adjusted)]
        wanted = [value / sum(sharp) for value in sharp]
        predicted = softmax(given[row].tolist())
        expected += sum(p * math.log(p / q) for p, q in zip(wanted, predicted, strict=True)) / 5
    assert local_loss(given, target(beside, frequency)).item() == pytest.approx(expected, rel=1e-4)


def test_golden_numbers_by_hand() -> None:
    """Two clusters of which one is nine times as frequent: the adjustment turns a tie into a sure prediction."""
    # odds 9 ** 2.5 = 243 for the rare one, squared by the sharpening to 59,049
    wanted = target(torch.zeros(1, 2), torch.tensor([0.9, 0.1]))
    assert wanted[0].tolist() == pytest.approx([1 / 59_050, 59_049 / 59_050], rel=1e-4)
    assert global_loss(torch.tensor([[math.log(3), 0.0]])).item() == pytest.approx(math.log(4 / 3), rel=1e-6)
    assert local_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])).item() == pytest.approx(math.log(2))


def test_frequencies_follow_the_neighbours_and_add_up() -> None:
    """Half of what was, half of the batch's mean; also from frequencies that do not add up."""
    beside = logits()
    before = torch.full((4,), 0.25)
    assert torch.allclose(followed(before, beside), 0.125 + 0.5 * beside.softmax(1).mean(0))
    assert followed(2 * before, beside).sum().item() == pytest.approx(1)


def test_the_target_survives_a_frequency_of_zero() -> None:
    """A cluster that nobody predicts is no infinity, neither in the target nor in the gradient."""
    given = logits().requires_grad_()
    wanted = target(logits(seed=2), torch.tensor([0.0, 0.5, 0.5, 0.0]))
    assert wanted.isfinite().all()
    assert torch.allclose(wanted.sum(1), torch.ones(5))
    local_loss(given, wanted).backward()  # type: ignore[no-untyped-call]
    assert given.grad is not None
    assert given.grad.isfinite().all()


def test_a_cluster_that_takes_half_of_all_is_split() -> None:
    """Its twin stands where an empty one was, the shares are halved; without a giant nothing changes."""
    weight, draw = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    before, sizes = weight.clone(), torch.tensor([0.6, 0.39, 0.01])
    split(weight, sizes, draw)
    assert torch.allclose(weight[[0, 2]], before[[0, 0]], atol=1e-5)
    assert not torch.equal(weight[2], weight[0])
    assert torch.equal(weight[1], before[1])
    assert sizes.tolist() == pytest.approx([0.3, 0.39, 0.3])
    split(weight, sizes, draw)
    assert sizes.tolist() == pytest.approx([0.3, 0.39, 0.3])


def test_clusters_are_the_groups_and_the_densest_of_each_is_chosen() -> None:
    """Well apart, each group is a few clusters; the same seed chooses the same."""
    rows, group = groups([40, 30, 20, 30], 0.05)
    cluster = trained_clusters(rows, 12, batch=64, steps=60, seed=0)
    for one in {*cluster.tolist()}:
        assert len({*group[cluster == one].tolist()}) == 1
    found = select_trained(rows, 12, batch=64, steps=60)
    assert len({*found.tolist()}) == 12
    assert {*group[found].tolist()} == {0, 1, 2, 3}
    assert found.tolist() == select_trained(rows, 12, batch=64, steps=60).tolist()
    dense = density(rows)
    inside = [row for row in found.tolist() if (cluster == cluster[row]).sum() > 1]
    for row in inside:
        members = dense[cluster == cluster[row]]
        assert dense[row] == members.max()


def test_what_is_labelled_is_covered() -> None:
    """With clusters for labels and budget together, those that have a label are left alone."""
    rows, group = groups([30, 30, 30, 30], 0.02)
    labelled = torch.cat([torch.arange(5), torch.arange(30, 35)])
    found = select_trained(rows, 6, labelled=labelled, batch=64, steps=60)
    assert not {*found.tolist()} & {*labelled.tolist()}
    assert {2, 3} <= {*group[found].tolist()}


@pytest.mark.parametrize(("rows", "budget"), [(1, 1), (3, 3), (9, 1)])
def test_small_collections_and_budgets_are_kept(rows: int, budget: int) -> None:
    """One image, all images, one label; fewer images than a batch or than neighbours."""
    found = select_trained(groups([rows], 0.3)[0], budget, steps=5)
    assert len({*found.tolist()}) == budget


def test_copies_are_chosen_only_where_nothing_else_is_left() -> None:
    """With fewer distinct images than labels to spend, the budget is kept."""
    rows = F.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)), dim=1).repeat(4, 1)
    assert len({*select_trained(rows, 5, steps=5).tolist()}) == 5


@pytest.mark.parametrize("budget", [0, 13])
def test_a_budget_out_of_range_is_refused(budget: int) -> None:
    """Before anything is trained."""
    with pytest.raises(ValueError, match=f"the budget is {budget}; it must be 1 to 12"):
        select_trained(groups([6, 6], 0.3)[0], budget)
