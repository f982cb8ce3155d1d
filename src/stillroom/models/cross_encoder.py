"""Cross-encoders: any sequence-classification checkpoint that reads query and passage together.

One label is the score as it stands. Of two labels the score is the second less the first: the
log-odds that the passage is relevant. Pairs are read in groups of like length, padded to the
longest of the group; a score differs with its group only by the rounding of sums (in float32, about
1e-6 of its size). Only the passage is ever cut.

Source: Nogueira and Cho 2019, "Passage Re-ranking with BERT", arXiv:1901.04085.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillroom.errors import BackendError, CheckpointError
from stillroom.provenance import digest_json

__all__ = ["CrossEncoder", "load_classifier", "pad_pairs"]

_LONGEST = 1 << 20
_LEAST_PASSAGE = 16
_BATCH = 8


class CrossEncoder:
    """A checkpoint that gives a pair of texts a score; higher fits better."""

    def __init__(self, folder: Path, *, max_tokens: int | None = None, device: str = "cpu") -> None:
        """Open a folder.

        Args:
            folder: A transformers checkpoint with a head for sequence classification.
            max_tokens: Tokens of query and passage together; by default what the model reads.
            device: cpu, cuda, cuda:1 or mps.

        Raises:
            CheckpointError: If the folder is no such checkpoint, or its head has not 1 or 2 labels.
        """
        from stillroom.checkpoints import Checkpoint

        self._tokenizer, self._model = load_classifier(folder, device, most_labels=2)
        self._device = device
        self._lock = threading.Lock()
        own = min(
            bound
            for bound in (
                int(getattr(self._model.config, "max_position_embeddings", 0) or _LONGEST),
                int(min(self._tokenizer.model_max_length, _LONGEST)),
                max_tokens or _LONGEST,
                _LONGEST,
            )
        )
        self.max_tokens = own if own < _LONGEST else 512
        self.truncated = 0
        """How many passages were longer than there was room, and read without their ends."""
        self.fingerprint = digest_json([Checkpoint.open(folder).fingerprint, self.max_tokens])

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return one score for each text, in order; see ``Reranker``."""
        pairs = self._encode(query, texts)
        order = sorted(range(len(pairs)), key=lambda at: (len(pairs[at]["input_ids"]), at))
        size = _BATCH if self._tokenizer.pad_token_id is not None else 1
        scores = [0.0] * len(pairs)
        for start in range(0, len(order), size):
            group = order[start : start + size]
            for at, score in zip(group, self._run([pairs[at] for at in group]), strict=True):
                scores[at] = score
        return scores

    def close(self) -> None:
        """Release nothing: the weights go with the object."""

    def _encode(self, query: str, texts: Sequence[str]) -> list[dict[str, list[int]]]:
        """Return the tokens of every pair; a fast tokenizer must not be used by two threads."""
        with self._lock:
            asked = len(self._tokenizer(query, add_special_tokens=False)["input_ids"])
            room = self.max_tokens - asked - self._tokenizer.num_special_tokens_to_add(pair=True)
            if room < min(_LEAST_PASSAGE, self.max_tokens // 2):
                raise BackendError(
                    f"the query has {asked} tokens; the cross-encoder reads {self.max_tokens} of "
                    "query and passage together",
                    code="backend.context",
                    expected=f"room for {_LEAST_PASSAGE} tokens of a passage",
                    next="ask a shorter question: only passages are ever cut",
                )
            pairs = []
            for text in texts:
                whole = self._tokenizer(query, text)
                if len(whole["input_ids"]) > self.max_tokens:
                    self.truncated += 1
                    whole = self._tokenizer(
                        query, text, truncation="only_second", max_length=self.max_tokens
                    )
                pairs.append({key: list(value) for key, value in whole.items()})
        return pairs

    def _run(self, pairs: Sequence[dict[str, list[int]]]) -> list[float]:
        import torch

        given = pad_pairs(pairs, self._tokenizer.pad_token_id or 0)
        tensors = {key: torch.tensor(value, device=self._device) for key, value in given.items()}
        with torch.inference_mode():
            logits = self._model(**tensors).logits.float()
        scores = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        return [float(score) for score in scores.cpu()]


def pad_pairs(pairs: Sequence[dict[str, list[int]]], pad: int) -> dict[str, list[list[int]]]:
    """Return the pairs as rows of one length, padded on the right, whatever the tokenizer's side.

    Encoders count positions from the left: padding there would give every token another place.
    """
    longest = max(len(pair["input_ids"]) for pair in pairs)
    rows: dict[str, list[list[int]]] = {"attention_mask": []}
    for pair in pairs:
        size = len(pair["input_ids"])
        rows["attention_mask"].append([1] * size + [0] * (longest - size))
        for key in ("input_ids", "token_type_ids"):
            if key in pair:
                fill = pad if key == "input_ids" else 0
                rows.setdefault(key, []).append(pair[key] + [fill] * (longest - size))
    return rows


def load_classifier(
    folder: Path, device: str, *, most_labels: int | None = None
) -> tuple[Any, Any]:
    """Return tokenizer and model of a sequence-classification checkpoint, ready to be asked.

    Args:
        folder: The checkpoint.
        device: cpu, cuda, cuda:1 or mps.
        most_labels: Refuse a head with more; by default any number is taken.

    Raises:
        CheckpointError: If it is no such checkpoint, or its head has too many labels.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from stillroom.models.causal import load_tokenizer
    from stillroom.models.pretrained import load_pretrained
    from stillroom.models.quiet import quiet_transformers

    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
            made = config.architectures or []
            if not any(str(name).endswith("ForSequenceClassification") for name in made):
                raise _refuse(folder, f"it is {', '.join(map(str, made)) or 'of no known kind'}")
            if most_labels is not None and config.num_labels not in range(1, most_labels + 1):
                raise _refuse(folder, f"its head has {config.num_labels} labels")
            model: Any = load_pretrained(
                AutoModelForSequenceClassification, folder, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise _refuse(folder, (str(error).strip().splitlines() or ["unreadable"])[0]) from error
    tokenizer = load_tokenizer(folder)
    return tokenizer, model.eval().to(device)


def _refuse(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} cannot be used as a cross-encoder: {why}",
        code="checkpoint.not-a-cross-encoder",
        expected="a sequence-classification checkpoint with one label, or two",
        next="give a cross-encoder's folder, or an endpoint's address",
    )
