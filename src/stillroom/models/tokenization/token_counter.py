"""Token counts and token offsets of long texts, with each distinct word tokenized once.

A WordPiece tokenizer reads one word at a time: white space, punctuation and Chinese characters
separate words, and the tokens of a word are independent of its neighbors. The tokens of a text are
therefore those of its words, and known or in-vocabulary words cost a lookup. A cut between words
does not change the count; within a word it can, so the caller counts again.
"""

from __future__ import annotations

import json
import re
import threading
import unicodedata
from array import array
from typing import Any

import numpy as np

from stillroom.text.chunking.tokens import TokenOffsets, find_token_starts
from stillroom.text.unicode import replace_surrogates

__all__ = ["CachedWordTokenizer", "TokenCounter", "build_token_counter", "is_word_boundary"]

_PUNCTUATION = "!-/:-@\\[-`{-~"
_CHINESE = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002cea1"
    "\U0002f800-\U0002fa1f"
)
# White space of the BERT normalizer; other controls are removed and separate nothing.
_SPACE = "\t\n\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_WORDS = re.compile(f"([^{_SPACE}{_PUNCTUATION}{_CHINESE}]+|[{_PUNCTUATION}{_CHINESE}])")
_EDGE = re.compile(f"[{_SPACE}{_PUNCTUATION}{_CHINESE}]")
_MAX_WORD_LENGTH = 100  # longer words are one unknown token to BERT, but many once cut
_UNKNOWN = -1  # count of a long word, which is one token only as a whole
_MAX_CACHED_WORDS = 500_000  # about 100 MB


class TokenCounter:
    """Counts the tokens of texts, without special tokens; thread-safe, for any tokenizer."""

    def __init__(self, tokenizer: Any, lock: threading.Lock, *, lower: bool = False) -> None:
        """Set a transformers tokenizer, and the lock that guards its state.

        ``lower`` lowercases texts first, as some embedders do.
        """
        self._tokenizer, self._lock, self._lower = tokenizer, lock, lower

    def __call__(self, text: str) -> int:
        """Return the number of tokens of a text."""
        with self._lock:
            text = replace_surrogates(text)  # tokenizers refuse unpaired surrogates
            text = text.lower() if self._lower else text
            return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])


class CachedWordTokenizer(TokenCounter):
    """Counts and locates the tokens of texts, for tokenizers that read single words.

    Implements ``OffsetTokenCounter`` of ``stillroom.text``.
    """

    def __init__(self, tokenizer: Any, lock: threading.Lock) -> None:
        from tokenizers import Tokenizer

        super().__init__(tokenizer, lock)
        # A copy, as padding and truncation are mutable state of the tokenizer.
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._added = tuple(tokenizer.get_added_vocab())
        is_lower = json.loads(self._backend.to_str())["normalizer"].get("lowercase", True)
        self._fold = str.lower if is_lower else str
        # Added tokens may occur within a word, and split it.
        is_plain = all(_EDGE.search(token) for token in self._added)
        self._vocabulary = frozenset(self._backend.get_vocab()) if is_plain else frozenset[str]()
        self._known: dict[str, int] = {}

    def locate(self, text: str) -> TokenOffsets:
        """Return the start of each token of a text, and a test for safe cuts."""
        pieces = _WORDS.split(text)  # separators and words alternate
        words = pieces[1::2]
        known = self._learn(set(words))
        counts = np.fromiter(map(known.__getitem__, words), np.int64, len(words))
        sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
        begins, lengths = (np.cumsum(sizes) - sizes)[1::2], sizes[1::2]
        if (counts == _UNKNOWN).any():
            starts = array("q")
            for begin, word in zip(begins.tolist(), words, strict=True):
                starts.extend([begin + offset for offset in _estimate_offsets(word, known[word])])
        else:
            number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            within = number * np.repeat(lengths, counts) // np.repeat(counts, counts)
            starts = array("q", (np.repeat(begins, counts) + within).tobytes())
        # An added token such as [SEP] is one token only as a whole.
        return TokenOffsets(
            starts,
            _never_a_boundary if any(token in text for token in self._added) else is_word_boundary,
        )

    def _learn(self, words: set[str]) -> dict[str, int]:
        """Return the token counts of words, and cache those of short ones."""
        known = self._known
        unseen = words.difference(known)
        if not unseen:
            return known
        if len(known) + len(unseen) > _MAX_CACHED_WORDS:
            known, unseen = {}, words
        fold, vocabulary = self._fold, self._vocabulary
        fresh = {word: 1 for word in unseen if word.isascii() and fold(word) in vocabulary}
        remaining = list(unseen.difference(fresh))
        cleaned = [replace_surrogates(word) for word in remaining]
        encodings = self._backend.encode_batch_fast(cleaned, add_special_tokens=False)
        for word, encoding in zip(remaining, encodings, strict=True):
            is_unknown = len(encoding) == 1 and len(word) > _MAX_WORD_LENGTH
            fresh[word] = _UNKNOWN if is_unknown else len(encoding)
        if len(fresh) > _MAX_CACHED_WORDS:
            return fresh
        # A new dictionary, as other threads may be reading the old one.
        short = {word: count for word, count in fresh.items() if len(word) <= _MAX_WORD_LENGTH}
        self._known = {**known, **short}
        return {**known, **fresh}


def build_token_counter(
    tokenizer: Any, lock: threading.Lock, *, lower: bool = False
) -> TokenCounter:
    """Return a token counter, which also locates tokens if the tokenizer reads single words.

    Args:
        tokenizer: Transformers tokenizer.
        lock: Held while the tokenizer is used, as truncation is mutable state.
        lower: Count texts in lower case; no effect if the tokenizer does so itself.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    config = json.loads(backend.to_str()) if backend is not None else {}
    if not _is_word_tokenizer(config):
        return TokenCounter(tokenizer, lock, lower=lower)
    if lower and not config["normalizer"].get("lowercase"):
        return TokenCounter(tokenizer, lock, lower=True)
    return CachedWordTokenizer(tokenizer, lock)


def is_word_boundary(text: str, position: int) -> bool:
    """Return whether a cut at ``position`` is between two words of a WordPiece tokenizer."""
    if position <= 0 or position >= len(text):
        return True
    return _split_words(text[position - 1]) or _split_words(text[position])


def _split_words(character: str) -> bool:
    return bool(_EDGE.match(character)) or unicodedata.category(character)[0] == "P"


def _never_a_boundary(text: str, position: int) -> bool:
    return position <= 0 or position >= len(text)


def _estimate_offsets(word: str, count: int) -> list[int]:
    """Return approximate starts of a word's tokens; cuts within words are recounted anyway."""
    if count == _UNKNOWN:
        return find_token_starts(word).tolist()
    return [index * len(word) // count for index in range(count)]


def _is_word_tokenizer(config: dict[str, Any]) -> bool:
    """Return whether a tokenizer is BERT's: WordPiece over words split as above."""
    kinds = [(config.get(part) or {}).get("type") for part in ("model", "pre_tokenizer")]
    normalizer = config.get("normalizer") or {}
    return (
        kinds == ["WordPiece", "BertPreTokenizer"]
        and normalizer.get("type") == "BertNormalizer"
        and normalizer.get("clean_text") is True
        and normalizer.get("handle_chinese_chars") is True
    )
