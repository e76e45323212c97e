"""A training step against the bare passes that it can't do without, at the same shapes, in one run."""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from trainer import loop
from trainer.encoders import Encoder, make_backbone
from trainer.environment import peak_memory
from trainer.images import ImageCache
from trainer.log import read_log
from trainer.memory import keep_freed_memory
from trainer.numerics import training_dtype
from trainer.objective import Objective
from trainer.objectives import make_objective
from trainer.recipe import Recipe, load, override

STEPS, EPOCHS = 2, 5  # of 60 images in two views each; the first epoch warms up


def main() -> None:
    """Print milliseconds of a step and of the bare passes, images/s, the ratio and the peak memory.

    The two take turns, an epoch of one and then as many steps of the other, so that what else the machine does
    slows both.
    """
    with tempfile.TemporaryDirectory() as directory:
        measure(Path(directory))


def measure(directory: Path) -> None:
    """Train in a directory and print."""
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    epochs = (f"run.epochs={EPOCHS}", f"run.least_steps={STEPS}")
    settings = ("run.batch_size=60", "objective.distillation_epochs=0")  # STML's own steps
    recipe = override(load("stml"), *epochs, *settings)
    objective = build(recipe)

    def bare(_: int, __: object) -> dict[str, float]:
        return {"bare_s": seconds_of_bare_passes(objective, recipe, device)}

    count, side = STEPS * recipe.run.batch_size, recipe.data.cache_size
    pixels = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8)
    images = ImageCache(pixels, torch.ones(count), tuple(map(str, range(count))), ())
    loop.train(objective, images, recipe, directory, device=device, progress=lambda *_: None, on_epoch=bare)

    lines = read_log(directory)[2:]
    batch, part = recipe.run.batch_size, recipe.encoder
    step_s = [batch / float(line["images_per_s"]) for line in lines if "images_per_s" in line]
    bare_s = [float(line["bare_s"]) for line in lines if "bare_s" in line]
    ratio = statistics.median(step / passes for step, passes in zip(step_s, bare_s, strict=True))
    step, passes = statistics.median(step_s), statistics.median(bare_s)
    peaks = peak_memory(device)
    print(
        f"{device.type}, {part.backbone}, {batch} images in two views of {objective.encoder.backbone.view_size} px: "
        f"step {step * 1000:.0f} ms; bare passes {passes * 1000:.0f} ms; "
        + ", ".join(f"peak memory of the {name} {value / 2**20:,.0f} MiB" for name, value in peaks.items())
    )
    result = {"step_s": step, "bare_s": passes, "ratio": ratio, "images_per_s": batch / step}
    print(json.dumps({**result, "peak_bytes": peaks}))


def build(recipe: Recipe) -> Objective:
    part = recipe.encoder
    data = recipe.data
    backbone = make_backbone(
        part.backbone, part.weights, size=data.size, view_size=data.view_size, freeze_bn=part.freeze_bn
    )
    encoder = Encoder(backbone, nn.Linear(backbone.channels, part.dim))
    return make_objective(recipe.objective.name, encoder, **recipe.objective.keywords)


def seconds_of_bare_passes(objective: Objective, recipe: Recipe, device: torch.device) -> float:
    """Mean of one forward and backward of the encoder and one forward of a copy, on images that are there."""
    size, dtype = objective.encoder.backbone.view_size, training_dtype(recipe.run.precision, device)
    images = torch.rand(2 * recipe.run.batch_size, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    teacher = objective.get_submodule("teacher")
    objective.train()
    started = time.perf_counter()
    for _ in range(STEPS):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = objective.encoder(images).float().square().mean()
            with torch.no_grad():
                teacher(images)
        loss.backward()
        objective.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / STEPS


if __name__ == "__main__":
    main()
