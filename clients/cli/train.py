"""`kinsight train` and `kinsight evaluate`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clients.cli.options import (
    PATH,
    SEED,
    Device,
    device_option,
    json_option,
    labels_help,
    progress_option,
    store_option,
)
from clients.cli.output import named, print_facts, print_json, progress, warn, warn_skipped
from clients.cli.recording import operation_option
from clients.cli.training import (
    followed,
    is_main,
    print_training,
    rounded,
    run_to_do,
    tell_finished,
    train_recorded,
    train_result,
)

if TYPE_CHECKING:
    from indexer.store import Store
    from trainer.profiling import Profile
    from trainer.recipe import Recipe

# Options that are short for a recipe's keys, within the same limits.
_KEY_OF = {
    "backbone": "encoder.backbone",
    "weights": "encoder.weights",
    "size": "data.size",
    "dim": "encoder.dim",
    "epochs": "run.epochs",
    "seed": "run.seed",
}


@click.command()
@click.argument("images", type=PATH, nargs=-1, required=True)
@store_option
@click.option("--from", "from_model", metavar="MODEL", help="Start from this model of the store, by its own recipe.")
@click.option("--labels", type=PATH, help=f"Only to judge with, never to learn from. {labels_help}")
@click.option("--recipe", help="Name of a recipe that comes along, or a TOML file.  [default: stml, or MODEL's own]")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change one value of the recipe; repeatable.",
)
@click.option("--backbone", help="A timm model, or torchvision/NAME.")
@click.option("--weights", help="What to start from: none, imagenet, or a file (.safetensors, .pth).")
@click.option(
    "--size", type=click.IntRange(16, 1024), metavar="PX", help="Side of the images that the encoder embeds."
)
@click.option("--dim", type=click.IntRange(2, 4096), metavar="D", help="Dimension of the embeddings.")
@click.option(
    "--epochs",
    type=click.IntRange(1),
    metavar="N",
    help="Passes over the images (a few hundred: several), after distillation.",
)
@click.option("--seed", type=SEED, metavar="N", help="Of everything random.")
@device_option
@click.option("--run", "name", metavar="NAME", help="What to call the run, for --resume.  [default: by the time]")
@click.option("--resume", metavar="RUN", help="Go on with this unfinished run and its own recipe.")
@click.option("--profile", is_flag=True, help="Say where a step's time goes, and write a trace into the run.")
@progress_option
@operation_option
@json_option
def train(
    images: tuple[Path, ...],
    store: Path,
    from_model: str | None,
    labels: Path | None,
    recipe: str | None,
    settings: tuple[str, ...],
    device: str,
    name: str | None,
    resume: str | None,
    profile: bool,
    progress_style: str,
    operation: str | None,  # noqa: ARG001  recording reads it
    as_json: bool,
    **shortcuts: str | int | None,
) -> None:
    """Learn a metric from IMAGES, without labels.

    The model is registered in the store.

    \b
    IMAGES is one of
      a folder          searched with its subfolders
      a table           CSV or Parquet with a column path
      tar shards        a .tar, a folder of them, or shard-{000..146}.tar, as
                        WebDataset writes them; read in place
      Parquet tables    with the images in a column image, of bytes or
                        {bytes, path}, as Hugging Face writes them; or a folder
      torchvision:NAME  such as torchvision:Flowers102; downloaded into the
                        store, unless torchvision:NAME?root=DIR says where it is

    Of several IMAGES it learns together; a file that two of them name is learned from once.

    The images need no labels. Where --labels are given, with paths relative to the first IMAGES or to their own
    folder, R@1 of the frozen backbone and of the trained model are measured, and with --from that of MODEL; with a
    column split it learns on train and rest, and judges on test, and on rest apart. A set of torchvision brings
    labels along: half of its classes to learn from, the others to judge on. Both are in one table,
    datasets/NAME/images.csv in the store, which can be indexed as well.

    On several GPUs of a machine, one process each, which share every batch:
    torchrun --standalone --nproc-per-node 4 -m -- clients.cli train IMAGES ...

    \b
    JSON keys: model, run, report, epoch, images, images_per_s, skipped[].item, skipped[].reason,
    duplicates.copies, duplicates.groups[][], unknown_labels[], warnings[], seconds{};
    with --profile also profile.percent{}, profile.steps, profile.step_ms, profile.trace;
    with --labels also beats_frozen, last_recall_at_1, with --from beats_start, and in each of frozen{}, trained{}
    and, with --from, start{}, and on rows of rest in each of the same within rest{}: recall_at_1, recall_at_2,
    recall_at_4, recall_at_8, map_at_r, r_precision, knn_accuracy, nmi, ami, queries;
    where the run to --resume is finished already, which changes nothing, model, run and report alone
    """
    given = [f"{_KEY_OF[name]}={value}" for name, value in shortcuts.items() if value is not None]
    if resume and (recipe or settings or given or from_model or name):
        raise click.UsageError("a resumed run goes on with its own recipe and name; leave out what would change them")
    from indexer.store import Store
    from trainer import recipe as recipes
    from trainer.run import train as run
    from trainer.run_directory import RunFinished

    place = Store(store)
    with followed(place, progress_style, "train") as work:  # what is wrong with a recipe is recorded too
        chosen = _recipe(place, recipe, from_model)
        if shortcuts["size"]:
            chosen = recipes.resized(chosen, int(shortcuts["size"]))
        chosen = recipes.override(chosen, *settings, *given)
        name, resume = run_to_do(place, work, name, resume)
        learn = partial(
            run,
            images[0],
            also=images[1:],
            models=place.models,
            runs=place.runs,
            recipe=chosen,
            labels=labels,
            datasets=place.datasets,
            device=device,
            name=name,
            resume=resume,
            profile=profile,
            progress=work.report,
            warn=work.warn,
        )
        done = train_recorded(learn, train_result, work)
    if not is_main():
        return
    if isinstance(done, RunFinished):
        tell_finished(done, as_json)
        return
    if done.profile:
        _tell_profile(done.profile)
    if as_json:
        print_json(train_result(done))
    else:
        print_training(done)


def _recipe(place: "Store", name: str | None, from_model: str | None) -> "Recipe":
    """The recipe of this name, or a model's own, starting from the model if there is one."""
    from trainer.recipe import load
    from trainer.start import recipe_from, starting_from

    if from_model is None:
        return load(name or "stml")
    directory = place.model(from_model)
    return starting_from(load(name), directory.name) if name else recipe_from(directory)


def _tell_profile(profile: "Profile") -> None:
    if not profile.steps:
        click.echo("profile: the training ended within its first steps, which are not timed", err=True)
        return
    click.echo(f"{profile.step_ms:,.0f} ms a step, mean of {profile.steps}:", err=True)
    for name, percent in profile.percent.items():
        click.echo(f"{percent:5.1f} %  {name}", err=True)
    if profile.trace:
        click.echo(f"trace, for ui.perfetto.dev: {profile.trace}", err=True)


class _Numbers(click.ParamType[tuple[int, ...]]):
    name = "K,K,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        try:
            numbers = tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers by comma, as 1,10,100", param, ctx)
        if min(numbers) < 1:
            self.fail(f"{min(numbers)} is below 1, the nearest neighbour", param, ctx)
        return numbers


@click.command()
@click.argument("model")
@click.argument("images", type=PATH)
@click.option("--labels", type=PATH, required=True, help=labels_help)
@click.option(
    "--recall-at",
    type=_Numbers(),
    default="1,2,4,8",
    show_default=True,
    help="Each k of R@k, by comma; 1,10,100,1000 is usual for Stanford Online Products, 1,10,20,30 for In-Shop.",
)
@store_option
@device_option
@json_option
def evaluate(
    model: str, images: Path, labels: Path, recall_at: tuple[int, ...], store: Path, device: Device, as_json: bool
) -> None:
    """Measure how well neighbours under MODEL share a class.

    IMAGES have labels, and MODEL is a model's id, or how it begins. Every image is searched among all others. With a
    column split in the labels, only those of test are, or those of query among those of gallery.

    \b
    JSON keys: model, recall_at_1, recall_at_2, recall_at_4, recall_at_8 (or those of --recall-at; 1 always),
    map_at_r, r_precision, knn_accuracy, nmi, ami, queries, warnings[], skipped[].item, skipped[].reason
    """
    from indexer.store import Store
    from trainer.judging import evaluate as run

    directory = Store(store).model(model)
    warnings: list[str] = []

    def tell(warning: str) -> None:
        warn(warning)
        warnings.append(warning)

    with progress() as report:
        metrics, skipped = run(
            directory, images, labels, recall_at=recall_at, device=device, progress=report, warn=tell
        )
    warn_skipped(skipped)
    if as_json:
        print_json({"model": directory.name, **metrics.to_dict(), "warnings": warnings, "skipped": named(skipped)})
    else:
        print_facts({"model": directory.name, **rounded(metrics)})
