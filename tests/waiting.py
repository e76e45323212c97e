"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable

NO_FLAKE_S = 20  # less than a client's own deadline, so that who only waits for that is not taken for one that ends
PROCESS_S = 60  # for what a process of its own does, which has yet to start


def until(holds: Callable[[], bool], timeout_s: float = NO_FLAKE_S) -> None:
    """Return as soon as it holds, or fail where it does not in time."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, f"waited for {timeout_s} seconds"
        time.sleep(0.005)
