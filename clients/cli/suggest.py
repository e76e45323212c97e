"""`kinsight suggest`: which images are most worth labelling."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clients.cli.options import HTML_PAGE, PATH, SEED, Device, device_option, json_option, store_option
from clients.cli.output import named, print_json, warn_skipped
from clients.cli.recording import operation_option, recorded

if TYPE_CHECKING:
    from trainer.suggest import Suggested, Suggestion

_COLUMNS = ("path", "class_id", "stands_for", "density_rank", "nearest", "similarity")


@click.command()
@click.argument("images", type=PATH)
@click.option("--model", required=True, help="Id of the model that sees them, or how it begins.")
@click.option("--budget", type=click.IntRange(min=1), required=True, metavar="N", help="How many to label.")
@click.option(
    "--method",
    type=click.Choice(["usl", "usl-t"]),
    default="usl",
    show_default=True,
    help="How to choose; usl-t trains the groups that it chooses from: slower, and measured no better.",
)
@click.option("--labels", type=PATH, help="CSV or Parquet of those that are labelled already, as for finetune.")
@click.option(
    "--sheet", type=HTML_PAGE, metavar="FILE", help="Also write an HTML page (.html) to look at and label them on."
)
@click.option("--seed", type=SEED, default=0, show_default=True, metavar="N", help="Of the choice.")
@store_option
@device_option
@operation_option
@json_option
def suggest(
    images: Path,
    model: str,
    budget: int,
    method: str,
    labels: Path | None,
    sheet: Path | None,
    seed: int,
    store: Path,
    device: Device,
    operation: str | None,  # noqa: ARG001  recording reads it
    as_json: bool,
) -> None:
    """Choose the IMAGES that are most worth labelling.

    Unsupervised Selective Labeling takes one of each of as many groups of IMAGES: those that stand for many others,
    and are not like one another, nor like what --labels has. They are printed as a table whose column class_id is for
    a person to fill in, for kinsight finetune. The order is for whoever stops early: each image adds most to those
    before it. The other columns say why it is there.

    \b
      stands_for    images that are more like it than like any other suggested or
                    labelled one: as many would get its label from their nearest
      density_rank  1 is the image with most others near it
      nearest       of those labelled or suggested before it, the one most like it
      similarity    of the two

    \b
    JSON keys: model, images, labelled, suggested[].path, suggested[].stands_for, suggested[].density_rank,
    suggested[].nearest (or null), suggested[].similarity (or null), sheet, warnings[], skipped[].item,
    skipped[].reason
    """
    from indexer.store import Store
    from trainer.suggest import pictures
    from trainer.suggest import suggest as run

    if sheet and not sheet.parent.is_dir():  # found out before all images are embedded
        raise click.UsageError(f"--sheet: there is no folder {sheet.parent}; make it, or name another file")
    directory = Store(store).model(model)
    with recorded("suggest", "", store, reads=True) as work:
        found = run(
            directory,
            images,
            budget,
            method=method,
            labels=labels,
            seed=seed,
            device=device,
            progress=work.report,
        )
        if sheet:
            from trainer.sheet import write_sheet

            write_sheet(sheet, pictures(found))
        work.finish(_result(directory.name, found, sheet))
    warn_skipped(found.skipped)
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json(_result(directory.name, found, sheet))
        return
    click.echo(to_label(map(_row, found.suggested)), nl=False)


def to_label(suggested: Iterable[Mapping[str, Any]]) -> str:
    """A table of what is suggested, with an empty class_id."""
    table = io.StringIO()
    rows = csv.DictWriter(table, _COLUMNS, restval="", lineterminator="\n")
    rows.writeheader()
    rows.writerows(suggested)
    return table.getvalue()


def _result(model: str, found: "Suggestion", sheet: Path | None) -> dict[str, Any]:
    return {
        "model": model,
        "images": found.images,
        "labelled": found.labelled,
        "suggested": [_row(one) for one in found.suggested],
        "sheet": str(sheet) if sheet else None,
        "warnings": list(found.warnings),
        "skipped": named(found.skipped),
    }


def _row(one: "Suggested") -> dict[str, Any]:
    return {
        "path": one.source.relative,
        "stands_for": one.stands_for,
        "density_rank": one.density_rank,
        "nearest": one.nearest and one.nearest.relative,
        "similarity": one.similarity and round(one.similarity, 4),
    }
