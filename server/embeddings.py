"""Embeddings that clients send, as the rows of an index."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from kinsight.v1.search_service_pb2 import Embedding

from server.errors import DimensionMismatch, EmbeddingNotFinite, EmbeddingZero, ModelMismatch
from server.indexes import ActiveIndex

Floats = npt.NDArray[np.float32]


def unit(embedding: Embedding, index: ActiveIndex) -> Floats:
    """A client's embedding as (D,) float32 of unit length.

    Raises:
        ModelMismatch: another model than the index's made it.
        DimensionMismatch, EmbeddingNotFinite, EmbeddingZero: it is not one of that model.
    """
    if embedding.model != index.model:
        maker = f"was made by model {embedding.model!r}" if embedding.model else "names no model"
        raise ModelMismatch(
            f"the embedding {maker}; index {index.name} holds embeddings of model "
            f"{index.model!r}: embed the image again with the index's model",
            embedding_model=embedding.model,
            index_model=index.model,
        )
    # float64, because the squares of large float32 numbers leave float32's range
    values = np.array(embedding.values, np.float64)
    if len(values) != index.version.manifest.dim:
        raise DimensionMismatch(
            f"the embedding has {len(values)} values; those of model {index.model} have {index.version.manifest.dim}"
        )
    length = math.sqrt(values.dot(values))
    if not math.isfinite(length):
        raise EmbeddingNotFinite("the embedding holds NaN or infinity; every value must be a finite number")
    if length == 0:
        raise EmbeddingZero("the embedding is all zero, which has no direction to search in")
    return (values / length).astype(np.float32)


def units(embeddings: Sequence[Embedding], index: ActiveIndex) -> list[Floats | Exception]:
    """Clients' embeddings as `unit` gives them, scaled as one matrix; in place of a wrong one its error."""
    dim = index.version.manifest.dim
    if all(one.model == index.model and len(one.values) == dim for one in embeddings):
        values = np.array([one.values for one in embeddings], np.float64).reshape(-1, dim)
        lengths = np.sqrt(np.vecdot(values, values))
        if np.isfinite(lengths).all() and lengths.all():
            return [*(values / lengths[:, None]).astype(np.float32)]
    return [_unit_or_error(one, index) for one in embeddings]


def _unit_or_error(embedding: Embedding, index: ActiveIndex) -> Floats | Exception:
    try:
        return unit(embedding, index)
    except (ModelMismatch, DimensionMismatch, EmbeddingNotFinite, EmbeddingZero) as error:
        return error
