"""Image decoding with format checks, and claims of synthetic origin in metadata.

Images are rotated by their EXIF orientation and converted to 8-bit RGB; conversions are noted. The
size is checked before decoding, so that a small file cannot allocate gigabytes.

Claims are the IPTC digital source type in XMP, written by cameras, editors and services, and the
generation settings that image-model programs write to PNG text, comments, EXIF or video tags.
Each is reported with its location as an unsigned statement of the file; none is proof.

Source: IPTC, "Digital Source Type" (http://cv.iptc.org/newscodes/digitalsourcetype/); text formats
of AUTOMATIC1111's web interface, ComfyUI, InvokeAI, SwarmUI, Fooocus, NovelAI, Draw Things and
Midjourney.
"""

from __future__ import annotations

import html
import importlib.util
import io
import json
import mmap
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
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
"""IPTC terms for media that a program synthesized, in whole or in part."""

_EXIF_IFD, _COMMENT, _MAKE, _MODEL, _SOFTWARE = 0x8769, 0x9286, 0x010F, 0x0110, 0x0131
_DESCRIPTION, _TIFF_XMP = 0x010E, 700
_XMP_KEYS = ("xmp", "XML:com.adobe.xmp")
_MAX_BYTES = 4 << 20  # of a text or packet that is parsed
_MAX_PACKETS = 16
_MAX_SHOWN = 80

_SOURCE = re.compile(
    r"\bDigitalSourceType\b(?:\s*=\s*[\"']|[^<>]{0,200}?resource\s*=\s*[\"']|[^<>]{0,200}>\s*)"
    r"([^<>\"'\s]{1,200})"
)

_PACKET = (b"<x:xmpmeta", b"</x:xmpmeta>")
_SETTINGS = re.compile(r"\bSteps: \d+, [^\n]{0,200}?\b(?:Sampler|Seed|CFG scale): ")
_MODEL_NAME = re.compile(r"\bModel: ([^,\n]{1,200})")
_MADE_WITH = re.compile(r"\s*made with (?:suno|udio)\b", re.IGNORECASE)
_MIDJOURNEY = re.compile(r"\bJob ID: [0-9a-f]{8}-[0-9a-f-]{27}")

_DREAM = re.compile(r"(?=.*\s-S\s?\d+).*\s-s\s?\d+", re.DOTALL)
_PROGRAMS = re.compile(
    r"\b(?:NovelAI|Stable Diffusion|Midjourney|DALL[\u00b7. -]?E|Adobe Firefly|Made with Google AI|"
    r"Draw Things|Ideogram|Leonardo\.?Ai|Bing Image Creator)\b",
    re.IGNORECASE,
)
_PROGRAM_FIELDS = frozenset(
    ["EXIF Make", "EXIF Model", "EXIF Software", "text 'Software'", "text 'Source'"]
)
_CREDIT = re.compile(r"\b(Credit|CreatorTool)\b[^<>]{0,20}[=>]\s*[\"']?([^<>\"']{1,200})")
_XMP_COMMENT = re.compile(
    r"\bUserComment\b(?:[^>]{0,20}>|\s*=\s*[\"'])((?:\s|<[^>]{0,200}>){0,8}[^<]{1,100000})"
)
"""Where Draw Things writes its settings."""
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
    """An unsigned statement of a file: its location, its text, whether it claims synthesis."""

    where: str
    says: str
    is_made: bool

    def line(self) -> str:
        """Format as one line."""
        return f"{self.where}: {self.says}"

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {"where": self.where, "says": self.says, "is_made": self.is_made}


def read_image_claims(opened: PillowImage) -> tuple[MetadataClaim, ...]:
    """Return the claims in XMP, PNG text and EXIF of an image whose pixels are loaded."""
    exif = opened.getexif()
    inner = exif.get_ifd(_EXIF_IFD)
    texts = {f"text '{key}'": value for key, value in opened.info.items() if _is_text(value)}
    if isinstance(comment := opened.info.get("comment"), bytes):  # of JPEG and GIF
        texts["comment"] = comment.decode("utf-8", "replace")
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
    """Return the claims in XMP and in the tags of a video or recording."""
    import av

    with av.open(str(path), metadata_errors="ignore") as container:
        texts = {f"tag '{key}'": str(value) for key, value in container.metadata.items()}
    return _unique([*read_file_claims(path), *_read_texts(texts)])


def read_file_claims(path: Path) -> tuple[MetadataClaim, ...]:
    """Return the claims of the first uncompressed XMP packet of a file."""
    if not path.stat().st_size:
        return ()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        begin = data.find(_PACKET[0])
        end = data.find(_PACKET[1], begin) if begin >= 0 else -1
        packet = data[begin:end] if 0 <= begin < end <= begin + _MAX_BYTES else b""
    return _unique(list(_read_packets([packet])))


def _read_packets(packets: list[Any]) -> Iterator[MetadataClaim]:
    for packet in packets:
        text = _decode_packet(packet) if isinstance(packet, bytes) else str(packet or "")
        for match in islice(_SOURCE.finditer(text[:_MAX_BYTES]), _MAX_PACKETS):
            name = _shorten(match[1].rstrip("/").rsplit("/", 1)[-1])
            yield MetadataClaim(
                "XMP, IPTC's digital source type", name, name in SYNTHETIC_SOURCE_TYPES
            )
        for match in islice(_CREDIT.finditer(text[:_MAX_BYTES]), _MAX_PACKETS):
            if _PROGRAMS.search(match[2]):
                where = "XMP, credit" if match[1] == "Credit" else "XMP, creator tool"
                yield MetadataClaim(where, _shorten(match[2]), True)
        for match in islice(_XMP_COMMENT.finditer(text[:_MAX_BYTES]), _MAX_PACKETS):
            yield from _read_texts({"XMP UserComment": html.unescape(match[1])})


def _decode_packet(packet: bytes) -> str:
    """Decode an XMP packet; its byte order mark tells UTF-16, as XMP allows."""
    is_wide = packet[:2] in {b"\xff\xfe", b"\xfe\xff"}
    return packet.decode("utf-16" if is_wide else "utf-8", "replace")


def _read_texts(texts: Mapping[str, str]) -> Iterator[MetadataClaim]:
    for where, value in texts.items():
        text, location = value[:_MAX_BYTES], _shorten(where)
        key = where.partition("'")[2].rstrip("'").lower()
        if key in _GENERATOR_KEYS:
            yield MetadataClaim(
                location, f"metadata of {_GENERATOR_KEYS[key]}, a program of image models", True
            )
        elif _SETTINGS.search(text):
            model = _MODEL_NAME.search(text)
            named = f", model {_shorten(model[1])}" if model else ""
            yield MetadataClaim(location, f"settings of a Stable Diffusion interface{named}", True)
        elif key == "dream" and _DREAM.search(text):
            yield MetadataClaim(location, "settings of InvokeAI, a program of image models", True)
        elif where in _PROGRAM_FIELDS and _PROGRAMS.search(text):
            yield MetadataClaim(location, f"{_shorten(text)}, a program of image models", True)
        elif _MADE_WITH.match(text):
            yield MetadataClaim(location, _shorten(text), True)
        elif _MIDJOURNEY.search(text):
            yield MetadataClaim(location, "a job of Midjourney", True)
        elif "{" in text[:400]:
            yield from _read_json(location, text)


def _read_json(where: str, text: str) -> Iterator[MetadataClaim]:
    """Yield the claims of settings in JSON; ComfyUI writes a prefix before its JSON in EXIF."""
    try:
        metadata = json.loads(text[text.index("{") :])
    except (ValueError, RecursionError):
        return
    if not isinstance(metadata, dict):
        return
    nodes = _list_nodes(metadata)
    if nodes:
        samples = any("sampler" in name.lower() for name in nodes)
        says = "that samples from a model" if samples else "without a sampler"
        yield MetadataClaim(where, f"a ComfyUI graph {says}", samples)
    elif "sui_image_params" in metadata:
        yield MetadataClaim(where, "settings of SwarmUI, a program of image models", True)
    elif len(_FIELDS & {str(key).lower() for key in metadata}) >= _MIN_FIELDS:
        yield MetadataClaim(where, "settings of an image model (steps, seed and such)", True)


def _list_nodes(metadata: Mapping[str, Any]) -> list[str]:
    """Return the node types of a ComfyUI prompt or workflow, empty for anything else."""
    if isinstance(metadata.get("nodes"), list) and "links" in metadata:
        return [str(node.get("type")) for node in metadata["nodes"] if isinstance(node, dict)]
    if "extra_data" in metadata and isinstance(metadata.get("prompt"), dict):
        metadata = metadata["prompt"]
    nodes = [node for node in metadata.values() if isinstance(node, dict) and "class_type" in node]
    return [str(node["class_type"]) for node in nodes if "inputs" in node]


def _decode_comment(value: Any) -> str:
    """Decode EXIF's user comment, whose first eight bytes name its encoding."""
    if not isinstance(value, bytes):
        return str(value)
    if value[:8] == b"UNICODE\0":
        body = value[8:]
        # Both byte orders occur regardless of the file's own: Latin letters reveal which.
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
    shortened = escape_line(text.strip())
    return shortened if len(shortened) <= _MAX_SHOWN else shortened[: _MAX_SHOWN - 1] + "…"


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
"""Suffixes of files that are read as images."""

_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF", "PPM")

_CODINGS = {
    **dict.fromkeys(("PNG", "BMP", "TIFF", "GIF", "PPM"), "lossless"),
    **{"MPO": "JPEG", "WEBP": "WebP", "HEIF": "HEIC"},
}

_SAMPLINGS = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}  # as Pillow numbers them

_BYTE = 8
_HEIC = frozenset({b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1"})
MAX_IMAGE_PIXELS = 120_000_000
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
    from PIL import Image as Pictures
    from PIL import ImageOps, UnidentifiedImageError

    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable_image(path, f"cannot be read: {error.strerror}", "an image") from error
    if not data:
        raise _unreadable_image(path, "is empty", "an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MAX_IMAGE_PIXELS replaces Pillow's own limit
            with open_image(data) as opened:
                pixels = opened.width * opened.height
                if pixels > MAX_IMAGE_PIXELS:
                    raise make_size_error(path, f"has {opened.width}x{opened.height} pixels")
                notes = [*_notes(opened), *_note_depth(opened, data)]
                kind, quality, coding = str(opened.format), _quality(opened), _name_coding(opened)
                turned = ImageOps.exif_transpose(opened) or opened
                image, alpha_notes = _to_rgb(turned)
                claims = _read_claims(opened)
    except UnidentifiedImageError as error:
        kinds = "JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF"
        if data[4:12] in _HEIC:
            raise _unreadable_heic(path) from error
        raise _unreadable_image(path, "is not a supported image", kinds) from error
    except Pictures.DecompressionBombError as error:
        raise make_size_error(path) from error
    except DataError:
        raise
    except DECODE_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _unreadable_image(path, f"is damaged: {reason}", "a complete file") from error
    return DecodedImage(image, kind, (*notes, *alpha_notes), quality, coding, claims)


def open_image(data: bytes) -> PillowImage:
    """Open an image of a supported format without decoding it.

    Pillow supports many more formats, some of which start other programs: these are not tried.

    Raises:
        UnidentifiedImageError: If the format is not supported.
    """
    from PIL import Image as Pictures

    _open_heif()
    Pictures.init()
    return Pictures.open(
        io.BytesIO(data), formats=[name for name in _FORMATS if name in Pictures.OPEN]
    )


def make_size_error(path: Path, problem: str = "has too many pixels") -> DataError:
    """Return the error for an image with too many pixels."""
    return _unreadable_image(
        path, problem, f"at most {MAX_IMAGE_PIXELS // 1_000_000} million pixels"
    )


def _open_heif() -> None:
    """Register the HEIF decoder of pillow-heif if it is installed."""
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()


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
        notes.append("rotated by its EXIF orientation")
    return tuple(notes)


def _note_depth(opened: PillowImage, data: bytes) -> tuple[str, ...]:
    """Return a note where Pillow silently drops the lower bits of colors."""
    depth = _BYTE
    if opened.mode in {"RGB", "RGBA"} and opened.format == "PNG":
        depth = data[_PNG_DEPTH]
    elif opened.mode in {"RGB", "RGBA"} and opened.format == "TIFF":
        bits = getattr(opened, "tag_v2", {}).get(_TIFF_DEPTH, (_BYTE,))
        depth = max(bits) if isinstance(bits, tuple) else int(bits)
    return (f"reduced from {depth} to 8 bits per channel",) if depth > _BYTE else ()


def _to_rgb(turned: PillowImage) -> tuple[Image, tuple[str, ...]]:
    """Convert to 8-bit RGB, with a note if transparency was flattened.

    Transparent pixels have colors that no viewer shows: they become white.
    """
    from PIL import Image as Pictures

    if turned.mode in {"I;16", "I;16B", "I"}:
        gray = (np.asarray(turned, dtype=np.float64) / 257).clip(0, 255)
        turned = Pictures.fromarray(gray.astype(np.uint8))
    elif turned.mode == "F":
        gray = np.nan_to_num(np.asarray(turned, dtype=np.float64))
        factor = 255 if gray.max(initial=0) <= 1 else 1  # some files use the range 0 to 1
        turned = Pictures.fromarray((gray * factor).clip(0, 255).astype(np.uint8))
    if not turned.has_transparency_data:
        return np.asarray(turned.convert("RGB")), ()
    shown = turned.convert("RGBA")
    if np.asarray(shown)[..., 3].min(initial=255) == 255:
        return np.asarray(shown.convert("RGB")), ()
    white = Pictures.new("RGBA", shown.size, (255, 255, 255, 255))
    flattened = Pictures.alpha_composite(white, shown).convert("RGB")
    return np.asarray(flattened), ("transparent in parts, which became white",)


def _quality(opened: object) -> int | None:
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
    from PIL import Image as Pictures
    from PIL.JpegImagePlugin import JpegImageFile

    tables = set()
    for quality in range(1, 101):
        written = io.BytesIO()
        Pictures.new("L", (8, 8)).save(written, "JPEG", quality=quality)
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
