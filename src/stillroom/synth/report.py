"""What a synth job says of itself: counts of every step, a refusal, a warning.

Everything here follows from what was kept and dropped: no clock, so that equal work gives equal
bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.errors import DataError
from stillroom.synth.harvest import Dropped, Harvest
from stillroom.synth.items import Item
from stillroom.synth.method import Split
from stillroom.synth.recipe import SynthRecipe
from stillroom.synth.source import Source

__all__ = ["describe_shortfall", "make_report", "refuse_nothing"]


def refuse_nothing(train: Harvest, recipe: SynthRecipe) -> None:
    """Fail where the training side gave no record at all.

    Raises:
        DataError: With the count of every reason.
    """
    if train.kept:
        return
    reasons = "; ".join(f"{count} {reason}" for reason, count in train.count_reasons().items())
    raise DataError(
        f"of {train.asked} asks about {train.units} seeds no training record is kept"
        + (f" ({reasons})" if reasons else ""),
        code="synth.nothing-kept",
        where=recipe.start,
        expected="at least one record that passes every filter",
        next="look at some with: stillroom synth preview RECIPE; then loosen the filter or change "
        "the teacher",
    )


def describe_shortfall(harvest: Harvest, recipe: SynthRecipe, ended: str = "") -> str:
    """Return a warning where fewer records were kept than wanted, or nothing.

    ``ended`` says which bound ended the asking.
    """
    wanted = getattr(recipe.target, harvest.split)
    if len(harvest.kept) >= wanted or (harvest.split == "held_out" and not recipe.held_out):
        return ""
    reasons = list(harvest.count_reasons().items())[:3]
    shown = "; ".join(f"{count} {reason}" for reason, count in reasons) or "nothing to ask about"
    why = ended or (
        f"all seeds were asked about {recipe.attempts} times"
        if recipe.start and not recipe.generator.draws
        else f"there were {recipe.attempts} units for each wanted"
    )
    return (
        f"warning: {len(harvest.kept)} of {wanted} {harvest.split} records kept after "
        f"{harvest.asked} asks ({shown}); {why}"
    )


def make_report(
    recipe: SynthRecipe,
    source: Source | None,
    sides: Mapping[str, Split],
    items: Mapping[Split, Sequence[Item]],
    harvests: Sequence[Harvest],
    texts: int,
    refused: Sequence[Dropped],
) -> dict[str, Any]:
    """Return report.json.

    Args:
        recipe: What was asked for.
        source: The items read, and what fell out in reading; None where nothing was.
        sides: The split of documents.
        items: The items of each side.
        harvests: What each side gave.
        texts: How many passages became records of plain text.
        refused: Passages that a filter refused.
    """
    splits = {}
    for harvest in harvests:
        splits[harvest.split] = {
            "documents": sum(side == harvest.split for side in sides.values()),
            "seeds": len(items[harvest.split]),
            "wanted": getattr(recipe.target, harvest.split),
            "units": harvest.units,
            "asked": harvest.asked,
            "parsed": harvest.parsed,
            "kept": len(harvest.kept),
            "trimmed": harvest.trimmed,
            "dropped": harvest.count_reasons(),
            "prompt_tokens": harvest.prompt_tokens,
            "completion_tokens": harvest.completion_tokens,
            **({"changed": harvest.changed} if harvest.changed else {}),
            **({"measured": dict(harvest.told)} if harvest.told else {}),
            "counts": dict(sorted(harvest.counts.items())),
        }
    reasons = Counter(f"{drop.filter}: {drop.reason}" for drop in refused)
    return {
        "splits": splits,
        "passage_records": {"kept": texts, "dropped": dict(sorted(reasons.items()))},
        "source": {
            "seeds": len(source.items) if source else 0,
            "dropped": dict(source.dropped) if source else {},
        },
        "generator": recipe.generator.model_dump(mode="json"),
        "filters": [chosen.model_dump(mode="json") for chosen in recipe.filters],
    }
