"""What the loop feeds an objective with."""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.feed import Feed
from trainer.images import ImageCache
from trainer.objective import Batch, View


def test_the_whole_training_set_is_embedded_in_its_order() -> None:
    """Whatever the batches, row i is of image i, and the progress ends at all of them."""
    pixels = torch.randint(0, 256, (150, 112, 112, 3), dtype=torch.uint8)
    images = ImageCache(pixels, torch.ones(150), tuple(map(str, range(150))), ())
    feed = Feed(images, [], 112, 112, torch.device("cpu"), 0, torch.full((150,), -1))
    told: list[tuple[str, int, int]] = []
    found = feed.embed_all(lambda batch: batch[:, :, ::8, ::8].flatten(1), lambda *step: told.append(step))
    assert torch.equal(found, pixels[:, ::8, ::8].permute(0, 3, 1, 2).flatten(1).float() / 255)
    assert told == [("embed", 64, 150), ("embed", 128, 150), ("embed", 150, 150)]


def test_the_set_is_embedded_at_any_size_in_batches_of_as_many_pixels() -> None:
    """Twice the side, a quarter of the images at a time: the memory of a pass does not grow with it."""
    pixels = torch.randint(0, 256, (20, 224, 224, 3), dtype=torch.uint8)
    images = ImageCache(pixels, torch.ones(20), tuple(map(str, range(20))), ())
    feed, shapes = Feed(images, [], 112, 112, torch.device("cpu"), 0, torch.full((20,), -1)), list[torch.Size]()

    def embed(batch: Tensor) -> Tensor:
        shapes.append(batch.shape)
        return batch[:, :, ::16, ::16].flatten(1)

    found = feed.embed_all(embed, lambda *_: None, 224)
    assert torch.equal(found, pixels[:, ::16, ::16].permute(0, 3, 1, 2).flatten(1).float() / 255)
    assert {shape[2:] for shape in shapes} == {(224, 224)}
    assert [shape[0] for shape in shapes] == [16, 4]


def test_large_images_are_the_first_views_in_the_same_crops() -> None:
    """The first view is the large image made small, whatever was drawn; without one, views are what they were."""
    pixels = torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageCache(pixels, torch.linspace(0.5, 2, 6), tuple("abcdef"), ())
    order = torch.tensor([[0, 3, 5], [1, 2, 4]])

    def drawn(large_size: int) -> list[Batch]:
        feed = Feed(images, [View(), View()], 24, 24, torch.device("cpu"), 7, torch.full((6,), -1))
        return list(feed.batches(order, nullcontext, large_size))

    for batch in drawn(56):
        assert batch.large is not None
        assert (tuple(batch.large.shape), tuple(batch.views[0].shape)) == ((3, 3, 56, 56), (3, 3, 24, 24))
        small = F.interpolate(batch.large, (24, 24), mode="bilinear", antialias=True, align_corners=False)
        torch.testing.assert_close(batch.views[0], small)
        assert not torch.equal(batch.views[0], batch.views[1])
    for batch, with_large in zip(drawn(0), drawn(56), strict=True):
        assert batch.large is None
        torch.testing.assert_close(batch.views[1], with_large.views[1], atol=0.15, rtol=0)  # the same crop


def test_views_are_drawn_smaller_than_what_is_embedded() -> None:
    """Each side is its own; from pixels exactly twice as fine, bilinear sampling skips none."""
    board = ((torch.arange(48)[:, None] + torch.arange(48)) % 2 * 255).to(torch.uint8)
    images = ImageCache(board[None, ..., None].expand(1, 48, 48, 3).contiguous(), torch.ones(1), ("board",), ())
    feed = Feed(images, [View(scale=(1, 1), flip=0)], 32, 24, torch.device("cpu"), 0, torch.full((1,), -1))
    (batch,) = feed.batches(torch.tensor([[0]]), nullcontext)
    assert batch.views[0].shape == (1, 3, 24, 24)
    assert (batch.views[0] - 0.5).abs().max() < 0.01

    def side(batch: Tensor) -> Tensor:
        return torch.full((len(batch), 1), batch.shape[-1])

    assert feed.embed_all(side, lambda *_: None).tolist() == [[32]]


def test_fine_pixels_are_averaged_and_not_skipped() -> None:
    """Of a fine checkerboard bilinear sampling would give black and white; its average, large or small, is grey."""
    board = ((torch.arange(96)[:, None] + torch.arange(96)) % 2 * 255).to(torch.uint8)
    images = ImageCache(board[None, ..., None].expand(1, 96, 96, 3).contiguous(), torch.ones(1), ("board",), ())
    feed = Feed(images, [View(scale=(1, 1), flip=0)], 24, 24, torch.device("cpu"), 0, torch.full((1,), -1))
    (batch,) = feed.batches(torch.tensor([[0]]), nullcontext)
    assert (batch.views[0] - 0.5).abs().max() < 0.1
    (batch,) = feed.batches(torch.tensor([[0]]), nullcontext, 32)
    assert batch.large is not None
    assert batch.large.shape == (1, 3, 32, 32)
    assert (batch.large - 0.5).abs().max() < 0.1
    assert (batch.views[0] - 0.5).abs().max() < 0.1
