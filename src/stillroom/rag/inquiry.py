"""Inquiry: one question on its way to an answer, with bounds, and a note of every step.

A method of ``stillroom.rag.answering`` works through it: ``retrieve``, ``grade``, ``ask``,
``read``, ``abstain``. Every call of the model is counted here, whoever makes it. Nothing is kept
between questions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stillroom.models.streams import with_end
from stillroom.rag.drafting import ask_for_texts
from stillroom.rag.echoes import NEXT_QUESTION
from stillroom.rag.metering import Meter
from stillroom.rag.method import TRANSFORMS, Query
from stillroom.rag.metrics import count_stage
from stillroom.rag.ordering import cap_documents, join_neighbours
from stillroom.rag.parents import retrieve_to_read
from stillroom.rag.prefixes import readable_text
from stillroom.rag.prompting import Shown, drop_repeats, fit_prompt
from stillroom.rag.stages import add_time, open_span, stage, tell_written
from stillroom.records import Completion, Hit, Prompt, Sampling

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.asking import Asking
    from stillroom.rag.index import Index
    from stillroom.rag.method import Answering, Grader, Retriever

__all__ = ["Inquiry"]

_SPARE = 3
_MOST_STOPS = 4


class Inquiry:
    """What a method of answering is given: the question, the index, the model, and its bounds."""

    def __init__(
        self,
        index: Index,
        model: TextModel,
        query: Query,
        asking: Asking,
        sampling: Sampling,
        bounds: Answering,
        *,
        is_streamed: bool = False,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Begin; the clock runs from here."""
        self.index, self.query, self.asking, self.sampling = index, query, asking, sampling
        self.model = Meter(model)
        self.trace: list[dict[str, Any]] = []
        """Every step in order: what was done, on what, with which outcome."""
        self.shown: Shown | None = None
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
        method = TRANSFORMS.build(transform)
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
        hits = retrieve_to_read(
            self.index,
            asked,
            wanted * _SPARE if wanted > 0 else wanted,
            share=self.asking.parent_share,
            retriever=retriever or self.asking.retriever,
            reranker=self.asking.reranker,
            transform=self.asking.transform,
            model=self.model,
        )
        distinct = drop_repeats(hits)
        kept = cap_documents(distinct, self.asking.per_document)
        fresh = {hit.passage.id for hit in kept[:wanted]} - self._seen
        self._seen |= fresh
        if kept:
            last = kept[:wanted][-1].rank
            self.repeats += last - sum(hit.rank <= last for hit in distinct)
        other = {} if retriever is None else {"retriever": _name_of(retriever)}
        self.note("retrieve", query=asked.text, **other, found=len(kept[:wanted]), new=len(fresh))
        return kept

    def grade(self, grader: Grader, hits: Sequence[Hit], query: Query | None = None) -> list[float]:
        """Return a grade for each hit, from 0 to 1; the text that is read holds its headings."""
        texts = [
            "\n".join([" > ".join(hit.passage.headings), readable_text(hit.passage)]).strip()
            for hit in hits
        ]
        with stage("grade"):
            grades = grader.grade(query or self.query, texts, self.index, self.model)
        self.note("grade", grader=grader.method_name(), grades=[round(one, 3) for one in grades])
        return grades

    def ask(self, request: str, *, most: int, max_new_tokens: int, method: str) -> list[str]:
        """Return a few short texts that the model writes, held to a schema; see ``drafting``."""
        return ask_for_texts(
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
                join_neighbours(hits, self.index, self.asking.neighbours),
                self.model,
                budget=min(self.asking.budget, room) if self.asking.budget else room,
                shorten=self.asking.shorten,
                best_at_ends=self.asking.best_at_ends,
            )
            shown, dropped = len(self.shown.hits), self.shown.dropped
            span.tell(stillroom__passages_shown=shown, stillroom__dropped=dropped)
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
                tell_written(span, self.model, prompt, self.completion)
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
            tell_written(span, self.model, prompt, replace(self.completion, text=written.text))
        finally:
            span.end()

    def _stream(self, prompt: Prompt) -> Generator[str, None, Completion]:
        """Yield and return what the model does; only the model's own time counts."""
        stream, spent_s = self.model.stream(prompt, self._stop_where_prompt_goes_on()), 0.0
        items = with_end(stream)
        try:
            while True:
                begun = time.perf_counter()
                item = next(items)
                took_s = time.perf_counter() - begun
                add_time("generate", took_s)
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
        most = max(_MOST_STOPS, len(self.sampling.stop))
        return replace(self.sampling, stop=tuple(dict.fromkeys(stops))[:most])

    def abstain(self, why: str, nearest: Sequence[Hit] = ()) -> None:
        """Give no answer; the passages that came nearest are named to whoever asked."""
        self.refusal, self.nearest = why, tuple(nearest[: self.asking.k])
        self.note("abstain", why=why)


def _name_of(retriever: str | Retriever) -> str:
    return retriever if isinstance(retriever, str) else retriever.method_name()
