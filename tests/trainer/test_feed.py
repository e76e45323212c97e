"""What the loop feeds an objective with."""

import torch

from trainer.feed import Feed
from trainer.images import ImageCache


def test_the_whole_training_set_is_embedded_in_its_order() -> None:
    """Whatever the batches, row i is of image i, and the progress ends at all of them."""
    pixels = torch.randint(0, 256, (600, 4, 4, 3), dtype=torch.uint8)
    images = ImageCache(pixels, torch.ones(600), tuple(map(str, range(600))), ())
    feed = Feed(images, [], 4, torch.device("cpu"), 0, torch.full((600,), -1))
    told: list[tuple[str, int, int]] = []
    found = feed.embed_all(lambda batch: batch.flatten(1), lambda *step: told.append(step))
    assert torch.equal(found, pixels.permute(0, 3, 1, 2).flatten(1).float() / 255)
    assert told == [("embed", 256, 600), ("embed", 512, 600), ("embed", 600, 600)]
