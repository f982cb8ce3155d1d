"""A diffusion model and its autoregressive twin, compared on what they were both trained on.

Asked are three things, each in the form that both can be asked in, or said to be asked of one
alone: how likely held-out text is (a bound on one side, exact on the other); a run of tokens left
out of the middle (the twin sees only what stands before it); and facts that were told one way,
asked the same way, for the name before them, and the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from stillroom.diffusion.canvas import Request
from stillroom.diffusion.decoding import DecodeSettings
from stillroom.diffusion.facts import count_together, find_facts, locate_name
from stillroom.diffusion.lessons import Lesson, encode_lessons
from stillroom.diffusion.model import DiffusionModel
from stillroom.diffusion.opening import open_diffusion
from stillroom.diffusion.recipe import DiffusionRecipe
from stillroom.diffusion.sampling import generate
from stillroom.errors import DataError, RecipeError
from stillroom.evaluate.metrics import Metric, bootstrap
from stillroom.evaluate.report import Grid, Report, Table
from stillroom.models import load_causal_lm
from stillroom.objects import local
from stillroom.provenance import read_artifact
from stillroom.records import Record
from stillroom.train.split import Split, split_records

__all__ = ["compare_models", "twin_recipe"]

_SPAN_OF = 4  # a quarter of the learned tokens is left out
_SIDES = ("diffusion", "autoregressive")


def twin_recipe(recipe: DiffusionRecipe) -> DiffusionRecipe:
    """Return the recipe of the autoregressive twin: same network, records, arithmetic and seed.

    It takes as many steps of as many records, and times as many as the diffusion model reads a text
    more often: twice by blocks (noisy and clean), twice by complements.

    Raises:
        RecipeError: If the recipe is a twin's already.
    """
    if recipe.noising.is_causal:
        raise RecipeError(
            "this recipe trains an autoregressive model",
            code="diffusion.twin",
            where="noising",
            expected="a recipe of a diffusion model: its twin is made of it",
            next="set noising: independent and attention: full",
        )
    said = recipe.model_dump(mode="json")
    said |= {"noising": "autoregressive", "attention": "causal", "block_size": None}
    said |= {"block_growth": [], "anneal_steps": 0, "logit_shift": None}
    more = _readings(recipe)
    said["train"]["epochs"] *= more
    if said["train"]["steps"] is not None:
        said["train"]["steps"] *= more
    return DiffusionRecipe.model_validate(said)


def _readings(recipe: DiffusionRecipe) -> int:
    """Return how often a step reads each text."""
    by_blocks = 2 if recipe.attention == "block_causal" else 1
    return by_blocks * (2 if recipe.noising.method_name() == "complementary" else 1)


def compare_models(
    diffusion: Path,
    twin: Path,
    recipe: DiffusionRecipe,
    *,
    template: str = "",
    questions: Mapping[str, Sequence[Record]] | None = None,
    most: int = 200,
) -> Report:
    """Measure both models and return the report.

    Args:
        diffusion: The diffusion model's finished job.
        twin: The autoregressive one's.
        recipe: The diffusion model's.
        template: A sentence with ``{a}`` and ``{b}`` that facts of the records read as; empty asks
            for none.
        questions: Records whose answers both models are to write, by a name of their own.
        most: Held-out records, facts, and records of a name, that are asked about at most.

    Raises:
        RecipeError: If no record has the template's form.
        DataError: If a name's records have no answer.
    """
    split = split_records(local(recipe.records))
    asked = _Asked(diffusion, twin, recipe)
    report = Report("A diffusion model beside its autoregressive twin")
    _add_cost(report, asked, diffusion, twin)
    _add_likelihood(report, diffusion, twin)
    _add_infilling(report, asked, split, most)
    if template:
        _add_facts(report, asked, split, template, most)
    if questions:
        _add_questions(report, asked, split, questions, most)
    return report


class _Asked:
    """Both models, asked in one way."""

    def __init__(self, diffusion: Path, twin: Path, recipe: DiffusionRecipe) -> None:
        self.recipe = recipe
        self.model: DiffusionModel = open_diffusion(str(diffusion), dtype="float32")
        self.twin, self.words = load_causal_lm(twin / "output", dtype="float32")

    def fill(self, ids: Sequence[int], start: int, stop: int, *, behind: bool) -> dict[str, bool]:
        """Return who writes the tokens from ``start`` to ``stop`` rightly, all of them.

        Args:
            ids: The whole text.
            start: First token that is asked for.
            stop: The one after the last.
            behind: Whether the diffusion model is shown what stands behind.
        """
        hits = self.share(ids, start, stop, behind=behind)
        return {side: hits[side] == 1.0 for side in hits}

    def share(self, ids: Sequence[int], start: int, stop: int, *, behind: bool) -> dict[str, float]:
        """Return each model's share of right tokens."""
        last = stop if behind else len(ids)
        known = [None if start <= at < last else int(token) for at, token in enumerate(ids)]
        settings = DecodeSettings(commit="top_k", end={"stop_early": False})  # type: ignore[arg-type]
        (sample,) = generate(self.model, [Request(tuple(known))], settings)
        right = [sample.ids[at] == ids[at] for at in range(start, stop)]
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
        right = [written[at] == ids[at] for at in range(start, stop)]
        return sum(right) / len(right)


def _add_cost(report: Report, asked: _Asked, diffusion: Path, twin: Path) -> None:
    """Say what both took, so that their equality can be looked at."""
    model = asked.model
    embedded = model.body.get_input_embeddings().weight.numel()
    inner = sum(weight.numel() for weight in model.body.parameters()) - embedded
    rows = []
    for side, folder in zip(_SIDES, (diffusion, twin), strict=True):
        details = read_artifact(folder).details
        copies = 2 if side == "diffusion" and model.metadata.block_size is not None else 1
        places = details["train"]["tokens"] * copies
        rows.append(
            (
                side,
                f"{details['parameters']:,}",
                f"{details['train']['steps']:,}",
                f"{places:,}",
                f"{6 * inner * places / 1e12:.3g}",
            )
        )
    report.section(
        "What both took",
        "Both have the same network, and the twin so many steps that both do the same arithmetic "
        "in the layers: 6 floating-point operations a weight and token that is read. The head "
        "comes on top, on every token that is asked for: all of them in the twin, the masked ones, "
        "about half, in the diffusion model.",
        table=Table(
            "Training",
            ("model", "parameters", "steps", "tokens read", "TFLOP in the layers"),
            tuple(rows),
        ),
    )


def _add_likelihood(report: Report, diffusion: Path, twin: Path) -> None:
    found = [dict(read_artifact(folder).details["after"]) for folder in (diffusion, twin)]
    if not all(found):
        return
    metrics = []
    for side, after in zip(_SIDES, found, strict=True):
        value, error = after["nats_per_token"], after["error"]
        note = "a bound: the model's own loss is at most this" if after["is_bound"] else "exact"
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
        "How likely held-out text is",
        "Nats a token, less is better. The diffusion model's is an upper bound of its loss, so the "
        "two are not equals: that the bound is larger does not say the model is worse. The "
        "interval is that of the masks drawn, not of the records.",
        metrics=metrics,
    )


def _add_infilling(report: Report, asked: _Asked, split: Split, most: int) -> None:
    lessons, _ = encode_lessons(
        asked.model.tokenizer,
        split.held_out[:most],
        max_tokens=min(asked.recipe.max_tokens, asked.model.context_length),
        include_prompt=asked.recipe.include_prompt,
        first=1,
    )
    rows: dict[str, list[float]] = {side: [] for side in _SIDES}
    for at, lesson in enumerate(lessons):
        start, stop = _span_of(lesson, np.random.default_rng([asked.recipe.seed, at]))
        shares = asked.share(lesson.ids.tolist(), start, stop, behind=True)
        for side in _SIDES:
            rows[side].append(shares[side])
    if lessons:
        _add_pair(
            report,
            "A run of tokens left out of the middle",
            "The share of its tokens that are written rightly, a quarter of each held-out text "
            "being left out. The diffusion model reads what stands on both sides; the "
            "autoregressive one goes on from what stands before, which is all that it can read.",
            {"infilling": rows},
        )


def _span_of(lesson: Lesson, rng: np.random.Generator) -> tuple[int, int]:
    start, stop = lesson.turns[int(rng.integers(len(lesson.turns)))]
    length = max(1, (stop - start) // _SPAN_OF)
    first = start + int(rng.integers(stop - start - length + 1))
    return first, first + length


def _add_facts(report: Report, asked: _Asked, split: Split, template: str, most: int) -> None:
    told, turned, both = find_facts(split.train, template)
    together = count_together(told[:most], split.train)
    rows: dict[str, dict[str, list[float]]] = {}
    for name, facts, slot, behind in (
        ("forward", told, "second", False),
        ("infill", told, "first", True),
        ("reversed", turned, "second", False),
    ):
        rows[name] = {side: [] for side in _SIDES}
        for fact in facts[:most]:
            ids, start, stop = locate_name(asked.model.tokenizer, fact, slot)
            for side, is_right in asked.fill(ids, start, stop, behind=behind).items():
                rows[name][side].append(float(is_right))
    _add_pair(
        report,
        "Facts told one way, asked both ways",
        f"Sentences of the form {template!r}. Forward: the second name of a sentence that was "
        "told. Infill: its first name, the rest being shown; the autoregressive model sees nothing "
        "before it, so its figure is a guess. Reversed: the second name of the sentence turned "
        f"round, which stands in no text of any record. {both} sentences were told both ways and "
        f"are not asked about; of {together} that are asked, the names also stand together in "
        "another text, which may tell the fact in other words. What is claimed: how often each "
        "model answers these sentences. What is not: that one of them knows the fact and the other "
        "does not; an autoregressive model can also be asked by scoring every name.",
        rows,
    )


def _add_questions(
    report: Report,
    asked: _Asked,
    split: Split,
    questions: Mapping[str, Sequence[Record]],
    most: int,
) -> None:
    tokenizer = asked.model.tokenizer
    special = set(getattr(tokenizer, "all_special_ids", ()))
    learned = {tuple(message.content for message in record.messages) for record in split.train}
    rows: dict[str, dict[str, list[float]]] = {}
    told = []
    for name, records in questions.items():
        known = sum(tuple(m.content for m in record.messages) in learned for record in records)
        lessons, _ = encode_lessons(
            tokenizer,
            records[:most],
            max_tokens=min(asked.recipe.max_tokens, asked.model.context_length),
            include_prompt=False,
            first=1,
        )
        if not lessons:
            raise DataError(
                f"none of {len(records)} records has an answer to be asked for",
                code="diffusion.no-places",
                where=name,
                expected="records whose last message is the assistant's",
                next="look at the file by `stillroom show`",
            )
        rows[name] = {side: [] for side in _SIDES}
        for lesson in lessons:
            ids, (start, stop) = lesson.ids.tolist(), lesson.turns[-1]
            while stop - start > 1 and ids[stop - 1] in special:
                stop -= 1  # an end token is no part of the answer
            for side, is_right in asked.fill(ids, start, stop, behind=False).items():
                rows[name][side].append(float(is_right))
        told.append(f"{name}: {known} of {len(records)} word for word")
    _add_pair(
        report,
        "Answers of records of your own",
        "Each model writes the answer, the likeliest token in each place; right is an answer whose "
        "tokens are all right. The diffusion model is given as many places as the text had. Of "
        f"them, in what both learned from stand {'; '.join(told)}.",
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
        title, text, metrics=metrics, grid=Grid("Share that is right", _SIDES, tuple(lines))
    )
