"""Images in tar shards: what is listed and read, and what damage costs."""

import io
import os
import random
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from indexer.pixels import ImageTooLarge, PixelSpec, UndecodableImage
from indexer.sources import SourceError, decode_all, open_collection
from indexer.tars import TarSource

SPEC = PixelSpec(size=8)


def jpeg(number: int) -> bytes:
    """A small photograph; each number another."""
    data = io.BytesIO()
    Image.new("RGB", (30 + number, 20), (number * 20 % 256, 90, 30)).save(data, "JPEG")
    return data.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes], kind: int = tarfile.PAX_FORMAT) -> Path:
    """A tar archive of these members, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def shard(path: Path, count: int = 6, first: int = 0) -> Path:
    """A WebDataset shard: each image with its class beside it."""
    numbers = range(first, first + count)
    members = {
        f"{number:04d}.{kind}": data for number in numbers for kind, data in (("jpg", jpeg(number)), ("cls", b"3"))
    }
    return write_tar(path, members)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_are_read_in_place(tmp_path: Path, kind: int) -> None:
    """Members named like images give their exact bytes, under any name and in each format; others are counted."""
    long = "folder/" + "x" * 90 + ".PNG"
    members = {
        "./a.jpg": jpeg(0),
        "a.cls": b"1",
        long: jpeg(1),
        "é%.webp": jpeg(2),
        ".hidden.jpg": b"",
        "b.jpg": jpeg(3),
    }
    archive = write_tar(tmp_path / "shard-0.tar", members, kind)
    collection = open_collection(archive)
    wanted = {"shard-0.tar/a.jpg": 0, f"shard-0.tar/{long}": 1, "shard-0.tar/é%25.webp": 2, "shard-0.tar/b.jpg": 3}
    assert {source.item: source.read() for source in collection.sources} == {
        item: jpeg(number) for item, number in wanted.items()
    }
    assert (collection.ignored, collection.warnings, collection.root) == (2, (), tmp_path)
    assert collection.sources[0].path == archive / "a.jpg"


def test_a_folder_of_shards_and_a_pattern_are_one_collection(tmp_path: Path) -> None:
    """The shards of a folder, its subfolders too, and those of a brace pattern are read in order of their names."""
    for number in range(9, 12):
        shard(tmp_path / f"shard-{number:06d}.tar", 2, first=2 * number)
    wanted = [f"shard-{n // 2:06d}.tar/{n:04d}.jpg" for n in range(18, 24)]
    by_pattern = open_collection(tmp_path / "shard-{000009..000011}.tar")
    assert [source.item for source in by_pattern.sources] == wanted
    shard(tmp_path / "more" / "a.tar", 1)
    by_folder = open_collection(tmp_path)
    assert [source.item for source in by_folder.sources] == ["more/a.tar/0000.jpg", *wanted]
    assert [decoded.error for decoded in decode_all(by_folder.sources, SPEC)] == [None] * 7


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("s-{0..3}.tar", "2 of the 4 archives of .* do not exist; the first: .*s-2.tar"),
        ("s-{3..1}.tar", "stands for 0 archives"),
        ("s-{0..99999999}.tar", "stands for 100,000,000 archives; it must be 1 to 1,000,000"),
        ("s-{a..b}.tar", "does not exist"),
    ],
)
def test_a_pattern_without_its_shards_is_refused(tmp_path: Path, pattern: str, message: str) -> None:
    """A missing shard of a pattern is named; a pattern that stands for none, or for too many, is refused."""
    shard(tmp_path / "s-0.tar")
    shard(tmp_path / "s-1.tar")
    with pytest.raises(SourceError, match=message):
        open_collection(tmp_path / pattern)


def test_images_come_before_archives(tmp_path: Path) -> None:
    """A folder with image files is those files, as ever, and says that it leaves its archives aside."""
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    shard(tmp_path / "s.tar")
    collection = open_collection(tmp_path)
    assert [source.item for source in collection.sources] == ["a.jpg"]
    (warning,) = collection.warnings
    assert "1 tar archives beside the images" in warning


@pytest.mark.parametrize(("cut_at", "listed", "whole"), [(2_000, 1, 1), (1_100, 1, 0), (0, 0, 0), (100, 0, 0)])
def test_a_cut_archive_gives_the_images_before_the_cut(tmp_path: Path, cut_at: int, listed: int, whole: int) -> None:
    """What lies before the end of a cut archive is used, an image that is cut is named, and the loss is told."""
    archive = shard(tmp_path / "s.tar")
    archive.write_bytes(archive.read_bytes()[:cut_at])
    shard(tmp_path / "whole.tar", 1)
    collection = open_collection(tmp_path)
    decoded = [d for d in decode_all(collection.sources, SPEC) if d.source.item.startswith("s.tar")]
    (warning,) = collection.warnings
    assert (len(decoded), sum(d.error is None for d in decoded)) == (listed, whole)
    assert all("cut off" in d.error for d in decoded if d.error)
    assert f"used are the images up to there: {listed}" in warning


def test_a_damaged_header_ends_the_archive_there(tmp_path: Path) -> None:
    """A flipped byte in a header loses the members from there on, and the warning says at which byte of how many."""
    archive = shard(tmp_path / "s.tar")
    with tarfile.open(archive) as tar:
        place = tar.getmember("0003.jpg").offset
    data = bytearray(archive.read_bytes())
    data[place + 130] ^= 0x10
    archive.write_bytes(data)
    collection = open_collection(archive)
    (warning,) = collection.warnings
    assert [source.item[-8:] for source in collection.sources] == ["0000.jpg", "0001.jpg", "0002.jpg"]
    assert f"damaged after '0002.cls': byte {place:,} of {len(data):,} begins no member" in warning


def test_an_archive_without_images_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Compressed archives are refused by name of the compression, others by what is in them."""
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as tar:
        tar.add(shard(tmp_path / "a.tar"), "a.tar")
    with pytest.raises(
        SourceError, match=r"no image in \S+ \(\S+s\.tar\.gz is compressed \(gzip\).*decompress it once"
    ):
        open_collection(tmp_path / "s.tar.gz")
    with pytest.raises(SourceError, match=r"no image in .*t\.tar \(1 other files\)"):
        open_collection(write_tar(tmp_path / "t.tar", {"a.txt": b"x"}))


def test_a_pipe_among_the_shards_is_not_waited_for(tmp_path: Path) -> None:
    """The shards are read, and a warning names the pipe."""
    shard(tmp_path / "a.tar", 1)
    os.mkfifo(tmp_path / "b.tar")
    collection = open_collection(tmp_path)
    assert [source.item for source in collection.sources] == ["a.tar/0000.jpg"]
    assert collection.warnings == (f"{tmp_path}/b.tar is a pipe, and archives are read in place; save it as a file",)


def test_what_tar_can_say_besides_files_is_told(tmp_path: Path) -> None:
    """Links are not followed but named; the last of two members of one name counts; more behind the end is told."""
    archive = write_tar(tmp_path / "s.tar", {"a.jpg": jpeg(0)})
    with tarfile.open(archive, "a") as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        again = tarfile.TarInfo("a.jpg")
        again.size = len(jpeg(5))
        tar.addfile(again, io.BytesIO(jpeg(5)))
    archive.write_bytes(archive.read_bytes() + archive.read_bytes())
    collection = open_collection(archive)
    assert [(source.item, source.read()) for source in collection.sources] == [("s.tar/a.jpg", jpeg(5))]
    behind, linked = collection.warnings
    assert "goes on behind its end mark" in behind
    assert "1 images are links" in linked


def test_a_member_that_is_too_large_or_gone_is_one_bad_image(tmp_path: Path) -> None:
    """A member beyond the limit is not read; an archive that is removed meanwhile gives an error for each image."""
    with pytest.raises(ImageTooLarge, match=r"1,000,000,000 bytes; at most 134,217,728"):
        TarSource("a", str(tmp_path), "s.tar/a.jpg", str(tmp_path / "s.tar"), 512, 10**9).read()
    with pytest.raises(UndecodableImage, match="can't be read: No such file"):
        TarSource("a", str(tmp_path), "s.tar/a.jpg", str(tmp_path / "s.tar"), 512, 10).read()


def test_a_changed_archive_changes_the_state_of_its_images(tmp_path: Path) -> None:
    """What tells that a cache or a half-built index is out of date sees that an archive was written anew."""
    archive = shard(tmp_path / "s.tar")
    first = [source.state() for source in open_collection(archive).sources]
    assert [source.state() for source in open_collection(archive).sources] == first
    write_tar(archive, {"0000.jpg": jpeg(9)})
    assert open_collection(archive).sources[0].state() not in first


def test_no_damage_crashes(tmp_path: Path) -> None:
    """Archives with random bytes changed, in headers foremost, are listed or refused, and never hang or crash."""
    data = shard(tmp_path / "s.tar").read_bytes()
    chance = random.Random(0)
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 5, 40])):
            damaged[chance.randrange(len(data) // 512) * 512 + chance.randrange(512)] = chance.randrange(256)
        damaged[148:156] = b"%06o\0 " % (sum(damaged[:148]) + 8 * 32 + sum(damaged[156:512]))  # pass the checksum
        (tmp_path / "s.tar").write_bytes(damaged)
        try:
            collection = open_collection(tmp_path / "s.tar")
        except SourceError:
            outcomes.add("refused")
            continue
        outcomes.add("warned" if collection.warnings else "listed")
        assert [decoded.row for decoded in decode_all(collection.sources, SPEC, workers=1)] == list(
            range(len(collection.sources))
        )
    assert outcomes == {"refused", "warned", "listed"}


def test_a_table_may_name_images_in_archives(tmp_path: Path) -> None:
    """A path into an archive is read where it lies; one whose archive lacks it, or is gone, is one bad image."""
    shard(tmp_path / "shards" / "a.tar", count=2)
    table = tmp_path / "images.csv"
    inside = [f"{tmp_path}/shards/a.tar/0001.jpg", "shards/a.tar/0000.jpg", "shards/a.tar/no.jpg", "b.tar/0.jpg"]
    table.write_text("\n".join(["path", *inside, ""]))

    decoded = {one.source.item: one for one in decode_all(open_collection(table).sources, SPEC)}

    assert sorted(decoded) == ["b.tar/0.jpg", "shards/a.tar/0000.jpg", "shards/a.tar/0001.jpg", "shards/a.tar/no.jpg"]
    assert decoded["shards/a.tar/0000.jpg"].source.read() == jpeg(0)
    assert decoded["shards/a.tar/0001.jpg"].source.read() == jpeg(1)
    assert "does not hold no.jpg any more" in (decoded["shards/a.tar/no.jpg"].error or "")
    assert "can't be read: No such file" in (decoded["b.tar/0.jpg"].error or "")
