"""The list of operations: its pages, with and without a filter, and what they read."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from kinsight.v1.operation_metadata_pb2 import OperationMetadata

from indexer import operations
from indexer.comparable import TypeMismatch
from indexer.store import Store
from server import service_operations
from server.admission import Admission
from server.indexes import Indexes
from server.jobs import Jobs
from server.paging import Page
from server.service_operations import OperationsService


@pytest.mark.parametrize("condition", ["", "done = true", "index = 'street' AND done = true"])
def test_pages_go_through_all_that_match(store: Store, monkeypatch: pytest.MonkeyPatch, condition: str) -> None:
    """Whatever lies between them, damaged records too; a page without a filter reads no other."""
    monkeypatch.setattr(service_operations, "_CHUNK", 3)
    wanted = []
    for number in range(12):
        index = "road" if number % 4 == 1 else "street"
        one = operations.queue(store.operations, "rebuild", index, [str(number)])
        if number % 4 < 2 or not condition:
            operations.cancel(store.operations, one.id)
        if number == 5:
            (store.operations / f"{one.id}.json").write_text("{")
        elif number % 4 == 0 or not condition or (number % 4 == 1 and "index" not in condition):
            wanted.append(one.id)
    service = OperationsService(Indexes(store), Admission(), Jobs(store))
    read = list[str]()
    reading = operations._read

    def noted(directory: Path, identity: str) -> operations.Operation:
        read.append(identity)
        return reading(directory, identity)

    monkeypatch.setattr(operations, "_read", noted)

    def pages() -> Iterator[list[str]]:
        token = ""
        while True:
            shown = service._list(Page.asked(2, token, condition), condition)
            yield [one.name.removeprefix("operations/") for one in shown.operations]
            if not (token := shown.next_page_token):
                return

    found = [*pages()]
    assert [name for page in found for name in page] == wanted
    assert {len(page) for page in found[:-1]} == {2}
    read.clear()
    service._list(Page.asked(2, "", condition), condition)
    assert condition or len({*read}) == 3  # one more than it shows


def test_what_is_found_wrong_is_told_while_the_work_goes_on(store: Store) -> None:
    """By the field of the request that labels came in, and not by the table that the server made of them."""
    table = store.labels.absolute() / f"{'0' * 32}.csv"
    one = operations.queue(store.operations, "finetune", "", ["finetune", "m", "/photos", "--labels", str(table)])
    service = OperationsService(Indexes(store), Admission(), Jobs(store))
    with operations.running(store.operations, one.id) as recorder:
        recorder.warn(f"left out, as not in /photos: 1 of the paths of {table}, for example gone.png")
        (found,) = service._list(Page.asked(2, "", ""), "").operations
        told = OperationMetadata()
        assert found.metadata.Unpack(told)
        recorder.finish({})
    assert told.state == OperationMetadata.STATE_RUNNING
    (warning,) = told.warnings
    assert "1 of the paths of labels" in warning
    assert str(store.root) not in warning


@pytest.mark.parametrize("condition", ["", "done = false", "kind = KIND_BUILD OR total > 5"])
@pytest.mark.parametrize(
    "other", [{"started": "yesterday"}, {"eta_s": 1e300}, {"total": 2**70}, {"state": "failed", "error": 3}]
)
def test_a_record_of_another_release_keeps_no_other_out_of_a_list(
    store: Store, condition: str, other: dict[str, object]
) -> None:
    """With a filter, too, it is left out, where all of the list failed."""
    one, odd, two = (operations.queue(store.operations, "rebuild", "street", []).id for _ in range(3))
    record = store.operations / f"{odd}.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | other))
    service = OperationsService(Indexes(store), Admission(), Jobs(store))
    found = service._list(Page.asked(10, "", condition), condition).operations
    assert [each.name for each in found] == [f"operations/{one}", f"operations/{two}"]


@pytest.mark.parametrize(
    ("condition", "refusal"),
    [
        ("kind = import", r"column 8: import is no kind; write one of KIND_IMPORT, KIND_EXPORT, KIND_BUILD, "),
        ('done = true AND state != "succeeded"', r'column 26: "succeeded" is no state; write one of STATE_QUEUED, '),
        ("state IN (STATE_FAILED, 3)", "column 25: 3 is no state"),
        ("kind : SUGGEST*", r"column 8: SUGGEST\* is no kind"),
    ],
)
def test_a_kind_or_state_that_is_none_is_refused(store: Store, condition: str, refusal: str) -> None:
    """Clients show other words than the fields hold, by which nothing was found without a word."""
    service = OperationsService(Indexes(store), Admission(), Jobs(store))
    with pytest.raises(TypeMismatch, match=refusal):
        service._list(Page.asked(2, "", condition), condition)


@pytest.mark.parametrize(
    "condition", ["kind = KIND_BUILD", "state : 'STATE_C*' AND NOT kind = KIND_TRAIN", "kind : *"]
)
def test_operations_are_found_by_kind_and_state(store: Store, condition: str) -> None:
    """By the words of OperationMetadata, and by how they begin."""
    one = operations.queue(store.operations, "rebuild", "street", [])
    operations.cancel(store.operations, one.id)
    service = OperationsService(Indexes(store), Admission(), Jobs(store))
    found = service._list(Page.asked(2, "", condition), condition)
    assert [f"operations/{one.id}"] == [operation.name for operation in found.operations]
