"""What is measured of a candidate, against naive loops, and when it is refused."""

import math
from pathlib import Path

import numpy as np
import pytest

from indexer.candidate import Comparison, Paired, contrasts, nearest_hits, objections, paired_hits, rank_correlation
from indexer.labels import LabelsError, read_classes
from indexer.rows import Embeddings

RNG = np.random.default_rng(0)


def unit(rows: np.ndarray) -> Embeddings:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


SAMPLE = unit(RNG.standard_normal((40, 8)))
OTHER = unit(SAMPLE[:, :5] + 0.3 * RNG.standard_normal((40, 5)))


def others(embeddings: Embeddings, item: int) -> list[float]:
    return [float(embeddings[item] @ embeddings[other]) for other in range(len(embeddings)) if other != item]


def test_contrast_is_the_distance_of_the_nearest_from_the_rest() -> None:
    """As a loop over items computes it; and 0 where all are equal."""
    expected = []
    for item in range(40):
        values = sorted(others(SAMPLE, item))
        mean = sum(values) / 39
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 38)
        expected.append((sum(values[-10:]) / 10 - mean) / spread)
    np.testing.assert_allclose(contrasts(SAMPLE), expected, rtol=1e-4)
    assert contrasts(np.repeat(SAMPLE[:1], 5, axis=0)).tolist() == [0.0] * 5


def test_contrast_is_the_trainers() -> None:
    """Both rooms measure one thing: the mean over items is what training chooses epochs by."""
    torch = pytest.importorskip("torch")
    from trainer.choice import neighbour_contrast

    assert float(contrasts(SAMPLE).mean()) == pytest.approx(neighbour_contrast(torch.from_numpy(SAMPLE)), rel=1e-4)


def test_rank_correlation_is_spearmans() -> None:
    """As Pearson's of ranks counted one by one, ties sharing their mean; 1 for the same order, 0 for none."""

    def ranks(values: list[float]) -> list[float]:
        return [
            sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
            for value in values
        ]

    tied = np.round(SAMPLE * 2)  # whole numbers: their products are exact, so that equal ones are equal
    expected = np.mean(
        [np.corrcoef(ranks(others(tied, item)), ranks(others(OTHER, item)))[0, 1] for item in range(40)]
    )
    assert rank_correlation(tied, OTHER) == pytest.approx(expected, abs=1e-6)
    assert rank_correlation(SAMPLE, SAMPLE) == pytest.approx(1)
    line = np.linspace(0, 1, 7)
    fan = np.asarray(np.column_stack([np.cos(line), np.sin(line)]), np.float32)
    assert rank_correlation(fan, np.repeat(fan[:1], 7, axis=0)) == 0


def test_r_at_1_takes_the_nearest_other_item() -> None:
    """As a loop over items; an item is never its own neighbour."""
    classes = RNG.integers(0, 4, 40)
    expected = []
    for item in range(40):
        nearest = max((other for other in range(40) if other != item), key=lambda other: SAMPLE[item] @ SAMPLE[other])
        expected.append(float(classes[nearest] == classes[item]))
    assert nearest_hits(SAMPLE, classes).tolist() == expected


def test_an_item_alone_of_its_class_is_searched_but_not_asked() -> None:
    """It has nothing right to find: asked, it would count as missed under every model, and no learning could help."""
    axes = np.eye(4, dtype=np.float32)[[0, 1, 0, 2]]
    assert nearest_hits(axes, np.array([0, 1, 0, 2])).tolist() == [1, 1]
    near_another = axes[[0, 0, 1, 1]]
    assert nearest_hits(near_another, np.array([0, 1, 0, 2])).tolist() == [0, 0]
    assert nearest_hits(axes, np.arange(4)).tolist() == []
    assert nearest_hits(axes[:0], np.array([], np.int64)).tolist() == []


@pytest.mark.parametrize("count", [6, 40, 1_000])
def test_a_few_hits_lost_are_chance(count: int) -> None:
    """Beyond it are six lost and none gained, as by the exact test of McNemar (2 / 2 ** 6 < 0.05), of any number."""
    active = np.ones(count)
    for lost, beyond in ((0, False), (4, False), (5, False), (6, True)):
        candidate = np.append(np.zeros(lost), np.ones(count - lost))
        found, back = paired_hits(active, candidate), paired_hits(candidate, active)
        assert (found.active, found.candidate) == (1, candidate.mean())
        assert found.low <= found.candidate - found.active <= found.high
        assert (found.high < 0) == (back.low > 0) == beyond


def test_two_items_are_never_beyond_chance() -> None:
    """Two of a class are the fewest that judge; they find each other, or neither does."""
    found = paired_hits(np.ones(2), np.zeros(2))
    assert found.low < 0 < found.high


def comparison(contrast: Paired, recall_at_1: Paired | None = None) -> Comparison:
    return Comparison(
        active=1,
        model="old",
        compared=1_000,
        overlap_at_10=0.5,
        rank_correlation=0.5,
        contrast=contrast,
        recall_at_1=recall_at_1,
        labelled=200 if recall_at_1 else 0,
    )


SAME = Paired(3.0, 3.0, -0.01, 0.01)
FALLEN = Paired(3.0, 2.5, -0.55, -0.45)
A_LITTLE = Paired(3.0, 2.9, -0.15, -0.05)  # 3 % lower, for certain
BETTER = Paired(0.5, 0.6, 0.05, 0.15)
WORSE = Paired(0.5, 0.4, -0.15, -0.05)
UNSURE = Paired(0.5, 0.48, -0.07, 0.03)


@pytest.mark.parametrize(
    ("model", "recall_at_10", "compared", "lost", "expected"),
    [
        ("new", 0.97, comparison(SAME), 0, []),
        ("new", 0.93, comparison(SAME), 0, ["recall@10 is 0.9300, below 0.95"]),
        ("new", 0.97, comparison(FALLEN), 0, ["contrast is 2.500, down from 3.000"]),
        ("new", 0.97, comparison(A_LITTLE), 0, []),
        ("old", 0.97, comparison(FALLEN), 0, []),
        ("new", 0.97, comparison(FALLEN, BETTER), 0, []),
        ("new", 0.97, comparison(SAME, WORSE), 0, ["R@1 on 200 labelled items is 0.4000, down from 0.5000"]),
        ("new", 0.97, comparison(SAME, UNSURE), 0, []),
        ("new", 0.97, None, 10, []),
        ("new", 0.97, None, 11, ["11 of 1,000 items would be lost"]),
        ("new", 0.5, comparison(SAME, WORSE), 11, ["recall@10", "11 of 1,000", "R@1"]),
    ],
)
def test_a_candidate_is_refused_for_a_reason(
    model: str, recall_at_10: float, compared: Comparison | None, lost: int, expected: list[str]
) -> None:
    """Low recall, lost items, R@1 down beyond chance, or contrast down clearly; labels outrank contrast."""
    found = objections(recall_at_10, model, compared, min_recall=0.95, lost=lost, searched=1_000)
    assert [reason in sentence for reason, sentence in zip(expected, found, strict=True)] == [True] * len(expected)


def test_labels_are_found_by_paths_that_go_up(tmp_path: Path) -> None:
    """An index may have been built from ../images, and its table may lie in a folder beside them."""
    labels = tmp_path / "tables" / "labels.csv"
    labels.parent.mkdir()
    labels.write_text(f"path,class_id\n../images/a.png,1\n{tmp_path}/images/b.png,2\n")
    paths = {name: tmp_path / "work" / ".." / "images" / f"{name}.png" for name in "ab"}
    assert read_classes(labels, paths) == {"a": "1", "b": "2"}


def test_labels_are_found_by_ids_as_they_are_shown(tmp_path: Path) -> None:
    """One that was upserted may hold any character, and one of a file says % where its path has something else."""
    labels = tmp_path / "labels.csv"
    labels.write_text("path,class_id\n100% wool,1\n50%25.png,2\n20%.png,3\n50%.png,2\n")
    paths = {"100% wool": None, **{item: tmp_path / item.replace("%25", "%") for item in ("50%25.png", "20%25.png")}}
    assert read_classes(labels, paths) == {"100% wool": "1", "50%25.png": "2", "20%25.png": "3"}


def test_a_path_is_taken_before_an_id_that_looks_like_it(tmp_path: Path) -> None:
    """`a%25.png` is the path of one image and the id of another."""
    labels = tmp_path / "labels.csv"
    labels.write_text("path,class_id\na%25.png,1\na%.png,2\n")
    assert read_classes(labels, dict.fromkeys(["a%25.png", "a%2525.png"])) == {"a%2525.png": "1", "a%25.png": "2"}


def test_why_labels_are_too_few_to_judge_on_is_told(tmp_path: Path) -> None:
    """Who gives the table that was learned from need not look for what is wrong with its paths."""
    labels = tmp_path / "labels.csv"
    labels.write_text("path,class_id,split\na,1,train\nb,2,train\nc,,test\nx/d,2,test\nd,2,\n")
    with pytest.raises(LabelsError) as raised:
        read_classes(labels, dict.fromkeys("abcd"))
    assert str(raised.value) == (
        f"{labels} gives a class to 1 items of the index to judge on: of its 5 rows, 2 are of the split train, 1 "
        "have no class_id, and 1 have a path that is no item's, as 'x/d'; paths must be item "
        "ids, or where the images lie"
    )
    labels.write_text("path,class_id\na,1\n\nb,1\na,2\n")
    with pytest.raises(LabelsError, match=r"labels\.csv, line 5: 'a' has two classes, '1' and '2'; an image has one"):
        read_classes(labels, dict.fromkeys("ab"))


def test_items_without_a_class_are_not_judged_on(tmp_path: Path) -> None:
    """A sheet that is half filled in says nothing of the other half, and one of a single label is too little."""
    labels, paths = tmp_path / "labels.csv", dict.fromkeys("abcd")
    labels.write_text("path,class_id\na,1\nb,\nc,1\nd,\n")
    assert read_classes(labels, paths) == {"a": "1", "c": "1"}
    labels.write_text("path,class_id\na,1\nb,\nc,\n")
    with pytest.raises(LabelsError, match="gives a class to 1 items of the index"):
        read_classes(labels, paths)
