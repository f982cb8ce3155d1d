"""Teacher requests: batches with accounting, prompt templates, JSON schemas and reply parsing.

``RequestBatch`` is used by generators: what they ``yield`` is asked for, by ``attempt`` or by who
``settle``s it; then they ``keep`` or ``fail`` each, and ``drafts`` follow. Texts from documents go
into prompts through ``fence_text`` or ``to_one_line`` only, which make them data: hidden characters
are gone and the fence cannot be closed from within.

A field is ``{name}`` in lower-case letters; braces around anything else are text, as JSON in a
prompt is. Fields are filled in one pass, so that what a document holds is never read as a field.

Reading the JSON that it wrote is the floor's, ``evaluate.json_text``; it is named here too, since
who asks by a schema reads by it.

Takes any text and never raises; what cannot be read comes back empty.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stillroom.errors import BackendError
from stillroom.evaluate.json_output import ParsedJson, describe_violation, parse_json_with_schema
from stillroom.provenance import digest_text
from stillroom.records import Completion, Prompt, Record, Sampling
from stillroom.registry.catalog import suggest
from stillroom.synth.lexical_overlap import collapse_whitespace
from stillroom.synth.types import GenerationFailure, GenerationResult, WorkItem
from stillroom.text.unicode import strip_invisible

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = [
    "INVALID_JSON",
    "NO_ANSWER",
    "REFUSED",
    "ModelRequest",
    "ParsedJson",
    "PromptTemplate",
    "RequestBatch",
    "check_prompts",
    "clean_answer",
    "clean_question",
    "describe_violation",
    "fence_text",
    "find_truncated",
    "get_max_length",
    "get_topic",
    "is_truncated",
    "make_array_schema",
    "make_enum_schema",
    "make_object_schema",
    "make_string_schema",
    "parse_json_with_schema",
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
"""Not the ask's own fault: such a unit is not kept on the shelf, so that a later run asks again."""

_REQUEST_ERRORS = {
    "backend.context": "longer than the teacher's context",
    "backend.schema": INVALID_JSON,
    "backend.refused": REFUSED,
    "backend.malformed": "no answer that can be read",
    "backend.answer": "an answer without text",
    "backend.timeout": NO_ANSWER,
    "backend.broken": NO_ANSWER,
    "backend.unavailable": NO_ANSWER,
}
"""Errors that are one ask's own, by code; any other is the teacher's and ends the job."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One prompt of one seed; ``seed`` is its place in the group.

    ``model`` is who is asked, where that is not the teacher.
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
    """The asks of a group of seeds to one teacher."""

    def __init__(self, seeds: Sequence[WorkItem], model: TextModel) -> None:
        """Open an account for every seed."""
        self.seeds = seeds
        self._model = model
        self._accounts = [_RequestTotals() for _ in seeds]

    def completions(
        self, asks: Sequence[ModelRequest], given: Sequence[Completion | GenerationFailure]
    ) -> list[Completion | None]:
        """Return what asks gave, in order: None for a failure, which is one of its seed."""
        for ask, found in zip(asks, given, strict=True):
            if isinstance(found, GenerationFailure):
                self.fail(ask.seed, found.reason, found.text)
        return [None if isinstance(found, GenerationFailure) else found for found in given]

    def attempt(self, asks: Sequence[ModelRequest]) -> list[Completion | GenerationFailure]:
        """Return the completion of every ask, or why the teacher could not take it.

        Raises:
            BackendError: If the teacher fails as a whole.
        """
        placed: dict[int, Completion | GenerationFailure] = {}
        for model in {id(ask.model): ask.model for ask in asks}.values():
            mine = [at for at, ask in enumerate(asks) if ask.model is model]
            found = self.complete([asks[at] for at in mine], model or self._model)
            placed |= zip(mine, found, strict=True)
        given = [placed[at] for at in range(len(asks))]
        self.settle(asks, given)
        return given

    def settle(
        self, asks: Sequence[ModelRequest], given: Sequence[Completion | GenerationFailure]
    ) -> None:
        """Count what asks have cost, where they were asked elsewhere."""
        for ask, one in zip(asks, given, strict=True):
            account = self._accounts[ask.seed]
            account.asked += 1
            if isinstance(one, Completion):
                account.prompt_tokens += one.prompt_tokens
                account.completion_tokens += one.completion_tokens

    def complete(
        self, asks: Sequence[ModelRequest], model: TextModel
    ) -> list[Completion | GenerationFailure]:
        """Return what a model gives for asks, which is not counted.

        Raises:
            BackendError: If the model fails as a whole.
        """
        prompts, samplings = [ask.prompt for ask in asks], [ask.sampling for ask in asks]
        done: dict[int, Completion] = {}
        try:
            return list(model.generate(prompts, samplings, on_done=done.__setitem__))
        except BackendError as error:
            failure = to_failure(error)
            if len(asks) > 1:  # what came back is not asked again
                return [
                    done[at] if at in done else self.complete([ask], model)[0]
                    for at, ask in enumerate(asks)
                ]
            return [failure]

    def keep(self, seed: int, record: Record) -> None:
        """Add a record to a seed's draft."""
        self._accounts[seed].records.append(record)

    def fail(self, seed: int, reason: str, text: str = "") -> None:
        """Say that something asked for a seed gave no record."""
        self._accounts[seed].failures.append(GenerationFailure(reason, text))

    def count(self, seed: int, name: str, number: int = 1) -> None:
        """Add to one of a seed's tallies."""
        self._accounts[seed].counts[name] += number

    def drafts(self) -> Iterator[GenerationResult]:
        """Yield the draft of every seed, in order."""
        for seed, account in zip(self.seeds, self._accounts, strict=True):
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
    """Return the failure of one ask that an error is.

    Raises:
        BackendError: The error itself, where it is the teacher's and not the ask's.
    """
    if error.code not in _REQUEST_ERRORS:
        raise error
    return GenerationFailure(_REQUEST_ERRORS[error.code], error.problems[0].what)


def fence_text(text: str) -> str:
    """Return a document's text between marks that it cannot close, without hidden characters."""
    inert = _break_control_tokens(text).replace("</text", "< /text").replace("<text", "< text")
    return f"<text>\n{inert}\n</text>"


def to_one_line(text: str) -> str:
    """Return a document's text as one line of data, without hidden characters."""
    return collapse_whitespace(_break_control_tokens(text))


def get_topic(seed: WorkItem) -> str:
    """Return what a passage is about, by its headings and title; empty where it has none."""
    passage = seed.passage
    names = [to_one_line(name).strip("\"'*`# ") for name in (*passage.headings[-1:], passage.title)]
    distinct = [name for name in dict.fromkeys(names) if name]
    if len(distinct) > 1 and distinct[1].casefold() not in distinct[0].casefold():
        return f"{distinct[0]} ({distinct[1]})"[:_MAX_TOPIC]
    return distinct[0][:_MAX_TOPIC] if distinct else ""


def is_truncated(completion: Completion) -> bool:
    """Return whether the teacher ran out of tokens: such text is never kept."""
    return completion.finish_reason != "stop"


def _break_control_tokens(text: str) -> str:
    """Break what looks like a chat template's control token, whichever model will read it."""
    return _CONTROL_TOKEN.sub(
        lambda match: f"{match.group()[0]} {match.group()[1:]}", strip_invisible(text)
    )


_FIELD = re.compile(r"\{([a-z][a-z_]*)\}")


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A prompt's words, with fields to fill."""

    text: str

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields, each once, in order."""
        return tuple(dict.fromkeys(_FIELD.findall(self.text)))

    @property
    def digest(self) -> str:
        """The sha256 of the words."""
        return digest_text(self.text)

    def fill(self, /, **values: str) -> str:
        """Return the words with every field filled.

        Raises:
            KeyError: If a field has no value.
        """
        return _FIELD.sub(lambda match: values[match[1]], self.text)


def check_prompts(own: Mapping[str, str], known: Mapping[str, PromptTemplate]) -> None:
    """Refuse prompts of a recipe that the generator does not ask by, or cannot fill.

    Raises:
        ValueError: With every prompt that is unknown, and every field that is unknown or missing.
    """
    wrong = [problem for name, text in own.items() for problem in _find_problems(name, text, known)]
    if wrong:
        raise ValueError("; ".join(wrong))


def _find_problems(name: str, text: str, known: Mapping[str, PromptTemplate]) -> Iterable[str]:
    if name not in known:
        near = suggest(name, list(known))
        yield f"there is no prompt {name!r} (there are: {', '.join(known)}){near and f'; {near}'}"
        return
    given, wanted = PromptTemplate(text).fields, known[name].fields
    for unknown in given:
        if unknown not in wanted:
            yield f"prompt {name!r} has a field {{{unknown}}} that nothing fills"
    for missing in wanted:
        if missing not in given:
            yield f"prompt {name!r} misses the field {{{missing}}}"


_PROSE = 120
"""Characters that a text may have from which it is prose, and no label, title or name."""


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
    """Return the name of a text that fills all the room it has, or nothing; labels do not count.

    A grammar closes a string at its bound, wherever its sentence stands. Texts within lists and
    objects count under the name of the key that holds them.
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
    found = (
        find_truncated(inner, part, key) for key, inner, part in parts if isinstance(part, Mapping)
    )
    return next((cut for cut in found if cut), "")


def get_max_length(schema: Mapping[str, Any]) -> int | None:
    """Return how many characters a value of the schema has at most; None if there is no bound.

    It is a bound of what models write: numbers without a million digits, one space after marks.
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
        each, count = get_max_length(schema.get("items") or {}), schema.get("maxItems")
        return None if each is None or count is None else 2 + int(count) * (each + 2)
    if kind == "object" and schema.get("additionalProperties") is False:
        parts = {
            key: get_max_length(part) for key, part in (schema.get("properties") or {}).items()
        }
        if any(part is None for part in parts.values()):
            return None
        return 2 + sum(len(key) + 6 + (part or 0) for key, part in parts.items())
    return None


_LABELS = re.compile(r"^\s*(?:(?:question|answer)\s*[:.]|[qa]\s*:)\s*", re.IGNORECASE)
_QUOTES = {('"', '"'), ("“", "”"), ("'", "'"), ("`", "`")}


def clean_question(text: str) -> str:
    """Return the first line without labels and wrapping, cut after its first question mark."""
    line = next((part for part in text.strip().splitlines() if part.strip()), "")
    line = _LABELS.sub("", line)
    for mark in "?？؟":
        head, found, _ = line.partition(mark)
        line = head + found
    line = collapse_whitespace(line)
    if line[:1] in "\"“'`" and line.count(line[:1]) == 1:
        line = line[1:]  # its other half stood behind the question mark
    return line[1:-1].strip() if _is_quoted(line) else line.strip("*_` ")


def clean_answer(text: str) -> str:
    """Return an answer on one line, without labels and wrapping."""
    line = _LABELS.sub("", collapse_whitespace(text))
    return line[1:-1].strip() if _is_quoted(line) else line


def parse_qa_pair(text: str) -> tuple[str, str] | None:
    """Return question and answer from the teacher's JSON; nothing if it is not that."""
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
    """Return a text without one pair of quotes around all of it; what it quotes itself stays."""
    bare = text.strip()
    return bare[1:-1].strip() if _is_quoted(bare) else bare


def _is_quoted(line: str) -> bool:
    """Return whether one pair of quotes stands around all of a line, and no other of the kind."""
    if len(line) < 3 or (line[0], line[-1]) not in _QUOTES:
        return False
    return not {line[0], line[-1]} & set(line[1:-1])
