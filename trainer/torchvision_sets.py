"""Data sets that torchvision knows by name: fetched, and told as a table of image files with classes and a split.

DataSetError   there is no such set, or it is neither there nor to be had
"""

import csv
import inspect
import io
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from PIL import Image

from indexer.manifest import write_atomically
from trainer.images import Progress

PREFIX = "torchvision:"

_TRAIN_TEST = ({"split": "train"}, {"split": "test"})
_TRAIN_VAL_TEST = ({"split": "train"}, {"split": "val"}, {"split": "test"})
_TWO_HALVES = ({"train": True}, {"train": False})

# Every part of each set, as its class in torchvision names them: the split for retrieval is by class, not theirs.
_PARTS: dict[str, tuple[dict[str, Any], ...]] = {
    "CIFAR10": _TWO_HALVES,
    "CIFAR100": _TWO_HALVES,
    "Country211": ({"split": "train"}, {"split": "valid"}, {"split": "test"}),
    "DTD": _TRAIN_VAL_TEST,
    "EuroSAT": ({},),
    "FGVCAircraft": ({"split": "trainval"}, {"split": "test"}),
    "FashionMNIST": _TWO_HALVES,
    "Flowers102": _TRAIN_VAL_TEST,
    "Food101": _TRAIN_TEST,
    "GTSRB": _TRAIN_TEST,
    "Imagenette": ({"split": "train"}, {"split": "val"}),
    "KMNIST": _TWO_HALVES,
    "MNIST": _TWO_HALVES,
    "OxfordIIITPet": ({"split": "trainval"}, {"split": "test"}),
    "STL10": _TRAIN_TEST,
    "SUN397": ({},),
    "SVHN": _TRAIN_TEST,
    "StanfordCars": _TRAIN_TEST,
}


class DataSetError(ValueError):
    """A data set of torchvision can't be had; the message names it and where to put it by hand."""


def named_set(images: Path, labels: Path | None, directory: Path, progress: Progress) -> tuple[Path, Path | None]:
    """Collection and labels of a run: of `torchvision:NAME` its table for both, unless other labels are given."""
    if not str(images).startswith(PREFIX):
        return images, labels
    table = image_table(str(images).removeprefix(PREFIX), directory, progress)
    return table, labels or table


def image_table(name: str, directory: Path, progress: Progress) -> Path:
    """A table `path,class_id,split` of a data set's images, downloaded first where they are not there yet.

    The first half of the classes is for training, the second for judging: the protocol of metric learning, which
    asks how a metric serves classes that it never saw. Images that a set keeps in arrays are written as PNG files,
    once.

    Args:
        name: of a class in `torchvision.datasets`, with `?root=DIR` behind it where the set lies elsewhere already.
        directory: gets the table, PNG files and, without `?root`, the download, in a folder of the set's name.
        progress: hears the stage `list`.

    Returns:
        The table: a collection to learn from and the labels to judge with in one file.

    Raises:
        DataSetError: no such set, or it is neither there nor can be downloaded.
        OSError: the directory can't be written.
    """
    name, _, option = name.partition("?")
    key, _, place = option.partition("=")
    if name not in _PARTS:
        raise DataSetError(f"{PREFIX}{name} is not one of the sets known here: {', '.join(_PARTS)}")
    if option and not (key == "root" and place):
        raise DataSetError(f"{PREFIX}{name}?{option} must be {PREFIX}{name} or {PREFIX}{name}?root=DIR")
    home = directory / name
    home.mkdir(parents=True, exist_ok=True)
    root = Path(place) if place else home
    parts = [_open(name, root, part) for part in _PARTS[name]]
    return _write_table(home, list(_files(parts, home, progress)))


def _open(name: str, root: Path, part: Mapping[str, Any]) -> Any:
    """One part of a set; downloaded only where it is not there, because downloading begins with reading it all."""
    from torchvision import datasets  # takes seconds: only for those who name one

    kind = getattr(datasets, name)
    keywords = dict(part)
    if "loader" in inspect.signature(kind).parameters:
        keywords["loader"] = str  # of a path: the set then gives its files instead of decoding them
    with redirect_stdout(sys.stderr):  # torchvision prints while it downloads; stdout is for results
        try:
            return kind(root, **keywords)
        except (RuntimeError, OSError):
            pass
        try:
            return kind(root, **keywords, download=True)
        except (RuntimeError, OSError, ValueError) as error:
            raise DataSetError(
                f"{PREFIX}{name} is not whole in {root}, and can't be downloaded: {error}; put it there by hand, as "
                f"torchvision.datasets.{name} expects it, or name its place by {PREFIX}{name}?root=DIR"
            ) from error


def _files(parts: Sequence[Any], home: Path, progress: Progress) -> Iterator[tuple[str, int]]:
    """The file and the class of each image; images that have no file get one in `home`."""
    done, total = 0, sum(map(len, parts))
    written, growing = home / "png", home / "png.partial"
    shutil.rmtree(growing, ignore_errors=True)  # of an interrupted call
    for number, dataset in enumerate(parts):
        for index in range(len(dataset)):
            image, label = _image(dataset, index)
            if isinstance(image, Image.Image):
                file = f"{number}-{index:06d}.png"
                if not written.exists():
                    growing.mkdir(exist_ok=True)
                    image.save(growing / file)
                image = str(written / file)
            yield image, int(label)
            done += 1
            progress("list", done, total)
    if growing.exists():
        growing.rename(written)


def _image(dataset: Any, index: int) -> tuple[Any, int]:
    """The file or, from a set that has none, the image; and its class."""
    from torchvision import datasets

    if isinstance(dataset, datasets.OxfordIIITPet):  # has files, and no way to ask for them
        return str(dataset._images[index]), dataset._labels[index]
    image, label = dataset[index]
    return image, label


def _write_table(home: Path, images: Sequence[tuple[str, int]]) -> Path:
    classes = sorted({label for _, label in images})
    learned = set(classes[: len(classes) // 2])
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "class_id", "split"))
    for file, label in images:
        path = Path(file)
        inside = path.relative_to(home) if path.is_relative_to(home) else path.absolute()
        rows.writerow((inside, label, "train" if label in learned else "test"))
    table = home / "images.csv"
    write_atomically(table, text.getvalue().encode())
    return table
