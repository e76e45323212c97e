"""A picture of queries and their neighbours: one row a query, similarity under each neighbour."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from indexer import pixels
from indexer.manifest import write_atomically
from indexer.sources import Source

CELL = 112  # side of a thumbnail, pixels
GAP = 10
FRAME = 3
CAPTION = 18  # height of the line under a thumbnail
QUERY_GAP = 24  # sets the query apart from its neighbours
STEP, HEIGHT = CELL + GAP, CELL + CAPTION + GAP  # from one cell to the next

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


def draw_grid(rows: Sequence[tuple[Cell, Sequence[Cell]]], file: Path) -> list[tuple[str, str]]:
    """Write a PNG with one row for each query, the query first, then its neighbours, nearest first.

    Returns:
        The items whose images can't be decoded, each once, with the reason.

    Raises:
        OSError: the file can't be written; what it was stays.
    """
    longest = max(len(neighbours) for _, neighbours in rows)
    canvas = Image.new("RGB", (GAP + STEP * (longest + 1) + QUERY_GAP, GAP + HEIGHT * len(rows)), PAPER)
    undecodable: dict[str, str] = {}
    for cell, left, top in _placed(rows):
        thumbnail = None
        if cell.image is not None:
            try:
                thumbnail = _thumbnail(cell.image)
            except pixels.PixelsError as error:
                undecodable[cell.image.item] = str(error)
        _draw_cell(canvas, cell, thumbnail, left, top)
    encoded = io.BytesIO()
    canvas.save(encoded, format="PNG")
    write_atomically(file, encoded.getvalue())
    return list(undecodable.items())


def _placed(rows: Sequence[tuple[Cell, Sequence[Cell]]]) -> Iterator[tuple[Cell, int, int]]:
    """Each cell with the left and the top of its thumbnail."""
    for i, (query, neighbours) in enumerate(rows):
        top = GAP + i * HEIGHT
        yield query, GAP, top
        for j, neighbour in enumerate(neighbours, start=1):
            yield neighbour, GAP + QUERY_GAP + j * STEP, top


def _draw_cell(canvas: Image.Image, cell: Cell, thumbnail: Image.Image | None, left: int, top: int) -> None:
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    if thumbnail is None:
        draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline=INK)
        draw.text((left + CELL / 2, top + CELL / 2), "no image", INK, font, anchor="mm")
    else:
        canvas.paste(thumbnail, (left + (CELL - thumbnail.width) // 2, top + (CELL - thumbnail.height) // 2))
    if cell.correct is not None:
        box = (left - FRAME, top - FRAME, left + CELL - 1 + FRAME, top + CELL - 1 + FRAME)
        draw.rectangle(box, outline=RIGHT if cell.correct else WRONG, width=FRAME)
    draw.text((left + CELL / 2, top + CELL + CAPTION / 2), cell.caption, INK, font, anchor="mm")


def _thumbnail(image: Source) -> Image.Image:
    square, aspect = pixels.decode_with_aspect(image.read(), pixels.PixelSpec(size=CELL))
    width, height = (CELL, round(CELL / aspect)) if aspect > 1 else (round(CELL * aspect), CELL)
    return Image.fromarray(square).resize((max(1, width), max(1, height)), Image.Resampling.BICUBIC)
