"""`kinsight remote`: what `kinsight rebuild`, `index` and `operations` do, done by a running server."""

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from clients.cli.options import (
    index_labels_help,
    json_option,
    learn_memory_option,
    server_option,
    target_recall_option,
)
from clients.cli.output import cell, print_json, print_table, progress, tell_facts, warn

if TYPE_CHECKING:
    from kinsight_client import Client, Operation

R = TypeVar("R")

REFUSED = 1  # exit code, as of `kinsight rebuild`


@click.group()
def remote() -> None:
    """Have a running server build, learn and measure.

    Paths are absolute ones on the server's machine, in folders that it was started with: see serve --allow-read and
    --allow-write. Long work goes on when this command is interrupted; `kinsight remote wait` takes it up again.
    """


@remote.command()
@click.argument("name")
@click.option("--images", default="", metavar="PATH", help="Collection whose images are added.")
@click.option("--model", default="", metavar="ID", help="Embed everything anew with this model.")
@click.option("--learn", is_flag=True, help="Train on from the index's model with all images, and embed with that.")
@click.option("--finetune", "few_labels", metavar="PATH", help="Learn on from the index's model with a few labels.")
@click.option("--method", default="", help="Of --finetune; see `kinsight finetune --help`.")
@click.option("--keep-doubted", is_flag=True, help="Of --finetune: learn from labels too that are likely wrong.")
@click.option("--epochs", type=click.IntRange(1), default=None, metavar="N", help="Of --learn and --finetune.")
@learn_memory_option
@target_recall_option
@click.option("--min-recall", type=click.FloatRange(0, 1), help="recall@10 that it needs to be activated.  [0.95]")
@click.option("--labels", default="", metavar="PATH", help=f"Only to judge with. {index_labels_help}")
@click.option("--activate/--no-activate", default=True, help="Whether to search it, if nothing speaks against it.")
@server_option
@json_option
def rebuild(
    name: str,
    model: str,
    learn: bool,
    few_labels: str | None,
    epochs: int | None,
    learn_memory: int | None,
    server: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Build the next version of index NAME, and swap it in.

    It is activated if it is good; see `kinsight rebuild`. One that is not activated because it is not good enough is
    kept, and the exit code is 1.

    \b
    JSON keys: version.version, version.state, version.refusal, version.model, version.items, version{},
    evaluation.recall_at_10, evaluation.comparison{} (or null), evaluation{}, reused, embedded, failed, warnings[]
    """
    from kinsight_client import Client

    if sum(map(bool, (model, learn, few_labels))) > 1:
        raise click.UsageError("learning goes on from the index's model: give one of --model, --learn, --finetune")
    with Client(server) as client:
        operation = client.indexes.build(
            name,
            model=model,
            learn=learn,
            few_labels=few_labels,
            epochs=epochs or 0,
            learn_memory_bytes=learn_memory or 0,
            **options,
        )
        built = awaited(client, operation)
    tell_result(plain(built), as_json)
    if built.version.refusal:
        click.echo(f"not activated: {built.version.refusal}", err=True)
        click.get_current_context().exit(REFUSED)


@remote.command(name="list")
@server_option
@json_option
def list_(server: str, as_json: bool) -> None:
    """List the indexes of the server.

    \b
    JSON keys: indexes[].index, indexes[].active_version, indexes[].previous_version, indexes[].model,
    indexes[].items, indexes[].etag, indexes[].problem
    """
    from kinsight_client import Client

    with Client(server) as client:
        found = [plain(index) for index in client.indexes.list()]
    tell_all("indexes", found, ["index", "active_version", "previous_version", "model", "items"], as_json)
    for index in found:
        if index["problem"]:
            warn(f"index {index['index']}: {index['problem']}")


@remote.command()
@click.argument("name")
@server_option
@json_option
def stats(name: str, server: str, as_json: bool) -> None:
    """Show what index NAME is now.

    It has items, changes that a rebuild would fold in, recall, and bytes by part.

    \b
    JSON keys: index, version, model, items, delta_items, hidden_items, pending_items, sequence, recall_at_10,
    list_imbalance, memory_bytes{}, disk_bytes{}
    """
    from kinsight_client import Client

    with Client(server) as client:
        tell_facts(plain(client.indexes.stats(name)), as_json)


@remote.command()
@click.argument("name")
@click.option("--version", type=click.IntRange(1), default=None, metavar="N", help="Instead of the active version.")
@click.option("--labels", default="", metavar="PATH", help=index_labels_help)
@server_option
@json_option
def evaluate(name: str, version: int | None, labels: str, server: str, as_json: bool) -> None:
    """Measure a version of index NAME.

    Told are recall@10 against exact search, and how it compares with the active one.

    \b
    JSON keys: version, recall_at_10, recall_low, recall_high, recall_queries, comparison{} (or null)
    """
    from kinsight_client import Client

    with Client(server) as client:
        result = awaited(client, client.indexes.evaluate(version or 0, index=name, labels=labels))
    tell_facts(plain(result), as_json)


@remote.command()
@click.argument("name")
@click.argument("directory")
@server_option
@json_option
def snapshot(name: str, directory: str, server: str, as_json: bool) -> None:
    """Copy index NAME with its model into a new DIRECTORY.

    DIRECTORY is of the server's machine; nothing may be there yet.

    \b
    JSON keys: directory, version, sequence, bytes
    """
    from kinsight_client import Client

    with Client(server) as client:
        tell_facts(plain(awaited(client, client.indexes.snapshot(directory, index=name))), as_json)


@remote.command()
@click.argument("directory")
@click.argument("name")
@server_option
@json_option
def restore(directory: str, name: str, server: str, as_json: bool) -> None:
    """Make the index NAME of the snapshot in DIRECTORY.

    DIRECTORY is a folder of the server's machine that a snapshot made, or a copy of one. An index of that name must
    not be there.

    \b
    JSON keys: index, active_version, previous_version, model, items, etag, problem
    """
    from kinsight_client import Client

    with Client(server) as client:
        tell_facts(plain(awaited(client, client.indexes.restore(directory, index=name))), as_json)


@remote.command()
@click.option("--filter", default="", metavar="CONDITION", help="Which ones, such as 'done = false'.")
@server_option
@json_option
def operations(filter: str, server: str, as_json: bool) -> None:  # noqa: A002  the option's name
    """List the long work of the server, oldest first.

    \b
    JSON keys: operations[].id, operations[].kind, operations[].index, operations[].state, operations[].stage,
    operations[].done, operations[].total, operations[].rate, operations[].eta_s, operations[].started,
    operations[].updated, operations[].ended, operations[].is_done, operations[].error, operations[].result{}
    """
    from kinsight_client import Client

    with Client(server) as client:
        found = [plain(operation) for operation in client.operations.list(filter=filter)]
    tell_all("operations", found, ["id", "kind", "index", "state", "stage", "done", "total", "error"], as_json)


@remote.command()
@click.argument("operation_id", metavar="ID")
@server_option
@json_option
def wait(operation_id: str, server: str, as_json: bool) -> None:
    """Wait until an operation has ended, showing how far it is.

    The exit code is 1 if it failed or was cancelled.

    \b
    JSON keys: id, kind, index, state, stage, done, total, rate, eta_s, warnings[], started, updated, ended, is_done,
    error, result{}
    """
    from kinsight_client import Client

    with Client(server) as client:
        awaited(client, client.operations.get(operation_id))
        tell_result(plain(client.operations.get(operation_id)), as_json)


@remote.command()
@click.argument("operation_id", metavar="ID")
@server_option
@json_option
def cancel(operation_id: str, server: str, as_json: bool) -> None:
    """Ask an operation to end.

    What it had finished stays for the same request to go on from. Train and finetune begin anew by it; on the
    server's machine `kinsight train --resume ID`, or finetune, goes on. It ends soon after; `kinsight remote wait`
    tells when.

    \b
    JSON keys: id, kind, index, state, stage, done, total, rate, eta_s, warnings[], started, updated, ended, is_done,
    error, result{}
    """
    from kinsight_client import Client

    with Client(server) as client:
        client.operations.cancel(operation_id)
        tell_facts(plain(client.operations.get(operation_id)), as_json)


def awaited(client: "Client", operation: "Operation[R]") -> R:
    """The result of an operation once it has ended; raises KinsightError if it failed.

    Progress is shown meanwhile, and what a person should know is told as soon as the server does.
    """
    from kinsight_client import DeadlineExceeded, Unavailable

    again = f"{operation.id} --server {click.get_current_context().params['server']}"  # so that it can be pasted
    told: list[str] = []

    def tell(warning: str) -> None:
        told.append(warning)
        warn(warning)

    try:
        with progress() as report:
            result = client.operations.wait(operation, progress=report, warn=tell)
    except KeyboardInterrupt:
        click.echo(f"operation {operation.id} goes on: kinsight remote wait, or cancel, {again}", err=True)
        raise
    except (Unavailable, DeadlineExceeded):  # the server ended, and goes on with it when it is there again
        click.echo(f"see what becomes of it, when a server is there: kinsight remote wait {again}", err=True)
        raise
    for warning in getattr(result, "warnings", ()):
        if warning not in told:
            warn(warning)
    return result


def tell_result(result: Mapping[str, Any], as_json: bool) -> None:
    """Print what long work resulted in; people were told what it warns of when it was known."""
    if as_json:
        print_json(result)
        return
    facts, metrics = _apart_from_metrics({name: result[name] for name in result if name != "warnings"})
    tell_facts(facts, as_json=False)
    if metrics:
        _print_metrics(metrics)


def _apart_from_metrics(result: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, float]]:
    """A result without the metrics of the model in it, and those; none where it is of no model."""
    facts = dict(result)
    found: Mapping[str, float] = {}
    for name, value in result.items():
        if name == "metrics":
            found = facts.pop(name)
        elif isinstance(value, Mapping):
            facts[name], within = _apart_from_metrics(value)
            found = found or within
    return facts, found


def _print_metrics(metrics: Mapping[str, float]) -> None:
    """Print metrics named WHO.METRIC, a line each metric, a column for each that was judged."""
    whose = list(dict.fromkeys(name.partition(".")[0] for name in metrics))
    rows = []
    for metric in dict.fromkeys(name.partition(".")[2] for name in metrics):
        values = (metrics.get(f"{who}.{metric}") for who in whose)
        rows.append([metric, *("" if value is None else f"{value:.4g}" for value in values)])
    print_table(["", *whose], rows)


def plain(result: object) -> dict[str, Any]:
    """A result as JSON has it."""
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}  # type: ignore[arg-type]
    return {name: _plain_value(value) for name, value in fields.items()}


def _plain_value(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return plain(value)
    if isinstance(value, tuple):
        return [_plain_value(one) for one in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Exception) else value


def tell_all(name: str, found: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    """Print all of something that a server has, as JSON or as a table of these columns."""
    if as_json:
        print_json({name: found})
    elif found:
        print_table(columns, [[cell(one[column]) for column in columns] for one in found])
    else:
        click.echo(f"no {name} there")
