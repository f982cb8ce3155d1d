"""Pairing of source and target identities that keeps splits disjoint.

A swap shows two people. If partners were drawn from everyone, a person of the test would stand in
fakes of the training. So identities are put into blocks of as many as a forgery needs, partners
come from the same block, and a block goes into one split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stillroom.errors import DataError

__all__ = ["IdentityPairing", "derive_person_id", "pair_identities"]


@dataclass(frozen=True)
class IdentityPairing:
    """The blocks: of each face its identity's number, of each identity its faces and its block."""

    identities: tuple[str, ...]
    names: tuple[str, ...]
    faces: tuple[tuple[int, ...], ...]
    blocks: tuple[tuple[int, ...], ...]
    needed: int

    def choose(self, number: int) -> tuple[tuple[int, ...], str]:
        """Return the faces of the forgery of a number, the target first, and its block's name."""
        target = number % len(self.identities)
        own = self.names.index(self.identities[target])
        block = next(block for block in self.blocks if own in block)
        at = block.index(own)
        others = [block[(at + step) % len(block)] for step in range(1, self.needed)]
        chosen = [self.faces[other][number % len(self.faces[other])] for other in others]
        return (target, *chosen), self.names[block[0]]


def pair_identities(identities: Sequence[str], needed: int) -> IdentityPairing:
    """Put identities into blocks of ``needed``, in order; what is left over joins the last block.

    Args:
        identities: Of each face.
        needed: Faces of different people that a forgery needs.

    Raises:
        DataError: If there are fewer people than a forgery needs.
    """
    names = tuple(dict.fromkeys(identities))
    if len(names) < needed:
        raise DataError(
            f"the forgery needs faces of {needed} people, and there are {len(names)}",
            code="forensics.no-faces",
            expected=f"pictures of {needed} people or more, one folder a person",
            next="add another person's pictures, or choose a forgery of one face",
        )
    faces = tuple(
        tuple(at for at, identity in enumerate(identities) if identity == name) for name in names
    )
    last = len(names) // needed
    blocks = [
        tuple(range(at * needed, len(names) if at == last - 1 else (at + 1) * needed))
        for at in range(last)
    ]
    return IdentityPairing(tuple(identities), names, faces, tuple(blocks), needed)


def derive_person_id(path: Path, folder: Path) -> str:
    """Return whose file it is: of the first folder below ``folder``, else of its own name.

    Args:
        path: The file; ``folder`` itself where one file is named.
        folder: What was named, which holds one folder a person.
    """
    parts = path.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else path.stem
