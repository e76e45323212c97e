"""Several processes train as one: two real ones over gloo, in the real loop, against one with the whole batch."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.small import (
    CPU,
    FOUR_STEPS,
    Queue,
    Stopped,
    build,
    distilling,
    encoder,
    images,
    recipe,
    stop_at,
    train,
)
from trainer import distributed, loop
from trainer.feed import Feed
from trainer.objective import Objective, View
from trainer.parts import neighbours

ROOT = Path(__file__).parents[2]
PROCESSES = 2


# ---- what each process does; the same functions run in one process for comparison


def learn(directory: Path, objective: Objective, *changes: str) -> dict[str, Any]:
    """Train; the weights, their average, the losses of all steps and the gradients of the first."""
    gradients: dict[str, Tensor] = {}

    def progress(stage: str, done: int, _: int) -> None:
        if stage == "train" and done == 1:
            found = {name: p.grad for name, p in objective.named_parameters()}
            gradients.update({name: grad.clone() for name, grad in found.items() if grad is not None})

    _, outcome = train(directory, recipe("run.averaging=0.7", *changes), objective, progress=progress)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": objective.state_dict(),
        "averaged": outcome.encoder.backbone.state_dict(),
        "losses": [line["loss"] for line in lines],
        "gradients": gradients,
    }


def train_stml(directory: Path) -> dict[str, Any]:
    return learn(directory, build(recipe("objective.head_init=pca"), freeze_bn=True))


def train_distilled(directory: Path) -> dict[str, Any]:
    """With axes that point the other way in the second process, as another device's eigensolver may have them."""
    own = directory / str(distributed.rank())
    # No more axes than 40 images have: the others are arbitrary.
    objective = distilling(own, background_dim=32, pretrained_share=0.5, distillation_epochs=1)
    keep = objective._keep_seen_large

    def keep_mirrored(features: Tensor) -> None:
        keep(features)
        assert objective.seen_large is not None
        objective.seen_large *= 1 - 2 * distributed.rank()

    objective._keep_seen_large = keep_mirrored  # type: ignore[method-assign]
    return learn(directory, objective, "run.epochs=1", "data.cache_size=40")


def train_without_frozen_norms(directory: Path) -> dict[str, Any]:
    return learn(directory, build(recipe()))


def train_uninterrupted(directory: Path) -> dict[str, Any]:
    objective = Queue(encoder())
    return {**learn(directory, objective, *FOUR_STEPS), "shares": objective.shares}


def train_interrupted(directory: Path) -> dict[str, Any]:
    """Stopped in the third of four steps, when the newest checkpoint is that of the second; then continued."""
    with pytest.raises(Stopped):
        train(directory, recipe("run.averaging=0.7", *FOUR_STEPS), Queue(encoder()), progress=stop_at(3))
    newest = max(path.name for path in (directory / "checkpoints").iterdir())
    return {**learn(directory, Queue(encoder()), *FOUR_STEPS), "newest": newest}


def train_in_unequal_shares(directory: Path) -> dict[str, Any]:
    with pytest.raises(distributed.DistributedError) as raised:
        train(directory, recipe("run.batch_size=5"), Queue(encoder()))
    return {"error": str(raised.value)}


def train_in_shares_that_turn_unequal(directory: Path) -> dict[str, Any]:
    """Eight images in distillation, and one list of five neighbours in what follows."""
    objective = distilling(directory / str(distributed.rank()), distillation_epochs=1)
    steps: list[int] = []
    with pytest.raises(distributed.DistributedError) as raised:
        train(directory, recipe("run.batch_size=8"), objective, progress=lambda _, done, __: steps.append(done))
    return {"error": str(raised.value), "steps": steps}


def begin_alone(directory: Path) -> None:
    """Batches of five images, by one process, stopped within the epoch."""
    with pytest.raises(Stopped):
        train(directory, recipe("run.batch_size=5"), Queue(encoder()), progress=stop_at(3))


def go_on_in_unequal_shares(directory: Path) -> dict[str, Any]:
    with pytest.raises(distributed.DistributedError) as raised:
        train(directory, recipe("run.batch_size=5"), Queue(encoder()))
    return {"error": str(raised.value)}


def gather_and_go_back(_: Path) -> dict[str, Any]:
    """Rows 0 to 11 as two views of six images; the loss weighs them, in each process otherwise."""
    rows = torch.arange(12.0).view(2, 6)
    own = distributed.own_share(rows.T).T.flatten()[:, None].requires_grad_()
    gathered = distributed.gather(own, views=2)
    weight = torch.arange(1.0, 13)[:, None] * (distributed.rank() + 1)
    (gathered * weight).sum().backward()  # type: ignore[no-untyped-call]
    return {"gathered": gathered.flatten(), "gradient": own.grad, "index": distributed.gather(own.long())}


def embed_seven(_: Path) -> dict[str, Any]:
    done: list[tuple[str, int, int]] = []
    feed = Feed(images(7), [View()], 24, 24, CPU, 0, torch.full((7,), -1))
    found = feed.embed_all(lambda batch: batch.mean((2, 3)), lambda *report: done.append(report))
    return {"embeddings": found, "last": done[-1]}


def list_neighbours(_: Path) -> dict[str, Any]:
    """Of 41 images, which two processes can't halve; counts the rows that this one searched for."""
    searched: list[int] = []
    search = neighbours.most_similar

    def counted(queries: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        searched.append(len(queries))
        return search(queries, *rest)

    objective = build(recipe())
    features = torch.randn(41, objective.encoder.backbone.channels, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "most_similar", counted)
        order = objective.before_epoch(lambda *_: features, 20, 2)
    return {"order": order, "searched": sum(searched)}


def values(_: Path) -> dict[str, Any]:
    number = distributed.rank()
    return {"main": distributed.from_main(lambda: number + 5), "all": distributed.from_all(number)}


JOBS: list[Callable[[Path], dict[str, Any]]] = [
    train_stml,
    train_distilled,
    train_without_frozen_norms,
    train_uninterrupted,
    train_interrupted,
    train_in_unequal_shares,
    train_in_shares_that_turn_unequal,
    go_on_in_unequal_shares,
    gather_and_go_back,
    embed_seven,
    list_neighbours,
    values,
]


def run_jobs(directory: Path) -> None:
    """What each child process runs."""
    torch.set_num_threads(1)
    loop.LOG_EVERY, loop.SAVE_EVERY_S = 1, 0.0  # a checkpoint after each step
    if os.environ["RANK"] == "0":
        begin_alone(directory / go_on_in_unequal_shares.__name__)
    with distributed.joined(CPU) as device:
        assert device == CPU
        results = {job.__name__: job(directory / job.__name__) for job in JOBS}
        torch.save(results, directory / f"{distributed.rank()}.pt")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """Of each process, what its jobs found."""
    directory = tmp_path_factory.mktemp("processes")
    code = "import sys; from pathlib import Path; from tests.trainer.test_distributed import run_jobs; "
    command = [sys.executable, "-c", code + "run_jobs(Path(sys.argv[1]))", str(directory)]
    shared = {"WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment = {**os.environ, **shared, "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(command, cwd=ROOT, env={**environment, "RANK": str(rank)}) for rank in range(PROCESSES)
    ]
    try:
        assert [child.wait(timeout=300) for child in children] == [0] * PROCESSES
    finally:
        for child in children:
            child.kill()
    return [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], dict[str, Any]]], Any]:
    """A function that does a job in this one process."""
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    return lambda job: job(tmp_path)


# ---- what is promised


@pytest.mark.parametrize("job", [train_stml, train_distilled])
def test_two_processes_learn_what_one_does(found: Any, alone: Any, job: Callable[[Path], dict[str, Any]]) -> None:
    """Losses, gradients and weights of STML after four steps equal those of one process with the whole batches."""
    expected = alone(job)
    for process in found:
        for what in ("losses", "gradients"):
            torch.testing.assert_close(process[job.__name__][what], expected[what], atol=1e-5, rtol=0)
        for what in ("weights", "averaged"):  # Adam scales rounding errors of small gradients up
            torch.testing.assert_close(process[job.__name__][what], expected[what], atol=3e-5, rtol=0)


def test_shares_are_disjoint_and_together_the_batch(found: Any, alone: Any) -> None:
    """Each process draws half of each batch, in the order of the one process, and every image once."""
    first, second = (process["train_uninterrupted"]["shares"] for process in found)
    expected = alone(train_uninterrupted)["shares"]
    assert expected == [own + other for own, other in zip(first, second, strict=True)]
    assert sorted(row for share in first + second for row in share) == list(range(40))


@pytest.mark.parametrize("job", ["train_uninterrupted", "train_without_frozen_norms", "train_interrupted"])
def test_all_processes_end_with_the_same_weights(found: Any, job: str) -> None:
    """Not a bit differs, dropout and running statistics of each process's own images notwithstanding."""
    first, second = (process[job] for process in found)
    for what in ("weights", "averaged"):
        torch.testing.assert_close(first[what], second[what], atol=0, rtol=0)


def test_training_resumes_exactly_in_every_process(found: Any) -> None:
    """Stopped in the middle of an epoch, queue, dropout, order and optimiser go on: 2 + 2 steps are 4, to the bit."""
    for process in found:
        interrupted, whole = process["train_interrupted"], process["train_uninterrupted"]
        assert interrupted["newest"] == "step-000000002-00000"
        assert interrupted["losses"] == whole["losses"]
        for what in ("weights", "averaged"):
            torch.testing.assert_close(interrupted[what], whole[what], atol=0, rtol=0)


@pytest.mark.parametrize("job", ["train_in_unequal_shares", "go_on_in_unequal_shares"])
def test_unequal_shares_are_an_error_naming_both_numbers(found: Any, job: str) -> None:
    """Five images can't be halved; all processes say so, also where one alone began the epoch."""
    for process in found:
        assert "5 images, which 2 processes can't share equally" in process[job]["error"]


def test_shares_that_turn_unequal_are_an_error_before_the_first_step(found: Any) -> None:
    """And it names the next batch size whose steps are equal throughout."""
    for process in found:
        job = process["train_in_shares_that_turn_unequal"]
        assert job["error"].startswith("a step has 5 images, which 2 processes can't share equally; ")
        assert "set run.batch_size=10, or start another number" in job["error"]
        assert job["steps"] == []


def test_gathered_rows_are_in_the_order_of_one_process_and_gradients_flow_to_all(found: Any) -> None:
    """Views stay together; a row's gradient is the sum of what every process's loss says about it."""
    for rank, process in enumerate(found):
        rows = [row for view in (0, 6) for row in range(view + 3 * rank, view + 3 * rank + 3)]
        job = process["gather_and_go_back"]
        assert job["gathered"].tolist() == list(range(12))
        assert job["gradient"].flatten().tolist() == [(row + 1) * (1 + 2) for row in rows]
        assert sorted(job["index"].flatten().tolist()) == list(range(12))


def test_the_set_is_embedded_in_parts(found: Any, alone: Any) -> None:
    """Seven images, four and three: each process has the embeddings of all, in order, and no image twice."""
    expected = alone(embed_seven)
    for process in found:
        torch.testing.assert_close(process["embed_seven"]["embeddings"], expected["embeddings"])
        assert process["embed_seven"]["last"] == ("embed", 7, 7)


def test_each_process_searches_for_the_neighbours_of_its_share(found: Any, alone: Any) -> None:
    """Of 41 images, 21 each; all have the batches that one process makes."""
    expected = alone(list_neighbours)
    assert expected["searched"] == 41
    for process in found:
        assert process["list_neighbours"]["searched"] == 21
        assert torch.equal(process["list_neighbours"]["order"], expected["order"])


def test_values_pass_between_processes(found: Any, alone: Any) -> None:
    """All get the main process's value, and the values of all in order."""
    assert [process["values"] for process in found] == [{"main": 5, "all": [0, 1]}] * 2
    assert alone(values) == {"main": 5, "all": [0]}


def test_more_processes_than_gpus_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for which there is no GPU names both numbers and the option to change."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"WORLD_SIZE": "4", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(distributed.DistributedError, match=r"4 processes .* sees 2; use torchrun --nproc-per-node 2"),
        distributed.joined(torch.device("cuda")),
    ):
        pass


# ---- under torchrun itself

STEPS = "--set run.batch_size=20 --set run.least_steps=1"
TINY = f"--backbone test_resnet --weights none --size 32 --dim 16 {STEPS} --json"


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What the command printed: one JSON object, though two processes ran it."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    result: dict[str, Any] = json.loads(output)
    return result


@pytest.mark.slow
def test_the_command_killed_under_torchrun_resumes_to_the_same_model(photos: Path, tmp_path: Path) -> None:
    """Two processes, one killed in the middle, --resume: the model is that of a run never killed, to the digest."""
    # Without -- torchrun refuses --run, which its own --run-path begins with.
    command = ["-m", "--", "clients.cli", "train", str(photos)]
    train = [*command, *f"{TINY} --run mine --epochs 12 --store".split()]
    (photos / "empty.jpg").touch()
    output, told = torchrun(*train, str(tmp_path / "whole")).communicate(timeout=300)
    assert told.count("warning: skipped 1 of the 61 images, for example empty.jpg: ") == 1
    whole = json.loads(output)
    (run,) = (tmp_path / "whole" / "runs").iterdir()
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "loss" in line] == list(range(3, 37, 3))

    killed = torchrun(*train, str(tmp_path / "killed"))
    runs, deadline = tmp_path / "killed" / "runs", time.monotonic() + 120
    while not list(runs.glob("*/checkpoints/step-*")) and time.monotonic() < deadline:
        assert killed.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.kill(workers_of(killed)[1], signal.SIGKILL)
    killed.communicate(timeout=60)
    assert killed.returncode == 1
    (run,) = runs.iterdir()
    assert run.name == "mine"
    assert not (run / "report.html").exists()
    resume = [*command, "--json", "--store", str(tmp_path / "killed"), "--resume"]
    resumed = result_of(torchrun(*resume, run.name))
    assert (resumed["run"], resumed["model"]) == (run.name, whole["model"])


@pytest.mark.slow
def test_shares_that_are_not_equal_cost_no_decoding(photos: Path, tmp_path: Path) -> None:
    """Of the whole command: nothing of a run is begun where all that its steps depend on is the recipe."""
    command = ["-m", "clients.cli", "train", str(photos), *TINY.split(), "--set", "run.batch_size=15"]
    process = torchrun(*command, "--store", str(tmp_path / "store"))
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "a step has 15 images, which 2 processes can't share equally; set run.batch_size=20, or start" in told
    assert not (tmp_path / "store" / "runs").exists()


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun started, in the order of their ranks."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranked = {int(rank): int(child) for child in children if (rank := rank_of(child)) is not None}
    return [ranked[rank] for rank in sorted(ranked)]


def rank_of(pid: str) -> str | None:
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return next((value for name, _, value in (v.partition("=") for v in variables) if name == "RANK"), None)


_FAILS = """
from pathlib import Path
from tests.trainer.small import CPU, stop_at, train
from trainer.distributed import joined, rank

with joined(CPU):
    train(Path({directory!r}), progress=stop_at(2) if rank() == 1 else lambda *_: None)
"""


@pytest.mark.slow
def test_an_exception_in_one_process_ends_all(tmp_path: Path) -> None:
    """The one that waits for the other's gradients does not wait for ever."""
    script = tmp_path / "fails.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})" + _FAILS.format(directory=str(tmp_path)))
    process = torchrun(str(script))
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Stopped" in told
