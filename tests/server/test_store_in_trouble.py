"""What happens to a store while it is served: its disk fills or refuses, and what lies in it goes."""

import logging
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from kinsight.v1.index_service_pb2 import ActivateVersionRequest, EvaluateVersionRequest

from server import answers
from tests.serving import Stubs, build_photos, reason_of, serving


def _refusal(call: Any, request: Any) -> tuple[tuple[str, str], str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=30)
    return reason_of(caught.value), caught.value.details() or ""


def _fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def test_a_full_disk_is_told_to_clients_and_once_to_the_operator(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Long work is neither begun nor a failure of the server; once there is room again, it is begun."""
    monkeypatch.setattr(answers, "_told_at_s", {})
    store = build_photos(small_disk)
    with serving(store) as served, Stubs(served.target) as stubs, caplog.at_level(logging.ERROR):
        filler = _fill(small_disk)
        for _ in range(2):
            reason, text = _refusal(stubs.indexes.EvaluateVersion, EvaluateVersionRequest())
            assert reason == ("RESOURCE_EXHAUSTED", "STORE_NOT_ACCESSIBLE")
            assert text.endswith(".json: No space left on device; free some space and try again")
        filler.unlink()
        assert not stubs.ended(stubs.indexes.EvaluateVersion(EvaluateVersionRequest())).HasField("error")
    (record,) = caplog.records
    assert record.message.startswith(f"requests fail: STORE_NOT_ACCESSIBLE: {store.operations}")
    assert record.exc_info is None


def test_a_read_only_disk_is_told(small_disk: Path) -> None:
    """By the name of the file that would have been written."""
    store = build_photos(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with serving(store) as served, Stubs(served.target) as stubs:
        reason, text = _refusal(stubs.indexes.ActivateVersion, ActivateVersionRequest(version=1))
        assert reason == ("RESOURCE_EXHAUSTED", "STORE_NOT_ACCESSIBLE")
        pointer = store.index("photos") / "active"
        assert text == f"{pointer}: Read-only file system; check the disk and its permissions and try again"
