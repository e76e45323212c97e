"""The numbers of a training run, step by step: `metrics.jsonl`, and the same for TensorBoard."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from indexer.manifest import write_atomically


class Log:
    """A run's log; a context manager.

    Args:
        directory: of the run; None logs nothing, as all but the main of several processes do.
        step: where the run goes on: what an earlier process logged beyond it will happen again, and is dropped.
    """

    def __init__(self, directory: Path | None, step: int):
        self._files: tuple[Path, SummaryWriter] | None = None
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            path = directory / "metrics.jsonl"
            _drop_after(path, step)
            self._files = path, SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)
        self.restart()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._files:
            self._files[1].close()

    def restart(self) -> None:
        """Start the clock of images_per_s anew."""
        self._since, self._waited = time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within as waiting for the loader."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def write_step(self, step: int, values: dict[str, Any], steps: int, batch_size: int) -> None:
        """Log the mean of some steps with their speed."""
        seconds = time.perf_counter() - self._since
        speed = {"images_per_s": steps * batch_size / seconds, "loader_wait_s": self._waited}
        self.write(step, {**values, **speed})
        self.restart()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Log values at a step."""
        if not self._files:
            return
        path, board = self._files
        with path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            board.add_scalar(name, value, step)


class Clock:
    """Seconds by stage of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """End a stage."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


def read_log(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, in order: each has `step` and what was logged there."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(f"{line}\n")
        except ValueError:  # the last line of a process that was killed while writing it
            continue
    write_atomically(path, "".join(kept).encode())
