"""Our training steps against a straightforward design of the same steps.

Run: python tests/benchmarks/bench_straightforward.py

Straightforward is what the method's published description leads to: a torch DataLoader with as many workers as cores
that decodes a JPEG and draws its two views with PIL transforms, float32 passes, a loop over the batch's rows for the
contextual similarity, one over the weights for the teacher's moving average, and AdamW as torch has it. Ours is
`trainer.loop` as it comes. Both have the recipe's backbone, size and losses, the same batch and the device; each is a
process of its own, so that it has its own peak memory, and they take turns of some steps. What comes once a run
(decoding to the cache) or once an epoch (the search for neighbours) is in neither.
"""

import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from indexer.pixels import PixelSpec
from indexer.sources import open_collection
from tests.benchmarks.photographs import photograph
from tests.benchmarks.turns import start, take_turns
from trainer import loop
from trainer.encoders import Encoder, make_backbone
from trainer.environment import peak_memory
from trainer.folding import unfolded
from trainer.images import cache_images
from trainer.log import read_log
from trainer.memory import keep_freed_memory
from trainer.objective import View
from trainer.objectives.stml import STML, contextual_similarity, relaxed_contrastive, self_distillation
from trainer.recipe import Recipe, load, override

PHOTOS = 240  # distinct; more images are further names of these
CORES = os.cpu_count() or 1
TURNS = 3  # after one that warms up


def main() -> None:
    """Let both take turns, and print throughput, ratio and peak memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = recipe_for(device)
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder) / "photos", steps_of_a_turn(device) * recipe.run.batch_size)
        processes = {run.__name__: start(run, Path(folder)) for run in (ours, straightforward)}
        speeds = take_turns(processes, 1 + TURNS)
        peaks = {name: process.recv() for name, process in processes.items()}
    ratio = statistics.median(a / b for a, b in list(zip(*speeds.values(), strict=True))[1:])
    batch, size = recipe.run.batch_size, recipe.data.view_size
    print(f"{device.type}, {CORES} cores, {recipe.encoder.backbone}, {batch} images in two views of {size} px")
    for name, values in speeds.items():
        memory = ", ".join(f"{part} {value / 2**20:,.0f} MiB" for part, value in peaks[name].items())
        print(f"{name}: {statistics.median(values[1:]):.1f} images/s; peak memory: {memory}")
    print(json.dumps({"images_per_s": speeds, "ratio": ratio, "peak_bytes": peaks}))


def recipe_for(device: torch.device) -> Recipe:
    """The recipe of both; float32 on a CPU, and what ours chooses on a GPU."""
    batch = 120 if device.type == "cuda" else 60
    turns = (f"run.epochs={1 + TURNS}", f"run.least_steps={steps_of_a_turn(device)}")
    settings = (f"run.batch_size={batch}", "objective.distillation_epochs=0")
    return override(load("stml"), *turns, *settings)


def steps_of_a_turn(device: torch.device) -> int:
    """Enough for the wait for the first batch, behind which no pass hides, to count little."""
    return 60 if device.type == "cuda" else 3


def write_photos(folder: Path, count: int) -> None:
    """So many JPEG files, of which the first ones differ."""
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number:05d}.jpg"
        if number < PHOTOS:
            path.write_bytes(photograph(number))
        else:
            os.link(folder / f"{number % PHOTOS:05d}.jpg", path)


def make_objective(recipe: Recipe, device: torch.device) -> STML:
    """The same student and teacher for both."""
    torch.manual_seed(0)
    part, data = recipe.encoder, recipe.data
    backbone = make_backbone(
        part.backbone, part.weights, size=data.size, view_size=data.view_size, freeze_bn=part.freeze_bn
    )
    objective = STML(Encoder(backbone, nn.Linear(backbone.channels, part.dim)), **recipe.objective.keywords)
    return objective.to(device)


# ---- ours


def ours(folder: Path, turns: Connection) -> None:
    """`trainer.loop`, an epoch a turn; its peak memory in the end."""
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe, run = recipe_for(device), folder / "run"
    sources = open_collection(folder / "photos").sources
    spec = PixelSpec(size=recipe.data.cache_size)
    images = cache_images(sources, spec, folder / "images.u8", lambda *_: None, "decode")

    def end_turn(epoch: int, _: object) -> dict[str, float]:
        turns.send(statistics.mean(line["images_per_s"] for line in read_log(run) if line["epoch"] == epoch))
        if epoch < recipe.run.epochs:
            turns.recv()
        return {}

    turns.recv()
    objective = make_objective(recipe, device)
    loop.train(objective, images, recipe, run, device=device, progress=lambda *_: None, on_epoch=end_turn)
    turns.send(peak_memory(device))


# ---- straightforward


class Photos(Dataset[tuple[Tensor, Tensor, int]]):
    """Files, decoded each time one is asked for, and two views of each."""

    def __init__(self, folder: Path, size: int, view: View):
        self._files = sorted(folder.iterdir())
        self._draw = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, view.scale, view.ratio),
                transforms.RandomHorizontalFlip(view.flip),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, int]:
        with Image.open(self._files[row]) as file:
            image = file.convert("RGB")
        return self._draw(image), self._draw(image), row


def straightforward(folder: Path, turns: Connection) -> None:
    """The same steps written down plainly, a pass over the photos a turn; its peak memory in the end."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = recipe_for(device)
    objective = unfolded(make_objective(recipe, device))  # networks as their libraries have them
    check_looped_similarity(objective)
    optimizer = torch.optim.AdamW(objective.param_groups(recipe.optimizer.lr))
    photos = Photos(folder / "photos", objective.encoder.backbone.view_size, objective.views[0])
    loader = DataLoader(
        photos,
        recipe.run.batch_size,
        shuffle=True,
        num_workers=CORES,
        pin_memory=device.type == "cuda",
        persistent_workers=True,
    )
    for _ in range(recipe.run.epochs):
        turns.recv()
        turns.send(images_per_s(objective, optimizer, loader, device))
    del loader  # its workers end, and only then is their memory known
    kilobyte = 1024
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * kilobyte
    turns.send({**peak_memory(device), f"each of {CORES} workers": workers})


def images_per_s(
    objective: STML, optimizer: torch.optim.Optimizer, loader: "DataLoader[object]", device: torch.device
) -> float:
    """One pass over the loader."""
    objective.train()
    done, started = 0, time.perf_counter()
    for first, second, index in loader:
        step(objective, optimizer, torch.cat([first, second]).to(device), index.to(device))
        done += len(index)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return done / (time.perf_counter() - started)


def step(objective: STML, optimizer: torch.optim.Optimizer, images: Tensor, index: Tensor) -> None:
    """Teacher, student, losses, optimiser, moving average."""
    with torch.no_grad():
        z = F.normalize(objective.teacher(images), dim=1)
        similarity = looped_similarity(z, index.repeat(2), objective.context, objective.sigma)
    features = objective.encoder.backbone(images)
    f, g = objective.encoder.head(features), objective.background(features)
    contrastive = [relaxed_contrastive(head, similarity, objective.delta) for head in (f, g)]
    loss = 0.5 * sum(contrastive) + self_distillation(f, g, objective.temperature)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    loss.item()  # for the log
    with torch.no_grad():
        for taught, learned in teacher_and_student(objective):
            taught.mul_(objective.momentum).add_(learned, alpha=1 - objective.momentum)


def teacher_and_student(objective: STML) -> Iterator[tuple[Tensor, Tensor]]:
    """Each weight of the teacher, with the student's."""
    student = nn.ModuleList([objective.encoder.backbone, objective.background])
    for taught, learned in zip(objective.teacher.parameters(), student.parameters(), strict=True):
        yield taught, learned.detach()


def looped_similarity(teacher: Tensor, index: Tensor, k: int, sigma: float) -> Tensor:
    """As `trainer.objectives.stml.contextual_similarity`, row by row."""
    pairwise = torch.exp(-torch.cdist(teacher, teacher).square() / sigma)
    ranking = pairwise.masked_fill(index[:, None] == index, 1).fill_diagonal_(2)
    nearest = ranking.topk(k, dim=1).indices
    near = torch.zeros_like(pairwise).scatter_(1, nearest, 1)
    mutual = near * near.T
    context = torch.zeros_like(pairwise)
    for row, own in enumerate(mutual):
        members = own.nonzero().flatten()
        context[row, members] = (mutual[members] * own).sum(dim=1) / len(members)
    expanded = context[nearest[:, : k // 2]].mean(dim=1)
    return (pairwise + (expanded + expanded.T) / 2) / 2


def check_looped_similarity(objective: STML) -> None:
    """Both compute the same."""
    z = F.normalize(torch.randn(60, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    index = torch.arange(30).repeat(2)
    found = looped_similarity(z, index, objective.context, objective.sigma)
    torch.testing.assert_close(found, contextual_similarity(z, index, objective.context, objective.sigma))


if __name__ == "__main__":
    main()
