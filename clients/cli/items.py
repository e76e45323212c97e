"""`kinsight items`: what an index holds."""

import csv
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clients.cli.options import PARQUET, PATH, Device, device_option, json_option, server_option, store_option
from clients.cli.output import (
    named,
    payload_text,
    print_facts,
    print_json,
    print_table,
    printable,
    progress,
    tell_facts,
    warn_skipped,
)
from clients.cli.recording import operation_option, recorded
from clients.cli.remote import awaited

if TYPE_CHECKING:
    from kinsight_client import ImportResult

    from indexer.import_report import ImportReport

by_server_option = click.option(
    "--server", metavar="HOST:PORT", help="Have a running server do it, with a path of its machine; no store needed."
)


@click.group()
def items() -> None:
    """Upsert, delete, list, import and export the items of an index."""


@items.command()
@click.argument("name")
@click.argument("images", nargs=-1, type=PATH, metavar="[IMAGE…]")
@click.option("--item", metavar="ID", help="Id of the item, if there is one IMAGE; otherwise its path as given.")
@click.option("--payload", metavar="JSON", help="A JSON object to keep with each IMAGE; {} for none.")
@click.option("--lines", type=PATH, metavar="FILE", help="JSON Lines of items, as below.")
@server_option
@json_option
def upsert(
    name: str,
    images: tuple[Path, ...],
    item: str | None,
    payload: str | None,
    lines: Path | None,
    server: str,
    as_json: bool,
) -> None:
    """Put each IMAGE into index NAME of a server.

    It takes the place of the item that has its id. The next search finds it, and every later version keeps it, until
    it is deleted.

    \b
    Each line of FILE is one of
      {"item": ID, "image": PATH, "payload": {...}}
      {"item": ID, "embedding": [0.1, ...], "model": ID of the model, "payload": {...}}
      {"item": ID, "payload": {...}}    of an item that is there
    with or without a payload; without one, the item keeps the one that it has.

    An item that is not taken is named on stderr; the others are, and the exit code is 1. Where it ends early, it says
    up to which item all is done.

    \b
    JSON keys: index, upserted, errors[].item, errors[].error
    """
    from kinsight_client import Client

    from clients.cli.upserts import Upserted, upsert_all, wanted

    if item is not None and len(images) != 1:
        raise click.UsageError("--item names the item of one IMAGE")
    if not images and lines is None:
        raise click.UsageError("name an IMAGE, or --lines FILE")
    entries = wanted(images, item, None if payload is None else _payload(payload), lines)
    total = len(images) + (_count_lines(lines) if lines else 0)
    done = Upserted()
    try:
        with Client(server) as client, progress() as report:
            upsert_all(client, name, entries, total, report, done)
    except BaseException:  # Ctrl-C too
        _tell_errors(done.errors)
        if done.last:
            click.echo(
                printable(f"taken so far: {done.count:,} items, up to {done.last}; go on after that"), err=True
            )
        raise
    _tell({"index": name, "upserted": done.count}, done.errors, as_json)


@items.command()
@click.argument("name")
@click.argument("ids", nargs=-1, required=True, metavar="ITEM…")
@server_option
@json_option
def delete(name: str, ids: tuple[str, ...], server: str, as_json: bool) -> None:
    """Take each ITEM out of index NAME of a server.

    No search finds it again, not in a later version either, until it is upserted or imported again.

    An item that the index never had is named on stderr, and the exit code is 1.

    \b
    JSON keys: index, deleted, errors[].item, errors[].error
    """
    from kinsight_client import Client

    with Client(server) as client:
        results = client.items.delete_many(ids, index=name)
    errors = [(result.item, str(result.error)) for result in results if result.error]
    _tell({"index": name, "deleted": len(results) - len(errors)}, errors, as_json)


@items.command()
@click.argument("name")
@click.argument("item")
@server_option
@json_option
def get(name: str, item: str, server: str, as_json: bool) -> None:
    """Show what index NAME of a server keeps of ITEM.

    \b
    JSON keys: item, payload{} (or null), sequence, sha256, searchable
    """
    from kinsight_client import Client

    with Client(server) as client:
        found = client.items.get(item, index=name)
    facts = dataclasses.asdict(found)
    if as_json:
        print_json(facts)
    else:
        print_facts(facts | {"item": printable(item), "payload": payload_text(found.payload)})


@items.command(name="list")
@click.argument("name")
@click.option("--filter", "condition", default="", metavar="CONDITION", help="Which items; as for kinsight search.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, metavar="N", help="Most to list.")
@server_option
@json_option
def list_(name: str, condition: str, limit: int, server: str, as_json: bool) -> None:
    """List the items of index NAME of a server, by their ids.

    \b
    JSON keys: index, items[].item, items[].payload{} (or null), items[].sequence, items[].sha256,
    items[].searchable, more
    """
    from kinsight_client import Client

    with Client(server) as client:
        found = [*islice(client.items.list(filter=condition, index=name), limit + 1)]
    shown, more = found[:limit], len(found) > limit
    if as_json:
        print_json({"index": name, "items": [dataclasses.asdict(one) for one in shown], "more": more})
    elif shown:
        rows = [
            (one.item, one.sequence, "yes" if one.searchable else "no", payload_text(one.payload)) for one in shown
        ]
        print_table(["item", "sequence", "searchable", "payload"], rows)
    else:
        click.echo(f"no item in {name}" + (f" with {condition}" if condition else ""))
    if more:
        click.echo(f"the first {limit:,}; --limit N lists more", err=True)


@items.command(name="import")
@click.argument("name")
@click.argument("images", type=PATH)
@click.option(
    "--failures",
    type=PATH,
    metavar="FILE",
    help="Write a CSV of all that is left out, item and reason; with --server, a new file of its machine.",
)
@by_server_option
@store_option
@device_option
@operation_option
@json_option
def import_(
    name: str,
    images: Path,
    failures: Path | None,
    server: str | None,
    store: Path,
    device: Device,
    operation: str | None,  # noqa: ARG001  `recorded` takes it from the context
    as_json: bool,
) -> None:
    """Put every image of IMAGES into index NAME.

    NAME is searched all the while.

    IMAGES is what `kinsight index build` takes; a table's column payload, of JSON objects, becomes the items'
    payloads. Or it is a Parquet table of embeddings with the columns item, embedding, model and payload, as
    `kinsight items export` writes it from an index of the same model. A running server finds the items within
    seconds, and the next rebuild keeps them. Images that are there already with the same bytes are neither decoded
    nor embedded again: the same command goes on where an interrupted one ended. What is upserted or deleted while it
    runs, or before `kinsight operations resume` goes on with it, stays so.

    \b
    JSON keys: index, imported, unchanged, failed, failures[].item, failures[].reason (the first 1,000), warnings[]
    """
    if server is not None:
        from kinsight_client import Client

        with Client(server) as client:
            begun = client.items.import_from(images, failures=failures or "", index=name)
            _tell_imported(name, awaited(client, begun), as_json, failures)
        return
    from indexer.importing import import_items
    from indexer.store import Store

    with recorded("import", name, store) as work, _listing(failures) as left_out:
        report = import_items(
            name,
            images,
            store=Store(store),
            device=device,
            since=work.since,
            left_out=left_out,
            progress=work.report,
        )
        work.finish(_imported(name, report))
    _tell_imported(name, report, as_json, failures)


@items.command()
@click.argument("name")
@click.argument("file", type=PARQUET)
@by_server_option
@store_option
@operation_option
@json_option
def export(
    name: str,
    file: Path,
    server: str | None,
    store: Path,
    operation: str | None,  # noqa: ARG001  `recorded` takes it from the context
    as_json: bool,
) -> None:
    """Write the items of index NAME to a Parquet file.

    They have their embeddings and payloads. FILE must not be there yet.

    \b
    JSON keys: index, path, items, bytes, model, sequence
    """
    if server is not None:
        from kinsight_client import Client

        with Client(server) as client:
            written = awaited(client, client.items.export_to(file, index=name))
        tell_facts({"index": name, **dataclasses.asdict(written)}, as_json)
        return
    from indexer.exporting import export_items
    from indexer.store import Store

    with recorded("export", name, store, reads=True) as work:
        report = export_items(name, file.absolute(), store=Store(store), progress=work.report)
        result = {"index": name, **dataclasses.asdict(report)}
        work.finish(result)
    tell_facts(result, as_json)


def _imported(name: str, report: "ImportReport | ImportResult") -> dict[str, Any]:
    return {"index": name, **dataclasses.asdict(report), "failures": named(report.failures)}


@contextmanager
def _listing(table: Path | None) -> Iterator[Callable[[str, str], None]]:
    """Writes what it is told to a table of items and reasons, where one is wanted."""
    if table is None:
        yield lambda *_: None
        return
    with table.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        rows = csv.writer(file)
        rows.writerow(["item", "reason"])
        yield lambda item, reason: rows.writerow([item, reason])


def _tell_imported(
    name: str, report: "ImportReport | ImportResult", as_json: bool, table: Path | None = None
) -> None:
    warn_skipped(report.failures, table, count=report.failed)
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
    result = _imported(name, report)
    if as_json:
        print_json(result)
    else:
        print_facts({key: f"{result[key]:,}" for key in ("imported", "unchanged", "failed")})


def _payload(text: str) -> dict[str, Any]:
    from clients.cli.upserts import from_json

    try:
        payload = from_json(text)
    except ValueError as error:
        raise click.UsageError(f"--payload is not JSON: {error}") from error
    if not isinstance(payload, dict):
        raise click.UsageError(f'--payload is {printable(text)}; it must be a JSON object, such as {{"year": 2026}}')
    return payload


def _count_lines(path: Path) -> int:
    """How many lines a file has; 0 of a pipe, which could not be read again."""
    if path.exists() and not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _tell(result: Mapping[str, object], errors: Sequence[tuple[str, str]], as_json: bool) -> None:
    """Print what became of several items; exits with 1 where one failed."""
    _tell_errors(errors)
    if as_json:
        print_json({**result, "errors": [{"item": item, "error": error} for item, error in errors]})
    else:
        print_facts({**result, "failed": len(errors)})
    if errors:
        click.get_current_context().exit(1)


def _tell_errors(errors: Sequence[tuple[str, str]]) -> None:
    for item, error in errors:
        click.echo(f"error: {printable(item)}: {printable(error)}", err=True)
