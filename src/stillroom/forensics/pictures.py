"""Reading pictures that come from anywhere: every kind is either understood or refused in a line.

Turned as EXIF says, converted to RGB in 8 bits; what was done is noted. Nothing is decoded before
its size is known, so a small file cannot ask for gigabytes.
"""

from __future__ import annotations

import importlib.util
import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stillroom.errors import DataError
from stillroom.forensics.claims import Claim, claims_of_picture
from stillroom.forensics.extras import need
from stillroom.forensics.face import Image

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

__all__ = [
    "DAMAGE",
    "MOST_PIXELS",
    "PICTURES",
    "Picture",
    "load_picture",
    "open_picture",
    "too_many_pixels",
]

PICTURES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".gif",
        ".avif",
        ".heic",
        ".heif",
        ".pgm",
        ".ppm",
    ]
)
"""Endings of what is read as a picture."""

_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF", "PPM")
_CODINGS = {
    **dict.fromkeys(("PNG", "BMP", "TIFF", "GIF", "PPM"), "lossless"),
    **{"MPO": "JPEG", "WEBP": "WebP", "HEIF": "HEIC"},
}
_BYTE = 8
_HEIC = frozenset({b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1"})
MOST_PIXELS = 120_000_000
_MOVING = frozenset({"GIF", "WEBP", "PNG", "AVIF"})
_ORIENTATION, _TIFF_DEPTH, _PNG_DEPTH = 0x0112, 258, 24  # of PNG: a byte of its first chunk
DAMAGE = (
    *(OSError, ValueError, SyntaxError, EOFError, struct.error, ArithmeticError),
    *(LookupError, TypeError, AttributeError, RuntimeError),
)
"""What Pillow raises at damaged files, which its plug-ins do not agree on."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture, its format, and notes on what was done to read it.

    ``jpeg_quality`` is estimated from the quantization tables, None for other formats; ``claims``
    are what its metadata say of its making.
    """

    image: Image
    format: str
    notes: tuple[str, ...] = ()
    jpeg_quality: int | None = None
    claims: tuple[Claim, ...] = ()

    @property
    def coding(self) -> str:
        """How its pixels are coded: ``lossless``, or the name of what loses some, as ``JPEG``."""
        return _CODINGS.get(self.format, self.format)


def load_picture(path: Path) -> Picture:
    """Read a picture as RGB, (H, W, 3).

    Raises:
        DataError: If it is missing, too large, damaged, or of a kind that is not read.
    """
    need("PIL")
    from PIL import Image as Pictures
    from PIL import ImageOps, UnidentifiedImageError

    try:
        data = path.read_bytes()
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}", "a picture") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own bound on pixels is ours, told in our words
            with open_picture(data) as opened:
                pixels = opened.width * opened.height
                if pixels > MOST_PIXELS:
                    raise too_many_pixels(path, f"has {opened.width}x{opened.height} pixels")
                notes = [*_notes(opened), *_note_depth(opened, data)]
                kind, quality = str(opened.format), _quality(opened)
                turned = ImageOps.exif_transpose(opened) or opened
                image, laid = _to_rgb(turned)
                claims = _read_claims(opened)
    except UnidentifiedImageError as error:
        kinds = "JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF"
        if data[4:12] in _HEIC:
            raise _unread_heic(path) from error
        raise _refused(path, "is no picture that is read", kinds) from error
    except Pictures.DecompressionBombError as error:
        raise too_many_pixels(path) from error
    except DataError:
        raise
    except DAMAGE as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise _refused(path, f"is damaged: {said}", "a whole file") from error
    return Picture(image, kind, (*notes, *laid), quality, claims)


def open_picture(data: bytes) -> PillowImage:
    """Open a picture of one of the kinds that are read; nothing is decoded yet.

    Pillow knows many more, some of which start other programs: those are not even tried.

    Raises:
        UnidentifiedImageError: If it is of no such kind.
    """
    from PIL import Image as Pictures

    _open_heif()
    Pictures.init()
    return Pictures.open(
        io.BytesIO(data), formats=[name for name in _FORMATS if name in Pictures.OPEN]
    )


def too_many_pixels(path: Path, what: str = "has too many pixels") -> DataError:
    """Return the error of a picture that asks for more memory than any is given."""
    return _refused(path, what, f"at most {MOST_PIXELS // 1_000_000} million pixels")


def _open_heif() -> None:
    """Let pictures of iPhones be opened where the package that decodes them is here."""
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()


def _unread_heic(path: Path) -> DataError:
    """Return the error of a HEIC that is not read: damaged, or nothing here decodes it."""
    if importlib.util.find_spec("pillow_heif") is not None:
        return _refused(path, "is a damaged HEIC", "a whole file")
    return DataError(
        f"{path.name} is HEIC, which is not read here",
        code="forensics.picture",
        where=str(path),
        expected="the package pillow-heif, or JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF",
        next="pip install 'stillroom[heic]', or convert it",
    )


def _read_claims(opened: PillowImage) -> tuple[Claim, ...]:
    """Return what metadata say; damaged ones say nothing, and cost the pixels nothing."""
    try:
        return claims_of_picture(opened)
    except DAMAGE:
        return ()


def _notes(opened: object) -> tuple[str, ...]:
    from PIL import Image as Pictures

    if not isinstance(opened, Pictures.Image):
        return ()
    notes = []
    count = int(getattr(opened, "n_frames", 1))
    if count > 1 and getattr(opened, "is_animated", False) and opened.format in _MOVING:
        notes.append(f"animated: only the first of {count} frames is read")
    elif count > 1:
        notes.append(f"the file holds {count} pictures: only the first is read")
    if opened.mode not in {"RGB", "L", "P"}:
        notes.append(f"converted from {opened.mode} to RGB in 8 bits")
    if opened.getexif().get(_ORIENTATION, 1) in range(2, 9):
        notes.append("turned as its EXIF orientation says")
    return tuple(notes)


def _note_depth(opened: PillowImage, data: bytes) -> tuple[str, ...]:
    """Return a note where Pillow itself gives up the lower bits of colours, and says nothing."""
    depth = _BYTE
    if opened.mode in {"RGB", "RGBA"} and opened.format == "PNG":
        depth = data[_PNG_DEPTH]
    elif opened.mode in {"RGB", "RGBA"} and opened.format == "TIFF":
        said = getattr(opened, "tag_v2", {}).get(_TIFF_DEPTH, (_BYTE,))
        depth = max(said) if isinstance(said, tuple) else int(said)
    return (f"reduced from {depth} to 8 bits a colour",) if depth > _BYTE else ()


def _to_rgb(turned: PillowImage) -> tuple[Image, tuple[str, ...]]:
    """Return pixels as RGB in 8 bits, and a note where something was laid under them.

    What is transparent has colours, too, which no viewer shows: it becomes white.
    """
    from PIL import Image as Pictures

    if turned.mode in {"I;16", "I;16B", "I"}:
        grey = (np.asarray(turned, dtype=np.float64) / 257).clip(0, 255)
        turned = Pictures.fromarray(grey.astype(np.uint8))
    elif turned.mode == "F":
        grey = np.nan_to_num(np.asarray(turned, dtype=np.float64))
        whole = 255 if grey.max(initial=0) <= 1 else 1  # some count from 0 to 1
        turned = Pictures.fromarray((grey * whole).clip(0, 255).astype(np.uint8))
    if not turned.has_transparency_data:
        return np.asarray(turned.convert("RGB")), ()
    shown = turned.convert("RGBA")
    if np.asarray(shown)[..., 3].min(initial=255) == 255:
        return np.asarray(shown.convert("RGB")), ()
    white = Pictures.new("RGBA", shown.size, (255, 255, 255, 255))
    laid = Pictures.alpha_composite(white, shown).convert("RGB")
    return np.asarray(laid), ("transparent in parts, which were laid on white",)


def _quality(opened: object) -> int | None:
    """Return the JPEG quality whose luma table has the same mean, by the IJG's formula."""
    tables = getattr(opened, "quantization", None)
    if not tables or 0 not in tables:
        return None
    mean = float(np.mean(list(tables[0])))
    scale = mean / 57.6 * 100  # mean of the standard luma table at quality 50
    quality = (200 - scale) / 2 if scale <= 100 else 5000 / scale
    return round(min(max(quality, 1), 100))


def _refused(path: Path, what: str, expected: str) -> DataError:
    return DataError(
        f"{path.name} {what}",
        code="forensics.picture",
        where=str(path),
        expected=expected,
        next="convert it, or leave it out",
    )
