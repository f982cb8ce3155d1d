"""C2PA signing of user files, and the trust lists of a verification."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
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
from stillroom.forensics.c2pa.text import (
    TEXT_TYPES,
    is_text_file,
    open_text_signer,
    sign_text,
    verify_text,
)
from stillroom.jobs import atomic_write

__all__ = ["open_trust_lists", "sign_file", "verify_file"]


def open_trust_lists(
    *,
    official: Sequence[Path] = (),
    interim: Sequence[Path] = (),
    user: Sequence[Path] = (),
    lab: TrustList | None = None,
) -> list[TrustList]:
    """Return the trust lists with their labels, in order of precedence.

    Args:
        official: PEM files of the C2PA's own list.
        interim: PEM files of the list that was frozen at the start of 2026.
        user: PEM files of authorities that the user trusts.
        lab: Authority of the user's lab, which comes last, with the label ``lab``.

    Raises:
        DataError: If a file has no certificate.
    """
    return [
        *(TrustList.read("official", path) for path in official),
        *(TrustList.read("interim", path) for path in interim),
        *(TrustList.read("user", path) for path in user),
        *([lab] if lab is not None else []),
    ]


def sign_file(
    file: Path,
    out: Path,
    ca: Path | None,
    *,
    refuse: Callable[[Path], None],
    title: str = "",
    made_by: str = "",
    timestamp_url: str = "",
) -> Credentials:
    """Sign a copy of a file, and verify it.

    Args:
        file: The file to sign; its existing credentials become those of the parent.
        out: The signed copy.
        ca: A folder created by ``init_ca``; None signs a text with the configured key.
        refuse: Raises for a file that must not be signed without its generator, such as
            ``labeling.lookup.refuse_lab_file``; called if ``made_by`` is empty.
        title: Title shown by readers.
        made_by: Generator of a synthetic file; empty claims nothing of how it was made.
        timestamp_url: URL of a timestamp authority; empty uses none.

    Raises:
        DataError: If the file, its type or the certificate is refused, or ``out`` exists.
    """
    is_text = is_text_file(file)
    mime = TEXT_TYPES[file.suffix.lower()] if is_text else detect_mime_type(file)
    if out.exists():
        raise DataError(
            f"{out} already exists",
            code="data.exists",
            expected="a new file",
            next="choose another --out",
        )
    named = TEXT_TYPES.get(out.suffix.lower()) if is_text else detect_mime_type(out)
    if named != mime:
        raise DataError(
            f"{out.name} does not have the type of {file.name}",
            code="forensics.media-type",
            where=str(out),
            expected=f"the suffix {file.suffix}",
            next="name an output of the same type; signing does not convert files",
        )
    if not file.is_file():
        raise DataError(
            f"{file} does not exist",
            code="data.missing",
            where=str(file),
            expected="a media file",
            next="check the path",
        )
    if is_text:
        sign_text(file, out, open_text_signer(ca), made_by=made_by)
        return verify_text(out, [TrustList.read("user", ca / CA_FILE)] if ca else [])
    if ca is None:
        raise DataError(
            "media are signed with a certificate of an authority",
            code="forensics.no-signer",
            where="--ca",
            expected="a folder created by init-ca",
            next="stillroom forensics provenance init-ca FOLDER",
        )
    if not made_by:
        refuse(file)
    signer = dataclasses.replace(Signer.open(ca), timestamp_url=timestamp_url)
    manifest: dict[str, object] = {"title": title or file.name}
    if made_by:
        made_by_assertion = {"label": "io.stillroom.made-by", "data": {"generator": made_by}}
        manifest["assertions"] = [made_by_assertion]
    source = "trainedAlgorithmicMedia" if made_by else ""
    signed = sign_bytes(file.read_bytes(), mime, manifest, signer, source_type=source)
    with atomic_write(out, "wb") as target:
        target.write(signed)
    return verify_file(out, [TrustList.read("user", ca / CA_FILE)])
