"""The command on archives, on copies, and on public sets by name."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from clients.cli.command import kinsight
from clients.cli.grid import Cell, draw_grid
from indexer.sources import open_collection
from indexer.store import Store


def test_an_archive_is_indexed_and_its_copies_and_damage_told(photos: Path, store: Store, tiny_model: str) -> None:
    """Items are named by archive and member; copies and what was cut off are told on stderr, copies in JSON too."""
    shutil.copy(photos / "street" / "00.png", photos / "street" / "copy.png")
    shards = photos.parent / "shards"
    shards.mkdir()
    with tarfile.open(shards / "a.tar", "w") as tar:
        tar.add(photos, ".")
    with tarfile.open(shards / "b.tar", "w") as tar:
        tar.add(photos / "garden" / "01.jpg", "01.jpg")
    with tarfile.open(shards / "b.tar") as tar:
        begin = tar.getmember("01.jpg").offset_data
    (shards / "b.tar").write_bytes((shards / "b.tar").read_bytes()[: begin + 300])
    words = ["index", "build", "x", str(shards), "--model", tiny_model, "--store", str(store.root), "--json"]
    result = CliRunner().invoke(kinsight, words, catch_exceptions=False)
    found = json.loads(result.stdout)
    assert (result.exit_code, found["count"]) == (0, 61)
    assert [entry["item"] for entry in found["skipped"]] == ["b.tar/01.jpg"]
    assert found["duplicates"] == {"copies": 1, "groups": [["a.tar/street/00.png", "a.tar/street/copy.png"]]}
    assert (
        "1 image is a byte for byte copy of another: a.tar/street/copy.png = a.tar/street/00.png\n" in result.stderr
    )
    assert "warning: " in result.stderr
    assert "b.tar is cut off after '01.jpg'" in result.stderr


def test_a_grid_shows_images_of_an_archive(tmp_path: Path) -> None:
    """A thumbnail of an image in a tar shard is the image."""
    Image.new("RGB", (50, 50), "blue").save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
    (source,) = open_collection(tmp_path / "s.tar").sources
    draw_grid([(Cell(source, "query"), [Cell(source, "0.9")])], tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        blue = grid.convert("RGB").histogram()[2 * 256 + 255] - grid.convert("RGB").histogram()[255]
    assert blue > 2 * 100 * 100


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("torchvision:Flowers", "torchvision:Flowers is not one of the sets known here: CIFAR10, "),
        ("torchvision:Flowers102", "put it there by hand"),
        ("shard-{0..2}.tar", "3 of the 3 archives of shard-{0..2}.tar do not exist"),
    ],
)
def test_data_that_can_not_be_had_is_one_line(
    images: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set that does not exist or can't be downloaded, and shards that are not there, end with 1 and the remedy."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(kinsight, ["train", images, "--device", "cpu"])
    last = result.stderr.splitlines()[-1]
    assert result.exit_code == 1
    assert last.startswith("error: ")
    assert message in last
