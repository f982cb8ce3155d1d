"""The only writer of sounds in this room: marked in four ways, or not written.

As ``marking`` does for pictures: an inaudible watermark, a label that players show, signed content
credentials, and a row in the ledger; the finished bytes are read back, and each mark has to be
found in them before the file appears.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import struct
import wave
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.errors import IntegrityError
from stillroom.forensics.credentials import read_credentials, sign_bytes
from stillroom.forensics.extras import need
from stillroom.forensics.lab import Lab
from stillroom.forensics.sound_mark import BITS, SoundMark, measure_snr
from stillroom.forensics.waves import RATE, Waves
from stillroom.jobs import atomic_write
from stillroom.provenance import digest_bytes

__all__ = ["LABEL", "MadeSound", "SoundMarker", "decode_wave"]

LABEL = "Made by the Stillroom forensics lab to test detectors. Nobody said this."
_ASSERTION, _BINDING = "io.stillroom.lab", "io.stillroom.cells32"
_IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
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
    about: Mapping[str, Any] = field(default_factory=dict)


class SoundMarker:
    """Writes sounds of one lab as WAV, each with all its marks."""

    def __init__(self, lab: Lab, *, snr: float = 18.0) -> None:
        """Write with the lab's key, certificates and ledger; ``snr`` in dB is the mark's."""
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
        payload = self._payload(made, path.name)
        marked = self._mark.embed(made.values, payload, snr=self._snr)
        signed = sign_bytes(
            _encode(marked),
            _MIME,
            self._manifest(made, payload, path.name),
            self._lab.signer,
            source_type=made.source_type,
        )
        missing = self._missing(signed, payload)
        if missing:
            raise IntegrityError(
                f"the finished file lacks its {', '.join(missing)}, so it was not written",
                code="forensics.unmarked",
                where=str(path),
                expected="label, watermark, credentials and ledger row in every file of the lab",
                next="lower sound.snr, so that the watermark survives",
            )
        row = {
            "watermark": format(payload, f"0{BITS // 4}x"),
            "pixels": digest_bytes(decode_wave(signed).tobytes()),
            "snr": round(measure_snr(made.values, marked), 2),
            "marks": ["label", "watermark", "credentials", "ledger"],
        }
        self._lab.ledger.append(
            {
                "file": path.name,
                "sha256": digest_bytes(signed),
                "generator": made.generator,
                "seed": made.seed,
                "run": made.run,
                "consent": made.consent,
                "source_type": made.source_type,
                **{key: row[key] for key in ("watermark", "pixels")},
            }
        )
        with atomic_write(path, "wb") as file:
            file.write(signed)
        return row

    def missing_marks(self, path: Path, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Return which marks of this lab a WAV file lacks; none if it is whole.

        Args:
            path: The file.
            rows: The ledger's rows by their files' digests.
        """
        data = path.read_bytes()
        row = rows.get(digest_bytes(data))
        if row is None:
            return ["ledger", *self._missing(data, None)]
        return self._missing(data, int(str(row["watermark"]), 16))

    def _missing(self, data: bytes, payload: int | None) -> list[str]:
        missing = []
        try:
            found = self._mark.read(decode_wave(data)).payload
        except (wave.Error, EOFError, ValueError):
            found = None
        if found is None or (payload is not None and found != payload):
            missing.append("watermark")
        credentials = read_credentials(data, _MIME, [self._lab.trust])
        if credentials.integrity != "intact" or credentials.trust != "lab":
            missing.append("credentials")
        if not any(kind.startswith(_IPTC) for kind in credentials.source_types):
            missing.append("source type")
        if _read_label(data) != LABEL:
            missing.append("label")
        return missing

    def _payload(self, made: MadeSound, name: str) -> int:
        said = f"{made.run} {name} {made.generator} {made.seed}".encode() + made.values.tobytes()
        digest = hmac.new(self._lab.key, said, hashlib.sha256).digest()
        return int.from_bytes(digest[: BITS // 8], "big")

    def _manifest(self, made: MadeSound, payload: int, title: str) -> dict[str, Any]:
        mark = base64.b64encode(payload.to_bytes(BITS // 8, "big")).decode("ascii")
        own = {
            "generator": made.generator,
            "seed": made.seed,
            "run": made.run,
            "consent": made.consent or "no person",
            "label": LABEL,
            **made.about,
        }
        action = {
            "action": "c2pa.edited",
            "digitalSourceType": _IPTC + made.source_type,
            "description": made.generator,
        }
        return {
            "title": title,
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": [action]}},
                {
                    "label": "c2pa.soft-binding",
                    "data": {"alg": _BINDING, "blocks": [{"scope": {}, "value": mark}]},
                },
                {"label": _ASSERTION, "data": own},
            ],
        }


def decode_wave(data: bytes) -> Waves:
    """Return the values of a WAV of 16 bits and one channel, (N,) in [-1, 1]."""
    with wave.open(io.BytesIO(data)) as file:
        values = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    return np.asarray(values / 32768, dtype=np.float32)


def _encode(values: Waves) -> bytes:
    """Return a WAV whose own comment says what it is."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        whole = np.clip(np.rint(values.astype(np.float64) * 32768), -32768, 32767)
        file.writeframes(whole.astype("<i2").tobytes())
    data, text = out.getvalue(), LABEL.encode() + b"\0"
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
