"""Next-token log-probabilities of chosen positions, without the logits of all the others.

``(B, T, V)`` never exists: the body gives hidden states, the head is put on a chunk of rows at a
time. What a model does after its head (soft caps, scales) is read from its config, and the whole
short cut is checked against the model's own logits once; a model that does otherwise is run whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from stillroom.evaluate.spans import Encoded

__all__ = ["LogitReader", "batch_records", "rows_per_chunk"]

_CHUNK_NUMBERS = 2**23
_CHECK_TOKENS = 8
_TOLERANCE = 1e-2


def rows_per_chunk(vocabulary: int) -> int:
    """Return how many rows of logits are made at once: about 32 MB in float32."""
    return max(_CHUNK_NUMBERS // max(vocabulary, 1), 1)


def batch_records(
    records: Sequence[Encoded], batch_tokens: int
) -> Iterator[list[tuple[int, Encoded]]]:
    """Yield batches of (index, record), similar lengths together, padded size within bounds.

    Records without a target are left out; one that is longer than ``batch_tokens`` comes alone.
    """
    order = sorted(
        (at for at, record in enumerate(records) if record.targets),
        key=lambda at: (len(records[at].ids), at),
    )
    batch: list[tuple[int, Encoded]] = []
    for at in order:
        if batch and (len(batch) + 1) * len(records[at].ids) > batch_tokens:
            yield batch
            batch = []
        batch.append((at, records[at]))
    if batch:
        yield batch


class LogitReader:
    """Reads logits of chosen positions from a causal language model.

    ``vocabulary`` is the number of rows of its head, which may be padded past the tokenizer's.
    """

    def __init__(self, model: Any) -> None:
        """Check once how ``model`` makes its logits; it is left in evaluation mode."""
        self.model = model.eval()
        self.device: torch.device = next(model.parameters()).device
        self._body: Any = None
        self._head: Any = None
        with torch.inference_mode():
            ids = torch.arange(_CHECK_TOKENS, device=self.device)[None] % 4
            whole = model(input_ids=ids, use_cache=False).logits.float()  # (1, T, V)
            self.vocabulary = int(whole.shape[-1])
            body, head = _find_body(model)
            if body is None or head is None:
                return
            hidden = body(input_ids=ids, use_cache=False).last_hidden_state
            ours = self._finish(head(hidden))
            if ours.shape == whole.shape and torch.allclose(
                ours, whole, rtol=_TOLERANCE, atol=_TOLERANCE
            ):
                self._body, self._head = body, head

    @property
    def is_chunked(self) -> bool:
        """Whether the head is put on rows apart from the body."""
        return self._head is not None

    def hidden(self, batch: Sequence[Encoded]) -> torch.Tensor:
        """Return what ``rows`` reads from: the batch's hidden states, (B, T, D), or its logits."""
        width = max(len(record.ids) for record in batch)
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for at, record in enumerate(batch):
            ids[at, : len(record.ids)] = torch.tensor(record.ids)
            mask[at, : len(record.ids)] = 1
        inputs = {
            "input_ids": ids.to(self.device),
            "attention_mask": mask.to(self.device),
            "use_cache": False,
        }
        if self._body is None:
            return self.model(**inputs).logits  # type: ignore[no-any-return]  # (B, T, V)
        return self._body(**inputs).last_hidden_state  # type: ignore[no-any-return]

    def rows(self, hidden: torch.Tensor, row: int, positions: torch.Tensor) -> torch.Tensor:
        """Return the logits of some positions of one record, (n, V), float32."""
        return self.logits(self.pick(hidden, row, positions))

    def pick(self, hidden: torch.Tensor, row: int, positions: torch.Tensor) -> torch.Tensor:
        """Return what ``logits`` takes for some positions of one record."""
        return hidden[row, positions.to(self.device)]

    def logits(self, picked: torch.Tensor) -> torch.Tensor:
        """Return the logits of picked positions, (n, V), float32."""
        return picked.float() if self._head is None else self._finish(self._head(picked))

    def _finish(self, logits: torch.Tensor) -> torch.Tensor:
        """Do what the model does after its head, in float32."""
        config = self.model.config
        logits = logits.float()
        for name, power in (("logit_scale", 1), ("logits_scaling", -1), ("lm_head_multiplier", 1)):
            scale = getattr(config, name, None)
            if scale:
                logits = logits * float(scale) ** power
        cap = getattr(config, "final_logit_softcapping", None)
        if cap:
            logits = torch.tanh(logits / cap) * cap
        return logits


def _find_body(model: Any) -> tuple[Any, Any]:
    """Return the body and the head of a Hugging Face causal model, or None where it has none."""
    if hasattr(model, "get_base_model"):  # adapters of peft wrap the model once more
        model = model.get_base_model()
    prefix = getattr(model, "base_model_prefix", "")
    body = getattr(model, prefix, None) if prefix else None
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return body, head
