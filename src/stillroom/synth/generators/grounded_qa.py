"""Grounded QA: question and answer about a passage, with the quote that supports the answer.

Source: Alberti et al. 2019, arXiv:1906.05416 (select the answer first, then generate its question)
and Lewis et al. 2021, arXiv:2102.07033. Differs: answers are whole sentences, so that they can be
used verbatim; round-trip answering is replaced by Stillroom's filters.

Statements of a known form in English, German, French, Spanish and Chinese have a question that no
model writes; ``openings: false`` leaves it to the teacher. A question names the product, license,
law or novel that its document is about, as far as the title names it, or else stands behind the
title and heading of its passage (``question_topics``). The filter ``quality`` keeps what language
models that read it would not call poor. Measured with the defaults on documents that neither the
forms nor the filter was fitted to; .18 of the records are poor (157 read; of 84 on seven other
folders .27, where .05 of 1,526 passages had one):

===============================  ========  ================  =====================
documents                        passages  with a candidate  with a record kept
===============================  ========  ================  =====================
desktop help                          250               .49                    .15
encyclopedia (28 articles)            163               .48                    .11
constitution, contract                 63               .48                    .16
a lexicon                             250               .15                    .03
desktop help, German                  250               .53                    .15
desktop help, French                  250               .56                    .30
desktop help, a manual, Spanish       500               .34                    .12
desktop help, Chinese                 172               .62                    .42
===============================  ========  ================  =====================

Of the small teacher's own answers (``answer: teacher``) 45 % are not supported by the passage, and
most of its questions about a whole passage (``form: plain``) ask what "this passage" is about;
larger teachers may use any form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field
from typing_extensions import override

from stillroom.provenance import digest_json
from stillroom.records import (
    Completion,
    Link,
    Message,
    Passage,
    Prompt,
    Record,
    Sampling,
)
from stillroom.synth.interfaces import Generator
from stillroom.synth.lexical_overlap import collapse_whitespace
from stillroom.synth.prompting.conversation import (
    Quote,
    end_sentence,
    find_best_quote,
    find_statements,
)
from stillroom.synth.prompting.english_clauses import write_clause_questions
from stillroom.synth.prompting.english_questions import simplify_statement
from stillroom.synth.prompting.question_templates import (
    TEMPLATE_LANGUAGES,
    write_template_questions,
)
from stillroom.synth.prompting.question_topics import head_question, is_untold, name_topic
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
from stillroom.synth.prompting.stepwise import CoroutineBatch, RequestCoroutine
from stillroom.synth.types import WorkItem
from stillroom.text.language import guess_language

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["GroundedQa"]

_ASKER = "You write clear questions."
_ANSWERER = "You answer questions from a text."
_LABEL = "Question:"
_MARK = re.compile("[?？؟]")
_TASK = "Write the question that this statement answers."
_JSON_TASK = (
    "Write one question that the text answers, and its answer, as JSON with the keys question and "
    "answer."
)
_TASKS = {
    "de": ("Frage:", "Schreibe auf Deutsch die Frage, die diese Aussage beantwortet."),
    "fr": ("Question :", "Écris en français la question à laquelle cet énoncé répond."),
    "es": ("Pregunta:", "Escribe en español la pregunta que responde esta afirmación."),
    "zh": ("问题：", "请用中文写出这句话所回答的问题。"),
}
"""Label and task in the language of the statement, by ISO 639-1 code."""

_SAME_LANGUAGE = "Write in the language of the text."
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
_PROMPTS = digest_json(
    [_ASKER, _ANSWERER, _LABEL, _TASK, _JSON_TASK, _TASKS, _SAME_LANGUAGE, _SHOTS, _SCHEMA]
)
"""Digest of the prompt texts; the code around them is not included."""


class _TeacherAnswer(NamedTuple):
    """A question and the quote it is about."""

    question: str
    quote: Quote | None


class GroundedQa(Generator):
    """Generate questions about a passage; every answer cites the passage."""

    paper: ClassVar[str] = "arXiv:1906.05416"
    form: Literal["statement", "plain", "schema"] = Field(
        "statement",
        description="statement: select a sentence, generate its question (best for small "
        "teachers); plain: generate a question, then its answer; schema: generate "
        "both as JSON",
    )
    answer: Literal["quote", "teacher"] = Field(
        "quote",
        description="statement form only: answer with the sentence itself, or with the "
        "teacher's answer from it",
    )
    openings: bool = Field(
        True,
        description="statement form only: derive the question from the form of the statement, "
        "without a model (English, German, French, Spanish and Chinese); false lets the teacher "
        "write it, for larger ones",
    )
    shots: int = Field(
        0,
        ge=0,
        le=len(_SHOTS),
        description="statement form only: number of worked examples in the prompt, which cost time",
    )
    questions: int = Field(
        2,
        ge=1,
        le=20,
        description="questions per passage and attempt; of the other forms with temperature 0, "
        "whose questions would all be the same, one per passage",
    )
    max_question_tokens: int = Field(40, ge=8, le=256, description="maximum tokens of a question")
    max_answer_tokens: int = Field(80, ge=8, le=1024, description="maximum tokens of an answer")
    temperature: float = Field(0.0, ge=0, le=2, description="sampling temperature; 0 is greedy")
    top_p: float = Field(0.95, gt=0, le=1, description="nucleus sampling: cumulative probability")

    @override
    def list_unused(self) -> dict[str, str]:
        names = ("answer", "openings", "shots") if self.form != "statement" else ()
        return {**super().list_unused(), **dict.fromkeys(names, "set form: statement")}

    @property
    def _asks_answers(self) -> bool:
        """Whether the teacher writes answers in requests of their own."""
        return self.form == "plain" or (self.form == "statement" and self.answer == "teacher")

    @property
    @override
    def max_requests(self) -> int:
        return 2 * self.questions if self._asks_answers else self.questions

    @property
    @override
    def unasked(self) -> str:
        is_derived = self.form == "statement" and self.openings and not self._asks_answers
        return "passages in English, German, French, Spanish or Chinese" if is_derived else ""

    @property
    @override
    def max_tokens(self) -> int:
        if self.form == "schema":
            return self.max_question_tokens + self.max_answer_tokens + 16
        return max(self.max_question_tokens, self.max_answer_tokens * self._asks_answers)

    @override
    def open(self, seeds: Sequence[WorkItem], model: TextModel) -> CoroutineBatch:
        batch = RequestBatch(seeds, model)
        ask = self._ask_as_json if self.form == "schema" else self._ask_in_turn
        return CoroutineBatch(batch, ask(batch, model))

    def _ask_in_turn(self, batch: RequestBatch, model: TextModel) -> RequestCoroutine[None]:
        """Request questions, then (unless the statement is the answer) the answers."""
        subjects: list[Quote | None] = []
        requests: list[ModelRequest] = []
        open_requests: list[tuple[ModelRequest, _TeacherAnswer]] = []
        for seed_index, seed in enumerate(batch.seeds):
            for index, (quote, question) in enumerate(self._subjects(batch, seed_index)):
                request = self._ask_question(seed_index, seed, quote, index)
                if not question:
                    subjects.append(quote)
                    requests.append(request)
                elif quote is not None and self.answer == "quote":
                    draft = _TeacherAnswer(question, quote)
                    self._keep(batch, None, seed_index, draft, _state(quote))
                else:
                    open_requests.append((request, _TeacherAnswer(question, quote)))
        completions = batch.completions(requests, (yield requests))
        for request, quote, completion in zip(requests, subjects, completions, strict=True):
            if completion is None:
                continue
            question = clean_question(completion.text)
            if not _MARK.search(completion.text):
                reason = (
                    "question cut at the token limit" if is_truncated(completion) else "no question"
                )
                batch.add_failure(request.seed, reason, completion.text)
            elif not question:
                batch.add_failure(request.seed, "no question", completion.text)
            elif quote is not None and self.answer == "quote":
                draft = _TeacherAnswer(question, quote)
                self._keep(batch, model, request.seed, draft, _state(quote))
            else:
                open_requests.append((request, _TeacherAnswer(question, quote)))
        yield from self._ask_answers(batch, model, open_requests)

    def _ask_answers(
        self,
        batch: RequestBatch,
        model: TextModel,
        open_requests: list[tuple[ModelRequest, _TeacherAnswer]],
    ) -> RequestCoroutine[None]:
        requests = []
        for request, answer in open_requests:
            seed = batch.seeds[request.seed]
            text = answer.quote.text if answer.quote is not None else seed.passage.text
            words = (
                f"{fence_text(text)}\n\nQuestion: {answer.question}\nAnswer from the text "
                "in one sentence."
            )
            prompt = Prompt(
                (Message("system", _ANSWERER), Message("user", words)), prefix="Answer:"
            )
            sampling = self._sampling(
                seed.derive("answer", answer.question), self.max_answer_tokens
            )
            requests.append(ModelRequest(request.seed, prompt, sampling))
        completions = batch.completions(requests, (yield requests))
        for request, (_, answer), completion in zip(
            requests, open_requests, completions, strict=True
        ):
            if completion is not None:
                self._settle(batch, model, request.seed, answer, completion)

    def _settle(
        self,
        batch: RequestBatch,
        model: TextModel,
        seed_index: int,
        answer_draft: _TeacherAnswer,
        completion: Completion,
    ) -> None:
        answer = clean_answer(completion.text)
        shown = f"{answer_draft.question} | {completion.text}"
        if is_truncated(completion):
            batch.add_failure(seed_index, "answer cut at the token limit", shown)
        elif not answer:
            batch.add_failure(seed_index, "no answer", shown)
        else:
            self._keep(batch, model, seed_index, answer_draft, answer)

    def _ask_as_json(self, batch: RequestBatch, model: TextModel) -> RequestCoroutine[None]:
        requests = []
        for seed_index, seed in enumerate(batch.seeds):
            prompt_text = (
                f"{_describe_topic(seed)}{fence_text(seed.passage.text)}\n\n{_JSON_TASK}"
                f"{_name_language(seed.passage)}"
            )
            for index in range(self._count_questions_per_passage(seed)):
                prompt = Prompt(
                    (Message("system", _ASKER), Message("user", prompt_text)), schema=_SCHEMA
                )
                sampling = self._sampling(seed.derive(index), self.max_tokens, ())
                requests.append(ModelRequest(seed_index, prompt, sampling))
        completions = batch.completions(requests, (yield requests))
        for request, completion in zip(requests, completions, strict=True):
            if completion is None:
                continue
            pair = parse_qa_pair(completion.text)
            if pair is None:
                reason = (
                    "JSON cut at the token limit"
                    if is_truncated(completion)
                    else "not the JSON asked"
                )
                batch.add_failure(request.seed, reason, completion.text)
            else:
                self._keep(batch, model, request.seed, _TeacherAnswer(pair[0], None), pair[1])

    def _subjects(self, batch: RequestBatch, seed_index: int) -> list[tuple[Quote | None, str]]:
        """Return the subjects of this attempt: statements, or the whole passage; and questions.

        Statements come in random order: with ``openings``, only those whose form has a question,
        since few of the questions that a small teacher writes are kept, and many of those are poor.
        In a language without forms the teacher writes them all: the question is empty.
        """
        seed = batch.seeds[seed_index]
        if self.form != "statement":
            return [(None, "")] * self._count_questions_per_passage(seed)
        rng = seed.make_rng("statements")
        passage = seed.passage
        if not passage.language:
            # A page of short texts or of two languages has no sure one; its forms need some.
            passage = replace(passage, language=guess_language(passage.text))
        statements = find_statements(passage)
        subjects: list[tuple[Quote | None, str]] = [(quote, "") for quote in statements]
        if self.openings and passage.language in {"", "en", *TEMPLATE_LANGUAGES}:
            subjects = [
                (quote, question)
                for quote in statements
                for question in _write_questions(quote, passage)
            ]
        if not subjects and seed.attempt == 0:
            has_form = not statements
            reason = "no sentence says something by itself"
            batch.add_failure(seed_index, reason if has_form else "no sentence has a known form")
        rng.shuffle(subjects)
        first = seed.attempt * self.questions
        return subjects[first : first + self.questions]

    def _count_questions_per_passage(self, seed: WorkItem) -> int:
        """Return how often to ask about a whole passage: greedily, only once."""
        if self.temperature == 0:
            return int(seed.attempt == 0)
        return self.questions

    def _ask_question(
        self,
        seed_index: int,
        seed: WorkItem,
        quote: Quote | None,
        index: int,
    ) -> ModelRequest:
        """Fill in the question prompt for a quote, or for the whole passage."""
        if quote is None:
            prompt_text = (
                f"{_describe_topic(seed)}{fence_text(seed.passage.text)}\n\nWrite one short "
                "question that this "
                "text answers. The question must name its subject."
                f"{_name_language(seed.passage)}"
            )
            turns = [Message("system", _ASKER), Message("user", prompt_text)]
        else:
            turns = [Message("system", _ASKER)]
            for topic, statement, question in _SHOTS[: self.shots]:
                turns += [
                    Message("user", _show(topic, statement)),
                    Message("assistant", f"{_LABEL} {question}"),
                ]
            statement = to_one_line(quote.text)
            turns.append(Message("user", _show(get_topic(seed), statement, seed.passage.language)))
        sampling = self._sampling(seed.derive(index), self.max_question_tokens)
        label, _ = _TASKS.get(seed.passage.language, (_LABEL, ""))
        label = _LABEL if quote is None else label
        return ModelRequest(seed_index, Prompt(tuple(turns), prefix=label), sampling)

    def _sampling(self, seed: int, limit: int, stop: tuple[str, ...] = ("\n",)) -> Sampling:
        return Sampling(
            max_new_tokens=limit,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=stop,
            seed=seed,
        )

    def _keep(
        self,
        batch: RequestBatch,
        model: TextModel | None,
        seed_index: int,
        answer_draft: _TeacherAnswer,
        answer: str,
    ) -> None:
        """Add a record; without a model, its question was written by its statement's form."""
        seed = batch.seeds[seed_index]
        quote = answer_draft.quote or find_best_quote(seed.passage, answer)
        prompt_digest = digest_json([self.form, self.answer, self.shots, _PROMPTS])
        parents = (seed.passage.id,)
        method = "synth.generators.grounded_qa"
        link = Link(method, "", parents)
        if model is not None:
            link = Link(method, model.fingerprint, parents, prompt_digest)
        fields = {
            "question": answer_draft.question,
            "answer": answer,
            "evidence": quote.to_json(),
            "split": seed.split,
            "document_id": seed.passage.document_id,
        }
        turns = (Message("user", answer_draft.question), Message("assistant", answer))
        batch.add_record(
            seed_index, Record(turns, fields, seed.passage.origin.then(link, kind="synthetic"))
        )


def _write_questions(quote: Quote, passage: Passage) -> list[str]:
    """Return the questions of a statement's form, with the topic of its document named."""
    text = end_sentence(quote.text)
    language = passage.language or guess_language(text)
    if not language:
        return []
    passage = replace(passage, language=language)
    questions = write_template_questions(text, language, passage.text)
    if language == "en":
        plain = simplify_statement(collapse_whitespace(text))
        questions += write_clause_questions(text, passage.text) or write_clause_questions(
            plain, passage.text
        )
    named = (_name(question, passage) for question in questions)
    return list(dict.fromkeys(filter(None, named)))


def _name(question: str, passage: Passage) -> str:
    """Return a question with the topic of its document named, or else the heading it stands under.

    Empty if it cannot stand alone and there is none; in English and German that is left to the
    filter.
    """
    if is_untold(question, passage):
        return ""
    named = name_topic(question, passage)
    if named not in {"", question}:
        return named
    headed = head_question(question, passage)
    if headed in {"", question}:
        return named or (question if passage.language in {"", "en", "de"} else "")
    return headed


def _state(quote: Quote) -> str:
    """Return a quote as an answer: one line that ends as a sentence."""
    return end_sentence(collapse_whitespace(quote.text))


def _describe_topic(seed: WorkItem) -> str:
    topic = get_topic(seed)
    return f"Topic: {topic}\n\n" if topic else ""


def _name_language(passage: Passage) -> str:
    return f" {_SAME_LANGUAGE}" if passage.language not in {"", "en"} else ""


def _show(topic: str, statement: str, language: str = "") -> str:
    topic_line = f"Topic: {topic}\n" if topic else ""
    task = _TASKS.get(language, (_LABEL, _TASK))[1]
    if language not in {"", "en", *_TASKS}:
        task = f"{_TASK} {_SAME_LANGUAGE}"
    return f"{topic_line}Statement: {statement}\n{task}"
