"""Image decoding with format checks, and synthetic-origin claims in metadata.

Turned as EXIF says, converted to RGB in 8 bits; what was done is noted. Nothing is decoded before
its size is known, so a small file cannot ask for gigabytes.

Read are the digital source type that IPTC defines for XMP, which cameras, editors and services
write, and the settings that programs of image models leave: as text of PNG, in EXIF's user comment,
or in the tags of a film. Each is told as what the file says, where it says it; none is proof.

Source: IPTC, "Digital Source Type" (http://cv.iptc.org/newscodes/digitalsourcetype/); the texts as
AUTOMATIC1111's web interface, ComfyUI, InvokeAI, SwarmUI, Fooocus, NovelAI and Midjourney write
them.
"""

from __future__ import annotations

import importlib.util
import io
import json
import mmap
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import DataError
from stillroom.forensics.extras import require_packages
from stillroom.forensics.media.face import Image
from stillroom.jobs import escape_line

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

__all__ = [
    "DECODE_ERRORS",
    "IMAGE_SUFFIXES",
    "MAX_IMAGE_PIXELS",
    "SYNTHETIC_SOURCE_TYPES",
    "DecodedImage",
    "MetadataClaim",
    "load_image",
    "make_size_error",
    "open_image",
    "read_clip_claims",
    "read_file_claims",
    "read_image_claims",
]


SYNTHETIC_SOURCE_TYPES = (
    "trainedAlgorithmicMedia",
    "compositeWithTrainedAlgorithmicMedia",
    "algorithmicMedia",
    "compositeSynthetic",
)


"""IPTC's words for what a program made, in whole or in part."""


_EXIF_IFD, _COMMENT, _MAKE, _MODEL, _SOFTWARE = 0x8769, 0x9286, 0x010F, 0x0110, 0x0131


_DESCRIPTION, _TIFF_XMP = 0x010E, 700


_XMP_KEYS = ("xmp", "XML:com.adobe.xmp")


_MAX_BYTES = 4 << 20  # of a text or packet that is read: who writes more is not helped by it


_MAX_PACKETS = 16


_MAX_SHOWN = 80


_SOURCE = re.compile(
    r"\bDigitalSourceType\b(?:\s*=\s*[\"']|[^<>]{0,200}?resource\s*=\s*[\"']|[^<>]{0,200}>\s*)"
    r"([^<>\"'\s]{1,200})"
)


_PACKET = (b"<x:xmpmeta", b"</x:xmpmeta>")


_SETTINGS = re.compile(r"\bSteps: \d+, [^\n]{0,200}?\b(?:Sampler|Seed|CFG scale): ")


_MODEL_NAME = re.compile(r"\bModel: ([^,\n]{1,200})")


_MIDJOURNEY = re.compile(r"\bJob ID: [0-9a-f]{8}-[0-9a-f-]{27}")


_GENERATOR_KEYS = {
    "invokeai_metadata": "InvokeAI",
    "invokeai_graph": "InvokeAI",
    "sd-metadata": "InvokeAI",
    "fooocus_scheme": "Fooocus",
}


_FIELDS = frozenset(
    [
        *("steps", "sampler", "sampler_name", "seed", "cfg", "cfg_scale", "guidance_scale"),
        *("scale", "model", "negative_prompt", "uc"),
    ]
)


_MIN_FIELDS = 3


@dataclass(frozen=True, slots=True)
class MetadataClaim:
    """What a file says, unsigned: where it stands, what it says, whether of a program's making."""

    where: str
    says: str
    is_made: bool

    def line(self) -> str:
        """Return it as one line."""
        return f"{self.where}: {self.says}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"where": self.where, "says": self.says, "is_made": self.is_made}


def read_image_claims(opened: PillowImage) -> tuple[MetadataClaim, ...]:
    """Return what a picture says in XMP, PNG text and EXIF; its pixels have to be loaded."""
    exif = opened.getexif()
    inner = exif.get_ifd(_EXIF_IFD)
    texts = {f"text '{key}'": value for key, value in opened.info.items() if _is_text(value)}
    texts |= {
        f"EXIF {name}": _decode_comment(value)
        for name, value in (
            ("UserComment", inner.get(_COMMENT)),
            ("Make", exif.get(_MAKE)),
            ("Model", exif.get(_MODEL)),
            ("Software", exif.get(_SOFTWARE)),
            ("ImageDescription", exif.get(_DESCRIPTION)),
        )
        if value
    }
    packets = [opened.info[key] for key in _XMP_KEYS if key in opened.info]
    packets.append(getattr(opened, "tag_v2", {}).get(_TIFF_XMP))
    return _unique([*_read_packets(packets), *_read_texts(texts)])


def read_clip_claims(path: Path) -> tuple[MetadataClaim, ...]:
    """Return what a film or recording says in XMP and in its tags.

    Args:
        path: A file that can be opened.
    """
    import av

    with av.open(str(path), metadata_errors="ignore") as container:
        texts = {f"tag '{key}'": str(value) for key, value in container.metadata.items()}
    return _unique([*read_file_claims(path), *_read_texts(texts)])


def read_file_claims(path: Path) -> tuple[MetadataClaim, ...]:
    """Return what the first packet of XMP says that lies plainly in a file."""
    if not path.stat().st_size:
        return ()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        begin = data.find(_PACKET[0])
        end = data.find(_PACKET[1], begin) if begin >= 0 else -1
        packet = data[begin:end] if 0 <= begin < end <= begin + _MAX_BYTES else b""
    return _unique(list(_read_packets([packet])))


def _read_packets(packets: list[Any]) -> Iterator[MetadataClaim]:
    for packet in packets:
        text = packet.decode("utf-8", "replace") if isinstance(packet, bytes) else str(packet or "")
        for found in islice(_SOURCE.finditer(text[:_MAX_BYTES]), _MAX_PACKETS):
            name = _shorten(found[1].rstrip("/").rsplit("/", 1)[-1])
            yield MetadataClaim(
                "XMP, IPTC's digital source type", name, name in SYNTHETIC_SOURCE_TYPES
            )


def _read_texts(texts: Mapping[str, str]) -> Iterator[MetadataClaim]:
    for where, whole in texts.items():
        text, place = whole[:_MAX_BYTES], _shorten(where)
        key = where.partition("'")[2].rstrip("'").lower()
        if key in _GENERATOR_KEYS:
            yield MetadataClaim(
                place, f"metadata of {_GENERATOR_KEYS[key]}, a program of image models", True
            )
        elif _SETTINGS.search(text):
            model = _MODEL_NAME.search(text)
            named = f", model {_shorten(model[1])}" if model else ""
            yield MetadataClaim(place, f"settings of a Stable Diffusion interface{named}", True)
        elif _MIDJOURNEY.search(text):
            yield MetadataClaim(place, "a job of Midjourney", True)
        elif "{" in text[:40]:
            yield from _read_json(place, text)


def _read_json(where: str, text: str) -> Iterator[MetadataClaim]:
    """Yield what settings in JSON say; ComfyUI writes its own behind a word in EXIF."""
    try:
        told = json.loads(text[text.index("{") :])
    except (ValueError, RecursionError):
        return
    if not isinstance(told, dict):
        return
    nodes = _list_nodes(told)
    if nodes:
        samples = any("sampler" in name.lower() for name in nodes)
        says = "that samples from a model" if samples else "without a sampler"
        yield MetadataClaim(where, f"a ComfyUI graph {says}", samples)
    elif "sui_image_params" in told:
        yield MetadataClaim(where, "settings of SwarmUI, a program of image models", True)
    elif len(_FIELDS & {str(key).lower() for key in told}) >= _MIN_FIELDS:
        yield MetadataClaim(where, "settings of an image model (steps, seed and such)", True)


def _list_nodes(told: Mapping[str, Any]) -> list[str]:
    """Return the kinds of nodes of a ComfyUI prompt or workflow, none of anything else."""
    if isinstance(told.get("nodes"), list) and "links" in told:
        return [str(node.get("type")) for node in told["nodes"] if isinstance(node, dict)]
    if "extra_data" in told and isinstance(told.get("prompt"), dict):
        told = told["prompt"]
    nodes = [node for node in told.values() if isinstance(node, dict) and "class_type" in node]
    return [str(node["class_type"]) for node in nodes if "inputs" in node]


def _decode_comment(value: Any) -> str:
    """Return EXIF's user comment as text: eight bytes name its encoding."""
    if not isinstance(value, bytes):
        return str(value)
    if value[:8] == b"UNICODE\0":
        body = value[8:]
        # Written in either order, whatever the file's own: letters of Latin tell which.
        order = "utf-16-be" if body[:1] == b"\0" else "utf-16-le"
        return body.decode(order, "replace")
    return (
        value[8:].decode("utf-8", "replace")
        if value[:5] == b"ASCII"
        else value.decode("utf-8", "replace")
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _shorten(text: str) -> str:
    said = escape_line(text.strip())
    return said if len(said) <= _MAX_SHOWN else said[: _MAX_SHOWN - 1] + "…"


def _unique(claims: list[MetadataClaim]) -> tuple[MetadataClaim, ...]:
    return tuple(dict.fromkeys(claims))[:_MAX_PACKETS]


IMAGE_SUFFIXES = frozenset(
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


MAX_IMAGE_PIXELS = 120_000_000


_MOVING = frozenset({"GIF", "WEBP", "PNG", "AVIF"})


_ORIENTATION, _TIFF_DEPTH, _PNG_DEPTH = 0x0112, 258, 24  # of PNG: a byte of its first chunk


DECODE_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, struct.error, ArithmeticError),
    *(LookupError, TypeError, AttributeError, RuntimeError),
)


"""What Pillow raises at damaged files, which its plug-ins do not agree on."""


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """A decoded picture, its format, and notes on what was done to read it.

    ``jpeg_quality`` is estimated from the quantization tables, None for other formats; ``claims``
    are what its metadata say of its making.
    """

    image: Image
    format: str
    notes: tuple[str, ...] = ()
    jpeg_quality: int | None = None
    claims: tuple[MetadataClaim, ...] = ()

    @property
    def coding(self) -> str:
        """How its pixels are coded: ``lossless``, or the name of what loses some, as ``JPEG``."""
        return _CODINGS.get(self.format, self.format)


def load_image(path: Path) -> DecodedImage:
    """Read a picture as RGB, (H, W, 3).

    Raises:
        DataError: If it is missing, too large, damaged, or of a kind that is not read.
    """
    require_packages("PIL")
    from PIL import Image as Pictures
    from PIL import ImageOps, UnidentifiedImageError

    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable_image(path, f"cannot be read: {error.strerror}", "a picture") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own bound on pixels is ours, told in our words
            with open_image(data) as opened:
                pixels = opened.width * opened.height
                if pixels > MAX_IMAGE_PIXELS:
                    raise make_size_error(path, f"has {opened.width}x{opened.height} pixels")
                notes = [*_notes(opened), *_note_depth(opened, data)]
                kind, quality = str(opened.format), _quality(opened)
                turned = ImageOps.exif_transpose(opened) or opened
                image, laid = _to_rgb(turned)
                claims = _read_claims(opened)
    except UnidentifiedImageError as error:
        kinds = "JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF"
        if data[4:12] in _HEIC:
            raise _unread_heic(path) from error
        raise _unreadable_image(path, "is no picture that is read", kinds) from error
    except Pictures.DecompressionBombError as error:
        raise make_size_error(path) from error
    except DataError:
        raise
    except DECODE_ERRORS as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise _unreadable_image(path, f"is damaged: {said}", "a whole file") from error
    return DecodedImage(image, kind, (*notes, *laid), quality, claims)


def open_image(data: bytes) -> PillowImage:
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


def make_size_error(path: Path, what: str = "has too many pixels") -> DataError:
    """Return the error of a picture that asks for more memory than any is given."""
    return _unreadable_image(path, what, f"at most {MAX_IMAGE_PIXELS // 1_000_000} million pixels")


def _open_heif() -> None:
    """Let pictures of iPhones be opened where the package that decodes them is here."""
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()


def _unread_heic(path: Path) -> DataError:
    """Return the error of a HEIC that is not read: damaged, or nothing here decodes it."""
    if importlib.util.find_spec("pillow_heif") is not None:
        return _unreadable_image(path, "is a damaged HEIC", "a whole file")
    return DataError(
        f"{path.name} is HEIC, which is not read here",
        code="forensics.picture",
        where=str(path),
        expected="the package pillow-heif, or JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF",
        next="pip install 'stillroom[heic]', or convert it",
    )


def _read_claims(opened: PillowImage) -> tuple[MetadataClaim, ...]:
    """Return what metadata say; damaged ones say nothing, and cost the pixels nothing."""
    try:
        return read_image_claims(opened)
    except DECODE_ERRORS:
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


def _unreadable_image(path: Path, what: str, expected: str) -> DataError:
    return DataError(
        f"{path.name} {what}",
        code="forensics.picture",
        where=str(path),
        expected=expected,
        next="convert it, or leave it out",
    )
