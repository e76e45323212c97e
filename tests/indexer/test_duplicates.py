"""Byte-identical images: counted, named in groups, and bounded."""

import hashlib
import shutil
from pathlib import Path

import numpy as np

from indexer.build import build
from indexer.duplicates import MAX_GROUPS, MAX_NAMED, find_duplicates
from indexer.items import ItemWriter
from indexer.store import Store


def digests(contents: list[int]) -> np.ndarray:
    """The digests of files, each of the content with this number."""
    return np.array([hashlib.sha256(bytes([content % 256, content // 256])).digest() for content in contents], "S32")


def naive(items: list[str], contents: list[int]) -> tuple[tuple[str, ...], ...]:
    """Groups of items with one content, by comparing each with each."""
    groups: dict[int, list[str]] = {}
    for item, content in zip(items, contents, strict=True):
        groups.setdefault(content, []).append(item)
    return tuple(tuple(group[:MAX_NAMED]) for group in groups.values() if len(group) > 1)[:MAX_GROUPS]


def test_groups_are_those_of_a_naive_comparison(tmp_path: Path) -> None:
    """From digests in memory and from the table of a build, the groups are all pairs that agree, in order."""
    rng = np.random.default_rng(0)
    for count, kinds in ((1, 1), (2, 1), (30, 30), (60, 20), (2_000, 500)):
        contents = rng.integers(0, kinds, count).tolist()
        items = [f"{number:04d}.jpg" for number in range(count)]
        found = find_duplicates(items, digests(contents))
        assert found.groups == naive(items, contents)
        assert found.copies == count - len(set(contents))
        with ItemWriter(tmp_path / f"{count}.sqlite") as table:
            for row, (item, digest) in enumerate(zip(items, digests(contents).tolist(), strict=True)):
                table.add(row, item, Path(item), digest.hex().ljust(64, "0"))  # numpy drops zeros at the end
            assert table.duplicates() == found


def test_a_build_reports_copies_and_goes_on(store: Store, tiny_model: str, photos: Path) -> None:
    """Copies of photos are named beside the first of each, and are in the index as well."""
    for number in (0, 4):
        shutil.copy(
            photos / "street" / f"{number:02d}.{'jpg' if number else 'png'}", photos / f"copy-{number}.img.png"
        )
    report = build("street", photos, model=tiny_model, store=store, progress=lambda *_: None)
    assert report.count == 62
    assert report.duplicates.copies == 2
    assert report.duplicates.groups == (("copy-0.img.png", "street/00.png"), ("copy-4.img.png", "street/04.jpg"))
