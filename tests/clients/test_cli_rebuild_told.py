"""What `kinsight rebuild` and `kinsight index build` say of items that another model can't find."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from clients.cli.command import kinsight
from indexer import operations
from indexer.catalog import Catalog
from indexer.records import Upsert
from indexer.store import Store
from tests.conftest import TINY_DIM

BY_EMBEDDING = 3


@pytest.mark.parametrize("verb", [["rebuild", "photos"], ["index", "build", "photos"]], ids=["rebuild", "build"])
def test_how_many_items_leave_the_search_with_their_model_is_told(
    verb: list[str], store: Store, photos: Path, tiny_model: str, make_model: Callable[..., str]
) -> None:
    """Before the images are embedded, in the result, and in what the operation warned of; once in each."""

    def run(*words: object) -> Result:
        return CliRunner().invoke(kinsight, [*map(str, words), "--store", str(store.root)])

    run("index", "build", "photos", photos, "--model", tiny_model)
    known = [
        Upsert(f"bare-{row}", np.eye(TINY_DIM, dtype=np.float32)[row], tiny_model) for row in range(BY_EMBEDDING)
    ]
    with closing(Catalog(store.index("photos"))) as catalog:
        catalog.upsert(known, dim=TINY_DIM)
    other = make_model(store, seed=5)
    collection = [] if verb[0] == "rebuild" else [photos]
    done = run(*verb, *collection, "--model", other, "--json")
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert told.startswith(f"warning: {BY_EMBEDDING} items have no image and no embedding of model {other}: ")
    assert done.stderr.index(told) < done.stderr.index("embed  ")
    assert json.loads(done.stdout)["warnings"] == [told.removeprefix("warning: ")]
    *_, recorded = operations.list_operations(store.operations)
    assert recorded.result["warnings"] == list(recorded.warnings) == json.loads(done.stdout)["warnings"]
