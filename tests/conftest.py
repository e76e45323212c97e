"""Fixtures that several rooms share: a tiny real model and a folder of real pictures."""

import io
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from indexer import manifest, pixels
from indexer.manifest import ModelManifest
from indexer.pixels import PixelSpec
from indexer.store import Store

TINY_SIZE, TINY_DIM = 32, 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def make_model() -> Callable[..., str]:
    """A function that publishes a tiny real model in a store and returns its id; another seed, another model."""
    return publish_tiny_model


@pytest.fixture
def tiny_model(store: Store) -> str:
    """The id of a tiny real model in `store`: one convolution and one product, 32 pixels, D 32."""
    return publish_tiny_model(store)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 60 distinct small pictures, JPEG and PNG, in two subfolders."""
    root = tmp_path / "photos"
    rng = np.random.default_rng(7)
    for number in range(60):
        folder = root / ("garden" if number % 2 else "street")
        folder.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((70 + number, 60), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:02d}.{'jpg' if number % 3 else 'png'}")
    return root


def publish_tiny_model(store: Store, seed: int = 0, dim: int = TINY_DIM) -> str:
    store.models.mkdir(parents=True, exist_ok=True)
    staging = store.models / f".staging-{seed}"
    staging.mkdir()
    spec = PixelSpec(size=TINY_SIZE)
    onnx.save(tiny_graph(seed, dim), staging / "model.onnx")
    _write_probe(staging, spec)
    identity = manifest.model_id(manifest.record_files(staging), spec)
    published = ModelManifest(
        id=identity,
        dim=dim,
        pixels=spec,
        backbone="tiny",
        weights="random",
        objective="none",
        recipe={},
        images=0,
        metrics={},
        parity={},
        software={"onnx": onnx.__version__},
        licence="Apache-2.0",
    )
    manifest.publish(staging, store.models / identity, published)
    return identity


def tiny_graph(seed: int, dim: int) -> onnx.ModelProto:
    """uint8 (B, 32, 32, 3) -> scale -> 8 × 8 convolution -> rectify -> product -> unit length (B, dim)."""
    rng = np.random.default_rng(seed)
    weights = {
        "scale": np.float32(1 / 255),
        "kernel": rng.standard_normal((8, 3, 8, 8)).astype(np.float32),
        "bias": np.abs(rng.standard_normal(8)).astype(np.float32),
        "head": rng.standard_normal((8 * 4 * 4, dim)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel", "bias"], ["maps"], strides=[8, 8]),
        helper.make_node("Relu", ["maps"], ["rectified"]),
        helper.make_node("Flatten", ["rectified"], ["features"]),
        helper.make_node("MatMul", ["features", "head"], ["projected"]),
        helper.make_node("LpNormalization", ["projected"], ["embedding"], axis=1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", TINY_SIZE, TINY_SIZE, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", dim])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def _write_probe(staging: Path, spec: PixelSpec) -> None:
    import onnxruntime

    noise = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(noise).save(encoded, "PNG")
    (staging / "probe.png").write_bytes(encoded.getvalue())
    session = onnxruntime.InferenceSession(staging / "model.onnx", providers=["CPUExecutionProvider"])
    (embedding,) = session.run(None, {"pixels": pixels.decode(encoded.getvalue(), spec)[None]})
    np.save(staging / "probe.npy", embedding[0])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB; skipped where this process may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this process may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def nested(depth: int) -> dict[str, Any]:
    """A payload of so many objects, each within the one before."""
    payload: dict[str, Any] = {"x": 1}
    for _ in range(depth - 1):
        payload = {"x": payload}
    return payload
