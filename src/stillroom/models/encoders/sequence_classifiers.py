"""Sequence classification: cross-encoders (``CrossEncoder.score``), text classifiers, NLI models.

Cross-encoders: with one label its logit is the score; with two, the second less the first, the
log-odds of relevance. Pairs are batched by length and padded to the longest; a score depends on its
batch only by rounding (in float32, about 1e-6 relative). Only the passage is truncated.

Source: Nogueira and Cho 2019, "Passage Re-ranking with BERT", arXiv:1901.04085.

Text classifiers: the checkpoint's ``problem_type`` distinguishes single-label from multi-label.
Long texts are read in overlapping windows, and the probability of a label is the maximum over
windows.

Source: Devlin et al. 2018, arXiv:1810.04805, section 4.1 (a head over the first token's state).

NLI models: labels are found by name (``entailment``, ``neutral``, ``contradiction``); checkpoints
with other labels are refused. Pairs are batched by length. Only the premise is truncated.

Source: Bowman et al. 2015, "A large annotated corpus for learning natural language inference",
arXiv:1508.05326 (the task and its labels).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from stillroom.errors import BackendError, CheckpointError
from stillroom.models.encoders.text_encoder import (
    find_max_tokens,
    find_positions,
    fingerprint_encoder,
    load_encoder,
    read_json_file,
)
from stillroom.provenance import digest_json

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CrossEncoder",
    "NLIModel",
    "TextClassifier",
]

_BATCH = 8
_MIN_ROOM = 16  # tokens of a passage or premise


class _SequenceClassifier(ABC):
    """Tokenizer and network of a sequence-classification checkpoint."""

    def __init__(
        self,
        folder: Path,
        device: str,
        *,
        most_labels: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self._tokenizer, self._model = _load(folder, device, most_labels)
        self._device = device
        self._lock = threading.Lock()  # a fast tokenizer must not be shared by threads
        positions = find_positions(self._model)
        self.max_tokens = find_max_tokens(positions, self._tokenizer, max_tokens or 0)
        self.truncated = 0
        """Number of truncated texts."""

    def _check_room(self, text: str, reads: str, advice: str) -> None:
        """Raise unless a text that is never truncated leaves room for the other one of its pair.

        Args:
            text: The text.
            reads: The error, with ``{}`` for its tokens, and for the limit of both texts.
            advice: The next step.
        """
        tokens = len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        special = self._tokenizer.num_special_tokens_to_add(pair=True)
        if self.max_tokens - tokens - special < min(_MIN_ROOM, self.max_tokens // 2):
            raise BackendError(
                reads.format(tokens, self.max_tokens),
                code="backend.context",
                expected=f"room for {_MIN_ROOM} tokens of a passage",
                next=advice,
            )

    def _encode_pair(self, first: str, second: str, truncation: str) -> dict[str, list[int]]:
        pair = self._tokenizer(first, second)
        if len(pair["input_ids"]) > self.max_tokens:
            self.truncated += 1
            pair = self._tokenizer(first, second, truncation=truncation, max_length=self.max_tokens)
        return {key: list(value) for key, value in pair.items()}

    @abstractmethod
    def _read_logits(self, logits: Tensor) -> Tensor:
        """Return the results of a batch from its logits, (B, labels)."""

    def _run(self, rows: Sequence[dict[str, list[int]]]) -> list[Any]:
        """Return the result of each row, in order.

        Rows of like length are read together; a result does not depend on the other rows.
        """
        import torch

        order = sorted(range(len(rows)), key=lambda index: (len(rows[index]["input_ids"]), index))
        pad = self._tokenizer.pad_token_id
        size = _BATCH if pad is not None else 1
        results: list[Any] = [None] * len(rows)
        for start in range(0, len(order), size):
            group = order[start : start + size]
            padded = _pad_pairs([rows[index] for index in group], pad or 0)
            tensors = {
                key: torch.tensor(value, device=self._device) for key, value in padded.items()
            }
            with torch.inference_mode():
                values = self._read_logits(self._model(**tensors).logits.float()).tolist()
            for index, value in zip(group, values, strict=True):
                results[index] = value
        return results


class CrossEncoder(_SequenceClassifier):
    """Cross-encoder: relevance score of a query and a text; higher is better."""

    def __init__(self, folder: Path, *, max_tokens: int | None = None, device: str = "cpu") -> None:
        """Open a folder.

        Args:
            folder: Sequence-classification checkpoint of transformers.
            max_tokens: Maximum tokens of query and passage; default: that of the model.
            device: cpu, cuda, cuda:1 or mps.

        Raises:
            CheckpointError: If the folder is not such a checkpoint, or does not have 1 or 2 labels.
        """
        super().__init__(folder, device, most_labels=2, max_tokens=max_tokens)
        self.fingerprint = digest_json([*fingerprint_encoder(folder), self.max_tokens])

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return one score per text, in order; see ``RerankerModel``."""
        return self._run(self._encode(query, texts))

    def close(self) -> None:
        """Do nothing: the weights are freed with the object."""

    @override
    def _read_logits(self, logits: Tensor) -> Tensor:
        return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]

    def _encode(self, query: str, texts: Sequence[str]) -> list[dict[str, list[int]]]:
        with self._lock:
            self._check_room(
                query,
                "the query has {} tokens; the cross-encoder reads {} of query and passage together",
                "shorten the question: only passages are truncated",
            )
            return [self._encode_pair(query, text, "only_second") for text in texts]


def _pad_pairs(pairs: Sequence[dict[str, list[int]]], pad: int) -> dict[str, list[list[int]]]:
    """Return the pairs as rows of equal length, padded on the right.

    Encoders count positions from the left: padding there would shift all tokens.
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


def _load(folder: Path, device: str, most_labels: int | None) -> tuple[Any, Any]:
    """Load tokenizer and model of a sequence-classification checkpoint."""
    config = read_json_file(folder / "config.json", _not_a_classifier_error)
    architectures = list(map(str, config.get("architectures") or []))
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise _not_a_classifier_error(
            folder, f"its architecture is {', '.join(architectures) or 'unknown'}"
        )
    tokenizer, model = load_encoder(
        folder,
        _not_a_classifier_error,
        loader="AutoModelForSequenceClassification",
        device=device,
    )
    if most_labels is not None and model.config.num_labels not in range(1, most_labels + 1):
        raise _not_a_classifier_error(folder, f"its head has {model.config.num_labels} labels")
    return tokenizer, model


def _not_a_classifier_error(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} cannot be used as a cross-encoder: {why}",
        code="checkpoint.not-a-cross-encoder",
        expected="a sequence-classification checkpoint with one or two labels",
        next="use the folder of a cross-encoder, or the address of an endpoint",
    )


class TextClassifier(_SequenceClassifier):
    """Text classifier: a probability per label."""

    def __init__(self, folder: Path) -> None:
        """Open a sequence-classification checkpoint of transformers.

        Its ``problem_type`` tells whether labels are independent (sigmoid) or exclusive (softmax);
        a single label is always a sigmoid.

        Raises:
            CheckpointError: If the folder is not such a checkpoint.
        """
        super().__init__(folder, "cpu")
        config = self._model.config
        self.labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
        is_multi_label = getattr(config, "problem_type", None) == "multi_label_classification"
        self.independent = is_multi_label or len(self.labels) == 1
        self.fingerprint = digest_json(fingerprint_encoder(folder))

    def classify(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Return the probability of every label for each text, in order.

        Results are independent of the other texts.
        """
        rows = [(index, ids) for index, text in enumerate(texts) for ids in self._windows(text)]
        probabilities: list[dict[str, float]] = [dict.fromkeys(self.labels, 0.0) for _ in texts]
        chances = self._run([ids for _, ids in rows])
        for (index, _), row in zip(rows, chances, strict=True):
            for label, chance in zip(self.labels, row, strict=True):
                probabilities[index][label] = max(probabilities[index][label], chance)
        return probabilities

    def find_labels(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the checkpoint's spelling of label names, which are case-insensitive.

        Raises:
            CheckpointError: If a label is missing; lists those there are.
        """
        known = {label.casefold(): label for label in self.labels}
        missing = [name for name in names if name.casefold() not in known]
        if missing:
            raise CheckpointError(
                f"the classifier has no label {', '.join(missing)}",
                code="checkpoint.labels",
                expected=f"of: {', '.join(self.labels)}",
                next="use labels of the classifier",
            )
        return tuple(known[name.casefold()] for name in names)

    @override
    def _read_logits(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.independent else logits.softmax(-1)

    def _windows(self, text: str) -> list[dict[str, list[int]]]:
        with self._lock:
            special = self._tokenizer.num_special_tokens_to_add(pair=False)
            encoding = self._tokenizer(
                text or " ",
                truncation=True,
                max_length=self.max_tokens,
                stride=max((self.max_tokens - special) // 2, 0),
                return_overflowing_tokens=True,
            )
            keys = [key for key in ("input_ids", "token_type_ids") if key in encoding]
            return [
                {key: list(encoding[key][index]) for key in keys}
                for index in range(len(encoding["input_ids"]))
            ]


class NLIModel(_SequenceClassifier):
    """NLI model: probability that a premise entails a hypothesis."""

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        """Open a folder.

        Args:
            folder: Sequence-classification checkpoint of transformers.
            device: cpu, cuda, cuda:1 or mps.

        Raises:
            CheckpointError: If the folder is not such a checkpoint, or has no entailment label.
        """
        super().__init__(folder, device)
        self._label = _find_label(folder, self._model.config.id2label)
        self.fingerprint = digest_json(fingerprint_encoder(folder))

    def entail(self, premises: Sequence[str], hypotheses: Sequence[str]) -> list[float]:
        """Return the probability of entailment for each pair, in order.

        Raises:
            BackendError: If a hypothesis leaves no room for its premise.
        """
        pairs = [self._encode(*pair) for pair in zip(premises, hypotheses, strict=True)]
        return self._run(pairs)

    @override
    def _read_logits(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)[:, self._label]

    def _encode(self, premise: str, hypothesis: str) -> dict[str, list[int]]:
        with self._lock:
            self._check_room(
                hypothesis,
                "the sentence has {} tokens; the model reads {} of both texts together",
                "check by overlap, which has no limit",
            )
            return self._encode_pair(premise, hypothesis, "only_first")


def _find_label(folder: Path, labels: Mapping[int, str]) -> int:
    names = {int(index): str(name).casefold() for index, name in labels.items()}
    indices = [
        index for index, name in names.items() if name in {"entailment", "entail", "entailed"}
    ]
    if len(indices) != 1 or len(names) < 2:
        raise CheckpointError(
            f"{folder} is not an NLI model: its labels are {', '.join(names.values())}",
            code="checkpoint.not-an-entailment-model",
            expected="a sequence-classification checkpoint with a label 'entailment'",
            next="set the labels in config.json (id2label), or check by overlap",
        )
    return indices[0]
