"""LabeledWriter: watermark, metadata label, credentials and ledger row of every written file.

Every file gets an invisible or inaudible watermark, a metadata label that viewers and players show,
signed content credentials, and a row in the lab's ledger. The finished bytes are read back, and
each mark must be found in them before the file appears under its name. No setting disables a mark.
A contract test holds that no other module of the room writes images.

Limits: nothing stops a user from changing this program, or from saving the unmarked arrays that
``draw_face`` and a method's ``forge`` return. The marks serve honest labs, and files that leave
them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt

from stillroom.forensics.c2pa.credentials import detect_mime_type, sign_bytes
from stillroom.forensics.labeling.lab import Lab
from stillroom.forensics.labeling.marks import (
    MARKS,
    GeneratedMedia,
    LabelKind,
    commit_file,
    find_missing_marks,
    find_signed_payload,
    make_manifest,
    make_payload,
    require_marks,
    select_valid_labels,
)
from stillroom.forensics.watermark.fingerprint import pack_fingerprint
from stillroom.provenance import digest_bytes

__all__ = ["LabeledWriter"]

Content = npt.NDArray[Any]


class LabeledWriter(ABC):
    """Write media of one lab, each file with all marks.

    Class variables: ``labels`` of the metadata by kind; ``former_label``, which all files had
    before; ``soft_binding``, the name of the watermark, and ``payload_bits``; ``remedy``, what to
    change where a mark does not survive.
    """

    labels: ClassVar[Mapping[LabelKind, str]]
    former_label: ClassVar[str]
    soft_binding: ClassVar[str]
    payload_bits: ClassVar[int]
    remedy: ClassVar[str]

    def __init__(self, lab: Lab) -> None:
        """Use the lab's key, certificates and ledger."""
        self._lab = lab

    def write(self, generated: GeneratedMedia, path: Path) -> dict[str, Any]:
        """Mark an image or recording, verify its marks, and write it.

        Args:
            generated: The content and the statements of its marks.
            path: A new file; its suffix decides the format.

        Returns:
            Fields of its manifest row: watermark, digests, strength of the watermark.

        Raises:
            DataError: If the content cannot carry a watermark.
            IntegrityError: If a mark is not found in the finished bytes; nothing is written then.
        """
        label, mime = self.labels[generated.kind], detect_mime_type(path)
        payload = make_payload(self._lab, generated, path.name, self.payload_bits)
        marked = self._embed(generated.content, payload)
        parent = getattr(generated, "parent", None)
        manifest = make_manifest(
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
        require_marks(path, missing, self.remedy)
        content = self._decode(signed)
        row = {
            "watermark": format(payload, f"0{self.payload_bits // 4}x"),
            "pixels": digest_bytes(content.tobytes()),
        }
        sketch = pack_fingerprint(self._fingerprint(content, payload))
        commit_file(path, signed, generated, self._lab, **row, content=sketch)
        strength = self._measure_strength(generated.content, marked)
        return {**row, **strength, "marks": list(MARKS)}

    def missing_marks(self, path: Path, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Return the marks of this lab that a file lacks; empty if complete.

        Args:
            path: The file; one that cannot be decoded lacks them all.
            rows: Ledger rows by the digests of their files.
        """
        data = path.read_bytes()
        payload = find_signed_payload(data, rows)
        labels = select_valid_labels(rows.get(digest_bytes(data)), self.labels, self.former_label)
        missing = self._missing(data, detect_mime_type(path), payload, labels)
        return [*(["ledger"] if payload is None else []), *missing]

    def _missing(
        self, data: bytes, mime: str, payload: int | None, labels: frozenset[str]
    ) -> list[str]:
        return find_missing_marks(
            data,
            mime,
            self._lab,
            read_payload=self._read_payload(data),
            payload=payload,
            is_labeled=self._read_label(data) in labels,
        )

    def _describe_region(self, generated: Any) -> dict[str, Any]:
        """Return the arguments of ``make_manifest`` that locate the forgery."""
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
