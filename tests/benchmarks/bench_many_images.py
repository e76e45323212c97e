"""The memory of a training run over many images: it must not grow with their number, nor while it goes on.

Run: python tests/benchmarks/bench_many_images.py [IMAGES = 20000] [KEY=VALUE ...]

Synthesises IMAGES small JPEGs, each with noise of its own, trains one epoch on them with `kinsight train`, and prints
the memory of the process by stage and by time: anonymous, that is without the pages of the mapped cache, which the
system may take back. Backbone and sizes are small, so that 100,000 images take minutes; what is held per image is the
same.
"""

import io
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from threading import Thread
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

SETTINGS = (
    "data.size=32",
    "data.cache_size=40",
    "run.epochs=1",
    "run.batch_size=120",
    "objective.background_dim=128",
)
FOLDER = 1000  # images each
SAMPLE_EVERY_S, TELL_EVERY_S = 0.5, 30.0


class Sample(NamedTuple):
    """Anonymous memory at one time, and the stage that was told last."""

    seconds: float
    stage: str
    mib: float


def main() -> None:
    """Make the images, train on them, and print the peak of each stage and the growth within training."""
    count, *settings = sys.argv[1:] or ["20000"]
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch, "images")
        synthesise(images, int(count))
        print(json.dumps({"images": int(count), **train(images, Path(scratch, "store"), settings)}))


def synthesise(folder: Path, count: int) -> None:
    """JPEGs of 48 × 48 with a colour and grain of their own."""
    rng = np.random.default_rng(0)
    for number in range(count):
        if number % FOLDER == 0:
            (folder / str(number // FOLDER)).mkdir(parents=True)
        pixels = rng.integers(0, 156, 3) + rng.integers(0, 100, (48, 48, 3))
        data = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(data, "JPEG", quality=80)
        (folder / str(number // FOLDER) / f"{number}.jpg").write_bytes(data.getvalue())


def train(images: Path, store: Path, settings: list[str]) -> dict[str, object]:
    """Run the training as a user does and sample its memory."""
    chosen = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    command = [sys.executable, "-m", "clients.cli", "train", str(images), "--store", str(store)]
    options = ["--backbone", "test_resnet", "--weights", "none", "--dim", "64", "--progress", "json", "--json"]
    started = time.perf_counter()
    with subprocess.Popen([*command, *options, *chosen], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        samples = follow(child)
    if child.returncode:
        raise SystemExit(f"kinsight train ended with exit code {child.returncode}")
    by_stage = defaultdict(list)
    for sample in samples:
        by_stage[sample.stage].append(sample.mib)
    training = by_stage["train"]
    third = max(1, len(training) // 3)
    return {
        "seconds": round(time.perf_counter() - started),
        "peak_mib": {stage: round(max(values)) for stage, values in by_stage.items()},
        "training_growth": max(training[-third:]) / max(training[:third]),
        "course": course(samples),
    }


def follow(child: subprocess.Popen[bytes]) -> list[Sample]:
    """A sample each half second until the process ends: stages that tell no progress hold memory too."""
    stage, started = ["start"], time.perf_counter()
    reader = Thread(target=read_stages, args=(child.stderr, stage))
    reader.start()
    samples = []
    while child.poll() is None:
        if mib := anonymous_mib(child.pid):  # none when it is ending
            samples.append(Sample(time.perf_counter() - started, stage[0], mib))
        time.sleep(SAMPLE_EVERY_S)
    reader.join()
    return samples


def read_stages(progress: IO[bytes], stage: list[str]) -> None:
    """Keep the stage that a line of progress names as the one item of a list, and pass all other lines on."""
    for line in progress:
        if line.startswith(b'{"stage"'):
            stage[0] = json.loads(line)["stage"]
        else:
            sys.stderr.buffer.write(line)


def course(samples: list[Sample]) -> list[str]:
    """The first sample of each half minute, and the last of all."""
    starts = [samples[0]]
    for sample in samples:
        if sample.seconds >= starts[-1].seconds + TELL_EVERY_S:
            starts.append(sample)
    return [f"{sample.seconds:.0f} s, {sample.stage}: {sample.mib:.0f} MiB" for sample in [*starts, samples[-1]]]


def anonymous_mib(pid: int) -> float:
    """Resident memory of a process that no file backs."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()
