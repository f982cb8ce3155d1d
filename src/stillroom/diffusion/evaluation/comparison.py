"""Comparison of a diffusion model with an autoregressive model trained on the same data.

Three measurements: the log-likelihood of held-out text (a bound for the diffusion model, exact for
the autoregressive baseline); infilling of a span in the middle (the baseline sees the left context
only); and recall of facts in the trained direction, for their first name, and reversed.

A fact that was trained in both directions is left out of the reversal test, as is one whose
reversed sentence occurs within a longer text. Independent of the models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stillroom.diffusion.model.loading import open_diffusion
from stillroom.diffusion.model.network import DiffusionModel
from stillroom.diffusion.sampling.sampler import generate
from stillroom.diffusion.sampling.sequence import InfillRequest
from stillroom.diffusion.sampling.settings import DecodeSettings
from stillroom.diffusion.training.data import tokenize_records
from stillroom.errors import DataError, RecipeError
from stillroom.evaluate.metrics.bootstrap import Metric, bootstrap
from stillroom.evaluate.report import REPORT_HTML, REPORT_JSON, ComparisonTable, Report, Table
from stillroom.jobs.job import write_artifact
from stillroom.models import load_causal_lm
from stillroom.objects import resolve_local
from stillroom.provenance import find_artifact, read_artifact, trace_sources
from stillroom.records import Record
from stillroom.train.data import RecordSplit, order_records, split_records

if TYPE_CHECKING:
    from stillroom.diffusion.jobs.train import DiffusionTrainRecipe

__all__ = [
    "Fact",
    "compare_models",
    "count_cooccurrences",
    "find_facts",
    "locate_name",
    "refuse_other_artifact",
    "write_comparison",
]

_SPAN_DIVISOR = 4  # a quarter of the learned tokens is masked
_SIDES = ("diffusion", "autoregressive")


def compare_models(
    diffusion: Path,
    twin: Path,
    recipe: DiffusionTrainRecipe,
    *,
    template: str = "",
    questions: Mapping[str, Sequence[Record]] | None = None,
    most: int = 200,
) -> Report:
    """Measure both models and return the report.

    Args:
        diffusion: Finished job of the diffusion model.
        twin: Finished job of the autoregressive baseline.
        recipe: Recipe of the diffusion model.
        template: Sentence pattern with ``{a}`` and ``{b}`` for facts of the records; empty skips
            the test.
        questions: Named sets of records whose answers both models generate.
        most: Maximum held-out records, facts, and records per set.

    Raises:
        RecipeError: If no record matches the template.
        DataError: If a set's records have no answer.
    """
    split = split_records(resolve_local(recipe.records))
    models = _ModelPair(diffusion, twin, recipe)
    report = Report("A diffusion model and its autoregressive baseline")
    _add_cost(report, models, diffusion, twin)
    _add_likelihood(report, diffusion, twin)
    _add_infilling(report, models, split, most)
    if template:
        _add_facts(report, models, split, template, most)
    if questions:
        _add_questions(report, models, split, questions, most)
    return report


def refuse_other_artifact(out: Path) -> None:
    """Refuse a folder whose artifact.json is not that of an earlier comparison.

    Raises:
        DataError: If it is another's.
    """
    found = find_artifact(str(out))
    if found is not None and not (found.is_flat and found.kind == "report"):
        raise DataError(
            f"{out} is another job's folder, so no comparison is written into it",
            code="data.exists",
            where=str(out),
            expected="a new folder, or that of an earlier comparison",
            next="choose another --out",
        )


def write_comparison(report: Report, out: Path, details: Mapping[str, Any]) -> None:
    """Write the report of two models into the folder of their jobs, with an artifact.json."""
    report.write(out)
    sources = [(side, out / side, "", "") for side in _SIDES]
    parents, origin = trace_sources("diffusion.compare", sources, out)
    write_artifact(
        out,
        "report",
        parents=[replace(parent, path=parent.role) for parent in parents],
        origin=origin,
        details=details,
        files=(REPORT_HTML, REPORT_JSON),
    )


class _ModelPair:
    """Both models behind one interface."""

    def __init__(self, diffusion: Path, twin: Path, recipe: DiffusionTrainRecipe) -> None:
        self.recipe = recipe
        self.model: DiffusionModel = open_diffusion(str(diffusion), dtype="float32")
        self.twin, self.words = load_causal_lm(twin / "output", dtype="float32")

    def share(self, ids: Sequence[int], start: int, stop: int, *, behind: bool) -> dict[str, float]:
        """Return for each model the share of a span's tokens that it predicts correctly.

        Args:
            ids: Tokens of the whole text.
            start: First token to predict.
            stop: Last token to predict + 1.
            behind: Whether the diffusion model sees the text after ``stop``.
        """
        last = stop if behind else len(ids)
        known = [
            None if start <= position < last else int(token) for position, token in enumerate(ids)
        ]
        settings = DecodeSettings(commit="top_k", end={"stop_early": False})  # type: ignore[arg-type]
        (sample,) = generate(self.model, [InfillRequest(tuple(known))], settings)
        right = [sample.ids[position] == ids[position] for position in range(start, stop)]
        return {
            "diffusion": sum(right) / len(right),
            "autoregressive": self._go_on(ids, start, stop),
        }

    @torch.inference_mode()
    def _go_on(self, ids: Sequence[int], start: int, stop: int) -> float:
        written = [int(token) for token in ids[:start]]
        for _ in range(start, stop):
            logits = self.twin(input_ids=torch.tensor([written]), use_cache=False).logits[0, -1]
            written.append(int(logits.argmax()))
        right = [written[position] == ids[position] for position in range(start, stop)]
        return sum(right) / len(right)


def _add_cost(report: Report, models: _ModelPair, diffusion: Path, twin: Path) -> None:
    """Add the training cost of both models."""
    model = models.model
    embedded = model.body.get_input_embeddings().weight.numel()
    inner = sum(weight.numel() for weight in model.body.parameters()) - embedded
    rows = []
    for side, folder in zip(_SIDES, (diffusion, twin), strict=True):
        details = read_artifact(folder).details
        copies = 2 if side == "diffusion" and model.metadata.block_size is not None else 1
        positions = details["train"]["tokens"] * copies
        rows.append(
            (
                side,
                f"{details['parameters']:,}",
                f"{details['train']['steps']:,}",
                f"{positions:,}",
                f"{6 * inner * positions / 1e12:.3g}",
            )
        )
    report.section(
        "Training cost",
        "Both models have the same network, and the baseline takes as many steps as give both the "
        "same compute in the layers: 6 floating-point operations per weight and token. The head "
        "is not counted: it is applied to all tokens in the baseline, and to the masked tokens, "
        "about half, in the diffusion model.",
        table=Table(
            "Training",
            ("model", "parameters", "steps", "tokens read", "TFLOP in the layers"),
            tuple(rows),
        ),
    )


def _add_likelihood(report: Report, diffusion: Path, twin: Path) -> None:
    results = [dict(read_artifact(folder).details["after"]) for folder in (diffusion, twin)]
    if not all(results):
        return
    metrics = []
    for side, after in zip(_SIDES, results, strict=True):
        value, error = after["nats_per_token"], after["error"]
        note = "upper bound of the model's loss" if after["is_bound"] else "exact"
        metrics.append(
            Metric(
                f"{side}/nats_per_token",
                value,
                value - 1.96 * error,
                value + 1.96 * error,
                after["records"],
                "nats",
                note,
            )
        )
    report.section(
        "Likelihood of held-out text",
        "Nats per token, lower is better. The value of the diffusion model is an upper bound of "
        "its loss, so the two are not comparable: a larger bound does not mean a worse model. The "
        "interval covers the sampled masks, not the records.",
        metrics=metrics,
    )


def _add_infilling(report: Report, models: _ModelPair, split: RecordSplit, most: int) -> None:
    examples, _ = tokenize_records(
        models.model.tokenizer,
        split.held_out[:most],
        max_tokens=min(models.recipe.max_tokens, models.model.context_length),
        include_prompt=models.recipe.stage.learns_prompts,
        first=1,
    )
    rows: dict[str, list[float]] = {side: [] for side in _SIDES}
    for index, example in enumerate(examples):
        rng = np.random.default_rng([models.recipe.seed, index])
        first, end = example.turns[int(rng.integers(len(example.turns)))]
        length = max(1, (end - first) // _SPAN_DIVISOR)
        start = first + int(rng.integers(end - first - length + 1))
        stop = start + length
        shares = models.share(example.ids.tolist(), start, stop, behind=True)
        for side in _SIDES:
            rows[side].append(shares[side])
    if examples:
        _add_pair(
            report,
            "Infilling",
            "Share of correct tokens in a span of a quarter of each held-out text. The diffusion "
            "model sees the context on both sides; the autoregressive baseline sees the left "
            "context only.",
            {"infilling": rows},
        )


def _add_facts(
    report: Report, models: _ModelPair, split: RecordSplit, template: str, most: int
) -> None:
    forward, turned, both = find_facts(split.train, template)
    together = count_cooccurrences(forward[:most], split.train)
    rows: dict[str, dict[str, list[float]]] = {}
    for name, facts, slot, behind in (
        ("forward", forward, "second", False),
        ("infill", forward, "first", True),
        ("reversed", turned, "second", False),
    ):
        rows[name] = {side: [] for side in _SIDES}
        for fact in facts[:most]:
            ids, start, stop = locate_name(models.model.tokenizer, fact, slot)
            for side, share in models.share(ids, start, stop, behind=behind).items():
                rows[name][side].append(float(share == 1))
    _add_pair(
        report,
        "Recall of facts, forward and reversed",
        f"Sentences of the form {template!r}. Forward: the second name of a sentence in the "
        "training data. Infill: its first name, given the rest; the autoregressive model has no "
        "left context there, so its value is a guess. Reversed: the second name of the reversed "
        f"sentence, which occurs in no record. {both} sentences were trained in both directions "
        f"and are left out; of {together} sentences in the test, both names also occur in another "
        "text, which may state the fact in other words. Claimed: how often each model completes "
        "these sentences. Not claimed: that one model knows the fact and the other does not; an "
        "autoregressive model can also be tested by scoring every name.",
        rows,
    )


def _add_questions(
    report: Report,
    models: _ModelPair,
    split: RecordSplit,
    questions: Mapping[str, Sequence[Record]],
    most: int,
) -> None:
    tokenizer = models.model.tokenizer
    special = set(getattr(tokenizer, "all_special_ids", ()))
    learned = {tuple(message.content for message in record.messages) for record in split.train}
    rows: dict[str, dict[str, list[float]]] = {}
    overlaps = []
    for name, records in questions.items():
        known = sum(tuple(m.content for m in record.messages) in learned for record in records)
        examples, _ = tokenize_records(
            tokenizer,
            order_records(records)[:most],
            max_tokens=min(models.recipe.max_tokens, models.model.context_length),
            include_prompt=False,
            first=1,
        )
        if not examples:
            raise DataError(
                f"none of {len(records)} records has an answer",
                code="diffusion.no-places",
                where=name,
                expected="records whose last message is the assistant's",
                next="inspect the file with `stillroom show`",
            )
        rows[name] = {side: [] for side in _SIDES}
        for example in examples:
            ids, (start, stop) = example.ids.tolist(), example.turns[-1]
            while stop - start > 1 and ids[stop - 1] in special:
                stop -= 1  # end tokens are not part of the answer
            for side, share in models.share(ids, start, stop, behind=False).items():
                rows[name][side].append(float(share == 1))
        overlaps.append(f"{name}: {known} of {len(records)}")
    _add_pair(
        report,
        "Answers of given records",
        "Each model generates the answer greedily; an answer is correct if all its tokens are. "
        "The diffusion model is given the length of the answer. Records that occur verbatim in "
        f"the training data: {'; '.join(overlaps)}.",
        rows,
    )


def _add_pair(
    report: Report, title: str, text: str, rows: dict[str, dict[str, list[float]]]
) -> None:
    metrics: list[Metric] = []
    lines = []
    for name, sides in rows.items():
        if not sides[_SIDES[0]]:
            continue
        metrics += [bootstrap(sides[side], name=f"{side}/{name}") for side in _SIDES]
        lines.append((name, "", tuple(f"{side}/{name}" for side in _SIDES)))
    report.section(
        title,
        text,
        metrics=metrics,
        grid=ComparisonTable("Share of correct predictions", _SIDES, tuple(lines)),
    )


@dataclass(frozen=True, slots=True)
class Fact:
    """A sentence of the training data, and the character spans of its two names."""

    text: str
    first: tuple[int, int]
    second: tuple[int, int]

    @property
    def names(self) -> tuple[str, str]:
        """The names in order."""
        return self.text[slice(*self.first)], self.text[slice(*self.second)]


def find_facts(records: Sequence[Record], template: str) -> tuple[list[Fact], list[Fact], int]:
    """Return facts trained in one direction, these reversed, and the number trained in both.

    A fact trained in both directions is in neither list: no reversed sentence occurs in a record,
    nor within a longer text.

    Args:
        records: Training records.
        template: Sentence pattern with ``{a}`` and ``{b}``, e.g. "{a} is {b} .".

    Raises:
        RecipeError: If the template lacks a name, or no record matches it.
    """
    parts = re.split(r"(\{a\}|\{b\})", template)
    names = [part for part in parts if part in ("{a}", "{b}")]
    if names != ["{a}", "{b}"]:
        raise _no_facts_error(
            f"the template {template!r} does not have {{a}} and then {{b}}, once each"
        )
    before, between, behind = parts[0], parts[2], parts[4]
    pattern = re.compile(f"{re.escape(before)}(.+?){re.escape(between)}(.+?){re.escape(behind)}")
    texts = {message.content for record in records for message in record.messages[-1:]}
    every = "\0".join(_texts_of(records))
    forward, turned, both = [], [], 0
    for text in sorted(texts):
        match = pattern.fullmatch(text)
        if match is None:
            continue
        reverse = f"{before}{match[2]}{between}{match[1]}{behind}"
        if _contains_phrase(every, reverse):
            both += 1
            continue
        forward.append(Fact(text, match.span(1), match.span(2)))
        back = pattern.fullmatch(reverse)
        start = len(before)
        middle = start + len(match[2])
        end = middle + len(between) + len(match[1])
        if back is not None:
            turned.append(Fact(reverse, (start, middle), (middle + len(between), end)))
    if not forward:
        raise _no_facts_error(f"no record matches {template!r} in one direction only")
    return forward, turned, both


def _texts_of(records: Sequence[Record]) -> list[str]:
    return [message.content for record in records for message in record.messages]


def count_cooccurrences(facts: Sequence[Fact], records: Sequence[Record]) -> int:
    """Return the number of facts whose names also occur together in another training text.

    Such a text may state the fact in other words.
    """
    texts = _texts_of(records)
    count = 0
    for fact in facts:
        count += any(
            text != fact.text and all(_contains_phrase(text, name) for name in fact.names)
            for text in texts
        )
    return count


def _contains_phrase(text: str, words: str) -> bool:
    """Return whether a text contains a phrase at word boundaries."""
    return words in text and bool(re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text))


def locate_name(tokenizer: Any, fact: Fact, slot: str) -> tuple[list[int], int, int]:
    """Return a fact's tokens, and the first and last + 1 token of one of its names."""
    encoded = tokenizer(fact.text, return_offsets_mapping=True)
    first, last = getattr(fact, slot)
    inside = [
        index
        for index, (start, stop) in enumerate(encoded["offset_mapping"])
        if stop > start and start < last and stop > first
    ]
    return list(encoded["input_ids"]), inside[0], inside[-1] + 1


def _no_facts_error(reason: str) -> RecipeError:
    return RecipeError(
        reason,
        code="diffusion.no-facts",
        where="--facts",
        expected="a sentence pattern that records match verbatim, e.g. '{a} is {b} .'",
        next="inspect the records, or omit --facts",
    )
