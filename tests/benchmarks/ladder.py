"""The ladder: STML with one piece replaced at a time, over seeds, on one labelled collection.

Run: python tests/benchmarks/ladder.py IMAGES --labels CSV --out DIR [--seeds 0 1 2] [--rungs NAME...]
     [--recipe stml] [--set section.key=value ...]

Every rung (rungs.py) trains with the trainer's own loop on the images that the labels do not keep for judging, and is
judged on those that they do, by what the loop hands over after the last epoch: head f in unit length, averaged over
steps where the recipe says so, and centred as a run does (`untrained` and `frozen` by the backbone's pooled
features). R@1 and the label-free contrast of each epoch are kept as information and choose nothing. Each finished
rung and seed is a line of DIR/results.jsonl and is skipped when the same command comes again; one that was killed
goes on from its checkpoint, and its training time lacks the part of an epoch before that.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clients.cli.output import Progress, progress
from indexer.pixels import PixelSpec
from indexer.sources import open_collection
from tests.benchmarks.rungs import RUNGS
from trainer import recipe as recipes
from trainer.choice import neighbour_contrast
from trainer.encoders import Encoder, make_backbone
from trainer.environment import choose_device
from trainer.evaluate import retrieval_metrics
from trainer.images import ImageCache, cache_images
from trainer.judging import centre, sample_set
from trainer.labels import read_labels
from trainer.log import read_log
from trainer.loop import train
from trainer.memory import keep_freed_memory
from trainer.recipe import Recipe

ROOT = Path(__file__).parents[2]
COLUMNS = {
    "R@1": "recall_at_1",
    "R@2": "recall_at_2",
    "R@4": "recall_at_4",
    "R@8": "recall_at_8",
    "MAP@R": "map_at_r",
}
_JUDGE_BATCH = 128


@dataclass(frozen=True)
class Collection:
    """The decoded images that all rungs share, and the classes of those that judge."""

    training: ImageCache
    sample: ImageCache  # of the training images, as they are embedded
    judging: ImageCache
    classes: Tensor

    @torch.no_grad()
    def judge(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """The table's metrics of what a network makes of the judging images, in unit length."""
        found = retrieval_metrics(_embedded(self.judging.pixels, network, device), self.classes, clusters=False)
        return {name: found.to_dict()[name] for name in COLUMNS.values()}

    @torch.no_grad()
    def contrast(self, network: nn.Module, device: torch.device) -> float:
        """The label-free criterion of what a network makes of some training images."""
        return neighbour_contrast(_embedded(self.sample.pixels, network, device))


def _embedded(cached: Tensor, network: nn.Module, device: torch.device) -> Tensor:
    network.eval()
    parts = []
    for pixels in torch.split(cached, _JUDGE_BATCH):
        images = pixels.to(device).permute(0, 3, 1, 2).float() / 255
        parts.append(F.normalize(network(images).float(), dim=1))
    return torch.cat(parts)


@dataclass(frozen=True)
class Trial:
    """One rung with one seed."""

    rung: str
    recipe: Recipe

    @property
    def name(self) -> str:
        """For a person."""
        return f"{self.rung}, seed {self.recipe.run.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """All that its result depends on, besides images and code."""
        return {"rung": self.rung, "seed": self.recipe.run.seed, "recipe": recipes.to_dict(self.recipe)}

    @property
    def trains(self) -> bool:
        """Whether it has steps."""
        return RUNGS[self.rung].method is not None


def main(argv: Sequence[str]) -> None:
    """Run the rungs that are not done yet, and print the table of all that were asked for."""
    arguments = parse(argv)
    keep_freed_memory()
    base = recipes.override(recipes.load(arguments.recipe), *arguments.set)
    device = choose_device("auto")
    trials = [Trial(name, RUNGS[name].recipe(base, seed)) for seed in arguments.seeds for name in arguments.rungs]
    arguments.out.mkdir(parents=True, exist_ok=True)
    with progress() as report:
        collection = open_images(arguments.images, arguments.labels, base, arguments.out, report)
        ladder = Ladder(collection, facts(arguments.images, arguments.labels, device), arguments.out, device)
        lines = ladder.climb(trials, report)
    print(table(lines))
    print(f"\n    python tests/benchmarks/ladder.py {shlex.join(argv)}\n")
    for fact in ("commit", "hardware"):
        print(f"{fact}: {', '.join(sorted({line[fact] for line in lines}))}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder, or a table with a column path")
    parser.add_argument("--labels", type=Path, required=True, help="a table path,class_id,split")
    parser.add_argument("--out", type=Path, required=True, help="where results and unfinished trainings are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--rungs", nargs="+", choices=RUNGS, default=[*RUNGS], metavar="NAME", help=", ".join(RUNGS))
    parser.add_argument("--recipe", default="stml", help="what the rungs are changes of; its objective must be stml")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="SECTION.KEY=VALUE")
    return parser.parse_args(argv)


def open_images(images: Path, labels: Path, base: Recipe, out: Path, report: Progress) -> Collection:
    """Decode what the rungs learn from and are judged on, or reopen what an earlier call decoded."""
    found = open_collection(images)
    known = read_labels(labels, found)
    squashed = PixelSpec(size=base.data.cache_size)
    seen = PixelSpec(size=base.data.size, fit=base.data.fit, crop_fraction=base.data.crop_fraction)
    training = cache_images(known.training(found.sources), squashed, out / "images.u8", report, "decode")
    sample = sample_set(found, training, seen, out / "sample.u8", report)
    judging = cache_images(known.judging(found.sources), seen, out / "judged.u8", report, "decode")
    for item, reason in (*training.skipped, *judging.skipped):
        print(f"skipped {item}: {reason}", file=sys.stderr)
    return Collection(training, sample, judging, torch.tensor([known.class_of[item] for item in judging.items]))


class Ladder:
    """A collection's results, in a folder.

    Args:
        collection: what the rungs learn from and are judged on.
        facts: what each result says besides its own; one of other images or labels is not taken for this ladder's.
        out: the folder.
        device: where to train.
    """

    def __init__(self, collection: Collection, facts: Mapping[str, str], out: Path, device: torch.device):
        self.collection, self.facts, self.out, self.device = collection, facts, out, device
        self.file = out / "results.jsonl"

    def climb(self, trials: Sequence[Trial], report: Progress) -> list[dict[str, Any]]:
        """The results of trials, in their order; those that the folder does not have are made."""
        todo = [trial for trial in trials if self.find(trial) is None]
        training = [trial for trial in todo if trial.trains]
        for number, trial in enumerate(todo, start=1):
            print(f"{number} of {len(todo)} to do: {trial.name}", file=sys.stderr)
            behind = sum(earlier.trains for earlier in todo[: number - 1])
            self.add(trial, partial(_report_overall, report, behind, len(training)))
        return [line for trial in trials if (line := self.find(trial))]

    def find(self, trial: Trial) -> dict[str, Any] | None:
        """A trial's result."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        results: list[dict[str, Any]] = [json.loads(line) for line in lines]
        wanted = self._wanted(trial)
        return next((line for line in results if all(line[name] == value for name, value in wanted.items())), None)

    def add(self, trial: Trial, report: Progress) -> None:
        """Make a trial's result, from its newest checkpoint where an earlier call was killed within it."""
        digest = sha256(json.dumps(self._wanted(trial)).encode()).hexdigest()[:8]
        run = self.out / f"{trial.rung}-seed{trial.recipe.run.seed}-{digest}"
        result = measure(trial, self.collection, run, self.device, report)
        with self.file.open("a") as file:
            file.write(json.dumps({**trial.settings, **self.facts, **result}) + "\n")
        shutil.rmtree(run, ignore_errors=True)
        print(f"{trial.name}: R@1 {_share(result['metrics']['recall_at_1'])}", file=sys.stderr)

    def _wanted(self, trial: Trial) -> dict[str, Any]:
        """What a line must say to be a trial's result here."""
        return {**trial.settings, "images": self.facts["images"], "labels": self.facts["labels"]}


def _report_overall(report: Progress, behind: int, trainings: int, stage: str, done: int, total: int) -> None:
    """Steps of one training as thousandths of all, so that the time left is the ladder's."""
    if stage == "train":
        report("ladder", round(1000 * (behind + done / total)), 1000 * trainings)


def measure(
    trial: Trial, collection: Collection, run: Path, device: torch.device, report: Progress
) -> dict[str, Any]:
    """Train a trial in the folder of its run, where it trains, and judge what comes out."""
    recipe, method = trial.recipe, RUNGS[trial.rung].method
    torch.manual_seed(recipe.run.seed)
    part = recipe.encoder
    backbone = make_backbone(
        part.backbone,
        part.weights,
        size=recipe.data.size,
        view_size=recipe.data.view_size,
        freeze_bn=part.freeze_bn,
        unit_length=part.unit_length,
    )
    backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if method is None:
        by_epoch: dict[str, list[float]] = {"recall_at_1_by_epoch": [], "contrast_by_epoch": []}
        return {"metrics": collection.judge(backbone, device), "train_s": 0.0, **by_epoch}
    encoder = Encoder(backbone, nn.Linear(backbone.channels, part.dim))
    objective = method(encoder, **recipe.objective.keywords)
    watch = _Watch(collection, device, centred=objective.centred)
    train(objective, collection.training, recipe, run, device=device, progress=report, on_epoch=watch)
    epochs = [line for line in read_log(run) if "train_s" in line]  # also those of a call that was killed
    return {
        "metrics": {name: epochs[-1][name] for name in COLUMNS.values()},
        "train_s": sum(line["train_s"] for line in epochs),
        "recall_at_1_by_epoch": [line["recall_at_1"] for line in epochs],
        "contrast_by_epoch": [line["contrast"] for line in epochs],
    }


class _Watch:
    """Called after each epoch: what it took without the judging, its metrics, and its label-free contrast."""

    def __init__(self, collection: Collection, device: torch.device, *, centred: bool):
        self._collection, self._device, self._centred = collection, device, centred
        self._since = time.perf_counter()

    def __call__(self, epoch: int, encoder: Encoder) -> dict[str, float]:
        train_s = time.perf_counter() - self._since
        if self._centred:
            centre(encoder, self._collection.sample, self._device, lambda *_: None)
        found = {
            "train_s": train_s,
            "contrast": self._collection.contrast(encoder, self._device),
            **self._collection.judge(encoder, self._device),
        }
        self._since = time.perf_counter()
        return found


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row per rung in the order of its first line, mean ± sample standard deviation over its seeds."""
    rows = [f"| rung | {' | '.join(COLUMNS)} | seeds | training, min |", f"|---|{'---|' * (len(COLUMNS) + 2)}"]
    for rung in dict.fromkeys(line["rung"] for line in lines):
        of_rung = [line for line in lines if line["rung"] == rung]
        cells = [_spread([line["metrics"][name] for line in of_rung]) for name in COLUMNS.values()]
        minutes = statistics.mean(line["train_s"] for line in of_rung) / 60
        seeds = " ".join(str(line["seed"]) for line in of_rung)
        rows.append(f"| {RUNGS[rung].title} | {' | '.join(cells)} | {seeds} | {minutes:.1f} |")
    return "\n".join(rows)


def _spread(values: Sequence[float]) -> str:
    mean = _share(statistics.mean(values))
    return f"{mean} ± {_share(statistics.stdev(values))}" if len(values) > 1 else mean


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def facts(images: Path, labels: Path, device: torch.device) -> dict[str, str]:
    """On which data, by which code, on which machine."""
    return {
        "images": str(images),
        "labels": str(labels),
        "commit": commit(),
        "hardware": hardware(device),
    }


def commit() -> str:
    """The code's commit, marked where what decides the results differs from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
    paths = ("trainer", "indexer", "tests/benchmarks/ladder.py", "tests/benchmarks/rungs.py")
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *paths], check=False)
    return head.stdout.strip() + (" with changes" if changed.returncode else "")


def hardware(device: torch.device) -> str:
    """The device that trains."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")  # Linux's; platform.processor() is empty on many of its distributions
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor()}"


if __name__ == "__main__":
    main(sys.argv[1:])
