"""Supervised metric learning on labelled images alone: what a few labels are worth by themselves."""

import random

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.distributed import gather
from trainer.encoders import Encoder
from trainer.known import Known
from trainer.objective import Batch, EmbedAll, Objective
from trainer.parts.labelled import balanced_batches
from trainer.parts.multi_similarity import multi_similarity


class Supervised(Objective):
    """The multi-similarity loss (Wang et al., CVPR 2019) on batches with as many labelled images of each class.

    An epoch has as many steps as would fill the whole training set, unlabelled images included, so that it compares
    with one of an objective that learns from all of them. A random head starts as `nn.Linear` draws it.
    """

    def __init__(self, encoder: Encoder, *, images: int = 3):
        """Wire the loss.

        Args:
            encoder: what learns.
            images: of each class in a batch; a class that has fewer repeats them, in other views.

        Raises:
            ValueError: a keyword is out of its range.
        """
        super().__init__(encoder)
        if images < 1:
            raise ValueError(f"images is {images}; it must be 1 or more")
        self.images = images

    def know(self, known: Known) -> None:
        """Take the labels.

        Raises:
            ValueError: there are none.
        """
        self.known = known
        self.classes = len(known.classes)
        if self.classes < 2:
            raise ValueError("the objective supervised learns from labels alone; give some, or use another recipe")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The one term."""
        views = len(batch.views)
        f = gather(self.encoder(torch.cat(batch.views)).float(), views)
        label = gather(batch.label).repeat(views)
        with torch.autocast(f.device.type, enabled=False):
            rows = F.normalize(f, dim=1)
            return {"multi_similarity": multi_similarity(rows @ rows.T, *self.known.relations(label, label))}

    def before_epoch(self, embed_all: EmbedAll, batch_size: int) -> Tensor:  # noqa: ARG002
        """Draw batches of about B labelled images, as many of each class.

        Returns:
            (max(1, N // B), classes * images) int64.
        """
        draw = random.Random(int(torch.randint(2**62, ())))  # noqa: S311  # of the loop's seeded generator
        classes = min(self.classes, max(2, batch_size // self.images))
        steps = max(1, len(self.known.label) // batch_size)
        return balanced_batches(self.known, steps, classes, self.images, draw)
