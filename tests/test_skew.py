"""The same bytes give the same embedding in the trainer's evaluation, in the index and from the server."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from kinsight_client import Client
from PIL import Image
from torch import nn

from indexer.build import build
from indexer.pixels import PixelSpec
from indexer.sources import open_collection
from indexer.store import Store
from indexer.version import open_version, version_dir
from tests.serving import serving
from tests.trainer import network
from trainer.encoders import Encoder, make_backbone
from trainer.export import Origin, export
from trainer.images import cache_images

SPEC = PixelSpec(size=64)
KINDS = ("photo.jpg", "photo.png", "turned.jpg", "grey.jpg", "cmyk.jpg", "palette.png", "alpha.png", "deep.png")


@dataclass(frozen=True)
class Road:
    """The embeddings of each file along the road: item to (D,) float32."""

    trainer: dict[str, npt.NDArray[np.float32]]
    index: dict[str, npt.NDArray[np.float32]]
    server: dict[str, npt.NDArray[np.float32]]


def silent(stage: str, done: int, total: int) -> None:
    """No progress shown."""


def write_kinds(folder: Path) -> None:
    """One picture as every kind of file."""
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    picture = coarse.resize((210, 160), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(folder / "photo.jpg", quality=92)
    picture.save(folder / "photo.png")
    picture.save(folder / "turned.jpg", quality=92, exif=turned)
    picture.convert("L").save(folder / "grey.jpg", quality=92)
    picture.convert("CMYK").save(folder / "cmyk.jpg", quality=92)
    picture.convert("P").save(folder / "palette.png")
    picture.convert("RGBA").rotate(20).save(folder / "alpha.png")
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    root = tmp_path_factory.mktemp("skew")
    folder, store = root / "photos", Store(root / "store")
    folder.mkdir()
    write_kinds(folder)
    torch.manual_seed(0)
    backbone = make_backbone(network.NAME, "none", size=SPEC.size)
    encoder = Encoder(backbone, nn.Linear(backbone.channels, 32)).eval()
    cache = cache_images(open_collection(folder).sources, SPEC, root / "cache.u8", silent, "decode")
    with torch.no_grad():
        evaluated = encoder.embed(cache.pixels.permute(0, 3, 1, 2).float() / 255).numpy()
    origin = Origin(backbone=network.NAME, weights="none", objective="stml", recipe={}, images=8, licence="none")
    model = export(encoder, SPEC, cache.pixels.numpy(), store.models, origin, lambda _: {})
    built = build("photos", folder, model=model.id, store=store, device="cpu", progress=silent)
    version = open_version(version_dir(store.index("photos"), built.version))
    with serving(store) as served, Client(served.target) as client:
        yield Road(
            trainer=dict(zip(cache.items, evaluated, strict=True)),
            index={item: version.embedding(version.row_of(item)) for item in KINDS},
            server={item: client.embed(folder / item).values for item in KINDS},
        )


@pytest.mark.parametrize("item", KINDS)
def test_one_embedding_along_the_road(road: Road, item: str) -> None:
    """Cosine at least 0.9999 between trainer, index and server, for every kind of file."""
    trainer, index, server = road.trainer[item], road.index[item], road.server[item]
    assert float(trainer @ index) >= 0.9999
    assert float(index @ server) >= 0.9999
    assert float(trainer @ server) >= 0.9999


def test_the_kinds_differ_enough_to_notice_a_slip(road: Road) -> None:
    """Grey and colour, turned and upright have different embeddings, so the test above can fail."""
    assert float(road.server["photo.png"] @ road.server["turned.jpg"]) < 0.9999
    assert float(road.server["photo.png"] @ road.server["grey.jpg"]) < 0.9999
