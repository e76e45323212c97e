"""The reliability plot of a calibration: an HTML page with SVG drawings, which needs nothing else to be looked at."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from indexer.calibration import Calibration, Fitted
    from indexer.reliability import Bin

_SIDE, _MARGIN = 340, 46  # pixels of a drawing's square, and around it
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>How far to trust model {model}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }}
.plots {{ display: flex; flex-wrap: wrap; gap: 2rem 1rem }} figure {{ margin: 0; width: 432px }}
h2 {{ font-size: 17px }}
figcaption {{ font-size: 14px; color: #57606a }} text {{ font-size: 12px; fill: #57606a }}
</style>
<h1>How far to trust the probabilities of this model</h1>
<p>Kinsight compared {images:,} labelled pictures{of_classes}: {same:,} pairs that show the same thing,
{different:,} that do not. From these it learned how often two pictures of a given similarity show the same thing.
The first {checks} how well that holds for things that it had not seen when it learned it{among}.</p>
<p>{holds}</p>
<div class="plots">{plots}</div>
<p>Model {model}, fitted by {method} regression.</p>
</html>
"""


def write_report(path: Path, model: str, fitted: "Fitted") -> None:
    """Write the page; raises OSError."""
    from indexer.manifest import write_atomically

    calibration = fitted.calibration
    plots = [_checked("Any two pictures", "all pairs of pictures", fitted.pairs, calibration.ece_pairs)]
    if calibration.ece_hits is not None:
        shown = "what a search for each picture shows first, its 10 nearest"
        plots.append(_checked("What a search finds", shown, fitted.hits, calibration.ece_hits))
    curve = (
        "To read a similarity, go from its number at the bottom up to the line, then left to the probability that "
        "the two pictures show the same thing. Kinsight does this for you when you search by probability."
    )
    plots.append(_figure("What a similarity means", _curve(calibration), curve))
    page = _PAGE.format(
        model=escape(model),
        method=calibration.method,
        images=calibration.images,
        of_classes=f" of {calibration.classes:,} different things" if calibration.classes else "",
        same=calibration.same,
        different=calibration.different,
        checks="two drawings show" if len(plots) > 2 else "drawing shows",
        among=f", among {calibration.classes:,} different things"
        if calibration.things != calibration.classes
        else "",
        holds=escape(holds_for(calibration)),
        plots="".join(plots),
    )
    write_atomically(path, page.encode())


def holds_for(calibration: "Calibration") -> str:
    """For which collections the probabilities hold, and which way they are wrong for others."""
    hold = "as many different things as the labelled images show"
    if calibration.things:
        like = ", like the labelled images" if calibration.things == calibration.classes else ""
        hold = f"{calibration.things:,} different things{like}"
    return (
        f"The probabilities hold for collections with about {hold}. Where there are many more, there are also more "
        f"look-alikes, and the probabilities promise too much; where there are far fewer, too little."
        f"{' Tell --things how many there are.' if calibration.classes else ''}"
    )


def _checked(heading: str, what: str, bins: Sequence["Bin"], error: float) -> str:
    caption = (
        f"Each dot is a fifteenth of {what}. Across: the probability that Kinsight gave. Up: how many really show "
        f"the same thing. On the dashed line it was exactly right, below it too sure, above it not sure enough. On "
        f"average it was {100 * error:.1f} percentage points off (an expected calibration error of {error:.3f})."
    )
    return _figure(heading, _reliability(bins), caption)


def _figure(heading: str, drawing: str, caption: str) -> str:
    return f"<figure><h2>{escape(heading)}</h2>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _reliability(bins: Sequence["Bin"]) -> str:
    line = f'<path d="{_path([(0, 0), (1, 1)])}" stroke="#8c959f" stroke-dasharray="4 4"/>'
    dots = "".join(
        f'<circle cx="{_x(one.predicted)}" cy="{_y(one.observed)}" r="5" fill="#0969da" fill-opacity=".75"/>'
        for one in bins
    )
    return _axes("probability that was given", "how many show the same thing", _TICKS, line + dots)


def _curve(calibration: "Calibration") -> str:
    places = [i / 200 for i in range(201)]
    points = [(place, float(calibration.probability(2 * place - 1))) for place in places]
    line = f'<path d="{_path(points)}" stroke="#0969da" stroke-width="2"/>'
    return _axes("similarity", "probability that it is the same thing", tuple(2 * tick - 1 for tick in _TICKS), line)


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
