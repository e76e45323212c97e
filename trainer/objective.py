"""What a training method is: an `Objective`, fed with batches by the loop, which knows no method by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from trainer.encoders import Encoder
from trainer.known import Known


class EmbedAll(Protocol):
    """Embeds the training set."""

    def __call__(self, embed: Callable[[Tensor], Tensor], size: int = 0, /) -> Tensor:
        """The whole training set, in its order, without augmentation, in eval mode, without gradient.

        Args:
            embed: module or function from images (B, 3, S, S) to (B, C).
            size: S, pixels; 0 for that which the encoder embeds.

        Returns:
            (N, C) float32, on the loop's device.
        """
        ...


@dataclass(frozen=True)
class Batch:
    """One step's images; where several processes train together, this one's share of them.

    Attributes:
        views: V tensors (B, 3, H, W) float32 in [0, 1]; sizes may differ between views (multi-crop).
        index: (B,) int64, row of each image in the training set; may repeat.
        label: (B,) int64 class, -1 where unknown.
        large: the first view once more, larger, while the objective has a `large_size`; otherwise None.
    """

    views: list[Tensor]
    index: Tensor
    label: Tensor
    large: Tensor | None = None

    def part(self, images: slice) -> "Batch":
        """Some of the images, in all views but `large`."""
        return Batch([view[images] for view in self.views], self.index[images], self.label[images])


@dataclass(frozen=True, kw_only=True)
class View:
    """How one random view of an image is drawn; every image draws its own values.

    Attributes:
        scale: smallest and largest share of the image's area that the crop keeps, in (0, 1].
        ratio: narrowest and widest crop, width over height.
        flip: probability of a mirror image.
        rotation_deg: the crop is turned by up to this many degrees either way.
        brightness, contrast, saturation: factors are drawn from 1 ± this, 0 to 1.
        hue: shift, up to this share of the colour circle either way, 0 to 0.5.
        grey: probability of losing all colour.
    """

    scale: tuple[float, float] = (0.16, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    rotation_deg: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"view.scale is {self.scale}; it must be two rising shares above 0, at most 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"view.ratio is {self.ratio}; it must be two rising numbers above 0")
        limits = {
            "flip": 1,
            "rotation_deg": 180,
            "brightness": 1,
            "contrast": 1,
            "saturation": 1,
            "hue": 0.5,
            "grey": 1,
        }
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"view.{name} is {getattr(self, name)}; it must be 0 to {limit}")


class Objective(nn.Module):
    """A training method: losses on batches, and what it does between them.

    All state that training changes is a parameter or a buffer, so that a checkpoint holds it and resuming is exact.
    What is only derived from the images may be neither, and is made again by `resume_epoch`.
    Everything trainable that is not in `encoder.backbone` is a head.

    Attributes:
        views: how each view of an image is drawn.
        centred: whether only differences between embeddings are learned, so that where their origin lies is left
            open: the mean of the training set's embeddings is then taken for it, which cosines are measured from.
        needs_labels: whether it can't learn without labels.
        needs_classes: whether it can't learn from labels that are pairs, which tell no classes.
        first_epochs: that come before the recipe's own, whose warm-up and schedule begin after them, with a new
            optimiser.
        first_rate: the learning rate in them, times the recipe's.
        most_averaging: of `run.averaging`, where it learns from a few labels: those teach in few steps, and behind
            the average of more they are seen half learned.
        large_size: side of `Batch.large` in the epoch that has begun, pixels; 0 for none.
    """

    views: ClassVar[tuple[View, ...]] = (View(), View())
    centred: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    needs_classes: bool = False
    most_averaging: ClassVar[float] = 1.0
    first_epochs: int = 0
    first_rate: float = 1.0
    large_size = 0

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def check_batch(self, batch_size: int) -> None:
        """Called before anything is decoded; raises ValueError where it can't learn from batches of this size."""

    def step_sizes(self, batch_size: int) -> set[int]:
        """How many images the steps of its epochs have, where the training set has that many.

        Args:
            batch_size: about how many a step should have. Asked for after `know`, or where nothing is known.
        """
        return {batch_size}

    def know(self, known: Known) -> None:
        """Called once before training with what people have told of the training set; most methods need nothing."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss by name, scalars float32; the loop minimises their sum.

        Where several processes train together, each has its share of the batch. What compares images with each
        other, or keeps them in a queue, passes its rows through `trainer.distributed.gather` first and so has those
        of the whole batch. The mean of the processes' losses should be that of one process with the whole batch.
        """
        raise NotImplementedError

    def turns(self, batch: Batch) -> Sequence[Callable[[], dict[str, Tensor]]]:
        """What makes the same terms, some in each turn: its gradients are taken before the next one is called.

        Passes that have nothing to do with each other need not be in memory together; a method whose terms come of
        such may have more turns than one.
        """
        return [partial(self.losses, batch)]

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step; `progress` is the share of the run that is done, (0, 1]."""

    def before_epoch(self, embed_all: EmbedAll, batch_size: int, steps: int) -> Tensor | None:  # noqa: ARG002
        """Called before each epoch.

        Args:
            embed_all: embeds the training set with any function of images.
            batch_size: about how many images a step should have.
            steps: that the epoch should have.

        Returns:
            The epoch's sampling order, (steps, B) int64 rows of the training set; None for a random permutation.
        """
        return None

    def pseudo_labels(self, embed: Callable[[nn.Module], Tensor], index: Tensor) -> Tensor | None:  # noqa: ARG002
        """How alike the method itself holds some images of the training set to be, for who judges that.

        Args:
            embed: the images by a module, without augmentation, unit length, (M, C) float32.
            index: (M,) int64, their rows in the training set.

        Returns:
            (M, M) float32, higher is more alike; None where the method makes no such labels, or not yet.
        """
        return None

    def param_groups(self, lr: float, head_lr: float | None = None) -> list[dict[str, Any]]:
        """The optimiser's groups: the backbone at `lr`, the heads at `head_lr`, or at `lr` too where that is None."""
        backbone = [p for p in self.encoder.backbone.parameters() if p.requires_grad]
        known = {id(p) for p in self.encoder.backbone.parameters()}
        heads = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        groups = ({"params": backbone, "lr": lr}, {"params": heads, "lr": lr if head_lr is None else head_lr})
        return [group for group in groups if group["params"]]

    def resume_epoch(self, embed_all: EmbedAll) -> None:
        """Called in place of `before_epoch` where a run goes on within an epoch; it must draw nothing at random.

        Args:
            embed_all: embeds the training set with any function of images.
        """
