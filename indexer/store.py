"""Where models, indexes and training runs lie in a store, and how people name them."""

import re
from dataclasses import dataclass
from pathlib import Path

from indexer.manifest import MANIFEST, listed
from indexer.source import shown

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class NotFound(LookupError):
    """A store has no model or index of that name; the message lists what it has."""


@dataclass(frozen=True)
class Store:
    """A directory that holds everything Kinsight made.

    models/<model id>/                     one immutable directory a model
    indexes/<name>/versions/<number>/      one immutable directory a version
    indexes/<name>/active                  the numbers of the version that is searched, and of the one before
    indexes/<name>/catalog.sqlite          the truth about the items
    runs/<run>/                            checkpoints and logs of training
    datasets/<name>/                       public data sets that were downloaded by name
    operations/<id>.json                   records of long work
    labels/<digest>.csv                    labels that came with requests
    """

    root: Path

    def __post_init__(self) -> None:
        try:
            str(self.root.absolute()).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the path of store {shown(self.root)} is not UTF-8, and ONNX Runtime and FAISS open no other: "
                "rename its folders"
            ) from error

    @property
    def models(self) -> Path:
        """The directory of models."""
        return self.root / "models"

    @property
    def indexes(self) -> Path:
        """The directory of indexes."""
        return self.root / "indexes"

    @property
    def runs(self) -> Path:
        """The directory of training runs."""
        return self.root / "runs"

    @property
    def datasets(self) -> Path:
        """The directory of downloaded data sets."""
        return self.root / "datasets"

    @property
    def operations(self) -> Path:
        """The directory of the records of long work."""
        return self.root / "operations"

    @property
    def labels(self) -> Path:
        """The directory of labels that came with requests."""
        return self.root / "labels"

    def model_ids(self) -> list[str]:
        """The ids of all models, oldest first."""
        found = [path.parent for path in self.models.glob(f"*/{MANIFEST}")]
        return [path.name for path in sorted(found, key=lambda path: (path / MANIFEST).stat().st_mtime_ns)]

    def model(self, reference: str) -> Path:
        """The directory of the model with this id, or the one whose id begins with it.

        Raises:
            NotFound: no model, or more than one, fits.
        """
        ids = self.model_ids()
        fitting = [known for known in ids if known == reference] or [
            known for known in ids if reference and known.startswith(reference)
        ]
        if len(fitting) != 1:
            problem = f"{len(fitting)} models begin with" if fitting else "no model"
            raise NotFound(f"{problem} {reference!r} in {self.models}; it has: {', '.join(ids) or 'none'}")
        return self.models / fitting[0]

    def index_names(self) -> list[str]:
        """The names of all indexes that have at least one version, sorted; of those that can't be read too.

        A directory whose name no index can have, such as somebody's copy `photos.old`, is none.

        Raises:
            OSError: the directory of the indexes can't be read.
        """
        return [name for name in listed(self.indexes) if _NAME.fullmatch(name) and _has_version(self.indexes / name)]

    def index(self, name: str) -> Path:
        """The directory of an index, whether it exists yet or not.

        Raises:
            ValueError: the name is not usable as one.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} can't name an index; 1 to 63 of a-z, 0-9, _ and -, beginning with a letter or digit"
            )
        return self.indexes / name


def _has_version(index_dir: Path) -> bool:
    versions = index_dir / "versions"
    try:
        return any((versions / name / MANIFEST).exists() for name in listed(versions))
    except OSError:  # not to be taken for gone; whoever opens it is told why
        return True
