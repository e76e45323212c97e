"""The demo's pictures: scikit-learn's handwritten digits, each put into a small colour picture of its own.

Place, scale, tilt, ink, background and noise differ from picture to picture, so that two pictures of one digit share
few pixels: what a metric has to learn is what is left, the shape.
"""

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 64  # of a picture, pixels
SEED = 0
UNSEEN = 5  # this digit and those above it are only judged on

_LUMA = np.array([0.299, 0.587, 0.114])
_MIN_CONTRAST = 0.35  # of luma between ink and background: below it people, too, can't read the digit

Colours = npt.NDArray[np.float64]


def write_digits(folder: Path) -> None:
    """Write the 1,797 pictures as PNG files and two tables; the same bytes every time.

    Args:
        folder: gets `images/`; `labels.csv` with path, class_id (the digit) and split (train for 0-4, test for 5-9);
            and `unseen.csv`, the rows of test alone, to be indexed.
    """
    from sklearn.datasets import load_digits

    scans, digits = load_digits(return_X_y=True)
    rng = np.random.default_rng(SEED)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (scan, digit) in enumerate(zip(scans.reshape(-1, 8, 8) / 16, digits, strict=True)):
        path = f"images/{number:04}.png"
        Image.fromarray(compose(scan, rng)).save(folder / path)
        rows.append((path, str(digit), "test" if digit >= UNSEEN else "train"))
    _write_table(folder / "labels.csv", rows)
    _write_table(folder / "unseen.csv", [row for row in rows if row[2] == "test"])


def _write_table(file: Path, rows: list[tuple[str, str, str]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("path", "class_id", "split"), *rows])


def compose(scan: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A picture of a scanned digit with random place, scale, tilt, ink, background and noise.

    Args:
        scan: (8, 8) float64, ink in [0, 1].
        rng: its only source of randomness.

    Returns:
        (SIDE, SIDE, 3) uint8.
    """
    coverage = _place(scan, rng)[..., None]
    paper, ink = _colours(rng)
    background = _background(paper, rng)
    picture = background * (1 - coverage) + ink * coverage
    noisy = picture + rng.normal(0, rng.uniform(0, 0.06), picture.shape)
    return (np.clip(noisy, 0, 1) * 255 + 0.5).astype(np.uint8)


def _place(scan: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """(SIDE, SIDE) coverage of the ink: the scan enlarged, tilted and put somewhere."""
    side = round(SIDE * rng.uniform(0.4, 0.7))
    stamp = Image.fromarray((scan * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    stamp = stamp.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
    sheet = Image.new("L", (SIDE, SIDE))
    left, top = (int(rng.integers(0, SIDE - length, endpoint=True)) for length in stamp.size)
    sheet.paste(stamp, (left, top))
    return np.asarray(sheet) / 255


def _colours(rng: np.random.Generator) -> tuple[Colours, Colours]:
    """Two RGB colours in [0, 1] that differ enough in luma; either may be the darker one."""
    while True:
        paper, ink = rng.uniform(0, 1, (2, 3))
        if abs(np.dot(paper - ink, _LUMA)) > _MIN_CONTRAST:
            return paper, ink


def _background(paper: Colours, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """(SIDE, SIDE, 3): a gradient in a random direction, from one neighbour of a colour to another."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1) - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    # Less than the contrast of the ink, end to end: the digit stays the strongest thing in the picture.
    swing = rng.uniform(-1, 1, 3) * _MIN_CONTRAST
    background: npt.NDArray[np.float64] = paper + along[..., None] * swing
    return background
