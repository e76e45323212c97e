"""Rebuild an index from what its catalogue says is live, and new images; measured before it is searched.

The candidate becomes active if nothing speaks against it (`indexer.candidate.objections`); otherwise it is kept, and
its manifest says why.

RebuildError
├── NoActiveVersion   there is nothing to rebuild
└── LabelsError       the labels can't be used
BuildError, BuildInProgress and the errors of the parts   as of `indexer.build`
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from indexer import manifest, plan, version
from indexer.build import BuildReport, Job, Judge, Judgement, evolve
from indexer.candidate import MIN_RECALL, compare, objections
from indexer.codes import Clock
from indexer.embedding import Progress
from indexer.encoder import Device, Encoder
from indexer.entries import Listing
from indexer.learning import Lesson, forget_lesson, lesson
from indexer.manifest import ManifestError
from indexer.source import item_of
from indexer.sources import open_collection
from indexer.staging import sole_builder
from indexer.store import Store
from indexer.tables import read_table
from indexer.version import Version


class RebuildError(Exception):
    """An index can't be rebuilt as asked; the message says why. The active version is as it was."""


class NoActiveVersion(RebuildError):
    """An index has no active version."""


class LabelsError(RebuildError, ValueError):
    """A labels table can't be used to judge an index."""


def rebuild(
    name: str,
    images: Path | None = None,
    *,
    store: Store,
    model: str | None = None,
    min_recall: float = MIN_RECALL,
    labels: Path | None = None,
    memory_budget_bytes: int | None = None,
    device: Device = "auto",
    learn: Callable[[Lesson], str] | None = None,
    activate: bool = True,
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
        model: id of the model, or its beginning; None for the active version's.
        min_recall: recall@10 that the candidate needs, in [0, 1].
        labels: CSV or Parquet table of `path,class_id[,split]`, only to judge with.
        memory_budget_bytes: refuse a plan that needs more, to build or to serve.
        device: for the encoder, and for training where FAISS has GPUs.
        learn: trains on with all images from the model that was given, and says the id of what came out, which then
            embeds everything anew.
        activate: make it the version that is searched, if nothing speaks against it.
        progress: hears the stages `embed`, `train`, `add`, `measure` and `catch up`.

    Raises:
        RebuildError, BuildError: see the module's outline, also for the errors of the parts.
        KeyboardInterrupt: the finished rows stay for the next call.
    """
    if not 0 <= min_recall <= 1:
        raise ValueError(f"min_recall is {min_recall}; it must be 0 to 1")
    index_dir = store.index(name)
    clock = Clock()
    with clock.stage("open"):
        chosen = store.model(model or model_of(store, name))
        collection = open_collection(images.absolute()) if images else None
        dim = manifest.read_model(chosen).dim
        plan.plan(len(collection.sources) if collection else 1, dim, memory_budget_bytes=memory_budget_bytes)
    with sole_builder(index_dir):
        if learn is not None:
            with clock.stage("learn"):
                chosen = store.model(learn(lesson(index_dir, chosen.name, collection)))
        encoder = Encoder.open(chosen, device=device)
        active, damaged = _open_active(index_dir)
        gate = _Gate(active, encoder.model, min_recall, labels)
        job = Job(
            index_dir=index_dir,
            encoder=encoder,
            collection=collection,
            mirror=False,
            judge=gate.prepare,
            activate=activate,
            memory_budget_bytes=memory_budget_bytes,
            device=device,
            clock=clock,
            warnings=damaged,
        )
        report = evolve(job, progress)
        if learn is not None:
            forget_lesson(index_dir)
        return report


def model_of(store: Store, name: str) -> str:
    """The id of the model of an index's active version.

    Raises:
        NoActiveVersion: it has none.
        ManifestError: its manifest is damaged.
    """
    index_dir = store.index(name)
    active = version.active_version(index_dir)
    if active is None:
        known = ", ".join(store.index_names()) or "none"
        raise NoActiveVersion(
            f"index {name!r} has no active version; build one with `kinsight index build`. Indexes here: {known}"
        )
    return manifest.read_version(version.version_dir(index_dir, active)).model


def read_classes(labels: Path, paths: Mapping[str, Path | None]) -> dict[str, str]:
    """The classes of items by a table `path,class_id[,split]`; what its split `train` names is left out.

    A path of the table is an item's id, or where its image lies: absolute, or relative to the table's folder.

    Args:
        labels: the table.
        paths: item to where its image lies.

    Raises:
        LabelsError: it names fewer than two of the items, or one of them twice with different classes.
        SourceError: it can't be read or lacks a column.
    """
    columns = read_table(labels, ["path", "class_id"], optional=["split"])
    splits = columns.get("split", [""] * len(columns["path"]))
    by_path = {str(path): item for item, path in paths.items() if path is not None}
    folder = labels.parent.absolute()
    classes: dict[str, str] = {}
    for cell, name, split in zip(columns["path"], columns["class_id"], splits, strict=True):
        item = item_of(cell) if item_of(cell) in paths else by_path.get(str(folder / cell))
        if item is None or split == "train":
            continue
        if classes.setdefault(item, name) != name:
            raise LabelsError(
                f"{labels} gives {cell!r} two classes, {classes[item]!r} and {name!r}; an image has one"
            )
    if len(classes) < 2:
        raise LabelsError(
            f"{labels} names {len(classes)} items of the index to judge on, of {len(columns['path']):,} paths; "
            "its paths must be item ids, or where the images lie"
        )
    return classes


@dataclass(frozen=True)
class _Gate:
    """What a candidate has to pass."""

    active: Version | None
    model: str
    min_recall: float
    labels: Path | None

    def prepare(self, listing: Listing) -> Judge:
        paths = {entry.item: entry.source.path if entry.source else None for entry in listing.entries}
        classes = read_classes(self.labels, paths) if self.labels else {}
        without_image = {entry.item for entry in listing.entries if entry.source is None and not entry.sha256}
        return lambda candidate: self._judge(candidate, classes, without_image)

    def _judge(self, candidate: Version, classes: Mapping[str, str], without_image: set[str]) -> Judgement:
        comparison, lost, searched = None, 0, 0
        if self.active is not None:
            comparison = compare(candidate, self.active, classes=classes)
            unreadable = [item for item, _ in candidate.skipped() if item not in without_image]
            lost, searched = len(self.active.rows_of(unreadable)), self.active.count
        found = objections(
            candidate.manifest.recall["recall_at_10"],
            self.model,
            comparison,
            min_recall=self.min_recall,
            lost=lost,
            searched=searched,
        )
        return Judgement(comparison, "; ".join(found))


def _open_active(index_dir: Path) -> tuple[Version | None, tuple[str, ...]]:
    """The version to compare with; a damaged one is what a rebuild is to replace."""
    active = version.active_version(index_dir)
    if active is None:
        return None, ()
    try:
        return version.open_version(version.version_dir(index_dir, active)), ()
    except ManifestError as error:
        return None, (f"nothing was compared with version {active}, which is damaged: {error}",)
