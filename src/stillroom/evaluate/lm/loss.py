"""Held-out loss and perplexity of the assistant's tokens, with chunked logits.

Perplexity is ``exp(sum of nats / sum of tokens)`` over all records together, not a mean of means.

Logits ``(B, T, V)`` are never in memory at once: the body gives hidden states, and the head is
applied to a chunk of rows at a time. Steps after the head (soft caps, scales) are read from the
model's config, and the result is checked once against the model's own logits; a model that differs
is run as a whole.

Prompts are masked (completion-only loss; no position of them is a label, the -100 of transformers):
a chat template is rendered twice, before and after each assistant turn; the difference is the
assistant's text. Token offsets then give the tokens inside. No model is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stillroom.errors import DataError
from stillroom.evaluate.metrics.bootstrap import Metric, bootstrap
from stillroom.models import render_chat
from stillroom.models.tokenization.chat_template import escape_control_tokens, list_control_tokens
from stillroom.records import Message, Record

__all__ = [
    "CharacterSpan",
    "EncodedConversation",
    "LogitReader",
    "batch_records",
    "count_rows_per_chunk",
    "encode_record",
    "encode_records",
    "encoded_loss",
    "find_assistant_spans",
    "held_out_loss",
    "perplexity",
]


def encode_records(
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_tokens: int,
    on_truncated: Callable[[int, int], None] | None = None,
) -> list[EncodedConversation]:
    """Tokenize records; ``on_truncated(index, tokens cut)`` is called for each truncation.

    Raises:
        DataError: If the assistant's part of a conversation cannot be found.
    """
    encoded = []
    for index, record in enumerate(records):
        encoded.append(encode_record(tokenizer, record, max_tokens=max_tokens))
        if encoded[-1].truncated and on_truncated:
            on_truncated(index, encoded[-1].truncated)
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
    encoded = encode_records(tokenizer, records, max_tokens=max_tokens, on_truncated=on_truncated)
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
    value, low, high = (math.exp(nats) for nats in (mean.value, mean.low, mean.high))
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


CharacterSpan = tuple[int, int]


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """A tokenized record: ids, mask of the assistant's tokens, number of tokens cut off."""

    ids: tuple[int, ...]
    is_assistant: tuple[bool, ...]
    truncated: int = 0

    @property
    def targets(self) -> list[int]:
        """Positions of assistant tokens that have a preceding token to be predicted from."""
        return [index for index, counts in enumerate(self.is_assistant) if counts and index > 0]


def find_assistant_spans(
    tokenizer: Any, messages: Sequence[Message]
) -> tuple[str, list[CharacterSpan]]:
    """Return the rendered conversation and the character spans of the assistant.

    A span holds the content and the end-of-turn marker, not the white space after it: the model
    must learn to stop, but not to write the template's line break. A lone assistant message is
    plain text: it is not rendered and counts as a whole.

    Raises:
        DataError: If the template rewrites earlier turns, so that spans cannot be found.
    """
    if len(messages) == 1 and messages[0].role == "assistant":
        plain = escape_control_tokens(messages[0].content, list_control_tokens(tokenizer))
        return plain, [(0, len(plain))]
    text = render_chat(tokenizer, messages, add_generation_prompt=False)
    spans = []
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = (
            render_chat(tokenizer, messages[:index], add_generation_prompt=True) if index else ""
        )
        after = render_chat(tokenizer, messages[: index + 1], add_generation_prompt=False)
        is_written = len(after) > len(before) or not message.content
        if is_written and after.startswith(before) and text.startswith(after):
            end = max(len(after.rstrip()), len(before) + len(message.content))
            spans.append((len(before), min(end, len(after))))
            continue
        spans.append(_find_content(text, message.content, spans[-1][1] if spans else 0))
    return text, spans


def encode_record(tokenizer: Any, record: Record, *, max_tokens: int) -> EncodedConversation:
    """Tokenize a record and mark the assistant's tokens; truncate after ``max_tokens``.

    ``max_tokens`` counts from the start.

    Raises:
        DataError: If the assistant's part of the conversation cannot be found.
    """
    text, spans = find_assistant_spans(tokenizer, record.messages)
    is_plain = [message.role for message in record.messages] == ["assistant"]
    encoded = tokenizer(text, add_special_tokens=is_plain, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    marks = [
        end > start and any(first <= start < last for first, last in spans)
        for start, end in offsets
    ]
    return EncodedConversation(
        tuple(ids[:max_tokens]), tuple(marks[:max_tokens]), max(len(ids) - max_tokens, 0)
    )


def _find_content(text: str, content: str, begin: int) -> CharacterSpan:
    start = text.find(content.strip(), begin)
    if start < 0 or not content.strip():
        raise DataError(
            f"the chat template hides the assistant's turn {content!r:.60}",
            code="data.hidden-turn",
            expected="a template that writes out every assistant message",
            next="use records of one turn each, or a checkpoint with a plain chat template",
        )
    return start, start + len(content.strip())
