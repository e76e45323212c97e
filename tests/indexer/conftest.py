"""Fixtures of the indexer's tests: embeddings that are hard to search, and a built index."""

from pathlib import Path

import numpy as np
import pytest

from indexer.build import build
from indexer.rows import Embeddings
from indexer.store import Store
from indexer.version import version_dir


def unit(embeddings: np.ndarray) -> Embeddings:
    """Rows scaled to unit length, float32."""
    return np.asarray(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="session")
def hard() -> Embeddings:
    """(6000, 64) rows whose variance falls as 1 / i^1.6, as learned embeddings' does; no clusters to exploit."""
    rng = np.random.default_rng(3)
    return unit(rng.standard_normal((6_000, 64)) * np.arange(1, 65.0) ** -0.8)


@pytest.fixture
def index(store: Store, tiny_model: str, photos: Path) -> Path:
    """The directory of an index of 60 pictures, version 1."""
    build("street", photos, model=tiny_model, store=store, progress=lambda *_: None)
    return store.index("street")


@pytest.fixture
def built(index: Path) -> Path:
    """The directory of a published version of 60 pictures."""
    return version_dir(index, 1)
