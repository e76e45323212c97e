"""Waiting for a server's long work by the command."""

from datetime import UTC, datetime

import click
import pytest
from kinsight_client import Client, DeadlineExceeded, Operation, Unavailable

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
