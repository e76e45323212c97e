"""`kinsight calibrate`: from similarities to probabilities."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from clients.cli.options import (
    HTML_PAGE,
    PATH,
    SEED,
    Device,
    device_option,
    json_option,
    progress_option,
    store_option,
)
from clients.cli.output import cell, named, print_facts, print_json, print_table, printable, warn_skipped
from clients.cli.recording import operation_option, recorded

if TYPE_CHECKING:
    from indexer.calibrate import Calibrated
    from indexer.calibration import Calibration

_SIMILARITIES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_PROBABILITIES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_SHOWN = 5  # unknown paths: enough to see what is wrong


@click.command()
@click.argument("model")
@click.argument("images", type=PATH)
@click.option("--labels", type=PATH, required=True, help="CSV or Parquet of classes or pairs, as below.")
@click.option(
    "--things",
    type=click.IntRange(min=2),
    metavar="N",
    help="How many different things the collection shows that is searched.  [default: as many as are labelled]",
)
@click.option(
    "--report", type=HTML_PAGE, metavar="FILE", help="Also write an HTML page (.html) with the reliability plot."
)
@click.option("--seed", type=SEED, default=0, show_default=True, metavar="N", help="Of what is held out.")
@store_option
@device_option
@progress_option
@operation_option
@json_option
def calibrate(
    model: str,
    images: Path,
    labels: Path,
    things: int | None,
    report: Path | None,
    seed: int,
    store: Path,
    device: Device,
    progress_style: str,
    operation: str | None,  # noqa: ARG001  recording reads it
    as_json: bool,
) -> None:
    """Fit what a similarity under MODEL means as a probability.

    It is the probability that two images show the same thing. The curve is kept with MODEL, in place of an earlier
    one. Searches can then ask for probabilities and leave out what is too improbable, by thresholds that mean the
    same under every model. A running server takes a new curve up within seconds.

    \b
    --labels is a table of one of two kinds
      classes  path, class_id and, optionally, split: rows of train are left out
               where there are others, for MODEL may have learned them. Four
               classes or more with two images each.
      pairs    path_a, path_b, relation: same or different

    The expected calibration error (ECE) is how far probabilities are off on average, measured on classes that the
    curve was not fitted on: over all pairs, and over the hits of searches. It is that of collections with as many
    different things as the labelled images show. Where others have far more, tell --things about how many: without it
    probabilities promise too much.

    \b
    JSON keys: model, method, ece_pairs, ece_hits (null where labels are pairs), images, classes, same, different,
    things (0 where labels are pairs), probabilities[].similarity, probabilities[].probability,
    thresholds[].min_probability, thresholds[].min_similarity (null where no similarity is enough),
    thresholds[].false_accept_rate, thresholds[].true_accept_rate, report, unknown_labels[], warnings[],
    skipped[].item, skipped[].reason
    """
    from clients.cli.reliability import write_report
    from indexer.calibrate import calibrate as run
    from indexer.store import Store

    if report and not report.parent.is_dir():  # found out before the model is changed
        raise click.UsageError(f"--report: there is no folder {report.parent}; make it, or name another file")
    directory = Store(store).model(model)
    with recorded("calibrate", "", store, progress_style) as work:
        done = run(directory, images, labels, things=things, device=device, seed=seed, progress=work.report)
        if report:
            write_report(report, directory.name, done.fitted)
        work.finish(_result(directory.name, done, report))
    _warn(done, images, labels)
    if as_json:
        print_json(_result(directory.name, done, report))
    else:
        _print(directory.name, done.fitted.calibration)


def _warn(done: "Calibrated", images: Path, labels: Path) -> None:
    warn_skipped(done.skipped)
    for path in done.unknown[:_SHOWN]:
        click.echo(f"warning: {printable(path)}, which {labels} labels, is not in {images}", err=True)
    if len(done.unknown) > _SHOWN:
        click.echo(f"warning: nor are {len(done.unknown) - _SHOWN:,} more of its paths", err=True)
    for warning in done.warnings:
        click.echo(f"warning: {warning}", err=True)


def _print(model: str, calibration: "Calibration") -> None:
    from clients.cli.reliability import holds_for

    facts = {"model": model, **_facts(calibration)}
    print_facts({name: cell(value) for name, value in facts.items()})
    for rows in _tables(calibration).values():
        print_table([*rows[0]], [[cell(value) for value in row.values()] for row in rows])
    click.echo(holds_for(calibration))


def _result(model: str, done: "Calibrated", report: Path | None) -> dict[str, object]:
    return {
        "model": model,
        **_facts(done.fitted.calibration),
        **_tables(done.fitted.calibration),
        "report": str(report) if report else None,
        "unknown_labels": list(done.unknown),
        "warnings": list(done.warnings),
        "skipped": named(done.skipped),
    }


def _facts(calibration: "Calibration") -> dict[str, object]:
    names = ("method", "ece_pairs", "ece_hits", "images", "classes", "same", "different", "things")
    return {name: getattr(calibration, name) for name in names}


def _tables(calibration: "Calibration") -> dict[str, list[dict[str, float | None]]]:
    rates = {row[0]: row[1:] for row in calibration.acceptance}
    thresholds: list[dict[str, float | None]] = []
    for probability in _PROBABILITIES:
        least = calibration.least_similarity(probability)
        false_rate, true_rate = rates[probability]
        thresholds.append(
            {
                "min_probability": probability,
                "min_similarity": least if least <= 1 else None,
                "false_accept_rate": false_rate,
                "true_accept_rate": true_rate,
            }
        )
    curve: list[dict[str, float | None]] = [
        {"similarity": similarity, "probability": float(calibration.probability(similarity))}
        for similarity in _SIMILARITIES
    ]
    return {"probabilities": curve, "thresholds": thresholds}
