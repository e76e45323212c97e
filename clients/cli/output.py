"""What the command prints: one JSON object or a table on stdout, progress on stderr."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import TaskID

    from indexer.duplicates import Duplicates

Progress = Callable[[str, int, int], None]

PLAIN_INTERVAL_S = 5.0  # between progress lines where stderr is a file or a pipe: readable logs, not floods
_LEAST_RATE = 0.05  # a second; less would read 0.0/s
JSON_INTERVAL_S = 0.1  # between a stage's lines for programs


def printable(text: str) -> str:
    """Text on one line for any terminal: control characters, and bytes of a path that are not UTF-8, as escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def payload_text(payload: Mapping[str, Any] | None) -> str:
    """What is kept with an item, for people."""
    return "" if payload is None else printable(json.dumps(payload, ensure_ascii=False))


def print_json(result: Mapping[str, Any]) -> None:
    """Print one JSON object on one line; ASCII, so that any pipe carries it."""
    click.echo(json.dumps(result, allow_nan=False))


def print_facts(facts: Mapping[str, object]) -> None:
    """Print names and values, one a line, values aligned."""
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {value}")


def tell_facts(result: Mapping[str, Any], as_json: bool) -> None:
    """Print a result as JSON, or its names and values, nested names with dots between them, and what it lists."""
    if as_json:
        print_json(result)
        return
    flat = _flat(result)
    listed = {name: value for name, value in flat.items() if _has_rows(value)}
    print_facts({name: cell(value) for name, value in flat.items() if name not in listed})
    for name, rows in listed.items():
        click.echo(f"\n{name}")
        print_table([*rows[0]], [[cell(value) for value in row.values()] for row in rows])


def _has_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def cell(value: object) -> str:
    """A value for people."""
    if isinstance(value, list | tuple):
        return printable(" ".join(map(str, value)))
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else printable(str(value))


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; columns whose cells are all numbers are aligned right."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = all(str(row[i]).replace(".", "").replace(",", "").lstrip("-").isdigit() for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))  # Text: an item named [red] is not markup
    # Rich assumes 80 columns where stdout is no terminal, and would fold long item ids.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)


def warn(text: str, style: str = "auto") -> None:
    """Tell on stderr what is wrong, above the bars of progress: a line, or for programs a JSON object {warning}.

    Args:
        text: a sentence.
        style: as `progress` takes it.
    """
    tell(json.dumps({"warning": text}) if style == "json" else printable(f"warning: {text}"))


def tell_active(index: str, version: int, result: Mapping[str, Any], warnings: Sequence[str], as_json: bool) -> None:
    """Print that a version is the one of an index that is searched, and what to know of it; for programs a result."""
    for warning in warnings:
        warn(warning)
    if as_json:
        print_json({**result, "warnings": warnings})
    else:
        click.echo(f"{index}: version {version} is active")


def tell(line: str) -> None:
    """Write a line to stderr, above the bars of progress: Rich sees what is printed, and not what click echoes."""
    print(line, file=sys.stderr)


def named(skipped: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Images that were left out, as JSON has them."""
    return [{"item": item, "reason": reason} for item, reason in skipped]


def warn_skipped(skipped: Sequence[tuple[str, str]], table: Path | None = None, count: int | None = None) -> None:
    """Name on stderr the images that were left out: the first 20, and where more are.

    Args:
        skipped: item and reason.
        table: that lists them all.
        count: how many they are where `skipped` is only the first of them.
    """
    shown = skipped[:20]
    for item, reason in shown:
        click.echo(printable(f"skipped {item}: {reason}"), err=True)
    more = (count or len(skipped)) - len(shown)
    if more > 0:
        where = f"{table or '--json'} lists them all"
        if not table and more > len(skipped) - len(shown):
            where = f"--json lists the first {len(skipped):,}, and again with --failures FILE all"
        click.echo(f"skipped {more:,} more; {where}", err=True)


def warn_duplicates(duplicates: "Duplicates") -> None:
    """Say on stderr how many images are byte for byte copies of others, and name the first of them."""
    if duplicates.copies:
        click.echo(printable(duplicates.summary), err=True)


@contextmanager
def progress(style: str = "auto") -> Iterator[Progress]:
    """Show progress with rate and ETA on stderr: bars on a terminal, otherwise a line every few seconds.

    Args:
        style: `auto`, or `json` for a program that reads it: lines as `JsonProgress` writes them.
    """
    if style == "json":
        yield JsonProgress()
    elif not sys.stderr.isatty():
        yield PlainProgress()
    else:
        with _bars() as report:
            yield report


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, completed=done, rate="")
            task = next(task for task in bars.tasks if task.id == tasks[stage])
            if done < task.completed:  # a stage that comes again, as judging does after each epoch
                bars.reset(task.id)
            speed = task.speed
            bars.update(tasks[stage], completed=done, total=total, rate=f"{speed:,.1f}/s" if speed else "")

        yield report


class PlainProgress:
    """Progress as lines: one every `PLAIN_INTERVAL_S` seconds, and one when a stage is first done."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._printed_at = clock()
        self._began: dict[str, tuple[float, int]] = {}
        self._least: dict[str, float] = {}  # that a stage's next report says, unless the stage comes again
        self._ended: set[str] = set()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that so much of a stage is done."""
        now = self._clock()
        # A resumed stage begins above zero, and one that comes again, as judging does after each epoch, begins anew:
        # only what was done since then tells the rate.
        if done < self._least.get(stage, math.inf):
            self._began[stage] = now, done
        self._least[stage] = done if done < total else math.inf
        began_at, first = self._began[stage]
        ends = done >= total and stage not in self._ended
        if not ends and now - self._printed_at < PLAIN_INTERVAL_S:
            return
        if ends:
            self._ended.add(stage)
        self._printed_at = now
        click.echo(_line(stage, done, total, done - first, now - began_at), err=True)


class JsonProgress:
    """Progress as JSON objects {stage, done, total}: a line every `JSON_INTERVAL_S` of a stage, and its last."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._printed_at: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that so much of a stage is done."""
        now = self._clock()
        if done < total and now - self._printed_at.get(stage, -JSON_INTERVAL_S) < JSON_INTERVAL_S:
            return
        self._printed_at[stage] = now
        click.echo(json.dumps({"stage": stage, "done": done, "total": total}), err=True)


def _line(stage: str, done: int, total: int, advanced: int, seconds: float) -> str:
    rate = advanced / seconds if seconds > 0 else 0.0
    pace = f"  {rate:,.1f}/s" if rate >= _LEAST_RATE else ""
    left = f"  ETA {_clock_time((total - done) / rate)}" if rate > 0 and done < total else ""
    return f"{stage}  {done:,}/{total:,}{pace}{left}"


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
