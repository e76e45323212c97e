"""Mutual information of partitions against scikit-learn's."""

import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from torch import Tensor

from trainer.parts import information
from trainer.parts.information import mutual_information


def partitions(count: int, classes: int, clusters: int, agreement: float) -> tuple[Tensor, Tensor]:
    """Two partitions into parts of uneven sizes, numbered with gaps."""
    generator = torch.Generator().manual_seed(count)
    first = (torch.rand(count, generator=generator) ** 2 * classes).long()
    second = (torch.rand(count, generator=generator) ** 2 * clusters).long()
    kept = torch.rand(count, generator=generator) < agreement
    return first * 3, torch.where(kept, first % clusters, second) + 5


@pytest.mark.parametrize(
    ("count", "classes", "clusters", "agreement"),
    [(30, 3, 4, 0.5), (500, 12, 12, 0.0), (500, 12, 12, 0.7), (400, 300, 40, 0.5), (2000, 2, 30, 0.9), (50, 1, 4, 0)],
)
@pytest.mark.parametrize("grid", [2**21, 50])
def test_agrees_with_scikit_learn(
    count: int, classes: int, clusters: int, agreement: float, grid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NMI and AMI are scikit-learn's, for few and many, even and uneven parts, however the terms are chunked."""
    monkeypatch.setattr(information, "_GRID", grid)
    first, second = partitions(count, classes, clusters, agreement)
    expected = normalized_mutual_info_score(first, second), adjusted_mutual_info_score(first, second)
    assert expected == pytest.approx(mutual_information(first, second), abs=1e-9)


@pytest.mark.parametrize("parts", [[0, 0, 0], [0, 1, 2], [0, 0, 1, 1, 1]])
def test_a_partition_tells_all_of_itself(parts: list[int]) -> None:
    """The same partition under other numbers gives 1 and 1, in one part and in single rows too."""
    same = torch.tensor(parts)
    assert mutual_information(same, 7 - same) == pytest.approx((1.0, 1.0))


def test_chance_tells_nothing() -> None:
    """Of a shuffled partition AMI is 0 within its noise, where NMI is far from it."""
    parts = torch.arange(1000) % 200
    shuffled = parts[torch.randperm(1000, generator=torch.Generator().manual_seed(2))]
    nmi, ami = mutual_information(parts, shuffled)
    assert abs(ami) < 0.02
    assert nmi > 0.5
