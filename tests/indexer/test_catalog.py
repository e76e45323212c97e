"""The catalogue: what it takes, what it refuses, and that what it acknowledged stays, whatever happens to it."""

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.catalog import Catalog, RequestReused, UnknownContent
from indexer.records import Change, InvalidEmbedding, Item, Outcome, Upsert
from indexer.requests import REMEMBER_S
from indexer.rows import Embeddings
from tests.conftest import nested
from tests.indexer.collected import mirror

DIM = 8


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    """An empty catalogue."""
    catalog = Catalog(tmp_path)
    yield catalog
    catalog.close()


def unit(seed: int) -> Embeddings:
    """(8,) float32 of unit length; another seed, another direction."""
    vector = np.random.default_rng(seed).standard_normal(DIM)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def put(catalog: Catalog, *items: str, model: str = "m", **more: Any) -> list[Outcome]:
    """Upsert items, each with the embedding `unit(its place)`."""
    return catalog.upsert([Upsert(item, unit(place), model, **more) for place, item in enumerate(items)], dim=DIM)


def told(catalog: Catalog, after: int = 0, model: str = "m") -> dict[str, tuple[bool, list[float] | None]]:
    """What `changes` says: live, and the embedding as a list."""
    return {
        change.item: (
            change.live,
            None if change.vector is None else np.frombuffer(change.vector, np.float32).tolist(),
        )
        for change in catalog.changes(after, model)
    }


def reasons(outcomes: list[Outcome]) -> list[str]:
    """Why each item was refused; "" where it was taken."""
    return [outcome.reason for outcome in outcomes]


def test_what_was_upserted_is_there_after_reopening(tmp_path: Path) -> None:
    """Embedding, payload, source, image and sequence of each item come back from a new catalogue object."""
    first = Catalog(tmp_path)
    image = b"not decoded here"
    upserts = [
        Upsert("a", unit(1), "m", payload={"tags": ["x", "ü"], "n": 1.5, "deep": {"none": None}}),
        Upsert("b", unit(2), "m", image=image),
        Upsert("c", unit(3), "m", source=Path("/photos/c\udcff.jpg"), sha256="5" * 64),
    ]
    assert [Outcome("a", 1), Outcome("b", 2), Outcome("c", 3)] == first.upsert(upserts, dim=DIM)
    first.close()
    second = Catalog(tmp_path)
    digest = hashlib.sha256(image).hexdigest()
    expected = [
        Item("a", 1, False, {"tags": ["x", "ü"], "n": 1.5, "deep": {"none": None}}, None, None),
        Item("b", 2, False, None, None, digest),
        Item("c", 3, False, None, Path("/photos/c\udcff.jpg"), "5" * 64),
    ]
    assert expected == second.page()
    assert expected == [second.get(item) for item in "abc"]
    assert image == second.image(digest)
    assert {"a": (True, unit(1).tolist()), "b": (True, unit(2).tolist()), "c": (True, unit(3).tolist())} == told(
        second
    )
    assert second.sequence() == 3
    second.close()


@pytest.mark.parametrize(
    ("upsert", "reason", "message"),
    [
        (Upsert("", unit(0), "m"), "INVALID_ITEM", "has 0 bytes"),
        (Upsert("a\0b", unit(0), "m"), "INVALID_ITEM", "none of them zero"),
        (Upsert("\ud800", unit(0), "m"), "INVALID_ITEM", "is not text"),
        (Upsert("ü" * 3000, unit(0), "m"), "INVALID_ITEM", "6,000 bytes; it must have 1 to 4,096"),
        (Upsert("x", unit(0) * 2, "m"), "INVALID_EMBEDDING", "length 2; it must be 1"),
        (Upsert("x", unit(0) * np.float32(np.nan), "m"), "INVALID_EMBEDDING", "length nan"),
        (Upsert("x", unit(0) * np.float32(np.inf), "m"), "INVALID_EMBEDDING", "length inf"),
        (Upsert("x", unit(0)[:4], "m"), "INVALID_EMBEDDING", r"float32 \(4,\); model m makes float32 \(8,\)"),
        (Upsert("x", unit(0).astype(np.float64), "m"), "INVALID_EMBEDDING", "float64"),
        (Upsert("x", unit(0)), "INVALID_EMBEDDING", "without the id of its model"),
        (Upsert("x", payload={"n": 1}), "ITEM_NOT_FOUND", "send its image or embedding"),
        (Upsert("x", unit(0), "m", payload={"n": float("nan")}), "INVALID_PAYLOAD", "not a JSON object"),
        (Upsert("x", unit(0), "m", payload={"n": "\ud800"}), "INVALID_PAYLOAD", "not a JSON object"),
        (Upsert("x", unit(0), "m", payload={"n": b""}), "INVALID_PAYLOAD", "not a JSON object"),
        (Upsert("x", unit(0), "m", payload={"n": [-(10**400)]}), "INVALID_PAYLOAD", "beyond the 64-bit floats"),
        (Upsert("x", unit(0), "m", payload=nested(31)), "INVALID_PAYLOAD", "more than 30 deep"),
        (Upsert("x", unit(0), "m", payload=[1]), "INVALID_PAYLOAD", "of type list"),  # type: ignore[arg-type]
        (
            Upsert("x", unit(0), "m", payload={"n": "x" * 65_536}),
            "PAYLOAD_TOO_LARGE",
            "65,544 bytes as JSON; at most 65,536",
        ),
    ],
)
def test_a_bad_item_is_refused_and_the_others_are_taken(
    catalog: Catalog, upsert: Upsert, reason: str, message: str
) -> None:
    """Each item of a batch has its own outcome, which names the value and the limit."""
    good = [Upsert("first", unit(1), "m"), Upsert("last", unit(2), "m")]
    outcomes = catalog.upsert([good[0], upsert, good[1]], dim=DIM)
    assert ["", reason, ""] == reasons(outcomes)
    assert [outcome.sequence for outcome in outcomes] == [1, 0, 2]
    assert re.search(message, outcomes[1].message)
    assert [item.item for item in catalog.page()] == ["first", "last"]


def test_the_largest_payload_is_taken(catalog: Catalog) -> None:
    """A payload of exactly 64 KiB as JSON is stored."""
    payload = {"n": "x" * (65_536 - len('{"n":""}'))}
    assert reasons(catalog.upsert([Upsert("a", unit(0), "m", payload=payload)], dim=DIM)) == [""]
    assert payload == catalog.get("a").payload


def test_the_first_of_equal_ids_is_taken(catalog: Catalog) -> None:
    """An id that comes twice in a batch is taken once, and refused after that."""
    assert reasons(put(catalog, "a", "b", "a", "a")) == ["", "", "DUPLICATE_ITEM", "DUPLICATE_ITEM"]
    assert unit(0).tolist() == told(catalog)["a"][1]


def test_an_upsert_replaces_the_content_and_keeps_the_payload(catalog: Catalog) -> None:
    """New content takes the place of old embeddings and images; no payload keeps the old one, and {} is a payload."""
    old, new = b"old image", b"new image"
    catalog.upsert([Upsert("a", unit(0), "m", image=old, payload={"n": 1})], dim=DIM)
    catalog.upsert([Upsert("a", unit(1), "other", image=new)], dim=DIM)
    assert catalog.get("a").payload == {"n": 1}
    assert told(catalog)["a"] == (True, None)
    assert (True, unit(1).tolist()) == told(catalog, model="other")["a"]
    with pytest.raises(UnknownContent):
        catalog.image(hashlib.sha256(old).hexdigest())
    assert new == catalog.image(hashlib.sha256(new).hexdigest())
    catalog.upsert([Upsert("a", payload={})], dim=DIM)
    assert catalog.get("a").payload == {}
    assert (True, unit(1).tolist()) == told(catalog, model="other")["a"]
    assert new == catalog.image(hashlib.sha256(new).hexdigest())


def test_an_image_stays_as_long_as_an_item_has_it(catalog: Catalog) -> None:
    """Two items may have one image; its bytes go when the second of them does."""
    digest = hashlib.sha256(b"shared").hexdigest()
    put(catalog, "a", "b", image=b"shared")
    catalog.delete(["a"])
    assert catalog.image(digest) == b"shared"
    catalog.delete(["b"])
    with pytest.raises(UnknownContent, match=digest[:12]):
        catalog.image(digest)


def test_a_batch_may_hand_an_image_on(catalog: Catalog) -> None:
    """An image that one item of a batch gives up and another takes stays; one that all give up goes."""
    catalog.upsert([Upsert("a", image=b"one"), Upsert("b", image=b"two")], dim=DIM)
    catalog.upsert([Upsert("a", image=b"three"), Upsert("b", image=b"one")], dim=DIM)
    one, two, three = (hashlib.sha256(image).hexdigest() for image in (b"one", b"two", b"three"))
    assert [catalog.image(one), catalog.image(three)] == [b"one", b"three"]
    with pytest.raises(UnknownContent):
        catalog.image(two)


def test_a_refused_item_may_not_come_again_in_its_batch(catalog: Catalog) -> None:
    """Of equal ids all but the first are refused, also where the first was."""
    twice = [Upsert("a", unit(0) * 2, "m"), Upsert("a", unit(0), "m")]
    assert reasons(catalog.upsert(twice, dim=DIM)) == ["INVALID_EMBEDDING", "DUPLICATE_ITEM"]
    assert told(catalog) == {}


def test_deleted_items_are_gone_until_they_are_upserted_again(catalog: Catalog) -> None:
    """A deletion is a change without content; deleting again changes nothing; unknown ids are refused."""
    put(catalog, "a", "b")
    outcomes = catalog.delete(["a", "never", "a", ""])
    assert [(outcome.reason, outcome.sequence) for outcome in outcomes] == [
        ("", 3),
        ("ITEM_NOT_FOUND", 0),
        ("", 0),
        ("INVALID_ITEM", 0),
    ]
    assert {"a"} == catalog.deleted()
    assert [Change("a", 3, False, None, None)] == list(catalog.changes(2, "m"))
    with pytest.raises(UnknownContent, match="there is no item 'a'"):
        catalog.get("a")
    put(catalog, "a")
    assert set() == catalog.deleted()
    assert (catalog.count(), catalog.sequence()) == (2, 4)


@pytest.mark.parametrize("item", ["", "\0", "\ud800", "'; DROP TABLE items; --"])
def test_unknown_ids_are_refused(catalog: Catalog, item: str) -> None:
    """Ids that no item has, whatever they hold, are UnknownContent."""
    with pytest.raises(UnknownContent):
        catalog.get(item)


def test_many_items_are_read_at_once(catalog: Catalog) -> None:
    """Live ones with their payloads, each under its own id; what is deleted or never was is left out."""
    put(catalog, 'it\'s "quoted"', "grün", payload={"colour": "green"})
    put(catalog, "gone", "plain")
    catalog.delete(["gone"])
    known = catalog.known(["plain", "never", "grün", "gone", 'it\'s "quoted"'])
    assert known == {item: catalog.get(item) for item in ("plain", "grün", 'it\'s "quoted"')}
    assert known["grün"].payload == {"colour": "green"}
    assert catalog.known([]) == {}


def test_pages_follow_one_another(catalog: Catalog) -> None:
    """Pages give every live item once, in the order of their ids' bytes."""
    names = ["b", "a", "é", "z", "𝄞", "\uffff"]
    put(catalog, *names)
    found, after = list[str](), ""
    while page := catalog.page(after, limit=2):
        found += [item.item for item in page]
        after = found[-1]
    assert sorted(names, key=str.encode) == found


def test_a_repeated_request_changes_nothing(catalog: Catalog, tmp_path: Path) -> None:
    """The same id with the same content gives the first outcomes again, also in another process's catalogue."""
    batch = [Upsert("a", unit(0), "m", payload={"x": 1, "y": 2}), Upsert("", unit(1), "m")]
    first = catalog.upsert(batch, dim=DIM, request_id="r1")
    catalog.delete(["a"], request_id="r2")
    again = [Upsert("a", unit(0), "m", payload={"y": 2, "x": 1}), batch[1]]
    other = Catalog(tmp_path)
    assert first == other.upsert(again, dim=DIM, request_id="r1")
    assert [Outcome("a", 2)] == other.delete(["a"], request_id="r2")
    assert ({"a"}, 2) == (catalog.deleted(), catalog.sequence())
    other.close()


def test_an_image_embedded_anew_is_the_same_request(catalog: Catalog) -> None:
    """What makes a request with images is their bytes, not the embeddings that some model made of them."""
    first = catalog.upsert([Upsert("a", unit(0), "m", image=b"image")], dim=DIM, request_id="r")
    assert first == catalog.upsert([Upsert("a", unit(1), "newer", image=b"image")], dim=DIM, request_id="r")


@pytest.mark.parametrize(
    "change",
    [
        lambda catalog: catalog.upsert([Upsert("b", unit(0), "m")], dim=DIM, request_id="r"),
        lambda catalog: catalog.upsert([Upsert("a", unit(1), "m")], dim=DIM, request_id="r"),
        lambda catalog: catalog.upsert([Upsert("a", unit(0), "n")], dim=DIM, request_id="r"),
        lambda catalog: catalog.upsert([Upsert("a", unit(0), "m", payload={})], dim=DIM, request_id="r"),
        lambda catalog: catalog.upsert([], dim=DIM, request_id="r"),
        lambda catalog: catalog.delete(["a"], request_id="r"),
    ],
)
def test_a_request_id_is_good_for_one_content(catalog: Catalog, change: Callable[[Catalog], Any]) -> None:
    """The same request id with another content is refused and changes nothing."""
    catalog.upsert([Upsert("a", unit(0), "m")], dim=DIM, request_id="r")
    with pytest.raises(RequestReused, match="request id 'r'"):
        change(catalog)
    assert ([item.item for item in catalog.page()], catalog.sequence()) == (["a"], 1)


def test_requests_are_forgotten_after_a_day(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request id that is older than a day is as good as new; a younger one is not."""
    now_s = time.time()
    catalog.delete(["a"], request_id="old")
    monkeypatch.setattr(time, "time", lambda: now_s + REMEMBER_S - 60)
    catalog.delete(["a"], request_id="young")
    monkeypatch.setattr(time, "time", lambda: now_s + REMEMBER_S + 60)
    catalog.delete(["a"], request_id="now")
    catalog.delete(["b"], request_id="old")
    with pytest.raises(RequestReused):
        catalog.delete(["b"], request_id="young")


def test_a_transaction_is_taken_as_a_whole(catalog: Catalog, tmp_path: Path) -> None:
    """Others see the calls of a transaction together and afterwards; an error in the block takes all of them back."""
    other = Catalog(tmp_path)
    with catalog.transaction():
        put(catalog, "a")
        with pytest.raises(RequestReused):
            _reuse(catalog)
        put(catalog, "b")
        assert other.page() == []
    assert [item.item for item in other.page()] == ["a", "b", "r"]
    with pytest.raises(KeyboardInterrupt):
        _interrupt(catalog)
    assert (catalog.count(), catalog.sequence()) == (3, 3)
    assert [Outcome("c", 4)] == put(catalog, "c")
    other.close()


def _interrupt(catalog: Catalog) -> None:
    with catalog.transaction():
        put(catalog, "c")
        raise KeyboardInterrupt


def _reuse(catalog: Catalog) -> None:
    catalog.upsert([Upsert("r", unit(0), "m")], dim=DIM, request_id="twice")
    catalog.upsert([Upsert("s", unit(0), "m")], dim=DIM, request_id="twice")


def test_changes_come_in_their_order_with_the_state_of_now(catalog: Catalog) -> None:
    """Each item changed after a sequence comes once, at its last change; more than one read's worth of them too."""
    names = [f"item {number}" for number in range(2_500)]
    put(catalog, *names)
    catalog.delete(names[:3])
    changes = list(catalog.changes(5, "m"))
    assert [*names[5:], *names[:3]] == [change.item for change in changes]
    assert [*range(6, 2_501), 2_501, 2_502, 2_503] == [change.sequence for change in changes]


def test_pending_items_get_another_models_embedding(catalog: Catalog) -> None:
    """Upserted items whose image is at hand wait for a new model; an item changed meanwhile goes on waiting."""
    put(catalog, "image 1", image=b"1")
    put(catalog, "image 2", image=b"2")
    put(catalog, "file", source=Path("/photos/file.jpg"))
    put(catalog, "embedding only")
    mirror(catalog, "mirrored")
    one, two, file = catalog.pending("new")
    assert [one.item, two.item, file.item] == ["image 1", "image 2", "file"]
    assert list(catalog.pending("new", two.sequence)) == [file]
    put(catalog, "image 2", image=b"2, but another")
    before = catalog.sequence()
    assert [catalog.embed(item, "new", unit(5)) for item in (file, one, two)] == [True, True, False]
    assert [item.item for item in catalog.pending("new")] == ["image 2"]
    assert dict.fromkeys(["file", "image 1"], (True, unit(5).tolist())) == told(catalog, before, "new")
    assert unit(0).tolist() == told(catalog)["file"][1]
    with pytest.raises(InvalidEmbedding):
        catalog.embed(one, "new", unit(5) * 2)


def test_contents_gives_every_live_item_with_its_embedding(catalog: Catalog) -> None:
    """Live items come in the order of their ids, with the embedding by the model asked for, or without."""
    put(catalog, "b", "a", payload={"n": 1})
    put(catalog, "c", model="other")
    put(catalog, "x")
    catalog.delete(["x"])
    vectors = {one.item.item: one.vector is not None for one in catalog.contents("m")}
    assert list(vectors.items()) == [("a", True), ("b", True), ("c", False)]
    assert [one.vector for one in catalog.contents()] == [None, None, None]
    assert unit(1).tolist() == np.asarray(catalog.embedding("a", "m", None)).tolist()
    assert catalog.embedding("c", "m", None) is None
    assert catalog.embedding("a", "m", "of another image") is None
    assert list(catalog.payloads()) == [("a", '{"n":1}'), ("b", '{"n":1}')]
