"""What `kinsight items upsert` is given, as upserts, and how they are sent."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.cli.output import Progress

if TYPE_CHECKING:
    from kinsight_client import Client, Embedding, Upsert

CHUNK = 1000  # items after which progress is told

_FIELDS = {"item", "image", "embedding", "model", "payload"}


@dataclass(frozen=True)
class Wanted:
    """One item to upsert, as it was given.

    Attributes:
        name: what to call it while its id is not known.
        fields: of an object as `kinsight items upsert --help` describes it, or the text of one.
    """

    name: str
    fields: Mapping[str, Any] | str


@dataclass
class Upserted:
    """What became of all items.

    Attributes:
        count: how many were taken.
        errors: item, or its name, and why it was not.
        last: what the last of them is called, while its id is not known; empty before the first.
    """

    count: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)
    last: str = ""


def wanted(images: Sequence[Path], item: str | None, payload: object, lines: Path | None) -> Iterator[Wanted]:
    """The items of images and of a file of JSON Lines, one at a time."""
    for path in images:
        name = path.as_posix() if item is None else item
        yield Wanted(str(path), {"item": name, "image": str(path), "payload": payload})
    if lines is not None:
        with lines.open(encoding="utf-8-sig", errors="surrogateescape") as file:  # `from_json` refuses the line alone
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield Wanted(f"{lines}, line {number}", line.strip())


def upsert_all(
    client: "Client", index: str, entries: Iterable[Wanted], total: int, report: Progress, done: Upserted
) -> None:
    """Upsert items as they come; one that can't be is told of, and the others go on.

    Args:
        client: of the server.
        index: its name.
        entries: the items.
        total: how many they are, as far as that is known.
        report: hears the stage `upsert`.
        done: what became of them, also where this raises.

    Raises:
        KinsightError: a call failed; the items up to the last one that is done are in the index, or named as errors.
    """
    entries = iter(entries)
    sent = 0
    while chunk := [*islice(entries, CHUNK)]:
        upserts = [*_possible(chunk, done)]
        results = client.items.upsert_many(upserts, index=index)
        done.errors += [(result.item, str(result.error)) for result in results if result.error]
        done.count += sum(result.error is None for result in results)
        done.last = chunk[-1].name
        sent += len(chunk)
        report("upsert", sent, max(sent, total))


def _possible(chunk: Iterable[Wanted], done: Upserted) -> Iterator["Upsert"]:
    for entry in chunk:
        name = entry.name
        try:
            fields = from_json(entry.fields) if isinstance(entry.fields, str) else entry.fields
            name = _item_of(fields)
            yield _upsert(fields)
        except (TypeError, ValueError) as error:  # UnicodeEncodeError is a ValueError, as JSON's errors are
            done.errors.append((name, str(error)))


def from_json(text: str) -> Any:
    """What a text of JSON says; raises ValueError where it is none, not UTF-8, or deeper than Python's own stack."""
    try:
        text.encode()
        return json.loads(text)
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8 text") from None
    except RecursionError:
        raise ValueError("is nested too deeply; a payload may have 30 objects and lists within each other") from None


def _item_of(fields: object) -> str:
    if not isinstance(fields, Mapping) or not isinstance(fields.get("item"), str):
        raise ValueError('is not an object with a text "item"')
    return str(fields["item"])


def _upsert(fields: Mapping[str, Any]) -> "Upsert":
    from kinsight_client import Upsert

    if unknown := fields.keys() - _FIELDS:
        raise ValueError(f"has the unknown field {min(unknown)!r}; there are: {', '.join(sorted(_FIELDS))}")
    if ("embedding" in fields) != ("model" in fields):
        raise ValueError("needs the embedding and the model that made it, or neither")
    image = fields.get("image")
    embedding = _embedding(fields["model"], fields["embedding"]) if "embedding" in fields else None
    return Upsert(fields["item"], None if image is None else Path(image), embedding, fields.get("payload"))


def _embedding(model: object, values: object) -> "Embedding":
    import numpy as np
    from kinsight_client import Embedding

    if not isinstance(model, str):
        raise ValueError(f"has the model {model!r}; it must be a text, the id of the model that made the embedding")
    row = np.asarray(values, np.float32)
    if row.ndim != 1:
        raise ValueError(f"has an embedding of the shape {row.shape}; it must be one list of numbers")
    return Embedding(model, row)
