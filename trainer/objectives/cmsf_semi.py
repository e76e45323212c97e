"""CMSF-semi: an image moves toward its nearest neighbours among those that are known, or surely, of its class."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.distributed import gather
from trainer.encoders import Encoder
from trainer.known import Known
from trainer.objective import Batch, EmbedAll, Objective, View
from trainer.parts.ema import MovingAverage

_UNSURE = -1  # the class of an image in the bank that has no label and no sure pseudo-label
_CLASSIFIER_LR, _CLASSIFIER_BATCH = 0.01, 256  # the authors' code's


def mean_shift(prediction: Tensor, target: Tensor, bank: Tensor, allowed: Tensor, k: int) -> Tensor:
    """Pull predictions toward the k nearest allowed neighbours of their targets.

    Neighbours are found by the teacher's targets; the distances that count are the student's predictions'. Where
    fewer than k are allowed, these are all: the authors' code would take images of other classes to fill up.

    Args:
        prediction: (N, D), unit length; the gradient flows to it alone.
        target: (N, D), unit length.
        bank: (K, D), unit length; holds the targets themselves, so that each finds itself first.
        allowed: (N, K) bool, at least one a row.
        k: at least 1; at most K are used.

    Returns:
        Scalar in [0, 4]: the mean squared distance.

    Source:
        Koohpayegani et al., Mean Shift, ICCV 2021; Navaneet et al., Constrained Mean Shift, ECCV 2022
        (UCDvision/CMSF).
    """
    nearness = (target @ bank.T).masked_fill(~allowed, -torch.inf)
    best, neighbours = nearness.topk(min(k, len(bank)), dim=1)
    counted = best.isfinite()
    distances = 2 - 2 * (prediction @ bank.T).gather(1, neighbours)
    return ((distances * counted).sum(1) / counted.sum(1)).mean()


def constraint(of: Tensor, to: Tensor) -> Tensor:
    """Which entries of the bank may be neighbours: those of the same class; of an image without one, all.

    Args:
        of: (N,) int64, the images' classes, -1 where unsure.
        to: (K,) int64, the bank's.

    Returns:
        (N, K) bool. An unsure image is not held to the unsure entries.
    """
    return (of[:, None] == to) | (of[:, None] == _UNSURE)


def pseudo_labels(logits: Tensor, label: Tensor, confidence: float) -> Tensor:
    """Labels where they are known, else the likeliest class where it is sure enough, else -1.

    Args:
        logits: (N, C) of the classifier.
        label: (N,) int64, -1 where unknown.
        confidence: least probability of a pseudo-label.
    """
    probability, likeliest = logits.softmax(1).max(1)
    guessed = likeliest.masked_fill(probability < confidence, _UNSURE)
    return torch.where(label >= 0, label, guessed)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """The authors' heads: BatchNorm between the layers, none at the end."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class CMSFSemi(Objective):
    """Constrained Mean Shift, semi-supervised (Navaneet et al., ECCV 2022, "CMSF-Pseudo"; UCDvision/CMSF).

    The teacher, a moving average of the encoder, sees a weak view and the student, with a predictor, a strong one.
    Labelled images, and unlabelled ones of which a classifier on the teacher's embeddings is sure, have their
    neighbours among the bank's of their class; for all others this is plain mean shift.

    Deviations:
        The encoder's own linear head is the projector, so that what learns is what is exported; the predictor's
        output is added to its input and starts at nothing, so that a trained model is not unlearned by chance.
        The teacher is in eval mode, and moves after the optimiser's step.
        The bank is at most half of the training set, beyond which an image's nearest neighbours are its own earlier
        views; entries that were never filled are not searched, and the batch is always in it.
        The classifier learns once an epoch, on the labelled images as they are, for a number of steps: ten passes
        over a few labels, as over the paper's 128,000, would leave it unsure of all.
        Views are neither blurred nor spared the colour changes now and then. The loop's optimiser is used.
    """

    views = (
        View(scale=(0.2, 1.0)),
        View(scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.2),
    )
    needs_labels = True
    needs_classes = True
    bank: Tensor
    bank_label: Tensor
    filled: Tensor
    cursor: Tensor
    classifier: nn.Sequential

    def __init__(
        self,
        encoder: Encoder,
        *,
        k: int = 10,
        bank_size: int = 128_000,
        momentum: float = 0.99,
        confidence: float = 0.85,
        classifier_steps: int = 500,
    ):
        """Keyword defaults are the authors' code's, but for `classifier_steps`.

        Args:
            encoder: the student; its head is a linear layer.
            k: neighbours that an image moves toward, itself included.
            bank_size: embeddings of the teacher that are searched; at most half the training set.
            momentum: of the teacher, [0, 1].
            confidence: least probability of a pseudo-label, above 0; above 1 there are none.
            classifier_steps: of the classifier in each epoch.

        Raises:
            ValueError: a keyword is out of its range, or the encoder's head is not linear.
        """
        super().__init__(encoder)
        if not isinstance(encoder.head, nn.Linear):
            raise ValueError(f"the encoder's head is a {type(encoder.head).__name__}; CMSF needs nn.Linear")
        if min(k, bank_size, classifier_steps) < 1:
            raise ValueError(
                f"k is {k}, bank_size {bank_size} and classifier_steps {classifier_steps}; all must be 1 or more"
            )
        if not 0 <= momentum <= 1 or confidence <= 0:
            raise ValueError(f"momentum is {momentum}, to be in [0, 1], and confidence {confidence}, to be above 0")
        dim = encoder.head.out_features
        self.predictor = _mlp(dim, 4 * dim, dim)
        for parameter in self.predictor[3].parameters():
            nn.init.zeros_(parameter)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self._following = MovingAverage((self.teacher, encoder))
        self.k, self.bank_size, self.momentum = k, bank_size, momentum
        self.confidence, self.classifier_steps, self.dim = confidence, classifier_steps, dim
        self.train()

    def train(self, mode: bool = True) -> "CMSFSemi":
        """As `nn.Module.train`, except that the teacher and the classifier stay in eval mode."""
        super().train(mode)
        self.teacher.eval()
        if hasattr(self, "classifier"):
            self.classifier.eval()
        return self

    def know(self, known: Known) -> None:
        """Take the classes, and make room for the bank and the classifier, whose sizes depend on them.

        Raises:
            ValueError: there are fewer than two classes, or what is known are pairs.
        """
        if known.apart is not None:
            raise ValueError("the objective cmsf_semi needs classes, not pairs; learn from pairs by stml_semi")
        if len(known.classes) < 2:
            raise ValueError("the objective cmsf_semi needs labels of two classes or more; give some, or use stml")
        self.known = known
        size = max(1, min(self.bank_size, len(known.label) // 2))
        self.register_buffer("bank", torch.zeros(size, self.dim))
        self.register_buffer("bank_label", torch.full((size,), _UNSURE))
        self.register_buffer("filled", torch.tensor(0))
        self.register_buffer("cursor", torch.tensor(0))
        self.classifier = _mlp(self.dim, 2 * self.dim, 1 + known.classes[-1]).requires_grad_(False)
        self.train()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The one term; the batch's targets join the bank."""
        weak, strong = batch.views
        with torch.no_grad():
            taught = self.teacher(weak)
        learned = self.encoder(strong)
        with torch.autocast(learned.device.type, enabled=False):
            target = F.normalize(gather(taught.float()), dim=1)
            label = pseudo_labels(self.classifier(target), gather(batch.label), self.confidence)
            rows = gather(learned.float())
            prediction = F.normalize(rows + self.predictor(rows), dim=1)
            searched, classes, there = self._searched(target, label)
            loss = mean_shift(prediction, target, searched, constraint(label, classes) & there, self.k)
            self._enqueue(target, label)
            return {"mean_shift": loss}

    def _searched(self, target: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The batch's own targets, first, and the bank, with their classes and whether there is such an entry yet."""
        # All of the bank, however much is filled: to learn how much, a step would have to wait for a GPU.
        places = torch.arange(-len(target), len(self.bank), device=target.device)
        return torch.cat([target, self.bank]), torch.cat([label, self.bank_label]), places < self.filled

    @torch.no_grad()
    def _enqueue(self, target: Tensor, label: Tensor) -> None:
        """Put the newest in the place of the oldest."""
        size = len(self.bank)
        target, label = target[-size:], label[-size:]
        places = (self.cursor + torch.arange(len(target), device=target.device)) % size
        self.bank[places], self.bank_label[places] = target, label
        self.cursor.add_(len(target)).remainder_(size)
        self.filled.add_(len(target)).clamp_(max=size)

    def after_step(self, progress: float) -> None:  # noqa: ARG002
        """The teacher follows the student."""
        self._following.update(self.momentum)

    def before_epoch(self, embed_all: EmbedAll, batch_size: int, steps: int) -> None:  # noqa: ARG002
        """Teach the classifier the labelled images as the teacher now embeds them; batches are drawn at random."""
        rows = F.normalize(embed_all(self.teacher).float(), dim=1)
        labelled = (self.known.label >= 0).nonzero().flatten()
        self._teach_classifier(rows[labelled.to(rows.device)].clone(), self.known.label[labelled].to(rows.device))

    @torch.enable_grad()
    def _teach_classifier(self, rows: Tensor, label: Tensor) -> None:
        """Go on with the classifier's weights; those that learn here are no parameters of the run's optimiser."""
        self.classifier.requires_grad_(True).train()
        optimizer = torch.optim.SGD(self.classifier.parameters(), lr=_CLASSIFIER_LR, momentum=0.9, weight_decay=1e-4)
        for _ in range(self.classifier_steps):
            drawn = torch.randperm(len(rows))[:_CLASSIFIER_BATCH].to(rows.device, non_blocking=True)
            loss = F.cross_entropy(self.classifier(rows[drawn]), label[drawn])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self.classifier.requires_grad_(False).eval()
