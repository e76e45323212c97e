"""The reliability plot of a calibration: an HTML page with SVG drawings, which needs nothing else to be looked at."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from indexer.calibration import Bin, Calibration, Fitted

_SIDE, _MARGIN = 340, 46  # pixels of a drawing's square, and around it
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Calibration of {model}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }}
.plots {{ display: flex; flex-wrap: wrap; gap: 1rem }} figure {{ margin: 0; width: 432px }}
figcaption {{ font-size: 14px; color: #57606a }} text {{ font-size: 12px; fill: #57606a }}
</style>
<h1>Calibration of model {model}</h1>
<p>Fitted ({method}) on {images:,} labelled images: {same:,} pairs of the same thing, {different:,} of different ones.
What is measured here are classes that the curve was not fitted on.</p>
<div class="plots">{plots}</div>
</html>
"""


def write_report(path: Path, model: str, fitted: "Fitted") -> None:
    """Write the page; raises OSError."""
    calibration = fitted.calibration
    plots = [_figure(_reliability(fitted.pairs), _told("all pairs", calibration.ece_pairs))]
    if calibration.ece_hits is not None:
        plots.append(_figure(_reliability(fitted.hits), _told("the 10 nearest of each image", calibration.ece_hits)))
    plots.append(_figure(_curve(calibration), "The curve: what a similarity means under this model."))
    page = _PAGE.format(
        model=escape(model),
        method=calibration.method,
        images=calibration.images,
        same=calibration.same,
        different=calibration.different,
        plots="".join(plots),
    )
    path.write_text(page, encoding="utf-8")


def _told(what: str, error: float) -> str:
    return (
        f"Over {what}: off by {error:.3f} on average (ECE). Each dot is a fifteenth of them; on the line, exactly as "
        f"many show the same thing as was promised; below it, fewer."
    )


def _figure(drawing: str, caption: str) -> str:
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _reliability(bins: Sequence["Bin"]) -> str:
    line = f'<path d="{_path([(0, 0), (1, 1)])}" stroke="#8c959f" stroke-dasharray="4 4"/>'
    dots = "".join(
        f'<circle cx="{_x(one.predicted)}" cy="{_y(one.observed)}" r="5" fill="#0969da" fill-opacity=".75"/>'
        for one in bins
    )
    return _axes("probability that was promised", "share that is the same", _TICKS, line + dots)


def _curve(calibration: "Calibration") -> str:
    places = [i / 200 for i in range(201)]
    points = [(place, float(calibration.probability(2 * place - 1))) for place in places]
    line = f'<path d="{_path(points)}" stroke="#0969da" stroke-width="2"/>'
    return _axes("similarity", "probability", tuple(2 * tick - 1 for tick in _TICKS), line)


def _axes(across: str, up: str, ticks: Sequence[float], inner: str) -> str:
    edge, size = _SIDE + _MARGIN, _SIDE + 2 * _MARGIN
    frame = f'<rect x="{_MARGIN}" y="{_MARGIN}" width="{_SIDE}" height="{_SIDE}" stroke="#d0d7de"/>'
    marks = "".join(
        f'<text x="{_x(place)}" y="{edge + 16}" text-anchor="middle">{tick:g}</text>'
        f'<text x="{_MARGIN - 6}" y="{_y(place) + 4}" text-anchor="end">{place:g}</text>'
        for place, tick in zip(_TICKS, ticks, strict=True)
    )
    names = (
        f'<text x="{size / 2}" y="{edge + 36}" text-anchor="middle">{across}</text>'
        f'<text x="{_MARGIN}" y="{_MARGIN - 12}">{up}</text>'
    )
    square = f'viewBox="0 0 {size} {size}" width="{size}" height="{size}"'
    return f'<svg {square} fill="none">{frame}{inner}{marks}{names}</svg>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + " L".join(f"{_x(x)} {_y(y)}" for x, y in points)


def _x(share: float) -> float:
    return round(_MARGIN + share * _SIDE, 1)


def _y(share: float) -> float:
    return round(_MARGIN + (1 - share) * _SIDE, 1)
