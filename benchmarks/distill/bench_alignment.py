"""Aligning texts of 2,000 tokens, against dynamic time warping over the same spans.

The peer is our own, in plain numpy and vectorized along the anti-diagonals: the cost of a pair of
tokens is the bytes between them, 0 where they overlap, so that its cheapest path goes through the
same groups that the alignment finds. That they are the same is checked first.
"""

import pydoc_data.topics
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measuring import measure

from stillroom.distill.cross_tokenizer.alignment import align
from stillroom.distill.cross_tokenizer.spans import TokenSpans, locate_tokens
from stillroom.distill.data.plain_text import open_tokenizer
from stillroom.models.hub import DEFAULT_TEACHER
from stillroom.models.tokenization.token_bytes import read_token_bytes

TOKENS = 2_000


def warp(teacher: TokenSpans, student: TokenSpans) -> np.ndarray:
    """Return the pairs of the cheapest warping path, (P, 2)."""
    before = np.maximum(teacher.starts[:, None], student.starts[None, :])
    after = np.minimum(teacher.ends[:, None], student.ends[None, :])
    cost = np.maximum(before - after + 1, 0).astype(np.float64)
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    for diagonal in range(2, rows + columns + 1):
        i = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        best = np.minimum(np.minimum(total[i - 1, j - 1], total[i - 1, j]), total[i, j - 1])
        total[i, j] = best + cost[i - 1, j - 1]
    path, i, j = [], rows, columns
    while i and j:
        path.append((i - 1, j - 1))
        steps = ((i - 1, j - 1), (i - 1, j), (i, j - 1))
        i, j = min(steps, key=lambda at: total[at])
    return np.asarray(path[::-1])


def groups(path: np.ndarray, teacher: TokenSpans, student: TokenSpans) -> list[tuple[int, ...]]:
    """Return a path's runs, cut where it passes two tokens that end at one byte."""
    ends = teacher.ends[path[:, 0]] == student.ends[path[:, 1]]
    parts = np.split(path, np.flatnonzero(ends)[:-1] + 1)
    return [tuple(int(at) for at in (*part[0], *(part[-1] + 1))) for part in parts]


def words(size: int = 512) -> Any:
    """Return a small byte-level tokenizer, trained here: the student's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(pydoc_data.topics.topics.values(), trainer)
    return tokenizer


def main() -> None:
    sides = [
        (tokenizer, read_token_bytes(tokenizer))
        for tokenizer in (open_tokenizer(DEFAULT_TEACHER), words())
    ]
    text = "\n".join(pydoc_data.topics.topics.values())[:40_000]
    # So long that the side with more tokens has about TOKENS.
    longest = max(len(locate_tokens(*side, text)) for side in sides)
    text = text[: len(text) * TOKENS // longest]
    teacher, student = (locate_tokens(*side, text) for side in sides)
    found = align(teacher, student)
    ours = [
        (a, b, c, d)
        for (a, c), (b, d) in zip(found.teacher.tolist(), found.student.tolist(), strict=True)
    ]
    assert teacher.is_exact
    assert student.is_exact
    assert ours == groups(warp(teacher, student), teacher, student)
    measure(
        "distill/align/vs_dtw",
        lambda: align(teacher, student),
        ("dynamic time warping, numpy", lambda: warp(teacher, student)),
        lambda: (teacher.text.copy(), teacher.ids.copy(), student.ids.copy()),
    )
    measure(
        "distill/align/with_spans_vs_dtw",
        lambda: align(*(locate_tokens(*side, text) for side in sides)),
        ("dynamic time warping, numpy", lambda: warp(teacher, student)),
        lambda: [tokenizer.encode(text) for tokenizer, _ in sides],
    )


if __name__ == "__main__":
    main()
