"""Recordings in which a codec of speech sent nothing while it was quiet are whole."""

from fractions import Fraction

import numpy as np
import pytest

from stillroom.errors import DataError
from stillroom.forensics.media.audio import SAMPLE_RATE, load_waveform

av = pytest.importorskip("av")

FRAME = SAMPLE_RATE // 50


def write_paused(path, *, level, pause):
    """Write six seconds of Opus; from 2 s on at a level, and without packets of some of these."""
    seconds = np.arange(SAMPLE_RATE * 6) / SAMPLE_RATE
    samples = np.sin(2 * np.pi * 220 * seconds) * 0.3
    samples[SAMPLE_RATE * 2 : SAMPLE_RATE * 4] *= level
    with av.open(path, "w") as container:
        stream = container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono")
        for at in range(0, len(samples), FRAME):
            values = (samples[at : at + FRAME] * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(values, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = (
                SAMPLE_RATE,
                at,
                Fraction(1, SAMPLE_RATE),
            )
            for packet in stream.encode(frame):
                number = round(float(packet.pts * packet.time_base) / 0.02)
                if not 110 < number < 190 or number % round(pause / 0.02) == 0:
                    container.mux(packet)
        container.mux(stream.encode(None))


def test_a_pause_that_was_not_sent_is_silence_of_its_length(tmp_path):
    write_paused(tmp_path / "a.webm", level=0, pause=0.4)
    samples = load_waveform(tmp_path / "a.webm")
    assert len(samples) / SAMPLE_RATE == pytest.approx(6, abs=0.05)
    assert np.abs(samples[int(2.3 * SAMPLE_RATE) : int(3.7 * SAMPLE_RATE)]).max() < 0.01
    assert np.abs(samples[int(4.3 * SAMPLE_RATE) :]).max() > 0.2


@pytest.mark.parametrize(("level", "pause"), [(1, 0.4), (0, 4.0)])
def test_what_is_missing_in_a_sound_or_for_long_is_damage(tmp_path, level, pause):
    write_paused(tmp_path / "a.webm", level=level, pause=pause)
    with pytest.raises(DataError, match="is damaged after"):
        load_waveform(tmp_path / "a.webm")
