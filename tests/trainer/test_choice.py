"""The choice of an epoch without labels."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.choice import Choice, neighbour_contrast
from trainer.encoders import Encoder
from trainer.parts.heads import orthogonal_head


def _clusters(spread: float, count: int = 60) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(6, 16, generator=draw), dim=1)
    return F.normalize(centres[torch.arange(count) % 6] + spread * torch.randn(count, 16, generator=draw), dim=1)


def _naive(embeddings: Tensor) -> float:
    found = []
    for row, own in enumerate(embeddings):
        others = sorted((float(own @ other) for at, other in enumerate(embeddings) if at != row), reverse=True)
        mean = sum(others) / len(others)
        spread = (sum((s - mean) ** 2 for s in others) / (len(others) - 1)) ** 0.5
        found.append((sum(others[:10]) / len(others[:10]) - mean) / spread)
    return float(sum(found) / len(found))


def test_contrast_is_its_definition() -> None:
    """It is what a plain loop over all images gives."""
    embeddings = _clusters(0.5)
    assert neighbour_contrast(embeddings) == pytest.approx(_naive(embeddings), abs=1e-5)


def test_contrast_is_higher_where_groups_stand_apart() -> None:
    """Groups blurred by more and more noise have less and less of it."""
    found = [neighbour_contrast(_clusters(spread)) for spread in (0.05, 0.3, 2.0)]
    assert found == sorted(found, reverse=True)


def test_contrast_of_one_point_is_none() -> None:
    """An encoder that maps everything to one place has the contrast 0, not NaN."""
    assert neighbour_contrast(F.normalize(torch.ones(20, 8), dim=1)) == 0


def test_contrast_of_two_images_is_none() -> None:
    """Each has one other, which nothing can stand out from: no spread is taken of it, which torch would warn of."""
    assert neighbour_contrast(_clusters(0.5, count=2)) == 0


def _encoder(value: float) -> Encoder:
    encoder = Encoder(torch.nn.Identity(), orthogonal_head(4, 3))  # type: ignore[arg-type] # a head is enough here
    torch.nn.init.constant_(encoder.head.weight, value)  # type: ignore[arg-type]
    return encoder


def test_the_highest_contrast_is_taken_and_survives_the_process(tmp_path: Path) -> None:
    """A later epoch of lower contrast changes nothing, and neither does it after a resume."""
    first = Choice(tmp_path)
    first.offer(1, _encoder(1.0), 0.5)
    first.offer(2, _encoder(2.0), 0.7)
    resumed = Choice(tmp_path)
    resumed.offer(3, _encoder(3.0), 0.6)
    taken = _encoder(0.0)
    resumed.take(taken)
    assert (resumed.epoch, resumed.contrast) == (2, 0.7)
    assert taken.head.weight.unique().tolist() == [2.0]  # type: ignore[operator]


@pytest.mark.parametrize("damage", ["truncated", "changed", "not safetensors"])
def test_a_damaged_choice_is_passed_over_and_told(tmp_path: Path, damage: str) -> None:
    """A resumed run chooses among the epochs that follow, and a warning names the file."""
    Choice(tmp_path).offer(1, _encoder(1.0), 0.9)
    file = tmp_path / "chosen.safetensors"
    data = file.read_bytes()
    broken = {"truncated": data[:-3], "changed": data[:-3] + b"\x01\x02\x03", "not safetensors": b"{}"}
    file.write_bytes(broken[damage])
    resumed = Choice(tmp_path)
    (warning,) = resumed.warnings
    assert warning.startswith(f"{file} is damaged")
    assert resumed.epoch == 0
    resumed.offer(2, _encoder(2.0), 0.5)
    taken = _encoder(0.0)
    Choice(tmp_path).take(taken)
    assert taken.head.weight.unique().tolist() == [2.0]  # type: ignore[operator]
