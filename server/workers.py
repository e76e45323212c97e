"""The threads that a server works on, beside its event loop: one queue for each kind of work."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from kinsight.v1.search_service_pb2 import SearchResponse

from indexer.encoder import Encoder
from indexer.pixels import Pixels, PixelSpec
from server import preparing, searching
from server.batching import Batcher
from server.embeddings import Floats
from server.indexes import Indexes
from server.preparing import Batch, Prepared
from server.searching import Group, Query
from server.writing import Write, Writer, Written

MAX_SEARCH_BATCH = 64  # beyond 16, FAISS shares a batch out over all cores
MAX_EMBED_BATCH = 16  # on a CPU larger batches are no faster an image, and the first of them waits for the last
MAX_WRITE_BATCH = 64  # requests of one transaction: the disk is waited for once


P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """The batchers that the services of a server share.

    Attributes:
        decoding: images to pixels, one a thread.
        embedding: pixels to embeddings.
        searching: queries that take well under a millisecond.
        scanning: queries that are compared with every item, which can take seconds.
        choosing: queries with conditions that are not quick, which may read the payloads of all items first.
        preparing: upserts as they came to upserts as they are stored, but for the embeddings of images.
        writing: upserts and deletions; what waits becomes one transaction.
        reading: what the catalogues know of items; asyncio's own threads may all wait for versions to be verified.
    """

    decoding: Batcher[tuple[bytes, PixelSpec], Pixels]
    embedding: Batcher[tuple[Encoder, Pixels], Floats]
    searching: Batcher[Query, SearchResponse]
    scanning: Batcher[Query, SearchResponse]
    choosing: Batcher[Query, SearchResponse]
    preparing: Batcher[Batch, Prepared]
    writing: Batcher[Write, Written]
    reading: ThreadPoolExecutor

    @classmethod
    def start(cls, indexes: Indexes) -> "Workers":
        """Start the threads; must be called on the event loop that serves."""
        batch = MAX_SEARCH_BATCH
        return cls(
            decoding=Batcher("decode", searching.decode, workers=os.cpu_count() or 1, max_batch=1),
            embedding=Batcher("embed", searching.embed, workers=1, max_batch=MAX_EMBED_BATCH),
            # One worker each: two would take the interpreter from each other and from the event loop.
            searching=Batcher("search", searching.search, workers=1, max_batch=batch),
            scanning=Batcher("scan", searching.search, workers=1, max_batch=batch),
            choosing=Batcher("choose", searching.search, workers=1, max_batch=batch),
            preparing=Batcher("prepare", preparing.prepare, workers=1, max_batch=1),
            writing=Batcher("write", Writer(indexes), workers=1, max_batch=MAX_WRITE_BATCH),
            reading=ThreadPoolExecutor((os.cpu_count() or 1) + 4, "read"),  # asyncio's own measure
        )

    def batcher_of(self, group: Group) -> Batcher[Query, SearchResponse]:
        """Where queries of a group belong."""
        if group.condition is not None and not group.condition.is_quick:
            return self.choosing
        return self.scanning if group.exact else self.searching

    async def read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a function returns that reads a catalogue."""
        return await asyncio.get_running_loop().run_in_executor(self.reading, partial(function, *args, **kwargs))

    async def embed(self, image: bytes, encoder: Encoder) -> Floats:
        """The embedding of an image file's bytes, (D,) float32 of unit length."""
        pixels = await self.decoding.submit((image, encoder.pixels))
        return await self.embedding.submit((encoder, pixels))

    async def close(self) -> None:
        """End the threads; call after the last request."""
        await asyncio.gather(
            self.decoding.close(),
            self.embedding.close(),
            self.searching.close(),
            self.scanning.close(),
            self.choosing.close(),
            self.preparing.close(),
            self.writing.close(),
        )
        self.reading.shutdown(wait=False)
