"""Pairing of source and target identities that keeps splits disjoint.

A swap shows two people. If partners were drawn from everyone, a test person could appear in
training fakes. Identities are therefore grouped into blocks of the size that a forgery needs,
partners come from the same block, and each block goes to one split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stillroom.errors import DataError

__all__ = ["IdentityPairing", "derive_person_id", "pair_identities"]


@dataclass(frozen=True)
class IdentityPairing:
    """Blocks of identities: identity of each face, faces of each identity, and the blocks."""

    identities: tuple[str, ...]
    names: tuple[str, ...]
    faces: tuple[tuple[int, ...], ...]
    blocks: tuple[tuple[int, ...], ...]
    needed: int

    def choose(self, number: int) -> tuple[tuple[int, ...], str]:
        """Return the faces for a forgery's number, target first, and the name of their block."""
        target = number % len(self.identities)
        target_identity = self.names.index(self.identities[target])
        block = next(block for block in self.blocks if target_identity in block)
        position = block.index(target_identity)
        partners = [block[(position + step) % len(block)] for step in range(1, self.needed)]
        partner_faces = [
            self.faces[partner][number % len(self.faces[partner])] for partner in partners
        ]
        return (target, *partner_faces), self.names[block[0]]


def pair_identities(identities: Sequence[str], needed: int) -> IdentityPairing:
    """Group identities into blocks of ``needed``, in order; the rest joins the last block.

    Raises:
        DataError: If there are fewer people than a forgery needs.
    """
    names = tuple(dict.fromkeys(identities))
    if len(names) < needed:
        raise DataError(
            f"the forgery needs faces of {needed} people, but there are {len(names)}",
            code="forensics.no-faces",
            expected=f"images of {needed} people or more, one folder per person",
            next="add images of another person, or choose a forgery of one face",
        )
    faces = tuple(
        tuple(index for index, identity in enumerate(identities) if identity == name)
        for name in names
    )
    last = len(names) // needed
    blocks = [
        tuple(range(index * needed, len(names) if index == last - 1 else (index + 1) * needed))
        for index in range(last)
    ]
    return IdentityPairing(tuple(identities), names, faces, tuple(blocks), needed)


def derive_person_id(path: Path, folder: Path) -> str:
    """Return the person of a file: the first folder below ``folder``, else the file's own name.

    Args:
        path: The file; ``folder`` itself where one file is named.
        folder: The named folder, with one subfolder per person.
    """
    parts = path.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else path.stem
