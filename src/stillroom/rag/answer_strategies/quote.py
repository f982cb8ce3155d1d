"""Extractive answers: quote the retrieved sentences that answer the question; no model writes.

Source: Garg et al. 2020, "TANDA", arXiv:1911.04118 (answer sentence selection); Kamath et al. 2020,
arXiv:2006.09462 (no answer below a calibrated probability). Differs from both: sentences are read
within their passage (``stillroom.rag.answer_selection.reader``; ExtractiveReader of Haystack).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from operator import sub
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.errors import count_noun
from stillroom.provenance import digest_json
from stillroom.rag.answer_selection.definitions import (
    SentencePlaces,
    explain_terms,
    find_term,
    find_unread_names,
    keep_named,
    prefer_entries,
)
from stillroom.rag.answer_selection.encoding import (
    find_contents,
    find_lists,
    find_rows,
    is_caption,
    is_item,
    simplify_headings,
)
from stillroom.rag.answer_selection.examples import read_passage
from stillroom.rag.answer_selection.joining import Quoted, goes_on, is_head, join_runs
from stillroom.rag.answer_selection.overlap import QuestionOverlap
from stillroom.rag.answer_selection.reader import (
    BUILTIN_READER,
    MAX_READ_PASSAGES,
    MULTILINGUAL_READER,
    choose_reader,
    open_available_reader,
    weigh_sentence,
)
from stillroom.rag.answer_selection.terms import add_terms
from stillroom.rag.generation.question import add_subject
from stillroom.rag.generation.refusals import detect_refusal_language, get_refusal_wording
from stillroom.rag.generation.session import digest_sentence
from stillroom.rag.generation.verbatim import count_citations, find_verbatim_parts
from stillroom.rag.interfaces import AnswerStrategy
from stillroom.rag.observability import add_warning, stage
from stillroom.records import Completion, Hit
from stillroom.text.language import detect_language
from stillroom.text.unicode import normalize_text

if TYPE_CHECKING:
    from stillroom.rag.answer_selection.encoding import Span
    from stillroom.rag.answer_selection.overlap import OverlapReader, ScoredSentence
    from stillroom.rag.answer_selection.reader import SentenceReader
    from stillroom.rag.generation.session import AnswerSession, JudgedAnswer
    from stillroom.records import Document, Passage

__all__ = ["Quote"]

_Weigh = Callable[["ScoredSentence"], tuple[float, float]]
_Candidates = tuple[str, str, list[tuple[int, int]]]
_QUESTION_MARKS = ("?", "？", "؟")
_CLOSING = "\"'”’»“‘)]*_ 」』"
_PARAGRAPH = re.compile(r"\n[ \t\r]*\n")
_COLONS = (":", "：")
_BRACKETED = re.compile(r"[(（\[][^()（）\[\]]*[)）\]][.。]?")
_CODE_BEGINS = re.compile(r"\s*(?:`{3,}|~{3,})?[*_\s]*$")
_MAX_LABEL_WORDS = 4
_MAX_TITLE_WORDS = 8
_SHARE_OF_ROW = 0.5  # of the words that the best row shares with the question
_MAX_ENTRY = 100  # characters of a line of a table of contents
_MAX_NEAREST = 2  # quotes of a refusal
_NEAR_SHARE = 0.2  # of the threshold: what is less probable is seldom about the subject
_MAX_ITEMS, _MAX_LIST = 12, 800  # items of a list that are quoted, and their characters


class Quote(AnswerStrategy):
    """Verbatim sentences with their byte ranges, chosen by a small encoder."""

    paper: ClassVar[str] = "arXiv:1911.04118"
    needs_model: ClassVar[bool] = False

    reader: str = Field(
        BUILTIN_READER,
        min_length=1,
        description="sentence reader: the folder of a job of kind rag.reader; builtin:reader, "
        "trained on questions about articles and manuals, in whose place "
        "builtin:reader-multilingual reads documents that are not in English, and "
        "builtin:reader-large, which is better on manuals, others, where its base and onnxruntime "
        "are installed; builtin:reader-small, always the former; builtin:overlap, word overlap "
        "without a model",
    )
    passages: int | None = Field(
        None,
        ge=1,
        le=MAX_READ_PASSAGES,
        description="number of passages read, at least those shown (k); null: as many as the "
        "reader is calibrated for",
    )
    max_quotes: int = Field(
        3, ge=1, le=5, description="maximum number of quotes; the cells of a row count as one"
    )
    margin: float = Field(
        1.5,
        ge=0,
        description="a further sentence is quoted if the log-odds that it answers are this near to "
        "the first's, by the reader and by word overlap",
    )
    min_probability: float | None = Field(
        None,
        ge=0,
        le=1,
        description="answer threshold: abstain (refuse) below this probability that the best "
        "sentence answers; null uses the reader's",
    )

    @property
    @override
    def moment(self) -> str:
        return open_available_reader(self.reader)[0].fingerprint

    @override
    def answer(self, inquiry: AnswerSession) -> Iterator[str]:
        suited = choose_reader(self.reader, inquiry.index.languages)[0]
        depth = self.passages or open_available_reader(suited)[0].passages
        depth = max(depth, inquiry.asking.k)
        open_document = cache(inquiry.index.document)  # documents are long
        list_known = cache(lambda name: simplify_headings(open_document(name).headings))
        candidates = partial(_read_candidates, inquiry.query.text, open_document, list_known)
        words = " ".join([*inquiry.antecedents, inquiry.query.text])
        hits = inquiry.expand(_keep_readable(words, inquiry.retrieve(k=depth), candidates, depth))
        judged = inquiry.judged
        if judged and judged.notice:
            add_warning(judged.notice)
        if judged and judged.is_decided:
            yield from _follow(inquiry, judged, hits)
            return
        if not hits:
            inquiry.abstain("nothing-found")
            return
        with stage("select"):
            reader = _open_reader(
                suited if suited == MULTILINGUAL_READER else self.reader,
                [open_document(hit.passage.document_id).language for hit in hits],
            )
            # Another one than the index suggests may read what was found, and fewer passages.
            hits = hits[: max(self.passages or reader.passages, inquiry.asking.k)]
            question = add_subject(inquiry.query.text, inquiry.antecedents)
            passages = _leave_out_wrong(inquiry, hits, [candidates(hit) for hit in hits])
            inquiry.input_digest = digest_json([question, passages])
            overlap = QuestionOverlap(inquiry.index, question)
            reading = reader.read(question, passages, overlap)
        inquiry.completion = Completion("", model=reader.fingerprint)
        threshold = reader.threshold if self.min_probability is None else self.min_probability
        inquiry.note("select", probability=round(reading.probability, 4), threshold=threshold)
        unread = _find_unread(inquiry, passages)
        places = SentencePlaces(hits, [open_document(hit.passage.document_id) for hit in hits])
        questions = [question, *reversed(inquiry.antecedents)]
        named, is_found, is_stated = keep_named(questions, reading.sentences, places)
        probability = None if is_stated else reading.probability
        if probability is not None and named and named[0] != reading.sentences[0]:
            probability = reader.rate(question, passages, named, reading.no_answer, overlap)
        # What an entry states under the label that is asked for needs no reader to be found. Other
        # sentences than the best have to be probable by themselves, unless the entry begins so.
        is_certain = is_stated and self.min_probability is None
        least = reading.probability if is_found else min(reading.probability, probability or 0)
        is_known = bool(named) and not (unread and threshold)
        is_answered = is_known and (is_certain or least >= threshold)
        method = self
        weigh = partial(weigh_sentence, reader, question, passages, reading, overlap)
        if not is_answered:
            _warn_of_language(inquiry, hits)
            if not is_known or least < _NEAR_SHARE * threshold:
                inquiry.abstain("no-answer", hits)
                return
            method = self.model_copy(update={"max_quotes": min(self.max_quotes, _MAX_NEAREST)})
        yield from inquiry.quote(
            hits,
            method._find_quotes(inquiry, hits, reading.sentences, named, places, weigh),
            probability=probability,
            fingerprint=reader.fingerprint,
            refusal="" if is_answered else "no-answer",
        )

    def _find_quotes(
        self,
        inquiry: AnswerSession,
        hits: Sequence[Hit],
        sentences: Sequence[ScoredSentence],
        named: Sequence[ScoredSentence],
        places: SentencePlaces,
        weigh: _Weigh,
    ) -> list[list[dict[str, Any]]]:
        """Return the quotes of the best named sentences, of as many as ``max_quotes`` allows.

        The cells of a row are one quote; the best sentence is shown whole if a file parts it.
        """
        texts = places.texts
        chosen = explain_terms(self._choose(named, texts, weigh), named, places)
        followed, lists = _follow_announced(chosen, sentences, places)
        while True:
            runs = join_runs(followed, sentences, texts)
            found = inquiry.find_quotes(hits, runs)
            listed = [
                (run, quotes)
                for run, quotes in zip(runs, found, strict=True)
                if quotes and (run[0], run[1][1]) in lists
            ]
            for _, quotes in listed:
                for quote in quotes[:-1]:
                    quote["continues"] = True
            if len(followed) < 2 or sum(map(count_citations, found)) <= self.max_quotes:
                break
            if len(chosen) < 2:
                followed.pop()
                continue
            chosen.pop()
            followed, lists = _follow_announced(chosen, sentences, places)
        for (number, (_, end), _), _ in listed:
            _warn_of_rest(inquiry, hits[number].passage, end, *lists[number, end])
        return add_terms(partial(inquiry.find_quotes, hits), hits, places.documents, found)

    def _choose(
        self, sentences: Sequence[ScoredSentence], texts: Sequence[str], weigh: _Weigh
    ) -> list[ScoredSentence]:
        """Return the best sentences, of them those near the first; none twice, no label or row.

        The head of a table is no answer: it is never the first that others must be near to. What
        goes on from a sentence that is quoted, or before it, need not be near.
        """
        chosen: dict[str, ScoredSentence] = {}
        for sentence in _leave_out_rows(sentences, texts):
            if len(chosen) == self.max_quotes:
                break
            passage = texts[sentence.passage]
            text, below = passage[sentence.start : sentence.end], passage[sentence.end :].lstrip()
            # "Possible values:" has a word of the question and a list.
            if not _is_label(text) or (sentence.overlap > 0 and is_item(below)):
                chosen.setdefault(" ".join(text.split()), sentence)
        found = list(chosen.values())
        if len(found) < 2:
            return found
        heads = [one for one in found if is_head(texts[one.passage], one)]
        first = weigh(next((one for one in found if one not in heads), found[0]))
        near = [
            one for one in found if one in heads or max(map(sub, first, weigh(one))) <= self.margin
        ]
        return [one for one in found if one in near or any(goes_on(one, s, texts) for s in near)]


def _open_reader(reference: str, languages: Sequence[str]) -> SentenceReader | OverlapReader:
    reader, warning = open_available_reader(reference, languages)
    if warning:
        add_warning(warning)
    return reader


def _find_unread(inquiry: AnswerSession, passages: Sequence[_Candidates]) -> list[str]:
    """Return the names of settings in the question that no passage has, and warn of them."""
    unread = find_unread_names(inquiry.query.text, [f"{part[0]} {part[1]}" for part in passages])
    if unread:
        inquiry.remark(f"no passage that was read has {', '.join(unread)}")
    return unread


def _warn_of_rest(
    inquiry: AnswerSession, passage: Passage, end: int, shown: int, total: int
) -> None:
    """Warn of the items that are not quoted of a list whose quote ends at ``end``."""
    if shown < total:
        inquiry.remark(f"a list of {total} items is quoted in part: the first {shown}")
    elif end == len(passage.text):
        below = inquiry.index.document(passage.document_id).text[passage.end :]
        if is_item(below.lstrip("\r\n")):
            count = count_noun(shown, "item")
            inquiry.remark(f"a list goes on after its passage, of which {count} are quoted")


def _follow(inquiry: AnswerSession, judged: JudgedAnswer, hits: Sequence[Hit]) -> Iterator[str]:
    """Answer as a person judged: by quotes in their passages, or not at all."""
    inquiry.followed = judged
    inquiry.note("follow", judgment=judged.id, verdict=judged.verdict)
    if not judged.quotes:
        inquiry.abstain("judged-absent", hits)
        return
    shown, spans = list(hits), list[Quoted]()
    for name, start, end in judged.quotes:
        passage = inquiry.index.passage(name)
        numbers = (number for number, hit in enumerate(shown) if hit.passage == passage)
        number = next(numbers, len(shown))
        if number == len(shown):  # the search did not find it, or it is shown with its neighbors
            shown.append(Hit(passage, 0.0, len(shown) + 1))
        spans.append((number, (start, end), None))
    parts = inquiry.find_quotes(shown, spans)
    for (quotes, below), (span, following) in zip(pairwise(parts), pairwise(spans), strict=True):
        passage, end, start = shown[span[0]].passage, span[1][1], following[1][0]
        if span[0] != following[0] or not (quotes and below):
            continue
        document = inquiry.index.document(passage.document_id)
        is_list = is_item(passage.text[start:]) and not passage.text[end:start].strip()
        entry = document.find_term_at(passage.start + end - 1)
        head = (entry.start - passage.start, entry.end - passage.start) if entry else (0, 0)
        is_term = start < head[1] or find_term(document, passage, following[1]) == head
        if is_list or is_term:
            quotes[-1]["continues"] = True
    found = [quote for quotes in parts for quote in quotes]
    yield from inquiry.quote(shown, [found], probability=None, fingerprint="")


def _leave_out_wrong(
    inquiry: AnswerSession, hits: Sequence[Hit], passages: list[_Candidates]
) -> list[_Candidates]:
    """Return the candidates without the sentences that a person called wrong."""
    judged = inquiry.judged
    if judged is None or not judged.wrong:
        return passages
    wrong = set(judged.wrong)

    def is_wrong(hit: Hit, span: Span) -> bool:
        """Return whether all that a quote would hold was called wrong: no mark of an item."""
        document = inquiry.index.document(hit.passage.document_id)
        parts = [span, *find_verbatim_parts(hit.passage, document, *span)]
        whole, *inner = (digest_sentence(hit.passage.text[slice(*part)]) in wrong for part in parts)
        return whole or (bool(inner) and all(inner))

    kept = [
        (title, text, [span for span in spans if not is_wrong(hit, span)])
        for hit, (title, text, spans) in zip(hits, passages, strict=True)
    ]
    if kept != passages:
        inquiry.followed = judged
        inquiry.note("follow", judgment=judged.id, verdict=judged.verdict)
    return kept


def _keep_readable(
    question: str, hits: Sequence[Hit], candidates: Callable[[Hit], _Candidates], depth: int
) -> Sequence[Hit]:
    """Return the first hits with a sentence to quote; a list of headings has none."""
    readable = [hit for hit in hits if candidates(hit)[2]]
    return prefer_entries(question, readable, depth) or hits[:depth]


def _read_candidates(
    question: str,
    open_document: Callable[[str], Document],
    list_known: Callable[[str], Collection[str]],
    hit: Hit,
) -> _Candidates:
    """Return title, text and candidate sentences of a passage.

    ``list_known`` returns the headings of a document as ``find_contents`` compares them.

    No candidates are headings, questions, as the headings of lists of questions with answers, what
    repeats the question, the lines of a table of contents, and captions, such as "Figure 2.", of
    which the question does not speak.
    """
    part, name = read_passage(hit), hit.passage.document_id
    # Documents are long: only what may be a heading is compared with those of its own.
    if any(end - start <= _MAX_ENTRY for start, end in part.sentences):
        headings = open_document(name).headings
        start, stop = (
            bisect_left(headings, place, key=lambda heading: heading.start)
            for place in (hit.passage.start, hit.passage.end)
        )
        part = read_passage(hit, {one.start - hit.passage.start for one in headings[start:stop]})
    asked = normalize_text(question) if question.rstrip().endswith(_QUESTION_MARKS) else None
    candidates = [
        (start, end)
        for start, end in part.sentences
        if not (text := part.text[start:end]).rstrip(_CLOSING).endswith(_QUESTION_MARKS)
        and normalize_text(text) != asked
        and not is_caption(part.text[part.text.rfind("\n", 0, start) + 1 : end], question)
    ]
    if sum(end - start <= _MAX_ENTRY for start, end in candidates) > 1:
        contents = find_contents(part.text, list_known(name))
        candidates = [
            span
            for span in candidates
            if not any(first <= span[0] < last for first, last in contents)
        ]
    return part.title, part.text, candidates


def _warn_of_language(inquiry: AnswerSession, hits: Sequence[Hit]) -> None:
    """Warn if no passage is in the language of the question: a reader of one translates nothing.

    A question is short: it is only distinguished from English, where a refusal has its language; a
    passage of no language, such as code, has that of its document.
    """
    question, open_document = inquiry.query.text, inquiry.index.document
    asked = detect_refusal_language(question) or detect_language(question)
    written = {
        detect_language(hit.passage.text) or open_document(hit.passage.document_id).language
        for hit in hits
    } - {""}
    if asked and written and asked not in written:
        notice = get_refusal_wording(question).language_notice
        inquiry.remark(notice.format(asked, ", ".join(sorted(written))))


def _leave_out_rows(
    sentences: Sequence[ScoredSentence], texts: Sequence[str]
) -> list[ScoredSentence]:
    """Return the sentences without the rows that share less than another with the question.

    Rows are alike, so that the reader scores those beside the right one nearly as high; the words
    of the question tell which one is asked for.
    """
    rows = {(n, start) for n, text in enumerate(texts) for start, _ in find_rows(text)}
    most = dict[int, float]()
    for sentence in sentences:
        if (sentence.passage, sentence.start) in rows:
            most[sentence.passage] = max(most.get(sentence.passage, 0.0), sentence.overlap)
    return [
        sentence
        for sentence in sentences
        if (sentence.passage, sentence.start) not in rows
        or sentence.overlap >= _SHARE_OF_ROW * most[sentence.passage]
    ]


def _is_label(text: str) -> bool:
    """Return whether a text is a label such as "Notes:" or "(continued)", which tells nothing."""
    is_marked = text.rstrip("*_").endswith(_COLONS) or _BRACKETED.fullmatch(text)
    return len(text.split()) <= _MAX_LABEL_WORDS and bool(is_marked)


def _is_title(text: str, sentence: ScoredSentence) -> bool:
    """Return whether a sentence is a line alone above others, as the title of a figure or a list.

    It is short, has words alone, no label before them, and does not end as a sentence.
    """
    line = text[sentence.start : sentence.end].strip("*_")
    words = line.split()
    return (
        len(words) <= _MAX_TITLE_WORDS
        and line[:1].isupper()
        and line[-1:].isalnum()
        and not any(f"{colon} " in line for colon in _COLONS)
        and not any(map(str.isdigit, line))
        and "\n" not in line
        and bool(_PARAGRAPH.match(text, sentence.end))
        and (not sentence.start or text[: sentence.start].endswith(("\n\n", "\n\r\n")))
    )


_Lists = dict[tuple[int, int], tuple[int, int]]


def _follow_announced(
    chosen: Sequence[ScoredSentence], every: Sequence[ScoredSentence], places: SentencePlaces
) -> tuple[list[ScoredSentence], _Lists]:
    """Return the chosen sentences, and after each title or one with a colon what it announces.

    What a passage ends with announces what another one begins with.
    In place of those of a list that is asked for there is one, of all that is quoted of it. Of
    each, by passage and end, the number of its items that are quoted and of all are returned.
    """
    texts = places.texts
    counts: dict[ScoredSentence, tuple[int, int]] = {}
    found = list(chosen)
    for number in dict.fromkeys(sentence.passage for sentence in chosen):
        beside = [sentence for sentence in every if sentence.passage == number]
        for items in reversed(find_lists(texts[number])):  # the inner before the outer
            whole = _find_asked_list(found, beside, items, texts[number])
            if whole is None:
                continue
            inner = [
                sentence
                for sentence in found
                if sentence.passage == number and whole.start <= sentence.start < whole.end
            ]
            found[found.index(inner[0])] = whole
            found = [sentence for sentence in found if sentence not in inner]
            counts[whole] = sum(end <= whole.end for _, end in items), len(items)
    lists = {(part.passage, part.end): counts[part] for part in found if part in counts}
    announced = []
    above = list(found)
    for sentence in above:
        text = texts[sentence.passage]
        after = [
            other
            for other in every
            if other.passage == sentence.passage and other.start >= sentence.end
        ]
        if (sentence.passage, sentence.end) in lists:
            continue
        below = min(after, key=lambda one: one.start, default=None)
        below = below or places.find_below(sentence, every)
        start = below.start if below in after else len(text)
        if below and _announces(text, sentence, start):
            if below not in after:
                below = _extend_to_list(below, texts[below.passage], lists)
            announced.append(below)
            if sentence in found and _is_label(places.get_text(below)):
                above.append(below)  # "Example:"; of a chain of labels no more
    return [*found, *(other for other in announced if other not in found)], lists


def _extend_to_list(below: ScoredSentence, text: str, lists: _Lists) -> ScoredSentence:
    """Return a sentence with the rest of the list that it begins, as counted in ``lists``."""
    items = next((one for one in find_lists(text) if one[0][0] == below.start), [])
    ends = [end for _, end in items[:_MAX_ITEMS] if end - below.start <= _MAX_LIST]
    if not ends:
        return below
    lists[below.passage, ends[-1]] = len(ends), len(items)
    return replace(below, end=ends[-1], short=None)


def _announces(text: str, sentence: ScoredSentence, below: int) -> bool:
    """Return whether a sentence with a colon, or a title, announces what begins at ``below``.

    A question between a title and it is no candidate: what follows that is its answer.
    """
    if _CODE_BEGINS.sub("", text[sentence.start : sentence.end], count=1).endswith(_COLONS):
        return True
    return _is_title(text, sentence) and not any(map(str.isalnum, text[sentence.end : below]))


def _find_asked_list(
    chosen: Sequence[ScoredSentence],
    every: Sequence[ScoredSentence],
    items: Sequence[Span],
    text: str,
) -> ScoredSentence | None:
    """Return a list with the sentence that announces it as one sentence, or None.

    It is asked for if that sentence was chosen before its items, or says more of the question than
    the best of them, which says no more than another: an item that alone answers has words of the
    question that the others lack. No list is quoted with an item that is no candidate.

    Args:
        chosen: Chosen sentences of all passages, best first.
        every: All sentences of the passage.
        items: Spans of the items of the list.
        text: Text of the passage.
    """
    first, stop = items[0][0], items[-1][1]
    opening = next((s for s in every if s.end <= first and not text[s.end : first].strip()), None)
    if opening is None or not _announces(text, opening, first):
        return None
    last = max((end for _, end in items[:_MAX_ITEMS] if end - first <= _MAX_LIST), default=first)
    within = [s for s in chosen if s.passage == opening.passage and first <= s.start < stop]
    overlaps = [[s.overlap for s in every if start <= s.start < end] for start, end in items]
    if last == first or any(s.start >= last for s in within) or not all(overlaps):
        return None
    whole = replace(opening, end=last, short=None)
    if opening in chosen and not (within and chosen.index(within[0]) < chosen.index(opening)):
        return whole
    best = next((s for s in within if s in every), None)  # no list within an item
    if best is None:
        return None
    shares = [max(values) for values in overlaps]
    share = shares[sum(start <= best.start for start, _ in items) - 1]
    is_distinct = share == max(shares) and shares.count(share) == 1
    return None if is_distinct or share >= opening.overlap else whole
