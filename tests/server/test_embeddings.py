"""Embeddings of clients, many at once as one by one."""

from contextlib import closing

import numpy as np
import pytest
from kinsight.v1.search_service_pb2 import Embedding

from server.embeddings import unit, units
from server.errors import DimensionMismatch, EmbeddingNotFinite, EmbeddingZero, ModelMismatch
from server.indexes import ActiveIndex, Indexes
from tests.serving import Gallery


def _sent(index: ActiveIndex, count: int) -> list[Embedding]:
    """Of every magnitude that float32 has."""
    rng, dim = np.random.default_rng(0), index.version.manifest.dim
    rows = rng.standard_normal((count, dim)) * 10.0 ** rng.uniform(-30, 30, (count, 1))
    return [Embedding(model=index.model, values=row) for row in rows.astype(np.float32)]


def test_one_without_a_model_is_told_so(gallery: Gallery) -> None:
    """Who calls by hand forgets the model first."""
    with closing(Indexes(gallery.store)) as indexes:
        indexes.refresh()
        index = indexes.get("")
        with pytest.raises(
            ModelMismatch, match=f"names no model; index photos holds embeddings of model '{index.model}'"
        ):
            unit(Embedding(values=[1.0]), index)


def test_many_are_what_each_is_alone(gallery: Gallery) -> None:
    """Bit by bit; none of them is none."""
    with closing(Indexes(gallery.store)) as indexes:
        indexes.refresh()
        index = indexes.get("")
        sent = _sent(index, 20)
        alone = [unit(one, index) for one in sent]
        np.testing.assert_array_equal(units(sent, index), alone)
        assert units([], index) == []


@pytest.mark.parametrize(
    ("model", "values", "error"),
    [
        ("m", None, ModelMismatch),
        ("", None, ModelMismatch),
        (None, [1.0], DimensionMismatch),
        (None, [], DimensionMismatch),
        (None, float("nan"), EmbeddingNotFinite),
        (None, float("-inf"), EmbeddingNotFinite),
        (None, 0.0, EmbeddingZero),
    ],
)
def test_a_wrong_one_keeps_none_of_the_others_out(
    model: str | None, values: list[float] | float | None, error: type[Exception], gallery: Gallery
) -> None:
    """Its error is in its place; each of the others is what it is alone."""
    with closing(Indexes(gallery.store)) as indexes:
        indexes.refresh()
        index = indexes.get("")
        sent = _sent(index, 5)
        if model is not None:
            sent[2].model = model * len(index.model)
        if values is not None:
            sent[2].values[:] = values if isinstance(values, list) else [values] * index.version.manifest.dim
        found = units(sent, index)
        assert isinstance(found.pop(2), error)
        del sent[2]
        np.testing.assert_array_equal(found, [unit(one, index) for one in sent])
