"""Marks that all media types share: payload, manifest, verification, and ledger entry.

A marker hides a payload in its medium and says how it is read; what is signed, what has to be found
in the finished bytes, and how they reach the disk and the ledger stands here once.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

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
"""What a medium of the lab's is: a forgery, or a twin that is drawn, said to be made, or real."""

_TWINS: Mapping[str, tuple[LabelKind, str]] = {
    "drawn": ("drawn", "algorithmicMedia"),
    "person": ("real", "humanEdits"),
}
_CLAIMED: tuple[LabelKind, str] = ("synthetic", "trainedAlgorithmicMedia")


class GeneratedMedia(Protocol):
    """What marks say of a medium: its maker, and whose it is."""

    @property
    def generator(self) -> str:
        """The method that made it."""

    @property
    def seed(self) -> int:
        """The seed that it was made with."""

    @property
    def run(self) -> str:
        """The run that made it."""

    @property
    def source_type(self) -> str:
        """IPTC's word for its kind."""

    @property
    def consent(self) -> str:
        """The consent record that covers it; empty where no person is in it."""

    @property
    def kind(self) -> LabelKind:
        """What it is, which decides its label."""

    @property
    def whose(self) -> str:
        """Whose face or voice it starts from: ``drawn``, ``synthetic: GENERATOR``, ``person``."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What else is to be said of it."""


def classify_twin(origin: str) -> tuple[LabelKind, str]:
    """Return what a real twin is, and IPTC's word for it, by whose face or voice it starts from.

    A generator that is named is taken for one that learned, as nearly all are.
    """
    return _TWINS.get(origin, _CLAIMED)


def read_label_kind(row: Mapping[str, Any]) -> LabelKind | None:
    """Return what the file of a ledger's row is; None of twins from before kinds were kept."""
    kind: LabelKind | None = row.get("kind")
    is_twin = row.get("source_type") == "humanEdits"
    return kind or (None if is_twin else "forged")


def select_valid_labels(
    row: Mapping[str, Any] | None, labels: Mapping[LabelKind, str], former: str
) -> frozenset[str]:
    """Return which labels are true of a file.

    Args:
        row: The ledger's of it; None where there is none.
        labels: Of its medium.
        former: The one label that all files had before.
    """
    if row is None:
        return frozenset([*labels.values(), former])
    return frozenset([labels[row["kind"]] if "kind" in row else former])


def make_payload(lab: Lab, made: GeneratedMedia, name: str, content: bytes, bits: int) -> int:
    """Return the number that is hidden in a medium: the lab's own, of all that makes it."""
    said = f"{made.run} {name} {made.generator} {made.seed}".encode() + content
    digest = hmac.new(lab.key, said, hashlib.sha256).digest()
    return int.from_bytes(digest[: bits // 8], "big")


def make_manifest(
    made: GeneratedMedia,
    title: str,
    *,
    label: str,
    binding: tuple[str, int, int],
    region: Mapping[str, int] | None = None,
    changes: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return what is signed of a medium.

    Args:
        made: What is said of it.
        title: Its file's name.
        label: What its own metadata say.
        binding: The watermark's name, its payload, and its bits.
        region: The box of what is forged, where there is one.
        changes: What was done where, in C2PA's words.
    """
    algorithm, payload, bits = binding
    mark = base64.b64encode(payload.to_bytes(bits // 8, "big")).decode("ascii")
    own = {
        "generator": made.generator,
        "seed": made.seed,
        "run": made.run,
        "consent": made.consent or "none: no person, as far as is known",
        "whose": made.whose,
        "label": label,
        **({} if region is None else {"region": dict(region)}),
        **made.about,
    }
    action: dict[str, Any] = {
        "action": "c2pa.edited",
        "digitalSourceType": IPTC_SOURCE_TYPE_URL + made.source_type,
        "description": made.generator,
    }
    if changes:
        action["changes"] = list(changes)
    bound = {"alg": algorithm, "blocks": [{"scope": {}, "value": mark}]}
    return {
        "title": title,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [action]}},
            {"label": "c2pa.soft-binding", "data": bound},
            {"label": LAB_ASSERTION, "data": own},
        ],
    }


def find_missing_marks(
    data: bytes, mime: str, lab: Lab, *, found: int | None, payload: int | None, is_labelled: bool
) -> list[str]:
    """Return which marks a file's bytes lack.

    Args:
        data: The file.
        mime: Its type.
        lab: Whose marks they are to be.
        found: The payload that was read from it; None where none was.
        payload: The one that it is to hold; None where any of the lab's will do.
        is_labelled: Whether its own metadata hold the label.
    """
    missing = []
    if found is None or (payload is not None and found != payload):
        missing.append("watermark")
    credentials = read_credentials(data, mime, [lab.trust])
    if credentials.integrity != "intact" or credentials.trust != "lab":
        missing.append("credentials")
    if not any(kind.startswith(IPTC_SOURCE_TYPE_URL) for kind in credentials.source_types):
        missing.append("source type")
    if not is_labelled:
        missing.append("label")
    return missing


def find_signed_payload(data: bytes, rows: Mapping[str, Mapping[str, Any]]) -> int | None:
    """Return the payload that the ledger has of a file; None where it has no such file."""
    row = rows.get(digest_bytes(data))
    return None if row is None else int(str(row["watermark"]), 16)


def require_marks(path: Path, missing: Sequence[str], next_step: str) -> None:
    """Refuse to write a file that lacks marks.

    Raises:
        IntegrityError: If any is missing.
    """
    if missing:
        raise IntegrityError(
            f"the finished file lacks its {', '.join(missing)}, so it was not written",
            code="forensics.unmarked",
            where=str(path),
            expected="label, watermark, credentials and ledger row in every file of the lab",
            next=next_step,
        )


def require_marked_set(unmarked: Mapping[str, Sequence[str]]) -> None:
    """Refuse a finished set in which a medium lacks marks.

    Raises:
        IntegrityError: Naming the first.
    """
    if unmarked:
        path, missing = next(iter(unmarked.items()))
        raise IntegrityError(
            f"{len(unmarked)} files lack marks; {path} lacks its {', '.join(missing)}",
            code="forensics.unmarked",
            where=path,
            expected="every media file of a set marked by the lab's writer",
            next="remove the run and make it again; report it if it stays",
        )


def commit_file(
    path: Path,
    signed: bytes,
    made: GeneratedMedia,
    lab: Lab,
    *,
    watermark: str,
    pixels: str,
    content: str,
) -> None:
    """Enter a proved file in the ledger, and let it appear under its name.

    Args:
        path: The new file.
        signed: Its bytes.
        made: What is said of it.
        lab: Whose ledger it is entered in.
        watermark: The payload as rows write it.
        pixels: The digest of what is seen or heard.
        content: The sketch of it, which a mark that is found later is held against.
    """
    lab.ledger.append(
        {
            "file": path.name,
            "sha256": digest_bytes(signed),
            "generator": made.generator,
            "seed": made.seed,
            "run": made.run,
            "consent": made.consent,
            "whose": made.whose,
            "kind": made.kind,
            "source_type": made.source_type,
            "watermark": watermark,
            "pixels": pixels,
            "content": content,
        }
    )
    with atomic_write(path, "wb") as file:
        file.write(signed)
