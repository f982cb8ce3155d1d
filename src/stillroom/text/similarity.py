"""MinHash signatures of texts, one after another, and overlap of n-grams.

Source: Broder 1997 (resemblance, min-wise hashing); banding after Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, chapter 3. Shingles are n-grams of normalized words (in scripts without
spaces: of characters), hashed to 64 bits. A text shorter than n words is one shingle, so that short
texts are equal only when they are the same. For many texts at once see ``near_duplicates``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stillroom.text.normalize import words

__all__ = [
    "MinHasher",
    "NgramIndex",
    "jaccard",
    "ngram_overlap",
    "shingles",
]

Hashes = npt.NDArray[np.uint64]

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_BLOCK = 1 << 14


class _WordHashes(dict[str, int]):
    """Hashes of words, each computed once."""

    def __missing__(self, word: str) -> int:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        value = self[word] = int.from_bytes(digest, "little")
        return value


def shingles(text: str, n: int = 5) -> Hashes:
    """Return the distinct hashes of a text's word n-grams, sorted; (N,) uint64.

    A text of fewer than n words gives one hash, of all its words; a text without words none.
    """
    return _shingles(text, n, _WordHashes())


def jaccard(one: Hashes, other: Hashes) -> float:
    """Return the Jaccard similarity of two sorted sets of hashes; two empty ones give 0."""
    if not len(one) or not len(other):
        return 0.0
    same = len(np.intersect1d(one, other, assume_unique=True))
    return same / (len(one) + len(other) - same)


class MinHasher:
    """MinHash signatures of texts, and the keys of their bands."""

    def __init__(
        self,
        *,
        n: int = 5,
        num_bands: int = 16,
        rows: int = 8,
        rng: np.random.Generator | None = None,
    ) -> None:
        """Draw the hash functions.

        Args:
            n: Words of a shingle.
            num_bands: Bands; two texts of similarity s share one with 1 - (1 - s**rows)**num_bands.
            rows: Values of a band.
            rng: Where the hash functions come from; by default always the same ones.
        """
        rng = np.random.default_rng(0) if rng is None else rng
        size = num_bands * rows
        self.n, self.num_bands, self.rows = n, num_bands, rows
        self._factors = rng.integers(1, 2**64, size=size, dtype=np.uint64) | np.uint64(1)
        self._offsets = rng.integers(0, 2**64, size=size, dtype=np.uint64)
        self._words = _WordHashes()

    def shingles(self, text: str) -> Hashes:
        """Return a text's shingles; see the function of that name."""
        return _shingles(text, self.n, self._words)

    def sign(self, texts: Sequence[str]) -> npt.NDArray[np.uint32]:
        """Return signatures, (N, num_bands * rows) uint32; texts without words are all ones."""
        return self.sign_shingles([self.shingles(text) for text in texts])

    def sign_shingles(self, sets: Sequence[Hashes]) -> npt.NDArray[np.uint32]:
        """Return the signatures of sets of shingles, a block at a time."""
        signatures = np.full((len(sets), len(self._factors)), 2**32 - 1, dtype=np.uint32)
        filled = [index for index, one in enumerate(sets) if len(one)]
        start = 0
        while start < len(filled):
            stop, total = start, 0
            while stop < len(filled) and (stop == start or total < _BLOCK):
                total += len(sets[filled[stop]])
                stop += 1
            part = [sets[index] for index in filled[start:stop]]
            signatures[filled[start:stop]] = self._sign_block(part)
            start = stop
        return signatures

    def bands(self, signatures: npt.NDArray[np.uint32]) -> Hashes:
        """Return the key of each band, (N, num_bands) uint64."""
        parts = signatures.reshape(len(signatures), self.num_bands, self.rows).astype(np.uint64)
        keys = np.zeros(parts.shape[:2], dtype=np.uint64)
        for row in range(self.rows):
            keys = _mix((keys + parts[:, :, row]) * _MULTIPLIER)
        return keys

    def _sign_block(self, sets: Sequence[Hashes]) -> npt.NDArray[np.uint32]:
        values = np.concatenate(sets)
        starts = np.cumsum([0, *(len(one) for one in sets[:-1])])
        signed = np.empty((len(self._factors), len(sets)), dtype=np.uint32)
        for index in range(len(self._factors)):
            hashed = (values * self._factors[index] + self._offsets[index]) >> np.uint64(32)
            signed[index] = np.minimum.reduceat(hashed.astype(np.uint32), starts)
        return signed.T


def ngram_overlap(text: str, reference: str, n: int = 13) -> float:
    """Return the share of the reference's word n-grams that the text contains, from 0 to 1.

    Where the reference is shorter than n words, all of it is one n-gram: short items are found too.
    A reference without words gives 0.
    """
    return NgramIndex([reference], n=n).overlaps(text)[0]


class NgramIndex:
    """The n-grams of many references, for finding texts that contain one (decontamination)."""

    def __init__(self, references: Sequence[str], *, n: int = 13) -> None:
        """Index the references, each by n-grams of min(n, its words) words."""
        self._words = _WordHashes()
        self._sizes: list[int] = []
        self._holders: dict[int, dict[int, list[int]]] = {}
        for number, reference in enumerate(references):
            hashes = _hash_words(reference, self._words)
            width = min(n, len(hashes))
            grams = np.unique(_roll(hashes, width)) if width else hashes
            self._sizes.append(len(grams))
            holders = self._holders.setdefault(width, {})
            for gram in grams.tolist():
                holders.setdefault(gram, []).append(number)

    def overlaps(self, text: str) -> list[float]:
        """Return each reference's share of n-grams that the text contains."""
        counts = [0] * len(self._sizes)
        for number, count in self._count(text).items():
            counts[number] = count
        return [count / max(size, 1) for count, size in zip(counts, self._sizes, strict=True)]

    def best(self, text: str) -> tuple[int, float]:
        """Return the index and share of the reference most contained; (-1, 0.0) for none."""
        shares = (
            (count / self._sizes[number], -number) for number, count in self._count(text).items()
        )
        share, number = max(shares, default=(0.0, 1))
        return -number, share

    def _count(self, text: str) -> dict[int, int]:
        hashes = _hash_words(text, self._words)
        counts: dict[int, int] = {}
        for width, holders in self._holders.items():
            if not 0 < width <= len(hashes):
                continue
            for gram in np.unique(_roll(hashes, width)).tolist():
                for number in holders.get(gram, ()):
                    counts[number] = counts.get(number, 0) + 1
        return counts


def _shingles(text: str, n: int, known: _WordHashes) -> Hashes:
    hashes = _hash_words(text, known)
    width = min(n, len(hashes))
    return np.unique(_roll(hashes, width)) if width else hashes


def _hash_words(text: str, known: _WordHashes) -> Hashes:
    found = words(text)
    return np.fromiter(map(known.__getitem__, found), dtype=np.uint64, count=len(found))


def _roll(hashes: Hashes, n: int) -> Hashes:
    """Return the hash of every run of n words."""
    rolled = np.zeros(len(hashes) - n + 1, dtype=np.uint64)
    for shift in range(n):
        rolled = rolled * _MULTIPLIER + hashes[shift : len(hashes) - n + 1 + shift]
    return _mix(rolled)


def _mix(values: Hashes) -> Hashes:
    """Return well-mixed values (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))
