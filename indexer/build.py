"""Build an index version: entries -> embeddings -> rows -> index -> measured recall -> published version.

BuildError
├── NothingToIndex    there is no item, or none has an image that can be decoded, or an embedding of the model
└── WriteFailed       the disk is full or not writable; nothing of the version is left
BuildInProgress       (of `indexer.staging`) another process is building this index
SourceError, ManifestError, EncoderError, CatalogError, BudgetTooSmall, NotFound   of the parts, unchanged
"""

import dataclasses
import errno
import platform
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import onnxruntime
import PIL

from indexer import adopt, manifest, plan, version
from indexer.candidate import Comparison
from indexer.catalog import Catalog
from indexer.codes import Clock, Indexed, index_rows
from indexer.duplicates import Duplicates
from indexer.embedding import Embedded, Maker, Progress, embed_entries, embed_pending
from indexer.encoder import Device, Encoder
from indexer.entries import Listing, list_entries, warn_of_unfindable
from indexer.evaluate import Recall
from indexer.items import ItemTable
from indexer.known import KnownRows
from indexer.manifest import ManifestError, VersionManifest
from indexer.plan import Plan
from indexer.sources import Collection, open_collection
from indexer.staging import forget_unfinished, sole_builder, staging_dir, unfinished
from indexer.store import Store
from indexer.version import ITEMS, Version, VersionError


class BuildError(Exception):
    """A version can't be built; the message says why. The active version is as it was."""


class NothingToIndex(BuildError):
    """There is no item, or none has an image that can be decoded, or an embedding of the model."""


class WriteFailed(BuildError):
    """The disk is full or not writable; nothing of the version is left on it."""


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What was built.

    Attributes:
        index, version: name and number.
        model: id.
        count: items in it.
        resumed: how many of them an interrupted build had finished already.
        reused: how many took the embedding that another version, or the catalogue, had.
        decoded: how many were decoded and embedded; the others of `count` were not.
        skipped: each item left out, with the reason.
        deleted: images of the collection that were left out because users deleted their items.
        upserted: images of the collection that gave way to what users upserted under their ids.
        duplicates: images in it whose files are the same.
        plan, recall: as built and measured.
        comparison: with the version that was active before; None where there was none to compare with.
        refused: why it was not activated; empty where nothing spoke against it.
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
    reused: int
    decoded: int
    skipped: tuple[tuple[str, str], ...]
    deleted: int
    upserted: int
    duplicates: Duplicates
    plan: Plan
    recall: Recall
    comparison: Comparison | None
    refused: str
    seconds: dict[str, float]
    provider: str
    warnings: tuple[str, ...]
    activated: bool


@dataclass(frozen=True)
class Judgement:
    """What was found out about a version before it is published.

    Attributes:
        comparison: with the active version; None where there is nothing to compare.
        refused: why it must not become active; empty where it may.
        warnings: what else a person should know, each a sentence.
    """

    comparison: Comparison | None = None
    refused: str = ""
    warnings: tuple[str, ...] = ()


Judge = Callable[[Version], Judgement]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A version to be built.

    Attributes:
        index_dir: of its index.
        encoder: of its model.
        collection: what is to be in it besides what the catalogue says; None for nothing else.
        mirror: items that came from a collection and are not in this one are to go.
        judge: told what is to be in the version, gives what looks at it before it is published.
        activate: make it the version that is searched, unless the judge refuses it.
        target_recall: of searches that name none.
        memory_budget_bytes, device: as of `build`.
        clock: of the stages.
        warnings: of what came before.
        warn: as of `build`.
    """

    index_dir: Path
    encoder: Encoder
    collection: Collection | None
    mirror: bool
    judge: Callable[[Listing], Judge]
    activate: bool
    target_recall: float
    memory_budget_bytes: int | None
    device: Device
    clock: Clock
    warnings: tuple[str, ...] = ()
    warn: Callable[[str], None]


def build(
    name: str,
    images: Path,
    *,
    model: str,
    store: Store,
    target_recall: float | None = None,
    memory_budget_bytes: int | None = None,
    device: Device = "auto",
    activate: bool = True,
    warn: Callable[[str], None] = lambda _: None,
    progress: Progress,
) -> BuildReport:
    """Build the next version of an index from a collection, and make it the active one.

    The version holds the collection, and what users upserted; not what they deleted. An image that the last versions
    hold under the same model is not decoded again. An interrupted build leaves its finished rows, and the same call
    goes on after them. A version appears whole or not at all; until it does, the old one stays active.

    Args:
        name: of the index, new or not.
        images: a folder, a CSV or Parquet table of paths, tar shards, or a Parquet table of images; see
            `indexer.sources.open_collection`.
        model: id of the model, or its beginning.
        store: that holds both.
        target_recall: recall@10 of searches that name none, above 0 and at most 1; None for that of the active
            version, or 0.99.
        memory_budget_bytes: refuse a plan that needs more, to build or to serve.
        device: for the encoder, and for training where FAISS has GPUs.
        activate: make it the version that is searched.
        warn: told at once, and not by the report, how many items this model can't find.
        progress: hears the stages `embed`, `train`, `add` and `measure`.

    Raises:
        BuildError: see the module's outline, also for the errors of the parts.
        KeyboardInterrupt: the finished rows stay for the next call.
    """
    index_dir = store.index(name)
    clock = Clock()
    with clock.stage("open"):
        encoder = Encoder.open(store.model(model), device=device)
        collection = open_collection(images.absolute())
        wanted = default_recall(index_dir) if target_recall is None else target_recall
        check_plan(len(collection.sources), encoder.dim, memory_budget_bytes, wanted)
    job = Job(
        index_dir=index_dir,
        encoder=encoder,
        collection=collection,
        mirror=True,
        judge=lambda _: lambda _: Judgement(),
        activate=activate,
        target_recall=wanted,
        memory_budget_bytes=memory_budget_bytes,
        device=device,
        clock=clock,
        warn=warn,
    )
    with sole_builder(index_dir):
        return evolve(job, progress)


def evolve(job: Job, progress: Progress) -> BuildReport:
    """Build a version for an index that this process holds for building; errors and stages as of `build`."""
    catalog, unseeded = _open_catalog(job.index_dir)
    with closing(catalog):
        sequence = catalog.sequence()
        collection = job.collection
        listing = list_entries(collection.sources if collection else (), catalog, mirror=job.mirror)
        check_plan(len(listing.entries), job.encoder.dim, job.memory_budget_bytes, job.target_recall)
        warn_of_unfindable(catalog, job.encoder.model, job.warn)
        judge = job.judge(listing)
        staging = staging_dir(job.index_dir, job.encoder.model, listing.entries)
        begun = unfinished(job.index_dir, job.encoder.model, staging)
        known, damaged = KnownRows.of(job.index_dir, job.encoder.model, job.encoder.dim, begun)
        warnings = (*job.warnings, *(collection.warnings if collection else ()), *unseeded, *damaged)
        with _whole_or_nothing(staging):
            with job.clock.stage("embed"):
                maker = Maker(job.encoder, known, catalog)
                embedded = embed_entries(listing.entries, job.encoder, maker, staging, progress)
            if not embedded.count:
                raise NothingToIndex(_nothing(embedded.skipped))
            indexed = index_rows(
                embedded.count,
                job.encoder.dim,
                job.memory_budget_bytes,
                job.device,
                staging,
                job.clock,
                progress,
                job.target_recall,
            )
            draft = _draft(job, embedded, indexed, sequence)
            with job.clock.stage("judge"), closing(ItemTable(staging / ITEMS)) as items:
                judgement = judge(Version(staging, draft, indexed.index, items))
            number = _publish(job, staging, draft, judgement)
            forget_unfinished(job.index_dir)
        activated = job.activate and not judgement.refused
        if activated:
            with job.clock.stage("activate"):
                warnings = (*warnings, *_take_over(job, catalog, number, progress))
    return BuildReport(
        index=job.index_dir.name,
        version=number,
        model=job.encoder.model,
        count=embedded.count,
        resumed=embedded.resumed,
        reused=embedded.reused,
        decoded=embedded.decoded,
        skipped=embedded.skipped,
        deleted=listing.deleted,
        upserted=listing.upserted,
        duplicates=embedded.duplicates,
        plan=indexed.plan,
        recall=indexed.recall,
        comparison=judgement.comparison,
        refused=judgement.refused,
        seconds=job.clock.seconds,
        provider=job.encoder.provider,
        warnings=(*warnings, *indexed.warnings, *judgement.warnings),
        activated=activated,
    )


def check_plan(count: int, dim: int, memory_budget_bytes: int | None, target_recall: float) -> None:
    """Refuse, before hours of embedding, what can't be indexed afterwards: raises BudgetTooSmall or ValueError."""
    plan.plan(max(1, count), dim, memory_budget_bytes=memory_budget_bytes, target_recall=target_recall)


def default_recall(index_dir: Path) -> float:
    """The recall@10 of searches that name none, as the active version was built for; else that of a new index."""
    try:
        number = version.active_version(index_dir)
        known = manifest.read_version(version.version_dir(index_dir, number)).plan if number else {}
    except (VersionError, ManifestError):  # which this build is to replace
        known = {}
    return float(known.get("target_recall", plan.TARGET_RECALL))


def _open_catalog(index_dir: Path) -> tuple[Catalog, tuple[str, ...]]:
    """The catalogue, as searched; a damaged index must not keep its images from being indexed again: a warning."""
    try:
        catalog = adopt.open_catalog(index_dir)
    except (ManifestError, VersionError) as error:
        return Catalog(index_dir), (f"what was indexed before is not in the catalogue: {error}",)
    try:
        adopt.settle(index_dir, catalog)
    except ManifestError as error:
        return catalog, (f"what an unfinished build left in the catalogue stays in it: {error}",)
    return catalog, ()


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


def _draft(job: Job, embedded: Embedded, indexed: Indexed, sequence: int) -> VersionManifest:
    return VersionManifest(
        index=job.index_dir.name,
        # Only the sole builder publishes, so the next number stays free.
        version=version.next_number(job.index_dir),
        model=job.encoder.model,
        dim=job.encoder.dim,
        count=embedded.count,
        skipped=len(embedded.skipped),
        plan=dataclasses.asdict(indexed.plan),
        recall=dataclasses.asdict(indexed.recall),
        build={},
        software=_software(),
        sequence=sequence,
    )


def _publish(job: Job, staging: Path, draft: VersionManifest, judgement: Judgement) -> int:
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    receipt = dataclasses.replace(
        draft,
        build={**{f"{stage}_s": seconds for stage, seconds in job.clock.seconds.items()}, "peak_bytes": peak_bytes},
        candidate=dataclasses.asdict(judgement.comparison) if judgement.comparison else {},
        refused=judgement.refused,
    )
    with job.clock.stage("publish"):
        manifest.publish(staging, version.version_dir(job.index_dir, draft.version), receipt)
    return draft.version


def _take_over(job: Job, catalog: Catalog, number: int, progress: Progress) -> tuple[str, ...]:
    """Make a published version the one that is searched; gives warnings."""
    published = version.open_version(version.version_dir(job.index_dir, number), verify=False)
    adopt.take_in(job.index_dir, catalog, published)
    embed_pending(catalog, job.encoder, published.manifest.sequence, progress)
    return adopt.switch(job.index_dir, catalog, number)


def _software() -> dict[str, str]:
    return {
        "faiss": faiss.__version__,
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }


def _nothing(skipped: tuple[tuple[str, str], ...]) -> str:
    if not skipped:
        return "there is no item to index: nothing is upserted, and nothing of a collection is left"
    item, reason = skipped[0]
    return f"none of the {len(skipped):,} items can be indexed; the first, {item}: {reason}"
