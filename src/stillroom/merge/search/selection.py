"""Selection of a merge, one of its variants, or a parent by the loss on held-out records.

Every candidate is scored by the loss on the assistant's tokens. The best is chosen on one half of
the records and confirmed on the other, so that selection bias does not pass for progress. If no
merge is confirmed, the best parent is kept unchanged, as the artifact records. A share of the
records (``select.test_share``) is used for neither and measures the selected one. Candidates are
merged in memory. Only the loss is compared: a lower loss need not mean better answers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.evaluate.metrics.bootstrap import paired_difference
from stillroom.jobs import Job
from stillroom.merge.engine.merge import Merge
from stillroom.merge.interfaces import METHODS
from stillroom.merge.planning.inputs import MergeSource, TensorRules, list_run_checkpoints
from stillroom.merge.search.scoring import (
    MergeScorer,
    Score,
    ScoringSettings,
    build_score_row,
    draw_records,
    mean_over_records,
    mean_per_token,
)
from stillroom.records import Record

if TYPE_CHECKING:
    from stillroom.merge.jobs.recipe import MergeJobRecipe
    from stillroom.merge.jobs.select import MergeSelectRecipe
    from stillroom.merge.settings import SelectionSettings

__all__ = [
    "MergeCandidate",
    "count_candidates",
    "format_selection",
    "list_candidates",
    "list_parent_candidates",
    "select_merge",
]

_DEFAULT_INTERPOLATIONS = (0.5, 0.75)
_MIN_HALVED = 8
_MIN_SPLIT, _FINAL = 16, 0.25


@dataclass(frozen=True)
class MergeCandidate:
    """A candidate checkpoint: an unchanged parent, or a merge.

    ``place`` is the index of a parent in the recipe's ``models``, -1 for the base.
    """

    name: str
    merge: Merge
    parent: MergeSource | None = None
    place: int = 0


def select_merge(recipe: MergeSelectRecipe, merge: Merge, job: Job) -> tuple[Merge, dict[str, Any]]:
    """Score all candidates; return the selected merge and the details of the choice.

    Raises:
        DataError: If fewer than two records have an assistant token, and the recipe requires it.
        Cancelled: If the user stopped it; finished scores are kept.
    """
    select = recipe.select
    candidates = list_candidates(recipe, merge)
    available = len(list_run_checkpoints(_list_final_checkpoints(recipe, merge.parents)[0]))
    skipped = [count for count in select.averages if count > available]
    if skipped:
        job.warn(f"the run has {available} checkpoints: averages of the last {skipped} are skipped")
    try:
        scores, counted = _score_records(candidates, select, recipe.seed, job)
    except DataError as error:
        if recipe.on_too_few == "refuse" or error.code != "merge.no-records":
            raise
        # Nothing can be scored: the first model is kept unchanged.
        why = error.problems[0].what
        first = next(
            candidate
            for candidate in candidates
            if candidate.parent is not None and candidate.place == 0
        )
        job.warn(f"{why}; no merge can be scored, so {first.name} is kept unchanged")
        return first.merge, {"candidates": [], "kept": first.name, "helped": False, "left_out": why}
    selected, details = _choose_candidate(candidates, scores, counted, select, recipe.seed)
    job.say(
        f"kept {candidates[selected].name}: "
        + ("merging lowered" if details["helped"] else "merging did not lower")
        + " the held-out loss"
    )
    if "final" in details:
        job.say(_format_final(details["final"]))
    return candidates[selected].merge, details | {"skipped_averages": skipped}


def _score_records(
    candidates: Sequence[MergeCandidate], select: SelectionSettings, seed: int, job: Job
) -> tuple[list[list[Score]], list[int]]:
    """Return the scores of all candidates by record, and the records that all can score.

    Raises:
        DataError: If there are fewer than two.
    """
    records = draw_records(
        select.records, split=select.split, limit=select.max_records, seed=seed, warn=job.warn
    )
    settings = ScoringSettings(max_tokens=select.max_tokens, batch_tokens=select.batch_tokens)
    scorer = MergeScorer(settings, job.scratch / "candidate", job.say)
    scores = _score_all(candidates, records, scorer, job) if len(records) > 1 else []
    scorer.close()
    counted = [index for index in range(len(records)) if all(loss[index][1] for loss in scores)]
    if len(counted) < 2:
        raise DataError(
            f"{len(counted)} of {len(records)} records have an assistant's token to judge by"
            if scores
            else "1 record alone has no other to confirm what it chooses",
            code="merge.no-records",
            where=select.records,
            expected="at least 2 conversations with an answer",
            next="choose other records, or raise select.max_tokens",
        )
    return scores, counted


def list_candidates(recipe: MergeSelectRecipe, merge: Merge) -> list[MergeCandidate]:
    """Return all candidates of a recipe: parents, averages, interpolations and the merge."""
    finals = _list_final_checkpoints(recipe, merge.parents)
    candidates = _open_parents(recipe, merge)
    name = recipe.method.method_name()
    run = list_run_checkpoints(finals[0])
    for count in recipe.select.averages:
        average = Merge(METHODS.build("run_average"), None, run[-count:], merge.rules, merge.seed)
        if count <= len(run) and _name_result(average) != _name_result(merge):
            label = f"average of the last {count} of {finals[0].name}"
            candidates.append(MergeCandidate(label, average))
    if merge.base is not None:
        candidates += [
            MergeCandidate(f"{name} at {share:g}", replace(merge, share=share))
            for share in _list_interpolations(recipe)
        ]
    # A merge of one model by these methods is the model itself.
    alone = {"linear", "passthrough", "run_average"}
    if len(merge.parents) > 1 or recipe.method.method_name() not in alone:
        candidates.append(MergeCandidate(name, merge))
    return _number_names(candidates)


def list_parent_candidates(recipe: MergeJobRecipe, merge: Merge) -> list[MergeCandidate]:
    """Return the base, if any, and every model of a recipe as unchanged candidates."""
    return _number_names(_open_parents(recipe, merge))


def count_candidates(recipe: MergeSelectRecipe) -> int:
    """Return an upper bound on the number of candidates, without opening any."""
    parents = len(recipe.list_inputs())
    return parents + len(recipe.select.averages) + len(_list_interpolations(recipe)) + 1


def _open_parents(recipe: MergeJobRecipe, merge: Merge) -> list[MergeCandidate]:
    method, rules = METHODS.build("passthrough"), TensorRules(dtype=merge.rules.dtype)
    placed = [(-1, merge.base)] if merge.base else []
    placed += enumerate(_list_final_checkpoints(recipe, merge.parents))
    return [
        MergeCandidate(source.name, Merge(method, None, [source], rules), source, place)
        for place, source in placed
    ]


def _number_names(candidates: Sequence[MergeCandidate]) -> list[MergeCandidate]:
    """Number repeated names of candidates."""
    counts: Counter[str] = Counter()
    named = []
    for candidate in candidates:
        counts[candidate.name] += 1
        count = counts[candidate.name]
        name = f"{candidate.name} ({count})" if count > 1 else candidate.name
        named.append(replace(candidate, name=name))
    return named


def _list_interpolations(recipe: MergeSelectRecipe) -> tuple[float, ...]:
    if recipe.base_model is None:
        return ()
    chosen = recipe.select.interpolations
    return _DEFAULT_INTERPOLATIONS if chosen is None else chosen


def _list_final_checkpoints(
    recipe: MergeJobRecipe, parents: Sequence[MergeSource]
) -> list[MergeSource]:
    """Return the final checkpoint of each model, without its earlier run checkpoints."""
    counts = (model.sources for model in recipe.list_inputs() if model.role == "model")
    return [parents[stop - 1] for stop in accumulate(counts)]


def _name_result(merge: Merge) -> tuple[object, ...]:
    """Return what determines the bytes of a merge; equal ones are certain to give the same."""
    sources = [
        (source.checkpoint.folder, source.weight, source.settings) for source in merge.parents
    ]
    return merge.method, sources


def _score_all(
    candidates: Sequence[MergeCandidate], records: Sequence[Record], scorer: MergeScorer, job: Job
) -> list[list[Score]]:
    journal = job.journal("scores")
    scores: list[list[Score]] = []
    done = sum(candidate.name in journal for candidate in candidates)
    with job.phase("score", len(candidates), "candidates", done=done) as progress:
        for candidate in candidates:
            if candidate.name not in journal:
                record_scores = scorer.score(candidate.merge, records)
                if scorer.truncated:
                    longest = scorer.settings.max_tokens
                    job.warn(
                        f"{scorer.truncated} records were longer than {longest} tokens and cut"
                    )
                journal.put(candidate.name, record_scores)
                progress.advance(note=candidate.name)
                job.check_cancelled()
            scores.append([(nats, tokens) for nats, tokens in journal[candidate.name]])
            nats = math.fsum(loss for loss, _ in scores[-1])
            job.metric(
                "held_out_loss",
                nats / max(sum(tokens for _, tokens in scores[-1]), 1),
                candidate=candidate.name,
            )
    return scores


@dataclass(frozen=True, slots=True)
class _SelectionSplit:
    """Record indices for choosing, confirming, and the final report."""

    choosing: Sequence[int]
    confirming: Sequence[int]
    final: Sequence[int]
    halves: bool

    @classmethod
    def of(cls, counted: Sequence[int], share: float | None) -> _SelectionSplit:
        """Split the records; the final part is not used for any choice."""
        if share is None:
            share = _FINAL if len(counted) >= _MIN_SPLIT else 0.0
        final_count = round(len(counted) * share)
        remaining = counted[: len(counted) - final_count]
        final = counted[len(counted) - final_count :]
        halves = len(remaining) >= _MIN_HALVED
        if not halves:
            return cls(remaining, remaining, final, halves)
        return cls(remaining[::2], remaining[1::2], final, halves)


def _choose_candidate(
    candidates: Sequence[MergeCandidate],
    scores: Sequence[Sequence[Score]],
    counted: Sequence[int],
    select: SelectionSettings,
    seed: int,
) -> tuple[int, dict[str, Any]]:
    """Return the index of the selected candidate, and the details of the choice."""
    parts = _SelectionSplit.of(counted, select.test_share)
    on_choosing = [mean_over_records(losses, parts.choosing) for losses in scores]
    parents = [index for index, candidate in enumerate(candidates) if candidate.parent is not None]
    # Parents come first and min returns the first of equals: a merge must be strictly better.
    best = min(range(len(candidates)), key=lambda index: on_choosing[index])
    best_parent = min(parents, key=lambda index: on_choosing[index])
    selected, difference = best, None
    if best not in parents:
        difference = _compare(scores[best], scores[best_parent], parts.confirming, seed)
        if mean_over_records(scores[best], parts.confirming) >= mean_over_records(
            scores[best_parent], parts.confirming
        ):
            selected = best_parent
    judged = [*parts.choosing, *parts.confirming] if parts.halves else parts.choosing
    rows = [
        build_score_row(candidate.name, losses, sorted(judged), seed)
        | {
            "is_merge": candidate.parent is None,
            "choosing": mean_over_records(losses, parts.choosing),
            "confirming": mean_over_records(losses, parts.confirming),
        }
        for candidate, losses in zip(candidates, scores, strict=True)
    ]
    return selected, {
        "candidates": rows,
        "kept": candidates[selected].name,
        "helped": selected not in parents,
        "best_parent": candidates[best_parent].name,
        "difference": difference,
        "confirmed_on_other_records": parts.halves,
        "records": {"choosing": len(parts.choosing), "confirming": len(parts.confirming)},
        **_score_final(candidates, scores, parts, (selected, best_parent), seed),
    }


def _score_final(
    candidates: Sequence[MergeCandidate],
    scores: Sequence[Sequence[Score]],
    parts: _SelectionSplit,
    selection: tuple[int, int],
    seed: int,
) -> dict[str, Any]:
    """Return the scores of the selected candidate and the best parent on the final records."""
    if not parts.final:
        return {}
    selected, best_parent = selection
    rows = [
        build_score_row(candidates[index].name, scores[index], parts.final, seed)
        for index in selection
    ]
    difference = None
    if selected != best_parent:
        difference = _compare(scores[selected], scores[best_parent], parts.final, seed)
    return {
        "final": {
            "kept": rows[0],
            "best_parent": rows[1],
            "difference": difference,
            "records": len(parts.final),
        }
    }


def format_selection(details: Mapping[str, Any]) -> str:
    """Return the outcome in a sentence, for the card."""
    if "left_out" in details:
        return f"No merge was judged: {details['left_out']}. Kept as it is: {details['kept']}."
    helped = "did" if details["helped"] else "did not"
    return (
        f"Kept of {len(details['candidates'])} candidates: {details['kept']}. "
        f"Merging {helped} lower the held-out loss."
    )


def _format_final(final: Mapping[str, Any]) -> str:
    """Return the scores on the final records as a sentence."""
    text = (
        f"on {final['records']} records not used for the choice: loss {final['kept']['loss']:.4f}"
    )
    gap = final["difference"]
    if gap is None:
        return text
    return (
        f"{text}, best parent {final['best_parent']['loss']:.4f}, difference {gap['value']:+.4f} "
        f"[{gap['low']:+.4f}, {gap['high']:+.4f}]"
    )


def _compare(
    scores: Sequence[Score], parent_scores: Sequence[Score], indices: Sequence[int], seed: int
) -> dict[str, Any]:
    return paired_difference(
        [mean_per_token(scores[i]) for i in indices],
        [mean_per_token(parent_scores[i]) for i in indices],
        seed=seed,
        name="loss against the best parent",
    ).to_json()
