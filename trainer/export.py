"""Export: an encoder as an ONNX graph that takes uint8 pixels, proven equal on real images, as a model directory.

ParityError   ONNX Runtime and torch disagree; nothing was exported
"""

import dataclasses
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from indexer import encoder as onnx_encoder
from indexer import pixels
from indexer.manifest import MANIFEST, ModelManifest, model_id, publish, read_model, record_files, verify
from indexer.pixels import Pixels, PixelSpec
from trainer.checkpoint import save_weights
from trainer.encoders import Encoder
from trainer.environment import software
from trainer.folding import unfolded

# float32 convolutions summed in another order differ by about 1e-6 on unit-length embeddings; a wrong normalisation
# or a resize that slipped into the graph differs by far more than these.
MAX_ABS_DIFF = 1e-3
MIN_OVERLAP = 0.98
OVERLAP_AT = 10
PARITY_IMAGES = 64

OPSET = 20

# The weights that another run can start from: of the backbone, named as its library names them, and of the head.
BACKBONE, HEAD = "backbone.safetensors", "head.safetensors"

Judge = Callable[[onnx_encoder.Encoder], Mapping[str, float]]


class ParityError(RuntimeError):
    """The exported graph does not reproduce the encoder; the message gives both measures."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a model comes from, for its manifest and card."""

    backbone: str
    weights: str
    objective: str
    recipe: Mapping[str, Any]
    images: int
    licence: str
    labelled: int = 0


class ServingGraph(nn.Module):
    """What is exported: pixels in, embeddings out, all float work inside."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 to embeddings (B, D) float32, unit length."""
        images = pixels.permute(0, 3, 1, 2).float() / 255
        return self.encoder.embed(images)


def export(
    encoder: Encoder, spec: PixelSpec, sample: Pixels, models: Path, origin: Origin, judge: Judge
) -> ModelManifest:
    """Write an encoder as a model of a store, after ONNX Runtime has reproduced it on real images.

    Args:
        encoder: moved to the CPU and to eval mode.
        spec: the preprocessing that its images went through.
        sample: (P, S, S, 3) uint8, P real images at this spec, at least one.
        models: the directory of models.
        origin: what the manifest and the card say of it.
        judge: measures the exported model, once, unless the store has it already; its metrics go into the manifest.

    Returns:
        The manifest of the model, whose directory is named by its id. The same encoder exported twice is one model.

    Raises:
        ParityError: the graph and the encoder disagree by more than `MAX_ABS_DIFF` or below `MIN_OVERLAP`.
        ManifestError: the store has this model already, damaged.
        OSError: the disk is full; no model appears.
    """
    graph = ServingGraph(encoder.cpu().eval().to(memory_format=torch.contiguous_format)).eval()
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models, prefix=".export-") as scratch:
        parts = Path(scratch, "parts")
        _write_parts(graph, spec, parts)
        manifest = ModelManifest(
            id=model_id(record_files(parts), spec),
            dim=len(np.load(parts / "probe.npy", allow_pickle=False)),
            pixels=spec,
            metrics={},
            parity={},
            software=software(),
            **vars(origin),
        )
        if (models / manifest.id / MANIFEST).exists():
            known = read_model(models / manifest.id)
            verify(models / manifest.id, known)
            return known
        # Published twice: first without what only the opened model can tell, to open it as every reader will.
        candidate = publish(parts, Path(scratch, "candidate"), manifest)
        runtime = _opened(candidate)
        parity = check_parity(graph, runtime, sample)
        complete = dataclasses.replace(manifest, parity=parity, metrics=judge(runtime))
        (candidate / "card.md").write_text(model_card(complete), encoding="utf-8")
        return read_model(publish(candidate, models / manifest.id, complete))


def check_parity(graph: nn.Module, runtime: onnx_encoder.Encoder, sample: Pixels) -> dict[str, float]:
    """How closely ONNX Runtime reproduces the torch graph on real images.

    Returns:
        `images`, `max_abs_diff` of the embeddings' values, `min_cosine`, and `neighbour_overlap`: the mean share of
        the `OVERLAP_AT` nearest among the images that both find.

    Raises:
        ParityError: a measure is out of its limit.
    """
    embeddings = runtime.embed(sample)
    with torch.no_grad():
        reference = graph(torch.from_numpy(sample)).numpy()
    parity = {
        "images": float(len(sample)),
        "max_abs_diff": float(np.abs(embeddings - reference).max()),
        "min_cosine": float((embeddings * reference).sum(axis=1).min()),
        "neighbour_overlap": _neighbour_overlap(embeddings, reference),
    }
    if parity["max_abs_diff"] > MAX_ABS_DIFF or parity["neighbour_overlap"] < MIN_OVERLAP:
        raise ParityError(
            f"ONNX Runtime does not reproduce torch on {len(sample)} images: max abs diff "
            f"{parity['max_abs_diff']:.2e} (limit {MAX_ABS_DIFF:.0e}), neighbour overlap "
            f"{parity['neighbour_overlap']:.3f} (limit {MIN_OVERLAP}); nothing was exported"
        )
    return parity


def model_card(manifest: ModelManifest) -> str:
    """The model's card in Markdown: what it is, what it learned from, what it scored, how it is fed."""
    parity = manifest.parity
    scores = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(manifest.metrics.items()))
    return f"""---
library_name: kinsight
pipeline_tag: image-feature-extraction
license: {manifest.licence}
base_model: {manifest.backbone}
---
# Kinsight model {manifest.id}

Maps an image to a unit-length embedding of {manifest.dim} numbers; the inner product of two is their similarity.

- Backbone {manifest.backbone}, started from weights `{manifest.weights}` (licence: {manifest.licence}).
- {_learned(manifest)}
- Input: uint8 RGB, {manifest.pixels.size}×{manifest.pixels.size}, by `{manifest.pixels.fit}`; normalisation and unit
  length are inside the graph.
- ONNX Runtime against torch on {parity["images"]:.0f} of these images: max abs diff {parity["max_abs_diff"]:.1e},
  overlap of the {OVERLAP_AT} nearest {parity["neighbour_overlap"]:.3f}.

| metric, on images it did not learn from | value |
|---|---|
{scores or "| none measured: no labels were given | |"}

Recipe:

```json
{json.dumps(manifest.recipe, indent=2)}
```
"""


def _learned(manifest: ModelManifest) -> str:
    earlier = manifest.recipe.get("encoder", {}).get("from_model")
    origin = f"Learned on from model {earlier}" if earlier else "Learned"
    kind = f"{manifest.labelled:,} of them labelled" if manifest.labelled else "unlabelled"
    return f"{origin} with `{manifest.objective}` from {manifest.images:,} images, {kind}."


def probe_picture(size: int) -> bytes:
    """A PNG that no one owns, with edges, gradients and texture, half as large again as the model's square.

    Its size makes the preprocessing resize it, so the probe also notices another Pillow with another resampling.
    """
    side = size + size // 2
    y, x = np.mgrid[0:side, 0:side].astype(np.float64) / side
    rings = np.sin(40 * np.hypot(x - 0.3, y - 0.4))
    stripes = np.sign(np.sin(25 * (x + 2 * y)))
    picture = np.stack([0.5 + 0.4 * rings, 0.2 + 0.6 * x, 0.5 + 0.3 * stripes * y], axis=2)
    file = io.BytesIO()
    Image.fromarray((picture * 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _write_parts(graph: ServingGraph, spec: PixelSpec, parts: Path) -> None:
    """All files of a model but its manifest and its card, which tell of them."""
    parts.mkdir()
    _write_graph(graph, spec, parts / "model.onnx")
    _write_probe(graph, spec, parts)
    encoder = graph.encoder
    save_weights(encoder.backbone.named_weights(), parts / BACKBONE)
    save_weights({name: value.contiguous() for name, value in encoder.head.state_dict().items()}, parts / HEAD)


def _write_graph(graph: nn.Module, spec: PixelSpec, path: Path) -> None:
    example = torch.zeros(2, spec.size, spec.size, 3, dtype=torch.uint8)
    # The exporter's own progress and its dependencies' deprecations say nothing to a user; errors still raise.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # Traced without gradients, which nobody asks of the graph: the same bytes in four fifths of the time.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            unfolded(graph),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=["embedding"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None  # noqa: S101  # of the dynamo exporter
    # Where in which file a node came from: paths of this machine, and a model's id must not depend on them.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.save(path, external_data=False)


def _write_probe(graph: nn.Module, spec: PixelSpec, parts: Path) -> None:
    picture = probe_picture(spec.size)
    with torch.no_grad():
        embedding = graph(torch.from_numpy(pixels.decode(picture, spec)[None].copy()))[0].numpy()
    (parts / "probe.png").write_bytes(picture)
    np.save(parts / "probe.npy", embedding)


def _opened(candidate: Path) -> onnx_encoder.Encoder:
    try:
        return onnx_encoder.Encoder.open(candidate, device="cpu")
    except onnx_encoder.ProbeMismatch as error:
        raise ParityError(f"ONNX Runtime does not reproduce torch, nothing was exported: {error}") from error


def _neighbour_overlap(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    depth = min(OVERLAP_AT, len(a) - 1)
    if depth < 1:
        return 1.0
    nearest = []
    for embeddings in (a, b):
        similarity = embeddings @ embeddings.T
        np.fill_diagonal(similarity, -np.inf)
        nearest.append(np.argsort(-similarity, axis=1, kind="stable")[:, :depth])
    return float(np.mean([len(np.intersect1d(p, q)) / depth for p, q in zip(*nearest, strict=True)]))
