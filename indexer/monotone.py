"""Rising curves fitted to shares: isotonic regression, smooth or not, and Platt's logistic curve."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_STEPS = 100  # of Newton's method, which needs about ten


def isotonic(values: Floats, weights: Floats) -> Floats:
    """The never-falling values nearest to given ones in weighted least squares, by pooling adjacent violators.

    Barlow et al. 1972, "Statistical Inference under Order Restrictions", section 1.2.

    Args:
        values: (N,).
        weights: (N,) above 0.
    """
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, mass, length = value, weight, 1
        while blocks and blocks[-1][0] >= mean:
            before, more, count = blocks.pop()
            mean = (mean * mass + before * more) / (mass + more)
            mass, length = mass + more, length + count
        blocks.append((mean, mass, length))
    means, _, lengths = zip(*blocks, strict=True)
    return np.repeat(np.array(means), lengths)


def smoothed(counts: Floats, share: float) -> Floats:
    """Counts on an even grid, each spread over its neighbourhood by a Gaussian.

    Isotonic regression of what is smoothed has no steps that are only chance: Mammen 1991, "Estimating a smooth
    monotone regression function".

    Args:
        counts: (2, G) of two kinds; both together say how wide the Gaussian is.
        share: its standard deviation, as one of theirs; less than a cell of the grid smooths nothing.

    Returns:
        (2, G); what falls off the ends of the grid is lost, of both kinds alike.
    """
    places, total = np.arange(counts.shape[1]), counts.sum(axis=0)
    mean = np.average(places, weights=total)
    width = share * np.sqrt(np.average((places - mean) ** 2, weights=total))
    if width < 1:
        return counts
    reach = min(int(4 * width), (counts.shape[1] - 1) // 2)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    return np.stack([np.convolve(kind, kernel / kernel.sum(), "same") for kind in counts])


def platt(x: Floats, different: Floats, same: Floats) -> Floats:
    """The logistic curve of greatest likelihood at `x`, with Platt's smoothed targets; Newton's method.

    Platt 1999, "Probabilistic Outputs for Support Vector Machines", section 2.2; the damped steps are those of Lin,
    Lin and Weng 2007, "A note on Platt's probabilistic outputs".

    Args:
        x: (N,) similarities.
        different: (N,) how many pairs of different things have that similarity.
        same: (N,) how many of the same.
    """
    total = different + same
    target = (same * (same.sum() + 1) / (same.sum() + 2) + different / (different.sum() + 2)) / total
    inputs = np.stack([x - x.mean(), np.ones_like(x)])
    weights = np.zeros(2)
    loss = _log_loss(weights @ inputs, target, total)
    for _ in range(_STEPS):
        fitted = _logistic(weights @ inputs)
        curvature = (inputs * (total * fitted * (1 - fitted))) @ inputs.T + 1e-9 * np.eye(2)
        step, share = np.linalg.solve(curvature, inputs @ (total * (target - fitted))), 1.0
        while (lower := _log_loss((weights + share * step) @ inputs, target, total)) > loss and share > 1e-6:
            share /= 2
        if not lower < loss - 1e-12 * abs(loss):
            break
        weights, loss = weights + share * step, lower
    return _logistic(weights @ inputs)


def _logistic(z: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(z, -500, 500))), np.float64)


def _log_loss(z: Floats, target: Floats, total: Floats) -> float:
    return float((total * (np.logaddexp(0, z) - target * z)).sum())
