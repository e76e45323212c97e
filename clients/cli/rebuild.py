"""`kinsight rebuild`."""

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clients.cli.expected import expected_message
from clients.cli.finetune import METHODS
from clients.cli.options import (
    PATH,
    Device,
    device_option,
    index_labels_help,
    json_option,
    learn_memory_option,
    memory_budget_option,
    progress_option,
    store_option,
    target_recall_option,
)
from clients.cli.output import named, print_facts, print_json, warn_duplicates, warn_skipped
from clients.cli.recording import Work, operation_option, recorded

if TYPE_CHECKING:
    from indexer.build import BuildReport
    from indexer.candidate import Comparison, Paired

REFUSED = 1  # exit code
RETRY_S = 60.0  # after a rebuild that failed: it may be long work, and leaves a record each time
KEPT_FOLLOWING = 3  # old versions, unless another number is asked for: a folder that changes often fills any disk


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The verb's words, as its help describes them."""

    name: str
    images: Path | None
    model: str | None
    learn: bool
    finetune: Path | None
    method: str | None
    keep_doubted: bool
    epochs: int | None
    learn_memory: int | None
    target_recall: float | None
    min_recall: float | None
    labels: Path | None
    activate: bool
    follow: bool
    interval: float
    keep: int | None
    memory_budget: int | None
    store: Path
    device: Device
    progress_style: str
    operation: str | None
    as_json: bool


@click.command()
@click.argument("name")
@click.option("--images", type=PATH, help="Collection whose images are added; else changes are folded in.")
@click.option("--model", help="Embed everything anew with this model; its id, or how it begins.")
@click.option("--learn", is_flag=True, help="Train on from the index's model with all images, and embed with that.")
@click.option(
    "--finetune", type=PATH, metavar="FILE", help="Learn on from the index's model with these few labels too."
)
@click.option("--method", type=click.Choice(list(METHODS)), help="Of --finetune; see `kinsight finetune --help`.")
@click.option("--keep-doubted", is_flag=True, help="Of --finetune: learn from labels too that are likely wrong.")
@click.option(
    "--epochs", type=click.IntRange(1), metavar="N", help="Of learning; otherwise the model's own recipe's."
)
@learn_memory_option
@target_recall_option
@click.option("--min-recall", type=click.FloatRange(0, 1), help="recall@10 that it needs to be activated.  [0.95]")
@click.option("--labels", type=PATH, help=f"Only to judge with. {index_labels_help}")
@click.option("--activate/--no-activate", default=True, help="Whether to search it, if nothing speaks against it.")
@click.option("--follow", is_flag=True, help="Go on: rebuild whenever --images has changed, until Ctrl-C.")
@click.option("--interval", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Of --follow, seconds.")
@click.option("--keep", type=click.IntRange(0), metavar="N", help="Remove all but N old versions.  [3 with --follow]")
@memory_budget_option
@store_option
@device_option
@progress_option
@operation_option
@json_option
@click.pass_context
def rebuild(context: click.Context, /, **words: Any) -> None:
    """Build the next version of index NAME, and swap it in.

    It is activated if it is good. It holds what was upserted, and nothing that was deleted. With another model, items
    of which only an embedding is known can't be in it: how many is said before it begins. Images that have not
    changed are neither decoded nor embedded again under the same model. The active version is searched until the new
    one takes its place at once, and `kinsight index rollback` goes back. The same command goes on where an
    interrupted one ended.

    \b
    It is not activated (exit code 1, the version is kept) if
      its recall@10 is below --min-recall;
      more than 1 % of the items would be lost, as their images can't be read;
      the model is another one and neighbours got worse: with --labels, R@1 is
      lower beyond chance; without, they stand out less from the rest, by more
      than 5 % and beyond chance;
      it learned by --finetune, and R@1 is not higher on labelled items that it
      did not learn from: those of the few labels with another split than
      train, or of --labels. Without any, the rule before decides, and a
      warning says so.

    --learn and --finetune train in a process of its own, behind everything else; only one at a time in a store. They
    don't begin where more than 1 % of the items would be lost, unless --no-activate is given. Where the model before
    is calibrated, another one is too, by the labels that judge it: searches by probability go on.

    \b
    JSON keys: index, version, model, count, resumed, reused, decoded, deleted, upserted, skipped[].item,
    skipped[].reason, duplicates{}, recall_at_10, recall{}, plan{}, comparison{} (or null), refused, activated,
    seconds{}, warnings[]; with --follow one object for each version
    """
    wanted = Wanted(**words)
    _check(wanted)
    if wanted.follow:
        _follow(wanted)
    elif _once(wanted)["refused"]:
        context.exit(REFUSED)


def result_of(done: "BuildReport", told: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON object of a build, with the warnings that were told before it was done."""
    known = ("index", "version", "model", "count", "resumed", "reused", "decoded", "deleted", "upserted")
    return {
        **{name: getattr(done, name) for name in known},
        "skipped": named(done.skipped),
        "duplicates": dataclasses.asdict(done.duplicates),
        "recall_at_10": done.recall.recall_at_10,
        "recall": dataclasses.asdict(done.recall),
        "plan": dataclasses.asdict(done.plan),
        "comparison": dataclasses.asdict(done.comparison) if done.comparison else None,
        "refused": done.refused,
        "activated": done.activated,
        "seconds": dict(done.seconds),
        "warnings": [*told, *done.warnings],
    }


def warn_of(done: "BuildReport") -> None:
    """Say on stderr what did not go as it could have."""
    warn_skipped(done.skipped)
    warn_duplicates(done.duplicates)
    for warning in done.warnings:
        click.echo(f"warning: {warning}", err=True)


def _check(wanted: Wanted) -> None:
    if sum(map(bool, (wanted.model, wanted.learn, wanted.finetune))) > 1:
        raise click.UsageError(
            "learning goes on from the index's own model: give one of --model, --learn, --finetune"
        )
    if (wanted.epochs or wanted.learn_memory) and not (wanted.learn or wanted.finetune):
        raise click.UsageError("--epochs and --learn-memory are of --learn and --finetune")
    if (wanted.method or wanted.keep_doubted) and not wanted.finetune:
        raise click.UsageError("--method and --keep-doubted are of --finetune")
    if wanted.follow and not wanted.images:
        raise click.UsageError("--follow needs --images, which it watches")


def _once(wanted: Wanted) -> dict[str, Any]:
    with recorded("rebuild", wanted.name, wanted.store, wanted.progress_style, once=("follow", "interval")) as work:
        done = _rebuild(wanted, work)
        result = result_of(done, work.told)
        work.finish(result)
    keep = KEPT_FOLLOWING if wanted.keep is None and wanted.follow else wanted.keep
    if keep is not None:
        _remove_old(wanted, keep, done.version)
    warn_of(done)
    if wanted.as_json:
        print_json(result)
    else:
        _print(done)
    if done.refused:
        click.echo(f"not activated: {done.refused}", err=True)
    return result


def _rebuild(wanted: Wanted, work: Work) -> "BuildReport":
    from clients.cli.learning import learn
    from indexer.rebuild import rebuild as run
    from indexer.store import Store

    settings = ["--epochs", str(wanted.epochs)] if wanted.epochs else []
    settings += ["--method", wanted.method] if wanted.method else []
    settings += ["--keep-doubted"] if wanted.keep_doubted else []
    learner = partial(
        learn,
        store=wanted.store,
        few_labels=wanted.finetune,
        settings=settings,
        device=wanted.device,
        memory_bytes=wanted.learn_memory,
        report=work.report,
        warn=work.warn,
    )
    return run(
        wanted.name,
        wanted.images,
        store=Store(wanted.store),
        model=wanted.model,
        target_recall=wanted.target_recall,
        min_recall=wanted.min_recall,
        labels=wanted.labels,
        memory_budget_bytes=wanted.memory_budget,
        device=wanted.device,
        learn=learner if wanted.learn or wanted.finetune else None,
        few_labels=wanted.finetune,
        settings=" ".join(settings),
        activate=wanted.activate,
        warn=work.warn,
        progress=work.report,
    )


def _remove_old(wanted: Wanted, keep: int, built: int) -> None:
    """Remove the oldest versions but those that are active or can be rolled back to, and the one just built."""
    from indexer.staging import BuildInProgress, sole_builder
    from indexer.store import Store
    from indexer.version import delete_version, list_versions, pointed

    index_dir = Store(wanted.store).index(wanted.name)
    try:
        with sole_builder(index_dir):  # the next build may be taking embeddings from them
            old = [number for number in list_versions(index_dir) if number not in (built, *pointed(index_dir))]
            for number in old[: max(0, len(old) - keep)]:
                delete_version(index_dir, number)
    except BuildInProgress as error:
        click.echo(f"warning: old versions are kept for now: {error}", err=True)


def _follow(wanted: Wanted) -> None:
    """Rebuild at once, and then whenever the images have changed and come to rest; one trouble is told once."""
    from indexer.sources import SourceError

    _check_can_begin(wanted)
    built = seen = trouble = ""
    at_once = True
    while True:
        before, told, wait_s = seen, trouble, wanted.interval
        try:
            seen = ""
            seen = _state(wanted)
            if seen != built and (seen == before or at_once):
                _once(wanted)
                built = seen  # what changes while it builds is seen at the next look
            trouble = ""
        except SourceError as error:  # an inbox that is empty yet, or a folder that is being replaced
            trouble = f"{error}; waiting for images"
        except Exception as error:
            trouble = f"{_foreseen(error)}; trying again every {RETRY_S:.0f} s"
            wait_s = max(wait_s, RETRY_S)
        if trouble and trouble != told:
            click.echo(f"error: {trouble}", err=True)
        at_once = False
        time.sleep(wait_s)


def _check_can_begin(wanted: Wanted) -> None:
    """Refuse an index or a model that is not there: waiting brings neither."""
    from indexer.rebuild import model_of
    from indexer.store import Store

    place = Store(wanted.store)
    place.index(wanted.name)
    place.model(wanted.model or model_of(place, wanted.name))


def _foreseen(error: Exception) -> str:
    """What to tell of an error, which is raised again if it is a defect of Kinsight."""
    message = expected_message(error)
    if message is None:
        raise error
    return message


def _state(wanted: Wanted) -> str:
    """A digest that changes when an image of the collection does, or comes or goes; raises SourceError."""
    from indexer.sources import open_collection

    assert wanted.images is not None  # noqa: S101  checked
    digest = hashlib.sha256()
    for source in open_collection(wanted.images.absolute()).sources:
        digest.update(f"{source.item}\0{source.state()}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _print(done: "BuildReport") -> None:
    facts = {
        "index": done.index,
        "version": done.version,
        "active": "yes" if done.activated else "no",
        "model": done.model,
        "count": f"{done.count:,}",
        **_if_any("finished before", done.resumed),
        "reused": f"{done.reused:,}",
        "decoded": f"{done.decoded:,}",
        "skipped": f"{len(done.skipped):,}",
        **_if_any("stay deleted", done.deleted),
        **_if_any("stay as upserted", done.upserted),
        "recall@10": f"{done.recall.recall_at_10:.4f} ({done.recall.low:.4f} to {done.recall.high:.4f})",
    }
    print_facts(facts | (compared(done.comparison) if done.comparison else {}))


def _if_any(name: str, count: int) -> dict[str, str]:
    return {name: f"{count:,}"} if count else {}


def compared(comparison: "Comparison") -> dict[str, object]:
    """A comparison with the active version, for people."""
    facts: dict[str, object] = {
        f"compared with {comparison.active}": f"{comparison.compared:,} items",
        "overlap@10": f"{comparison.overlap_at_10:.4f}",
        "rank correlation": f"{comparison.rank_correlation:.4f}",
        "contrast": _paired(comparison.contrast),
    }
    labelled = {"R@1": f"{_paired(comparison.recall_at_1)}"} if comparison.recall_at_1 else {}
    return facts | labelled


def _paired(paired: "Paired") -> str:
    return f"{paired.active:.4f} -> {paired.candidate:.4f} (difference {paired.low:+.4f} to {paired.high:+.4f})"
