"""The memory of a training run over many images: it must not grow with their number, nor while it goes on.

Run: python tests/benchmarks/bench_many_images.py [IMAGES = 20000] [KEY=VALUE ...]

Synthesises IMAGES small JPEGs, each with noise of its own, trains one epoch on them with `kinsight train`, and prints
the memory of the process by stage: anonymous, that is without the pages of the mapped cache, which the system may
take back. Backbone and sizes are small, so that 100,000 images take minutes; what is held per image is the same.
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
from typing import IO

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
    with subprocess.Popen([*command, *options, *chosen], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None  # both are pipes
        assert child.stderr is not None
        drain = Thread(target=child.stdout.read)
        drain.start()
        samples = follow(child.pid, child.stderr)
        drain.join()
    if child.returncode:
        raise SystemExit(f"kinsight train ended with exit code {child.returncode}")
    training = samples["train"]
    third = max(1, len(training) // 3)
    return {
        "seconds": round(time.perf_counter() - started),
        "peak_mib": {stage: round(max(values)) for stage, values in samples.items()},
        "training_growth": max(training[-third:]) / max(training[:third]),
    }


def follow(pid: int, progress: IO[bytes]) -> dict[str, list[float]]:
    """Anonymous memory, MiB, at each line of progress, by its stage."""
    samples = defaultdict(list)
    for line in progress:
        if line.startswith(b'{"stage"'):
            samples[json.loads(line)["stage"]].append(anonymous_mib(pid))
        else:
            sys.stderr.buffer.write(line)
    return samples


def anonymous_mib(pid: int) -> float:
    """Resident memory of a process that no file backs."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0  # it is ending


if __name__ == "__main__":
    main()
