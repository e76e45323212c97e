"""SIGKILL of a real server at random moments, under upserts, deletions, searches and rebuilds.

`pytest tests/test_kill.py -m slow` kills it 10 times; with KILL_ROUNDS=200 in the environment, so often.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from kinsight.v1.index_service_pb2 import BuildVersionRequest, GetIndexRequest
from kinsight.v1.item_service_pb2 import GetItemRequest, ItemUpsert
from kinsight.v1.search_service_pb2 import SearchRequest

from indexer.store import Store
from tests.serving import Stubs, build_photos, photo

ROUNDS = int(os.environ.get("KILL_ROUNDS", "10"))
BUILT = 24  # items of the index before the first round
WRITERS = 3
OWNED = 20  # ids of each writer

Known = dict[str, int | None]  # the image of each item, None for a deleted one


@contextmanager
def server(store: Store) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`kinsight serve` with its children in a group of their own, all killed in the end."""
    words = [sys.executable, "-m", "clients.cli", "serve", "--store", str(store.root), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*words, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    with process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())["listen"]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


class Writer(threading.Thread):
    """Upserts and deletes items of its own, one after the other, and knows what was acknowledged.

    Attributes:
        known: what was acknowledged of each item.
        unsure: the item whose answer did not come, and the image it would have.
        broken: what was not as it must be.
    """

    def __init__(self, target: str, number: int, known: Known, seed: int) -> None:
        super().__init__(daemon=True)
        self.known = known
        self.unsure: dict[str, int | None] = {}
        self.broken: list[str] = []
        self._target = target
        self._number = number
        self._random = random.Random(seed)

    def run(self) -> None:
        """Until the server is gone."""
        with Stubs(self._target) as stubs, suppress(grpc.RpcError):
            while True:
                item = f"{self._number}/{self._random.randrange(OWNED)}"
                if self.known.get(item) is not None and self._random.random() < 0.4:
                    self._change(stubs, item, None)
                else:
                    self._change(stubs, item, self._new_image())

    def _new_image(self) -> int:
        """One that no other item has: of two with the same picture either may be found first."""
        while True:
            image = self._random.randrange(10_000, 10_000_000)
            if image % WRITERS == self._number and image not in self.known.values():
                return image

    def _change(self, stubs: Stubs, item: str, image: int | None) -> None:
        self.unsure = {item: image}
        if image is None:
            (result,) = stubs.delete(item)
        else:
            (result,) = stubs.upsert(ItemUpsert(item=item, image=photo(image)))
        if result.status.code:
            self.broken.append(f"{item}: {result.status.message}")
        shown = self.known.get(item) if image is None else image
        self.known[item] = image
        self.unsure = {}
        assert shown is not None
        found = stubs.found(image=photo(shown), top_k=1000)
        if (item in found) != (image is not None):
            self.broken.append(f"{item} is {'not ' if image is not None else ''}found after its answer")


class Builder(threading.Thread):
    """Rebuilds the index again and again until the server is gone."""

    def __init__(self, target: str) -> None:
        super().__init__(daemon=True)
        self._target = target

    def run(self) -> None:
        """What a build that was interrupted in the round before left is gone on with by the server itself."""
        with Stubs(self._target) as stubs:
            while True:
                try:
                    stubs.ended(stubs.indexes.BuildVersion(BuildVersionRequest()))
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.ABORTED:
                        return
                    time.sleep(0.1)


def _one_round(store: Store, known: Known, seed: int) -> None:
    """Load a server, kill it, and see on another one that all it acknowledged is so; brings `known` up to date."""
    chance = random.Random(seed)
    with server(store) as (process, target):
        mine: list[Known] = [
            {item: image for item, image in known.items() if item.startswith(f"{number}/")}
            for number in range(WRITERS)
        ]
        writers = [Writer(target, number, mine[number], seed + number) for number in range(WRITERS)]
        threads = [*writers, Builder(target)]
        for thread in threads:
            thread.start()
        time.sleep(chance.uniform(0.3, 4))
        # The server alone, which leaves its children at work, or everything at once.
        os.kill(process.pid, signal.SIGKILL) if chance.random() < 0.5 else os.killpg(process.pid, signal.SIGKILL)
        for thread in threads:
            thread.join(30)
    assert [broken for writer in writers for broken in writer.broken] == []
    for writer in writers:
        known.update(writer.known)
    unsure = {item: image for writer in writers for item, image in writer.unsure.items()}
    with server(store) as (_, target), Stubs(target) as stubs:
        known.update({item: image for item, image in unsure.items() if _happened(stubs, item, image)})
        _check(stubs, known)


def _happened(stubs: Stubs, item: str, image: int | None) -> bool:
    """Whether a change was made whose answer did not come."""
    found: Any = stubs.search.Search(SearchRequest(image=photo(image or 0), top_k=1000), timeout=30).hits
    there = {hit.item: hit.similarity for hit in found}
    return item not in there if image is None else there.get(item, 0) > 0.9999


def _check(stubs: Stubs, known: Known) -> None:
    live = {item: image for item, image in known.items() if image is not None}
    assert stubs.indexes.GetIndex(GetIndexRequest()).items == BUILT + len(live)
    for item, image in live.items():
        hit = stubs.search.Search(SearchRequest(image=photo(image), top_k=1), timeout=30).hits[0]
        assert (hit.item, round(hit.similarity, 3)) == (item, 1)
        assert stubs.items.GetItem(GetItemRequest(item=item)).searchable
    deleted = {item for item, image in known.items() if image is None}
    found = stubs.found(image=photo(0), top_k=1000)
    assert not deleted & {*found}
    assert {*live} < {*found}
    assert found == stubs.found(image=photo(0), top_k=1000, params={"exact": True})


def test_a_killed_server_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    """Once, as the quick form of the test below."""
    _one_round(build_photos(tmp_path, BUILT), {}, seed=1)


@pytest.mark.slow
def test_a_server_that_is_killed_again_and_again_loses_nothing(tmp_path: Path) -> None:
    """No acknowledged item is lost, no deleted one comes back, and counts are equal after every restart."""
    store, known = build_photos(tmp_path, BUILT), Known()
    for number in range(ROUNDS):
        _one_round(store, known, seed=100 * number)
