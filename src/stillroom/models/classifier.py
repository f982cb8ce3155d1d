"""TextClassifier: any sequence-classification checkpoint that gives one text its labels' chances.

One label of several, or several at once: the checkpoint's ``problem_type`` says which. A long text
is read in overlapping windows and a label's chance is the highest of them, so that nothing hides
behind the model's length.

Source: Devlin et al. 2018, arXiv:1810.04805, section 4.1 (a head over the first token's state).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from stillroom.errors import CheckpointError
from stillroom.models.cross_encoder import load_classifier, pad_pairs

__all__ = ["TextClassifier"]

_LONGEST = 1 << 20
_DEFAULT_TOKENS = 512
_BATCH = 8


class TextClassifier:
    """A checkpoint that gives every label of a text a probability."""

    def __init__(
        self, folder: Path, *, device: str = "cpu", independent: bool | None = None
    ) -> None:
        """Open a folder.

        Args:
            folder: A transformers checkpoint with a head for sequence classification.
            device: cpu, cuda, cuda:1 or mps.
            independent: Whether labels hold beside each other (a sigmoid for each) or exclude each
                other (one softmax); by default what the checkpoint's ``problem_type`` says, and one
                label alone is always a sigmoid.

        Raises:
            CheckpointError: If the folder is no such checkpoint.
        """
        from stillroom.checkpoints import Checkpoint

        self._tokenizer, self._model = load_classifier(folder, device)
        config = self._model.config
        self.labels = tuple(str(config.id2label[at]) for at in range(config.num_labels))
        told = getattr(config, "problem_type", None) == "multi_label_classification"
        self.independent = told if independent is None else independent
        self.independent = self.independent or len(self.labels) == 1
        self._device = device
        self._lock = threading.Lock()
        bounds = (
            int(getattr(config, "max_position_embeddings", 0) or _LONGEST),
            int(min(self._tokenizer.model_max_length, _LONGEST)),
        )
        self.max_tokens = min(bounds) if min(bounds) < _LONGEST else _DEFAULT_TOKENS
        self.fingerprint = Checkpoint.open(folder).fingerprint

    def classify(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Return the probability of every label for each text, in order.

        A text's chances do not depend on the texts beside it.
        """
        rows = [(at, ids) for at, text in enumerate(texts) for ids in self._windows(text)]
        rows.sort(key=lambda row: (len(row[1]["input_ids"]), row[0]))
        found: list[dict[str, float]] = [dict.fromkeys(self.labels, 0.0) for _ in texts]
        size = _BATCH if self._tokenizer.pad_token_id is not None else 1
        for start in range(0, len(rows), size):
            group = rows[start : start + size]
            for (at, _), chances in zip(group, self._run([ids for _, ids in group]), strict=True):
                for label, chance in zip(self.labels, chances, strict=True):
                    found[at][label] = max(found[at][label], chance)
        return found

    def find_labels(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Return the checkpoint's own spelling of some labels, which may be written in any case.

        Raises:
            CheckpointError: If it has no such label; those it has are named.
        """
        known = {label.casefold(): label for label in self.labels}
        missing = [name for name in wanted if name.casefold() not in known]
        if missing:
            raise CheckpointError(
                f"the classifier has no label {', '.join(missing)}",
                code="checkpoint.labels",
                expected=f"of: {', '.join(self.labels)}",
                next="name labels that it has",
            )
        return tuple(known[name.casefold()] for name in wanted)

    def _windows(self, text: str) -> list[dict[str, list[int]]]:
        with self._lock:
            own = self._tokenizer.num_special_tokens_to_add(pair=False)
            given = self._tokenizer(
                text or " ",
                truncation=True,
                max_length=self.max_tokens,
                stride=max((self.max_tokens - own) // 2, 0),
                return_overflowing_tokens=True,
            )
            keys = [key for key in ("input_ids", "token_type_ids") if key in given]
            return [
                {key: list(given[key][at]) for key in keys} for at in range(len(given["input_ids"]))
            ]

    def _run(self, rows: Sequence[dict[str, list[int]]]) -> list[list[float]]:
        import torch

        given = pad_pairs(rows, self._tokenizer.pad_token_id or 0)
        tensors = {key: torch.tensor(value, device=self._device) for key, value in given.items()}
        with torch.inference_mode():
            logits = self._model(**tensors).logits.float()  # (B, labels)
        chances = logits.sigmoid() if self.independent else logits.softmax(-1)
        return [[float(one) for one in row] for row in chances.cpu()]
