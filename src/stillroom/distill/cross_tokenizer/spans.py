"""Byte spans of tokens in a text, and the map of equal tokens between two vocabularies.

The bytes of the tokens, joined, are compared with the text: where they are equal every span is
exact, also of tokens that split a character. Where a normalizer changed the text, the spans are the
tokenizers library's own character offsets and say so; tokens that share a character then share one
span, since the border between them is not in the text.

Tokens are compared by their bytes, never by how a vocabulary writes them (``Ġthe`` and ``▁the`` are
both " the"), special tokens by their role. Several ids of one side with the same bytes form one
group; every token without a counterpart is in the rest, group 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError
from stillroom.models.tokenization.token_bytes import SPECIAL, TEXT, UNKNOWN, TokenBytes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "RoundTrip",
    "TokenMap",
    "TokenSpans",
    "check_round_trip",
    "locate_tokens",
    "map_tokens",
    "match_tokens",
]


_BLANK = frozenset(b" \t\n\r\x0b\x0c")


@dataclass(frozen=True)
class TokenSpans:
    """A text's tokens and the bytes each covers.

    Args:
        text: The text's bytes, (S,), uint8.
        ids: (T,), int64.
        starts: First byte of each token, (T,), int64; does not decrease.
        ends: Byte after its last, (T,), int64. A special token that is not in the text is empty.
        kinds: TEXT, SPECIAL or UNKNOWN of each token, (T,), uint8.
        roles: Role and surface of each special token, by position in ``ids``.
        is_exact: Whether the tokens' bytes are the text; else the spans are character offsets.
    """

    text: npt.NDArray[np.uint8]
    ids: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.uint8]
    roles: dict[int, tuple[str, bytes]]
    is_exact: bool

    def __len__(self) -> int:
        """Return how many tokens there are."""
        return len(self.ids)


@dataclass(frozen=True)
class RoundTrip:
    """How many texts' tokens joined to exactly the text, and the first that did not."""

    texts: int
    exact: int
    first_inexact: str = ""


def locate_tokens(
    tokenizer: Any, tokens: TokenBytes, text: str, *, add_special_tokens: bool = False
) -> TokenSpans:
    """Tokenize a text and say which bytes each token covers.

    Args:
        tokenizer: The fast tokenizer that ``tokens`` was read from.
        tokens: Its tokens' bytes.
        text: Any text; special tokens that it spells out are read as such.
        add_special_tokens: Whether the tokenizer adds those of its own (bos and so on).
    """
    _encode(text)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    encoded = _disable_truncation(backend).encode(text, add_special_tokens=add_special_tokens)
    ids = np.asarray(encoded.ids, dtype=np.int64)
    placed = match_tokens(tokens, ids, text)
    return placed if placed is not None else _read_offsets(tokens, ids, text, encoded.offsets)


def match_tokens(tokens: TokenBytes, ids: npt.NDArray[np.int64], text: str) -> TokenSpans | None:
    """Return exact spans of tokens that were made elsewhere; None where they are not the text.

    A special token covers its surface if that stands in the text at its place, and nothing if not.
    One space that the tokenizer put before the text, or after a special token, covers nothing.
    """
    tokens.check(ids)
    raw = _encode(text)
    kinds = tokens.kinds[ids]
    if (kinds == UNKNOWN).any():
        return None
    lengths = tokens.starts[ids + 1] - tokens.starts[ids]
    places = np.zeros(len(ids), dtype=np.int64)
    at = first = 0
    for special in [*np.flatnonzero(kinds == SPECIAL).tolist(), len(ids)]:
        if special > first:
            begin = _match_run(tokens, ids[first:special], raw, at)
            if begin is None:
                return None
            sizes = lengths[first:special].copy()
            _shorten(sizes, at - begin)
            ends = at + sizes.cumsum()
            places[first:special], at = ends - sizes, int(ends[-1])
            lengths[first:special] = sizes
        if special < len(ids):
            places[special], lengths[special], at = _match_special(
                tokens, int(ids[special]), raw, at
            )
        first = special + 1
    if at != len(raw):
        return None
    return TokenSpans(
        np.frombuffer(raw, dtype=np.uint8),
        ids,
        places,
        places + lengths,
        kinds,
        _get_roles(tokens, ids, kinds),
        is_exact=True,
    )


def check_round_trip(tokenizer: Any, tokens: TokenBytes, texts: Iterable[str]) -> RoundTrip:
    """Tokenize texts and count those whose tokens' bytes are exactly the text."""
    count = exact = 0
    first = ""
    for text in texts:
        count += 1
        if locate_tokens(tokenizer, tokens, text).is_exact:
            exact += 1
        elif not first:
            first = text[:80]
    return RoundTrip(count, exact, first)


def _match_run(tokens: TokenBytes, ids: npt.NDArray[np.int64], raw: bytes, at: int) -> int | None:
    """Return where the run's bytes begin: ``at``, or one before it if a space was put there."""
    joined = tokens.join(ids).tobytes()
    orders = {"no": (0,), "missing": (0, 1), "always": (1, 0)}[tokens.prepends]
    for extra in orders:
        if extra and not joined.startswith(b" "):
            continue
        if raw.startswith(joined[extra:], at):
            return at - extra
    return None


def _shorten(sizes: npt.NDArray[np.int64], extra: int) -> None:
    """Take the space that is not in the text from the first token that has bytes."""
    if extra:
        sizes[int(np.flatnonzero(sizes)[0])] -= extra


def _match_special(tokens: TokenBytes, token_id: int, raw: bytes, at: int) -> tuple[int, int, int]:
    """Return where a special token begins, how many bytes it covers, where the text goes on."""
    surface = tokens.of(token_id)
    begin = at
    if token_id in tokens.eats_left:
        while begin < len(raw) and raw[begin] in _BLANK:
            begin += 1
    if not surface or not raw.startswith(surface, begin):
        return at, 0, at
    end = begin + len(surface)
    if token_id in tokens.eats_right:
        while end < len(raw) and raw[end] in _BLANK:
            end += 1
    return at, end - at, end


def _read_offsets(
    tokens: TokenBytes,
    ids: npt.NDArray[np.int64],
    text: str,
    offsets: list[tuple[int, int]],
) -> TokenSpans:
    """Return spans from character offsets; a gap (white space) goes to the token after it."""
    raw = _encode(text)
    bytes_at = _count_bytes_before(text)
    chars = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    starts, ends = bytes_at[chars[:, 0]], bytes_at[chars[:, 1]]
    kinds = tokens.kinds[ids]
    is_empty = ends <= starts
    reached = np.maximum.accumulate(np.where(is_empty, 0, ends)) if len(ids) else ends
    before = np.concatenate([[0], reached[:-1]]) if len(ids) else starts
    # A token that begins before the one before it has ended shares a character with it.
    opens = is_empty | (starts >= before)
    group = np.cumsum(opens) - 1
    first = np.flatnonzero(opens)
    spans_start = before[first][group] if len(ids) else starts
    last = np.append(first[1:], len(ids)) - 1
    spans_end = reached[last][group] if len(ids) else ends
    spans_start = np.where(is_empty, before, spans_start)
    spans_end = np.where(is_empty, before, spans_end)
    return TokenSpans(
        np.frombuffer(raw, dtype=np.uint8),
        ids,
        spans_start.astype(np.int64),
        spans_end.astype(np.int64),
        kinds,
        _get_roles(tokens, ids, kinds),
        is_exact=False,
    )


def _count_bytes_before(text: str) -> npt.NDArray[np.int64]:
    """Return how many bytes of UTF-8 come before each character and the end, (C + 1,)."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], sizes.cumsum()]).astype(np.int64)


def _get_roles(
    tokens: TokenBytes, ids: npt.NDArray[np.int64], kinds: npt.NDArray[np.uint8]
) -> dict[int, tuple[str, bytes]]:
    return {
        int(at): (tokens.roles.get(int(ids[at]), "control"), tokens.of(int(ids[at])))
        for at in np.flatnonzero(kinds == SPECIAL)
    }


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"a text cannot be written as UTF-8: {error.reason} at character {error.start}",
            code="distill.text",
            where=repr(text[max(error.start - 10, 0) : error.start + 10]),
            expected="text without lone surrogates",
            next="read the file as UTF-8, or drop the record",
        ) from error


def _disable_truncation(backend: Any) -> Any:
    """Return a tokenizer that neither cuts nor pads, without changing the one given."""
    if backend.truncation is None and backend.padding is None:
        return backend
    copy = type(backend).from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


_MATCHED_ROLES = ("bos", "eos", "pad")


@dataclass(frozen=True)
class TokenMap:
    """Group of each id; group 0 is the rest, the others have ids of both sides.

    Args:
        teacher: Group of each teacher id, (V of the teacher,), int64.
        student: Group of each student id, (V of the student,), int64.
        groups: How many groups there are, the rest included.
    """

    teacher: npt.NDArray[np.int64]
    student: npt.NDArray[np.int64]
    groups: int

    def cut(self, teacher_rows: int, student_rows: int) -> TokenMap:
        """Return the map for heads of so many rows; rows without a token belong to the rest."""
        return TokenMap(
            _fit(self.teacher, teacher_rows), _fit(self.student, student_rows), self.groups
        )

    def pool(self, probabilities: Tensor, *, of_teacher: bool) -> Tensor:
        """Return the probability of each group, (n, groups), of (n, V)."""
        import torch

        group = torch.from_numpy(self.teacher if of_teacher else self.student)
        shape = (probabilities.shape[0], self.groups)
        return probabilities.new_zeros(shape).index_add_(
            1, group.to(probabilities.device), probabilities
        )

    def to_json(self) -> dict[str, Any]:
        """Return how much of both vocabularies has a counterpart."""
        return {
            "groups": self.groups - 1,
            "teacher_matched": int((self.teacher > 0).sum()),
            "student_matched": int((self.student > 0).sum()),
        }


def map_tokens(teacher: TokenBytes, student: TokenBytes) -> TokenMap:
    """Group the tokens of two vocabularies by their bytes, special ones by role or surface."""
    ours, theirs = _keys(teacher), _keys(student)
    shared = {key: at for at, key in enumerate(sorted(set(ours) & set(theirs)), start=1)}
    sides = []
    for tokens, keys in ((teacher, ours), (student, theirs)):
        groups = np.zeros(len(tokens), dtype=np.int64)
        for key, group in shared.items():
            groups[keys[key]] = group
        sides.append(groups)
    return TokenMap(sides[0], sides[1], len(shared) + 1)


def _keys(tokens: TokenBytes) -> dict[tuple[str, bytes], list[int]]:
    keys: dict[tuple[str, bytes], list[int]] = {}
    for at, kind in enumerate(tokens.kinds.tolist()):
        if kind == TEXT:
            keys.setdefault(("text", tokens.of(at)), []).append(at)
        elif kind == SPECIAL:
            role = tokens.roles[at]
            key = (role, b"") if role in _MATCHED_ROLES else ("special", tokens.of(at))
            keys.setdefault(key, []).append(at)
    return keys


def _fit(groups: npt.NDArray[np.int64], rows: int) -> npt.NDArray[np.int64]:
    return np.concatenate([groups[:rows], np.zeros(max(rows - len(groups), 0), dtype=np.int64)])
