"""EntailmentModel: any sequence-classification checkpoint that says whether one text follows.

Labels are found by name (``entailment``, ``neutral``, ``contradiction``, as the field's checkpoints
write them); a checkpoint with other labels is refused rather than guessed at. Pairs are read in
groups of like length. Only the premise is ever cut.

Source: Bowman et al. 2015, "A large annotated corpus for learning natural language inference",
arXiv:1508.05326 (the task and its labels).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from stillroom.errors import BackendError, CheckpointError
from stillroom.models.cross_encoder import load_classifier, pad_pairs

__all__ = ["EntailmentModel"]

_LONGEST = 1 << 20
_LEAST_PREMISE = 16
_BATCH = 8


class EntailmentModel:
    """A checkpoint that gives two texts the probability that the second follows from the first."""

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        """Open a folder.

        Args:
            folder: A transformers checkpoint with a head for sequence classification.
            device: cpu, cuda, cuda:1 or mps.

        Raises:
            CheckpointError: If the folder is no such checkpoint, or no label names entailment.
        """
        from stillroom.checkpoints import Checkpoint

        self._tokenizer, self._model = load_classifier(folder, device)
        self._label = _find_label(folder, self._model.config.id2label)
        self._device = device
        self._lock = threading.Lock()
        bounds = (
            int(getattr(self._model.config, "max_position_embeddings", 0) or _LONGEST),
            int(min(self._tokenizer.model_max_length, _LONGEST)),
        )
        self.max_tokens = min(bounds) if min(bounds) < _LONGEST else 512
        self.truncated = 0
        """How many premises were longer than there was room, and read without their ends."""
        self.fingerprint = Checkpoint.open(folder).fingerprint

    def entail(self, premises: Sequence[str], hypotheses: Sequence[str]) -> list[float]:
        """Return the probability of entailment for each pair, in order.

        Raises:
            BackendError: If a hypothesis leaves no room for its premise.
        """
        pairs = [self._encode(*pair) for pair in zip(premises, hypotheses, strict=True)]
        order = sorted(range(len(pairs)), key=lambda at: (len(pairs[at]["input_ids"]), at))
        size = _BATCH if self._tokenizer.pad_token_id is not None else 1
        chances = [0.0] * len(pairs)
        for start in range(0, len(order), size):
            group = order[start : start + size]
            for at, chance in zip(group, self._run([pairs[at] for at in group]), strict=True):
                chances[at] = chance
        return chances

    def _encode(self, premise: str, hypothesis: str) -> dict[str, list[int]]:
        with self._lock:
            asked = len(self._tokenizer(hypothesis, add_special_tokens=False)["input_ids"])
            own = self._tokenizer.num_special_tokens_to_add(pair=True)
            if self.max_tokens - asked - own < min(_LEAST_PREMISE, self.max_tokens // 2):
                raise BackendError(
                    f"the sentence has {asked} tokens; the model reads {self.max_tokens} of both "
                    "texts together",
                    code="backend.context",
                    expected=f"room for {_LEAST_PREMISE} tokens of a passage",
                    next="check by overlap, which has no bound",
                )
            pair = self._tokenizer(premise, hypothesis)
            if len(pair["input_ids"]) > self.max_tokens:
                self.truncated += 1
                pair = self._tokenizer(
                    premise, hypothesis, truncation="only_first", max_length=self.max_tokens
                )
            return {key: list(value) for key, value in pair.items()}

    def _run(self, pairs: Sequence[dict[str, list[int]]]) -> list[float]:
        import torch

        given = pad_pairs(pairs, self._tokenizer.pad_token_id or 0)
        tensors = {key: torch.tensor(value, device=self._device) for key, value in given.items()}
        with torch.inference_mode():
            logits = self._model(**tensors).logits.float()  # (B, labels)
        return [float(one) for one in logits.softmax(-1)[:, self._label].cpu()]


def _find_label(folder: Path, labels: Mapping[int, str]) -> int:
    names = {int(at): str(name).casefold() for at, name in labels.items()}
    found = [at for at, name in names.items() if name in {"entailment", "entail", "entailed"}]
    if len(found) != 1 or len(names) < 2:
        raise CheckpointError(
            f"{folder} cannot say what follows: its labels are {', '.join(names.values())}",
            code="checkpoint.not-an-entailment-model",
            expected="a sequence-classification checkpoint, one of whose labels is 'entailment'",
            next="name the labels in config.json (id2label), or check by overlap",
        )
    return found[0]
