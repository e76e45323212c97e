"""Metrics against plain loops, pytorch-metric-learning and scikit-learn, and in bounded memory."""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn import functional as F

from trainer.evaluate import retrieval_metrics
from trainer.parts import neighbours


def clustered(classes: int, per_class: int, noise: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(per_class)[
        torch.randperm(classes * per_class, generator=generator)
    ]
    centres = torch.randn(classes, 16, generator=generator)
    points = centres[labels] + noise * torch.randn(len(labels), 16, generator=generator)
    return F.normalize(points, dim=1), labels


def uneven(count: int = 120) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of exactly unit length full of duplicates and ties, of large, small and single classes; queries."""
    generator = torch.Generator().manual_seed(3)
    signs = torch.randint(2, (count, 4), generator=generator) * 2.0 - 1
    embeddings = signs.repeat(1, 4) / 4  # similarities are exact in float32, whatever the order of the sum
    labels = (torch.rand(count, generator=generator) ** 3 * 30).long()
    return embeddings, labels, torch.rand(count, generator=generator) < 0.4


def naive(embeddings: Tensor, labels: Tensor, is_query: Tensor | None, ks: list[int]) -> dict[str, float]:
    """The definitions, one query and one neighbour at a time."""
    rows = range(len(labels))
    gallery = [row for row in rows if is_query is None or not is_query[row]]
    sums: dict[str, float] = defaultdict(float)
    for query in [row for row in rows if is_query is None or is_query[row]]:
        similarity = {row: float(embeddings[query] @ embeddings[row]) for row in gallery if row != query}
        ranked = sorted(similarity, key=lambda row: (-similarity[row], row))
        hits = [bool(labels[row] == labels[query]) for row in ranked]
        if not (right := sum(hits)):
            continue
        sums["queries"] += 1
        for k in ks:
            sums[f"recall_at_{k}"] += any(hits[:k])
        sums["r_precision"] += sum(hits[:right]) / right
        sums["map_at_r"] += sum(sum(hits[: i + 1]) / (i + 1) for i in range(right) if hits[i]) / right
        votes: dict[int, float] = defaultdict(float)
        for row in ranked[:20]:
            votes[int(labels[row])] += np.exp(similarity[row] / 0.07)
        first = next(row for row in ranked if votes[int(labels[row])] >= max(votes.values()) * (1 - 1e-12))
        sums["knn_accuracy"] += bool(labels[first] == labels[query])
    queries = sums.pop("queries")
    return {name: total / queries for name, total in sums.items()} | {"queries": queries}


@pytest.mark.parametrize("among_gallery", [False, True])
@pytest.mark.parametrize("ks", [[1, 3, 10], [1, 1000]], ids=["few", "more than there are"])
@pytest.mark.parametrize("tile", [(16384, 2**21), (50, 2000), (1, 1)])
def test_agrees_with_plain_loops_whatever_the_tiles(
    among_gallery: bool, ks: list[int], tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every metric equals its definition, with duplicates, ties, large and single classes, in one tile or many."""
    embeddings, labels, is_query = uneven()
    asked = is_query if among_gallery else None
    monkeypatch.setattr(neighbours, "_COLUMNS", tile[0])
    monkeypatch.setattr(neighbours, "_TILE", {"cpu": tile[1]})

    found = retrieval_metrics(embeddings, labels, is_query=asked, recall_at=ks, clusters=False)

    assert naive(embeddings, labels, asked, ks) == pytest.approx(found.to_dict(), abs=1e-12)


# In a process of its own: the package replaces the search methods of FAISS for everyone in the process.
_ORACLE = """
import json, sys
import numpy as np, torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
names = ("precision_at_1", "mean_average_precision_at_r", "r_precision")
calculator = AccuracyCalculator(include=names, knn_func=CustomKNN(CosineSimilarity(), batch_size=64))
given = [{name: torch.tensor(part) for name, part in np.load(file).items()} for file in sys.argv[1:]]
print(json.dumps([calculator.get_accuracy(**sides) for sides in given]))
"""


# What it prints for the embeddings of `mixed`, leave-one-out and among a gallery.
_RECORDED = (
    {
        "precision_at_1": 0.4077669902912621,
        "mean_average_precision_at_r": 0.22531915274200293,
        "r_precision": 0.3282478039759593,
    },
    {
        "precision_at_1": 0.4117647058823529,
        "mean_average_precision_at_r": 0.23239237361611312,
        "r_precision": 0.2911064425770308,
    },
)


def mixed() -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of classes that overlap, five of them alone in theirs; a third are queries."""
    embeddings, labels = clustered(classes=12, per_class=9, noise=1.5)
    labels[:5] = torch.arange(12, 17)
    return embeddings, labels, torch.arange(len(labels)) % 3 == 0


def test_agrees_with_what_pytorch_metric_learning_found() -> None:
    """R@1, MAP@R and R-precision equal those of its AccuracyCalculator, leave-one-out and among a gallery."""
    embeddings, labels, is_query = mixed()
    for asked, expected in zip((None, is_query), _RECORDED, strict=True):
        found = retrieval_metrics(embeddings, labels, is_query=asked, clusters=False)
        assert expected == pytest.approx(
            {
                "precision_at_1": found.recall_at_1,
                "mean_average_precision_at_r": found.map_at_r,
                "r_precision": found.r_precision,
            },
            abs=1e-6,
        )


@pytest.mark.slow
def test_pytorch_metric_learning_finds_what_is_recorded(tmp_path: Path) -> None:
    """The numbers above are its own; finding them takes it a process and several seconds."""
    embeddings, labels, is_query = mixed()
    np.savez(tmp_path / "all.npz", query=embeddings.numpy(), query_labels=labels.numpy())
    np.savez(
        tmp_path / "split.npz",
        query=embeddings[is_query].numpy(),
        query_labels=labels[is_query].numpy(),
        reference=embeddings[~is_query].numpy(),
        reference_labels=labels[~is_query].numpy(),
    )
    command = [sys.executable, "-c", _ORACLE, str(tmp_path / "all.npz"), str(tmp_path / "split.npz")]

    oracle = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert oracle == [pytest.approx(recorded, abs=1e-6) for recorded in _RECORDED]


def test_the_vote_agrees_with_scikit_learn() -> None:
    """The accuracy of the 20 nearest equals that of a KNeighborsClassifier with the same weights."""
    embeddings, labels = clustered(classes=12, per_class=30, noise=3.0)
    is_query = torch.arange(len(labels)) % 3 == 0
    voters = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    voters.fit(embeddings[~is_query].double().numpy(), labels[~is_query].numpy())

    found = retrieval_metrics(embeddings, labels, is_query=is_query, clusters=False)

    expected = voters.score(embeddings[is_query].double().numpy(), labels[is_query].numpy())
    assert expected == found.knn_accuracy
    assert 0.2 < expected < 0.9


@pytest.mark.parametrize("noise", [0.5, 1.5])
def test_clusters_are_as_good_as_those_of_scikit_learn(noise: float) -> None:
    """NMI is that of scikit-learn's k-means within what another seed changes, and AMI is below it."""
    embeddings, labels = clustered(classes=20, per_class=30, noise=noise)
    runs = [KMeans(20, n_init=1, random_state=seed).fit_predict(embeddings.numpy()) for seed in range(6)]
    expected = [normalized_mutual_info_score(labels, clusters) for clusters in runs]

    found = retrieval_metrics(embeddings, labels)

    assert found.nmi is not None
    assert found.ami is not None
    assert min(expected) - 0.03 < found.nmi < max(expected) + 0.03
    assert 0 < found.ami < found.nmi


def test_without_clusters_nothing_is_said_of_them() -> None:
    """Where k-means is not wanted, NMI and AMI are absent, not zero, and the rest is the same."""
    embeddings, labels = clustered(classes=6, per_class=5, noise=1.0)
    whole = retrieval_metrics(embeddings, labels).to_dict()
    lean = retrieval_metrics(embeddings, labels, clusters=False).to_dict()
    assert whole.keys() - lean.keys() == {"nmi", "ami"}
    assert lean == {name: value for name, value in whole.items() if name in lean}


def test_names_of_the_metrics() -> None:
    """The metrics come by the names that logs, manifests and --json use; R@1 is always among them."""
    metrics = retrieval_metrics(*clustered(classes=4, per_class=5, noise=1.0), recall_at=(10, 4))
    names = "recall_at_1 recall_at_4 recall_at_10 map_at_r r_precision knn_accuracy nmi ami queries"
    assert names.split() == list(metrics.to_dict())
    assert metrics.recall_at_1 == metrics.to_dict()["recall_at_1"]


def test_a_duplicate_does_not_take_the_place_of_the_query() -> None:
    """Where each image has an identical twin of another class, the twin is nearest and R@1 is 0."""
    twins = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    metrics = retrieval_metrics(twins, torch.tensor([0, 1, 0, 1]))
    assert metrics.recall_at_1 == 0.0


def test_an_image_alone_in_its_class_is_no_query() -> None:
    """A singleton is a distractor, not a query that must fail."""
    embeddings, labels = clustered(classes=4, per_class=5, noise=0.01)
    alone = torch.cat([labels, torch.tensor([99])])
    metrics = retrieval_metrics(torch.cat([embeddings, -embeddings[:1]]), alone)
    assert (metrics.queries, metrics.recall_at_1) == (20, 1.0)


@pytest.mark.parametrize(("is_query", "who"), [(None, "3 images"), ([True, False, False], "1 queries")])
def test_nothing_to_retrieve_is_an_error(is_query: list[bool] | None, who: str) -> None:
    """When no image shares its class with one that it can find, the error says so."""
    asked = None if is_query is None else torch.tensor(is_query)
    with pytest.raises(ValueError, match=f"none of the {who} shares its class with an image it can find"):
        retrieval_metrics(torch.eye(3), torch.arange(3), is_query=asked)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_embeddings_that_are_not_finite_are_an_error(value: float) -> None:
    """A diverged model is told as such: its embeddings never become a metric."""
    embeddings, labels = clustered(classes=4, per_class=5, noise=0.5)
    embeddings[[7, 9], 3] = value
    with pytest.raises(ValueError, match="2 of 20 embeddings are not finite, the first in row 7"):
        retrieval_metrics(embeddings, labels)


def test_perfect_clusters_score_one() -> None:
    """Well-separated classes give 1 in every metric."""
    metrics = retrieval_metrics(*clustered(classes=6, per_class=10, noise=0.001))
    shares = {name: value for name, value in metrics.to_dict().items() if name != "queries"}
    assert dict.fromkeys(shares, 1.0) == pytest.approx(shares)


# In a process of its own: a peak is that of a process's whole life.
_PEAK = """
import json, resource
import torch
from trainer.evaluate import retrieval_metrics
from trainer.parts import kmeans
def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def judge(images, queries, classes):
    labels = torch.arange(images) % classes
    is_query = torch.arange(images) < queries if queries else None
    retrieval_metrics(torch.rand(images, 4), labels, is_query=is_query, clusters=False)
kmeans._ITERATIONS = 2
judge(1_000, 0, 100)  # what loading and first use take is not ours
kmeans.kmeans(torch.rand(1_000, 4), 10, seed=0)
peaks = [peak_mib()]
for work in (
    lambda: judge(8_000, 0, 800),  # all similarities: 244 MiB
    lambda: judge(3_000, 0, 2),  # each list is half of the images: 34 MiB, and 180 MiB to rank them
    lambda: kmeans.kmeans(torch.rand(500_000, 4), 120, seed=0),  # all distances: 229 MiB
    lambda: judge(1_000_000, 100, 50_000),  # 381 MiB; the last, as its own embeddings raise the peak
):
    work()
    peaks.append(peak_mib())
print(json.dumps(peaks))
"""


def test_memory_is_bounded() -> None:
    """Many queries, a large gallery, large classes and many clusters each take a fraction of all similarities."""
    command = [sys.executable, "-c", _PEAK]
    peaks = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert [mib for mib in np.diff(peaks) if mib > 150] == []
