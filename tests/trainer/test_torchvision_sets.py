"""Sets that torchvision knows by name, read by its own loaders from tiny copies in its own layout."""

import csv
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat  # type: ignore[import-untyped]
from torchvision.datasets import Flowers102
from torchvision.datasets.utils import calculate_md5

from indexer.pixels import PixelSpec
from indexer.sources import decode_all, open_collection
from trainer.labels import read_labels
from trainer.torchvision_sets import DataSetError, image_table, named_set

_LABEL_FILES = {part: Flowers102._file_dict[part] for part in ("label", "setid")}


def silent(stage: str, done: int, total: int) -> None:
    """No progress shown."""


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every download goes to a port where nobody listens."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "")


def _photo(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _pets(root: Path) -> None:
    """Four breeds of two images each, as `torchvision.datasets.OxfordIIITPet` keeps them."""
    base = root / "oxford-iiit-pet"
    lines: dict[str, list[str]] = {"trainval": [], "test": []}
    for number in range(8):
        name = f"Breed_{number // 2}_{number}"
        _photo(base / "images" / f"{name}.jpg", number)
        lines["test" if number % 2 else "trainval"].append(f"{name} {number // 2 + 1} 1 1")
    (base / "annotations").mkdir()
    for part, rows in lines.items():
        (base / "annotations" / f"{part}.txt").write_text("\n".join(rows) + "\n")


def _flowers(root: Path) -> Path:
    """Four classes of three images each, as `torchvision.datasets.Flowers102` keeps them."""
    base = root / "flowers-102"
    for number in range(1, 13):
        _photo(base / "jpg" / f"image_{number:05d}.jpg", number)
    savemat(base / "imagelabels.mat", {"labels": [(number - 1) // 3 + 1 for number in range(1, 13)]})
    savemat(base / "setid.mat", {"trnid": [1, 4, 7, 10], "valid": [2, 5, 8, 11], "tstid": [3, 6, 9, 12]})
    return root


def _mnist(root: Path) -> np.ndarray:
    """Ten images of ten digits in `torchvision.datasets.MNIST`'s files, half of them its test set."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    for part, rows in (("train", slice(0, 5)), ("t10k", slice(5, 10))):
        pixels, labels = images[rows], np.arange(10, dtype=np.uint8)[rows]
        header = struct.pack(">iiii", 2051, *pixels.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, 5) + labels.tobytes())
    return images


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_set_of_files_becomes_a_table_of_them(tmp_path: Path) -> None:
    """All parts of the set are listed where they lie; its first classes are to learn from, the others to judge on."""
    _pets(tmp_path / "OxfordIIITPet")
    table = image_table("OxfordIIITPet", tmp_path, silent)
    collection = open_collection(table)
    labels = read_labels(table, collection)
    assert table == tmp_path / "OxfordIIITPet" / "images.csv"
    assert collection.sources[0].item == "oxford-iiit-pet/images/Breed_0_0.jpg"
    assert [decoded.error for decoded in decode_all(collection.sources, PixelSpec(size=8))] == [None] * 8
    split_of = {row["class_id"]: row["split"] for row in _rows(table)}
    assert split_of == {"0": "train", "1": "train", "2": "test", "3": "test"}
    assert len(labels.training(collection.sources)) == len(labels.judging(collection.sources)) == 4


def test_a_set_may_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ?root= the set is read where it is, nothing is written there, and all of its parts are in the table."""
    root = _flowers(tmp_path / "shared")
    tiny = {part: (file, calculate_md5(root / "flowers-102" / file)) for part, (file, _) in _LABEL_FILES.items()}
    monkeypatch.setattr(Flowers102, "_file_dict", Flowers102._file_dict | tiny)  # it knows the real files' digests
    before = sorted(root.rglob("*"))
    table = image_table(f"Flowers102?root={root}", tmp_path / "store", silent)
    assert sorted(root.rglob("*")) == before
    assert sorted(row["path"] for row in _rows(table)) == sorted(map(str, root.rglob("*.jpg")))
    assert [row["split"] for row in _rows(table)].count("train") == 6
    assert len(open_collection(table).sources) == 12


def test_a_set_of_arrays_becomes_png_files_once(tmp_path: Path) -> None:
    """Each array is a PNG of the very same pixels; the next call writes none, one after an interruption does."""
    images = _mnist(tmp_path / "MNIST")
    unfinished = tmp_path / "MNIST" / "png.partial"
    unfinished.mkdir()
    (unfinished / "0-000000.png").write_bytes(b"half a fi")
    table = image_table("MNIST", tmp_path, silent)
    written = {row["path"]: (table.parent / row["path"]).stat().st_mtime_ns for row in _rows(table)}
    assert [np.asarray(Image.open(table.parent / path)).tolist() for path in written] == images.tolist()
    assert [row["class_id"] for row in _rows(table)] == [str(digit) for digit in range(10)]
    image_table("MNIST", tmp_path, silent)
    assert {path: (table.parent / path).stat().st_mtime_ns for path in written} == written


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["Flowers102", "CIFAR10", "StanfordCars", "MNIST"])
def test_without_a_network_the_place_for_the_set_is_named(name: str, tmp_path: Path) -> None:
    """A set that is not there and can't be downloaded is an error with its name, its place and the remedy."""
    with pytest.raises(DataSetError) as caught:
        image_table(name, tmp_path, silent)
    message = str(caught.value)
    assert f"torchvision:{name} is not whole in {tmp_path / name}" in message
    assert "can't be downloaded" in message
    assert "put it there by hand" in message


@pytest.mark.parametrize("name", ["Flowers", "Flowers102?dir=x", "Flowers102?root=", ""])
def test_an_unknown_set_or_option_is_named(name: str, tmp_path: Path) -> None:
    """A name or an option that does not exist is refused before anything is made."""
    with pytest.raises(DataSetError, match="Flowers102"):
        image_table(name, tmp_path, silent)
    assert list(tmp_path.iterdir()) == []


def test_own_labels_come_before_a_set_s(tmp_path: Path) -> None:
    """The set's table judges unless other labels are given; what is no set of torchvision stays as it is."""
    _pets(tmp_path / "OxfordIIITPet")
    table, own = tmp_path / "OxfordIIITPet" / "images.csv", tmp_path / "own.csv"
    assert named_set(Path("torchvision:OxfordIIITPet"), None, tmp_path, silent) == (table, table)
    assert named_set(Path("torchvision:OxfordIIITPet"), own, tmp_path, silent) == (table, own)
    assert named_set(Path("photos"), None, tmp_path, silent) == (Path("photos"), None)
