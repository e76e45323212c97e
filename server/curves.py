"""The calibrations of the models that a server searches by: the one thing of a model that changes meanwhile."""

from collections.abc import Container
from pathlib import Path

from indexer import manifest
from indexer.calibration import Calibration
from indexer.store import Store


class Curves:
    """Calibrations as the models' manifests have them now; each is read again only where its manifest was replaced.

    One thread at a time may ask.
    """

    def __init__(self, store: Store) -> None:
        """Nothing is read yet."""
        self._store = store
        self._read: dict[str, tuple[tuple[int, int], Calibration | None]] = {}

    def of(self, model: str) -> Calibration | None:
        """The calibration of a model, the same object while it stays; None where it has none.

        Raises:
            ManifestError: its manifest can't be read.
        """
        directory = self._store.models / model
        written = _written(directory)
        if model not in self._read or self._read[model][0] != written:
            self._read[model] = written, Calibration.of(manifest.read_model(directory).calibration)
        return self._read[model][1]

    def keep(self, models: Container[str]) -> None:
        """Forget the calibrations of all other models."""
        self._read = {model: known for model, known in self._read.items() if model in models}


def _written(directory: Path) -> tuple[int, int]:
    """What differs between two writings of a manifest: each is a file of its own."""
    try:
        found = (directory / manifest.MANIFEST).stat()
    except OSError as error:
        raise manifest.ManifestError(f"{directory} has no readable {manifest.MANIFEST}: {error.strerror}") from error
    return found.st_ino, found.st_mtime_ns
