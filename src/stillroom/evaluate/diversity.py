"""How varied texts are, and how much of a reference's variety is still in them.

Every figure depends on how much text it is taken of, so samples of one size are compared: whole
texts drawn without replacement until a budget of words is reached, many times over; the value is
the mean of the draws and the interval their 2.5 % and 97.5 % points. (Draws of one small set share
texts: where the budget is near the size of the set, the interval is too narrow, and ``note`` says
so.)

- ``distinct_n``: distinct word n-grams over all of them (Li et al. 2016, arXiv:1510.03055).
- ``self_bleu``: BLEU-4 of each text against all the others (Zhu et al. 2018, arXiv:1802.01886),
  with the closest reference length, and 1 added to both sides of each precision above unigrams.
- ``compression``: bytes over bytes compressed by zstd with a window over all of them, in the order
  drawn (Shaib et al. 2024, arXiv:2403.00553, there by gzip, whose window is 32 kB).
- ``repeated``: share of 4-grams that another text of the draw holds too.
- ``vendi``: exp of the entropy of the eigenvalues of X X^T / n for L2-normalized rows, at most the
  number of texts (Friedman and Dieng 2023, arXiv:2210.02410).
- ``spread``: 1 minus the mean cosine of two different texts.
- ``tail``: mass of the reference's rare words (the least frequent ones of one half of it) over what
  it is in the other half: 1 where the tail is as heavy as in more of the same, 0 where it is gone.
  It is what collapse takes first (Shumailov et al. 2024, doi:10.1038/s41586-024-07566-y).
- ``coverage``: share of the reference's vectors that have one of the texts' within the distance of
  their own 5th neighbour (Naeem et al. 2020, arXiv:2002.09797).
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import zstandard

from stillroom.evaluate.metrics import Metric
from stillroom.evaluate.ngrams import NGrams, NGramSample
from stillroom.text.normalize import words

__all__ = [
    "Words",
    "compression",
    "coverage",
    "distinct",
    "find_tail",
    "measure_diversity",
    "repeated",
    "self_bleu",
    "spread",
    "tail_share",
    "vendi",
]

Words = Sequence[str]
Vectors = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_DRAWS = 20
_TAIL = 0.1
_NEIGHBOR = 5
_ORDER = 4
_CROWDED = 0.7


def measure_diversity(
    texts: Sequence[str],
    *,
    budget: int,
    tail: frozenset[str] = frozenset(),
    tail_mass: float = 0.0,
    vectors: Vectors | None = None,
    seed: int = 0,
    draws: int = _DRAWS,
    only: frozenset[str] | None = None,
    cut: Sequence[Words] | None = None,
) -> dict[str, Metric]:
    """Return the figures of some texts at a budget of words, by name.

    Args:
        texts: What is measured.
        budget: Words of a draw.
        tail: The reference's rare words, from ``find_tail``; without them there is no ``tail``.
        tail_mass: Their share of the reference.
        vectors: One for each text, (N, D), L2-normalized; without them there is no ``vendi`` and
            no ``spread``.
        seed: Of the draws.
        draws: How many.
        only: The figures wanted, where not all are.
        cut: The words of each text, where they are at hand.
    """
    cut = [words(text) for text in texts] if cut is None else cut
    grams = NGrams(cut, _ORDER)
    figures: dict[str, Callable[[NGramSample], float]] = {
        "distinct_1": lambda one: _distinct(one, 1),
        "distinct_3": lambda one: _distinct(one, 3),
        "self_bleu": _self_bleu,
        "compression": lambda one: compression([texts[at] for at in one.drawn]),
        "repeated": lambda one: _repeated(one, 4),
    }
    if tail and tail_mass:
        figures["tail"] = lambda one: tail_share([cut[at] for at in one.drawn], tail) / tail_mass
    if vectors is not None:
        rows = vectors
        figures["vendi"] = lambda one: vendi(rows[one.drawn])
        figures["spread"] = lambda one: spread(rows[one.drawn])
    if only is not None:
        figures = {name: figure for name, figure in figures.items() if name in only}
    values: dict[str, list[float]] = {name: [] for name in figures}
    total = sum(map(len, cut))
    for drawn in _draw([len(one) for one in cut], budget, seed, draws):
        sample = NGramSample(grams, drawn)
        for name, figure in figures.items():
            values[name].append(figure(sample))
    note = "drawn from little more text than the budget" if budget > _CROWDED * total else ""
    return {
        name: Metric(
            name,
            float(np.mean(found)),
            float(np.quantile(found, 0.025)),
            float(np.quantile(found, 0.975)),
            len(texts),
            note=note,
        )
        for name, found in values.items()
        if found
    }


def distinct(texts: Sequence[Words], n: int) -> float:
    """Return distinct word n-grams over all of them; 0 where there is none."""
    return _distinct(_all_of(texts, n), n)


def _all_of(texts: Sequence[Words], order: int) -> NGramSample:
    return NGramSample(NGrams(texts, order), range(len(texts)))


def _distinct(sample: NGramSample, n: int) -> float:
    gram, _, often = sample.counts(n)
    return len(np.unique(gram)) / int(often.sum()) if len(gram) else 0.0


def self_bleu(texts: Sequence[Words]) -> float:
    """Return the mean BLEU-4 of each text against all the others, 0 to 1; low is varied."""
    return _self_bleu(_all_of(texts, _ORDER))


def _self_bleu(sample: NGramSample) -> float:
    lengths = sample.lengths
    if len(lengths) < 2:
        return 0.0
    logs = np.zeros(len(lengths))
    for n in range(1, _ORDER + 1):
        gram, owner, often = sample.counts(n)
        clipped = np.bincount(
            owner, np.minimum(often, _most_elsewhere(gram, often)), minlength=len(lengths)
        )
        smooth = int(n > 1)
        with np.errstate(divide="ignore"):  # of nothing shared, the logarithm's limit is meant
            logs += np.log(
                (clipped + smooth) / np.maximum(np.maximum(lengths - n + 1, 0) + smooth, 1)
            )
    brevity = np.minimum(0.0, 1 - _closest_of_others(lengths) / lengths)
    return float(np.mean(np.exp(brevity + logs / _ORDER)))


def _most_elsewhere(gram: Ints, often: Ints) -> Ints:
    """Return, for each text's count of an n-gram, the highest count in another text (else 0)."""
    order = np.lexsort((-often, gram))
    ranked, counts = gram[order], often[order]
    first = np.concatenate([[True], ranked[1:] != ranked[:-1]]) if len(ranked) else ranked > 0
    group: Ints = np.cumsum(first) - 1
    highest = counts[first]
    after = np.flatnonzero(first) + 1
    within = (after < len(counts)) & ~first[np.minimum(after, len(counts) - 1)]
    second = np.where(within, counts[np.minimum(after, len(counts) - 1)], 0)
    # Only the one that stands first has the most itself; all others meet that one.
    back: Ints = np.empty_like(often)
    back[order] = np.where(first, second[group], highest[group])
    return back


def _closest_of_others(lengths: Ints) -> Ints:
    """Return, for each of two or more lengths, the nearest of the others; of two, the shorter."""
    order = np.argsort(lengths, kind="stable")
    ranked = lengths[order]
    below, above = np.roll(ranked, 1), np.roll(ranked, -1)
    far = 2 * int(ranked[-1]) + 1
    down, up = ranked - below, above - ranked
    down[0] = up[-1] = far
    closest: Ints = np.empty_like(lengths)
    closest[order] = np.where(down <= up, below, above)
    return closest


def compression(texts: Sequence[str]) -> float:
    """Return the bytes of the texts over their bytes compressed together; high is repetitive."""
    raw = "\n".join(texts).encode("utf-8", "surrogatepass")
    if not raw:
        return 0.0
    window = max(10, min(27, len(raw).bit_length()))
    settings = zstandard.ZstdCompressionParameters.from_level(19, window_log=window)
    return len(raw) / len(zstandard.ZstdCompressor(compression_params=settings).compress(raw))


def repeated(texts: Sequence[Words], n: int = 4) -> float:
    """Return the share of n-grams that another of the texts holds too."""
    return _repeated(_all_of(texts, n), n)


def _repeated(sample: NGramSample, n: int) -> float:
    gram, _, often = sample.counts(n)
    if not len(gram):
        return 0.0
    _, which, holders = np.unique(gram, return_inverse=True, return_counts=True)
    return float(often[holders[which.reshape(-1)] > 1].sum() / often.sum())


def vendi(vectors: Vectors) -> float:
    """Return the Vendi score of L2-normalized vectors, (N, D): how many different ones there are.

    The eigenvalues are those of the smaller of X X^T and X^T X.
    """
    if not len(vectors):
        return 0.0
    rows = vectors.astype(np.float64)
    kernel = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    values = np.clip(np.linalg.eigvalsh(kernel / len(rows)), 0.0, None)
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))


def spread(vectors: Vectors) -> float:
    """Return 1 minus the mean cosine of two different rows of L2-normalized vectors, (N, D)."""
    count = len(vectors)
    if count < 2:
        return 0.0
    rows = vectors.astype(np.float64)
    total = float((rows.sum(0) ** 2).sum() - (rows**2).sum())
    return 1.0 - total / (count * (count - 1))


def find_tail(
    texts: Sequence[str] = (), *, cut: Sequence[Words] | None = None
) -> tuple[frozenset[str], float]:
    """Return rare words of a reference, and the share they have of more of the same.

    The words are the least frequent ones of every other text, that together are a tenth of it; of
    those that are equally rare, no kind is preferred: by the alphabet a small reference's tail
    would be its numbers and a few letters. Their share is that in the rest, since a word seen once
    is mostly not seen again. ``cut`` is the words of each text, where they are at hand.
    """
    cut = [words(text) for text in texts] if cut is None else cut
    counts = Counter(word for one in cut[::2] for word in one)
    total = counts.total()
    tail, mass = set(), 0
    for word, count in sorted(counts.items(), key=lambda pair: (pair[1], _lot(pair[0]))):
        if mass + count > _TAIL * total:
            break
        tail.add(word)
        mass += count
    return frozenset(tail), tail_share(cut[1::2], frozenset(tail))


def _lot(word: str) -> tuple[int, str]:
    """Return a place that says nothing of the word, and is the same every time."""
    return zlib.crc32(word.encode("utf-8", "surrogatepass")), word


def tail_share(texts: Sequence[Words], tail: frozenset[str]) -> float:
    """Return which share of the texts' words are of the tail."""
    total = sum(map(len, texts))
    found = sum(sum(map(tail.__contains__, text)) for text in texts)
    return found / total if total else 0.0


def coverage(
    vectors: Vectors, reference: Vectors, *, neighbor: int = _NEIGHBOR
) -> npt.NDArray[np.bool_]:
    """Return which of the reference's vectors have one of the others near them, (M,).

    Their share is the coverage. Near is no further than the reference vector's own ``neighbor``-th
    neighbour in the reference.

    Args:
        vectors: (N, D), L2-normalized.
        reference: (M, D), L2-normalized; M above ``neighbor``.
        neighbor: Which neighbour gives the distance.
    """
    if not len(vectors) or len(reference) <= neighbor:
        return np.zeros(len(reference), dtype=bool)
    within = reference @ reference.T
    np.fill_diagonal(within, -np.inf)
    least = -np.partition(-within, neighbor - 1, axis=1)[:, neighbor - 1]
    nearest = (reference @ vectors.T).max(axis=1)
    covered: npt.NDArray[np.bool_] = nearest >= least - 1e-6
    return covered


def _draw(sizes: Sequence[int], budget: int, seed: int, draws: int) -> Iterator[list[int]]:
    """Yield draws of whole texts, in order of drawing, that reach the budget (or hold all)."""
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        drawn, held = [], 0
        for at in rng.permutation(len(sizes)).tolist():
            if held >= budget:
                break
            drawn.append(at)
            held += sizes[at]
        yield drawn
