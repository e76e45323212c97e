"""A picture of queries and their neighbours: one row a query, similarity under each neighbour."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from indexer import pixels
from indexer.sources import Source

CELL = 112  # side of a thumbnail, pixels
GAP = 10
FRAME = 3
CAPTION = 18  # height of the line under a thumbnail
QUERY_GAP = 24  # sets the query apart from its neighbours

INK, PAPER, RIGHT, WRONG = "#202020", "white", "#1a9850", "#d73027"


@dataclass(frozen=True)
class Cell:
    """One thumbnail.

    Attributes:
        image: None, or one that can't be decoded, draws an empty cell that says so.
        caption: the line under it.
        correct: True frames it green, False red, None not at all.
    """

    image: Source | None
    caption: str
    correct: bool | None = None


def draw_grid(rows: Sequence[tuple[Cell, Sequence[Cell]]], file: Path) -> None:
    """Write a PNG with one row for each query, the query first, then its neighbours, nearest first.

    Raises:
        OSError: the file can't be written.
    """
    longest = max(len(neighbours) for _, neighbours in rows)
    step, height = CELL + GAP, CELL + CAPTION + GAP
    canvas = Image.new("RGB", (GAP + step * (longest + 1) + QUERY_GAP, GAP + height * len(rows)), PAPER)
    for i, (query, neighbours) in enumerate(rows):
        top = GAP + i * height
        _draw_cell(canvas, query, GAP, top)
        for j, neighbour in enumerate(neighbours, start=1):
            _draw_cell(canvas, neighbour, GAP + QUERY_GAP + j * step, top)
    canvas.save(file, format="PNG")


def _draw_cell(canvas: Image.Image, cell: Cell, left: int, top: int) -> None:
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    thumbnail = _thumbnail(cell.image)
    if thumbnail is None:
        draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline=INK)
        draw.text((left + CELL / 2, top + CELL / 2), "no image", INK, font, anchor="mm")
    else:
        canvas.paste(thumbnail, (left + (CELL - thumbnail.width) // 2, top + (CELL - thumbnail.height) // 2))
    if cell.correct is not None:
        box = (left - FRAME, top - FRAME, left + CELL - 1 + FRAME, top + CELL - 1 + FRAME)
        draw.rectangle(box, outline=RIGHT if cell.correct else WRONG, width=FRAME)
    draw.text((left + CELL / 2, top + CELL + CAPTION / 2), cell.caption, INK, font, anchor="mm")


def _thumbnail(image: Source | None) -> Image.Image | None:
    if image is None:
        return None
    try:
        square, aspect = pixels.decode_with_aspect(image.read(), pixels.PixelSpec(size=CELL))
    except pixels.PixelsError:
        return None
    width, height = (CELL, round(CELL / aspect)) if aspect > 1 else (round(CELL * aspect), CELL)
    return Image.fromarray(square).resize((max(1, width), max(1, height)), Image.Resampling.BICUBIC)
