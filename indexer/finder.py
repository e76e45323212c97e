"""Which image of a collection the path in a table of labels means."""

import os
import re
from functools import cache, cached_property
from pathlib import Path

from indexer.source import Source
from indexer.sources import Collection

_NOT_PLAIN = re.compile(r"//|(?:^|/)\.\.?(?:/|$)")  # it names a place in another way than others may


class Finder:
    """Which image of a collection the path of a table means.

    A path is relative to the collection's root or to the table's folder, or absolute. It means the image that lies
    there, or else the one that links lead to from there.
    """

    def __init__(self, collection: Collection, table: Path):
        self._folders = (collection.root, table.parent)
        start_of = cache(lambda root: _place(Path(root)))
        self._by_place = {_place_of(source, start_of(source.root)): source.item for source in collection.sources}

    @cached_property
    def _by_target(self) -> dict[str, str]:
        folder_of = cache(os.path.realpath)  # asks the system of each folder on the way, the same for all in it

        def target_of(place: str) -> str:
            folder, name = os.path.split(place)
            return os.path.realpath(place) if os.path.islink(place) else os.path.join(folder_of(folder), name)  # noqa: PTH114,PTH118  as below

        return {target_of(place): item for place, item in self._by_place.items()}

    def __call__(self, path: str) -> str | None:
        """Its item; None where the collection has none there."""
        places = [folder / path for folder in self._folders]
        found = [self._by_place.get(_place(place)) for place in places]
        if not any(found):  # only then: of a million files the system is asked where they lead
            found = [self._by_target.get(os.path.realpath(place)) for place in places]
        return next((item for item in found if item is not None), None)


def _place_of(source: Source, start: str) -> str:
    """The place of a source in a collection, whose own is the start."""
    if _NOT_PLAIN.search(source.relative):
        return _place(source.path)
    return os.path.join(start, source.relative)  # noqa: PTH118  a Path costs ten times as much


def _place(path: Path) -> str:
    """The absolute path; of one that leads upwards, maybe out of a link, without links."""
    # Not Path.resolve, which raises at links that lead in a circle, as folders of people now and then hold them.
    return os.path.realpath(path) if ".." in path.parts else str(path.absolute())
