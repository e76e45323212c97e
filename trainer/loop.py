"""THE loop. It owns device, precision, optimiser, schedule, seeds, log, checkpoints; it knows no method by name.

TrainingError   training can't start or go on; the message says at which step and why
"""

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.optim.adamp import AdamP
from torch import Tensor
from torch.nn import functional as F

from trainer import checkpoint
from trainer.checkpoint import Checkpoint, Position
from trainer.images import ImageCache, Progress
from trainer.log import Log
from trainer.objective import Batch, Objective
from trainer.recipe import Optimizer, Recipe
from trainer.views import draw_view

LOG_EVERY = 10  # steps; reading the losses waits for the device, so not at each
SAVE_EVERY_S = 60.0  # what a crash may cost
_EMBED_BATCH = 256

OnEpoch = Callable[[int], dict[str, float]]


class TrainingError(RuntimeError):
    """Training can't start or go on."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a call of `train` did; `warnings` are of damaged checkpoints that it passed over."""

    epochs: int
    steps: int
    seconds: float
    images_per_s: float
    warnings: tuple[str, ...]


def train(
    objective: Objective,
    images: ImageCache,
    recipe: Recipe,
    directory: Path,
    *,
    device: torch.device,
    progress: Progress,
    on_epoch: OnEpoch | None = None,
) -> Outcome:
    """Train an objective to the end of its recipe, from its run's newest checkpoint where there is one.

    A run that was killed and continued ends with the weights of one that was not: bit by bit on a CPU.

    Args:
        objective: moved to `device`, left in eval mode.
        images: the training set.
        recipe: `data.size`, `view`, `optimizer` and `run` are the loop's.
        directory: of the run: `checkpoints/`, `metrics.jsonl` and `tensorboard/` appear in it.
        device: where to train.
        progress: called with ("train", done, total) after each step, and ("embed", done, total).
        on_epoch: called after each epoch, counted from 1, in eval mode; what it returns is logged.

    Raises:
        TrainingError: fewer than two images, a loss that is not finite, or images that changed since the run began.
        CheckpointError: the run has checkpoints, and none can be read.
    """
    if len(images) < 2:
        raise TrainingError(f"one image can't teach a metric: the training set has {len(images)}; give at least two")
    return _Training(objective, images, recipe, directory, device, progress).run(on_epoch)


class _Training:
    """A training under way: the state that `train` moves from step to step."""

    def __init__(
        self,
        objective: Objective,
        images: ImageCache,
        recipe: Recipe,
        directory: Path,
        device: torch.device,
        progress: Progress,
    ):
        self.device, self.recipe, self.progress = device, recipe, progress
        self.images = images.to(device)
        self.checkpoints = directory / "checkpoints"
        self.objective = objective.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dtype = training_dtype(recipe.run.precision, device)
        self.views = [dataclasses.replace(view, **recipe.view) for view in objective.views]
        self.optimizer = _optimizer(objective, recipe.optimizer)
        self.base_lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        torch.manual_seed(recipe.run.seed)
        self.generator = torch.Generator(device).manual_seed(recipe.run.seed)
        self.position = Position(epoch=0, step=0, total_steps=0, images=_digest(images))
        self.order: Tensor | None = None  # of the current epoch, (steps, B)
        self.warnings = self._restore()
        self.log = Log(directory, self.position.total_steps)
        self.unread: list[dict[str, Tensor]] = []  # losses of the steps since the last look
        self.saved_at = time.monotonic()

    def run(self, on_epoch: OnEpoch | None) -> Outcome:
        started, first, drawn = time.perf_counter(), self.position.total_steps, 0
        with self.log, ThreadPoolExecutor(1, thread_name_prefix="loader") as loader:
            while self.position.epoch < self.recipe.run.epochs:
                drawn += self._epoch(loader)
                self._finish_epoch(on_epoch)
        self.objective.eval()
        seconds = time.perf_counter() - started
        return Outcome(
            epochs=self.position.epoch,
            steps=self.position.total_steps - first,
            seconds=seconds,
            images_per_s=drawn / seconds,
            warnings=tuple(self.warnings),
        )

    def _epoch(self, loader: ThreadPoolExecutor) -> int:
        """The rest of the current epoch; how many images it drew."""
        run, first = self.recipe.run, self.position.step
        if self.order is None:
            order = self.objective.before_epoch(self._embed_all, run.batch_size)
            self.order = self._permutation() if order is None else order.cpu()
        steps = len(self.order)
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * _schedule(run.schedule, self.position.epoch / run.epochs)
        self.objective.train()
        self.log.restart()
        for batch in self._batches(self.order[first:], loader):
            self._step(batch, run.epochs * steps)
            self.progress("train", self.position.total_steps, run.epochs * steps)
            if self.position.step % LOG_EVERY == 0 or self.position.step == steps:
                self._read_losses()
            if self.position.step < steps and time.monotonic() - self.saved_at > SAVE_EVERY_S:
                self._save()
        return self.order[first:].numel()

    def _step(self, batch: Batch, total_steps: int) -> None:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            losses = self.objective.losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.stack(list(losses.values())).sum()
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        done = self.position.total_steps + 1
        self.objective.after_step(done / total_steps)
        self.position = dataclasses.replace(self.position, step=self.position.step + 1, total_steps=done)
        self.unread.append({name: loss.detach() for name, loss in losses.items()})

    def _finish_epoch(self, on_epoch: OnEpoch | None) -> None:
        self.objective.eval()
        epoch = self.position.epoch + 1
        if on_epoch is not None:
            self.log.write(self.position.total_steps, {"epoch": epoch, **on_epoch(epoch)})
        self.position = dataclasses.replace(self.position, epoch=epoch, step=0)
        self.order = None
        self._save()

    def _batches(self, order: Tensor, loader: ThreadPoolExecutor) -> Iterator[Batch]:
        """The steps' batches, the pixels of the next one fetched while the current one is used."""
        coming = loader.submit(self._fetch, order[0])
        for step, rows in enumerate(order):
            with self.log.waiting():
                pixels, aspect = coming.result()
            if step + 1 < len(order):
                coming = loader.submit(self._fetch, order[step + 1])
            views = [draw_view(pixels, aspect, view, self.recipe.data.size, self.generator) for view in self.views]
            index = rows.to(self.device, non_blocking=True)
            yield Batch(views, index, torch.full_like(index, -1))

    def _fetch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.to(self.images.pixels.device)
        pixels, aspect = self.images.pixels[rows], self.images.aspect[rows]
        if self.device.type == "cuda" and not pixels.is_cuda:
            pixels = pixels.pin_memory()
        return pixels.to(self.device, non_blocking=True), aspect.to(self.device)

    @torch.no_grad()
    def _embed_all(self, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """`trainer.objective.EmbedAll`: the whole training set, squashed, not augmented."""
        self.objective.eval()
        count, size, parts = len(self.images), self.recipe.data.size, []
        for rows in torch.split(torch.arange(count), _EMBED_BATCH):
            pixels, _ = self._fetch(rows)
            images = pixels.permute(0, 3, 1, 2).float() / 255
            if images.shape[-1] != size:
                images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                parts.append(embed(images).float())
            self.progress("embed", int(rows[-1]) + 1, count)
        return torch.cat(parts)

    def _permutation(self) -> Tensor:
        batch = min(self.recipe.run.batch_size, len(self.images))
        order = torch.randperm(len(self.images))
        return order[: len(order) // batch * batch].view(-1, batch)

    def _read_losses(self) -> None:
        """Log the mean of the unread losses; the one wait for the device, and where a loss is found not finite."""
        assert self.order is not None  # noqa: S101  # set before the epoch's first step
        names = list(self.unread[0])
        losses = torch.stack([torch.stack(list(step.values())) for step in self.unread]).cpu()
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            back, term = bad[0].tolist()
            step = self.position.step - len(self.unread) + back
            total = self.position.total_steps - len(self.unread) + back + 1
            raise TrainingError(
                f"step {total} (epoch {self.position.epoch + 1}): {names[term]} is {losses[back, term].item()}, on "
                f"the images in rows {self.order[step].tolist()}; lower optimizer.lr, or use run.precision=float32"
            )
        values: dict[str, Any] = dict(zip(names, losses.mean(0).tolist(), strict=True))
        values = {"epoch": self.position.epoch + 1, "loss": sum(values.values()), **values}
        values["lr"] = self.optimizer.param_groups[0]["lr"]
        self.log.write_step(self.position.total_steps, values, len(losses), self.order.shape[1])
        self.unread.clear()

    def _save(self) -> None:
        if self.unread:
            self._read_losses()  # weights after a loss that is not finite are not worth keeping
        generators = {"cpu": torch.get_rng_state(), "views": self.generator.get_state()}
        if self.device.type == "cuda":
            generators["device"] = torch.cuda.get_rng_state(self.device)
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generators": generators,
            "order": self.order,
        }
        weights = self.objective.state_dict()
        checkpoint.save(self.checkpoints, Checkpoint(position=self.position, weights=weights, state=state))
        self.saved_at = time.monotonic()

    def _restore(self) -> list[str]:
        found, warnings = checkpoint.latest(self.checkpoints)
        if found is None:
            return warnings
        if found.position.images != self.position.images:
            raise TrainingError(
                f"the images are not those that the run began with (now {len(self.images):,}); start a new run, or "
                "restore the images"
            )
        self.objective.load_state_dict(found.weights)
        self.optimizer.load_state_dict(found.state["optimizer"])
        self.scaler.load_state_dict(found.state["scaler"])
        generators = found.state["generators"]
        torch.set_rng_state(generators["cpu"])
        if "device" in generators and self.device.type == "cuda":
            torch.cuda.set_rng_state(generators["device"], self.device)
        if len(generators["views"]) == len(self.generator.get_state()):  # another kind of device draws otherwise
            self.generator.set_state(generators["views"])
        self.position, self.order = found.position, found.state["order"]
        return warnings


def training_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What the passes of the backbone are computed in, of a recipe's `run.precision`."""
    if precision != "auto":
        chosen = getattr(torch, precision)
        return chosen if isinstance(chosen, torch.dtype) else torch.float32
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _optimizer(objective: Objective, part: Optimizer) -> torch.optim.Optimizer:
    groups = objective.param_groups(part.lr, part.head_lr)
    if part.name == "adamp":
        return AdamP(groups, lr=part.lr, weight_decay=part.weight_decay, nesterov=True)  # type: ignore[no-untyped-call]
    return torch.optim.AdamW(groups, lr=part.lr, weight_decay=part.weight_decay, fused=True)


def _schedule(name: str, done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2 if name == "cosine" else 1.0


def _digest(images: ImageCache) -> str:
    digest = hashlib.sha256()
    for item in images.items:
        digest.update(f"{item}\n".encode())
    return digest.hexdigest()[:16]
