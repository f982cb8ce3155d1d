"""Stepwise generators: one coroutine per work item, batched; malformed JSON is retried.

``StepwiseGenerator`` is the base class of generators that need more than one answer, and holds the
settings by which the teacher is sampled (temperature, top_p, repetition_penalty). Its ``write`` is
a coroutine for one seed; the units of a batch run concurrently, so that each step of all of them is
one batch for the teacher, and units are independent. Prompts are templates that a recipe may
override; JSON is constrained to its schema by grammar where the backend supports it, and otherwise
repaired or requested again (``retries``), each counted. Failed HTTP requests are retried, with
backoff, in ``models.endpoints.client``.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Generator as Coroutine
from dataclasses import replace
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Self,
    TypeAlias,
    TypeVar,
)

from pydantic import Field, model_validator
from typing_extensions import override

from stillroom.evaluate.json_output import parse_json_with_schema
from stillroom.provenance import digest_json
from stillroom.records import Completion, Link, Message, Passage, Prompt, Record, Sampling
from stillroom.synth.interfaces import Generator
from stillroom.synth.prompting.conversation import refers_to_source
from stillroom.synth.prompting.requests import (
    INVALID_JSON,
    ModelRequest,
    PromptTemplate,
    RequestBatch,
    check_prompts,
    find_truncated,
    get_max_length,
    is_truncated,
    make_object_schema,
    make_string_schema,
)
from stillroom.synth.types import GenerationFailure, GenerationResult, WorkItem, derive_seed

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = [
    "CoroutineBatch",
    "GenerationUnit",
    "RequestCoroutine",
    "StepwiseGenerator",
    "run_concurrently",
]

T = TypeVar("T")
RequestCoroutine: TypeAlias = Coroutine[list[ModelRequest], list[Completion | GenerationFailure], T]
"""A coroutine that yields requests, several at a time, and returns a value."""

_MAX_FAILURE_TEXT = 4000
_MAX_TOKEN_CHARACTERS = 128
_MAX_QUOTED = 2000


class StepwiseGenerator(Generator):
    """Base class of generators that write the records of a unit step by step."""

    templates: ClassVar[Mapping[str, str]] = {}
    """Prompt templates by name, with fields as in ``PromptTemplate``."""

    prompts: dict[str, str] = Field(
        default_factory=dict,
        description="overrides of prompts by name, with the same {fields} as the method's",
    )
    temperature: float = Field(0.7, ge=0, le=2, description="sampling temperature; 0 is greedy")
    top_p: float = Field(0.95, gt=0, le=1, description="nucleus sampling: cumulative probability")
    repetition_penalty: float = Field(1.0, gt=0, description="above 1 discourages repetition")
    retries: int = Field(
        1,
        ge=0,
        le=5,
        description="how often to repeat a request for JSON that does not fit its schema",
    )

    @model_validator(mode="after")
    def _check_prompts(self) -> Self:
        check_prompts(self.prompts, self.templates)
        if self.temperature == 0 and getattr(self, "samples", 1) > 1:
            raise ValueError("temperature 0 gives identical samples; set it above 0")
        return self

    def template(self, name: str) -> PromptTemplate:
        """Return a prompt template: the recipe's override, or the method's."""
        return PromptTemplate(self.prompts.get(name, self.templates[name]))

    @property
    @override
    def max_tokens(self) -> int:
        """The largest setting ``max_*_tokens``; without one, the largest ``max_*_characters``."""
        limits: dict[str, int] = {name: value for name, value in self if name.startswith("max_")}
        tokens = [value for name, value in limits.items() if name.endswith("_tokens")]
        return max(tokens or [limits[name] for name in limits if name.endswith("_characters")])

    @override
    def open(self, seeds: Sequence[WorkItem], model: TextModel) -> CoroutineBatch:
        return CoroutineBatch.of(self, self.write, seeds, model)

    @abstractmethod
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        """Request the records of one unit and add them.

        Raises:
            BackendError: If the teacher fails.
        """


class CoroutineBatch:
    """Units of seeds in progress: their pending requests, and their drafts at the end.

    ``requests`` are the pending requests; None when all units are done.
    """

    def __init__(self, batch: RequestBatch, steps: RequestCoroutine[Any]) -> None:
        self.batch = batch
        self._steps = steps
        self.requests: list[ModelRequest] | None = None
        self._advance(None)

    @classmethod
    def of(
        cls,
        method: StepwiseGenerator,
        write: Callable[[GenerationUnit], RequestCoroutine[None]],
        seeds: Sequence[WorkItem],
        model: TextModel,
    ) -> Self:
        """Start the units of all seeds concurrently."""
        batch = RequestBatch(seeds, model)
        units = [GenerationUnit(batch, index, method, model) for index in range(len(seeds))]
        return cls(batch, run_concurrently([write(unit) for unit in units]))

    def answer(self, answers: Sequence[Completion | GenerationFailure]) -> None:
        """Resume with the completions of ``requests``, which the caller has requested."""
        self.batch.count_usage(self.requests or (), answers)
        self._advance(list(answers))

    def run(self) -> Iterator[GenerationResult]:
        """Send requests to the teacher until all units are done; return the drafts in order.

        Raises:
            BackendError: If the teacher fails.
        """
        while self.requests is not None:
            self._advance(self.batch.request(self.requests))
        return self.batch.drafts()

    def _advance(self, answers: list[Completion | GenerationFailure] | None) -> None:
        try:
            self.requests = next(self._steps) if answers is None else self._steps.send(answers)
        except StopIteration:
            self.requests = None


class GenerationUnit:
    """One seed in progress: sends requests with ``yield from``, adds records and failures."""

    def __init__(
        self, batch: RequestBatch, index: int, method: StepwiseGenerator, model: TextModel
    ) -> None:
        self.seed = batch.seeds[index]
        self.model = model
        self._batch, self._index, self._method = batch, index, method
        self._num_requests = 0
        self._used_prompts: dict[str, str] = {}

    def rng(self, *purpose: object) -> random.Random:
        """Return a random number generator for this unit and attempt."""
        seed = self.seed
        return random.Random(derive_seed(seed.seed, seed.item.id, seed.attempt, *purpose))

    def render(self, name: str, /, **fields: str) -> str:
        """Return a prompt with its fields filled, and record its use."""
        template = self._method.template(name)
        self._used_prompts[name] = template.digest
        return template.fill(**fields)

    def ask(
        self,
        words: str | Sequence[Message],
        *,
        tokens: int,
        label: str = "answer",
        system: str = "",
        prefix: str = "",
        stop: tuple[str, ...] = (),
        temperature: float | None = None,
        model: TextModel | None = None,
    ) -> RequestCoroutine[str | None]:
        """Request one text; return None (and record a failure) if there is none.

        Args:
            words: The user message, or all messages.
            tokens: Maximum tokens of the text; a truncated text is a failure.
            label: Name of the text in the failure's reason.
            system: The system message.
            prefix: Start of the assistant message; not part of the result.
            stop: Stop strings.
            temperature: Overrides the method's temperature.
            model: Model to use instead of the teacher.
        """
        prompt = Prompt(_make_messages(words, system), prefix=prefix)
        (answer,) = yield [
            replace(self._make_request(prompt, tokens, stop, temperature), model=model)
        ]
        reason, text = _read_completion(answer, label, tokens)
        if not reason:
            return text
        self.fail(reason, text)
        return None

    def sample_many(
        self, words: str, *, count: int, tokens: int, prefix: str = ""
    ) -> RequestCoroutine[list[str | None]]:
        """Request several completions of one prompt; None for truncated or refused ones.

        Args:
            words: The user message.
            count: Number of completions.
            tokens: Maximum tokens of each.
            prefix: Start of the assistant message; not part of the results.
        """
        prompt = Prompt(_make_messages(words), prefix=prefix)
        answers = yield [self._make_request(prompt, tokens, (), None) for _ in range(count)]
        texts: list[str | None] = []
        for answer in answers:
            reason, text = _read_completion(answer, "answer", tokens)
            if reason:
                self.fail(reason, text)
            texts.append(None if reason else answer.text)
        return texts

    def ask_json(
        self,
        words: str | Sequence[Message],
        schema: Mapping[str, Any],
        *,
        tokens: int = 0,
        label: str = "JSON",
        temperature: float | None = None,
    ) -> RequestCoroutine[Any]:
        """Request JSON that fits a schema; return None (and record a failure) if there is none.

        The report counts ``JSON asked``, ``JSON repaired``, ``JSON asked again`` and ``JSON
        unreadable``. A value truncated at the token limit is requested again with twice the limit,
        and so is prose that fills its maximum length, since a grammar cuts it anywhere. A request
        that the teacher's server refused or did not answer keeps that reason and is not repeated.

        Args:
            words: The user message, or all messages.
            schema: A JSON Schema in which every length is bounded, unless ``tokens`` is set.
            tokens: Raises the token limit, by default the characters of the longest value.
            label: Name of the JSON in the failure's reason.
            temperature: Overrides the method's temperature.
        """
        limit = max(tokens, get_max_length(schema) or 0) or 1024
        messages = _make_messages(words)
        self.count("JSON asked")
        previous = problem = reason = cut = ""
        for attempt in range(self._method.retries + 1):
            if attempt:
                self.count("JSON asked again")
            turns = (*messages, *_make_correction(previous, problem))
            (answer,) = yield [
                self._make_request(Prompt(turns, schema=schema), limit, (), temperature)
            ]
            previous, reason, cut = "", f"{label} is not the JSON asked", ""
            if isinstance(answer, GenerationFailure):
                if answer.reason != INVALID_JSON:  # a repetition would fail, or stay unanswered
                    self.fail(answer.reason, answer.text)
                    return None
                problem = answer.text
                continue
            if is_truncated(answer):
                reason = problem = f"{label} cut at the token limit"
                limit *= 2
                continue
            reading = parse_json_with_schema(answer.text, schema)
            cut = "" if reading.problem else find_truncated(reading.value, schema)
            if not reading.problem and not cut:
                self.count("JSON repaired", int(reading.is_repaired))
                return reading.value
            previous, problem = answer.text, reading.problem or f"{cut!r} is too long and was cut"
        if cut:
            self.fail(f"{label} cut at its length", previous)
            return None
        self.count("JSON unreadable")
        self.fail(reason, f"{problem}: {previous}" if previous else problem)
        return None

    def ask_instruction(
        self, words: str, shortest: int, longest: int
    ) -> RequestCoroutine[str | None]:
        """Request the instruction that a text answers; None (and a failure) without a usable one.

        An instruction that refers to its text is unusable: readers will not see it. The bounds of
        its length are in characters.
        """
        schema = make_object_schema(instruction=make_string_schema(longest, shortest))
        reply = yield from self.ask_json(words, schema, label="instruction")
        if reply is None:
            return None
        instruction = str(reply["instruction"]).strip()
        if refers_to_source(instruction):
            self.fail("instruction that speaks of its text", instruction)
            return None
        return instruction

    def add_record(
        self,
        messages: Sequence[Message],
        fields: Mapping[str, Any],
        *,
        parents: Sequence[str] = (),
        links: Sequence[Link] = (),
        is_of_seed: bool = True,
    ) -> Record:
        """Add a record, with its origin: the seed's chain, then this method.

        Args:
            messages: The messages.
            fields: Further fields; split, document and seed are added.
            parents: Ids of parents besides the seed.
            links: Links of other models that took part, before this method's.
            is_of_seed: Whether the seed is a parent; false where it only seeds the sampling.
        """
        seed, method = self.seed, self._method
        seed_ids = [seed.item.id] if is_of_seed and seed.kind != "nothing" else []
        link = Link(
            f"synth.generators.{method.method_name()}",
            self.model.fingerprint,
            tuple(dict.fromkeys([*seed_ids, *parents])),
            digest_json(sorted(self._used_prompts.items())),
        )
        origin = seed.item.origin
        for extra_link in links:
            origin = origin.then(extra_link, kind="synthetic")
        all_fields = {
            **fields,
            "split": seed.split,
            "document_id": seed.document_id,
            "seed": _describe_seed(seed),
        }
        record = Record(tuple(messages), all_fields, origin.then(link, kind="synthetic"))
        self._batch.add_record(self._index, record)
        return record

    def fail(self, reason: str, text: str = "") -> None:
        """Record a failure: a short fixed reason, and the teacher's text."""
        self._batch.add_failure(self._index, reason, text[:_MAX_FAILURE_TEXT])

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter of the report."""
        if number:
            self._batch.count(self._index, name, number)

    def make_raw_request(self, text: str, *, tokens: int, stop: tuple[str, ...]) -> ModelRequest:
        """Return a request without a chat template, for the coroutine to yield."""
        return self._make_request(Prompt(text=text), tokens, stop, None)

    def _make_request(
        self, prompt: Prompt, tokens: int, stop: tuple[str, ...], temperature: float | None
    ) -> ModelRequest:
        """Return the next request, with a sampling seed of its own."""
        self._num_requests += 1
        method = self._method
        sampling = Sampling(
            max_new_tokens=tokens,
            temperature=method.temperature if temperature is None else temperature,
            top_p=method.top_p,
            repetition_penalty=method.repetition_penalty,
            stop=stop,
            seed=self.seed.derive("ask", self._num_requests),
        )
        return ModelRequest(self._index, prompt, sampling)


def run_concurrently(steps: Sequence[RequestCoroutine[T]]) -> RequestCoroutine[list[T]]:
    """Run several coroutines concurrently, each step as one batch; return their values."""
    values: dict[int, T] = {}
    waiting: dict[int, list[ModelRequest]] = {}

    def advance(index: int, answers: list[Completion | GenerationFailure] | None) -> None:
        try:
            coroutine = steps[index]
            waiting[index] = next(coroutine) if answers is None else coroutine.send(answers)
        except StopIteration as done:
            waiting.pop(index, None)
            values[index] = done.value

    for index in range(len(steps)):
        advance(index, None)
    while waiting:
        pending = dict(waiting)
        answers = yield [request for requests in pending.values() for request in requests]
        start = 0
        for index, requests in pending.items():
            advance(index, answers[start : start + len(requests)])
            start += len(requests)
    return [values[index] for index in range(len(steps))]


def _make_messages(words: str | Sequence[Message], system: str = "") -> tuple[Message, ...]:
    first = (Message("system", system),) if system else ()
    return (*first, Message("user", words)) if isinstance(words, str) else (*first, *words)


def _make_correction(previous: str, problem: str) -> tuple[Message, ...]:
    """Return the messages that quote the teacher's invalid answer and describe the problem."""
    if not previous:
        return ()
    correction = f"That does not fit: {problem[:300]}. Answer again, with the JSON alone."
    return Message("assistant", previous[:_MAX_QUOTED]), Message("user", correction)


def _describe_seed(seed: WorkItem) -> dict[str, Any]:
    """Return the record's ``seed`` field: the seed and its location."""
    description: dict[str, Any] = {"kind": seed.kind, "id": seed.item.id}
    if isinstance(seed.item, Passage):
        description |= {"start": seed.item.start, "end": seed.item.end}
    elif seed.kind == "topics":
        description |= {"path": list(seed.topic.path), "source": seed.topic.source}
    return description


def _read_completion(
    answer: Completion | GenerationFailure, label: str, tokens: int
) -> tuple[str, str]:
    """Return why there is no text (empty if there is one), and the text.

    A server that ignores the token limit may send megabytes, which are rejected early.
    """
    if isinstance(answer, GenerationFailure):
        return answer.reason, answer.text
    if len(answer.text) > _MAX_TOKEN_CHARACTERS * tokens:
        return f"{label} far longer than was asked", answer.text
    text = answer.text.strip()
    if is_truncated(answer):
        return f"{label} cut at the token limit", text
    return ("" if text else f"no {label}"), text
