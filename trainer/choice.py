"""Which epoch's encoder a run ends with, decided without labels."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from indexer.manifest import sync
from trainer.checkpoint import save_weights
from trainer.encoders import Encoder

_FILE = "chosen.safetensors"
_WRITING = "chosen.writing"
_NEIGHBOURS = 10


@torch.no_grad()
def neighbour_contrast(embeddings: Tensor) -> float:
    """How far nearest neighbours stand out from the rest; higher where a metric tells things apart.

    The mean over images of (mean similarity of its 10 nearest - mean of all others) / standard deviation of all
    others. Rotating or sharpening all similarities alike does not change it much, as it is in units of their spread.

    Args:
        embeddings: (N, D) float32, unit length; a sample of some hundred is enough.

    Returns:
        In standard deviations; 0 where all embeddings are equal, or where there are only two.
    """
    count = len(embeddings)
    if count < 3:
        return 0.0
    similarity = embeddings @ embeddings.T
    others = similarity[~torch.eye(count, dtype=torch.bool, device=similarity.device)].view(count, count - 1)
    nearest = others.topk(min(_NEIGHBOURS, count - 1), dim=1).values.mean(1)
    spread = others.std(1)
    contrast = (nearest - others.mean(1)) / spread.clamp_min(torch.finfo(spread.dtype).tiny)
    return torch.where(spread > 1e-6, contrast, 0).mean().item()


class Choice:
    """The encoder of the epoch with the highest contrast so far, kept in its run's folder.

    Attributes:
        epoch: its epoch, from 1; 0 before any was offered.
        contrast: its contrast.
        warnings: that an earlier process's choice was damaged, and what follows from it.
    """

    def __init__(self, run: Path):
        """Goes on with what an earlier process of the run chose, or without it where that is damaged."""
        self._path = run / _FILE
        self.epoch, self.contrast = 0, -torch.inf
        self.warnings: tuple[str, ...] = ()
        if not self._path.exists():
            return
        try:
            chosen, _ = _read(self._path)
        except Exception as error:  # a damaged file can fail anywhere in two parsers; all of it means one thing
            warning = (
                f"{self._path} is damaged, and the epoch that the run had chosen so far is lost ({error}): the run "
                f"chooses among the epochs that follow, and ends with its last one where none does"
            )
            self.warnings = (warning,)
            return
        self.epoch, self.contrast = chosen["epoch"], chosen["contrast"]

    def offer(self, epoch: int, encoder: Encoder, contrast: float) -> None:
        """Choose this epoch's encoder if its contrast is higher; raises OSError where it can't be written."""
        if contrast <= self.contrast:
            return
        self.epoch, self.contrast = epoch, contrast
        writing = self._path.with_name(_WRITING)
        weights = {name: value.contiguous() for name, value in encoder.state_dict().items()}
        chosen = {"epoch": epoch, "contrast": contrast, "sha256": _digest(weights)}
        save_weights(weights, writing, {"choice": json.dumps(chosen)})
        sync(writing)
        writing.replace(self._path)

    def take(self, encoder: Encoder) -> None:
        """Give an encoder the chosen weights, in place; there must be a choice."""
        _, weights = _read(self._path)
        encoder.load_state_dict(weights)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a file says of its choice, and the weights."""
    with safe_open(path, "pt") as file:
        chosen: dict[str, Any] = json.loads(file.metadata()["choice"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    if chosen["sha256"] != _digest(weights):
        raise ValueError("its weights are not those that were written")
    return chosen, weights


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name}\n".encode())
        digest.update(weights[name].cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
