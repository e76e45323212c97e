"""Which requests a catalogue has answered, so that a repeated one changes nothing and gets the same answer.

CatalogError
└── RequestReused   a request id came again with another content
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Sequence

from indexer.catalog_file import CatalogError, CatalogFile, seal
from indexer.records import Outcome, Upsert

REMEMBER_S = 24 * 3600.0


class RequestReused(CatalogError):
    """A request id came again with another content."""


def remembered(
    file: CatalogFile, connection: sqlite3.Connection, request_id: str, digest: str
) -> list[Outcome] | None:
    """What a request was answered; None where it is new.

    Raises:
        RequestReused: its id came with another digest.
    """
    query = "SELECT digest, outcomes, at_s, seal FROM requests WHERE request_id = ?"
    row = connection.execute(query, (request_id,)).fetchone()
    if row is None:
        return None
    if row[3] != seal(request_id, *row[:3]):
        raise file.unsealed(f"request {request_id!r}")
    if row[0] != digest:
        raise RequestReused(f"request id {request_id!r} came before with another content; use a new id")
    return [Outcome(*outcome) for outcome in json.loads(row[1])]


def remember(connection: sqlite3.Connection, request_id: str, digest: str, outcomes: Sequence[Outcome]) -> None:
    """Keep the answer of a request for a day."""
    now_s = time.time()
    connection.execute("DELETE FROM requests WHERE at_s < ?", (now_s - REMEMBER_S,))
    told = json.dumps(outcomes)
    row = (request_id, digest, told, now_s)
    connection.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?)", (*row, seal(*row)))


def digest_of_upserts(upserts: Iterable[Upsert]) -> str:
    """Equal for equal upserts."""
    return _digest("upsert", map(_fingerprint, upserts))


def digest_of_deletes(items: Iterable[str]) -> str:
    """Equal for equal deletions."""
    return _digest("delete", (item.encode("utf-8", "surrogatepass") for item in items))


def _digest(verb: str, parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256(verb.encode())
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _fingerprint(upsert: Upsert) -> bytes:
    # An image stands for its embedding: embedding it again, perhaps with a newer model, may give other bytes.
    content: object = None if upsert.embedding is None else (upsert.model, upsert.embedding.tobytes())
    if upsert.image is not None:
        content = hashlib.sha256(upsert.image).hexdigest()
    elif upsert.sha256 is not None:
        content = upsert.sha256
    try:
        payload = json.dumps(upsert.payload, sort_keys=True, default=repr)
    except (TypeError, ValueError, RecursionError) as error:  # it will be refused
        payload = repr(error)
    return repr((upsert.item, content, upsert.source, payload)).encode("utf-8", "surrogatepass")
