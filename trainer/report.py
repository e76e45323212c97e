"""`report.html`: what a run did and what came of it, as one file that opens from a disk, without a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexer.manifest import write_atomically
from trainer import report_cases as cases
from trainer.recipe import Recipe, to_toml
from trainer.report_advice import History, advice, series
from trainer.report_cases import Comparison, Shown
from trainer.report_map import draw_map
from trainer.report_neighbours import neighbours
from trainer.report_pieces import Line, line_chart, text
from trainer.report_words import METRICS, RISING, called, explained
from trainer.run_directory import SKIPPED

REPORT = "report.html"

_CSS = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
# Nothing is loaded and nothing runs, whatever an image's name may hold.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_LISTED = 100  # skipped images; all are in the table beside the page
_SHOWN_S = 0.05  # shorter stages would read 0.0 s

_NOT_SERIES = {"step", "epoch", "queries"}
_COMPARED = ("recall_at_1", "map_at_r")  # of the baselines
_SPEED = ("images_per_s", "loader_wait_s", "lr")


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """All that a report tells of a run.

    Attributes:
        name: of the run.
        model: id of the model that came of it.
        recipe: what it was made with.
        environment: what it ran on, as `environment.json`.
        history: the lines of `metrics.jsonl`.
        before, trained: metrics of what the run started from, the frozen backbone or a model, and of the model that
            came of it; None without labels.
        judged: metrics of all that was judged, by what it was judged on and by whose they are.
        shown: the images that neighbours and map are drawn of: those judged on, or some of those learned from.
        epoch: whose encoder the model is, from 1.
        images: how many it learned from.
        skipped: (item, reason) of each image that could not be decoded.
        warnings: what else went wrong and was dealt with.
        images_per_s: drawn while training; None where the last process had none left to draw.
        seconds: wall clock by stage, of the last process.
        peak_memory: the most bytes held, by place.
    """

    name: str
    model: str
    recipe: Recipe
    environment: Mapping[str, Any]
    history: History
    before: Mapping[str, float] | None
    trained: Mapping[str, float] | None
    shown: Shown
    epoch: int
    images: int
    skipped: Sequence[tuple[str, str]]
    warnings: Sequence[str]
    images_per_s: float | None
    seconds: Mapping[str, float]
    peak_memory: Mapping[str, int]
    judged: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """How many there were, those before the recipe's own included."""
        return max(int(line.get("epoch", self.epoch)) for line in self.history)


def write(path: Path, run: RunFacts) -> None:
    """Write the report of a run; raises OSError where it can't be written, and does not appear."""
    write_atomically(path, render(run).encode())


def render(run: RunFacts) -> str:
    """The report of a run as one HTML page."""
    comparison = cases.compare(run.shown)
    sections = (
        _summary(run, comparison),
        _next(run),
        _curves(run),
        neighbours(run.shown, comparison, _origin(run)),
        _map(run.shown),
        _troubles(run),
        _settings(run),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(run.name)}: training report</title><style>\n{_CSS}</style></head>\n"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _summary(run: RunFacts, comparison: Comparison) -> str:
    head = f'<h1>Training report</h1><p class="path">run {text(run.name)}, model {text(run.model)}</p>'
    return f"{head}{_verdict(run, comparison)}{_facts(run)}{_scores(run)}{_compared(run)}"


def _verdict(run: RunFacts, comparison: Comparison) -> str:
    if run.before is None or run.trained is None or run.shown.classes is None:
        return (
            '<p class="verdict">No labels were given, so no number says whether this training helped. It kept '
            f"{cases.overlap(comparison):.0%} of {_origin(run)}'s {comparison.before.rows.shape[1]} nearest "
            "neighbours. Look at both below, or judge the model on some labelled images: <code>kinsight evaluate "
            f"{text(run.model)} IMAGES --labels TABLE</code>.</p>"
        )
    before, after = run.before["recall_at_1"], run.trained["recall_at_1"]
    change, points = cases.changed(comparison, run.shown.classes), after - before
    verb = "raised" if points > 0 else "lowered" if points < 0 else "left"
    unclear = "" if abs(points) > change.margin else " So few queries can't tell that from chance."
    return (
        f'<p class="verdict">Training {verb} R@1 from {before:.3f} to <b>{after:.3f}</b>: {_points(points)} points '
        f"(95 % interval {_points(points - change.margin)} to {_points(points + change.margin)}).{unclear}</p>"
        f'<p class="note">Of {len(comparison.queries):,} queries the nearest neighbour was right before and after '
        f"for {change.kept:,}, put right for {change.mended:,}, put wrong for {change.broken:,}, and wrong before "
        f"and after for {change.missed:,}.</p>"
    )


def _origin(run: RunFacts) -> str:
    """What the run started from, which it is compared with."""
    return f"model {text(run.recipe.encoder.from_model)}" if run.recipe.encoder.from_model else "the frozen backbone"


def _points(share: float) -> str:
    return _signed(100 * share, 1)


def _fraction(value: float) -> str:
    return f"{value:.4f}".replace("-", "\N{MINUS SIGN}")


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}") if round(value, digits) else "0"


def _facts(run: RunFacts) -> str:
    told = {
        "images learned from": f"{run.images:,}",
        "epoch of the model": f"{run.epoch:,} of {run.epochs:,}",
        **_pace(run),
        **{f"peak memory, {place}": f"{size / 2**30:.2f} GiB" for place, size in run.peak_memory.items()},
        **({"images skipped": f"{len(run.skipped):,}"} if run.skipped else {}),
    }
    boxes = "".join(f"<div><dt>{text(name)}</dt><dd>{text(fact)}</dd></div>" for name, fact in told.items())
    return f'<dl class="facts">{boxes}</dl>'


def _pace(run: RunFacts) -> dict[str, str]:
    """How long training took and how fast it was; of a run that was stopped, since it went on."""
    told = {f"training time{_since(run)}": _duration(run.seconds.get("train", 0))}
    if run.images_per_s is None:
        return told
    return told | {"images/s, with judging": f"{run.images_per_s:,.1f}"}


def _since(run: RunFacts) -> str:
    return " since it went on" if run.environment.get("earlier") else ""


def _scores(run: RunFacts) -> str:
    if run.before is None or run.trained is None:
        return ""
    rows = "".join(_score(name, run.before[name], value) for name, value in run.trained.items() if name in run.before)
    names = ("metric", _origin(run).removeprefix("the "), "trained", "change")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f'{table}<p class="note">{METRICS}</p>'


def _compared(run: RunFacts) -> str:
    """The model beside the baselines, where there is more than what the run started from."""
    if not any("supervised" in judged for judged in run.judged.values()) and "rest" not in run.judged:
        return ""
    found = [(on, who, metrics) for on, judged in run.judged.items() for who, metrics in judged.items()]
    rows = "".join(_compared_row(*row) for row in found)
    head = "".join(f'<th scope="col">{name}</th>' for name in ("judged on", "model", *map(called, _COMPARED)))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _compared_row(on: str, who: str, found: Mapping[str, float]) -> str:
    values = "".join(f"<td>{found[name]:.4f}</td>" for name in _COMPARED)
    return f'<tr><th scope="row">{text(on)}</th><td>{text(who)}</td>{values}</tr>'


def _score(name: str, before: float, trained: float) -> str:
    head = f'<th scope="row">{text(called(name))}</th>'
    if name in _NOT_SERIES:
        return f"<tr>{head}<td>{before:,.0f}</td><td>{trained:,.0f}</td><td></td></tr>"
    change = round(trained - before, 4)
    direction = "up" if change > 0 else "down" if change < 0 else "same"
    values = f"<td>{_fraction(before)}</td><td>{_fraction(trained)}</td>"
    return f'<tr>{head}{values}<td class="{direction}">{_signed(change, 4)}</td></tr>'


def _next(run: RunFacts) -> str:
    if run.before is None or run.trained is None or run.trained["recall_at_1"] > run.before["recall_at_1"]:
        return ""
    steps = "".join(f"<li>{text(step)}</li>" for step in advice(run.recipe, run.history, run.before))
    return f"<h2>What to try next</h2><p>This training did not beat {_origin(run)}.</p><ol>{steps}</ol>"


def _curves(run: RunFacts) -> str:
    names = list(dict.fromkeys(name for line in run.history for name in line))
    losses = [name for name in names if any("loss" in line and name in line for line in run.history)]
    losses = [name for name in losses if name not in (*_SPEED, *_NOT_SERIES)]
    quality = [name for name in names if name not in (*losses, *_SPEED, *_NOT_SERIES)]
    if len(losses) == 2:
        losses.remove("loss")  # the sum of one term is that term
    return (
        _charts("Losses", "step", run, losses, _minimised(run))
        + _charts("By epoch", "epoch", run, quality, _judged(run, quality))
        + _charts("Speed", "step", run, [name for name in _SPEED if name in names], _waiting(run))
    )


def _minimised(run: RunFacts) -> str:
    losses = series(run.history, "step", "loss")
    rising = losses and losses[-1][1] > losses[0][1]
    return f"What training minimises: the sum, and each of its terms. {RISING if rising else ''}"


def _judged(run: RunFacts, names: Sequence[str]) -> str:
    return f"Dashed: {_origin(run)}. {explained(names)}" if run.before else explained(names)


def _charts(title: str, x: str, run: RunFacts, names: Sequence[str], note: str) -> str:
    drawn = "".join(
        line_chart(label, x, lines) for label, lines in _grouped(run, x, names) if any(line.points for line in lines)
    )
    return f'<h2>{title}</h2><p class="note">{text(note)}</p><div class="charts">{drawn}</div>' if drawn else ""


def _grouped(run: RunFacts, x: str, names: Sequence[str]) -> list[tuple[str, list[Line]]]:
    """Titles and lines of the charts: all R@k in one, everything else alone."""
    recalls = [name for name in names if name.startswith("recall_at_")]
    before = run.before or {}
    lines = {name: series(run.history, x, name) for name in names}
    alone = [(called(name), [Line("", lines[name], before.get(name))]) for name in names if name not in recalls]
    together = [Line(called(name), lines[name], before.get(name)) for name in recalls if lines[name]]
    return [("R@k", together), *alone] if together else alone


def _waiting(run: RunFacts) -> str:
    waited = sum(y for _, y in series(run.history, "step", "loader_wait_s"))
    spent = {stage: _duration(seconds) for stage, seconds in run.seconds.items() if seconds >= _SHOWN_S}
    stages = ", ".join(f"{stage} {duration}" for stage, duration in spent.items())
    return f"Training waited {waited:.1f} s in all for images. Time by stage{_since(run)}: {stages}."


def _map(shown: Shown) -> str:
    coloured = "" if shown.classes is None else " Colours are classes."
    return (
        f'<h2>Map</h2><p class="note">Embeddings of the model laid out on a plane, like near like; only what is near '
        f"means something, not how far the rest is.{coloured} Names appear under the pointer.</p>"
        f'<div class="scroll">{draw_map(shown)}</div>'
    )


def _troubles(run: RunFacts) -> str:
    warnings = "".join(f"<li>{text(warning)}</li>" for warning in run.warnings)
    return (
        f"<h2>Skipped images and warnings</h2>{f'<ul>{warnings}</ul>' if warnings else '<p>No warnings.</p>'}"
        f"{_skipped(run.skipped) if run.skipped else '<p>No image was skipped.</p>'}"
    )


def _skipped(skipped: Sequence[tuple[str, str]]) -> str:
    listed = "".join(
        f'<li><span class="path">{text(item)}</span>: {text(why)}</li>' for item, why in skipped[:_LISTED]
    )
    rest = len(skipped) - _LISTED
    more = f"<p>And {rest:,} more: {SKIPPED}, beside this page, lists all.</p>" if rest > 0 else ""
    return f"<details open><summary>{len(skipped):,} skipped</summary><ul>{listed}</ul>{more}</details>"


def _settings(run: RunFacts) -> str:
    rows = "".join(
        f'<tr><th scope="row">{text(name)}</th><td class="word path">{text(value)}</td></tr>'
        for name, value in run.environment.items()
        if not isinstance(value, list)
    )
    return (
        f"<h2>Settings</h2><h3>Environment</h3><div class='scroll'><table><tbody>{rows}</tbody></table></div>"
        f"<h3>Recipe</h3><pre>{_lines(to_toml(run.recipe))}</pre>"
    )


def _lines(plain: str) -> str:
    return "\n".join(map(text, plain.splitlines()))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
