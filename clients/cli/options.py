"""Options that several verbs share."""

import re
from pathlib import Path
from typing import Literal

import click

from clients.cli.output import printable

Device = Literal["auto", "cpu", "cuda"]
PATH = click.Path(path_type=Path)

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class ByteCount(click.ParamType[int]):
    """A number of bytes, such as 500000000, 512M or 2G (1M = 2^20)."""

    name = "bytes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number; a usage error where it is none."""
        match = re.fullmatch(r"(\d+)([KMGT]?)(?:iB|B)?", str(value), re.IGNORECASE)
        if not match:
            self.fail(f"{value!r} is not a number of bytes, such as 500000000, 512M or 2G", param, ctx)
        return int(match[1]) * _UNITS[match[2].upper()]


class FileOf(click.ParamType[Path]):
    """A file to write; one whose name says that it holds something else is refused before any work."""

    name = "file"

    def __init__(self, what: str, *suffixes: str):
        self._what, self._suffixes = what, suffixes

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path; a usage error where it is a folder, or has a suffix of other files."""
        path = Path(str(value))
        if path.is_dir():
            self.fail(f"{printable(str(path))} is a folder; name a file in it", param, ctx)
        if path.suffix.lower() not in ("", *self._suffixes):
            better = printable(str(path.with_suffix(self._suffixes[0])))
            self.fail(f"{printable(str(path))} is not how {self._what} is named; say {better}", param, ctx)
        return path


HTML_PAGE = FileOf("an HTML page", ".html", ".htm")
PARQUET = FileOf("a Parquet file", ".parquet")
PNG = FileOf("a PNG image", ".png")

store_option = click.option(
    "--store",
    type=PATH,
    default="store",
    show_default=True,
    help="Directory of models, indexes and training runs; made where it does not exist.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, keys as below.")
progress_option = click.option(
    "--progress",
    "progress_style",
    type=click.Choice(["auto", "json"]),
    default="auto",
    show_default=True,
    help="How progress is told on stderr: auto for people; json for programs, lines of {stage, done, total}, and of "
    "{warning} as soon as training finds something wrong.",
)
SEED = click.IntRange(min=0, max=2**63 - 1)  # what random generators take, as run.seed of a recipe
labels_help = "CSV or Parquet: path, class_id and, optionally, split (train, rest, test, or query and gallery)."
index_labels_help = f"{labels_help} What is not train judges."
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto takes a GPU where one works.",
)

target_recall_option = click.option(
    "--target-recall",
    type=click.FloatRange(0, 1, min_open=True),
    help="recall@10 of searches that name none.  [that of the active version, or 0.99]",
)

memory_budget_option = click.option(
    "--memory-budget", type=ByteCount(), metavar="BYTES", help="Most memory that the served index may take, say 2G."
)

learn_memory_option = click.option(
    "--learn-memory", type=ByteCount(), metavar="BYTES", help="Most that training may allocate, say 8G."
)

server_option = click.option(
    "--server", default="127.0.0.1:50051", show_default=True, metavar="HOST:PORT", help="A running server."
)
