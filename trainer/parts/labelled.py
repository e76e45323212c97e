"""Batches of labelled images in which every class has as many."""

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.known import Known


def balanced_batches(known: Known, steps: int, classes: int, images: int, draw: random.Random) -> Tensor:
    """For each step as many images of each of some classes.

    All classes have come by before one comes again. Where only some classes are known to be different, each is
    followed by one that it is known to be different from. A class with too few images repeats them.

    Args:
        known: at least two classes.
        steps: how many batches.
        classes: of a batch; at most as many as there are.
        images: of each class.
        draw: what is drawn from.

    Returns:
        (steps, classes * images) int64 rows of the training set.
    """
    rows_of = {number: (known.label == number).nonzero().flatten().tolist() for number in known.classes}
    coming = _in_turn(known, list(rows_of), draw)
    drawn = [row for _ in range(steps * classes) for row in _some(rows_of[next(coming)], images, draw)]
    return torch.tensor(drawn).view(steps, classes * images)


def _in_turn(known: Known, numbers: list[int], draw: random.Random) -> Iterator[int]:
    """Classes without end, all of them before one of them again, but for those that follow as different ones."""
    while True:
        for number in draw.sample(numbers, len(numbers)):
            yield number
            if known.apart is not None:
                others = [other for other in numbers if known.apart[number, other]]
                if others:
                    yield draw.choice(others)


def _some(rows: list[int], count: int, draw: random.Random) -> list[int]:
    """So many of the rows, each before one again."""
    repeated = [row for _ in range(-(-count // len(rows))) for row in draw.sample(rows, len(rows))]
    return repeated[:count]
