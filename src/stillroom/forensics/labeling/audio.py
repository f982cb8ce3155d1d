"""LabeledAudioWriter: recordings of the lab, each with all marks."""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Mapping

import numpy as np
from typing_extensions import override

from stillroom.forensics.extras import require_packages
from stillroom.forensics.labeling.lab import Lab
from stillroom.forensics.labeling.marks import Content, GeneratedMedia, LabeledWriter, LabelKind
from stillroom.forensics.media.audio import SAMPLE_RATE, AudioSamples
from stillroom.forensics.watermark.audio import AUDIO_PAYLOAD_BITS, AudioWatermark, measure_snr
from stillroom.forensics.watermark.fingerprint import fingerprint_audio

__all__ = ["AUDIO_LABELS", "GeneratedAudio", "LabeledAudioWriter", "decode_wave"]

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


class GeneratedAudio(GeneratedMedia):
    """A waveform made by the lab, (N,) at ``SAMPLE_RATE``, and the statements of its marks."""


class LabeledAudioWriter(LabeledWriter):
    """Write audio of one lab as WAV, each file with all marks."""

    labels = AUDIO_LABELS
    soft_binding = "io.stillroom.cells32"
    payload_bits = AUDIO_PAYLOAD_BITS
    remedy = "lower watermark.snr, so that the watermark survives"

    def __init__(self, lab: Lab, *, snr: float = 18.0) -> None:
        """Use the lab's key, certificates and ledger.

        Args:
            lab: The lab.
            snr: Signal-to-watermark ratio in dB; up to 6 less where it cannot be read back.
        """
        require_packages("c2pa", "cryptography")
        super().__init__(lab)
        self._snr = snr
        self._watermark = AudioWatermark(lab.key)

    @override
    def _embed(self, content: AudioSamples, payload: int) -> AudioSamples:
        return self._watermark.embed(content, payload, snr=self._snr)

    @override
    def _encode(self, content: AudioSamples, mime: str, generated: GeneratedMedia) -> bytes:
        # Encode a WAV with its label in the comment.
        out = io.BytesIO()
        with wave.open(out, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            samples = np.clip(np.rint(content.astype(np.float64) * 32768), -32768, 32767)
            file.writeframes(samples.astype("<i2").tobytes())
        data, text = out.getvalue(), self.labels[generated.kind].encode() + b"\0"
        text += b"\0" * (len(text) % 2)
        info = b"INFOICMT" + struct.pack("<I", len(text)) + text
        whole_file = data + b"LIST" + struct.pack("<I", len(info)) + info
        return whole_file[:4] + struct.pack("<I", len(whole_file) - 8) + whole_file[8:]

    @override
    def _decode(self, data: bytes) -> AudioSamples:
        return decode_wave(data)

    @override
    def _read_payload(self, data: bytes) -> int | None:
        try:
            return self._watermark.read(decode_wave(data)).payload
        except (wave.Error, EOFError, ValueError):
            return None

    @override
    def _read_label(self, data: bytes) -> str:
        # The comment in a WAV's own metadata; credentials do not count.
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

    @override
    def _fingerprint(self, content: AudioSamples, payload: int) -> Content:
        return fingerprint_audio(content)

    @override
    def _measure_strength(self, content: AudioSamples, marked: AudioSamples) -> dict[str, float]:
        return {"snr": round(measure_snr(content, marked), 2)}


def decode_wave(data: bytes) -> AudioSamples:
    """Decode a 16-bit mono WAV, (N,) in [-1, 1]."""
    with wave.open(io.BytesIO(data)) as file:
        values = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    return np.asarray(values / 32768, dtype=np.float32)
