"""What a file says of its own making outside of signed credentials: anyone can write or remove it.

Read are the digital source type that IPTC defines for XMP, which cameras, editors and services
write, and the settings that programs of image models leave: as text of PNG, in EXIF's user comment,
or in the tags of a film. Each is told as what the file says, where it says it; none is proof.

Source: IPTC, "Digital Source Type" (http://cv.iptc.org/newscodes/digitalsourcetype/); the texts as
AUTOMATIC1111's web interface, ComfyUI, InvokeAI, SwarmUI, Fooocus, NovelAI and Midjourney write
them.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.jobs import plain_line

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

__all__ = ["SYNTHETIC", "Claim", "claims_of_clip", "claims_of_file", "claims_of_picture"]

SYNTHETIC = (
    "trainedAlgorithmicMedia",
    "compositeWithTrainedAlgorithmicMedia",
    "algorithmicMedia",
    "compositeSynthetic",
)
"""IPTC's words for what a program made, in whole or in part."""

_EXIF_IFD, _COMMENT, _MAKE, _MODEL, _SOFTWARE = 0x8769, 0x9286, 0x010F, 0x0110, 0x0131
_DESCRIPTION, _TIFF_XMP = 0x010E, 700
_XMP_KEYS = ("xmp", "XML:com.adobe.xmp")
_LONGEST = 4 << 20  # of a text or packet that is read: who writes more is not helped by it
_MOST = 16
_SHOWN = 80
_SOURCE = re.compile(
    r"\bDigitalSourceType\b(?:\s*=\s*[\"']|[^<>]{0,200}?resource\s*=\s*[\"']|[^<>]{0,200}>\s*)"
    r"([^<>\"'\s]{1,200})"
)
_PACKET = (b"<x:xmpmeta", b"</x:xmpmeta>")
_SETTINGS = re.compile(r"\bSteps: \d+, [^\n]{0,200}?\b(?:Sampler|Seed|CFG scale): ")
_MODEL_NAME = re.compile(r"\bModel: ([^,\n]{1,200})")
_MIDJOURNEY = re.compile(r"\bJob ID: [0-9a-f]{8}-[0-9a-f-]{27}")
_NAMED = {
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
_ENOUGH = 3


@dataclass(frozen=True, slots=True)
class Claim:
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


def claims_of_picture(opened: PillowImage) -> tuple[Claim, ...]:
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


def claims_of_clip(path: Path) -> tuple[Claim, ...]:
    """Return what a film or recording says in XMP and in its tags.

    Args:
        path: A file that can be opened.
    """
    import av

    with av.open(str(path), metadata_errors="ignore") as container:
        texts = {f"tag '{key}'": str(value) for key, value in container.metadata.items()}
    return _unique([*claims_of_file(path), *_read_texts(texts)])


def claims_of_file(path: Path) -> tuple[Claim, ...]:
    """Return what the first packet of XMP says that lies plainly in a file."""
    if not path.stat().st_size:
        return ()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        begin = data.find(_PACKET[0])
        end = data.find(_PACKET[1], begin) if begin >= 0 else -1
        packet = data[begin:end] if 0 <= begin < end <= begin + _LONGEST else b""
    return _unique(list(_read_packets([packet])))


def _read_packets(packets: list[Any]) -> Iterator[Claim]:
    for packet in packets:
        text = packet.decode("utf-8", "replace") if isinstance(packet, bytes) else str(packet or "")
        for found in islice(_SOURCE.finditer(text[:_LONGEST]), _MOST):
            name = _shorten(found[1].rstrip("/").rsplit("/", 1)[-1])
            yield Claim("XMP, IPTC's digital source type", name, name in SYNTHETIC)


def _read_texts(texts: Mapping[str, str]) -> Iterator[Claim]:
    for where, whole in texts.items():
        text, place = whole[:_LONGEST], _shorten(where)
        key = where.partition("'")[2].rstrip("'").lower()
        if key in _NAMED:
            yield Claim(place, f"metadata of {_NAMED[key]}, a program of image models", True)
        elif _SETTINGS.search(text):
            model = _MODEL_NAME.search(text)
            named = f", model {_shorten(model[1])}" if model else ""
            yield Claim(place, f"settings of a Stable Diffusion interface{named}", True)
        elif _MIDJOURNEY.search(text):
            yield Claim(place, "a job of Midjourney", True)
        elif "{" in text[:40]:
            yield from _read_json(place, text)


def _read_json(where: str, text: str) -> Iterator[Claim]:
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
        yield Claim(where, f"a ComfyUI graph {says}", samples)
    elif "sui_image_params" in told:
        yield Claim(where, "settings of SwarmUI, a program of image models", True)
    elif len(_FIELDS & {str(key).lower() for key in told}) >= _ENOUGH:
        yield Claim(where, "settings of an image model (steps, seed and such)", True)


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
    said = plain_line(text.strip())
    return said if len(said) <= _SHOWN else said[: _SHOWN - 1] + "…"


def _unique(claims: list[Claim]) -> tuple[Claim, ...]:
    return tuple(dict.fromkeys(claims))[:_MOST]
