"""Stepwise generators: one coroutine per work item, batched over many items.

``StepwiseGenerator`` is the base of generators that need more than one answer. Its ``write`` is a
coroutine for one seed; the units of a group are driven side by side, so that every step of all of
them is one batch for the teacher, and a unit never sees another. Prompts are templates that a
recipe may word anew; JSON is held to its schema by grammar where the backend has it, and repaired
or asked for again where not, each counted.
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
    Protocol,
    Self,
    TypeAlias,
    TypeVar,
    runtime_checkable,
)

from pydantic import Field, model_validator
from typing_extensions import override

from stillroom.evaluate.json_output import parse_json_with_schema
from stillroom.provenance import digest_json
from stillroom.records import Completion, Link, Message, Passage, Prompt, Record, Sampling
from stillroom.synth.interfaces import Generator, GeneratorState
from stillroom.synth.prompting.requests import (
    INVALID_JSON,
    ModelRequest,
    PromptTemplate,
    RequestBatch,
    check_prompts,
    find_truncated,
    get_max_length,
    is_truncated,
)
from stillroom.synth.types import GenerationFailure, GenerationResult, WorkItem, derive_seed

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = [
    "CoroutineBatch",
    "GenerationUnit",
    "RequestCoroutine",
    "StepwiseGenerator",
    "StepwiseState",
    "drop_none",
    "run_concurrently",
]

T = TypeVar("T")
RequestCoroutine: TypeAlias = Coroutine[list[ModelRequest], list[Completion | GenerationFailure], T]
"""What asks for several completions at a time, and comes to a value."""

_MAX_FAILURE_TEXT = 4000
_MAX_TOKEN_CHARACTERS = 128
_MAX_QUOTED = 2000


class StepwiseGenerator(Generator):
    """Writes the records of a unit step by step."""

    templates: ClassVar[Mapping[str, PromptTemplate]] = {}
    """The prompts by name."""

    prompts: dict[str, str] = Field(
        default_factory=dict,
        description="own wording of prompts by name, with the same {fields} as the method's",
    )
    temperature: float = Field(0.7, ge=0, le=2, description="0 takes the likeliest token")
    top_p: float = Field(0.95, gt=0, le=1, description="share of the probability drawn from")
    repetition_penalty: float = Field(1.0, gt=0, description="above 1 discourages repeating")
    retries: int = Field(
        1, ge=0, le=5, description="how often JSON that does not fit its schema is asked for again"
    )

    @model_validator(mode="after")
    def _check_prompts(self) -> Self:
        check_prompts(self.prompts, self.templates)
        return self

    def template(self, name: str) -> PromptTemplate:
        """Return a prompt: the recipe's own wording, or the method's."""
        return PromptTemplate(self.prompts[name]) if name in self.prompts else self.templates[name]

    @override
    def generate(self, seeds: Sequence[WorkItem], model: TextModel) -> Iterator[GenerationResult]:
        return self.open(seeds, model).run()

    def open(self, seeds: Sequence[WorkItem], model: TextModel) -> CoroutineBatch:
        """Begin the units of seeds; see ``StepwiseState``."""
        return CoroutineBatch.of(self, self.write, seeds, model)

    @abstractmethod
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        """Ask for the records of one unit and keep them.

        Raises:
            BackendError: If the teacher fails.
        """


class CoroutineBatch:
    """Seeds' units at work: what they wait for, and their drafts when nothing is left to ask.

    ``asks`` is what is asked for next; None when all is done.
    """

    def __init__(self, asking: RequestBatch, steps: RequestCoroutine[Any]) -> None:
        """Take the steps up to the first asks."""
        self.asking = asking
        self._steps = steps
        self.asks: list[ModelRequest] | None = None
        self._go_on(None)

    @classmethod
    def of(
        cls,
        method: StepwiseGenerator,
        write: Callable[[GenerationUnit], RequestCoroutine[None]],
        seeds: Sequence[WorkItem],
        model: TextModel,
    ) -> Self:
        """Begin every seed's unit, side by side with the others."""
        asking = RequestBatch(seeds, model)
        units = [GenerationUnit(asking, place, method, model) for place in range(len(seeds))]
        return cls(asking, run_concurrently([write(unit) for unit in units]))

    def answer(self, given: Sequence[Completion | GenerationFailure]) -> None:
        """Take the steps that follow from the completions of ``asks``, asked elsewhere."""
        self.asking.settle(self.asks or (), given)
        self._go_on(list(given))

    def run(self) -> Iterator[GenerationResult]:
        """Ask the teacher until nothing is left to ask; return the drafts in order.

        Raises:
            BackendError: If the teacher fails.
        """
        while self.asks is not None:
            self._go_on(self.asking.attempt(self.asks))
        return self.asking.drafts()

    def _go_on(self, given: list[Completion | GenerationFailure] | None) -> None:
        try:
            self.asks = next(self._steps) if given is None else self._steps.send(given)
        except StopIteration:
            self.asks = None


@runtime_checkable
class StepwiseState(GeneratorState, Protocol):
    """A Writer whose units can be left where they wait for completions, and gone on with."""

    def open(self, seeds: Sequence[WorkItem], model: TextModel) -> CoroutineBatch:
        """Begin the units of seeds.

        Raises:
            BackendError: If the model cannot do what is asked of it.
        """


class GenerationUnit:
    """One seed at work: asks by ``yield from``, then keeps records and names failures."""

    def __init__(
        self, asking: RequestBatch, place: int, method: StepwiseGenerator, model: TextModel
    ) -> None:
        """Stand at the beginning of the seed in its group."""
        self.seed = asking.seeds[place]
        self.model = model
        self._asking, self._place, self._method = asking, place, method
        self._asked = 0
        self._used: dict[str, str] = {}

    def rng(self, *purpose: object) -> random.Random:
        """Return a generator of random numbers of this unit alone, its attempt included."""
        seed = self.seed
        return random.Random(derive_seed(seed.seed, seed.item.id, seed.attempt, *purpose))

    def words(self, name: str, /, **fields: str) -> str:
        """Return a prompt with its fields filled, and note that it was used."""
        template = self._method.template(name)
        self._used[name] = template.digest
        return template.fill(**fields)

    def say(
        self,
        words: str | Sequence[Message],
        *,
        tokens: int,
        what: str = "answer",
        system: str = "",
        prefix: str = "",
        stop: tuple[str, ...] = (),
        temperature: float | None = None,
        is_optional: bool = False,
        model: TextModel | None = None,
    ) -> RequestCoroutine[str | None]:
        """Ask for one text; None (and a failure of the unit) where there is none.

        Args:
            words: The user's words, or all turns.
            tokens: Most tokens of the text; what is cut by it is no answer.
            what: What the text is, for the failure's reason.
            system: The system's turn.
            prefix: How the assistant's turn begins; not part of what is returned.
            stop: Where the text ends.
            temperature: Another than the method's.
            is_optional: Whether no text is no failure.
            model: Who is asked, where that is not the teacher.
        """
        prompt = Prompt(_make_messages(words, system), prefix=prefix)
        (given,) = yield [replace(self._ask(prompt, tokens, stop, temperature), model=model)]
        reason, text = _read_completion(given, what, tokens)
        if not reason:
            return text
        if not is_optional:
            self.fail(reason, text)
        return None

    def draw(
        self, words: str, *, count: int, tokens: int, prefix: str = ""
    ) -> RequestCoroutine[list[str | None]]:
        """Ask for several completions of one prompt; None in place of what was cut or refused.

        Args:
            words: The user's words.
            count: How many.
            tokens: Most tokens of each.
            prefix: How the assistant's turn begins; not part of what is returned.
        """
        prompt = Prompt(_make_messages(words, ""), prefix=prefix)
        given = yield [self._ask(prompt, tokens, (), None) for _ in range(count)]
        texts: list[str | None] = []
        for one in given:
            reason, text = _read_completion(one, "answer", tokens)
            if reason:
                self.fail(reason, text)
            texts.append(one.text if isinstance(one, Completion) and not reason else None)
        return texts

    def fill(
        self,
        words: str | Sequence[Message],
        schema: Mapping[str, Any],
        *,
        tokens: int = 0,
        what: str = "JSON",
        system: str = "",
        temperature: float | None = None,
    ) -> RequestCoroutine[Any]:
        """Ask for JSON that fits a schema; None (and a failure of the unit) where there is none.

        Counted are ``JSON asked``, ``JSON repaired``, ``JSON asked again`` and ``JSON unreadable``.
        What was cut at the token limit is asked again with twice as many, and so is prose that
        fills all of its room, since a grammar ends it anywhere. What the teacher's server
        refused or did not answer keeps that reason and is not asked again.

        Args:
            words: The user's words, or all turns.
            schema: A JSON Schema, in which every length has a bound, or else ``tokens`` is one.
            tokens: Most tokens; by default as many as the longest value has characters.
            what: What the JSON is, for the failure's reason.
            system: The system's turn.
            temperature: Another than the method's.
        """
        limit = max(tokens, get_max_length(schema) or 0) or 1024
        turns = _make_messages(words, system)
        self.count("JSON asked")
        shown, problem = "", ""
        for attempt in range(self._method.retries + 1):
            if attempt:
                self.count("JSON asked again")
                turns = (*_make_messages(words, system), *_make_correction(shown, problem))
            (given,) = yield [self._ask(Prompt(turns, schema=schema), limit, (), temperature)]
            if isinstance(given, GenerationFailure):
                if given.reason != INVALID_JSON:  # asked again it would fail, or be lost, again
                    self.fail(given.reason, given.text)
                    return None
                shown, problem = "", given.text
                continue
            if is_truncated(given):
                shown, problem, limit = "", f"{what} cut at the token limit", 2 * limit
                continue
            reading = parse_json_with_schema(given.text, schema)
            cut = "" if reading.problem else find_truncated(reading.value, schema)
            if not reading.problem and not cut:
                self.count("JSON repaired", int(reading.is_repaired))
                return reading.value
            shown, problem = given.text, reading.problem or f"{cut!r} is too long and was cut"
        if problem.endswith("was cut"):
            self.fail(f"{what} cut at its length", shown)
            return None
        self.count("JSON unreadable")
        reason = problem if problem.endswith("token limit") else f"{what} is not the JSON asked"
        self.fail(reason, f"{problem}: {shown}" if shown else problem)
        return None

    def keep(
        self,
        messages: Sequence[Message],
        fields: Mapping[str, Any],
        *,
        parents: Sequence[str] = (),
        links: Sequence[Link] = (),
        is_of_seed: bool = True,
    ) -> Record:
        """Keep a record, with its origin: the seed's chain, then this method.

        Args:
            messages: The turns.
            fields: What else it holds; side, document and seed are added.
            parents: Ids of what it was made from, beside the seed.
            links: Links of other models that took part, before this method's.
            is_of_seed: Whether the seed is a parent; not where it was only a number to draw by.
        """
        seed, method = self.seed, self._method
        named = [seed.item.id] if is_of_seed and seed.kind != "nothing" else []
        link = Link(
            f"synth.generators.{method.method_name()}",
            self.model.fingerprint,
            tuple(dict.fromkeys([*named, *parents])),
            digest_json(sorted(self._used.items())),
        )
        origin = seed.item.origin
        for other in links:
            origin = origin.then(other, kind="synthetic")
        told = {
            **fields,
            "split": seed.split,
            "document_id": seed.document_id,
            "seed": _describe_seed(seed),
        }
        record = Record(tuple(messages), told, origin.then(link, kind="synthetic"))
        self._asking.keep(self._place, record)
        return record

    def fail(self, reason: str, text: str = "") -> None:
        """Say that something gave no record: a short fixed phrase, and what was said."""
        self._asking.fail(self._place, reason, text[:_MAX_FAILURE_TEXT])

    def count(self, name: str, number: int = 1) -> None:
        """Add to a tally of the report."""
        if number:
            self._asking.count(self._place, name, number)

    def sample(self, tokens: int, temperature: float | None = None) -> Sampling:
        """Return how the next completion is drawn; no two of a unit are drawn alike."""
        self._asked += 1
        method = self._method
        return Sampling(
            max_new_tokens=tokens,
            temperature=method.temperature if temperature is None else temperature,
            top_p=method.top_p,
            repetition_penalty=method.repetition_penalty,
            seed=self.seed.derive("ask", self._asked),
        )

    def _ask(
        self, prompt: Prompt, tokens: int, stop: tuple[str, ...], temperature: float | None
    ) -> ModelRequest:
        drawn = self.sample(tokens, temperature)
        return ModelRequest(
            self._place,
            prompt,
            Sampling(
                drawn.max_new_tokens,
                drawn.temperature,
                drawn.top_k,
                drawn.top_p,
                drawn.repetition_penalty,
                stop,
                drawn.seed,
            ),
        )

    def ask_raw(self, text: str, *, tokens: int, stop: tuple[str, ...]) -> ModelRequest:
        """Return an ask that no chat template touches, to be yielded by itself."""
        return self._ask(Prompt(text=text), tokens, stop, None)


def run_concurrently(steps: Sequence[RequestCoroutine[T]]) -> RequestCoroutine[list[T]]:
    """Take several coroutines' steps side by side, as one batch each; return their values."""
    values: dict[int, T] = {}
    waiting: dict[int, list[ModelRequest]] = {}

    def advance(place: int, given: list[Completion | GenerationFailure] | None) -> None:
        try:
            one = steps[place]
            waiting[place] = next(one) if given is None else one.send(given)
        except StopIteration as done:
            waiting.pop(place, None)
            values[place] = done.value

    for place in range(len(steps)):
        advance(place, None)
    while waiting:
        asked = dict(waiting)
        given = yield [ask for asks in asked.values() for ask in asks]
        start = 0
        for place, asks in asked.items():
            advance(place, given[start : start + len(asks)])
            start += len(asks)
    return [values[place] for place in range(len(steps))]


def drop_none(values: Sequence[T | None]) -> list[T]:
    """Return the values that are there."""
    return [value for value in values if value is not None]


def _make_messages(words: str | Sequence[Message], system: str) -> tuple[Message, ...]:
    first = (Message("system", system),) if system else ()
    return (*first, Message("user", words)) if isinstance(words, str) else (*first, *words)


def _make_correction(shown: str, problem: str) -> tuple[Message, ...]:
    """Return the turns that show a teacher what it wrote and what is wrong with it."""
    if not shown:
        return ()
    again = f"That does not fit: {problem[:300]}. Answer again, with the JSON alone."
    return Message("assistant", shown[:_MAX_QUOTED]), Message("user", again)


def _describe_seed(seed: WorkItem) -> dict[str, Any]:
    """Return the record's ``seed`` field: what it started from, and where that stands."""
    told: dict[str, Any] = {"kind": seed.kind, "id": seed.item.id}
    if isinstance(seed.item, Passage):
        told |= {"start": seed.item.start, "end": seed.item.end}
    elif seed.kind == "topics":
        told |= {"path": list(seed.topic.path), "source": seed.topic.source}
    return told


def _read_completion(
    given: Completion | GenerationFailure, what: str, tokens: int
) -> tuple[str, str]:
    """Return why there is no text (empty where there is one), and the text.

    A server that heeds no limit of tokens may send megabytes, which nothing should go through.
    """
    if isinstance(given, GenerationFailure):
        return given.reason, given.text
    if len(given.text) > _MAX_TOKEN_CHARACTERS * tokens:
        return f"{what} far longer than was asked", given.text[:_MAX_FAILURE_TEXT]
    text = given.text.strip()
    if is_truncated(given):
        return f"{what} cut at the token limit", text
    return ("" if text else f"no {what}"), text
