"""Marks and writers of all media types: payload, manifest, soft binding, and ledger entry.

A writer embeds the payload in its medium and defines how it is read. The signed manifest, the
required marks of the finished bytes, and their commit to disk and ledger are defined here once.

The finished bytes are read back, and each mark must be found in them before the file appears under
its name; no setting disables a mark. A contract test holds that no other module of the room writes
images. Nothing stops a user from changing this program, or from saving the unmarked arrays that
``draw_face`` and a method's ``forge`` return.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy.typing as npt

from stillroom.errors import IntegrityError
from stillroom.forensics.c2pa.credentials import detect_mime_type, read_credentials
from stillroom.forensics.c2pa.signer import sign_bytes
from stillroom.forensics.labeling.lab import Lab
from stillroom.forensics.watermark.fingerprint import pack_fingerprint
from stillroom.jobs import atomic_write
from stillroom.objects.disk import require_file
from stillroom.provenance import digest_bytes

__all__ = [
    "IPTC_SOURCE_TYPE_URL",
    "MARKS",
    "GeneratedMedia",
    "LabelKind",
    "LabeledWriter",
    "classify_twin",
    "require_marked_set",
]

_LAB_ASSERTION = "io.stillroom.lab"
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


def _make_payload(lab: Lab, media: GeneratedMedia, name: str, bits: int) -> int:
    """Return the watermark payload: a keyed digest of run, name, generator, seed and content."""
    message = f"{media.run} {name} {media.generator} {media.seed}".encode()
    message += media.content.tobytes()
    digest = hmac.new(lab.key, message, hashlib.sha256).digest()
    return int.from_bytes(digest[: bits // 8], "big")


def _make_manifest(
    media: GeneratedMedia,
    title: str,
    *,
    label: str,
    binding: tuple[str, int, int],
    region: Mapping[str, int] | None = None,
    changes: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Build the C2PA manifest of generated media."""
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
            {"label": _LAB_ASSERTION, "data": assertion},
        ],
    }


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


Content = npt.NDArray[Any]


class LabeledWriter(ABC):
    """Write media of one lab, each file with all marks.

    Class variables: ``labels`` of the metadata by kind; ``soft_binding``, the name of the
    watermark, and ``payload_bits``; ``remedy``, what to change where a mark does not survive.
    """

    labels: ClassVar[Mapping[LabelKind, str]]
    soft_binding: ClassVar[str]
    payload_bits: ClassVar[int]
    remedy: ClassVar[str]

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def write(self, generated: GeneratedMedia, path: Path) -> dict[str, Any]:
        """Mark an image or recording, verify its marks, and write it.

        Returns:
            Fields of its manifest row: watermark, digests, strength of the watermark.

        Raises:
            DataError: If the content cannot carry a watermark.
            IntegrityError: If a mark is not found in the finished bytes; nothing is written then.
        """
        label, mime = self.labels[generated.kind], detect_mime_type(path)
        payload = _make_payload(self._lab, generated, path.name, self.payload_bits)
        marked = self._embed(generated.content, payload)
        parent = getattr(generated, "parent", None)
        manifest = _make_manifest(
            generated,
            path.name,
            label=label,
            binding=(self.soft_binding, payload, self.payload_bits),
            **self._describe_region(generated),
        )
        signed = sign_bytes(
            self._encode(marked, mime, generated),
            mime,
            manifest,
            self._lab.signer,
            source_type="" if parent else generated.source_type,
            parent=parent,
        )
        missing = self._missing(signed, mime, payload, frozenset([label]))
        if missing:
            raise IntegrityError(
                f"the finished file lacks its {', '.join(missing)}, and was not written",
                code="forensics.unmarked",
                where=str(path),
                expected="label, watermark, credentials and ledger row in every file of the lab",
                next=self.remedy,
            )
        content = self._decode(signed)
        row = {
            "watermark": format(payload, f"0{self.payload_bits // 4}x"),
            "pixels": digest_bytes(content.tobytes()),
        }
        sketch = pack_fingerprint(self._fingerprint(content, payload))
        self._lab.ledger.append(
            {
                "file": path.name,
                "sha256": digest_bytes(signed),
                "generator": generated.generator,
                "seed": generated.seed,
                "run": generated.run,
                "consent": generated.consent,
                "whose": generated.source,
                "kind": generated.kind,
                "source_type": generated.source_type,
                **row,
                "content": sketch,
            }
        )
        with atomic_write(path, "wb") as file:
            file.write(signed)
        strength = self._measure_strength(generated.content, marked)
        return {**row, **strength, "marks": list(MARKS)}

    def missing_marks(self, path: Path, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Return the marks of this lab that a file lacks; empty if complete.

        Args:
            path: The file; one that cannot be decoded lacks them all.
            rows: Ledger rows by the digests of their files.
        """
        data = require_file(path).read_bytes()
        row = rows.get(digest_bytes(data))
        payload = None if row is None else int(str(row["watermark"]), 16)
        kind: LabelKind | None = None if row is None else row.get("kind")
        labels = frozenset([self.labels[kind]] if kind else self.labels.values())
        missing = self._missing(data, detect_mime_type(path), payload, labels)
        return [*(["ledger"] if row is None else []), *missing]

    def _missing(
        self, data: bytes, mime: str, payload: int | None, labels: frozenset[str]
    ) -> list[str]:
        """Return the marks that a file's bytes lack; any payload will do where None is expected."""
        read_payload = self._read_payload(data)
        credentials = read_credentials(data, mime, [self._lab.trust])
        is_sourced = any(kind.startswith(IPTC_SOURCE_TYPE_URL) for kind in credentials.source_types)
        is_present = {
            "watermark": read_payload is not None and payload in {None, read_payload},
            "credentials": credentials.integrity == "intact" and credentials.trust == "lab",
            "source type": is_sourced,
            "label": self._read_label(data) in labels,
        }
        return [mark for mark, present in is_present.items() if not present]

    def _describe_region(self, generated: Any) -> dict[str, Any]:
        """Return the arguments of ``_make_manifest`` that locate the forgery."""
        return {}

    @abstractmethod
    def _embed(self, content: Content, payload: int) -> Content:
        """Return the watermarked content."""

    @abstractmethod
    def _encode(self, content: Content, mime: str, generated: GeneratedMedia) -> bytes:
        """Encode the content with its label in the metadata."""

    @abstractmethod
    def _decode(self, data: bytes) -> Content:
        """Decode the content of a file's bytes."""

    @abstractmethod
    def _read_payload(self, data: bytes) -> int | None:
        """Return the payload of the watermark in a file's bytes."""

    @abstractmethod
    def _read_label(self, data: bytes) -> str:
        """Return the label in a file's own metadata; credentials do not count."""

    @abstractmethod
    def _fingerprint(self, content: Content, payload: int) -> Any:
        """Return the fingerprint of the content, for comparison with copies of the mark."""

    @abstractmethod
    def _measure_strength(self, content: Content, marked: Content) -> dict[str, float]:
        """Return the strength of the watermark, by its name in manifest rows."""
