"""The trainer on a pretended GPU: nothing of the CPU's meets its tensors, and no step waits for it."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from indexer.store import Store
from tests.trainer.pretended_gpu import GPU, PretendedGpu, TwoDevices, pretended_gpu
from tests.trainer.small import (
    CPU,
    FOUR_STEPS,
    Queue,
    Stopped,
    build,
    distilling,
    encoder,
    recipe,
    silent,
    stop_at,
    train,
)
from trainer import distributed, loop
from trainer.evaluate import retrieval_metrics
from trainer.feed import Feed
from trainer.judging import evaluate
from trainer.known import Known
from trainer.objective import Objective
from trainer.objectives import make_objective
from trainer.objectives.cmsf_semi import CMSFSemi
from trainer.parts.coverage import in_order
from trainer.suggest import METHODS as METHODS_OF_CHOICE
from trainer.suggest import suggest


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    """A machine with a GPU."""
    with pretended_gpu(monkeypatch) as found:
        yield found


def test_it_refuses_what_a_gpu_refuses_and_sees_what_waits_for_it(gpu: PretendedGpu) -> None:
    """Tensors of both devices, an index of the other, another generator, NumPy; a value, a mask, a copy."""
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    assert ((there + 1) * torch.tensor(2.0)).device == there[:2].device == GPU
    refused: list[Callable[[], object]] = [
        lambda: here + there,
        lambda: torch.cat([there, here]),
        lambda: here[there.long()],
        lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
    ]
    for call in refused:
        with pytest.raises(TwoDevices):
            call()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert gpu.waits == []
    here.to(GPU, non_blocking=True)
    assert gpu.waits == []
    waiting: list[Callable[[], object]] = [
        lambda: bool(there[0] > 0),
        lambda: there[there > 0],
        lambda: here.to(GPU),
        there.cpu,
        there.tolist,
        lambda: torch.tensor([1.0], device=GPU),
    ]
    for call in waiting:
        before = len(gpu.waits)
        call()
        assert len(gpu.waits) == before + 1


CLASSES = torch.full((40,), -1)
CLASSES[:24] = torch.arange(24) % 4
APART = torch.eye(4, dtype=torch.bool).roll(1, 0) | torch.eye(4, dtype=torch.bool).roll(-1, 0)


def semi(name: str, **keywords: object) -> Callable[[Path], Objective]:
    return lambda _: make_objective(name, encoder(), **keywords)


METHODS: dict[str, tuple[Callable[[Path], Objective], Known | None]] = {
    "stml": (lambda _: build(recipe("objective.head_init=pca")), None),
    "distilled": (lambda path: distilling(path, pretrained_share=0.5, distillation_epochs=1), None),
    "classes": (semi("stml_semi", background_dim=32), Known(CLASSES)),
    "pairs": (semi("stml_semi", background_dim=32), Known(CLASSES, APART)),
    "proxies": (semi("stml_semi", background_dim=32, supervised_loss="proxy_anchor"), Known(CLASSES)),
    "labels alone": (semi("supervised", head_init="pca"), Known(CLASSES)),
    "mean shift": (semi("cmsf_semi", classifier_steps=2), Known(CLASSES)),
}
COLOURS = ("view.brightness=0.4", "view.saturation=0.4", "view.hue=0.1", "view.grey=0.2", "view.rotation_deg=10")
IN_STEPS = (loop._Training._step, Feed.batches, Feed._fetch)


@pytest.mark.parametrize("name", METHODS)
def test_steps_neither_mix_devices_nor_wait(gpu: PretendedGpu, tmp_path: Path, name: str) -> None:
    """Of every method, in bfloat16 and with averaging: losses are read, and so waited for, once an epoch."""
    make, known = METHODS[name]
    objective = make(tmp_path / "published").to(GPU)
    chosen = recipe("run.epochs=1", "run.averaging=0.9", *COLOURS)
    _, outcome = train(tmp_path, chosen, objective, device=GPU, known=known)
    assert outcome.steps >= 2
    assert {parameter.device for parameter in outcome.encoder.parameters()} == {GPU}
    assert gpu.waits_within(*IN_STEPS) == []
    assert gpu.waits_within(loop._Training._read_losses)


def test_nor_does_what_learns_between_epochs(gpu: PretendedGpu, tmp_path: Path) -> None:
    """The classifier of mean shift takes hundreds of steps of its own before each."""
    make, known = METHODS["mean shift"]
    train(tmp_path, recipe("run.epochs=1"), make(tmp_path).to(GPU), device=GPU, known=known)
    assert gpu.waits_within(CMSFSemi._teach_classifier) == []


def test_nor_with_the_papers_optimiser(gpu: PretendedGpu, tmp_path: Path) -> None:
    """What AdamP does of a weight depends on its gradient; whether, the GPU finds out."""
    train(tmp_path, recipe("run.epochs=1", "optimizer.name=adamp"), build(recipe()).to(GPU), device=GPU)
    assert gpu.waits_within(*IN_STEPS) == []


def test_nor_with_scaled_losses_of_images_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In float16, where the pixels of each step come from the machine's memory."""
    with pretended_gpu(monkeypatch, free_bytes=1000) as gpu:
        objective = build(recipe()).to(GPU)
        train(tmp_path, recipe("run.epochs=1", "run.precision=float16"), objective, device=GPU)
        assert gpu.waits_within(*IN_STEPS) == []


@pytest.mark.parametrize(("before", "after"), [(GPU, GPU), (GPU, CPU), (CPU, GPU)])
def test_a_run_goes_on_on_either_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: torch.device, after: torch.device
) -> None:
    """From a checkpoint of the GPU's or of the CPU's, generators, optimiser and scaler of the other one included."""
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    chosen = recipe(*FOUR_STEPS, "run.precision=float16", "run.averaging=0.9")
    with pretended_gpu(monkeypatch):
        with pytest.raises(Stopped):
            train(tmp_path, chosen, Queue(encoder()).to(before), device=before, progress=stop_at(3))
        _, rest = train(tmp_path, chosen, Queue(encoder()).to(after), device=after)
    assert rest.steps == 2


def test_a_run_goes_on_where_losses_are_scaled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Begun in float32 on a CPU, it goes on in float16, which `auto` is on a GPU without bfloat16."""
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    chosen = recipe(*FOUR_STEPS)
    with pretended_gpu(monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
        with pytest.raises(Stopped):
            train(tmp_path, chosen, Queue(encoder()), progress=stop_at(3))
        _, rest = train(tmp_path, chosen, Queue(encoder()).to(GPU), device=GPU)
    assert rest.steps == 2


@pytest.mark.parametrize("name", ["stml", "mean shift"])
def test_processes_of_several_gpus_take_over_the_main_one_s_state(
    gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """What is exchanged is all on the GPU, without a method's own count of epochs, which never is."""
    make, known = METHODS[name]
    objective = make(tmp_path)
    objective.know(known or Known(CLASSES))
    objective.to(GPU)
    sent = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda packed, **_: sent.append(packed.device))
    distributed.copy_main(objective)
    assert sent == [GPU] * len(sent)
    assert len(sent) > 1


def test_embeddings_of_another_build_of_onnx_runtime_are_judged_on_the_gpu(
    gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch, store: Store, tiny_model: str, photos: Path
) -> None:
    """Beside a torch that sees a GPU, auto takes the CPU's ONNX Runtime as it is, and what follows is the GPU's."""
    items = [path.relative_to(photos).as_posix() for path in sorted(photos.rglob("*.*"))]
    table = photos / "labels.csv"
    table.write_text("path,class_id\n" + "".join(f"{item},{row % 3}\n" for row, item in enumerate(items)))
    metrics, _ = evaluate(store.model(tiny_model), photos, table, progress=silent)
    assert metrics.queries == len(items) == 60
    trained = METHODS_OF_CHOICE["usl-t"]
    monkeypatch.setitem(METHODS_OF_CHOICE, "usl-t", partial(trained, steps=20))  # each step is as the one before
    for method in METHODS_OF_CHOICE:
        found = suggest(store.model(tiny_model), photos, 5, method=method, progress=silent)
        assert len({one.source.item for one in found.suggested}) == 5
    assert gpu.waits_within(retrieval_metrics)
    assert gpu.waits_within(in_order)
