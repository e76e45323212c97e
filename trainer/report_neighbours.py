"""The report's section of neighbours: queries with what is nearest to them before and after training, as pictures."""

from trainer import report_cases as cases
from trainer.report_cases import Comparison, Found, Shown
from trainer.report_pieces import shortened, text, thumbnail

_CASES = 5  # of a kind
_CONFUSIONS = 10  # pairs of classes in the table
_SIDE, _SMALL_SIDE = 86, 40  # of a thumbnail, and of one in a table, pixels
_PATH_LENGTH = 36  # of an item under a query, characters


def neighbours(shown: Shown, comparison: Comparison, origin: str) -> str:
    """The section of neighbours before and after training.

    Args:
        shown: the images.
        comparison: of their neighbours, by both encoders.
        origin: HTML, what is compared with: what the run started from.
    """
    groups = {"Drawn at random": cases.drawn(comparison, _CASES)}
    legend = f"Each query with its nearest images by {origin} and by the model that came of it, and their similarity."
    if shown.classes is not None:
        legend += " Green with ✓: of the query's class; red with ✗: of another."
        groups = {
            "Put right by training": cases.mended(comparison, shown.classes, _CASES),
            "The surest mistakes": cases.mistaken(comparison, shown.classes, _CASES),
            **groups,
        }
    told = "".join(
        f"<h3>{title}</h3>{''.join(_case(shown, comparison, place) for place in places) or '<p>None.</p>'}"
        for title, places in groups.items()
    )
    return f'<h2>Neighbours</h2><p class="note">{legend}</p>{_confused(shown, comparison)}{told}'


def _case(shown: Shown, comparison: Comparison, place: int) -> str:
    row = int(comparison.queries[place])
    item = shown.items[row]
    query = (
        f'<figure class="query" title="{_named(shown, row)}">{_picture(shown, row, f"query {item}")}'
        f"<figcaption>{_class_of(shown, row)}{text(shortened(item, _PATH_LENGTH))}</figcaption></figure>"
    )
    found = _ranked(shown, "before", comparison.before, place) + _ranked(shown, "trained", comparison.trained, place)
    return f'<div class="scroll"><div class="case">{query}<div>{found}</div></div></div>'


def _ranked(shown: Shown, name: str, found: Found, place: int) -> str:
    neighbours = "".join(_neighbour(shown, found, place, rank) for rank in range(found.rows.shape[1]))
    return f"<h4>{name}</h4><ol>{neighbours}</ol>"


def _neighbour(shown: Shown, found: Found, place: int, rank: int) -> str:
    query, row = int(found.queries[place]), int(found.rows[place, rank])
    similarity = float(found.similarity[place, rank])
    kind, mark, told = "", "", ""
    if shown.classes is not None:
        right = shown.classes[row] == shown.classes[query]
        kind, mark, told = ("right", "✓ ", ", same class") if right else ("wrong", "✗ ", ", another class")
    alt = f"neighbour {rank + 1} of {shown.items[query]}: {shown.items[row]}{told}, similarity {similarity:.2f}"
    return (
        f'<li><figure class="{kind}" title="{_named(shown, row)}">{_picture(shown, row, alt)}'
        f"<figcaption><b>{mark}</b>{similarity:.2f}</figcaption></figure></li>"
    )


def _picture(shown: Shown, row: int, alt: str) -> str:
    uri = thumbnail(shown.pixels[row], float(shown.aspect[row]), _SIDE)
    return f'<div class="picture"><img src="{uri}" alt="{text(alt)}"></div>'


def _named(shown: Shown, row: int) -> str:
    if shown.classes is None:
        return text(shown.items[row])
    return text(f"{shown.items[row]}, class {shown.class_names[int(shown.classes[row])]}")


def _class_of(shown: Shown, row: int) -> str:
    return "" if shown.classes is None else f"<b>{text(shown.class_names[int(shown.classes[row])])}</b><br>"


def _confused(shown: Shown, comparison: Comparison) -> str:
    if shown.classes is None:
        return ""
    rows = "".join(
        f"<tr>{_example(shown, pair.of_class, pair.query)}{_example(shown, pair.taken_for, pair.neighbour)}"
        f"<td>{pair.queries:,}</td></tr>"
        for pair in cases.confusions(comparison, shown.classes, _CONFUSIONS)
    )
    head = '<tr><th class="word">class</th><th class="word">taken for</th><th>queries</th></tr>'
    table = f'<div class="scroll"><table class="confused">{head}{rows}</table></div>'
    return f"<h3>Most often confused, each with its most similar pair</h3>{table}" if rows else ""


def _example(shown: Shown, of_class: int, row: int) -> str:
    uri = thumbnail(shown.pixels[row], float(shown.aspect[row]), _SMALL_SIDE)
    name = text(shown.class_names[of_class])
    return f'<td class="word" title="{_named(shown, row)}"><img src="{uri}" alt="of class {name}">{name}</td>'
