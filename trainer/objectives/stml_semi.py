"""Semi-supervised STML: all images teach as in STML, and the few that people have labelled teach what they show."""

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.distributed import gather, world_size
from trainer.encoders import Encoder
from trainer.known import Known
from trainer.objective import Batch, EmbedAll
from trainer.objectives.stml import STML
from trainer.parts.labelled import balanced_batches
from trainer.parts.multi_similarity import multi_similarity
from trainer.parts.proxy_anchor import proxy_anchor
from trainer.profiling import part

_PROXY_RATE = 100  # times the heads' learning rate: Proxy-Anchor's paper, section 4.1
_MOST_DRAWS = 10  # for each labelled image, joining or not, in an epoch that goes on from a learned model


def with_known(similarity: Tensor, same: Tensor, different: Tensor) -> Tensor:
    """Pseudo-labels with what is known in their place: 1 for pairs known to be the same, 0 for different ones.

    Args:
        similarity: (N, N) in [0, 1].
        same: (N, N) bool.
        different: (N, N) bool.
    """
    return similarity.masked_fill(same, 1).masked_fill(different, 0)


def _of_each_view(rows: Tensor, views: int, images: slice) -> Tensor:
    """(V * B, D) to the rows of some of the B images, in all views."""
    return rows.view(views, -1, rows.shape[1])[:, images].flatten(0, 1)


class STMLSemi(STML):
    """Self-taught metric learning with a few labels (STML, table 5 of the paper, has such a variant).

    The batches of STML, of nearest neighbours among all images, labelled or not; where both images of a pair are
    labelled, what is known replaces the pseudo-label. Labelled images, as many of each class, join each batch: they
    learn by the multi-similarity or the Proxy-Anchor loss on head f. Classes with one labelled image don't join,
    unless they come from pairs: all that they could learn is to lie far from each other, which costs what STML has
    learned. Without any label this is STML.

    From a model that has learned already, an epoch draws ten labelled images for each that there is, and no more,
    whether all of them join or only some: what STML teaches in them beside the labels, that model was taught before,
    and on some sets more of it costs more than few labels bring.

    Source:
        The authors have published neither code nor formulas of their variant; how the two losses are joined here is
        Kinsight's own. Three images a class is what a sampler left in their code draws.
    """

    most_averaging = 0.98  # some fifty steps

    def __init__(
        self,
        encoder: Encoder,
        *,
        classes: int = 16,
        images: int = 3,
        supervised_weight: float = 1.0,
        supervised_loss: Literal["multi_similarity", "proxy_anchor"] = "multi_similarity",
        **stml: Any,
    ):
        """All keywords but these are STML's.

        Args:
            encoder: as STML's.
            classes: whose labelled images join a batch; at most as many as there are.
            images: labelled ones of each class; a class that has fewer repeats them, in other views.
            supervised_weight: of the supervised loss beside STML's total.
            supervised_loss: `multi_similarity`, or `proxy_anchor`, which has a proxy for each class and so needs
                classes: pairs alone don't tell them.
            **stml: keywords of `STML`.

        Raises:
            ValueError: a keyword is out of its range.
        """
        super().__init__(encoder, **stml)
        if classes < 2 or images < 1:
            raise ValueError(f"classes is {classes} and images {images}; they must be 2 and 1 or more")
        if supervised_weight < 0:
            raise ValueError(f"supervised_weight is {supervised_weight}; it must be 0 or more")
        self.classes, self.images, self.supervised_weight = classes, images, supervised_weight
        if supervised_loss not in ("multi_similarity", "proxy_anchor"):
            raise ValueError(
                f"supervised_loss is {supervised_loss!r}; it must be 'multi_similarity' or 'proxy_anchor'"
            )
        self.supervised_loss = supervised_loss
        self.needs_classes = supervised_loss == "proxy_anchor"
        self.joined = 0  # labelled images at the end of each batch

    def know(self, known: Known) -> None:
        """Take what is known of the training set.

        Raises:
            ValueError: the loss needs classes, and what is known are pairs.
        """
        self.known = known
        if self.supervised_loss == "proxy_anchor" and known.classes:
            self._place_proxies(known)
        self.joining = known.paired if known.apart is None else known
        count = len(self.joining.classes)
        self.joined = self.images * min(self.classes, count) if count > 1 else 0

    def _listed_images(self, batch_size: int) -> int:
        return super()._listed_images(batch_size) + self.joined

    def _place_proxies(self, known: Known) -> None:
        if known.apart is not None:
            raise ValueError(
                "proxy_anchor needs classes, which pairs don't tell; set objective.supervised_loss=multi_similarity"
            )
        head = self.encoder.head
        assert isinstance(head, nn.Linear)  # noqa: S101  # checked by STML
        self.proxies = nn.Parameter(torch.empty(1 + known.classes[-1], head.out_features))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def param_groups(self, lr: float, head_lr: float | None = None) -> list[dict[str, Any]]:
        """As the base has them; proxies start at random and learn a hundred times as fast as the heads."""
        groups = super().param_groups(lr, head_lr)
        if not hasattr(self, "proxies"):
            return groups
        for group in groups:
            group["params"] = [p for p in group["params"] if p is not self.proxies]
        faster = _PROXY_RATE * (lr if head_lr is None else head_lr)
        return [*(group for group in groups if group["params"]), {"params": [self.proxies], "lr": faster}]

    def turns(self, batch: Batch) -> Sequence[Callable[[], dict[str, Tensor]]]:
        """STML's terms, then the supervised one: half of the memory, and the teacher sees neighbours alone.

        In one turn where images are not embedded each by itself, or several processes have shares of both kinds.
        """
        if not self.joined or self.large_size or self.encoder.backbone.mixes_images or world_size() > 1:
            return super().turns(batch)
        count = len(batch.index) - self.joined
        return [
            partial(self._losses_of_neighbours, batch.part(slice(count))),
            partial(self._loss_of_labelled, batch.part(slice(count, None))),
        ]

    def _losses_of_neighbours(self, near: Batch) -> dict[str, Tensor]:
        views = len(near.views)
        embedded = self._embedded(near, near.index)
        return self._neighbours_terms(*embedded, near.index.repeat(views), near.label.repeat(views))

    def _loss_of_labelled(self, joined: Batch) -> dict[str, Tensor]:
        with part("backbone"):
            features = self.encoder.backbone(torch.cat(joined.views))
        with torch.autocast(features.device.type, enabled=False):
            f = self.encoder.head(features.float())
        return self._labelled_term(f, joined.label.repeat(len(joined.views)))

    def _own_losses(self, batch: Batch) -> dict[str, Tensor]:
        """STML's terms on the batch of neighbours, and the supervised loss on the labelled images that join it."""
        views = len(batch.views)
        index, label = gather(batch.index), gather(batch.label)
        embedded = self._embedded(batch, index)
        count = len(index) - self.joined
        near_f, near_g, near_z = (_of_each_view(rows, views, slice(count)) for rows in embedded)
        near = index[:count].repeat(views), label[:count].repeat(views)
        terms = self._neighbours_terms(near_f, near_g, near_z, *near)
        if self.joined:
            f = _of_each_view(embedded[0], views, slice(count, None))
            terms |= self._labelled_term(f, label[count:].repeat(views))
        return terms

    def _neighbours_terms(self, f: Tensor, g: Tensor, z: Tensor, index: Tensor, label: Tensor) -> dict[str, Tensor]:
        """STML's terms, with the paper's weights, of all views of the images of neighbours, a row each."""
        with torch.autocast(f.device.type, enabled=False):
            known = self.known.relations(label, label)
            return self._terms(f, g, with_known(self._similarity(z, index), *known))

    def _labelled_term(self, f: Tensor, label: Tensor) -> dict[str, Tensor]:
        """The supervised loss, weighted, of all views of labelled images, a row each."""
        with torch.autocast(f.device.type, enabled=False):
            return {self.supervised_loss: self.supervised_weight * self._supervised(F.normalize(f, dim=1), label)}

    def _supervised(self, rows: Tensor, label: Tensor) -> Tensor:
        """The supervised loss of labelled images, (L, D) of unit length, with their labels."""
        if self.supervised_loss == "proxy_anchor":
            return proxy_anchor(rows @ F.normalize(self.proxies, dim=1).T, label)
        return multi_similarity(rows @ rows.T, *self.known.relations(label, label))

    def before_epoch(self, embed_all: EmbedAll, batch_size: int, steps: int) -> Tensor | None:
        """Draw STML's batches of neighbours, and labelled images that join each.

        Returns:
            (steps, B + L) int64, the L labelled images last; None while the backbone is distilled.
        """
        order = super().before_epoch(embed_all, batch_size, steps)
        if order is None:
            return order
        order = order[: self._most_steps()]
        if not self.joined:
            return order
        draw = random.Random(int(torch.randint(2**62, ())))  # noqa: S311  # of the loop's seeded generator
        labelled = balanced_batches(self.joining, len(order), self.joined // self.images, self.images, draw)
        return torch.cat([order, labelled], 1)

    def _most_steps(self) -> int | None:
        """Of an epoch; None for as many as there are images for."""
        labelled = int((self.known.label >= 0).sum())
        if not labelled or not self.encoder.head_is_trained:
            return None
        return math.ceil(_MOST_DRAWS * labelled / (self.joined or self.classes * self.images))
