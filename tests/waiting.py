"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable

NO_FLAKE_S = 60


def until(holds: Callable[[], bool]) -> None:
    """Return as soon as it holds, or fail where it does not in time."""
    end = time.monotonic() + NO_FLAKE_S
    while not holds():
        assert time.monotonic() < end, f"waited for {NO_FLAKE_S} seconds"
        time.sleep(0.005)
