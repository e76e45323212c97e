"""`kinsight search --grid` where --images lacks some of the images."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from clients.cli.command import kinsight
from tests.serving import Gallery, Served, photo

Search = Callable[..., Result]


@pytest.fixture
def images(gallery: Gallery, tmp_path: Path) -> Path:
    """A folder with the first two images of the index: one whole, one damaged since."""
    folder = tmp_path / "images"
    for item, data in zip(gallery.items, (photo(0), b"text"), strict=False):
        (folder / item).parent.mkdir(parents=True, exist_ok=True)
        (folder / item).write_bytes(data)
    return folder


@pytest.fixture
def search(served: Served, tmp_path: Path, images: Path) -> Search:
    def run(*words: object, images: Path = images) -> Result:
        drawn = ["--grid", tmp_path / "grid.png", "--images", images]
        return CliRunner().invoke(kinsight, [*map(str, ["search", *words, "--server", served.target, *drawn])])

    return run


def test_images_that_the_folder_lacks_are_told_with_where_and_what_to_do(
    search: Search, gallery: Gallery, tmp_path: Path
) -> None:
    """How many, the first of them, and the folder; the hits are printed, the grid is written, the exit code is 0."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes(photo(1))
    result = search(f"item:{gallery.items[0]}", "--top-k", 24, images=tmp_path / "other")
    assert (result.exit_code, gallery.items[7] in result.stdout) == (0, True)
    assert re.fullmatch(
        rf"warning: {tmp_path / 'other'} lacks 24 of the grid's images, whose cells are empty: "
        rf"{gallery.items[0]}, \S+ \S+\.png, \S+ \S+\.png, …; "
        r"give --images the IMAGES that the index was built from\n",
        result.stderr,
    )
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 24 * 112


def test_each_missing_image_counts_once_and_json_lists_them(search: Search, gallery: Gallery, tmp_path: Path) -> None:
    """However many queries found it; what can't be decoded is told as such, and stdout is one object."""
    (tmp_path / "query.png").write_bytes(photo(0))
    queries = [tmp_path / "query.png", *(f"item:{item}" for item in gallery.items[:2])]
    result = search(*queries, "--top-k", 24, "--json")
    found: dict[str, Any] = json.loads(result.stdout)
    assert sorted(found["missing_images"]) == sorted(gallery.items[2:])
    told, damaged = result.stderr.splitlines()
    assert "lacks 22 of the grid's images" in told
    assert damaged.startswith("warning: 1 of the grid's images can't be decoded, and their cells are empty: ")
    assert f": {gallery.items[1]} (" in damaged
    assert result.exit_code == 0


def test_a_grid_that_has_all_images_says_nothing(search: Search, gallery: Gallery) -> None:
    """And JSON has an empty list; a query that fails needs no image."""
    result = search("item:nobody", f"item:{gallery.items[0]}", "--top-k", 1, "--json")
    assert json.loads(result.stdout)["missing_images"] == []
    assert [line.partition(": ITEM_")[0] for line in result.stderr.splitlines()] == ["error: item:nobody"]
    assert result.exit_code == 1
