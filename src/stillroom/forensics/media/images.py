"""Image decoding with format checks; JPEG quality from quantization tables.

Images are rotated by their EXIF orientation and converted to 8-bit RGB; conversions are noted. The
size is checked before decoding, so that a small file cannot allocate gigabytes. Claims of the
metadata, such as that a program made the image, are read by ``metadata_claims``.
"""

from __future__ import annotations

import importlib.util
import io
import re
import struct
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stillroom.errors import DataError
from stillroom.forensics.extras import require_packages
from stillroom.forensics.media.face_types import Image
from stillroom.forensics.media.metadata_claims import MetadataClaim, read_image_claims
from stillroom.objects.disk import require_file

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

__all__ = [
    "DECODE_ERRORS",
    "IMAGE_SUFFIXES",
    "DecodedImage",
    "load_image",
    "make_size_error",
    "open_image",
]

IMAGE_SUFFIXES = frozenset(
    [
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
        *(".avif", ".heic", ".heif", ".pgm", ".ppm"),
    ]
)
"""Suffixes of files that are read as images."""

_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF", "PPM")

_CODINGS = {
    **dict.fromkeys(("PNG", "BMP", "TIFF", "GIF", "PPM"), "lossless"),
    **{"MPO": "JPEG", "WEBP": "WebP", "HEIF": "HEIC"},
}

_SAMPLINGS = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}  # as Pillow numbers them

_RGB_BITS = 8
_HEIC = frozenset({b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1"})
_MAX_IMAGE_PIXELS = 120_000_000
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # no restart, which has no length
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_WITHOUT_LENGTH = (0x01, 0xD8)
_MAX_SCANNED_PIXELS = 100 * _MAX_IMAGE_PIXELS  # encoders write about ten scans
_MOVING = frozenset({"GIF", "WEBP", "PNG", "AVIF"})
_ORIENTATION, _TIFF_DEPTH, _PNG_DEPTH = 0x0112, 258, 24  # PNG: byte offset of the bit depth

DECODE_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, struct.error, ArithmeticError),
    *(LookupError, TypeError, AttributeError, RuntimeError),
)
"""Exceptions that Pillow raises for damaged files, which differ among its plug-ins."""


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """A decoded image, its format, and notes on conversions.

    ``jpeg_quality`` is estimated from the quantization tables, None for other formats; ``coding``
    is ``lossless``, or the name of the lossy format; for JPEG with its chroma subsampling, and
    whether its tables are those of a camera or editor instead of the standard's, such as
    ``JPEG 4:4:4, own tables``. ``claims`` are statements of the metadata about how it was made.
    """

    image: Image
    format: str
    notes: tuple[str, ...] = ()
    jpeg_quality: int | None = None
    coding: str = ""
    claims: tuple[MetadataClaim, ...] = ()


def load_image(path: Path) -> DecodedImage:
    """Read an image as RGB, (H, W, 3).

    Raises:
        DataError: If it is missing, too large, damaged, or of an unsupported format.
    """
    require_packages("PIL")
    from PIL import Image as PILImage
    from PIL import ImageOps, UnidentifiedImageError

    try:
        data = require_file(path).read_bytes()
    except OSError as error:
        raise _unreadable_image(path, f"cannot be read: {error.strerror}", "an image") from error
    if not data:
        raise _unreadable_image(path, "is empty", "an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # _MAX_IMAGE_PIXELS replaces Pillow's own limit
            with open_image(data) as opened:
                pixels = opened.width * opened.height
                if pixels > _MAX_IMAGE_PIXELS:
                    raise make_size_error(path, f"has {opened.width}x{opened.height} pixels")
                if (scans := _count_scans(data)) * pixels > _MAX_SCANNED_PIXELS:
                    raise make_size_error(path, f"has {scans} scans of {pixels} pixels")
                notes = [*_list_notes(opened), *_note_depth(opened, data)]
                quality, coding = _estimate_jpeg_quality(opened), _name_coding(opened)
                image_format = str(opened.format)
                image, alpha_notes = _to_rgb(ImageOps.exif_transpose(opened) or opened)
                claims = _read_claims(opened)
    except UnidentifiedImageError as error:
        kinds = "JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF"
        if data[4:12] in _HEIC:
            raise _unreadable_heic(path) from error
        raise _unreadable_image(path, "is not a supported image", kinds) from error
    except PILImage.DecompressionBombError as error:
        raise make_size_error(path) from error
    except DataError:
        raise
    except DECODE_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _unreadable_image(path, f"is damaged: {reason}", "a complete file") from error
    return DecodedImage(image, image_format, (*notes, *alpha_notes), quality, coding, claims)


def _count_scans(data: bytes) -> int:
    """Return the number of scans of a JPEG; not of its thumbnails, or of a clip behind it."""
    scans, position = 0, 0
    while data.startswith(b"\xff\xd8") and (found := _MARKER.search(data, position)):
        marker, position = found[1][0], found.end()
        if marker == _END_OF_IMAGE:
            break
        scans += marker == _START_OF_SCAN
        if marker not in _WITHOUT_LENGTH:
            position += int.from_bytes(data[position : position + 2], "big")
    return scans


def open_image(data: bytes) -> PillowImage:
    """Open an image of a supported format without decoding it.

    Pillow supports many more formats, some of which start other programs: these are not tried.

    Raises:
        UnidentifiedImageError: If the format is not supported.
    """
    from PIL import Image as PILImage

    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
    PILImage.init()
    return PILImage.open(
        io.BytesIO(data), formats=[name for name in _FORMATS if name in PILImage.OPEN]
    )


def make_size_error(path: Path, problem: str = "has too many pixels") -> DataError:
    """Return the error for an image with too many pixels."""
    return _unreadable_image(
        path, problem, f"at most {_MAX_IMAGE_PIXELS // 1_000_000} million pixels"
    )


def _unreadable_heic(path: Path) -> DataError:
    """Return the error for a HEIC that cannot be read: damaged, or no decoder installed."""
    if importlib.util.find_spec("pillow_heif") is not None:
        return _unreadable_image(path, "is a damaged HEIC", "a complete file")
    return DataError(
        f"{path.name} is HEIC, for which no decoder is installed",
        code="forensics.picture",
        where=str(path),
        expected="the package pillow-heif, or JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF",
        next="pip install 'stillroom[heic]', or convert it",
    )


def _read_claims(opened: PillowImage) -> tuple[MetadataClaim, ...]:
    """Return the claims of the metadata; damaged metadata yields none."""
    try:
        return read_image_claims(opened)
    except DECODE_ERRORS:
        return ()


def _list_notes(opened: PillowImage) -> list[str]:
    """Return notes on frames that are not read, on conversion and on rotation."""
    notes = []
    count = int(getattr(opened, "n_frames", 1))
    if count > 1 and getattr(opened, "is_animated", False) and opened.format in _MOVING:
        notes.append(f"animated: only the first of {count} frames is read")
    elif count > 1:
        notes.append(f"the file holds {count} pictures: only the first is read")
    if opened.mode not in {"RGB", "L", "P"}:
        notes.append(f"converted from {opened.mode} to RGB in 8 bits")
    if opened.getexif().get(_ORIENTATION, 1) in range(2, 9):
        notes.append("rotated by its EXIF orientation")
    return notes


def _note_depth(opened: PillowImage, data: bytes) -> tuple[str, ...]:
    """Return a note where Pillow silently drops the lower bits of colors."""
    depth = _RGB_BITS
    if opened.mode in {"RGB", "RGBA"} and opened.format == "PNG":
        depth = data[_PNG_DEPTH]
    elif opened.mode in {"RGB", "RGBA"} and opened.format == "TIFF":
        bits = getattr(opened, "tag_v2", {}).get(_TIFF_DEPTH, (_RGB_BITS,))
        depth = max(bits) if isinstance(bits, tuple) else int(bits)
    return (f"reduced from {depth} to 8 bits per channel",) if depth > _RGB_BITS else ()


def _to_rgb(image: PillowImage) -> tuple[Image, tuple[str, ...]]:
    """Convert to 8-bit RGB, with a note if transparency was flattened.

    Transparent pixels have colors that no viewer shows: they become white.
    """
    from PIL import Image as PILImage

    if image.mode in {"I;16", "I;16B", "I"}:
        gray = (np.asarray(image, dtype=np.float64) / 257).clip(0, 255)
        image = PILImage.fromarray(gray.astype(np.uint8))
    elif image.mode == "F":
        gray = np.nan_to_num(np.asarray(image, dtype=np.float64))
        factor = 255 if gray.max(initial=0) <= 1 else 1  # some files use the range 0 to 1
        image = PILImage.fromarray((gray * factor).clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB")), ()
    with_alpha = image.convert("RGBA")
    if np.asarray(with_alpha)[..., 3].min(initial=255) == 255:
        return np.asarray(with_alpha.convert("RGB")), ()
    white = PILImage.new("RGBA", with_alpha.size, (255, 255, 255, 255))
    flattened = PILImage.alpha_composite(white, with_alpha).convert("RGB")
    return np.asarray(flattened), ("transparent in parts, which became white",)


def _estimate_jpeg_quality(opened: object) -> int | None:
    """Estimate the JPEG quality by the mean of the luma table, with the IJG formula."""
    tables = getattr(opened, "quantization", None)
    if not tables or 0 not in tables:
        return None
    mean = float(np.mean(list(tables[0])))
    scale = mean / 57.6 * 100  # mean of the standard luma table at quality 50
    quality = (200 - scale) / 2 if scale <= 100 else 5000 / scale
    return round(min(max(quality, 1), 100))


def _name_coding(opened: PillowImage) -> str:
    """Name the coding as in ``DecodedImage``."""
    from PIL.JpegImagePlugin import JpegImageFile, get_sampling

    name = _CODINGS.get(str(opened.format), str(opened.format))
    if not isinstance(opened, JpegImageFile):
        return name
    sampling = (
        "4:0:0" if opened.layers == 1 else _SAMPLINGS.get(get_sampling(opened), "other sampling")
    )
    is_standard = tuple(opened.quantization.get(0, ())) in _list_standard_tables()
    return f"{name} {sampling}{'' if is_standard else ', own tables'}"


@cache
def _list_standard_tables() -> frozenset[tuple[int, ...]]:
    """Return the luma tables of the JPEG standard, scaled to each quality as libjpeg does."""
    from PIL import Image as PILImage
    from PIL.JpegImagePlugin import JpegImageFile

    tables = set()
    for quality in range(1, 101):
        written = io.BytesIO()
        PILImage.new("L", (8, 8)).save(written, "JPEG", quality=quality)
        written.seek(0)
        tables.add(tuple(JpegImageFile(written).quantization[0]))
    return frozenset(tables)


def _unreadable_image(path: Path, problem: str, expected: str) -> DataError:
    return DataError(
        f"{path.name} {problem}",
        code="forensics.picture",
        where=str(path),
        expected=expected,
        next="convert or remove it",
    )
