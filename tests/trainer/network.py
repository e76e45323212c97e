"""A network for timm's registry that is as small as one with all that ours handle: two convolutions with their norms.

torch.onnx exports it in half the time that it takes for timm's smallest residual network, and its steps are
quicker. Child processes don't know it, unless they import this.
"""

import functools

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

NAME = "two_convolutions"
CHANNELS = 96

# What each of torch's operators is in ONNX: always the same, and torch.onnx gathers it anew for each graph that it
# exports, which takes a third of an export's time.
ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]

default_cfgs = generate_default_cfgs({NAME: {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}})


class TwoConvolutions(nn.Module):
    """As timm's networks without their classifiers: a quarter of an image's side, 96 channels."""

    num_features = CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.stem = _layer(3, 16)
        self.stage = _layer(16, CHANNELS)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, 96, S / 4, S / 4)."""
        maps: Tensor = self.stage(self.stem(images))
        return maps


def _layer(of: int, to: int) -> nn.Sequential:
    convolution = nn.Conv2d(of, to, kernel_size=3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(to), nn.ReLU())


@register_model
def two_convolutions(**_: object) -> TwoConvolutions:
    """What `timm.create_model` makes."""
    return TwoConvolutions()
