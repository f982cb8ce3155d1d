"""C2PA signing of user files, and the trust lists of a verification."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from stillroom.errors import DataError
from stillroom.forensics.c2pa.credentials import (
    CA_FILE,
    Credentials,
    Signer,
    TrustList,
    detect_mime_type,
    sign_bytes,
    verify_file,
)
from stillroom.forensics.labeling.lab import Lab, has_lab, open_lab
from stillroom.forensics.labeling.lookup import look_up_file
from stillroom.forensics.media.file_types import detect_file_type
from stillroom.jobs import atomic_write

__all__ = ["open_trust_lists", "sign_file", "verify_file"]


def open_trust_lists(
    *,
    official: Sequence[Path] = (),
    interim: Sequence[Path] = (),
    user: Sequence[Path] = (),
    lab: Lab | None = None,
) -> list[TrustList]:
    """Return trust lists with their labels, in the order that they are asked.

    Args:
        official: PEM files of the C2PA's own list.
        interim: PEM files of the list that was frozen at the start of 2026.
        user: PEM files of authorities that the user trusts.
        lab: The user's lab, whose own authority is trusted after all others, as label ``lab``.

    Raises:
        DataError: If a file holds no certificate.
    """
    return [
        *(TrustList.read("official", path) for path in official),
        *(TrustList.read("interim", path) for path in interim),
        *(TrustList.read("user", path) for path in user),
        *([lab.trust] if lab is not None else []),
    ]


def sign_file(
    file: Path,
    out: Path,
    ca: Path,
    *,
    title: str = "",
    made_by: str = "",
    timestamp_url: str = "",
) -> Credentials:
    """Sign a file's origin into a copy of it, and prove the copy before it is written.

    Args:
        file: What is signed; credentials that it carries become its parent's.
        out: The signed copy.
        ca: The folder that ``init_ca`` made.
        title: Shown by readers.
        made_by: The generator of a synthetic file; empty claims nothing of how it was made.
        timestamp_url: A timestamp authority; empty asks none.

    Raises:
        DataError: If the file, its type or the certificate is refused, ``out`` exists, or the file
            carries this user's lab's watermark and would be signed without saying so.
    """
    mime = detect_mime_type(file)
    if out.exists():
        raise DataError(
            f"{out} exists already",
            code="data.exists",
            expected="a new file",
            next="choose another --out",
        )
    if detect_mime_type(out) != mime:
        raise DataError(
            f"{out.name} is not of the type of {file.name}",
            code="forensics.media-type",
            where=str(out),
            expected=f"the ending {file.suffix}",
            next="signing does not convert files",
        )
    if not file.is_file():
        raise DataError(
            f"{file} does not exist",
            code="data.missing",
            where=str(file),
            expected="a media file",
            next="check the path",
        )
    if not made_by:
        _refuse_lab_file(file)
    signer = dataclasses.replace(Signer.open(ca), timestamp_url=timestamp_url)
    manifest: dict[str, object] = {"title": title or file.name}
    if made_by:
        about = {"label": "io.stillroom.made-by", "data": {"generator": made_by}}
        manifest["assertions"] = [about]
    source = "trainedAlgorithmicMedia" if made_by else ""
    signed = sign_bytes(file.read_bytes(), mime, manifest, signer, source_type=source)
    with atomic_write(out, "wb") as target:
        target.write(signed)
    return verify_file(out, [TrustList.read("user", ca / CA_FILE)])


def _refuse_lab_file(file: Path) -> None:
    """Refuse to sign what this user's lab made as if nothing were known of how it was made."""
    kind = detect_file_type(file)
    if not has_lab() or kind is None or kind.sense == "other":
        return
    try:
        found = look_up_file(file, open_lab())
    except DataError:
        return  # what is no picture is refused by who signs it, with its own reason
    if found.watermark:
        raise DataError(
            f"{file.name} {found.verdict}; it would be signed without saying so",
            code="forensics.lab-file",
            where=str(file),
            expected="--made-by with the generator, for a file that the lab made",
            next="stillroom forensics trace FILE says which forgery it is",
        )
