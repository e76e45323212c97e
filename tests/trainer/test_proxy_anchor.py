"""The Proxy-Anchor loss against its formula and another library, and as a part of semi-supervised STML."""

import math
from typing import Any

import pytest
import torch
from pytorch_metric_learning.losses import ProxyAnchorLoss
from torch import Tensor
from torch.nn import functional as F

from tests.trainer import small
from trainer.known import Known
from trainer.objective import Batch
from trainer.objectives.stml_semi import STMLSemi
from trainer.parts.proxy_anchor import proxy_anchor

LABEL = torch.tensor([0, 0, 1, 1, 2, -1, -1, -1, 2, -1] * 4)


def naive(similarity: Tensor, label: list[int], alpha: float, margin: float) -> float:
    """Equation 4 of the paper, proxy by proxy, in float64."""
    rows = similarity.double().tolist()
    pull, push, met = 0.0, 0.0, 0
    for proxy in range(similarity.shape[1]):
        same = [row[proxy] for row, own in zip(rows, label, strict=True) if own == proxy]
        different = [row[proxy] for row, own in zip(rows, label, strict=True) if own not in (-1, proxy)]
        met += bool(same)
        pull += math.log(1 + sum(math.exp(-alpha * (s - margin)) for s in same))
        push += math.log(1 + sum(math.exp(alpha * (s + margin)) for s in different))
    return pull / met + push / similarity.shape[1]


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_that_of_the_formula(seed: int) -> None:
    """With unlabelled images among the others, and with proxies that no image of the batch belongs to."""
    draw = torch.Generator().manual_seed(seed)
    similarity = 2 * torch.rand(14, 9, generator=draw, dtype=torch.float64) - 1
    label = torch.randint(-1, 6, (14,), generator=draw)
    found = proxy_anchor(similarity, label, alpha=16, margin=0.2).item()
    assert found == pytest.approx(naive(similarity, label.tolist(), 16, 0.2), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_and_its_gradients_are_those_of_another_library(seed: int) -> None:
    """pytorch-metric-learning's, on the same embeddings and the same proxies."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 5, (20,), generator=draw)
    rows, proxies = torch.randn(20, 8, generator=draw), torch.randn(7, 8, generator=draw)
    theirs = ProxyAnchorLoss(7, 8, margin=0.1, alpha=32)
    theirs.proxies.data.copy_(proxies)
    ours = [rows.clone().requires_grad_(), proxies.clone().requires_grad_()]
    expected_rows = rows.clone().requires_grad_()
    loss = proxy_anchor(F.normalize(ours[0], dim=1) @ F.normalize(ours[1], dim=1).T, label)
    expected = theirs(expected_rows, label)
    torch.autograd.backward([loss, expected])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(ours[0].grad, expected_rows.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours[1].grad, theirs.proxies.grad, rtol=1e-4, atol=1e-6)


def test_without_labels_there_is_no_loss_and_no_gradient() -> None:
    """Zero and finite zeros, not NaN."""
    similarity = torch.rand(4, 3).requires_grad_()
    loss = proxy_anchor(similarity, torch.full((4,), -1))
    (gradient,) = torch.autograd.grad(loss, similarity)
    assert loss.item() == 0
    assert gradient.abs().max() == 0


def semi(**keywords: Any) -> STMLSemi:
    return STMLSemi(small.encoder(), background_dim=16, classes=2, images=2, **keywords)


def test_it_takes_the_place_of_the_other_loss_and_its_proxies_learn_faster() -> None:
    """The term is that of the labelled images that joined; the proxies alone have a hundred times the heads' rate."""
    objective = semi(supervised_loss="proxy_anchor", supervised_weight=0.5).eval()
    objective.know(Known(LABEL))
    index = torch.tensor([5, 6, 0, 1, 2, 3])  # the last four have joined
    pictures = torch.rand(2, 6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    terms = objective.losses(Batch(list(pictures), index, LABEL[index]))
    assert "multi_similarity" not in terms
    joined = F.normalize(torch.cat([objective.encoder(view[2:]) for view in pictures]), dim=1)
    similarity = joined @ F.normalize(objective.proxies, dim=1).T
    expected = 0.5 * proxy_anchor(similarity, LABEL[index[2:]].repeat(2))
    assert terms["proxy_anchor"].item() == pytest.approx(expected.item(), rel=1e-4)

    groups = objective.param_groups(0.1, 0.2)
    (rate,) = [group["lr"] for group in groups if any(p is objective.proxies for p in group["params"])]
    assert rate == pytest.approx(20)
    everything = [p for group in groups for p in group["params"]]
    assert len(everything) == len({id(p) for p in everything})
    assert {id(p) for p in everything} == {id(p) for p in objective.parameters() if p.requires_grad}


def test_pairs_alone_have_no_proxies() -> None:
    """Of pairs nobody knows the classes: the error names the loss that learns from them."""
    with pytest.raises(ValueError, match="supervised_loss=multi_similarity"):
        semi(supervised_loss="proxy_anchor").know(Known(LABEL, torch.ones(3, 3, dtype=torch.bool)))
    with pytest.raises(ValueError, match="supervised_loss is 'triplet'"):
        semi(supervised_loss="triplet")
