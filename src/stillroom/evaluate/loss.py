"""Held-out loss: the nats a model spends on what the assistant said.

Knows tokens and probabilities only, not whether an answer is right. Perplexity is
``exp(sum of nats / sum of tokens)``, over all records together, not a mean of means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from stillroom.evaluate.logits import LogitReader, batch_records, rows_per_chunk
from stillroom.evaluate.metrics import Metric, bootstrap
from stillroom.evaluate.spans import Encoded, encode_record
from stillroom.records import Record

__all__ = ["encode_records", "encoded_loss", "held_out_loss", "perplexity"]


def encode_records(
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_tokens: int,
    on_truncated: Callable[[int, int], None] | None = None,
) -> list[Encoded]:
    """Return the records as tokens; ``on_truncated(index, tokens cut)`` hears of each cut.

    Raises:
        DataError: If the assistant's part of a conversation cannot be found.
    """
    encoded = []
    for at, record in enumerate(records):
        encoded.append(encode_record(tokenizer, record, max_tokens=max_tokens))
        if encoded[-1].truncated and on_truncated:
            on_truncated(at, encoded[-1].truncated)
    return encoded


def held_out_loss(
    model: Any,
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_tokens: int = 1024,
    batch_tokens: int = 2048,
    on_truncated: Callable[[int, int], None] | None = None,
) -> list[tuple[float, int]]:
    """Negative log-likelihood of the assistant's tokens, per record.

    Args:
        model: A causal language model, as ``stillroom.models.load_causal_lm`` gives it; it is left
            in the mode (training or evaluation) it came in.
        tokenizer: Its tokenizer, a fast one.
        records: Conversations; only assistant turns count, with their end-of-turn markers.
        max_tokens: Tokens of a record that are read, from its start.
        batch_tokens: Tokens of one forward pass, padding included; bounds memory.
        on_truncated: Hears the index of each record that was cut and how many tokens fell off.

    Returns:
        One (sum of nats, number of tokens) per record, in order; (0.0, 0) where the assistant has
        no token within ``max_tokens``.

    Raises:
        DataError: If the assistant's part of a conversation cannot be found.
    """
    encoded = encode_records(tokenizer, records, max_tokens=max_tokens, on_truncated=on_truncated)
    return encoded_loss(model, encoded, batch_tokens=batch_tokens)


def encoded_loss(
    model: Any, encoded: Sequence[Encoded], *, batch_tokens: int = 2048
) -> list[tuple[float, int]]:
    """Negative log-likelihood of the marked tokens, per record; as ``held_out_loss`` gives it.

    Args:
        model: A causal language model; it is left in the mode it came in.
        encoded: Records as tokens; the marked ones that have a token before them count.
        batch_tokens: Tokens of one forward pass, padding included; bounds memory.
    """
    losses = [(0.0, 0)] * len(encoded)
    was_training = bool(model.training)
    try:
        reader = LogitReader(model)
        with torch.inference_mode():
            for batch in batch_records(encoded, batch_tokens):
                hidden = reader.hidden([record for _, record in batch])
                for row, (at, record) in enumerate(batch):
                    losses[at] = _record_loss(reader, hidden, row, record)
    finally:
        model.train(was_training)
    return losses


def perplexity(
    losses: Sequence[tuple[float, int]], *, name: str = "perplexity", seed: int = 0
) -> Metric:
    """Perplexity over all records together, its interval by resampling records.

    Records without a token say nothing and are not counted in ``n``.
    """
    counted = [(nats, tokens) for nats, tokens in losses if tokens]
    mean = bootstrap(
        [nats / tokens for nats, tokens in counted],
        weights=[tokens for _, tokens in counted],
        seed=seed,
        name=name,
        unit="",
    )
    value, low, high = (math.exp(nats) for nats in (mean.value, mean.low, mean.high))
    return Metric(name, value, low, high, mean.n, "", mean.note)


def _record_loss(
    reader: LogitReader, hidden: torch.Tensor, row: int, record: Encoded
) -> tuple[float, int]:
    targets = torch.tensor(record.targets)
    labels = torch.tensor(record.ids)[targets].to(reader.device)
    nats = 0.0
    step = rows_per_chunk(reader.vocabulary)
    for begin in range(0, len(targets), step):
        logits = reader.rows(hidden, row, targets[begin : begin + step] - 1)  # (n, V)
        losses = torch.nn.functional.cross_entropy(
            logits, labels[begin : begin + step], reduction="none"
        )
        nats += float(losses.double().sum())
    return nats, len(targets)
