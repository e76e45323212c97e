"""`kinsight remote models|train|finetune|suggest|calibrate`: what these verbs do, done by a running server."""

from typing import Any

import click

from clients.cli.options import json_option, labels_help, server_option
from clients.cli.output import print_json
from clients.cli.remote import awaited, plain, tell_all, tell_result
from clients.cli.suggest import to_label

_COLUMNS = ["model", "backbone", "objective", "dimension", "images", "labelled", "created"]


@click.command()
@server_option
@json_option
def models(server: str, as_json: bool) -> None:
    """List the models of the server, oldest first.

    \b
    JSON keys: models[].model, models[].backbone, models[].objective, models[].dimension, models[].images,
    models[].labelled, models[].metrics{}, models[].created, models[].licence, models[].calibration{} (or null)
    """
    from kinsight_client import Client

    with Client(server) as client:
        found = [plain(model) for model in client.models.list()]
    tell_all("models", found, _COLUMNS, as_json)


@click.command()
@click.argument("images", nargs=-1, required=True)
@click.option("--from", "model", default="", metavar="MODEL", help="Start from this model of the server.")
@click.option("--recipe", default="", help="Name of a recipe that the server has.  [default: stml, or MODEL's own]")
@click.option("--labels", default="", metavar="PATH", help=f"Only to judge with. {labels_help}")
@click.option("--epochs", type=click.IntRange(1), default=None, metavar="N", help="Passes over the images.")
@click.option("--seed", type=int, metavar="N", help="Of everything random.")
@server_option
@json_option
def train(images: tuple[str, ...], epochs: int | None, server: str, as_json: bool, **options: Any) -> None:
    """Learn a metric from IMAGES on the server.

    See `kinsight train`.

    \b
    JSON keys: model{}, failed, warnings[], beats_start (or null)
    """
    from kinsight_client import Client

    with Client(server) as client:
        trained = awaited(client, client.models.train(*images, epochs=epochs or 0, **options))
    tell_result(plain(trained), as_json)


@click.command()
@click.argument("model")
@click.argument("images")
@click.option("--labels", required=True, metavar="PATH", help="CSV or Parquet of a few classes or pairs.")
@click.option("--method", default="", help="See `kinsight finetune --help`.  [default: stml-semi]")
@click.option("--epochs", type=click.IntRange(1), default=None, metavar="N", help="Passes over the images.")
@click.option("--seed", type=int, metavar="N", help="Of everything random.")
@click.option("--keep-doubted", is_flag=True, help="Learn from labels too that are likely wrong.")
@server_option
@json_option
def finetune(
    model: str, images: str, labels: str, epochs: int | None, server: str, as_json: bool, **options: Any
) -> None:
    """Learn on from MODEL with labels of a few IMAGES.

    IMAGES are on the server. See `kinsight finetune`.

    \b
    JSON keys: model{}, suspects[].item, suspects[].like, suspects[].similarity, suspects[].own_similarity, compared,
    unknown_labels[], failed, warnings[], beats_start (or null), beats_supervised (or null), supervised{}
    """
    from kinsight_client import Client

    with Client(server) as client:
        taught = awaited(client, client.models.finetune(model, images, labels, epochs=epochs or 0, **options))
    tell_result(plain(taught), as_json)


@click.command()
@click.argument("images")
@click.option("--model", required=True, help="Id of the model that sees them, or how it begins.")
@click.option("--budget", type=click.IntRange(min=1), required=True, metavar="N", help="How many to label.")
@click.option("--method", default="", help="See `kinsight suggest --help`.  [default: usl]")
@click.option("--labels", metavar="PATH", help="CSV or Parquet of those that are labelled already.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the choice.")
@server_option
@json_option
def suggest(images: str, model: str, budget: int, server: str, as_json: bool, **options: Any) -> None:
    """Choose which IMAGES on the server to label.

    They are printed as a table to fill in. See `kinsight suggest`.

    \b
    JSON keys: model, images, labelled, suggested[].path, suggested[].stands_for, suggested[].density_rank,
    suggested[].nearest (or null), suggested[].similarity (or null), failed, warnings[]
    """
    from kinsight_client import Client

    with Client(server) as client:
        found = awaited(client, client.models.suggest(model, images, budget, **options))
    if as_json:
        print_json(plain(found))
        return
    click.echo(to_label(map(plain, found.suggested)), nl=False)


@click.command()
@click.argument("model")
@click.argument("images")
@click.option("--labels", required=True, metavar="PATH", help="CSV or Parquet of classes or pairs.")
@click.option("--things", type=click.IntRange(min=2), default=None, metavar="N", help="See `kinsight calibrate`.")
@server_option
@json_option
def calibrate(model: str, images: str, labels: str, things: int | None, server: str, as_json: bool) -> None:
    """Fit what a similarity under MODEL means as a probability.

    IMAGES are on the server, and labelled. See `kinsight calibrate`.

    \b
    JSON keys: model, calibration.method, calibration.ece_pairs, calibration.ece_hits (or null), calibration.images,
    calibration.classes, calibration.same, calibration.different, calibration.things, unknown_labels[], failed,
    warnings[]
    """
    from kinsight_client import Client

    with Client(server) as client:
        fitted = awaited(client, client.models.calibrate(model, images, labels, things=things or 0))
    tell_result(plain(fitted), as_json)
