"""What happens to a store while it is served: its disk fills or refuses, and what lies in it goes."""

import logging
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from kinsight.v1.index_service_pb2 import ActivateVersionRequest, EvaluateVersionRequest

from indexer.version import next_number
from server import answers
from server.indexes import Indexes
from tests.serving import Stubs, build_photos, make_gallery, make_version, reason_of, serving


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


def test_a_version_that_replaces_a_lost_one_is_swapped_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was lost is searched until then; by its number the next one would be taken for it."""
    own = make_gallery(tmp_path, count=6)
    indexes = Indexes(own.store)
    indexes.refresh()
    index_dir = own.store.index("photos")
    shutil.rmtree(index_dir / "versions" / "1")
    make_version(own.store, "photos", 7, own.model, own.items[:3], own.embeddings[:3], activated=False)
    with caplog.at_level(logging.ERROR):
        indexes.refresh()
    (record,) = caplog.records
    what, why = record.message.split("; version 1 is served on: ")
    assert what == "index photos: the activated version can't be opened"
    assert why.endswith("it has: 7; it is the active one: restore its directory, or activate another")
    shutil.rmtree(index_dir / "versions" / "7")
    number = next_number(index_dir)
    make_version(own.store, "photos", number, own.model, own.items[:3], own.embeddings[:3])
    indexes.refresh()
    assert (indexes.get("photos").number, indexes.get("photos").snapshot.count) == (2, 3)
