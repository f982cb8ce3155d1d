"""What a graph of steps starts from: items of the index and of the seeds, split into sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stillroom.records import Record
from stillroom.synth.graph import Step
from stillroom.synth.items import Item, document_of
from stillroom.synth.lending import Lending
from stillroom.synth.method import Context, SeedKind, Split
from stillroom.synth.plan import Occurrences, order_items, split_items
from stillroom.synth.source import Source, read_items

if TYPE_CHECKING:
    from stillroom.synth.recipe import SynthRecipe

__all__ = ["Start", "read_starts"]

_SPLITS: tuple[Split, ...] = ("held_out", "train")
_KINDS: tuple[SeedKind, ...] = ("records", "topics")


@dataclass(frozen=True, slots=True)
class Start:
    """What a graph starts from, split into sides, and how many passages each word occurs in."""

    sources: Mapping[str, Source]
    sides: Mapping[str, Split]
    items: Mapping[tuple[str, Split], list[Item]]
    frequency: Mapping[str, int]

    def context(self, models: Lending, held_out: Sequence[Record], seed: int) -> Context:
        """Return what filters may know."""
        by_id = {one.id: one for source in self.sources.values() for one in source.passages}
        return Context(by_id, self.frequency, held_out, models, seed)


def read_starts(recipe: SynthRecipe) -> Start:
    """Read what a graph starts from; documents stand on one side of the split in all of it.

    Raises:
        DataError: If a file is missing or broken, or holds nothing of the kind that is taken.
    """
    sources: dict[str, Source] = {}
    for name, place in (("index", recipe.index), ("seeds", recipe.seeds)):
        takers = [step for key, step in recipe.steps.items() if name in recipe.sources[key]]
        if place and takers:
            sources[name] = read_items(place, _wanted_kinds(name, takers))
    read = [item for source in sources.values() for item in source.items]
    sides = split_items(read, recipe.held_out, recipe.seed)
    items: dict[tuple[str, Split], list[Item]] = {}
    for name, source in sources.items():
        for split in _SPLITS:
            mine = (item for item in source.items if sides[document_of(item)] == split)
            items[name, split] = order_items(mine, recipe.seed)
    return Start(sources, sides, items, Occurrences(read))


def _wanted_kinds(name: str, takers: Sequence[Step]) -> tuple[SeedKind, ...]:
    """Return the kinds of items that a start is to be read as."""
    if name == "index":
        return ("passages",)
    kinds: dict[SeedKind, None] = {}
    for step in takers:
        taken = step.generator.takes if step.generator is not None else ("records",)
        kinds |= dict.fromkeys(kind for kind in taken if kind in _KINDS)
        if step.generator is not None and "passages" in taken:
            kinds["records"] = None  # whose texts are passages
    return tuple(kinds)
