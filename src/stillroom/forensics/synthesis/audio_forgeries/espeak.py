"""eSpeak NG speech synthesis, without voice cloning.

Source: eSpeak NG, a formant synthesizer (Klatt 1980, "Software for a cascade/parallel formant
synthesizer", JASA 67(3)). The installed program is run; voice, pitch and pace are random, and the
text is sampled from a grammar of plain sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import AudioForgery, ForgedAudio, SourceType

if TYPE_CHECKING:
    import numpy as np

    from stillroom.forensics.media.audio import Waveform

__all__ = ["Espeak"]

_SUBJECTS = ("the river", "a letter", "her brother", "the old clock", "the market", "a green boat")
_VERBS = ("waits behind", "turns towards", "was left near", "stands above", "moves past")
_PLACES = ("the station", "an open window", "the second house", "the quiet garden", "the harbour")
_TIMES = ("before noon", "in the winter", "after the rain", "every Tuesday", "at five past nine")
_VOICES = ("en", "en-us", "en+f2", "en+f4", "en+m3", "en+m7", "en-gb-scotland", "en-us+f3")


class Espeak(AudioForgery):
    """Speech synthesized by eSpeak NG."""

    paper: ClassVar[str] = "doi:10.1121/1.383940"
    source_type: ClassVar[SourceType] = "algorithmicMedia"
    program: Literal["espeak-ng", "espeak"] = Field(
        default="espeak-ng", description="name of the program; no other is ever run"
    )

    @override
    def forge(self, waves: Sequence[Waveform], rng: np.random.Generator) -> ForgedAudio:
        import numpy as np

        from stillroom.forensics.media.audio import (
            SAMPLE_RATE,
            fit_length,
            normalize_peak,
            synthesize_speech,
        )

        real = waves[0].samples
        voice = _VOICES[int(rng.integers(len(_VOICES)))]
        pitch, pace = int(rng.integers(25, 80)), int(rng.integers(130, 200))
        words: list[str] = []
        while len(words) < 4 * len(real) / SAMPLE_RATE + 4:
            words += [part[int(rng.integers(len(part)))] for part in (_SUBJECTS, _VERBS, _PLACES)]
            words.append(_TIMES[int(rng.integers(len(_TIMES)))] + ".")
        speech = synthesize_speech(
            " ".join(words), self.program, voice=voice, pitch=pitch, pace=pace
        )
        speech = normalize_peak(fit_length(speech, len(real)), float(np.abs(real).max()))
        noise = rng.normal(0, 3e-4, len(real)).astype(np.float32)
        mask = np.ones(len(real), dtype=np.float32)
        return ForgedAudio(speech + noise, mask, real, {"voice": voice, "pitch": pitch})
