"""The store and the server that these tests share, and how quick a refresh is in some."""

import pytest

from server import indexes
from tests.serving import gallery, served

__all__ = ["gallery", "one_at_a_time", "served"]


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh has time to embed a single item anew."""
    monkeypatch.setattr(indexes, "CATCH_UP", 1)
    monkeypatch.setattr(indexes, "CATCH_UP_S", 0.0)
