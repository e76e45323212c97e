"""The pointer to the active version: no damage of it points to another one."""

from pathlib import Path

import pytest

from indexer import pointing
from indexer.pointing import PointerDamaged


def test_no_damage_of_a_pointer_points_elsewhere(tmp_path: Path) -> None:
    """Every bit flipped, every cut, every byte behind it: refused by name, or what is left of it is as it was."""
    path = tmp_path / "active"
    pointing.write(path, (13, 12))
    whole = path.read_bytes()
    flipped = [
        whole[:n] + bytes([whole[n] ^ 1 << bit]) + whole[n + 1 :] for n in range(len(whole)) for bit in range(8)
    ]
    for damaged in (
        *flipped,
        *(whole[:size] for size in range(len(whole))),
        *(whole + bytes([n]) for n in range(256)),
    ):
        path.write_bytes(damaged)
        if damaged in (b"13\n", b"13\n12\n"):
            assert pointing.read(path) == (13, 12)[: damaged.count(b"\n")]
            continue
        with pytest.raises(PointerDamaged, match=str(path)):
            pointing.read(path)


@pytest.mark.parametrize(("text", "numbers"), [("7\n", (7,)), ("7\n3\n", (7, 3))])
def test_pointers_without_a_checksum_are_read(tmp_path: Path, text: str, numbers: tuple[int, ...]) -> None:
    """Older releases wrote them."""
    path = tmp_path / "active"
    assert pointing.read(path) == ()
    path.write_text(text)
    assert pointing.read(path) == numbers


@pytest.mark.parametrize("numbers", [(7,), (7, 3)])
def test_what_is_written_is_read(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    """With and without a version before."""
    pointing.write(tmp_path / "active", numbers)
    assert pointing.read(tmp_path / "active") == numbers
