"""Consent records, and capture evidence that contradicts claims of synthetic origin.

A record names the very files it covers, by digest, so that it serves for no other person. Without a
record that covers a file the lab does not open it. Whether what a record says is true only
people can know; it is kept in the ledger with every file made.

Who names a generator for a folder answers for it alone, without anyone's consent. A program cannot
know a person from a drawing, but it can read what cameras write: the make, the exposure, or
credentials that say the picture was captured. Their absence proves nothing.

As ``camera_traces`` does of pictures: who names a generator for a folder of voices answers for it
alone, without anyone's consent. A program cannot know a person's voice from a made one, but it can
read what recorders write: the device, where it was, a broadcast recorder's notes, who performs, or
credentials that say the sound was captured. Their absence proves nothing.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.forensics.c2pa.credentials import read_credentials
from stillroom.forensics.extras import require_packages
from stillroom.forensics.media.audio import AUDIO_SUFFIXES
from stillroom.forensics.media.file_types import detect_file_type, list_files
from stillroom.forensics.media.images import IMAGE_SUFFIXES, make_size_error, open_image
from stillroom.jobs import atomic_write
from stillroom.provenance import digest_file, digest_json

if TYPE_CHECKING:
    from stillroom.forensics.recipe import SourceSettings

__all__ = [
    "ANY_SCOPE",
    "Consent",
    "find_camera_evidence",
    "find_recorder_evidence",
    "is_signed_as_captured",
    "list_consented_files",
    "require_consent",
    "require_synthetic_audio",
    "require_synthetic_images",
    "write_consent",
]


ANY_SCOPE = "any"


_KEYS = ("who", "basis", "scope", "expires", "files")


@dataclass(frozen=True, slots=True)
class Consent:
    """One record. ``scope`` are names of methods, or ``any``; ``files`` digests of the files."""

    who: str
    basis: str
    scope: tuple[str, ...]
    expires: date
    files: frozenset[str]
    id: str

    @classmethod
    def read(cls, path: Path) -> Consent:
        """Read a record.

        Raises:
            DataError: If it is missing, or does not say who, basis, scope, expires and files.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            missing = [key for key in _KEYS if not data.get(key)]
            expires = date.fromisoformat(str(data["expires"])) if not missing else date.min
        except (OSError, ValueError, AttributeError) as error:
            raise _unreadable(path, str(error)) from error
        if missing:
            raise _unreadable(path, f"it does not say: {', '.join(missing)}")
        if not all(isinstance(data[key], list) for key in ("scope", "files")):
            raise _unreadable(path, "scope and files are lists")
        body = {key: data[key] for key in _KEYS}
        return cls(
            str(data["who"]),
            str(data["basis"]),
            tuple(str(name) for name in data["scope"]),
            expires,
            frozenset(str(digest) for digest in data["files"]),
            digest_json(body)[:16],
        )

    def check(self, method: str, digests: Iterable[str], *, today: date | None = None) -> None:
        """Refuse a use that the record does not cover.

        Args:
            method: The forgery or edit to be made.
            digests: Of the files to be used.
            today: Default the day it is, in UTC.

        Raises:
            DataError: If the record has expired, is for something else, or misses a file.
        """
        day = today or datetime.now(UTC).date()
        if self.expires < day:
            raise _refused_consent(
                f"the consent of {self.who} expired on {self.expires}", "a record in force"
            )
        if ANY_SCOPE not in self.scope and method not in self.scope:
            raise _refused_consent(
                f"the consent of {self.who} does not cover '{method}'",
                f"one of: {', '.join(self.scope)}",
            )
        missing = [digest for digest in digests if digest not in self.files]
        if missing:
            raise _refused_consent(
                f"the consent of {self.who} does not cover {len(missing)} of the files "
                f"(the first has the digest {missing[0][:12]})",
                "files whose digests stand in the record",
            )


def require_consent(
    settings: SourceSettings,
    paths: Sequence[Path],
    uses: Sequence[str],
    *,
    refuse: Callable[[Sequence[Path], str], None],
    say: Callable[[str], None],
) -> tuple[str, str]:
    """Return whose some files are, and the consent's id; the one gate of faces and voices.

    Files of people need a consent that covers each of them and every use. A generator that is named
    instead is taken at its word where ``refuse`` finds no sign against it; the claim is said aloud,
    and what is returned is recorded with every file that is made.

    Args:
        settings: What was said of the files.
        paths: The files.
        uses: Names of the methods they are used for.
        refuse: Raises where files and the name of their generator contradict each other.
        say: Told of the claim.

    Returns:
        ``person`` or ``synthetic: GENERATOR``, and the record's id, empty without one.

    Raises:
        DataError: If the consent does not cover a use or file, or a file contradicts the claim.
    """
    if settings.consent is not None:
        consent, digests = Consent.read(Path(settings.consent)), [digest_file(one) for one in paths]
        for use in uses:
            consent.check(use, digests)
        return "person", consent.id
    if settings.basis:
        return "person", ""
    refuse(paths, settings.synthetic_source)
    say(
        f"{len(paths)} files are said to show or let hear nobody, and to be made by "
        f"{settings.synthetic_source}: no consent was asked for, which is recorded with every file"
    )
    return f"synthetic: {settings.synthetic_source}", ""


def list_consented_files(path: Path) -> list[Path]:
    """Return the pictures and recordings below a folder, sorted, or the one file that is named.

    Raises:
        DataError: If there is none.
    """
    endings = IMAGE_SUFFIXES | AUDIO_SUFFIXES
    found = list_files(path, endings)
    if not found:
        raise DataError(
            f"{path} holds no picture and no recording",
            code="forensics.no-faces",
            where=str(path),
            expected=f"files ending in {' '.join(sorted(endings))}",
            next="check the path",
        )
    return found


def write_consent(
    path: Path,
    files: Sequence[Path],
    *,
    who: str,
    basis: str,
    scope: Sequence[str],
    expires: date,
) -> Consent:
    """Write a record for these pictures or recordings and read it back.

    Raises:
        DataError: If something is not said.
    """
    body: dict[str, Any] = {
        "who": who.strip(),
        "basis": basis.strip(),
        "scope": list(scope),
        "expires": expires.isoformat(),
        "files": sorted(digest_file(file) for file in files),
    }
    if path.exists():
        raise DataError(
            f"{path} exists already",
            code="data.exists",
            expected="a new file",
            next="choose another --out",
        )
    with atomic_write(path) as file:
        json.dump(body, file, ensure_ascii=False, indent=1)
    try:
        return Consent.read(path)
    except DataError:
        path.unlink()
        raise


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is no consent record: {why}",
        code="forensics.consent-record",
        where=str(path),
        expected="JSON with who, basis, scope, expires (YYYY-MM-DD) and files (digests)",
        next="stillroom forensics consent --help",
    )


def _refused_consent(what: str, expected: str) -> DataError:
    return DataError(
        what,
        code="forensics.consent",
        expected=expected,
        next="ask the person, and write a new record: stillroom forensics consent --help",
    )


_IFD, _GPS = 0x8769, 0x8825


_EXIF_TAGS = {0x010F: "the camera's make", 0x0110: "the camera's model"}


_EXPOSURE = {0x829A: "an exposure time", 0x829D: "an aperture", 0x8827: "a sensitivity"}


_CAPTURED = ("digitalCapture", "negativeFilm", "positiveFilm", "print")


def find_camera_evidence(path: Path) -> str:
    """Return what in a file says that a camera took it, empty if nothing does.

    Raises:
        DataError: If it asks for more pixels than are read.
    """
    from PIL import Image as Pictures

    data = path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the bound on pixels is load_picture's
            with open_image(data) as picture:
                exif = picture.getexif()
    except Pictures.DecompressionBombError as error:
        raise make_size_error(path) from error
    except (OSError, ValueError, SyntaxError):
        return ""  # what cannot be read is left out, with its reason, where faces are looked for
    found = [said for tag, said in _EXIF_TAGS.items() if str(exif.get(tag) or "").strip()]
    inner = exif.get_ifd(_IFD)
    found += [said for tag, said in _EXPOSURE.items() if inner.get(tag)]
    if exif.get_ifd(_GPS):
        found.append("where it was taken")
    if not found and is_signed_as_captured(path, data):
        found.append("credentials of a captured picture")
    return found[0] if found else ""


def is_signed_as_captured(path: Path, data: bytes) -> bool:
    """Return whether a file's credentials say that its content was captured, not made."""
    kind = detect_file_type(path)
    if kind is None or not kind.mime or b"jumb" not in data:
        return False
    found = read_credentials(data, kind.mime).source_types
    kinds = {name.rsplit("/", 1)[-1] for name in found}
    return bool(kinds & set(_CAPTURED))


def require_synthetic_images(pictures: Iterable[Path], generator: str) -> None:
    """Refuse pictures that are said to show nobody, and were taken by a camera.

    Raises:
        DataError: With the first that says so.
    """
    for path in pictures:
        said = find_camera_evidence(path)
        if said:
            raise DataError(
                f"{path.name} is said to be made by {generator}, and holds {said}",
                code="forensics.photograph",
                where=str(path),
                expected="pictures that no camera took, or the consent of who they show",
                next="stillroom forensics consent --help, and faces.consent instead of "
                "faces.synthetic_source",
            )


_APPLE = "com.apple.quicktime."


_CONTAINER_TAGS = {
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


def find_recorder_evidence(path: Path, generator: str = "") -> str:
    """Return what in a file says that a person was recorded, empty if nothing does.

    Args:
        path: The recording.
        generator: What is said to have made it: its own name as performer says nothing.
    """
    require_packages("av")
    import av

    tags: dict[str, str] = {}
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            for some in (container.metadata, *(stream.metadata for stream in container.streams)):
                tags |= {key.lower(): value for key, value in some.items() if value.strip()}
    except (av.FFmpegError, ValueError):
        return ""  # what cannot be read is left out, with its reason, where voices are loaded
    found = [said for tag, said in _CONTAINER_TAGS.items() if tag in tags]
    if {"encoded_by", "time_reference"} <= set(tags):  # both: of a broadcast wave's own chunk
        found.append("a broadcast recorder's name")
    if _MEMOS in tags.get("encoder", "").lower():
        found.append("the name of a voice memo")
    if _performer(tags, generator):
        found.append("a performer's name")
    data = b"" if found else path.read_bytes()
    if _NOTES in _chunks(data):
        found.append("a field recorder's notes")
    if not found and is_signed_as_captured(path, data):
        found.append("credentials of a captured sound")
    return found[0] if found else ""


def require_synthetic_audio(paths: Iterable[Path], generator: str) -> None:
    """Refuse sounds that are said to be nobody's, and were recorded.

    Raises:
        DataError: With the first that says so.
    """
    for path in paths:
        said = find_recorder_evidence(path, generator)
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
