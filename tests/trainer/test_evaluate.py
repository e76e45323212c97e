import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from trainer.evaluate import retrieval_metrics
from trainer.parts import neighbours


def clustered(classes: int, per_class: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(per_class)[
        torch.randperm(classes * per_class, generator=generator)
    ]
    centres = torch.randn(classes, 16, generator=generator)
    points = centres[labels] + noise * torch.randn(len(labels), 16, generator=generator)
    return F.normalize(points, dim=1), labels


def naive_recall(embeddings: torch.Tensor, labels: torch.Tensor, k: int) -> float:
    hits = []
    for query in range(len(labels)):
        similarities = [(float(embeddings[query] @ embeddings[i]), i) for i in range(len(labels)) if i != query]
        nearest = [i for _, i in sorted(similarities, reverse=True)[:k]]
        hits.append(any(labels[i] == labels[query] for i in nearest))
    return float(np.mean(hits))


# In a process of its own: the package replaces the search methods of FAISS for everyone in the process.
_ORACLE = """
import json, sys
import numpy as np, torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
given = np.load(sys.argv[1], allow_pickle=False)
names = ("precision_at_1", "mean_average_precision_at_r", "r_precision")
calculator = AccuracyCalculator(include=names, knn_func=CustomKNN(CosineSimilarity(), batch_size=64))
print(json.dumps(calculator.get_accuracy(torch.tensor(given["embeddings"]), torch.tensor(given["labels"]))))
"""


def test_agrees_with_pytorch_metric_learning(tmp_path: Path) -> None:
    """R@1, MAP@R and R-precision equal those of pytorch-metric-learning's AccuracyCalculator."""
    embeddings, labels = clustered(classes=12, per_class=9, noise=1.5)
    np.savez(tmp_path / "given.npz", embeddings=embeddings.numpy(), labels=labels.numpy())
    command = [sys.executable, "-c", _ORACLE, str(tmp_path / "given.npz")]
    oracle = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    found = retrieval_metrics(embeddings, labels)
    assert found.recall_at_1 == pytest.approx(oracle["precision_at_1"], abs=1e-6)
    assert found.map_at_r == pytest.approx(oracle["mean_average_precision_at_r"], abs=1e-6)
    assert found.r_precision == pytest.approx(oracle["r_precision"], abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_recall_agrees_with_a_naive_loop(k: int) -> None:
    """R@k equals a plain loop over queries and sorted similarities."""
    embeddings, labels = clustered(classes=10, per_class=5, noise=2.0)
    found = retrieval_metrics(embeddings, labels, clusters=False).recall_at[k]
    assert naive_recall(embeddings, labels, k) == pytest.approx(found, abs=1e-12)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranking a few queries at a time gives what ranking all at once gives."""
    embeddings, labels = clustered(classes=10, per_class=6, noise=1.5)
    whole = retrieval_metrics(embeddings, labels)
    monkeypatch.setattr(neighbours, "_COLUMNS", 7)
    monkeypatch.setattr(neighbours, "_TILE", 7 * 11)
    assert retrieval_metrics(embeddings, labels) == whole


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


def test_nothing_to_retrieve_is_an_error() -> None:
    """When every class has one image, the error says so."""
    with pytest.raises(ValueError, match="none of the 3 images shares its class with an image it can find"):
        retrieval_metrics(F.normalize(torch.eye(3), dim=1), torch.arange(3))


def test_perfect_clusters_score_one() -> None:
    """Well-separated classes give 1 in every metric."""
    metrics = retrieval_metrics(*clustered(classes=6, per_class=10, noise=0.001))
    assert metrics.recall_at_1 == metrics.map_at_r == metrics.r_precision == 1.0
    assert metrics.nmi == pytest.approx(1.0)
