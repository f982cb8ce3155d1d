"""Marks that all media types share: payload, manifest, verification, and ledger entry.

A writer embeds the payload in its medium and defines how it is read. The signed manifest, the
required marks of the finished bytes, and their commit to disk and ledger are defined here once.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from stillroom.errors import IntegrityError
from stillroom.forensics.c2pa.credentials import read_credentials
from stillroom.forensics.labeling.lab import Lab
from stillroom.jobs import atomic_write
from stillroom.provenance import digest_bytes

__all__ = [
    "IPTC_SOURCE_TYPE_URL",
    "LAB_ASSERTION",
    "MARKS",
    "GeneratedMedia",
    "LabelKind",
    "classify_twin",
    "commit_file",
    "find_missing_marks",
    "find_signed_payload",
    "make_manifest",
    "make_payload",
    "read_label_kind",
    "require_marked_set",
    "require_marks",
    "select_valid_labels",
]

LAB_ASSERTION = "io.stillroom.lab"
IPTC_SOURCE_TYPE_URL = "http://cv.iptc.org/newscodes/digitalsourcetype/"
MARKS = ("label", "watermark", "credentials", "ledger")
LabelKind = Literal["forged", "drawn", "synthetic", "real"]
"""Kind of a lab file: a forgery, or a twin that is drawn, declared synthetic, or real."""

_TWINS: Mapping[str, tuple[LabelKind, str]] = {
    "drawn": ("drawn", "algorithmicMedia"),
    "person": ("real", "humanEdits"),
}
_CLAIMED: tuple[LabelKind, str] = ("synthetic", "trainedAlgorithmicMedia")


@dataclass(frozen=True, eq=False)
class GeneratedMedia:
    """An image (H, W, 3) or a waveform (N,) made by the lab, and the statements of its marks.

    Attributes:
        content: Pixels or samples.
        generator: Name of the method that made it.
        seed: Seed of its generation.
        run: Run that made it.
        source_type: IPTC digital source type.
        consent: Consent record that covers it; empty where it shows no person.
        kind: Kind, which decides the label.
        source: Origin of its face or voice: ``drawn``, ``synthetic: GENERATOR``, ``person``.
        details: Further details for the manifest.
    """

    content: npt.NDArray[Any]
    generator: str
    seed: int
    run: str
    source_type: str
    consent: str = ""
    kind: LabelKind = "forged"
    source: str = "drawn"
    details: Mapping[str, Any] = field(default_factory=dict)


def classify_twin(origin: str) -> tuple[LabelKind, str]:
    """Return kind and IPTC source type of a real twin by the origin of its face or voice.

    A named generator is assumed to be a trained model, as nearly all are.
    """
    return _TWINS.get(origin, _CLAIMED)


def read_label_kind(row: Mapping[str, Any]) -> LabelKind | None:
    """Return the kind of a ledger row; None for twins written before kinds were recorded."""
    kind: LabelKind | None = row.get("kind")
    is_twin = row.get("source_type") == "humanEdits"
    return kind or (None if is_twin else "forged")


def select_valid_labels(
    row: Mapping[str, Any] | None, labels: Mapping[LabelKind, str], former: str
) -> frozenset[str]:
    """Return the labels that are valid for a file.

    Args:
        row: Its ledger row; None without one.
        labels: Labels of its medium.
        former: The single label that all files had before.
    """
    if row is None:
        return frozenset([*labels.values(), former])
    return frozenset([labels[row["kind"]] if "kind" in row else former])


def make_payload(lab: Lab, media: GeneratedMedia, name: str, bits: int) -> int:
    """Return the watermark payload: a keyed digest of run, name, generator, seed and content."""
    message = f"{media.run} {name} {media.generator} {media.seed}".encode()
    message += media.content.tobytes()
    digest = hmac.new(lab.key, message, hashlib.sha256).digest()
    return int.from_bytes(digest[: bits // 8], "big")


def make_manifest(
    media: GeneratedMedia,
    title: str,
    *,
    label: str,
    binding: tuple[str, int, int],
    region: Mapping[str, int] | None = None,
    changes: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Build the C2PA manifest of generated media.

    Args:
        media: The generated media.
        title: Its file name.
        label: Label in its own metadata.
        binding: Name of the watermark, its payload, and its number of bits.
        region: Bounding box of the forgery, if any.
        changes: C2PA change descriptions.
    """
    algorithm, payload, bits = binding
    mark = base64.b64encode(payload.to_bytes(bits // 8, "big")).decode("ascii")
    assertion = {
        "generator": media.generator,
        "seed": media.seed,
        "run": media.run,
        "consent": media.consent or "none: no person, as far as is known",
        "whose": media.source,
        "label": label,
        **({} if region is None else {"region": dict(region)}),
        **media.details,
    }
    action: dict[str, Any] = {
        "action": "c2pa.edited",
        "digitalSourceType": IPTC_SOURCE_TYPE_URL + media.source_type,
        "description": media.generator,
    }
    if changes:
        action["changes"] = list(changes)
    bound = {"alg": algorithm, "blocks": [{"scope": {}, "value": mark}]}
    return {
        "title": title,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [action]}},
            {"label": "c2pa.soft-binding", "data": bound},
            {"label": LAB_ASSERTION, "data": assertion},
        ],
    }


def find_missing_marks(
    data: bytes,
    mime: str,
    lab: Lab,
    *,
    read_payload: int | None,
    payload: int | None,
    is_labeled: bool,
) -> list[str]:
    """Return the marks that a file's bytes lack.

    Args:
        data: The file.
        mime: Its media type.
        lab: Lab whose marks are required.
        read_payload: The payload that was read from it; None without one.
        payload: The expected payload; None accepts any.
        is_labeled: Whether its own metadata has the label.
    """
    missing = []
    if read_payload is None or (payload is not None and read_payload != payload):
        missing.append("watermark")
    credentials = read_credentials(data, mime, [lab.trust])
    if credentials.integrity != "intact" or credentials.trust != "lab":
        missing.append("credentials")
    if not any(kind.startswith(IPTC_SOURCE_TYPE_URL) for kind in credentials.source_types):
        missing.append("source type")
    if not is_labeled:
        missing.append("label")
    return missing


def find_signed_payload(data: bytes, rows: Mapping[str, Mapping[str, Any]]) -> int | None:
    """Return the payload that the ledger has for a file; None without a row."""
    row = rows.get(digest_bytes(data))
    return None if row is None else int(str(row["watermark"]), 16)


def require_marks(path: Path, missing: Sequence[str], next_step: str) -> None:
    """Raise if a file lacks marks.

    Raises:
        IntegrityError: If any is missing.
    """
    if missing:
        raise IntegrityError(
            f"the finished file lacks its {', '.join(missing)}, and was not written",
            code="forensics.unmarked",
            where=str(path),
            expected="label, watermark, credentials and ledger row in every file of the lab",
            next=next_step,
        )


def require_marked_set(unmarked: Mapping[str, Sequence[str]]) -> None:
    """Raise if a file of a finished data set lacks marks.

    Raises:
        IntegrityError: For the first such file.
    """
    if unmarked:
        path, missing = next(iter(unmarked.items()))
        raise IntegrityError(
            f"{len(unmarked)} files lack marks; {path} lacks its {', '.join(missing)}",
            code="forensics.unmarked",
            where=path,
            expected="every media file of a data set marked by the lab's writer",
            next="delete the run and repeat it; report it if it fails again",
        )


def commit_file(
    path: Path,
    signed: bytes,
    media: GeneratedMedia,
    lab: Lab,
    *,
    watermark: str,
    pixels: str,
    content: str,
) -> None:
    """Append a verified file to the ledger, and write it under its name.

    Args:
        path: The new file.
        signed: Its bytes.
        media: The generated media.
        lab: Lab whose ledger gets the row.
        watermark: Payload in the format of ledger rows.
        pixels: Digest of the decoded pixels or samples.
        content: Fingerprint, for comparison with files that carry the watermark.
    """
    lab.ledger.append(
        {
            "file": path.name,
            "sha256": digest_bytes(signed),
            "generator": media.generator,
            "seed": media.seed,
            "run": media.run,
            "consent": media.consent,
            "whose": media.source,
            "kind": media.kind,
            "source_type": media.source_type,
            "watermark": watermark,
            "pixels": pixels,
            "content": content,
        }
    )
    with atomic_write(path, "wb") as file:
        file.write(signed)
