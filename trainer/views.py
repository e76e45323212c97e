"""Random views of images, drawn in batches on the device that holds the pixels; every image draws its own values."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.distributed import own_share, world_size
from trainer.objective import View

_TRIES = 10  # as torchvision's RandomResizedCrop: then the largest crop of an allowed shape
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_CROSS = ((0.0, -1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 1.0, 0.0))  # product with (1, 1, 1), the axis of greys


def draw_view(pixels: Tensor, aspect: Tensor, view: View, size: int, generator: torch.Generator) -> Tensor:
    """One random view of each image.

    Args:
        pixels: (B, S, S, 3) uint8, whole images squashed to squares.
        aspect: (B,) float32, width over height before squashing: crops have the shape that they'd have there.
        view: the distributions to draw from.
        size: side of the result, pixels.
        generator: on the device of `pixels`; its state decides everything that is drawn.

    Returns:
        (B, 3, size, size) float32 in [0, 1], channels_last.
    """
    images = pixels.permute(0, 3, 1, 2).float() / 255  # the permutation is channels_last already
    boxes = draw_crops(aspect, view, generator)
    grid = F.affine_grid(_crop_to_image(boxes, aspect, view, generator), [len(images), 3, size, size], False)
    views = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return _jitter(views, view, generator).contiguous(memory_format=torch.channels_last)


def draw_crops(aspect: Tensor, view: View, generator: torch.Generator) -> Tensor:
    """Random crops, distributed as torchvision's RandomResizedCrop draws them on the original images.

    Args:
        aspect: (B,) width over height of each image.
        view: `scale` and `ratio` of the crops.
        generator: on the device of `aspect`.

    Returns:
        (B, 4) centre x, centre y, width, height, each as a share of the image's own width or height.
    """
    shape = (len(aspect), _TRIES)
    area = _uniform(shape, *view.scale, generator)
    ratio = _uniform(shape, math.log(view.ratio[0]), math.log(view.ratio[1]), generator).exp()
    width, height = (area * ratio / aspect[:, None]).sqrt(), (area / ratio * aspect[:, None]).sqrt()
    fits = (width <= 1) & (height <= 1)
    first = fits.int().argmax(1, keepdim=True)
    fallback = aspect.clamp(*view.ratio) / aspect  # the nearest allowed shape, as large as it can be
    found = fits.any(1)
    width = torch.where(found, width.gather(1, first)[:, 0], fallback.clamp_max(1))
    height = torch.where(found, height.gather(1, first)[:, 0], (1 / fallback).clamp_max(1))
    place = _uniform((len(aspect), 2), 0, 1, generator)
    place = torch.where(found[:, None], place, 0.5)
    x = width / 2 + place[:, 0] * (1 - width)
    y = height / 2 + place[:, 1] * (1 - height)
    return torch.stack([x, y, width, height], 1)


def _crop_to_image(boxes: Tensor, aspect: Tensor, view: View, generator: torch.Generator) -> Tensor:
    """(B, 2, 3) affine maps from a view's coordinates to its image's, both [-1, 1]: crop, mirror, turn."""
    x, y, width, height = boxes.unbind(1)
    count = (len(boxes),)
    mirror = torch.where(_uniform(count, 0, 1, generator) < view.flip, -1.0, 1.0)
    angle = torch.deg2rad(_uniform(count, -view.rotation_deg, view.rotation_deg, generator))
    cos, sin = angle.cos(), angle.sin()
    # Turned in the image's true geometry, aspect wide and 1 high, so that a square stays a square.
    across = torch.stack([cos * width * mirror, -sin * height / aspect, 2 * x - 1], 1)
    down = torch.stack([sin * width * aspect * mirror, cos * height, 2 * y - 1], 1)
    return torch.stack([across, down], 1)


def _jitter(images: Tensor, view: View, generator: torch.Generator) -> Tensor:
    """Brightness, saturation, hue and grey as one 3x3 matrix per image, then contrast about the mean brightness.

    torchvision shifts hue in HSV and shuffles the order; turning about the grey axis is linear, so it is one product.
    """
    if not any((view.brightness, view.contrast, view.saturation, view.hue, view.grey)):
        return images
    count = (len(images), 1, 1)
    luma = _constant(_LUMA, images.device)
    saturation = _uniform(count, 1 - view.saturation, 1 + view.saturation, generator)
    saturation = torch.where(_uniform(count, 0, 1, generator) < view.grey, 0, saturation)
    turn = _turn_about_grey(_uniform(count, -view.hue, view.hue, generator) * 2 * math.pi)
    matrix = saturation * turn + (1 - saturation) * luma.expand(3, 3)
    matrix = matrix * _uniform(count, 1 - view.brightness, 1 + view.brightness, generator)
    coloured = torch.einsum("bij,bjhw->bihw", matrix, images)
    mean = torch.einsum("j,bjhw->b", luma, coloured)[:, None, None, None] / images[0, 0].numel()
    contrast = _uniform(count, 1 - view.contrast, 1 + view.contrast, generator)[..., None]
    return (contrast * coloured + (1 - contrast) * mean).clamp(0, 1)


def _turn_about_grey(angle: Tensor) -> Tensor:
    """Angles (B, 1, 1) to rotations (B, 3, 3) of colours about the axis from black to white (Rodrigues)."""
    cross = _constant(_CROSS, angle.device) / math.sqrt(3)
    identity = torch.eye(3, device=angle.device)
    return identity + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)


def _constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    # Made on a GPU, it would be copied there by a copy that the program waits for, behind all that the GPU has to do.
    return torch.tensor(values).to(device, non_blocking=True)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    # Each process draws for the whole batch and keeps its share: how many there are does not change a view.
    whole = torch.rand((shape[0] * world_size(), *shape[1:]), generator=generator, device=generator.device)
    return own_share(whole) * (high - low) + low
