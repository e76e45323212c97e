"""What the processes of one server tell each other: that something was committed."""

import threading
from collections.abc import Callable
from multiprocessing.context import SpawnContext
from typing import Any


class News:
    """A counter for each process in memory that all share; each writes its own alone, and waits for no other."""

    def __init__(self, counters: Any, own: int) -> None:
        """Of the process `own`, counted from 0; `counters` is of `shared_counters`."""
        self._counters = counters
        self._own = own
        self._telling = threading.Lock()  # who writes items and who refreshes indexes are two threads of a process

    @classmethod
    def alone(cls) -> "News":
        """Of a server of one process, who has nobody to hear from."""
        return cls([0], 0)  # which nobody reads

    @property
    def several(self) -> bool:
        """Whether there are other processes."""
        return len(self._counters) > 1

    def tell(self) -> None:
        """Say that something was committed; before it is acknowledged, so that no search after that misses it."""
        if self.several:
            with self._telling:  # else a thread that was held up could put the counter back to where it was heard
                self._counters[self._own] += 1

    def latest(self) -> tuple[int, ...]:
        """What has changed where this has; reading it costs less than a microsecond."""
        return tuple(self._counters)


class Inbox:
    """The news that one reader has taken in."""

    def __init__(self, news: News) -> None:
        """Nothing is taken in yet."""
        self._news = news
        self._heard: tuple[int, ...] = ()

    def read(self, take: Callable[[], object]) -> None:
        """Call `take` where there is news that no call has taken in; several threads may do so at once."""
        told = self._news.latest()
        if told != self._heard:
            take()
            self._heard = told  # only now: who reads meanwhile must not go by what is not taken in yet


def shared_counters(context: SpawnContext, processes: int) -> Any:
    """Zeros for that many processes, to be handed to each of them when it is started."""
    return context.RawArray("Q", processes)
