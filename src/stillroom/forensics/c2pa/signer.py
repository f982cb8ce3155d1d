"""Signing of media files with C2PA content credentials, by a certificate chain and its key.

The c2pa library writes the claim signature (COSE_Sign1, ``x5chain``) and the hard binding. The
claim generator, ingredients and digital source type are given here.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.forensics.c2pa.credentials import open_context
from stillroom.forensics.extras import require_packages

if TYPE_CHECKING:
    import c2pa

__all__ = ["CA_FILE", "CHAIN_FILE", "KEY_FILE", "Signer", "sign_bytes"]

CA_FILE, CHAIN_FILE, KEY_FILE = "ca.pem", "chain.pem", "signer.key"


@dataclass(frozen=True, slots=True)
class Signer:
    """A certificate chain and its private key, or a signing callback for a key held elsewhere.

    ``sign`` takes bytes and returns an ES256 signature, DER or raw; if it is set, ``key`` is empty.
    ``timestamp_url`` is empty unless a timestamp authority (RFC 3161) is requested.
    """

    chain: str
    key: str = field(default="", repr=False)
    sign: Callable[[bytes], bytes] | None = None
    timestamp_url: str = ""

    @classmethod
    def open(cls, folder: Path) -> Signer:
        """Read the files written by ``provenance init-ca``.

        Raises:
            DataError: If chain.pem or signer.key is missing.
        """
        chain, key = folder / CHAIN_FILE, folder / KEY_FILE
        for path in (chain, key):
            if not path.is_file():
                raise DataError(
                    f"{folder} has no {path.name}",
                    code="forensics.no-signer",
                    where=str(folder),
                    expected="chain.pem and signer.key",
                    next=f"stillroom forensics provenance init-ca {folder}",
                )
        return cls(chain.read_text(encoding="ascii"), key.read_text(encoding="ascii"))

    def check_dates(self) -> None:
        """Raise unless the certificate is currently valid; the library itself does not check.

        Raises:
            DataError: If the leaf has expired, is not yet valid, or cannot be read.
        """
        from cryptography import x509

        try:
            leaf = x509.load_pem_x509_certificate(self.chain.encode("ascii"))
        except ValueError as error:
            raise _refused_certificate(f"the certificate cannot be read: {error}") from error
        now = datetime.now(UTC)
        if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
            raise _refused_certificate(
                f"the certificate is valid from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                f"{leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, not now"
            )

    def open_signer(self) -> c2pa.Signer:
        """Return the signer object of the c2pa library."""
        import c2pa

        if self.sign is not None:
            return c2pa.Signer.from_callback(
                self.sign, c2pa.C2paSigningAlg.ES256, self.chain, self.timestamp_url or None
            )
        return c2pa.Signer.from_info(
            c2pa.C2paSignerInfo(
                c2pa.C2paSigningAlg.ES256,
                self.chain.encode("ascii"),
                self.key.encode("ascii"),
                self.timestamp_url.encode("ascii") if self.timestamp_url else None,
            )
        )


def sign_bytes(
    data: bytes,
    mime: str,
    manifest: Mapping[str, Any],
    signer: Signer,
    *,
    source_type: str = "",
    parent: tuple[bytes, str] | None = None,
) -> bytes:
    """Sign a file and return it with its credentials.

    Args:
        data: The unsigned (or already signed) file.
        mime: Its media type.
        manifest: C2PA manifest definition: title, assertions.
        signer: Certificate chain and key.
        source_type: IPTC digital source type of a newly created file, such as
            ``algorithmicMedia``; empty for an existing file, which claims nothing of its origin.
        parent: Bytes and type of the file that this one was made from; default: the file itself.

    Raises:
        DataError: If the file or the certificate is refused.
    """
    require_packages("c2pa", "cryptography")
    import c2pa

    from stillroom import __version__

    signer.check_dates()

    definition = {
        "claim_generator_info": [{"name": "stillroom", "version": __version__}],
        **manifest,
    }
    out = io.BytesIO()
    try:
        with c2pa.Builder(definition, open_context([])) as builder, signer.open_signer() as opened:
            if source_type:
                builder.set_intent(c2pa.C2paBuilderIntent.CREATE, _source_member(source_type))
            else:
                builder.set_intent(c2pa.C2paBuilderIntent.EDIT)
            if parent is not None:
                builder.add_ingredient(
                    {"title": "parent", "relationship": "parentOf"},
                    parent[1],
                    io.BytesIO(parent[0]),
                )
            builder.sign(opened, mime, io.BytesIO(data), out)
    except c2pa.C2paError as error:
        raise DataError(
            f"the file cannot be signed: {error}",
            code="forensics.signing",
            where=mime,
            expected="a complete file of that type, and a valid certificate that C2PA allows",
            next="stillroom forensics provenance init-ca FOLDER creates one",
        ) from error
    return out.getvalue()


def _source_member(name: str) -> c2pa.C2paDigitalSourceType:
    """Return the library's enum member for an IPTC digital source type."""
    import c2pa

    members = {
        member.name.replace("_", "").lower(): member for member in c2pa.C2paDigitalSourceType
    }
    return members[name.lower()]


def _refused_certificate(problem: str) -> DataError:
    return DataError(
        problem,
        code="forensics.certificate",
        expected="a currently valid certificate",
        next="stillroom forensics provenance init-ca FOLDER creates one",
    )
