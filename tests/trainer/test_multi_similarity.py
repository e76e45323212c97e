"""The multi-similarity loss against its formulas and another library, and batches of labelled images."""

import math
import random
from collections import Counter

import pytest
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from torch import Tensor
from torch.nn import functional as F

from trainer.known import Known
from trainer.parts.labelled import balanced_batches
from trainer.parts.multi_similarity import multi_similarity


def naive(similarity: Tensor, same: Tensor, different: Tensor, alpha: float, beta: float, base: float) -> float:
    """Equations 10 to 12 of the paper, anchor by anchor, in float64."""
    total = 0.0
    for i, row in enumerate(similarity.double().tolist()):
        positive = [s for j, s in enumerate(row) if same[i, j] and i != j]
        negative = [s for j, s in enumerate(row) if different[i, j]]
        hard_positive = [s for s in positive if negative and s - 0.1 < max(negative)]
        hard_negative = [s for s in negative if positive and s + 0.1 > min(positive)]
        total += math.log(1 + sum(math.exp(-alpha * (s - base)) for s in hard_positive)) / alpha
        total += math.log(1 + sum(math.exp(beta * (s - base)) for s in hard_negative)) / beta
    return total / len(similarity)


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_that_of_the_formulas(seed: int) -> None:
    """With unlabelled images among the others, and with classes of which only some are known to be apart."""
    draw = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randn(24, 4, generator=draw), dim=1)
    label = torch.randint(-1, 5, (24,), generator=draw)
    apart = torch.rand(5, 5, generator=draw) < 0.5
    for known in (Known(label), Known(label, (apart | apart.T).fill_diagonal_(False))):
        same, different = known.relations(label, label)
        similarity = rows @ rows.T
        found = multi_similarity(similarity, same, different, alpha=3, beta=20, base=0.4).item()
        assert found == pytest.approx(naive(similarity, same, different, 3, 20, 0.4), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_and_its_gradient_are_those_of_another_library(seed: int) -> None:
    """pytorch-metric-learning's loss with its miner, on the same embeddings."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.arange(30) % 6
    rows = torch.randn(30, 8, generator=draw)
    ours, theirs = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    unit = F.normalize(ours, dim=1)
    loss = multi_similarity(unit @ unit.T, *Known(label).relations(label, label))
    mined = MultiSimilarityMiner(epsilon=0.1)(theirs, label)
    expected = MultiSimilarityLoss(alpha=2, beta=50, base=0.5)(theirs, label, mined)
    torch.autograd.backward([loss, expected])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)  # type: ignore[arg-type]


def test_without_pairs_there_is_no_loss_and_no_gradient() -> None:
    """Unlabelled images, or images of one class, give 0 and finite zeros, not NaN."""
    rows = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1).requires_grad_()
    for label in (torch.full((6,), -1), torch.zeros(6, dtype=torch.int64)):
        loss = multi_similarity(rows @ rows.T, *Known(label).relations(label, label))
        (gradient,) = torch.autograd.grad(loss, rows)
        assert loss.item() == 0
        assert gradient.abs().max() == 0


def test_batches_have_as_many_images_of_each_class() -> None:
    """Every class comes by before one comes again, and a class repeats its images only where it has too few."""
    label = torch.tensor([0] * 5 + [1] * 2 + [-1] * 4 + [2] * 7 + [3])
    batches = balanced_batches(Known(label), 6, 2, 3, random.Random(1))
    assert batches.shape == (6, 6)
    assert (label[batches] >= 0).all()
    for batch in batches:
        counts = Counter(label[batch].tolist())
        assert set(counts.values()) == {3}
        for number in counts:
            rows = batch[label[batch] == number].tolist()
            assert len(set(rows)) == min(3, int((label == number).sum()))
    drawn = Counter(label[batches].flatten().tolist())
    assert drawn == {0: 9, 1: 9, 2: 9, 3: 9}


def test_classes_that_are_known_to_differ_meet_in_a_batch() -> None:
    """Of pairs, each class is followed by one that it is apart from: batches without any difference teach nothing."""
    apart = torch.zeros(10, 10, dtype=torch.bool)
    for number in range(0, 10, 2):
        apart[number, number + 1] = apart[number + 1, number] = True
    known = Known(torch.arange(10).repeat(2), apart)
    batches = balanced_batches(known, 20, 4, 2, random.Random(2))
    for batch in batches:
        _, different = known.relations(known.label[batch], known.label[batch])
        assert different.any(1).all()
