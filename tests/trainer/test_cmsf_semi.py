"""CMSF-semi: its loss against plain loops, the traps of its authors' code, and exact resuming."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.trainer import network, small
from trainer.encoders import Encoder, make_backbone
from trainer.known import Known
from trainer.loop import train as run_loop
from trainer.objective import Batch
from trainer.objectives.cmsf_semi import CMSFSemi, constraint, mean_shift, pseudo_labels
from trainer.recipe import override, with_objective

LABEL = torch.tensor([0, 0, 1, 1, 2, -1, -1, -1, 2, -1] * 4)


def unit(*shape: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=draw, dtype=torch.float64), dim=-1)


def semi(label: Tensor = LABEL, **keywords: Any) -> CMSFSemi:
    torch.manual_seed(0)
    backbone = make_backbone(network.NAME, "none", size=32)
    objective = CMSFSemi(Encoder(backbone, nn.Linear(backbone.channels, 8)), **keywords)
    objective.know(Known(label))
    return objective


def batch_of(index: Tensor) -> Batch:
    draw = torch.Generator().manual_seed(1)
    pictures = torch.rand(2, len(LABEL), 3, 32, 32, generator=draw)
    return Batch([view[index] for view in pictures], index, LABEL[index])


def naive(prediction: Tensor, target: Tensor, bank: Tensor, of: list[int], to: list[int], k: int) -> float:
    """Row by row, in float64: squared distances to the k nearest of those that may be."""
    total = 0.0
    for v, u, own in zip(prediction, target, of, strict=True):
        entries = [m for m, other in zip(bank, to, strict=True) if own == -1 or own == other]
        nearest = sorted(entries, key=lambda m: float((u - m).square().sum()))[:k]
        total += sum(float((v - m).square().sum()) for m in nearest) / len(nearest)
    return total / len(prediction)


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_that_of_plain_loops(seed: int) -> None:
    """With sure and unsure images, and classes of fewer than k in the bank, which none of another class fills up."""
    draw = torch.Generator().manual_seed(seed)
    target, prediction = unit(12, 5, seed=seed), unit(12, 5, seed=seed + 10)
    bank = torch.cat([target, unit(30, 5, seed=seed + 20)])
    of = torch.randint(-1, 5, (12,), generator=draw)
    to = torch.cat([of, torch.randint(-1, 4, (30,), generator=draw)])
    found = mean_shift(prediction, target, bank, constraint(of, to), 6).item()
    assert found == pytest.approx(naive(prediction, target, bank, of.tolist(), to.tolist(), 6), rel=1e-12)


def test_one_neighbour_is_the_target_itself() -> None:
    """With k = 1 it is 2 - 2 cos to the fresh target, as in BYOL, whatever else the bank holds."""
    target, prediction = unit(9, 5, seed=0), unit(9, 5, seed=1)
    bank = torch.cat([target, unit(50, 5, seed=2)])
    everything = torch.ones(9, 59, dtype=torch.bool)
    expected = (2 - 2 * (prediction * target).sum(1)).mean()
    torch.testing.assert_close(mean_shift(prediction, target, bank, everything, 1), expected)


def test_an_unsure_image_has_the_loss_of_plain_mean_shift() -> None:
    """Unsure is no class: such images are neither held to each other nor kept from the sure ones."""
    of, to = torch.tensor([-1, 2]), torch.tensor([-1, 2, 0, -1])
    assert constraint(of, to).tolist() == [[True] * 4, [False, True, False, False]]


def test_neighbours_are_the_teachers_and_gradients_the_students() -> None:
    """The nearest is found by the target even where the prediction is nearer to another."""
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    prediction = torch.tensor([[0.0, 1.0]], requires_grad=True)
    target = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = mean_shift(prediction, target, bank, torch.ones(1, 2, dtype=torch.bool), 1)
    assert loss.item() == 2
    gradients = torch.autograd.grad(loss, (prediction, target), allow_unused=True)
    assert gradients[0].tolist() == [[-2, 0]]
    assert gradients[1] is None


def test_labels_come_before_what_the_classifier_says() -> None:
    """Known classes stay whatever is predicted; of the others those at the threshold or above have one."""
    logits = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.1, 0.9]]).log()
    assert pseudo_labels(logits, torch.tensor([1, -1, -1, -1]), 0.85).tolist() == [1, 0, -1, 1]


def test_a_loss_worked_out_by_hand() -> None:
    """With k = 2, two of its class at 60 and 90 degrees; a nearer one of another class is left out."""
    bank = torch.tensor([[0.5, 3**0.5 / 2], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64)
    prediction = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    allowed = constraint(torch.tensor([4]), torch.tensor([4, 4, 3]))
    # 2 - 2 cos 60 = 1 and 2 - 2 cos 90 = 2.
    assert mean_shift(prediction, bank[:1], bank, allowed, 2).item() == pytest.approx(1.5, rel=1e-12)
    # Plain mean shift takes the nearest two whatever their class: 1 and 2 - 2 * 0.6.
    anything = constraint(torch.tensor([-1]), torch.tensor([4, 4, 3]))
    assert mean_shift(prediction, bank[:1], bank, anything, 2).item() == pytest.approx(0.9, rel=1e-12)


def test_defaults_are_the_authors() -> None:
    """k, bank, momentum and threshold of their code, and a classifier of two layers, twice as wide between them."""
    objective = semi()
    assert (objective.k, objective.bank_size, objective.momentum, objective.confidence) == (10, 128_000, 0.99, 0.85)
    sizes = [tuple(layer.weight.shape) for layer in objective.classifier if isinstance(layer, nn.Linear)]
    assert sizes == [(16, 8), (3, 16)]
    assert [type(layer) for layer in objective.classifier] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]


def test_batches_of_unsure_images_learn_by_plain_mean_shift() -> None:
    """Without labels and sure guesses the whole step's loss is that of the bank searched without classes."""
    objective = semi(confidence=1.1, k=3).eval()
    batch = batch_of(torch.tensor([5, 6, 7, 9]))
    earlier = F.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(3)), dim=1)
    objective._enqueue(earlier, torch.tensor([0, 1, 2, -1, 0, 1]))
    found = objective.losses(batch)["mean_shift"].item()

    target = F.normalize(objective.teacher(batch.views[0]), dim=1).detach().double()
    prediction = F.normalize(objective.encoder(batch.views[1]), dim=1).detach().double()  # the predictor adds nothing
    searched = torch.cat([target, earlier.double()])
    assert found == pytest.approx(naive(prediction, target, searched, [-1] * 4, [-1] * 10, 3), rel=1e-5)


def test_an_image_finds_its_own_target_however_full_the_bank_is() -> None:
    """The batch is searched before it displaces anything: self is a neighbour in every step."""
    objective = semi(k=1, confidence=1.1).eval()
    batch = batch_of(torch.arange(10))
    for _ in range(4):  # the bank holds 20
        loss = objective.losses(batch)["mean_shift"]
    cosines = F.cosine_similarity(objective.encoder(batch.views[1]), objective.teacher(batch.views[0]))
    assert loss.item() == pytest.approx((2 - 2 * cosines).mean().item(), abs=1e-5)
    assert not objective.bank.requires_grad


def test_the_classifier_goes_on_where_the_last_epoch_left_it() -> None:
    """Its weights carry over from epoch to epoch, so that a second one starts from what is known."""
    objective = semi(classifier_steps=1)
    rows = F.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(6)), dim=1)
    weights = [objective.classifier.state_dict()["0.weight"].clone()]
    for _ in range(2):
        objective.before_epoch(lambda _, __=0: rows, 20, 2)
        weights.append(objective.classifier.state_dict()["0.weight"].clone())
    steps = [(after - before).abs().max().item() for before, after in pairwise(weights)]
    assert all(0 < step < 0.05 for step in steps)  # one small step each, and no new start


def test_the_bank_keeps_the_newest_and_no_more_than_half_the_images() -> None:
    """It is a ring, never searched where it was not filled, and holds the labels that the images had."""
    objective = semi(bank_size=128_000)
    assert len(objective.bank) == 20
    for first in (0, 14):
        objective._enqueue(torch.arange(first, first + 14.0)[:, None].expand(14, 8), torch.arange(first, first + 14))
        _, _, there = objective._searched(torch.empty(0, 8), torch.empty(0, dtype=torch.int64))
        assert there.tolist() == [place < first + 14 for place in range(20)]
    assert sorted(objective.bank_label.tolist()) == list(range(8, 28))
    assert objective.bank[:, 0].tolist() == objective.bank_label.tolist()
    objective._enqueue(torch.ones(50, 8), torch.arange(50))  # a batch above the bank
    assert sorted(objective.bank_label.tolist()) == list(range(30, 50))


def test_it_starts_at_the_model_and_moves_the_student_and_predictor_alone() -> None:
    """The predictor adds nothing at first; no gradient reaches teacher or classifier."""
    objective = semi(k=1, confidence=1.1).eval()
    batch = batch_of(torch.arange(10))
    loss = objective.losses(batch)["mean_shift"]
    cosines = F.cosine_similarity(objective.encoder(batch.views[1]), objective.encoder(batch.views[0]))
    assert loss.item() == pytest.approx((2 - 2 * cosines).mean().item(), abs=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in objective.encoder.parameters())
    assert objective.predictor[3].weight.grad is not None
    assert all(p.grad is None for part in (objective.teacher, objective.classifier) for p in part.parameters())
    groups = objective.param_groups(0.1)
    learning = {id(p) for group in groups for p in group["params"]}
    assert learning == {id(p) for part in (objective.encoder, objective.predictor) for p in part.parameters()}


def test_the_classifier_becomes_sure_of_what_it_was_taught() -> None:
    """A few labels of separate classes are enough, and unlabelled images beside them get their class."""
    objective = semi()
    centres = F.normalize(torch.eye(3, 8), dim=1)
    truth = torch.arange(40) % 3
    rows = centres[truth] + 0.02 * torch.randn(40, 8, generator=torch.Generator().manual_seed(2))
    objective.know(Known(torch.where(torch.arange(40) < 15, truth, -1)))
    torch.manual_seed(5)
    objective.before_epoch(lambda _, __=0: rows, 20, 2)
    guessed = pseudo_labels(objective.classifier(F.normalize(rows, dim=1)), torch.full((40,), -1), 0.85)
    assert torch.equal(guessed, truth)
    assert not objective.classifier.training


def test_what_it_cannot_learn_from_is_refused_by_name() -> None:
    """Pairs, one class, and keywords out of range."""
    objective = semi()
    with pytest.raises(ValueError, match="needs classes, not pairs"):
        objective.know(Known(LABEL, torch.zeros(3, 3, dtype=torch.bool)))
    with pytest.raises(ValueError, match="two classes or more"):
        objective.know(Known(torch.zeros(9, dtype=torch.int64)))
    for keyword, value in (("k", 0), ("bank_size", 0), ("momentum", 1.5), ("confidence", 0.0)):
        with pytest.raises(ValueError, match=keyword):
            semi(LABEL, **{keyword: value})


def test_a_stopped_run_goes_on_exactly(tmp_path: Path) -> None:
    """The bank, its labels, the teacher and the classifier come back to the bit."""
    chosen = override(with_objective(small.recipe(), "cmsf_semi"), "objective.classifier_steps=40")

    def run(directory: Path, progress: Any = small.silent) -> tuple[dict[str, Tensor], int]:
        objective = small.build(chosen)
        outcome = run_loop(
            objective, small.images(), chosen, directory, device=small.CPU, progress=progress, known=Known(LABEL)
        )
        return objective.state_dict(), outcome.steps

    whole, _ = run(tmp_path / "whole")
    with pytest.raises(small.Stopped):
        run(tmp_path / "stopped", progress=small.stop_at(3))
    resumed, steps = run(tmp_path / "stopped")
    assert steps == 2
    assert int(whole["filled"]) == 20
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
