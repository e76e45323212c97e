"""THE manifest: what a model or an index version is made of, and how either appears whole or not at all.

A model or a version is an immutable directory. Its `manifest.json` names every other file with size and SHA-256
and is written last, as the receipt; a directory without one does not exist for any reader.

    ManifestError           a directory is not a readable model or version
    └── CorruptFile         a file is missing, truncated or changed; the message names it
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from indexer.locks import opened_alone
from indexer.pixels import PixelSpec

MANIFEST = "manifest.json"
FORMAT = 1  # of both manifests; raised when a reader of the old one could misunderstand the new one
ID_LENGTH = 16  # hex digits of SHA-256: 64 bits, no collision in any store that fits on earth

REMEDY = "; restore it from a copy, or remove its directory and make that again"
_CHUNK = 2**20
SEAL = "sha256"  # of the other fields: a manifest vouches for every file, and this for the manifest


class ManifestError(Exception):
    """A directory is not a model or a version that can be opened; the message says why."""


class CorruptFile(ManifestError):
    """A file of a model or a version is missing, truncated or changed."""


@dataclass(frozen=True)
class FileRecord:
    """A file as the manifest remembers it."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ModelManifest:
    """What a model is: its encoder, its pixels, where it came from, and what it scored.

    Attributes:
        id: digest of the model's parts (see `model_id`).
        dim: D of its embeddings, which are unit length, float32.
        pixels: the preprocessing that its graph expects.
        backbone, weights, objective: names as the recipe gave them.
        recipe: the resolved recipe, all values.
        images: how many images it learned from.
        labelled: of how many of these it learned from labels too.
        metrics: what was measured, for example `trained.recall_at_1`; empty without labels.
        parity: agreement of torch and ONNX Runtime on real images, as the export measured it.
        software: versions of the libraries that made it.
        licence: of the weights that training started from.
        calibration: from similarity to probability, see `indexer.calibration`; empty before it is calibrated. The one
            field that changes later (`amend_model`), and no part of the id.
    """

    id: str
    dim: int
    pixels: PixelSpec
    backbone: str
    weights: str
    objective: str
    recipe: Mapping[str, Any]
    images: int
    metrics: Mapping[str, float]
    parity: Mapping[str, float]
    software: Mapping[str, str]
    licence: str
    labelled: int = 0
    calibration: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    created: str = ""
    format: int = FORMAT


@dataclass(frozen=True, kw_only=True)
class VersionManifest:
    """What an index version is: which model's embeddings, how they are indexed, and what was measured.

    Attributes:
        index: name of the index that this is a version of.
        version: its number, counted from 1.
        model: id of the model that made the embeddings.
        dim: D of the embeddings.
        count: how many items are searched.
        plan: the plan it was built by (factory string, nlist, nprobe, k_factor, reason, predictions).
        skipped: how many images could not be decoded and are not in it.
        recall: recall@10 against exact search on held-out rows, with its 95 % confidence interval.
        build: seconds by stage, peak bytes.
        sequence: of the catalogue; what it says of later changes is searched beside the version.
        candidate: how it compares with the version that was active before it, see `indexer.candidate`.
        refused: why it was not activated when it was built; empty where nothing spoke against it.
    """

    index: str
    version: int
    model: str
    dim: int
    count: int
    skipped: int
    plan: Mapping[str, Any]
    recall: Mapping[str, float]
    build: Mapping[str, float]
    software: Mapping[str, str]
    sequence: int = 0
    candidate: Mapping[str, Any] = field(default_factory=dict)
    refused: str = ""
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    created: str = ""
    format: int = FORMAT


Manifest = ModelManifest | VersionManifest
_Kind = TypeVar("_Kind", ModelManifest, VersionManifest)


def model_id(parts: Mapping[str, FileRecord], pixels: PixelSpec) -> str:
    """The id of a model: a digest of its graph, its probe and its pixels; equal parts, equal id."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(pixels), sort_keys=True).encode())
    for name in ("model.onnx", "probe.png", "probe.npy"):
        digest.update(f"{name} {parts[name].sha256}\n".encode())
    return digest.hexdigest()[:ID_LENGTH]


def record(path: Path) -> FileRecord:
    """The size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(size, digest.hexdigest())


def record_files(directory: Path) -> dict[str, FileRecord]:
    """The records of every file directly in a directory, except the manifest itself, whole or half written."""
    manifests = (MANIFEST, _temporary(directory / MANIFEST).name)
    return {path.name: record(path) for path in sorted(directory.iterdir()) if path.name not in manifests}


def publish(staging: Path, target: Path, manifest: Manifest) -> Path:
    """Turn a staging directory with finished files into the immutable directory `target`.

    The manifest is written last, everything is on the disk before the rename, and the rename is atomic: after a
    crash at any moment `target` is there whole or not at all.

    Args:
        staging: a directory on the target's file system; gone afterwards.
        target: must not exist.
        manifest: `files` and `created` are filled in here.

    Returns:
        `target`.

    Raises:
        FileExistsError: `target` exists.
        OSError: the disk is full or not writable; `target` does not exist then.
    """
    complete = dataclasses.replace(
        manifest,
        files=record_files(staging),
        created=manifest.created or datetime.now(UTC).isoformat(timespec="seconds"),
    )
    for path in staging.iterdir():
        sync(path)
    _write(staging, complete)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise FileExistsError(f"{target} exists already; a published directory never changes")
    staging.rename(target)
    sync(target.parent)
    return target


def amend_model(directory: Path, calibration: Mapping[str, Any]) -> ModelManifest:
    """Give a published model another calibration; its parts and its id stay as they are.

    Raises:
        ManifestError: the directory is not a readable model.
        OSError: the disk is full or not writable; the old calibration stays.
    """
    amended = dataclasses.replace(read_model(directory), calibration=calibration)
    _write(directory, amended)
    return amended


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a mixture.

    What a kill leaves beside it is the next write's to begin with: writers of one file take turns.

    Raises:
        OSError: the disk is full or not writable; the old content stays.
    """
    temporary = _temporary(path)
    try:
        with opened_alone(temporary) as file:
            try:
                file.truncate(0)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
            except BaseException:
                with suppress(OSError):  # a read-only disk refuses this too, and would name the temporary file
                    temporary.unlink()
                raise
    except OSError as error:
        error.filename = str(path)  # a write that fails names no file, and nobody knows the temporary one
        raise
    sync(path.parent)


def read_model(directory: Path) -> ModelManifest:
    """The manifest of a model directory; raises ManifestError. `verify` checks the files that it names."""
    return _read(directory, ModelManifest)


def read_version(directory: Path) -> VersionManifest:
    """The manifest of a version directory; raises ManifestError. `verify` checks the files that it names."""
    return _read(directory, VersionManifest)


def verify(directory: Path, manifest: Manifest) -> None:
    """Check every file that a manifest names against its size and SHA-256, and that it names all that are opened.

    Raises:
        CorruptFile: naming the first file that is missing, truncated or changed.
    """
    for name in _opened(manifest):
        _recorded(directory, manifest, name)
    for name, expected in manifest.files.items():
        _verify_file(directory / name, expected)


def verified(directory: Path, manifest: Manifest, name: str) -> Path:
    """One of the files that are opened, for who reads no other; raises CorruptFile as of `verify`."""
    _verify_file(directory / name, _recorded(directory, manifest, name))
    return directory / name


def listed(directory: Path) -> list[str]:
    """The names in a directory, sorted; none where it does not exist.

    `Path.glob` finds nothing in one that can't be read, and what is there would be taken for gone.

    Raises:
        OSError: it can't be read.
    """
    try:
        return sorted(path.name for path in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def discard(directory: Path) -> None:
    """Remove a staging directory with all it holds; one that is not there is fine."""
    shutil.rmtree(directory, ignore_errors=True)


def _read(directory: Path, kind: type[_Kind]) -> _Kind:
    path = directory / MANIFEST
    try:
        fields = json.loads(path.read_bytes())
    except OSError as error:
        raise ManifestError(f"{directory} has no readable {MANIFEST}: {error.strerror}") from error
    except ValueError as error:
        raise CorruptFile(f"{path} is not JSON: {error}{REMEDY}") from error
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        found = fields.get("format") if isinstance(fields, dict) else type(fields).__name__
        raise ManifestError(f"{path} has format {found}; this Kinsight reads format {FORMAT}")
    if fields.pop(SEAL, None) != seal(fields):
        raise CorruptFile(f"{path} was changed: it does not match its own SHA-256{REMEDY}")
    try:
        fields["files"] = {name: FileRecord(**entry) for name, entry in fields["files"].items()}
        if "pixels" in fields:
            fields["pixels"] = PixelSpec.from_dict(fields["pixels"])
        return kind(**fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFile(f"{path} is not the manifest of a {kind.__name__[:-8].lower()}: {error}") from error


def _write(directory: Path, manifest: Manifest) -> None:
    fields = dataclasses.asdict(manifest)
    sealed = {**fields, SEAL: seal(fields)}
    write_atomically(directory / MANIFEST, json.dumps(sealed, indent=2).encode() + b"\n")


def _temporary(path: Path) -> Path:
    """Where a file is while it is written."""
    return path.with_name(f".{path.name}.tmp")


def _recorded(directory: Path, manifest: Manifest, name: str) -> FileRecord:
    if name not in manifest.files:
        raise CorruptFile(f"{directory / MANIFEST} has no record of {name}")
    return manifest.files[name]


def _verify_file(path: Path, expected: FileRecord) -> None:
    try:
        size = path.stat().st_size
        if size != expected.bytes:
            raise CorruptFile(f"{path} has {size:,} bytes; the manifest says {expected.bytes:,}{REMEDY}")
        found = record(path)
    except OSError as error:
        raise CorruptFile(f"{path} can't be read: {error.strerror}{REMEDY}") from error
    if found.sha256 != expected.sha256:
        raise CorruptFile(f"{path} was changed: SHA-256 {found.sha256[:12]}…, not {expected.sha256[:12]}…{REMEDY}")


def seal(fields: Mapping[str, Any]) -> str:
    """The digest of a file's fields, as JSON has them, that the file holds itself: they vouch for what it names."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _opened(manifest: Manifest) -> tuple[str, ...]:
    if isinstance(manifest, ModelManifest):
        return ("model.onnx", "probe.png", "probe.npy")
    codes = ("index.faiss",) if manifest.plan.get("kind") == "ivfpq" else ()
    return (*codes, "rows.faiss", "items.sqlite")


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
