"""Searches and embeddings in batches, on worker threads: the run functions of the batchers."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from kinsight.v1.search_service_pb2 import SearchResponse

from indexer import pixels
from indexer.encoder import Encoder
from indexer.pixels import Pixels, PixelSpec
from indexer.version import UnknownItem
from server.indexes import ActiveIndex

Floats = npt.NDArray[np.float32]
_Job = TypeVar("_Job")
_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Group:
    """What queries must have in common to be one call of FAISS."""

    index: ActiveIndex
    top_k: int
    nprobe: int | None
    exact: bool


class Query(NamedTuple):
    """A search: by an embedding, (D,) float32 of unit length, or by the id of an item."""

    group: Group
    embedding: Floats | str


def decode(images: Sequence[tuple[bytes, PixelSpec]]) -> list[Pixels | Exception]:
    """Each image as pixels, or what is wrong with it."""
    decoded: list[Pixels | Exception] = []
    for data, spec in images:
        try:
            decoded.append(pixels.decode(data, spec))
        except pixels.PixelsError as error:
            decoded.append(error)
    return decoded


def embed(images: Sequence[tuple[Encoder, Pixels]]) -> list[Floats | Exception]:
    """The embeddings of decoded images, (D,) float32 of unit length; one ONNX Runtime call an encoder."""
    embeddings: list[Floats | Exception] = [np.empty(0, np.float32)] * len(images)
    for encoder, places in _places(encoder for encoder, _ in images).items():
        batch = np.stack([images[place][1] for place in places])
        for place, embedding in zip(places, encoder.embed(batch), strict=True):
            embeddings[place] = embedding
    return embeddings


def search(queries: Sequence[Query]) -> list[SearchResponse | Exception]:
    """The answers to queries; one FAISS call for those that have their group in common."""
    answers: list[SearchResponse | Exception] = [SearchResponse()] * len(queries)
    for group, places in _places(query.group for query in queries).items():
        found: list[tuple[int, Floats]] = []
        for place in places:
            try:
                found.append((place, _embedding(group.index, queries[place].embedding)))
            except UnknownItem as error:
                answers[place] = error
        if found:
            batch = np.stack([embedding for _, embedding in found])
            for (place, _), answer in zip(found, _search_group(group, batch), strict=True):
                answers[place] = answer
    return answers


def _embedding(index: ActiveIndex, query: Floats | str) -> Floats:
    if isinstance(query, str):
        return index.version.embedding(index.version.row_of(query))
    return query


def _search_group(group: Group, embeddings: Floats) -> Iterable[SearchResponse]:
    index = group.index
    similarities, rows = index.version.search(embeddings, group.top_k, nprobe=group.nprobe, exact=group.exact)
    items = iter(index.items.of(rows.ravel()))
    for row in similarities.tolist():
        # strict=False: the row's end is what ends the pairs; `items` goes on with the next row
        hits = [{"item": item, "similarity": similarity} for similarity, item in zip(row, items, strict=False)]
        yield SearchResponse(hits=hits, index=index.name, version=index.number, model=index.model)


def _places(keys: Iterable[_Key]) -> dict[_Key, list[int]]:
    places: dict[_Key, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    return places
