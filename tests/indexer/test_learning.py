"""What a rebuild gives the trainer to learn from."""

import csv
from pathlib import Path

import pytest

from indexer.labels import LabelsError
from indexer.learning import Lesson
from indexer.rebuild import RebuildError, rebuild
from indexer.records import Upsert
from indexer.source import SourceError
from indexer.store import Store
from tests.indexer.test_rebuild import NAME, picture, quiet, upsert


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_image_is_where_the_table_says_though_the_store_is_named_from_the_working_directory(
    index: Path, store: Store, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a relative store, as is the default, the images that only the catalogue keeps were not found."""
    upsert(index, Upsert("kept", image=picture(7)))
    few = tmp_path / "few.csv"
    few.write_text("path,class_id\nkept,wren\n")
    monkeypatch.chdir(store.root.parent)
    lessons = list[tuple[list[dict[str, str]], list[dict[str, str]]]]()

    def learn(lesson: Lesson) -> str:
        assert lesson.labels
        lessons.append((_rows(lesson.images), _rows(lesson.labels)))
        assert all(Path(row["path"]).is_absolute() and Path(row["path"]).is_file() for row in lessons[0][0])
        return tiny_model

    rebuild(NAME, store=Store(Path(store.root.name)), learn=learn, few_labels=few, progress=quiet)
    ((images, labels),) = lessons
    assert len(images) == 61
    (label,) = labels
    assert label["class_id"] == "wren"
    assert label["path"] in {row["path"] for row in images}


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ("path,class_id\nkept,\n", LabelsError, "few.csv has no label to learn from of any item of the index"),
        ("path,class_id\nnowhere.png,wren\n", LabelsError, "few.csv has no label to learn from of any item"),
        ("item,class_id\nkept,wren\n", SourceError, "few.csv has no column path"),
        (
            "path,class_id,split\nkept,wren,Train\n",
            LabelsError,
            "few.csv, line 2: split is 'Train'; it must be one of",
        ),
        (
            "path,class_id,split\nnext,,\nkept,wren,\n",
            LabelsError,
            "few.csv, line 3: split is ''; it must be one of",
        ),
        (
            "path,class_id\n\nkept,wren\nkept,crow\n",
            LabelsError,
            "few.csv, line 4: 'kept' has two classes, 'wren' and 'crow'; an image has one",
        ),
        (
            "path,class_id,split\nkept,wren,train\nkept,wren,test\n",
            LabelsError,
            "few.csv, line 3: 'kept' has two splits, 'train' and 'test'; an image has one",
        ),
        ("path_a,path_b,relation\nkept,kept,same\n", LabelsError, "few.csv, line 2: 'kept' and 'kept' are one image"),
        ("path_a,path_b,relation\nkept,gone,same\n", LabelsError, "few.csv has no label to learn from of any item"),
    ],
)
def test_labels_that_teach_nothing_are_refused_before_training(
    table: str, error: type[Exception], message: str, index: Path, store: Store, tmp_path: Path
) -> None:
    """By the name of the table that was given, and not of its copy in the store."""
    upsert(index, Upsert("kept", image=picture(7)))
    few = tmp_path / "few.csv"
    few.write_text(table)

    def learn(lesson: Lesson) -> str:
        raise AssertionError(lesson)

    with pytest.raises(error, match=message):
        rebuild(NAME, store=store, learn=learn, few_labels=few, progress=quiet)


@pytest.mark.parametrize(("again", "same"), [("--epochs 5", True), ("--epochs 1", False), ("", False)])
def test_an_interrupted_lesson_is_gone_on_with_as_it_was_asked_for(
    again: str, same: bool, index: Path, store: Store
) -> None:
    """Asked for in another way it begins anew: its run would go on by the settings that it began with."""
    runs = list[str]()

    def learn(lesson: Lesson) -> str:
        runs.append(lesson.run)
        raise KeyboardInterrupt

    for settings in ("--epochs 5", again):
        with pytest.raises(KeyboardInterrupt):
            rebuild(NAME, store=store, learn=learn, settings=settings, progress=quiet)
    first, second = runs
    assert (first == second) == same


def test_nothing_is_learned_that_could_not_be_activated(
    index: Path, store: Store, photos: Path, tiny_model: str
) -> None:
    """A drive that is not there costs no hours of training, unless the version is only to be looked at."""
    (photos / "street").rename(photos.parent / "unmounted")
    lessons = list[Lesson]()

    def learn(lesson: Lesson) -> str:
        lessons.append(lesson)
        return tiny_model

    with pytest.raises(RebuildError, match="nothing was learned: 30 of 60 items would be lost, because"):
        rebuild(NAME, store=store, learn=learn, progress=quiet)
    assert not lessons
    rebuild(NAME, store=store, learn=learn, activate=False, progress=quiet)
    assert len(lessons) == 1


def test_a_split_that_is_none_judges_nothing(index: Path, store: Store, tmp_path: Path) -> None:
    """Rows of `Train` were taken for such as were not learned from, and judged the version."""
    labels = tmp_path / "labels.csv"
    labels.write_text("path,class_id,split\nstreet/00.png,a,test\nstreet/01.png,a,Train\n")
    with pytest.raises(LabelsError, match="line 3: split is 'Train'"):
        rebuild(NAME, store=store, labels=labels, progress=quiet)
