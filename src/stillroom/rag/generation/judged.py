"""Answers with human feedback (judgments), given again for the same question.

What the last verdict on a question says is followed as long as the documents bear it out: the quote
that was called right or named is given, verbatim, while its passage stands unchanged in its file
and may be seen; that the documents hold no answer, while the index is in the state that was judged.
The first quotes of answers that were called wrong are not candidates. Only the same question counts
(``JudgmentStore.find``), asked by who has the scope of the judgment.

Readers are measured without this: it is no setting, and no evaluation may import this module (an
import contract), since questions that were judged would be answered by their own judgment.

Source: curated and active-learning answers of question answering services, as Azure AI Language's
and Amazon Kendra's featured results. Differs: questions are never matched by similarity.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.evaluate.qa.judgments import Judgment
from stillroom.rag.answer_selection.encoding import extend_to_sentences, find_sentences
from stillroom.rag.generation.refusals import is_declined
from stillroom.rag.generation.session import JudgedAnswer, digest_sentence
from stillroom.rag.retrieval.pipeline import search_phrase
from stillroom.records import make_content_id

if TYPE_CHECKING:
    from stillroom.evaluate.qa.judgments import AskedAnswer, JudgmentStore
    from stillroom.rag.index.searcher import Index
    from stillroom.records import Passage

    Place = tuple[str, int, int]

__all__ = ["find_judged", "is_borne_out"]

_MARK = re.compile(r"\s*\[\d{1,3}\]")
_FIRST_SIGNS = re.compile(r"\A[\W_]*\n")  # earlier versions quoted the line below a heading
_DATE_CHARS = 10
_PLACED = {"document_id", "passage", "start", "file"}  # fields of evidence that names its place


def find_judged(
    store: JudgmentStore, index: Index, question: str, scope: tuple[str, ...] = ("",)
) -> JudgedAnswer | None:
    """Return what was judged of a question, or None.

    Judgments that cannot be read are not followed, and the notice says so.

    ``index`` shows what the person who asks may see; ``scope`` is that person's tenant and
    principals.
    """
    try:
        judgments = store.find(question, scope)
    except (DataError, OSError) as error:
        why = error.problems[0].code if isinstance(error, DataError) else error.strerror
        return JudgedAnswer(notice=f"judgments of people cannot be read ({why}): none is followed")
    chosen, wrong = _reduce(judgments)
    notice = ""
    if chosen is not None:
        decided = _decide(index, chosen)
        if decided is not None:
            return decided
        notice = _explain(chosen)
    if not wrong and not notice:
        return None
    if not wrong:
        return JudgedAnswer(notice=notice)
    last = max(wrong.values(), key=lambda judgment: judgment.time)
    left_out = tuple(sorted(wrong))
    return JudgedAnswer(last.id, "wrong", last.time, wrong=left_out, notice=notice)


def is_borne_out(
    stated: JudgedAnswer,
    store: JudgmentStore,
    index: Index,
    question: str,
    scope: tuple[str, ...] = ("",),
) -> bool:
    """Return whether what an answer follows was judged of its question, be it replaced since.

    The judgment must lead to the stated quotes. Arguments are as for ``find_judged``.
    """
    try:
        known = store.find(question, scope, replaced=True)
    except (DataError, OSError):
        return False
    own = [one for one in known if (one.id, one.time) == (stated.id, stated.time)]
    if stated.verdict == "wrong":
        shown = (_digest_shown(one.asked) for one in known if one.verdict != "right")
        return bool(own) and set(stated.wrong) <= set[str]().union(*shown)
    return any(_decide(index, one) == stated for one in own)


def _decide(index: Index, chosen: Judgment) -> JudgedAnswer | None:
    """Return the answer that a verdict is in these documents, None if it is none any more.

    That they hold no answer was judged of those that were asked: neither of a state that came
    before the verdict, nor of a part that a filter chose.
    """
    quotes = tuple(_locate(index, chosen))
    judged_by = {chosen.state, chosen.asked.index or chosen.state}
    if quotes or (chosen.verdict == "absent" and judged_by == {index.digest}):
        return JudgedAnswer(chosen.id, chosen.verdict, chosen.time, quotes)
    return None


def _reduce(judgments: Iterable[Judgment]) -> tuple[Judgment | None, dict[str, Judgment]]:
    """Return the judgment that counts, and by digest the sentences that are not to be quoted."""
    chosen, wrong = None, dict[str, Judgment]()
    for one in judgments:
        shown = _digest_shown(one.asked)
        if one.verdict != "right":
            wrong |= dict.fromkeys(shown, one)
        if one.verdict != "wrong":
            chosen = one
        elif chosen is not None and _has_given(chosen, one.asked, shown):
            chosen = None
    if chosen is not None:
        for sentence in _digest_chosen(chosen):
            wrong.pop(sentence, None)
    return chosen, wrong


def _has_given(chosen: Judgment, asked: AskedAnswer, shown: set[str]) -> bool:
    """Return whether an answer is what a judgment would have given."""
    if chosen.verdict == "absent":
        return is_declined(asked.text)
    return bool(shown & _digest_chosen(chosen))


def _digest_chosen(chosen: Judgment) -> set[str]:
    quotes = [str(part["quote"]) for part in chosen.evidence]
    first = _digest_shown(chosen.asked) if chosen.verdict == "right" else set()
    return first | set(_digest_text(quotes))


def _digest_shown(asked: AskedAnswer) -> set[str]:
    """Return the digests of an answer's first quote and of its sentences."""
    if is_declined(asked.text):
        return set()
    first = []
    for quote in asked.quotes:  # the cells of a row and the items of a list have one mark
        first.append(str(quote["text"]))
        if _MARK.match(asked.text, int(quote.get("answer_start", 0)) + len(first[-1])):
            break
    return set(_digest_text(first or [_MARK.split(asked.text, maxsplit=1)[0]]))


def _digest_text(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        parts = [text, *(text[a:b] for a, b in find_sentences(text))]
        yield from map(digest_sentence, [*parts, *(_FIRST_SIGNS.sub("", part) for part in parts)])


def _explain(chosen: Judgment) -> str:
    """Return why a verdict is not followed, empty where there was nothing to follow."""
    date = chosen.time[:_DATE_CHARS]
    if chosen.verdict == "absent":
        return (
            f"a person judged on {date} that the documents hold no answer; "
            "they have changed since, or other ones were asked, so they were read again"
        )
    if not chosen.evidence:
        return ""
    return (
        f"a person judged on {date} which sentence answers; the documents asked no longer hold "
        "its passage unchanged, so they were read again"
    )


def _locate(index: Index, chosen: Judgment) -> list[Place]:
    """Return the places of the judged quotes; none unless all stand unchanged."""
    if chosen.verdict == "right" and chosen.asked.quotes:
        cited = [index.passage(name) for name in _list_held(index, chosen.asked.citations.values())]
        quotes = [_locate_quote(chosen.asked, quote, cited) for quote in chosen.asked.quotes]
        if places := _keep_whole(quotes):
            return places
    return _keep_whole(_locate_evidence(index, part) for part in chosen.evidence)


def _keep_whole(places: Iterable[Place | None]) -> list[Place]:
    """Return the places, or none if one is missing."""
    found = list(dict.fromkeys(places))
    known = [place for place in found if place is not None]
    return known if len(known) == len(found) else []


def _list_held(index: Index, ids: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(ids) if index.find_row(name) is not None]


def _locate_quote(
    asked: AskedAnswer, quote: Mapping[str, Any], cited: Iterable[Passage]
) -> Place | None:
    """Return the place of a quote of an answer, in whole sentences of a passage that it cites.

    The one who judges sends the quotes: part of a sentence may say the contrary of the whole.
    """
    text, start = str(quote["text"]), int(quote.get("start", 0))
    if not asked.text.startswith(text, int(quote.get("answer_start", 0))):
        return None
    held = next((one for one in cited if one.text.startswith(text, start)), None)
    if held is None:
        return None
    headings = (*held.headings, held.title)
    return held.id, *extend_to_sentences(held.text, headings, (start, start + len(text)))


def _locate_evidence(index: Index, part: Mapping[str, Any]) -> Place | None:
    """Return the place of a judged sentence in its passage.

    Where the file has changed, the passage has another id, and perhaps another place: it is the
    same if the old id is that of its text at the place that the judgment implies.
    """
    if not part.keys() >= _PLACED:
        return None
    quote, first, file = part["quote"], part["start"], part["file"]
    kept = (index.passage(name) for name in _list_held(index, [part["passage"]]))
    moved = (one for one in _search(index, quote) if one.location.path == file)
    for passage in chain(kept, moved):
        at = passage.text.find(quote)
        while at >= 0:
            start = first - at
            end = start + passage.end - passage.start
            name = make_content_id("pas", part["document_id"], start, end, passage.text)
            if name == part["passage"]:
                return passage.id, at, at + len(quote)
            at = passage.text.find(quote, at + 1)
    return None


def _search(index: Index, quote: str) -> Iterator[Passage]:
    yield from search_phrase(index, quote)  # only if the passage is gone
