"""Answer session: one question with its budget and trace, and filters of echoed prompts.

A method of ``stillroom.rag.answer_strategies`` works through it: ``retrieve``, ``grade``, ``ask``,
``read``, ``abstain``. Every call of the model is counted here, whoever makes it. Nothing is kept
between questions.

``EchoFilter`` takes the question, the request and the word Answer out of the beginning of a stream,
so that an answer begins with what it says. ``PromptFilter`` takes out the marks that fence a
passage, and ends the answer where the model goes on with the prompt: behind a closing mark, or with
a question of its own. What comes out never depends on how the stream was cut. Knows the English
words of the prompt only.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stillroom.models.requests import stream_with_completion
from stillroom.rag.generation.prompt import RenderedPrompt, drop_duplicates, fit_prompt
from stillroom.rag.interfaces import QUERY_TRANSFORMS, Query
from stillroom.rag.model_calls import CallCounter, generate_texts
from stillroom.rag.observability import (
    add_stage_time,
    count_stage,
    open_span,
    record_generation,
    stage,
)
from stillroom.rag.retrieval.pipeline import retrieve_with_parents
from stillroom.rag.retrieval.ranking import expand_window, limit_per_document
from stillroom.rag.types import get_readable_text
from stillroom.records import Completion, Hit, Prompt, Sampling

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.interfaces import AnswerStrategy, RelevanceGrader, Retriever
    from stillroom.rag.settings import AnswerSettings

__all__ = [
    "NEXT_QUESTION",
    "AnswerSession",
    "PromptEchoStripper",
    "PromptLeakFilter",
]


_SPARE_HITS = 3


_MAX_STOPS = 4


class AnswerSession:
    """What a method of answering is given: the question, the index, the model, and its bounds."""

    def __init__(
        self,
        index: Index,
        model: TextModel,
        query: Query,
        asking: AnswerSettings,
        sampling: Sampling,
        bounds: AnswerStrategy,
        *,
        is_streamed: bool = False,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Begin; the clock runs from here."""
        self.index, self.query, self.asking, self.sampling = index, query, asking, sampling
        self.model = CallCounter(model)
        self.trace: list[dict[str, Any]] = []
        """Every step in order: what was done, on what, with which outcome."""
        self.shown: RenderedPrompt | None = None
        """What the model was shown, once ``read`` or ``show`` was called."""
        self.completion = Completion("", model=model.fingerprint)
        """How the text that was yielded ended, and its tokens."""
        self.refusal = ""
        """Why there is no answer; empty where there is one."""
        self.nearest: tuple[Hit, ...] = ()
        """The passages that came nearest, where the method abstained."""
        self.repeats = 0
        """How many hits were left out since they repeat better ones."""
        self.is_cancelled = is_cancelled or (lambda: False)
        self._bounds, self._is_streamed = bounds, is_streamed
        self._end = time.monotonic() + bounds.max_seconds
        self._seen: set[str] = set()

    def note(self, step: str, **what: Any) -> None:
        """Add a step to the trace; plain JSON values, none of the documents' text."""
        self.trace.append({"step": step, **what})

    def find_bound(self, calls: int = 0) -> str:
        """Return which bound keeps the method from going on; empty if none does.

        Args:
            calls: How often the model would be asked; one more call is kept for the answer.
        """
        if self.is_cancelled():
            return "cancelled"
        if self.model.calls + calls + 1 > self._bounds.max_calls:
            return "max_calls"
        return "max_seconds" if time.monotonic() > self._end else ""

    def may(self, step: str, calls: int = 0) -> bool:
        """Return whether a step that asks the model so often may be begun; notes it if not."""
        bound = self.find_bound(calls)
        if bound:
            self.note("stop", before=step, why=bound)
        return not bound

    def stand_alone(self) -> None:
        """Make the last turn of a conversation a question of its own, where the way asks for it."""
        transform = self.asking.transform
        if transform is None or not self.query.history:
            return
        method = QUERY_TRANSFORMS.build(transform)
        if method.method_name() != "last_turn":
            return
        rewritten = method.rewrite(self.query, self.index, self.model)[0]
        self.note("stand_alone", query=rewritten.text)
        self.query = Query(rewritten.text)

    def retrieve(
        self, query: Query | None = None, k: int = 0, *, retriever: str | Retriever | None = None
    ) -> list[Hit]:
        """Return hits, best first, without repeats and with documents capped as asked.

        Args:
            query: What is searched; by default the question.
            k: How many hits are wanted, of which more are given where there are; by default the
                asker's.
            retriever: Another than the asker's.
        """
        asked, wanted = query or self.query, k or self.asking.k
        hits = retrieve_with_parents(
            self.index,
            asked,
            wanted * _SPARE_HITS if wanted > 0 else wanted,
            share=self.asking.parent_share,
            retriever=retriever or self.asking.retriever,
            reranker=self.asking.reranker,
            transform=self.asking.transform,
            model=self.model,
        )
        distinct = drop_duplicates(hits)
        kept = limit_per_document(distinct, self.asking.per_document)
        fresh = {hit.passage.id for hit in kept[:wanted]} - self._seen
        self._seen |= fresh
        if kept:
            last = kept[:wanted][-1].rank
            self.repeats += last - sum(hit.rank <= last for hit in distinct)
        other = {} if retriever is None else {"retriever": _get_method_name(retriever)}
        self.note("retrieve", query=asked.text, **other, found=len(kept[:wanted]), new=len(fresh))
        return kept

    def grade(
        self, grader: RelevanceGrader, hits: Sequence[Hit], query: Query | None = None
    ) -> list[float]:
        """Return a grade for each hit, from 0 to 1; the text that is read holds its headings."""
        texts = [
            "\n".join([" > ".join(hit.passage.headings), get_readable_text(hit.passage)]).strip()
            for hit in hits
        ]
        with stage("grade"):
            grades = grader.grade(query or self.query, texts, self.index, self.model)
        self.note("grade", grader=grader.method_name(), grades=[round(one, 3) for one in grades])
        return grades

    def ask(self, request: str, *, most: int, max_new_tokens: int, method: str) -> list[str]:
        """Return a few short texts that the model writes, held to a schema; see ``drafting``."""
        return generate_texts(
            self.model, request, most=most, max_new_tokens=max_new_tokens, method=method
        )

    def show(self, hits: Sequence[Hit]) -> Prompt:
        """Settle which passages are shown, numbered, and return the prompt.

        Raises:
            DataError: If not even the best passage fits.
        """
        room = self.model.context_length - self.sampling.max_new_tokens
        with stage("prompt") as span:
            self.shown = fit_prompt(
                self.query.text,
                expand_window(hits, self.index, self.asking.neighbours),
                self.model,
                budget=min(self.asking.budget, room) if self.asking.budget else room,
                shorten=self.asking.shorten,
                best_at_ends=self.asking.best_at_ends,
            )
            shown, dropped = len(self.shown.hits), self.shown.dropped
            span.set_attributes(stillroom__passages_shown=shown, stillroom__dropped=dropped)
        self.note("read", passages=len(self.shown.hits), prompt_tokens=self.shown.prompt_tokens)
        return self.shown.prompt

    def read(self, hits: Sequence[Hit]) -> Iterator[str]:
        """Yield what the model answers from the hits, in pieces where a stream was asked for."""
        yield from self.write(self.show(hits))

    def write(self, prompt: Prompt) -> Iterator[str]:
        """Yield what the model writes after a prompt."""
        if not self._is_streamed:
            with stage("generate") as span:
                (self.completion,) = self.model.generate(
                    [prompt], self._stop_where_prompt_goes_on(), is_cancelled=self.is_cancelled
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
        """Yield and return what the model does; only the model's own time counts."""
        stream, spent_s = self.model.stream(prompt, self._stop_where_prompt_goes_on()), 0.0
        items = stream_with_completion(stream)
        try:
            while True:
                begun = time.perf_counter()
                item = next(items)
                took_s = time.perf_counter() - begun
                add_stage_time("generate", took_s)
                spent_s += took_s
                if isinstance(item, Completion):
                    return item
                yield item
        finally:
            stream.close()
            count_stage("generate", spent_s)

    def _stop_where_prompt_goes_on(self) -> Sampling:
        """Return the sampling with stops where the model goes on with the prompt.

        As if a passage ended here, or another question came. Endpoints take four stops at most;
        what is written all the same is cut from the answer.
        """
        if self.shown is None:
            return self.sampling
        stops = (*self.sampling.stop, f"</{self.shown.fence}>", NEXT_QUESTION)
        most = max(_MAX_STOPS, len(self.sampling.stop))
        return replace(self.sampling, stop=tuple(dict.fromkeys(stops))[:most])

    def abstain(self, why: str, nearest: Sequence[Hit] = ()) -> None:
        """Give no answer; the passages that came nearest are named to whoever asked."""
        self.refusal, self.nearest = why, tuple(nearest[: self.asking.k])
        self.note("abstain", why=why)


def _get_method_name(retriever: str | Retriever) -> str:
    return retriever if isinstance(retriever, str) else retriever.method_name()


_ECHOED_LABELS = ("question:", "answer:", "q:", "a:")


_SPACE = re.compile(r"\s+")


NEXT_QUESTION = "\nQuestion:"


"""Where a model that goes on with the prompt is stopped."""


_QUESTION_LABEL = "Question:"


_FENCE_MARK = re.compile(r"<(/?)passage-[0-9a-f]{1,8}>")


_PARTIAL_FENCE_MARK = re.compile(
    r"<(?:/?(?:p(?:a(?:s(?:s(?:a(?:g(?:e(?:-[0-9a-f]{0,8})?)?)?)?)?)?)?)?)?"
)


_SENTENCE_END = re.compile(r"(?:[.!?。！？…][\"'”’)*]*|\])[ \t]+\Z|\n[ \t]*\Z")


_HELD_CHARACTERS = 64


class PromptLeakFilter:
    """Takes marks of passages out of a stream, and ends it where the prompt goes on."""

    def __init__(self) -> None:
        """Begin."""
        self._held = ""
        self._given = ""
        self._is_over = False

    def feed(self, text: str) -> str:
        """Return what is certain after some more text; nothing once the answer is over."""
        given = ""
        for character in text:
            if self._is_over:
                break
            self._held += character
            given += self._settle()
        return given

    def finish(self) -> str:
        """Return what was held back, but for a mark that broke off."""
        held, self._held = self._held, ""
        return "" if self._is_over or held.startswith(("<passage", "</passage")) else held

    def _settle(self) -> str:
        """Return the held text unless it may be, or is, the beginning of the prompt's own."""
        held = self._held
        mark = _FENCE_MARK.fullmatch(held)
        if mark is not None:
            self._held = ""
            self._is_over = bool(mark[1]) and bool(self._given.strip())
            return ""
        if held == _QUESTION_LABEL:
            self._held, self._is_over = "", True
            return ""
        if _PARTIAL_FENCE_MARK.fullmatch(held) or (
            _QUESTION_LABEL.startswith(held) and self._may_ask()
        ):
            return ""
        # The last character may begin another mark; those before it begin none.
        self._held = ""
        if len(held) > 1 and held[-1] in "<Q":
            return self._give(held[:-1]) + self.feed(held[-1])
        return self._give(held)

    def _may_ask(self) -> bool:
        """Return whether a question would begin a line or a sentence, behind some text."""
        return bool(_SENTENCE_END.search(self._given)) and bool(self._given.strip())

    def _give(self, text: str) -> str:
        self._given = (self._given + text)[-_HELD_CHARACTERS:]
        return text


class PromptEchoStripper:
    """Holds back the beginning of an answer until it is no echo of the prompt."""

    def __init__(self, question: str, request: str = "") -> None:
        """Know what was asked, and how an answer was requested."""
        self._asked = _normalize_text(question)
        self._labels = (*_ECHOED_LABELS, *([request.casefold()] if request else []))
        self._held = ""
        self._is_open = True

    def feed(self, text: str) -> str:
        """Return what is certain after some more text."""
        if not self._is_open:
            return text
        self._held += text
        while self._is_open:
            rest = self._drop_one()
            if rest is None:
                return ""
            if rest == self._held:
                self._is_open = False
            self._held = rest
        held, self._held = self._held, ""
        return held

    def finish(self) -> str:
        """Return what was held back, but for labels that nothing follows."""
        held, self._held, self._is_open = self._held, "", False
        return "" if _normalize_text(held) in self._labels else held

    def _drop_one(self) -> str | None:
        """Return what is held without the echo it begins with, as it is, or None to wait."""
        held = self._held.lstrip()
        plain = held.casefold()
        if not plain:
            return None
        for label in self._labels:
            if plain.startswith(label):
                return self._after_label(held[len(label) :].lstrip(), label)
            if label.startswith(plain):
                return None
        return self._after_question(held)

    def _after_label(self, rest: str, label: str) -> str | None:
        """Return what follows a label: of "Question:", only if it is the one that was asked."""
        if label[0] != "q":
            return rest or None
        after = self._after_question(rest)
        return self._held if after == rest and rest else after

    def _after_question(self, text: str) -> str | None:
        """Return what follows the question at the beginning of a text; the text if it is not it."""
        known = 0
        for at, character in enumerate(text):
            if known == len(self._asked):
                return text[at:].lstrip() or None if character.isspace() else text
            plain = _normalize_text(text[: at + 1])
            if not self._asked.startswith(plain):
                return text
            known = len(plain)
        return None


def _normalize_text(text: str) -> str:
    return _SPACE.sub(" ", text).strip().casefold()
