"""Claim checker (fact checker, hallucination detector): does a passage support a claim?

A small encoder reads both together (``rag.claim_checking.encoding``). A linear head over the sum of
the states of ``[CLS]`` and of the mean of the claim's tokens gives the logit of support.

Source: Tang et al. 2024, "MiniCheck", arXiv:2404.10774 (a small model trained on claims that a
large one wrote); Kovács and Recski 2025, "LettuceDetect", arXiv:2502.17125 (unsupported tokens as
targets). Differs: low-rank updates of a sentence embedder, and a few sentences in place of the
passage.

The folder of a checker holds ``checker.json`` and ``checker.safetensors``; no torch is imported.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.errors import CheckpointError
from stillroom.models.hub import resolve_checkpoint
from stillroom.provenance import digest_json
from stillroom.provenance.digests import load_json
from stillroom.rag.answer_selection.adapted_bert import (
    adapt_base,
    digest_tensors,
    find_special_tokens,
    load_tensors,
)
from stillroom.rag.answer_selection.reader import BUILTIN_READER, find_reader
from stillroom.rag.answer_selection.reader import CONFIG_FILE as READER_CONFIG
from stillroom.rag.answer_selection.reader import WEIGHTS_FILE as READER_WEIGHTS
from stillroom.rag.claim_checking.encoding import encode_claim

__all__ = [
    "BUILTIN_CHECKER",
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "ClaimChecker",
    "find_checker",
    "find_start",
    "open_checker",
]

BUILTIN_CHECKER = "builtin:checker"
CONFIG_FILE, WEIGHTS_FILE = "checker.json", "checker.safetensors"
_BUILTIN_FOLDER = Path(__file__).parent / "builtin"


class ClaimChecker:
    """Checker of claims; use ``open_checker``."""

    def __init__(self, folder: Path) -> None:
        """Open a folder.

        Raises:
            CheckpointError: If the folder holds no checker, or its base is not at hand.
        """
        try:
            config: dict[str, Any] = load_json((folder / CONFIG_FILE).read_bytes())
            tensors = load_tensors(folder / WEIGHTS_FILE)
            _, self._encoder, held = adapt_base(folder, config, tensors, {"support": 1})
            self._support, self._shared = held["support.weight"][0], held["shared"]
            self._bias = float(held["support.bias"][0])
            self.threshold = float(config["threshold"])
            if not 0 < self.threshold <= 1:
                raise ValueError(f"the threshold {self.threshold} is not a probability")
        except CheckpointError:  # of the base: it tells what to install
            raise
        except (OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
            raise CheckpointError(
                f"{folder} holds no claim checker: {error!r}",
                code="checkpoint.not-a-checker",
                expected=f"{CONFIG_FILE} and {WEIGHTS_FILE} of a job of kind rag.checker",
                next="train one: stillroom new rag.checker",
            ) from error
        self.fingerprint = digest_json([config, digest_tensors(tensors)])

    def measure(self, claim: str, title: str, passage: str) -> float:
        """Return the probability that a passage with its title supports a claim."""
        tokenizer = self._encoder.tokenizer
        encoded = encode_claim(
            tokenizer, claim, title, passage, special=find_special_tokens(tokenizer)
        )
        added = np.outer(np.array(encoded.shared, dtype=np.float32), self._shared)
        states = self._encoder.states(encoded.ids, encoded.segments, added)
        pooled = states[0] + states[1 : 1 + len(encoded.offsets)].sum(axis=0) / max(
            1, len(encoded.offsets)
        )
        logit = float(pooled @ self._support) + self._bias
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, logit))))


@lru_cache(maxsize=4)
def open_checker(reference: str) -> ClaimChecker:
    """Return the checker of a reference; the last four stay open.

    ``reference`` is a folder or artifact of a checker, or ``builtin:checker``, the packaged one.

    Raises:
        CheckpointError: If there is none.
    """
    return ClaimChecker(find_checker(reference))


def find_checker(reference: str) -> Path:
    """Return the folder of a checker.

    Raises:
        CheckpointError: If the reference leads nowhere.
    """
    if reference == BUILTIN_CHECKER:
        return _BUILTIN_FOLDER
    folder = resolve_checkpoint(reference, builtin=(BUILTIN_CHECKER,))
    return folder / "output" if (folder / "output" / CONFIG_FILE).is_file() else folder


def find_start(reference: str) -> tuple[Path, Path]:
    """Return the files of settings and weights that training starts from: a checker's or reader's.

    Raises:
        CheckpointError: If the reference leads nowhere.
    """
    if reference != BUILTIN_READER:
        folder = find_checker(reference)
        if (folder / CONFIG_FILE).is_file():
            return folder / CONFIG_FILE, folder / WEIGHTS_FILE
    folder = find_reader(reference)
    return folder / READER_CONFIG, folder / READER_WEIGHTS
