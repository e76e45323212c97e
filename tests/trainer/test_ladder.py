"""The ladder's variants against naive loops, and the whole command on a few small pictures."""

import csv
import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from tests.benchmarks import ladder
from tests.benchmarks.rungs import RUNGS, contrastive
from tests.trainer import network
from tests.trainer.test_stml import oracle_relaxed_contrastive, oracle_self_distillation, oracle_similarity
from trainer import recipe as recipes
from trainer.encoders import Encoder, make_backbone
from trainer.objective import Batch
from trainer.objectives.stml import STML

SETTINGS = (
    f"encoder.backbone={network.NAME}",
    "encoder.weights=none",
    "encoder.dim=8",
    "data.size=32",
    "data.cache_size=32",
    "objective.background_dim=16",
    "run.batch_size=10",
    "run.least_steps=1",
    "run.epochs=2",
)


# ---- the variants


def build(rung: str) -> STML:
    method = RUNGS[rung].method
    assert method is not None
    torch.manual_seed(0)
    backbone = make_backbone(network.NAME, "none", size=32)
    return method(Encoder(backbone, nn.Linear(backbone.channels, 8)), background_dim=16, context=4)


def parts_of(objective: STML, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings f and g, the teacher's in unit length, and the index of each row."""
    images = torch.cat(batch.views)
    with torch.no_grad():
        features = objective.encoder.backbone(images)
        z = F.normalize(objective.teacher(images), dim=1)
        return objective.encoder.head(features), objective.background(features), z, batch.index.repeat(2)


def oracle_pairwise(z: Tensor, sigma: float) -> list[list[float]]:
    return [[math.exp(-(math.dist(a, b) ** 2) / sigma) for b in z.tolist()] for a in z.tolist()]


def oracle_hard(similarity: list[list[float]]) -> list[list[float]]:
    hard = [[1.0 if value > 0.5 else 0.0 for value in row] for row in similarity]
    apart = sum(value == 0 for row in hard for value in row)
    assert 0 < apart < len(hard) * (len(hard) - 1)  # a batch that tests nothing otherwise
    return hard


def oracle_contrastive(rows: Tensor, alike: list[list[float]], margin: float) -> float:
    units = [[value / math.hypot(*row) for value in row] for row in rows.tolist()]
    total = 0.0
    for i, a in enumerate(units):
        for j, b in enumerate(units):
            if i != j:
                total += math.dist(a, b) ** 2 if alike[i][j] else max(margin - math.dist(a, b), 0) ** 2
    return total / (len(units) * (len(units) - 1))


@pytest.fixture
def batch() -> Batch:
    """Six images in two views, two of them alike but for a little noise."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 6, 3, 32, 32, generator=generator)
    images[:, 1] = images[:, 0] + 0.01 * torch.rand(2, 3, 32, 32, generator=generator)
    return Batch(list(images), torch.arange(6), torch.full((6,), -1))


def expected_terms(rung: str, objective: STML, batch: Batch) -> dict[str, float]:
    """What a rung's terms should be, by loops over the batch."""
    f, g, z, index = parts_of(objective, batch)
    similarity = oracle_similarity(z, index.tolist(), k=4, sigma=3.0)
    if rung == "pairwise":
        similarity = oracle_pairwise(z, sigma=3.0)
    if rung in ("hard-labels", "contrastive"):
        similarity = oracle_hard(similarity)
    plain = rung == "contrastive"
    name, loss = ("contrastive", oracle_contrastive) if plain else ("relaxed_contrastive", oracle_relaxed_contrastive)
    terms = {f"{name}_f": loss(f, similarity, 1.0) / 2, f"{name}_g": loss(g, similarity, 1.0) / 2}
    if rung != "no-distillation":
        terms["self_distillation"] = oracle_self_distillation(f, g, 1.0)
    return terms


@pytest.mark.parametrize("rung", ["stml", "pairwise", "hard-labels", "no-distillation", "contrastive"])
def test_terms_of_each_variant_equal_their_formulas(rung: str, batch: Batch) -> None:
    """Each rung's terms are STML's but for the piece that it replaces."""
    objective = build(rung).eval()
    terms = {name: value.item() for name, value in objective.losses(batch).items()}
    assert expected_terms(rung, objective, batch) == pytest.approx(terms, rel=1e-4)


def test_contrastive_loss_has_finite_gradients_where_rows_are_equal() -> None:
    """Two equal rows, alike or not, send no NaN into the backbone."""
    rows = torch.tensor([[1.0, 0], [2.0, 0], [0, 1.0]], requires_grad=True)
    for alike in (torch.zeros(3, 3), torch.ones(3, 3)):
        contrastive(rows, alike, 1.0).backward()  # type: ignore[no-untyped-call]
    assert rows.grad is not None
    assert bool(rows.grad.isfinite().all())


def test_random_batches_are_as_many_and_as_large_and_no_lists() -> None:
    """Steps and images equal STML's; no image comes twice in a step, and each epoch draws others."""
    features = torch.randn(60, 96, generator=torch.Generator().manual_seed(2))
    objective = build("random-batches")
    lists, first, second = (order._batches(features, 20, 3) for order in (build("stml"), objective, objective))
    assert lists.shape == first.shape == second.shape == (3, 20)
    assert [len(set(step)) for step in (*first.tolist(), *second.tolist())] == [20] * 6
    assert not torch.equal(first, second)


def test_without_ema_the_teacher_is_the_student_after_each_step() -> None:
    """Momentum 0 copies the student."""
    chosen = RUNGS["no-ema"].recipe(recipes.load("stml"), seed=0)
    backbone = make_backbone(network.NAME, "none", size=32)
    objective = STML(Encoder(backbone, nn.Linear(backbone.channels, 8)), **chosen.objective.keywords)
    nn.init.ones_(objective.background.weight)
    objective.after_step(0.5)
    assert torch.equal(objective.teacher.get_parameter("1.weight"), objective.background.weight)


def test_the_papers_rung_keeps_its_own_recipe_on_the_ladders_images_and_epochs() -> None:
    """Only images, epochs, seed and the encoder, but for the scale of its features, are the ladder's."""
    base = recipes.override(recipes.load("stml"), "run.epochs=7", "objective.neighbours=3", "data.size=112")
    paper, chosen = recipes.load("stml-paper"), RUNGS["paper"].recipe(base, seed=5)
    encoder = dataclasses.replace(base.encoder, unit_length=False)
    assert (base.data, encoder, 7, 5) == (chosen.data, chosen.encoder, chosen.run.epochs, chosen.run.seed)
    assert (paper.objective, paper.optimizer, paper.view) == (chosen.objective, chosen.optimizer, chosen.view)


# ---- the command


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """24 pictures of 6 colours; the labels keep 3 of the colours for judging."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (6, 3))
    rows = []
    for number in range(24):
        kind = number % 6
        pixels = (colours[kind] + rng.integers(-20, 21, (32, 32, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02d}.png")
        rows.append((f"{number:02d}.png", kind, "train" if kind < 3 else "test"))
    table = tmp_path / "labels.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "class_id", "split"), *rows])
    return table


def climb(labels: Path, capsys: pytest.CaptureFixture[str], *rungs: str, seeds: tuple[int, ...] = (0, 1)) -> str:
    out = labels.parent / "out"
    command = [str(labels.parent), "--labels", str(labels), "--out", str(out), "--seeds", *map(str, seeds)]
    ladder.main([*command, "--rungs", *rungs, "--set", *SETTINGS])
    return capsys.readouterr().out


def results(labels: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (labels.parent / "out" / "results.jsonl").read_text().splitlines()]


def test_rungs_run_once_and_their_table_has_the_means(labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two rungs train and judge; the same command again trains nothing; another seed is added to the table."""
    rungs = ("frozen", "contrastive", "stml")
    first = climb(labels, capsys, *rungs)
    lines = results(labels)
    assert [(rung, seed) for seed in (0, 1) for rung in rungs] == [(line["rung"], line["seed"]) for line in lines]
    assert [len(line["recall_at_1_by_epoch"]) for line in lines] == [0, 2, 2] * 2
    assert first == climb(labels, capsys, *rungs)
    assert lines == results(labels)

    again = climb(labels, capsys, "stml", seeds=(0, 1, 2))
    stml = [line["metrics"]["map_at_r"] for line in results(labels) if line["rung"] == "stml"]
    assert len(stml) == 3
    cell = f"{statistics.mean(stml):.3f} ± {statistics.stdev(stml):.3f}".replace("0.", ".")
    row = next(line for line in again.splitlines() if line.startswith("| full STML |"))
    assert cell == row.split(" | ")[5]
    assert row.split(" | ")[6] == "0 1 2"
    assert f"--rungs stml --set {SETTINGS[0]}" in again
    assert "hardware: " in again


def test_a_killed_rung_goes_on_from_its_checkpoint(
    labels: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an end between the epochs of a rung, only the second epoch is trained, and both are in its result."""
    climb(labels, capsys, "stml", seeds=(0,))
    whole = results(labels)[0]
    (labels.parent / "out" / "results.jsonl").unlink()

    class Killed(Exception):
        pass

    judge, calls = ladder.Collection.judge, 0

    def judge_once(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Killed
        return judge(*arguments)

    monkeypatch.setattr(ladder.Collection, "judge", judge_once)
    with pytest.raises(Killed):
        climb(labels, capsys, "stml", seeds=(0,))
    assert not (labels.parent / "out" / "results.jsonl").exists()
    climb(labels, capsys, "stml", seeds=(0,))
    resumed = results(labels)[0]
    assert calls == 3  # of the first epoch, of the killed second, and of its second try
    for name in ("metrics", "recall_at_1_by_epoch", "recipe"):
        assert whole[name] == resumed[name]
