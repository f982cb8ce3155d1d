"""Unicode normalization, exact match and token F1 of answers (SQuAD), and graphemes.

Source: Rajpurkar et al. 2016, arXiv:1606.05250 (the normalization, exact match and F1 of SQuAD).
Differs: in scripts without spaces every character is a word, so that F1 is meaningful for Chinese.

Source: Unicode Standard Annex 29 (grapheme clusters), as the package regex has it.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any

import regex

__all__ = [
    "UNSPACED_SCRIPTS",
    "count_invisible",
    "exact_match",
    "find_grapheme_boundary",
    "find_options",
    "fold_case",
    "fold_text",
    "is_grapheme_boundary",
    "locate_words",
    "normalize_text",
    "raise_number",
    "replace_surrogates",
    "split_words",
    "strip_invisible",
    "token_f1",
]


UNSPACED_SCRIPTS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)

_WORD = re.compile(
    rf"[{UNSPACED_SCRIPTS}]|[^\W_{UNSPACED_SCRIPTS}]+(?:['’][^\W_{UNSPACED_SCRIPTS}]+)*"
)

_PICTOGRAPHS = "\u00a9\u00ae\u203c-\u3299\U0001f000-\U0001faff"
_JOINING = "\u0600-\u06ff\u0900-\u0dff"  # Arabic and Indic scripts write with the joiners

_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
    f"|(?<![{_PICTOGRAPHS}{_JOINING}\ufe0f])\u200d|(?<![{_JOINING}])\u200c"
    f"|(?<![{_PICTOGRAPHS}#*0-9\u0e00-\u109f\u3400-\u9fff])[\ufe00-\ufe0f]"
)

_RAISED = str.maketrans("0123456789+-−n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻ⁿ")
# A number, a sign, a charge (2+), a list of notes (1, 2), or a term with n.
_NUMBER = re.compile(r"\s*+[+\-−]?(?:[0-9n]{1,4}(?:(?:[.,/–+\-−]|, )[0-9n]{1,4})*)?[+\-−]?\s*")

_RUN = re.compile(r"\S+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_OPTION = re.compile(r"(?<!\w)-+\w[\w-]*")
_CASED = re.compile(rf"({_OPTION.pattern})|\w+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CJK = re.compile(rf"([{UNSPACED_SCRIPTS}])")


def raise_number(text: str) -> str:
    """Return a superscript number in Unicode's superscripts, other text unchanged.

    Written on the line, 10 to the 6th would read as 106, and sulfate, SO₄²⁻, as SO42-. The length
    does not change.
    """
    return text.translate(_RAISED) if _NUMBER.fullmatch(text) else text


def replace_surrogates(value: Any) -> Any:
    """Replace each lone surrogate by U+FFFD in text, or in the text of JSON values.

    JSON can escape half a surrogate pair, but UTF-8 cannot encode it and tokenizers refuse it.
    """
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {key: replace_surrogates(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_surrogates(item) for item in value]
    return value


def normalize_text(text: str) -> str:
    """Normalize text for comparison: NFKC, case folded, words joined by single spaces.

    Punctuation, symbols and invisible characters are removed.
    """
    return " ".join(split_words(text))


def split_words(text: str) -> list[str]:
    """Return the normalized words of a text in order.

    Letters and digits make words; every character of a script without spaces is a word.
    """
    return _WORD.findall(fold_text(text))


def locate_words(text: str) -> list[tuple[str, int, int]]:
    """Return the normalized words of a text with the range ``text[start:end]`` of each.

    They are those of ``split_words``, apostrophes made straight. Words that share a character of
    the text (``½`` is ``1`` and ``2``) are one, joined by a space, so that the words of a range
    from one start to one end are exactly those between them.
    """
    if text.isascii():
        return [(word[0], *word.span()) for word in _WORD.finditer(text.lower())]
    located: list[tuple[str, int, int]] = []
    for run in _RUN.finditer(text):  # normalization never joins across white space
        if run[0].isascii():
            offset = run.start()
            located += [
                (word[0], offset + word.start(), offset + word.end())
                for word in _WORD.finditer(run[0].lower())
            ]
        else:
            located += _locate_folded(run[0], run.start())
    return located


def _locate_folded(run: str, offset: int) -> list[tuple[str, int, int]]:
    """Return the words of a text without white space that is not ASCII."""
    hidden = {i for match in _INVISIBLE.finditer(run) for i in range(*match.span())}
    kept = [i for i in range(len(run)) if i not in hidden]
    visible = "".join(run[i] for i in kept)
    clusters = [match.span() for match in _CLUSTER.finditer(visible)]
    parts = [fold_text(visible[start:end]) for start, end in clusters]
    folded, again = fold_text(run), fold_text(visible)
    if _WORD.findall(again) == _WORD.findall(folded):
        folded = again  # joiners are invisible only beside some characters, which may be hidden now
    if "".join(parts) != folded:  # characters of different clusters combine: take the run whole
        clusters, parts = [(0, len(visible))], [folded]
    owners = [number for number, part in enumerate(parts) for _ in part]
    located: list[tuple[str, int, int]] = []
    last = -1
    for match in _WORD.finditer(folded):
        word = match[0].replace("’", "'")
        first, end = owners[match.start()], offset + kept[clusters[owners[match.end() - 1]][1] - 1]
        if first == last:
            before, start, _ = located.pop()
            located.append((f"{before} {word}", start, end + 1))
        else:
            located.append((word, offset + kept[clusters[first][0]], end + 1))
        last = owners[match.end() - 1]
    return located


def fold_text(text: str) -> str:
    """Normalize text for word search: NFKC, case folded, without invisible characters."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()


def strip_invisible(text: str) -> str:
    r"""Remove characters that are invisible to a person but visible to a model.

    Zero-width and bidirectional marks, Unicode tags, stray variation selectors and control
    characters can hide instructions; the joiners in emoji and in Persian and Indic words stay. Line
    ends become ``\n``. Offsets change: for prompts, not for spans.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.isascii():
        return _CONTROL.sub("", text)
    return _CONTROL.sub("", _INVISIBLE.sub("", text))


def count_invisible(text: str) -> int:
    """Return the number of characters removed by ``strip_invisible``, line ends not counted."""
    return len(_INVISIBLE.findall(text)) + len(_CONTROL.findall(text.replace("\r", "\n")))


def exact_match(prediction: str, reference: str) -> float:
    """Return 1.0 if the two answers are equal after SQuAD's normalization, else 0.0."""
    return float(_answer_words(prediction) == _answer_words(reference))


def token_f1(prediction: str, reference: str) -> float:
    """Return SQuAD's F1 over the words of two answers, from 0 to 1.

    Two answers without words are equal; only one without words scores 0.
    """
    predicted, expected = _answer_words(prediction), _answer_words(reference)
    if not predicted or not expected:
        return float(predicted == expected)
    same = sum((Counter(predicted) & Counter(expected)).values())
    if not same:
        return 0.0
    precision, recall = same / len(predicted), same / len(expected)
    return 2 * precision * recall / (precision + recall)


def _answer_words(text: str) -> list[str]:
    text = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION))
    return _CJK.sub(r" \1 ", text).split()


_MAX_CLUSTER = 64  # longer clusters are not natural text and may be split
_CLUSTER = regex.compile(r"\r\n|\s|\X")  # white space ends a passage, whatever mark leans on it


def is_grapheme_boundary(text: str, position: int) -> bool:
    """Return whether text may be split before ``position``; looks 64 code points back."""
    if position <= 0 or position >= len(text):
        return True
    start = max(position - _MAX_CLUSTER, 0)  # as a slice: regex reads what precedes its start
    clusters = _CLUSTER.finditer(text[start : position + 1])
    return any(cluster.end() == position - start for cluster in clusters)


def find_grapheme_boundary(text: str, position: int, low: int) -> int:
    """Return the last safe split at or before ``position`` but after ``low``.

    If there is none, the first safe split after it; clusters of over 64 code points are split.
    """
    back = position
    while back > low and position - back < _MAX_CLUSTER:
        if is_grapheme_boundary(text, back):
            return back
        back -= 1
    forward = position
    while forward < len(text) and forward - low < _MAX_CLUSTER:
        if is_grapheme_boundary(text, forward):
            return forward
        forward += 1
    return max(forward, low + 1)


def find_options(text: str) -> list[str]:
    """Return the options of commands that a text names, such as -v and --all."""
    return _OPTION.findall(text)


def fold_case(text: str) -> str:
    """Return a text in NFC and without case, which has a meaning in options alone: -v is not -V."""
    composed = unicodedata.normalize("NFC", text)
    return _CASED.sub(lambda found: found[1] or found[0].casefold(), composed)
