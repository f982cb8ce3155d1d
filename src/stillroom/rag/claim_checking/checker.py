"""Claim checker (fact checker, hallucination detector): support of a claim by a passage.

The probability, from their alignment: a logistic model over the numbers of
``stillroom.rag.claim_checking.alignment``, their squares and products. It was fitted to claims with
planted edits and to judged paraphrases, and its threshold was chosen for the share of true claims
among those that it calls supported.

Source: Kryscinski et al. 2020, "FactCC", arXiv:1910.12840; Tang et al. 2024, "MiniCheck",
arXiv:2404.10774. Differs: no network reads the texts, since a small one learned less from the same
claims; see the lab notebook.

The folder of a checker holds ``checker.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import CheckpointError
from stillroom.models.hub import resolve_checkpoint
from stillroom.provenance import digest_json
from stillroom.provenance.digests import load_json
from stillroom.rag.claim_checking.alignment import FEATURES

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BUILTIN_CHECKER",
    "CONFIG_FILE",
    "ClaimChecker",
    "estimate_support",
    "expand_features",
    "list_values",
    "open_checker",
]

BUILTIN_CHECKER = "builtin:checker"
CONFIG_FILE = "checker.json"
_BUILTIN_FOLDER = Path(__file__).parent / "builtin"


class ClaimChecker:
    """Checker of claims; use ``open_checker``."""

    def __init__(self, folder: Path) -> None:
        """Open a folder.

        Raises:
            CheckpointError: If the folder holds no checker, or one of other features.
        """
        try:
            config: dict[str, Any] = load_json((folder / CONFIG_FILE).read_bytes())
            if tuple(config["features"]) != FEATURES:
                raise ValueError("other features")
            self._mean, self._scale, self._weights = (
                np.array(config[name], dtype=np.float64) for name in ("mean", "scale", "weights")
            )
            self.threshold = float(config["threshold"])
            self.measure(dict.fromkeys(FEATURES, 0.0))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(
                f"{folder} holds no claim checker: {error!r}",
                code="checkpoint.not-a-checker",
                expected=f"{CONFIG_FILE} of a job of kind rag.checker",
                next="train one: stillroom new rag.checker",
            ) from error
        self.fingerprint = digest_json(config)

    def measure(self, features: Mapping[str, float]) -> float:
        """Return the probability that a passage supports a claim with these features."""
        row = expand_features((list_values([features]) - self._mean) / self._scale)
        return float(estimate_support(row, self._weights)[0])


def estimate_support(
    design: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the probability of support, (N,), of expanded features, (N, E), by weights, (E,)."""
    chances: NDArray[np.float64] = 0.5 * (1 + np.tanh(design @ weights / 2))
    return chances


def expand_features(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return standardized features (N, F) with their squares, products and a 1, (N, E)."""
    first, second = np.triu_indices(values.shape[1])
    return np.column_stack([values, values[:, first] * values[:, second], np.ones(len(values))])


@lru_cache(maxsize=4)
def open_checker(reference: str) -> ClaimChecker:
    """Return the checker of a reference; the last four stay open.

    Args:
        reference: Folder or artifact of a checker; ``builtin:checker`` for the packaged one.

    Raises:
        CheckpointError: If there is none.
    """
    if reference == BUILTIN_CHECKER:
        return ClaimChecker(_BUILTIN_FOLDER)
    folder = resolve_checkpoint(reference)
    output = folder / "output"
    return ClaimChecker(output if (output / CONFIG_FILE).is_file() else folder)


def list_values(rows: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
    """Return the features of claims as rows, (N, F)."""
    return np.array([[row[name] for name in FEATURES] for row in rows], dtype=np.float64)
