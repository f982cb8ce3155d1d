"""Origin of a text source file from a check, as a link of its provenance chain.

Images, videos, recordings and signed documents in a folder are checked before they are read:
passages cut from them, and answers that cite those, carry the result. A file that declares itself
as made by a program, or as made from such a file, is synthetic, whatever the folder is declared to
be. A file with a copied watermark of the lab may be a modified forgery: it no longer counts as
human. The origin is kept for a file without evidence, and for a real twin that a lab kept beside a
forgery.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.errors import MissingExtraError
from stillroom.forensics.extras import require_packages
from stillroom.forensics.labeling.lab import has_lab, open_lab
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
"""Method of the added link; the result follows after a dot."""


def examine_origin(path: Path, origin: Origin) -> tuple[Origin, tuple[str, ...]]:
    """Return a file's origin with a link for the check result, and the verdict if there is one."""
    if not _needs_check(path):
        return origin, ()
    try:
        require_packages("cv2")  # the room's packages may be missing where only texts are read
        from stillroom.forensics.check.check import check_file

        result = check_file(path, lab=open_lab() if has_lab() else None)
    except MissingExtraError as error:
        return origin, (f"where it is from was not checked: {error.problems[0].what}",)
    if result.error:
        return origin, ()  # the document reader reports why it cannot be read
    verdict = _classify_verdict(result)
    kind = _kind(verdict, result, origin)
    link = Link(f"{CHECK_METHOD}.{verdict}", parents=(digest_file(path),))
    verdicts = () if verdict == "unknown" else (result.verdict,)
    return origin.then(link, kind=kind), verdicts


def _kind(verdict: str, result: FileCheckResult, origin: Origin) -> OriginKind:
    if verdict in {"lab", "generated"} and not _is_real(result):
        return "synthetic"
    differs = result.trace is not None and result.trace.content == "differs"
    return "unknown" if differs and origin.kind == "human" else origin.kind


def _is_real(result: FileCheckResult) -> bool:
    """Return whether a file is a real twin that the lab kept beside a forgery."""
    trace = result.trace
    if trace is None or trace.row is None or trace.content == "differs":
        return False
    return bool(trace.row.get("kind") == "real")


def _classify_verdict(result: FileCheckResult) -> str:
    """Return lab, changed, refused, generated, signed, elsewhere or unknown.

    A copied watermark of the lab is no evidence of a file's origin.
    """
    marked = result.trace is not None and bool(result.trace.watermark)
    if marked and result.trace is not None and result.trace.content != "differs":
        return "lab"
    from stillroom.forensics.check.check import declares_synthetic

    claims_synthesis = any(claim.is_made for claim in result.claims)
    credentials = result.credentials
    if credentials is None or credentials.integrity in {"none", "unreadable"}:
        if claims_synthesis:
            return "generated"
        return "elsewhere" if marked else "unknown"
    if credentials.integrity == "broken":
        return "refused" if credentials.note else "changed"
    source_types = (*credentials.source_types, *credentials.parent_source_types)
    return "generated" if claims_synthesis or declares_synthetic(source_types) else "signed"


def _needs_check(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES | AUDIO_SUFFIXES:
        return True
    return suffix == ".pdf" and re.search(rb"c2pa|DigitalSourceType", path.read_bytes()) is not None
