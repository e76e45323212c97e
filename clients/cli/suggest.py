"""`kinsight suggest`: which images are most worth labelling."""

import csv
import io
from pathlib import Path

import click

from clients.cli.options import PATH, device_option, json_option, store_option
from clients.cli.output import named, print_json, progress, warn_skipped


@click.command()
@click.argument("images", type=PATH)
@click.option("--model", required=True, help="Id of the model that sees them, or how it begins.")
@click.option("--budget", type=click.IntRange(min=1), required=True, metavar="N", help="How many to label.")
@click.option("--sheet", type=PATH, metavar="FILE", help="Also write an HTML page to look at and label them on.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the choice.")
@store_option
@device_option
@json_option
def suggest(
    images: Path, model: str, budget: int, sheet: Path | None, seed: int, store: Path, device: str, as_json: bool
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
    with progress() as report:
        found = run(directory, images, budget, seed=seed, device=device, progress=report)
    if sheet:
        from trainer.sheet import write_sheet

        write_sheet(sheet, pictures(found.sources))
    warn_skipped(found.skipped)
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    paths = [source.relative for source in found.sources]
    if as_json:
        facts = {"model": directory.name, "images": found.images, "suggested": paths}
        told = {"sheet": str(sheet) if sheet else None, "warnings": list(found.warnings)}
        print_json({**facts, **told, "skipped": named(found.skipped)})
        return
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerows([("path", "class_id"), *((path, "") for path in paths)])
    click.echo(table.getvalue(), nl=False)
