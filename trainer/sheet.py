"""A contact sheet to label images on: one HTML file that works without a network, and gives the labels as a table."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from torch import Tensor

from indexer.manifest import write_atomically
from trainer.report_pieces import text, thumbnail

_FOLDER = Path(__file__).parent
_CSS = (_FOLDER / "sheet.css").read_text(encoding="utf-8")
_SCRIPT = (_FOLDER / "sheet.js").read_text(encoding="utf-8")
# Only this very script runs, whatever an image's name may hold, and nothing is loaded.
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'"
_SIDE = 140  # of a thumbnail, pixels


@dataclass(frozen=True)
class Picture:
    """An image on a sheet.

    Attributes:
        path: as the table of labels names it.
        pixels: (S, S, 3) uint8, the whole image squashed to a square.
        aspect: width over height that it is shown at.
        why: for what reason it is there.
    """

    path: str
    pixels: Tensor
    aspect: float
    why: str


def write_sheet(file: Path, pictures: Sequence[Picture]) -> None:
    """Write a page with a thumbnail, the path, the reason and an empty field for the label of each image.

    Its button saves what was typed as a table `path,class_id`.

    Raises:
        OSError: the file can't be written; none appears.
    """
    rows = "".join(_row(number, picture) for number, picture in enumerate(pictures, start=1))
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Images to label</title><style>\n{_CSS}</style></head>\n"
        f"<body><h1>{len(pictures):,} images to label</h1>"
        "<p>Type what each shows, the same word for the same thing; leave empty what you can't tell. You may stop "
        "anywhere: those that help most come first. Save the labels, and give them to <code>kinsight finetune</code>."
        "</p><button>Save labels.csv</button>"
        '<table><thead><tr><th scope="col">#</th><th scope="col">Image</th><th scope="col">Label</th>'
        f'<th scope="col">Path, and why it is here</th></tr></thead><tbody>{rows}</tbody></table>'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )
    write_atomically(file, page.encode())


def _row(number: int, picture: Picture) -> str:
    shown = text(picture.path)
    return (
        f'<tr><td>{number}</td><td><img alt="image {number}: {shown}" '
        f'src="{thumbnail(picture.pixels, picture.aspect, _SIDE)}"></td>'
        f'<td><input aria-label="label of image {number}" data-path="{escape(picture.path)}"></td>'
        f'<td class="path">{shown}<br><small>{text(picture.why)}</small></td></tr>\n'
    )
