"""Upserts and deletions: all that wait become one transaction of a catalogue, and are searched before the answer."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from indexer.catalog import RequestReused
from indexer.records import Outcome, Upsert
from server.indexes import ActiveIndex, Indexes

Written = list[Outcome]


class ModelChanged(Exception):
    """Another model's version was swapped in after the items were embedded; they have to be embedded again."""


@dataclass(frozen=True)
class Write:
    """What one request changes.

    Attributes:
        index: its name.
        model: that made the embeddings.
        request_id, digest: as of `Catalog.upsert`.
        upserts, deletes: one of them.
    """

    index: str
    model: str
    request_id: str
    digest: str = ""
    upserts: Sequence[Upsert] = ()
    deletes: Sequence[str] = ()


class Writer:
    """Writes batches of requests; called on one thread."""

    def __init__(self, indexes: Indexes) -> None:
        self._indexes = indexes

    def __call__(self, writes: Sequence[Write]) -> list[Written | Exception]:
        """What became of each request's items, or why the whole request was refused; taken is on the disk."""
        answers: list[Written | Exception] = [[] for _ in writes]
        places = defaultdict(list)
        for place, write in enumerate(writes):
            places[write.index].append(place)
        for name, of_index in places.items():
            found = self._write([writes[place] for place in of_index], name)
            for place, answer in zip(of_index, found, strict=True):
                answers[place] = answer
        return answers

    def _write(self, writes: Sequence[Write], name: str) -> list[Written | Exception]:
        try:
            with self._indexes.unswapped(name) as index:
                with index.catalog.transaction() as transaction:
                    answers = [_change(index, write) for write in writes]
                index.live.refresh(transaction)
                self._indexes.news.tell()
                return answers
        except Exception as error:  # of this catalogue; the other indexes' requests are not to fail with it
            return [error] * len(writes)


def _change(index: ActiveIndex, write: Write) -> Written | Exception:
    catalog, request_id = index.catalog, write.request_id
    try:
        if write.deletes:
            return catalog.delete(write.deletes, request_id=request_id)
        if write.model != index.model:
            return ModelChanged()
        dim = index.version.manifest.dim
        return catalog.upsert(write.upserts, dim=dim, request_id=request_id, digest=write.digest)
    except RequestReused as error:
        return error
