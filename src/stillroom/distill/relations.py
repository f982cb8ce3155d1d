"""How positions relate: scores of rows against all positions, and KL between their softmaxes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["divergence_of_rows", "relation_scores"]


def divergence_of_rows(student: Tensor, teacher: Tensor, visible: Tensor) -> Tensor:
    """Return KL(teacher || student) of the softmaxes of scores over visible positions, (A, n).

    Args:
        student: Scores, (A, n, T).
        teacher: Scores, (A, n, T).
        visible: (n, T), at least one True a row.
    """
    least = torch.finfo(student.dtype).min / 2  # finite: 0 * inf would be no number
    log_q = torch.log_softmax(student.masked_fill(~visible, least), -1)
    log_p = torch.log_softmax(teacher.masked_fill(~visible, least), -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def relation_scores(vectors: Tensor, rows: Tensor, heads: int) -> Tensor:
    """Return scaled dot products of some positions' vectors with all, split into heads, (A, n, T).

    Args:
        vectors: (H, T, d); the H heads are concatenated before they are split again.
        rows: (n,), positions.
        heads: A, a divisor of H * d.
    """
    joined = vectors.transpose(0, 1).flatten(1)  # (T, H * d)
    split = joined.reshape(len(joined), heads, -1).transpose(0, 1)  # (A, T, H * d / A)
    scores: Tensor = split[:, rows] @ split.transpose(1, 2) * split.shape[-1] ** -0.5
    return scores
