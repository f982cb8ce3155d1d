"""Generate by sentences and keep the relevant, supported and useful ones (Self-RAG).

Source: Asai et al. 2023, "Self-RAG: Learning to Retrieve, Generate, and Critique through
Self-Reflection", arXiv:2310.11511: a beam over segments, scored by the model's own probability plus
weighted reflections (relevant, supported, useful). Differs from the paper: no model is trained;
relevance of passages is scored by any grader, support of sentences by the checker, and usefulness
by the model's probability of yes against no; scores are averaged over segments, so that longer
answers have no advantage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, model_validator
from typing_extensions import override

from stillroom.errors import BackendError
from stillroom.rag.generation.prompt import CandidatePool, render_prompt
from stillroom.rag.interfaces import CHECKERS, GRADERS, AnswerStrategy, RelevanceGrader
from stillroom.rag.model_calls import ask_yes_no, quote_text
from stillroom.rag.types import format_heading_path, get_readable_text
from stillroom.records import Completion, Message, Prompt, Sampling
from stillroom.text.language import split_sentences

if TYPE_CHECKING:
    from stillroom.rag.generation.grounding import SourceTexts
    from stillroom.rag.generation.session import AnswerSession
    from stillroom.records import Hit

__all__ = ["Reflective"]

_NEEDS_RETRIEVAL_PROMPT = (
    "Question: {query}\n\nDoes answering the question take a look into documents, rather than "
    "common knowledge?"
)
_USEFULNESS_PROMPT = (
    "Question: {query}\n\nAnswer: {text}\n\nDoes the answer say what the question asks for?"
)
_CONTINUATION_PROMPT = "\nThe answer so far: {text}\nWrite only the one sentence that comes next."


@dataclass(frozen=True)
class _Beam:
    """Sentences with their passage numbers and scores."""

    sentences: tuple[tuple[str, int], ...] = ()
    scores: tuple[float, ...] = ()
    is_done: bool = False

    @property
    def score(self) -> float:
        return sum(self.scores) / len(self.scores) if self.scores else -math.inf

    @property
    def text(self) -> str:
        return " ".join(sentence for sentence, _ in self.sentences)


class Reflective(AnswerStrategy):
    """Beam search over sentences, scored by relevance, support and usefulness."""

    paper: ClassVar[str] = "arXiv:2310.11511"
    status: ClassVar[str] = "experimental"

    grader: Annotated[RelevanceGrader, GRADERS.choice()] = Field(
        "overlap", validate_default=True, description="grader of the relevance of passages"
    )
    need: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="minimum probability that documents are needed; 0 always retrieves",
    )
    beams: int = Field(2, ge=1, le=16, description="number of beams")
    sentences: int = Field(2, ge=1, le=16, description="maximum number of sentences")
    sentence_tokens: int = Field(48, ge=8, le=512, description="maximum tokens of a sentence")
    relevant: float = Field(1.0, ge=0, description="weight of the passage's relevance")
    supported: float = Field(1.0, ge=0, description="weight of the sentence's support")
    useful: float = Field(
        0.5, ge=0, description="weight of the sentence's usefulness; 0 disables its model calls"
    )

    @model_validator(mode="after")
    def _weighs_a_sentence(self) -> Reflective:
        if not (self.relevant or self.supported or self.useful):
            raise ValueError(
                "all weights of a sentence are 0, so that none is better: set relevant, supported "
                "or useful"
            )
        return self

    @override
    def answer(self, inquiry: AnswerSession) -> Iterator[str]:
        if not self._is_needed(inquiry):
            yield from inquiry.read([])
            return
        k, pool = inquiry.asking.k, CandidatePool(inquiry, self.grader)
        pool.add(inquiry.retrieve()[:k])
        hits = pool.usable(k)
        if not hits:
            why = "no-relevant-passage" if pool.hits else "nothing-found"
            inquiry.abstain(why, pool.nearest(k))
            return
        prompt = inquiry.show(hits)
        best = self._write(inquiry, pool)
        if not best.sentences:  # limit reached, or nothing generated: read once, without a beam
            yield from inquiry.write(prompt)
            return
        for i, (sentence, number) in enumerate(best.sentences):
            yield f"{' ' if i else ''}{sentence} [{number}]"

    def _is_needed(self, inquiry: AnswerSession) -> bool:
        if not self.need or not inquiry.within_budget("ask whether to look", 1):
            return True
        prompt = _NEEDS_RETRIEVAL_PROMPT.format(query=quote_text(inquiry.query.text))
        (verdict,) = ask_yes_no(inquiry.model, [prompt], method="reflective")
        inquiry.note("need", verdict=round(verdict, 3), looks=verdict >= self.need)
        return verdict >= self.need

    def _write(self, inquiry: AnswerSession, pool: CandidatePool) -> _Beam:
        """Return the best beam: its sentences, with their passage numbers."""
        shown = inquiry.shown
        assert shown is not None  # noqa: S101  # answer has shown them
        checker = CHECKERS.build(inquiry.asking.checker)
        evidence = checker.hold(
            [get_readable_text(hit.passage) for hit in shown.hits], inquiry.index
        )
        evidence.set_headings([format_heading_path(hit.passage) for hit in shown.hits])
        evidence.set_question(inquiry.query.text)
        relevance = [pool.grades.get(hit.passage.id, pool.best) for hit in shown.hits]
        beams, spent = [_Beam()], 0
        for _ in range(self.sentences):
            open_beams = [beam for beam in beams if not beam.is_done]
            cost = len(open_beams) * len(shown.hits) * 3
            if not open_beams or not inquiry.within_budget("write a sentence", cost):
                break
            grown, tokens = self._grow(inquiry, open_beams, shown.hits, evidence, relevance)
            spent += tokens
            done = [beam for beam in beams if beam.is_done]
            distinct = {beam.sentences: beam for beam in (*done, *grown)}.values()
            beams = sorted(distinct, key=lambda beam: -beam.score)[: self.beams]
            inquiry.note("beam", scores=[round(beam.score, 3) for beam in beams])
        inquiry.completion = Completion(
            "", "stop", shown.prompt_tokens, spent, inquiry.model.fingerprint
        )
        return beams[0]

    def _grow(
        self,
        inquiry: AnswerSession,
        beams: Sequence[_Beam],
        hits: Sequence[Hit],
        evidence: SourceTexts,
        relevance: Sequence[float],
    ) -> tuple[list[_Beam], int]:
        """Extend every beam by a sentence from every passage; return the beams and tokens spent."""
        pairs = [(beam, number) for beam in beams for number in range(1, len(hits) + 1)]
        prompts = [
            _build_next_prompt(inquiry.query.text, hits[number - 1], beam) for beam, number in pairs
        ]
        limit = Sampling(
            max_new_tokens=min(self.sentence_tokens, inquiry.sampling.max_new_tokens),
            temperature=inquiry.sampling.temperature,
            seed=inquiry.sampling.seed,
            stop=("\n",),
        )
        written = inquiry.model.generate(prompts, limit, is_cancelled=inquiry.is_cancelled)
        texts = [_take_first_sentence(completion.text) for completion in written]
        fluency = _measure_fluency(inquiry, prompts, texts)
        useful = self._measure_use(inquiry, pairs, texts)
        grown = []
        for i, (beam, number) in enumerate(pairs):
            if not texts[i] or texts[i] in {sentence for sentence, _ in beam.sentences}:
                grown.append(_Beam(beam.sentences, beam.scores, is_done=True))
                continue
            score = (
                fluency[i]
                + self.relevant * relevance[number - 1]
                + self.supported * evidence.measure(texts[i], number)
                + self.useful * (2 * useful[i] - 1)
            )
            sentences = (*beam.sentences, (texts[i], number))
            grown.append(_Beam(sentences, (*beam.scores, score)))
        return grown, sum(completion.completion_tokens for completion in written)

    def _measure_use(
        self, inquiry: AnswerSession, pairs: Sequence[tuple[_Beam, int]], texts: Sequence[str]
    ) -> list[float]:
        if not self.useful:
            return [0.5] * len(texts)
        query = quote_text(inquiry.query.text)
        requests = [
            _USEFULNESS_PROMPT.format(query=query, text=quote_text(f"{beam.text} {text}".strip()))
            for (beam, _), text in zip(pairs, texts, strict=True)
        ]
        return ask_yes_no(inquiry.model, requests, method="reflective")


def _build_next_prompt(question: str, hit: Hit, beam: _Beam) -> Prompt:
    prompt = render_prompt(question, [hit])
    if not beam.sentences:
        return prompt
    system, user = prompt.messages
    more = _CONTINUATION_PROMPT.format(text=quote_text(beam.text))
    return Prompt((system, Message("user", user.content + more)))


def _take_first_sentence(text: str) -> str:
    """Return the first sentence of a completion, without its citations."""
    clean = quote_text(text).strip().replace("(1)", "").strip()
    spans = split_sentences(clean)
    return " ".join(clean[spans[0][0] : spans[0][1]].split()) if spans else ""


def _measure_fluency(
    inquiry: AnswerSession, prompts: Sequence[Prompt], texts: Sequence[str]
) -> list[float]:
    """Return the mean token probability of each text; 0 for all if the engine has no scores."""
    try:
        return [math.exp(score.mean) for score in inquiry.model.score(prompts, texts)]
    except BackendError as error:
        if error.code != "backend.no-score":
            raise
        return [0.0] * len(texts)
