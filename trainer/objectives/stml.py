"""STML: a teacher, the moving average of the student, labels each batch with how alike its images are in context."""

import copy
import math
import random
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.distributed import equal_share, gather
from trainer.encoders import Encoder
from trainer.memory import images_at_once
from trainer.objective import Batch, EmbedAll, Objective
from trainer.parts.distances import relative_distances, squared_distances
from trainer.parts.ema import MovingAverage
from trainer.parts.heads import orthogonal_head, principal_axes, set_to_principal_axes
from trainer.parts.neighbours import nearest
from trainer.profiling import part


@torch.no_grad()
def contextual_similarity(teacher: Tensor, index: Tensor, k: int, sigma: float) -> Tensor:
    """How alike the images of a batch are: half their kernel, half how much their neighbourhoods share.

    Args:
        teacher: (N, C) embeddings of the teacher, unit length.
        index: (N,) int64, row of each image in the training set: views and duplicates of one image are its nearest
            neighbours, whatever their distance.
        k: neighbours that make a context, itself included; at most N are used.
        sigma: width of the kernel on squared distances.

    Returns:
        (N, N) in [0, 1], symmetric.

    Source:
        Kim et al., CVPR 2022, section 3.2, as the authors' code computes it (tjddus9597/STML-CVPR22, loss.py).
        Where more than k entries are of one image, which of them are neighbours is arbitrary, but each is its own.
    """
    pairwise = torch.exp(-squared_distances(teacher) / sigma)
    ranking = pairwise.masked_fill(index[:, None] == index, 1).fill_diagonal_(2)
    k = min(k, len(teacher))
    order = ranking.topk(k, dim=1).indices
    neighbours = _membership(order)
    reciprocal = neighbours * neighbours.T
    # |R(i) ∩ R(j)| / |R(i)| for j in R(i), else 0: R is symmetric, so one product counts all intersections.
    context = reciprocal * (reciprocal @ reciprocal) / reciprocal.sum(1, keepdim=True)
    half = max(1, round(k / 2))
    expanded = _membership(order[:, :half]).to(context) @ context / half
    return (pairwise + (expanded + expanded.T) / 2) / 2


def _membership(order: Tensor) -> Tensor:
    """(N, k) columns to (N, N) float: 1 where row i lists column j."""
    return torch.zeros(len(order), len(order), device=order.device).scatter_(1, order, 1)


def relaxed_contrastive(rows: Tensor, similarity: Tensor, delta: float) -> Tensor:
    """Pull pairs together by their similarity and push them apart by its rest, up to a relative distance.

    Args:
        rows: (N, D) embeddings, any scale; only their relative distances count.
        similarity: (N, N) in [0, 1]; the diagonal is not used.
        delta: relative distance beyond which nothing is pushed.

    Returns:
        Scalar, at least 0: the mean over all ordered pairs, as in the authors' code; the paper divides the sum by N
        alone, which only changes its weight against the other terms.

    Source:
        Kim et al., CVPR 2022, section 3.3.
    """
    count = len(rows)
    distances = relative_distances(rows)
    terms = similarity * distances.square() + (1 - similarity) * (delta - distances).clamp_min(0).square()
    return (terms.sum() - terms.diagonal().sum()) / (count * (count - 1))


def self_distillation(rows: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of one head's neighbourhood distributions from another's.

    Args:
        rows: (N, D) embeddings that learn.
        target: (N, C) embeddings of the same images that teach; no gradient reaches them.
        temperature: of both softmaxes over negative relative distances.

    Returns:
        Scalar, at least 0.

    Source:
        Kim et al., CVPR 2022, section 3.3.
    """
    with torch.no_grad():
        taught = F.softmax(-relative_distances(target) / temperature, dim=1)
    learned = F.log_softmax(-relative_distances(rows) / temperature, dim=1)
    return temperature**2 * F.kl_div(learned, taught, reduction="batchmean")


class STML(Objective):
    """Self-Taught Metric Learning without Labels (Kim, Kim, Cho, Kwak, CVPR 2022, arXiv 2205.01903).

    The student is the encoder with a second, wider head g beside its own head f; the teacher has the backbone and g
    only. Batches are lists of nearest neighbours, found anew each epoch. Authors' code: tjddus9597/STML-CVPR22.

    Deviations:
        The teacher starts equal to the student (the code draws its head g independently).
        The teacher moves after the optimiser's step (in the code before it, and so one step later).
        `head_init="pca"` starts both heads at the principal axes of the pretrained features instead of at random,
        and `whitening` evens out their variances.
        The heads' biases don't learn: all terms see differences of embeddings alone, so that the gradient of a bias
        is nothing but rounding errors, which Adam would scale up to steps. What is exported is centred instead.
        Features for both heads, and all that follows, are float32 whatever the backbone's precision.
        `distillation_epochs` come before STML's own: the backbone learns to see at the run's size what the network
        that it starts from sees at `distillation_size`, in the same crops (knowledge distillation by features, with a
        teacher that sees what the student sees: Beyer et al., CVPR 2022, arXiv 2106.05237, there by class scores). At
        112 pixels a network that was pretrained at 224 tells much less apart than it could.
        Where the backbone was distilled, the pretrained network goes on teaching beside the teacher: what it sees in
        the whole, larger images is part of the embeddings that pseudo-labels and lists of neighbours are made of, by
        `pretrained_share` of their squared distances. It was seen once, so it costs nothing in the steps.
    """

    centred = True
    first_rate = 3.0  # in epochs of distillation, whose target does not move
    heads_are_set: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        background_dim: int = 1024,
        neighbours: int = 5,
        context: int = 10,
        sigma: float = 3.0,
        delta: float = 1.0,
        momentum: float = 0.999,
        temperature: float = 1.0,
        head_init: Literal["orthogonal", "pca"] = "orthogonal",
        whitening: float = 0.0,
        distillation_epochs: int = 0,
        distillation_size: int = 224,
        pretrained_share: float = 0.0,
    ):
        """Keyword defaults are the paper's for CUB and Cars.

        Args:
            encoder: the student; its head f is a linear layer, set here or before the first epoch unless trained.
            background_dim: outputs of head g.
            neighbours: n, length of the lists that make a batch, the query itself included.
            context: k, neighbours that make a context within a batch; n times the number of views in the paper.
            sigma: width of the kernel.
            delta: margin, in relative distances.
            momentum: of the teacher, [0, 1].
            temperature: of the self-distillation.
            head_init: `orthogonal` or `pca`; of a head f that is trained, it is kept.
            whitening: how far `pca` evens out the variances of the axes, [0, 1].
            distillation_epochs: before STML's own, with `head_init="pca"`; none where the backbone has learned since
                it was pretrained, was not, sees images as large already, or only those of one size.
            distillation_size: side of the images that teach in them, pixels: what the weights were pretrained at.
            pretrained_share: of the pretrained network in what makes pseudo-labels after distillation, [0, 1]; the
                rest is the teacher's.

        Raises:
            ValueError: a keyword is out of its range, or the encoder's head is not linear.
        """
        super().__init__(encoder)
        if not isinstance(encoder.head, nn.Linear):
            raise ValueError(f"the encoder's head is a {type(encoder.head).__name__}; STML needs nn.Linear")
        if neighbours < 2 or context < 2:
            raise ValueError(f"neighbours is {neighbours} and context {context}; both must be 2 or more")
        if min(sigma, delta, temperature) <= 0 or not 0 <= momentum <= 1 or background_dim < 1:
            raise ValueError(
                f"sigma {sigma}, delta {delta}, temperature {temperature} and background_dim {background_dim} must "
                f"be above 0, and momentum {momentum} in [0, 1]"
            )
        if head_init not in ("orthogonal", "pca"):
            raise ValueError(f"head_init is {head_init!r}; it must be 'orthogonal' or 'pca'")
        if not 0 <= whitening <= 1:
            raise ValueError(f"whitening is {whitening}; it must be 0 to 1")
        if distillation_epochs < 0 or distillation_size < 1 or (distillation_epochs and head_init != "pca"):
            raise ValueError(
                f"distillation_epochs is {distillation_epochs}, distillation_size {distillation_size} and head_init "
                f"{head_init!r}; they must be 0 or more, 1 or more and, to distil, 'pca'"
            )
        if not 0 <= pretrained_share <= 1:
            raise ValueError(f"pretrained_share is {pretrained_share}; it must be 0 to 1")
        channels = encoder.head.in_features
        if encoder.backbone.tells_more_at(distillation_size) and not encoder.head_is_trained:
            self.first_epochs = distillation_epochs
        if not encoder.head_is_trained:
            encoder.head = orthogonal_head(channels, encoder.head.out_features)
        self.background = orthogonal_head(channels, background_dim)
        for head in (encoder.head, self.background):
            head.bias.requires_grad_(False)
        self.teacher = nn.Sequential(copy.deepcopy(encoder.backbone), copy.deepcopy(self.background))
        self.teacher.requires_grad_(False)
        self._following = MovingAverage((self.teacher[0], encoder.backbone), (self.teacher[1], self.background))
        self.register_buffer("heads_are_set", torch.tensor(head_init == "orthogonal"))
        self.epochs_begun = 0
        self.distillation_size = distillation_size
        # What the backbone is before training, and what its features at a larger size teach.
        self.pretrained = copy.deepcopy(encoder.backbone).requires_grad_(False) if self.first_epochs else None
        self.neighbours, self.context, self.sigma, self.delta = neighbours, context, sigma, delta
        self.momentum, self.temperature, self.whitening = momentum, temperature, whitening
        self.pretrained_share = pretrained_share if self.first_epochs else 0.0
        # (N, C) float16 at unit length: what the pretrained network sees in the whole training set. Not a buffer: it
        # is as large as the set and never changes, so a run that goes on makes it again.
        self.seen_large: Tensor | None = None
        self.train()

    def train(self, mode: bool = True) -> "STML":
        """As `nn.Module.train`, except that those who teach stay in eval mode."""
        super().train(mode)
        self.teacher.eval()
        if self.pretrained is not None:
            self.pretrained.eval()
        return self

    def get_extra_state(self) -> Tensor:
        """For checkpoints: how many epochs have begun, which decides what a step does."""
        return torch.tensor(self.epochs_begun)

    def set_extra_state(self, state: Tensor) -> None:
        """As `get_extra_state` gave it."""
        self.epochs_begun = int(state)

    def check_batch(self, batch_size: int) -> None:
        """Make sure that a batch holds a list of neighbours; raises ValueError."""
        if batch_size < self.neighbours:
            raise ValueError(
                f"run.batch_size is {batch_size}; it must be at least objective.neighbours, {self.neighbours}: "
                f"a batch is made of lists of so many images; raise the one or lower the other"
            )

    def step_sizes(self, batch_size: int) -> set[int]:
        """Those of distillation, where it is done, and those of as many lists of neighbours as a batch holds."""
        return ({batch_size} if self.first_epochs else set()) | {self._listed_images(batch_size)}

    def _listed_images(self, batch_size: int) -> int:
        """How many images steps of lists of neighbours have."""
        return batch_size // self.neighbours * self.neighbours

    @property
    def large_size(self) -> int:  # type: ignore[override] # it depends on the epoch
        """Side of `Batch.large`: that of the images which teach while the backbone is distilled."""
        return self.distillation_size if 0 < self.epochs_begun <= self.first_epochs else 0

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The three terms, weighted: their sum is the paper's total; in epochs of distillation that alone."""
        if batch.large is not None:
            return {"distillation": self._distillation(batch.views[0], batch.large)}
        return self._own_losses(batch)

    def _own_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the epochs that follow distillation."""
        index = gather(batch.index)
        f, g, z = self._embedded(batch, index)
        with torch.autocast(f.device.type, enabled=False):
            return self._terms(f, g, self._similarity(z, index.repeat(len(batch.views))))

    def _distillation(self, images: Tensor, large: Tensor) -> Tensor:
        """How far the student's features lie from what the pretrained network sees in the same, larger images."""
        assert self.pretrained is not None  # noqa: S101  # there are no large images without it
        with part("backbone"):
            features = self.encoder.backbone(images)
        with torch.no_grad(), part("teacher"):
            at_once = images_at_once(large.shape[-1], large.device)
            taught = torch.cat([self.pretrained(some) for some in torch.split(large, at_once)])
        with torch.autocast(images.device.type, enabled=False):
            return 1 - F.cosine_similarity(features.float(), taught.float()).mean()

    def _embedded(self, batch: Batch, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The whole batch by heads f and g of the student and, at unit length, by the teacher: (V * B, ...) each.

        Args:
            batch: this process's share of it.
            index: (B,) of the whole of it.
        """
        images, views = torch.cat(batch.views), len(batch.views)
        with part("backbone"):
            features = self.encoder.backbone(images)
        with torch.no_grad(), part("teacher"):
            taught = self.teacher[0](images)
        with torch.autocast(images.device.type, enabled=False):
            f, g = self.encoder.head(features.float()), self.background(features.float())
            z = gather(F.normalize(self.teacher[1](taught.float()), dim=1), views)
            # After the exchange, so that all rows are along one process's axes: another's may point the other way.
            return gather(f, views), gather(g, views), self._with_seen_large(z, index.repeat(views))

    @torch.no_grad()
    def pseudo_labels(self, embed: Callable[[nn.Module], Tensor], index: Tensor) -> Tensor | None:
        """The labels w that the teacher gives now; none while the backbone is distilled."""
        if self.large_size:
            return None
        index = index.to(self.heads_are_set.device)
        return self._similarity(self._with_seen_large(embed(self.teacher).to(index.device), index), index)

    def _similarity(self, teacher: Tensor, index: Tensor) -> Tensor:
        """The batch's pseudo-labels, (N, N) in [0, 1]."""
        return contextual_similarity(teacher, index, self.context, self.sigma)

    def _terms(self, f: Tensor, g: Tensor, similarity: Tensor) -> dict[str, Tensor]:
        """The terms of the loss of both heads' embeddings under these pseudo-labels."""
        return {
            "relaxed_contrastive_f": 0.5 * relaxed_contrastive(f, similarity, self.delta),
            "relaxed_contrastive_g": 0.5 * relaxed_contrastive(g, similarity, self.delta),
            "self_distillation": self_distillation(f, g, self.temperature),
        }

    def after_step(self, progress: float) -> None:  # noqa: ARG002
        """The teacher follows the student."""
        if not self.large_size:
            self._following.update(self.momentum)

    def before_epoch(self, embed_all: EmbedAll, batch_size: int, steps: int) -> Tensor | None:
        """Find each image's neighbours by head g of the student and draw batches of such lists.

        Args:
            embed_all: embeds the training set.
            batch_size: B, at least n; a step has B // n queries, all different, and n images each, fewer where N is
                small.
            steps: that the epoch should have.

        Returns:
            (steps, queries * n) int64; None while the backbone is distilled, from images at random.
        """
        self.epochs_begun += 1
        if self.large_size:
            if not self.heads_are_set and self.pretrained is not None:
                features = embed_all(self.pretrained, self.large_size)
                # Of the features that the student's are to become: so the heads need not turn when they have.
                self._set_heads(features)
                self._keep_seen_large(features)
            return None
        self.resume_epoch(embed_all)
        features = embed_all(self.encoder.backbone)
        if not self.heads_are_set:
            self._set_heads(features)
        if self.epochs_begun == self.first_epochs + 1:
            self._following.update(0)  # equal to the student when STML begins
        return self._batches(features, batch_size, steps)

    def resume_epoch(self, embed_all: EmbedAll) -> None:
        """Let the pretrained network see the training set again, where this process has not done so."""
        if self.pretrained_share and self.seen_large is None and not self.large_size:
            assert self.pretrained is not None  # noqa: S101  # there is no share without it
            self._keep_seen_large(embed_all(self.pretrained, self.distillation_size))

    @torch.no_grad()
    def _keep_seen_large(self, features: Tensor) -> None:
        if self.pretrained_share:
            axes = principal_axes(features, self.whitening)[: self.background.out_features]
            rows = (features - features.mean(0)) @ axes.T
            self.seen_large = F.normalize(rows, dim=1).half()

    def _with_seen_large(self, z: Tensor, index: Tensor) -> Tensor:
        """Embeddings (M, C) of unit length whose squared distances are, by share, the pretrained network's too."""
        if self.seen_large is None:
            return z
        share, seen = self.pretrained_share, self.seen_large[index].float()
        return torch.cat([math.sqrt(1 - share) * z, math.sqrt(share) * seen], 1)

    def _listed(self, features: Tensor) -> Tensor:
        """What lists of neighbours are made of: head g's embeddings, and what the pretrained network saw, if it did.

        The latter has unit length, and so head g's get it too. A block at a time: whole sets are large.
        """
        if self.seen_large is None:
            return self.background(features)  # type: ignore[no-any-return]
        rows = features.new_empty(len(features), self.background.out_features + self.seen_large.shape[1])
        for index in torch.split(torch.arange(len(features), device=features.device), 8192):
            rows[index] = self._with_seen_large(F.normalize(self.background(features[index]), dim=1), index)
        return rows

    def _batches(self, features: Tensor, batch_size: int, steps: int) -> Tensor:
        """An epoch's sampling order, of the backbone's (N, C) features of the training set."""
        with torch.no_grad():
            own = equal_share(len(features)).to(features.device)
            found = nearest(self._listed(features), self.neighbours, own)
            lists = gather(found)[: len(features)].cpu()
        draw = random.Random(int(torch.randint(2**62, ())))  # noqa: S311  # of the loop's seeded generator
        queries = min(batch_size // self.neighbours, len(lists))
        drawn = torch.tensor([draw.sample(range(len(lists)), queries) for _ in range(steps)])
        return lists[drawn].flatten(1)

    def _set_heads(self, features: Tensor) -> None:
        for head in (self.background,) if self.encoder.head_is_trained else (self.encoder.head, self.background):
            assert isinstance(head, nn.Linear)  # noqa: S101  # checked in __init__
            set_to_principal_axes(head, features, self.whitening)
        self._following.update(0)
        self.heads_are_set.fill_(True)
