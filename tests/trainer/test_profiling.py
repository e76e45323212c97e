"""Where the time of a step goes: shares that add up, a trace that opens, nothing left behind."""

import gzip
import json
import shutil
import time
from pathlib import Path

import pytest
import torch

from tests.trainer.small import CPU, Stopped, recipe, stop_at, train
from trainer.profiling import TIMED, WARM_UP, Profiler, part

NAMED = {"loader wait", "views", "loss", "backbone", "teacher", "backward", "optimiser", "after step"}


def test_training_tells_where_its_time_went_and_writes_a_trace(tmp_path: Path) -> None:
    """The parts of the step add up to all of it, and the trace holds each by its name."""
    _, outcome = train(tmp_path, recipe("run.epochs=8"), profile=True)
    profile = outcome.profile
    assert profile is not None
    assert profile.steps == 10
    assert profile.step_ms > 0
    assert set(profile.percent) == {*NAMED, "log and save"}
    assert sum(profile.percent.values()) == pytest.approx(100)
    assert list(profile.percent.values()) == sorted(profile.percent.values(), reverse=True)
    assert profile.trace == tmp_path / "trace.json.gz"
    with gzip.open(profile.trace) as file:
        events = json.load(file)["traceEvents"]
    counted = {name: sum(event.get("name") == name for event in events) for name in NAMED}
    assert counted == dict.fromkeys(NAMED, 3)


def test_profiling_does_not_change_what_is_learned(tmp_path: Path) -> None:
    """The same weights come out, to the bit."""
    plain, _ = train(tmp_path / "plain", recipe("run.epochs=3"))
    profiled, _ = train(tmp_path / "profiled", recipe("run.epochs=3"), profile=True)
    torch.testing.assert_close(plain.state_dict(), profiled.state_dict(), atol=0, rtol=0)


def test_a_short_training_is_timed_as_far_as_it_goes(tmp_path: Path) -> None:
    """Four steps: three warm up, one is timed, none is traced."""
    _, outcome = train(tmp_path, profile=True)
    assert outcome.profile is not None
    assert (outcome.profile.steps, outcome.profile.trace) == (4 - WARM_UP, None)
    assert not (tmp_path / "trace.json.gz").exists()


def test_without_being_asked_nothing_is_profiled(tmp_path: Path) -> None:
    """No profile, no trace."""
    _, outcome = train(tmp_path, recipe("run.epochs=1"))
    assert outcome.profile is None


def test_time_of_an_inner_part_is_not_its_outer_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a part of 10 s around another of 30 s, then 60 s in none and a part of 40 s, each has its own; in order."""
    seconds = iter([0, 4, 34, 40, 100, 140])  # at each beginning and end
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))
    with Profiler(CPU, tmp_path) as profiler:
        for _ in range(WARM_UP):
            profiler.end_step()
        with part("outer"), part("inner"):
            pass
        with part("other"):
            pass
        profiler.end_step()
        profile = profiler.result()
    assert profile.percent == {"other": 50, "inner": 37.5, "outer": 12.5}
    assert list(profile.percent) == ["other", "inner", "outer"]
    assert (profile.steps, profile.step_ms) == (1, 80_000)


def test_a_training_that_fails_while_it_is_traced_ends_the_trace(tmp_path: Path) -> None:
    """The next training can be profiled."""
    for _ in range(2):
        with pytest.raises(Stopped):
            train(tmp_path, recipe("run.epochs=8"), profile=True, progress=stop_at(WARM_UP + TIMED + 1))
        assert Profiler.active is None
        shutil.rmtree(tmp_path)
