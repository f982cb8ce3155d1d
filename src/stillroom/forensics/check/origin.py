"""Origin of a text source file from a check, as a link of its provenance chain.

Pictures, films, recordings and signed documents in a folder go through ``check`` before they are
read: passages cut from them, and answers that cite those, then carry what was found. A file that
says it was made by a program is synthetic, whatever the folder is said to be. One with a lab's mark
that was written into something else may be a forgery that was changed: it is no longer said to be
human. One of which nothing is known, and a real one that a lab kept beside a forgery, stay what
they were.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.errors import MissingExtraError
from stillroom.forensics.extras import require_packages
from stillroom.forensics.labeling.lab import has_lab, open_lab
from stillroom.forensics.labeling.marks import read_label_kind
from stillroom.forensics.media.audio import AUDIO_SUFFIXES
from stillroom.forensics.media.images import IMAGE_SUFFIXES
from stillroom.forensics.media.video import VIDEO_SUFFIXES
from stillroom.provenance import digest_file
from stillroom.records import Link, Origin

if TYPE_CHECKING:
    from stillroom.forensics.check.check import FileCheckResult
    from stillroom.records.origin import OriginKind

__all__ = ["CHECK_METHOD", "examine_origin"]

CHECK_METHOD = "forensics.check"
"""The method of the link that is added; what was found follows after a dot."""


def examine_origin(path: Path, origin: Origin) -> tuple[Origin, tuple[str, ...]]:
    """Return a file's origin with a link of what was found, and the verdict where there is one.

    Args:
        path: The file; texts that are not signed are left as they are.
        origin: What is known of it before.
    """
    if not _is_of_interest(path):
        return origin, ()
    try:
        require_packages("cv2")  # the room's packages may be missing where texts alone are read
        from stillroom.forensics.check.check import check_file

        found = check_file(path, lab=open_lab() if has_lab() else None)
    except MissingExtraError as error:
        return origin, (f"where it is from was not checked: {error.problems[0].what}",)
    if found.error:
        return origin, ()  # who reads it for its text tells why it cannot be read
    word = _classify_verdict(found)
    kind = _kind(word, found, origin)
    link = Link(f"{CHECK_METHOD}.{word}", parents=(digest_file(path),))
    told = () if word == "unknown" else (found.verdict,)
    return origin.then(link, kind=kind), told


def _kind(word: str, found: FileCheckResult, origin: Origin) -> OriginKind:
    if word in {"lab", "generated"} and not _is_real(found):
        return "synthetic"
    differs = found.trace is not None and found.trace.content == "differs"
    return "unknown" if differs and origin.kind == "human" else origin.kind


def _is_real(found: FileCheckResult) -> bool:
    """Return whether the lab kept a file beside a forgery of it, and did not make it."""
    trace = found.trace
    if trace is None or trace.row is None or trace.content == "differs":
        return False
    return read_label_kind(trace.row) == "real"


def _classify_verdict(found: FileCheckResult) -> str:
    """Return lab, changed, refused, generated, signed, elsewhere or unknown.

    A mark of the lab's that was written into something else is no sign of where a file is from.
    """
    marked = found.trace is not None and bool(found.trace.watermark)
    if marked and found.trace is not None and found.trace.content != "differs":
        return "lab"
    from stillroom.forensics.check.check import declares_synthetic

    says = any(claim.is_made for claim in found.claims)
    credentials = found.credentials
    if credentials is None or credentials.integrity in {"none", "unreadable"}:
        if says:
            return "generated"
        return "elsewhere" if marked else "unknown"
    if credentials.integrity == "broken":
        return "refused" if credentials.note else "changed"
    return "generated" if says or declares_synthetic(credentials) else "signed"


def _is_of_interest(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES | AUDIO_SUFFIXES:
        return True
    return suffix == ".pdf" and b"c2pa" in path.read_bytes()
