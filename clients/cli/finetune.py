"""`kinsight finetune`: a model learns from a few labels, and from all images."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clients.cli.options import PATH, SEED, device_option, json_option, progress_option, store_option
from clients.cli.output import print_json, printable
from clients.cli.recording import operation_option
from clients.cli.training import (
    followed,
    is_main,
    print_training,
    run_to_do,
    tell_finished,
    train_recorded,
    train_result,
)

if TYPE_CHECKING:
    from indexer.store import Store
    from trainer.train_report import TrainReport

METHODS = {"stml-semi": "stml_semi", "cmsf-semi": "cmsf_semi", "supervised": "supervised"}
_SHOWN = 10  # labels that disagree: enough to look at


@click.command()
@click.argument("model")
@click.argument("images", type=PATH)
@click.option("--labels", type=PATH, required=True, help="CSV or Parquet of a few classes or pairs, as below.")
@store_option
@click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    default="stml-semi",
    show_default=True,
    help="stml-semi and cmsf-semi learn from all images; supervised from the labelled ones alone.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change one value of the recipe; repeatable.",
)
@click.option(
    "--baselines/--no-baselines",
    default=True,
    show_default=True,
    help="Where there is a split to judge on, learn from the labels alone too, and judge that: as long again.",
)
@click.option("--keep-doubted", is_flag=True, help="Learn from labels too that are likely wrong, as below.")
@click.option("--epochs", type=click.IntRange(1), metavar="N", help="Passes over the images.")
@click.option("--seed", type=SEED, metavar="N", help="Of everything random.")
@device_option
@click.option("--run", "name", metavar="NAME", help="What to call the run, for --resume.  [default: by the time]")
@click.option("--resume", metavar="RUN", help="Go on with this unfinished run and its own recipe.")
@progress_option
@operation_option
@json_option
def finetune(
    model: str,
    images: Path,
    labels: Path,
    store: Path,
    method: str,
    settings: tuple[str, ...],
    baselines: bool,
    keep_doubted: bool,
    epochs: int | None,
    seed: int | None,
    device: str,
    name: str | None,
    resume: str | None,
    progress_style: str,
    operation: str | None,  # noqa: ARG001  recording reads it
    as_json: bool,
) -> None:
    """Learn on from MODEL with labels of a few IMAGES.

    The new model is registered in the store. MODEL is a model's id, or how it begins; its own recipe is learned on
    with. All IMAGES are learned from, labelled or not.

    \b
    --labels is a table of one of two kinds
      classes  path, class_id and, optionally, split: rows of train, or all where
               there is no split, are learned from. On the others (test, or query
               and gallery), which are not, the frozen backbone, MODEL, what the
               labels alone teach, and the new model are judged. Rows of rest are
               learned from as if they had no label, and judged apart. Rows
               without a class_id are left out.
      pairs    path_a, path_b, relation: same or different

    Labels that MODEL disagrees with are listed, the surest first: they may be wrong, or be what it has yet to learn.
    Where 20 or more, of 5 classes or more, tell that over 15 % of them are wrong, those that likely are wrong, such
    that nine in ten of them are by estimate, are left out, unless --keep-doubted is given, and what is learned goes
    back toward MODEL by the share that is wrong.

    \b
    JSON keys: model, run, report, epoch, images, images_per_s, skipped[].item, skipped[].reason,
    duplicates.copies, duplicates.groups[][], unknown_labels[], warnings[], seconds{}, compared,
    suspects[].item, suspects[].like, suspects[].similarity, suspects[].own_similarity, wrong_share (or null),
    left_out[];
    with a split to judge on also beats_frozen, beats_start, beats_supervised, last_recall_at_1, and in each of
    frozen{}, start{}, supervised{} and trained{}, and on rows of rest in each of the same within rest{}:
    recall_at_1, recall_at_2, recall_at_4, recall_at_8, map_at_r, r_precision, knn_accuracy, nmi, ami, queries;
    where the run to --resume is finished already, which changes nothing, model, run and report alone
    """
    given = [f"run.{key}={value}" for key, value in (("epochs", epochs), ("seed", seed)) if value is not None]
    if resume and (settings or given or name):
        raise click.UsageError("a resumed run goes on with its own recipe and name; leave out what would change them")
    from indexer.store import Store
    from trainer.recipe import override, taught
    from trainer.run import train
    from trainer.run_directory import RunFinished
    from trainer.start import recipe_from

    place = Store(store)
    with followed(place, progress_style, "finetune") as work:  # mistakes are recorded too
        recipe = override(taught(recipe_from(place.model(model)), METHODS[method]), *settings, *given)
        name, resume = run_to_do(place, work, name, resume)
        if resume:
            _check_goes_on(place, resume, place.model(model).name, method)
        learn = partial(
            train,
            images,
            models=place.models,
            runs=place.runs,
            recipe=recipe,
            labels=labels,
            teach=True,
            baseline=baselines,
            keep_doubted=keep_doubted,
            datasets=place.datasets,
            device=device,
            name=name,
            resume=resume,
            progress=work.report,
            warn=work.warn,
        )
        done = train_recorded(learn, _result, work)
    if not is_main():
        return
    if isinstance(done, RunFinished):
        tell_finished(done, as_json)
        return
    if as_json:
        print_json(_result(done))
        return
    print_training(done)
    _tell_suspects(done)


def _check_goes_on(place: "Store", resume: str, model: str, method: str) -> None:
    """Refuse what a run does not go on with: another method than it began with, or from another model."""
    from trainer.run_directory import RECIPE, RunError, recipe_of

    run = place.runs / resume
    if not (run / RECIPE).is_file():
        return  # training says which runs there are
    recipe = recipe_of(run)
    begun = next((name for name, objective in METHODS.items() if objective == recipe.objective.name), None)
    if begun is None:
        raise RunError(f"run {resume!r} learns by {recipe.objective.name}, without labels: go on by `kinsight train`")
    source = click.get_current_context().get_parameter_source("method")
    if method != begun and source is not click.core.ParameterSource.DEFAULT:
        raise RunError(
            f"run {resume!r} was begun with --method {begun}, not {method}; leave it out, or start a new run"
        )
    if recipe.encoder.from_model != model:
        raise RunError(
            f"run {resume!r} was begun from model {recipe.encoder.from_model}, not from {model}; name that one, or "
            f"start a new run"
        )


def _result(done: "TrainReport") -> dict[str, object]:
    return {
        **train_result(done),
        "compared": done.compared,
        "suspects": [vars(s) for s in done.suspects],
        "wrong_share": done.wrong_share,
        "left_out": list(done.left_out),
    }


def _tell_suspects(done: "TrainReport") -> None:
    if not done.suspects:
        return
    click.echo(
        f"{len(done.suspects):,} of {done.compared:,} labelled images look most like one that is labelled as "
        f"something else:",
        err=True,
    )
    left_out = set(done.left_out)
    shown = [suspect for suspect in done.suspects if suspect.item in left_out] or done.suspects
    for suspect in shown[:_SHOWN]:
        click.echo(
            f"  {printable(suspect.item)} is like {printable(suspect.like)} ({suspect.similarity:.2f}), and like its "
            f"own at most {suspect.own_similarity:.2f}",
            err=True,
        )
