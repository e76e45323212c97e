"""What a run is given: how much of a model stays where its labels are few."""

from itertools import pairwise

import pytest
import torch

from trainer.given import Doubts, share_of_few


@pytest.mark.parametrize(
    ("label", "share"),
    [
        ([0, 1, 2, 3], 1 / 2),
        ([0, 0, 1, 1], 1 / 3),
        ([0, 1, 2, 3, 3, 3, 3, 3], 1 / 3),  # two of each on average
        ([0, -1, 0, 0, -1, 2, 2, 2], 1 / 6),
        ([4, 4, 4, 4, 1, 1, 1, 1], 0),
        ([1] * 50 + [2] * 9, 0),
        ([-1, -1], 0),
    ],
)
def test_the_fewer_labels_a_class_the_more_is_kept(label: list[int], share: float) -> None:
    """From half with one of each class to nothing with four, on a straight line; what has no label does not count."""
    assert share_of_few(torch.tensor(label)) == pytest.approx(share)


def test_more_labels_never_keep_more() -> None:
    """Each further label of a class takes from what is kept, or leaves it at nothing."""
    shares = [share_of_few(torch.tensor([0, 1, *[0] * more])) for more in range(12)]
    assert all(after < before or after == before == 0 for before, after in pairwise(shares))


def test_the_larger_of_two_shares_is_kept_and_its_reason_told() -> None:
    """Two labels of each class of which two in five are wrong keep two fifths, for the wrong ones."""
    (wrong,) = Doubts(kept_of_wrong=0.4, kept_of_few=1 / 3).warnings
    (few,) = Doubts(kept_of_wrong=0.2, kept_of_few=1 / 3).warnings
    assert "is 40% of the way back" in wrong
    assert "wrong labels" in wrong
    assert "is 33% of the way back" in few
    assert "few labels a class" in few
    assert not Doubts().warnings
