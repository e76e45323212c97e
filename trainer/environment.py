"""What a run runs on: its device, and `environment.json`, so that its figures can be repeated or doubted."""

import json
import os
import platform
import resource
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from indexer.manifest import write_atomically
from trainer.numerics import multiply_in_float32
from trainer.run_directory import RunError

ENVIRONMENT = "environment.json"

_SOFTWARE = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "pillow")
_CODE = Path(__file__).parent
_GIT_TIMEOUT_S = 10


def software() -> dict[str, str]:
    """The version of each installed library that decides what a training computes."""
    found = {}
    for name in _SOFTWARE:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # one of the two onnxruntime packages is always absent
            continue
    return found


def record_environment(run: Path, device: torch.device, seed: int) -> dict[str, Any]:
    """Write what this process runs on into a run's directory.

    A resumed run keeps, under `earlier`, what the processes before this one ran on.

    Returns:
        What was written.

    Raises:
        OSError: the file can't be written.
    """
    path = run / ENVIRONMENT
    found = {**_environment(device, seed), "earlier": _earlier(path)}
    write_atomically(path, json.dumps(found, indent=2).encode() + b"\n")
    return found


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most memory that this process has held in bytes: of the machine, and of the GPU where one is used."""
    kilobyte = 1 if sys.platform == "darwin" else 1024  # getrusage(2) counts in bytes there
    peaks = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte}
    if device.type == "cuda":
        peaks["gpu"] = torch.cuda.max_memory_allocated(device)
    return peaks


def _environment(device: torch.device, seed: int) -> dict[str, Any]:
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "seed": seed,
        "commit": _commit(),
        "kinsight": version("kinsight"),
        "python": platform.python_version(),
        **software(),
        "device": _device_name(device),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


def _earlier(path: Path) -> list[dict[str, Any]]:
    try:
        before = json.loads(path.read_bytes())
        return [*before.pop("earlier"), before]
    except (OSError, ValueError, KeyError, AttributeError):  # a new run, or a file that says nothing usable
        return []


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()  # platform.processor() is empty on most Linux
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, `-dirty` where files differ; None where there is none."""
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None  # a virtual environment may lie inside the checkout of another project
    head = _git("rev-parse", "HEAD")
    return f"{head}-dirty" if head and _git("status", "--porcelain", "--untracked-files=no") else head


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603  # no word comes from outside
            ["git", "-C", _CODE, *words],  # noqa: S607  # whichever git the user has
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def choose_device(name: str) -> torch.device:
    """The device of this name, ready; `auto` is CUDA where it is live. Raises RunError where it is not to be had."""
    if name not in ("auto", "cpu", "cuda"):
        raise RunError(f"device is {name!r}; it must be auto, cpu or cuda")
    live = torch.cuda.is_available()
    if name == "cuda" and not live:
        raise RunError("device is cuda, but torch sees no GPU; use --device cpu, or run `kinsight doctor`")
    if name == "cpu" or not live:
        return torch.device("cpu")
    multiply_in_float32()
    return torch.device("cuda")
