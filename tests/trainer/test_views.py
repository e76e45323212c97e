"""Random views: the distributions of the field's crop, and values drawn per image."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop

from trainer.objective import View
from trainer.views import draw_crops, draw_view

WHOLE = View(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(count: int, side: int = 24) -> Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=seeded(9))


def with_area_and_ratio(boxes: Tensor) -> Tensor:
    width, height = boxes[:, 2:3], boxes[:, 3:4]
    return torch.cat([boxes, width * height, (width / height).log()], 1)


@pytest.mark.parametrize("aspect", [1.0, 1.5, 0.4, 3.0])
def test_crops_are_distributed_as_torchvisions(aspect: float) -> None:
    """Area, shape and place have the moments of RandomResizedCrop on an image of that shape."""
    height, count = 1000, 3000
    width = round(height * aspect)
    image, torch_view = torch.empty(3, height, width), ([0.16, 1.0], [3 / 4, 4 / 3])
    torch.manual_seed(0)
    drawn = torch.tensor(
        [RandomResizedCrop.get_params(image, *torch_view) for _ in range(count)], dtype=torch.float32
    )
    top, left, tall, wide = drawn.unbind(1)
    expected = torch.stack([(left + wide / 2) / width, (top + tall / 2) / height, wide / width, tall / height], 1)
    found = draw_crops(torch.full((count,), width / height), View(), seeded())
    ours, theirs = with_area_and_ratio(found), with_area_and_ratio(expected)
    tolerance = 4 * theirs.std(0) * (2 / count) ** 0.5 + 2e-3  # four standard errors, and their whole pixels
    assert bool(((ours.mean(0) - theirs.mean(0)).abs() < tolerance).all())
    assert bool(((ours.std(0) - theirs.std(0)).abs() < tolerance).all())


def test_crops_stay_inside_the_image() -> None:
    """However narrow the image, no crop leaves it."""
    boxes = draw_crops(torch.linspace(0.05, 20, 2000), View(), seeded())
    assert (boxes[:, :2] - boxes[:, 2:] / 2).min() >= -1e-6
    assert (boxes[:, :2] + boxes[:, 2:] / 2).max() <= 1 + 1e-6


@pytest.mark.parametrize("size", [24, 16])
def test_a_crop_of_everything_is_a_plain_resize(size: int) -> None:
    """Scale 1 without a flip gives the image itself, resized bilinearly."""
    given = pixels(3)
    found = draw_view(given, torch.ones(3), WHOLE, size, seeded())
    image = given.permute(0, 3, 1, 2).float() / 255
    expected = F.interpolate(image, (size, size), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_each_image_is_mirrored_on_its_own() -> None:
    """About half of a batch is mirrored, and each exactly."""
    given = pixels(1).expand(64, -1, -1, -1)
    view = View(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.5)
    found = draw_view(given, torch.ones(64), view, 24, seeded())
    image = given[:1].permute(0, 3, 1, 2).float() / 255
    same = ((found - image).abs().amax((1, 2, 3)) < 1e-3).sum().item()
    mirrored = ((found - image.flip(3)).abs().amax((1, 2, 3)) < 1e-3).sum().item()
    assert same + mirrored == 64
    assert 16 < mirrored < 48


def test_equal_seeds_draw_equal_views() -> None:
    """The generator decides everything."""
    view = View(rotation_deg=20, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.2)
    first, second, other = (draw_view(pixels(4), torch.ones(4), view, 16, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_turn_keeps_shapes_in_the_true_geometry() -> None:
    """A wide bar in a squashed 2:1 image, turned by 90 degrees, is as long as it was in the original."""
    bar = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    bar[:, 24:40, 28:36] = 255  # of a 128 x 64 original: 16 wide and 16 high, so a square
    view = View(scale=(0.5, 0.5), ratio=(1.0, 1.0), flip=0.0, rotation_deg=45)
    found = draw_view(bar, torch.full((1,), 2.0), view, 64, seeded())[0, 0]
    assert pytest.approx(found.sum().item(), rel=0.05) == 256  # its area in a view of the same scale


@pytest.mark.parametrize("view", [View(grey=1.0), View(saturation=1.0), View(hue=0.5), View(contrast=1.0)])
def test_jitter_leaves_grey_images_grey(view: View) -> None:
    """Colour changes act along colour: equal channels stay equal."""
    grey = pixels(4)[..., :1].expand(-1, -1, -1, 3)
    found = draw_view(grey, torch.ones(4), view, 24, seeded())
    torch.testing.assert_close(found[:, 0], found[:, 2], atol=1e-5, rtol=0)


def test_jitter_stays_in_range_and_differs_by_image() -> None:
    """Values stay in [0, 1], and copies of one image come out differently."""
    view = View(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0, brightness=1, contrast=1, saturation=1, hue=0.5)
    found = draw_view(pixels(1).expand(8, -1, -1, -1), torch.ones(8), view, 24, seeded())
    assert found.min() >= 0
    assert found.max() <= 1
    assert len({image.mean().item() for image in found}) == 8


@pytest.mark.parametrize("bad", [{"scale": (0.0, 1.0)}, {"ratio": (2.0, 1.0)}, {"flip": 1.5}, {"hue": 0.6}])
def test_impossible_views_are_refused(bad: dict[str, float]) -> None:
    """The error names the field."""
    with pytest.raises(ValueError, match=f"view.{next(iter(bad))}"):
        View(**bad)  # type: ignore[arg-type]
