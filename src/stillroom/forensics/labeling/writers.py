"""Writers of labeled images and audio: watermark, metadata label, credentials, and ledger row.

Every file gets an invisible or inaudible watermark, a metadata label that viewers and players show,
signed content credentials, and a row in the lab's ledger. The finished bytes are read back, and
each mark must be found in them before the file appears under its name. No setting disables a mark.
A contract test holds that no other module of the room writes images.

Limits: nothing stops a user from changing this program, or from saving the unmarked arrays that
``draw_face`` and a method's ``forge`` return. The marks serve honest labs, and files that leave
them.
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


"""Suffixes of media that this room does not read, and that a data set may not hold either."""


@dataclass(frozen=True, eq=False)
class GeneratedImage:
    """An image made by the lab, and the statements of its marks.

    ``source_type`` is the IPTC source type; ``parent`` holds bytes and type of the source image,
    unless it was drawn; ``box`` is x, y, width, height of the forged region.
    """

    image: Image
    generator: str
    seed: int
    run: str
    source_type: str
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    consent: str = ""
    kind: LabelKind = "forged"
    source: str = "drawn"
    parent: tuple[bytes, str] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class LabeledImageWriter:
    """Write images of one lab, each with all marks."""

    def __init__(self, lab: Lab, *, psnr: float = 41.5, quality: int = 95) -> None:
        """Use the lab's key, certificates and ledger.

        Args:
            lab: The lab.
            psnr: PSNR of the watermarked image, in dB.
            quality: JPEG quality.
        """
        require_packages("c2pa", "cryptography", "PIL", "cv2")
        self._lab, self._psnr, self._quality = lab, psnr, quality
        self._watermark = ImageWatermark(lab.key)

    def write(self, generated: GeneratedImage, path: Path) -> dict[str, Any]:
        """Mark an image, verify its marks, and write it.

        Args:
            generated: The image and the statements of its marks.
            path: A new file, ``.jpg`` or ``.png``.

        Returns:
            Fields of its manifest row: watermark, digests, PSNR.

        Raises:
            DataError: If the image cannot carry a watermark.
            IntegrityError: If a mark is not found in the finished bytes; nothing is written then.
        """
        payload = make_payload(
            self._lab, generated, path.name, generated.image.tobytes(), IMAGE_PAYLOAD_BITS
        )
        marked = self._watermark.embed(generated.image, payload, psnr=self._psnr)
        mime = detect_mime_type(path)
        plain = self._encode(marked, mime, generated)
        signed = sign_bytes(
            plain,
            mime,
            self._manifest(generated, payload, path.name),
            self._lab.signer,
            source_type="" if generated.parent else generated.source_type,
            parent=generated.parent,
        )
        require_marks(
            path,
            self._missing(signed, mime, payload, frozenset([IMAGE_LABELS[generated.kind]])),
            "raise output.quality, or lower watermark.psnr, so that the watermark survives",
        )
        image = decode_image(signed)
        row = {
            "watermark": format(payload, f"0{IMAGE_PAYLOAD_BITS // 4}x"),
            "pixels": digest_bytes(image.tobytes()),
        }
        sketch = pack_fingerprint(
            fingerprint_image(align_luma(image, ImageWatermarkResult(payload, 0.0)))
        )
        commit_file(path, signed, generated, self._lab, **row, content=sketch)
        return {
            **row,
            "psnr": round(measure_psnr(generated.image, marked), 2),
            "marks": list(MARKS),
        }

    def missing_marks(self, path: Path, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Return the marks of this lab that a file lacks; empty if complete.

        Args:
            path: A JPEG or PNG; one that cannot be decoded lacks them all.
            rows: Ledger rows by the digests of their files.
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
            read_payload=self._watermark.read(decode_image(data)).payload,
            payload=payload,
            is_labeled=_read_image_label(data) in labels,
        )

    def _manifest(self, generated: GeneratedImage, payload: int, title: str) -> dict[str, Any]:
        x, y, width, height = generated.box
        shape = {
            "type": "rectangle",
            "unit": "pixel",
            "origin": {"x": x, "y": y},
            "width": width,
            "height": height,
        }
        change = {"description": "forged", "region": [{"type": "spatial", "shape": shape}]}
        return make_manifest(
            generated,
            title,
            label=IMAGE_LABELS[generated.kind],
            binding=(IMAGE_SOFT_BINDING, payload, IMAGE_PAYLOAD_BITS),
            region={"x": x, "y": y, "width": width, "height": height},
            changes=[change] if width and height else [],
        )

    def _encode(self, image: Image, mime: str, generated: GeneratedImage) -> bytes:
        """Encode the image with its label in the metadata."""
        from PIL import Image as Pictures
        from PIL.PngImagePlugin import PngInfo

        picture, out = Pictures.fromarray(image), io.BytesIO()
        xmp = _XMP.format(source=IPTC_SOURCE_TYPE_URL + generated.source_type)
        if mime == "image/jpeg":
            exif = Pictures.Exif()
            exif[_EXIF_DESCRIPTION] = IMAGE_LABELS[generated.kind]
            picture.save(
                out, "JPEG", quality=self._quality, exif=exif, xmp=xmp.encode(), subsampling=0
            )
        else:
            texts = PngInfo()
            texts.add_text("Description", IMAGE_LABELS[generated.kind])
            texts.add_itxt("XML:com.adobe.xmp", xmp)
            picture.save(out, "PNG", pnginfo=texts)
        return out.getvalue()


def select_lookup_label(row: Mapping[str, Any] | None, content: ContentMatch) -> str:
    """Return the label for an image that carries the lab's watermark.

    Args:
        row: Ledger row of the watermark.
        content: Whether the image has the content that the watermark was embedded in.
    """
    if content == "differs":
        return _COPIED_MARK_LABEL
    kind = read_label_kind(row) if row is not None else None
    return IMAGE_LABELS[kind] if kind else _UNKNOWN_IMAGE_LABEL


def decode_image(data: bytes) -> Image:
    """Decode the pixels of a file to RGB, (H, W, 3)."""
    from PIL import Image as Pictures

    with Pictures.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


def _read_image_label(data: bytes) -> str:
    """Return the label in a file's own metadata; credentials do not count."""
    from PIL import Image as Pictures

    with Pictures.open(io.BytesIO(data)) as picture:
        picture.load()
        label = picture.getexif().get(_EXIF_DESCRIPTION) or picture.info.get("Description") or ""
    return str(label)


def read_image(path: Path) -> Image:
    """Read the pixels of a lab file as RGB, (H, W, 3)."""
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
    """Audio made by the lab, (N,) at ``SAMPLE_RATE``, and the statements of its marks."""

    samples: AudioSamples
    generator: str
    seed: int
    run: str
    source_type: str
    consent: str = ""
    kind: LabelKind = "forged"
    source: str = "drawn"
    details: Mapping[str, Any] = field(default_factory=dict)


class LabeledAudioWriter:
    """Write audio of one lab as WAV, each file with all marks."""

    def __init__(self, lab: Lab, *, snr: float = 18.0) -> None:
        """Use the lab's key, certificates and ledger.

        Args:
            lab: The lab.
            snr: Signal-to-watermark ratio in dB; up to 6 less where it cannot be read back.
        """
        require_packages("c2pa", "cryptography")
        self._lab, self._snr = lab, snr
        self._mark = AudioWatermark(lab.key)

    def write(self, generated: GeneratedAudio, path: Path) -> dict[str, Any]:
        """Mark audio, verify its marks, and write it.

        Args:
            generated: The audio and the statements of its marks.
            path: A new file, ``.wav``.

        Returns:
            Fields of its manifest row: watermark, digests, signal-to-watermark ratio.

        Raises:
            DataError: If the audio cannot carry a watermark.
            IntegrityError: If a mark is not found in the finished bytes; nothing is written then.
        """
        payload = make_payload(
            self._lab, generated, path.name, generated.samples.tobytes(), AUDIO_PAYLOAD_BITS
        )
        marked = self._mark.embed(generated.samples, payload, snr=self._snr)
        signed = sign_bytes(
            _encode_wave(marked, AUDIO_LABELS[generated.kind]),
            _AUDIO_MIME,
            make_manifest(
                generated,
                path.name,
                label=AUDIO_LABELS[generated.kind],
                binding=(_AUDIO_SOFT_BINDING, payload, AUDIO_PAYLOAD_BITS),
            ),
            self._lab.signer,
            source_type=generated.source_type,
        )
        require_marks(
            path,
            self._missing(signed, payload, frozenset([AUDIO_LABELS[generated.kind]])),
            "lower watermark.snr, so that the watermark survives",
        )
        values = decode_wave(signed)
        row = {
            "watermark": format(payload, f"0{AUDIO_PAYLOAD_BITS // 4}x"),
            "pixels": digest_bytes(values.tobytes()),
        }
        sketch = pack_fingerprint(fingerprint_audio(values))
        commit_file(path, signed, generated, self._lab, **row, content=sketch)
        return {
            **row,
            "snr": round(measure_snr(generated.samples, marked), 2),
            "marks": list(MARKS),
        }

    def missing_marks(self, path: Path, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Return the marks of this lab that a WAV file lacks; empty if complete.

        Args:
            path: The file.
            rows: Ledger rows by the digests of their files.
        """
        data = path.read_bytes()
        payload = find_signed_payload(data, rows)
        labels = select_valid_labels(
            rows.get(digest_bytes(data)), AUDIO_LABELS, _FORMER_AUDIO_LABEL
        )
        return [*(["ledger"] if payload is None else []), *self._missing(data, payload, labels)]

    def _missing(self, data: bytes, payload: int | None, labels: frozenset[str]) -> list[str]:
        try:
            payload_read = self._mark.read(decode_wave(data)).payload
        except (wave.Error, EOFError, ValueError):
            payload_read = None
        return find_missing_marks(
            data,
            _AUDIO_MIME,
            self._lab,
            read_payload=payload_read,
            payload=payload,
            is_labeled=_read_audio_label(data) in labels,
        )


def decode_wave(data: bytes) -> AudioSamples:
    """Decode a 16-bit mono WAV, (N,) in [-1, 1]."""
    with wave.open(io.BytesIO(data)) as file:
        values = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    return np.asarray(values / 32768, dtype=np.float32)


def _encode_wave(values: AudioSamples, label: str) -> bytes:
    """Encode a WAV with its label in the comment."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        samples = np.clip(np.rint(values.astype(np.float64) * 32768), -32768, 32767)
        file.writeframes(samples.astype("<i2").tobytes())
    data, text = out.getvalue(), label.encode() + b"\0"
    text += b"\0" * (len(text) % 2)
    info = b"INFOICMT" + struct.pack("<I", len(text)) + text
    whole_file = data + b"LIST" + struct.pack("<I", len(info)) + info
    return whole_file[:4] + struct.pack("<I", len(whole_file) - 8) + whole_file[8:]


def _read_audio_label(data: bytes) -> str:
    """Return the comment in a WAV's own metadata; credentials do not count."""
    offset = 12
    while offset + 8 <= len(data):
        name, size = (
            data[offset : offset + 4],
            struct.unpack("<I", data[offset + 4 : offset + 8])[0],
        )
        body = data[offset + 8 : offset + 8 + size]
        if name == b"LIST" and body[4:8] == b"ICMT":
            length = struct.unpack("<I", body[8:12])[0]
            return body[12 : 12 + length].rstrip(b"\0").decode("utf-8", "replace")
        offset += 8 + size + size % 2
    return ""
