"""Selection: is any merge better than its parents, on records that none was trained on?

Every candidate is scored by the loss on the assistant's tokens. The best is chosen on one half of
the records and confirmed on the other, so that choosing the luckiest of many does not pass for
progress. Where no merge is confirmed, the best parent is kept as it is, and the artifact says so.
Knows loss only: a lower loss is not yet a better answer.
"""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.evaluate.metrics import bootstrap, paired_difference
from stillroom.jobs import Job
from stillroom.merge.method import METHODS
from stillroom.merge.plan import Rules
from stillroom.merge.recipe import MergeRecipe, SelectSettings
from stillroom.merge.sources import Source, find_run
from stillroom.merge.stream import Merge
from stillroom.provenance import digest_json
from stillroom.records import Record

__all__ = ["Candidate", "count_candidates", "list_candidates", "select_merge"]

Loss = tuple[float, int]
_DEFAULT_MIXES = (0.5, 0.75)
_LEAST_HALVED = 8


@dataclass(frozen=True)
class Candidate:
    """One checkpoint that may be kept: a parent as it is, or a merge."""

    name: str
    merge: Merge
    parent: Source | None = None


def select_merge(recipe: MergeRecipe, merge: Merge, job: Job) -> tuple[Merge, dict[str, Any]]:
    """Score all candidates and return the merge to make, with what to tell about the choice.

    Raises:
        DataError: If fewer than two records have a token to be judged by.
        Cancelled: If the user stopped it; scores that are done stay done.
    """
    if recipe.select is None:
        raise ValueError("the recipe selects nothing")
    records = _draw_records(recipe.select, recipe.seed, job)
    candidates = list_candidates(recipe, merge)
    left = len(find_run(_finals(recipe, merge.parents)[0]))
    skipped = [count for count in recipe.select.averages if count > left]
    if skipped:
        job.say(f"the run left {left} checkpoints: no average of the last {skipped} is tried")
    scores = _score_all(candidates, records, recipe.select, job)
    counted = [at for at in range(len(records)) if all(loss[at][1] for loss in scores)]
    if len(counted) < 2:
        raise DataError(
            f"{len(counted)} of {len(records)} records have an assistant's token to judge by",
            code="merge.no-records",
            where=recipe.select.records,
            expected="at least 2 conversations with an answer",
            next="choose other records, or raise select.max_tokens",
        )
    kept, details = _choose(candidates, scores, counted, recipe.seed)
    job.say(
        f"kept {candidates[kept].name}: "
        + ("merging lowered" if details["helped"] else "merging did not lower")
        + " the held-out loss"
    )
    return candidates[kept].merge, details | {"skipped_averages": skipped}


def list_candidates(recipe: MergeRecipe, merge: Merge) -> list[Candidate]:
    """Return all candidates of a recipe: parents first, then averages, mixes and the merge."""
    finals = _finals(recipe, merge.parents)
    sources = [*([merge.base] if merge.base else []), *finals]
    found = [_as_it_is(source, merge.rules) for source in sources]
    name = recipe.method.method_name()
    run = find_run(finals[0])
    for count in recipe.select.averages if recipe.select else ():
        average = Merge(METHODS.build("run_average"), None, run[-count:], merge.rules, merge.seed)
        if count <= len(run) and not _is_same(average, merge):
            found.append(Candidate(f"average of the last {count} of {finals[0].name}", average))
    if merge.base is not None:
        found += [
            Candidate(f"{name} at {share:g}", replace(merge, share=share))
            for share in _mixes(recipe)
        ]
    if _is_new(recipe, merge):
        found.append(Candidate(name, merge))
    seen: dict[str, int] = {}
    for at, candidate in enumerate(found):
        seen[candidate.name] = seen.get(candidate.name, 0) + 1
        if seen[candidate.name] > 1:
            found[at] = replace(candidate, name=f"{candidate.name} ({seen[candidate.name]})")
    return found


def count_candidates(recipe: MergeRecipe) -> int:
    """Return how many candidates a recipe will score, without opening any; at most one too many."""
    if recipe.select is None:
        return 0
    parents = len(recipe.models) + (recipe.base is not None)
    return parents + len(recipe.select.averages) + len(_mixes(recipe)) + 1


def _mixes(recipe: MergeRecipe) -> tuple[float, ...]:
    if recipe.base is None or recipe.select is None:
        return ()
    return _DEFAULT_MIXES if recipe.select.mixes is None else recipe.select.mixes


def _finals(recipe: MergeRecipe, parents: Sequence[Source]) -> list[Source]:
    """Return the final checkpoint of each model, leaving out those along its run."""
    counts = (max(entry.along_run, 1) for entry in recipe.models)
    return [parents[stop - 1] for stop in accumulate(counts)]


def _is_same(one: Merge, other: Merge) -> bool:
    """Whether two merges are sure to give the same bytes."""
    ours = [(each.checkpoint.folder, each.weight, each.density) for each in one.parents]
    theirs = [(each.checkpoint.folder, each.weight, each.density) for each in other.parents]
    return one.method == other.method and ours == theirs


def _is_new(recipe: MergeRecipe, merge: Merge) -> bool:
    """Whether the merge itself differs from its one parent."""
    return len(merge.parents) > 1 or recipe.method.method_name() not in {"linear", "passthrough"}


def _as_it_is(source: Source, rules: Rules) -> Candidate:
    copy = Merge(METHODS.build("passthrough"), None, [source], Rules(dtype=rules.dtype))
    return Candidate(source.name, copy, source)


def _draw_records(select: SelectSettings, seed: int, job: Job) -> list[Record]:
    """Return the records that judge, in an order that the seed and their ids set."""
    from stillroom.evaluate.questions import find_records
    from stillroom.records import read_records

    path = find_records(Path(select.records))
    dropped: list[int] = []
    fitting = {
        record.id: record
        for record in read_records(path, on_drop=lambda row, why: dropped.append(row))
        if not select.split or record.fields.get("split") == select.split
    }
    if dropped:
        job.say(f"{len(dropped)} rows of {path.name} cannot be read and do not judge")
    if not fitting:
        raise DataError(
            f"no record has fields.split '{select.split}'",
            code="merge.no-records",
            where=str(path),
            expected="records that no model was trained on",
            next="set select.split to another split, or to '' for all records",
        )
    drawn = sorted(fitting, key=lambda each: digest_json([seed, each]))[: select.max_records]
    return [fitting[each] for each in drawn]


def _score_all(
    candidates: Sequence[Candidate], records: Sequence[Record], select: SelectSettings, job: Job
) -> list[list[Loss]]:
    journal = job.journal("scores")
    scores: list[list[Loss]] = []
    done = sum(candidate.name in journal for candidate in candidates)
    with job.phase("score", len(candidates), "candidates", done=done) as progress:
        for candidate in candidates:
            if candidate.name not in journal:
                losses, cut = _score(candidate, records, select, job)
                if cut:
                    job.say(f"{cut} records were longer than {select.max_tokens} tokens and cut")
                journal.put(candidate.name, losses)
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


def _score(
    candidate: Candidate, records: Sequence[Record], select: SelectSettings, job: Job
) -> tuple[list[Loss], int]:
    """Return the loss of each record, and how many records were cut."""
    from stillroom.evaluate.loss import held_out_loss
    from stillroom.models import load_causal_lm

    scratch = job.scratch / "candidate"
    if candidate.parent is not None:
        folder = candidate.parent.checkpoint.folder
    else:
        candidate.merge.write(scratch)
        folder = scratch
    cut: list[int] = []
    try:
        model, tokenizer = load_causal_lm(folder, dtype="float32")
        losses = held_out_loss(
            model,
            tokenizer,
            records,
            max_tokens=select.max_tokens,
            batch_tokens=select.batch_tokens,
            on_truncated=lambda at, tokens: cut.append(at),
        )
        del model
        gc.collect()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return losses, len(cut)


def _choose(
    candidates: Sequence[Candidate],
    scores: Sequence[Sequence[Loss]],
    counted: Sequence[int],
    seed: int,
) -> tuple[int, dict[str, Any]]:
    """Return the number of the candidate to keep, and the details of the choice."""
    halves = len(counted) >= _LEAST_HALVED
    choosing = counted[::2] if halves else counted
    confirming = counted[1::2] if halves else counted
    on_choosing = [_mean(losses, choosing) for losses in scores]
    parents = [at for at, candidate in enumerate(candidates) if candidate.parent is not None]
    # Parents stand first, and min takes the first of equals: a merge has to be better, not as good.
    best = min(range(len(candidates)), key=lambda at: on_choosing[at])
    best_parent = min(parents, key=lambda at: on_choosing[at])
    kept, difference = best, None
    if best not in parents:
        difference = paired_difference(
            [_per_token(scores[best][at]) for at in confirming],
            [_per_token(scores[best_parent][at]) for at in confirming],
            seed=seed,
            name="loss against the best parent",
        )
        if _mean(scores[best], confirming) >= _mean(scores[best_parent], confirming):
            kept = best_parent
    rows = [
        _row(candidate, losses, counted, seed)
        | {"choosing": _mean(losses, choosing), "confirming": _mean(losses, confirming)}
        for candidate, losses in zip(candidates, scores, strict=True)
    ]
    return kept, {
        "candidates": rows,
        "kept": candidates[kept].name,
        "helped": kept not in parents,
        "best_parent": candidates[best_parent].name,
        "difference": difference.to_json() if difference else None,
        "confirmed_on_other_records": halves,
        "records": {"choosing": len(choosing), "confirming": len(confirming)},
    }


def _row(
    candidate: Candidate, losses: Sequence[Loss], counted: Sequence[int], seed: int
) -> dict[str, Any]:
    metric = bootstrap(
        [_per_token(losses[at]) for at in counted],
        weights=[losses[at][1] for at in counted],
        seed=seed,
    )
    low, high = metric.low, metric.high
    return {
        "name": candidate.name,
        "loss": metric.value,
        "low": metric.value if math.isnan(low) else low,
        "high": metric.value if math.isnan(high) else high,
        "n": len(counted),
        "is_merge": candidate.parent is None,
    }


def _per_token(loss: Loss) -> float:
    return loss[0] / loss[1]


def _mean(losses: Sequence[Loss], at: Sequence[int]) -> float:
    return math.fsum(losses[i][0] for i in at) / sum(losses[i][1] for i in at)
