"""Supervised metric learning on labelled images alone: what a few labels are worth by themselves."""

import random
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.distributed import gather
from trainer.encoders import Encoder
from trainer.known import Known
from trainer.objective import Batch, EmbedAll, Objective
from trainer.parts.heads import orthogonal_head, set_to_principal_axes
from trainer.parts.labelled import balanced_batches
from trainer.parts.multi_similarity import multi_similarity


class Supervised(Objective):
    """The multi-similarity loss (Wang et al., CVPR 2019) on batches with as many labelled images of each class.

    An epoch has as many steps as would fill the whole training set, unlabelled images included, so that it compares
    with one of an objective that learns from all of them.
    """

    needs_labels = True
    head_is_set: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        images: int = 3,
        head_init: Literal["orthogonal", "pca"] = "orthogonal",
        whitening: float = 0.0,
    ):
        """Wire the loss.

        Args:
            encoder: what learns; its head is a linear layer, set here or before the first epoch unless trained.
            images: of each class in a batch; a class that has fewer repeats them, in other views.
            head_init: as STML's: `pca` sets the head to the principal axes of all images' features.
            whitening: of `pca`, as STML's.

        Raises:
            ValueError: a keyword is out of its range, or the encoder's head is not linear.
        """
        super().__init__(encoder)
        if images < 1:
            raise ValueError(f"images is {images}; it must be 1 or more")
        if head_init not in ("orthogonal", "pca") or not 0 <= whitening <= 1:
            raise ValueError(
                f"head_init {head_init!r} and whitening {whitening} must be 'orthogonal' or 'pca', and 0 to 1"
            )
        if not isinstance(encoder.head, nn.Linear):
            raise ValueError(f"the encoder's head is a {type(encoder.head).__name__}; it must be nn.Linear")
        if not encoder.head_is_trained:
            encoder.head = orthogonal_head(encoder.head.in_features, encoder.head.out_features)
        self.register_buffer("head_is_set", torch.tensor(encoder.head_is_trained or head_init == "orthogonal"))
        self.images, self.whitening = images, whitening

    def know(self, known: Known) -> None:
        """Take the labels.

        Raises:
            ValueError: there are none.
        """
        self.known = known
        self.classes = len(known.classes)
        if self.classes < 2:
            raise ValueError("the objective supervised learns from labels alone; give some, or use another recipe")

    def step_sizes(self, batch_size: int) -> set[int]:
        """As many images of each class as there are."""
        return {self.images * self._classes_of_step(batch_size)}

    def _classes_of_step(self, batch_size: int) -> int:
        return min(self.classes, max(2, batch_size // self.images))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The one term."""
        views = len(batch.views)
        f = gather(self.encoder(torch.cat(batch.views)).float(), views)
        label = gather(batch.label).repeat(views)
        with torch.autocast(f.device.type, enabled=False):
            rows = F.normalize(f, dim=1)
            return {"multi_similarity": multi_similarity(rows @ rows.T, *self.known.relations(label, label))}

    def before_epoch(self, embed_all: EmbedAll, batch_size: int, steps: int) -> Tensor:
        """Set the head before the first epoch, and draw batches of about B labelled images, as many of each class.

        Returns:
            (steps, classes * images) int64.
        """
        if not self.head_is_set:
            assert isinstance(self.encoder.head, nn.Linear)  # noqa: S101  # checked in __init__
            set_to_principal_axes(self.encoder.head, embed_all(self.encoder.backbone), self.whitening)
            self.head_is_set.fill_(True)
        draw = random.Random(int(torch.randint(2**62, ())))  # noqa: S311  # of the loop's seeded generator
        return balanced_batches(self.known, steps, self._classes_of_step(batch_size), self.images, draw)
