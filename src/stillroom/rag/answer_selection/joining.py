"""Which spans of passages are quoted of the chosen sentences: what is next to another as one.

A sentence that cannot be read alone brings the one before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stillroom.rag.answer_selection.encoding import find_code, find_rows

if TYPE_CHECKING:
    from stillroom.rag.answer_selection.overlap import ScoredSentence

__all__ = ["Quoted", "goes_on", "is_head", "join_runs"]

Quoted = tuple[int, tuple[int, int], tuple[int, int] | None]
"""Index of a passage, a span in its text, and the span of a short answer in it, if known."""
# English words whose meaning stands in the sentence before.
_ANAPHOR = re.compile(
    r"(?!(?-i:[A-Z]{2,}\b(?! [A-Z]{2})))"  # not IT, nor the OR of SQL, but in a text in capitals
    r"(?:it|its|they|their|them|he|his|she|her|both|the (?:latter|former)"
    r"|(?:(?:after|as|at|because of|before|by|due to|during|for|from|if|in|of|on|since|to|under"
    r"|when|with|without) )?(?:this|that|these|those|such)"
    r"|accordingly|alternatively|and|but|consequently|conversely|hence|however|if (?:so|not)"
    r"|instead|nevertheless|nonetheless|nor|or|otherwise|so|then|therefore|thus|yet)\b(?!-)",
    re.IGNORECASE,
)
_ITEM_MARK = re.compile(r"(?:[-–•‣◦*+]|\(?\d{1,3}[.)])[ \t]+")
# A sentence of which the splitter took the full stop of an abbreviation or a name for its end.
_GOES_ON = re.compile(r"[.][ \t]*\n?[ \t]*(?:[a-z]|\.\w)")
# What restricts the sentence after it.
_CAUTION = re.compile(
    r"\b(?:caution|deprecated|discouraged|neither|obsolete|unsupported|warning"
    r"|not (?:\w+ )?(?:implemented|recommended|supported))\b",
    re.IGNORECASE,
)
# Without it, the sentence that follows it may say the opposite.
_YES_OR_NO = re.compile(r"(?:yes|no|ja|nein|oui|non|sí|si)\W*", re.IGNORECASE)
_PARAGRAPH = re.compile(r"\n[ \t\r]*\n")
_ENDS = (":", ".", "：", "。")  # of what announces code, unlike the row of a table
_MAX_CODE = 800  # characters of a sentence and the code that it announces


def is_head(text: str, sentence: ScoredSentence) -> bool:
    """Return whether a sentence is the head of a table: it names columns, and has no answer."""
    starts = [start for start, _ in find_rows(text)]
    below = min((start for start in starts if start >= sentence.end), default=sentence.end)
    gap = text[sentence.end : below]
    is_above = "\n" in gap and not any(map(str.isalnum, gap)) and not _PARAGRAPH.search(gap)
    return is_above and sentence.start not in starts


def goes_on(sentence: ScoredSentence, other: ScoredSentence, texts: Sequence[str]) -> bool:
    """Return whether one of two sentences goes on from the other with a word such as "However"."""
    first, last = sorted((sentence, other), key=lambda one: one.start)
    text = texts[first.passage]
    gap = text[first.end : last.start]
    is_apart = first.passage != last.passage or first == last or _PARAGRAPH.search(gap)
    return not (gap.strip() or is_apart) and bool(_ANAPHOR.match(text, last.start))


def _find_beginning(sentence: ScoredSentence, every: Sequence[ScoredSentence], text: str) -> int:
    """Return where a sentence's quote begins: before it, if its first word points there.

    Also after "Yes." or "No.", a caution or the beginning of the same sentence, and before code:
    the sentence above it says what it does.
    """
    code = find_code(text, sentence.start)
    if code is not None:
        above = [other for other in every if other.passage == sentence.passage]
        above = [other for other in above if other.end <= code]
        last = max(above, key=lambda other: other.end, default=sentence)
        is_near = not any(map(str.isalnum, text[last.end : code]))
        is_short = sentence.end - last.start <= _MAX_CODE
        announces = text[last.start : last.end].endswith(_ENDS)
        return last.start if is_near and is_short and announces else sentence.start
    mark = _ITEM_MARK.match(text, sentence.start)
    is_anaphor = _ANAPHOR.match(text, mark.end() if mark else sentence.start)
    gaps = {
        other.start: text[other.end : sentence.start]
        for other in every
        if other.passage == sentence.passage
        and other.end <= sentence.start
        and (
            is_anaphor
            or _YES_OR_NO.fullmatch(text, other.start, other.end)
            or _CAUTION.search(text, other.start, other.end)
            or _GOES_ON.match(text, other.end - 1)
        )
    }
    before = (start for start, gap in gaps.items() if not (gap.strip() or _PARAGRAPH.search(gap)))
    return max(before, default=sentence.start)


def join_runs(
    chosen: Sequence[ScoredSentence], every: Sequence[ScoredSentence], texts: Sequence[str]
) -> list[Quoted]:
    """Return the spans to quote, neighboring sentences as one: the best sentence's passage first.

    Those of one passage are in reading order. The short answer of several is that of the best. Rows
    of a table stay apart. A sentence that begins with a word such as "It" is quoted with the one
    right before it, if that one may be quoted, and so is one after "Yes.", "No." or a caution, and
    code.
    """
    spans = []
    for sentence in chosen:
        text = texts[sentence.passage]
        short = None if is_head(text, sentence) else sentence.short
        start = _find_beginning(sentence, every, text)
        spans.append((sentence.passage, (start, sentence.end), short))
    runs: list[Quoted] = []
    best = list[int]()  # of each run, the rank of the sentence that its short answer is of
    places = {passage: rank for rank, (passage, *_) in reversed([*enumerate(spans)])}
    ranked = sorted(enumerate(spans), key=lambda item: (places[item[1][0]], *item[1][:2]))
    edges = {(n, edge) for n, text in enumerate(texts) for row in find_rows(text) for edge in row}
    edges |= {(s.passage, edge) for s in chosen if s not in every for edge in (s.start, s.end)}
    for rank, (passage, (start, end), short) in ranked:
        text = texts[passage]
        if runs and runs[-1][0] == passage:
            _, (first, last), known = runs[-1]
            is_row = not edges.isdisjoint({(passage, last), (passage, start)})
            if start < last or not (is_row or text[last:start].strip()):
                if short and (known is None or rank < best[-1]):
                    known, best[-1] = short, rank
                runs[-1] = (passage, (first, max(last, end)), known)
                continue
        runs.append((passage, (start, end), short))
        best.append(rank)
    quoted = [" ".join(texts[passage][start:end].split()) for passage, (start, end), _ in runs]
    return [
        run
        for number, run in enumerate(runs)
        if not any(
            quoted[number] in other and (quoted[number] != other or place < number)
            for place, other in enumerate(quoted)
            if place != number
        )
    ]
