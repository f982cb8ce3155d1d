"""What every importer of log-probabilities gives, and the error of a row that is not as told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError

__all__ = ["Sparse", "odd_row"]


@dataclass(frozen=True, slots=True)
class Sparse:
    """One record: token ids (T,), positions (N,), and ids and log-probabilities there, (N, k)."""

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float64]


def odd_row(where: str, field: str, found: str, expected: str) -> DataError:
    """Return the error of a row that is not as its tool documents."""
    return DataError(
        f"{field}: {found}",
        code="distill.import-row",
        where=f"{where} {field}",
        expected=expected,
        next="check how the file was made, and that --format names its tool",
    )
