"""Wrong labels among right ones: how many there are, by a metric, and which ones are left out."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.label_noise import LabelNoise, class_ranks, first_random, label_noise, random_share, surely_wrong

LONG_TAIL = [max(2, round(24 / (rank + 1) ** 0.75)) for rank in range(40)]  # images of each class, 163 in all


def photographs(classes: int, each: int | list[int], *, spread: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings around a centre for each class, (N, 32), and their true classes."""
    draw = torch.Generator().manual_seed(seed)
    truth = torch.arange(classes).repeat_interleave(torch.as_tensor(each))
    centres = F.normalize(torch.randn(classes, 32, generator=draw), dim=1)
    noise = F.normalize(torch.randn(len(truth), 32, generator=draw), dim=1)
    return F.normalize(centres[truth] + spread * noise, dim=1), truth


def flipped(truth: Tensor, share: float, seed: int = 1) -> tuple[Tensor, set[str]]:
    """The classes with a share of them replaced by other ones, and the items whose class it is."""
    draw = torch.Generator().manual_seed(seed)
    classes = int(truth.max()) + 1
    wrong = torch.randperm(len(truth), generator=draw)[: round(share * len(truth))]
    label = truth.clone()
    label[wrong] = (truth[wrong] + torch.randint(1, classes, (len(wrong),), generator=draw)) % classes
    return label, {str(row) for row in wrong.tolist()}


def judged(embeddings: Tensor, label: Tensor) -> LabelNoise:
    return label_noise(embeddings, [str(row) for row in range(len(label))], label)


def test_ranks_are_those_of_plain_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each image the classes with a higher mean similarity than the rest of its own; -1 where it is alone."""
    embeddings, truth = photographs(6, 5, spread=3.0)
    label, _ = flipped(truth, 0.3)
    label[0] = 77  # the only one of its class
    monkeypatch.setattr("trainer.label_noise._ROWS", 7)
    expected = []
    for i, own in enumerate(label.tolist()):
        mean = {}
        for number in set(label.tolist()):
            those = [
                float(embeddings[i].double() @ embeddings[j].double())
                for j in range(30)
                if j != i and label[j] == number
            ]
            mean[number] = sum(those) / len(those) if those else None
        mine = mean.pop(own)
        expected.append(-1 if mine is None else sum(other > mine for other in mean.values() if other is not None))
    assert class_ranks(embeddings, label).tolist() == expected


def test_the_share_of_random_labels_is_read_off_those_that_a_third_of_all_classes_beat() -> None:
    """With right labels at rank 0 and the others even, it is exact; from the cut on nine in ten are random."""
    even = torch.arange(10).repeat(4)  # 40 random labels of 10 classes
    rank = torch.cat([even, torch.zeros(60, dtype=torch.int64)])
    assert random_share(rank, 10) == pytest.approx(0.4)
    assert first_random(rank, 10, 0.4) == 1
    assert random_share(torch.zeros(9, dtype=torch.int64), 10) == 0
    hard = torch.cat([rank, torch.full((30,), 2)])  # right, and beaten by two classes
    assert first_random(hard, 10, random_share(hard, 10)) == 3


@pytest.mark.parametrize("share", [0.2, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_of_many_wrong_labels_most_are_found_and_few_right_ones_are_lost(share: float, seed: int) -> None:
    """Of 5 images of each of 40 classes; the share of wrong ones is estimated within a tenth."""
    embeddings, truth = photographs(40, 5, seed=seed)
    label, wrong = flipped(truth, share, seed + 10)
    found = judged(embeddings, label)
    assert found.judged > 180
    assert found.wrong_share == pytest.approx(share, abs=0.1)
    doubted = set(found.doubted)
    assert len(doubted & wrong) > 0.6 * len(wrong)
    assert len(doubted - wrong) < 0.06 * len(truth)
    left = {str(row) for row in range(len(truth))} - doubted
    assert len(left & wrong) < 0.55 * share * len(left)
    (warning,) = found.warnings(Path("left_out.json"))
    assert f"the {len(doubted):,} likeliest to be wrong are left out" in warning
    assert "--keep-doubted (of a request, keep_doubted) learns from them too" in warning
    assert f"(left_out.json lists them, {found.doubted[0]} first)" in warning
    assert "learned from too, as was asked" in found.warnings(None)[0]


@pytest.mark.parametrize(("spread", "share"), [(0.5, 0.2), (1.0, 0.2), (1.0, 0.4), (1.5, 0.2)])
def test_right_labels_of_small_classes_are_not_lost_with_the_wrong_ones(spread: float, share: float) -> None:
    """Over seeds less than half as many as by one cut through all labels, which finds hardly more wrong ones."""
    lost = lost_at_once = found = found_at_once = 0
    for seed in range(20):
        embeddings, truth = photographs(40, LONG_TAIL, spread=spread, seed=seed)
        label, wrong = flipped(truth, share, seed + 100)
        doubted = {*judged(embeddings, label).doubted}
        at_once = cut_at_once(embeddings, label) if doubted else set()  # too few wrong ones: none is left out
        found, found_at_once = found + len(doubted & wrong), found_at_once + len(at_once & wrong)
        lost, lost_at_once = lost + len(doubted - wrong), lost_at_once + len(at_once - wrong)
    assert found_at_once > 0.7 * 20 * share * sum(LONG_TAIL)
    assert lost < 0.5 * lost_at_once
    assert found > (0.9 if share < 0.4 else 0.85) * found_at_once


def cut_at_once(embeddings: Tensor, label: Tensor) -> set[str]:
    """The items whose labels the cut doubts, judged once, by right and wrong ones alike."""
    rank = class_ranks(embeddings, label)
    known, classes = rank[rank >= 0], len(set(label.tolist()))
    cut = first_random(known, classes, random_share(known, classes))
    return {str(row) for row in (rank >= cut).nonzero().flatten().tolist()}


def test_the_surest_go_first_and_no_class_goes_whole() -> None:
    """Of random labels an eighth of the doubted ones of each class at a time, as plain loops do it."""
    embeddings, truth = photographs(12, LONG_TAIL[:12], seed=3)
    label = truth[torch.randperm(len(truth), generator=torch.Generator().manual_seed(5))]
    rest, expected = list(range(len(label))), []
    while True:
        ranks = dict(zip(rest, class_ranks(embeddings[rest], label[rest]).tolist(), strict=True))
        by_class = [[row for row in rest if label[row] == own and ranks[row] >= 1] for own in range(12)]
        surest = [row for rows in by_class for row in sorted(rows, key=lambda row: -ranks[row])[: -(-len(rows) // 8)]]
        if not surest:
            break
        expected += surest
        rest = [row for row in rest if row not in expected]
    assert sorted(surely_wrong(embeddings, label, 1)) == sorted(expected)
    assert len(expected) > 0.7 * len(label)
    assert {*label[rest].tolist()} == {*range(12)}


@pytest.mark.parametrize(("spread", "hard"), [(0.5, False), (1.5, True)])
def test_right_labels_stay_whole(spread: float, hard: bool) -> None:
    """Also where many images are nearer to another class: a hard image is not a wrong label."""
    embeddings, truth = photographs(20, 5, spread=spread)
    found = judged(embeddings, truth)
    assert bool((class_ranks(embeddings, truth) > 0).sum() > 20) == hard
    assert found.doubted == ()
    assert found.wrong_share is not None
    assert found.wrong_share < 0.15
    assert found.warnings(None) == ()


def test_a_metric_that_knows_nothing_of_the_labels_does_not_judge_them() -> None:
    """Nothing is left out where all labels look random: they may be right, and new to it; that is told."""
    embeddings, truth = photographs(20, 5)
    found = judged(embeddings[torch.randperm(100, generator=torch.Generator().manual_seed(4))], truth)
    assert found.doubted == ()
    assert found.wrong_share is not None
    assert found.wrong_share > 0.75
    (warning,) = found.warnings(None)
    assert "wrong, or new to it" in warning


@pytest.mark.parametrize(("classes", "each"), [(4, 10), (9, 2)], ids=["classes", "labels"])
def test_too_few_labels_are_not_judged(classes: int, each: int) -> None:
    """What is hard and what is wrong look alike in a few classes, and a few labels tell nothing of the rest."""
    embeddings, truth = photographs(classes, each)
    label, _ = flipped(truth, 0.4)
    found = judged(embeddings, label)
    assert (found.wrong_share, found.doubted, found.warnings(None)) == (None, (), ())


def test_images_that_are_all_alike_are_no_evidence() -> None:
    """A metric that embeds all images alike leaves nothing out."""
    _, truth = photographs(20, 5)
    assert judged(torch.full((100, 16), 0.25), truth).doubted == ()


def test_two_classes_are_always_left() -> None:
    """Where the doubted labels would leave two images to no class but one, they stay: one class teaches nothing."""
    draw = torch.Generator().manual_seed(0)
    own = F.normalize(torch.ones(60, 16) + 0.05 * torch.randn(60, 16, generator=draw), dim=1)
    others = F.normalize(torch.randn(20, 16, generator=draw), dim=1)
    embeddings, label = (
        torch.cat([own, others]),
        torch.cat([torch.zeros(60, dtype=torch.int64), torch.arange(20) % 10 + 1]),
    )
    wrong = surely_wrong(embeddings, label, 1)
    assert sorted(label[wrong].tolist()) == [*range(1, 11)]  # of each pair one
    found = judged(embeddings, label)
    assert found.doubted == ()
    assert found.wrong_share == pytest.approx(0.25, abs=0.1)
