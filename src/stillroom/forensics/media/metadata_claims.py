"""Claims of synthetic origin in the metadata of images, videos and recordings.

Claims are IPTC's digital source type and AI properties in XMP, written by cameras, editors and
services, and the generation settings that image-model programs write to PNG text, comments, EXIF,
the older block of IPTC or video tags.
Each is reported with its location as an unsigned statement of the file; none is proof.

Source: IPTC, "Digital Source Type" (http://cv.iptc.org/newscodes/digitalsourcetype/); text formats
of AUTOMATIC1111's web interface, ComfyUI, InvokeAI, SwarmUI, Fooocus, NovelAI, Draw Things and
Midjourney.
"""

from __future__ import annotations

import html
import json
import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.jobs import escape_line

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

__all__ = [
    "SYNTHETIC_SOURCE_TYPES",
    "MetadataClaim",
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
    r"\bDigitalSource(?:file)?Type\b(?:\s*=\s*[\"']|[^<>]{0,200}?resource\s*=\s*[\"']|[^<>]{0,200}>\s*)"
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
    [
        *("EXIF Make", "EXIF Model", "EXIF Software", "text 'Software'", "text 'Source'"),
        "IPTC OriginatingProgram",
    ]
)
_CREDIT = re.compile(r"\b(Credit|CreatorTool)\b[^<>]{0,20}[=>]\s*[\"']?([^<>\"']{1,200})")
_GENERATED_BY = re.compile(
    r"\bAI(SystemUsed|PromptInformation)"
    r"(?:\s*=\s*[\"']\s*|(?:\s[^<>]{0,200})?(?<!/)>[\s\"']*)"
    r"([^<>\"'\s][^<>\"']{0,199})"
)
_GENERATED_BY_NAMES = {"SystemUsed": "AI system used", "PromptInformation": "AI prompt"}

_IPTC_BLOCK, _IPTC_FIELD = 0x0404, re.compile(rb"\x1c\x02([\x41\x78])([\0-\x7f].)", re.DOTALL)
_IPTC_NAMES = {b"\x41": "IPTC OriginatingProgram", b"\x78": "IPTC Caption"}
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
    texts |= _read_iptc(opened.info.get("photoshop"))
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


def _read_iptc(blocks: Any) -> dict[str, str]:
    """Return program and caption of the older form of IPTC's metadata, a block in a JPEG."""
    block = blocks.get(_IPTC_BLOCK) if isinstance(blocks, dict) else None
    if not isinstance(block, bytes):
        return {}
    fields = islice(_IPTC_FIELD.finditer(block), _MAX_PACKETS)
    return {
        _IPTC_NAMES[field[1]]: block[field.end() :][: int.from_bytes(field[2])].decode(
            "utf-8", "replace"
        )
        for field in fields
    }


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
        for match in islice(_GENERATED_BY.finditer(text[:_MAX_BYTES]), _MAX_PACKETS):
            where = f"XMP, IPTC's {_GENERATED_BY_NAMES[match[1]]}"
            yield MetadataClaim(where, _shorten(html.unescape(match[2])), True)
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
    metadata = _parse_object(text)
    # requests, and the comment of a video, hold both in one object, there a prompt as text
    inner = [_parse_object(metadata.get(key)) for key in ("prompt", "workflow")]
    nodes = next(filter(None, map(_list_nodes, (metadata, *inner))), [])
    if nodes:
        samples = any("sampler" in name.lower() for name in nodes)
        says = "that samples from a model" if samples else "without a sampler"
        yield MetadataClaim(where, f"a ComfyUI graph {says}", samples)
    elif "sui_image_params" in metadata:
        yield MetadataClaim(where, "settings of SwarmUI, a program of image models", True)
    elif len(_FIELDS & {str(key).lower() for key in metadata}) >= _MIN_FIELDS:
        yield MetadataClaim(where, "settings of an image model (steps, seed and such)", True)


def _parse_object(value: Any) -> Mapping[str, Any]:
    """Return an object, or the JSON object from a text's first brace; empty for anything else."""
    try:
        parsed = json.loads(value[value.index("{") :]) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _list_nodes(metadata: Mapping[str, Any]) -> list[str]:
    """Return the node types of a ComfyUI prompt or workflow, empty for anything else."""
    if isinstance(metadata.get("nodes"), list) and "links" in metadata:
        return [str(node.get("type")) for node in metadata["nodes"] if isinstance(node, dict)]
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
