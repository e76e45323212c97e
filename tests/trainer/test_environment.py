"""environment.json: what a run ran on, and of which commit."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer import environment
from trainer.environment import ENVIRONMENT, choose_device, peak_memory, record_environment

CPU = torch.device("cpu")
COMMON = ["-c", "user.name=x", "-c", "user.email=x@localhost", "-c", "commit.gpgsign=false"]


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", folder, *COMMON, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, and in it, not of it, a folder where the code is installed."""
    git(tmp_path, "init", "-q")
    (tmp_path / "other.txt").write_text("of another project")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    code = tmp_path / "venv"
    code.mkdir()
    (code / "environment.py").write_text("")
    monkeypatch.setattr(environment, "_CODE", code)
    return tmp_path


def test_it_says_what_decides_the_numbers(tmp_path: Path) -> None:
    """Versions, device, cores, seed and the command are there, and what is returned is what is written."""
    found = record_environment(tmp_path, CPU, seed=7)
    assert found == json.loads((tmp_path / ENVIRONMENT).read_text())
    assert (found["seed"], found["torch"], found["numpy"]) == (7, torch.__version__.split("+")[0], np.__version__)
    assert {"command", "commit", "kinsight", "python", "timm", "device", "cores", "threads", "started"} <= set(found)
    assert found["device"]
    assert found["cores"] >= 1


def test_a_resumed_run_keeps_what_it_ran_on_before(tmp_path: Path) -> None:
    """Each process adds itself; a damaged file is written anew."""
    first = record_environment(tmp_path, CPU, seed=1)
    second = record_environment(tmp_path, CPU, seed=2)
    third = record_environment(tmp_path, CPU, seed=3)
    assert [before["seed"] for before in third["earlier"]] == [1, 2]
    assert [first["started"], second["started"]] == [before["started"] for before in third["earlier"]]
    (tmp_path / ENVIRONMENT).write_text("[1")
    assert record_environment(tmp_path, CPU, seed=4)["earlier"] == []


def test_the_commit_is_that_of_the_code(checkout: Path, tmp_path: Path) -> None:
    """None where the code is not of the checkout around it; marked where tracked files differ from the commit."""
    (checkout / "run").mkdir()
    assert record_environment(checkout / "run", CPU, seed=0)["commit"] is None
    git(checkout, "add", "venv")
    git(checkout, "commit", "-qm", "the code")
    head = git(checkout, "rev-parse", "HEAD")
    assert head == record_environment(checkout / "run", CPU, seed=0)["commit"]
    (checkout / "venv" / "environment.py").write_text("changed")
    assert f"{head}-dirty" == record_environment(checkout / "run", CPU, seed=0)["commit"]


def test_a_gpu_multiplies_in_float32_whatever_its_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1, which NVIDIA's containers set."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert choose_device("auto") == torch.device("cuda")
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def test_a_machine_without_git_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where git is not installed the run goes on and the commit is unknown."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record_environment(tmp_path, CPU, seed=0)["commit"] is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the same in another place")
def test_peak_memory_is_what_the_system_says() -> None:
    """The peak of the process, in bytes, is Linux's high-water mark of its resident memory."""

    def high_water() -> int:
        (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    # The kernel sums the two up at different moments.
    assert peak_memory(CPU)["process"] == pytest.approx(high_water(), rel=0.02)
