"""`kinsight operations`: what works, or worked, on a store."""

import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clients.cli.options import json_option, store_option
from clients.cli.output import print_facts, print_json, print_table, printable

if TYPE_CHECKING:
    from indexer.operations import Operation


@click.group()
def operations() -> None:
    """List, show, cancel and resume the long operations of a store."""


@operations.command(name="list")
@store_option
@json_option
def list_(store: Path, as_json: bool) -> None:
    """List the operations of a store, oldest first.

    \b
    JSON keys: operations[].id, operations[].kind, operations[].index, operations[].arguments[], operations[].state,
    operations[].stage, operations[].done, operations[].total, operations[].rate, operations[].eta_s,
    operations[].warnings[], operations[].started, operations[].updated, operations[].pid, operations[].error,
    operations[].error_types[], operations[].request_id, operations[].since (or null), operations[].result{}
    """
    from indexer.operations import list_operations
    from indexer.store import Store

    found = list_operations(Store(store).operations)
    if as_json:
        print_json({"operations": [dataclasses.asdict(operation) for operation in found]})
    elif found:
        rows = [(one.id, one.kind, one.index, one.state, _progress(one), _trouble(one)) for one in found]
        print_table(["operation", "kind", "index", "state", "progress", "trouble"], rows)
    else:
        click.echo(f"no operation in {store}")


@operations.command()
@click.argument("operation_id", metavar="ID")
@store_option
@json_option
def show(operation_id: str, store: Path, as_json: bool) -> None:
    """Show an operation.

    The state interrupted says that its process was killed; `kinsight operations resume` goes on with it.

    \b
    JSON keys: id, kind, index, arguments[], state, stage, done, total, rate, eta_s, warnings[], started, updated,
    pid, error, error_types[], request_id, since (or null), result{}
    """
    from indexer.operations import find
    from indexer.store import Store

    _tell(find(Store(store).operations, operation_id), as_json)


@operations.command()
@click.argument("operation_id", metavar="ID")
@store_option
@json_option
def cancel(operation_id: str, store: Path, as_json: bool) -> None:
    """Cancel an operation.

    What it had finished stays for the same command to go on from; `kinsight train` and `kinsight finetune` need
    --resume ID for that, and begin anew without. Its process is interrupted as by Ctrl-C and ends soon after;
    `kinsight operations show` tells when.

    \b
    JSON keys: id, kind, index, arguments[], state, stage, done, total, rate, eta_s, warnings[], started, updated,
    pid, error, error_types[], request_id, since (or null), result{}
    """
    from indexer.operations import cancel as run
    from indexer.store import Store

    _tell(run(Store(store).operations, operation_id), as_json)


@operations.command()
@click.argument("operation_id", metavar="ID")
@store_option
def resume(operation_id: str, store: Path) -> None:
    """Go on with an interrupted operation, as its own command would.

    With the command's own output: JSON keys are those of that command, if it was called with --json.
    """
    from indexer.operations import UNFINISHED, OperationEnded, OperationRunning, find
    from indexer.store import Store

    operation = find(Store(store).operations, operation_id)
    if operation.state == "running":
        raise OperationRunning(f"process {operation.pid} works on {operation.id}; nothing is to be resumed")
    if operation.state not in UNFINISHED:
        raise OperationEnded(f"{operation.id} is {operation.state}; call it anew: {_called(operation)}")
    # -P: what lies in this folder is not ours, whatever it is called.
    words = [sys.executable, "-P", "-m", "clients.cli", *operation.words(store)]
    os.execv(sys.executable, words)  # noqa: S606  our own command; it gets this process, its terminal and its signals


def _tell(operation: "Operation", as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(operation))
        return
    facts = dataclasses.asdict(operation) | {
        "arguments": shlex.join(operation.arguments),
        "rate": f"{operation.rate:,.1f}/s",
        "eta_s": "unknown" if operation.eta_s is None else f"{operation.eta_s:,.0f}",
        "warnings": "; ".join(operation.warnings),
    }
    result = {f"result.{name}": value for name, value in facts.pop("result").items()}
    for_programs = ("error_types", "request_id", "since")
    print_facts({name: printable(str(value)) for name, value in (facts | result).items() if name not in for_programs})


def _called(operation: "Operation") -> str:
    """The command of an operation, as a shell takes it."""
    return shlex.join(["kinsight", *operation.arguments])


def _progress(operation: "Operation") -> str:
    """How far one that has not done all got."""
    if operation.state == "done" or not operation.stage:
        return ""
    return f"{operation.stage} {operation.done:,}/{operation.total:,}"


def _trouble(operation: "Operation") -> str:
    refused = operation.result.get("refused")
    return f"not activated: {refused}" if refused else operation.error
