"""The only writer of sounds in this room: marked in four ways, or not written.

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

from stillroom.forensics.content import pack_sketch, sketch_sound
from stillroom.forensics.credentials import sign_bytes
from stillroom.forensics.extras import need
from stillroom.forensics.finishing import (
    MARKS,
    Kind,
    choose_labels,
    finish,
    make_manifest,
    make_payload,
    missing_marks,
    refuse_missing,
    signed_payload,
)
from stillroom.forensics.lab import Lab
from stillroom.forensics.sound_mark import BITS, SoundMark, measure_snr
from stillroom.forensics.waves import RATE, Waves
from stillroom.provenance import digest_bytes

__all__ = ["LABELS", "MadeSound", "SoundMarker", "decode_wave"]

_MADE = "Made by the Stillroom forensics lab to test detectors. Not a true recording of anyone."
LABELS: Mapping[Kind, str] = {
    "forged": _MADE,
    "drawn": _MADE,
    "synthetic": "Made by a generator, as the Stillroom forensics lab was told; kept as the twin "
    "of a forgery, to test detectors. Not a recording of anyone.",
    "real": "A recording of a person, not forged: kept by the Stillroom forensics lab as the real "
    "twin of a forgery, to test detectors; cut out, and marked.",
}
_FORMER = "Made by the Stillroom forensics lab to test detectors. Nobody said this."
_BINDING = "io.stillroom.cells32"
_MIME = "audio/wav"


@dataclass(frozen=True, eq=False)
class MadeSound:
    """A sound that the lab made, (N,) at ``waves.RATE``, and what its marks are to say."""

    values: Waves
    generator: str
    seed: int
    run: str
    source_type: str
    consent: str = ""
    kind: Kind = "forged"
    whose: str = "drawn"
    about: Mapping[str, Any] = field(default_factory=dict)


class SoundMarker:
    """Writes sounds of one lab as WAV, each with all its marks."""

    def __init__(self, lab: Lab, *, snr: float = 18.0) -> None:
        """Write with the lab's key, certificates and ledger.

        Args:
            lab: The lab.
            snr: Ratio of sound to mark in dB; up to 6 less where the mark cannot be read back.
        """
        need("c2pa", "cryptography")
        self._lab, self._snr = lab, snr
        self._mark = SoundMark(lab.key)

    def emit(self, made: MadeSound, path: Path) -> dict[str, Any]:
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
        payload = make_payload(self._lab, made, path.name, made.values.tobytes(), BITS)
        marked = self._mark.embed(made.values, payload, snr=self._snr)
        signed = sign_bytes(
            _encode(marked, LABELS[made.kind]),
            _MIME,
            make_manifest(
                made, path.name, label=LABELS[made.kind], binding=(_BINDING, payload, BITS)
            ),
            self._lab.signer,
            source_type=made.source_type,
        )
        refuse_missing(
            path,
            self._missing(signed, payload, frozenset([LABELS[made.kind]])),
            "lower sound.snr, so that the watermark survives",
        )
        values = decode_wave(signed)
        row = {
            "watermark": format(payload, f"0{BITS // 4}x"),
            "pixels": digest_bytes(values.tobytes()),
        }
        sketch = pack_sketch(sketch_sound(values))
        finish(path, signed, made, self._lab, **row, content=sketch)
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
        payload = signed_payload(data, rows)
        labels = choose_labels(rows.get(digest_bytes(data)), LABELS, _FORMER)
        return [*(["ledger"] if payload is None else []), *self._missing(data, payload, labels)]

    def _missing(self, data: bytes, payload: int | None, labels: frozenset[str]) -> list[str]:
        try:
            found = self._mark.read(decode_wave(data)).payload
        except (wave.Error, EOFError, ValueError):
            found = None
        return missing_marks(
            data,
            _MIME,
            self._lab,
            found=found,
            payload=payload,
            is_labelled=_read_label(data) in labels,
        )


def decode_wave(data: bytes) -> Waves:
    """Return the values of a WAV of 16 bits and one channel, (N,) in [-1, 1]."""
    with wave.open(io.BytesIO(data)) as file:
        values = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    return np.asarray(values / 32768, dtype=np.float32)


def _encode(values: Waves, label: str) -> bytes:
    """Return a WAV whose own comment says what it is."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        whole = np.clip(np.rint(values.astype(np.float64) * 32768), -32768, 32767)
        file.writeframes(whole.astype("<i2").tobytes())
    data, text = out.getvalue(), label.encode() + b"\0"
    text += b"\0" * (len(text) % 2)
    info = b"INFOICMT" + struct.pack("<I", len(text)) + text
    whole_file = data + b"LIST" + struct.pack("<I", len(info)) + info
    return whole_file[:4] + struct.pack("<I", len(whole_file) - 8) + whole_file[8:]


def _read_label(data: bytes) -> str:
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
