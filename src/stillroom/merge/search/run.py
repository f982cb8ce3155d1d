"""Evolutionary search of a merge (mergekit-evolve): trials, choice on held-out records, result.

``optimizers`` (CMA-ES, TPE) propose candidates, ``scoring`` scores them.

Source: Akiba et al. 2024 (arXiv:2403.13187), with CMA-ES or a tree-structured Parzen estimator over
any numeric setting of a recipe. Differs: records are split in three. One half scores the trials; a
quarter chooses among the best trials, hand-made baselines and the parents; the last quarter
measures the selected one. A search always finds candidates that look better on the records it
optimized, so only the last score counts; if it is not better than the best parent's, that parent is
kept unchanged.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, RecipeError
from stillroom.evaluate import Metric, warn_small_sample
from stillroom.evaluate.metrics.bootstrap import paired_difference
from stillroom.jobs import Job, Journal, atomic_write
from stillroom.merge.engine.merge import Merge, reconfigure_merge
from stillroom.merge.search.optimizers import Optimizer, create_optimizer
from stillroom.merge.search.scoring import (
    MergeScorer,
    Score,
    ScoringSettings,
    TrialResult,
    TrialRunner,
    build_score_row,
    draw_records,
    mean_over_records,
    mean_per_token,
    open_trials,
)
from stillroom.merge.search.selection import MergeCandidate, list_parent_candidates
from stillroom.merge.search.space import (
    SearchSpace,
    apply_changes,
    build_plain_recipe,
    list_baselines,
)
from stillroom.merge.tensors.structure import find_main_stack
from stillroom.provenance import digest_json
from stillroom.provenance.digests import load_json
from stillroom.recipes import dump_recipe
from stillroom.records import Record

if TYPE_CHECKING:
    from stillroom.merge.jobs.recipe import MergeRecipe
    from stillroom.merge.jobs.search import MergeSearchRecipe

__all__ = [
    "SearchResult",
    "format_search",
    "read_search_result",
    "search_merge",
    "write_search_result",
]

_MAX_FAILURES = 1e12
_MIN_RECORDS = 8


@dataclass(frozen=True, slots=True)
class _RecordSplit:
    """Record indices for scoring trials, for choosing, and for the final report."""

    search: tuple[int, ...]
    choose: tuple[int, ...]
    final: tuple[int, ...]

    @classmethod
    def of(cls, counted: Sequence[int]) -> _RecordSplit:
        return cls(tuple(counted[::2]), tuple(counted[1::4]), tuple(counted[3::4]))


@dataclass(frozen=True)
class _Finalist:
    """A candidate for the result: changes of the recipe, or an unchanged parent."""

    name: str
    changes: dict[str, Any] | None
    scores: dict[int, Score]
    parent: MergeCandidate | None = None
    failed: str = ""

    def cost(self, indices: Sequence[int], sign: int) -> float:
        if self.failed:
            return math.inf
        return sign * mean_over_records([self.scores[i] for i in indices], range(len(indices)))


def search_merge(recipe: MergeSearchRecipe, merge: Merge, job: Job) -> SearchResult:
    """Search, choose and measure; an interrupted search resumes with the journaled trials.

    Raises:
        RecipeError: If a searched setting is not in the recipe, or no candidate can be merged.
        DataError: If too few records have tokens to score, or the journal does not match.
        MissingExtraError: If the optimizer's library is not installed.
        Cancelled: If the user stopped it.
    """
    return _Search(recipe, merge, job).run()


class _Search:
    """One search of one recipe."""

    def __init__(self, recipe: MergeSearchRecipe, merge: Merge, job: Job) -> None:
        self.recipe, self.merge, self.job = recipe, merge, job
        self.settings = settings = recipe.search
        self.space = SearchSpace.of(recipe, self._count_layers())
        scoring = ScoringSettings(settings.objective, settings.max_tokens, settings.batch_tokens)
        self.sign = scoring.sign
        scorer = MergeScorer(scoring, job.scratch / "candidate", job.say)
        self.runner = TrialRunner(recipe, merge, scorer)
        self.records = draw_records(
            settings.records,
            split=settings.split,
            limit=settings.max_records,
            seed=recipe.seed,
            warn=job.warn,
            setting="search",
        )
        self.parts = _RecordSplit((), (), ())
        self.journal: Journal = job.journal("trials")

    def run(self) -> SearchResult:
        parents = self._score_parents()
        baselines = [
            self._entry(name, changes, (*self.parts.search, *self.parts.choose, *self.parts.final))
            for name, changes in list_baselines(self.recipe).items()
        ]
        trials, stopped = self._run_trials(
            create_optimizer(self.settings, self.space.begin(), self._seed)
        )
        finalists = self._pick_finalists(trials)
        self.job.check_cancelled()
        entries = [*parents, *baselines, *finalists]
        # Parents come first and min returns the first of equals: a merge must be strictly better.
        selected = min(entries, key=lambda entry: entry.cost(self.parts.choose, self.sign))
        best = min(parents, key=lambda entry: entry.cost(self.parts.choose, self.sign))
        best_baseline = min(
            baselines, key=lambda entry: entry.cost(self.parts.choose, self.sign), default=None
        )
        final, final_best = (row.cost(self.parts.final, self.sign) for row in (selected, best))
        if selected.parent is None and final >= final_best:
            selected = best
        details = self._describe(entries, selected, best, best_baseline)
        details |= self._count(trials, stopped)
        self.runner.scorer.close()
        self.job.say(format_search(details))
        if selected.parent is not None:
            copied = _copy_parent(self.recipe, selected)
            return SearchResult(copied, selected.parent.merge, details, trials)
        if selected.changes is None:
            raise AssertionError("a merge has changes")
        recipe = apply_changes(self.recipe, selected.changes)
        return SearchResult(recipe, reconfigure_merge(self.merge, recipe), details, trials)

    @property
    def _seed(self) -> int:
        return int(digest_json([self.recipe.seed, "search"])[:12], 16)

    def _count_layers(self) -> list[int]:
        if self.settings.layer_path is None:
            return []
        stacks = [
            find_main_stack(source.checkpoint.names(), source.checkpoint.config)
            for source in self.merge.parents
        ]
        return [stack.count if stack else 0 for stack in stacks]

    def _score_parents(self) -> list[_Finalist]:
        """Score parents on all records, and split the records that all of them can score."""
        candidates = list_parent_candidates(self.recipe, self.merge)
        scores: list[list[Score]] = []
        done = sum(f"parent {candidate.name}" in self.journal for candidate in candidates)
        with self.job.phase("parents", len(candidates), "models", done=done) as progress:
            for candidate in candidates:
                key = f"parent {candidate.name}"
                if key not in self.journal:
                    self.journal.put(key, self.runner.scorer.score(candidate.merge, self.records))
                    scorer = self.runner.scorer
                    if scorer.truncated:
                        longest = scorer.settings.max_tokens
                        self.job.warn(f"{scorer.truncated} records were cut to {longest} tokens")
                    progress.advance(note=candidate.name)
                    self.job.check_cancelled()
                scores.append([(value, count) for value, count in self.journal[key]])
        counted = [
            index for index in range(len(self.records)) if all(row[index][1] for row in scores)
        ]
        if len(counted) < _MIN_RECORDS:
            raise DataError(
                f"{len(counted)} of {len(self.records)} records have tokens to score",
                code="merge.no-records",
                where=self.settings.records,
                expected=f"at least {_MIN_RECORDS} conversations with an answer",
                next="choose other records, or raise search.max_tokens",
            )
        self.parts = _RecordSplit.of(counted)
        return [
            _Finalist(candidate.name, None, {index: row[index] for index in counted}, candidate)
            for candidate, row in zip(candidates, scores, strict=True)
        ]

    def _run_trials(self, optimizer: Optimizer) -> tuple[list[dict[str, Any]], str]:
        """Evaluate the optimizer's points until a stopping criterion holds."""
        settings, trials = self.settings, list[dict[str, Any]]()
        done = [self.journal[key] for key in list(self.journal.keys()) if key.startswith("trial ")]
        started = time.monotonic() - max((trial.get("spent", 0.0) for trial in done), default=0.0)
        total = settings.evaluations
        pool = open_trials(self.runner, self._pick(self.parts.search), self.job.engine)
        with self.job.phase("trials", total, "candidates", done=0) as progress, pool as try_all:
            while True:
                reason = self._reason_to_stop(trials, optimizer, time.monotonic() - started)
                if reason:
                    return trials, reason
                points = optimizer.ask()
                used_points = points[: total - len(trials)]
                changes = [self.space.read(point) for point in used_points]
                costs = []
                outcomes = self._outcomes(try_all, used_points, changes, trials, started)
                for point, change, outcome in zip(used_points, changes, outcomes, strict=True):
                    row = self._row(len(trials), point, change, outcome)
                    costs.append(
                        _MAX_FAILURES if row["value"] is None else self.sign * row["value"]
                    )
                    trials.append(row)
                    values = [row["value"] for row in trials if row["value"] is not None]
                    best = min(values, key=lambda value: self.sign * value, default=None)
                    progress.advance(note=f"best {'none yet' if best is None else f'{best:.4f}'}")
                if len(used_points) < len(points):
                    return trials, "evaluations"
                optimizer.tell(costs)

    def _outcomes(
        self,
        try_all: Callable[[Sequence[dict[str, Any]]], Iterable[TrialResult]],
        points: Sequence[Sequence[float]],
        changes: Sequence[dict[str, Any]],
        trials: Sequence[dict[str, Any]],
        started: float,
    ) -> list[TrialResult]:
        """Return the outcomes of one round: journaled, known from equal changes, or new."""
        keys = [f"trial {len(trials) + index}" for index in range(len(points))]
        known = {digest_json(row["changes"]): row["number"] for row in trials}
        fresh = []
        for index, key in enumerate(keys):
            if key in self.journal:
                self._check_same(key, points[index])
                continue
            same = known.get(digest_json(changes[index]))
            if same is None:
                fresh.append(index)
            else:
                entry = dict(self.journal[f"trial {same}"]) | {"point": list(points[index])}
                self.journal.put(key, entry)
        for index, outcome in zip(fresh, try_all([changes[index] for index in fresh]), strict=True):
            spent = time.monotonic() - started
            entry = {"point": list(points[index]), "spent": spent, **outcome.to_json()}
            self.journal.put(keys[index], entry)
            self.job.check_cancelled()
        return [TrialResult.from_json(self.journal[key]) for key in keys]

    def _check_same(self, key: str, point: Sequence[float]) -> None:
        if self.journal[key]["point"] != list(point):
            raise DataError(
                f"the journal's {key} is a different point than the optimizer now proposes",
                code="merge.search-resume",
                where=str(self.journal.path),
                expected="the same version of the optimizer library as at the start of the search",
                next="start over with --overwrite, or install that version",
            )

    def _reason_to_stop(
        self, trials: Sequence[dict[str, Any]], optimizer: Optimizer, spent: float
    ) -> str:
        settings = self.settings
        if len(trials) >= settings.evaluations:
            return "evaluations"
        is_over = settings.time_limit is not None and spent >= settings.time_limit
        if is_over and f"trial {len(trials)}" not in self.journal:
            return "time"
        waited = len(trials) - _find_last_improvement(trials, self.sign)
        if settings.patience and waited > settings.patience:
            return "patience"
        return "converged" if trials and optimizer.is_done() else ""

    def _row(
        self, number: int, point: Sequence[float], changes: dict[str, Any], outcome: TrialResult
    ) -> dict[str, Any]:
        value = None
        if not outcome.failed:
            value = mean_over_records(outcome.scores, range(len(outcome.scores)))
            self.job.metric(self.settings.objective.name, value, trial=number)
        row = {"number": number, "value": value, "changes": changes, "point": list(point)}
        return row | ({"failed": outcome.failed} if outcome.failed else {})

    def _pick_finalists(self, trials: Sequence[dict[str, Any]]) -> list[_Finalist]:
        """Score the best trials with distinct changes on the records for choosing."""
        distinct = {digest_json(row["changes"]): row for row in reversed(trials)}.values()
        good = [row for row in distinct if row["value"] is not None]
        if not good:
            raise RecipeError(
                f"none of {len(trials)} candidates could be merged: {trials[0].get('failed', '')}",
                code="merge.search",
                where="search.space",
                expected="ranges in which most candidates can be merged",
                next="narrow the ranges",
            )
        good.sort(key=lambda row: (self.sign * row["value"], row["number"]))
        picked = good[: self.settings.finalists]
        remaining = (*self.parts.choose, *self.parts.final)
        return [self._entry(f"trial {row['number']}", row["changes"], remaining) for row in picked]

    def _entry(self, name: str, changes: dict[str, Any], indices: Sequence[int]) -> _Finalist:
        """Return a candidate scored on records, from the journal if possible."""
        key = f"finalist {name}"
        if key not in self.journal:
            outcome = self.runner.try_changes(changes, self._pick(indices))
            self.journal.put(key, outcome.to_json())
            self.job.check_cancelled()
        outcome = TrialResult.from_json(self.journal[key])
        if outcome.failed:
            self.job.warn(f"{name} cannot be merged: {outcome.failed}")
        scores = dict(zip(indices, outcome.scores, strict=not outcome.failed))
        return _Finalist(name, changes, scores, failed=outcome.failed)

    def _pick(self, indices: Sequence[int]) -> list[Record]:
        return [self.records[i] for i in indices]

    def _describe(
        self,
        entries: Sequence[_Finalist],
        selected: _Finalist,
        best: _Finalist,
        best_baseline: _Finalist | None,
    ) -> dict[str, Any]:
        return {
            "objective": self.settings.objective.name,
            "candidates": [self._build_row(entry, self.parts.choose) for entry in entries],
            "kept": selected.name,
            "helped": selected.parent is None,
            "best_parent": best.name,
            "best_hand": best_baseline.name if best_baseline else None,
            "changes": selected.changes,
            "final": {
                "kept": self._build_row(selected, self.parts.final),
                "best_parent": self._build_row(best, self.parts.final),
                "best_hand": self._build_row(best_baseline, self.parts.final)
                if best_baseline
                else None,
                "difference": self._compare(selected, best),
                "difference_to_hand": self._compare(selected, best_baseline)
                if best_baseline
                else None,
                "records": len(self.parts.final),
            },
            "records": {
                "search": len(self.parts.search),
                "choose": len(self.parts.choose),
                "final": len(self.parts.final),
            },
        }

    def _count(self, trials: Sequence[dict[str, Any]], stopped: str) -> dict[str, Any]:
        return {
            "optimizer": self.settings.optimizer.name,
            "space": self.space.labels,
            "tried": len(trials),
            "failed_trials": sum(row["value"] is None for row in trials),
            "stopped": stopped,
            "best_on_search": self.sign
            * min(self.sign * row["value"] for row in trials if row["value"] is not None),
        }

    def _build_row(self, entry: _Finalist, indices: Sequence[int]) -> dict[str, Any]:
        """Return a candidate's row of the table."""
        kind = {"is_merge": entry.parent is None}
        if entry.failed:
            return {"name": entry.name, "value": None, "failed": entry.failed} | kind
        scores = [entry.scores[i] for i in indices]
        row = build_score_row(entry.name, scores, range(len(indices)), self.recipe.seed, "value")
        return row | kind

    def _compare(self, selected: _Finalist, baseline: _Finalist) -> dict[str, Any] | None:
        if selected is baseline or baseline.failed:
            return None
        return paired_difference(
            [mean_per_token(selected.scores[i]) for i in self.parts.final],
            [mean_per_token(baseline.scores[i]) for i in self.parts.final],
            seed=self.recipe.seed,
            name=f"{self.settings.objective.name} less that of {baseline.name}",
        ).to_json()


def _find_last_improvement(trials: Sequence[dict[str, Any]], sign: int) -> int:
    """Return the number of trials up to and including the best so far."""
    best, position = math.inf, 0
    for number, row in enumerate(trials):
        if row["value"] is not None and sign * row["value"] < best:
            best, position = sign * row["value"], number + 1
    return position


def _copy_parent(recipe: MergeSearchRecipe, selected: _Finalist) -> MergeRecipe:
    """Return the recipe that copies a parent."""
    data = recipe.model_dump(mode="json")
    index = selected.parent.place if selected.parent else 0
    reference = {"model": recipe.base_model} if index < 0 else data["models"][index]
    model = {key: value for key, value in reference.items() if key in ("model", "adapter")}
    method = {"name": "passthrough"}
    return build_plain_recipe(
        {"seed": recipe.seed, "method": method, "models": [model], "out": data["out"]}
    )


SEARCH_FILE, RESULT_RECIPE_FILE = "search.json", "best.yaml"


@dataclass(frozen=True)
class SearchResult:
    """Result of a search: the changed recipe, its merge, details, and every trial."""

    recipe: MergeRecipe
    merge: Merge
    details: dict[str, Any]
    trials: list[dict[str, Any]] = field(repr=False)


def write_search_result(result: SearchResult, job: Job) -> None:
    """Write output/search.json with all trials, and best.yaml, the recipe of the result."""
    with atomic_write(job.output / SEARCH_FILE) as file:
        json.dump(result.details | {"trials": result.trials}, file, ensure_ascii=False, indent=1)
    with atomic_write(job.work / RESULT_RECIPE_FILE) as file:
        file.write(dump_recipe(result.recipe))


def read_search_result(folder: Path) -> dict[str, Any]:
    """Read the file written by ``write_search_result`` from a job's folder.

    Raises:
        DataError: If it is missing or invalid.
    """
    path = folder / "output" / SEARCH_FILE
    try:
        result = load_json(path.read_text(encoding="utf-8"))
        if not isinstance(result, dict) or "trials" not in result:
            raise ValueError("no trials")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} contains no readable search result",
            code="merge.no-search",
            where=str(path),
            expected="the folder of a job of kind merge.search",
            next=f"stillroom show {folder} describes it",
        ) from error
    return result


def format_search(details: Mapping[str, Any]) -> str:
    """Return the outcome in one or two sentences, for the log and the card."""
    final, objective = details["final"], details["objective"]
    selected, parent = final["kept"], final["best_parent"]
    records = f"on {final['records']} records that the search never saw"
    if not details["helped"]:
        return (
            f"After {details['tried']} trials nothing beats the best parent, {parent['name']} "
            f"({objective} {parent['value']:.4f} {records}): it is kept as it is."
        )
    gap = final["difference"]
    few = warn_small_sample(final["records"], "record")
    tail = "." if Metric.from_json(gap).side() else ": less apart than chance may put them."
    return (
        f"Kept of {details['tried']} trials: {selected['name']}. {records.capitalize()}, its "
        f"{objective} is {selected['value']:.4f}, that of the best parent, {parent['name']}, "
        f"{parent['value']:.4f}" + (f". {few}" if few else tail)
    )
