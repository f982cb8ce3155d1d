"""Held-out loss and perplexity of the assistant's tokens, with chunked logits.

Perplexity is ``exp(sum of nats / sum of tokens)`` over all records together, not a mean of means.

Logits ``(B, T, V)`` are never in memory at once: the body gives hidden states, and the head is
applied to a chunk of rows at a time. Steps after the head (soft caps, scales) are read from the
model's config, and the result is checked once against the model's own logits; a model that differs
is run as a whole.

Only the assistant's tokens count: see ``stillroom.models.tokenization.assistant_mask``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from stillroom.evaluate.metrics.bootstrap import Metric, bootstrap
from stillroom.models.tokenization.assistant_mask import EncodedConversation, encode_conversations
from stillroom.records import Record

__all__ = [
    "LogitReader",
    "batch_records",
    "count_rows_per_chunk",
    "encoded_loss",
    "held_out_loss",
    "perplexity",
]


def held_out_loss(
    model: Any,
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_tokens: int = 1024,
    batch_tokens: int = 2048,
    on_truncated: Callable[[int, int], None] | None = None,
) -> list[tuple[float, int]]:
    """Compute the negative log-likelihood of the assistant's tokens, per record.

    Args:
        model: A causal language model from ``stillroom.models.load_causal_lm``; its mode (training
            or evaluation) is restored.
        tokenizer: Its tokenizer, a fast one.
        records: Conversations; only assistant turns count, with their end-of-turn markers.
        max_tokens: Maximum tokens of a record, from its start.
        batch_tokens: Tokens of one forward pass, padding included; bounds memory.
        on_truncated: Called with the index of each truncated record and the tokens dropped.

    Returns:
        One (sum of nats, number of tokens) per record, in order; (0.0, 0) where the assistant has
        no token within ``max_tokens``.

    Raises:
        DataError: If the assistant's part of a conversation cannot be found.
    """
    encoded = encode_conversations(
        tokenizer, records, max_tokens=max_tokens, on_truncated=on_truncated
    )
    return encoded_loss(model, encoded, batch_tokens=batch_tokens)


def encoded_loss(
    model: Any, encoded: Sequence[EncodedConversation], *, batch_tokens: int = 2048
) -> list[tuple[float, int]]:
    """Compute the negative log-likelihood of the marked tokens; see ``held_out_loss``.

    Marked tokens with a preceding token count; ``batch_tokens`` (padding included) bounds
    memory.
    """
    losses = [(0.0, 0)] * len(encoded)
    was_training = bool(model.training)
    try:
        reader = LogitReader(model)
        with torch.inference_mode():
            for batch in batch_records(encoded, batch_tokens):
                hidden = reader.hidden([record for _, record in batch])
                for row, (index, record) in enumerate(batch):
                    losses[index] = _measure_record_loss(reader, hidden, row, record)
    finally:
        model.train(was_training)
    return losses


def perplexity(
    losses: Sequence[tuple[float, int]], *, name: str = "perplexity", seed: int = 0
) -> Metric:
    """Compute perplexity over all records together, its interval by resampling records.

    Records without a token are not counted in ``n``.
    """
    counted = [(nats, tokens) for nats, tokens in losses if tokens]
    mean = bootstrap(
        [nats / tokens for nats, tokens in counted],
        weights=[tokens for _, tokens in counted],
        seed=seed,
        name=name,
        unit="",
    )
    value, low, high = (
        math.inf if nats > _MAX_EXPONENT else math.exp(nats)
        for nats in (mean.value, mean.low, mean.high)
    )
    return Metric(name, value, low, high, mean.n, "", mean.note)


def _measure_record_loss(
    reader: LogitReader, hidden: torch.Tensor, row: int, record: EncodedConversation
) -> tuple[float, int]:
    targets = torch.tensor(record.targets)
    labels = torch.tensor(record.ids)[targets].to(reader.device)
    nats = 0.0
    step = count_rows_per_chunk(reader.vocabulary)
    for begin in range(0, len(targets), step):
        logits = reader.rows(hidden, row, targets[begin : begin + step] - 1)  # (n, V)
        losses = torch.nn.functional.cross_entropy(
            logits, labels[begin : begin + step], reduction="none"
        )
        nats += float(losses.double().sum())
    return nats, len(targets)


_CHUNK_NUMBERS = 2**23
_CHECK_TOKENS = 8
_LOGIT_TOLERANCE = 1e-2
_MAX_EXPONENT = 709.0  # of a finite double; a student that diverged may lose more nats a token


def count_rows_per_chunk(vocabulary: int) -> int:
    """Return the number of rows of logits computed at once: about 32 MB in float32."""
    return max(_CHUNK_NUMBERS // max(vocabulary, 1), 1)


def batch_records(
    records: Sequence[EncodedConversation], batch_tokens: int
) -> Iterator[list[tuple[int, EncodedConversation]]]:
    """Yield batches of (index, record) of similar lengths within the padded token limit.

    Records without a target are left out; one longer than ``batch_tokens`` is its own batch.
    """
    order = sorted(
        (index for index, record in enumerate(records) if record.targets),
        key=lambda index: (len(records[index].ids), index),
    )
    batch: list[tuple[int, EncodedConversation]] = []
    for index in order:
        if batch and (len(batch) + 1) * len(records[index].ids) > batch_tokens:
            yield batch
            batch = []
        batch.append((index, records[index]))
    if batch:
        yield batch


class LogitReader:
    """Reads logits at selected positions from a causal language model.

    ``vocabulary`` is the number of rows of its head, which may be padded past the tokenizer's.
    """

    def __init__(self, model: Any) -> None:
        """Check once how ``model`` computes its logits; it is left in evaluation mode."""
        self.model = model.eval()
        self.device: torch.device = next(model.parameters()).device
        self._body: Any = None
        self._head: Any = None
        with torch.inference_mode():
            ids = torch.arange(_CHECK_TOKENS, device=self.device)[None] % 4
            expected = model(input_ids=ids, use_cache=False).logits.float()  # (1, T, V)
            self.vocabulary = int(expected.shape[-1])
            body, head = _split_body_and_head(model)
            if body is None or head is None:
                return
            hidden = body(input_ids=ids, use_cache=False).last_hidden_state
            computed = self._finish(head(hidden))
            if computed.shape == expected.shape and torch.allclose(
                computed, expected, rtol=_LOGIT_TOLERANCE, atol=_LOGIT_TOLERANCE
            ):
                self._body, self._head = body, head

    @property
    def is_chunked(self) -> bool:
        """Whether the head is applied separately from the body."""
        return self._head is not None

    def hidden(self, batch: Sequence[EncodedConversation]) -> torch.Tensor:
        """Return the input of ``rows``: the batch's hidden states, (B, T, D), or its logits."""
        width = max(len(record.ids) for record in batch)
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for row, record in enumerate(batch):
            ids[row, : len(record.ids)] = torch.tensor(record.ids)
            mask[row, : len(record.ids)] = 1
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
        """Return the input of ``logits`` for some positions of one record."""
        return hidden[row, positions.to(self.device)]

    def logits(self, picked: torch.Tensor) -> torch.Tensor:
        """Return the logits of picked positions, (n, V), float32."""
        return picked.float() if self._head is None else self._finish(self._head(picked))

    def _finish(self, logits: torch.Tensor) -> torch.Tensor:
        """Apply the model's steps after its head, in float32."""
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


def _split_body_and_head(model: Any) -> tuple[Any, Any]:
    """Return body and head of a Hugging Face causal model, or None where it has none."""
    if hasattr(model, "get_base_model"):  # unwrap peft adapters
        model = model.get_base_model()
    prefix = getattr(model, "base_model_prefix", "")
    body = getattr(model, prefix, None) if prefix else None
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return body, head
