"""Perplexity and divergence of several models: drives ``lm.loss`` and ``lm.divergence``.

Works on fixed groups of records, so that a resumed run computes the same batches. At most two
models are in memory: the first and the one compared with it. Torch is imported with the first
model, so that endpoints are evaluated without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stillroom.evaluate.interfaces import has_weights
from stillroom.evaluate.metrics.bootstrap import Metric, bootstrap
from stillroom.evaluate.qa.questions import Question
from stillroom.jobs import Job
from stillroom.models import resolve_checkpoint
from stillroom.models.hub import read_backend_name
from stillroom.objects import resolve_local
from stillroom.provenance import read_artifact

if TYPE_CHECKING:
    from stillroom.evaluate.jobs.report import EvaluateRecipe, ModelFidelitySettings

__all__ = ["measure_fidelity", "read_initial_fidelity"]

_GROUP_SIZE = 8


def measure_fidelity(
    recipe: EvaluateRecipe, settings: ModelFidelitySettings, questions: Sequence[Question], job: Job
) -> tuple[list[Metric], dict[str, int]]:
    """Return perplexities and divergences, and the counts of omissions by reason."""
    causal, notes = _find_causal(recipe, job)
    groups = [
        questions[index : index + _GROUP_SIZE] for index in range(0, len(questions), _GROUP_SIZE)
    ]
    first = next(iter(recipe.models))
    loader = _ModelLoader(causal, job)
    journal = job.journal("beliefs")
    with job.phase("fidelity", len(groups) * len(causal), "groups") as progress:
        for name in causal:
            for index, group in enumerate(groups):
                job.check_cancelled()
                if f"{name}/{index}" not in journal:
                    journal.put(
                        f"{name}/{index}", _measure_group(settings, loader, name, first, group)
                    )
                progress.advance()
            loader.drop(name, keep=first)
    loader.drop(first)
    metrics = []
    for name in causal:
        values = [journal[f"{name}/{index}"] for index in range(len(groups))]
        metrics += _summarize(name, first, values, recipe.seed)
        for value in values:
            notes.update(value["notes"])
    return metrics, dict(notes)


def _find_causal(recipe: EvaluateRecipe, job: Job) -> tuple[dict[str, str], Counter[str]]:
    """Return the models with next-token logits, and the reasons for leaving out the others."""
    causal: dict[str, str] = {}
    notes: Counter[str] = Counter()
    for name, reference in recipe.models.items():
        if not has_weights(reference):
            notes[f"{name}: an endpoint gives no logits"] = 1
            continue
        named = read_backend_name(resolve_checkpoint(reference, say=job.say))
        if named:
            notes[f"{name}: read by backend '{named}', it has no next-token perplexity"] = 1
        else:
            causal[name] = reference
    return causal, notes


def read_initial_fidelity(
    recipe: EvaluateRecipe, settings: ModelFidelitySettings
) -> tuple[list[Metric], dict[str, int]]:
    """Return the divergence before distillation as recorded by the distilled artifact.

    Without a record there is no metric, and the second value has a note.
    """
    names = list(recipe.models)
    if settings.distilled is None or len(names) < 2:
        return [], {}
    details = read_artifact(resolve_local(settings.distilled)).details
    rows = [row for row in (details.get("fidelity") or {}).get("initial") or () if row["tokens"]]
    if not rows:
        return [], {"distilled: no record was measured before distillation": 1}
    metric = bootstrap(
        [row["kl"] for row in rows],
        weights=[row["tokens"] for row in rows],
        seed=recipe.seed,
        name=f"{names[1]}/kl_to_{names[0]}/initial",
        unit="nats/token",
    )
    return [metric], {}


class _ModelLoader:
    """Loads models on first use and releases them."""

    def __init__(self, references: Mapping[str, str], job: Job) -> None:
        self._references, self._job = references, job
        self._loaded: dict[str, tuple[Any, Any]] = {}

    def load(self, name: str) -> tuple[Any, Any]:
        if name not in self._loaded:
            from stillroom.models import load_causal_lm

            path = resolve_checkpoint(self._references[name], say=self._job.say)
            self._loaded[name] = load_causal_lm(path)
        return self._loaded[name]

    def __contains__(self, name: str) -> bool:
        return name in self._references

    def drop(self, name: str, *, keep: str = "") -> None:
        if name != keep:
            self._loaded.pop(name, None)


def _measure_group(
    settings: ModelFidelitySettings,
    loader: _ModelLoader,
    name: str,
    first: str,
    group: Sequence[Question],
) -> dict[str, Any]:
    """Return losses, and agreement with the first model, of one group of records."""
    from stillroom.evaluate.lm.divergence import measure_agreement
    from stillroom.evaluate.lm.loss import held_out_loss

    records = [question.record for question in group]
    model, tokenizer = loader.load(name)
    notes: Counter[str] = Counter()

    def count_cut(_: int, __: int) -> None:
        notes[f"{name}: record cut at max_tokens"] += 1

    losses = held_out_loss(
        model, tokenizer, records, max_tokens=settings.max_tokens, on_truncated=count_cut
    )
    agreements = []
    if name != first and first in loader:
        reference_model, reference_tokenizer = loader.load(first)
        if reference_tokenizer.get_vocab() == tokenizer.get_vocab():
            results = measure_agreement(
                model, reference_model, tokenizer, records, max_tokens=settings.max_tokens
            )
            agreements = [
                [result.kl, result.reverse_kl, result.agreement, result.tokens]
                for result in results
            ]
        else:
            notes[f"{name}: another tokenizer than {first}'s, no divergence"] = len(records)
    return {"losses": [list(loss) for loss in losses], "agreements": agreements, "notes": notes}


def _summarize(
    name: str, first: str, values: Sequence[Mapping[str, Any]], seed: int
) -> list[Metric]:
    from stillroom.evaluate.lm.loss import perplexity

    losses = [(loss[0], loss[1]) for value in values for loss in value["losses"]]
    metrics = [perplexity(losses, name=f"{name}/perplexity", seed=seed)]
    rows = [row for value in values for row in value["agreements"] if row[3]]
    if rows:
        weights = [row[3] for row in rows]
        for column, (metric, unit) in enumerate(
            (
                (f"{name}/kl_to_{first}/final", "nats/token"),
                (f"{name}/reverse_kl_to_{first}/final", "nats/token"),
                (f"{name}/agreement", ""),
            )
        ):
            metrics.append(
                bootstrap(
                    [row[column] for row in rows],
                    weights=weights,
                    seed=seed,
                    name=metric,
                    unit=unit,
                )
            )
    return metrics
