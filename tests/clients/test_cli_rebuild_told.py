"""What the verbs that change the model of an index say of items that it can't find."""

import json
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from clients.cli.command import kinsight
from indexer import operations
from indexer.build import build
from indexer.catalog import Catalog
from indexer.records import Upsert
from indexer.store import Store
from tests.conftest import TINY_DIM
from tests.serving import serving

BY_EMBEDDING = 3


def upsert_embeddings(store: Store, model: str) -> None:
    """Put three items into the index of which only an embedding by a model is known."""
    known = [Upsert(f"bare-{row}", np.eye(TINY_DIM, dtype=np.float32)[row], model) for row in range(BY_EMBEDDING)]
    with closing(Catalog(store.index("photos"))) as catalog:
        catalog.upsert(known, dim=TINY_DIM)


def warnings_of(done: Result) -> list[str]:
    assert done.exit_code == 0, done.output
    return [line for line in done.stderr.splitlines() if line.startswith("warning: ")]


@pytest.mark.parametrize("verb", [["rebuild", "photos"], ["index", "build", "photos"]], ids=["rebuild", "build"])
def test_how_many_items_leave_the_search_with_their_model_is_told(
    verb: list[str], store: Store, photos: Path, tiny_model: str, make_model: Callable[..., str]
) -> None:
    """Before the images are embedded, in the result, and in what the operation warned of; once in each."""

    def run(*words: object) -> Result:
        return CliRunner().invoke(kinsight, [*map(str, words), "--store", str(store.root)])

    run("index", "build", "photos", photos, "--model", tiny_model)
    upsert_embeddings(store, tiny_model)
    other = make_model(store, seed=5)
    collection = [] if verb[0] == "rebuild" else [photos]
    done = run(*verb, *collection, "--model", other, "--json")
    (told,) = warnings_of(done)
    assert told.startswith(f"warning: {BY_EMBEDDING} items have no image and no embedding of model {other}: ")
    assert done.stderr.index(told) < done.stderr.index("embed  ")
    assert json.loads(done.stdout)["warnings"] == [told.removeprefix("warning: ")]
    *_, recorded = operations.list_operations(store.operations)
    assert recorded.result["warnings"] == list(recorded.warnings) == json.loads(done.stdout)["warnings"]


@pytest.mark.parametrize("where", ["index", "remote"])
def test_how_many_items_leave_the_search_with_another_version_is_told(
    where: str, store: Store, photos: Path, tiny_model: str, make_model: Callable[..., str]
) -> None:
    """Activated or rolled back to, on the store or by a server, for people and in JSON; nothing where none leaves."""
    other = make_model(store, seed=5)
    for model in (other, tiny_model):
        build("photos", photos, model=model, store=store, progress=lambda *_: None)
    upsert_embeddings(store, tiny_model)
    with serving(store) if where == "remote" else nullcontext() as served:

        def run(verb: str, *words: object) -> Result:
            place = ["--server", served.target] if served else ["--store", str(store.root)]
            return CliRunner().invoke(kinsight, [where, verb, "photos", *map(str, words), *place])

        (told,) = warnings_of(run("activate", 1))
        back = run("rollback", "--json")
        assert (warnings_of(back), json.loads(back.stdout)["warnings"]) == ([], [])
        again = run("rollback", "--json")
        assert warnings_of(again) == [told] == [f"warning: {text}" for text in json.loads(again.stdout)["warnings"]]
    assert told.startswith(f"warning: {BY_EMBEDDING} items ")
    assert other in told
    assert told.endswith("images, or embeddings of that model")
