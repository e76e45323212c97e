"""Random sequences of all that changes an index, against a plain dict of what must be in it."""

import hashlib
import io
import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from indexer import adopt, pixels, version
from indexer.build import build
from indexer.catalog import Catalog
from indexer.encoder import Encoder
from indexer.filters import parse
from indexer.importing import import_items
from indexer.live import LiveIndex
from indexer.live_snapshot import Snapshot
from indexer.rebuild import rebuild
from indexer.records import Payload, Upsert
from indexer.rows import Embeddings
from indexer.snapshot import restore, snapshot
from indexer.store import Store
from tests.conftest import TINY_SIZE

NAME = "street"
SEEDS = int(os.environ.get("SEQUENCES", "2"))  # a second each; SEQUENCES=500 for a night
FILES = [f"{letter}.png" for letter in "abcdef"]
ITEMS = [*FILES, "up", "ü/☃"]  # an upsert may take the id of a file


@dataclass(frozen=True)
class Known:
    """A live item: the number of its image, its payload, and where a build found it."""

    image: int
    payload: Payload | None = None
    path: Path | None = None


class World:
    """An index of two folders that change, and what must be in it."""

    def __init__(self, seed: int, root: Path, store: Store, model: str) -> None:
        self.random = random.Random(seed)
        self.root, self.store, self.model = root, store, model
        self.encoder = Encoder.open(store.model(model), device="cpu")
        self.images, self.embeddings = 0, dict[int, Embeddings]()
        self.folders: dict[Path, dict[str, int]] = {root / "one": {}, root / "two": {}}
        self.items: dict[str, Known] = {}
        self.deleted: set[str] = set()
        self.left: dict[str, Payload | None] = {}  # payloads of what left with its collection
        self.versions: dict[int, dict[str, Known]] = {}  # what each has of collections
        self.collected: set[str] = set()  # what any has ever had of them
        for folder in self.folders:
            folder.mkdir(parents=True)
            self._write(folder, self.random.choice(FILES))
        self.build(build, next(iter(self.folders)))

    @property
    def index_dir(self) -> Path:
        return self.store.index(NAME)

    def step(self) -> None:
        operations = [self.upsert, self.delete, self.take, self.change, self.activate, self.any_build, self.copy]
        self.random.choices(operations, [6, 3, 1, 4, 3, 3, 0.3])[0]()

    def upsert(self) -> None:
        item, payload = self.random.choice(ITEMS), self.random.choice([None, {"n": self.random.randint(0, 2)}])
        old = self.items.get(item)
        if old is not None and self.random.random() < 0.4:
            self._change(Upsert(item, payload=payload))
            self.items[item] = replace(old, payload=payload or old.payload)
            return
        number = self._next()
        self._change(Upsert(item, self._embedding(number), self.model, image=picture(number), payload=payload))
        self._own(item, Known(number, payload or (old.payload if old else None)))

    def delete(self) -> None:
        item = self.random.choice(ITEMS)
        with closing(adopt.open_catalog(self.index_dir)) as catalog:
            (outcome,) = catalog.delete([item])
        if item in self.items or item in self.left:
            assert outcome.sequence
        elif item in self.deleted or item not in self.collected:  # else an interrupted activation may have told of it
            assert not outcome.sequence
        if outcome.sequence:
            self.items.pop(item, None)
            self.left.pop(item, None)
            self.deleted.add(item)

    def take(self) -> None:
        """Import a folder, of which the catalogue has what is as it was."""
        folder = self.random.choice([*self.folders])
        import_items(NAME, folder, store=self.store, device="cpu", progress=quiet)
        for item, number in self.folders[folder].items():
            old = self.items.get(item)
            if old is None or old.image != number or old.path not in (None, folder / item):
                self._own(item, Known(number, old.payload if old else None))

    def change(self) -> None:
        folder, name = self.random.choice([*self.folders]), self.random.choice(FILES)
        if name in self.folders[folder] and len(self.folders[folder]) > 1 and self.random.random() < 0.5:
            (folder / name).unlink()
            del self.folders[folder][name]
        else:
            self._write(folder, name)

    def any_build(self) -> None:
        folder = self.random.choice([None, *self.folders])
        self.build(build if folder and self.random.random() < 0.5 else rebuild, folder)

    def build(self, verb: Callable[..., Any], folder: Path | None) -> None:
        files = (
            {} if folder is None else {name: (number, folder / name) for name, number in self.folders[folder].items()}
        )
        of_users = {*self.deleted, *(item for item, known in self.items.items() if known.path is None)}
        collected = {} if verb is build else {item: one for item, one in self.items.items() if one.path}
        collected |= {
            name: Known(number, None, path) for name, (number, path) in files.items() if name not in of_users
        }
        if not collected and not self.items:
            return
        activate = not self.versions or self.random.random() < 0.8
        before = version.list_versions(self.index_dir)
        with suppress(KeyboardInterrupt), self._perhaps_interrupted():
            verb(NAME, folder, store=self.store, model=self.model, device="cpu", activate=activate, progress=quiet)
        for number in {*version.list_versions(self.index_dir)} - {*before}:
            self.versions[number] = collected
            self.collected |= {*collected}
        self._settle()

    def activate(self) -> None:
        with suppress(KeyboardInterrupt), self._perhaps_interrupted():
            adopt.activate(self.store, NAME, self.random.choice([*self.versions]))
        self._settle()

    def copy(self) -> None:
        """Go on with a restored snapshot."""
        self.images += 1
        copied, other = self.root / f"copy {self.images}", Store(self.root / f"store {self.images}")
        snapshot(self.store, NAME, copied, quiet)
        restore(other, copied, None, quiet)
        self.store = other
        active, *_ = version.pointed(self.index_dir)
        self.versions = {active: self.versions[active]}

    def check(self) -> None:
        """What is listed, kept and found is what must be."""
        active, *_ = version.pointed(self.index_dir)
        opened = version.open_version(version.version_dir(self.index_dir, active))
        with closing(adopt.open_catalog(self.index_dir)) as catalog:
            listed = {one.item: one for one in catalog.page()}
            assert {*listed} == {*self.items}
            for item, known in self.items.items():
                assert listed[item].payload == known.payload
                assert listed[item].mirrored == (known.path is not None)
                assert listed[item].sha256 == hashlib.sha256(picture(known.image)).hexdigest()
            assert catalog.deleted() == self.deleted
            self._check_found(LiveIndex(opened, catalog).snapshot)

    def _check_found(self, found: Snapshot) -> None:
        _, rows = found.search(self._embedding(1)[None], 1_000, exact=True)
        assert sorted(found.items(rows[0])) == sorted(self.items)
        for item, known in self.items.items():
            np.testing.assert_allclose(found.embedding(found.row_of(item)), self._embedding(known.image), atol=1e-5)
        _, rows = found.search(self._embedding(1)[None], 1_000, mask=found.matching(parse("n = 1")))
        assert {*found.items(rows[0])} == {item for item, known in self.items.items() if known.payload == {"n": 1}}

    def _settle(self) -> None:
        """Take note of what is active now, as the next build would if the last one was interrupted."""
        with closing(adopt.open_catalog(self.index_dir)) as catalog:
            adopt.settle(self.index_dir, catalog)
        collected = self.versions[version.pointed(self.index_dir)[0]]
        for item in [item for item, known in self.items.items() if known.path and item not in collected]:
            self.left[item] = self.items.pop(item).payload
        for item, known in collected.items():
            old = self.items.get(item)
            if item not in self.deleted and (old is None or old.path):
                payload = old.payload if old else self.left.pop(item, None)
                self.items[item] = replace(known, payload=payload)

    @contextmanager
    def _perhaps_interrupted(self) -> Iterator[None]:
        """Interrupt what tells the catalogue and moves the pointer, after a first or second such step; or nothing."""
        steps = self.random.choice([0, 0, 1, 2]) if self.versions else 0

        def interrupted(real: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any, **options: Any) -> Any:
                nonlocal steps
                steps -= 1
                done = real(*arguments, **options)
                if steps == 0:
                    raise KeyboardInterrupt
                return done

            return run

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Catalog, "mirror", interrupted(Catalog.mirror))
            patched.setattr(version, "activate", interrupted(version.activate))
            yield

    def _change(self, upsert: Upsert) -> None:
        with closing(adopt.open_catalog(self.index_dir)) as catalog:
            assert catalog.upsert([upsert], dim=self.encoder.dim)[0].reason == ""

    def _own(self, item: str, known: Known) -> None:
        """It is a user's from now on."""
        self.items[item] = known
        self.left.pop(item, None)
        self.deleted.discard(item)

    def _write(self, folder: Path, name: str) -> None:
        number = self._next()
        (folder / name).write_bytes(picture(number))
        self.folders[folder][name] = number

    def _next(self) -> int:
        """Of an image: mostly a new one."""
        if self.images > 3 and self.random.random() < 0.2:
            return self.random.randint(1, self.images)
        self.images += 1
        return self.images

    def _embedding(self, number: int) -> Embeddings:
        if number not in self.embeddings:
            pixel = pixels.decode(picture(number), self.encoder.pixels)
            self.embeddings[number] = self.encoder.embed(pixel[None])[0]
        return self.embeddings[number]


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


@cache
def picture(number: int) -> bytes:
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(coarse).resize((TINY_SIZE, TINY_SIZE)).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_an_index_holds_what_a_dict_would(seed: int, store: Store, tiny_model: str, tmp_path: Path) -> None:
    """Whatever is upserted, deleted, imported, built, rolled back, copied and interrupted, in whichever order."""
    world = World(seed, tmp_path / "world", store, tiny_model)
    for _ in range(25):
        world.step()
        world.check()
