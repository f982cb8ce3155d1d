"""Diversity and repetition of texts: distinct-n, self-BLEU, Vendi score, coverage.

All figures depend on the amount of text, so samples of one size are compared: whole texts drawn
without replacement until a budget of words is reached, repeatedly; the value is the mean of the
draws and the interval their 2.5 % and 97.5 % points. (Draws from a small set share texts: if the
budget is near the size of the set, the interval is too narrow, and ``note`` says so.)

- ``distinct_n``: share of distinct word n-grams (Li et al. 2016, arXiv:1510.03055).
- ``self_bleu``: BLEU-4 of each text against all the others (Zhu et al. 2018, arXiv:1802.01886),
  with the closest reference length, and 1 added to both sides of each precision above unigrams.
- ``compression_ratio``: bytes over bytes compressed by zstd with a window over all of them, in the
  order drawn (Shaib et al. 2024, arXiv:2403.00553, there by gzip, whose window is 32 kB).
- ``repeated_ngram_share``: share of 4-grams that occur in another text of the draw too.
- ``vendi_score``: exp of the entropy of the eigenvalues of X X^T / n for L2-normalized rows, at
  most the number of texts (Friedman and Dieng 2023, arXiv:2210.02410).
- ``mean_cosine_distance``: 1 minus the mean cosine of two different texts.
- ``tail``: frequency of the reference's rare words (the least frequent ones of one half of it) over
  their frequency in the other half: 1 for a tail as heavy as in the reference, 0 without a tail.
  The tail is lost first in model collapse (Shumailov et al. 2024, doi:10.1038/s41586-024-07566-y).
- ``nearest_neighbor_coverage``: share of the reference's vectors with one of the texts' within the
  distance of their own 5th neighbor (Naeem et al. 2020, arXiv:2002.09797).

Exposure bias: in teacher forcing a model reads the true text so far; in use it reads its own. It is
measured as the excess of the accumulated error.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import zstandard

from stillroom.evaluate.metrics.bootstrap import Metric, bootstrap_statistic
from stillroom.evaluate.metrics.ngrams import NGramSample, NGramTable, TokenizedTexts
from stillroom.text.unicode import split_words

__all__ = [
    "Words",
    "compression_ratio",
    "distinct_n",
    "distinct_ngram_share",
    "excess_accumulated_error",
    "find_rare_words",
    "mean_cosine_distance",
    "measure_diversity",
    "nearest_neighbor_coverage",
    "rare_word_share",
    "repeated_ngram_share",
    "self_bleu",
    "vendi_score",
]


Words = Sequence[str]
Vectors = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
_DRAWS = 20
_TAIL = 0.1
_NEIGHBOR_RANK = 5
_ORDER = 4
_CROWDED_SHARE = 0.7


def measure_diversity(
    texts: Sequence[str],
    *,
    budget: int,
    tail: frozenset[str] = frozenset(),
    tail_mass: float = 0.0,
    vectors: Vectors | None = None,
    seed: int = 0,
    draws: int = _DRAWS,
) -> dict[str, Metric]:
    """Return the figures of some texts at a budget of words, by name.

    Args:
        texts: Texts to measure.
        budget: Words per draw.
        tail: Rare words of the reference, from ``find_rare_words``; without them no ``tail``.
        tail_mass: Their share of the reference.
        vectors: One vector per text, (N, D), L2-normalized; without them there is no
            ``vendi_score`` and no ``mean_cosine_distance``.
        seed: Random seed of the draws.
        draws: Number of draws.
    """
    tokenized = TokenizedTexts.of(map(split_words, texts))
    figures: dict[str, Callable[[NGramSample], float]] = {
        "distinct_1": lambda sample: distinct_n(sample, 1),
        "distinct_3": lambda sample: distinct_n(sample, 3),
        "self_bleu": self_bleu,
        "compression": lambda sample: compression_ratio([texts[index] for index in sample.drawn]),
        "repeated": lambda sample: repeated_ngram_share(sample, 4),
    }
    if tail and tail_mass:
        is_rare = _mark_words(tokenized, tail)
        figures["tail"] = lambda sample: _mean_share(is_rare[sample.words()]) / tail_mass
    if vectors is not None:
        rows = vectors
        figures["vendi"] = lambda sample: vendi_score(rows[sample.drawn])
        figures["spread"] = lambda sample: mean_cosine_distance(rows[sample.drawn])
    drawn = list(_draw_samples([len(words) for words in tokenized.texts], budget, seed, draws))
    values = _compute_figures(figures, NGramTable(tokenized, _ORDER), drawn)
    is_crowded = budget > _CROWDED_SHARE * tokenized.count()
    note = "drawn from little more text than the budget" if is_crowded else ""
    return {
        name: Metric(
            name,
            float(np.mean(results)),
            float(np.quantile(results, 0.025)),
            float(np.quantile(results, 0.975)),
            len(texts),
            note=note,
        )
        for name, results in values.items()
        if results
    }


def _compute_figures(
    figures: dict[str, Callable[[NGramSample], float]],
    grams: NGramTable,
    draws: Sequence[list[int]],
) -> dict[str, list[float]]:
    """Return the figures of every draw; compression, the slowest, runs in parallel."""
    samples = [NGramSample(grams, drawn) for drawn in draws]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, len(samples)) or 1) as pool:
        compressed = pool.map(figures["compression"], samples)
        return {
            name: list(compressed if name == "compression" else map(figure, samples))
            for name, figure in figures.items()
        }


def distinct_n(sample: NGramSample, n: int) -> float:
    """Return the share of distinct word n-grams; 0 without n-grams."""
    counts = sample.counts(n)
    return len(counts.starts) / counts.total if len(counts.starts) else 0.0


def self_bleu(sample: NGramSample) -> float:
    """Return the mean BLEU-4 of each text against all the others, 0 to 1; low is diverse."""
    lengths = sample.lengths
    if len(lengths) < 2:
        return 0.0
    logs = np.zeros(len(lengths))
    for n in range(1, _ORDER + 1):
        counts = sample.counts(n)
        clipped = np.bincount(
            counts.text_index,
            np.minimum(counts.occurrences, counts.max_elsewhere()),
            minlength=len(lengths),
        )
        smooth = int(n > 1)
        with np.errstate(divide="ignore"):  # log(0) = -inf is intended where nothing is shared
            logs += np.log(
                (clipped + smooth) / np.maximum(np.maximum(lengths - n + 1, 0) + smooth, 1)
            )
    # The nearest other length of each of two or more lengths; of two, the shorter.
    order = np.argsort(lengths, kind="stable")
    ranked = lengths[order]
    below, above = np.roll(ranked, 1), np.roll(ranked, -1)
    far = 2 * int(ranked[-1]) + 1
    down, up = ranked - below, above - ranked
    down[0] = up[-1] = far
    closest: Ints = np.empty_like(lengths)
    closest[order] = np.where(down <= up, below, above)
    brevity = np.minimum(0.0, 1 - closest / lengths)
    return float(np.mean(np.exp(brevity + logs / _ORDER)))


def compression_ratio(texts: Sequence[str]) -> float:
    """Return uncompressed over compressed bytes of the texts together; high is repetitive."""
    raw = "\n".join(texts).encode("utf-8", "surrogatepass")
    if not raw:
        return 0.0
    window = max(10, min(27, len(raw).bit_length()))
    settings = zstandard.ZstdCompressionParameters.from_level(19, window_log=window)
    return len(raw) / len(zstandard.ZstdCompressor(compression_params=settings).compress(raw))


def repeated_ngram_share(sample: NGramSample, n: int) -> float:
    """Return the share of n-grams that occur in another of the texts too."""
    counts = sample.counts(n)
    if not len(counts.starts):
        return 0.0
    return int(counts.occurrences[counts.count_texts()[counts.group] > 1].sum()) / counts.total


def vendi_score(vectors: Vectors) -> float:
    """Return the Vendi score of L2-normalized vectors, (N, D): the effective number of texts.

    The eigenvalues are those of the smaller of X X^T and X^T X.
    """
    if not len(vectors):
        return 0.0
    rows = vectors.astype(np.float64)
    kernel = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    values = np.clip(np.linalg.eigvalsh(kernel / len(rows)), 0.0, None)
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))


def mean_cosine_distance(vectors: Vectors) -> float:
    """Return 1 minus the mean cosine of two different rows of L2-normalized vectors, (N, D)."""
    count = len(vectors)
    if count < 2:
        return 0.0
    rows = vectors.astype(np.float64)
    total = float((rows.sum(0) ** 2).sum() - (rows**2).sum())
    return 1.0 - total / (count * (count - 1))


def find_rare_words(texts: Sequence[str]) -> tuple[frozenset[str], float]:
    """Return rare words of a reference, and their share of more text of its kind.

    The words are the least frequent ones of every other text that together make up a tenth of it;
    ties are broken by hash: in alphabetical order a small reference's tail would be its numbers
    and a few letters. Their share is measured on the rest, since a word seen once is mostly not
    seen again.
    """
    tokenized = TokenizedTexts.of(map(split_words, texts))
    counts = np.bincount(tokenized[::2].flat(), minlength=len(tokenized.vocabulary))
    words = tokenized.vocabulary.words()
    max_total, total = _TAIL * int(counts.sum()), 0
    tail: list[str] = []
    for count in np.unique(counts[counts > 0]).tolist():
        rare = [words[index] for index in np.flatnonzero(counts == count).tolist()]
        if is_last := total + count * len(rare) > max_total:
            rare.sort(key=_hash_order)
        for word in rare:
            if total + count > max_total:
                break
            tail.append(word)
            total += count
        if is_last:
            break
    return frozenset(tail), _mean_share(_mark_words(tokenized, tail)[tokenized[1::2].flat()])


def _mark_words(tokenized: TokenizedTexts, selected: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Return a mask of words over the vocabulary's numbers."""
    is_chosen = np.zeros(len(tokenized.vocabulary), dtype=bool)
    is_chosen[tokenized.vocabulary.find(selected)] = True
    return is_chosen


def _mean_share(is_found: npt.NDArray[np.bool_]) -> float:
    return int(is_found.sum()) / len(is_found) if len(is_found) else 0.0


def _hash_order(word: str) -> tuple[int, str]:
    """Return a deterministic sort key that is unrelated to the word."""
    return zlib.crc32(word.encode("utf-8", "surrogatepass")), word


def rare_word_share(texts: Sequence[Words], tail: frozenset[str]) -> float:
    """Return the share of the texts' words that are in the tail."""
    total = sum(map(len, texts))
    count = sum(sum(map(tail.__contains__, text)) for text in texts)
    return count / total if total else 0.0


def nearest_neighbor_coverage(vectors: Vectors, reference: Vectors) -> npt.NDArray[np.bool_]:
    """Return which of the reference's vectors have a near neighbor among the others, (M,).

    Their share is the coverage. Near means within the distance of the reference vector's own
    fifth neighbor in the reference.

    Args:
        vectors: (N, D), L2-normalized.
        reference: (M, D), L2-normalized; M above 5.
    """
    if not len(vectors) or len(reference) <= _NEIGHBOR_RANK:
        return np.zeros(len(reference), dtype=bool)
    within = reference @ reference.T
    np.fill_diagonal(within, -np.inf)
    least = -np.partition(-within, _NEIGHBOR_RANK - 1, axis=1)[:, _NEIGHBOR_RANK - 1]
    nearest = (reference @ vectors.T).max(axis=1)
    covered: npt.NDArray[np.bool_] = nearest >= least - 1e-6
    return covered


def _draw_samples(sizes: Sequence[int], budget: int, seed: int, draws: int) -> Iterator[list[int]]:
    """Yield draws of whole texts, in order of drawing, that reach the budget (or hold all)."""
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        drawn, held = [], 0
        for index in rng.permutation(len(sizes)).tolist():
            if held >= budget:
                break
            drawn.append(index)
            held += sizes[index]
        yield drawn


_FloatArray = npt.NDArray[np.float64]


def distinct_ngram_share(ids: Sequence[int], n: int) -> float:
    """Return the share of a text's n-grams that are distinct; 1 without n-grams.

    Source: Li et al. 2016, arXiv:1510.03055 (distinct-n); here within one completion, where low
    means repetitive.
    """
    grams = [tuple(ids[index : index + n]) for index in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def excess_accumulated_error(
    free: Sequence[_FloatArray], forced: Sequence[_FloatArray], *, name: str = ""
) -> Metric:
    """Return the excess of the error accumulated on a model's own text over the teacher's text.

    0 means that errors do not compound; 0.5 that they add half as much again. At each depth the
    mean is over the records whose text is that long, and only depths reached by both count.

    Source: Arora et al. 2022, arXiv:2204.01171, section 3.2 (ExAccErr, here a share, not per cent);
    the teacher is the oracle, and its error is the whole KL(teacher || student) at each step.

    Args:
        free: KL(teacher || student) at each depth of the student's own sampled text, by record.
        forced: The same of text sampled by the teacher from the same prompts.
        name: The metric's name.
    """
    depth = max([len(row) for row in [*free, *forced]], default=0)
    sides = [_pad_rows(rows, depth) for rows in (free, forced)]

    def excess(counts: _FloatArray) -> _FloatArray:
        means, alive = [], np.ones((len(counts), depth), dtype=bool)
        for values, present in sides:
            number = counts @ present
            means.append((counts @ values) / np.where(number > 0, number, 1))
            alive &= number > 0
        return np.asarray((means[0] * alive).sum(1) / (means[1] * alive).sum(1) - 1)

    return bootstrap_statistic(excess, len(free), name=name)


def _pad_rows(rows: Sequence[_FloatArray], depth: int) -> tuple[_FloatArray, _FloatArray]:
    """Return values and presence, (records, depth) each."""
    values, present = np.zeros((len(rows), depth)), np.zeros((len(rows), depth))
    for index, row in enumerate(rows):
        values[index, : len(row)], present[index, : len(row)] = row, 1
    return values, present
