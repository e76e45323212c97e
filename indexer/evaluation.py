"""How good a published version is: recall against exact search, and its metric with labels and without."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indexer import evaluate, plan, version
from indexer.candidate import Comparison, compare, contrasts, labelled_rows, nearest_hits, sampled_rows
from indexer.codes import shuffled_rows
from indexer.embedding import Progress
from indexer.evaluate import Recall
from indexer.ivfpq import MEASURED_K
from indexer.labels import read_classes
from indexer.version import Version


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured of a version.

    Attributes:
        version: its number.
        model: its model.
        recall: recall@10 against exact search, as it is searched by default.
        contrast: how far nearest neighbours stand out, see `indexer.candidate`; None below 3 items.
        recall_at_1: share of the labelled items whose nearest other one has their class, of those whose class another
            one has; None without any.
        labelled: how many labelled items it holds.
        comparison: with the active version; None where it is that itself, or too few items are in both.
    """

    version: int
    model: str
    recall: Recall
    contrast: float | None
    recall_at_1: float | None
    labelled: int
    comparison: Comparison | None


def evaluate_version(index_dir: Path, number: int, labels: Path | None, progress: Progress) -> Evaluation:
    """Measure a version of an index.

    Args:
        index_dir: of the index.
        number: of the version.
        labels: CSV or Parquet table of `path,class_id[,split]`; None for none.
        progress: hears the stages `verify` and `measure`.

    Raises:
        NoSuchVersion: there is none of this number.
        ManifestError: it is damaged.
        LabelsError, SourceError: the labels can't be used.
    """
    progress("verify", 0, 1)
    opened = version.open_version(version.existing_dir(index_dir, number))
    classes = read_classes(labels, {item: path for _, item, path, _ in opened.read_items()}) if labels else {}
    progress("verify", 1, 1)
    progress("measure", 0, 1)
    rows, numbers = labelled_rows(opened, classes)
    hits = nearest_hits(opened.embeddings(rows), numbers)
    measured = Evaluation(
        version=number,
        model=opened.manifest.model,
        recall=_recall(opened),
        contrast=float(contrasts(opened.embeddings(sampled_rows(opened))).mean()) if opened.count >= 3 else None,
        recall_at_1=float(hits.mean()) if len(hits) else None,
        labelled=len(rows),
        comparison=_comparison(index_dir, opened, classes),
    )
    progress("measure", 1, 1)
    return measured


def _recall(opened: Version) -> Recall:
    chosen = opened.manifest.plan
    if opened.index.codes is None:
        return evaluate.EXACT
    held = np.sort(shuffled_rows(opened.count)[: plan.held_out(opened.count)])
    queries = opened.embeddings(held)
    exact = opened.index.search_exact(queries, MEASURED_K + 1)
    found = opened.index.search(queries, MEASURED_K + 1, chosen["nprobe"], chosen["k_factor"])
    return evaluate.recall(exact, found, held)


def _comparison(index_dir: Path, opened: Version, classes: Mapping[str, str]) -> Comparison | None:
    active = version.active_version(index_dir)
    if active is None or active == opened.manifest.version:
        return None
    return compare(opened, version.open_version(version.version_dir(index_dir, active)), classes=classes)
