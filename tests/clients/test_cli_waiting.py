"""Waiting for a server's long work by the command."""

import json
import re
from concurrent import futures
from datetime import UTC, datetime

import click
import grpc
import pytest
from click.testing import CliRunner
from google.longrunning import operations_pb2 as pb
from google.longrunning.operations_pb2_grpc import OperationsServicer, add_OperationsServicer_to_server
from kinsight.v1.model_service_pb2 import FineTuneRequest, FineTuneResponse
from kinsight.v1.model_service_pb2_grpc import ModelServiceServicer, add_ModelServiceServicer_to_server
from kinsight.v1.operation_metadata_pb2 import OperationMetadata
from kinsight_client import Client, DeadlineExceeded, Operation, Unavailable

from clients.cli.command import kinsight
from clients.cli.remote import awaited, evaluate

SERVER = "127.0.0.1:1"  # where nobody is


def test_work_of_a_server_that_ends_can_be_found_again(capsys: pytest.CaptureFixture[str]) -> None:
    """The next server goes on with it: the command that lost the first one says under which id, and where."""
    begun = datetime.now(UTC)
    operation = Operation[None](
        id="20260102-finetune-1a2b",
        kind="fine_tune",
        index="",
        state="running",
        stage="train",
        done=1,
        total=20,
        rate=0.0,
        eta_s=None,
        warnings=(),
        started=begun,
        updated=begun,
        ended=None,
        is_done=False,
        result=None,
        error=None,
    )
    context = click.Context(evaluate)
    context.params["server"] = SERVER
    lost = pytest.raises((Unavailable, DeadlineExceeded))
    with context, Client(SERVER, timeout_s=0.2) as client, lost:
        awaited(client, operation)
    assert f"kinsight remote wait 20260102-finetune-1a2b --server {SERVER}\n" in capsys.readouterr().err


class Taught(ModelServiceServicer, OperationsServicer):
    """A server that learns from labels, and doubts two of them."""

    def FineTune(self, request: FineTuneRequest, context: grpc.ServicerContext) -> pb.Operation:  # noqa: N802
        """Under way."""
        return _at_work("skipped 1 image")

    def WaitOperation(self, request: pb.WaitOperationRequest, context: grpc.ServicerContext) -> pb.Operation:  # noqa: N802
        """Done at once."""
        response = FineTuneResponse(compared=34, warnings=["look at these labels", "no report"])
        response.model.model = "4bdd588b31ec364b"
        for name, value in (("trained.recall_at_1", 0.925), ("start.recall_at_1", 0.9083333), ("start.queries", 120)):
            response.model.metrics[name] = value
        for item, like in (("a.jpg", "b.jpg"), ("[red].jpg", "d.jpg")):
            response.suspects.add(item=item, like=like, similarity=0.32543325424194336, own_similarity=-0.033)
        done = _at_work("skipped 1 image", "look at these labels")
        done.done = True
        done.response.Pack(response)
        return done


def _at_work(*warnings: str) -> pb.Operation:
    operation = pb.Operation(name="operations/1")
    operation.metadata.Pack(OperationMetadata(warnings=warnings))
    return operation


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["people", "json"])
def test_what_a_result_lists_is_a_table_and_its_warnings_are_told(options: list[str]) -> None:
    """For people, who read objects as Python prints them; a program has all of it in one object.

    Each warning is told once, whether it came while the server was at work or with the result.
    """
    server = grpc.server(futures.ThreadPoolExecutor(1))
    add_ModelServiceServicer_to_server(Taught(), server)  # type: ignore[no-untyped-call]
    add_OperationsServicer_to_server(Taught(), server)
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        words = ["remote", "finetune", "4bdd", "/photos", "--labels", "/few.csv", "--server", target]
        result = CliRunner().invoke(kinsight, [*words, *options])
    finally:
        server.stop(None).wait()
    assert result.exit_code == 0, result.output
    assert result.stderr == "warning: skipped 1 image\nwarning: look at these labels\nwarning: no report\n"
    if options:
        told = json.loads(result.stdout)
        assert [one["item"] for one in told["suspects"]] == ["a.jpg", "[red].jpg"]
        assert [*told["model"]["metrics"]] == ["start.queries", "start.recall_at_1", "trained.recall_at_1"]
    else:
        facts, table = result.stdout.split("\nsuspects\n")
        assert "metrics" not in facts
        assert re.search(r"^ +start +trained *$", table, re.MULTILINE)
        assert re.search(r"^ queries +120 *$", table, re.MULTILINE)
        assert re.search(r"^ recall_at_1 +0\.9083 +0\.925 *$", table, re.MULTILINE)
        assert "{" not in result.stdout
        assert "look at these labels" not in result.stdout  # once is enough
        assert re.search(r"^compared +34$", facts, re.MULTILINE)
        assert re.search(r"^ \[red\]\.jpg +d\.jpg +0\.3254 +-0\.033 $", table, re.MULTILINE)
