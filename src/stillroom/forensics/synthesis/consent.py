"""Consent records, and capture evidence that contradicts claims of synthetic origin.

A record names the files it covers by digest, so that it does not apply to any other person. The lab
opens no file of people without a record that covers it. Whether the statements of a record are
true, only people can know; its id is stored in the ledger with every generated file.

Naming a generator for a folder of images or recordings replaces consent, at the user's own
responsibility. A program cannot tell a person from a drawing, or a voice from a synthetic one, but
it can read the metadata of cameras and recorders: make, exposure, location, broadcast notes,
performers, or credentials of a captured file. Their absence proves nothing.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.forensics.c2pa.credentials import read_credentials
from stillroom.forensics.extras import require_packages
from stillroom.forensics.media.audio import AUDIO_SUFFIXES
from stillroom.forensics.media.file_types import detect_file_type, list_files, read_folder_label
from stillroom.forensics.media.images import (
    DECODE_ERRORS,
    IMAGE_SUFFIXES,
    make_size_error,
    open_image,
)
from stillroom.jobs import atomic_write
from stillroom.objects.disk import require_file
from stillroom.provenance import digest_file, digest_json
from stillroom.provenance.digests import load_json

if TYPE_CHECKING:
    from PIL.Image import Exif

    from stillroom.forensics.settings import LicensedSource, PeopleSource, SyntheticSource

__all__ = [
    "Consent",
    "find_camera_evidence",
    "find_recorder_evidence",
    "list_consented_files",
    "require_consent",
    "require_synthetic_audio",
    "require_synthetic_images",
    "write_consent",
]

_ANY_SCOPE = "any"
_KEYS = ("who", "basis", "scope", "expires", "files")


@dataclass(frozen=True, slots=True)
class Consent:
    """A consent record. ``scope`` lists methods, or ``any``; ``files`` lists file digests."""

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
            DataError: If it is missing, or lacks who, basis, scope, expires or files.
        """
        try:
            data = load_json(require_file(path).read_text(encoding="utf-8"))
            missing = [key for key in _KEYS if not data.get(key)]
            expires = date.fromisoformat(str(data["expires"])) if not missing else date.min
        except (OSError, ValueError, AttributeError) as error:
            raise _unreadable(path, str(error)) from error
        if missing:
            raise _unreadable(path, f"it lacks: {', '.join(missing)}")
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
        """Raise for a use that the record does not cover.

        Args:
            method: The forgery or edit to apply.
            digests: Digests of the files to use.
            today: Default: the current day in UTC.

        Raises:
            DataError: If the record has expired, or does not cover the method or a file.
        """
        day = today or datetime.now(UTC).date()
        if self.expires < day:
            raise _refused_consent(
                f"the consent of {self.who} expired on {self.expires}", "a record that is valid"
            )
        if _ANY_SCOPE not in self.scope and method not in self.scope:
            raise _refused_consent(
                f"the consent of {self.who} does not cover '{method}'",
                f"one of: {', '.join(self.scope)}",
            )
        missing = [digest for digest in digests if digest not in self.files]
        if missing:
            raise _refused_consent(
                f"the consent of {self.who} does not cover {len(missing)} of the files "
                f"(the first has the digest {missing[0][:12]})",
                "files whose digests are in the record",
            )


def require_consent(
    settings: PeopleSource | LicensedSource | SyntheticSource,
    paths: Sequence[Path],
    uses: Sequence[str],
    *,
    refuse: Callable[[Sequence[Path], str], None],
    warn: Callable[[str], None],
) -> tuple[str, str]:
    """Return the origin of some files and the consent's id; the only gate for faces and voices.

    Files of people need a consent that covers each of them and every use. A declared generator is
    accepted where ``refuse`` finds no evidence against it; the claim is logged, and the returned
    origin is recorded with every generated file.

    Args:
        settings: The declared source of the files.
        paths: The files.
        uses: Names of the methods that use them.
        refuse: Raises where files contradict the declared generator.
        warn: Logs the claim.

    Returns:
        ``person`` or ``synthetic: GENERATOR``, and the record's id, empty without one.

    Raises:
        DataError: If the consent does not cover a use or file, a file contradicts the claim, or
            a file of people is in a folder of fakes.
    """
    if settings.type != "synthetic":
        _refuse_fakes(paths, Path(settings.folder))
    if settings.type == "people":
        consent = Consent.read(Path(settings.consent))
        digests = [digest_file(path) for path in paths]
        for use in uses:
            consent.check(use, digests)
        return "person", consent.id
    if settings.type == "licensed":
        return "person", ""
    refuse(paths, settings.generator)
    warn(
        f"{len(paths)} files are declared to contain nobody, and to be generated by "
        f"{settings.generator}: no consent was required, which is recorded with every file"
    )
    return f"synthetic: {settings.generator}", ""


def _refuse_fakes(paths: Iterable[Path], folder: Path) -> None:
    """Refuse sets with a folder of fakes: each file of people is an example of a real one."""
    for path in paths:
        if "fake" in map(read_folder_label, path.relative_to(folder).parts[:-1]):
            raise DataError(
                f"{path.relative_to(folder).as_posix()} is in a folder of fakes, and would be "
                "trained on as real",
                code="forensics.whose-faces",
                where=str(folder),
                expected="files of people only, one folder a person",
                next="name the folder of the real files; to train on a set's fake pictures, write "
                f"its manifest (stillroom forensics benchmark import --folder {folder} --out "
                f"{folder}/manifest.jsonl) and set data: {{type: benchmark, manifest: ...}}",
            )


def list_consented_files(
    path: Path,
    endings: AbstractSet[str] = IMAGE_SUFFIXES | AUDIO_SUFFIXES,
    what: str = "images or recordings",
    advice: str = "check the path",
) -> list[Path]:
    """Return the images and recordings below a folder, sorted, or the named file.

    Raises:
        DataError: If there is none.
    """
    files = list_files(path, endings)
    if not files:
        raise DataError(
            f"{path} has no {what}",
            code="forensics.no-faces",
            where=str(path),
            expected=f"files ending in {' '.join(sorted(endings))}",
            next=advice,
        )
    return files


def write_consent(
    path: Path, files: Sequence[Path], *, who: str, basis: str, scope: Sequence[str], expires: date
) -> Consent:
    """Write a record for images or recordings, and read it back.

    Raises:
        DataError: If a field is empty, or ``path`` exists.
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
            f"{path} already exists",
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
        f"{path} is not a consent record: {why}",
        code="forensics.consent-record",
        where=str(path),
        expected="JSON with who, basis, scope, expires (YYYY-MM-DD) and files (digests)",
        next="stillroom forensics consent --help",
    )


def _refused_consent(problem: str, expected: str) -> DataError:
    return DataError(
        problem,
        code="forensics.consent",
        expected=expected,
        next="ask the person, and write a new record: stillroom forensics consent --help",
    )


_IFD, _GPS = 0x8769, 0x8825
_EXIF_TAGS = {0x010F: "the camera's make", 0x0110: "the camera's model"}
_EXPOSURE = {0x829A: "an exposure time", 0x829D: "an aperture", 0x8827: "a sensitivity"}
_CAPTURED = ("digitalCapture", "negativeFilm", "positiveFilm", "print")


def find_camera_evidence(path: Path) -> str:
    """Return evidence in a file that a camera took it, empty without any.

    Raises:
        DataError: If the image has too many pixels.
    """
    from PIL import Image as Pictures

    data = path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # load_image enforces the limit on pixels
            with open_image(data) as picture:
                evidence = next(_iter_camera_tags(picture.getexif()), "")
    except Pictures.DecompressionBombError as error:
        raise make_size_error(path) from error
    except DECODE_ERRORS:  # unreadable files are skipped with a reason where faces are detected
        evidence = ""
    if not evidence and _is_signed_as_captured(path, data):
        return "credentials of a captured picture"
    return evidence


def _iter_camera_tags(exif: Exif) -> Iterator[str]:
    """Yield what the tags tell of a camera; tags beside damaged ones count."""
    for tag, description in _EXIF_TAGS.items():
        if str(exif.get(tag) or "").strip():
            yield description
    inner = exif.get_ifd(_IFD)
    yield from (description for tag, description in _EXPOSURE.items() if inner.get(tag))
    if exif.get_ifd(_GPS):
        yield "where it was taken"


def _is_signed_as_captured(path: Path, data: bytes) -> bool:
    """Return whether credentials state that a file, or one it was made from, was captured."""
    kind = detect_file_type(path)
    if kind is None or not kind.mime or b"jumb" not in data:
        return False
    read = read_credentials(data, kind.mime)
    kinds = {name.rsplit("/", 1)[-1] for name in (*read.source_types, *read.parent_source_types)}
    return bool(kinds & set(_CAPTURED))


def require_synthetic_images(pictures: Iterable[Path], generator: str) -> None:
    """Raise for images that are declared synthetic, but have evidence of a camera.

    Raises:
        DataError: For the first such image.
    """
    for path in pictures:
        evidence = find_camera_evidence(path)
        if evidence:
            raise DataError(
                f"{path.name} is declared as generated by {generator}, but holds {evidence}",
                code="forensics.photograph",
                where=str(path),
                expected="images not taken by a camera, or the consent of the people they show",
                next="stillroom forensics consent --help, and faces: {type: people} instead of "
                "synthetic",
            )


_APPLE = "com.apple.quicktime."

_CONTAINER_TAGS = {
    "make": "the recorder's make",  # a model alone may name a network
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
    """Return evidence in a file that a person was recorded, empty without any.

    Args:
        path: The recording.
        generator: The declared generator; its own name as performer does not count.
    """
    require_packages("av")
    import av

    tags: dict[str, str] = {}
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            for part in (container, *container.streams):
                metadata = part.metadata
                tags |= {key.lower(): value for key, value in metadata.items() if value.strip()}
    except (av.FFmpegError, ValueError):
        return ""  # unreadable files are skipped with a reason where voices are loaded
    evidence = [description for tag, description in _CONTAINER_TAGS.items() if tag in tags]
    if {"encoded_by", "time_reference"} <= set(tags):  # both: a broadcast wave's chunk
        evidence.append("a broadcast recorder's name")
    if _MEMOS in tags.get("encoder", "").lower():
        evidence.append("the name of a voice memo")
    if _performer(tags, generator):
        evidence.append("a performer's name")
    data = b"" if evidence else path.read_bytes()
    if _NOTES in _chunks(data):
        evidence.append("a field recorder's notes")
    if not evidence and _is_signed_as_captured(path, data):
        evidence.append("credentials of a captured sound")
    return evidence[0] if evidence else ""


def require_synthetic_audio(paths: Iterable[Path], generator: str) -> None:
    """Raise for recordings that are declared synthetic, but have evidence of a recorder.

    Raises:
        DataError: For the first such recording.
    """
    for path in paths:
        evidence = find_recorder_evidence(path, generator)
        if evidence:
            raise DataError(
                f"{path.name} is declared as generated by {generator}, but holds {evidence}",
                code="forensics.recording",
                where=str(path),
                expected="audio not captured by a recorder, or the consent of the people who speak",
                next="stillroom forensics consent --help, and voices: {type: people} instead of "
                "synthetic",
            )


def _performer(tags: Mapping[str, str], generator: str) -> str:
    """Return the named performer, unless it is the generator."""
    generator_name = generator.casefold()
    for name in (tags.get(tag, "").strip() for tag in _PERFORMERS):
        is_inside = name.casefold() in generator_name  # so is an empty one
        if not is_inside and not (generator_name and generator_name in name.casefold()):
            return name
    return ""


def _chunks(data: bytes) -> set[bytes]:
    """Return the chunk names of a RIFF file."""
    names: set[bytes] = set()
    offset = 12 if data[:4] in {b"RIFF", b"RF64"} else len(data)
    while offset + 8 <= len(data):
        names.add(data[offset : offset + 4])
        size = int.from_bytes(data[offset + 4 : offset + 8], "little")
        offset += 8 + size + size % 2
    return names
