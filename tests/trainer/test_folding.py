"""Frozen BatchNorm that convolutions take over: nothing changes but the time."""

import copy
from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from indexer.pixels import PixelSpec
from trainer.encoders import Backbone, Encoder, make_backbone
from trainer.export import ServingGraph, _write_graph
from trainer.folding import fold_norms, unfolded

SIZE = 32


def backbone(name: str) -> Backbone:
    """With norms that do something, frozen."""
    torch.manual_seed(0)
    made = make_backbone(name, "none", size=SIZE)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                assert tensor is not None
                nn.init.normal_(tensor, 0, 0.1)
    made.freeze_norms()
    return made


def folded(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if "forward" in vars(module) and name.count(".")]


def norms(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]


def learned(network: Backbone, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    network.zero_grad()
    features = network(images)
    features.pow(2).sum().backward()
    return features.detach(), [p.grad for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    "name", ["test_efficientnet", "tf_efficientnet_lite0", "torchvision/resnet18", "test_byobnet"]
)
def test_features_and_gradients_are_the_same(name: str) -> None:
    """To rounding; timm's networks have convolutions that pad by themselves, and norms that activate."""
    own = backbone(name)
    plain = unfolded(own)
    assert set(norms(own)) <= set(folded(own))
    assert not set(norms(plain)) & set(folded(plain))
    assert list(own.state_dict()) == list(plain.state_dict())
    images = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    features, gradients = learned(own.double(), images.double())
    expected, their_gradients = learned(plain.double(), images.double())
    torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-9)
    assert len(gradients) == len(their_gradients) > 0
    for gradient, their in zip(gradients, their_gradients, strict=True):
        torch.testing.assert_close(gradient, their, rtol=1e-6, atol=1e-9)


def test_a_copy_has_weights_of_its_own() -> None:
    """As a teacher or an average of weights is one: the one's weights don't work in the other."""
    own = backbone("test_efficientnet").eval()
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        before, other = own(images), copy.deepcopy(own)
        for weight in other.parameters():
            weight.mul_(1.5)
        assert torch.equal(own(images), before)
        assert not torch.allclose(other(images), before)


class _Branching(nn.Module):
    """Like a pre-activated residual network's stem: what the convolution returns also goes around its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.convolution(images)
        return torch.add(made, self.norm(made))


class _Standardised(nn.Conv2d):
    """A convolution that gives its weights unit variance, whatever factor they have."""

    def forward(self, images: Tensor) -> Tensor:
        weight = self.weight / self.weight.std((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(images, weight, self.bias)


@pytest.mark.parametrize(
    "network",
    [_Branching(), nn.Sequential(_Standardised(3, 4, 3), nn.BatchNorm2d(4))],
    ids=["branching", "standardised"],
)
def test_what_would_not_be_the_same_is_left(network: nn.Module) -> None:
    """Also where the norm is as new, and folding would show nothing yet."""
    network.eval()
    images = torch.rand(2, 3, SIZE, SIZE)
    expected = network(images)
    fold_norms(network, SIZE)
    assert not any("forward" in vars(module) for module in network.modules())
    assert torch.equal(network(images), expected)


def test_what_is_exported_multiplies_no_weights(tmp_path: Path) -> None:
    """The exporter folds norms into constants; weights that are multiplied in each pass it would leave so."""
    own = backbone("test_efficientnet").eval()
    graph = ServingGraph(Encoder(own, nn.Linear(own.channels, 8)))
    _write_graph(graph, PixelSpec(size=SIZE), tmp_path / "model.onnx")
    found = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert found["Conv"] == sum(isinstance(module, nn.Conv2d) for module in own.modules())
    assert found["BatchNormalization"] == found["Sqrt"] == 0
    assert norms(graph)[0] in folded(graph)


def test_what_is_exported_does_not_say_where_it_was_made(tmp_path: Path) -> None:
    """The exporter notes in which file of this machine each node came from, and ids of models would depend on it."""
    own = backbone("test_efficientnet").eval()
    graph = ServingGraph(Encoder(own, nn.Linear(own.channels, 8)))
    _write_graph(graph, PixelSpec(size=SIZE), tmp_path / "model.onnx")
    written = (tmp_path / "model.onnx").read_bytes()
    assert b".py" not in written
    assert b"stack_trace" not in written
