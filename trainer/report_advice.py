"""What to try next where a training did not beat what it started from: read off its own numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.recipe import Recipe

History = Sequence[Mapping[str, Any]]

_CLEAR = 0.005  # of a share: smaller steps of R@1 between epochs come and go
_FEW_STEPS = 200
_STILL = 0.02  # of the loss
_POOR_NEIGHBOURS = 0.5
_SMALL_DIM = 128
_NO_FAULT = (
    "The numbers show no single fault. Try views that change what should not matter and keep what should ([view] in "
    "the recipe), a larger data.size, or another backbone."
)


def advice(recipe: Recipe, history: History, before: Mapping[str, float]) -> list[str]:
    """What the numbers of a run suggest to change, the likeliest first; never empty.

    Args:
        recipe: what was trained with.
        history: the lines of `metrics.jsonl`.
        before: metrics of what the run started from.
    """
    of_recall = _of_recall(recipe, series(history, "epoch", "recall_at_1"), before["recall_at_1"])
    found = [
        # The loss is only asked where R@1 says nothing: their remedies may contradict each other.
        *(of_recall or _of_loss(recipe, series(history, "step", "loss"))),
        *_of_neighbours(recipe, series(history, "epoch", "neighbour_precision")),
        *_of_dim(recipe),
    ]
    return found or [_NO_FAULT]


def series(history: History, x: str, y: str) -> list[tuple[float, float]]:
    """The points (x, y) of the lines that have both as numbers; NaN where y is not a finite one."""
    return [
        (float(line[x]), float(line[y]) if math.isfinite(line[y]) else math.nan)
        for line in history
        if _is_number(line.get(x)) and _is_number(line.get(y))
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _of_recall(recipe: Recipe, points: Sequence[tuple[float, float]], before: float) -> list[str]:
    if not points:
        return []
    lr = recipe.optimizer.lr
    (first_epoch, first), (epochs, last) = points[0], points[-1]
    best_epoch, best = max(points, key=lambda point: point[1])
    found = []
    if first < before - _CLEAR:
        found.append(
            f"R@1 was {first:.3f} after epoch {first_epoch:.0f} already, below the {before:.3f} before it: the first "
            f"steps undo more than they teach. Try --set optimizer.lr={lr / 3:.1g}{_or_warm_up(recipe)}."
        )
    if best > last + _CLEAR:
        not_counted = max(0, int(epochs) - recipe.run.epochs)  # those before the recipe's own, by --epochs
        fewer = max(1, int(best_epoch) - not_counted)
        found.append(
            f"R@1 peaked at {best:.3f} after epoch {best_epoch:.0f} of {epochs:.0f} and fell to {last:.3f}: try "
            f"--set optimizer.lr={lr / 3:.1g}, or --epochs {fewer}{_or_choose(recipe)}. An epoch that these labels "
            "have chosen has to be confirmed on other images."
        )
    elif len(points) > 1 and last > points[-2][1] + _CLEAR / 5 and last > first:
        found.append(f"R@1 was still rising in the last epoch ({last:.3f}): try --epochs {2 * recipe.run.epochs}.")
    return found


def _or_warm_up(recipe: Recipe) -> str:
    return "" if recipe.optimizer.warmup_steps else ", or --set optimizer.warmup_steps=100"


def _or_choose(recipe: Recipe) -> str:
    return ", or --set run.choose=contrast" if recipe.run.choose == "last" else ""


def _of_loss(recipe: Recipe, points: Sequence[tuple[float, float]]) -> list[str]:
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if not finite:
        return []
    lr, (_, first), (steps, last) = recipe.optimizer.lr, finite[0], finite[-1]
    found = []
    if len(finite) > 1 and abs(last - first) < _STILL * abs(first):  # it may rise: the targets move too
        found.append(
            f"The loss hardly moved ({first:.4g} to {last:.4g}): try --set optimizer.lr={lr * 3:.1g}, or more epochs."
        )
    if steps < _FEW_STEPS:
        found.append(
            f"It took only {steps:.0f} steps: try --epochs {math.ceil(recipe.run.epochs * _FEW_STEPS / steps)}, "
            "or more images."
        )
    return found


def _of_neighbours(recipe: Recipe, points: Sequence[tuple[float, float]]) -> list[str]:
    if not points or points[-1][1] >= _POOR_NEIGHBOURS:
        return []
    given = recipe.objective.keywords.get("neighbours")
    fewer = f"--set objective.neighbours={given // 2}, " if isinstance(given, int) and given >= 4 else ""
    told = (
        f"Only {points[-1][1]:.0%} of the nearest neighbours among its training images share a class, so most of "
        f"what it is taught to pull together is wrong: try {fewer}a larger data.size, or a stronger backbone."
    )
    return [told]


def _of_dim(recipe: Recipe) -> list[str]:
    dim = recipe.encoder.dim
    if dim >= _SMALL_DIM:
        return []
    return [f"Embeddings of {dim} numbers hold less than the backbone's features: try --dim {4 * dim}."]
