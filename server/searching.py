"""Searches and embeddings in batches, on worker threads: the run functions of the batchers."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
from kinsight.v1.search_service_pb2 import SearchResponse

from indexer import pixels
from indexer.calibration import Calibration
from indexer.delta import Mask
from indexer.encoder import Encoder
from indexer.filters import Expression, Field, Present, UnknownField
from indexer.ivfpq import Neighbours, Rows
from indexer.live_snapshot import Snapshot
from indexer.pixels import Pixels, PixelSpec
from indexer.ranking import Ranking, ranked
from indexer.version import UnknownItem
from server.embeddings import Floats
from server.errors import InvalidGroupBy
from server.indexes import ActiveIndex

_Job = TypeVar("_Job")
_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Condition:
    """What hits must be beyond near.

    Attributes:
        filter: as the client wrote it; empty for none.
        expression: the filter parsed.
        ranking: how hits are chosen among the nearest that match; None for the nearest.
    """

    filter: str
    expression: Expression | None = field(compare=False)
    ranking: Ranking | None

    @property
    def is_quick(self) -> bool:
        """Whether hits only have a least similarity, for which neither payloads nor embeddings are read."""
        ranking = self.ranking
        if self.filter or ranking is None:
            return False
        return ranking == Ranking(min_similarity=ranking.min_similarity)


@dataclass(frozen=True)
class Score:
    """That hits say their probabilities.

    Attributes:
        calibration: of the index's model.
        false_accept_rate: of the least probability that is asked for; None where none is.
    """

    calibration: Calibration = field(compare=False)
    false_accept_rate: float | None


@dataclass(frozen=True)
class Group:
    """What queries must have in common to be one call of FAISS."""

    index: ActiveIndex
    top_k: int
    nprobe: int | None
    exact: bool
    k_factor: int | None = None
    condition: Condition | None = None
    score: Score | None = None


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
    """The answers to queries; one FAISS call for those that have their group in common, which may fail alone."""
    answers: list[SearchResponse | Exception] = [SearchResponse()] * len(queries)
    for group, places in _places(query.group for query in queries).items():
        try:
            found = _search_of_group(group, [queries[place].embedding for place in places])
        except Exception as error:  # belongs to those who asked for it
            found = [error] * len(places)
        for place, answer in zip(places, found, strict=True):
            answers[place] = answer
    return answers


def _search_of_group(group: Group, queries: Sequence[Floats | str]) -> list[SearchResponse | Exception]:
    snapshot = group.index.latest()  # one for all of them: what is upserted meanwhile comes with the next
    embeddings = [_embedding(snapshot, query) for query in queries]
    known = [embedding for embedding in embeddings if not isinstance(embedding, UnknownItem)]
    found = iter(_search_group(group, snapshot, np.array(known)) if known else ())
    return [one if isinstance(one, UnknownItem) else next(found) for one in embeddings]


def _embedding(snapshot: Snapshot, query: Floats | str) -> Floats | UnknownItem:
    if not isinstance(query, str):
        return query
    try:
        return snapshot.embedding(snapshot.row_of(query))
    except UnknownItem as error:
        return error


def _search_group(group: Group, snapshot: Snapshot, embeddings: Floats) -> Iterable[SearchResponse]:
    if group.condition is not None:
        return _search_conditionally(group, group.condition, snapshot, embeddings)
    return _answers(group, snapshot, _nearest(group, snapshot, embeddings, group.top_k, None))


def _search_conditionally(
    group: Group, condition: Condition, snapshot: Snapshot, embeddings: Floats
) -> Iterable[SearchResponse]:
    mask = None
    if condition.expression is not None:
        snapshot.columns.check(condition.expression, snapshot.rows)
        mask = snapshot.matching(condition.expression)
    if condition.ranking is None:
        yield from _answers(group, snapshot, _nearest(group, snapshot, embeddings, group.top_k, mask))
        return
    for embedding in embeddings:
        yield from _answers(group, snapshot, _ranked(group, condition.ranking, snapshot, embedding, mask))


def _ranked(group: Group, ranking: Ranking, snapshot: Snapshot, embedding: Floats, mask: Mask | None) -> Neighbours:
    """The hits of one query, (1, k)."""
    groups = None
    if ranking.group_by is not None:
        _check_group(ranking.group_by, snapshot)
        groups = snapshot.columns.codes(ranking.group_by, snapshot.rows)

    def nearest(k: int) -> Neighbours:
        similarities, rows = _nearest(group, snapshot, embedding[None], k, mask)
        return similarities[0], rows[0]

    similarities, rows = ranked(nearest, snapshot.embeddings, groups, group.top_k, ranking)
    return similarities[None], rows[None]


def _check_group(field: Field, snapshot: Snapshot) -> None:
    try:
        snapshot.columns.check(Present(field), snapshot.rows)
    except UnknownField as error:
        raise InvalidGroupBy(f"group_by: {error}") from error


def _nearest(group: Group, snapshot: Snapshot, embeddings: Floats, k: int, mask: Mask | None) -> Neighbours:
    return snapshot.search(embeddings, k, nprobe=group.nprobe, k_factor=group.k_factor, exact=group.exact, mask=mask)


def _answers(group: Group, snapshot: Snapshot, neighbours: Neighbours) -> Iterable[SearchResponse]:
    index, (similarities, rows) = group.index, neighbours
    items = iter(_items(index, snapshot, rows.ravel()))
    for row in similarities.tolist():
        # strict=False: the row's end is what ends the pairs; `items` goes on with the next row
        hits = [{"item": item, "similarity": similarity} for similarity, item in zip(row, items, strict=False)]
        response = SearchResponse(hits=hits, index=index.name, version=index.number, model=index.model)
        if group.score is not None:
            _score(response, row, group.score)
        yield response


def _score(response: SearchResponse, similarities: Sequence[float], score: Score) -> None:
    probabilities = score.calibration.probability(np.array(similarities)).tolist()
    for hit, probability in zip(response.hits, probabilities, strict=True):
        hit.probability = probability
    if score.false_accept_rate is not None:
        response.false_accept_rate = score.false_accept_rate


def _items(index: ActiveIndex, snapshot: Snapshot, rows: Rows) -> list[str]:
    """The ids of (k,) rows: those of the version from memory, the others from the snapshot."""
    if not snapshot.delta.count:
        return index.items.of(rows)
    upserted = rows >= snapshot.version.count
    others, known = iter(snapshot.items(rows[upserted])), iter(index.items.of(rows[~upserted]))
    return [next(others if new else known) for new in upserted.tolist()]


def _places(keys: Iterable[_Key]) -> dict[_Key, list[int]]:
    places: dict[_Key, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    return places
