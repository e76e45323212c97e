import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.pixels import PixelSpec, decode
from indexer.sources import Collection, SourceError, open_collection
from trainer.images import cache_images
from trainer.labels import LabelsError, read_labels

SPEC = PixelSpec(size=16)


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "sub/c.png"):
        Image.fromarray(rng.integers(0, 256, (20, 40, 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"not an image")
    return open_collection(folder)


def silent(stage: str, done: int, total: int) -> None:
    """No progress shown."""


def test_the_cache_holds_what_the_preprocessing_makes(collection: Collection, tmp_path: Path) -> None:
    """Each row equals decode() of its file; the damaged image is named and has no row."""
    cache = cache_images(collection.sources, SPEC, tmp_path / "c.u8", silent, "decode")
    assert cache.items == ("a.png", "b.png", "sub/c.png")
    assert [item for item, _ in cache.skipped] == ["broken.jpg"]
    assert cache.aspect.tolist() == [2.0, 2.0, 2.0]
    for row, item in enumerate(cache.items):
        assert np.array_equal(cache.pixels[row].numpy(), decode((collection.root / item).read_bytes(), SPEC))


def test_a_complete_cache_is_reopened_and_a_changed_one_is_not(collection: Collection, tmp_path: Path) -> None:
    """The same files are not decoded twice; a changed file is."""
    file = tmp_path / "c.u8"
    first = cache_images(collection.sources, SPEC, file, silent, "decode")
    written = file.stat().st_mtime_ns
    cache_images(collection.sources, SPEC, file, silent, "decode")
    assert file.stat().st_mtime_ns == written
    Image.new("RGB", (9, 9), "red").save(collection.root / "a.png")
    again = cache_images(collection.sources, SPEC, file, silent, "decode")
    assert again.pixels[0, 0, 0].tolist() == [255, 0, 0]
    assert first.items == again.items


@pytest.mark.parametrize("name", ["c.u8", "c.json"])
@pytest.mark.parametrize("kept_bytes", [None, 100], ids=["gone", "cut"])
def test_a_cache_that_is_not_whole_is_decoded_again(
    name: str, kept_bytes: int | None, collection: Collection, tmp_path: Path
) -> None:
    """Pixels or receipt removed or cut short, by a crash say, never become black images or an error."""
    first = cache_images(collection.sources, SPEC, tmp_path / "c.u8", silent, "decode").pixels.numpy().copy()
    if kept_bytes is None:
        (tmp_path / name).unlink()
    else:
        os.truncate(tmp_path / name, kept_bytes)

    again = cache_images(collection.sources, SPEC, tmp_path / "c.u8", silent, "decode")

    assert np.array_equal(again.pixels.numpy(), first)


def labels_file(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "labels.csv"
    file.write_text(text)
    return file


def test_labels_split_a_collection(collection: Collection, tmp_path: Path) -> None:
    """Training takes all but the test split; judging takes the test split alone; names become numbers."""
    table = labels_file(tmp_path, "path,class_id,split\na.png,cat,train\nb.png,dog,test\nphotos/sub/c.png,cat,test\n")
    labels = read_labels(table, collection)
    assert labels.class_of == {"a.png": 0, "b.png": 1, "sub/c.png": 0}
    assert [s.item for s in labels.training(collection.sources)] == ["a.png", "broken.jpg"]
    assert [s.item for s in labels.judging(collection.sources)] == ["b.png", "sub/c.png"]


def test_without_a_split_all_are_learned_from_and_judged(collection: Collection, tmp_path: Path) -> None:
    """A table of path and class_id alone judges on every labelled image."""
    labels = read_labels(labels_file(tmp_path, "path,class_id\na.png,1\nb.png,1\n"), collection)
    assert len(labels.training(collection.sources)) == 4
    assert [s.item for s in labels.judging(collection.sources)] == ["a.png", "b.png"]


def test_two_links_to_one_file_keep_their_own_labels(tmp_path: Path) -> None:
    """A path of the table is the image at that place, and only then the one that links lead to from there."""
    for name in ("a.png", "b.png"):
        (tmp_path / "photos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / name).symlink_to(tmp_path / "gone.png")
    (tmp_path / "other").symlink_to(tmp_path / "photos")
    collection = open_collection(tmp_path / "photos")
    labels = read_labels(labels_file(tmp_path, "path,class_id\na.png,cat\nb.png,dog\n"), collection)
    assert labels.class_of == {"a.png": 0, "b.png": 1}
    (tmp_path / "photos" / "b.png").unlink()
    collection = open_collection(tmp_path / "photos")
    for elsewhere in ("other/a.png", "other/../photos/a.png", "gone.png"):
        table = labels_file(tmp_path, f"path,class_id\n{elsewhere},cat\n")
        assert read_labels(table, collection).class_of == {"a.png": 0}


def test_links_in_a_circle_are_labels_of_no_image_and_spoil_no_others(collection: Collection, tmp_path: Path) -> None:
    """Where a folder holds such links, labels of its images are found, and paths that are not there still named."""
    for name, target in (("x.png", "y.png"), ("y.png", "x.png")):
        (collection.root / name).symlink_to(target)
    collection = open_collection(collection.root)
    table = labels_file(tmp_path, f"path,class_id\na.png,1\ngone.png,1\nsub/../x.png,1\n{tmp_path}/y.png,1\n")
    labels = read_labels(table, collection)
    assert labels.class_of == {"a.png": 0, "x.png": 0}
    assert [*labels.unknown] == ["gone.png", f"{tmp_path}/y.png"]


def test_rows_without_a_class_are_of_no_class(collection: Collection, tmp_path: Path) -> None:
    """Two images that nobody has labelled yet are not of one class: they are learned from, not judged on."""
    table = labels_file(tmp_path, "path,class_id\na.png,1\nb.png,\nsub/c.png, \n")
    labels = read_labels(table, collection)
    assert labels.class_of == {"a.png": 0}
    assert [source.item for source in labels.judging(collection.sources)] == ["a.png"]
    assert len(labels.training(collection.sources)) == 4
    assert labels.warnings == (f"{table}: 2 rows have no class_id: their images count as unlabelled",)


def test_unknown_paths_are_named_and_the_rest_goes_on(collection: Collection, tmp_path: Path) -> None:
    """Rows about other images don't spoil the known ones."""
    labels = read_labels(labels_file(tmp_path, "path,class_id\na.png,1\ngone.png,1\n"), collection)
    assert labels.unknown == {"gone.png": ""}
    assert labels.missing == ("gone.png",)


def test_unknown_paths_of_the_training_split_are_not_missing(collection: Collection, tmp_path: Path) -> None:
    """A table of a larger set names images to learn from that nobody judges on; only the others are missing."""
    rows = "a.png,1,test\nb.png,1,test\nfar.png,1,train\ngone.png,1,test\n"
    labels = read_labels(labels_file(tmp_path, f"path,class_id,split\n{rows}"), collection)
    assert labels.unknown == {"far.png": "train", "gone.png": "test"}
    assert labels.missing == ("gone.png",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,klass\na.png,1\n", "has no column class_id; its columns are: path, klass"),
        (
            "path,class_id\nx.png,1\n",
            "none of its 1 paths is in .* 'x.png'; give paths relative to .* absolute ones$",
        ),
        ("path,class_id\nsub\\c.png,1\n", r"absolute ones, with / between folders, not \\$"),
        ("path,class_id\na.png,1\na.png,2\n", r"line 3: 'a\.png' has two classes, '1' and '2'; an"),
        ('path,class_id\n\na.png,1\n,\n"x\ny",1\na.png,2\n', r"line 7: 'a\.png' has two classes"),
        ("path,class_id,split\n\na.png,1,valid\n", "line 3: split is 'valid'"),
        (
            "path,class_id,split\na.png,1,train\n,,\n\na.png,1,test\n",
            r"line 5: 'a\.png' has two splits, 'train' and 'test'; an",
        ),
        (
            "path,class_id,split\na.png,1,valid\n",
            "split is 'valid'; it must be one of train, rest, test, query, gallery",
        ),
        ("path,class_id,split\na.png,1,train\na.png,1,test\n", r"line 3: 'a\.png' has two splits"),
        ("path,class_id,split\na.png,1,train\n", "train alone is nothing to judge on; use split test"),
        ("path,class_id,split\na.png,1,rest\nb.png,2,train\n", "rest and train alone is nothing to judge on"),
        ("path,class_id,split\na.png,1,query\n", "query alone is nothing to judge on; .* or query and gallery"),
        ("path,class_id,split\na.png,1,gallery\nb.png,1,test\n", "gallery and test alone is nothing to judge on"),
        ("path,class_id\na.png,\nb.png,\n", "none of its 2 rows has a class_id; write a class into some"),
        ("path,class_id\na.png\n", "line 2: it has 1 cells, and the header 2; "),
        ("", "has no column path, class_id"),
    ],
)
def test_bad_labels_say_what_is_wrong(collection: Collection, tmp_path: Path, text: str, message: str) -> None:
    """Each kind of unusable table has an error naming the column, line or path."""
    with pytest.raises((LabelsError, SourceError), match=message):
        read_labels(labels_file(tmp_path, text), collection)
