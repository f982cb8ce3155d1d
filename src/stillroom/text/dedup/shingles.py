"""MinHash signatures, Jaccard similarity and n-gram overlap over hashed word n-grams (shingles).

Source: Broder 1997 (resemblance, min-wise hashing); banding after Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, chapter 3. Shingles are n-grams of normalized words (in scripts without
spaces: of characters), hashed to 64 bits. A text shorter than n words is one shingle, so short
texts match only when they are equal. For many texts at once see ``near_duplicates``.

Words are those of ``unicode.split_words``, but found and hashed by array operations over half a
million characters at a time. A word's hash is a mixed polynomial in its code points modulo 2**64,
computed as a difference of prefix sums (Karp and Rabin 1987, doi:10.1147/rd.312.0249); an n-gram's
is a polynomial in those of its words. 48 bits are kept: two different n-grams collide with a
probability of about 2**-48.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stillroom.text.unicode import UNSPACED_SCRIPTS, fold_text, split_words

__all__ = [
    "HASH_BITS",
    "MinHasher",
    "ShingleSets",
    "build_shingle_sets",
    "expand_ranges",
    "hash_shingles",
    "jaccard_similarity",
    "join_shingle_sets",
    "ngram_overlap",
]


HashArray = npt.NDArray[np.uint64]
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_HASH_BLOCK = 1 << 14


class _WordHashCache(dict[str, int]):
    """Hashes of words, each computed once."""

    def __missing__(self, word: str) -> int:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        value = self[word] = int.from_bytes(digest, "little")
        return value


def hash_shingles(text: str, n: int = 5) -> HashArray:
    """Return the distinct hashes of a text's word n-grams, sorted; (N,) uint64.

    A text of fewer than n words gives one hash, of all its words; a text without words gives none.
    """
    return _hash_ngrams(text, n, _WordHashCache())


def jaccard_similarity(first: HashArray, second: HashArray) -> float:
    """Return the Jaccard similarity of two sorted sets of hashes; two empty ones give 0."""
    if not len(first) or not len(second):
        return 0.0
    same = len(np.intersect1d(first, second, assume_unique=True))
    return same / (len(first) + len(second) - same)


class MinHasher:
    """MinHash signatures of texts, and the keys of their LSH bands."""

    def __init__(
        self,
        *,
        n: int = 5,
        num_bands: int = 16,
        rows: int = 8,
    ) -> None:
        """Draw the hash functions, always the same ones.

        A shingle has ``n`` words, a band ``rows`` values. Two texts of similarity s share a band
        with probability 1 - (1 - s**rows)**num_bands.
        """
        rng = np.random.default_rng(0)
        size = num_bands * rows
        self.n, self.num_bands, self.rows = n, num_bands, rows
        self._factors = rng.integers(1, 2**64, size=size, dtype=np.uint64) | np.uint64(1)
        self._offsets = rng.integers(0, 2**64, size=size, dtype=np.uint64)
        self._words = _WordHashCache()

    def shingles(self, text: str) -> HashArray:
        """Return a text's shingles; see ``hash_shingles``."""
        return _hash_ngrams(text, self.n, self._words)

    def sign(self, texts: Sequence[str]) -> npt.NDArray[np.uint32]:
        """Return signatures, (N, num_bands * rows) uint32; all ones for texts without words."""
        return self.sign_shingles([self.shingles(text) for text in texts])

    def sign_shingles(self, sets: Sequence[HashArray]) -> npt.NDArray[np.uint32]:
        """Return the signatures of sets of shingles, computed a block at a time."""
        signatures = np.full((len(sets), len(self._factors)), 2**32 - 1, dtype=np.uint32)
        filled = [index for index, shingles in enumerate(sets) if len(shingles)]
        start = 0
        while start < len(filled):
            stop, total = start, 0
            while stop < len(filled) and (stop == start or total < _HASH_BLOCK):
                total += len(sets[filled[stop]])
                stop += 1
            part = [sets[index] for index in filled[start:stop]]
            signatures[filled[start:stop]] = self._sign_block(part)
            start = stop
        return signatures

    def bands(self, signatures: npt.NDArray[np.uint32]) -> HashArray:
        """Return the key of each band, (N, num_bands) uint64."""
        parts = signatures.reshape(len(signatures), self.num_bands, self.rows).astype(np.uint64)
        keys = np.zeros(parts.shape[:2], dtype=np.uint64)
        for row in range(self.rows):
            keys = _mix_bits((keys + parts[:, :, row]) * _MULTIPLIER)
        return keys

    def _sign_block(self, sets: Sequence[HashArray]) -> npt.NDArray[np.uint32]:
        values = np.concatenate(sets)
        starts = np.cumsum([0, *(len(shingles) for shingles in sets[:-1])])
        signed = np.empty((len(self._factors), len(sets)), dtype=np.uint32)
        for index in range(len(self._factors)):
            hashed = (values * self._factors[index] + self._offsets[index]) >> np.uint64(32)
            signed[index] = np.minimum.reduceat(hashed.astype(np.uint32), starts)
        return signed.T


def ngram_overlap(text: str, reference: str, n: int = 13) -> float:
    """Return the share of the reference's word n-grams contained in the text, from 0 to 1.

    A reference shorter than n words is one n-gram, so short items are found too. A reference
    without words gives 0.
    """
    known = _WordHashCache()
    wanted, hashes = _hash_known_words(reference, known), _hash_known_words(text, known)
    width = min(n, len(wanted))
    if not 0 < width <= len(hashes):
        return 0.0
    grams = np.unique(_roll_ngrams(wanted, width))
    return float(np.isin(grams, _roll_ngrams(hashes, width)).mean())


def _hash_ngrams(text: str, n: int, known: _WordHashCache) -> HashArray:
    hashes = _hash_known_words(text, known)
    width = min(n, len(hashes))
    return np.unique(_roll_ngrams(hashes, width)) if width else hashes


def _hash_known_words(text: str, known: _WordHashCache) -> HashArray:
    words = split_words(text)
    return np.fromiter(map(known.__getitem__, words), dtype=np.uint64, count=len(words))


def _roll_ngrams(hashes: HashArray, n: int, step: np.uint64 = _MULTIPLIER) -> HashArray:
    """Return the hash of every sequence of n words, across texts too; ``step`` is the base."""
    size = len(hashes) - n + 1
    rolled = np.zeros(size, dtype=np.uint64)
    for shift in range(n):
        rolled = rolled * step + hashes[shift : size + shift]
    return _mix_bits(rolled)


def _mix_bits(values: HashArray) -> HashArray:
    """Mix the bits of hashes (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


TextPositions = npt.NDArray[np.int64]
HASH_BITS = 48
_SEPARATOR, _LETTER, _WHOLE_WORD, _JOINER = 0, 1, 2, 3
_JOINERS = "'\u2019"
_BASE = 0x9E3779B97F4A7C15
_STEP = np.uint64(0xD6E8FEB86659FD93)
_END_OF_LETTERS = 0x40000
"""No letters are assigned from this code point on."""

_BLOCK_CHARACTERS = 1 << 19
_BLOCK_TEXTS = 1 << (64 - HASH_BITS)


class ShingleSets:
    """Sets of hashed n-grams, one per text, sorted; stored in one array."""

    def __init__(self, values: HashArray, offsets: TextPositions) -> None:
        """Use ``values``, (M,) below 2**48, split at ``offsets``, (N + 1,)."""
        self.values, self.offsets = values, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> HashArray:
        """Return one text's set, (N,) sorted."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def sizes(self) -> TextPositions:
        """Number of n-grams of each text, (N,)."""
        return np.diff(self.offsets)


def build_shingle_sets(
    texts: Iterable[str], *, n: int = 5, scratch: Path | None = None
) -> ShingleSets:
    """Return the sets of word n-grams of texts.

    A text of fewer than n words gives one n-gram, of all its words; one without words gives none.

    Texts are read once. With ``scratch``, a file, the sets are memory-mapped instead of held in
    memory.
    """
    return join_shingle_sets(_iter_sets(texts, n), scratch=scratch)


def join_shingle_sets(
    blocks: Iterable[tuple[HashArray, TextPositions]], *, scratch: Path | None = None
) -> ShingleSets:
    """Join sets that were built block by block, as their values and the size of each.

    With ``scratch`` the sets are memory-mapped from that file, instead of held in memory.
    """
    sizes: list[TextPositions] = []
    if scratch is None:
        parts = []
        for values, counts in blocks:
            parts.append(values)
            sizes.append(counts)
        held = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)
    else:
        with scratch.open("wb") as file:
            for values, counts in blocks:
                file.write(values.tobytes())
                sizes.append(counts)
        total = sum(int(block.sum()) for block in sizes)
        held = (
            np.memmap(scratch, dtype=np.uint64, mode="r", shape=(total,))
            if total
            else np.zeros(0, dtype=np.uint64)
        )
    lengths = np.concatenate(sizes) if sizes else np.zeros(0, dtype=np.int64)
    return ShingleSets(held, np.concatenate([[0], np.cumsum(lengths)]))


def _iter_sets(texts: Iterable[str], n: int) -> Iterator[tuple[HashArray, TextPositions]]:
    """Yield blocks of sets with the size of each set."""
    for block in _blocks(map(fold_text, texts)):
        words, counts = _hash_words(block)
        yield _sort_sets(*_roll_block(words, counts, n), len(block))


def _blocks(texts: Iterator[str]) -> Iterator[list[str]]:
    block: list[str] = []
    size = 0
    for text in texts:
        if block and (size + len(text) > _BLOCK_CHARACTERS or len(block) == _BLOCK_TEXTS):
            yield block
            block, size = [], 0
        block.append(text)
        size += len(text) + 1
    if block:
        yield block


def _hash_words(block: Sequence[str]) -> tuple[HashArray, TextPositions]:
    """Return the hashes of the words of all texts, and the number of words per text."""
    if len(block) == 1 and len(block[0]) > _BLOCK_CHARACTERS:
        pieces = [_hash_joined(piece)[1] for piece in _cut_text(block[0])]
        words = np.concatenate(pieces)
        return words, np.array([len(words)])
    begins, words = _hash_joined("\n".join(block))
    lengths = np.fromiter((len(text) + 1 for text in block), dtype=np.int64, count=len(block))
    edges = np.searchsorted(begins, np.cumsum(lengths))
    return words, np.diff(edges, prepend=0)


def _cut_text(text: str) -> Iterator[str]:
    """Yield pieces of a long text, split at white space where possible."""
    start = 0
    space = re.compile(r"\s")
    while start < len(text):
        match = space.search(text, start + _BLOCK_CHARACTERS)
        stop = match.start() if match else len(text)
        yield text[start:stop]
        start = stop


def _hash_joined(text: str) -> tuple[TextPositions, HashArray]:
    """Return the start of each word, and its hash."""
    raw = f"\n{text}\n".encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(raw, dtype=np.uint32)
    kinds = _character_classes()[codes]
    letter, single = kinds == _LETTER, kinds == _WHOLE_WORD
    joiners = np.flatnonzero(kinds == _JOINER)
    letter[joiners] = (kinds[joiners - 1] == _LETTER) & (kinds[joiners + 1] == _LETTER)
    begins = np.flatnonzero(letter[1:] & ~letter[:-1] | single[1:]) + 1
    ends = np.flatnonzero(letter[:-1] & ~letter[1:] | single[:-1])
    powers, inverses = _powers(max(_BLOCK_CHARACTERS, len(codes)).bit_length())
    sums = np.cumsum(codes * powers[: len(codes)], dtype=np.uint64)
    return begins - 1, _mix_bits((sums[ends] - sums[begins - 1]) * inverses[begins])


def _roll_block(words: HashArray, counts: TextPositions, n: int) -> tuple[HashArray, TextPositions]:
    """Return the hash of every n-gram, and the text of the block that it belongs to."""
    firsts = np.cumsum(counts) - counts
    held = np.maximum(counts - n + 1, 0)
    rolled = [_roll_ngrams(words, n, _STEP)[expand_ranges(firsts, held)]] if held.any() else []
    texts = [np.repeat(np.arange(len(counts)), held)]
    for width in range(1, n):
        short = np.flatnonzero(counts == width)
        if len(short):
            rolled.append(_roll_ngrams(words, width, _STEP)[firsts[short]])
            texts.append(short)
    if not rolled:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    return np.concatenate(rolled), np.concatenate(texts)


def _sort_sets(
    values: HashArray, texts: TextPositions, count: int
) -> tuple[HashArray, TextPositions]:
    """Return the sets of a block's texts, sorted and unique, and their sizes."""
    low = np.uint64((1 << HASH_BITS) - 1)
    keys = (texts.astype(np.uint64) << np.uint64(HASH_BITS)) | (values & low)
    keys.sort()
    keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys
    owners = (keys >> np.uint64(HASH_BITS)).astype(np.int64)
    return keys & low, np.bincount(owners, minlength=count)


def expand_ranges(firsts: TextPositions, counts: TextPositions) -> TextPositions:
    """Return firsts[i], firsts[i] + 1, ... (counts[i] numbers) for every i in turn."""
    shift = np.repeat(firsts - (np.cumsum(counts) - counts), counts)
    positions: TextPositions = np.arange(len(shift)) + shift
    return positions


@functools.cache
def _powers(bits: int) -> tuple[HashArray, HashArray]:
    """Return the powers of the base, and of its inverse, below 2**bits."""
    tables = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        powers = np.ones(1 << bits, dtype=np.uint64)
        for bit in range(bits):
            half = 1 << bit
            powers[half : 2 * half] = powers[:half] * np.uint64(pow(base, half, 1 << 64))
        tables.append(powers)
    return tables[0], tables[1]


@functools.cache
def _character_classes() -> npt.NDArray[np.uint8]:
    """Return the class of every code point: word, single-character word, joining, or separator."""
    text = "".join(map(chr, range(_END_OF_LETTERS)))
    kinds = np.zeros(0x110000, dtype=np.uint8)
    kinds[: len(text)] = np.fromiter(map(str.isalnum, text), dtype=np.uint8, count=len(text))
    for match in re.finditer(f"[{UNSPACED_SCRIPTS}]+", text):
        kinds[match.start() : match.end()] = _WHOLE_WORD
    for joiner in _JOINERS:
        kinds[ord(joiner)] = _JOINER
    return kinds
