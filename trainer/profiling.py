"""Where the time of training steps goes: a clock on their named parts, then a trace of a few more."""

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile, record_function

TRACE = "trace.json.gz"  # of a run; chrome://tracing and ui.perfetto.dev open it
WARM_UP, TIMED, TRACED = 3, 10, 3  # steps; the first ones allocate, and choose convolution algorithms


@dataclass(frozen=True)
class Profile:
    """Where the time of a run's profiled steps went.

    Attributes:
        percent: of their time by part, the largest first; empty where the run was too short.
        steps: how many steps were timed.
        step_ms: mean of a timed step.
        trace: file of the trace of the steps that followed; None where the run ended before.
    """

    percent: dict[str, float]
    steps: int
    step_ms: float
    trace: Path | None


def part(name: str) -> AbstractContextManager[None]:
    """Name a part of a training step. Parts nest: the time of an inner one is not its outer one's.

    Costs nothing, and changes nothing, where no profile is being made.
    """
    return nullcontext() if Profiler.active is None else Profiler.active.part(name)


class Profiler:
    """Makes the profile of the steps of one training; a context manager, within which `part` is live.

    A GPU works behind the program's back, so the clock waits for it at each part's ends. The traced steps are not
    waited for: their trace shows how the two overlap.

    Args:
        device: where the training computes.
        directory: of the run; the trace goes there.
    """

    active: "Profiler | None" = None

    def __init__(self, device: torch.device, directory: Path):
        self._device, self._trace = device, directory / TRACE
        self._step = 0
        self._seconds: dict[str, float] = {}
        self._open: list[str] = []  # parts, the innermost last
        self._since = 0.0
        os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # else it tells stderr of its start, and of every absent GPU
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self._tracer = profile(activities=activities)

    def __enter__(self) -> Self:
        Profiler.active = self
        return self

    def __exit__(self, *_: object) -> None:
        Profiler.active = None
        if WARM_UP + TIMED <= self._step < WARM_UP + TIMED + TRACED:
            self._tracer.stop()

    def end_step(self) -> None:
        """Tell that a step is over."""
        self._step += 1
        if self._step == WARM_UP + TIMED:
            self._tracer.start()
        if self._step == WARM_UP + TIMED + TRACED:
            self._tracer.stop()
            self._tracer.export_chrome_trace(str(self._trace))

    def result(self) -> Profile:
        """What was found so far."""
        total, steps = sum(self._seconds.values()), min(max(self._step - WARM_UP, 0), TIMED)
        largest_first = sorted(self._seconds.items(), key=lambda item: -item[1])
        return Profile(
            percent={name: 100 * seconds / total for name, seconds in largest_first},
            steps=steps,
            step_ms=1000 * total / max(steps, 1),
            trace=self._trace if self._step >= WARM_UP + TIMED + TRACED else None,
        )

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """As the module's function of this name."""
        self._credit()
        self._open.append(name)
        with record_function(name):
            yield
        self._credit()
        self._open.pop()

    def _credit(self) -> None:
        """The time since the last call was the innermost part's."""
        if not WARM_UP <= self._step < WARM_UP + TIMED:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._open:
            self._seconds[self._open[-1]] = self._seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now
