"""Human feedback on an answer (``judge_answer``): the sentences of the index that it is about.

A verdict needs evidence to be learned from: the sentence of a right answer that says most of the
question, or the text that a person names instead. Both are found in the passages that the person
may see, so that every stored quote stands in the documents, with its span.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.evaluate.qa.judgments import AskedAnswer, Judgment, Verdict, make_moment
from stillroom.jobs.progress import escape_line
from stillroom.rag.answer_selection.encoding import extend_to_sentences, find_sentences
from stillroom.rag.answer_selection.overlap import QuestionOverlap
from stillroom.rag.generation.refusals import is_declined
from stillroom.rag.retrieval.pipeline import search_phrase
from stillroom.text.unicode import UNSPACED_SCRIPTS

if TYPE_CHECKING:
    from stillroom.evaluate.qa.judgments import JudgmentStore
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.index.view import AccessContext
    from stillroom.records import Answer, Passage

__all__ = ["describe_asked", "find_gone", "get_scope", "judge_answer", "record_judgment"]

_MARK = re.compile(r"\s*\[(\d{1,3})\]")
_WORDS = re.compile(r"\w+")
_NEAREST = 3
_MAX_SHOWN = 200
_MAX_PIECES = 20
_LITTLE = 0.1  # share of the weight of a question's words, as of "the"
_QUOTE_FIELDS = ("text", "answer_start", "start", "short", "short_start")
# No boundary is needed next to a script without spaces, whose words touch each other.
_BEFORE = rf"(?:(?<!\w)|(?<=[{UNSPACED_SCRIPTS}])|(?=[{UNSPACED_SCRIPTS}]))"
_AFTER = rf"(?:(?!\w)|(?<=[{UNSPACED_SCRIPTS}])|(?=[{UNSPACED_SCRIPTS}]))"


def describe_asked(question: str, answer: Answer, access: AccessContext | None) -> AskedAnswer:
    """Return an answer as it is stored to be judged."""
    return AskedAnswer(
        question,
        answer.completion.text,
        {citation.number: citation.passage_id for citation in answer.citations},
        str(answer.details.get("index", "")),
        str(answer.details.get("answered_by", "")),
        *get_scope(access),
        make_moment(),
        tuple(
            {name: quote[name] for name in _QUOTE_FIELDS if name in quote}
            for quote in answer.details.get("quotes", ())
        ),
    )


def judge_answer(index: Index, asked: AskedAnswer, verdict: Verdict, quote: str = "") -> Judgment:
    """Return the judgment of an answer, with its evidence in the documents.

    Of a right answer one quoted sentence is evidence: that in which the reader found a short
    answer, unless that has words of the question, and another has these and more; without one, that
    with most. It and the short answer are accepted. An answer that quotes none is accepted as a
    text, without evidence, and so is a quote that the documents no longer hold. A refusal that is
    right says that the documents hold no answer.

    ``index`` shows what the person who judges may see; ``quote`` is a text of the documents that
    answers, for the verdict ``quote`` alone.

    Raises:
        DataError: If the verdict is ``quote`` and the text is missing or in no passage, another
            verdict has a text, or the answer's quotes are not of its text.
    """
    for part in asked.quotes:
        if part["text"] not in asked.text or (part.get("short") or "") not in part["text"]:
            raise DataError(
                f"the answer does not hold its quote {part['text']!r:.{_MAX_SHOWN}}",
                code="judge.other-answer",
                expected="quotes of the text that is judged, with short answers within them",
                next="give text and quotes of the same answer",
            )
    if (verdict == "quote") != bool(quote.strip()):
        raise DataError(
            f"the verdict {verdict!r} has {'a' if quote.strip() else 'no'} quoted text",
            code="judge.verdict",
            expected="a text of the documents for the verdict 'quote', and for no other",
            next="name the sentence that answers, or choose another verdict",
        )
    cited = list(_open_passages(index, asked.citations.values()))
    answers: tuple[str, ...] = ()
    evidence: list[dict[str, Any]] = []
    if verdict == "quote":
        passage, span = _locate_quote(index, quote, cited)
        answers = (passage.text[slice(*span)],)
        evidence.append(_describe_evidence(passage, span))
    elif verdict == "right" and is_declined(asked.text):
        verdict = "absent"
    elif verdict == "right":
        sentence = _choose_quoted(index, asked, cited)
        place = _find_place(index, sentence, cited)
        if place is not None:
            passage, span = place
            sentence = passage.text[slice(*span)]
            evidence.append(_describe_evidence(passage, span))
        elif not asked.quotes:
            sentence = " ".join(_MARK.sub("", asked.text).split())
        answers = (sentence,) if sentence else ()
    time, state = make_moment(), index.digest
    dated = replace(asked, time=asked.time or time)
    return Judgment(verdict, dated, answers, tuple(evidence), time, state)


def record_judgment(
    store: JudgmentStore,
    index: Index,
    asked: AskedAnswer,
    verdict: Verdict,
    quote: str = "",
    *,
    access: AccessContext | None = None,
) -> Judgment:
    """Judge an answer under the access of the person who judges, and store the judgment.

    Raises:
        DataError: See ``judge_answer``.
        ResourceError: If it cannot be stored.
    """
    tenant, principals = get_scope(access)
    own = replace(asked, tenant=tenant, principals=principals)
    judgment = judge_answer(index, own, verdict, quote)
    store.add(judgment)
    return judgment


def get_scope(access: AccessContext | None) -> tuple[str, tuple[str, ...]]:
    """Return tenant and principals as an answer stores them."""
    return (access.tenant, tuple(sorted(access.principals))) if access else ("", ())


def find_gone(index: Index, judgments: Iterable[Judgment]) -> set[str]:
    """Return the ids of judgments with evidence that no visible passage holds any more."""
    return {
        judgment.id
        for judgment in judgments
        if not all(
            _stands(index, str(part["passage"]), str(part["quote"])) for part in judgment.evidence
        )
    }


def _stands(index: Index, passage_id: str, quote: str) -> bool:
    def holds(passages: Iterable[Passage]) -> bool:
        return any(_find_text(passage.text, quote) for passage in passages)

    return holds(_open_passages(index, [passage_id])) or holds(search_phrase(index, quote))


def _open_passages(index: Index, ids: Collection[str]) -> Iterator[Passage]:
    """Yield the passages that the index still has and shows."""
    for name in dict.fromkeys(ids):
        if index.find_row(name) is not None:
            yield index.passage(name)


def _choose_quoted(index: Index, asked: AskedAnswer, cited: Sequence[Passage]) -> str:
    """Return the quoted sentence to learn from; empty if there is none."""
    sentences: list[tuple[str, str]] = []
    for quote in asked.quotes or _find_cited_texts(asked, cited):
        text, short = str(quote["text"]), str(quote.get("short") or "")
        place = int(quote.get("short_start", 0)) - int(quote.get("start", 0))
        for start, end in find_sentences(text) or [(0, len(text))]:
            holds = bool(short) and start <= place < end
            sentences.append((text[start:end], short if holds else ""))
    overlap = QuestionOverlap(index, asked.question)

    def rank(candidates: Sequence[tuple[str, str]]) -> tuple[str, str]:
        return max(candidates, key=lambda one: overlap(one[0]), default=("", ""))

    best, known = rank(sentences), rank([one for one in sentences if one[1]])
    # Joined sentences keep the first short answer alone: another may say all of it, and more. One
    # without a word of the question is no less of an answer: it continues the sentence before.
    most, both = overlap(best[0]), overlap(f"{best[0]} {known[0]}")
    says_more = 0 < overlap(known[0]) < most and both <= (1 + _LITTLE) * most
    return known[0] if known[1] and not says_more else best[0]


def _find_cited_texts(asked: AskedAnswer, cited: Sequence[Passage]) -> Iterator[dict[str, Any]]:
    """Yield the texts before the citations of a model's answer that stand in a cited passage."""
    start = 0
    for mark in islice(_MARK.finditer(asked.text), _MAX_PIECES):
        if int(mark[1]) not in asked.citations:
            continue
        text, start = asked.text[start : mark.start()], mark.end()
        if any(_find_text(passage.text, text) for passage in cited):
            yield {"text": text.strip()}


def _locate_quote(
    index: Index, quote: str, cited: Sequence[Passage]
) -> tuple[Passage, tuple[int, int]]:
    """Return passage and span of a text: in a cited passage, else in the best that a search finds.

    Raises:
        DataError: If no visible passage holds it.
    """
    place = _find_place(index, quote, cited)
    if place is not None:
        return place
    found = search_phrase(index, quote)
    raise DataError(
        f"no passage holds {' '.join(quote.split())!r:.{_MAX_SHOWN}}",
        code="judge.no-such-quote",
        expected="words of one passage, in their order"
        + "".join(
            f"\n  nearest: {escape_line(text)}" for text in _list_nearest(index, quote, found)
        ),
        next="copy the sentence from the document; case and punctuation do not matter",
    )


def _find_place(
    index: Index, text: str, cited: Iterable[Passage]
) -> tuple[Passage, tuple[int, int]] | None:
    """Return passage and span of a text: in a cited passage, else in the best of a search."""

    def find(passages: Iterable[Passage]) -> tuple[Passage, tuple[int, int]] | None:
        spans = ((passage, _find_text(passage.text, text)) for passage in passages)
        return next(((passage, span) for passage, span in spans if span is not None), None)

    return find(cited) or find(search_phrase(index, text))


def _list_nearest(index: Index, text: str, passages: Iterable[Passage]) -> list[str]:
    """Return the sentences with the most words in common with a text, by rarity."""
    overlap = QuestionOverlap(index, text)
    sentences = {
        " ".join(passage.text[start:end].split()): overlap(passage.text[start:end])
        for passage in passages
        for start, end in find_sentences(passage.text, (*passage.headings, passage.title))
    }
    ranked = sorted(sentences, key=lambda sentence: -sentences[sentence])
    return [text[:_MAX_SHOWN] for text in ranked[:_NEAREST] if sentences[text] > 0]


def _find_text(text: str, wanted: str) -> tuple[int, int] | None:
    """Return the span of words in a text, whatever their case and the characters between them.

    The span includes the punctuation that ends the wanted text, if it follows there, too.
    """
    words = _WORDS.findall(wanted)
    if not words:
        return None
    pattern = _BEFORE + r"\W+".join(map(re.escape, words)) + _AFTER
    found = re.search(pattern, text, re.IGNORECASE)
    if found is None:
        return None
    last = wanted.rstrip()[wanted.rstrip().rindex(words[-1]) + len(words[-1]) :]
    end = found.end() + len(last) * text.startswith(last, found.end())
    return found.start(), end


def _describe_evidence(passage: Passage, span: tuple[int, int]) -> dict[str, Any]:
    """Return the sentences that a span of a passage lies in, as evidence of a question set."""
    headings = (*passage.headings, passage.title)
    first, last = extend_to_sentences(passage.text, headings, span)
    return {
        "document_id": passage.document_id,
        # Not ``passage_id``, which names the passage that a question was made from.
        "passage": passage.id,
        "start": passage.start + first,
        "end": passage.start + last,
        "quote": passage.text[first:last],
        "file": passage.location.path,
    }
