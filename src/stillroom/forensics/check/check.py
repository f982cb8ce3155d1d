"""File check: verdict from credentials, watermark and metadata claims; detector findings beside it.

The order: what the file is signed to be (integrity, trust, issuer), the lab's watermark, limits of
judging its pixels, and the findings of each named detector for each face. A detector's finding is
listed beside the verdict and never enters it. A bad file is reported, and the check continues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, MissingExtraError, StillroomError
from stillroom.forensics.c2pa.credentials import Credentials, TrustList, verify_file
from stillroom.forensics.check.media import (
    ClipAnalysis,
    ImagePreview,
    analyze_audio,
    analyze_clip,
    find_watermark,
    make_preview,
)
from stillroom.forensics.inference.results import DetectorFinding, TrackFinding
from stillroom.forensics.labeling.lab import Lab
from stillroom.forensics.labeling.lookup import WatermarkLookup, look_up_image
from stillroom.forensics.media.file_types import (
    FileListing,
    FileType,
    collect_files,
    detect_file_type,
    guess_file_type,
)
from stillroom.forensics.media.images import DecodedImage, load_image
from stillroom.forensics.media.metadata_claims import (
    SYNTHETIC_SOURCE_TYPES,
    MetadataClaim,
    read_clip_claims,
    read_file_claims,
)
from stillroom.jobs import escape_line
from stillroom.provenance import digest_file

if TYPE_CHECKING:
    from stillroom.forensics.inference.detector_set import DetectorSet
    from stillroom.jobs.engines import Engine

__all__ = [
    "LIMITS",
    "SYNTHETIC_SOURCE_TYPES",
    "FileCheckResult",
    "FileCheckTask",
    "check_file",
    "check_files",
    "declares_synthetic",
    "list_limits",
    "list_media",
]

LIMITS = (
    "Missing credentials are not a sign of a forgery, and valid credentials are not a sign of "
    "truth: they state who signed.",
    "No watermark means no watermark of this lab; those of other tools are not read. A watermark "
    "identifies the file that it was written into, and does not show that the file is unchanged.",
    "No detector scored the pixels: nothing here shows whether they are forged.",
)
_DETECTOR_LIMITS = (
    "A detector's probability applies to the forgery methods that it was trained on, at the stated "
    "prevalence; a file that it does not flag may still be forged.",
)
_NO_DETECTOR = "the given detectors found nothing that they can score"
_NO_FACE = "no face was found that a given detector can score"
_SMALL_FACE = 64
_LOW_QUALITY = 40


@dataclass(frozen=True)
class FileCheckResult:
    """Results of one file; ``error`` states why it could not be checked.

    ``faces`` are the detected boxes (x, y, width, height), None without face detection; ``quality``
    are lines on limits of judging the pixels; ``findings`` are the results of each detector for
    each face; ``look`` is the analysis of a clip or recording; ``preview`` a reduced image for the
    report; ``claims`` unsigned statements of the metadata.
    """

    path: Path
    digest: str = ""
    credentials: Credentials | None = None
    trace: WatermarkLookup | None = None
    faces: tuple[tuple[int, int, int, int], ...] | None = None
    quality: tuple[str, ...] = ()
    findings: tuple[DetectorFinding | TrackFinding, ...] = ()
    error: str = ""
    look: ClipAnalysis | None = None
    preview: ImagePreview | None = None
    claims: tuple[MetadataClaim, ...] = ()

    @property
    def verdict(self) -> str:
        """One sentence: the strongest evidence, and no more than it supports."""
        if self.error:
            return f"not checked: {self.error}"
        statements = [_describe_credentials(self.credentials)]
        if self.trace is not None and self.trace.watermark:
            statements.append(self.trace.verdict)
        statements.append(_describe_claims(self._unsigned_claims))
        text = "; ".join(part for part in statements if part)
        return text or "its origin is unknown; this is not a sign of a forgery"

    @property
    def _unsigned_claims(self) -> list[MetadataClaim]:
        """Claims of the metadata that the intact credentials do not already make."""
        credentials = self.credentials
        if credentials is None or credentials.integrity != "intact":
            return list(self.claims)
        signed = {kind.rsplit("/", 1)[-1] for kind in credentials.source_types}
        return [
            claim
            for claim in self.claims
            if claim.says not in signed and not declares_synthetic(credentials.source_types)
        ]

    def lines(self) -> list[str]:
        """Format the verdict and all evidence as lines, in order."""
        lines = [f"{self.path}: {self.verdict}"]
        if self.error:
            return [escape_line(line) for line in lines]
        if self.credentials is not None:
            lines += [f"  {line}" for line in self.credentials.lines()]
        lines += [f"  unsigned: {claim.line()}" for claim in self.claims]
        if self.trace is not None:
            lines.append(f"  watermark: {self.trace.line()}")
        if self.look is not None:
            lines += [f"  {line}" for line in self.look.lines()]
        if self.faces is not None:
            lines.append(f"  faces: {len(self.faces)}")
        lines += [f"  limits: {line}" for line in self.quality]
        lines += [f"  detector: {finding.line()}" for finding in self.findings]
        return [escape_line(line) for line in lines]  # names of files and signers are untrusted

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            "path": str(self.path),
            "sha256": self.digest or None,
            "verdict": self.verdict,
            "credentials": self.credentials.to_json() if self.credentials else None,
            "claims": [claim.to_json() for claim in self.claims],
            "watermark": self.trace.to_json() if self.trace else None,
            "clip": self.look.to_json() if self.look else None,
            "faces": None if self.faces is None else [list(box) for box in self.faces],
            "quality": list(self.quality),
            "detectors": [finding.to_json() for finding in self.findings],
            "error": self.error or None,
        }


def declares_synthetic(source_types: Iterable[str]) -> bool:
    """Return whether source types declare a file, or parts of it, as made by a program."""
    return bool({kind.rsplit("/", 1)[-1] for kind in source_types} & set(SYNTHETIC_SOURCE_TYPES))


def _describe_claims(claims: Sequence[MetadataClaim]) -> str:
    """Describe the strongest unsigned claim of a file; empty without claims."""
    if not claims:
        return ""
    first = next((claim for claim in claims if claim.is_made), claims[0])
    claimed = "that a program made or composed it" if first.is_made else "something of its making"
    return f"says of itself, unsigned, {claimed} ({first.line()}); anyone can write or remove that"


def _describe_credentials(credentials: Credentials | None) -> str:
    """Describe a file's credentials and their validity; empty without any."""
    if credentials is None or credentials.integrity == "none":
        return ""
    if credentials.integrity == "unreadable":
        return "credentials that it may have cannot be read; this is not a sign of a forgery"
    if credentials.integrity == "broken" and credentials.note:
        return f"is signed in a way that is no longer accepted: {credentials.note}"
    if credentials.integrity == "broken":
        return "was changed since it was signed; what its credentials say no longer holds"
    issuer = '"' + escape_line(credentials.issuer).replace('"', "'") + '"'  # untrusted text
    source = "says that it was made or composed by a program"
    if not declares_synthetic(credentials.source_types):
        source = "does not say that a program made it"
        if declares_synthetic(credentials.parent_source_types):
            source += ", but made it from a file whose credentials say so"
    signer = f"{issuer}, on the {credentials.named_list}"
    if not credentials.is_trusted:
        signer = f"someone who calls themselves {issuer}, vouched for by no list"
    return f"is as signed by {signer}, who {source}"


def list_limits(judges: DetectorSet | None) -> tuple[str, ...]:
    """Return the limits of the findings, one sentence each, with the detectors' limitations."""
    if judges is None:
        return LIMITS
    return (*LIMITS[:-1], *_DETECTOR_LIMITS, *judges.limitations)


def list_media(paths: Sequence[Path]) -> FileListing:
    """Return the named files, media files of folders by content, and the skipped files."""
    return collect_files(paths, _is_media_file)


def _is_media_file(path: Path) -> bool:
    """Return whether a file is media by its first bytes, or by its suffix if these are unknown."""
    try:
        return detect_file_type(path) is not None
    except OSError:
        return guess_file_type(path) is not None  # the check reports it as unreadable


@dataclass(frozen=True)
class FileCheckTask:
    """Work of an engine's workers: check files, except for a lab's watermark.

    Workers get public data only: certificates of authorities, and paths. A lab's keys stay in the
    calling process, since anyone with them can mark and sign as the lab. Each worker opens the
    detectors itself.
    """

    lists: tuple[TrustList, ...] = field(hash=False)
    remote: bool = False
    detectors: tuple[Path, ...] = ()
    prevalence: float = 0.5
    maps: bool = False
    concurrency: int = 1

    def open(self, lab: Lab | None = None) -> Callable[[Sequence[Path]], list[FileCheckResult]]:
        """Open the detectors; return a function that checks files."""
        detectors = None
        if self.detectors:
            from stillroom.forensics.inference.detector_set import open_detectors

            detectors = open_detectors(
                self.detectors, prevalence=self.prevalence, with_maps=self.maps
            )
        return lambda paths: [self._check(path, lab, detectors) for path in paths]

    def _check(self, path: Path, lab: Lab | None, detectors: DetectorSet | None) -> FileCheckResult:
        """Check a file; a failure of a decoder or of this program is reported for it alone."""
        try:
            return check_file(
                path,
                self.lists,
                lab=lab,
                remote=self.remote,
                detectors=detectors,
            )
        except (StillroomError, MemoryError):
            raise  # concerns the lab, a package or the machine, not the file
        except Exception as error:  # noqa: BLE001 - reported, and fails the command at the end
            fault = f"{type(error).__name__}: {error}"
            return FileCheckResult(
                path, error=f"reading it failed, a fault of Stillroom's ({fault})"
            )


def check_files(
    work: FileCheckTask, paths: Iterable[Path], engine: Engine, *, lab: Lab | None = None
) -> Iterator[FileCheckResult]:
    """Yield the result of each file, in order, on any engine.

    Args:
        work: What to check, besides the lab's watermark.
        paths: The files.
        engine: Engine that runs the work.
        lab: As for ``check_file``. Its watermark is read in this process: remote workers get its
            trusted authority, and none of its keys.
    """
    if not engine.is_remote:
        check = work.open(lab)
        for path in paths:  # yield each file as soon as it is checked
            yield check([path])[0]
        return
    named = list(paths)
    trusted = [lab.trust] if lab is not None else []
    detectors = tuple(path.absolute() for path in work.detectors)  # workers start elsewhere
    remote_work = replace(work, lists=(*work.lists, *trusted), detectors=detectors)
    results = engine.map(remote_work, [path.absolute() for path in named], block_size=4)
    for path, result in zip(named, results, strict=True):
        local_result = replace(result, path=path)
        yield local_result if lab is None else _add_trace(local_result, lab)


def _add_trace(result: FileCheckResult, lab: Lab) -> FileCheckResult:
    """Add the watermark lookup to the result of a worker without the lab's key."""
    if result.error or (result.look is None and result.preview is None):
        return result  # nothing could be decoded
    try:
        if digest_file(result.path) != result.digest:
            return FileCheckResult(result.path, error="it is not the file that a worker checked")
        if result.look is not None:
            look = find_watermark(result.look, result.path, lab)
            return replace(result, look=look, trace=look.trace)
        return replace(result, trace=look_up_image(load_image(result.path).image, lab))
    except (DataError, OSError) as error:
        problem = error.problems[0].what if isinstance(error, DataError) else str(error)
        return FileCheckResult(result.path, error=problem)


def check_file(
    path: Path,
    lists: Sequence[TrustList] = (),
    *,
    lab: Lab | None = None,
    remote: bool = False,
    detectors: DetectorSet | None = None,
) -> FileCheckResult:
    """Check one file; unreadable files are reported in ``error``, never raised.

    Args:
        path: Image, video, audio or PDF.
        lists: Trust lists, in order of precedence.
        lab: The lab whose watermark is searched, and whose own authority is trusted after the
            lists; None searches no watermark.
        remote: Fetch remote credentials.
        detectors: Detectors to run on faces; None runs none.
    """
    lists = [*lists, *([lab.trust] if lab is not None else [])]
    try:
        if not path.is_file():
            return FileCheckResult(path, error=_say_what_is_there(path))
        kind = detect_file_type(path)
        if kind is None:
            return _unknown(path)
        credentials = verify_file(path, lists, remote=remote) if kind.mime else None
        unread = "" if kind.mime else f"credentials are not read from {kind.ending} files"
        notes = tuple(note for note in (kind.note, unread) if note)
        known = FileCheckResult(path, digest_file(path), credentials, quality=notes)
        if kind.sense in {"clip", "sound"}:
            result = _check_clip(known, kind, lab, detectors)
            if detectors is None or result.error or result.findings:
                return result
            return replace(result, quality=(*result.quality, _NO_DETECTOR))
        if kind.sense == "other":
            return _check_other(known, kind)
    except DataError as error:
        return FileCheckResult(path, error=error.problems[0].what)
    except OSError as error:
        return FileCheckResult(path, error=f"it cannot be read: {error.strerror}")
    try:
        picture = load_image(path)
    except DataError as error:
        return _report_unreadable(known, "no pixels", error)
    faces, quality = _inspect_faces(picture)
    findings = () if detectors is None else detectors.judge(picture)
    if detectors is not None and not findings:
        quality = (*quality, _NO_FACE)
    return replace(
        known,
        trace=look_up_image(picture.image, lab) if lab is not None else None,
        faces=faces,
        quality=(*known.quality, *quality),
        findings=findings,
        preview=make_preview(picture.image, faces or ()),
        claims=picture.claims,
    )


def _check_clip(
    known: FileCheckResult,
    kind: FileType,
    lab: Lab | None,
    detectors: DetectorSet | None,
) -> FileCheckResult:
    """Check a clip or recording; credentials are kept even if it cannot be decoded."""
    try:
        if kind.sense == "sound":
            look = analyze_audio(known.path, lab, detectors=detectors)
        else:
            look = analyze_clip(known.path, lab, detectors=detectors)
    except DataError as error:
        return _report_unreadable(known, "not decoded", error)
    return replace(
        known,
        trace=look.trace,
        quality=(*known.quality, *look.limits),
        findings=look.findings,
        look=look,
        claims=read_clip_claims(known.path),
    )


def _check_other(known: FileCheckResult, kind: FileType) -> FileCheckResult:
    """Check a file that is not decoded: a document, a font, a raw photograph."""
    known = replace(known, claims=read_file_claims(known.path))
    if not kind.mime.startswith("image/"):
        return known
    note = f"no pixels: {kind.ending} is not decoded here, so that no watermark was searched"
    return replace(known, quality=(*known.quality, note))


def _report_unreadable(known: FileCheckResult, stage: str, error: DataError) -> FileCheckResult:
    """Return an undecodable file: as refused, unless it has readable credentials."""
    problem = error.problems[0].what
    if known.credentials is None or known.credentials.integrity in {"none", "unreadable"}:
        return FileCheckResult(known.path, error=problem)
    return replace(known, quality=(*known.quality, f"{stage}: {problem}"))


def _say_what_is_there(path: Path) -> str:
    """Return why a path is no file: nothing, perhaps at the end of a link, or a pipe or loop."""
    try:
        path.stat()
    except FileNotFoundError:
        return "the file does not exist"
    except OSError:  # a link that leads to itself
        pass
    return "it is not a regular file"


def _unknown(path: Path) -> FileCheckResult:
    return FileCheckResult(path, error=f"{path.suffix or 'a file without an ending'} is not media")


def _inspect_faces(
    picture: DecodedImage,
) -> tuple[tuple[tuple[int, int, int, int], ...] | None, tuple[str, ...]]:
    """Detect the faces of an image, and return them with limits of judging it."""
    from stillroom.forensics.media.face_detection import FaceFinder

    quality = list(picture.notes)
    if picture.jpeg_quality is not None and picture.jpeg_quality < _LOW_QUALITY:
        quality.append(f"strongly compressed (JPEG quality about {picture.jpeg_quality})")
    try:
        detections = FaceFinder().find(picture.image)
    except (MissingExtraError, DataError) as error:
        return None, (*quality, f"faces were not detected: {error.problems[0].what}")
    boxes = tuple(
        (round(face.box[0]), round(face.box[1]), round(face.box[2]), round(face.box[3]))
        for face in detections
    )
    small = [box for box in boxes if min(box[2:]) < _SMALL_FACE]
    if small:
        quality.append(f"{len(small)} of {len(boxes)} faces are below {_SMALL_FACE} pixels")
    return boxes, tuple(quality)
