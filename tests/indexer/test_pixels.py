"""THE preprocessing: every kind of picture becomes the same square, every kind of damage a clear error."""

import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer import pixels
from indexer.pixels import ImageTooLarge, PixelSpec, UndecodableImage, decode, decode_with_aspect

SPEC = PixelSpec(size=8)
PORTRAIT = Path(__file__).with_name("portrait.heic")  # 64 x 96 upright: red over green and blue; stored lying

# What a viewer does to show each EXIF orientation upright, in numpy, from the EXIF standard's table.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


def _encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _noise(height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(orientation: int) -> None:
    """Each of the eight EXIF orientations is turned upright as the standard's table says."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _encoded(Image.fromarray(_noise()), exif=exif)
    np.testing.assert_array_equal(UPRIGHT[orientation](_noise()), decode(data, SPEC))


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("1", 1, (255, 255, 255)),
        ("LA", (90, 0), (255, 255, 255)),
        ("RGBA", (200, 100, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 100, 0, 255), (200, 100, 0)),
        ("I;16", 0x8080, (128, 128, 128)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, value: float | tuple[float, ...], expected: tuple[int, int, int]) -> None:
    """Grey, bilevel, alpha (over white) and 16-bit pictures keep their brightness."""
    data = _encoded(Image.new(mode, (9, 5), value))
    assert decode(data, SPEC)[4, 4].tolist() == list(expected)


def test_a_palette_gives_its_colours() -> None:
    """A palette picture becomes the colours that its palette names."""
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert decode(_encoded(palette), SPEC)[0, 0].tolist() == [10, 200, 30]


def test_cmyk_keeps_its_colour() -> None:
    """A CMYK JPEG without ink is white, and with full cyan has no red."""
    assert decode(_encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), SPEC).min() >= 250
    red, green, blue = decode(_encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"), SPEC)[4, 4].tolist()
    assert red < 10 < 240 < min(green, blue)


def test_an_animation_gives_its_first_frame() -> None:
    """Of an animated GIF only the first frame is seen."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, SPEC)[0, 0].tolist() == [255, 0, 0]


def test_one_pixel_is_enough() -> None:
    """A 1×1 picture fills the square with its colour."""
    np.testing.assert_array_equal(
        np.full((8, 8, 3), 7, np.uint8), decode(_encoded(Image.new("RGB", (1, 1), (7, 7, 7))), SPEC)
    )


def test_aspect_is_of_the_upright_picture() -> None:
    """A 20×10 picture that EXIF turns by 90° has aspect one half."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_with_aspect(_encoded(Image.new("RGB", (20, 10)), "JPEG", exif=exif), SPEC)[1] == 0.5


def test_crop_takes_the_centre() -> None:
    """A crop keeps the central square of a wide picture and nothing else."""
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = _noise()
    np.testing.assert_array_equal(_noise(), decode(_encoded(Image.fromarray(wide)), PixelSpec(size=8, fit="crop")))


def test_squash_keeps_the_same_share_of_width_and_height() -> None:
    """Half of a wide ramp of brightness, squashed, is its middle half at full height."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 16, axis=0).repeat(3, axis=2)
    columns = decode(_encoded(Image.fromarray(ramp)), PixelSpec(size=8, crop_fraction=0.5))[:, :, 0]
    np.testing.assert_allclose(np.tile(64 + 16 * np.arange(8) + 7.5, (8, 1)), columns, atol=1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncation_is_an_error_or_the_whole_picture(kind: str) -> None:
    """A file cut at any of many offsets is refused, or cut behind its last pixel; nothing else ever escapes."""
    data = _encoded(Image.fromarray(_noise(40, 40)), kind)
    whole, refused = decode(data, SPEC), 0
    for end in range(0, len(data), max(1, len(data) // 60)):
        try:
            np.testing.assert_array_equal(whole, decode(data[:end], SPEC))
        except UndecodableImage:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty: 0 bytes"),
        (b"just some text", "not an image of an accepted format"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "damaged|not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
    ],
)
def test_what_is_not_an_image_is_named(data: bytes, message: str) -> None:
    """Empty files, text, what only begins like a format and vector formats are refused with a reason."""
    with pytest.raises(UndecodableImage, match=message):
        decode(data, SPEC)


def test_a_phones_photograph_is_upright() -> None:
    """A HEIC file that was taken upright and is stored lying: red above green and blue."""
    square, aspect = decode_with_aspect(PORTRAIT.read_bytes(), SPEC)
    assert aspect == 64 / 96
    for place, colour in (((0, 0), (200, 30, 30)), ((7, 0), (30, 160, 60)), ((7, 7), (30, 60, 200))):
        np.testing.assert_allclose(square[place], colour, atol=12)  # the codec loses a little


def test_damaged_heic_is_refused_or_whole() -> None:
    """However a HEIC file is cut, it is refused, or its pixels were all there."""
    data, refused = PORTRAIT.read_bytes(), 0
    for end in range(0, len(data), 10):
        try:
            np.testing.assert_array_equal(decode(data, SPEC), decode(data[:end], SPEC))
        except UndecodableImage:
            refused += 1
    assert refused > 50


@pytest.mark.slow
def test_no_damaged_heic_ends_the_process() -> None:
    """Thousands of files with some bytes changed are refused or decoded, by a process that lives on."""
    script = (
        "import random, sys; from pathlib import Path; from indexer.pixels import PixelSpec, PixelsError, decode\n"
        "whole, draw, refused = Path(sys.argv[1]).read_bytes(), random.Random(0), 0\n"
        "for _ in range(20_000):\n"
        "    data = bytearray(whole)\n"
        "    for _ in range(draw.choice([1, 1, 2, 5, 30])): data[draw.randrange(len(data))] = draw.randrange(256)\n"
        "    try: decode(bytes(data), PixelSpec(size=8))\n"
        "    except PixelsError: refused += 1\n"
        "print(refused)"
    )
    command = [sys.executable, "-W", "ignore", "-c", script, str(PORTRAIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 10_000 < int(done.stdout) < 20_000


def test_heic_without_its_decoder_names_the_remedy() -> None:
    """Where the extra is not installed, a HEIC file is refused with what to install, and everything else decodes."""
    script = (
        "import sys; sys.modules['pillow_heif'] = None\n"  # as if it were not installed
        "from pathlib import Path; from indexer import pixels; from indexer.source import is_listed\n"
        "print(is_listed('a.heic'), 'HEIF' in pixels.FORMATS)\n"
        "try: pixels.decode(Path(sys.argv[1]).read_bytes(), pixels.PixelSpec(size=8))\n"
        "except pixels.UndecodableImage as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script, PORTRAIT], capture_output=True, text=True, check=True)
    listed, said = done.stdout.splitlines()
    assert listed == "True False"
    assert "pip install 'kinsight[heic]'" in said


def test_a_bomb_is_refused_before_it_takes_memory() -> None:
    """A 30,000×30,000 header is refused by its size, and memory stays where it was."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1_000))), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far may be of another test, and higher
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageTooLarge, match="30000×30000"):
        decode(png, SPEC)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB; the pixels would be 2.7 GB


def test_a_pipe_named_like_an_image_is_not_waited_for(tmp_path: Path) -> None:
    """Neither one that nobody writes to, nor a device that never ends, holds a whole collection up."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zeros.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zeros.png"):
        with pytest.raises(UndecodableImage, match="is no file but a pipe or a device"):
            pixels.read(tmp_path / name)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    """A file of more bytes than the limit is refused by `read`, and so are as many bytes by `decode`."""
    huge = tmp_path / "huge.jpg"
    with huge.open("wb") as file:
        file.truncate(pixels.MAX_BYTES + 1)
    with pytest.raises(ImageTooLarge, match="bytes"):
        pixels.read(huge)


def test_a_missing_file_is_named() -> None:
    """A path that is not there is an image that can't be decoded, with the system's reason."""
    with pytest.raises(UndecodableImage, match="No such file"):
        pixels.read(Path("nowhere.jpg"))


@pytest.mark.parametrize(
    "wrong",
    [{"size": 0}, {"size": 2000}, {"fit": "stretch"}, {"crop_fraction": 0}, {"filter": "nearest"}, {"x": 1}],
)
def test_a_wrong_spec_is_refused(wrong: dict[str, object]) -> None:
    """A spec with a value out of bounds, or an unknown field, is a ValueError."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PixelSpec.from_dict({"size": 8, **wrong})
