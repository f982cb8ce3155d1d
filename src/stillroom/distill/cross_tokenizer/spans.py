"""Byte spans of tokens in a text, and the map of equal tokens between two vocabularies.

The concatenated bytes of the tokens are compared with the text. If they are equal, every span is
exact, even for tokens that split a character. If a normalizer changed the text, the spans are the
tokenizers library's character offsets and ``is_exact`` is false; tokens that share a character then
share one span, because the boundary between them does not exist in the text.

Tokens are compared by bytes, never by a vocabulary's spelling (``Ġthe`` and ``▁the`` are both
" the"), and special tokens by role. Several ids of one side with the same bytes form one group;
tokens without a counterpart are in group 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError
from stillroom.models.tokenization.token_bytes import SPECIAL, TEXT, UNKNOWN, TokenBytes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "TokenMap",
    "TokenSpans",
    "locate_tokens",
    "map_tokens",
    "match_tokens",
]

_BLANK = frozenset(b" \t\n\r\x0b\x0c")


@dataclass(frozen=True)
class TokenSpans:
    """Tokens of a text and the bytes each covers.

    Args:
        text: Bytes of the text, (S,), uint8.
        ids: (T,), int64.
        starts: First byte of each token, (T,), int64; non-decreasing.
        ends: End byte of each, (T,), int64. A special token that is not in the text is empty.
        kinds: TEXT, SPECIAL or UNKNOWN for each token, (T,), uint8.
        roles: Role and surface of each special token, by position in ``ids``.
        is_exact: Whether the tokens' bytes equal the text; else spans are character offsets.
    """

    text: npt.NDArray[np.uint8]
    ids: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.uint8]
    roles: dict[int, tuple[str, bytes]]
    is_exact: bool

    def __len__(self) -> int:
        return len(self.ids)


def locate_tokens(
    tokenizer: Any, tokens: TokenBytes, text: str, *, add_special_tokens: bool = False
) -> TokenSpans:
    """Tokenize a text and locate the bytes of each token.

    Args:
        tokenizer: Fast tokenizer that ``tokens`` was read from.
        tokens: Bytes of its tokens.
        text: Any text; special tokens spelled out in it are parsed as such.
        add_special_tokens: Whether the tokenizer adds its special tokens (bos and so on).
    """
    _encode(text)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    encoded = _disable_truncation(backend).encode(text, add_special_tokens=add_special_tokens)
    ids = np.asarray(encoded.ids, dtype=np.int64)
    placed = match_tokens(tokens, ids, text)
    return placed if placed is not None else _read_offsets(tokens, ids, text, encoded.offsets)


def match_tokens(tokens: TokenBytes, ids: npt.NDArray[np.int64], text: str) -> TokenSpans | None:
    """Return exact spans of given tokens, or None if they do not spell the text.

    A special token covers its surface if the text contains it at that position, and else nothing. A
    single space that the tokenizer inserts before the text or after a special token covers nothing.
    """
    tokens.check(ids)
    raw = _encode(text)
    kinds = tokens.kinds[ids]
    if (kinds == UNKNOWN).any():
        return None
    lengths = tokens.starts[ids + 1] - tokens.starts[ids]
    starts = np.zeros(len(ids), dtype=np.int64)
    offset = first = 0
    for special in [*np.flatnonzero(kinds == SPECIAL).tolist(), len(ids)]:
        if special > first:
            begin = _match_run(tokens, ids[first:special], raw, offset)
            if begin is None:
                return None
            sizes = lengths[first:special].copy()
            # Remove a prepended space from the first token that has bytes.
            extra = offset - begin
            if extra:
                sizes[int(np.flatnonzero(sizes)[0])] -= extra
            ends = offset + sizes.cumsum()
            starts[first:special], offset = ends - sizes, int(ends[-1])
            lengths[first:special] = sizes
        if special < len(ids):
            starts[special], lengths[special], offset = _match_special(
                tokens, int(ids[special]), raw, offset
            )
        first = special + 1
    if offset != len(raw):
        return None
    return TokenSpans(
        np.frombuffer(raw, dtype=np.uint8),
        ids,
        starts,
        starts + lengths,
        kinds,
        _get_roles(tokens, ids, kinds),
        is_exact=True,
    )


def _match_run(
    tokens: TokenBytes, ids: npt.NDArray[np.int64], raw: bytes, offset: int
) -> int | None:
    """Return the start of the run's bytes: ``at``, or one less if a space was prepended."""
    joined = tokens.join(ids).tobytes()
    orders = {"no": (0,), "missing": (0, 1), "always": (1, 0)}[tokens.prepends]
    for extra in orders:
        if extra and not joined.startswith(b" "):
            continue
        if raw.startswith(joined[extra:], offset):
            return offset - extra
    return None


def _match_special(
    tokens: TokenBytes, token_id: int, raw: bytes, offset: int
) -> tuple[int, int, int]:
    """Return a special token's start, its number of bytes, and the offset after it."""
    surface = tokens.of(token_id)
    begin = offset
    if token_id in tokens.eats_left:
        while begin < len(raw) and raw[begin] in _BLANK:
            begin += 1
    if not surface or not raw.startswith(surface, begin):
        return offset, 0, offset
    end = begin + len(surface)
    if token_id in tokens.eats_right:
        while end < len(raw) and raw[end] in _BLANK:
            end += 1
    return offset, end - offset, end


def _read_offsets(
    tokens: TokenBytes,
    ids: npt.NDArray[np.int64],
    text: str,
    offsets: list[tuple[int, int]],
) -> TokenSpans:
    """Return spans from character offsets; a gap (white space) belongs to the following token."""
    raw = _encode(text)
    # The number of UTF-8 bytes before each character and before the end, (C + 1,).
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    bytes_at = np.concatenate([[0], sizes.cumsum()]).astype(np.int64)
    chars = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    starts, ends = bytes_at[chars[:, 0]], bytes_at[chars[:, 1]]
    kinds = tokens.kinds[ids]
    is_empty = ends <= starts
    reached = np.maximum.accumulate(np.where(is_empty, 0, ends)) if len(ids) else ends
    previous_end = np.concatenate([[0], reached[:-1]]) if len(ids) else starts
    # A token that begins before the previous one ends shares a character with it.
    opens = is_empty | (starts >= previous_end)
    group = np.cumsum(opens) - 1
    first = np.flatnonzero(opens)
    spans_start = previous_end[first][group] if len(ids) else starts
    last = np.append(first[1:], len(ids)) - 1
    spans_end = reached[last][group] if len(ids) else ends
    spans_start = np.where(is_empty, previous_end, spans_start)
    spans_end = np.where(is_empty, previous_end, spans_end)
    return TokenSpans(
        np.frombuffer(raw, dtype=np.uint8),
        ids,
        spans_start.astype(np.int64),
        spans_end.astype(np.int64),
        kinds,
        _get_roles(tokens, ids, kinds),
        is_exact=False,
    )


def _get_roles(
    tokens: TokenBytes, ids: npt.NDArray[np.int64], kinds: npt.NDArray[np.uint8]
) -> dict[int, tuple[str, bytes]]:
    return {
        int(index): (tokens.roles.get(int(ids[index]), "control"), tokens.of(int(ids[index])))
        for index in np.flatnonzero(kinds == SPECIAL)
    }


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"a text cannot be encoded as UTF-8: {error.reason} at character {error.start}",
            code="distill.text",
            where=repr(text[max(error.start - 10, 0) : error.start + 10]),
            expected="text without lone surrogates",
            next="read the file as UTF-8, or remove the record",
        ) from error


def _disable_truncation(backend: Any) -> Any:
    """Return a tokenizer without truncation or padding; the argument is not changed."""
    if backend.truncation is None and backend.padding is None:
        return backend
    copy = type(backend).from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


_MATCHED_ROLES = ("bos", "eos", "pad")


@dataclass(frozen=True)
class TokenMap:
    """Groups of equal tokens; group 0 has no counterpart, all others have ids of both sides.

    Args:
        teacher: Group of each teacher id, (V of the teacher,), int64.
        student: Group of each student id, (V of the student,), int64.
        groups: Number of groups, including group 0.
    """

    teacher: npt.NDArray[np.int64]
    student: npt.NDArray[np.int64]
    groups: int

    def cut(self, teacher_rows: int, student_rows: int) -> TokenMap:
        """Resize to the heads' numbers of rows; rows without a token are in group 0."""
        return TokenMap(
            _fit(self.teacher, teacher_rows), _fit(self.student, student_rows), self.groups
        )

    def pool(self, probabilities: Tensor, *, of_teacher: bool) -> Tensor:
        """Sum probabilities (n, V) by group, (n, groups)."""
        import torch

        group = torch.from_numpy(self.teacher if of_teacher else self.student)
        shape = (probabilities.shape[0], self.groups)
        return probabilities.new_zeros(shape).index_add_(
            1, group.to(probabilities.device), probabilities
        )

    def to_json(self) -> dict[str, Any]:
        """Return the numbers of matched tokens of both vocabularies."""
        return {
            "groups": self.groups - 1,
            "teacher_matched": int((self.teacher > 0).sum()),
            "student_matched": int((self.student > 0).sum()),
        }


def map_tokens(teacher: TokenBytes, student: TokenBytes) -> TokenMap:
    """Group the tokens of two vocabularies by bytes, special tokens by role or surface."""
    student_keys, teacher_keys = _keys(teacher), _keys(student)
    shared = {
        key: number
        for number, key in enumerate(sorted(set(student_keys) & set(teacher_keys)), start=1)
    }
    sides = []
    for tokens, keys in ((teacher, student_keys), (student, teacher_keys)):
        groups = np.zeros(len(tokens), dtype=np.int64)
        for key, group in shared.items():
            groups[keys[key]] = group
        sides.append(groups)
    return TokenMap(sides[0], sides[1], len(shared) + 1)


def _keys(tokens: TokenBytes) -> dict[tuple[str, bytes], list[int]]:
    keys: dict[tuple[str, bytes], list[int]] = {}
    for token_id, kind in enumerate(tokens.kinds.tolist()):
        if kind == TEXT:
            keys.setdefault(("text", tokens.of(token_id)), []).append(token_id)
        elif kind == SPECIAL:
            role = tokens.roles[token_id]
            key = (role, b"") if role in _MATCHED_ROLES else ("special", tokens.of(token_id))
            keys.setdefault(key, []).append(token_id)
    return keys


def _fit(groups: npt.NDArray[np.int64], rows: int) -> npt.NDArray[np.int64]:
    return np.concatenate([groups[:rows], np.zeros(max(rows - len(groups), 0), dtype=np.int64)])
