"""`kinsight train --profile`: a small training that says where its time went."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clients.cli.command import kinsight
from tests.trainer import network


def train(photos: Path, store: Path, *options: str) -> Result:
    """60 photos in batches of 20: three steps an epoch."""
    tiny = ["--backbone", network.NAME, "--weights", "none", "--size", "32", "--dim", "16"]
    steps = ["--set", "run.batch_size=20", "--set", "run.least_steps=1"]
    words = ["train", str(photos), "--store", str(store), *tiny, *steps, "--profile"]
    result = CliRunner().invoke(kinsight, [*words, *options])
    assert result.exit_code == 0
    return result


@pytest.mark.slow
def test_shares_are_told_on_stderr_and_in_the_json(photos: Path, tmp_path: Path) -> None:
    """Both list the parts of a step with their percent, and name the trace in the run's folder."""
    result = train(photos, tmp_path, "--epochs", "6", "--json")
    found = json.loads(result.stdout)
    profile = found["profile"]
    assert sum(profile["percent"].values()) == pytest.approx(100)
    assert Path(profile["trace"]) == tmp_path / "runs" / found["run"] / "trace.json.gz"
    assert Path(profile["trace"]).stat().st_size > 0
    said = result.stderr.splitlines()
    start = said.index(f"{profile['step_ms']:,.0f} ms a step, mean of 10:")
    lines = [f"{percent:5.1f} %  {name}" for name, percent in profile["percent"].items()]
    assert said[start + 1 : start + 1 + len(lines)] == lines
    assert said[start + 1 + len(lines)] == f"trace, for ui.perfetto.dev: {profile['trace']}"


@pytest.mark.slow
def test_too_short_a_training_is_not_timed_and_says_so(photos: Path, tmp_path: Path) -> None:
    """Three steps only warm up: no shares, no trace, one line that says why."""
    result = train(photos, tmp_path, "--epochs", "1", "--json")
    assert json.loads(result.stdout)["profile"] == {"percent": {}, "steps": 0, "step_ms": 0.0, "trace": None}
    assert "profile: the training ended within its first steps, which are not timed" in result.stderr
