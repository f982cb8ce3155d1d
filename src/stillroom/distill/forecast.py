"""What a job will keep of its teacher, ask of a server and write itself, said before it does.

Bytes follow from counted tokens. How far what is kept is from the teacher is measured where the
teacher may be loaded, and bounded where it may not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from stillroom.distill.cache_probe import CacheCost
from stillroom.distill.preflight import Finding
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.sizing import Sizes
from stillroom.distill.teacher_settings import ServerTeacher

__all__ = ["forecast"]


def forecast(recipe: DistillRecipe, probe: Callable[[], CacheCost | None]) -> list[Finding]:
    """Return what is kept, asked for and written, as findings.

    Args:
        recipe: Of the job.
        probe: Measures what a cache misses; gives None where the teacher may not be loaded.
    """
    sizes = Sizes(recipe)
    return [*_of_cache(sizes, probe), *_of_server(sizes), *_of_rollouts(sizes)]


def _of_cache(sizes: Sizes, probe: Callable[[], CacheCost | None]) -> list[Finding]:
    recipe = sizes.recipe
    if not sizes.cache_bytes or not sizes.cache_rows:
        return []
    cost = probe() if recipe.crossing is None else None
    each = sizes.cache_bytes / sizes.cache_rows
    said = (
        f"about {each:.1f} bytes a token that is learned, {sizes.cache_bytes / 1e6:.2f} MB in all"
    )
    is_here = isinstance(recipe.teacher, str)
    return [Finding("ok" if is_here else "note", "teacher cache", f"{said}; {_bias(sizes, cost)}")]


def _bias(sizes: Sizes, cost: CacheCost | None) -> str:
    """Return in words what the form of the targets leaves out."""
    targets = sizes.recipe.targets
    if sizes.recipe.crossing is not None:
        return "the own tokens' log-probabilities, nothing left out"
    if targets.mode == "dense":
        return f"whole distributions, rounded to {targets.logprob_dtype}"
    measured = "" if cost is None else f" (measured on {cost.probed} positions)"
    if targets.mode == "sampled":
        # of draws with replacement; distinct ones are nearer
        noise = 1 / math.sqrt(targets.samples) if cost is None else cost.noise or 0.0
        most = "at most " if cost is None else ""
        return f"no bias, and noise of {most}{noise:.3f} in a position's gradient{measured}"
    if cost is not None and cost.outside is not None:
        return f"{cost.outside:.2%} of the teacher's mass lies outside it{measured}, as one outcome"
    least = min(targets.k, sizes.vocabulary) / sizes.vocabulary
    return (
        f"at most {1 - least:.2%} of the teacher's mass lies outside it, as one outcome; how much "
        "it is, stillroom distill preflight RECIPE measures"
    )


def _of_server(sizes: Sizes) -> list[Finding]:
    """Say what servers are asked for: prompts are paid for."""
    recipe, counted = sizes.recipe, sizes.counted
    teacher = recipe.teacher
    shares = [one.teacher for one in teacher] if isinstance(teacher, tuple) else [teacher]
    served = [one for one in shares if isinstance(one, ServerTeacher)]
    if not served or recipe.teacher_only_writes:
        return []
    count, written = sizes.rollouts
    policy, asks = recipe.rollouts, recipe.method.asks_teacher or recipe.crossing is not None
    keeps = asks and (policy is None or policy.learns_from_records)
    times = 2 if asks and recipe.method.needs_scores else 1
    held = min(recipe.fidelity.records, counted.held_out)
    texts = counted.records * keeps + held + count * times
    tokens = round(
        counted.tokens * keeps
        + held * counted.mean
        + times * (count * max(counted.mean - counted.answer, 0) + written)
    )
    price = sum(one.price_per_million for one in served) * tokens / 1e6
    cost = f", which cost about {price:.3g}" if price else ""
    return [
        Finding("note", "server", f"asked for {texts} texts of about {tokens} tokens in all{cost}")
    ]


def _of_rollouts(sizes: Sizes) -> list[Finding]:
    count, tokens = sizes.rollouts
    if not count:
        return []
    minutes = sizes.work()["writing rollouts"] / sizes.speed / 60
    said = f"at most {count} texts are written, {tokens} tokens: about {minutes:.1f} min"
    return [Finding("ok", "rollouts", said)]
