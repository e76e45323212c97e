"""Fixtures that several rooms share: a tiny real model, one that was really learned, and folders of real pictures."""

import dataclasses
import io
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before any library reads it. What the tests compute is small: a second thread costs more waiting than it saves, the
# most where two workers share two cores (t-SNE of 60 points: 2 to 4 s of CPU time instead of 0.3).
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from indexer import manifest, pixels
from indexer.locks import turn
from indexer.manifest import ModelManifest
from indexer.pixels import PixelSpec
from indexer.store import Store

if TYPE_CHECKING:
    from trainer.train_report import TrainReport

TINY_SIZE, TINY_DIM = 32, 32
COLOURS = [(200, 60, 60), (60, 200, 60), (60, 60, 200), (200, 200, 60)]


@dataclass
class School:
    """A store with a model that can be learned on from, and the forty pictures of four colours that it saw.

    Attributes:
        store: with the model and its run.
        pictures: the folder of `00.png` to `39.png`, the colours in turn.
        model: its id.
        report: what its training told, without labels.
    """

    store: Store
    pictures: Path
    model: str
    report: "TrainReport" = field(repr=False)


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


@pytest.fixture(scope="session")
def learned_school(tmp_path_factory: pytest.TempPathFactory) -> School:
    """Learned once for all tests that start from a model in other processes: they change copies."""
    return _learned_once(tmp_path_factory, "school", "encoder.backbone=test_resnet")


@pytest.fixture(scope="session")
def tiny_school(tmp_path_factory: pytest.TempPathFactory) -> School:
    """The same for tests that learn on in their own process, of a network that no other knows."""
    return _learned_once(tmp_path_factory, "tiny-school")


def _learned_once(folders: pytest.TempPathFactory, name: str, *changes: str) -> School:
    """By the first of the workers that needs it, for all that run the tests together."""
    own = folders.getbasetemp()
    root = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    root.mkdir(exist_ok=True)
    with turn(root / ".turn"):
        told = root / "school.pickle"
        if not told.exists():
            told.write_bytes(pickle.dumps(_learned(root, *changes)))
        school = pickle.loads(told.read_bytes())
    assert isinstance(school, School)
    return school


def _learned(root: Path, *changes: str) -> School:
    from tests.trainer import small
    from trainer.recipe import override
    from trainer.run import train

    rng = np.random.default_rng(3)
    (root / "pictures").mkdir()
    for number in range(40):
        blocks = np.array(COLOURS[number % 4]) + rng.integers(-50, 50, (6, 6, 3))
        picture = Image.fromarray(blocks.clip(0, 255).astype(np.uint8)).resize((50, 40))
        picture.save(root / "pictures" / f"{number:02d}.png")
    store, recipe = Store(root / "store"), override(small.one_epoch(), *changes)
    done = train(root / "pictures", models=store.models, runs=store.runs, recipe=recipe, progress=small.silent)
    return School(store, root / "pictures", done.model.id, done)


def copied(school: School, root: Path) -> School:
    """A copy to change, under `root`."""
    shutil.copytree(school.store.root, root / "store")
    shutil.copytree(school.pictures, root / "pictures")
    return dataclasses.replace(school, store=Store(root / "store"), pictures=root / "pictures")


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


@contextmanager
def full(disk: Path, free_bytes: int) -> Iterator[None]:
    """So many bytes, and no more, can be written to a file system."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with filler.open("r+b") as file:
        file.truncate(max(0, filler.stat().st_size - free_bytes))
    yield
    filler.unlink()


def nested(depth: int) -> dict[str, Any]:
    """A payload of so many objects, each within the one before."""
    payload: dict[str, Any] = {"x": 1}
    for _ in range(depth - 1):
        payload = {"x": payload}
    return payload
