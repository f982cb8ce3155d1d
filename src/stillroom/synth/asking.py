"""Asking a teacher for many seeds at once, and keeping account of each by itself.

``Asking`` is used by generators: what they ``yield`` is asked for, by ``attempt`` or by who
``settle``s it; then they ``keep`` or ``fail`` each, and ``drafts`` follow. Texts from documents go
into prompts through ``fence`` or ``one_line`` only, which make them data: hidden characters are
gone and the fence cannot be closed from within.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stillroom.errors import BackendError
from stillroom.records import Completion, Prompt, Record, Sampling
from stillroom.synth.method import Draft, Failure, Seed
from stillroom.synth.wording import collapse
from stillroom.text.normalize import strip_invisible

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = [
    "LOST",
    "NO_JSON",
    "REFUSED",
    "Ask",
    "Asking",
    "failure_of",
    "fence",
    "is_cut",
    "one_line",
    "topic_of",
]

_CONTROL_TOKEN = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>")
_MAX_TOPIC = 100
NO_JSON = "not the JSON asked"
REFUSED = "refused by the teacher's server"
LOST = "no answer from the teacher's server"
"""Not the ask's own fault: such a unit is not kept on the shelf, so that a later run asks again."""
_OWN_FAULTS = {
    "backend.context": "longer than the teacher's context",
    "backend.schema": NO_JSON,
    "backend.refused": REFUSED,
    "backend.malformed": "no answer that can be read",
    "backend.answer": "an answer without text",
    "backend.timeout": LOST,
    "backend.broken": LOST,
    "backend.unavailable": LOST,
}
"""Errors that are one ask's own, by code; any other is the teacher's and ends the job."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt of one seed; ``seed`` is its place in the group.

    ``model`` is who is asked, where that is not the teacher.
    """

    seed: int
    prompt: Prompt
    sampling: Sampling
    model: TextModel | None = None


@dataclass(slots=True)
class _Account:
    records: list[Record] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    asked: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counts: Counter[str] = field(default_factory=Counter)


class Asking:
    """The asks of a group of seeds to one teacher."""

    def __init__(self, seeds: Sequence[Seed], model: TextModel) -> None:
        """Open an account for every seed."""
        self.seeds = seeds
        self._model = model
        self._accounts = [_Account() for _ in seeds]

    def completions(
        self, asks: Sequence[Ask], given: Sequence[Completion | Failure]
    ) -> list[Completion | None]:
        """Return what asks gave, in order: None for a failure, which is one of its seed."""
        for ask, found in zip(asks, given, strict=True):
            if isinstance(found, Failure):
                self.fail(ask.seed, found.reason, found.text)
        return [None if isinstance(found, Failure) else found for found in given]

    def attempt(self, asks: Sequence[Ask]) -> list[Completion | Failure]:
        """Return the completion of every ask, or why the teacher could not take it.

        Raises:
            BackendError: If the teacher fails as a whole.
        """
        placed: dict[int, Completion | Failure] = {}
        for model in {id(ask.model): ask.model for ask in asks}.values():
            mine = [at for at, ask in enumerate(asks) if ask.model is model]
            found = self.complete([asks[at] for at in mine], model or self._model)
            placed |= zip(mine, found, strict=True)
        given = [placed[at] for at in range(len(asks))]
        self.settle(asks, given)
        return given

    def settle(self, asks: Sequence[Ask], given: Sequence[Completion | Failure]) -> None:
        """Count what asks have cost, where they were asked elsewhere."""
        for ask, one in zip(asks, given, strict=True):
            account = self._accounts[ask.seed]
            account.asked += 1
            if isinstance(one, Completion):
                account.prompt_tokens += one.prompt_tokens
                account.completion_tokens += one.completion_tokens

    def complete(self, asks: Sequence[Ask], model: TextModel) -> list[Completion | Failure]:
        """Return what a model gives for asks, which is not counted.

        Raises:
            BackendError: If the model fails as a whole.
        """
        prompts, samplings = [ask.prompt for ask in asks], [ask.sampling for ask in asks]
        done: dict[int, Completion] = {}
        try:
            return list(model.generate(prompts, samplings, on_done=done.__setitem__))
        except BackendError as error:
            failure = failure_of(error)
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
        self._accounts[seed].failures.append(Failure(reason, text))

    def count(self, seed: int, name: str, number: int = 1) -> None:
        """Add to one of a seed's tallies."""
        self._accounts[seed].counts[name] += number

    def drafts(self) -> Iterator[Draft]:
        """Yield the draft of every seed, in order."""
        for seed, account in zip(self.seeds, self._accounts, strict=True):
            yield Draft(
                seed.key,
                tuple(account.records),
                tuple(account.failures),
                account.asked,
                account.prompt_tokens,
                account.completion_tokens,
                dict(sorted(account.counts.items())),
            )


def failure_of(error: BackendError) -> Failure:
    """Return the failure of one ask that an error is.

    Raises:
        BackendError: The error itself, where it is the teacher's and not the ask's.
    """
    if error.code not in _OWN_FAULTS:
        raise error
    return Failure(_OWN_FAULTS[error.code], error.problems[0].what)


def fence(text: str) -> str:
    """Return a document's text between marks that it cannot close, without hidden characters."""
    inert = _defuse(text).replace("</text", "< /text").replace("<text", "< text")
    return f"<text>\n{inert}\n</text>"


def one_line(text: str) -> str:
    """Return a document's text as one line of data, without hidden characters."""
    return collapse(_defuse(text))


def topic_of(seed: Seed) -> str:
    """Return what a passage is about, by its headings and title; empty where it has none."""
    passage = seed.passage
    names = [one_line(name).strip("\"'*`# ") for name in (*passage.headings[-1:], passage.title)]
    distinct = [name for name in dict.fromkeys(names) if name]
    if len(distinct) > 1 and distinct[1].casefold() not in distinct[0].casefold():
        return f"{distinct[0]} ({distinct[1]})"[:_MAX_TOPIC]
    return distinct[0][:_MAX_TOPIC] if distinct else ""


def is_cut(completion: Completion) -> bool:
    """Return whether the teacher ran out of tokens: such text is never kept."""
    return completion.finish_reason != "stop"


def _defuse(text: str) -> str:
    """Break what looks like a chat template's control token, whichever model will read it."""
    return _CONTROL_TOKEN.sub(
        lambda match: f"{match.group()[0]} {match.group()[1:]}", strip_invisible(text)
    )
