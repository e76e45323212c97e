"""k-means against scikit-learn's and against its own definition."""

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from trainer.parts import kmeans as module
from trainer.parts.kmeans import kmeans


def scattered(count: int, groups: int, noise: float, dim: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    group = torch.randint(groups, (count,), generator=generator)
    centres = torch.randn(groups, dim, generator=generator)
    return centres[group] + noise * torch.randn(count, dim, generator=generator), group


@pytest.mark.parametrize(
    ("count", "groups", "noise"), [(600, 20, 0.3), (600, 20, 1.5), (4000, 10, 0.8), (300, 100, 0.2)]
)
def test_inertia_is_that_of_scikit_learn(count: int, groups: int, noise: float) -> None:
    """Over a few seeds, the inertia is within 2 % of scikit-learn's on average, clusters as near the groups."""
    rows, group = scattered(count, groups, noise)
    ours = [kmeans(rows, groups, seed=seed) for seed in range(8)]
    theirs = [KMeans(groups, n_init=1, random_state=seed).fit(rows.numpy()) for seed in range(8)]

    assert sum(run.inertia for run in ours) < 1.02 * sum(run.inertia_ for run in theirs)
    agreement = sum(normalized_mutual_info_score(group, run.of_row) for run in ours) / 8
    expected = sum(normalized_mutual_info_score(group, run.labels_) for run in theirs) / 8
    assert expected == pytest.approx(agreement, abs=0.02)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_a_clustering_is_what_it_says(offset: float) -> None:
    """Each row is in the cluster of its nearest centre, centres are means, and the inertia is that of both."""
    rows = scattered(500, 8, 0.5)[0] + offset
    found = kmeans(rows, 8, seed=1)

    distances = torch.cdist(rows.double(), found.centres.double()).square()
    assert torch.equal(distances.argmin(1), found.of_row)
    assert distances.amin(1).sum().item() == pytest.approx(found.inertia, rel=1e-3)
    means = torch.stack([rows[found.of_row == cluster].mean(0) for cluster in range(8)])
    torch.testing.assert_close(means, found.centres, atol=0.05, rtol=1e-5)  # it stops just before it stands still


def test_chunks_do_not_change_the_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Assigning a few rows at a time gives what assigning all at once gives; the same seed, the same clusters."""
    rows, _ = scattered(400, 15, 0.8)
    whole = kmeans(rows, 15, seed=3)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 4 * 15 * 7)
    again = kmeans(rows, 15, seed=3)
    assert torch.equal(whole.of_row, again.of_row)
    assert whole.inertia == pytest.approx(again.inertia, rel=1e-6)
    assert not torch.equal(whole.of_row, kmeans(rows, 15, seed=4).of_row)


def test_an_empty_cluster_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Centres that no row is near move to rows that are far from theirs, so that no cluster stays empty."""
    rows, _ = scattered(300, 5, 0.05)

    def far_off(rows: Tensor, k: int, generator: torch.Generator) -> Tensor:
        return torch.cat([rows[:1], 1e3 + torch.randn(k - 1, rows.shape[1], generator=generator)])

    monkeypatch.setattr(module, "_start", far_off)
    found = kmeans(rows, 5, seed=0)
    assert torch.unique(found.of_row).tolist() == [0, 1, 2, 3, 4]
    assert torch.isfinite(found.centres).all()


@pytest.mark.parametrize(("count", "k"), [(1, 1), (9, 1), (9, 9)])
def test_the_least_and_the_most_clusters(count: int, k: int) -> None:
    """One cluster has the mean as its centre; as many clusters as rows leave no distance."""
    rows = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    found = kmeans(rows, k, seed=0)
    assert len(torch.unique(found.of_row)) == k
    if k == 1:
        torch.testing.assert_close(rows.mean(0, keepdim=True), found.centres)
    else:
        assert found.inertia == pytest.approx(0.0, abs=1e-5)


def test_fewer_distinct_rows_than_clusters() -> None:
    """Copies of two rows in five clusters: both are centres, some clusters stay empty, and nothing is left over."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(10, 1)
    found = kmeans(rows, 5, seed=0)
    assert found.inertia == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(rows, found.centres[found.of_row])


@pytest.mark.parametrize("k", [0, 4])
def test_a_number_of_clusters_that_can_not_be_is_an_error(k: int) -> None:
    """No cluster, or more clusters than rows, is refused with the limits."""
    with pytest.raises(ValueError, match=f"k is {k}; it must be between 1 and 3, the number of rows"):
        kmeans(torch.eye(3), k, seed=0)
