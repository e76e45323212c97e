"""The rungs of the ladder: STML, what it is compared with, and STML with one piece replaced."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer import recipe as recipes
from trainer.objectives.stml import STML, self_distillation
from trainer.parts.distances import squared_distances
from trainer.recipe import Recipe

ALIKE_ABOVE = 0.5  # of pseudo-labels in [0, 1], where a rung needs a yes or a no


class RandomBatches(STML):
    """As many steps of as many images, drawn at random without replacement instead of as lists of neighbours."""

    def _batches(self, features: Tensor, batch_size: int, steps: int) -> Tensor:
        width = super()._batches(features, batch_size, steps).shape[1]
        return torch.stack([torch.randperm(len(features))[:width] for _ in range(steps)])


class PairwiseOnly(STML):
    """Pseudo-labels without context: w_ij = exp(-‖z_i - z_j‖² / σ), of the teacher's unit-length embeddings z."""

    def _similarity(self, teacher: Tensor, index: Tensor) -> Tensor:
        return torch.exp(-squared_distances(teacher) / self.sigma)


class HardLabels(STML):
    """Binary pseudo-labels: y_ij = 1 where w_ij > 1/2, else 0.

    The label that is cut is the whole w = (pairwise + contextual) / 2, as the paper's loss uses it. Its kernel alone
    could not be cut there: at σ 3 it is above 1/2 for all pairs whose cosine is above -0.04. The authors published no
    code of their ablation with hard labels, so the threshold is ours.
    """

    def _similarity(self, teacher: Tensor, index: Tensor) -> Tensor:
        soft = super()._similarity(teacher, index)
        return (soft > ALIKE_ABOVE).to(soft)


class WithoutSelfDistillation(STML):
    """Head f learns from the pseudo-labels alone."""

    def _terms(self, f: Tensor, g: Tensor, similarity: Tensor) -> dict[str, Tensor]:
        terms = super()._terms(f, g, similarity)
        del terms["self_distillation"]
        return terms


class PlainContrastive(HardLabels):
    """The contrastive loss of the field on the binary pseudo-labels, in place of the relaxed one, on both heads.

    L(s) = 1 / (N (N - 1)) · Σ_{i≠j} [ y_ij D_ij² + (1 - y_ij) max(δ - D_ij, 0)² ], D_ij = ‖s_i/‖s_i‖ - s_j/‖s_j‖‖:
    absolute distances between unit-length embeddings, in [0, 2], where the relaxed loss has distances relative to
    their mean. Weights, margin δ and self-distillation stay STML's.

    Source:
        Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006, equation 4
        (without its halves), on unit-length embeddings as in Musgrave et al., ECCV 2020.
    """

    centred = False  # distances between unit-length embeddings depend on the origin

    def _terms(self, f: Tensor, g: Tensor, similarity: Tensor) -> dict[str, Tensor]:
        return {
            "contrastive_f": 0.5 * contrastive(f, similarity, self.delta),
            "contrastive_g": 0.5 * contrastive(g, similarity, self.delta),
            "self_distillation": self_distillation(f, g, self.temperature),
        }


def contrastive(rows: Tensor, alike: Tensor, margin: float) -> Tensor:
    """The loss of `PlainContrastive`: of (N, D) rows of any length and (N, N) labels 0 or 1, diagonal unused."""
    squared = squared_distances(F.normalize(rows, dim=1))
    tiny = torch.finfo(rows.dtype).tiny  # the square root has an infinite slope at 0
    distances = squared.clamp_min(tiny).sqrt()
    terms = alike * squared + (1 - alike) * (margin - distances).clamp_min(0).square()
    return (terms.sum() - terms.diagonal().sum()) / (len(rows) * (len(rows) - 1))


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One row of the table.

    Attributes:
        title: what it is, for the table.
        method: what trains; None where nothing does.
        changes: values of the recipe that it changes.
        published: train by the recipe `stml-paper`, with the ladder's images, encoder, epochs and seed.
        distilled: after the recipe's epochs of distillation, which otherwise fall away.
    """

    title: str
    method: type[STML] | None = STML
    changes: tuple[str, ...] = ()
    published: bool = False
    distilled: bool = False

    def recipe(self, base: Recipe, seed: int) -> Recipe:
        """This rung's recipe, of the ladder's."""
        run = dataclasses.replace(base.run, seed=seed)
        if self.published:
            paper = recipes.load("stml-paper")
            run = dataclasses.replace(paper.run, seed=seed, epochs=base.run.epochs)
            encoder = dataclasses.replace(base.encoder, unit_length=paper.encoder.unit_length)
            base = dataclasses.replace(paper, data=base.data, encoder=encoder)
        base = dataclasses.replace(base, run=run)
        if "distillation_epochs" in base.objective.keywords and not self.distilled:
            base = recipes.override(base, "objective.distillation_epochs=0")
        return recipes.override(base, *self.changes)


RUNGS = {
    "untrained": Rung(title="untrained: random weights", method=None, changes=("encoder.weights=none",)),
    "frozen": Rung(title="frozen: pretrained weights as they are", method=None),
    "random-batches": Rung(title="random batches, not lists of neighbours", method=RandomBatches),
    "pairwise": Rung(title="pairwise similarity only, no context", method=PairwiseOnly),
    "hard-labels": Rung(title="hard pseudo-labels", method=HardLabels),
    "no-distillation": Rung(title="without self-distillation", method=WithoutSelfDistillation),
    "no-ema": Rung(title="without EMA: the teacher is the student", changes=("objective.momentum=0.0",)),
    "contrastive": Rung(title="plain contrastive, not relaxed", method=PlainContrastive),
    "paper": Rung(title="the paper's own recipe, as many epochs", published=True),
    "stml": Rung(title="full STML"),
    "distilled": Rung(title="full STML from a distilled backbone", distilled=True),
}
