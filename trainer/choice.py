"""Which epoch's encoder a run ends with, decided without labels."""

import json
from pathlib import Path

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
        embeddings: (N, D) float32, unit length, N from 3; a sample of some hundred is enough.

    Returns:
        In standard deviations; 0 where all embeddings are equal.
    """
    count = len(embeddings)
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
    """

    def __init__(self, run: Path):
        """Goes on with what an earlier process of the run chose."""
        self._path = run / _FILE
        self.epoch, self.contrast = 0, -torch.inf
        if self._path.exists():
            with safe_open(self._path, "pt") as file:
                chosen = json.loads(file.metadata()["choice"])
            self.epoch, self.contrast = chosen["epoch"], chosen["contrast"]

    def offer(self, epoch: int, encoder: Encoder, contrast: float) -> None:
        """Choose this epoch's encoder if its contrast is higher; raises OSError where it can't be written."""
        if contrast <= self.contrast:
            return
        self.epoch, self.contrast = epoch, contrast
        writing = self._path.with_name(_WRITING)
        metadata = {"choice": json.dumps({"epoch": epoch, "contrast": contrast})}
        weights = {name: value.contiguous() for name, value in encoder.state_dict().items()}
        save_weights(weights, writing, metadata)
        sync(writing)
        writing.replace(self._path)

    def take(self, encoder: Encoder) -> None:
        """Give an encoder the chosen weights, in place."""
        with safe_open(self._path, "pt") as file:
            encoder.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # not a dict
