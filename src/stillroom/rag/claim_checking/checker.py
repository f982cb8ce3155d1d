"""Claim checker: an encoder with low-rank updates tells whether a passage supports a claim.

The encoder reads the claim with a window of the passage; a linear head over ``[CLS]`` and the mean
state of the claim gives the logit of support, and one over each of its tokens the logit that the
word is wrong. A logistic model of the former and the largest of the latter gives the probability
of support.

Source: Tang et al. 2024, "MiniCheck", arXiv:2404.10774 (a small model that reads claim and
document); Kryscinski et al. 2020, "FactCC", arXiv:1910.12840 (trained on planted edits, with the
span that is wrong as a second target). Differs: the encoder is a sentence embedder with low-rank
updates (Hu et al. 2021, arXiv:2106.09685), and tokens are marked that stand on both sides.

The folder of a checker holds ``checker.json`` and ``checker.safetensors``; no torch is imported.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.errors import CheckpointError
from stillroom.models.hub import resolve_checkpoint
from stillroom.provenance import digest_json
from stillroom.rag.answer_selection.reader import find_special_tokens, open_base
from stillroom.rag.claim_checking.encoding import EncodedClaim, EncodedSource, encode_claim
from stillroom.rag.claim_checking.encoding import encode_source as _encode_source

__all__ = ["BUILTIN_CHECKER", "CONFIG_FILE", "WEIGHTS_FILE", "ClaimChecker", "open_checker"]

BUILTIN_CHECKER = "builtin:checker"
CONFIG_FILE, WEIGHTS_FILE = "checker.json", "checker.safetensors"
_BUILTIN_FOLDER = Path(__file__).parent / "builtin"


class ClaimChecker:
    """Checker of claims; use ``open_checker``."""

    def __init__(self, folder: Path) -> None:
        """Open a folder.

        Raises:
            CheckpointError: If the folder holds no checker, or its base model cannot be opened.
        """
        from safetensors.numpy import load_file

        try:
            self.config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_bytes())
            tensors = load_file(folder / WEIGHTS_FILE)
            base = open_base(str(self.config["base"]))
            scale = float(self.config["alpha"]) / int(self.config["rank"])
            updates = {}
            for name in tensors:
                if name.endswith(".lora_A"):
                    layer = name.removesuffix(".lora_A")
                    up, down = (tensors[f"{layer}.lora_{part}"].astype(np.float32) for part in "BA")
                    updates[f"{layer}.weight"] = scale * (up @ down)
            self._encoder = base.adapt(updates)
            self._heads = {
                name: tensors[name].astype(np.float32)
                for name in ("support.weight", "support.bias", "wrong.weight", "wrong.bias", "marks")
            }
            self._calibration = {
                name: float(self.config["calibration"][name])
                for name in ("support", "wrong", "intercept")
            }
            self.threshold = float(self.config["threshold"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(
                f"{folder} holds no claim checker: {error!r}",
                code="checkpoint.not-a-checker",
                expected=f"{CONFIG_FILE} and {WEIGHTS_FILE} of a job of kind rag.checker",
                next="train one: stillroom new rag.checker",
            ) from error
        self._special = find_special_tokens(self._encoder.tokenizer)
        self.fingerprint = digest_json(
            [self.config, [[name, value.tobytes().hex()] for name, value in sorted(tensors.items())]]
        )

    def encode_source(self, text: str, title: str = "") -> EncodedSource:
        """Encode a passage, to check several claims against it."""
        return _encode_source(self._encoder.tokenizer, text, title)

    def encode(self, claim: str, passage: str, title: str = "") -> EncodedClaim:
        """Encode a claim with a passage that is not encoded yet."""
        return self._encode(claim, self.encode_source(passage, title))

    def _encode(self, claim: str, source: EncodedSource) -> EncodedClaim:
        return encode_claim(self._encoder.tokenizer, claim, source, special=self._special)

    def measure(self, claim: str, source: EncodedSource) -> float:
        """Return the probability that a passage supports a claim."""
        encoded = self._encode(claim, source)
        if not encoded.offsets or not source.ids:
            return 0.0
        weights = self._calibration
        support, wrong = self.read(encoded)
        value = weights["support"] * support + weights["wrong"] * wrong + weights["intercept"]
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, value))))

    def read(self, encoded: EncodedClaim) -> tuple[float, float]:
        """Return the logit of support, and the largest logit that a word of the claim is wrong."""
        heads = self._heads
        added = np.array(encoded.marks, dtype=np.float32) @ heads["marks"]
        states = self._encoder.states(encoded.ids, encoded.segments, added)
        words = states[1 : 1 + len(encoded.offsets)]
        pooled = np.concatenate([states[0], words.mean(axis=0)])
        support = float(heads["support.weight"][0] @ pooled + heads["support.bias"][0])
        wrong = words @ heads["wrong.weight"][0] + heads["wrong.bias"][0]
        return support, float(wrong.max())


@lru_cache(maxsize=4)
def open_checker(reference: str) -> ClaimChecker:
    """Return the checker of a reference; the last four stay open.

    Args:
        reference: Folder or artifact of a checker; ``builtin:checker`` for the packaged one.

    Raises:
        CheckpointError: If there is none, or its base is neither cached nor installed.
    """
    if reference == BUILTIN_CHECKER:
        return ClaimChecker(_BUILTIN_FOLDER)
    folder = resolve_checkpoint(reference)
    return ClaimChecker(folder / "output" if (folder / "output" / CONFIG_FILE).is_file() else folder)
