"""A model is calibrated with labels of images: read, embedded, fitted, and written to its manifest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from indexer import calibration, manifest
from indexer.calibration import Calibration, CalibrationError, Classes, Evidence, Fitted
from indexer.embedding import BATCH, Progress
from indexer.encoder import Device, Encoder
from indexer.finder import Finder
from indexer.labels import LabelsError, splits_of
from indexer.manifest import ManifestError
from indexer.pairs import PAIR_COLUMNS, PairsError, pairs_of
from indexer.rows import Embeddings
from indexer.sources import Collection, Source, decode_all, open_collection
from indexer.store import Store
from indexer.tables import Table, read_table

MAX_IMAGES = 5_000  # 12 million pairs: more of them move the curve by less than other classes would


@dataclass(frozen=True)
class Calibrated:
    """What calibrating a model did.

    Attributes:
        fitted: the curve, as the manifest has it now, and its reliability.
        skipped: (item, reason) of labelled images that could not be decoded.
        unknown: paths of the table that are not in the collection.
        warnings: what was left out, each a sentence.
    """

    fitted: Fitted
    skipped: tuple[tuple[str, str], ...]
    unknown: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Labelled:
    """Labels of one of two kinds.

    Attributes:
        class_of: of each labelled item; where labels are pairs, the number of the thing that it shows.
        pairs: of items, with whether they are the same; empty where labels are classes.
        unknown, warnings: as of `Calibrated`.
    """

    class_of: dict[str, str]
    pairs: dict[tuple[str, str], bool]
    unknown: tuple[str, ...]
    warnings: tuple[str, ...]


def calibrate(
    model: Path,
    images: Path,
    labels: Path,
    *,
    things: int | None = None,
    progress: Progress,
    device: Device = "auto",
    seed: int = 0,
) -> Calibrated:
    """Fit the curve of a model from similarity to probability, and write it to the model's manifest.

    Args:
        model: directory of the model.
        images: a collection, as `open_collection` takes it.
        labels: CSV or Parquet table `path,class_id[,split]`, of which rows of the split `train` are left out, because
            the metric may have learned them; or `path_a,path_b,relation`. Paths are relative to the collection or to
            the table's folder, or absolute.
        things: how many different things the collection shows that is searched; None for as many as are labelled.
        progress: hears the stages `embed` and `fit`.
        device: where to embed.
        seed: of the folds, and of the sample where more than 5,000 images are labelled.

    Raises:
        SourceError: the images or the table can't be read, or a column is missing.
        CalibrationError: the labels contradict themselves or are too few, or similarity says nothing of them.
        ManifestError, EncoderError: the model can't be opened.
        OSError: its manifest can't be written; the old calibration stays.
    """
    collection = open_collection(images)
    table = _read(labels, collection)
    if things and table.pairs:
        raise CalibrationError(
            f"{labels} has pairs, which do not say how many different things they show, so that probabilities can't "
            f"be made for {things:,} of them; leave that number out, or label classes"
        )
    drawn, warnings = _drawn(table, seed)
    sources = [source for source in collection.sources if source.item in drawn.class_of]
    digest_of, embeddings, skipped = _embed(Encoder.open(model, device=device), sources, progress)
    first_of = _firsts(drawn, digest_of)
    copies = _copies_told(labels, first_of)
    progress("fit", 0, 1)
    try:
        evidence = _evidence(drawn, first_of, embeddings, seed)
        if drawn is not table and not table.pairs:  # of drawn images, two are the same as often as of all
            evidence = replace(evidence, things=len(set(table.class_of.values())))
        fitted = calibration.fit(evidence, things)
    except CalibrationError as error:
        missing = (*_missing(labels, images, table.unknown, skipped), *copies)
        if not missing:
            raise
        raise CalibrationError("; ".join((str(error), *missing))) from error
    manifest.amend_model(model, fitted.calibration.fields())
    progress("fit", 1, 1)
    return Calibrated(fitted, skipped, table.unknown, (*collection.warnings, *table.warnings, *warnings, *copies))


def calibrate_like(
    model: Path, before: Calibration, embeddings: Embeddings, classes: Classes, seed: int = 0
) -> Calibration:
    """Fit and write the curve of a model that takes another's place, by labelled items of the collection searched.

    Args:
        model: directory of the model.
        before: of the other one; probabilities stay for as many different things, where it says so.
        embeddings: (N, D) float32 under the model, unit length.
        classes: (N,) of each.
        seed: of the folds, and of the sample where there are more than 5,000.

    Raises:
        CalibrationError: the labels are too few, or similarity says nothing of them.
        OSError: the manifest can't be written; the model stays as it was.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(classes))[:MAX_IMAGES])
    evidence = calibration.of_classes(embeddings[rows], classes[rows], seed)
    evidence = replace(evidence, things=len(np.unique(classes)))
    fitted = calibration.fit(evidence, before.things or None).calibration
    manifest.amend_model(model, fitted.fields())
    return fitted


def calibration_of(model: Path) -> Calibration | None:
    """The calibration of a model by its directory; None where it has none, or is damaged or gone."""
    try:
        return Calibration.of(manifest.read_model(model).calibration)
    except ManifestError:
        return None


def no_calibration(store: Store, before: str, model: str, number: int) -> tuple[str, ...]:
    """A warning where searches by probability end with a version whose model has no calibration; `before` had one."""
    if calibration_of(store.models / before) is None or calibration_of(store.models / model) is not None:
        return ()
    warning = (
        f"model {model} has no calibration, which model {before} has: searches of version {number} by probability "
        f"are refused until `kinsight calibrate {model}` with labels"
    )
    return (warning,)


def _read(labels: Path, collection: Collection) -> _Labelled:
    find = Finder(collection, labels)
    pairs = "path_a" in read_table(labels, [], optional=["path_a"])
    names = [*PAIR_COLUMNS] if pairs else ["path", "class_id"]
    columns = read_table(labels, names, optional=[] if pairs else ["split"])
    cells = [columns[name] for name in (("path_a", "path_b") if pairs else ("path",))]
    items = {cell: find(cell) for column in cells for cell in column}
    unknown = tuple(cell for cell, item in items.items() if item is None)
    table = (_pairs if pairs else _classes)(labels, columns, items)
    if not table.class_of:
        example = f", for example {unknown[0]!r}" if unknown else ""
        raise CalibrationError(
            f"{labels} labels none of the {len(collection.sources):,} images of {collection.root}: of its "
            f"{len(cells[0]):,} rows, {len(unknown):,} paths are not there{example}; paths are relative to that "
            f"folder or to the table's, a class_id must be filled in, and rows of the split train are left out where "
            f"there are others"
        )
    return _Labelled(table.class_of, table.pairs, unknown, table.warnings)


def _classes(labels: Path, columns: Table, items: dict[str, str | None]) -> _Labelled:
    try:
        splits = splits_of(labels, columns, "")
    except LabelsError as error:
        raise CalibrationError(str(error)) from error
    labelled = {split for name, split in zip(columns["class_id"], splits, strict=True) if name}
    learned = labelled > {"train"}
    class_of: dict[str, str] = {}
    for row, (cell, name, split) in enumerate(zip(columns["path"], columns["class_id"], splits, strict=True)):
        item = items[cell]
        if item is None or not name.strip() or (learned and split == "train"):
            continue
        if class_of.setdefault(item, name) != name:
            raise CalibrationError(
                f"{labels}, {columns.place(row)}: {cell!r} has two classes, {class_of[item]!r} and {name!r}; "
                "an image has one"
            )
    only_train = f"{labels} has no split but train: if the model learned these classes, the curve promises too much"
    return _Labelled(class_of, {}, (), (only_train,) if labelled == {"train"} else ())


def _pairs(labels: Path, columns: Table, items: dict[str, str | None]) -> _Labelled:
    try:
        pairs = pairs_of(labels, columns, items.__getitem__)
    except PairsError as error:
        raise CalibrationError(str(error)) from error
    class_of = {item: str(thing) for item, thing in pairs.thing_of.items()}
    return _Labelled(class_of, {**dict.fromkeys(pairs.same, True), **dict.fromkeys(pairs.different, False)}, (), ())


def _drawn(table: _Labelled, seed: int) -> tuple[_Labelled, tuple[str, ...]]:
    """The labels to calibrate with: all, or of too many those of images drawn at random."""
    items = sorted(table.class_of)
    if len(items) <= MAX_IMAGES:
        return table, ()
    rng = np.random.default_rng(seed)
    chosen = {items[place] for place in rng.choice(len(items), MAX_IMAGES, replace=False)}
    pairs: dict[tuple[str, str], bool] = {}
    if table.pairs:
        # Where images are in few pairs, hardly any pair has both of its own among those drawn: then pairs are drawn.
        among = [pair for pair in table.pairs if chosen.issuperset(pair)]
        pairs = {pair: table.pairs[pair] for pair in max(among, _some_pairs(list(table.pairs), rng), key=len)}
        chosen = {item for pair in pairs for item in pair}
    class_of = {item: name for item, name in table.class_of.items() if item in chosen}
    warning = f"{len(class_of):,} of the {len(items):,} labelled images were drawn at random to calibrate with"
    return replace(table, class_of=class_of, pairs=pairs), (warning,)


def _some_pairs(pairs: Sequence[tuple[str, str]], rng: np.random.Generator) -> list[tuple[str, str]]:
    """Pairs drawn at random, as many as are of 5,000 images."""
    drawn: list[tuple[str, str]] = []
    shown: set[str] = set()
    for place in rng.permutation(len(pairs)):
        shown.update(pairs[place])
        if len(shown) > MAX_IMAGES:
            break
        drawn.append(pairs[place])
    return drawn


def _missing(
    labels: Path, images: Path, unknown: Sequence[str], skipped: Sequence[tuple[str, str]]
) -> tuple[str, ...]:
    """What of the labels could not be used, each a clause; labels may be too few for it."""
    told = []
    if unknown:
        told.append(f"{len(unknown):,} paths of {labels} are not in {images}, for example {unknown[0]!r}")
    if skipped:
        item, reason = skipped[0]
        told.append(f"{len(skipped):,} labelled images could not be decoded, for example {item!r}: {reason}")
    return tuple(told)


def _embed(
    encoder: Encoder, sources: Sequence[Source], progress: Progress
) -> tuple[dict[str, str], Embeddings, tuple[tuple[str, str], ...]]:
    """The SHA-256 of each item that could be decoded, its row in the (N, D) embeddings by its place, and what not."""
    digest_of: dict[str, str] = {}
    skipped: list[tuple[str, str]] = []
    parts, waiting = [np.empty((0, encoder.dim), np.float32)], []
    for done, decoded in enumerate(decode_all(sources, encoder.pixels), start=1):
        if decoded.pixels is None:
            skipped.append((decoded.source.item, decoded.error or ""))
        else:
            digest_of[decoded.source.item] = decoded.sha256
            waiting.append(decoded.pixels)
        if waiting and (len(waiting) == BATCH or done == len(sources)):
            parts.append(encoder.embed(np.stack(waiting)))
            waiting = []
            progress("embed", done, len(sources))
    return digest_of, np.concatenate(parts), tuple(skipped)


def _firsts(table: _Labelled, digest_of: Mapping[str, str]) -> dict[str, str]:
    """For each item, in the order of the rows, the first one with its label whose file is the same; mostly itself.

    Two copies have a similarity of 1 under every model: such pairs say nothing of this one.
    """
    firsts: dict[tuple[str, str], str] = {}
    return {item: firsts.setdefault((table.class_of[item], digest), item) for item, digest in digest_of.items()}


def _copies_told(labels: Path, first_of: Mapping[str, str]) -> tuple[str, ...]:
    """What to tell of the copies: a clause, or none."""
    copies = [f"{item} = {first}" for item, first in first_of.items() if item != first]
    if not copies:
        return ()
    told = f"{len(copies):,} of the images that {labels} labels are byte for byte copies of others with that label"
    return (f"{told} and count once, for example {copies[0]}",)


def _evidence(table: _Labelled, first_of: Mapping[str, str], embeddings: Embeddings, seed: int) -> Evidence:
    classes = np.unique([table.class_of[item] for item in first_of], return_inverse=True)[1].astype(np.int64)
    row_of = {item: row for row, (item, first) in enumerate(first_of.items()) if item == first}
    if not table.pairs:
        counted = list(row_of.values())
        return calibration.of_classes(embeddings[counted], classes[counted], seed)
    there = {pair: same for pair, same in table.pairs.items() if first_of.keys() >= {*pair}}
    firsts = {tuple(sorted(map(first_of.__getitem__, pair))): same for pair, same in there.items()}
    kept = {pair: same for pair, same in firsts.items() if pair[0] != pair[1]}
    rows = np.array([(row_of[a], row_of[b]) for a, b in kept], np.int64).reshape(-1, 2)
    same = np.array(list(kept.values()), bool)
    similarities = np.einsum("pd,pd->p", embeddings[rows[:, 0]], embeddings[rows[:, 1]]).astype(np.float64)
    return calibration.of_pairs(similarities, same, classes[rows], len(row_of), seed)
