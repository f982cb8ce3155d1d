"""Training loss of a sentence reader (``compute_loss``): LoRA of an encoder, and linear heads.

The loss of a question is the negative log of the probability that falls on the sentences that
answer it (on no answer, if none does), in one softmax over the sentences of all its passages. To it
is added, with half the weight, the loss of the first and last token of the short answer, in one
softmax each over the tokens of all passages. Without the latter an encoder that was made for single
texts does not learn to compare question and passage from a few thousand questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.rag.answer_selection.encoding import EncodedPassage, PairTokenizer, encode_passages
from stillroom.rag.answer_selection.examples import ReaderExample
from stillroom.rag.answer_selection.low_rank_encoder import (
    LowRankEncoder,
    PairBatch,
    pad_pairs,
    to_tensors,
)
from stillroom.train.data import RecordSource
from stillroom.train.loop import Loss

__all__ = ["ReaderBatch", "ReaderNetwork", "build_source", "compute_loss"]

_SPAN_WEIGHT = 0.5


@dataclass(frozen=True, eq=False, kw_only=True)
class ReaderBatch(PairBatch):
    """Windows of several questions; the records are the questions.

    Args:
        means: Averages over the tokens of a sentence, (W, S, T); zeros for padding.
        answers: Whether a sentence answers, (W, S).
        spans: First and last position of the short answer, (W, 2); -1 where there is none.
        questions: Number of the question of each window, (W,).
    """

    means: Tensor
    answers: Tensor
    spans: Tensor
    questions: Tensor


class ReaderNetwork(LowRankEncoder):
    """An encoder with low-rank updates, and heads for sentences, spans, and no answer."""

    heads: ClassVar[Mapping[str, int]] = {"sentence": 1, "no_answer": 1, "ends": 2}
    sentence: nn.Linear
    no_answer: nn.Linear
    ends: nn.Linear

    def forward(self, batch: ReaderBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits: sentences (W, S), no answer (W,), first and last token (W, T, 2)."""
        states = self.encode(batch.ids, batch.segments, batch.mask, batch.shared)
        with torch.autocast(states.device.type, enabled=False):
            sentences = self.sentence(torch.bmm(batch.means, states)).squeeze(-1)
            return sentences, self.no_answer(states[:, 0]).squeeze(-1), self.ends(states)


def compute_loss(model: nn.Module, batch: ReaderBatch) -> Loss:
    """Return the summed loss of a batch, and the number of questions whose best choice is right."""
    sentences, no_answer, ends = model(batch)
    is_read = (batch.mask * batch.segments).bool()
    is_sentence = batch.means.sum(-1) > 0
    total, right = sentences.new_zeros(()), 0.0
    for number in range(batch.valid):
        rows = batch.questions == number
        here = is_sentence[rows]
        logits = torch.cat([sentences[rows][here], no_answer[rows].mean()[None]])
        answers = batch.answers[rows][here]
        targets = torch.cat([answers, ~answers.any()[None]])
        total = total + torch.logsumexp(logits, 0) - torch.logsumexp(logits[targets], 0)
        right += float(targets[logits.argmax()])
        found = (rows & (batch.spans[:, 0] >= 0)).nonzero().flatten()
        if len(found):
            read = ends[rows][is_read[rows]]  # (tokens, 2)
            first, last = batch.spans[found].T
            correct = (ends[found, first, 0], ends[found, last, 1])
            for column, logit in enumerate(correct):
                missed = torch.logsumexp(read[:, column], 0) - torch.logsumexp(logit, 0)
                total = total + _SPAN_WEIGHT / 2 * missed
    return Loss(total, {"right": right})


def build_source(
    examples: Sequence[ReaderExample],
    tokenizer: PairTokenizer,
    *,
    special: tuple[int, int],
    max_tokens: int,
    batch_size: int,
    micro_tokens: int,
    seed: int,
    device: torch.device,
) -> RecordSource[ReaderExample, ReaderBatch]:
    """Return the batches of examples, encoded when they are read."""

    def encode(example: ReaderExample) -> list[EncodedPassage]:
        passages = [(part.title, part.text, part.sentences) for part in example.passages]
        return encode_passages(
            tokenizer, example.question, passages, special=special, max_tokens=max_tokens
        )

    lengths = [sum(len(window.ids) for window in encode(example)) for example in examples]
    kept = [example for example, length in zip(examples, lengths, strict=True) if length]
    return RecordSource(
        kept,
        ids=[example.id for example in kept],
        lengths=[length for length in lengths if length],
        valid=[1] * len(kept),
        load=lambda group: _collate([(example, encode(example)) for example in group], device),
        batch_size=min(batch_size, len(kept)) or 1,
        micro_tokens=micro_tokens,
        seed=seed,
    )


def _collate(
    group: Sequence[tuple[ReaderExample, list[EncodedPassage]]], device: torch.device
) -> ReaderBatch:
    rows = [
        (number, example, window)
        for number, (example, windows) in enumerate(group)
        for window in windows
    ]
    pairs = pad_pairs([window for _, _, window in rows], device)
    width = pairs["ids"].shape[1]
    depth = max(len(window.sentences) for _, _, window in rows)
    means = np.zeros((len(rows), depth, width), dtype=np.float32)
    answers = np.zeros((len(rows), depth), dtype=bool)
    spans = np.full((len(rows), 2), -1, dtype=np.int64)
    for row, (_, example, window) in enumerate(rows):
        spans[row] = _find_span(window, example.passages[window.passage].short)
        labels: Mapping[tuple[int, int], bool] = dict(
            zip(
                example.passages[window.passage].sentences,
                example.passages[window.passage].answers,
                strict=True,
            )
        )
        for place, (span, (first, last)) in enumerate(
            zip(window.sentences, window.tokens, strict=True)
        ):
            if last > first:
                means[row, place, first:last] = 1 / (last - first)
                answers[row, place] = labels[span]
    questions = np.array([number for number, _, _ in rows])

    arrays = {"means": means, "answers": answers, "spans": spans, "questions": questions}
    return ReaderBatch(
        **pairs,
        **to_tensors(arrays, device),
        record_ids=tuple(example.id for example, _ in group),
    )


def _find_span(window: EncodedPassage, short: tuple[int, int] | None) -> tuple[int, int]:
    """Return the first and last position of a short answer in a window; -1 where it is not."""
    if short is None:
        return -1, -1
    inside = [
        position
        for position, (start, end) in enumerate(window.offsets)
        if start < end and start < short[1] and end > short[0]
    ]
    return (inside[0], inside[-1]) if inside else (-1, -1)
