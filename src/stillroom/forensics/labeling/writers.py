"""Writers of labeled images and audio: watermark, metadata label, credentials, and ledger row.

Every image gets an invisible watermark, a label in its metadata that any viewer shows, signed
content credentials, and a row in the lab's ledger; then the finished bytes are read back, and each
mark has to be found in them before the file appears under its name. There is no setting that leaves
one out. A contract test holds that no other module of the room writes pictures.

What this cannot do: stop someone from changing this program, or from saving the arrays that
``draw_face`` and a method's ``forge`` return in memory, which carry no mark. The marks are for
honest labs, and for files that leave them.

As ``marking`` does for pictures: an inaudible watermark, a label that players show, signed content
credentials, and a row in the ledger; the finished bytes are read back, and each mark has to be
found in them before the file appears.
"""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.forensics.c2pa.credentials import detect_mime_type, sign_bytes
from stillroom.forensics.extras import require_packages
from stillroom.forensics.labeling.lab import Lab
from stillroom.forensics.labeling.marks import (
    IPTC_SOURCE_TYPE_URL,
    MARKS,
    LabelKind,
    commit_file,
    find_missing_marks,
    find_signed_payload,
    make_manifest,
    make_payload,
    read_label_kind,
    require_marks,
    select_valid_labels,
)
from stillroom.forensics.media.audio import SAMPLE_RATE, AudioSamples
from stillroom.forensics.media.face import Image
from stillroom.forensics.media.images import DECODE_ERRORS
from stillroom.forensics.watermark.audio import AUDIO_PAYLOAD_BITS, AudioWatermark, measure_snr
from stillroom.forensics.watermark.fingerprint import (
    ContentMatch,
    fingerprint_audio,
    fingerprint_image,
    pack_fingerprint,
)
from stillroom.forensics.watermark.image import (
    IMAGE_PAYLOAD_BITS,
    ImageWatermark,
    ImageWatermarkResult,
    align_luma,
    measure_psnr,
)
from stillroom.provenance import digest_bytes

__all__ = [
    "AUDIO_LABELS",
    "IMAGE_LABELS",
    "GeneratedAudio",
    "GeneratedImage",
    "LabeledAudioWriter",
    "LabeledImageWriter",
    "decode_image",
    "decode_wave",
    "read_image",
    "select_lookup_label",
]


_FORGED_IMAGE_LABEL = (
    "Made by the Stillroom forensics lab to test detectors. Not a photograph of what it shows."
)


IMAGE_LABELS: Mapping[LabelKind, str] = {
    "forged": _FORGED_IMAGE_LABEL,
    "drawn": _FORGED_IMAGE_LABEL,
    "synthetic": "Made by a generator, as the Stillroom forensics lab was told; kept as the twin "
    "of a forgery, to test detectors. Not a photograph of what it shows.",
    "real": "A picture of a person, not forged: kept by the Stillroom forensics lab as the real "
    "twin of a forgery, to test detectors; cut out, edited as people edit, and marked.",
}


_FORMER_IMAGE_LABEL = _FORGED_IMAGE_LABEL


_UNKNOWN_IMAGE_LABEL = (
    "Marked by the Stillroom forensics lab, which makes forgeries and keeps their real twins to "
    "test detectors; which of these it is is not known."
)


_COPIED_MARK_LABEL = (
    "Carries a mark that the Stillroom forensics lab wrote into another picture: copied here, or "
    "left of what was changed since."
)


IMAGE_SOFT_BINDING = "io.stillroom.dct48"


_EXIF_DESCRIPTION = 0x010E


_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'Iptc4xmpExt:DigitalSourceType="{source}"/></rdf:RDF></x:xmpmeta>'
)


UNREADABLE_MEDIA_SUFFIXES = frozenset([".jp2", ".psd", ".ico", ".ts", ".mpg", ".mpeg", ".ogv"])


"""Endings of media that no other part of this room reads, and that a set may not hold either."""


@dataclass(frozen=True, eq=False)
class GeneratedImage:
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
    kind: LabelKind = "forged"
    whose: str = "drawn"
    parent: tuple[bytes, str] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


class LabeledImageWriter:
    """Writes images of one lab, each with all its marks."""

    def __init__(self, lab: Lab, *, psnr: float = 41.5, quality: int = 95) -> None:
        """Write with the lab's key, certificates and ledger.

        Args:
            lab: The lab.
            psnr: Quality of the watermarked image, in dB.
            quality: Of JPEG.
        """
        require_packages("c2pa", "cryptography", "PIL", "cv2")
        self._lab, self._psnr, self._quality = lab, psnr, quality
        self._watermark = ImageWatermark(lab.key)

    def emit(self, made: GeneratedImage, path: Path) -> dict[str, Any]:
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
        payload = make_payload(self._lab, made, path.name, made.image.tobytes(), IMAGE_PAYLOAD_BITS)
        marked = self._watermark.embed(made.image, payload, psnr=self._psnr)
        mime = detect_mime_type(path)
        plain = self._encode(marked, mime, made)
        signed = sign_bytes(
            plain,
            mime,
            self._manifest(made, payload, path.name),
            self._lab.signer,
            source_type="" if made.parent else made.source_type,
            parent=made.parent,
        )
        require_marks(
            path,
            self._missing(signed, mime, payload, frozenset([IMAGE_LABELS[made.kind]])),
            "raise out.quality, or lower marking.psnr, so that the watermark survives",
        )
        image = decode_image(signed)
        row = {
            "watermark": format(payload, f"0{IMAGE_PAYLOAD_BITS // 4}x"),
            "pixels": digest_bytes(image.tobytes()),
        }
        sketch = pack_fingerprint(
            fingerprint_image(align_luma(image, ImageWatermarkResult(payload, 0.0)))
        )
        commit_file(path, signed, made, self._lab, **row, content=sketch)
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

        data, mime = path.read_bytes(), detect_mime_type(path)
        payload = find_signed_payload(data, rows)
        labels = select_valid_labels(
            rows.get(digest_bytes(data)), IMAGE_LABELS, _FORMER_IMAGE_LABEL
        )
        try:
            missing = self._missing(data, mime, payload, labels)
        except (*DECODE_ERRORS, Pictures.DecompressionBombError):
            missing = ["watermark", "credentials", "label"]
        return [*(["ledger"] if payload is None else []), *missing]

    def _missing(
        self, data: bytes, mime: str, payload: int | None, labels: frozenset[str]
    ) -> list[str]:
        return find_missing_marks(
            data,
            mime,
            self._lab,
            found=self._watermark.read(decode_image(data)).payload,
            payload=payload,
            is_labelled=_read_image_label(data) in labels,
        )

    def _manifest(self, made: GeneratedImage, payload: int, title: str) -> dict[str, Any]:
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
            label=IMAGE_LABELS[made.kind],
            binding=(IMAGE_SOFT_BINDING, payload, IMAGE_PAYLOAD_BITS),
            region={"x": x, "y": y, "width": width, "height": height},
            changes=[change] if width and height else [],
        )

    def _encode(self, image: Image, mime: str, made: GeneratedImage) -> bytes:
        """Return the image as a file whose own metadata says what it is."""
        from PIL import Image as Pictures
        from PIL.PngImagePlugin import PngInfo

        picture, out = Pictures.fromarray(image), io.BytesIO()
        xmp = _XMP.format(source=IPTC_SOURCE_TYPE_URL + made.source_type)
        if mime == "image/jpeg":
            exif = Pictures.Exif()
            exif[_EXIF_DESCRIPTION] = IMAGE_LABELS[made.kind]
            picture.save(
                out, "JPEG", quality=self._quality, exif=exif, xmp=xmp.encode(), subsampling=0
            )
        else:
            texts = PngInfo()
            texts.add_text("Description", IMAGE_LABELS[made.kind])
            texts.add_itxt("XML:com.adobe.xmp", xmp)
            picture.save(out, "PNG", pnginfo=texts)
        return out.getvalue()


def select_lookup_label(row: Mapping[str, Any] | None, content: ContentMatch) -> str:
    """Return what is true of a picture that carries the lab's mark.

    Args:
        row: The ledger's of the mark.
        content: Whether the picture is the one that the mark was written into.
    """
    if content == "differs":
        return _COPIED_MARK_LABEL
    kind = read_label_kind(row) if row is not None else None
    return IMAGE_LABELS[kind] if kind else _UNKNOWN_IMAGE_LABEL


def decode_image(data: bytes) -> Image:
    """Return the pixels of a file as RGB, (H, W, 3)."""
    from PIL import Image as Pictures

    with Pictures.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


def _read_image_label(data: bytes) -> str:
    """Return what a file's own metadata say it shows; credentials do not count."""
    from PIL import Image as Pictures

    with Pictures.open(io.BytesIO(data)) as picture:
        picture.load()
        said = picture.getexif().get(_EXIF_DESCRIPTION) or picture.info.get("Description") or ""
    return str(said)


def read_image(path: Path) -> Image:
    """Return the pixels of a file of the lab's as RGB, (H, W, 3)."""
    return decode_image(path.read_bytes())


_FORGED_AUDIO_LABEL = (
    "Made by the Stillroom forensics lab to test detectors. Not a true recording of anyone."
)


AUDIO_LABELS: Mapping[LabelKind, str] = {
    "forged": _FORGED_AUDIO_LABEL,
    "drawn": _FORGED_AUDIO_LABEL,
    "synthetic": "Made by a generator, as the Stillroom forensics lab was told; kept as the twin "
    "of a forgery, to test detectors. Not a recording of anyone.",
    "real": "A recording of a person, not forged: kept by the Stillroom forensics lab as the real "
    "twin of a forgery, to test detectors; cut out, and marked.",
}


_FORMER_AUDIO_LABEL = "Made by the Stillroom forensics lab to test detectors. Nobody said this."


_AUDIO_SOFT_BINDING = "io.stillroom.cells32"


_AUDIO_MIME = "audio/wav"


@dataclass(frozen=True, eq=False)
class GeneratedAudio:
    """A sound that the lab made, (N,) at ``waves.RATE``, and what its marks are to say."""

    values: AudioSamples
    generator: str
    seed: int
    run: str
    source_type: str
    consent: str = ""
    kind: LabelKind = "forged"
    whose: str = "drawn"
    about: Mapping[str, Any] = field(default_factory=dict)


class LabeledAudioWriter:
    """Writes sounds of one lab as WAV, each with all its marks."""

    def __init__(self, lab: Lab, *, snr: float = 18.0) -> None:
        """Write with the lab's key, certificates and ledger.

        Args:
            lab: The lab.
            snr: Ratio of sound to mark in dB; up to 6 less where the mark cannot be read back.
        """
        require_packages("c2pa", "cryptography")
        self._lab, self._snr = lab, snr
        self._mark = AudioWatermark(lab.key)

    def emit(self, made: GeneratedAudio, path: Path) -> dict[str, Any]:
        """Mark a sound, prove its marks, and write it.

        Args:
            made: The sound and what is to be said of it.
            path: A new file, ``.wav``.

        Returns:
            What a manifest row says of the file: watermark, digests, ratio of sound to mark.

        Raises:
            DataError: If the sound cannot carry a mark.
            IntegrityError: If a mark is not found in the finished bytes; nothing is written then.
        """
        payload = make_payload(
            self._lab, made, path.name, made.values.tobytes(), AUDIO_PAYLOAD_BITS
        )
        marked = self._mark.embed(made.values, payload, snr=self._snr)
        signed = sign_bytes(
            _encode_wave(marked, AUDIO_LABELS[made.kind]),
            _AUDIO_MIME,
            make_manifest(
                made,
                path.name,
                label=AUDIO_LABELS[made.kind],
                binding=(_AUDIO_SOFT_BINDING, payload, AUDIO_PAYLOAD_BITS),
            ),
            self._lab.signer,
            source_type=made.source_type,
        )
        require_marks(
            path,
            self._missing(signed, payload, frozenset([AUDIO_LABELS[made.kind]])),
            "lower sound.snr, so that the watermark survives",
        )
        values = decode_wave(signed)
        row = {
            "watermark": format(payload, f"0{AUDIO_PAYLOAD_BITS // 4}x"),
            "pixels": digest_bytes(values.tobytes()),
        }
        sketch = pack_fingerprint(fingerprint_audio(values))
        commit_file(path, signed, made, self._lab, **row, content=sketch)
        return {
            **row,
            "snr": round(measure_snr(made.values, marked), 2),
            "marks": list(MARKS),
        }

    def missing_marks(self, path: Path, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Return which marks of this lab a WAV file lacks; none if it is whole.

        Args:
            path: The file.
            rows: The ledger's rows by their files' digests.
        """
        data = path.read_bytes()
        payload = find_signed_payload(data, rows)
        labels = select_valid_labels(
            rows.get(digest_bytes(data)), AUDIO_LABELS, _FORMER_AUDIO_LABEL
        )
        return [*(["ledger"] if payload is None else []), *self._missing(data, payload, labels)]

    def _missing(self, data: bytes, payload: int | None, labels: frozenset[str]) -> list[str]:
        try:
            found = self._mark.read(decode_wave(data)).payload
        except (wave.Error, EOFError, ValueError):
            found = None
        return find_missing_marks(
            data,
            _AUDIO_MIME,
            self._lab,
            found=found,
            payload=payload,
            is_labelled=_read_audio_label(data) in labels,
        )


def decode_wave(data: bytes) -> AudioSamples:
    """Return the values of a WAV of 16 bits and one channel, (N,) in [-1, 1]."""
    with wave.open(io.BytesIO(data)) as file:
        values = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    return np.asarray(values / 32768, dtype=np.float32)


def _encode_wave(values: AudioSamples, label: str) -> bytes:
    """Return a WAV whose own comment says what it is."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        whole = np.clip(np.rint(values.astype(np.float64) * 32768), -32768, 32767)
        file.writeframes(whole.astype("<i2").tobytes())
    data, text = out.getvalue(), label.encode() + b"\0"
    text += b"\0" * (len(text) % 2)
    info = b"INFOICMT" + struct.pack("<I", len(text)) + text
    whole_file = data + b"LIST" + struct.pack("<I", len(info)) + info
    return whole_file[:4] + struct.pack("<I", len(whole_file) - 8) + whole_file[8:]


def _read_audio_label(data: bytes) -> str:
    """Return the comment of a WAV's own metadata; credentials do not count."""
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], struct.unpack("<I", data[at + 4 : at + 8])[0]
        body = data[at + 8 : at + 8 + size]
        if name == b"LIST" and body[4:8] == b"ICMT":
            length = struct.unpack("<I", body[8:12])[0]
            return body[12 : 12 + length].rstrip(b"\0").decode("utf-8", "replace")
        at += 8 + size + size % 2
    return ""
