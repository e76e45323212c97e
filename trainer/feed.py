"""What the loop feeds an objective with: batches of random views, and the whole training set's embeddings."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.distributed import equal_share, gather, own_share, world_size
from trainer.images import ImageCache, Progress
from trainer.memory import images_at_once
from trainer.objective import Batch, View
from trainer.profiling import part
from trainer.views import draw_view


class Feed:
    """The images of a training on its device, this process's share of each batch.

    Args:
        images: the training set.
        views: how each view of a batch is drawn.
        size: side of the images that are embedded whole, pixels.
        view_size: side of the views, pixels.
        device: where batches are wanted.
        seed: of the views, the same in all processes: their state is `generator`'s.
        label: (N,) int64 class of each image, -1 where unknown.
    """

    def __init__(
        self,
        images: ImageCache,
        views: list[View],
        size: int,
        view_size: int,
        device: torch.device,
        seed: int,
        label: Tensor,
    ):
        self._images, self._views, self._device = images.to(device), views, device
        self._size, self._view_size = size, view_size
        self._label = label
        self.generator = torch.Generator(device).manual_seed(seed)

    def batches(
        self, order: Tensor, waiting: Callable[[], AbstractContextManager[None]], large_size: int = 0
    ) -> Iterator[Batch]:
        """The steps' batches, the pixels of the next one fetched while the current one is used.

        Args:
            order: (steps, B) int64 rows of the training set.
            waiting: the time within is spent waiting for pixels.
            large_size: side of `Batch.large`, pixels; 0 for none.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as loader:
            coming = loader.submit(self._fetch, own_share(order[0]))
            for step, batch in enumerate(order):
                with waiting(), part("loader wait"):
                    pixels, aspect = coming.result()
                if step + 1 < len(order):
                    coming = loader.submit(self._fetch, own_share(order[step + 1]))
                with part("views"):
                    drawn = [self._drawn(pixels, aspect, view, large_size or self._view_size) for view in self._views]
                    large = drawn[0] if large_size else None
                    views = [_resized(view, self._view_size) for view in drawn]
                index = own_share(batch)
                label = self._label[index].to(self._device, non_blocking=True)
                yield Batch(views, index.to(self._device, non_blocking=True), label, large)

    def _drawn(self, pixels: Tensor, aspect: Tensor, view: View, size: int) -> Tensor:
        # Of pixels more than twice as fine, bilinear sampling would skip some; drawn larger, they are averaged after.
        finer = size * max(1, (pixels.shape[1] - 1) // size)
        return _resized(draw_view(pixels, aspect, view, finer, self.generator), size)

    @torch.no_grad()
    def embed_all(self, embed: Callable[[Tensor], Tensor], progress: Progress, size: int = 0) -> Tensor:
        """`trainer.objective.EmbedAll`: the whole training set, squashed, not augmented; each process embeds a part.

        Args:
            embed: images (B, 3, S, S) to (B, C).
            progress: called with ("embed", done, total).
            size: S, pixels; 0 for that which the encoder embeds.

        Returns:
            (N, C) float32.
        """
        count, done, side = len(self._images), 0, size or self._size
        rows = equal_share(count)
        found = torch.empty(0)
        for batch in torch.split(rows, images_at_once(side, self._device)):
            embedded = embed(self._squashed(batch, side)).float()
            if not done:  # one place for all: batches joined in the end would be there twice
                found = embedded.new_empty(len(rows), embedded.shape[1])
            found[done : done + len(batch)] = embedded
            done += len(batch)
            progress("embed", min(done * world_size(), count), count)
        return gather(found)[:count]

    def _squashed(self, rows: Tensor, size: int) -> Tensor:
        pixels, _ = self._fetch(rows)
        return _resized(pixels.permute(0, 3, 1, 2).float() / 255, size)

    def _fetch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.to(self._images.pixels.device, non_blocking=True)
        pixels, aspect = self._images.pixels[rows], self._images.aspect[rows]
        if self._device.type == "cuda" and not pixels.is_cuda:
            pixels = pixels.pin_memory()
        return pixels.to(self._device, non_blocking=True), aspect.to(self._device, non_blocking=True)


def _resized(images: Tensor, size: int) -> Tensor:
    """(B, 3, S, S) to (B, 3, size, size), channels_last as they came."""
    if images.shape[-1] == size:
        return images
    resized = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized.contiguous(memory_format=torch.channels_last)
