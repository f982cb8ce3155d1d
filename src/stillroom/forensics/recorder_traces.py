"""Whether a recording shows signs of a recorder, held against the claim that nobody speaks in it.

As ``camera_traces`` does of pictures: who names a generator for a folder of voices answers for it
alone, without anyone's consent. A program cannot know a person's voice from a made one, but it can
read what recorders write: the device, where it was, a broadcast recorder's notes, who performs, or
credentials that say the sound was captured. Their absence proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from stillroom.errors import DataError
from stillroom.forensics.camera_traces import is_captured
from stillroom.forensics.extras import need

__all__ = ["refuse_recordings", "says_of_recorder"]

_APPLE = "com.apple.quicktime."
_TAGS = {
    "make": "the recorder's make",  # a model alone may be that of a network
    f"{_APPLE}make": "the recorder's make",
    f"{_APPLE}model": "the recorder's model",
    "com.android.manufacturer": "the recorder's make",
    "com.android.model": "the recorder's model",
    "location": "where it was recorded",
    f"{_APPLE}location.iso6709": "where it was recorded",
    "voice-memo-uuid": "the name of a voice memo",
    "originator_reference": "a broadcast recorder's reference",
    "coding_history": "a broadcast recorder's notes",
}
_PERFORMERS = ("artist", "performer", "album_artist")
_MEMOS = "voicememos"
_NOTES = b"iXML"


def says_of_recorder(path: Path, generator: str = "") -> str:
    """Return what in a file says that a person was recorded, empty if nothing does.

    Args:
        path: The recording.
        generator: What is said to have made it: its own name as performer says nothing.
    """
    need("av")
    import av

    tags: dict[str, str] = {}
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            for some in (container.metadata, *(stream.metadata for stream in container.streams)):
                tags |= {key.lower(): value for key, value in some.items() if value.strip()}
    except (av.FFmpegError, ValueError):
        return ""  # what cannot be read is left out, with its reason, where voices are loaded
    found = [said for tag, said in _TAGS.items() if tag in tags]
    if {"encoded_by", "time_reference"} <= set(tags):  # both: of a broadcast wave's own chunk
        found.append("a broadcast recorder's name")
    if _MEMOS in tags.get("encoder", "").lower():
        found.append("the name of a voice memo")
    if _performer(tags, generator):
        found.append("a performer's name")
    data = b"" if found else path.read_bytes()
    if _NOTES in _chunks(data):
        found.append("a field recorder's notes")
    if not found and is_captured(path, data):
        found.append("credentials of a captured sound")
    return found[0] if found else ""


def refuse_recordings(paths: Iterable[Path], generator: str) -> None:
    """Refuse sounds that are said to be nobody's, and were recorded.

    Raises:
        DataError: With the first that says so.
    """
    for path in paths:
        said = says_of_recorder(path, generator)
        if said:
            raise DataError(
                f"{path.name} is said to be made by {generator}, and holds {said}",
                code="forensics.recording",
                where=str(path),
                expected="sounds that no recorder took, or the consent of who speaks in them",
                next="stillroom forensics consent --help, and sound.consent instead of "
                "sound.synthetic_source",
            )


def _performer(tags: Mapping[str, str], generator: str) -> str:
    """Return who is named as performing, where that is not the generator."""
    own = generator.casefold()
    for tag in _PERFORMERS:
        name = tags.get(tag, "").strip()
        if name and name.casefold() not in own and (not own or own not in name.casefold()):
            return name
    return ""


def _chunks(data: bytes) -> set[bytes]:
    """Return the names of a RIFF file's chunks."""
    found: set[bytes] = set()
    at = 12 if data[:4] in {b"RIFF", b"RF64"} else len(data)
    while at + 8 <= len(data):
        found.add(data[at : at + 4])
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return found
