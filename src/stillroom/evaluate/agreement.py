"""How far one model's next-token beliefs are from another's, on the same conversations.

Both are fed the same tokens (teacher forcing); they must share one tokenizer. Knows nothing of
which of the two is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stillroom.evaluate.logits import LogitReader, batch_records, rows_per_chunk
from stillroom.evaluate.loss import encode_records
from stillroom.evaluate.spans import Encoded
from stillroom.records import Record

__all__ = ["Agreement", "kl_and_agreement"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Means over one record's assistant tokens: both divergences in nats, top-1 agreement.

    ``kl`` is KL(teacher || student), ``reverse_kl`` KL(student || teacher), ``agreement`` the share
    of positions where both think the same token likeliest. All are 0 where ``tokens`` is 0.
    """

    kl: float
    reverse_kl: float
    agreement: float
    tokens: int


def kl_and_agreement(
    student: Any,
    teacher: Any,
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_tokens: int = 1024,
    batch_tokens: int = 2048,
    on_truncated: Callable[[int, int], None] | None = None,
) -> list[Agreement]:
    """KL both ways and top-1 agreement of two models, per record.

    Where one head is padded wider than the other, both are cut to the narrower before the softmax:
    the rows past it stand for no token. A chunk of rows is compared at a time, so that the logits
    of a whole batch never exist.

    Source: Hinton et al. 2015, arXiv:1503.02531 (teacher to student); Gu et al. 2023,
    arXiv:2306.08543 (the reverse).

    Args:
        student: A causal language model, left in the mode it came in.
        teacher: Another with the same tokenizer, likewise.
        tokenizer: The tokenizer of both, a fast one.
        records: Conversations; only assistant tokens count.
        max_tokens: Tokens of a record that are read, from its start.
        batch_tokens: Tokens of one forward pass, padding included.
        on_truncated: Hears the index of each record that was cut and how many tokens fell off.

    Returns:
        One Agreement per record, in order.

    Raises:
        DataError: If the assistant's part of a conversation cannot be found.
    """
    encoded = encode_records(tokenizer, records, max_tokens=max_tokens, on_truncated=on_truncated)
    found = [Agreement(0.0, 0.0, 0.0, 0)] * len(encoded)
    modes = [bool(student.training), bool(teacher.training)]
    try:
        readers = LogitReader(student), LogitReader(teacher)
        with torch.inference_mode():
            for batch in batch_records(encoded, batch_tokens):
                hidden = [reader.hidden([record for _, record in batch]) for reader in readers]
                for row, (at, record) in enumerate(batch):
                    found[at] = _compare(readers, hidden, row, record)
    finally:
        student.train(modes[0])
        teacher.train(modes[1])
    return found


def _compare(
    readers: tuple[LogitReader, LogitReader],
    hidden: Sequence[torch.Tensor],
    row: int,
    record: Encoded,
) -> Agreement:
    """Compare student (first) and teacher (second) on one record."""
    positions = torch.tensor(record.targets) - 1
    width = min(reader.vocabulary for reader in readers)
    sums = torch.zeros(3, dtype=torch.float64)
    step = rows_per_chunk(2 * width)
    for begin in range(0, len(positions), step):
        student, teacher = (
            torch.log_softmax(
                reader.rows(state, row, positions[begin : begin + step])[:, :width], -1
            )
            for reader, state in zip(readers, hidden, strict=True)
        )  # (n, V)
        teacher = teacher.to(student.device)
        gap = teacher - student
        sums[0] += (teacher.exp() * gap).sum(-1).double().sum().cpu()
        sums[1] -= (student.exp() * gap).sum(-1).double().sum().cpu()
        sums[2] += (student.argmax(-1) == teacher.argmax(-1)).sum().cpu()
    kl, reverse_kl, agreement = (sums / len(positions)).tolist()
    return Agreement(max(kl, 0.0), max(reverse_kl, 0.0), agreement, len(positions))
