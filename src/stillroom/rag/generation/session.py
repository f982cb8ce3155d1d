"""Answer session: the model calls and the budget of a question.

A strategy of ``stillroom.rag.answer_strategies`` works through it: ``retrieve``, ``grade``,
``ask``, ``read``, ``abstain``. All model calls are counted here. No state is shared between
questions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

from stillroom.errors import StillroomError
from stillroom.models.requests import stream_with_completion
from stillroom.provenance import digest_json, digest_text
from stillroom.rag.generation.prompt import RenderedPrompt, fit_prompt
from stillroom.rag.generation.question import (
    correct_spelling,
    has_content,
    is_follow_up,
    list_antecedents,
    may_lean,
    read_in_turn,
    select_asking,
)
from stillroom.rag.generation.refusals import get_refusal_wording
from stillroom.rag.generation.verbatim import describe_quote, find_verbatim_parts, lay_out_quotes
from stillroom.rag.interfaces import QUERY_TRANSFORMS, Query
from stillroom.rag.model_calls import CallCounter, generate_texts
from stillroom.rag.observability import (
    add_stage_time,
    add_warning,
    open_span,
    record_generation,
    stage,
)
from stillroom.rag.retrieval.pipeline import (
    RetrievalCandidates,
    list_context_steps,
    list_selection_steps,
    retrieve,
    run_steps,
)
from stillroom.rag.types import get_readable_text
from stillroom.records import Completion, Hit, Prompt, Sampling
from stillroom.text.unicode import normalize_text

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.interfaces import AnswerStrategy, RelevanceGrader, Retriever
    from stillroom.rag.settings import AnswerSettings

__all__ = [
    "AnswerSession",
    "JudgedAnswer",
    "digest_sentence",
]


_UNREAD_TURNS = (
    "only the last message was read, not the {} before it: if it needs them, ask a whole question"
)
_REWRITING = (
    "; a pipeline that begins with last_turn> lets the model write one, which needs a larger model "
    "than the packaged one"
)
_FOLLOW_UP = (
    "the question was read as a follow-up: passages were searched with what was asked before, too: "
    "{}"
)
_SPARE_HITS = 3
_MAX_STOPS = 4
_MAX_SHOWN_QUESTION = 160  # characters
_MIN_REPEATED = 3  # words of a quote that says nothing new


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """What a person's verdicts on a question leave to do.

    Args:
        id: Id of the judgment that counts; empty if none applies.
        verdict: Its verdict.
        time: Its time, ISO 8601 in UTC.
        quotes: Passage id, start and end in its text of each quote to give.
        wrong: Digests of sentences not to quote; see ``digest_sentence``.
        notice: Why the last verdict is not followed; empty if it is.
    """

    id: str = ""
    verdict: str = ""
    time: str = ""
    quotes: tuple[tuple[str, int, int], ...] = ()
    wrong: tuple[str, ...] = ()
    notice: str = ""

    @property
    def is_decided(self) -> bool:
        """Whether the verdict is the answer, rather than left to the reader."""
        return bool(self.quotes) or self.verdict == "absent"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, without text of the documents."""
        places = [{"passage_id": name, "start": a, "end": b} for name, a, b in self.quotes]
        return {
            "id": self.id,
            "verdict": self.verdict,
            "time": self.time,
            "origin": "human",
            "quotes": places,
            "wrong": list(self.wrong),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Parse the output of ``to_json``."""
        places = tuple(
            (str(one["passage_id"]), int(one["start"]), int(one["end"])) for one in data["quotes"]
        )
        name, verdict, time = (str(data[key]) for key in ("id", "verdict", "time"))
        return cls(name, verdict, time, places, tuple(map(str, data["wrong"])))


def digest_sentence(text: str) -> str:
    """Return the digest of a sentence, whatever its white space."""
    return digest_text(" ".join(text.split()))


class AnswerSession:
    """Context of an answer strategy: the question, the index, the model, and its limits."""

    def __init__(
        self,
        index: Index,
        model: TextModel,
        query: Query,
        asking: AnswerSettings,
        sampling: Sampling,
        strategy: AnswerStrategy,
        *,
        is_streamed: bool = False,
        is_cancelled: Callable[[], bool] | None = None,
        judged: JudgedAnswer | None = None,
    ) -> None:
        """Start the session; ``max_seconds`` counts from here."""
        self.index = index.keep_documents()
        self.query, self.asking, self.sampling = query, asking, sampling
        self._asked = query.text
        self.model = CallCounter(model)
        self.trace: list[dict[str, Any]] = []
        """All steps in order, with their inputs and outcomes."""
        self.shown: RenderedPrompt | None = None
        """The prompt, after ``read`` or ``show``."""
        self.completion = Completion("")
        """Finish reason and token counts of the yielded text, and the model that wrote it."""
        self.refusal = ""
        """The reason for a refusal; empty if there is an answer."""
        self.nearest: tuple[Hit, ...] = ()
        """The nearest passages, if the strategy abstained."""
        self.quotes: list[dict[str, Any]] = []
        """Verbatim quotes of the answer, with their ranges; see ``verbatim.describe_quote``."""
        self.input_digest = ""
        """SHA-256 of what was read: the prompt, or the candidates of the reader that quotes."""
        self.repeats = 0
        """Number of hits dropped as duplicates of better ones."""
        self.judged = judged
        """What people judged of the question before, if anything."""
        self.antecedents: list[str] = []
        """Earlier questions that the passages of a follow-up are searched with, as they are read.

        Empty if the follow-up is read as a question of its own.
        """
        self.remarks: list[str] = []
        """Notices that stand after the answer or refusal: what it lacks, or why there is none."""
        self.followed: JudgedAnswer | None = None
        """What of it the answer follows."""
        self.is_cancelled = is_cancelled or (lambda: False)
        self._limits, self._is_streamed = strategy, is_streamed
        self._end = time.monotonic() + strategy.max_seconds
        self._seen: set[str] = set()

    def note(self, step: str, **fields: Any) -> None:
        """Add a step to the trace; plain JSON values, without text of the documents."""
        self.trace.append({"step": step, **fields})

    def remark(self, text: str) -> None:
        """Give a notice that the text of the answer has, too."""
        add_warning(text)
        self.remarks.append(text)

    def describe_remarks(self) -> str:
        """Return what was remarked as sentences in parentheses; empty if nothing was."""
        return " ".join(f"({text[:1].upper()}{text[1:]}.)" for text in self.remarks)

    def find_exceeded_limit(self, calls: int = 0) -> str:
        """Return the limit that stops the strategy; empty if none does.

        One more than ``calls`` is reserved for the answer.
        """
        if self.is_cancelled():
            return "cancelled"
        if self.model.calls + calls + 1 > self._limits.max_calls:
            return "max_calls"
        return "max_seconds" if time.monotonic() > self._end else ""

    def within_budget(self, step: str, calls: int = 0) -> bool:
        """Return whether a step with the given number of model calls is allowed; note it if not."""
        bound = self.find_exceeded_limit(calls)
        if bound:
            self.note("stop", before=step, why=bound)
        return not bound

    def condense_question(self) -> None:
        """Rewrite the last turn of a conversation as a standalone question, if configured.

        Otherwise, where nothing is generated, find the questions that a follow-up goes on from; and
        warn of the turns that are not read.
        """
        history = self.query.history
        if not history:
            return
        transform = self.asking.transform
        method = None if transform is None else QUERY_TRANSFORMS.build(transform)
        if method is None or method.method_name() != "last_turn":
            earlier = list[str]()
            if not self._limits.needs_model:
                earlier = list_antecedents(self.query.text, history, self.index)
            if earlier:
                self.judged = None  # the same words may mean something else after other turns
                *self.antecedents, text = read_in_turn([*earlier, self.query.text])
                whole = {} if self.antecedents or is_follow_up(text) else {"query": text}
                self.note("follow_up", antecedents=earlier, **whole)
                if self.antecedents:
                    add_warning(_FOLLOW_UP.format(" ".join(self.antecedents)))
                if text != self.query.text:
                    self.note("reword", query=text)
                    add_warning(f"the question was read as a follow-up: {text}")
                    self.query = replace(self.query, text=text)
                return
            unread = sum(message.role != "system" for message in history)
            if unread and (self._limits.needs_model or may_lean(self.query.text)):
                add_warning(_UNREAD_TURNS.format(unread) + _REWRITING * self._limits.needs_model)
            return
        rewritten = method.rewrite(self.query, self.index, self.model)[0]
        self.note("stand_alone", query=rewritten.text)
        self.query = Query(rewritten.text)

    def prepare_question(self) -> bool:
        """Make the question one that can be searched; return whether it asks anything.

        The text that a model reads stays as it is: it tells a question from what leads to it.
        """
        self.condense_question()
        is_judged = self.judged is not None and self.judged.is_decided
        is_empty = not self.antecedents and not has_content(self.query.text, self.index)
        if not is_judged and is_empty:
            self.abstain("no-question")
            return False
        if not self._limits.needs_model:
            asking = select_asking(self.query.text)
            if asking != self.query.text:
                add_warning(f"of the long question, what asks was read: {asking}")
            try:
                text, replaced = correct_spelling(asking, self.index)
            except StillroomError as error:  # no embedder; a search by words needs none
                text, replaced = asking, {}
                add_warning(f"words were read as they are written: {error.problems[0].what}")
            for word, meant in replaced.items():
                add_warning(f'"{word}", which no passage has, was read as "{meant}"')
            if text != self.query.text:
                self.note("reword", query=text)
                self.query = replace(self.query, text=text)
        return True

    def retrieve(
        self, query: Query | None = None, k: int = 0, *, retriever: str | Retriever | None = None
    ) -> list[Hit]:
        """Return deduplicated hits, best first, limited per document.

        By default the question is searched (a follow-up behind those that it goes on from), with
        the retriever and ``k`` of the settings; more than ``k`` hits are returned if available.
        """
        words = " ".join([*self.antecedents, self.query.text])
        used_query, limit = query or replace(self.query, text=words), k or self.asking.k
        hits = retrieve(
            self.index,
            used_query,
            limit * _SPARE_HITS if limit > 0 else limit,
            retriever=retriever or self.asking.retriever,
            reranker=self.asking.reranker,
            transform=self.asking.transform,
            model=self.model,
        )
        candidates = run_steps(
            list_selection_steps(self.asking),
            RetrievalCandidates(self.index, (used_query,), hits=hits),
        )
        first = candidates.hits[:limit]
        fresh = {hit.passage.id for hit in first} - self._seen
        self._seen |= fresh
        if first:
            self.repeats += sum(rank <= first[-1].rank for rank in candidates.repeated_ranks)
        details = {} if retriever is None else {"retriever": _get_method_name(retriever)}
        self.note("retrieve", query=used_query.text, **details, found=len(first), new=len(fresh))
        return list(candidates.hits)

    def grade(self, grader: RelevanceGrader, hits: Sequence[Hit]) -> list[float]:
        """Return the grade of each hit, from 0 to 1; graded texts include the headings."""
        texts = [
            "\n".join([" > ".join(hit.passage.headings), get_readable_text(hit.passage)]).strip()
            for hit in hits
        ]
        with stage("grade"):
            grades = grader.grade(self.query, texts, self.index)
        self.note(
            "grade", grader=grader.method_name(), grades=[round(value, 3) for value in grades]
        )
        return grades

    def ask(self, request: str, *, most: int, max_new_tokens: int, method: str) -> list[str]:
        """Return a few short texts generated under a schema; see ``generate_texts``."""
        return generate_texts(
            self.model, request, most=most, max_new_tokens=max_new_tokens, method=method
        )

    def expand(self, hits: Sequence[Hit]) -> Sequence[Hit]:
        """Return the hits as they are read: with their neighbours, if configured."""
        candidates = RetrievalCandidates(self.index, (self.query,), hits=hits)
        return run_steps(list_context_steps(self.asking), candidates).hits

    def show(self, hits: Sequence[Hit]) -> Prompt:
        """Choose the passages that fit, number them, and return the prompt.

        Raises:
            DataError: If not even the best passage fits.
        """
        room = self.model.context_length - self.sampling.max_new_tokens
        with stage("prompt") as span:
            self.shown = fit_prompt(
                self.query.text,
                self.expand(hits),
                self.model,
                budget=min(self.asking.budget, room) if self.asking.budget else room,
                shorten=self.asking.shorten,
                best_at_ends=self.asking.best_at_ends,
            )
            shown, dropped = len(self.shown.hits), self.shown.dropped
            span.set_attributes(stillroom__passages_shown=shown, stillroom__dropped=dropped)
        self.note("read", passages=len(self.shown.hits), prompt_tokens=self.shown.prompt_tokens)
        return self.shown.prompt

    def find_quotes(
        self,
        hits: Sequence[Hit],
        spans: Sequence[tuple[int, tuple[int, int], tuple[int, int] | None]],
    ) -> list[list[dict[str, Any]]]:
        """Return for each span its parts that stand in the document, none for what is known.

        Their ``number`` is that of their hit, from 1. A span is the index of a hit, a character
        span of its passage's text, and the span of a short answer within, if known.
        """
        found, known = list[list[dict[str, Any]]](), set[str]()
        earlier = list[list[str]]()
        ids = {hits[number].passage.document_id for number, _, _ in spans}
        documents = {name: self.index.document(name) for name in ids}
        for number, span, short in spans:
            passage = hits[number].passage
            document = documents[passage.document_id]
            parts = list[dict[str, Any]]()
            for start, end in find_verbatim_parts(passage, document, *span):
                quote = describe_quote(passage, document, number + 1, start, end)
                if short is not None and start <= short[0] and short[1] <= end:
                    quote |= {"short": passage.text[slice(*short)], "short_start": short[0]}
                parts.append(quote)
            for part, below in pairwise(parts):  # code is one with what announces it
                if "```" in passage.text[part["end"] : below["start"]]:
                    part["continues"] = True
            # A row keeps the values that it shares with others: without them it says less.
            words = {" ".join(quote["text"].split()) for quote in parts}
            text = normalize_text(" ".join(quote["text"] for quote in parts)).split()
            is_repeated = len(parts) == 1 and len(text) >= _MIN_REPEATED and _repeats(text, earlier)
            fresh = [] if words <= known or is_repeated else parts
            known |= words
            earlier.append(text)
            found.append(fresh)
        return found

    def quote(
        self,
        hits: Sequence[Hit],
        found: Sequence[Sequence[dict[str, Any]]],
        *,
        probability: float | None,
        fingerprint: str,
        refusal: str = "",
    ) -> Iterator[str]:
        """Yield what ``find_quotes`` found, with citations; no prompt is made.

        ``quotes`` says where each stands in the text and in its source. Parts that a parser
        rendered from the same bytes, as the cells of a row, and those that follow each other in
        a passage (all but the last with ``continues``) have one citation, after the last. Passages
        are numbered from 1 as they are quoted; those that are not quoted follow in the order of
        ``hits``.

        ``probability`` is that the best quote answers, or None if no reader chose it;
        ``fingerprint`` is the reader's, empty without one. With the code of a ``refusal`` the text
        says first that nothing answers, and the quotes are the nearest sentences.
        """
        quoted = (quote["number"] - 1 for quotes in found for quote in quotes)
        order = list(dict.fromkeys([*quoted, *range(len(hits))]))
        self.shown = RenderedPrompt(Prompt(()), tuple(hits[i] for i in order), 0, 0, "")
        reading = self.describe_reading(is_refused=bool(refusal))
        remarks = self.describe_remarks()
        opening, closing = f"{reading} ".lstrip(), remarks
        if refusal:
            wording = get_refusal_wording(self._asked)
            opening = f"{wording.open_refusal(refusal)} {wording.nearest_quotes}\n\n"
            closing = " ".join(filter(None, (remarks, reading)))
        pieces, length = list[str](), len(opening)
        for quote, mark, is_cited in lay_out_quotes([hit.passage.text for hit in hits], found):
            quote["number"] = order.index(quote["number"] - 1) + 1
            quote["answer_start"] = length + len(mark)
            citation = f" [{quote['number']}]" if is_cited else ""
            pieces.append(f"{mark}{quote['text']}{citation}")
            length += len(pieces[-1])
            self.quotes.append(quote)
        _warn_of_marks(self.quotes)
        if not pieces:  # what was chosen are marks of a parser
            self.shown = None
            self.abstain("no-answer", hits)
            return
        if refusal:
            self.abstain(refusal)
        chance = {} if probability is None else {"probability": round(probability, 4)}
        self.note("quote", quotes=len(pieces), **chance)
        self.completion = Completion("", finish_reason="stop", model=fingerprint)
        yield from filter(None, (opening, *pieces, f"\n{closing}".rstrip()))

    def describe_reading(self, *, is_refused: bool = False) -> str:
        """Return the line that names the question that was read, if it is not what was asked.

        Of a follow-up read behind others that is the first of them; of one behind a single question
        it is in a notice alone, unless it is refused. Models read what was asked.
        """
        is_as_asked = not self.antecedents and self.query.text == self._asked
        if is_as_asked or self._limits.needs_model:
            return ""
        is_plain = len(self.antecedents) == 1 and not is_refused
        if is_plain and self.query.text == self._asked:
            return ""
        wording, first = get_refusal_wording(self._asked), self.antecedents[:1]
        if self.query.text == self._asked:
            return " ".join(wording.follow_up.format(_shorten(text)) for text in first)
        return wording.read_as.format(_shorten(" ".join([*first, self.query.text])))

    def read(self, hits: Sequence[Hit]) -> Iterator[str]:
        """Yield the model's answer from the hits, in pieces if streamed."""
        yield from self.write(self.show(hits))

    def write(self, prompt: Prompt) -> Iterator[str]:
        """Yield the model's completion of a prompt."""
        self.input_digest = digest_json(prompt.to_json())
        if not self._is_streamed:
            with stage("generate") as span:
                (self.completion,) = self.model.generate(
                    [prompt], self._build_sampling(), is_cancelled=self.is_cancelled
                )
                record_generation(span, self.model, prompt, self.completion)
            if self.completion.text:
                yield self.completion.text
            return
        span = open_span("generate")
        try:
            written = yield from self._stream(prompt)
            self.completion = replace(
                written,
                text="",
                prompt_tokens=written.prompt_tokens
                or (self.shown.prompt_tokens if self.shown else 0),
                completion_tokens=written.completion_tokens
                or self.model.count_tokens(written.text),
            )
            record_generation(span, self.model, prompt, replace(self.completion, text=written.text))
        finally:
            span.end()

    def _stream(self, prompt: Prompt) -> Generator[str, None, Completion]:
        """Yield the model's pieces and return the completion; only the model's time is counted."""
        stream = self.model.stream(prompt, self._build_sampling())
        items = stream_with_completion(stream)
        try:
            while True:
                started = time.perf_counter()
                item = next(items)
                add_stage_time("generate", time.perf_counter() - started)
                if isinstance(item, Completion):
                    return item
                yield item
        finally:
            stream.close()

    def _build_sampling(self) -> Sampling:
        """Return the sampling with stops for a continued prompt: a closing fence or a question.

        Endpoints accept at most four stops; anything beyond them is filtered from the answer.
        """
        if self.shown is None:
            return self.sampling
        stops = (*self.sampling.stop, f"</{self.shown.fence}>", _NEXT_QUESTION)
        most = max(_MAX_STOPS, len(self.sampling.stop))
        return replace(self.sampling, stop=tuple(dict.fromkeys(stops))[:most])

    def abstain(self, why: str, nearest: Sequence[Hit] = ()) -> None:
        """Give no answer, and name the nearest passages."""
        self.refusal, self.nearest = why, tuple(nearest[: self.asking.k])
        self.note("abstain", why=why)


def _repeats(words: Sequence[str], earlier: Iterable[Sequence[str]]) -> bool:
    """Return whether words stand one after the other in one of the texts before."""
    line = f" {' '.join(words)} "
    return any(line in f" {' '.join(text)} " for text in earlier)


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    is_long = len(line) > _MAX_SHOWN_QUESTION
    return f"{line[: _MAX_SHOWN_QUESTION - 1].rstrip()}…" if is_long else line


def _get_method_name(retriever: str | Retriever) -> str:
    return retriever if isinstance(retriever, str) else retriever.method_name()


_NEXT_QUESTION = "\nQuestion:"
"""Stop sequence of a model that continues the prompt."""


def _warn_of_marks(quotes: Sequence[Mapping[str, Any]]) -> None:
    """Warn of marks in quotes, as of footnotes, that read as citations of the answer."""
    text, marks = "".join(quote["text"] for quote in quotes), {f"[{q['number']}]" for q in quotes}
    if listed := ", ".join(sorted(mark for mark in marks if mark in text)):
        add_warning(f"{listed} within a quote stands so in its document and is no citation")
