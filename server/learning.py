"""What requests say of learning, as words of the `kinsight` command."""

import csv
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from kinsight.v1.labels_pb2 import LabelledPair, Labels

from indexer.manifest import write_atomically
from indexer.pairs import PairsError, pairs_of
from indexer.store import NotFound, Store
from indexer.tables import Table, class_name
from server.errors import InvalidLabels, InvalidLearning, ModelNotFound
from server.folders import Folders

# What the `kinsight` command knows, which does the work: the server imports nothing that learns.
RECIPES = ("digits", "stml", "stml-cub-cars", "stml-paper", "stml-paper-sop", "stml-sop")
LEARNING_METHODS = ("stml-semi", "cmsf-semi", "supervised")
CHOOSING_METHODS = ("usl", "usl-t")

_RELATIONS = {LabelledPair.RELATION_SAME: "same", LabelledPair.RELATION_DIFFERENT: "different"}
_DIGEST_LENGTH = 32
_OWN_TABLE = re.compile(rf".*/labels/[0-9a-f]{{{_DIGEST_LENGTH}}}\.csv", re.DOTALL)
_LINE = re.compile(r"(, |\()line ([0-9]+)(?=[:)])")  # as messages have it; a path may speak of lines too


def model_id(store: Store, reference: str) -> str:
    """The id of a model of the store; raises ModelNotFound."""
    try:
        return store.model(reference).name
    except NotFound as error:
        raise ModelNotFound(str(error)) from error


def named(option: str, name: str, known: Sequence[str]) -> Sequence[str]:
    """The words that choose a recipe or a method; none where the request leaves it open.

    Raises:
        InvalidLearning: it is not one of those that are known.
    """
    if not name:
        return []
    if name not in known:
        raise InvalidLearning(f"{name[:80]!r} is no {option.removeprefix('--')}; there are: {', '.join(known)}")
    return [option, name]


def passes(epochs: int) -> Sequence[str]:
    """The words that say how many passes over the images; none for 0.

    Raises:
        InvalidLearning: there are fewer.
    """
    return _count("--epochs", "epochs", epochs, "the recipe's own")


def bounded(memory_bytes: int) -> Sequence[str]:
    """The words that say how much memory learning may take; none for 0.

    Raises:
        InvalidLearning: there is less.
    """
    return _count("--learn-memory", "learn_memory_bytes", memory_bytes, "no limit")


def _count(option: str, field: str, count: int, otherwise: str) -> Sequence[str]:
    if count < 0:
        raise InvalidLearning(f"{field} is {count}; it must be 1 or more, or 0 for {otherwise}")
    return [option, str(count)] if count else []


def seeded(seed: int) -> Sequence[str]:
    """The words that say where the random generators begin.

    Raises:
        InvalidLearning: none takes it.
    """
    if seed < 0:
        raise InvalidLearning(f"seed is {seed}; it must be 0 or more")
    return ["--seed", str(seed)]


def doubting(keep_doubted: bool) -> Sequence[str]:
    """The words that say to learn also from labels that are likely wrong; none where they are to be left out."""
    return ["--keep-doubted"] if keep_doubted else []


def among(things: int) -> Sequence[str]:
    """The words that say how many different things a collection shows; none for 0.

    Raises:
        InvalidLearning: there are fewer than two.
    """
    if things < 0 or things == 1:
        raise InvalidLearning(f"things is {things}; it must be 2 or more, or 0 for as many as are labelled")
    return ["--things", str(things)] if things else []


def table_of(labels: Labels, store: Store, folders: Folders) -> Path:
    """The table of labels that a request names, or one of those that came with it; called on threads.

    Raises:
        InvalidLabels: there are none, in more than one form, with an empty path, or contradictory.
        InvalidPath, PathNotAllowed, PathNotFound: as of `Folders.to_read`.
        OSError: the disk is full or fails.
    """
    if sum(map(bool, (labels.path, labels.images, labels.pairs))) != 1:
        raise InvalidLabels("labels must have exactly one of path, images and pairs")
    if labels.path:
        return folders.to_read(labels.path)
    text = _table(_pair_rows(labels) if labels.pairs else _image_rows(labels)).encode()
    store.labels.mkdir(parents=True, exist_ok=True)
    # By its digest: the same request again is the same words.
    path = store.labels.absolute() / f"{hashlib.sha256(text).hexdigest()[:_DIGEST_LENGTH]}.csv"
    if not path.exists():
        write_atomically(path, text)
    return path


def by_field(text: str, words: Sequence[str]) -> str:
    """What a job says of the table that `table_of` made for it, by the field of the request that it was made of.

    Args:
        text: what it says.
        words: of the job.
    """
    for table in filter(_OWN_TABLE.fullmatch, words):
        if table in text:
            # The labels are in the request, without a header: who sent them can't look at lines.
            text = _by_rows(text.replace(table, _field_of(Path(table))), _rows_by_line(Path(table)))
    return text


def _by_rows(text: str, row_of: Mapping[int, int]) -> str:
    def row(line: re.Match[str]) -> str:
        number = int(line[2])
        return f"{line[1]}row {row_of.get(number, number - 1)}"

    return _LINE.sub(row, text)


def _field_of(table: Path) -> str:
    try:
        with table.open("rb") as file:
            pairs = file.readline().startswith(b"path_a")
    except OSError:  # it is gone with the rest of its store, say
        return "labels"
    return "labels.pairs" if pairs else "labels.images"


def _rows_by_line(table: Path) -> dict[int, int]:
    """The rows of a table after its header, from 1, by the lines that they begin in: a cell may go over several."""
    row_of: dict[int, int] = {}
    with suppress(OSError, csv.Error), table.open(newline="", encoding="utf-8") as file:
        rows, line = csv.reader(file), 1
        for number, _ in enumerate(rows):
            row_of[line] = number
            line = rows.line_num + 1
    return row_of


def _image_rows(labels: Labels) -> list[tuple[str, ...]]:
    judged = any(row.held_out for row in labels.images)
    rows: list[tuple[str, ...]] = [("path", "class_id", *(["split"] if judged else []))]
    known: dict[str, tuple[str, bool]] = {}
    for number, row in enumerate(labels.images):
        if not row.path:
            raise InvalidLabels(f"labels.images[{number}] has no path")
        said = (class_name(row.class_id), row.held_out)
        if said[0] and known.setdefault(row.path, said) != said:
            one, other = known[row.path][0], said[0]
            two = "is held out and learned from" if one == other else f"has two classes, {one!r} and {other!r}"
            raise InvalidLabels(f"labels.images[{number}]: {row.path!r} {two}; an image has one label")
        split = ["test" if row.held_out else "train"] if judged else []
        rows.append((row.path, row.class_id, *split))
    if not known:
        raise InvalidLabels(f"none of the {len(labels.images):,} labels.images has a class_id; write one into some")
    return rows


def _pair_rows(labels: Labels) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("path_a", "path_b", "relation")]
    for number, row in enumerate(labels.pairs):
        if not row.path_a or not row.path_b or row.relation not in _RELATIONS:
            raise InvalidLabels(f"labels.pairs[{number}] needs path_a, path_b, and a relation: same or different")
        rows.append((row.path_a, row.path_b, _RELATIONS[row.relation]))
    _check_pairs(rows)
    return rows


def _check_pairs(rows: Sequence[tuple[str, ...]]) -> None:
    """Refuse contradictory pairs by their images; whoever learns would tell of lines of our own table."""
    header, *pairs = rows
    columns = dict(zip(header, map(list, zip(*pairs, strict=True)), strict=True))
    try:
        pairs_of("labels.pairs", Table(columns, None), str)
    except PairsError as error:
        raise InvalidLabels(str(error)) from error


def _table(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)  # else "\r" in a cell would not be quoted, and end a line
    return text.getvalue()
