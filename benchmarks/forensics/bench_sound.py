"""The watermark of sounds: exact reads after each attack, how quiet it is, false positives.

Of each mark that is read, whether its content is told as that of the marked sound; and of marks
whose gains were copied to another sound without the key, how many are told as lying elsewhere.

Each sound is marked with a key of its own, drawn by lot: with some keys a mark has to be made
louder than asked, which one key for all would not show.

Sounds are drawn voices, eSpeak NG where it is installed, vocoded voices, and, where SPEECH holds
recordings (default the spoken digits of the shared data), those of people, put end to end. No
recording leaves memory.
"""

import json
import os
import platform
import shutil
import statistics
import time
from pathlib import Path

import numpy as np

from stillroom.forensics.interfaces import AUDIO_FORGERIES
from stillroom.forensics.media.audio import (
    SAMPLE_RATE,
    AudioSamples,
    compute_stft,
    invert_stft,
    load_waveform,
    normalize_peak,
    resample,
)
from stillroom.forensics.modalities.audio import add_noise, apply_audio_codec
from stillroom.forensics.synthesis.voices import draw_voice
from stillroom.forensics.watermark.audio import (
    AUDIO_FALSE_MATCH_RATE,
    AUDIO_PAYLOAD_BITS,
    AudioWatermark,
    measure_snr,
)
from stillroom.forensics.watermark.fingerprint import (
    compare_audio,
    fingerprint_audio,
    is_same_audio,
    pack_fingerprint,
)

ROOT = Path(__file__).resolve().parents[2]
MEDIA = Path(os.environ.get("MEDIA", ROOT / "../shared/data/media"))
SPEECH = Path(os.environ.get("SPEECH", MEDIA / "speech-fsdd/recordings"))
COUNT = int(os.environ.get("COUNT", "10"))
UNMARKED = int(os.environ.get("UNMARKED", "500"))
SECONDS, SNR = 4.0, 18.0
ATTACKS = {
    "none": lambda values: values,
    "mp3_64": lambda values: apply_audio_codec(values, "mp3", 64_000),
    "aac_64": lambda values: apply_audio_codec(values, "aac", 64_000),
    "resample_44100": lambda values: resample(
        resample(values, SAMPLE_RATE, 44_100), 44_100, SAMPLE_RATE
    ),
    "resample_12000": lambda values: resample(
        resample(values, SAMPLE_RATE, 12_000), 12_000, SAMPLE_RATE
    ),
    "noise20": lambda values: add_noise(values, 20.0, np.random.default_rng(len(values))),
    "crop10": lambda values: values[int(0.07 * len(values)) : int(0.97 * len(values))],
    "crop25": lambda values: values[int(0.2 * len(values)) : int(0.95 * len(values))],
    "quieter": lambda values: values * np.float32(0.3),
}


def tell(what: str, value: float, **more: object) -> None:
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    line = {"what": what, "value": round(value, 4), **more, "machine": machine}
    print(json.dumps(line), flush=True)


def spoken(count: int) -> list[AudioSamples]:
    """Return pieces of people's speech, other speakers in turn."""
    speakers: dict[str, list[AudioSamples]] = {}
    for path in sorted(SPEECH.glob("*.wav")):
        speakers.setdefault(path.stem.split("_")[1], []).append(load_waveform(path))
    length = round(SECONDS * SAMPLE_RATE)
    wholes = [np.concatenate(parts) for parts in speakers.values()]
    pieces = [
        normalize_peak(whole[at * length : (at + 1) * length])
        for at in range(max((len(whole) // length for whole in wholes), default=0))
        for whole in wholes
        if (at + 1) * length <= len(whole)
    ]
    return pieces[:count]


def gather() -> dict[str, list[AudioSamples]]:
    voices = [draw_voice(2, number, SECONDS) for number in range(COUNT)]
    found = {"drawn": [voice.samples for voice in voices], "people": spoken(COUNT)}
    for name in ("vocoder", "espeak"):
        if name == "espeak" and shutil.which("espeak-ng") is None:
            continue
        method = AUDIO_FORGERIES.build(name)
        found[name] = [
            method.forge([voice], np.random.default_rng([1, at])).samples
            for at, voice in enumerate(voices)
        ]
    return {name: sounds for name, sounds in found.items() if sounds}


def lay_on(before: AudioSamples, marked: AudioSamples, other: AudioSamples) -> AudioSamples:
    """Return another sound with the gains that a mark made, as who has no key would copy it."""
    count = min(len(before), len(other))
    spectra = [compute_stft(values[:count], 1024, 256) for values in (before, marked, other)]
    gain = np.clip(np.abs(spectra[1]) / np.maximum(np.abs(spectra[0]), 1e-4), 0.2, 5)
    return invert_stft(spectra[2] * gain, 1024, 256, count)


def main() -> None:
    rng, kinds = np.random.default_rng(1), {}
    hits: dict[str, list[bool]] = {name: [] for name in ATTACKS}
    same: dict[str, list[bool]] = {name: [] for name in ATTACKS}
    copied: list[float] = []
    ratios, embeds, reads, refused = [], [], [], 0
    for kind, sounds in gather().items():
        kinds[kind] = len(sounds)
        for values in sounds:
            mark, payload = (
                AudioWatermark(rng.bytes(32)),
                int(rng.integers(0, 2**AUDIO_PAYLOAD_BITS)),
            )
            start = time.process_time()
            try:
                marked = mark.embed(values, payload, snr=SNR)
            except ValueError:
                refused += 1
                continue
            middle = time.process_time()
            mark.read(marked)
            embeds.append(middle - start)
            reads.append(time.process_time() - middle)
            ratios.append(measure_snr(values, marked))
            kept = pack_fingerprint(fingerprint_audio(marked))
            for name, attack in ATTACKS.items():
                attacked = np.asarray(attack(marked), np.float32)
                hits[name].append(mark.read(attacked).payload == payload)
                if hits[name][-1]:
                    same[name].append(is_same_audio(compare_audio(kept, attacked)))
            other = lay_on(values, marked, draw_voice(5, len(ratios), SECONDS).samples)
            if mark.read(other).payload == payload:
                copied.append(compare_audio(kept, other))
    tell(
        "forensics/sound_mark/snr",
        statistics.mean(ratios),
        least=round(min(ratios), 2),
        louder=sum(ratio < SNR - 0.5 for ratio in ratios),
        sounds=kinds,
        refused=refused,
    )
    for name, rows in hits.items():
        tell(
            f"forensics/sound_mark/exact_share/{name}",
            sum(rows) / len(rows),
            n=len(rows),
            same_content=f"{sum(same[name])} of {len(same[name])}",
        )
    tell(
        "forensics/sound_mark/copied_told",
        sum(not is_same_audio(likeness) for likeness in copied) / max(len(copied), 1),
        read=len(copied),
        copied=len(ratios),
        highest_likeness=round(max(copied, default=0.0), 3),
    )
    tell(
        "forensics/sound_mark/cpu_s",
        statistics.median(embeds),
        read=round(statistics.median(reads), 4),
        seconds_of_sound=SECONDS,
    )
    base = [*gather().get("people", []), *(draw_voice(9, at, SECONDS).samples for at in range(20))]
    false = decodings = 0
    for number in range(UNMARKED):
        values = np.roll(base[number % len(base)], 977 * number)
        found = AudioWatermark(rng.bytes(32)).read(np.asarray(values, np.float32))
        false, decodings = false + (found.payload is not None), decodings + found.decodings
    expected = decodings * AUDIO_FALSE_MATCH_RATE
    tell("forensics/sound_mark/false_positives", false, readings=UNMARKED, expected=expected)


if __name__ == "__main__":
    main()
