"""`kinsight suggest`: which images are most worth labelling."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clients.cli.options import PATH, device_option, json_option, store_option
from clients.cli.output import named, print_json, warn_skipped
from clients.cli.recording import operation_option, recorded

if TYPE_CHECKING:
    from trainer.suggest import Suggestion


@click.command()
@click.argument("images", type=PATH)
@click.option("--model", required=True, help="Id of the model that sees them, or how it begins.")
@click.option("--budget", type=click.IntRange(min=1), required=True, metavar="N", help="How many to label.")
@click.option("--sheet", type=PATH, metavar="FILE", help="Also write an HTML page to look at and label them on.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the choice.")
@store_option
@device_option
@operation_option
@json_option
def suggest(
    images: Path,
    model: str,
    budget: int,
    sheet: Path | None,
    seed: int,
    store: Path,
    device: str,
    operation: str | None,  # noqa: ARG001  recording reads it
    as_json: bool,
) -> None:
    """Choose the IMAGES that are most worth labelling, by Unsupervised Selective Labeling.

    One of each of as many groups of IMAGES: those that stand for many others, and are not like one another. They are
    printed as a table path,class_id whose second column is for a person to fill in, for kinsight finetune; those that
    stand for most others come first.

    \b
    JSON keys: model, images, suggested[] (paths), sheet, warnings[], skipped[].item, skipped[].reason
    """
    from indexer.store import Store
    from trainer.suggest import pictures
    from trainer.suggest import suggest as run

    directory = Store(store).model(model)
    with recorded("suggest", "", store) as work:
        found = run(directory, images, budget, seed=seed, device=device, progress=work.report)
        if sheet:
            from trainer.sheet import write_sheet

            write_sheet(sheet, pictures(found.sources))
        work.finish(_result(directory.name, found, sheet))
    warn_skipped(found.skipped)
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json(_result(directory.name, found, sheet))
        return
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerows([("path", "class_id"), *((source.relative, "") for source in found.sources)])
    click.echo(table.getvalue(), nl=False)


def _result(model: str, found: "Suggestion", sheet: Path | None) -> dict[str, Any]:
    return {
        "model": model,
        "images": found.images,
        "suggested": [source.relative for source in found.sources],
        "sheet": str(sheet) if sheet else None,
        "warnings": list(found.warnings),
        "skipped": named(found.skipped),
    }
