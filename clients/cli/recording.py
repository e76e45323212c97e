"""Verbs that take long leave a record in the store, which shows their progress to others, and resumes them."""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from clients.cli.expected import expected_message
from clients.cli.output import Progress, printable, progress, warn

_GOES_ON = ("build", "rebuild", "import")  # kinds of which what was finished stays; a run is told of by who trains

operation_option = click.option(
    "--operation", metavar="ID", hidden=True, help="Work on this operation, which is recorded already."
)


@dataclass(frozen=True)
class Work:
    """A verb that is being recorded.

    Attributes:
        report: shows and records progress.
        warn: tells and records what is found wrong, at once.
        finish: records the result.
        operation: its id; empty for work that is not recorded.
        since: told the last change of an index, says after which one the work began, maybe by an earlier process.
        told: what `warn` recorded so far.
    """

    report: Progress
    warn: Callable[[str], None]
    finish: Callable[[Mapping[str, Any]], None]
    operation: str = ""
    since: Callable[[int], int] = lambda sequence: sequence
    told: Sequence[str] = ()


@contextmanager
def recorded(
    kind: str, index: str, store: Path, style: str = "auto", *, once: Sequence[str] = (), reads: bool = False
) -> Iterator[Work]:
    """Record the verb that runs now as an operation; how the block ends is how the operation ended.

    Args:
        kind: what it does.
        index: what it does it to; empty where that is no index.
        store: where the record goes.
        style: of progress, as `clients.cli.output.progress` takes it.
        once: parameters that the recorded words leave out.
        reads: it changes nothing in the store, and goes on where nobody can write a record of it there.

    Raises:
        ValueError: the index's name is not usable as one.
        OSError: the record can't be written, and the verb is not one that only reads.
    """
    from indexer import operations
    from indexer.store import Store

    context, place = click.get_current_context(), Store(store)
    if index:
        place.index(index)  # raises where that is no name, before it becomes part of a record's
    _hear_cancellation()
    directory, told = place.operations, list[str]()
    identity = context.params["operation"]
    try:
        identity = identity or operations.queue(directory, kind, index, words_of(context, once)).id
    except OSError as error:
        if not reads:
            raise
        click.echo(f"warning: this is not recorded among the operations: {expected_message(error)}", err=True)
    if not identity:
        with progress(style) as shown:
            yield Work(shown, partial(warn, style=style), keep_nothing)
        return
    with _told_how_to_go_on(kind), operations.running(directory, identity) as recorder, progress(style) as shown:

        def report(stage: str, done: int, total: int) -> None:
            shown(stage, done, total)
            recorder.progress(stage, done, total)

        def tell(text: str) -> None:
            warn(text, style)
            told.append(printable(text))
            recorder.warn(told[-1])

        yield Work(report, tell, recorder.finish, identity, recorder.begun_since, told)


@contextmanager
def _told_how_to_go_on(kind: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if kind in _GOES_ON:
            click.echo("the same command goes on from here", err=True)
        raise


def keep_nothing(result: Mapping[str, Any]) -> None:
    """The result of work that is not recorded, or that another process records as a part of its own."""


def _hear_cancellation() -> None:
    """Let SIGINT, which cancels operations, end this verb also where a script started it, or the server, with `&`."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def words_of(context: click.Context, without: Sequence[str] = ()) -> list[str]:
    """The words that call a verb again with the same values from any folder."""
    words = context.command_path.split()[1:]
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if parameter.name in ("operation", *without) or value is None:
            continue
        if isinstance(value, bool):
            words += (parameter.opts if value else parameter.secondary_opts)[:1]
            continue
        option = [] if isinstance(parameter, click.Argument) else parameter.opts[:1]
        for one in value if isinstance(value, tuple) else (value,):
            words += [*option, str(one.absolute() if isinstance(one, Path) and not _is_named(one) else one)]
    return words


def _is_named(path: Path) -> bool:
    """Whether it is no path but a public set, such as torchvision:Flowers102."""
    return str(path).startswith("torchvision:")
