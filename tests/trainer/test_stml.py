"""STML's pure functions against the paper's formulas, and what the objective promises."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.trainer import network
from tests.trainer.small import Stopped, distilling, recipe, stop_at, train
from trainer import loop
from trainer.encoders import Encoder, make_backbone
from trainer.loop import Outcome
from trainer.objective import Batch
from trainer.objectives.stml import STML, contextual_similarity, relaxed_contrastive, self_distillation
from trainer.parts.distances import relative_distances
from trainer.parts.heads import set_to_principal_axes
from trainer.parts.neighbours import nearest


def unit(count: int, dim: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


# ---- the oracle: sets and double loops, from the paper's formulas


def oracle_similarity(teacher: Tensor, index: list[int], k: int, sigma: float) -> list[list[float]]:
    """w_ij of section 3.2, with sets."""
    count, points = len(teacher), teacher.tolist()
    kernel = [
        [math.exp(-sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / sigma) for q in points] for p in points
    ]

    def ranked(i: int) -> list[int]:
        score = [2.0 if i == j else 1.0 if index[i] == index[j] else kernel[i][j] for j in range(count)]
        return sorted(range(count), key=lambda j: -score[j])

    k = min(k, count)
    near = [set(ranked(i)[:k]) for i in range(count)]
    mutual = [{j for j in near[i] if i in near[j]} for i in range(count)]
    context = [
        [len(mutual[i] & mutual[j]) / len(mutual[i]) if j in mutual[i] else 0.0 for j in range(count)]
        for i in range(count)
    ]
    half = round(k / 2)
    expanded = [[sum(context[h][j] for h in ranked(i)[:half]) / half for j in range(count)] for i in range(count)]
    return [[(kernel[i][j] + (expanded[i][j] + expanded[j][i]) / 2) / 2 for j in range(count)] for i in range(count)]


def oracle_distances(rows: Tensor) -> list[list[float]]:
    """d_ij of section 3.3."""
    points = rows.tolist()
    distances = [[math.dist(p, q) for q in points] for p in points]
    return [[value / (sum(row) / len(row)) for value in row] for row in distances]


def oracle_relaxed_contrastive(rows: Tensor, w: list[list[float]], delta: float) -> float:
    d, count = oracle_distances(rows), len(rows)
    total = 0.0
    for i in range(count):
        for j in range(count):
            if i != j:
                total += w[i][j] * d[i][j] ** 2 + (1 - w[i][j]) * max(delta - d[i][j], 0.0) ** 2
    return total / (count * (count - 1))


def oracle_self_distillation(rows: Tensor, target: Tensor, temperature: float) -> float:
    def softmax(row: list[float]) -> list[float]:
        powers = [math.exp(-value / temperature) for value in row]
        return [power / sum(powers) for power in powers]

    p, q = map(softmax, oracle_distances(target)), map(softmax, oracle_distances(rows))
    total = sum(a * math.log(a / b) for x, y in zip(p, q, strict=True) for a, b in zip(x, y, strict=True))
    return temperature**2 * total / len(rows)


# ---- golden numbers


ANGLES = torch.tensor([0.0, 10, 21, 90, 103, 180], dtype=torch.float64).deg2rad()
POINTS = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
GOLDEN = {
    (0, 1): 0.963711, (0, 2): 0.915843, (0, 3): 0.350459, (0, 4): 0.220958, (0, 5): 0.131799,
    (1, 2): 0.993913, (1, 3): 0.475715, (1, 4): 0.341656, (1, 5): 0.133140,
    (2, 3): 0.607236, (2, 4): 0.375416, (2, 5): 0.137766,
    (3, 4): 0.887363, (3, 5): 0.423375, (4, 5): 0.631576,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_numbers_of_the_authors_code(dtype: torch.dtype) -> None:
    """Six points on a circle give the similarities and losses that the authors' code gave for them."""
    z = POINTS.to(dtype)
    w = contextual_similarity(z, torch.arange(6), k=4, sigma=3.0)
    f = z * torch.tensor([1.0, 2.0], dtype=dtype)
    rc_f, rc_g, kl = relaxed_contrastive(f, w, 1.0), relaxed_contrastive(z, w, 1.0), self_distillation(f, z, 1.0)
    for (i, j), expected in GOLDEN.items():
        assert expected == pytest.approx(w[i, j].item(), abs=2e-6)
    assert pytest.approx(rc_g.item(), abs=2e-6) == 0.570189
    assert pytest.approx(relaxed_contrastive(z, w, 0.9).item(), abs=2e-6) == 0.567897
    assert pytest.approx(kl.item(), abs=2e-6) == 0.009806
    assert pytest.approx((0.5 * (rc_f + rc_g) + kl).item(), abs=2e-6) == 0.604843


# ---- against the oracle


@pytest.mark.parametrize(("count", "k"), [(2, 2), (5, 3), (12, 4), (12, 5), (20, 10), (8, 50)])
@pytest.mark.parametrize("duplicates", [False, True])
def test_similarity_equals_the_sets_of_the_paper(count: int, k: int, duplicates: bool) -> None:
    """The matrix products equal the set formulas, with and without several views of one image."""
    index = [i // 2 if duplicates else i for i in range(count)]
    if duplicates and k // 2 < 2:
        index = list(range(count))  # more views than k / 2: which of them counts is not defined
    z = unit(count, 6, seed=count + k)
    found = contextual_similarity(z, torch.tensor(index), k, 3.0)
    expected = torch.tensor(oracle_similarity(z, index, k, 3.0), dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("count", [2, 7, 30])
@pytest.mark.parametrize("delta", [1.0, 0.9])
def test_losses_equal_the_double_loops(count: int, delta: float) -> None:
    """Both losses equal their formulas written as loops, in float64."""
    f, g, z = 5 + 3 * unit(count, 4, 1), 2 * unit(count, 9, 2), unit(count, 9, 3)
    w = contextual_similarity(z, torch.arange(count), 4, 3.0)
    expected = oracle_relaxed_contrastive(f, w.tolist(), delta)
    assert expected == pytest.approx(relaxed_contrastive(f, w, delta).item(), rel=1e-9)
    for temperature in (1.0, 0.5):
        expected = oracle_self_distillation(f, g, temperature)
        assert expected == pytest.approx(self_distillation(f, g, temperature).item(), rel=1e-9)


def test_gradients_of_the_losses_are_right() -> None:
    """Backward equals finite differences, through the row means too."""
    w = contextual_similarity(unit(6, 4), torch.arange(6), 4, 3.0)
    rows, target = unit(6, 3, 1).requires_grad_(), unit(6, 4, 2)
    assert torch.autograd.gradcheck(lambda s: relaxed_contrastive(s, w, 1.0), rows)
    assert torch.autograd.gradcheck(lambda s: self_distillation(s, target, 1.0), rows)


# ---- properties


def test_similarity_is_symmetric_and_within_0_and_1() -> None:
    """w is a symmetric matrix in [0, 1]."""
    w = contextual_similarity(unit(40, 8), torch.arange(20).repeat(2), 10, 3.0)
    assert w.min() >= 0
    assert w.max() <= 1
    torch.testing.assert_close(w, w.T)


def test_order_of_the_batch_means_nothing() -> None:
    """Permuting the batch permutes w and leaves the losses."""
    z, f, index, order = unit(24, 8), unit(24, 4, 1), torch.arange(12).repeat(2), torch.randperm(24)
    w = contextual_similarity(z, index, 10, 3.0)
    permuted = contextual_similarity(z[order], index[order], 10, 3.0)
    torch.testing.assert_close(permuted, w[order][:, order])
    torch.testing.assert_close(relaxed_contrastive(f, w, 1.0), relaxed_contrastive(f[order], permuted, 1.0))


def test_rotation_shift_and_scale_mean_nothing() -> None:
    """Losses depend on relative distances only, and w on the angles of the teacher's embeddings."""
    turn = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    z, f = unit(20, 8), unit(20, 8, 1)
    w = contextual_similarity(z, torch.arange(20), 6, 3.0)
    torch.testing.assert_close(contextual_similarity(z @ turn, torch.arange(20), 6, 3.0), w)
    moved = 7 * (f @ turn) + 3
    torch.testing.assert_close(relaxed_contrastive(moved, w, 1.0), relaxed_contrastive(f, w, 1.0))
    torch.testing.assert_close(self_distillation(moved, z, 1.0), self_distillation(f, z, 1.0))


def test_equal_rows_give_finite_losses_and_gradients() -> None:
    """A batch of one image repeated has no distances; nothing becomes NaN."""
    rows = torch.ones(10, 4, requires_grad=True)
    w = contextual_similarity(F.normalize(torch.ones(10, 4)), torch.zeros(10, dtype=torch.int64), 10, 3.0)
    loss = relaxed_contrastive(rows, w, 1.0) + self_distillation(rows, torch.ones(10, 3), 1.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert rows.grad is not None
    assert bool(rows.grad.isfinite().all())
    assert bool((relative_distances(rows) == 0).all())


# ---- the objective


def make(**keywords: Any) -> STML:
    torch.manual_seed(0)
    backbone = make_backbone(network.NAME, "none", size=32)
    return STML(Encoder(backbone, nn.Linear(backbone.channels, 8)), background_dim=96, **keywords)


def batch_of(count: int) -> Batch:
    images = torch.rand(2, count, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return Batch(list(images), torch.arange(count), torch.full((count,), -1))


def test_sum_of_the_terms_is_the_papers_total() -> None:
    """The terms carry their weights: half, half and one."""
    objective, batch = make(), batch_of(8)
    objective.eval()  # BatchNorm alike in both passes
    terms = objective.losses(batch)
    images = torch.cat(batch.views)
    features = objective.encoder.backbone(images)
    f, g = objective.encoder.head(features), objective.background(features)
    w = contextual_similarity(F.normalize(objective.teacher(images)), batch.index.repeat(2), 10, 3.0)
    expected = 0.5 * (relaxed_contrastive(f, w, 1.0) + relaxed_contrastive(g, w, 1.0)) + self_distillation(f, g, 1.0)
    torch.testing.assert_close(torch.stack(list(terms.values())).sum(), expected)


def test_gradient_reaches_the_student_and_never_the_teacher() -> None:
    """Backbone and both heads learn, but for the heads' biases; the teacher has no gradient, and no head f."""
    objective = make()
    torch.stack(list(objective.losses(batch_of(8)).values())).sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in objective.named_parameters():
        still = name.startswith("teacher.") or name in ("encoder.head.bias", "background.bias")
        assert (parameter.grad is None) == still, name
    assert [m.out_features for m in objective.teacher.modules() if isinstance(m, nn.Linear)] == [96]


def test_self_distillation_sends_no_gradient_into_its_target() -> None:
    """Head f learns from g, not g from f."""
    f, g = unit(6, 3).requires_grad_(), unit(6, 4).requires_grad_()
    self_distillation(f, g, 1.0).backward()  # type: ignore[no-untyped-call]
    assert f.grad is not None
    assert g.grad is None


def test_teacher_starts_as_the_student_and_follows_weights_and_buffers() -> None:
    """After one step the teacher is the moving average, running statistics included, and stays in eval mode."""
    objective = make(momentum=0.9)
    teacher, student = objective.teacher[0].state_dict(), objective.encoder.backbone.state_dict()
    before = {name: value.clone() for name, value in teacher.items()}
    for name, value in student.items():
        assert torch.equal(teacher[name], value), name
    mean = next(name for name in teacher if name.endswith("running_mean"))
    objective.train()
    objective.losses(batch_of(8))  # moves the student's running statistics
    assert not any(module.training for module in objective.teacher.modules())
    assert torch.equal(teacher[mean], before[mean])
    objective.after_step(0.5)
    expected = 0.9 * before[mean] + 0.1 * student[mean]
    torch.testing.assert_close(teacher[mean], expected)
    counter = mean.replace("running_mean", "num_batches_tracked")
    assert torch.equal(teacher[counter], student[counter])
    assert student[counter].item() == 1


def embed_all_of(objective: STML, count: int) -> Any:
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))

    def embed_all(embed: Any, _: int = 0) -> Tensor:
        objective.eval()
        with torch.no_grad():
            found: Tensor = embed(images)
        return found

    return embed_all


def test_batches_are_lists_of_neighbours_led_by_their_queries() -> None:
    """Each step has B // n different queries, each followed by its true nearest images under head g."""
    objective = make(neighbours=5)
    embed_all = embed_all_of(objective, 50)
    order = objective.before_epoch(embed_all, 22, 2)
    assert order is not None
    g = embed_all(nn.Sequential(objective.encoder.backbone, objective.background))
    nearest = torch.cdist(g.double(), g.double()).fill_diagonal_(-1).topk(5, largest=False).indices
    assert tuple(order.shape) == (2, 20)
    for step in order.view(2, 4, 5):
        assert len(set(step[:, 0].tolist())) == 4
        for listed in step:
            assert set(nearest[listed[0]].tolist()) == set(listed.tolist())


def test_fewer_images_than_a_batch_use_what_there_is() -> None:
    """Three images, a batch of 120: each step has three lists of three."""
    objective = make(neighbours=5)
    order = objective.before_epoch(embed_all_of(objective, 3), 120, 1)
    assert order is not None
    assert tuple(order.shape) == (1, 9)


def test_pca_heads_keep_the_backbones_distances_and_are_set_once() -> None:
    """The first epoch sets f, g and the teacher; the second leaves what was learned."""
    objective = make(head_init="pca")
    embed_all = embed_all_of(objective, 50)
    objective.before_epoch(embed_all, 20, 2)
    features = embed_all(objective.encoder.backbone)
    wide = objective.background(features)  # more outputs than the rank of 50 images
    assert torch.cdist(wide, wide).mean() > 0.9 * torch.cdist(features, features).mean()
    torch.testing.assert_close(wide.mean(0), torch.zeros(96), atol=1e-4, rtol=0)
    assert torch.equal(objective.teacher.get_parameter("1.weight"), objective.background.weight)
    nn.init.ones_(objective.encoder.head.weight)  # type: ignore[arg-type]
    objective.before_epoch(embed_all, 20, 2)
    assert bool((objective.encoder.head.weight == 1).all())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"neighbours": 1}, "neighbours is 1"),
        ({"sigma": 0.0}, "sigma 0.0"),
        ({"head_init": "zero"}, "'zero'"),
        ({"distillation_epochs": 1}, "to distil, 'pca'"),
        ({"pretrained_share": 1.5}, "pretrained_share is 1.5; it must be 0 to 1"),
    ],
)
def test_bad_keywords_are_named(keywords: dict[str, Any], message: str) -> None:
    """A keyword out of range is an error that names it."""
    with pytest.raises(ValueError, match=message):
        make(**keywords)


def test_batch_smaller_than_a_list_is_an_error() -> None:
    """A batch can't hold one list of neighbours: the error names both numbers."""
    objective = make(neighbours=5)
    with pytest.raises(ValueError, match=r"run\.batch_size is 4; it must be at least objective\.neighbours, 5"):
        objective.check_batch(4)


def embed_sizes(objective: STML, asked: list[int]) -> Any:
    images = torch.rand(30, 3, 64, 64, generator=torch.Generator().manual_seed(2))

    def embed_all(embed: Any, size: int = 0) -> Tensor:
        asked.append(size)
        objective.eval()
        with torch.no_grad():
            found: Tensor = embed(F.interpolate(images, size or 32))
        return found

    return embed_all


def test_epochs_of_distillation_come_before_those_of_stml(tmp_path: Path) -> None:
    """First random images, large ones beside them, heads of what these show; then STML from what was learned."""
    objective, asked = distilling(tmp_path), list[int]()
    embed_all = embed_sizes(objective, asked)
    assert (objective.first_epochs, objective.large_size) == (2, 0)
    assert objective.before_epoch(embed_all, 20, 1) is None
    assert (objective.large_size, asked) == (64, [64])
    wide = objective.background(embed_all(objective.pretrained, 64))
    torch.testing.assert_close(wide.mean(0), torch.zeros(96), atol=1e-4, rtol=0)
    assert objective.before_epoch(embed_all, 20, 1) is None
    with torch.no_grad():
        for parameter in objective.encoder.backbone.parameters():
            parameter.add_(0.1)
    objective.after_step(0.5)
    order = objective.before_epoch(embed_all, 20, 1)
    assert order is not None
    assert (tuple(order.shape), objective.large_size) == ((1, 20), 0)
    learned = dict(objective.encoder.backbone.named_parameters())
    for name, parameter in objective.teacher[0].named_parameters():
        assert torch.equal(parameter, learned[name]), name


def test_distillation_is_the_mean_distance_of_directions_and_moves_the_backbone_alone(tmp_path: Path) -> None:
    """1 - cos to the pretrained features of the large images, image by image; nobody else has a gradient."""
    objective = distilling(tmp_path)
    objective.before_epoch(embed_sizes(objective, []), 20, 1)
    objective.train()
    images = torch.rand(2, 6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    large = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    terms = objective.losses(Batch(list(images), torch.arange(6), torch.full((6,), -1), large))
    assert list(terms) == ["distillation"]
    student, taught = objective.encoder.backbone(images[0]), objective.pretrained(large)  # type: ignore[misc]
    expected = 0.0
    for mine, its in zip(student.tolist(), taught.tolist(), strict=True):
        product = sum(a * b for a, b in zip(mine, its, strict=True))
        expected += (1 - product / math.hypot(*mine) / math.hypot(*its)) / 6
    assert terms["distillation"].item() == pytest.approx(expected, abs=1e-5)
    terms["distillation"].backward()  # type: ignore[no-untyped-call]
    moved = {name.split(".")[0] for name, p in objective.named_parameters() if p.grad is not None}
    assert moved == {"encoder"}
    assert objective.encoder.head.weight.grad is None


@pytest.mark.parametrize("why", ["random", "learned", "as large", "off"])
def test_nothing_is_distilled_where_nothing_can_be(tmp_path: Path, why: str) -> None:
    """Random weights have nothing to teach, a learned head says that the backbone has learned since."""
    if why in ("as large", "off"):
        keywords = {"distillation_size": 32} if why == "as large" else {"distillation_epochs": 0}
        objective = distilling(tmp_path, **keywords)
    else:
        backbone = distilling(tmp_path).encoder.backbone if why == "learned" else make().encoder.backbone
        encoder = Encoder(backbone, nn.Linear(backbone.channels, 8), head_is_trained=why == "learned")
        objective = STML(encoder, head_init="pca", distillation_epochs=2, distillation_size=64)
    assert objective.first_epochs == 0
    assert objective.pretrained is None
    assert objective.before_epoch(embed_sizes(objective, []), 20, 1) is not None
    assert objective.large_size == 0


def test_what_the_pretrained_network_saw_is_part_of_the_labels(tmp_path: Path) -> None:
    """Squared distances are the teacher's and those of whitened pretrained features, by share; unit length stays."""
    objective = distilling(tmp_path, pretrained_share=0.3, whitening=0.5)
    embed_all = embed_sizes(objective, [])
    objective.before_epoch(embed_all, 20, 1)
    features = embed_all(objective.pretrained, 64)
    head = nn.Linear(features.shape[1], features.shape[1])
    set_to_principal_axes(head, features, 0.5)
    with torch.no_grad():
        seen = F.normalize(head(features)[:, :96], dim=1)
    z = F.normalize(torch.randn(4, 96, generator=torch.Generator().manual_seed(3)), dim=1)
    rows = objective._with_seen_large(z, torch.tensor([7, 0, 7, 29]))
    for a, one in enumerate((7, 0, 7, 29)):
        assert rows[a].norm().item() == pytest.approx(1, abs=1e-3)
        for b, other in enumerate((7, 0, 7, 29)):
            expected = 0.7 * (z[a] - z[b]).square().sum() + 0.3 * (seen[one] - seen[other]).square().sum()
            assert (rows[a] - rows[b]).square().sum().item() == pytest.approx(expected.item(), abs=2e-3)


def test_lists_and_labels_are_of_what_the_pretrained_network_saw(tmp_path: Path) -> None:
    """With the whole share, a student that has forgotten everything still gets its lists and its pseudo-labels."""
    objective = distilling(tmp_path, pretrained_share=1.0, distillation_epochs=1)
    embed_all = embed_sizes(objective, [])
    objective.before_epoch(embed_all, 20, 1)
    with torch.no_grad():
        for parameter in objective.background.parameters():
            parameter.zero_()
    order = objective.before_epoch(embed_all, 20, 1)
    assert order is not None
    assert objective.seen_large is not None
    lists = nearest(objective.seen_large.float(), 5)
    assert all(lists[row[0]].tolist() == row.tolist() for row in order.view(-1, 5))


def test_labels_that_are_judged_are_those_that_teach(tmp_path: Path) -> None:
    """None while it distils; then the batch's own w, of the teacher and what the pretrained network saw."""
    objective = distilling(tmp_path, pretrained_share=0.5, distillation_epochs=1)
    embed_all = embed_sizes(objective, [])
    rows = torch.tensor([4, 0, 17, 23, 9])

    def embed(module: nn.Module) -> Tensor:
        return F.normalize(embed_all(module)[rows], dim=1)

    objective.before_epoch(embed_all, 20, 1)
    assert objective.pseudo_labels(embed, rows) is None
    objective.before_epoch(embed_all, 20, 1)
    found = objective.pseudo_labels(embed, rows)

    both = objective._with_seen_large(embed(objective.teacher), rows)
    assert found is not None
    torch.testing.assert_close(found, contextual_similarity(both, rows, objective.context, objective.sigma))


DISTILLED_AND_LEARNED = recipe(
    *("run.epochs=2", "data.cache_size=40"),
    *("optimizer.lr=1e-3", "optimizer.warmup_steps=2", "run.schedule=cosine"),
)


@pytest.fixture(scope="module", params=[0.0, 0.5])
def uninterrupted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[float, Path, dict[str, Tensor], Outcome]:
    """A share of what the pretrained network saw; the directory, the weights and the outcome of a run with it."""
    directory = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_EVERY", 1)
        objective = distilling(directory, pretrained_share=request.param)
        whole, outcome = train(directory, DISTILLED_AND_LEARNED, objective)
    return request.param, directory, whole.state_dict(), outcome


def test_rate_and_optimiser_begin_anew_after_distillation(
    uninterrupted: tuple[float, Path, dict[str, Tensor], Outcome],
) -> None:
    """Two epochs of distillation and two of STML, each with its warm-up and its decay."""
    _, directory, _, outcome = uninterrupted
    assert (outcome.epochs, outcome.steps) == (4, 8)
    log = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    found = [line["lr"] for line in log if "lr" in line]
    assert found == pytest.approx([1.5e-3, 3e-3, 3e-3, 3e-3, 5e-4, 1e-3, 5e-4, 5e-4])
    state = torch.load(max((directory / "checkpoints").iterdir()) / "state.pt", weights_only=True)
    assert {int(moments["step"]) for moments in state["optimizer"]["state"].values()} == {4}
    assert ["distillation" in line for line in log if "lr" in line] == [True] * 4 + [False] * 4


@pytest.mark.parametrize("step", [2, 3, 4, 6])
def test_a_run_resumes_exactly_from_within_and_after_distillation(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    uninterrupted: tuple[float, Path, dict[str, Tensor], Outcome],
) -> None:
    """Stopped in any epoch, a fresh object goes on in the same one, to the weights of a run never stopped."""
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    share, _, weights, _ = uninterrupted
    interrupted = distilling(tmp_path, pretrained_share=share)
    with pytest.raises(Stopped):
        train(tmp_path / "parts", DISTILLED_AND_LEARNED, interrupted, progress=stop_at(step))
    resumed, rest = train(tmp_path / "parts", DISTILLED_AND_LEARNED, distilling(tmp_path, pretrained_share=share))
    assert rest.steps == 8 - (step - 1)
    for name, value in weights.items():
        assert torch.equal(value, resumed.state_dict()[name]), name
