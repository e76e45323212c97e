"""The encoder of a published model: uint8 pixels in, unit-length embeddings out, by ONNX Runtime.

EncoderError            a model's graph can't be opened or run
├── DeviceUnavailable   the wanted device is not there
└── ProbeMismatch       this machine's embedding of the model's probe is not the one that the model came with
"""

import os
import sys
import threading
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime

from indexer import manifest, pixels
from indexer.manifest import ModelManifest
from indexer.pixels import PixelSpec

Embeddings = npt.NDArray[np.float32]
Device = Literal["auto", "cpu", "cuda"]

MIN_COSINE = 0.9999  # of the probe: kernels and threads change the last digits of float32, a wrong graph far more
INPUT, OUTPUT = "pixels", "embedding"

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_opening = threading.Lock()  # stdout is the process's: of two that redirect it at once, one would leave it so
_ERRORS_ONLY = 3  # ONNX Runtime's severity; its warnings are about graph nodes that no user can change


class EncoderError(Exception):
    """A model's graph can't be opened or run; the message says why."""


class DeviceUnavailable(EncoderError):
    """The wanted device is not there, or ONNX Runtime can't use it."""


class ProbeMismatch(EncoderError):
    """The model's probe embeds to something else here than where the model was made."""


class Encoder:
    """An opened model; safe to call from several threads at once.

    Attributes:
        manifest: of the model.
        provider: the ONNX Runtime execution provider that is live, for example `CPUExecutionProvider`.
    """

    def __init__(self, model: ModelManifest, session: Any) -> None:
        self.manifest = model
        self.provider: str = session.get_providers()[0]
        self._session = session

    @classmethod
    def open(cls, directory: Path, *, device: Device = "auto", threads: int = 0) -> "Encoder":
        """Open a model directory: check its files, open its graph, embed its probe.

        Args:
            directory: of the model.
            device: `auto` takes a GPU where one is live and else the CPU; `provider` tells which.
            threads: for one inference; 0 for one per core that this process may use.

        Raises:
            ManifestError: the directory is not a model, or a file of it is missing or changed. Checked before
                any other library reads the file.
            DeviceUnavailable: `device` is `cuda` and CUDA is not live.
            ProbeMismatch: the cosine between the probe's embedding here and in the model is below 0.9999.
            EncoderError: the graph is not one that takes pixels and gives embeddings.
        """
        model = manifest.read_model(directory)
        manifest.verify(directory, model)
        encoder = cls(model, _open_session(directory / "model.onnx", model, device, threads))
        _check_probe(encoder, directory)
        return encoder

    @property
    def model(self) -> str:
        """The id of the model."""
        return self.manifest.id

    @property
    def dim(self) -> int:
        """D of the embeddings."""
        return self.manifest.dim

    @property
    def pixels(self) -> PixelSpec:
        """The preprocessing that `embed` expects to have happened."""
        return self.manifest.pixels

    def embed(self, images: npt.NDArray[np.uint8]) -> Embeddings:
        """Embed a batch.

        Args:
            images: (B, S, S, 3) uint8, RGB, from `pixels.decode` with this model's spec; B may be 0.

        Returns:
            (B, D) float32, unit length.

        Raises:
            ValueError: another shape or type.
            EncoderError: the graph failed, or gave something that is not a unit-length embedding.
        """
        side = self.pixels.size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (side, side, 3):
            raise ValueError(f"images are {images.dtype} {images.shape}; expected uint8 (B, {side}, {side}, 3)")
        if not len(images):
            return np.empty((0, self.dim), np.float32)
        try:
            (embeddings,) = self._session.run([OUTPUT], {INPUT: images})
        except Exception as error:  # ONNX Runtime's exceptions have no common base but this
            raise EncoderError(f"model {self.model} failed on a batch of {len(images)}: {error}") from error
        return _checked(embeddings, len(images), self.manifest)


def _open_session(graph: Path, model: ModelManifest, device: Device, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    # Threads that wait for the next image in a loop take the cores from those that decode it and from the server.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _ERRORS_ONLY
    try:
        # Of CUDA libraries that it misses and of its fall-back to the CPU it prints to stdout, where answers go.
        with _opening, redirect_stdout(sys.stderr):
            session = onnxruntime.InferenceSession(graph, options, providers=_providers(device))
    except Exception as error:  # ONNX Runtime's exceptions have no common base but this
        raise EncoderError(f"{graph} can't be opened by ONNX Runtime: {error}") from error
    # A provider that is installed but finds no driver drops out of this list without an error.
    if device == "cuda" and _CUDA not in session.get_providers():
        raise DeviceUnavailable(
            f"CUDA is not live in ONNX Runtime {onnxruntime.__version__}, only {', '.join(session.get_providers())}; "
            f"install the gpu extra on a machine with an NVIDIA driver, or use --device cpu"
        )
    inputs = [(node.name, node.type) for node in session.get_inputs()]
    outputs = [(node.name, node.type) for node in session.get_outputs()]
    if inputs != [(INPUT, "tensor(uint8)")] or outputs != [(OUTPUT, "tensor(float)")]:
        raise EncoderError(
            f"the graph of model {model.id} maps {inputs} to {outputs}; expected uint8 {INPUT!r} to float {OUTPUT!r}"
        )
    return session


def _providers(device: Device) -> list[str | tuple[str, dict[str, str]]]:
    if device == "cpu" or _CUDA not in onnxruntime.get_available_providers():
        return [_CPU]
    onnxruntime.preload_dlls()  # finds the CUDA libraries that pip installed beside it
    # By default it tries all algorithms whenever a batch has a new size, and a server's have all sizes.
    return [(_CUDA, {"cudnn_conv_algo_search": "HEURISTIC"}), _CPU]


def _checked(embeddings: npt.NDArray[Any], count: int, model: ModelManifest) -> Embeddings:
    if embeddings.shape != (count, model.dim):
        raise EncoderError(
            f"model {model.id} gave {embeddings.shape} for {count} images; expected {(count, model.dim)}"
        )
    # Also false for NaN. A model trained to infinity must not fill an index with rows that nothing can find.
    wrong = ~(np.abs(np.linalg.norm(embeddings, axis=1) - 1.0) < 1e-3)
    if wrong.any():
        raise EncoderError(
            f"model {model.id} gave embeddings that are not unit length for {wrong.sum()} of {count} images"
        )
    return np.ascontiguousarray(embeddings, dtype=np.float32)


def _check_probe(encoder: Encoder, directory: Path) -> None:
    expected = np.load(directory / "probe.npy", allow_pickle=False)
    if expected.shape != (encoder.dim,):
        raise EncoderError(
            f"{directory / 'probe.npy'} has shape {expected.shape}; the manifest says ({encoder.dim},)"
        )
    picture = pixels.decode(pixels.read(directory / "probe.png"), encoder.pixels)
    (found,) = encoder.embed(picture[None])
    cosine = float(found @ expected / np.linalg.norm(expected))
    if not cosine >= MIN_COSINE:
        made_with = ", ".join(f"{name} {version}" for name, version in encoder.manifest.software.items())
        raise ProbeMismatch(
            f"model {encoder.model} embeds its probe with cosine {cosine:.6f} to the embedding it came with; "
            f"expected at least {MIN_COSINE}. Here: onnxruntime {onnxruntime.__version__}, {encoder.provider}; "
            f"made with: {made_with or 'unknown'}"
        )
