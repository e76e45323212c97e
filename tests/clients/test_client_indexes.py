"""client.indexes and client.operations against real servers with real builds; one suite for both clients."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import kinsight_client
import pytest
from google.longrunning import operations_pb2
from kinsight.v1.operation_metadata_pb2 import OperationMetadata
from kinsight_client.operations import operation_of, result_of

from indexer.operations import queue, running
from indexer.store import Store
from server.folders import Folders
from tests.clients.both import BOTH, KINDS
from tests.serving import Served, build_photos, photo, serving


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Served]:
    """A server on an index of 40 photographs that may be changed; `tmp_path` may be read and written."""
    with serving(build_photos(tmp_path, 40), folders=Folders((tmp_path,), (tmp_path,))) as served:
        yield served


@pytest.fixture(params=BOTH, ids=["sync", "asyncio"])
def client(request: pytest.FixtureRequest, own: Served) -> Iterator[Any]:
    with request.param(own.target) as connected:
        yield connected


def test_a_version_is_built_activated_measured_and_rolled_back(client: Any) -> None:
    """The whole life of an index, each step's answer typed."""
    client.items.upsert("new", image=photo(100))
    stages: list[tuple[str, int, int]] = []
    operation = client.indexes.build(request_id="nightly")
    built = client.operations.wait(operation, progress=lambda *told: stages.append(told))
    assert operation.id == client.indexes.build(request_id="nightly").id
    assert (
        built.version.version,
        built.version.state,
        built.version.items,
        built.reused,
        built.embedded,
    ) == (2, "active", 41, 41, 0)
    assert built.evaluation.comparison.active_version == 1
    assert stages
    assert all(0 <= done <= total for _, done, total in stages)

    index = client.indexes.get("photos")
    assert (index.active_version, index.previous_version, index.items) == (2, 1, 41)
    back = client.indexes.rollback("photos", etag=index.etag)
    assert (back.active_version, back.previous_version, back.items) == (1, 2, 41)
    with pytest.raises(kinsight_client.Aborted):
        client.indexes.activate(2, etag=index.etag)
    assert [one.index for one in client.indexes.list()] == ["photos"]
    assert [(one.version, one.state) for one in client.indexes.versions()] == [(2, "ready"), (1, "active")]
    assert (client.indexes.stats().items, client.indexes.stats().delta_items) == (41, 1)
    evaluation = client.operations.wait(client.indexes.evaluate(2))
    assert (evaluation.version, evaluation.comparison.active_version, evaluation.recall_at_10) == (2, 1, 1.0)
    with pytest.raises(kinsight_client.FailedPrecondition):
        client.indexes.delete_version(2)


@pytest.mark.parametrize("client", BOTH[:1], ids=["sync"], indirect=True)
def test_a_version_of_more_images_waits_until_it_is_activated(client: Any, tmp_path: Path) -> None:
    """What could not be used of them is counted."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x.png").write_bytes(photo(200))
    (tmp_path / "more" / "bad.png").write_text("x")
    built = client.operations.wait(client.indexes.build(images=tmp_path / "more", activate=False))
    assert (built.version.state, built.version.items, built.embedded, built.failed) == ("ready", 41, 1, 1)
    assert client.indexes.activate(2).active_version == 2
    assert client.search(image=photo(200), top_k=1).hits[0].item == "x.png"


def test_an_index_is_copied_and_restored_under_another_name(client: Any, tmp_path: Path) -> None:
    """And both are searched."""
    copied = client.operations.wait(client.indexes.snapshot(tmp_path / "copy"))
    assert (str(tmp_path / "copy"), 1) == (copied.directory, copied.version)
    restored = client.operations.wait(client.indexes.restore(tmp_path / "copy", index="second"))
    assert (restored.index, restored.items) == ("second", 40)
    assert client.search(image=photo(3), index="second", top_k=1).hits[0].item == "003.png"
    with pytest.raises(kinsight_client.AlreadyExists):
        client.indexes.snapshot(tmp_path / "copy", index="photos")
    with pytest.raises(kinsight_client.PermissionDenied):
        client.indexes.snapshot("/nowhere/copy", index="photos")


def test_collections_are_imported_and_items_exported(client: Any, tmp_path: Path) -> None:
    """What is wrong in one image is told; the file has a row for each item."""
    more = tmp_path / "more"
    more.mkdir()
    for seed in range(200, 210):
        (more / f"{seed}.png").write_bytes(photo(seed))
    (more / "bad.png").write_text("x")
    done = client.operations.wait(client.items.import_from(more))
    assert (done.imported, done.unchanged, done.failed) == (10, 0, 1)
    assert [item for item, _ in done.failures] == ["bad.png"]
    assert client.search(image=photo(204), top_k=1).hits[0].item == "204.png"
    exported = client.operations.wait(client.items.export_to(tmp_path / "items.parquet"))
    assert (exported.items, exported.bytes) == (50, (tmp_path / "items.parquet").stat().st_size)


def test_operations_are_listed_cancelled_and_forgotten(client: Any) -> None:
    """An operation that failed or was cancelled raises where it is waited for; waiting has its own limit."""
    first = client.indexes.evaluate()
    assert client.operations.wait(first).recall_at_10 == 1.0
    (listed,) = client.operations.list()
    assert (first.id, "evaluate", "succeeded", True) == (listed.id, listed.kind, listed.state, listed.is_done)
    client.operations.delete(first.id)
    assert list(client.operations.list()) == []
    with pytest.raises(kinsight_client.NotFound):
        client.operations.get(first.id)

    second = client.indexes.build()
    with pytest.raises(kinsight_client.DeadlineExceeded, match=second.id):
        client.operations.wait(second, timeout_s=0)
    client.operations.cancel(second.id)
    with pytest.raises(kinsight_client.Cancelled):
        client.operations.wait(second)


def test_what_is_found_wrong_is_heard_while_the_work_goes_on(client: Any, tmp_path: Path) -> None:
    """Each once, what was known before as well as what comes while it is waited for."""
    directory, heard = Store(tmp_path / "store").operations, list[str]()
    with ExitStack() as work:
        recorder = work.enter_context(running(directory, queue(directory, "export", "", []).id))
        recorder.warn("one")
        recorder.progress("export", 0, 1)

        def end(*_: object) -> None:
            recorder.warn("two")
            recorder.finish({"path": "/x", "items": 0, "bytes": 0, "model": "m", "sequence": 0})
            work.close()

        begun = client.operations.get(recorder.operation.id)
        assert begun.warnings == ("one",)
        client.operations.wait(begun, progress=end, warn=heard.append)
    assert heard == ["one", "two"]


def test_an_operation_and_its_id_are_not_taken_for_each_other(client: Any) -> None:
    """Who waits for an id or asks for an operation by itself is told which of the two is wanted."""
    operation = client.indexes.evaluate()
    with pytest.raises(TypeError, match=f"the operation is '{operation.id}'; give an Operation, as `operations.get`"):
        client.operations.wait(operation.id)
    for ask in (client.operations.get, client.operations.cancel, client.operations.delete):
        with pytest.raises(TypeError, match="the id of an operation is Operation; give the `id` of an Operation"):
            ask(operation)
    assert client.operations.wait(client.operations.get(operation.id)).recall_at_10 == 1.0
    assert client.operations.get(f"operations/{operation.id}").id == operation.id  # as the server's errors name it


@KINDS
def test_a_client_of_short_calls_waits_for_long_work_all_the_same(kind: Any, own: Served) -> None:
    """Each look at it fits into a call; and who waits for a moment is told after that moment."""
    with kind(own.target) as patient, kind(own.target, timeout_s=1.0) as hasty:
        started = patient.indexes.evaluate()
        began = time.monotonic()
        with pytest.raises(kinsight_client.DeadlineExceeded, match="goes on; wait for it again"):
            hasty.operations.wait(started, timeout_s=0.05)
        assert time.monotonic() - began < 0.9
        assert hasty.operations.wait(started).recall_at_10 == 1.0


def test_learning_from_a_given_model_is_a_mistake(client: Any) -> None:
    """Found before anything is sent."""
    with pytest.raises(TypeError, match="give one of model, learn"):
        client.indexes.build(model="m", learn=True)


def test_an_operation_of_a_newer_server_is_told() -> None:
    """What this client has no word for is told by its number, and only its result is out of reach."""
    message = operations_pb2.Operation(name="operations/new", done=True)
    message.metadata.Pack(OperationMetadata(kind=99, index="photos", state=98))  # type: ignore[arg-type]
    message.response.Pack(OperationMetadata())
    operation = operation_of(message)
    assert (operation.id, operation.kind, operation.state, operation.index) == ("new", "99", "98", "photos")
    assert (operation.is_done, operation.result) == (True, None)
    with pytest.raises(TypeError, match="operation new succeeded; its result is of a newer server"):
        result_of(operation)
