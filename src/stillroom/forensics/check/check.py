"""File check: credentials, watermark, metadata claims, and detector findings in order.

First what the file is signed to be (integrity, trust, issuer), then whether it carries this lab's
watermark, then how far its pixels could be judged at all, then what each detector that was named
makes of each face. A detector's finding stands beside the verdict and never enters it. One bad file
costs that file, and the rest goes on.
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
from stillroom.forensics.media.images import (
    SYNTHETIC_SOURCE_TYPES,
    DecodedImage,
    MetadataClaim,
    load_image,
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
    "is_media_file",
    "list_limits",
    "list_media",
]

LIMITS = (
    "Missing credentials are no sign of a forgery, and credentials in order are no sign of truth: "
    "they say who signed.",
    "No watermark means no mark of this lab; other makers' marks are not read. A mark says which "
    "file it was written into, not that nothing in it was changed since.",
    "No detector judged the pixels: nothing here says whether they are forged.",
)
_DETECTOR_LIMITS = (
    "A detector's chance is of the forgeries it learned, at the prevalence it names; what it does "
    "not indicate may be forged all the same.",
)
_NO_DETECTOR = "the named detectors found nothing here that they judge"
_NO_FACE = "no face was found that a named detector judges"
_SMALL_FACE = 64
_LOW_QUALITY = 40


@dataclass(frozen=True)
class FileCheckResult:
    """Everything found of one file; ``error`` says why nothing could be.

    ``faces`` are the boxes found (x, y, width, height), None where none were looked for;
    ``quality`` are lines on what limits a judgement of the pixels; ``findings`` what each detector
    makes of each face; ``look`` is what was seen and heard of a clip or recording; ``preview`` a
    reduced picture for the page; ``claims`` what the file says of itself, unsigned.
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
        """One sentence: the strongest evidence there is, and no more than it says."""
        if self.error:
            return f"not checked: {self.error}"
        said = [_describe_credentials(self.credentials)]
        if self.trace is not None and self.trace.watermark:
            said.append(self.trace.verdict)
        said.append(_describe_claims(self._fresh_claims))
        found = "; ".join(part for part in said if part)
        return found or "nothing is known of its origin; that is no sign of a forgery"

    @property
    def _fresh_claims(self) -> list[MetadataClaim]:
        """What it says of itself beyond what is signed: not that it was made, where that is."""
        found = self.credentials
        if found is None or found.integrity != "intact":
            return list(self.claims)
        signed = {kind.rsplit("/", 1)[-1] for kind in found.source_types}
        return [
            one for one in self.claims if one.says not in signed and not declares_synthetic(found)
        ]

    def lines(self) -> list[str]:
        """Return the verdict and all evidence, in order."""
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
        return [escape_line(line) for line in lines]  # names of files and signers are anyone's

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
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


def declares_synthetic(found: Credentials) -> bool:
    """Return whether credentials say that a program made the file, or parts of it."""
    return bool(
        {kind.rsplit("/", 1)[-1] for kind in found.source_types} & set(SYNTHETIC_SOURCE_TYPES)
    )


def _describe_claims(claims: Sequence[MetadataClaim]) -> str:
    """Return the strongest that a file says of itself, unsigned; empty if it says nothing."""
    if not claims:
        return ""
    first = next((claim for claim in claims if claim.is_made), claims[0])
    what = "that a program made or composed it" if first.is_made else "something of its making"
    return f"says of itself, unsigned, {what} ({first.line()}); anyone can write or remove that"


def _describe_credentials(found: Credentials | None) -> str:
    """Return what a file's credentials say and how far that holds; empty without any."""
    if found is None or found.integrity == "none":
        return ""
    if found.integrity == "unreadable":
        return "what it may say of its origin cannot be read; that is no sign of a forgery"
    if found.integrity == "broken" and found.note:
        return f"is signed in a way that is no longer accepted: {found.note}"
    if found.integrity == "broken":
        return "was changed since it was signed; what its credentials say no longer holds"
    issuer = '"' + escape_line(found.issuer).replace('"', "'") + '"'  # it may say anything
    says = "says that it was made or composed by a program"
    if not declares_synthetic(found):
        says = "does not say that a program made it"
    whose = f"{issuer}, on the {found.named_list}"
    if not found.is_trusted:
        whose = f"someone who calls themselves {issuer}, vouched for by no list"
    return f"is as signed by {whose}, who {says}"


def list_limits(judges: DetectorSet | None) -> tuple[str, ...]:
    """Return what no finding says, a sentence each; with detectors, what they cannot see."""
    if judges is None:
        return LIMITS
    return (*LIMITS[:-1], *_DETECTOR_LIMITS, *judges.blind)


def list_media(paths: Sequence[Path]) -> FileListing:
    """Return the named files, of folders every medium by its content, and what is passed over."""
    return collect_files(paths, is_media_file)


def is_media_file(path: Path) -> bool:
    """Return whether a file is a medium by how it begins, or by its name where that is open."""
    try:
        return detect_file_type(path) is not None
    except OSError:
        return guess_file_type(path) is not None  # that it cannot be read is for the check to tell


@dataclass(frozen=True)
class FileCheckTask:
    """The work of an engine's worker: check files, but for a lab's watermark.

    What travels is public: certificates of authorities, and paths. A lab's keys stay where the
    command runs, since whoever has them can mark and sign as the lab. Detectors are opened where
    they judge.
    """

    lists: tuple[TrustList, ...] = field(hash=False)
    remote: bool = False
    detectors: tuple[Path, ...] = ()
    prevalence: float = 0.5
    maps: bool = False
    pulse: bool = False
    concurrency: int = 1

    def open(self, lab: Lab | None = None) -> Callable[[Sequence[Path]], list[FileCheckResult]]:
        """Open the detectors; return what checks files.

        Args:
            lab: As ``check_file`` takes it; no engine gives one.
        """
        judges = None
        if self.detectors:
            from stillroom.forensics.inference.detector_set import open_detectors

            judges = open_detectors(self.detectors, prevalence=self.prevalence, with_maps=self.maps)
        return lambda paths: [self._check(path, lab, judges) for path in paths]

    def _check(self, path: Path, lab: Lab | None, judges: DetectorSet | None) -> FileCheckResult:
        """Check a file; one that breaks a decoder, or this program, costs itself alone."""
        try:
            return check_file(
                path,
                self.lists,
                lab=lab,
                remote=self.remote,
                judges=judges,
                with_pulse=self.pulse,
            )
        except (StillroomError, MemoryError):
            raise  # of the lab, a package or the machine, not of the file
        except Exception as error:  # noqa: BLE001 - it is told, and fails the command in the end
            fault = f"{type(error).__name__}: {error}"
            return FileCheckResult(
                path, error=f"reading it failed, a fault of Stillroom's ({fault})"
            )


def check_files(
    work: FileCheckTask, paths: Iterable[Path], engine: Engine, *, lab: Lab | None = None
) -> Iterator[FileCheckResult]:
    """Yield what is known of each file, in order, wherever the rest of the work is done.

    Args:
        work: What is looked for, beside the lab's watermark.
        paths: The files.
        engine: What does the work.
        lab: As ``check_file`` takes it. Its watermark is read in this process: workers elsewhere
            are told which authority it trusts, and none of its keys.
    """
    if not engine.is_remote:
        check = work.open(lab)
        for path in paths:  # a file is told when it is checked
            yield check([path])[0]
        return
    named = list(paths)
    trusted = [lab.trust] if lab is not None else []
    detectors = tuple(place.absolute() for place in work.detectors)  # workers start elsewhere
    sent = replace(work, lists=(*work.lists, *trusted), detectors=detectors)
    done = engine.map(sent, [path.absolute() for path in named], block_size=4)
    for path, found in zip(named, done, strict=True):
        here = replace(found, path=path)
        yield here if lab is None else _add_trace(here, lab)


def _add_trace(found: FileCheckResult, lab: Lab) -> FileCheckResult:
    """Return what a worker without the lab's key found, with what the key finds of the file."""
    if found.error or (found.look is None and found.preview is None):
        return found  # nothing of it could be decoded
    try:
        if digest_file(found.path) != found.digest:
            return FileCheckResult(found.path, error="it is not the file that a worker checked")
        if found.look is not None:
            look = find_watermark(found.look, found.path, lab)
            return replace(found, look=look, trace=look.trace)
        return replace(found, trace=look_up_image(load_image(found.path).image, lab))
    except (DataError, OSError) as error:
        what = error.problems[0].what if isinstance(error, DataError) else str(error)
        return FileCheckResult(found.path, error=what)


def check_file(
    path: Path,
    lists: Sequence[TrustList] = (),
    *,
    lab: Lab | None = None,
    remote: bool = False,
    judges: DetectorSet | None = None,
    with_pulse: bool = False,
) -> FileCheckResult:
    """Return what is known of a file; what cannot be read is said in ``error``, never raised.

    Args:
        path: Image, video, audio or PDF.
        lists: Trust lists, in order.
        lab: The lab whose watermark is looked for, and whose own authority is trusted after the
            lists; None looks for none.
        remote: Fetch credentials that lie elsewhere.
        judges: The detectors that look at faces; None looks with none.
        with_pulse: Look for a pulse in the faces of clips.
    """
    lists = [*lists, *([lab.trust] if lab is not None else [])]
    try:
        if not path.is_file():
            return FileCheckResult(path, error="there is no such file")
        kind = detect_file_type(path)
        if kind is None:
            return _unknown(path)
        credentials = verify_file(path, lists, remote=remote) if kind.mime else None
        notes = (kind.note,) if kind.note else ()
        known = FileCheckResult(path, digest_file(path), credentials, quality=notes)
        if kind.sense in {"clip", "sound"}:
            found = _check_clip(known, kind, lab, judges, with_pulse=with_pulse)
            if judges is None or found.error or found.findings:
                return found
            return replace(found, quality=(*found.quality, _NO_DETECTOR))
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
    findings = () if judges is None else judges.judge(picture)
    if judges is not None and not findings:
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
    judges: DetectorSet | None,
    *,
    with_pulse: bool,
) -> FileCheckResult:
    """Return what is known of a clip or recording; its credentials also where it cannot be read."""
    try:
        if kind.sense == "sound":
            look = analyze_audio(known.path, lab, detectors=judges)
        else:
            look = analyze_clip(known.path, lab, detectors=judges, with_pulse=with_pulse)
    except DataError as error:
        return _report_unreadable(known, "not decoded", error)
    return replace(
        known,
        trace=look.trace,
        quality=(*known.quality, *look.limits),
        findings=look.courses,
        look=look,
        claims=read_clip_claims(known.path),
    )


def _check_other(known: FileCheckResult, kind: FileType) -> FileCheckResult:
    """Return what is known of a file that is not decoded: a document, a font, a raw photograph."""
    if not kind.mime.startswith("image/"):
        return known
    note = f"no pixels: {kind.ending} is not decoded here, so that no mark was looked for"
    return replace(known, quality=(*known.quality, note), claims=read_file_claims(known.path))


def _report_unreadable(known: FileCheckResult, how: str, error: DataError) -> FileCheckResult:
    """Return a file that cannot be decoded: as refused, unless its credentials say something."""
    what = error.problems[0].what
    if known.credentials is None or known.credentials.integrity in {"none", "unreadable"}:
        return FileCheckResult(known.path, error=what)
    return replace(known, quality=(*known.quality, f"{how}: {what}"))


def _unknown(path: Path) -> FileCheckResult:
    return FileCheckResult(path, error=f"{path.suffix or 'files without an ending'} is no medium")


def _inspect_faces(
    picture: DecodedImage,
) -> tuple[tuple[tuple[int, int, int, int], ...] | None, tuple[str, ...]]:
    """Return the faces of a picture, and what limits a judgement of it."""
    from stillroom.forensics.media.face_detection import FaceFinder

    quality = list(picture.notes)
    if picture.jpeg_quality is not None and picture.jpeg_quality < _LOW_QUALITY:
        quality.append(f"strongly compressed (JPEG quality about {picture.jpeg_quality})")
    try:
        found = FaceFinder().find(picture.image)
    except (MissingExtraError, DataError) as error:
        return None, (*quality, f"faces were not looked for: {error.problems[0].what}")
    boxes = tuple(
        (round(face.box[0]), round(face.box[1]), round(face.box[2]), round(face.box[3]))
        for face in found
    )
    small = [box for box in boxes if min(box[2:]) < _SMALL_FACE]
    if small:
        quality.append(f"{len(small)} of {len(boxes)} faces are below {_SMALL_FACE} pixels")
    return boxes, tuple(quality)
