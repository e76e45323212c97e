"""THE loop. It owns device, precision, optimiser, schedule, seeds, log, checkpoints; it knows no method by name.

TrainingError   training can't start or go on; the message says at which step and why
"""

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from trainer import checkpoint, distributed
from trainer.checkpoint import Checkpoint, Position
from trainer.encoders import Encoder
from trainer.feed import Feed
from trainer.images import ImageCache, Progress
from trainer.known import Known
from trainer.log import Log
from trainer.numerics import convolving_in, deterministic, training_dtype
from trainer.objective import Batch, Objective
from trainer.optimizer import Average, Kept, make_optimizer, rate_share, running_statistics
from trainer.profiling import Profile, Profiler, part
from trainer.recipe import Recipe

LOG_EVERY = 10  # steps; reading the losses waits for the device, so not at each
SAVE_EVERY_S = 60.0  # what a crash may cost, and the step that it falls into

_AVERAGED = "averaged."  # before the names of its weights in a checkpoint

OnEpoch = Callable[[int, Encoder], dict[str, float]]


class TrainingError(RuntimeError):
    """Training can't start or go on."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a call of `train` did.

    Attributes:
        encoder: what was learned, in eval mode: the average of its weights where the recipe asks for that.
        epochs: done in the whole run.
        steps: done by this call.
        seconds: wall clock.
        images_per_s: drawn by all processes; None where this call had none left to draw.
        profile: where the time of some steps went, if that was asked for.
        warnings: of damaged checkpoints that were passed over.
    """

    encoder: Encoder
    epochs: int
    steps: int
    seconds: float
    images_per_s: float | None
    profile: Profile | None
    warnings: tuple[str, ...]


def train(
    objective: Objective,
    images: ImageCache,
    recipe: Recipe,
    directory: Path,
    *,
    device: torch.device,
    progress: Progress,
    known: Known | None = None,
    kept: float = 0.0,
    on_epoch: OnEpoch | None = None,
    profile: bool = False,
) -> Outcome:
    """Train an objective to the end of its recipe, from its run's newest checkpoint where there is one.

    A run that was killed and continued ends with the weights of one that was not: bit by bit on a CPU, and on a GPU
    with `run.deterministic`.

    Within `trainer.distributed.joined`, all processes call this alike, and the main one alone logs, saves and calls
    `on_epoch`; each draws its own share of every batch, and all end with the same weights.

    Args:
        objective: moved to `device`, left in eval mode.
        images: the training set.
        recipe: `view`, `optimizer` and `run` are the loop's.
        directory: of the run: `checkpoints/`, `metrics.jsonl` and `tensorboard/` appear in it.
        device: where to train.
        progress: called with ("train", done, total) after each step, and ("embed", done, total).
        known: what people have told of the images, for objectives that learn from that.
        kept: the share of the objective's encoder as it is now that is kept in what is judged and in the outcome, 0
            to 1: see `trainer.optimizer.Kept`.
        on_epoch: called after each epoch, counted from 1, with the encoder as `Outcome` would have it; what it
            returns is logged.
        profile: find out where the time of this call's first steps goes, and write a trace of some.

    Raises:
        TrainingError: fewer than two images, a loss that is not finite, images that changed since the run began,
            processes that see different checkpoints, or a batch that the GPU has no memory for.
        DistributedError: a step that the processes can't share equally.
        CheckpointError: the run has checkpoints, and none can be read.
        ValueError: the objective can't learn from what is known.
        OSError: the disk is full; the earlier checkpoints stay.
    """
    if len(images) < 2:
        raise TrainingError(f"one image can't teach a metric: the training set has {len(images)}; give at least two")
    profiler = Profiler(device, directory) if profile and distributed.is_main() else None
    known = known or Known(torch.full((len(images),), -1))
    try:
        training = _Training(objective, images, known, recipe, directory, device, progress, profiler, kept)
        return training.run(on_epoch)
    except torch.OutOfMemoryError as error:
        said = str(error).partition(". Of the allocated memory")[0]  # then follow torch's own settings
        raise TrainingError(
            f"the GPU's memory is full, with run.batch_size {recipe.run.batch_size}: {said}; start a run with a "
            f"smaller one (--set run.batch_size={max(1, recipe.run.batch_size // 2)}), or see what else is on the GPU"
        ) from error


class _Training:
    """A training under way: the state that `train` moves from step to step."""

    def __init__(
        self,
        objective: Objective,
        images: ImageCache,
        known: Known,
        recipe: Recipe,
        directory: Path,
        device: torch.device,
        progress: Progress,
        profiler: Profiler | None,
        kept: float,
    ):
        self.device, self.recipe, self.progress, self.profiler = device, recipe, progress, profiler
        self.count = len(images)
        views = [dataclasses.replace(view, **recipe.view) for view in objective.views]
        backbone = objective.encoder.backbone
        self.feed = Feed(images, views, backbone.size, backbone.view_size, device, recipe.run.seed, known.label)
        self.checkpoints = directory / "checkpoints"
        objective.know(known)
        learns_on = objective.encoder.head_is_trained and not known.classes
        self.rate = recipe.optimizer.learning_on_share if learns_on else 1.0
        self.epochs = objective.first_epochs + recipe.run.epochs
        self.objective = objective.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dtype = training_dtype(recipe.run.precision, device)
        decay = recipe.run.averaging
        self.averaged = Average(objective.encoder, decay) if decay else None
        self.kept = Kept(objective.encoder, kept) if kept else None
        self.optimizer = make_optimizer(objective, recipe.optimizer)
        self.base_lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        torch.manual_seed(recipe.run.seed + distributed.rank())  # dropout differs between the processes' shares
        self.position = Position(epoch=0, step=0, total_steps=0, images=_digest(images, known))
        self.order: Tensor | None = None  # of the current epoch, (steps, B)
        self.warnings = self._restore()
        self.log = Log(directory if distributed.is_main() else None, self.position.total_steps)
        self.unread: list[dict[str, Tensor]] = []  # losses of the steps since the last look
        self.saved_at = time.monotonic()

    def run(self, on_epoch: OnEpoch | None) -> Outcome:
        started, first, drawn = time.perf_counter(), self.position.total_steps, 0
        if not first and self.count >= self.recipe.run.batch_size:  # else epochs to come tell what they have
            distributed.check_shares(self.objective.step_sizes, self.recipe.run.batch_size)
        with self.log, self.profiler or nullcontext():
            while self.position.epoch < self.epochs:
                with deterministic(self.recipe.run.deterministic), convolving_in(self.dtype):
                    drawn += self._epoch()
                self._finish_epoch(on_epoch)
        self.objective.eval()
        seconds = time.perf_counter() - started
        return Outcome(
            encoder=self.encoder,
            epochs=self.position.epoch,
            steps=self.position.total_steps - first,
            seconds=seconds,
            images_per_s=drawn / seconds if drawn else None,
            profile=self.profiler.result() if self.profiler else None,
            warnings=tuple(self.warnings),
        )

    @property
    def encoder(self) -> Encoder:
        chosen = cast("Encoder", self.averaged.module if self.averaged else self.objective.encoder)
        return (self.kept.within(chosen) if self.kept else chosen).eval()

    def _epoch(self) -> int:
        """The rest of the current epoch; how many images it drew."""
        first = self.position.step
        self.objective.eval()
        if self.order is None:
            self.order = self._draw_order()
        else:  # of a checkpoint from within the epoch
            self.objective.resume_epoch(self._embed_all)
        steps, images = self.order.shape
        distributed.check_shares(lambda _: {images}, images)
        self.objective.train()
        statistics = running_statistics(self.objective)
        self.log.restart()
        for batch in self.feed.batches(self.order[first:], self.log.waiting, self.objective.large_size):
            self._step(batch, statistics, self.epochs * steps)
            self.progress("train", self.position.total_steps, self.epochs * steps)
            at_end = self.position.step == steps
            save = not at_end and self._is_time_to_save()  # at its end an epoch is judged first
            if save or at_end or self.position.step % LOG_EVERY == 0:
                self._look(save=save)
            if self.profiler:
                self.profiler.end_step()
        return self.order[first:].numel()

    def _draw_order(self) -> Tensor:
        """Which images each step of the next epoch has, (steps, B), the same in all processes."""
        run = self.recipe.run
        steps = max(1, run.least_steps, self.count // run.batch_size)
        own = self.objective.before_epoch(self._embed_all, run.batch_size, steps)
        # What was drawn at random, heads for example, each process drew otherwise.
        distributed.copy_main(self.objective)
        return distributed.from_main(lambda: self._permutation(steps) if own is None else own.cpu())

    def _embed_all(self, embed: Callable[[Tensor], Tensor], size: int = 0, /) -> Tensor:
        with self._autocast():
            return self.feed.embed_all(embed, self.progress, size)

    def _permutation(self, steps: int) -> Tensor:
        batch = min(self.recipe.run.batch_size, self.count)
        whole = self.count // batch
        passes = [torch.randperm(self.count)[: whole * batch] for _ in range(math.ceil(steps / whole))]
        return torch.cat(passes).view(-1, batch)[:steps]

    def _step(self, batch: Batch, statistics: list[Tensor], total_steps: int) -> None:
        self._set_lr()
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._take_gradients(batch)
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        distributed.average(p.grad for p in parameters if p.grad is not None)
        distributed.average(statistics)
        with part("optimiser"):
            self.scaler.step(self.optimizer)
            self.scaler.update()
        done = self.position.total_steps + 1
        with part("after step"):
            self.objective.after_step(done / total_steps)
            if self.averaged:
                self.averaged.update()
        self.position = dataclasses.replace(self.position, step=self.position.step + 1, total_steps=done)
        self.unread.append(losses)

    def _take_gradients(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss, detached; their gradients are added to the parameters' own."""
        losses: dict[str, Tensor] = {}
        for turn in self.objective.turns(batch):
            with part("loss"), self._autocast():
                terms = turn()
            with part("backward"):
                self.scaler.scale(torch.stack(list(terms.values())).sum()).backward()  # type: ignore[no-untyped-call]
            losses |= {name: term.detach() for name, term in terms.items()}
        return losses

    def _set_lr(self) -> None:
        run, warmup = self.recipe.run, self.recipe.optimizer.warmup_steps
        epoch, done = self.position.epoch - self.objective.first_epochs, self.position.total_steps
        share = self.objective.first_rate
        if epoch >= 0:
            assert self.order is not None  # noqa: S101  # of the epoch that this step is in
            share = self.rate * rate_share(run.schedule, epoch / run.epochs)
            done = epoch * len(self.order) + self.position.step
        if warmup:
            share *= min(1, (done + 1) / warmup)
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * share

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _finish_epoch(self, on_epoch: OnEpoch | None) -> None:
        self.objective.eval()
        epoch = self.position.epoch + 1
        if on_epoch is not None and distributed.is_main():
            self.log.write(self.position.total_steps, {"epoch": epoch, **on_epoch(epoch, self.encoder)})
        self.position = dataclasses.replace(self.position, epoch=epoch, step=0)
        self.order = None
        if epoch == self.objective.first_epochs:  # another loss, with gradients of another size
            self.optimizer = make_optimizer(self.objective, self.recipe.optimizer)
        self._save()

    def _is_time_to_save(self) -> bool:
        """Asked within an epoch, after each step, however long those take: the main process's clock, no device."""
        return distributed.from_main(lambda: time.monotonic() - self.saved_at > SAVE_EVERY_S)

    def _look(self, *, save: bool) -> None:
        """Read the losses; then save, if they are numbers."""
        with part("log and save"):
            self._read_losses()
            if save:
                self._save()

    def _read_losses(self) -> None:
        """Log the mean of the unread losses; the one wait for the device, and where a loss is found not finite.

        Always before a checkpoint: weights after a loss that is not finite are not worth keeping.
        """
        assert self.order is not None  # noqa: S101  # set before the epoch's first step
        names = list(self.unread[0])
        losses = torch.stack([torch.stack(list(step.values())) for step in self.unread])
        distributed.average([losses])  # an objective may compare within each process's share only
        losses = losses.cpu()
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            back, term = bad[0].tolist()
            step = self.position.step - len(self.unread) + back
            total = self.position.total_steps - len(self.unread) + back + 1
            precision = "" if self.dtype == torch.float32 else ", or with run.precision=float32"
            raise TrainingError(
                f"step {total} (epoch {self.position.epoch + 1}): {names[term]} is {losses[back, term].item()}, on "
                f"the images in rows {self.order[step].tolist()}; start a run with a lower optimizer.lr than "
                f"{self.recipe.optimizer.lr:g}{precision}"
            )
        values: dict[str, Any] = dict(zip(names, losses.mean(0).tolist(), strict=True))
        values = {"epoch": self.position.epoch + 1, "loss": sum(values.values()), **values}
        values["lr"] = self.optimizer.param_groups[0]["lr"]
        self.log.write_step(self.position.total_steps, values, len(losses), self.order.shape[1])
        self.unread.clear()

    def _save(self) -> None:
        own = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            own["device"] = torch.cuda.get_rng_state(self.device)
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "views": self.feed.generator.get_state(),
            "generators": distributed.from_all(own),
            "order": self.order,
        }
        if distributed.is_main():
            weights = self.objective.state_dict()
            if self.averaged:
                weights |= {f"{_AVERAGED}{name}": value for name, value in self.averaged.state_dict().items()}
            checkpoint.save(self.checkpoints, Checkpoint(position=self.position, weights=weights, state=state))
        self.saved_at = time.monotonic()

    def _restore(self) -> list[str]:
        found, warnings = checkpoint.latest(self.checkpoints)
        positions = distributed.from_all(found.position if found else None)
        if len(set(positions)) > 1:
            steps = [position.total_steps if position else 0 for position in positions]
            raise TrainingError(
                f"the processes found checkpoints of different steps ({', '.join(map(str, steps))}) in "
                f"{self.checkpoints}; it must be one folder that all can read"
            )
        if found is None:
            return warnings
        if found.position.images != self.position.images:
            raise TrainingError(
                f"the images, or the labels to learn from, are not those that the run began with (now {self.count:,} "
                "images); start a new run, or restore them"
            )
        own = {name: value for name, value in found.weights.items() if not name.startswith(_AVERAGED)}
        self.objective.load_state_dict(own)
        if self.averaged:
            averaged = {name: value for name, value in found.weights.items() if name.startswith(_AVERAGED)}
            self.averaged.load_state_dict({name.removeprefix(_AVERAGED): v for name, v in averaged.items()})
        self.optimizer.load_state_dict(found.state["optimizer"])
        if found.state["scaler"]:  # nothing where losses were not scaled, as `auto` has it on another device
            self.scaler.load_state_dict(found.state["scaler"])
        self._restore_generators(found.state["views"], found.state["generators"])
        self.position, self.order = found.position, found.state["order"]
        return warnings

    def _restore_generators(self, views: Tensor, generators: list[dict[str, Tensor]]) -> None:
        # Another kind of device, or process beyond those that there were, goes on with draws of its own.
        if len(views) == len(self.feed.generator.get_state()):
            self.feed.generator.set_state(views)
        if distributed.rank() >= len(generators):
            return
        own = generators[distributed.rank()]
        torch.set_rng_state(own["cpu"])
        if "device" in own and self.device.type == "cuda":
            torch.cuda.set_rng_state(own["device"], self.device)


def _digest(images: ImageCache, known: Known) -> str:
    digest = hashlib.sha256()
    for item in images.items:
        digest.update(f"{item}\n".encode())
    if (known.label >= 0).any():
        digest.update(known.label.numpy().tobytes())
    return digest.hexdigest()[:16]
