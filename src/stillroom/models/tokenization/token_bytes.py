"""Exact bytes of every token of a fast tokenizer, read from its tokenizer.json.

Four schemes are supported: byte-level BPE (each byte is a printable character, as in GPT-2),
SentencePiece (U+2581 for a space, ``<0xNN>`` for a byte), WordPiece (``##`` within a word) and
plain words. Special tokens have a role, and a surface that may or may not occur in the text.
Normalization (case, accents, Unicode form) is not in the bytes: ``lossy`` lists it, and whether it
affects a text is found when its tokens are aligned, never assumed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.errors import CheckpointError

__all__ = ["SPECIAL", "TEXT", "UNKNOWN", "UNUSED", "TokenBytes", "read_token_bytes"]

TEXT, SPECIAL, UNKNOWN, UNUSED = 0, 1, 2, 3
"""Kinds of ids: text, control token, unknown bytes, unused."""
_SPACE = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ROLES = ("eos", "bos", "pad", "unk", "sep", "cls", "mask")
_LOSSY_NORMALIZERS = {
    "Lowercase": "lowercases",
    "StripAccents": "strips accents",
    "NFC": "brings text to NFC",
    "NFD": "brings text to NFD",
    "NFKC": "brings text to NFKC",
    "NFKD": "brings text to NFKD",
    "Nmt": "changes control characters and white space",
    "Precompiled": "applies SentencePiece's table of replacements",
    "BertNormalizer": "cleans control characters and white space",
    "Strip": "strips white space at both ends",
    "Whitespace": "drops white space",
    "WhitespaceSplit": "drops white space",
    "BertPreTokenizer": "drops white space",
    "CharDelimiterSplit": "drops its delimiter",
}


@dataclass(frozen=True)
class TokenBytes:
    """Bytes, kind and role of each token id of one tokenizer.

    Args:
        data: Bytes of all tokens, concatenated, (S,), uint8.
        starts: Offset of each id's bytes in ``data``, and the end, (V + 1,), int64.
        kinds: TEXT, SPECIAL, UNKNOWN or UNUSED of each id, (V,), uint8.
        roles: Role of special ids: bos, eos, pad, unk, or else ``control``. An id that is both eos
            and pad is eos.
        scheme: ``byte_level``, ``sentencepiece``, ``wordpiece`` or ``words``.
        lossy: Changes of the text that are not in the tokens' bytes, in words.
        prepends: Whether a space is prepended to a text: ``no``, ``missing`` (only where the text
            begins with none) or ``always``.
        eats_left: Special ids that strip white space before them.
        eats_right: Special ids that strip white space after them.
    """

    data: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.uint8]
    roles: Mapping[int, str]
    scheme: str
    lossy: tuple[str, ...] = ()
    prepends: str = "no"
    eats_left: frozenset[int] = field(default_factory=frozenset)
    eats_right: frozenset[int] = field(default_factory=frozenset)

    def __len__(self) -> int:
        """Return the number of ids, including unused ones."""
        return len(self.kinds)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of bytes of each id, (V,); for special ids, of their surface."""
        return np.diff(self.starts)

    def of(self, token_id: int) -> bytes:
        """Return the bytes of an id: for special ids their surface, for unknown ones none.

        Raises:
            CheckpointError: If the id is outside the vocabulary.
        """
        self.check(np.asarray([token_id], dtype=np.int64))
        return self.data[self.starts[token_id] : self.starts[token_id + 1]].tobytes()

    def join(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return the concatenated bytes of ids, (S,)."""
        self.check(ids)
        begin = self.starts[ids]
        lengths = self.starts[ids + 1] - begin
        ends = lengths.cumsum()
        total = int(ends[-1]) if len(ends) else 0
        offsets = np.arange(total, dtype=np.int64)
        joined: npt.NDArray[np.uint8] = self.data[
            offsets + np.repeat(begin - (ends - lengths), lengths)
        ]
        return joined

    def check(self, ids: npt.NDArray[np.int64]) -> None:
        """Check that ids are within the vocabulary.

        Raises:
            CheckpointError: If one is not; names the first.
        """
        outside = (ids < 0) | (ids >= len(self))
        if outside.any():
            raise CheckpointError(
                f"token id {int(ids[outside][0])} is outside a vocabulary of {len(self)}",
                code="distill.token-id",
                where="token ids",
                expected="token ids of this tokenizer",
                next="check that the ids of teacher and student are not mixed up",
            )

    def count(self, kind: int) -> int:
        """Return the number of ids of a kind."""
        return int((self.kinds == kind).sum())

    def to_json(self) -> dict[str, Any]:
        """Return a summary without the tokens."""
        return {
            "scheme": self.scheme,
            "tokens": len(self) - self.count(UNUSED),
            "special": self.count(SPECIAL),
            "unknown_bytes": self.count(UNKNOWN),
            "lossy": list(self.lossy),
            "prepends_space": self.prepends,
        }


def read_token_bytes(tokenizer: Any) -> TokenBytes:
    """Return the bytes of every token.

    Args:
        tokenizer: Fast tokenizer of transformers, or of the tokenizers library.

    Raises:
        CheckpointError: If it is not a fast tokenizer, or its scheme is not supported.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        raise CheckpointError(
            f"{type(tokenizer).__name__} is not a fast tokenizer",
            code="distill.slow-tokenizer",
            where="tokenizer",
            expected="a tokenizer with a tokenizer.json",
            next="save the tokenizer with transformers' AutoTokenizer, which converts most",
        )
    state = json.loads(backend.to_str())
    reader = _TokenizerReader(state, _read_roles(tokenizer))
    return reader.read()


def _read_roles(tokenizer: Any) -> dict[int, str]:
    """Return the ids of bos, eos and so on; the first role listed takes precedence."""
    roles: dict[int, str] = {}
    for role in _ROLES:
        token_id = getattr(tokenizer, f"{role}_token_id", None)
        if isinstance(token_id, int):
            roles.setdefault(token_id, role)
    return roles


class _TokenizerReader:
    def __init__(self, state: dict[str, Any], roles: dict[int, str]) -> None:
        self.model: dict[str, Any] = state.get("model") or {}
        self.added: list[dict[str, Any]] = state.get("added_tokens") or []
        self.steps = {
            part: list(_flatten(state.get(part)))
            for part in ("normalizer", "pre_tokenizer", "decoder")
        }
        self.roles = roles
        self.scheme = self._find_scheme()

    def read(self) -> TokenBytes:
        vocabulary = self._vocabulary()
        size = 1 + max(
            [*vocabulary.values(), *(int(token["id"]) for token in self.added)], default=-1
        )
        pieces: list[bytes] = [b""] * size
        kinds = np.full(size, UNUSED, dtype=np.uint8)
        for token, token_id in vocabulary.items():
            data = self._bytes_of(token)
            pieces[token_id], kinds[token_id] = data or b"", UNKNOWN if data is None else TEXT
        roles = dict(self.roles)
        for added in self.added:
            token_id = int(added["id"])
            is_special = bool(added.get("special"))
            pieces[token_id] = str(added["content"]).encode()
            kinds[token_id] = SPECIAL if is_special or token_id in roles else TEXT
        for token_id in roles:
            kinds[token_id] = SPECIAL
        unknown = self._unknown_id(vocabulary)
        if unknown is not None and not self._knows_every_byte(pieces, kinds):
            pieces[unknown], kinds[unknown], roles[unknown] = b"", UNKNOWN, "unk"
        for token_id in np.flatnonzero(kinds == SPECIAL).tolist():
            roles.setdefault(token_id, "control")
        lengths = np.asarray([len(piece) for piece in pieces], dtype=np.int64)
        return TokenBytes(
            np.frombuffer(b"".join(pieces), dtype=np.uint8),
            np.concatenate([[0], lengths.cumsum()]).astype(np.int64),
            kinds,
            roles,
            self.scheme,
            self._lossy(),
            self._prepends(),
            frozenset(int(token["id"]) for token in self.added if token.get("lstrip")),
            frozenset(int(token["id"]) for token in self.added if token.get("rstrip")),
        )

    def _find_scheme(self) -> str:
        kind = str(self.model.get("type") or "")
        names = [step["type"] for steps in self.steps.values() for step in steps]
        if kind not in {"BPE", "Unigram", "WordPiece", "WordLevel"}:
            raise CheckpointError(
                f"tokenizer type {kind or 'unknown'!r} is not supported",
                code="distill.tokenizer-scheme",
                where="tokenizer.json model.type",
                expected="BPE, Unigram, WordPiece or WordLevel",
                next="use a teacher and a student with such tokenizers",
            )
        if "ByteLevel" in names:
            return "byte_level"
        if kind == "WordPiece":
            return "wordpiece"
        writes_space = any(
            _SPACE in json.dumps(step, ensure_ascii=False)
            for steps in self.steps.values()
            for step in steps
        )
        if writes_space or "Metaspace" in names or self.model.get("byte_fallback"):
            return "sentencepiece"
        return "words"

    def _vocabulary(self) -> dict[str, int]:
        raw = self.model.get("vocab") or {}
        if isinstance(raw, list):  # Unigram: [[token, score], ...]
            return {str(row[0]): index for index, row in enumerate(raw)}
        return {str(token): int(index) for token, index in raw.items()}

    def _unknown_id(self, vocabulary: dict[str, int]) -> int | None:
        if isinstance(self.model.get("unk_id"), int):
            return int(self.model["unk_id"])
        named = self.model.get("unk_token")
        if named is None:
            return None
        return vocabulary.get(
            str(named), next((int(t["id"]) for t in self.added if t["content"] == named), None)
        )

    def _knows_every_byte(self, pieces: list[bytes], kinds: npt.NDArray[np.uint8]) -> bool:
        """Return whether each byte has a token, so that the unknown token is never used."""
        if self.scheme == "sentencepiece" and not self._has_byte_tokens():
            return False
        if self.scheme not in {"byte_level", "sentencepiece"}:
            return False
        spelled = {
            pieces[token_id]
            for token_id in np.flatnonzero(kinds == TEXT)
            if len(pieces[token_id]) == 1
        }
        return len(spelled) == 256

    def _bytes_of(self, token: str) -> bytes | None:
        """Return the bytes of a token of the model; None where they are unknown."""
        token = token.removesuffix(str(self.model.get("end_of_word_suffix") or ""))
        if self.scheme == "byte_level":
            table = _byte_of_stand_in()
            try:
                return bytes(table[char] for char in token)
            except KeyError:
                return None
        if self.scheme == "sentencepiece":
            match = _BYTE_TOKEN.fullmatch(token)
            if match and self._has_byte_tokens():
                return bytes([int(match.group(1), 16)])
            return token.replace(_SPACE, " ").encode()
        prefix = self.model.get("continuing_subword_prefix") or ""
        return (token.removeprefix(str(prefix)) or token).encode()

    def _has_byte_tokens(self) -> bool:
        decoders = {step["type"] for step in self.steps["decoder"]}
        return bool(self.model.get("byte_fallback")) or "ByteFallback" in decoders

    def _lossy(self) -> tuple[str, ...]:
        changes = []
        for step in (*self.steps["normalizer"], *self.steps["pre_tokenizer"]):
            if step["type"] == "BertNormalizer":
                if step.get("lowercase"):
                    changes.append("lowercases")
                if step.get("strip_accents") or (
                    step.get("strip_accents") is None and step.get("lowercase")
                ):
                    changes.append("strips accents")
            if step["type"] in _LOSSY_NORMALIZERS:
                changes.append(_LOSSY_NORMALIZERS[step["type"]])
            if step["type"] == "Replace" and step.get("content") != _SPACE:
                changes.append(f"replaces {json.dumps(step.get('pattern'), ensure_ascii=False)}")
            if step["type"] == "Split" and step.get("behavior") == "Removed":
                changes.append("drops what it splits at")
        if self.scheme == "wordpiece" and "drops white space" not in changes:
            changes.append("drops white space")
        return tuple(dict.fromkeys(changes))

    def _prepends(self) -> str:
        for step in self.steps["normalizer"]:
            if step["type"] == "Prepend":
                return "always"
        for step in self.steps["pre_tokenizer"]:
            is_metaspace = step["type"] == "Metaspace"
            if is_metaspace and step.get("prepend_scheme", "always") != "never":
                return "missing"
            if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
                return "missing"
        return "no"


def _flatten(step: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps of a normalizer, pre-tokenizer or decoder, with sequences unrolled."""
    if not isinstance(step, dict):
        return
    inner = step.get("normalizers") or step.get("pretokenizers") or step.get("decoders")
    if step.get("type") == "Sequence" and isinstance(inner, list):
        for part in inner:
            yield from _flatten(part)
    else:
        yield step


@cache
def _byte_of_stand_in() -> dict[str, int]:
    """Return the byte of each printable character of a byte-level tokenizer.

    Printable Latin-1 characters are their own bytes; the other 68 bytes start at U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    unprintable = [byte for byte in range(0x100) if chr(byte) not in table]
    return table | {chr(0x100 + index): byte for index, byte in enumerate(unprintable)}
