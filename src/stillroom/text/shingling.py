"""Word n-grams of many texts at once, hashed: what near duplicates are found by.

Words are those of ``normalize.words``, but found and hashed by array operations over half a million
characters at a time. A word's hash is a polynomial in its code points over the integers modulo
2**64, had as a difference of prefix sums (Karp and Rabin 1987, doi:10.1147/rd.312.0249), and mixed;
an n-gram's is a polynomial in those of its words. 48 bits are kept: two different n-grams are taken
for one with a probability of about 2**-48.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from stillroom.text.normalize import UNSPACED, fold_text

__all__ = ["HASH_BITS", "ShingleSets", "join_sets", "shingle_texts", "spread"]

Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]

HASH_BITS = 48
_SEPARATOR, _LETTER, _WHOLE, _JOINER = 0, 1, 2, 3
_JOINERS = "'\u2019"
_BASE = 0x9E3779B97F4A7C15
_STEP = np.uint64(0xD6E8FEB86659FD93)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LAST_WORDS = 0x40000
"""From this code point on no letters are assigned."""
_BLOCK = 1 << 19
_BLOCK_TEXTS = 1 << (64 - HASH_BITS)


class ShingleSets:
    """Each text's set of hashed n-grams, sorted; the sets of all texts lie in one array."""

    def __init__(self, values: Hashes, offsets: Positions) -> None:
        """Hold ``values``, (M,) below 2**48, cut at ``offsets``, (N + 1,)."""
        self.values, self.offsets = values, offsets

    def __len__(self) -> int:
        """Return how many texts there are."""
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Hashes:
        """Return one text's set, (N,) sorted."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def sizes(self) -> Positions:
        """How many n-grams each text has, (N,)."""
        return np.diff(self.offsets)


def shingle_texts(texts: Iterable[str], *, n: int = 5, scratch: Path | None = None) -> ShingleSets:
    """Return the sets of word n-grams of texts.

    A text of fewer than n words gives one n-gram, of all its words; one without words none.

    Args:
        texts: In order; read once.
        n: Words of an n-gram.
        scratch: A file to keep the sets in, which are then mapped instead of held in memory.
    """
    return join_sets(_sets(texts, n), scratch=scratch)


def join_sets(
    blocks: Iterable[tuple[Hashes, Positions]], *, scratch: Path | None = None
) -> ShingleSets:
    """Return sets that were made block by block: their values, and the size of each.

    Args:
        blocks: In order; read once.
        scratch: A file to keep the sets in, which are then mapped instead of held in memory.
    """
    sizes: list[Positions] = []
    if scratch is None:
        parts = []
        for values, counts in blocks:
            parts.append(values)
            sizes.append(counts)
        held = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)
    else:
        with scratch.open("wb") as file:
            for values, counts in blocks:
                _append(file, values)
                sizes.append(counts)
        total = sum(int(one.sum()) for one in sizes)
        held = (
            np.memmap(scratch, dtype=np.uint64, mode="r", shape=(total,))
            if total
            else np.zeros(0, dtype=np.uint64)
        )
    lengths = np.concatenate(sizes) if sizes else np.zeros(0, dtype=np.int64)
    return ShingleSets(held, np.concatenate([[0], np.cumsum(lengths)]))


def _append(file: IO[bytes], values: Hashes) -> None:
    file.write(values.tobytes())


def _sets(texts: Iterable[str], n: int) -> Iterator[tuple[Hashes, Positions]]:
    """Yield blocks of sets, one after another, with the size of each."""
    for block in _blocks(map(fold_text, texts)):
        words, counts = _hash_words(block)
        yield _sort_sets(*_roll(words, counts, n), len(block))


def _blocks(texts: Iterator[str]) -> Iterator[list[str]]:
    block: list[str] = []
    size = 0
    for text in texts:
        if block and (size + len(text) > _BLOCK or len(block) == _BLOCK_TEXTS):
            yield block
            block, size = [], 0
        block.append(text)
        size += len(text) + 1
    if block:
        yield block


def _hash_words(block: Sequence[str]) -> tuple[Hashes, Positions]:
    """Return the hashes of the words of all texts, and how many each text has."""
    if len(block) == 1 and len(block[0]) > _BLOCK:
        pieces = [_hash_joined(piece)[1] for piece in _cut(block[0])]
        words = np.concatenate(pieces)
        return words, np.array([len(words)])
    begins, words = _hash_joined("\n".join(block))
    lengths = np.fromiter((len(text) + 1 for text in block), dtype=np.int64, count=len(block))
    edges = np.searchsorted(begins, np.cumsum(lengths))
    return words, np.diff(edges, prepend=0)


def _cut(text: str) -> Iterator[str]:
    """Yield pieces of a long text, cut at white space where there is any."""
    start = 0
    space = re.compile(r"\s")
    while start < len(text):
        found = space.search(text, start + _BLOCK)
        stop = found.start() if found else len(text)
        yield text[start:stop]
        start = stop


def _hash_joined(text: str) -> tuple[Positions, Hashes]:
    """Return where each word begins, and its hash."""
    raw = f"\n{text}\n".encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(raw, dtype=np.uint32)
    kinds = _kinds()[codes]
    letter, whole = kinds == _LETTER, kinds == _WHOLE
    joiners = np.flatnonzero(kinds == _JOINER)
    letter[joiners] = (kinds[joiners - 1] == _LETTER) & (kinds[joiners + 1] == _LETTER)
    begins = np.flatnonzero(letter[1:] & ~letter[:-1] | whole[1:]) + 1
    ends = np.flatnonzero(letter[:-1] & ~letter[1:] | whole[:-1])
    powers, inverses = _powers(max(_BLOCK, len(codes)).bit_length())
    sums = np.cumsum(codes * powers[: len(codes)], dtype=np.uint64)
    return begins - 1, _mix((sums[ends] - sums[begins - 1]) * inverses[begins])


def _roll(words: Hashes, counts: Positions, n: int) -> tuple[Hashes, Positions]:
    """Return the hash of every n-gram, and which text of the block each is of."""
    firsts = np.cumsum(counts) - counts
    held = np.maximum(counts - n + 1, 0)
    found = [_hash_runs(words, n)[spread(firsts, held)]] if held.any() else []
    texts = [np.repeat(np.arange(len(counts)), held)]
    for width in range(1, n):
        short = np.flatnonzero(counts == width)
        if len(short):
            found.append(_hash_runs(words, width)[firsts[short]])
            texts.append(short)
    if not found:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    return np.concatenate(found), np.concatenate(texts)


def _hash_runs(words: Hashes, width: int) -> Hashes:
    """Return the hash of every run of ``width`` words, over the ends of texts too."""
    size = len(words) - width + 1
    rolled = np.zeros(size, dtype=np.uint64)
    for shift in range(width):
        rolled = rolled * _STEP + words[shift : size + shift]
    return _mix(rolled)


def _sort_sets(values: Hashes, texts: Positions, count: int) -> tuple[Hashes, Positions]:
    """Return the sets of a block's texts, sorted and without repeats, and their sizes."""
    low = np.uint64((1 << HASH_BITS) - 1)
    keys = (texts.astype(np.uint64) << np.uint64(HASH_BITS)) | (values & low)
    keys.sort()
    keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys
    owners = (keys >> np.uint64(HASH_BITS)).astype(np.int64)
    return keys & low, np.bincount(owners, minlength=count)


def spread(firsts: Positions, counts: Positions) -> Positions:
    """Return firsts[i], firsts[i] + 1, ... (counts[i] of them), for every i in turn."""
    shift = np.repeat(firsts - (np.cumsum(counts) - counts), counts)
    positions: Positions = np.arange(len(shift)) + shift
    return positions


def _mix(values: Hashes) -> Hashes:
    """Return well-mixed values (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


@functools.cache
def _powers(bits: int) -> tuple[Hashes, Hashes]:
    """Return the powers of the base, and of its inverse, below 2**bits."""
    made = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        powers = np.ones(1 << bits, dtype=np.uint64)
        for bit in range(bits):
            half = 1 << bit
            powers[half : 2 * half] = powers[:half] * np.uint64(pow(base, half, 1 << 64))
        made.append(powers)
    return made[0], made[1]


@functools.cache
def _kinds() -> npt.NDArray[np.uint8]:
    """Return the kind of every code point: in a word, a word of its own, joining, or between."""
    text = "".join(map(chr, range(_LAST_WORDS)))
    kinds = np.zeros(0x110000, dtype=np.uint8)
    kinds[: len(text)] = np.fromiter(map(str.isalnum, text), dtype=np.uint8, count=len(text))
    for found in re.finditer(f"[{UNSPACED}]+", text):
        kinds[found.start() : found.end()] = _WHOLE
    for joiner in _JOINERS:
        kinds[ord(joiner)] = _JOINER
    return kinds
