"""What a report advises, read off a run's own numbers."""

import math
from typing import Any

import pytest

from trainer.recipe import load, override
from trainer.report_advice import advice, series

STML = override(
    load("stml"),
    "optimizer.lr=3e-4",
    "optimizer.warmup_steps=0",
    "run.epochs=10",
    "run.choose=last",
    "encoder.dim=512",
    "objective.neighbours=5",
)
FROZEN = {"recall_at_1": 0.5}


def by_epoch(*values: float, name: str = "recall_at_1") -> list[dict[str, float]]:
    return [{"step": 500.0 * i, "epoch": float(i), name: value} for i, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (by_epoch(0.45, 0.46, 0.46), ["R@1 was 0.450 after epoch 1 already, below the 0.500 before it"]),
        (
            [*by_epoch(0.45, 0.46, 0.46), {"step": 40, "loss": 1.0}],
            ["optimizer.lr=0.0001, or --set optimizer.warmup"],
        ),
        (
            by_epoch(0.5, 0.53, 0.48),
            ["fell to 0.480: try --set optimizer.lr=0.0001, or --epochs 2, or --set run.choose=contrast"],
        ),
        (by_epoch(0.49, 0.495, 0.499), ["R@1 was 0.490", "still rising in the last epoch (0.499): try --epochs 20"]),
        (by_epoch(1.0, 0.999, name="loss"), ["The loss hardly moved (1 to 0.999): try --set optimizer.lr=0.0009"]),
        (by_epoch(1.0, 2.0, name="loss"), ["The numbers show no single fault"]),
        ([{"step": 40, "epoch": 1, "loss": 1.0}], ["It took only 40 steps: try --epochs 50"]),
        (by_epoch(0.2, 0.3, name="neighbour_precision"), ["Only 30% of the nearest neighbours"]),
        (by_epoch(math.nan, math.nan, name="loss"), ["The numbers show no single fault"]),
        ([], ["The numbers show no single fault"]),
    ],
)
def test_advice_follows_from_the_numbers(history: list[dict[str, float]], expected: list[str]) -> None:
    """Each pattern has its own remedy, with a value to try."""
    found = advice(STML, history, FROZEN)
    assert len(expected) == len(found)
    for words, step in zip(expected, found, strict=True):
        assert words in step


def test_small_embeddings_are_advised_to_grow() -> None:
    """Fewer numbers than the backbone's features need are named with a larger value."""
    (step,) = advice(override(STML, "encoder.dim=32"), [], FROZEN)
    assert "Embeddings of 32 numbers" in step
    assert "--dim 128" in step


def test_series_skip_lines_without_numbers() -> None:
    """A line that lacks a name, or has no number there, is no point; NaN and infinity are NaN."""
    history: list[dict[str, Any]] = [
        {"step": 1, "a": 1},
        {"step": 2},
        {"step": 3, "a": None},
        {"step": 4, "a": True},
        {"a": 1},
    ]
    history += [{"step": 5, "a": math.inf}]
    (first, last) = series(history, "step", "a")
    assert first == (1.0, 1.0)
    assert last[0] == 5.0
    assert math.isnan(last[1])
