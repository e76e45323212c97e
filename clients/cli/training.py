"""What the verbs that train tell of a run, while it goes on and when it is done."""

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import click

from clients.cli.output import (
    named,
    print_facts,
    print_json,
    print_table,
    printable,
    progress,
    warn,
)
from clients.cli.recording import Work, keep_nothing, recorded

if TYPE_CHECKING:
    from indexer.store import Store
    from trainer.evaluate import Metrics
    from trainer.run_directory import RunFinished
    from trainer.train_report import TrainReport

TETHERED = "tethered"  # click's object of a training that is a part of a rebuild, which is what is recorded


def is_main() -> bool:
    """Whether this process tells what was done: torchrun numbers those that it starts."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def followed(place: "Store", style: str, kind: str) -> Iterator[Work]:
    """Show and record the progress of a run, where this process is the main one; stopped, say how to go on."""
    run = ""

    def way_on() -> str:
        begun = is_main() and run and (place.runs / run / "recipe.toml").exists()
        return f"go on with this run by --resume {run}" if begun else ""

    try:
        with _told_when_terminated(way_on), _followed(place, style, kind) as work:
            given = click.get_current_context().params
            run = given["resume"] or _name_of(work, given["name"]) or ""
            yield work
    except KeyboardInterrupt:
        if told := way_on():
            click.echo(told, err=True)
        raise


@contextmanager
def _told_when_terminated(way_on: Callable[[], str]) -> Iterator[None]:
    """Within, SIGTERM ends the process as it always does, but not before it has said on stderr how to go on."""

    def end(number: int, _: object) -> None:
        signal.signal(number, before)
        if told := way_on():
            with suppress(OSError):  # nobody may read any more
                # Not by Python's own stream: what was interrupted may be writing to it.
                os.write(2, f"\n{printable(told)}\n".encode())
        os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _followed(place: "Store", style: str, kind: str) -> Iterator[Work]:
    context = click.get_current_context()
    if not is_main():
        yield Work(_tell_nothing, _warn_nobody, keep_nothing)
    elif context.obj == TETHERED:
        with progress(style) as report:
            yield Work(report, partial(warn, style=style), keep_nothing)
    elif context.params["operation"]:
        from indexer.staging import sole_learner

        # Whoever calls the verb may train twice at once; what a server starts shares the machine with its searches.
        with recorded(kind, "", place.root, style) as work, sole_learner(place.root):
            yield work
    else:
        with recorded(kind, "", place.root, style) as work:
            yield work


def run_to_do(place: "Store", work: Work, name: str | None, resume: str | None) -> tuple[str | None, str | None]:
    """What to call a new run, which is called as its operation is, or else the run to go on with."""
    if resume:
        return None, resume
    called = _name_of(work, name)
    taken_up = click.get_current_context().params["operation"] is not None
    begun = called is not None and (place.runs / called / "recipe.toml").exists()
    return (None, called) if taken_up and begun else (called, None)


def _name_of(work: Work, name: str | None) -> str | None:
    """What a run is called, by its operation where it was given no name."""
    return name or work.operation or None


def _tell_nothing(stage: str, done: int, total: int) -> None:
    """Progress of a process that is not the main one."""


def _warn_nobody(text: str) -> None:
    """What such a process finds wrong, as the main one does."""


def train_recorded(
    train: "Callable[[], TrainReport]", result: "Callable[[TrainReport], dict[str, object]]", work: Work
) -> "TrainReport | RunFinished":
    """Train and record the result; of a run that was to go on and is finished already, its model."""
    from trainer.run_directory import RunFinished

    try:
        done = train()
    except RunFinished as finished:
        work.finish(_finished_record(finished))
        return finished
    work.finish(result(done))
    return done


def tell_finished(finished: "RunFinished", as_json: bool) -> None:
    """Say that a run is finished, and what its model is; nothing of it was changed."""
    click.echo(f"{finished}", err=True)
    told = _finished_result(finished)
    if as_json:
        print_json(told)
    else:
        print_facts({name: printable(str(value)) for name, value in told.items() if value is not None})


def _finished_result(finished: "RunFinished") -> dict[str, object]:
    report = finished.run / "report.html"
    return {
        "model": finished.model,
        "run": finished.run.name,
        "report": str(report) if report.exists() else None,  # it may have been removed since
    }


def _finished_record(finished: "RunFinished") -> dict[str, object]:
    """With all that a server's answer is made of: a training may be killed between its run's end and its own."""
    lost = f"run {finished.run.name!r} was finished already: what it left out and warned of is in its report alone"
    unknown = {"skipped": [], "unknown_labels": [], "compared": 0, "suspects": [], "warnings": [lost]}
    return {**_finished_result(finished), **unknown}


def train_result(done: "TrainReport") -> dict[str, object]:
    """What a run did, as JSON has it."""
    result: dict[str, object] = {
        "model": done.model.id,
        "run": done.run,
        "report": str(done.report) if done.report else None,
        "epoch": done.epoch,
        "images": done.images,
        "images_per_s": done.images_per_s,
        "skipped": named(done.skipped),
        "duplicates": dataclasses.asdict(done.duplicates),
        "unknown_labels": list(done.unknown_labels),
        "warnings": list(done.warnings),
        "seconds": dict(done.seconds),
    }
    if done.profile:
        trace = done.profile.trace
        result["profile"] = {**dataclasses.asdict(done.profile), "trace": str(trace) if trace else None}
    if done.trained:
        scores = {who: metrics.to_dict() for who, metrics in done.judged.items()}
        result |= {"beats_frozen": done.beats_frozen, "last_recall_at_1": done.last_recall_at_1, **scores}
        if done.start:
            result["beats_start"] = done.beats_start
        if done.supervised:
            result["beats_supervised"] = done.beats_supervised
        if done.rest:
            result["rest"] = done.tables()["rest"]
    return result


def print_training(done: "TrainReport") -> None:
    """Print what a run did, how good its model is beside what was there before, and whether it is any better."""
    where = {"report": printable(str(done.report))} if done.report else {}  # a warning has said why there is none
    facts = {"model": done.model.id, "run": done.run, "epoch": str(done.epoch), "images": f"{done.images:,}"}
    print_facts({**facts, **where})
    if not done.trained:
        return
    _print_metrics(done.judged)
    if done.rest:
        click.echo("unlabelled images of classes that were learned:")
        _print_metrics(done.rest)
    if done.beats_start is False:
        click.echo(
            "This training does not beat the model that it started from: keep that one, or try a lower optimizer.lr."
        )
    elif done.beats_frozen is False:
        advice = "its report says what to try next" if done.report else "try more epochs, or another backbone"
        click.echo(f"This training does not beat the frozen backbone: {advice}.")


def _print_metrics(judged: "Mapping[str, Metrics]") -> None:
    columns = {who: rounded(metrics) for who, metrics in judged.items()}
    print_table(
        ["", *columns], [(name, *(column[name] for column in columns.values())) for name in columns["trained"]]
    )


def rounded(metrics: "Metrics") -> dict[str, str]:
    """Metrics as tables show them."""
    return {name: f"{value:,}" if name == "queries" else f"{value:.4f}" for name, value in metrics.to_dict().items()}
