"""Searches that are made at the same time through one client, sent together: what threads and tasks have in common.

A call costs several times what a search costs that is one of many in it. So while a call is under way, searches wait
in a line, and all that wait are the next call. One that is alone is sent at once, and under load joint calls form by
themselves: there is no timer, no thread and no option.
"""

import time
from collections.abc import Sequence
from typing import Generic, TypeAlias, TypeVar

import grpc
from kinsight.v1 import search_service_pb2 as pb

from kinsight_client.calls import Call
from kinsight_client.errors import KinsightError, from_rpc
from kinsight_client.messages import SearchResult
from kinsight_client.search import SearchCalls, batches

Outcome: TypeAlias = SearchResult | KinsightError | grpc.RpcError  # the last of a call that failed as a whole


class Waiting:
    """A search in a line.

    Attributes:
        call: that it would be alone.
        until_s: when its time is up, on time.monotonic().
    """

    def __init__(self, call: Call[SearchResult], timeout_s: float) -> None:
        self.call = call
        self.until_s = time.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        """What is left of its time."""
        return self.until_s - time.monotonic()


W = TypeVar("W", bound=Waiting)


class Line(Generic[W]):
    """The searches that wait while a call is under way, oldest first; not safe to share between threads.

    One call at a time, as a server searches on one thread: with 2 at a time, searches of 8 threads took 1.2 times the
    processor time, on both sides, and with 4 nearly as much as without a line.
    """

    def __init__(self) -> None:
        self._waiting: dict[W, None] = {}
        # Until when a call may be under way. Not only whether: that would stay so if Ctrl-C came just where it ends.
        self._busy_until_s = 0.0

    def enter(self, search: W) -> bool:
        """Whether a search is to be sent at once; it waits otherwise."""
        if time.monotonic() < self._busy_until_s:
            self._waiting[search] = None
            return False
        self._busy_until_s = search.until_s
        return True

    def leave(self, search: W) -> None:
        """Wait no longer, if it does."""
        self._waiting.pop(search, None)

    def next(self, back: Sequence[W] = ()) -> list[W]:
        """The searches of the next call, now that one has ended; none where none waits.

        Args:
            back: searches of the call that ended which are still to be sent, oldest first.
        """
        if back:
            self._waiting = dict.fromkeys((*back, *self._waiting))
        if not self._waiting:
            self._busy_until_s = 0.0
            return []
        first = next(batches(one.call.request for one in self._waiting))
        batch = [search for search, _ in zip(self._waiting, first, strict=False)]
        for search in batch:
            del self._waiting[search]
        self._busy_until_s = batch[-1].until_s
        return batch


def may_join(request: pb.SearchRequest) -> bool:
    """Whether a search is quick, so that no other waits long for it.

    Images are to be decoded and embedded, and the others may look at every item or at payloads.
    """
    return not (
        request.HasField("image")
        or request.params.exact
        or request.filter
        or request.HasField("near_duplicate_threshold")
        or request.group_by
        or request.diversity
        or request.include_payload
    )


def message(calls: SearchCalls, batch: Sequence[Waiting]) -> Call[list[SearchResult | KinsightError]]:
    """All searches of a batch as one message of a stream."""
    return calls.stream_search([search.call.request for search in batch])


def joint_call(calls: SearchCalls, batch: Sequence[Waiting]) -> Call[list[SearchResult | KinsightError]]:
    """The one call for all searches of a batch."""
    if len(batch) > 1:
        return calls.batch_search([search.call.request for search in batch])
    (call,) = (search.call for search in batch)
    return Call(call.method, call.request, lambda response: [call.read(response)])


def result_of(outcome: Outcome) -> SearchResult:
    """The result of a search, or its error raised: one of its own, though the call that failed was for many."""
    if isinstance(outcome, grpc.RpcError):
        raise from_rpc(outcome) from outcome
    if isinstance(outcome, KinsightError):
        raise outcome
    return outcome
