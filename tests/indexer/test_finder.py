"""Which image of a collection the path in a table of labels means."""

import os
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.finder import Finder
from indexer.sources import Collection, open_collection


def _meant(collection: Collection, table: Path, cells: list[str]) -> list[set[str]]:
    """The images that each path may mean, by asking the system of all: those that lie at one place are one."""
    lying = defaultdict[str, set[str]](set)
    for source in collection.sources:
        lying[os.path.realpath(source.path)].add(source.item)
    wanted = ([os.path.realpath(folder / cell) for folder in (collection.root, table.parent)] for cell in cells)
    return [next((lying[place] for place in places if place in lying), set()) for places in wanted]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images in folders, links to some of them, a link to a folder, and links in a circle."""
    for number, name in enumerate(["a.png", "b.png", "in/c.png", "in/deep/d.png", "other/a.png"]):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2, 3), number, np.uint8)).save(path)
    (tmp_path / "photos/in/link.png").symlink_to("../b.png")
    (tmp_path / "photos/x.png").symlink_to("y.png")
    (tmp_path / "photos/y.png").symlink_to("x.png")
    (tmp_path / "photos/in/up").symlink_to("../other")
    (tmp_path / "linked").symlink_to("photos/in")
    return tmp_path


@pytest.mark.parametrize("relative", [False, True])
def test_a_path_means_what_the_system_finds_there(
    folder: Path, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever dots, slashes and links it goes by, from the collection, from the table's folder, or absolute."""
    monkeypatch.chdir(folder / "linked")
    root = Path("../../photos") if relative else folder / "photos"  # by the target of the folder that we are in
    monkeypatch.chdir(folder / "photos" / "in")
    collection, table = open_collection(root), folder / "tables.csv"
    parts = ["photos", "linked", "in", "deep", "other", "up", "..", ".", "", "x.png", "y.png", "link.png"]
    parts += ["a.png", "b.png", "c.png", "d.png"]
    draw = random.Random(7)
    cells = ["/".join(draw.choices(parts, k=draw.randint(1, 5))) for _ in range(5000)]
    cells += ["in/deep/d.png", *(f"{folder}/{cell}" for cell in cells)]
    find = Finder(collection, table)
    found = [find(cell) for cell in cells]
    assert len(set(found)) == len(collection.sources) + 1
    for cell, item, meant in zip(cells, found, _meant(collection, table, cells), strict=True):
        assert item in meant if meant else item is None, cell


def test_an_image_and_a_link_to_it_are_told_apart(folder: Path) -> None:
    """A path means the one that lies there, of a link the link: both may be labelled."""
    find = Finder(open_collection(folder / "photos"), folder / "tables.csv")
    assert (find("b.png"), find("in/link.png"), find(f"{folder}/photos/b.png")) == ("b.png", "in/link.png", "b.png")
