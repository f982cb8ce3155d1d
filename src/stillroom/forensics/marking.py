"""The only writer of media in this room: what it writes is marked in four ways, or not written.

Every image gets an invisible watermark, a label in its metadata that any viewer shows, signed
content credentials, and a row in the lab's ledger; then the finished bytes are read back, and each
mark has to be found in them before the file appears under its name. There is no setting that leaves
one out. A contract test holds that no other module of the room writes pictures.

What this cannot do: stop someone from changing this program, or from saving the arrays that
``draw_face`` and a method's ``forge`` return in memory, which carry no mark. The marks are for
honest labs, and for files that leave them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.errors import DataError
from stillroom.forensics.content import Content, pack_sketch, sketch_picture
from stillroom.forensics.credentials import mime_type, sign_bytes
from stillroom.forensics.extras import need
from stillroom.forensics.face import Image
from stillroom.forensics.finishing import (
    IPTC,
    MARKS,
    Kind,
    choose_labels,
    finish,
    make_manifest,
    make_payload,
    missing_marks,
    name_kind,
    refuse_missing,
    signed_payload,
)
from stillroom.forensics.kinds import Kind as MediaKind
from stillroom.forensics.kinds import kind_of
from stillroom.forensics.lab import Lab
from stillroom.forensics.pictures import DAMAGE
from stillroom.forensics.watermark import BITS, Reading, Watermark, lay_out, measure_psnr
from stillroom.provenance import digest_bytes

__all__ = [
    "LABELS",
    "Made",
    "Marker",
    "decode_image",
    "label_traced",
    "read_image",
    "unmarked_files",
]

_MADE = "Made by the Stillroom forensics lab to test detectors. Not a photograph of what it shows."
LABELS: Mapping[Kind, str] = {
    "forged": _MADE,
    "drawn": _MADE,
    "synthetic": "Made by a generator, as the Stillroom forensics lab was told; kept as the twin "
    "of a forgery, to test detectors. Not a photograph of what it shows.",
    "real": "A picture of a person, not forged: kept by the Stillroom forensics lab as the real "
    "twin of a forgery, to test detectors; cut out, edited as people edit, and marked.",
}
_FORMER = _MADE
_UNKNOWN = (
    "Marked by the Stillroom forensics lab, which makes forgeries and keeps their real twins to "
    "test detectors; which of these it is is not known."
)
_ELSEWHERE = (
    "Carries a mark that the Stillroom forensics lab wrote into another picture: copied here, or "
    "left of what was changed since."
)
SOFT_BINDING = "io.stillroom.dct48"
_EXIF_DESCRIPTION = 0x010E
_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'Iptc4xmpExt:DigitalSourceType="{source}"/></rdf:RDF></x:xmpmeta>'
)
_MORE_MEDIA = frozenset([".jp2", ".psd", ".ico", ".ts", ".mpg", ".mpeg", ".ogv"])
"""Endings of media that no other part of this room reads, and that a set may not hold either."""


@dataclass(frozen=True, eq=False)
class Made:
    """An image that the lab made, and what its marks are to say.

    ``source_type`` is IPTC's word; ``parent`` the bytes and type of the picture it was made from,
    where that was not drawn here; ``box`` is x, y, width, height of what is forged.
    """

    image: Image
    generator: str
    seed: int
    run: str
    source_type: str
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    consent: str = ""
    kind: Kind = "forged"
    whose: str = "drawn"
    parent: tuple[bytes, str] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


class Marker:
    """Writes images of one lab, each with all its marks."""

    def __init__(self, lab: Lab, *, psnr: float = 41.5, quality: int = 95) -> None:
        """Write with the lab's key, certificates and ledger.

        Args:
            lab: The lab.
            psnr: Quality of the watermarked image, in dB.
            quality: Of JPEG.
        """
        need("c2pa", "cryptography", "PIL", "cv2")
        self._lab, self._psnr, self._quality = lab, psnr, quality
        self._watermark = Watermark(lab.key)

    def emit(self, made: Made, path: Path) -> dict[str, Any]:
        """Mark an image, prove its marks, and write it.

        Args:
            made: The image and what is to be said of it.
            path: A new file, ``.jpg`` or ``.png``.

        Returns:
            What a manifest row says of the file: watermark, digests, quality.

        Raises:
            DataError: If the image cannot carry a mark.
            IntegrityError: If a mark is not found in the finished bytes; nothing is written then.
        """
        payload = make_payload(self._lab, made, path.name, made.image.tobytes(), BITS)
        marked = self._watermark.embed(made.image, payload, psnr=self._psnr)
        mime = mime_type(path)
        plain = self._encode(marked, mime, made)
        signed = sign_bytes(
            plain,
            mime,
            self._manifest(made, payload, path.name),
            self._lab.signer,
            source_type="" if made.parent else made.source_type,
            parent=made.parent,
        )
        refuse_missing(
            path,
            self._missing(signed, mime, payload, frozenset([LABELS[made.kind]])),
            "raise out.quality, or lower marking.psnr, so that the watermark survives",
        )
        image = decode_image(signed)
        row = {
            "watermark": format(payload, f"0{BITS // 4}x"),
            "pixels": digest_bytes(image.tobytes()),
        }
        sketch = pack_sketch(sketch_picture(lay_out(image, Reading(payload, 0.0))))
        finish(path, signed, made, self._lab, **row, content=sketch)
        return {
            **row,
            "psnr": round(measure_psnr(made.image, marked), 2),
            "marks": list(MARKS),
        }

    def missing_marks(self, path: Path, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Return which marks of this lab a file lacks; none if it is whole.

        Args:
            path: A JPEG or PNG; one that cannot be decoded lacks them all.
            rows: The ledger's rows by their files' digests.
        """
        from PIL import Image as Pictures

        data, mime = path.read_bytes(), mime_type(path)
        payload = signed_payload(data, rows)
        labels = choose_labels(rows.get(digest_bytes(data)), LABELS, _FORMER)
        try:
            missing = self._missing(data, mime, payload, labels)
        except (*DAMAGE, Pictures.DecompressionBombError):
            missing = ["watermark", "credentials", "label"]
        return [*(["ledger"] if payload is None else []), *missing]

    def _missing(
        self, data: bytes, mime: str, payload: int | None, labels: frozenset[str]
    ) -> list[str]:
        return missing_marks(
            data,
            mime,
            self._lab,
            found=self._watermark.read(decode_image(data)).payload,
            payload=payload,
            is_labelled=_read_label(data) in labels,
        )

    def _manifest(self, made: Made, payload: int, title: str) -> dict[str, Any]:
        x, y, width, height = made.box
        shape = {
            "type": "rectangle",
            "unit": "pixel",
            "origin": {"x": x, "y": y},
            "width": width,
            "height": height,
        }
        change = {"description": "forged", "region": [{"type": "spatial", "shape": shape}]}
        return make_manifest(
            made,
            title,
            label=LABELS[made.kind],
            binding=(SOFT_BINDING, payload, BITS),
            region={"x": x, "y": y, "width": width, "height": height},
            changes=[change] if width and height else [],
        )

    def _encode(self, image: Image, mime: str, made: Made) -> bytes:
        """Return the image as a file whose own metadata says what it is."""
        from PIL import Image as Pictures
        from PIL.PngImagePlugin import PngInfo

        picture, out = Pictures.fromarray(image), io.BytesIO()
        xmp = _XMP.format(source=IPTC + made.source_type)
        if mime == "image/jpeg":
            exif = Pictures.Exif()
            exif[_EXIF_DESCRIPTION] = LABELS[made.kind]
            picture.save(
                out, "JPEG", quality=self._quality, exif=exif, xmp=xmp.encode(), subsampling=0
            )
        else:
            texts = PngInfo()
            texts.add_text("Description", LABELS[made.kind])
            texts.add_itxt("XML:com.adobe.xmp", xmp)
            picture.save(out, "PNG", pnginfo=texts)
        return out.getvalue()


def label_traced(row: Mapping[str, Any] | None, content: Content) -> str:
    """Return what is true of a picture that carries the lab's mark.

    Args:
        row: The ledger's of the mark.
        content: Whether the picture is the one that the mark was written into.
    """
    if content == "differs":
        return _ELSEWHERE
    kind = name_kind(row) if row is not None else None
    return LABELS[kind] if kind else _UNKNOWN


def decode_image(data: bytes) -> Image:
    """Return the pixels of a file as RGB, (H, W, 3)."""
    from PIL import Image as Pictures

    with Pictures.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


def _read_label(data: bytes) -> str:
    """Return what a file's own metadata say it shows; credentials do not count."""
    from PIL import Image as Pictures

    with Pictures.open(io.BytesIO(data)) as picture:
        picture.load()
        said = picture.getexif().get(_EXIF_DESCRIPTION) or picture.info.get("Description") or ""
    return str(said)


def read_image(path: Path) -> Image:
    """Return the pixels of a file of the lab's as RGB, (H, W, 3)."""
    return decode_image(path.read_bytes())


def unmarked_files(place: Path, lab: Lab) -> dict[str, list[str]]:
    """Return every media file at or below a place that lacks a mark of the lab, and which.

    A file is a medium by how it begins, whatever it is named, or by its name where that says
    nothing. Media whose type cannot be marked are unmarked, whatever is in them.

    Raises:
        DataError: If the place does not exist, or holds no medium: of nothing, nothing is said.
    """
    from stillroom.forensics.sound_marking import SoundMarker

    media = _list_media(place)
    marker, sounds, found = Marker(lab), SoundMarker(lab), {}
    rows = {str(row.get("sha256")): row for row in lab.ledger.rows()}
    for path, kind in media:
        mime = kind.mime if kind is not None else ""
        if mime in {"image/jpeg", "image/png"}:
            missing = marker.missing_marks(path, rows)
        elif mime == "audio/wav":
            missing = sounds.missing_marks(path, rows)
        else:
            missing = ["ledger", "watermark", "credentials", "label"]
        if missing:
            name = path.name if path == place else path.relative_to(place).as_posix()
            found[name] = missing
    return found


def _list_media(place: Path) -> list[tuple[Path, MediaKind | None]]:
    """Return the media at or below a place; None stands for a kind that is not read at all.

    Raises:
        DataError: If there is none.
    """
    if not place.exists():
        raise DataError(
            f"{place} does not exist",
            code="data.missing",
            where=str(place),
            expected="a folder of media, or one file",
            next="check the path",
        )
    files = [place] if place.is_file() else sorted(place.rglob("*"))
    kinds = [(path, kind_of(path)) for path in files if path.is_file()]
    media = [
        (path, kind)
        for path, kind in kinds
        if (kind is not None and not kind.mime.startswith("font/"))
        or path.suffix.lower() in _MORE_MEDIA
    ]
    if not media:
        raise DataError(
            f"{place} holds no medium, so that none was looked at",
            code="forensics.no-media",
            where=str(place),
            expected="pictures, films, recordings or documents that can be marked",
            next="name the folder that the files are in, as RUN/output",
        )
    return media
