"""THE preprocessing: the bytes of an image file to a square of uint8 pixels.

Trainer evaluation, indexer and server all call `decode`, so training and serving can't drift apart. Everything
after it (scale, mean and std, backbone, head, unit length) is float work and lives inside the ONNX graph.

    PixelsError
    ├── UndecodableImage   not an image, damaged, or a format that is not accepted
    └── ImageTooLarge      more bytes or more pixels than the limits allow
"""

import io
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

try:  # an extra, because of the licences of the libraries in its wheels
    import pillow_heif
except ImportError:
    pillow_heif = None  # type: ignore[assignment]

Pixels = npt.NDArray[np.uint8]

MAX_BYTES = 128 * 2**20  # a 134-megapixel camera's JPEG is about 60 MB; more than twice that is a mistake
MAX_PIXELS = 2**27  # 134 megapixels: above the 108 of phones; RGBA at that size is already 0.5 GiB in memory
MAX_SIZE = 1024  # of the decoded square, pixels; backbones take 64 to 518

# Only formats that are compressed pixels and nothing more: no vector formats, no plug-ins that run other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", *(("HEIF",) if pillow_heif else ()))
HEIC_EXTENSIONS = frozenset({".heic", ".heif", ".hif"})
EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
EXTENSIONS |= HEIC_EXTENSIONS if pillow_heif else frozenset()

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# Pillow's own limit warns at 89 megapixels and raises at 179. Ours is checked on the header instead, with a
# message that says what to do; two limits would only give two different errors for one cause.
Image.MAX_IMAGE_PIXELS = None
Image.init()  # `formats=` only knows plug-ins that are loaded; loading is not thread-safe, so once, here
if pillow_heif:
    # One thread, as for other formats: who decodes many images has threads of its own.
    pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


class PixelsError(ValueError):
    """An image can't be turned into pixels; the message says why."""


class UndecodableImage(PixelsError):
    """The bytes are not an image of an accepted format, or the image is damaged."""


class ImageTooLarge(PixelsError):
    """The image has more bytes or more pixels than the limits allow."""


@dataclass(frozen=True, kw_only=True)
class PixelSpec:
    """How an image becomes a square; stored with each model, and part of its id.

    Attributes:
        size: side of the square, pixels, 1 to 1024.
        fit: `squash` resizes width and height to the square each, whatever the image's shape; `crop` takes the
            square in the middle of it, as ImageNet evaluation does.
        crop_fraction: share of the width and height (`squash`) or of the shorter side (`crop`) that is kept, about
            the centre, (0, 1].
        filter: Pillow's resampling filter, always antialiased.
    """

    size: int
    fit: Literal["squash", "crop"] = "squash"
    crop_fraction: float = 1.0
    filter: Literal["bilinear", "bicubic"] = "bicubic"

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_SIZE:
            raise ValueError(f"size is {self.size}; it must be 1 to {MAX_SIZE} pixels")
        if self.fit not in ("squash", "crop"):
            raise ValueError(f"fit is {self.fit!r}; it must be 'squash' or 'crop'")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop_fraction is {self.crop_fraction}; it must be above 0 and at most 1")
        if self.filter not in _FILTERS:
            raise ValueError(f"filter is {self.filter!r}; it must be one of {', '.join(sorted(_FILTERS))}")

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """The spec written by `dataclasses.asdict`; raises ValueError on a missing, unknown or invalid field."""
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"not a pixel spec: {error}") from error


def decode(data: bytes, spec: PixelSpec) -> Pixels:
    """The image in `data` as pixels: turned upright by EXIF, RGB, resized and cropped by `spec`.

    Grey, palette, CMYK, 16-bit and alpha images become RGB (alpha over white); of an animation, the first frame.

    Args:
        data: the bytes of an image file, at most `MAX_BYTES`, at most `MAX_PIXELS` pixels.
        spec: the square to produce.

    Returns:
        (size, size, 3) uint8, RGB.

    Raises:
        UndecodableImage: not an image of `FORMATS`, or damaged.
        ImageTooLarge: over a limit; seen in the header, before any pixel is decoded.
    """
    return np.asarray(_fit(_open_upright(data, spec), spec))


def decode_with_aspect(data: bytes, spec: PixelSpec) -> tuple[Pixels, float]:
    """`decode`, and the upright image's width over its height before it was fitted to the square."""
    image = _open_upright(data, spec)
    return np.asarray(_fit(image, spec)), image.width / image.height


def read(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        ImageTooLarge: more than `MAX_BYTES`; nothing is read then.
        UndecodableImage: it is no file, or can't be read.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UndecodableImage("is no file but a pipe or a device")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UndecodableImage(f"can't be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise ImageTooLarge(f"more than {MAX_BYTES:,} bytes; scale the image down or recompress it")
    return data


def _without_waiting(path: str, flags: int) -> int:
    """As `os.open`, but a pipe that nobody writes to is not waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def _open_upright(data: bytes, spec: PixelSpec) -> Image.Image:
    if not data:
        raise UndecodableImage("empty: 0 bytes")
    if len(data) > MAX_BYTES:
        raise ImageTooLarge(f"{len(data):,} bytes; at most {MAX_BYTES:,}: scale the image down or recompress it")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageTooLarge(
                    f"{width}×{height} is {width * height:,} pixels; at most {MAX_PIXELS:,}: scale the image down"
                )
            # JPEG can be decoded at 1/2, 1/4 or 1/8: four times faster on a photo. Twice the wanted size is kept,
            # so that the antialiased resize still does the visible work.
            margin = 2 * int(spec.size / spec.crop_fraction + 1)
            image.draft(None, (margin, margin))
            return _to_rgb(ImageOps.exif_transpose(image))
    except ImageTooLarge:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged input: it is all one answer
        raise UndecodableImage(_reason(data, error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _grey_from_deep(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        converted = Image.new("RGB", rgba.size, "white")
        converted.paste(rgba, mask=rgba.getchannel("A"))
        return converted
    return image.convert("RGB")


def _grey_from_deep(image: Image.Image) -> Image.Image:
    # Pillow clips 16-bit and float pixels at 255 instead of scaling them, which turns most photographs white.
    deep = np.asarray(image).astype(np.float64)
    float_top = 1.0 if deep.max() <= 1.0 else 255.0  # the two habits of float TIFFs
    top = float_top if image.mode == "F" else 65535.0
    grey = np.nan_to_num(deep / top * 255.0, nan=0.0, posinf=255.0, neginf=0.0)
    return Image.fromarray(np.clip(grey + 0.5, 0, 255).astype(np.uint8)).convert("RGB")


def _fit(image: Image.Image, spec: PixelSpec) -> Image.Image:
    width, height = image.size
    shorter = min(width, height)
    kept_width, kept_height = (width, height) if spec.fit == "squash" else (shorter, shorter)
    half_width, half_height = kept_width * spec.crop_fraction / 2, kept_height * spec.crop_fraction / 2
    # Resize and centre crop in one resampling of the box that is kept.
    box = (width / 2 - half_width, height / 2 - half_height, width / 2 + half_width, height / 2 + half_height)
    return image.resize((spec.size, spec.size), _FILTERS[spec.filter], box=box)


def _reason(data: bytes, error: Exception) -> str:
    if not pillow_heif and data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"):
        return "HEIC images need the package pillow-heif; pip install 'kinsight[heic]', or convert it to JPEG"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image of an accepted format ({', '.join(FORMATS)})"
    if isinstance(error, (OSError, SyntaxError, struct.error)) and str(error):
        return f"damaged: {error}"
    return f"damaged: {type(error).__name__} {error}".rstrip()
