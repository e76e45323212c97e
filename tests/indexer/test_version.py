"""An opened version: its searches, its items, its refusals."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.items import UnknownItem
from indexer.version import Version, delete_version, list_versions, next_number, open_version


@pytest.fixture
def opened(built: Path) -> Version:
    """A version of 60 pictures."""
    return open_version(built)


def test_search_agrees_with_numpy(opened: Version) -> None:
    """Approximate and exact searches of a flat version give numpy's order; k stops at the item count."""
    rows = np.stack([opened.embedding(row) for row in range(opened.count)])
    for exact in (False, True):
        similarities, found = opened.search(rows, 100, exact=exact)
        assert (found.shape, found.dtype.name, similarities.dtype.name) == ((60, 60), "int64", "float32")
        np.testing.assert_allclose(np.sort(rows @ rows.T, axis=1)[:, ::-1], similarities, atol=1e-5)
        assert similarities.max() <= 1.0


@pytest.mark.parametrize(
    ("embeddings", "arguments", "message"),
    [
        (np.zeros((1, 31), np.float32), {"top_k": 1}, r"expected float32 \(Q, 32\)"),
        (np.zeros((1, 32), np.float64), {"top_k": 1}, "expected float32"),
        (np.full((1, 32), np.nan, np.float32), {"top_k": 1}, "not finite"),
        (np.zeros((1, 32), np.float32), {"top_k": 0}, "top_k is 0"),
        (np.zeros((1, 32), np.float32), {"top_k": 1, "nprobe": 0}, "nprobe is 0"),
    ],
)
def test_wrong_queries_are_refused(
    opened: Version, embeddings: np.ndarray, arguments: dict[str, Any], message: str
) -> None:
    """Wrong lengths, NaN and numbers out of range are ValueErrors that name the value."""
    with pytest.raises(ValueError, match=message):
        opened.search(embeddings, **arguments)


@pytest.mark.parametrize("item", ["nothing.jpg", "", "'; DROP TABLE items; --", "\ud800", "\0"])
def test_unknown_items_are_refused(opened: Version, item: str) -> None:
    """Ids that no item has, whatever they hold, are UnknownItem."""
    with pytest.raises(UnknownItem):
        opened.row_of(item)


def test_rows_that_are_not_there_are_refused(opened: Version) -> None:
    """Rows below 0 or at the count are IndexErrors, never another row's item."""
    for row in (-1, 60):
        for lookup in (opened.embedding, opened.source_path, lambda row: opened.items([row])):
            with pytest.raises(IndexError):
                lookup(row)


def test_items_keep_the_order_of_rows(opened: Version) -> None:
    """Items come in the order asked for, repeats included."""
    assert opened.items([5, 3, 5]) == [opened.items([row])[0] for row in (5, 3, 5)]


def test_what_a_killed_removal_left_is_removed_with_the_next_version(built: Path) -> None:
    """It is whole versions, of which nobody else would know."""
    index_dir = built.parents[1]
    for number in ("2", "3"):
        shutil.copytree(built, built.with_name(number))
    built.with_name("2").rename(index_dir / ".removed-2")
    delete_version(index_dir, 3)
    assert list_versions(index_dir) == [1]
    assert not [*index_dir.glob(".removed-*")]


def test_the_number_of_a_removed_version_is_not_given_to_another(built: Path) -> None:
    """An etag, or a person, that knows version 3 must not be led to what was built after it was removed."""
    index_dir = built.parents[1]
    for number in (2, 3):
        shutil.copytree(built, built.with_name(str(number)))
    delete_version(index_dir, 3)
    assert (next_number(index_dir), list_versions(index_dir)) == (4, [1, 2])
    delete_version(index_dir, 2)
    assert (next_number(index_dir), list_versions(index_dir)) == (4, [1])


def test_ids_of_a_range_of_rows_are_those_of_its_rows(opened: Version) -> None:
    """Also where it ends behind the last row, or holds none."""
    count = opened.count
    for first, end in ((0, count), (1, 3), (count - 1, count + 5), (2, 2), (count, count + 1)):
        assert opened.items_between(first, end) == opened.items(range(first, min(end, count)))
