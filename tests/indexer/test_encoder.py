"""Opening and running a model: its probe, its graph, its errors."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from indexer import manifest
from indexer.encoder import DeviceUnavailable, Encoder, EncoderError, ProbeMismatch
from indexer.store import Store


def _republish(model: Path, target: Path, **fields: Any) -> Path:
    """A copy of a model with a valid manifest of changed content, as a broken export would leave it."""
    staging = target.with_name("staging")
    shutil.copytree(model, staging)
    if "probe" in fields:
        np.save(staging / "probe.npy", fields.pop("probe"))
    return manifest.publish(staging, target, dataclasses.replace(manifest.read_model(model), **fields))


def test_embeddings_are_unit_length_and_do_not_depend_on_the_batch(store: Store, tiny_model: str) -> None:
    """A picture has the same unit-length embedding alone and in any batch; an empty batch gives none."""
    encoder = Encoder.open(store.model(tiny_model), threads=1)
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    together = encoder.embed(images)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(together, np.concatenate([encoder.embed(image[None]) for image in images]), atol=1e-6)
    assert (encoder.embed(images[:0]).shape, together.dtype.name) == ((0, encoder.dim), "float32")


@pytest.mark.parametrize(
    "script",
    [
        "import indexer.encoder",
        "from clients.cli.doctor import Report, _check_onnxruntime; _check_onnxruntime(Report(), ['onnxruntime'])",
    ],
    ids=["encoder", "doctor"],
)
def test_onnx_runtime_tells_nobody_what_it_is_used_for(script: str, tmp_path: Path) -> None:
    """Its wheels do unless they are told not to, and keep an id of the machine in the user's folder."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH")}  # not CI
    surroundings = {**kept, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], env=surroundings, check=True)
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]


@pytest.mark.parametrize("shape", [(1, 31, 32, 3), (32, 32, 3), (1, 3, 32, 32)])
def test_other_shapes_are_refused(store: Store, tiny_model: str, shape: tuple[int, ...]) -> None:
    """Pixels of another size or layout are a ValueError that says what is expected."""
    encoder = Encoder.open(store.model(tiny_model))
    with pytest.raises(ValueError, match=r"expected uint8 \(B, 32, 32, 3\)"):
        encoder.embed(np.zeros(shape, np.uint8))


def test_another_probe_embedding_is_refused(store: Store, tiny_model: str) -> None:
    """A model whose graph no longer gives its probe's embedding is refused with the cosine and the versions."""
    model = store.model(tiny_model)
    wrong = np.load(model / "probe.npy") + 0.1 * np.eye(32, dtype=np.float32)[0]
    with pytest.raises(ProbeMismatch, match=rf"expected at least 0\.9999.*onnxruntime {onnxruntime.__version__}"):
        Encoder.open(_republish(model, store.root / "wrong", probe=wrong))


def test_a_probe_of_another_dimension_is_refused(store: Store, tiny_model: str) -> None:
    """A manifest whose dimension is not the graph's is refused."""
    with pytest.raises(EncoderError, match="the manifest says"):
        Encoder.open(_republish(store.model(tiny_model), store.root / "wrong", dim=64))


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="has the CUDA build")
def test_cuda_is_refused_where_it_is_not(store: Store, tiny_model: str) -> None:
    """Asking for CUDA without it is an error; `auto` takes the CPU and says so."""
    with pytest.raises(DeviceUnavailable, match="CUDA is not live"):
        Encoder.open(store.model(tiny_model), device="cuda")
    assert Encoder.open(store.model(tiny_model)).provider == "CPUExecutionProvider"


@pytest.mark.filterwarnings("ignore:Specified provider")  # by the CPU's build
def test_a_gpu_is_not_asked_to_try_all_algorithms_for_each_size_of_batch(
    store: Store, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which takes so long that the first search of each size would wait for it."""
    asked = []
    opened = onnxruntime.InferenceSession

    def opening(*of: Any, providers: Any) -> Any:
        asked.append(providers)
        return opened(*of, providers=providers)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", opening)
    Encoder.open(store.model(tiny_model))
    assert asked == [[("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"}), "CPUExecutionProvider"]]


@pytest.mark.filterwarnings("ignore:Specified provider")  # by the CPU's build
def test_what_onnx_runtime_says_of_a_gpu_s_libraries_is_no_part_of_an_answer(
    store: Store, tiny_model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints them to stdout, as a build for a GPU does where CUDA is not whole; they go to stderr."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcublasLt.so.13"))
    Encoder.open(store.model(tiny_model))
    told = capsys.readouterr()
    assert told.out == ""
    assert "libcublasLt" in told.err
