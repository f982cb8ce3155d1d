"""Grounded QA: question and answer about a passage, with the quote that supports the answer.

Source: Alberti et al. 2019, arXiv:1906.05416 (choose the answer first, then ask for its question)
and Lewis et al. 2021, arXiv:2102.07033. Differs: answers are whole sentences, so that they can be
given as they stand; round-trip answering is replaced by the room's filters.

Measured with SmolLM2-135M-Instruct (Q4_1) on the paragraphs of fifteen encyclopedic articles, one
question each until there was nothing left to ask about (plain: broken off), default filters:

==========================  ====  ======  ====  =============
form                        asks  parsed  kept  tokens an ask
==========================  ====  ======  ====  =============
statement (the default)     1086     763   354             91
statement, teacher answers  1849     752   225            100
plain                        900     398     5            211
==========================  ====  ======  ====  =============

Of the small teacher's own answers 45 % are not supported by the passage, and of its questions about
a whole passage most ask what "this passage" is about; larger teachers may use any form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field
from typing_extensions import override

from stillroom.provenance import digest_json
from stillroom.records import Completion, Link, Message, Prompt, Record, Sampling
from stillroom.synth.interfaces import Generator
from stillroom.synth.lexical_overlap import collapse_whitespace
from stillroom.synth.prompting.conversation import Quote, find_best_quote, find_statements
from stillroom.synth.prompting.coroutines import CoroutineBatch, RequestCoroutine
from stillroom.synth.prompting.question_prefixes import QuestionPrefix, find_question_prefixes
from stillroom.synth.prompting.question_trimming import trim_question
from stillroom.synth.prompting.requests import (
    ModelRequest,
    RequestBatch,
    clean_answer,
    clean_question,
    fence_text,
    get_topic,
    is_truncated,
    parse_qa_pair,
    to_one_line,
)
from stillroom.synth.types import GenerationResult, WorkItem

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["GroundedQa"]

_ASKER = "You write clear questions."
_ANSWERER = "You answer questions from a text."
_LABEL = "Question:"
_MARK = re.compile("[?？؟]")
_FREE = QuestionPrefix("")
_TASK = "Write the question that this statement answers."
_SHOTS = (
    (
        "Honey bees",
        "A honey bee colony keeps the brood nest at about 35 degrees Celsius all year.",
        "At what temperature does a honey bee colony keep its brood nest?",
    ),
    (
        "Library rules",
        'A card marked "R" lets its owner borrow rare books for one day.',
        'What does a library card marked "R" let its owner do?',
    ),
    (
        "Suspension bridges",
        "If a cable of a suspension bridge is cut, its load passes to the other cables.",
        "What happens to the load if a cable of a suspension bridge is cut?",
    ),
)
_SCHEMA = {
    "type": "object",
    "properties": {
        "question": {"type": "string", "minLength": 10, "maxLength": 160},
        "answer": {"type": "string", "minLength": 2, "maxLength": 300},
    },
    "required": ["question", "answer"],
    "additionalProperties": False,
}
_PROMPTS = digest_json([_ASKER, _ANSWERER, _LABEL, _TASK, _SHOTS, _SCHEMA])
"""What the words of the prompts are; their frames are code."""


class _TeacherAnswer(NamedTuple):
    """A question as it is kept and as it was written, and the words it was asked about."""

    question: str
    written: str
    quote: Quote | None


class GroundedQa(Generator):
    """Asks for questions about a passage; every answer points at the passage's words."""

    paper: ClassVar[str] = "arXiv:1906.05416"

    form: Literal["statement", "plain", "schema"] = Field(
        "statement",
        description="statement: choose a sentence, ask for its question (best for small teachers); "
        "plain: ask for a question, then for its answer; schema: ask for both as JSON",
    )
    answer: Literal["quote", "teacher"] = Field(
        "quote",
        description="statement form only: answer with the sentence itself, or have the teacher "
        "answer from it",
    )
    openings: bool = Field(
        True,
        description="statement form only: begin the question about the statement's subject, so "
        "that a small teacher keeps to it (English statements); false lets the teacher begin, "
        "which larger ones can",
    )
    shots: int = Field(
        0, ge=0, le=len(_SHOTS), description="worked questions shown before, which cost time"
    )
    questions: int = Field(2, ge=1, le=20, description="questions per passage and attempt")
    max_question_tokens: int = Field(40, ge=8, le=256, description="longest question")
    max_answer_tokens: int = Field(80, ge=8, le=1024, description="longest answer")
    temperature: float = Field(0.0, ge=0, le=2, description="0 takes the likeliest token")
    top_p: float = Field(0.95, gt=0, le=1, description="share of the probability drawn from")

    @property
    @override
    def asks(self) -> int:
        is_single = self.form == "schema" or (self.form == "statement" and self.answer == "quote")
        return self.questions if is_single else 2 * self.questions

    @property
    @override
    def longest(self) -> int:
        both = self.max_question_tokens + self.max_answer_tokens + 16
        return both if self.form == "schema" else self.max_question_tokens

    @override
    def generate(self, seeds: Sequence[WorkItem], model: TextModel) -> Iterator[GenerationResult]:
        return self.open(seeds, model).run()

    def open(self, seeds: Sequence[WorkItem], model: TextModel) -> CoroutineBatch:
        """Begin the units of seeds; see ``SteppedWriter``."""
        asking = RequestBatch(seeds, model)
        ask = self._ask_as_json if self.form == "schema" else self._ask_in_turn
        return CoroutineBatch(asking, ask(asking, model))

    def _ask_in_turn(self, asking: RequestBatch, model: TextModel) -> RequestCoroutine[None]:
        """Ask for questions, then (unless a statement answers itself) for the answers."""
        subjects: list[tuple[Quote | None, QuestionPrefix]] = []
        asks: list[ModelRequest] = []
        for place, seed in enumerate(asking.seeds):
            for index, (quote, opening) in enumerate(self._subjects(asking, place)):
                subjects.append((quote, opening))
                asks.append(self._ask_question(place, seed, quote, opening, index))
        open_asks: list[tuple[ModelRequest, _TeacherAnswer]] = []
        said = asking.completions(asks, (yield asks))
        for ask, (quote, opening), completion in zip(asks, subjects, said, strict=True):
            if completion is None:
                continue
            written = clean_question(opening.text + completion.text)
            question, strayed = written, "no question"
            if quote is not None and opening.text:
                question, strayed = trim_question(written, opening, quote.text)
            if not _MARK.search(completion.text):
                reason = (
                    "question cut at the token limit" if is_truncated(completion) else "no question"
                )
                asking.fail(ask.seed, reason, completion.text)
            elif not question:
                asking.fail(ask.seed, strayed, written)
            elif quote is not None and self.answer == "quote":
                self._keep(
                    asking,
                    model,
                    ask.seed,
                    _TeacherAnswer(question, written, quote),
                    collapse_whitespace(quote.text),
                )
            else:
                open_asks.append((ask, _TeacherAnswer(question, written, quote)))
        yield from self._ask_answers(asking, model, open_asks)

    def _ask_answers(
        self,
        asking: RequestBatch,
        model: TextModel,
        open_asks: list[tuple[ModelRequest, _TeacherAnswer]],
    ) -> RequestCoroutine[None]:
        asks = []
        for ask, said in open_asks:
            seed = asking.seeds[ask.seed]
            text = said.quote.text if said.quote is not None else seed.passage.text
            words = (
                f"{fence_text(text)}\n\nQuestion: {said.question}\nAnswer from the text "
                "in one sentence."
            )
            prompt = Prompt(
                (Message("system", _ANSWERER), Message("user", words)), prefix="Answer:"
            )
            drawn = self._sampling(seed.derive("answer", said.question), self.max_answer_tokens)
            asks.append(ModelRequest(ask.seed, prompt, drawn))
        given = asking.completions(asks, (yield asks))
        for ask, (_, said), completion in zip(asks, open_asks, given, strict=True):
            if completion is not None:
                self._settle(asking, model, ask.seed, said, completion)

    def _settle(
        self,
        asking: RequestBatch,
        model: TextModel,
        place: int,
        said: _TeacherAnswer,
        completion: Completion,
    ) -> None:
        answer = clean_answer(completion.text)
        shown = f"{said.question} | {completion.text}"
        if is_truncated(completion):
            asking.fail(place, "answer cut at the token limit", shown)
        elif not answer:
            asking.fail(place, "no answer", shown)
        else:
            self._keep(asking, model, place, said, answer)

    def _ask_as_json(self, asking: RequestBatch, model: TextModel) -> RequestCoroutine[None]:
        asks = []
        for place, seed in enumerate(asking.seeds):
            words = (
                f"{_describe_topic(seed)}{fence_text(seed.passage.text)}\n\nWrite one "
                "question that the text "
                "answers, and its answer, as JSON with the keys question and answer."
            )
            for index in range(self.questions):
                prompt = Prompt((Message("system", _ASKER), Message("user", words)), schema=_SCHEMA)
                limit = self.max_question_tokens + self.max_answer_tokens + 16
                asks.append(
                    ModelRequest(place, prompt, self._sampling(seed.derive(index), limit, ()))
                )
        said = asking.completions(asks, (yield asks))
        for ask, completion in zip(asks, said, strict=True):
            if completion is None:
                continue
            pair = parse_qa_pair(completion.text)
            if pair is None:
                reason = (
                    "JSON cut at the token limit"
                    if is_truncated(completion)
                    else "not the JSON asked"
                )
                asking.fail(ask.seed, reason, completion.text)
            else:
                self._keep(asking, model, ask.seed, _TeacherAnswer(pair[0], pair[0], None), pair[1])

    def _subjects(
        self, asking: RequestBatch, place: int
    ) -> list[tuple[Quote | None, QuestionPrefix]]:
        """Return what this attempt asks about: statements, or the whole passage.

        Statements come in drawn order: of an English passage those that a question can be begun
        about and no others; where there are none, the others from the second attempt on, since of
        the questions that a small teacher begins by itself few are kept, and many of those poor.
        """
        seed = asking.seeds[place]
        if self.form != "statement":
            return [(None, _FREE)] * self.questions
        rng = seed.make_rng("statements")
        opened: list[tuple[Quote | None, QuestionPrefix]] = []
        free: list[tuple[Quote | None, QuestionPrefix]] = []
        for quote in find_statements(seed.passage):
            openings = (
                find_question_prefixes(quote.text, seed.passage.text) if self.openings else []
            )
            opening = rng.choice(openings) if openings else _FREE
            (opened if openings else free).append((quote, opening))
        subjects = opened or free
        if not subjects and seed.attempt == 0:
            asking.fail(place, "no sentence says something by itself")
        rng.shuffle(subjects)
        waits = self.openings and not opened and seed.passage.language == "en"
        first = (seed.attempt - waits) * self.questions
        return subjects[first : first + self.questions] if first >= 0 else []

    def _ask_question(
        self, place: int, seed: WorkItem, quote: Quote | None, opening: QuestionPrefix, index: int
    ) -> ModelRequest:
        if quote is None:
            words = (
                f"{_describe_topic(seed)}{fence_text(seed.passage.text)}\n\nWrite one short "
                "question that this "
                "text answers. The question must name its subject."
            )
            turns = [Message("system", _ASKER), Message("user", words)]
        else:
            turns = [Message("system", _ASKER)]
            for topic, statement, question in _SHOTS[: self.shots]:
                turns += [
                    Message("user", _show(topic, statement)),
                    Message("assistant", f"{_LABEL} {question}"),
                ]
            turns.append(Message("user", _show(get_topic(seed), to_one_line(quote.text))))
        drawn = self._sampling(seed.derive(index), self.max_question_tokens)
        prefix = f"{_LABEL} {to_one_line(opening.text)}" if opening.text else _LABEL
        return ModelRequest(place, Prompt(tuple(turns), prefix=prefix), drawn)

    def _sampling(self, seed: int, limit: int, stop: tuple[str, ...] = ("\n",)) -> Sampling:
        return Sampling(
            max_new_tokens=limit,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=stop,
            seed=seed,
        )

    def _keep(
        self, asking: RequestBatch, model: TextModel, place: int, said: _TeacherAnswer, answer: str
    ) -> None:
        seed = asking.seeds[place]
        quote = said.quote or find_best_quote(seed.passage, answer)
        asked = digest_json([self.form, self.answer, self.shots, _PROMPTS])
        parents = (seed.passage.id,)
        link = Link("synth.generators.grounded_qa", model.fingerprint, parents, asked)
        fields = {
            "question": said.question,
            "answer": answer,
            "evidence": quote.to_json(),
            "split": seed.split,
            "document_id": seed.passage.document_id,
        }
        if said.written != said.question:
            fields["written"] = said.written  # what the teacher said, before it was trimmed
        turns = (Message("user", said.question), Message("assistant", answer))
        asking.keep(place, Record(turns, fields, seed.passage.origin.then(link, kind="synthetic")))


def _describe_topic(seed: WorkItem) -> str:
    topic = get_topic(seed)
    return f"Topic: {topic}\n\n" if topic else ""


def _show(topic: str, statement: str) -> str:
    about = f"Topic: {topic}\n" if topic else ""
    return f"{about}Statement: {statement}\n{_TASK}"
