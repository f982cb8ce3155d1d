"""Which decoding settings are worth their time: quality against readings and seconds, on records.

Every setting of a grid writes every record's answer; beside them stands LLaDA's own algorithm (one
place a step, nothing kept) as what nothing is lost against. Of what no other setting beats in all
three respects, the Pareto set, the cheapest that loses no more than is allowed becomes the choice.
Knows models and requests; the job around it is ``tuning_job``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.diffusion.canvas import Request
from stillroom.diffusion.decoding import DecodeSettings
from stillroom.diffusion.model import DiffusionModel
from stillroom.diffusion.requests import prompt_request
from stillroom.diffusion.sampling import generate
from stillroom.errors import DataError, RecipeError
from stillroom.evaluate.metrics import Metric, bootstrap, paired_difference
from stillroom.recipes.groups import parse_group
from stillroom.records import Prompt, Record
from stillroom.text.normalize import exact_match, token_f1

__all__ = [
    "MEASURES",
    "Candidate",
    "Case",
    "Outcome",
    "Trial",
    "choose",
    "expand_grid",
    "find_pareto",
    "make_cases",
    "measure_trial",
]

BASELINE = "one place a step, nothing kept"
GRID = (
    ("commit.threshold", ("0.7", "0.8", "0.9", "0.95")),
    ("block_length", ("null", "16", "32")),
    ("cache", ("null", "prefix", "dual", "delayed")),
    ("order", ("confidence", "margin")),
)
_LONGEST = 256


def _same(found: str, wanted: str) -> float:
    return float(found.strip() == wanted.strip())


MEASURES: Mapping[str, Callable[[str, str], float]] = {
    "f1": token_f1,
    "exact": exact_match,
    "same": _same,
}
"""How a text is compared with the record's answer: words shared, equal words, equal characters."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings that are tried, under the words that make them different."""

    label: str
    settings: DecodeSettings


@dataclass(frozen=True, slots=True)
class Case:
    """A record as it is asked: the request, and the answer it should come to."""

    id: str
    request: Request
    answer: str


@dataclass(frozen=True, slots=True)
class Trial:
    """What one setting came to on one record.

    Args:
        quality: By the measure, 0 to 1.
        nfe: Readings of the model.
        cpu_s: Processor seconds.
        tokens: Tokens written before the end.
        drift: How far kept states had moved when they were read again, 0 to 2; None where nothing
            was kept.
    """

    quality: float
    nfe: int
    cpu_s: float
    tokens: int
    drift: float | None

    def to_json(self) -> list[Any]:
        """Return plain values."""
        return [self.quality, self.nfe, self.cpu_s, self.tokens, self.drift]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one setting came to on all records."""

    candidate: Candidate
    trials: tuple[Trial, ...]

    @property
    def quality(self) -> float:
        """Mean over the records."""
        return sum(trial.quality for trial in self.trials) / len(self.trials)

    @property
    def nfe(self) -> float:
        """Readings a text."""
        return sum(trial.nfe for trial in self.trials) / len(self.trials)

    @property
    def cpu_s(self) -> float:
        """Processor seconds a text."""
        return sum(trial.cpu_s for trial in self.trials) / len(self.trials)

    @property
    def tokens_per_s(self) -> float:
        """Tokens before the end a processor second."""
        return sum(t.tokens for t in self.trials) / max(sum(t.cpu_s for t in self.trials), 1e-9)

    @property
    def drift(self) -> float | None:
        """Mean over the records that kept something."""
        known = [trial.drift for trial in self.trials if trial.drift is not None]
        return sum(known) / len(known) if known else None

    def interval(self, seed: int = 0) -> Metric:
        """Return the quality with its interval."""
        values = [trial.quality for trial in self.trials]
        return bootstrap(values, seed=seed, name=self.candidate.label)

    def loss_against(self, other: Outcome, seed: int = 0) -> Metric:
        """Return how much quality is lost against another, record by record."""
        return paired_difference(
            [trial.quality for trial in other.trials],
            [trial.quality for trial in self.trials],
            seed=seed,
            name=f"loss/{self.candidate.label}",
        )


def expand_grid(
    model: DiffusionModel, words: Sequence[str], fixed: Sequence[str], max_new_tokens: int
) -> tuple[list[Candidate], list[str]]:
    """Return the baseline and every setting of a grid that the model can do, and what it cannot.

    Args:
        model: What will write.
        words: ``KEY=VALUE,VALUE`` each, as ``commit.threshold=0.8,0.9``; in place of the default
            grid's row of that key, or added to it.
        fixed: ``KEY=VALUE`` that all have.
        max_new_tokens: Places of every text, where ``fixed`` names none.

    Raises:
        RecipeError: If a word or value is none, or nothing is left to try.
    """
    rows = dict(GRID)
    if model.metadata.block_size is not None:
        rows |= {"block_length": ("null",), "cache": ("null",)}  # exact by itself
    for word in words:
        key, _, listed = word.partition("=")
        if not key or not listed:
            raise RecipeError(
                f"--try {word!r} is not KEY=VALUE,VALUE",
                code="diffusion.tune",
                expected="as commit.threshold=0.8,0.9",
                next="see the settings in `stillroom diffusion sample --help`",
            )
        rows[key] = tuple(listed.split(","))
    base = [f"max_new_tokens={max_new_tokens}", *fixed]
    plain = [*base, "commit.name=top_k", "commit.k=1", "cache=whole"]
    found = [Candidate(BASELINE, parse_group(DecodeSettings, overrides=plain))]
    left_out: list[str] = []
    seen: set[str] = set()
    for values in itertools.product(*rows.values()):
        chosen = [f"{key}={value}" for key, value in zip(rows, values, strict=True)]
        label = _label(rows, values)
        settings = parse_group(DecodeSettings, overrides=[*base, *chosen])
        try:
            settings.check_against(model.metadata)
        except RecipeError:
            left_out.append(label)
            continue
        if _says_the_same(settings, seen):
            continue
        found.append(Candidate(label, settings))
    if len(found) == 1:
        raise RecipeError(
            "no setting of the grid goes with this model",
            code="diffusion.tune",
            expected="settings that fit its attention",
            next="give others by --try",
        )
    return found, left_out


def _label(rows: Mapping[str, Sequence[str]], values: Sequence[str]) -> str:
    """Return what makes settings different from the others of the grid."""
    pairs = [(key, value) for key, value in zip(rows, values, strict=True) if len(rows[key]) > 1]
    pairs = pairs or list(zip(rows, values, strict=True))
    return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in pairs)


def _says_the_same(settings: DecodeSettings, seen: set[str]) -> bool:
    """Return whether settings were met before: without blocks, caches by the block are as one."""
    text = settings.model_dump_json()
    is_known = text in seen
    seen.add(text)
    return is_known


def make_cases(
    model: DiffusionModel, records: Sequence[Record], most: int
) -> tuple[list[Case], int]:
    """Return records as they are asked, and how many tokens the longest answer has.

    A record of one message is a text: its first half is given, the rest is what it should come to.
    What is longer than the model knows positions is passed over.

    Raises:
        DataError: If no record has an answer.
    """
    tokenizer, longest = model.tokenizer, 1
    cases: list[Case] = []
    for record in records:
        if len(cases) == most:
            break
        if not record.messages or record.messages[-1].role != "assistant":
            continue
        answer = record.messages[-1].content
        if len(record.messages) > 1:
            request = prompt_request(tokenizer, Prompt(record.messages[:-1]), 0)
            after = tokenizer(answer, add_special_tokens=False)["input_ids"]
        else:
            ids = prompt_request(tokenizer, Prompt(text=answer), 0).ids
            half = (len(ids) + 1) // 2
            request, after = Request(ids[:half]), ids[half:]
            answer = _decode(tokenizer, after)
        if after and len(request.ids) + len(after) < model.context_length:
            longest = max(longest, len(after))
            cases.append(Case(record.id, request, answer))
    if not cases:
        raise DataError(
            "no record has an answer",
            code="diffusion.tune",
            expected="records whose last message is the assistant's, within the model's positions",
            next="look at the file by `stillroom show`, and at --split",
        )
    return cases, min(longest + 1, _LONGEST)


def measure_trial(
    model: DiffusionModel, case: Case, candidate: Candidate, measure: str, seed: int
) -> Trial:
    """Write one record's answer by one setting."""
    request = Request(case.request.ids, candidate.settings.max_new_tokens, seed)
    begun = time.process_time()
    (sample,) = generate(model, [request], candidate.settings)
    spent = time.process_time() - begun
    text = _decode(model.tokenizer, sample.new_ids)
    quality = MEASURES[measure](text, case.answer)
    return Trial(quality, sample.nfe, spent, len(sample.new_ids), sample.drift)


def _decode(tokenizer: Any, ids: Sequence[int | None]) -> str:
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


def find_pareto(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return what no other beats, cheapest first.

    One beats another where it is as good, with as few readings and as little time, and better in
    one of them.
    """

    def place(one: Outcome) -> tuple[float, float, float]:
        return -one.quality, one.nfe, one.cpu_s

    def beats(one: Outcome, other: Outcome) -> bool:
        pairs = list(zip(place(one), place(other), strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    kept = [one for one in outcomes if not any(beats(other, one) for other in outcomes)]
    return sorted(kept, key=lambda one: one.cpu_s)


def choose(outcomes: Sequence[Outcome], most_lost: float) -> Outcome:
    """Return the one of least time that loses at most so much quality against the first."""
    base = outcomes[0].quality
    good = [one for one in outcomes if one.quality >= base - most_lost - 1e-12]
    return min(good, key=lambda one: one.cpu_s)
