"""Image collections: a folder, a table of paths, tar shards, or Parquet tables of images, as sources to decode.

SourceError   the collection itself can't be read; one bad image in it is never an error, it is reported
"""

import hashlib
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from indexer import pixels
from indexer.duplicates import Digests, Duplicates, find_duplicates
from indexer.parquet import image_column, list_parquet
from indexer.pixels import Pixels, PixelsError, PixelSpec
from indexer.recorded import RecordedSource, is_in_archive, reading_order, recorded
from indexer.source import FileSource, Listing, Source, SourceError, is_listed, item_of, shown
from indexer.tables import Rows, read_table
from indexer.tars import is_tar, list_tar

__all__ = [
    "Collection",
    "Decoded",
    "Digests",
    "Duplicates",
    "FileSource",
    "Source",
    "SourceError",
    "decode_all",
    "find_duplicates",
    "item_of",
    "open_collection",
    "read_table",
]

_BRACES = re.compile(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", re.DOTALL)
_UNUSUAL = re.compile(r"^/|^$|//|/$|(^|/)\.(/|$)")  # paths that are absolute, or that can be written shorter
_MODEL = {"model.onnx", "manifest.json", "probe.png"}  # files of a model, whose probe is no image of anybody's
_MAX_SHARDS = 1_000_000  # of a brace pattern: beyond any real one, and a typing error must not fill the memory


@dataclass(frozen=True)
class Collection:
    """What was found under a path.

    Attributes:
        root: the folder that item ids are relative to; of a Parquet table of named images, the table.
        sources: every image, in an order that is always the same: by item in a folder or a table of paths, else, and
            where such a table names images in Parquet tables, as they lie in the archives.
        ignored: how many files were not named like images.
        warnings: what could not be used, each a sentence: folders that could not be listed, damaged archives.
        payloads: of a table of paths with a column `payload`, what it says of an item, if anything.
        unused: of a table of paths, each row that gives no image, or one that came before: its item, or its place
            where it names none, and why.
    """

    root: Path
    sources: tuple[Source, ...]
    ignored: int = 0
    warnings: tuple[str, ...] = ()
    payloads: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[tuple[str, str], ...] = ()


class Wanted(NamedTuple):
    """What a row of a table of paths names.

    Attributes:
        item: the image's id; where the row names none, its place.
        source: None where it names none.
        payload: what the table says of it; empty for nothing.
        error: why it is left out; empty where it is not.
    """

    item: str
    source: Source | None = None
    payload: str = ""
    error: str = ""


@dataclass(frozen=True)
class Decoded:
    """One source after decoding: pixels, or the reason why there are none.

    Attributes:
        row: its place in the sequence that was given.
        pixels: (size, size, 3) uint8, or None where `error` says why.
        aspect: width over height of the upright image before fitting.
        sha256: of the file's bytes; empty where they could not be read.
        error: why it could not be decoded.
    """

    row: int
    source: Source
    pixels: Pixels | None
    aspect: float
    sha256: str
    error: str | None


def open_collection(images: Path) -> Collection:
    """List the images of a collection, without reading any.

    A collection is one of

    - a folder: every image in it and its subfolders, but for hidden files and folders, linked folders and the models
      of a store; of one without image files the tar shards in it, or else the Parquet tables of images;
    - a CSV or Parquet table with a column `path`, relative to the table's folder or absolute; a path may lead into a
      tar archive or a Parquet table of images, as `shard.tar/cat.jpg`; a column `payload` may hold JSON objects;
    - a tar archive, or a pattern of several: `shard-{000000..000146}.tar`;
    - a Parquet table with the images themselves in a column `image`: bytes, or {bytes, path}.

    Raises:
        SourceError: the path does not exist, can't be read, is none of these, or holds no image.
    """
    collection = _open(images)
    if not collection.sources:
        others = [f"{collection.ignored:,} other files"] if collection.ignored else []
        found = "; ".join([*others, *collection.warnings]) or "it is empty"
        accepted = " ".join(sorted(pixels.EXTENSIONS))
        raise SourceError(f"no image in {shown(images)} ({found}); accepted: {accepted}")
    return collection


def decode_all(sources: Sequence[Source], spec: PixelSpec, workers: int = 0) -> Iterator[Decoded]:
    """Decode sources on a pool of threads, in order, a bounded number ahead of the consumer.

    Args:
        sources: what to decode.
        spec: the square to produce.
        workers: threads; 0 for one per core. Pillow decodes outside the interpreter lock, so threads scale.

    Yields:
        One `Decoded` per source; a damaged or missing image is one with `error` set, never an exception.
    """
    count = workers or len(os.sched_getaffinity(0))
    ahead = 4 * count + 32  # enough to bridge one batch of inference without holding the collection in memory
    with ThreadPoolExecutor(count, thread_name_prefix="decode") as pool:
        waiting: deque[Future[Decoded]] = deque()
        try:
            for row, source in enumerate(sources):
                waiting.append(pool.submit(_decode_one, row, source, spec))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _decode_one(row: int, source: Source, spec: PixelSpec) -> Decoded:
    digest = ""
    try:
        data = source.read()
        digest = hashlib.sha256(data).hexdigest()
        image, aspect = pixels.decode_with_aspect(data, spec)
    except PixelsError as error:
        return Decoded(row, source, None, 1.0, digest, str(error))
    return Decoded(row, source, image, aspect, digest, None)


def _open(images: Path) -> Collection:
    if images.is_dir():
        return _from_folder(images)
    if not images.exists():
        return _from_pattern(images)
    if not images.is_file():
        raise SourceError(f"{shown(images)} is neither a folder nor a file")
    if is_tar(images.name):
        return _from_archives(images.parent, [images])
    if images.suffix.lower() == ".parquet" and image_column(images):
        sources = list_parquet(images, images).sources
        return Collection(Path(sources[0].root) if sources else images, tuple(sources))
    if images.suffix.lower() in (".csv", ".parquet"):
        return _from_table(images)
    raise SourceError(
        f"{shown(images)} is neither a folder, a .csv or .parquet table of image paths, a .parquet table of images, "
        "nor a .tar archive"
    )


def _from_folder(root: Path) -> Collection:
    """Every image file; of a folder that has none, the images of its archives."""
    found = _walked(root)
    if found.sources:
        sources = sorted(found.sources, key=lambda source: source.item)
        warnings = (*found.warnings, *_passed_over(root, found.archives))
        return Collection(root, tuple(sources), found.ignored, warnings)
    within = _from_archives(root, _of_one_kind(found.archives))
    return replace(within, ignored=within.ignored + found.ignored, warnings=(*found.warnings, *within.warnings))


@dataclass
class _Found:
    """What lies in a folder and its subfolders."""

    sources: list[Source] = field(default_factory=list)
    archives: list[Path] = field(default_factory=list)
    ignored: int = 0
    warnings: list[str] = field(default_factory=list)


def _walked(root: Path) -> _Found:
    found = _Found()
    linked: list[str] = []  # which os.walk leaves out, for links may go in circles
    for folder, subfolders, names in os.walk(root, onerror=lambda error: found.warnings.append(_unlisted(error))):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        linked += (name for name in subfolders if os.path.islink(os.path.join(folder, name)))  # noqa: PTH114,PTH118
        prefix = "" if folder == str(root) else f"{os.path.relpath(folder, root)}/"
        if _MODEL.issubset(names):  # of a store that lies among the images, as after `kinsight train .`
            found.ignored += len(names)
            continue
        for name in names:
            if is_listed(name):
                relative = prefix + name
                found.sources.append(FileSource(item_of(relative), str(root), relative))
            else:
                found.ignored += 1
                found.archives += [Path(folder, name)] if _is_archive(name) else []
    if linked:
        found.warnings.append(
            f"linked folders in {shown(root)} are not followed ({len(linked):,}, for example {linked[0]!a}); "
            "give the folders that they lead to, or a table of paths"
        )
    return found


def _passed_over(root: Path, archives: Sequence[Path]) -> tuple[str, ...]:
    """A warning of tar archives beside images, if there are any."""
    tars = [archive.name for archive in archives if is_tar(archive.name)]
    if not tars:
        return ()
    warning = (
        f"{len(tars):,} tar archives beside the images in {shown(root)} are not read, for example {tars[0]!a}; "
        "give their folder without image files to learn from them"
    )
    return (warning,)


def _unlisted(error: OSError) -> str:
    return f"unreadable folder {shown(Path(error.filename))}: {error.strerror}"


def _is_archive(name: str) -> bool:
    return is_tar(name) or (name.lower().endswith(".parquet") and not name.startswith("."))


def _of_one_kind(archives: list[Path]) -> list[Path]:
    """The tar shards, or else the Parquet tables that hold images: beside either a table is of labels."""
    tars = [archive for archive in archives if is_tar(archive.name)]
    return sorted(tars or archives)


def _from_pattern(pattern: Path) -> Collection:
    """The archives `HEAD{FIRST..LAST}TAIL`, each of which must exist."""
    match = _BRACES.fullmatch(str(pattern))
    if not match:
        raise SourceError(f"{shown(pattern)} does not exist")
    head, first, last, tail = match.groups()
    numbers = range(int(first), int(last) + 1)
    if not 0 < len(numbers) <= _MAX_SHARDS:
        raise SourceError(f"{shown(pattern)} stands for {len(numbers):,} archives; it must be 1 to {_MAX_SHARDS:,}")
    archives = [Path(f"{head}{number:0{len(first)}}{tail}") for number in numbers]
    missing = [archive for archive in archives if not archive.is_file()]
    if missing:
        raise SourceError(
            f"{len(missing):,} of the {len(archives):,} archives of {shown(pattern)} do not exist; "
            f"the first: {shown(missing[0])}"
        )
    return _from_archives(Path(f"{head}_").parent, archives)


def _from_archives(root: Path, archives: Sequence[Path]) -> Collection:
    listings = [_list_archive(archive, root) for archive in archives]
    sources = tuple(source for listing in listings for source in listing.sources)
    ignored = sum(listing.ignored for listing in listings)
    return Collection(root, sources, ignored, tuple(warning for listing in listings for warning in listing.warnings))


def _list_archive(archive: Path, root: Path) -> Listing:
    if archive.is_fifo():  # opening it would wait for who may never write
        return Listing(
            [], warnings=(f"{shown(archive)} is a pipe, and archives are read in place; save it as a file",)
        )
    try:
        return list_tar(archive, root) if is_tar(archive.name) else list_parquet(archive, root)
    except SourceError as error:  # one damaged table of many
        return Listing([], warnings=(str(error),))


def _from_table(table: Path) -> Collection:
    root = table.parent
    sources: dict[str, Source] = {}
    payloads: dict[str, str] = {}
    unnamed, again = list[tuple[str, str]](), list[tuple[str, str]]()
    for one in read_paths(table, lambda item, _: item not in sources):
        if one.source is None:
            unnamed.append((one.item, one.error))
        elif one.error:
            again.append((one.item, one.error))
        else:
            sources[one.item] = one.source
            if one.payload:
                payloads[one.item] = one.payload
    by_item = sorted(sources.values(), key=lambda source: source.item)
    ordered = tuple(sorted(by_item, key=reading_order()))
    warnings = []
    if unnamed:
        warnings.append(f"{len(unnamed):,} rows of {shown(table)} are left out, the first: {unnamed[0][1]}")
    if again:
        warnings.append(
            f"{len(again):,} rows of {shown(table)} name images that rows before them name, and are left out, for "
            f"example {again[0][0]!a}"
        )
    return Collection(root, ordered, 0, tuple(warnings), payloads, (*unnamed, *again))


def read_paths(table: Path, is_first: Callable[[str, int], bool]) -> Iterator[Wanted]:
    """The images that the rows of a table of paths name, as they are read.

    Args:
        table: as of `open_collection`.
        is_first: told an item and where its row is, says whether no row before names it.

    Raises:
        SourceError: the table can't be read; the rows before were given.
    """
    folder, root = table.parent, str(table.parent)
    rows = Rows(table, ["path"], optional=["payload"])
    for number, cells in rows.each():
        if isinstance(cells, str):
            yield Wanted(rows.place(number), error=f"{rows.place(number)} of {shown(table)}: {cells}")
            continue
        cell, *payload = cells
        if not cell:
            yield Wanted(rows.place(number), error=f"{rows.place(number)} of {shown(table)} has no path")
            continue
        source, error = _at(cell, folder, root), ""
        if not is_first(source.item, number):
            error = f"{rows.place(number)} of {shown(table)} names it again; its first row is taken"
        yield Wanted(source.item, source, "".join(payload), error)


def _at(cell: str, folder: Path, root: str) -> Source:
    """The image at a path of a table in a folder, `root` being the folder as text."""
    if is_in_archive(cell):
        if not _UNUSUAL.search(cell):
            return RecordedSource(item_of(cell), root, cell)
        path = folder / cell
        return recorded(item_of(str(path.relative_to(folder if path.is_relative_to(folder) else path.anchor))), path)
    if not _UNUSUAL.search(cell):  # a million cells: Path takes five times as long for the same
        return FileSource(item_of(cell), root, cell)
    path = folder / cell  # an absolute cell replaces the folder
    if path.is_relative_to(folder):
        relative = path.relative_to(folder).as_posix()
        return FileSource(item_of(relative), root, relative)
    return FileSource(item_of(path.relative_to(path.anchor).as_posix()), root, str(path))
