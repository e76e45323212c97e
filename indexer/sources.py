"""Image collections: a folder, or a CSV or Parquet table with a `path` column, as a list of sources to decode.

SourceError   the collection itself can't be read; one bad image in it is never an error, it is reported
"""

import csv
import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from indexer import pixels
from indexer.pixels import Pixels, PixelsError, PixelSpec

# Named like photographs, though no decoder here takes them: listed, so that they are reported instead of ignored.
_UNSUPPORTED_EXTENSIONS = frozenset({".heic", ".heif", ".jxl", ".jp2", ".cr2", ".nef", ".arw", ".dng"})
_TABLE_EXTENSIONS = frozenset({".csv", ".parquet"})
_PLAIN = frozenset(range(0x20, 0x7F)) - {ord("%")}


class SourceError(ValueError):
    """A collection of images can't be read; the message names the path and the remedy."""


@dataclass(frozen=True)
class Source:
    """One image of a collection.

    Attributes:
        item: its id, unique in the collection: the path below the collection's root, `/` between parts, with `%`,
            control characters and bytes that are not UTF-8 percent-encoded.
        path: where its bytes are.
    """

    item: str
    path: Path


@dataclass(frozen=True)
class Collection:
    """What was found under a path.

    Attributes:
        root: the folder that item ids are relative to.
        sources: every file named like an image, sorted by item.
        ignored: how many files were not named like images.
        unreadable: folders that could not be listed, each with its reason.
    """

    root: Path
    sources: tuple[Source, ...]
    ignored: int = 0
    unreadable: tuple[str, ...] = ()


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


def item_of(path: Path, root: Path) -> str:
    """The item id of an image file below a collection's root."""
    relative = os.fsencode(path.relative_to(root).as_posix())
    try:
        text = relative.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in relative)
    # Control characters (C0, DEL, C1) would break lines and terminals wherever an id is printed.
    return "".join(
        "".join(f"%{byte:02X}" for byte in char.encode())
        if char == "%" or ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or char in "\u2028\u2029"
        else char
        for char in text
    )


def open_collection(images: Path) -> Collection:
    """The images under a folder (recursive, hidden files and folders left out) or listed in a CSV or Parquet table.

    A table has a column `path`, relative to the table's folder or absolute; other columns are ignored.

    Raises:
        SourceError: the path does not exist, can't be read, is neither of these, or holds no image.
    """
    if images.is_dir():
        collection = _from_folder(images)
    elif images.suffix.lower() in _TABLE_EXTENSIONS and images.is_file():
        collection = _from_table(images)
    elif images.exists():
        raise SourceError(f"{_shown(images)} is neither a folder nor a .csv or .parquet table of image paths")
    else:
        raise SourceError(f"{_shown(images)} does not exist")
    if not collection.sources:
        found = f"{collection.ignored:,} other files" if collection.ignored else "nothing else"
        denied = f"; unreadable: {', '.join(collection.unreadable)}" if collection.unreadable else ""
        accepted = " ".join(sorted(pixels.EXTENSIONS))
        raise SourceError(f"no image in {_shown(images)} ({found}{denied}); accepted: {accepted}")
    return collection


def read_table(path: Path, columns: Iterable[str], optional: Iterable[str] = ()) -> dict[str, list[str]]:
    """Columns of a CSV (UTF-8, comma, header line) or Parquet table as text, `optional` ones where they exist.

    Raises:
        SourceError: the file can't be read, is not such a table, or lacks a column of `columns`.
    """
    try:
        table = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except UnicodeDecodeError as error:
        raise SourceError(f"{_shown(path)} is not UTF-8 text: {error}; save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise SourceError(f"{_shown(path)} can't be read as a table: {error}") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise SourceError(
            f"{_shown(path)} has no column {', '.join(missing)}; its columns are: {', '.join(table) or 'none'}"
        )
    chosen = {name: table[name] for name in (*columns, *optional) if name in table}
    for name, cells in chosen.items():
        for row, cell in enumerate(cells, start=1):
            if "\0" in cell:
                raise SourceError(f"{_shown(path)}, row {row}: {name} {cell!r} holds a NUL; save it as UTF-8 text")
    return chosen


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
        data = pixels.read(source.path)
        digest = hashlib.sha256(data).hexdigest()
        image, aspect = pixels.decode_with_aspect(data, spec)
    except PixelsError as error:
        return Decoded(row, source, None, 1.0, digest, str(error))
    return Decoded(row, source, image, aspect, digest, None)


def _from_folder(root: Path) -> Collection:
    sources, unreadable, ignored = [], [], 0

    def denied(error: OSError) -> None:
        unreadable.append(f"{_shown(Path(error.filename))}: {error.strerror}")

    for folder, subfolders, names in os.walk(root, onerror=denied):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.suffix.lower() in pixels.EXTENSIONS | _UNSUPPORTED_EXTENSIONS:
                sources.append(Source(item_of(path, root), path))
            else:
                ignored += 1
    return Collection(root, tuple(sorted(sources, key=lambda s: s.item)), ignored, tuple(unreadable))


def _from_table(table: Path) -> Collection:
    root = table.parent
    sources: dict[str, Source] = {}
    for cell in read_table(table, ["path"])["path"]:
        path = root / cell  # an absolute cell replaces the root
        item = item_of(path, root) if path.is_relative_to(root) else item_of(path, Path(path.anchor))
        sources.setdefault(item, Source(item, path))
    return Collection(root, tuple(sorted(sources.values(), key=lambda s: s.item)))


def _read_csv(path: Path) -> dict[str, list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, strict=True)
        table: dict[str, list[str]] = {name: [] for name in rows.fieldnames or ()}
        for row in rows:
            # DictReader files surplus cells under None and fills missing ones with None.
            if None in row or None in row.values():
                raise csv.Error(f"line {rows.line_num} has not the header's {len(table)} cells")
            for name, cell in row.items():
                table[name].append(cell)
    return table


def _read_parquet(path: Path) -> dict[str, list[str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from error
    return {name: [str(cell) for cell in table.column(name).to_pylist()] for name in table.column_names}


def _shown(path: Path) -> str:
    return ascii(str(path)) if not str(path).isprintable() else str(path)
