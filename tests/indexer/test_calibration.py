"""Curves from similarity to probability: against oracles, and refused where nothing can be fitted."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from indexer import calibration
from indexer.calibration import CalibrationError, Classes, Curve
from indexer.monotone import isotonic, smoothed
from indexer.reliability import calibration_error, reliability
from indexer.rows import Embeddings


def test_isotonic_is_that_of_scikit_learn() -> None:
    """Pooling adjacent violators gives what the reference gives, with weights and ties."""
    rng = np.random.default_rng(0)
    for size in (1, 2, 50, 400):
        values, weights = (
            np.round(rng.random(size) + np.arange(size) / size, 1),
            rng.integers(1, 9, size).astype(np.float64),
        )
        expected = IsotonicRegression().fit_transform(np.arange(size), values, sample_weight=weights)
        assert isotonic(values, weights) == pytest.approx(expected)


def test_smoothing_is_that_of_a_plain_loop() -> None:
    """Each count is spread by a Gaussian as wide as a share of the spread of all; narrow ones stay what they are."""
    rng = np.random.default_rng(0)
    counts = np.stack([rng.poisson(3, 300), rng.poisson(np.arange(300) / 50)]).astype(np.float64)
    places = np.arange(300)
    total = counts.sum(axis=0)
    mean = (total * places).sum() / total.sum()
    width = 0.05 * ((total * (places - mean) ** 2).sum() / total.sum()) ** 0.5
    reach = int(4 * width)
    weight = {far: np.exp(-0.5 * (far / width) ** 2) for far in range(-reach, reach + 1)}
    norm = sum(weight.values())
    expected = [
        [sum(kind[at - far] * w for far, w in weight.items() if 0 <= at - far < 300) / norm for at in places]
        for kind in counts
    ]
    assert smoothed(counts, 0.05) == pytest.approx(np.array(expected))
    narrow = np.zeros((2, 300))
    narrow[:, 150:153] = 5.0
    assert (smoothed(narrow, 0.1) == narrow).all()


def test_a_smooth_curve_is_nearer_to_the_truth() -> None:
    """Of draws from a known curve, the fit is within .01 of it on average, and nearer than isotonic steps are."""
    rng = np.random.default_rng(0)
    similarities = rng.normal(0.3, 0.3, 20_000).clip(-1, 1)
    truth = 1 / (1 + np.exp(-8 * (similarities - 0.4)))
    counts = calibration.histogram(similarities, rng.random(20_000) < truth)
    curve = calibration.fit_curve(counts, "isotonic")
    seen = counts.sum(axis=0) > 0
    steps = isotonic(counts[1, seen] / counts[:, seen].sum(axis=0), counts[:, seen].sum(axis=0))
    grid = (np.arange(calibration.GRID) + 0.5) / calibration.GRID * 2 - 1
    off = np.abs(curve.probability(similarities) - truth).mean()
    assert off < 0.01
    assert off < np.abs(np.interp(similarities, grid[seen], steps) - truth).mean()


def test_the_calibration_error_of_a_known_case() -> None:
    """Ninety pairs promised 0.2 of which a third is the same, and ten promised 0.9 of which all are: 0.13."""
    bins = reliability(np.array([0.9, 0.2]), np.array([[0.0, 60.0], [10.0, 30.0]]))
    assert calibration_error(bins) == pytest.approx(0.9 * (1 / 3 - 0.2) + 0.1 * 0.1)


def test_the_least_similarity_is_the_threshold_of_a_probability() -> None:
    """At it the probability is reached, just below it is not, and beyond the curve nothing is enough."""
    curve = Curve((-0.5, 0.1, 0.7), (0.05, 0.3, 0.9))
    for probability in np.linspace(0.06, 0.9, 57):
        least = np.float32(curve.least_similarity(float(probability)))
        assert curve.probability(least) >= probability > curve.probability(least - np.float32(1e-5))
    assert curve.least_similarity(0.0) == -1.0
    assert curve.least_similarity(0.95) == np.inf


@pytest.mark.parametrize(("each", "method"), [(4, "platt"), (40, "isotonic")])
def test_clusters_are_calibrated(each: int, method: str) -> None:
    """The curve of classes that are clusters rises, and is nearly right on classes held out."""
    found = calibration.fit(calibration.of_classes(*clusters(12, each, seed=1))).calibration
    assert found.method == method
    assert (np.diff(found.probabilities) >= 0).all()
    assert found.ece_pairs < 0.06
    assert calibration.Calibration.of(found.fields()) == found


def test_a_probability_that_no_similarity_reaches_lets_nothing_through() -> None:
    """Although the curve of a fold may reach it: searches by it find nothing, right or wrong."""
    rows, classes = clusters(12, 4, seed=3)
    blurred = rows + 0.3 * np.random.default_rng(0).standard_normal(rows.shape).astype(np.float32)
    evidence = calibration.of_classes(blurred / np.linalg.norm(blurred, axis=1)[:, None], classes)
    curve = calibration.fit(evidence).calibration
    accepted = {least: max(rates) for least, *rates in curve.acceptance}
    beyond = [least for least in accepted if curve.least_similarity(least) > 1]
    assert {accepted[least] for least in beyond} == {0.0}
    assert min(accepted[least] for least in accepted if least not in beyond) > 0


def clusters(count: int, each: int, seed: int) -> tuple[Embeddings, Classes]:
    """Unit-length rows around as many random centres, and which each is of."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(count), each)
    rows = rng.standard_normal((count, 16))[classes] + 0.8 * rng.standard_normal((len(classes), 16))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), classes


def test_probabilities_are_for_as_many_things_as_are_told() -> None:
    """A curve of 8 classes, told of 80, is right for pairs of 80 others, where it promises too much untold."""
    rows, classes = clusters(80, 10, seed=1)
    upper = np.triu_indices(len(rows), 1)
    similarities, same = (rows @ rows.T)[upper], (classes[:, None] == classes)[upper]
    evidence = calibration.of_classes(*clusters(8, 30, seed=2))
    untold, told = (calibration.fit(evidence, things).calibration for things in (None, 80))

    assert (untold.things, told.things, told.classes) == (8, 80, 8)
    assert (told.ece_pairs, told.ece_hits) == (untold.ece_pairs, untold.ece_hits)
    promised, right = (one.probability(similarities).mean() for one in (untold, told))
    assert promised > 3 * same.mean()
    assert right == pytest.approx(same.mean(), rel=0.25)
    assert told.false_accept_rate(0.5) < untold.false_accept_rate(0.5)
    assert Curve((0.0, 1.0), (0.2, 1.0)).at_odds(0.25).probabilities == pytest.approx((1 / 17, 1.0))


def test_what_says_nothing_is_refused() -> None:
    """One class, one image a class, and equal embeddings are errors that say what is missing."""
    rows = np.eye(40, dtype=np.float32)
    for classes, rest in ((np.zeros(40, np.int64), "1 of the 1"), (np.arange(40), "0 of the 40")):
        with pytest.raises(CalibrationError, match=f"{rest} labelled classes .*at least 4.*label more"):
            calibration.of_classes(rows, classes)
    with pytest.raises(CalibrationError, match="same embedding"):
        calibration.of_classes(np.ones_like(rows), np.arange(40) // 4)
