"""IndexService and Operations over a real server, with real builds in processes of their own."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.longrunning import operations_pb2
from kinsight.v1.index_service_pb2 import (
    ActivateVersionRequest,
    BuildVersionRequest,
    BuildVersionResponse,
    DeleteVersionRequest,
    EvaluateVersionRequest,
    Evaluation,
    GetIndexRequest,
    GetIndexStatsRequest,
    Index,
    ListIndexesRequest,
    ListVersionsRequest,
    RestoreIndexRequest,
    RollbackIndexRequest,
    SnapshotIndexRequest,
    SnapshotIndexResponse,
    Version,
)
from kinsight.v1.item_service_pb2 import GetItemRequest, ImportItemsRequest, ItemUpsert, ListItemsRequest
from kinsight.v1.operation_metadata_pb2 import OperationMetadata
from kinsight.v1.search_service_pb2 import SearchRequest

from indexer import manifest, pixels, version
from indexer.encoder import Encoder
from indexer.locks import hold, turn
from indexer.operations import find, queue
from indexer.rebuild import rebuild
from indexer.store import Store
from indexer.version import delete_version, list_versions
from server.app import StoreServed, run, sole_server
from server.folders import Folders
from tests.serving import Stubs, build_photos, make_gallery, make_model, photo, reason_of, server_process, serving
from tests.waiting import PROCESS_S, until


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """With an index of 24 photographs."""
    return build_photos(tmp_path)


@pytest.fixture
def stubs(store: Store, tmp_path: Path) -> Iterator[Stubs]:
    """Of a server on that store; `tmp_path` may be read and written."""
    with serving(store, folders=Folders((tmp_path,), (tmp_path,))) as served, Stubs(served.target) as stubs:
        yield stubs


def _metadata(operation: Any) -> OperationMetadata:
    metadata = OperationMetadata()
    assert operation.metadata.Unpack(metadata)
    return metadata


def _response(done: Any, kind: Any) -> Any:
    assert not done.HasField("error"), done.error
    message = kind()
    assert done.response.Unpack(message)
    return message


def _rebuilt(store: Store, times: int = 1) -> None:
    """Build versions of the index in this process, for what is asked of them and not of how a server builds."""
    for _ in range(times):
        rebuild("photos", store=store, device="cpu", progress=lambda *_: None)


def _reason(call: Any, request: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=30)
    return reason_of(caught.value)


def test_a_rebuild_folds_in_what_was_upserted_and_deleted(stubs: Stubs) -> None:
    """And is searched as soon as it is done, with nothing left beside it."""
    stubs.upsert(ItemUpsert(item="new", image=photo(100)))
    stubs.delete("003.png")
    done = stubs.ended(stubs.indexes.BuildVersion(BuildVersionRequest()))
    built = _response(done, BuildVersionResponse)
    assert (built.version.version, built.version.state) == (2, Version.STATE_ACTIVE)
    assert (built.version.items, built.reused, built.embedded, built.failed) == (24, 24, 0, 0)
    metadata = _metadata(done)
    assert (metadata.kind, metadata.state) == (OperationMetadata.KIND_BUILD, OperationMetadata.STATE_SUCCEEDED)
    index = stubs.indexes.GetIndex(GetIndexRequest())
    assert (index.active_version, index.previous_version, index.items) == (2, 1, 24)
    stats = stubs.indexes.GetIndexStats(GetIndexStatsRequest())
    assert (stats.version, stats.items, stats.delta_items, stats.hidden_items) == (2, 24, 0, 0)
    found = stubs.found(image=photo(100), top_k=100)
    assert found[0] == "new"
    assert "003.png" not in found


def test_a_version_that_is_not_good_enough_is_kept_and_not_activated(tmp_path: Path) -> None:
    """The operation succeeds and says why; activating it by hand works all the same."""
    store = make_gallery(tmp_path, count=6).store  # whose images are gone
    with serving(store) as served, Stubs(served.target) as stubs:
        stubs.upsert(ItemUpsert(item="new", image=photo(100)))
        request = BuildVersionRequest(model=make_model(store, seed=1))
        built = _response(stubs.ended(stubs.indexes.BuildVersion(request)), BuildVersionResponse)
        assert (built.version.version, built.version.state) == (2, Version.STATE_REFUSED)
        assert "6 of 6 items would be lost" in built.version.refusal
        assert stubs.indexes.GetIndex(GetIndexRequest()).active_version == 1
        stubs.upsert(ItemUpsert(item="later", image=photo(101)))
        index = stubs.indexes.ActivateVersion(ActivateVersionRequest(version=2))
        assert (index.active_version, index.model) == (2, built.version.model)
        # Embedded by the new model before its version was swapped in.
        assert stubs.found(image=photo(101))[0] == "later"


def test_an_outdated_etag_is_aborted(stubs: Stubs, store: Store) -> None:
    """Who decides on an old view of the index decides anew."""
    seen = stubs.indexes.GetIndex(GetIndexRequest()).etag
    _rebuilt(store)
    request = ActivateVersionRequest(version=1, etag=seen)
    assert _reason(stubs.indexes.ActivateVersion, request) == ("ABORTED", "STALE_ETAG")
    assert _reason(stubs.indexes.RollbackIndex, RollbackIndexRequest(etag=seen)) == ("ABORTED", "STALE_ETAG")
    now = stubs.indexes.GetIndex(GetIndexRequest())
    assert stubs.indexes.RollbackIndex(RollbackIndexRequest(etag=now.etag)).active_version == 1


def test_a_version_that_is_deleted_while_versions_are_listed_is_left_out(
    stubs: Stubs, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are listed: the whole call failed as not found."""
    _rebuilt(store, 2)

    def list_and_delete(index_dir: Path) -> list[int]:
        monkeypatch.undo()
        found = list_versions(index_dir)
        delete_version(index_dir, 1)
        return found

    monkeypatch.setattr(version, "list_versions", list_and_delete)
    listed = stubs.indexes.ListVersions(ListVersionsRequest()).versions
    assert [(one.version, one.refusal) for one in listed] == [(3, ""), (2, "")]


def test_versions_are_listed_rolled_back_to_and_deleted(stubs: Stubs, store: Store) -> None:
    """Newest first; what is active, or was before, can't be deleted."""
    rollback = RollbackIndexRequest()
    assert _reason(stubs.indexes.RollbackIndex, rollback) == ("FAILED_PRECONDITION", "NOTHING_TO_ROLL_BACK")
    _rebuilt(store, 2)
    page = stubs.indexes.ListVersions(ListVersionsRequest(page_size=2))
    assert [one.version for one in page.versions] == [3, 2]
    rest = stubs.indexes.ListVersions(ListVersionsRequest(page_token=page.next_page_token))
    assert ([one.version for one in rest.versions], rest.next_page_token) == ([1], "")
    assert stubs.indexes.RollbackIndex(rollback).active_version == 2
    assert stubs.indexes.RollbackIndex(rollback).active_version == 3
    in_use = ("FAILED_PRECONDITION", "VERSION_IN_USE")
    for number in (2, 3):
        assert _reason(stubs.indexes.DeleteVersion, DeleteVersionRequest(version=number)) == in_use
    stubs.indexes.DeleteVersion(DeleteVersionRequest(version=1))
    for call, request in (
        (stubs.indexes.DeleteVersion, DeleteVersionRequest(version=1)),
        (stubs.indexes.ActivateVersion, ActivateVersionRequest(version=1)),
        (stubs.indexes.EvaluateVersion, EvaluateVersionRequest(version=1)),
    ):
        assert _reason(call, request) == ("NOT_FOUND", "VERSION_NOT_FOUND")


def test_a_version_is_not_deleted_while_its_index_is_being_built(stubs: Stubs, store: Store) -> None:
    """A build may be taking embeddings from it: ABORTED says who builds, and the version stays until then."""
    _rebuilt(store, 2)
    request = DeleteVersionRequest(version=1)
    with hold(store.index("photos") / ".builder"), pytest.raises(grpc.RpcError) as caught:
        stubs.indexes.DeleteVersion(request, timeout=30)
    assert reason_of(caught.value) == ("ABORTED", "BUILD_IN_PROGRESS")
    assert f"process {os.getpid()} is building photos" in str(caught.value.details())
    assert list_versions(store.index("photos")) == [1, 2, 3]
    stubs.indexes.DeleteVersion(request, timeout=30)
    assert list_versions(store.index("photos")) == [2, 3]


def test_deletions_that_wait_for_an_activation_keep_no_build_away(stubs: Stubs, store: Store) -> None:
    """And several at once are done one after the other: none is told that the server builds the index."""
    _rebuilt(store, 3)
    with turn(store.index("photos") / ".pointing"):
        waiting = [stubs.indexes.DeleteVersion.future(DeleteVersionRequest(version=number)) for number in (1, 2)]
        stubs.ended(stubs.indexes.BuildVersion(BuildVersionRequest(activate=False)))
        assert not any(one.done() for one in waiting)
    for one in waiting:
        one.result(60)
    assert list_versions(store.index("photos")) == [3, 4, 5]


def test_items_are_read_while_versions_wait_to_be_activated(stubs: Stubs, store: Store) -> None:
    """However many of them: each takes as long as its version takes to be verified, and the next waits for it."""
    item = ItemUpsert(item="000.png")
    item.payload.update({"a": 1})
    stubs.upsert(item)
    with turn(store.index("photos") / ".pointing"):
        waiting = [stubs.indexes.ActivateVersion.future(ActivateVersionRequest(version=1)) for _ in range(40)]
        assert stubs.items.GetItem(GetItemRequest(item="000.png"), timeout=10).payload["a"] == 1
        assert len(stubs.items.ListItems(ListItemsRequest(), timeout=10).items) == 24
        search = SearchRequest(item="000.png", top_k=1, include_payload=True)
        assert stubs.search.Search(search, timeout=10).hits[0].payload["a"] == 1
        assert not any(one.done() for one in waiting)
    assert {one.result(60).active_version for one in waiting} == {1}


def test_a_version_that_was_removed_is_not_what_a_rollback_goes_back_to(stubs: Stubs, store: Store) -> None:
    """It can be removed on the server's machine, where the version before is not kept from it."""
    rebuild("photos", store=store, device="cpu", activate=False, progress=lambda *_: None)
    assert stubs.indexes.ActivateVersion(ActivateVersionRequest(version=2)).previous_version == 1
    delete_version(store.index("photos"), 1)
    found = stubs.indexes.GetIndex(GetIndexRequest())
    assert (found.active_version, found.previous_version) == (2, 0)
    assert _reason(stubs.indexes.RollbackIndex, RollbackIndexRequest()) == (
        "FAILED_PRECONDITION",
        "NOTHING_TO_ROLL_BACK",
    )


def test_a_version_can_be_measured(stubs: Stubs) -> None:
    """Exact search finds everything, and one version has nothing to be compared with."""
    done = stubs.ended(stubs.indexes.EvaluateVersion(EvaluateVersionRequest()))
    found = _response(done, Evaluation)
    assert (found.version, found.recall_at_10, found.HasField("comparison")) == (1, 1.0, False)


def test_a_snapshot_can_be_restored_under_another_name(stubs: Stubs, tmp_path: Path) -> None:
    """With what was upserted and deleted; where something is already, nothing is written."""
    stubs.upsert(ItemUpsert(item="new", image=photo(100)))
    stubs.delete("003.png")
    snapshot = SnapshotIndexRequest(directory=str(tmp_path / "copy"))
    done = _response(stubs.ended(stubs.indexes.SnapshotIndex(snapshot)), SnapshotIndexResponse)
    assert (done.directory, done.version, done.sequence) == (str(tmp_path / "copy"), 1, 26)
    assert _reason(stubs.indexes.SnapshotIndex, snapshot) == ("ALREADY_EXISTS", "PATH_EXISTS")
    restore = RestoreIndexRequest(index="again", directory=str(tmp_path / "copy"))
    restored = _response(stubs.ended(stubs.indexes.RestoreIndex(restore)), Index)
    assert (restored.index, restored.active_version, restored.items) == ("again", 1, 24)
    found = stubs.found(index="again", image=photo(100), top_k=100)
    assert (found[0], len(found), "003.png" in found) == ("new", 24, False)
    assert _reason(stubs.indexes.RestoreIndex, restore) == ("ALREADY_EXISTS", "INDEX_EXISTS")
    (tmp_path / "copy/version/rows.faiss").write_bytes(b"damaged")
    restore.index = "third"
    damaged = stubs.ended(stubs.indexes.RestoreIndex(restore)).error
    assert reason_of(damaged) == ("DATA_LOSS", "SNAPSHOT_CORRUPT")
    receipt = json.loads((tmp_path / "copy/snapshot.json").read_text()) | {"format": 2}
    receipt["sha256"] = manifest.seal({name: receipt[name] for name in receipt if name != "sha256"})
    (tmp_path / "copy/snapshot.json").write_text(json.dumps(receipt))
    newer = stubs.ended(stubs.indexes.RestoreIndex(restore)).error
    assert reason_of(newer) == ("FAILED_PRECONDITION", "SNAPSHOT_NEWER")
    restore.directory = str(tmp_path)
    other = stubs.ended(stubs.indexes.RestoreIndex(restore)).error
    assert reason_of(other) == ("INVALID_ARGUMENT", "NOT_A_SNAPSHOT")
    assert other.message.startswith(f"{tmp_path} is no snapshot: it has no snapshot.json; ")
    assert "rows.faiss" in damaged.message


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("relative", ("INVALID_ARGUMENT", "INVALID_PATH")),
        ("/etc/passwd", ("PERMISSION_DENIED", "PATH_NOT_ALLOWED")),
        ("{root}/../../outside", ("PERMISSION_DENIED", "PATH_NOT_ALLOWED")),
        ("{root}/link", ("PERMISSION_DENIED", "PATH_NOT_ALLOWED")),
        ("{root}/inside/../link", ("PERMISSION_DENIED", "PATH_NOT_ALLOWED")),
        ("{root}/nothing", ("NOT_FOUND", "PATH_NOT_FOUND")),
        ("{root}/circle", ("NOT_FOUND", "PATH_NOT_FOUND")),
        ("{root}/circle/../link", ("PERMISSION_DENIED", "PATH_NOT_ALLOWED")),
        (f"{{root}}/{'long' * 100}", ("NOT_FOUND", "PATH_NOT_FOUND")),
    ],
)
def test_only_folders_that_were_allowed_are_read(
    path: str, expected: tuple[str, str], stubs: Stubs, tmp_path: Path
) -> None:
    """Neither by going up nor through a link is there a way out."""
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "inside").symlink_to("store/indexes/photos")  # above which `link` is another one than beside it
    (tmp_path / "circle").symlink_to("circle")
    request = BuildVersionRequest(images=path.format(root=tmp_path))
    assert _reason(stubs.indexes.BuildVersion, request) == expected


def test_a_second_build_of_an_index_is_aborted(stubs: Stubs, tmp_path: Path) -> None:
    """Of the same server, and beside one that somebody started by hand."""
    first = stubs.indexes.BuildVersion(BuildVersionRequest(request_id="one"))
    assert _reason(stubs.indexes.BuildVersion, BuildVersionRequest()) == ("ABORTED", "BUILD_IN_PROGRESS")
    # The request that started it may be repeated, with the same words.
    assert stubs.indexes.BuildVersion(BuildVersionRequest(request_id="one")).name == first.name
    reused = BuildVersionRequest(request_id="one", learn=True)
    assert _reason(stubs.indexes.BuildVersion, reused) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    stubs.ended(first)
    with hold(tmp_path / "store/indexes/photos/.builder"):
        assert _reason(stubs.indexes.BuildVersion, BuildVersionRequest()) == ("ABORTED", "BUILD_IN_PROGRESS")
    with hold(tmp_path / "store/.learner"):
        learning = BuildVersionRequest(learn=True)
        assert _reason(stubs.indexes.BuildVersion, learning) == ("ABORTED", "LEARNING_IN_PROGRESS")


def test_a_cancelled_build_leaves_the_active_version(stubs: Stubs) -> None:
    """It ends as CANCELLED, and the next one is not in its way."""
    started = stubs.indexes.BuildVersion(BuildVersionRequest())
    for _ in range(2):  # the second time changes nothing
        stubs.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=started.name))
    done = stubs.ended(started)
    assert done.error.code == grpc.StatusCode.CANCELLED.value[0]
    assert stubs.indexes.GetIndex(GetIndexRequest()).active_version == 1
    built = _response(stubs.ended(stubs.indexes.BuildVersion(BuildVersionRequest())), BuildVersionResponse)
    assert built.version.version == 2


def test_operations_are_listed_and_deleted(stubs: Stubs) -> None:
    """Oldest first, by a filter on what they are; one that is at work is not deleted."""
    build = stubs.indexes.BuildVersion(BuildVersionRequest())
    delete = operations_pb2.DeleteOperationRequest(name=build.name)
    assert _reason(stubs.operations.DeleteOperation, delete) == ("FAILED_PRECONDITION", "OPERATION_RUNNING")
    stubs.ended(build)
    evaluation = stubs.ended(stubs.indexes.EvaluateVersion(EvaluateVersionRequest()))
    listed = stubs.operations.ListOperations(operations_pb2.ListOperationsRequest(name="operations"))
    assert [one.name for one in listed.operations] == [build.name, evaluation.name]
    wanted = operations_pb2.ListOperationsRequest(filter='kind = "KIND_EVALUATE" AND done = true')
    assert [one.name for one in stubs.operations.ListOperations(wanted).operations] == [evaluation.name]
    totals = [_metadata(one).total for one in listed.operations]
    for condition, expected in (
        ('start_time >= "2026" AND end_time:* AND update_time < "9999"', [True, True]),
        ('index = "" OR stage = "nothing"', []),
        ('index = "photos" AND state = STATE_SUCCEEDED AND rate >= 0', [True, True]),
        (f"total >= {max(totals)}", [one == max(totals) for one in totals]),
        ("total < 0", []),
    ):
        wanted = operations_pb2.ListOperationsRequest(filter=condition)
        assert len(stubs.operations.ListOperations(wanted).operations) == sum(expected)
    for condition, field in (("don = true", "don"), ('startTime > "2026"', "startTime"), ("item:*", "item")):
        wanted = operations_pb2.ListOperationsRequest(filter=condition)
        with pytest.raises(grpc.RpcError, match=f"operations have no field {field}; fields are: done, end") as caught:
            stubs.operations.ListOperations(wanted)
        assert reason_of(caught.value) == ("INVALID_ARGUMENT", "FILTER_UNKNOWN_FIELD")
    stubs.operations.DeleteOperation(delete)
    for name in (build.name, "operations/no-such", "nonsense"):
        get = operations_pb2.GetOperationRequest(name=name)
        assert _reason(stubs.operations.GetOperation, get) == ("NOT_FOUND", "OPERATION_NOT_FOUND")


def test_a_record_of_another_release_hides_no_other_operation(stubs: Stubs, store: Store) -> None:
    """It is left out of the list, and told as what it is where it is asked for."""
    older, newer = (stubs.ended(stubs.indexes.EvaluateVersion(EvaluateVersionRequest())) for _ in range(2))
    path = store.operations / f"{older.name.removeprefix('operations/')}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"result": {"measured": 1}}))
    listed = stubs.operations.ListOperations(operations_pb2.ListOperationsRequest())
    assert [one.name for one in listed.operations] == [newer.name]
    get = operations_pb2.GetOperationRequest(name=older.name)
    assert _reason(stubs.operations.GetOperation, get) == ("NOT_FOUND", "OPERATION_NOT_FOUND")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"index": "nothing"}, ("NOT_FOUND", "INDEX_NOT_FOUND")),
        ({"model": "0123"}, ("NOT_FOUND", "MODEL_NOT_FOUND")),
        ({"min_recall": 1.5}, ("INVALID_ARGUMENT", "MIN_RECALL_OUT_OF_RANGE")),
        ({"target_recall": 0}, ("INVALID_ARGUMENT", "TARGET_RECALL_OUT_OF_RANGE")),
        ({"learn_memory_bytes": 1}, ("INVALID_ARGUMENT", "INVALID_LEARNING")),
        ({"learn": True, "learn_memory_bytes": -1}, ("INVALID_ARGUMENT", "INVALID_LEARNING")),
        ({"request_id": "x" * 65}, ("INVALID_ARGUMENT", "INVALID_REQUEST_ID")),
    ],
)
def test_a_build_that_can_not_be_is_refused_at_once(
    fields: dict[str, Any], expected: tuple[str, str], stubs: Stubs
) -> None:
    """Without a process."""
    assert _reason(stubs.indexes.BuildVersion, BuildVersionRequest(**fields)) == expected
    assert not stubs.operations.ListOperations(operations_pb2.ListOperationsRequest()).operations


def test_what_learns_may_take_as_much_memory_as_was_said(stubs: Stubs, store: Store) -> None:
    """By the option of the command that does it."""
    begun = stubs.indexes.BuildVersion(BuildVersionRequest(learn=True, learn_memory_bytes=2**33))
    words = find(store.operations, begun.name.removeprefix("operations/")).arguments
    assert words[words.index("--learn-memory") + 1] == str(2**33)
    stubs.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=begun.name))
    stubs.ended(begun)


def test_a_name_that_no_index_can_have_is_refused(stubs: Stubs, tmp_path: Path) -> None:
    """Nothing leads out of the store."""
    request = RestoreIndexRequest(index="../out", directory=str(tmp_path))
    assert _reason(stubs.indexes.RestoreIndex, request) == ("INVALID_ARGUMENT", "INVALID_INDEX_NAME")


def test_what_a_process_can_not_do_is_the_error_of_its_operation(stubs: Stubs, tmp_path: Path) -> None:
    """With the code and the reason that a call would have, and its own words."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "labels.csv").write_text("path,class_id\nnobody.png,1\n")
    imported = stubs.items.ImportItems(ImportItemsRequest(path=str(tmp_path / "empty")))
    assert reason_of(stubs.ended(imported).error) == ("INVALID_ARGUMENT", "INVALID_COLLECTION")
    built = stubs.indexes.BuildVersion(BuildVersionRequest(labels=str(tmp_path / "labels.csv")))
    error = stubs.ended(built).error
    assert reason_of(error) == ("INVALID_ARGUMENT", "INVALID_LABELS")
    assert "labels.csv" in error.message
    (tmp_path / "labels.csv").write_bytes("path,class_id\n000.png,Möwe\n".encode("latin-1"))
    error = stubs.ended(stubs.indexes.BuildVersion(BuildVersionRequest(labels=str(tmp_path / "labels.csv")))).error
    assert reason_of(error) == ("INVALID_ARGUMENT", "INVALID_LABELS")  # and not what images are answered with
    assert "is not UTF-8 text; save the table as UTF-8" in error.message


def test_nothing_is_learned_where_images_are_gone(tmp_path: Path) -> None:
    """Which is no failure of the server: FAILED_PRECONDITION says how many, and what to do."""
    with serving(make_gallery(tmp_path, count=6).store) as served, Stubs(served.target) as stubs:
        error = stubs.ended(stubs.indexes.BuildVersion(BuildVersionRequest(learn=True))).error
    assert reason_of(error) == ("FAILED_PRECONDITION", "IMAGES_GONE")
    assert error.message.startswith("nothing was learned: 6 of 6 items would be lost")


def test_that_there_is_nothing_to_index_is_no_defect_of_the_server(tmp_path: Path) -> None:
    """No image is left that another model could embed."""
    gallery = make_gallery(tmp_path, count=6)
    other = make_model(gallery.store, seed=1)
    with serving(gallery.store) as served, Stubs(served.target) as stubs:
        error = stubs.ended(stubs.indexes.BuildVersion(BuildVersionRequest(model=other))).error
    assert reason_of(error) == ("FAILED_PRECONDITION", "NOTHING_TO_INDEX")
    assert error.message.startswith("none of the 6 items can be indexed; the first, some class/0.png: can't be read")


def test_an_index_without_an_active_version_can_be_given_one(stubs: Stubs, store: Store) -> None:
    """Though it can't be rebuilt, copied or measured before."""
    shutil.copytree(store.index("photos"), store.index("new"))
    (store.index("new") / "active").unlink()
    error = stubs.ended(stubs.indexes.BuildVersion(BuildVersionRequest(index="new"))).error
    assert reason_of(error) == ("FAILED_PRECONDITION", "NO_ACTIVE_VERSION")
    copied = SnapshotIndexRequest(index="new", directory=str(store.root.parent / "copied"))
    assert _reason(stubs.indexes.SnapshotIndex, copied) == ("FAILED_PRECONDITION", "NO_ACTIVE_VERSION")
    measured = EvaluateVersionRequest(index="new")
    assert _reason(stubs.indexes.EvaluateVersion, measured) == ("FAILED_PRECONDITION", "NO_ACTIVE_VERSION")
    assert stubs.indexes.GetIndex(GetIndexRequest(index="new")).active_version == 0
    activated = stubs.indexes.ActivateVersion(ActivateVersionRequest(index="new", version=1))
    assert (activated.active_version, activated.items) == (1, 24)


def test_a_damaged_pointer_is_mended_by_activating_a_version(stubs: Stubs, store: Store) -> None:
    """As its message says; until then the other indexes are listed beside its name and what is wrong with it."""
    shutil.copytree(store.index("photos"), store.index("new"))
    (store.index("new") / "active").write_text("nonsense")
    assert _reason(stubs.indexes.GetIndex, GetIndexRequest(index="new")) == ("DATA_LOSS", "INDEX_CORRUPT")
    listed = stubs.indexes.ListIndexes(ListIndexesRequest()).indexes
    assert [(one.index, one.active_version, one.etag) for one in listed] == [("new", 0, ""), ("photos", 1, "1-0")]
    assert "active says 'nonsense', which is not what was written; activate a version again" in listed[0].problem
    assert listed[1].problem == ""
    stale = ActivateVersionRequest(index="new", version=1, etag="1-0")
    assert _reason(stubs.indexes.ActivateVersion, stale) == ("DATA_LOSS", "INDEX_CORRUPT")
    activated = stubs.indexes.ActivateVersion(ActivateVersionRequest(index="new", version=1))
    assert (activated.active_version, activated.items) == (1, 24)


@pytest.mark.parametrize(
    ("number", "told"), [(signal.SIGKILL, "9 (Killed)"), (signal.SIGRTMIN + 2, "36 (Real-time signal 2)")]
)
def test_a_killed_process_is_the_end_of_its_operation_alone(stubs: Stubs, number: int, told: str) -> None:
    """The server says what happened, searches go on, and the next build goes on where it was.

    Python has no name for most of the real-time signals, which was all that was said of a build that one ended.
    """
    request = BuildVersionRequest(request_id="once")
    started = stubs.indexes.BuildVersion(request)
    get = operations_pb2.GetOperationRequest(name=started.name)
    until(lambda: _metadata(stubs.operations.GetOperation(get)).state != OperationMetadata.STATE_QUEUED, PROCESS_S)
    _kill_child_of(started.name, number)
    error = stubs.ended(started).error
    assert reason_of(error) == ("INTERNAL", "OPERATION_FAILED")
    assert f"killed by signal {told}; the same request again, by another request_id, goes on" in error.message
    assert stubs.indexes.BuildVersion(request).error == error
    assert stubs.found(image=photo(0))[0] == "000.png"
    assert _response(stubs.ended(stubs.indexes.BuildVersion(BuildVersionRequest())), BuildVersionResponse)


def test_searches_go_on_through_a_rebuild(stubs: Stubs, store: Store) -> None:
    """None fails, each is answered by one version whole, and upserts meanwhile are found at once."""
    other = make_model(store, seed=1)
    expected = {
        model: _similarities(store, model) for model in (other, stubs.indexes.GetIndex(GetIndexRequest()).model)
    }
    stop, problems, versions = threading.Event(), list[str](), set[int]()
    target = stubs.target

    def search(seed: int) -> None:
        with Stubs(target) as own:
            while not stop.is_set():
                try:
                    answer = own.search.Search(SearchRequest(image=photo(seed), top_k=24), timeout=30)
                except grpc.RpcError as error:
                    problems.append(str(error))
                    return
                versions.add(answer.version)
                found = {hit.item: hit.similarity for hit in answer.hits if hit.item.endswith(".png")}
                wanted = expected[answer.model][seed]
                if any(abs(similarity - wanted[item]) > 1e-4 for item, similarity in found.items()):
                    problems.append(f"an answer of version {answer.version} mixes models")
                stop.wait(0.05)  # those that never rest take minutes from the builds

    threads = [threading.Thread(target=search, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for number, model in enumerate(("", other)):
        build = stubs.indexes.BuildVersion(BuildVersionRequest(model=model, min_recall=0))
        stubs.upsert(ItemUpsert(item=f"new {number}", image=photo(100 + number)))
        assert stubs.found(image=photo(100 + number))[0] == f"new {number}"
        stubs.ended(build)
        stubs.indexes.ActivateVersion(ActivateVersionRequest(version=number + 2))  # whatever was found wrong with it
        assert stubs.found(image=photo(100 + number))[0] == f"new {number}"
    until(lambda: 3 in versions or bool(problems))
    stop.set()
    for thread in threads:
        thread.join()
    assert (problems, versions) == ([], {1, 2, 3})


def _similarities(store: Store, model: str) -> list[dict[str, float]]:
    """Of each photograph of the index to every one, as a model sees them."""
    encoder = Encoder.open(store.model(model), threads=1)
    embeddings = encoder.embed(np.stack([pixels.decode(photo(seed), encoder.pixels) for seed in range(24)]))
    return [
        {f"{seed:03}.png": float(similarity) for seed, similarity in enumerate(row)}
        for row in embeddings @ embeddings.T
    ]


def test_a_server_goes_on_with_what_the_one_before_was_doing(store: Store) -> None:
    """Killed with all its processes in the middle of a build, the next one ends that build as the same operation."""
    with server_process(store) as (process, target), Stubs(target) as stubs:
        started = stubs.indexes.BuildVersion(BuildVersionRequest())
        process.kill()
        process.wait()
        _kill_child_of(started.name)
    with server_process(store) as (_, target), Stubs(target) as stubs:
        built = _response(stubs.ended(started), BuildVersionResponse)
        assert (built.version.version, built.version.state) == (2, Version.STATE_ACTIVE)


def test_what_was_left_to_do_is_done_one_after_the_other(store: Store) -> None:
    """Two builds of an index that a killed server left both end well, and another waits for them."""
    words = ("rebuild", "photos", "--store", str(store.root), "--json")
    left = [queue(store.operations, "rebuild", "photos", words, request_id=request) for request in ("one", "two")]
    with server_process(store) as (_, target), Stubs(target) as stubs:
        assert _reason(stubs.indexes.BuildVersion, BuildVersionRequest()) == ("ABORTED", "BUILD_IN_PROGRESS")
        names = [f"operations/{one.id}" for one in left]
        built = [_response(stubs.ended(operations_pb2.Operation(name=name)), BuildVersionResponse) for name in names]
    assert [one.version.version for one in built] == [2, 3]


def test_a_second_server_on_a_store_names_the_first(store: Store) -> None:
    """And is welcome once that has ended, however it did."""
    with server_process(store) as (process, _):
        with pytest.raises(StoreServed, match=f"process {process.pid} serves {store.root} already"):
            _serve(store)
        process.kill()
    with sole_server(store), serving(store) as served, Stubs(served.target) as stubs:
        assert stubs.found(image=photo(0))[0] == "000.png"


def _serve(store: Store) -> None:
    """A server in this process, which must not come so far as to be ready."""
    run(store, listen="127.0.0.1:0", index=None, ready=lambda _: pytest.fail("it listens"))


def _kill_child_of(name: str, number: int = signal.SIGKILL) -> None:
    """Send a signal to the process that works on an operation."""
    identity = name.removeprefix("operations/").encode()
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended while we looked
            if identity in process.read_bytes().split(b"\0"):
                os.kill(int(process.parent.name), number)
