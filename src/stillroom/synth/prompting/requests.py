"""Teacher requests: batches, prompt templates, JSON schemas (structured output), reply parsing.

Generators use ``RequestBatch``: the requests they ``yield`` are sent by ``request``, or
elsewhere and counted by ``count_usage``; then they call ``add_record`` or ``add_failure`` for each,
and ``drafts`` returns the
results. Document texts are inserted into prompts only through ``fence_text`` or ``to_one_line``,
which make them data: hidden characters are removed and the fence cannot be closed from within.

A template field is ``{name}`` in lower-case letters; braces around anything else are text, such as
JSON in a prompt. Fields are filled in one pass, so that document text is never interpreted as a
field.

Reply parsing accepts any text and never raises; what cannot be parsed is returned empty. JSON is
parsed by ``stillroom.evaluate``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stillroom.errors import BackendError
from stillroom.provenance import digest_text
from stillroom.records import Completion, Prompt, Record, Sampling
from stillroom.registry.catalog import suggest
from stillroom.synth.lexical_overlap import collapse_whitespace
from stillroom.synth.prompting.question_topics import find_innermost_heading
from stillroom.synth.types import GenerationFailure, GenerationResult, WorkItem
from stillroom.text.unicode import strip_invisible

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = [
    "INVALID_JSON",
    "NO_ANSWER",
    "REFUSED",
    "UNANSWERED",
    "ModelRequest",
    "PromptTemplate",
    "RequestBatch",
    "check_prompts",
    "clean_answer",
    "clean_question",
    "describe_resumption",
    "fence_text",
    "find_truncated",
    "get_max_length",
    "get_topic",
    "is_truncated",
    "make_array_schema",
    "make_enum_schema",
    "make_object_schema",
    "make_string_schema",
    "parse_qa_pair",
    "strip_quotes",
    "to_failure",
    "to_one_line",
]

_CONTROL_TOKEN = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>")
_MAX_TOPIC = 100
INVALID_JSON = "not the JSON asked"
REFUSED = "refused by the teacher's server"
NO_ANSWER = "no answer from the teacher's server"
_UNREADABLE = "no answer that can be read"
UNANSWERED = {NO_ANSWER: "backend.unavailable", _UNREADABLE: "backend.malformed"}
"""Not the request's own fault: such a unit is not cached, so that a later run repeats it.

By reason, the error of a job that ends because of it.
"""

_REQUEST_ERRORS = {
    "backend.context": "longer than the teacher's context",
    "backend.schema": INVALID_JSON,
    "backend.refused": REFUSED,
    "backend.answer": "an answer without text",
    "backend.malformed": _UNREADABLE,
    "backend.timeout": NO_ANSWER,
    "backend.broken": NO_ANSWER,
    "backend.unavailable": NO_ANSWER,
}
"""Errors of a single request, by code; any other is the teacher's and ends the job."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One prompt of one seed; ``seed`` is its index in the batch.

    ``model`` is the model to use instead of the teacher.
    """

    seed: int
    prompt: Prompt
    sampling: Sampling
    model: TextModel | None = None


@dataclass(slots=True)
class _RequestTotals:
    records: list[Record] = field(default_factory=list)
    failures: list[GenerationFailure] = field(default_factory=list)
    asked: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counts: Counter[str] = field(default_factory=Counter)


class RequestBatch:
    """The requests of a batch of seeds to one teacher."""

    def __init__(self, seeds: Sequence[WorkItem], model: TextModel) -> None:
        self.seeds = seeds
        self._model = model
        self._totals = [_RequestTotals() for _ in seeds]

    def completions(
        self, requests: Sequence[ModelRequest], answers: Sequence[Completion | GenerationFailure]
    ) -> list[Completion | None]:
        """Return the completions of requests in order; None for a failure, which is recorded."""
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, GenerationFailure):
                self.add_failure(request.seed, answer.reason, answer.text)
        return [None if isinstance(answer, GenerationFailure) else answer for answer in answers]

    def request(self, requests: Sequence[ModelRequest]) -> list[Completion | GenerationFailure]:
        """Return the completion of every request, or its failure.

        Raises:
            BackendError: If the teacher fails as a whole.
        """
        by_index: dict[int, Completion | GenerationFailure] = {}
        for model in {id(request.model): request.model for request in requests}.values():
            indices = [index for index, request in enumerate(requests) if request.model is model]
            completions = self.complete(
                [requests[index] for index in indices], model or self._model
            )
            by_index |= zip(indices, completions, strict=True)
        answers = [by_index[index] for index in range(len(requests))]
        self.count_usage(requests, answers)
        return answers

    def count_usage(
        self, requests: Sequence[ModelRequest], answers: Sequence[Completion | GenerationFailure]
    ) -> None:
        """Count the cost of requests that were sent elsewhere."""
        for request, answer in zip(requests, answers, strict=True):
            totals = self._totals[request.seed]
            totals.asked += 1
            if isinstance(answer, Completion):
                totals.prompt_tokens += answer.prompt_tokens
                totals.completion_tokens += answer.completion_tokens

    def complete(
        self, requests: Sequence[ModelRequest], model: TextModel
    ) -> list[Completion | GenerationFailure]:
        """Return a model's answers to requests, without counting them.

        Raises:
            BackendError: If the model fails as a whole.
        """
        prompts = [request.prompt for request in requests]
        samplings = [request.sampling for request in requests]
        done: dict[int, Completion] = {}
        try:
            return list(model.generate(prompts, samplings, on_done=done.__setitem__))
        except BackendError as error:
            failure = to_failure(error)
            if len(requests) > 1:  # completed requests are not repeated
                return [
                    done[index] if index in done else self.complete([request], model)[0]
                    for index, request in enumerate(requests)
                ]
            return [failure]

    def add_record(self, seed: int, record: Record) -> None:
        """Add a record to a seed's draft."""
        self._totals[seed].records.append(record)

    def add_failure(self, seed: int, reason: str, text: str = "") -> None:
        """Add a failure to a seed's draft."""
        self._totals[seed].failures.append(GenerationFailure(reason, text))

    def count(self, seed: int, name: str, number: int = 1) -> None:
        """Add to a counter of a seed."""
        self._totals[seed].counts[name] += number

    def drafts(self) -> Iterator[GenerationResult]:
        """Yield the draft of every seed, in order."""
        for seed, account in zip(self.seeds, self._totals, strict=True):
            yield GenerationResult(
                seed.key,
                tuple(account.records),
                tuple(account.failures),
                account.asked,
                account.prompt_tokens,
                account.completion_tokens,
                dict(sorted(account.counts.items())),
            )


def to_failure(error: BackendError) -> GenerationFailure:
    """Convert an error to the failure of one request.

    Raises:
        BackendError: The error itself, if it is the teacher's and not the request's.
    """
    if error.code not in _REQUEST_ERRORS:
        raise error
    return GenerationFailure(_REQUEST_ERRORS[error.code], error.problems[0].what)


def describe_resumption(code: str) -> str:
    """Return what to do about a job that ended because a server gave no answers."""
    is_page = code == "backend.malformed"
    first = (
        "check that the address is an OpenAI-compatible API (…/v1)" if is_page else "read its log"
    )
    return f"{first}; run the same command again with --resume when it answers"


def fence_text(text: str) -> str:
    """Enclose a document's text in a fence that it cannot close, without hidden characters."""
    inert = _break_control_tokens(text).replace("</text", "< /text").replace("<text", "< text")
    return f"<text>\n{inert}\n</text>"


def to_one_line(text: str) -> str:
    """Return a document's text as one line of data, without hidden characters."""
    return collapse_whitespace(_break_control_tokens(text))


def get_topic(seed: WorkItem) -> str:
    """Return the topic of a passage from its headings and title; empty if it has none."""
    passage = seed.passage
    found = (find_innermost_heading(passage), passage.title)
    names = [to_one_line(name).strip("\"'*`# ") for name in found]
    distinct = [name for name in dict.fromkeys(names) if name]
    if len(distinct) > 1 and distinct[1].casefold() not in distinct[0].casefold():
        return f"{distinct[0]} ({distinct[1]})"[:_MAX_TOPIC]
    return distinct[0][:_MAX_TOPIC] if distinct else ""


def is_truncated(completion: Completion) -> bool:
    """Return whether the completion reached the token limit: such text is never kept."""
    return completion.finish_reason != "stop"


def _break_control_tokens(text: str) -> str:
    """Break the control tokens of any chat template, for whichever model reads the text."""
    return _CONTROL_TOKEN.sub(
        lambda match: f"{match.group()[0]} {match.group()[1:]}", strip_invisible(text)
    )


_FIELD = re.compile(r"\{([a-z][a-z_]*)\}")


class PromptTemplate(str):
    """A prompt template: a text with named fields."""

    __slots__ = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields, each once, in order."""
        return tuple(dict.fromkeys(_FIELD.findall(self)))

    @property
    def digest(self) -> str:
        """The sha256 of the text."""
        return digest_text(self)

    def fill(self, /, **values: str) -> str:
        """Return the text with every field filled.

        Raises:
            KeyError: If a field has no value.
        """
        return _FIELD.sub(lambda match: values[match[1]], self)


def check_prompts(overrides: Mapping[str, str], known: Mapping[str, str]) -> None:
    """Validate the prompt overrides of a recipe against the generator's templates.

    Raises:
        ValueError: With every unknown prompt, and every unknown or missing field.
    """
    problems = [
        problem for name, text in overrides.items() for problem in _find_problems(name, text, known)
    ]
    if problems:
        raise ValueError("; ".join(problems))


def _find_problems(name: str, text: str, known: Mapping[str, str]) -> Iterable[str]:
    if name not in known:
        suggestion = suggest(name, list(known))
        yield (
            f"unknown prompt {name!r} (known: {', '.join(known)}){suggestion and f'; {suggestion}'}"
        )
        return
    fields, expected = PromptTemplate(text).fields, PromptTemplate(known[name]).fields
    for unknown in fields:
        if unknown not in expected:
            yield f"prompt {name!r} has an unknown field {{{unknown}}}"
    for missing in expected:
        if missing not in fields:
            yield f"prompt {name!r} lacks the field {{{missing}}}"


_PROSE = 120
"""Maximum length from which a text is prose, not a label, title or name."""


def make_string_schema(longest: int, shortest: int = 1) -> dict[str, Any]:
    """Return the schema of a text."""
    return {"type": "string", "minLength": shortest, "maxLength": longest}


def make_enum_schema(*values: str | int) -> dict[str, Any]:
    """Return the schema of one of several values."""
    return {"enum": list(values)}


def make_array_schema(item: Mapping[str, Any], most: int, least: int = 1) -> dict[str, Any]:
    """Return the schema of a list."""
    return {"type": "array", "items": dict(item), "minItems": least, "maxItems": most}


def make_object_schema(**parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an object with these keys, in this order, and no other."""
    return {
        "type": "object",
        "properties": {key: dict(part) for key, part in parts.items()},
        "required": list(parts),
        "additionalProperties": False,
    }


def find_truncated(value: Any, schema: Mapping[str, Any], name: str = "") -> str:
    """Return the name of a text that fills its maximum length, or ""; labels do not count.

    A grammar closes a string at its bound, in the middle of a sentence. Texts within lists and
    objects are reported under the key that holds them.
    """
    if isinstance(value, str):
        room = schema.get("maxLength", 0)
        return (name or "text") if room >= _PROSE and len(value) >= room else ""
    parts: list[tuple[str, Any, Any]] = []
    if isinstance(value, Mapping):
        known = schema.get("properties") or {}
        parts = [(str(key), inner, known.get(key)) for key, inner in value.items()]
    elif isinstance(value, list):
        parts = [(name, inner, schema.get("items")) for inner in value]
    truncated = (
        find_truncated(inner, part, key) for key, inner, part in parts if isinstance(part, Mapping)
    )
    return next((cut for cut in truncated if cut), "")


def get_max_length(schema: Mapping[str, Any]) -> int | None:
    """Return the maximum characters of a value of the schema; None if unbounded.

    The bound is for typical model output: no numbers of a million digits, one space after
    punctuation.
    """
    if "enum" in schema or "const" in schema:
        values = schema.get("enum") or [schema.get("const")]
        return max(len(json.dumps(value, ensure_ascii=False)) for value in values)
    kind = schema.get("type")
    if kind == "string":
        longest = schema.get("maxLength")
        return None if longest is None else int(longest) + 2
    if kind in {"integer", "number", "boolean", "null"}:
        return 24
    if kind == "array":
        item_length, count = get_max_length(schema.get("items") or {}), schema.get("maxItems")
        return None if item_length is None or count is None else 2 + int(count) * (item_length + 2)
    if kind == "object" and schema.get("additionalProperties") is False:
        parts = {
            key: get_max_length(part) for key, part in (schema.get("properties") or {}).items()
        }
        if any(part is None for part in parts.values()):
            return None
        return 2 + sum(len(key) + 6 + (part or 0) for key, part in parts.items())
    return None


_REASONING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_LABELS = re.compile(r"^\s*(?:(?:question|answer)\s*[:.]|[qa]\s*:)\s*", re.IGNORECASE)
_QUOTES = {('"', '"'), ("“", "”"), ("'", "'"), ("`", "`")}


def clean_question(text: str) -> str:
    """Return the first line without labels and quotes, cut after its first question mark.

    A closed block of reasoning before it does not count.
    """
    text = _REASONING.sub("", text)
    line = next((part for part in text.strip().splitlines() if part.strip()), "")
    line = _LABELS.sub("", line)
    for mark in "?？؟":
        head, separator, _ = line.partition(mark)
        line = head + separator
    line = collapse_whitespace(line)
    if line[:1] in "\"“'`" and line.count(line[:1]) == 1:
        line = line[1:]  # its other half was after the question mark
    return line[1:-1].strip() if _is_quoted(line) else line.strip("*_` ")


def clean_answer(text: str) -> str:
    """Return an answer on one line, without labels and quotes."""
    line = _LABELS.sub("", collapse_whitespace(text))
    return line[1:-1].strip() if _is_quoted(line) else line


def parse_qa_pair(text: str) -> tuple[str, str] | None:
    """Parse question and answer from the teacher's JSON; None if it is invalid."""
    start, end = text.find("{"), text.rfind("}")
    try:
        data = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    question, answer = data.get("question"), data.get("answer")
    if not isinstance(question, str) or not isinstance(answer, str):
        return None
    pair = clean_question(question), clean_answer(answer)
    return pair if all(pair) else None


def strip_quotes(text: str) -> str:
    """Remove one pair of quotes around a whole text; inner quotes are kept."""
    bare = text.strip()
    return bare[1:-1].strip() if _is_quoted(bare) else bare


def _is_quoted(line: str) -> bool:
    """Return whether one pair of quotes encloses a line, without another of its kind inside."""
    if len(line) < 3 or (line[0], line[-1]) not in _QUOTES:
        return False
    return not {line[0], line[-1]} & set(line[1:-1])
