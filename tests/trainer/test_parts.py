"""Neighbours, heads and moving averages against plain arithmetic."""

import copy

import pytest
import torch
from torch import nn

from trainer.parts import neighbours
from trainer.parts.ema import MovingAverage
from trainer.parts.heads import orthogonal_head, set_to_principal_axes
from trainer.parts.neighbours import nearest


@pytest.mark.parametrize("tile", [(16384, 2**21), (10, 400)])
def test_nearest_equals_sorted_distances(monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int]) -> None:
    """In one tile or in many, the neighbours are those of the full distance matrix, far from the origin too."""
    monkeypatch.setattr(neighbours, "_COLUMNS", tile[0])
    monkeypatch.setattr(neighbours, "_TILE", {"cpu": tile[1]})
    rows = torch.randn(53, 6) + 100
    expected = torch.cdist(rows.double(), rows.double()).topk(5, largest=False).indices
    assert torch.equal(expected, nearest(rows, 5))


def test_a_row_is_its_own_first_neighbour_even_among_equals() -> None:
    """Identical rows don't displace each other from their own lists."""
    assert torch.arange(20).tolist() == nearest(torch.ones(20, 3), 4)[:, 0].tolist()


def test_no_more_neighbours_than_rows() -> None:
    """Asked for five of three rows, there are three; asked for one, it is the row itself."""
    assert tuple(nearest(torch.randn(3, 2), 5).shape) == (3, 3)
    assert nearest(torch.randn(3, 2), 1).tolist() == [[0], [1], [2]]


@pytest.mark.parametrize(("count", "channels", "dim"), [(50, 8, 4), (50, 8, 8), (50, 8, 20), (3, 8, 6), (1, 8, 4)])
def test_principal_axes_keep_distances(count: int, channels: int, dim: int) -> None:
    """Where the outputs can hold the features' rank, no distance changes; the mean is gone, wherever it was."""
    features = torch.randn(count, channels) + 5
    head = orthogonal_head(channels, dim)
    set_to_principal_axes(head, features)
    with torch.no_grad():
        found = head(features)
    torch.testing.assert_close(found.mean(0), torch.zeros(dim), atol=1e-4, rtol=0)
    if dim >= min(channels, count - 1):
        torch.testing.assert_close(
            torch.cdist(found.double(), found.double()),
            torch.cdist(features.double(), features.double()),
            atol=1e-3,
            rtol=1e-3,
        )


def test_principal_axes_are_those_of_most_variance() -> None:
    """Two outputs see the two directions that vary."""
    features = torch.randn(200, 6) * torch.tensor([0.1, 0.1, 9.0, 0.1, 5.0, 0.1])
    head = orthogonal_head(6, 2)
    set_to_principal_axes(head, features)
    assert head.weight.abs().argmax(1).tolist() == [2, 4]


@pytest.mark.parametrize(("whitening", "expected"), [(0.0, 9.0 / 5.0), (0.5, (9.0 / 5.0) ** 0.5), (1.0, 1.0)])
def test_whitening_evens_out_the_spread_along_principal_axes(whitening: float, expected: float) -> None:
    """The ratio of two axes' standard deviations falls to its power 1 - whitening."""
    features = torch.randn(4000, 6) * torch.tensor([0.1, 0.1, 9.0, 0.1, 5.0, 0.1])
    head = orthogonal_head(6, 2)
    set_to_principal_axes(head, features, whitening)
    with torch.no_grad():
        spread = head(features).std(0)
    assert spread[0] / spread[1] == pytest.approx(expected, rel=0.05)


def test_a_moving_average_follows_wherever_its_networks_go() -> None:
    """Weights and statistics are averaged and counts copied, of copies and of networks that were moved, too."""
    networks = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)) for _ in range(2))
    following = MovingAverage((networks[0], networks[1]))
    for moved, average in ((networks, following), copy.deepcopy((networks, following))):
        teacher, student = moved.double()  # gives modules other tensors, as another device does
        student(torch.randn(8, 3, 2, 2, dtype=torch.float64))
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        average.update(0.75)
        for name, value in teacher.state_dict().items():
            current = student.state_dict()[name]
            expected = 0.75 * before[name] + 0.25 * current if value.is_floating_point() else current
            torch.testing.assert_close(value, expected)
        assert teacher.state_dict()["1.num_batches_tracked"] == 1
        average.update(0)
        assert all(torch.equal(value, student.state_dict()[name]) for name, value in teacher.state_dict().items())
