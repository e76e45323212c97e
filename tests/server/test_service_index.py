"""IndexService and Operations over a real server, with real builds in processes of their own."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
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
    ListVersionsRequest,
    RestoreIndexRequest,
    RollbackIndexRequest,
    SnapshotIndexRequest,
    Version,
)
from kinsight.v1.item_service_pb2 import ItemUpsert
from kinsight.v1.operation_metadata_pb2 import OperationMetadata

from server.folders import Folders
from tests.serving import Stubs, build_photos, make_model, photo, reason_of, serving


@pytest.fixture
def stubs(tmp_path: Path) -> Iterator[Stubs]:
    """Of a server on an index of 24 photographs that may be changed; `tmp_path` may be read and written."""
    store = build_photos(tmp_path)
    with serving(store, folders=Folders((tmp_path,), (tmp_path,))) as served, Stubs(served.target) as stubs:
        yield stubs


def _response(done: Any, kind: Any) -> Any:
    assert not done.HasField("error"), done.error
    message = kind()
    assert done.response.Unpack(message)
    return message


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
    metadata = OperationMetadata()
    assert done.metadata.Unpack(metadata)
    assert (metadata.kind, metadata.state) == (OperationMetadata.KIND_BUILD, OperationMetadata.STATE_SUCCEEDED)
    index = stubs.indexes.ActivateVersion(ActivateVersionRequest(version=2))
    assert (index.active_version, index.previous_version, index.items) == (2, 1, 24)
    stats = stubs.indexes.GetIndexStats(GetIndexStatsRequest())
    assert (stats.version, stats.items, stats.delta_items, stats.hidden_items) == (2, 24, 0, 0)
    found = stubs.found(image=photo(100), top_k=100)
    assert found[0] == "new"
    assert "003.png" not in found
