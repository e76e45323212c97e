"""`kinsight items`: what an index holds."""

import dataclasses
from pathlib import Path

import click

from clients.cli.options import PATH, Device, device_option, json_option, store_option
from clients.cli.output import named, print_facts, print_json, warn_skipped
from clients.cli.recording import operation_option, recorded


@click.group()
def items() -> None:
    """Import and export the items of an index."""


@items.command(name="import")
@click.argument("name")
@click.argument("images", type=PATH)
@store_option
@device_option
@operation_option
@json_option
def import_(
    name: str,
    images: Path,
    store: Path,
    device: Device,
    operation: str | None,  # noqa: ARG001  `recorded` takes it from the context
    as_json: bool,
) -> None:
    """Put every image of IMAGES into index NAME, which is searched all the while.

    IMAGES is what `kinsight index build` takes; a table's column payload, of JSON objects, becomes the items'
    payloads. A running server finds the images within seconds, and the next rebuild keeps them. Images that are
    there already with the same bytes are neither decoded nor embedded again: the same command goes on where an
    interrupted one ended.

    \b
    JSON keys: index, imported, unchanged, failed, failures[].item, failures[].reason (the first 1,000), warnings[]
    """
    from indexer.importing import import_items
    from indexer.store import Store

    with recorded("import", name, store) as work:
        report = import_items(name, images, store=Store(store), device=device, progress=work.report)
        result = {"index": name, **dataclasses.asdict(report), "failures": named(report.failures)}
        work.finish(result)
    warn_skipped(report.failures)
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json(result)
    else:
        print_facts({key: f"{result[key]:,}" for key in ("imported", "unchanged", "failed")})


@items.command()
@click.argument("name")
@click.argument("file", type=PATH)
@store_option
@operation_option
@json_option
def export(
    name: str,
    file: Path,
    store: Path,
    operation: str | None,  # noqa: ARG001  `recorded` takes it from the context
    as_json: bool,
) -> None:
    """Write the items of index NAME with embeddings and payloads to FILE, a new Parquet file.

    \b
    JSON keys: index, path, items, bytes, model, sequence
    """
    from indexer.exporting import export_items
    from indexer.store import Store

    with recorded("export", name, store) as work:
        report = export_items(name, file.absolute(), store=Store(store), progress=work.report)
        result = {"index": name, **dataclasses.asdict(report)}
        work.finish(result)
    if as_json:
        print_json(result)
    else:
        print_facts(result)
