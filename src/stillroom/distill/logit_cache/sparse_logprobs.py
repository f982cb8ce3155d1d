"""Top-k log-probabilities of one record, as read from another tool's file, and their checks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError

__all__ = ["SparseLogprobs", "malformed_row_error"]


@dataclass(frozen=True, slots=True)
class SparseLogprobs:
    """One record: token ids (T,), positions (N,), and top-k ids and log-probabilities, (N, k)."""

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float64]

    def compute_tail(self, where: str) -> npt.NDArray[np.float64]:
        """Return 1 minus the mass of the k tokens, (N,); slightly below 0 by rounding.

        Raises:
            DataError: If the values are not log-probabilities.
        """
        is_wrong = ~np.isfinite(self.logprobs)
        if is_wrong.any():
            position = int(self.positions[int(np.argwhere(is_wrong)[0, 0])])
            raise malformed_row_error(
                where, "logprobs", f"not a number at position {position}", "finite numbers"
            )
        tail: npt.NDArray[np.float64] = 1 - np.exp(self.logprobs).sum(-1)
        if len(tail) and float(tail.min()) < -0.05:
            position = int(self.positions[int(tail.argmin())])
            raise malformed_row_error(
                where,
                "logprobs",
                f"probabilities that sum to {1 - float(tail.min()):.3f} at position {position}",
                "natural logarithms of probabilities, whose sum is at most 1",
            )
        return tail

    def check_tokens(self, vocabulary: int, where: str) -> None:
        """Check that the text's tokens, and the k tokens of every position, are in the vocabulary.

        Raises:
            DataError: If one is not.
        """
        for field, tokens in (("input_ids", self.ids), ("target_token_ids", self.tokens)):
            outside = tokens[(tokens < 0) | (tokens >= vocabulary)]
            if outside.size:
                expected = f"ids from 0, below the teacher's vocabulary of {vocabulary}"
                raise malformed_row_error(where, field, f"token {outside[0]}", expected)


def malformed_row_error(where: str, field: str, actual: str, expected: str) -> DataError:
    """Return the error of a row that does not follow its tool's format."""
    return DataError(
        f"{field}: {actual}",
        code="distill.import-row",
        where=f"{where} {field}",
        expected=expected,
        next="check the export, and that --format names its tool",
    )
