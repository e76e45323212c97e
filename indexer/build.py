"""Build an index version: images -> pixels -> embeddings -> rows -> index -> measured recall -> published version.

BuildError
├── NothingToIndex    no image of the collection could be decoded
└── WriteFailed       the disk is full or not writable; nothing of the version is left
BuildInProgress       (of `indexer.staging`) another process is building this index
SourceError, ManifestError, EncoderError, BudgetTooSmall, NotFound   of the parts, unchanged
"""

import dataclasses
import errno
import platform
import resource
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnxruntime
import PIL

from indexer import evaluate, ivfpq, manifest, plan, version
from indexer.duplicates import Duplicates
from indexer.encoder import Device, Encoder
from indexer.evaluate import OperatingPoint, Recall
from indexer.items import ItemWriter
from indexer.manifest import VersionManifest
from indexer.plan import Plan
from indexer.rows import Embeddings, RowWriter, map_rows, take
from indexer.sources import Decoded, Source, decode_all, open_collection
from indexer.staging import sole_builder, staging_dir
from indexer.store import Store
from indexer.version import CODES, ITEMS, ROWS

Progress = Callable[[str, int, int], None]  # report(stage, done, total)

BATCH = 64  # images an inference: larger ones gained nothing on a CPU, and fit any GPU at 518 pixels
SAVE_EVERY = 1_000  # rows; what a crash can cost, some seconds of a CPU's work
SEED = 0  # of the samples that train the index and measure its recall


class BuildError(Exception):
    """A version can't be built; the message says why. The active version is as it was."""


class NothingToIndex(BuildError):
    """No image of the collection could be decoded."""


class WriteFailed(BuildError):
    """The disk is full or not writable; nothing of the version is left on it."""


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What was built.

    Attributes:
        index, version: name and number.
        model: id.
        count: items in it.
        resumed: how many of them an interrupted build had embedded already.
        skipped: each image left out, with the reason.
        duplicates: images in it whose files are the same.
        plan, recall: as built and measured.
        seconds: by stage.
        provider: of ONNX Runtime, that embedded.
        warnings: what did not go as it could have, for a person to read.
        activated: whether it is the version that is searched now.
    """

    index: str
    version: int
    model: str
    count: int
    resumed: int
    skipped: tuple[tuple[str, str], ...]
    duplicates: Duplicates
    plan: Plan
    recall: Recall
    seconds: dict[str, float]
    provider: str
    warnings: tuple[str, ...]
    activated: bool


def build(
    name: str,
    images: Path,
    *,
    model: str,
    store: Store,
    memory_budget_bytes: int | None = None,
    device: Device = "auto",
    activate: bool = True,
    progress: Progress,
) -> BuildReport:
    """Build the next version of an index and make it the active one.

    An interrupted build leaves its finished rows, and the same call goes on after them. A version appears whole or
    not at all; until it does, the old one stays active.

    Args:
        name: of the index, new or not.
        images: a folder, a CSV or Parquet table of paths, tar shards, or a Parquet table of images; see
            `indexer.sources.open_collection`.
        model: id of the model, or its beginning.
        store: that holds both.
        memory_budget_bytes: refuse a plan that needs more, to build or to serve.
        device: for the encoder, and for training where FAISS has GPUs.
        activate: make it the version that is searched.
        progress: hears the stages `embed`, `train`, `add` and `measure`.

    Raises:
        BuildError: see the module's outline, also for the errors of the parts.
        KeyboardInterrupt: the finished rows stay for the next call.
    """
    index_dir = store.index(name)
    clock = _Clock()
    with clock.stage("open"):
        encoder = Encoder.open(store.model(model), device=device)
        collection = open_collection(images)
        plan.plan(len(collection.sources), encoder.dim, memory_budget_bytes=memory_budget_bytes)
    with sole_builder(index_dir):
        staging = staging_dir(index_dir, encoder.model, collection.sources)
        with _whole_or_nothing(staging):
            embedded = _embed(collection.sources, encoder, staging, clock, progress)
            if not embedded.count:
                raise NothingToIndex(_nothing(images, embedded.skipped))
            indexed = _index(embedded.count, encoder.dim, memory_budget_bytes, device, staging, clock, progress)
            number = _publish(index_dir, staging, encoder, embedded, indexed, clock)
        if activate:
            version.activate(index_dir, number)
    return BuildReport(
        index=name,
        version=number,
        model=encoder.model,
        count=embedded.count,
        resumed=embedded.resumed,
        skipped=embedded.skipped,
        duplicates=embedded.duplicates,
        plan=indexed.plan,
        recall=indexed.recall,
        seconds=clock.seconds,
        provider=encoder.provider,
        warnings=(*collection.warnings, *indexed.warnings),
        activated=activate,
    )


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


@dataclass(frozen=True)
class _Embedded:
    count: int
    resumed: int
    skipped: tuple[tuple[str, str], ...]
    duplicates: Duplicates


@dataclass(frozen=True)
class _Indexed:
    plan: Plan
    recall: Recall
    warnings: tuple[str, ...]


@contextmanager
def _whole_or_nothing(staging: Path) -> Iterator[None]:
    """Keep the staging directory after an interruption, to go on from; remove it where going on can't help."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        manifest.discard(staging)
        reason = getattr(error, "strerror", None) or str(error)
        full = getattr(error, "errno", 0) == errno.ENOSPC or (
            getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
        )
        remedy = "free some space" if full else "check the disk"
        raise WriteFailed(
            f"can't write a version into {staging.parent}: {reason}; {remedy} and build again"
        ) from error
    except NothingToIndex:
        manifest.discard(staging)
        raise


def _embed(
    sources: tuple[Source, ...], encoder: Encoder, staging: Path, clock: _Clock, progress: Progress
) -> _Embedded:
    with clock.stage("embed"), ItemWriter(staging / ITEMS) as items:
        resumed = items.count()
        done = resumed + len(items.skipped())
        with RowWriter(staging / ROWS, encoder.dim, keep=resumed) as rows:
            saved = done
            progress("embed", done, len(sources))
            for batch in _batches(decode_all(sources[done:], encoder.pixels)):
                _append(batch, encoder, rows, items)
                done += len(batch)
                if done - saved >= SAVE_EVERY:
                    _save(rows, items)
                    saved = done
                progress("embed", done, len(sources))
            _save(rows, items)
            rows.finish()
        return _Embedded(rows.count, resumed, items.skipped(), items.duplicates())


def _batches(decoded: Iterator[Decoded]) -> Iterator[list[Decoded]]:
    batch = []
    for image in decoded:
        batch.append(image)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _append(batch: list[Decoded], encoder: Encoder, rows: RowWriter, items: ItemWriter) -> None:
    good = [image for image in batch if image.pixels is not None]
    for row, image in enumerate(good, start=rows.count):
        items.add(row, image.source.item, image.source.path, image.sha256)
    for image in batch:
        if image.error is not None:
            items.skip(image.source.item, image.error)
    if good:
        rows.append(encoder.embed(np.stack([image.pixels for image in good if image.pixels is not None])))


def _save(rows: RowWriter, items: ItemWriter) -> None:
    # In this order: an item that is on the disk always has its row there too.
    rows.sync()
    items.commit()


def _index(
    count: int, dim: int, budget: int | None, device: Device, staging: Path, clock: _Clock, progress: Progress
) -> _Indexed:
    chosen = plan.plan(count, dim, memory_budget_bytes=budget)
    if chosen.kind == "flat":
        return _Indexed(chosen, evaluate.EXACT, ())
    rows = map_rows(staging / ROWS, count, dim)
    shuffled = np.random.default_rng(SEED).permutation(count)
    held = np.sort(shuffled[: plan.held_out(count)])
    sample = take(rows, np.sort(shuffled[len(held) :][: chosen.train_rows]))
    with clock.stage("train"):
        progress("train", 0, 1)
        codes, warnings = _train(chosen, sample, device)
        progress("train", 1, 1)
    with clock.stage("add"):
        ivfpq.add(codes, rows, lambda done: progress("add", done, count))
    with clock.stage("measure"):
        progress("measure", 0, 1)
        index = ivfpq.Index(ivfpq.load(staging / ROWS, mapped=True), codes)
        point = evaluate.choose(index, take(rows, held), held, chosen.nlist)
        progress("measure", 1, 1)
    ivfpq.save(codes, staging / CODES)
    if point.recall.recall_at_10 < evaluate.WANTED_RECALL:
        warnings += (_low_recall(point),)
    return _Indexed(dataclasses.replace(chosen, nprobe=point.nprobe, k_factor=point.k_factor), point.recall, warnings)


def _low_recall(point: OperatingPoint) -> str:
    return (
        f"recall@10 is {point.recall.recall_at_10:.3f}, below {evaluate.WANTED_RECALL}, at the most thorough setting "
        f"tried (nprobe {point.nprobe}, k_factor {point.k_factor}); an exact search finds the rest"
    )


def _train(chosen: Plan, sample: Embeddings, device: Device) -> tuple[Any, tuple[str, ...]]:
    if device == "cpu" or not ivfpq.gpu_count():
        return ivfpq.train(chosen, sample, use_gpu=False), ()
    try:
        return ivfpq.train(chosen, sample, use_gpu=True), ()
    except RuntimeError as error:  # FAISS's only exception: no memory left on the device, a driver that fails
        return ivfpq.train(chosen, sample, use_gpu=False), (
            f"FAISS could not train on the GPU, the CPU did: {error}",
        )


def _publish(
    index_dir: Path, staging: Path, encoder: Encoder, embedded: _Embedded, indexed: _Indexed, clock: _Clock
) -> int:
    # Only the sole builder publishes, so the next number stays free.
    number = max(version.list_versions(index_dir), default=0) + 1
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    receipt = VersionManifest(
        index=index_dir.name,
        version=number,
        model=encoder.model,
        dim=encoder.dim,
        count=embedded.count,
        skipped=len(embedded.skipped),
        plan=dataclasses.asdict(indexed.plan),
        recall=dataclasses.asdict(indexed.recall),
        build={**{f"{stage}_s": seconds for stage, seconds in clock.seconds.items()}, "peak_bytes": peak_bytes},
        software=_software(),
    )
    with clock.stage("publish"):
        manifest.publish(staging, version.version_dir(index_dir, number), receipt)
    return number


def _software() -> dict[str, str]:
    return {
        "faiss": faiss.__version__,
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }


def _nothing(images: Path, skipped: tuple[tuple[str, str], ...]) -> str:
    item, reason = skipped[0]
    return f"none of the {len(skipped):,} images in {images} can be decoded; the first, {item}: {reason}"
