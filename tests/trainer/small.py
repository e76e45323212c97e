"""What the tests of the loop train: forty noise images, a small network, and a method with a queue and dropout."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tests.trainer import network
from trainer import distributed
from trainer.encoders import Encoder, make_backbone
from trainer.images import ImageCache
from trainer.loop import Outcome
from trainer.loop import train as run_loop
from trainer.objective import Batch, Objective
from trainer.objectives import make_objective
from trainer.objectives.stml import STML
from trainer.recipe import Recipe, load, override

CPU = torch.device("cpu")
# A whole run, from image files to a model, in a second or two.
TINY = (
    "data.size=32",
    "data.cache_size=40",
    f"encoder.backbone={network.NAME}",
    "encoder.weights=none",
    "encoder.dim=16",
    "run.batch_size=20",
    "run.least_steps=1",
)
FOUR_STEPS = ("run.epochs=1", "run.batch_size=10")


def silent(stage: str, done: int, total: int) -> None:
    """No progress shown."""


def recipe(*changes: str) -> Recipe:
    """Two epochs of 40 images in batches of 20: two steps each."""
    fixed = ("run.epochs=2", "run.batch_size=20", "data.size=32", "data.cache_size=32", "objective.background_dim=32")
    plain = ("optimizer.warmup_steps=0", "run.averaging=0", "run.least_steps=1")  # whatever the recipe is tuned to
    return override(load("stml"), *fixed, *plain, *changes)


def one_epoch() -> Recipe:
    """Of a whole run."""
    return override(load("stml"), *TINY, "run.epochs=1")


def images(count: int = 40) -> ImageCache:
    pixels = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return ImageCache(pixels, torch.linspace(0.5, 2, count), tuple(f"{row}.jpg" for row in range(count)), ())


def encoder(*, freeze_bn: bool = False) -> Encoder:
    torch.manual_seed(0)
    backbone = make_backbone(network.NAME, "none", size=32)
    if freeze_bn:
        backbone.freeze_norms()
    return Encoder(backbone, nn.Linear(backbone.channels, 8))


def build(chosen: Recipe, **options: Any) -> Objective:
    return make_objective(chosen.objective.name, encoder(**options), **chosen.objective.keywords)


def distilling(tmp_path: Path, *, background_dim: int = 96, **keywords: Any) -> STML:
    """A small network with weights from a file, as a pretrained one has them, seeing 32 pixels where 64 teach."""
    torch.manual_seed(0)
    tmp_path.mkdir(parents=True, exist_ok=True)
    file = tmp_path / "published.safetensors"
    save_file(make_backbone(network.NAME, "none", size=32).named_weights(), file)
    backbone = make_backbone(network.NAME, str(file), size=32, freeze_bn=True)
    options = {"head_init": "pca", "distillation_epochs": 2, "distillation_size": 64, **keywords}
    return STML(Encoder(backbone, nn.Linear(backbone.channels, 8)), background_dim=background_dim, **options)


def train(
    directory: Path, chosen: Recipe | None = None, objective: Objective | None = None, **options: Any
) -> tuple[Objective, Outcome]:
    chosen = chosen or recipe()
    objective = objective or build(chosen)
    options = {"progress": lambda *_: None, "device": CPU, **options}
    return objective, run_loop(objective, images(), chosen, directory, **options)


class Stopped(Exception):
    """Raised by `stop_at`."""


def stop_at(step: int) -> Any:
    """Progress that ends a training right after a step, before it is saved."""

    def progress(stage: str, done: int, _: int) -> None:
        if stage == "train" and done == step:
            raise Stopped

    return progress


class Queue(Objective):
    """Contrasts embeddings with those of earlier batches, through dropout; notes which images it was given."""

    keys: Tensor
    cursor: Tensor

    def __init__(self, inner: Encoder):
        super().__init__(inner)
        self.register_buffer("keys", torch.zeros(50, 8))
        self.register_buffer("cursor", torch.tensor(0))
        self.shares: list[list[int]] = []

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        self.shares.append(batch.index.tolist())
        first, second = (F.normalize(F.dropout(self.encoder(view).float(), 0.2), dim=1) for view in batch.views)
        loss = (first - second).square().mean() + (first @ self.keys.T.clone()).exp().mean()
        rows = distributed.gather(second.detach())
        self.keys[(self.cursor + torch.arange(len(rows), device=rows.device)) % len(self.keys)] = rows
        self.cursor += len(rows)
        return {"contrast": loss}
