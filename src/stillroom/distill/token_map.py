"""Which tokens of two vocabularies are the same bytes.

Tokens are compared by their bytes, never by how a vocabulary writes them (``Ġthe`` and ``▁the`` are
both " the"), special tokens by their role. Several ids of one side with the same bytes form one
group; every token without a counterpart is in the rest, group 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stillroom.models.token_bytes import SPECIAL, TEXT, TokenBytes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TokenMap", "map_tokens"]

_MATCHED_ROLES = ("bos", "eos", "pad")


@dataclass(frozen=True)
class TokenMap:
    """Group of each id; group 0 is the rest, the others have ids of both sides.

    Args:
        teacher: Group of each teacher id, (V of the teacher,), int64.
        student: Group of each student id, (V of the student,), int64.
        groups: How many groups there are, the rest included.
    """

    teacher: npt.NDArray[np.int64]
    student: npt.NDArray[np.int64]
    groups: int

    def cut(self, teacher_rows: int, student_rows: int) -> TokenMap:
        """Return the map for heads of so many rows; rows without a token belong to the rest."""
        return TokenMap(
            _fit(self.teacher, teacher_rows), _fit(self.student, student_rows), self.groups
        )

    def pool(self, probabilities: Tensor, *, of_teacher: bool) -> Tensor:
        """Return the probability of each group, (n, groups), of (n, V)."""
        import torch

        group = torch.from_numpy(self.teacher if of_teacher else self.student)
        shape = (probabilities.shape[0], self.groups)
        return probabilities.new_zeros(shape).index_add_(
            1, group.to(probabilities.device), probabilities
        )

    def to_json(self) -> dict[str, Any]:
        """Return how much of both vocabularies has a counterpart."""
        return {
            "groups": self.groups - 1,
            "teacher_matched": int((self.teacher > 0).sum()),
            "student_matched": int((self.student > 0).sum()),
        }


def map_tokens(teacher: TokenBytes, student: TokenBytes) -> TokenMap:
    """Group the tokens of two vocabularies by their bytes, special ones by role or surface."""
    ours, theirs = _keys(teacher), _keys(student)
    shared = {key: at for at, key in enumerate(sorted(set(ours) & set(theirs)), start=1)}
    sides = []
    for tokens, keys in ((teacher, ours), (student, theirs)):
        groups = np.zeros(len(tokens), dtype=np.int64)
        for key, group in shared.items():
            groups[keys[key]] = group
        sides.append(groups)
    return TokenMap(sides[0], sides[1], len(shared) + 1)


def _keys(tokens: TokenBytes) -> dict[tuple[str, bytes], list[int]]:
    keys: dict[tuple[str, bytes], list[int]] = {}
    for at, kind in enumerate(tokens.kinds.tolist()):
        if kind == TEXT:
            keys.setdefault(("text", tokens.of(at)), []).append(at)
        elif kind == SPECIAL:
            role = tokens.roles[at]
            key = (role, b"") if role in _MATCHED_ROLES else ("special", tokens.of(at))
            keys.setdefault(key, []).append(at)
    return keys


def _fit(groups: npt.NDArray[np.int64], rows: int) -> npt.NDArray[np.int64]:
    return np.concatenate([groups[:rows], np.zeros(max(rows - len(groups), 0), dtype=np.int64)])
