"""How many operations a server has at work."""

from pathlib import Path

import grpc
import pytest
from google.longrunning import operations_pb2
from kinsight.v1.index_service_pb2 import EvaluateVersionRequest, SnapshotIndexRequest

from server import jobs
from server.folders import Folders
from tests.serving import Stubs, build_photos, reason_of, serving


def test_no_more_operations_than_the_bound_are_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks in a loop does not take the machine's memory from searches; repetitions start nothing."""
    monkeypatch.setattr(jobs, "MAX_AT_WORK", 2)
    store = build_photos(tmp_path)
    folders = Folders((tmp_path,), (tmp_path,))
    with serving(store, folders=folders) as served, Stubs(served.target) as stubs:
        snapshot = SnapshotIndexRequest(request_id="once", directory=str(tmp_path / "snapshot"))
        begun = [
            stubs.indexes.SnapshotIndex(snapshot),
            stubs.indexes.EvaluateVersion(EvaluateVersionRequest()),
        ]
        with pytest.raises(grpc.RpcError) as refused:
            stubs.indexes.EvaluateVersion(EvaluateVersionRequest())
        assert reason_of(refused.value) == ("RESOURCE_EXHAUSTED", "TOO_MANY_OPERATIONS")
        assert f"the oldest being {begun[0].name};" in (refused.value.details() or "")
        assert stubs.indexes.SnapshotIndex(snapshot).name == begun[0].name
        assert len(stubs.operations.ListOperations(operations_pb2.ListOperationsRequest()).operations) == 2
        stubs.ended(begun[0])
        last = stubs.ended(stubs.indexes.EvaluateVersion(EvaluateVersionRequest()))
        assert not last.HasField("error")
