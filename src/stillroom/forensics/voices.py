"""The voices that a set of sounds starts from: drawn ones, or recordings someone answers for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillroom.errors import DataError
from stillroom.forensics.casting import name_person
from stillroom.forensics.consent import answer_for
from stillroom.forensics.listing import list_files
from stillroom.forensics.recipe import SoundSettings
from stillroom.forensics.recorder_traces import refuse_recordings
from stillroom.forensics.voicing import draw_voice
from stillroom.forensics.waves import (
    RATE,
    SOUNDS,
    Wave,
    Waves,
    fit_length,
    load_wave,
    name_coding,
    read_codec,
)
from stillroom.provenance import digest_bytes

__all__ = ["Voices", "list_recordings", "open_voices"]


@dataclass(frozen=True)
class Voices:
    """Sounds of one length: whose they are (``drawn``, ``synthetic: GENERATOR`` or ``person``).

    ``left_out`` is how many recordings could not be used.
    """

    waves: tuple[Wave, ...]
    origin: str
    consent: str = ""
    left_out: int = 0


def open_voices(
    settings: SoundSettings,
    uses: Sequence[str],
    *,
    seed: int,
    count: int,
    say: Callable[[str], None],
) -> Voices:
    """Return the sounds to start from, each ``settings.seconds`` long.

    Recordings of one speaker (one folder) are put end to end and cut anew; of a single file its
    name is the speaker's.

    Args:
        settings: Whose voices.
        uses: Names of the methods they are used for, which a consent has to cover.
        seed: Of drawn voices.
        count: How many are wanted at most.
        say: Told of recordings that are left out.

    Raises:
        DataError: If the folder has no recording, the consent does not cover the use, or sounds
            of nobody were recorded.
    """
    if settings.folder is None:
        drawn = tuple(draw_voice(seed, number, settings.seconds) for number in range(count))
        return Voices(drawn, "drawn")
    folder = Path(settings.folder)
    paths = list_recordings(folder)
    whose, consent = answer_for(settings, paths, uses, refuse=refuse_recordings, say=say)
    speakers = _by_speaker(paths, folder, say)
    codings = tuple(sorted({name_coding(codec) for path in paths if (codec := read_codec(path))}))
    left_out = len(paths) - sum(len(parts) for parts in speakers.values())
    found = _cut(speakers, round(settings.seconds * RATE), codings)[:count]
    if not found:
        raise _no_voices(folder, "holds no recording that can be decoded")
    if left_out:
        say(f"{left_out} of {len(paths)} recordings were left out")
    return Voices(tuple(found), whose, consent, left_out)


def list_recordings(path: Path) -> list[Path]:
    """Return the recordings below a folder, sorted, or the one that is named.

    Raises:
        DataError: If there is none.
    """
    found = list_files(path, SOUNDS)
    if not found:
        raise _no_voices(path, "holds no recording")
    return found


def _by_speaker(
    paths: Sequence[Path], folder: Path, say: Callable[[str], None]
) -> dict[str, list[Waves]]:
    found: dict[str, list[Waves]] = {}
    for path in paths:
        try:
            found.setdefault(name_person(path, folder), []).append(load_wave(path))
        except DataError as error:
            say(f"left out: {error.problems[0].what}")
    return found


def _cut(speakers: dict[str, list[Waves]], length: int, codings: tuple[str, ...]) -> list[Wave]:
    """Return pieces of one length, speakers in turn, so that a count takes some of each."""
    pieces: list[list[Wave]] = []
    for speaker, parts in speakers.items():
        whole = np.concatenate(parts)
        many = max(len(whole) // length, 1)
        rows = [fit_length(whole, length, at * length) for at in range(many)]
        pieces.append(
            [
                Wave(row, f"{speaker}-{at}", speaker, digest_bytes(row.tobytes()), codings)
                for at, row in enumerate(rows)
            ]
        )
    longest = max((len(rows) for rows in pieces), default=0)
    return [rows[at] for at in range(longest) for rows in pieces if at < len(rows)]


def _no_voices(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} {what}",
        code="forensics.no-voices",
        where=str(path),
        expected=f"files ending in {' '.join(sorted(SOUNDS))}",
        next="check the path, or leave sound.folder out: voices are then drawn",
    )
