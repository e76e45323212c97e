from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trainer.encoders import Encoder, WeightsError, make_backbone

CNN = "mobilenetv3_small_050"


@pytest.mark.parametrize(
    "name",
    [
        CNN,
        "resnet10t",
        "vit_tiny_patch16_224",
        pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
        "torchvision/resnet18",
        "torchvision/mobilenet_v2",
    ],
)
def test_every_kind_of_backbone_gives_features(name: str) -> None:
    """Convolutional networks and transformers of both libraries map images to (B, C) finite features."""
    size = 224 if "swin" in name else 64
    backbone = make_backbone(name, "none", size=size).eval()
    with torch.no_grad():
        features = backbone(torch.rand(2, 3, size, size))
    assert features.shape == (2, backbone.channels)
    assert torch.isfinite(features).all()


def test_views_are_smaller_than_what_is_embedded_where_a_network_takes_both() -> None:
    """Never larger, and as large where position embeddings fix the size."""
    for name, wanted, view in ((CNN, 48, 48), (CNN, None, 64), (CNN, 96, 64), ("vit_tiny_patch16_224", 48, 64)):
        backbone = make_backbone(name, "none", size=64, view_size=wanted)
        assert (backbone.size, backbone.view_size) == (64, view)


def test_a_feature_map_is_pooled_as_average_plus_maximum() -> None:
    """The features equal mean + max of the network's last map on normalised images."""
    torch.manual_seed(0)
    backbone = make_backbone(CNN, "none", size=64).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        maps = backbone.network((images - backbone.mean) / backbone.std)
        assert torch.allclose(backbone(images), maps.mean(dim=(2, 3)) + maps.amax(dim=(2, 3)))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def test_imagenet_weights_come_from_the_pip_package(name: str) -> None:
    """They load without a network, with their own normalisation and licence."""
    backbone = make_backbone(name, "imagenet", size=64)
    assert (backbone.channels, backbone.licence) == (1280, "Apache-2.0")
    assert backbone.mean.flatten().tolist() == backbone.std.flatten().tolist() == [0.5, 0.5, 0.5]
    random = make_backbone(name, "none", size=64)
    stem, other = (b.named_weights()["conv_stem.weight"] for b in (backbone, random))
    assert not torch.equal(stem, other)


def test_saved_weights_load_again(tmp_path: Path) -> None:
    """named_weights() written as safetensors or .pth is what `weights=FILE` takes."""
    original = make_backbone(CNN, "none", size=64).eval()
    save_file(original.named_weights(), tmp_path / "w.safetensors")
    torch.save(original.named_weights(), tmp_path / "w.pth")
    images = torch.rand(1, 3, 64, 64)
    for file in ("w.safetensors", "w.pth"):
        loaded = make_backbone(CNN, str(tmp_path / file), size=64).eval()
        assert torch.equal(loaded(images), original(images))


def test_frozen_norms_keep_their_statistics(tmp_path: Path) -> None:
    """With freeze_bn a training pass moves no BatchNorm statistic and needs no gradient of their scale."""
    save_file(make_backbone(CNN, "none", size=64).named_weights(), tmp_path / "w.safetensors")
    backbone = make_backbone(CNN, str(tmp_path / "w.safetensors"), size=64, freeze_bn=True).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items() if "running" in key}
    backbone(torch.rand(4, 3, 64, 64))
    assert before
    assert all(torch.equal(value, backbone.state_dict()[key]) for key, value in before.items())
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("truncated", "are damaged, or hold more than tensors; save model"),
        ("pickle", "are damaged, or hold more than tensors; save model"),
        ("text", "are damaged, or hold more than tensors; save model"),
        ("wrong network", "don't fit the backbone: "),
        ("absent", "can't be read: No such file or directory$"),
    ],
)
def test_bad_weights_are_refused_by_name(tmp_path: Path, damage: str, told: str) -> None:
    """A damaged, malicious, missing or unfitting weights file is one error that names it, in words of our own.

    Torch's would have a file that holds more than tensors be run.
    """
    file = tmp_path / "bad.pth"
    if damage == "truncated":
        torch.save(make_backbone(CNN, "none", size=64).named_weights(), file)
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "pickle":
        torch.save({"a": nn.Linear(1, 1)}, file)
    elif damage == "text":
        file.write_text("hello")
    elif damage == "wrong network":
        torch.save(nn.Linear(3, 3).state_dict(), file)
    with pytest.raises(WeightsError, match=rf"bad\.pth {told}"):
        make_backbone(CNN, str(file), size=64)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("tf_efficientnet_lite9", "tf_efficientnet_lite0"),
        ("ResNet50", "resnet50"),
        ("torchvision/resnet19", "resnet18"),
    ],
)
def test_an_unknown_backbone_names_the_nearest(name: str, meant: str) -> None:
    """A misspelt name, or one in other case, is an error that suggests what was meant."""
    with pytest.raises(ValueError, match=f"near: .*{meant}"):
        make_backbone(name, "none", size=64)


def test_embeddings_have_unit_length() -> None:
    """An encoder's embeddings are unit length, its forward output is not."""
    backbone = make_backbone(CNN, "none", size=64)
    encoder = Encoder(backbone, nn.Linear(backbone.channels, 8)).eval()
    with torch.no_grad():
        norms = encoder.embed(torch.rand(3, 3, 64, 64)).norm(dim=1)
    assert torch.allclose(norms, torch.ones(3))
