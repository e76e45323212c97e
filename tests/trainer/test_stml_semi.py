"""Semi-supervised STML and the supervised baseline: what they promise beside STML's own promises."""

import copy
import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.trainer import network, small
from trainer.encoders import Encoder, make_backbone
from trainer.known import Known
from trainer.loop import TrainingError
from trainer.loop import train as run_loop
from trainer.objective import Batch
from trainer.objectives.stml import STML
from trainer.objectives.stml_semi import STMLSemi, with_known
from trainer.objectives.supervised import Supervised
from trainer.parts.multi_similarity import multi_similarity
from trainer.recipe import with_objective

LABEL = torch.tensor([0, 0, 1, 1, 2, -1, -1, -1, 2, -1] * 4)


def encoder() -> Encoder:
    torch.manual_seed(0)
    backbone = make_backbone(network.NAME, "none", size=32)
    return Encoder(backbone, nn.Linear(backbone.channels, 8))


def semi(label: Tensor = LABEL, apart: Tensor | None = None, **keywords: Any) -> STMLSemi:
    objective = STMLSemi(encoder(), background_dim=16, classes=2, images=2, **keywords)
    objective.know(Known(label, apart))
    return objective.eval()  # BatchNorm would mix the images of a batch


def batch_of(index: Tensor, label: Tensor = LABEL) -> Batch:
    draw = torch.Generator().manual_seed(1)
    pictures = torch.rand(len(LABEL), 3, 32, 32, generator=draw)
    noise = torch.rand(2, len(index), 3, 32, 32, generator=draw)
    return Batch([0.8 * pictures[index] + 0.2 * view for view in noise], index, label[index])


def naive_override(similarity: Tensor, label: list[int]) -> Tensor:
    found = similarity.clone()
    for i, one in enumerate(label):
        for j, other in enumerate(label):
            if one >= 0 and other >= 0:
                found[i, j] = 1.0 if one == other else 0.0
    return found


def test_what_is_known_replaces_pseudo_labels_and_nothing_else() -> None:
    """1 for pairs of one class, 0 for pairs of two; what has no label keeps its pseudo-label."""
    similarity = torch.rand(40, 40, generator=torch.Generator().manual_seed(0))
    found = with_known(similarity, *Known(LABEL).relations(LABEL, LABEL))
    assert torch.equal(found, naive_override(similarity, LABEL.tolist()))


def test_without_labels_it_is_stml() -> None:
    """The same order is drawn, and the terms are the same to the bit."""
    unlabelled = torch.full_like(LABEL, -1)
    plain, known = STML(encoder(), background_dim=16).eval(), semi(unlabelled)
    features = torch.randn(40, plain.encoder.backbone.channels, generator=torch.Generator().manual_seed(3))
    orders = []
    for objective in (plain, known):
        torch.manual_seed(4)
        order = objective.before_epoch(lambda _, __=0: features, 20, 2)
        assert order is not None
        orders.append(order)
    assert torch.equal(*orders)
    batch = batch_of(orders[0][0], unlabelled)
    expected, found = plain.losses(batch), known.losses(batch)
    assert found == expected


def test_the_terms_are_those_of_the_two_losses_on_their_own_images() -> None:
    """STML's on the neighbours under overridden pseudo-labels, and the multi-similarity loss on those that joined."""
    objective = semi(supervised_weight=0.5)
    index = torch.tensor([5, 0, 1, 6, 2, 7, 0, 1, 2, 3])  # the last four have joined
    batch = batch_of(index)
    found = objective.losses(batch)

    near = Batch([view[:6] for view in batch.views], index[:6], LABEL[index[:6]])
    f, g, z = objective._embedded(near, near.index)
    label = LABEL[index[:6]].repeat(2)
    pseudo = objective._similarity(z, index[:6].repeat(2))
    expected = objective._terms(f, g, naive_override(pseudo, label.tolist()))
    joined = F.normalize(torch.cat([objective.encoder(view[6:]) for view in batch.views]), dim=1)
    label = LABEL[index[6:]].repeat(2)
    expected["multi_similarity"] = 0.5 * multi_similarity(joined @ joined.T, *Known(LABEL).relations(label, label))
    assert list(found) == list(expected)
    for name, term in expected.items():
        assert found[name].item() == pytest.approx(term.item(), rel=1e-4, abs=1e-6), name


def test_labelled_images_join_each_batch() -> None:
    """After STML's neighbours come as many of each class, and every epoch draws others."""
    objective = semi()
    features = torch.randn(40, objective.encoder.backbone.channels)
    first, second = (objective.before_epoch(lambda _, __=0: features, 20, 2) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.shape == (2, 20 + 4)
    for step in first[:, -4:]:
        assert sorted(Counter(LABEL[step].tolist()).values()) == [2, 2]
    assert not torch.equal(first, second)


def test_classes_with_one_labelled_image_do_not_join() -> None:
    """Batches have images of the other classes alone; where there are not two of these, they are STML's."""
    label = torch.full((40,), -1)
    label[:7] = torch.tensor([0, 0, 1, 1, 2, 3, 4])
    for known, joining in ((label, {0, 1}), (label.masked_fill(label == 1, -1), set())):
        objective = semi(known)
        features = torch.randn(40, objective.encoder.backbone.channels)
        order = objective.before_epoch(lambda _, __=0, features=features: features, 20, 2)
        assert order is not None
        assert order.shape == (2, 20 + 2 * len(joining))
        assert set(known[order[:, 20:]].flatten().tolist()) == joining


@pytest.mark.parametrize(
    ("label", "trained", "steps"),
    [
        ([0, 0, 1, 1], True, 10),  # four join each step: ten steps draw each ten times
        ([0, 0, 1, 1], False, 16),  # there is nothing yet that further steps could cost
        ([0, 1], True, 5),  # none joins, and all the same they are two labels
        ([0, 0, 0, 1, 1, 1, 2, 2, 2], True, 16),
        ([], True, 16),
    ],
)
def test_few_labels_make_few_steps_from_a_learned_model(label: list[int], trained: bool, steps: int) -> None:
    """An epoch ends when each labelled image has been drawn ten times, or when there are no more images."""
    learner = encoder()
    learner.head_is_trained = trained
    objective = STMLSemi(learner, background_dim=16, classes=2, images=2)
    objective.know(Known(torch.tensor(label + [-1] * (80 - len(label)))))
    features = torch.randn(80, learner.backbone.channels, generator=torch.Generator().manual_seed(3))
    order = objective.before_epoch(lambda _, __=0: features, 5, 16)
    assert order is not None
    assert len(order) == steps


def test_one_labelled_class_in_few_images_joins_as_often_as_there_are_classes() -> None:
    """Fewer classes than a batch would have: all that there are."""
    objective = STMLSemi(encoder(), background_dim=16, classes=8, images=3)
    objective.know(Known(LABEL))
    assert objective.joined == 3 * 3


def test_pairs_alone_teach_too() -> None:
    """Known to be apart are only two of three classes: the loss of the third comes from no pair of the others."""
    apart = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
    objective = semi(apart=apart)
    batch = batch_of(torch.tensor([5, 6, 0, 1, 4, 8]))  # classes 0 and 2 have joined, of which nothing is known
    assert objective.losses(batch)["multi_similarity"].item() == 0
    batch = batch_of(torch.tensor([5, 6, 0, 1, 2, 3]))  # classes 0 and 1
    assert objective.losses(batch)["multi_similarity"].item() > 0


@pytest.mark.parametrize("keywords", [{"classes": 1}, {"images": 0}, {"supervised_weight": -1.0}, {"sigma": 0.0}])
def test_keywords_out_of_range_are_refused(keywords: dict[str, Any]) -> None:
    """Its own keywords, and those that it passes on to STML."""
    with pytest.raises(ValueError, match=next(iter(keywords))):
        STMLSemi(encoder(), **keywords)


def test_the_baseline_draws_labelled_images_alone_and_as_many_steps_as_the_others() -> None:
    """Its epochs compare with those of an objective that learns from all images."""
    objective = Supervised(encoder(), images=2)
    objective.know(Known(LABEL))
    order = objective.before_epoch(lambda _, __=0: torch.empty(0), 10, 4)
    assert order.shape == (4, 6)
    assert (LABEL[order] >= 0).all()
    with pytest.raises(ValueError, match="learns from labels alone"):
        objective.know(Known(torch.full((9,), -1)))
    with pytest.raises(ValueError, match="images is 0"):
        Supervised(encoder(), images=0)
    with pytest.raises(ValueError, match="whitening 2"):
        Supervised(encoder(), whitening=2.0)


@pytest.mark.parametrize("trained", [False, True], ids=["new head", "trained head"])
def test_labels_alone_start_where_the_features_are(trained: bool) -> None:
    """Before the first epoch a new head keeps the features' distances, a trained one stays; later none is moved."""
    start = encoder()
    start.head_is_trained = trained
    given = copy.deepcopy(start.head.state_dict())
    objective = Supervised(start, head_init="pca")
    objective.know(Known(LABEL))
    dim = cast("nn.Linear", start.head).out_features
    features = torch.randn(40, dim, generator=torch.Generator().manual_seed(3)) @ torch.eye(
        dim, start.backbone.channels
    )
    objective.before_epoch(lambda _, __=0: features, 20, 2)
    head = copy.deepcopy(start.head.state_dict())
    objective.before_epoch(lambda _, __=0: 2 * features.flip(1), 20, 2)

    assert all(torch.equal(value, head[key]) for key, value in start.head.state_dict().items())
    if trained:
        assert all(torch.equal(value, given[key]) for key, value in head.items())
    else:
        torch.testing.assert_close(torch.pdist(start.head(features)), torch.pdist(features))


@pytest.mark.parametrize("name", ["stml_semi", "supervised"])
def test_a_run_that_learns_from_labels_goes_on_exactly_and_only_with_its_labels(tmp_path: Path, name: str) -> None:
    """Stopped and resumed, it ends with the weights of one that was not; other labels are refused."""
    chosen = with_objective(small.recipe(), name)

    def run(directory: Path, label: Tensor = LABEL, progress: Any = small.silent) -> tuple[dict[str, Tensor], int]:
        objective = small.build(chosen)
        known = Known(label)
        outcome = run_loop(
            objective, small.images(), chosen, directory, device=small.CPU, progress=progress, known=known
        )
        return objective.state_dict(), outcome.steps

    whole, _ = run(tmp_path / "whole")
    with pytest.raises(small.Stopped):
        run(tmp_path / "stopped", progress=small.stop_at(3))
    with pytest.raises(TrainingError, match="the labels to learn from, are not those"):
        run(tmp_path / "stopped", LABEL.flip(0))
    resumed, steps = run(tmp_path / "stopped")
    assert steps == 2
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_epochs_of_distillation_have_no_labelled_images_and_no_other_term() -> None:
    """A semi-supervised run from published weights distils first, as STML does."""
    inner = encoder()
    inner.backbone.is_pretrained = True
    objective = STMLSemi(
        inner, background_dim=16, head_init="pca", distillation_epochs=1, distillation_size=64, classes=2, images=2
    )
    objective.know(Known(LABEL))
    features = torch.randn(40, inner.backbone.channels)
    assert objective.before_epoch(lambda _, __=0: features, 20, 2) is None
    batch = dataclasses.replace(batch_of(torch.arange(6)), large=torch.rand(6, 3, 64, 64))
    assert list(objective.losses(batch)) == ["distillation"]
    order = objective.before_epoch(lambda _, __=0: features, 20, 2)
    assert order is not None
    assert order.shape == (2, 20 + 4)


def test_terms_in_turns_are_the_terms_together() -> None:
    """Where each image is embedded by itself they and their gradients are the same, and the teacher sees fewer."""
    objective, index = semi(), torch.tensor([0, 5, 6, 7, 9, 1, 15, 16, 10, 11, 2, 3])
    assert objective.joined == 4
    taught = []
    objective.teacher[0].register_forward_pre_hook(lambda _, images: taught.append(len(images[0])))
    found: list[tuple[dict[str, float], list[Tensor]]] = []
    for turns in (objective.turns(batch_of(index)), [lambda: objective.losses(batch_of(index))]):
        objective.zero_grad()
        terms: dict[str, float] = {}
        for turn in turns:
            made = turn()
            torch.stack(list(made.values())).sum().backward()  # type: ignore[no-untyped-call]
            terms |= {name: term.item() for name, term in made.items()}
        found.append((terms, [p.grad.clone() for p in objective.parameters() if p.grad is not None]))
    (terms, gradients), (together, their_gradients) = found
    assert list(terms) == list(together)
    assert terms == pytest.approx(together, rel=1e-5)
    assert len(gradients) == len(their_gradients) > 0
    for one, other in zip(gradients, their_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert taught == [2 * 8, 2 * 12]
    with torch.autocast("cpu", torch.bfloat16):
        by_turn = [turn() for turn in objective.turns(batch_of(index))]
    assert {term.dtype for terms_of_turn in by_turn for term in terms_of_turn.values()} == {torch.float32}


def test_batchnorm_that_learns_sees_all_images_of_a_step_at_once() -> None:
    """Its statistics are those of the whole batch, as before it was embedded in turns."""
    objective = semi().train()
    assert objective.encoder.backbone.mixes_images
    assert [list(turn())[-1] for turn in objective.turns(batch_of(torch.arange(12)))] == ["multi_similarity"]
