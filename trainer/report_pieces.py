"""What the report's sections are made of: escaped text, thumbnails and line charts, each a piece of HTML."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image
from torch import Tensor

_WEBP_QUALITY = 75

_WIDTH, _HEIGHT = 360, 190  # of a chart, in units of its own that are about pixels
_LEFT, _TOP, _BOTTOM = 58, 10, 38  # room for what is written around the lines
_RIGHT, _NAMES = 16, 54  # room behind the last point, and for the lines' names where they have some
_DIGITS = 5  # of a tick, behind the point or before it; there is no room for more
_DOTS = 40  # with more points than this, dots would hide the line


def text(value: object) -> str:
    """Any text as HTML: no markup of its own, and what can't be printed (or encoded) as escapes."""
    plain = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(value))
    return escape(plain)


def shortened(value: str, length: int) -> str:
    """The text with its middle left out where it is longer than `length`: paths differ at their ends."""
    return value if len(value) <= length else f"{value[: length // 3]}…{value[len(value) - length * 2 // 3 :]}"


def thumbnail(pixels: Tensor, aspect: float, side: int) -> str:
    """An image as a data URI.

    Args:
        pixels: (S, S, 3) uint8.
        aspect: width over height that it shall have.
        side: of the square that it shall fit in, pixels.
    """
    width, height = (side, side / aspect) if aspect > 1 else (side * aspect, side)
    size = max(1, round(width)), max(1, round(height))
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).resize(size, Image.Resampling.BICUBIC).save(file, "WEBP", quality=_WEBP_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: written at its end; empty where the chart has only this one.
        points: (x, y), x rising; where y is not finite the line is broken.
        baseline: a level to compare with, drawn dashed.
    """

    name: str
    points: Sequence[tuple[float, float]]
    baseline: float | None = None


def line_chart(title: str, x_name: str, lines: Sequence[Line]) -> str:
    """A chart as a figure with its title and, for readers who can't see it, its first and last values."""
    finite = [point for line in lines for point in line.points if math.isfinite(point[1])]
    lost = sum(len(line.points) for line in lines) - len(finite)
    note = f'<p class="note">{lost} of its values are not finite numbers.</p>' if lost else ""
    if not finite:
        return f"<figure><figcaption>{text(title)}</figcaption>{note}</figure>"
    levels = [line.baseline for line in lines if line.baseline is not None and math.isfinite(line.baseline)]
    frame = _Frame.around(finite, levels, _NAMES if any(line.name for line in lines) else _RIGHT)
    told = f"{title} by {x_name}: " + ", ".join(_told(line) for line in lines)
    drawn = "".join(_line(frame, line, i) for i, line in enumerate(lines))
    return (
        f"<figure><figcaption>{text(title)}{_last(finite[-1][1]) if len(lines) == 1 else ''}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(told)}">'
        f"{_axes(frame, x_name)}{drawn}</svg>{note}</figure>"
    )


def _last(value: float) -> str:
    return f": <b>{number(value)}</b> at last"


def number(value: float) -> str:
    """A number with four digits that matter, large ones with their thousands apart."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


@dataclass(frozen=True)
class _Frame:
    """The values at the edges of a chart, and the room beside its right one."""

    left: float
    right: float
    bottom: float
    top: float
    beside: int

    @property
    def end(self) -> int:
        """Where the right edge is drawn."""
        return _WIDTH - self.beside

    @classmethod
    def around(cls, points: Sequence[tuple[float, float]], levels: Sequence[float], beside: int) -> "_Frame":
        xs, ys = [x for x, _ in points], [y for _, y in points] + list(levels)
        low, high = min(ys), max(ys)
        margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        return cls(min(xs), max(xs), low - margin, high + margin, beside)

    def x(self, value: float) -> float:
        share = (value - self.left) / (self.right - self.left) if self.right > self.left else 0.5
        return _LEFT + share * (self.end - _LEFT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - self.bottom) / (self.top - self.bottom) * (_HEIGHT - _TOP - _BOTTOM)


def _axes(frame: _Frame, x_name: str) -> str:
    levels = ticks(frame.bottom, frame.top)
    across = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{frame.end}" y1="{frame.y(tick):.1f}" y2="{frame.y(tick):.1f}"/>'
        f'<text class="y" x="{_LEFT - 6}" y="{frame.y(tick) + 4:.1f}">{label}</text>'
        for tick, label in zip(levels, labels(levels), strict=True)
    )
    whole = [tick for tick in ticks(frame.left, frame.right) if tick == round(tick)] or [frame.left]
    along = "".join(
        f'<text class="x" x="{frame.x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 16}">{number(tick)}</text>'
        for tick in whole
    )
    return f'{across}{along}<text class="x" x="{(_LEFT + frame.end) / 2:.0f}" y="{_HEIGHT - 5}">{text(x_name)}</text>'


def ticks(low: float, high: float) -> list[float]:
    """About four round numbers from `low` to `high`, a step of 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10(high - low))
    steps = [factor * power for factor in (5, 2, 1, 0.5, 0.2)]
    found = [[i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)] for step in steps]
    return min(found, key=lambda values: (abs(len(values) - 4), -len(values)))


def labels(values: Sequence[float]) -> list[str]:
    """Ticks as text, with as many digits behind the point as their step needs."""
    if len(values) < 2:
        return [number(value) for value in values]
    digits = -math.floor(math.log10(values[1] - values[0]) + 1e-9)
    return [f"{value:,.{max(digits, 0)}f}" if abs(digits) <= _DIGITS else f"{value:.4g}" for value in values]


def _line(frame: _Frame, line: Line, place: int) -> str:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in line.points:
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    kind = f'class="line of{place}"'
    paths = "".join(f'<path {kind} d="M{" L".join(_at(frame, *point) for point in run)}"/>' for run in runs if run)
    points = [point for run in runs for point in run]
    dots = "".join(
        f'<circle class="dot of{place}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.5">'
        f"<title>{number(x)}: {number(y)}</title></circle>"
        for x, y in (points if len(points) <= _DOTS else points[-1:])
    )
    return f"{_baseline(frame, line, place)}{paths}{dots}{_name(frame, line, points)}"


def _baseline(frame: _Frame, line: Line, place: int) -> str:
    if line.baseline is None or not math.isfinite(line.baseline):
        return ""
    y = f"{frame.y(line.baseline):.1f}"
    return (
        f'<line class="baseline of{place}" x1="{_LEFT}" x2="{frame.end}" y1="{y}" y2="{y}">'
        f"<title>before: {text(line.name)}: {number(line.baseline)}</title></line>"
    )


def _name(frame: _Frame, line: Line, points: Sequence[tuple[float, float]]) -> str:
    if not (line.name and points):
        return ""
    x, y = points[-1]
    return f'<text class="of" x="{frame.x(x) + 6:.1f}" y="{frame.y(y) + 4:.1f}">{text(line.name)}</text>'


def _at(frame: _Frame, x: float, y: float) -> str:
    return f"{frame.x(x):.1f} {frame.y(y):.1f}"


def _told(line: Line) -> str:
    first, last = line.points[0][1], line.points[-1][1]
    before = "" if line.baseline is None else f" (before {number(line.baseline)})"
    return f"{line.name} {number(first)} at first, {number(last)} at last{before}".strip()
