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
        directory: of the run.
        step: where the run goes on: what an earlier process logged beyond it will happen again, and is dropped.
    """

    def __init__(self, directory: Path, step: int):
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "metrics.jsonl"
        _drop_after(self._path, step)
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)
        self.restart()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()

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
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)


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
