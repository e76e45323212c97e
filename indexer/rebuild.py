"""Rebuild an index from what its catalogue says is live, and new images; measured before it is searched.

The candidate becomes active if nothing speaks against it (`indexer.candidate.objections`); otherwise it is kept, and
its manifest says why.

RebuildError
├── NoActiveVersion   there is nothing to rebuild
└── ImagesGone        nothing was learned, as the version could not be activated
LabelsError, BuildError, BuildInProgress and the errors of the parts   as of `indexer.labels` and `indexer.build`
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from indexer import adopt, manifest, version
from indexer.build import BuildReport, Job, Judge, Judgement, check_plan, default_recall, evolve
from indexer.calibrate import calibrate_like, calibration_of, no_calibration
from indexer.calibration import CalibrationError
from indexer.candidate import FEWEST, MIN_RECALL, compare, labelled_rows, objections, too_many_lost
from indexer.codes import Clock
from indexer.embedding import CHANGED, Progress
from indexer.encoder import Device, Encoder
from indexer.entries import Entry, Listing, list_entries, warn_of_unfindable
from indexer.labels import read_classes, read_few
from indexer.learning import Lesson, forget_lesson, lesson
from indexer.manifest import ManifestError, VersionManifest
from indexer.source import UNREADABLE
from indexer.sources import Collection, open_collection
from indexer.staging import sole_builder
from indexer.store import Store
from indexer.version import NoSuchVersion, Version


class RebuildError(Exception):
    """An index can't be rebuilt as asked; the message says why. The active version is as it was."""


class NoActiveVersion(RebuildError):
    """An index has no active version."""


class ImagesGone(RebuildError):
    """The images of too many items can't be read for what is learned from the others to be activated."""


def rebuild(
    name: str,
    images: Path | None = None,
    *,
    store: Store,
    model: str | None = None,
    target_recall: float | None = None,
    min_recall: float | None = None,
    labels: Path | None = None,
    memory_budget_bytes: int | None = None,
    device: Device = "auto",
    learn: Callable[[Lesson], str] | None = None,
    few_labels: Path | None = None,
    settings: str = "",
    activate: bool = True,
    warn: Callable[[str], None] = lambda _: None,
    progress: Progress,
) -> BuildReport:
    """Build the next version of an index from all that its catalogue says is live, and activate it if it is good.

    What was upserted is in it and what was deleted is not. An image that the last versions hold under the same model
    is not decoded again. An interrupted rebuild leaves its finished rows, and the same call goes on after them. The
    active version is searched until the new one takes its place.

    Args:
        name: of the index.
        images: a collection whose images are added; an image takes the place of the one that came from an earlier
            collection under its id. None folds in what was upserted and deleted, and nothing else.
        store: that holds the index.
        model: id of the model, or its beginning; None for the active version's, which must not be lost then.
        target_recall: recall@10 of searches that name none, above 0 and at most 1; None for that of the active
            version, or 0.99.
        min_recall: recall@10 that the candidate needs, in [0, 1]; None for 0.95, or for `target_recall` where that is
            less.
        labels: CSV or Parquet table of `path,class_id[,split]`, only to judge with; where the active version's model
            is calibrated, they calibrate another one too, as do those of `few_labels` that judge.
        memory_budget_bytes: refuse a plan that needs more, to build or to serve.
        device: for the encoder, and for training where FAISS has GPUs.
        learn: trains on with all images from the model that was given, and says the id of what came out, which then
            embeds everything anew.
        few_labels: CSV or Parquet table of classes or pairs that `learn` learns from too. The candidate must then
            measure better by R@1 on items whose labels were not learned from, of this table or of `labels`; where
            there are none, the measure without labels decides, and a warning says so.
        settings: how `learn` learns; what it began with others is not gone on with.
        activate: make it the version that is searched, if nothing speaks against it.
        warn: told at once, before it learns, and not by the report, how many items the model can't find.
        progress: hears the stages `embed`, `train`, `add`, `measure` and `catch up`.

    Raises:
        RebuildError, BuildError: see the module's outline, also for the errors of the parts.
        KeyboardInterrupt: the finished rows stay for the next call.
    """
    index_dir = store.index(name)
    wanted = default_recall(index_dir) if target_recall is None else target_recall
    least = min(MIN_RECALL, wanted) if min_recall is None else min_recall
    if not 0 <= least <= 1:
        raise ValueError(f"min_recall is {least}; it must be 0 to 1")
    clock = Clock()
    with clock.stage("open"):
        chosen = store.model(model or model_of(store, name))
        collection = open_collection(images.absolute()) if images else None
    with sole_builder(index_dir):
        if learn is not None:
            with clock.stage("learn"):
                entries = _entries(index_dir, collection, warn)
                check_plan(len(entries), manifest.read_model(chosen).dim, memory_budget_bytes, wanted)
                if activate:
                    _check_images(index_dir, entries)
                begun = lesson(index_dir, chosen.name, collection, few_labels=few_labels, settings=settings)
                chosen = store.model(learn(begun))
        encoder = Encoder.open(chosen, device=device)
        active, damaged = _open_active(index_dir)
        gate = _Gate(store, active, encoder.model, least, labels, few_labels)
        job = Job(
            index_dir=index_dir,
            encoder=encoder,
            collection=collection,
            mirror=False,
            judge=gate.prepare,
            activate=activate,
            target_recall=wanted,
            memory_budget_bytes=memory_budget_bytes,
            device=device,
            clock=clock,
            warnings=damaged,
            warn=warn if learn is None else lambda _: None,
        )
        report = evolve(job, progress)
        if learn is not None:
            forget_lesson(index_dir)
        if active is not None and active.manifest.model != chosen.name:
            report = _with_warning_of_too_few(report, active.manifest.version)
            ended = no_calibration(store, active.manifest.model, report.model, report.version)
            report = dataclasses.replace(report, warnings=(*report.warnings, *ended))
        return _with_warning(report) if few_labels else report


def model_of(store: Store, name: str) -> str:
    """The id of the model of an index's active version; raises as `active_manifest`."""
    return active_manifest(store, name).model


def active_manifest(store: Store, name: str) -> VersionManifest:
    """The manifest of an index's active version.

    Raises:
        NoActiveVersion: it has none.
        NoSuchVersion: it is lost, and with it which model it was of.
        ManifestError: its manifest is damaged.
    """
    return manifest.read_version(version.version_dir(store.index(name), active_number(store, name)))


def active_number(store: Store, name: str) -> int:
    """The number of an index's active version.

    Raises:
        NoActiveVersion: it has none; the message says what to do about that.
        VersionError: the pointer is damaged, or that version is lost.
    """
    index_dir = store.index(name)
    active = version.active_version(index_dir)
    if active is not None:
        return active
    if known := ", ".join(map(str, version.list_versions(index_dir))):
        remedy = f"activate one by `kinsight index activate`: it has {known}"
    else:
        remedy = f"build one with `kinsight index build`. Indexes here: {', '.join(store.index_names()) or 'none'}"
    raise NoActiveVersion(f"index {name!r} has no active version; {remedy}")


def _entries(index_dir: Path, collection: Collection | None, warn: Callable[[str], None]) -> Sequence[Entry]:
    """What is to be learned from and embedded; of what the learned model won't find is told."""
    with closing(adopt.open_catalog(index_dir)) as catalog:
        warn_of_unfindable(catalog, None, warn)
        return list_entries(collection.sources if collection else (), catalog, mirror=False).entries


def _check_images(index_dir: Path, entries: Sequence[Entry]) -> None:
    """Refuse to learn, for hours maybe, what can't be activated: raises ImagesGone."""
    active, _ = _open_active(index_dir)
    if active is None:
        return
    gone = [entry.item for entry in entries if entry.source is not None and UNREADABLE in entry.source.state()]
    for objection in too_many_lost(len(active.rows_of(gone)), active.count):
        raise ImagesGone(f"nothing was learned: {objection}; or rebuild with --no-activate, to look at it first")


@dataclass(frozen=True)
class _Gate:
    """What a candidate has to pass."""

    store: Store
    active: Version | None
    model: str
    min_recall: float
    labels: Path | None
    few_labels: Path | None

    def prepare(self, listing: Listing) -> Judge:
        classes: Mapping[str, str] = {}
        if self.labels or self.few_labels:
            classes = self._classes(
                {entry.item: entry.source.path if entry.source else None for entry in listing.entries}
            )
        without_image = {entry.item for entry in listing.entries if entry.source is None and not entry.sha256}
        return lambda candidate: self._judge(candidate, classes, without_image)

    def _classes(self, paths: Mapping[str, Path | None]) -> Mapping[str, str]:
        """Labels to judge with; those that were learned from would praise any model that knows them by heart."""
        classes = read_classes(self.labels, paths) if self.labels else {}
        if self.few_labels is None:
            return classes
        few = read_few(self.few_labels, paths)
        return {item: name for item, name in (classes or few.held_out).items() if item not in few.learned}

    def _judge(self, candidate: Version, classes: Mapping[str, str], without_image: set[str]) -> Judgement:
        comparison, lost, searched = None, 0, 0
        if self.active is not None:
            comparison = compare(candidate, self.active, classes=classes)
            skipped = (item for item, reason in candidate.skipped() if reason != CHANGED)
            unreadable = [item for item in skipped if item not in without_image]
            lost, searched = len(self.active.rows_of(unreadable)), self.active.count
        found = objections(
            candidate.manifest.recall["recall_at_10"],
            self.model,
            comparison,
            min_recall=self.min_recall,
            lost=lost,
            searched=searched,
            must_improve=self.few_labels is not None,
        )
        return Judgement(comparison, "; ".join(found), self._calibrate(candidate, classes))

    def _calibrate(self, candidate: Version, classes: Mapping[str, str]) -> tuple[str, ...]:
        """Calibrate a model as that of the active version is, or a swap would end searches by probability.

        By the labels that judge it, as far as they reach; a sentence that says so, or none.
        """
        before = calibration_of(self.store.models / self.active.manifest.model) if self.active else None
        model = self.store.models / self.model
        if not classes or before is None or calibration_of(model) is not None:
            return ()
        rows, numbers = labelled_rows(candidate, classes)
        try:
            fitted = calibrate_like(model, before, candidate.embeddings(rows), numbers)
        except (CalibrationError, OSError) as error:
            return (f"model {self.model} could not be calibrated by the labels that judge it: {error}",)
        told = (
            f"model {self.model} was calibrated by the {fitted.images:,} labelled items that judge it, so that "
            f"searches by probability go on: the error is {fitted.ece_pairs:.3f} over pairs; `kinsight calibrate` "
            f"takes other labels"
        )
        return (told,)


def _with_warning(report: BuildReport) -> BuildReport:
    """A report that says where no held-out label measured what was learned from labels."""
    if report.comparison is None or report.comparison.recall_at_1 is not None:
        return report
    warning = (
        "no label that was held out measured what was learned: only contrast decided, which tells a metric that fell "
        "apart; hold some out by a column split with test, two or more of a class, or give --labels of other items"
    )
    return dataclasses.replace(report, warnings=(*report.warnings, warning))


def _with_warning_of_too_few(report: BuildReport, active: int) -> BuildReport:
    """A report that says where nothing tells whether another model is better than the active version's."""
    if report.comparison is not None:
        return report
    warning = (
        f"nothing was compared with version {active}, though the model is another: fewer than {FEWEST} items are in "
        f"both with the same image, too few to say which is better; look at some searches before you rely on it"
    )
    return dataclasses.replace(report, warnings=(*report.warnings, warning))


def _open_active(index_dir: Path) -> tuple[Version | None, tuple[str, ...]]:
    """The version to compare with; one that is damaged or lost is what a rebuild is to replace."""
    try:
        active = version.active_version(index_dir)
    except NoSuchVersion:
        lost, *_ = version.pointed(index_dir)
        return None, (f"nothing was compared with version {lost}, which is lost",)
    if active is None:
        return None, ()
    try:
        return version.open_version(version.version_dir(index_dir, active)), ()
    except ManifestError as error:
        return None, (f"nothing was compared with version {active}, which is damaged: {error}",)
