"""Pipeline inputs: train and held-out split by document hash, and the order of work items.

Both follow from hashes of ids and the seed: not from the order of files, nor from the number of
documents. Documents that say the same stand on one side, by the hash of what they say. Knows
nothing of models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING

from stillroom.provenance import digest_json, digest_text
from stillroom.records import Passage, Record
from stillroom.synth.interfaces import FilterContext
from stillroom.synth.lexical_overlap import extract_content_stems
from stillroom.synth.model_pool import ModelPool
from stillroom.synth.pipeline.graph import GraphStep
from stillroom.synth.seeds import SeedSet, read_seeds
from stillroom.synth.types import (
    NoSeed,
    SeedItem,
    SeedKind,
    Split,
    WorkItem,
    get_document_id,
    get_item_text,
)
from stillroom.text.unicode import fold_text

if TYPE_CHECKING:
    from stillroom.synth.recipe import SynthRecipe

__all__ = [
    "DocumentFrequency",
    "PipelineInputs",
    "SplitPlan",
    "find_duplicate_documents",
    "iter_draws",
    "iter_work_items",
    "list_seed_texts",
    "order_items",
    "read_inputs",
    "split_documents",
    "split_items",
]


_HASH_RANGE = 1 << 64


class DocumentFrequency(Mapping[str, int]):
    """In how many items each word's stem occurs; counted when first asked, since few filters do."""

    def __init__(self, items: Iterable[SeedItem]) -> None:
        """Take the items; nothing is read yet."""
        self._items = items

    def __getitem__(self, stem: str) -> int:
        """Return the number of items with a stem."""
        return self._counts[stem]

    def __iter__(self) -> Iterator[str]:
        """Yield the stems."""
        return iter(self._counts)

    def __len__(self) -> int:
        """Return how many stems there are."""
        return len(self._counts)

    def __reduce__(self) -> tuple[type[dict[str, int]], tuple[dict[str, int]]]:
        """Send the counts to workers, not the items."""
        return dict, (dict(self._counts),)

    @cached_property
    def _counts(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for item in self._items:
            counts.update(set(extract_content_stems(get_item_text(item))))
        return counts


def split_items(items: Iterable[SeedItem], held_out: float, seed: int) -> dict[str, Split]:
    """Return on which side each document of the items stands, those that say the same on one."""
    parts: dict[str, list[SeedItem]] = {}
    for item in items:
        parts.setdefault(get_document_id(item), []).append(item)
    copies = (
        find_duplicate_documents(parts) if held_out > 0 else {}
    )  # where nothing is held out, none is apart
    return split_documents(parts, held_out, seed, copies)


def find_duplicate_documents(parts: Mapping[str, Sequence[SeedItem]]) -> dict[str, str]:
    """Return what names the text of each document that says the same as another.

    Letters count, not their case nor the white space between them.

    Args:
        parts: What is known of each document: its passages, or its records.
    """
    said: dict[str, list[str]] = {}
    for document, items in parts.items():
        if text := "".join(fold_text(_reconstruct_text(items)).split()):
            said.setdefault(digest_text(text), []).append(document)
    alike = {digest: documents for digest, documents in said.items() if len(documents) > 1}
    return {document: digest for digest, documents in alike.items() for document in documents}


def _reconstruct_text(items: Sequence[SeedItem]) -> str:
    """Return a document's text, as far as its passages cover it; without any, what items say."""
    passages = [item for item in items if isinstance(item, Passage)]
    if not passages:
        return "\n".join(map(get_item_text, items))
    texts, end = [], 0
    for passage in sorted(passages, key=lambda one: (one.start, one.end)):
        texts.append(passage.text[max(end - passage.start, 0) :])
        end = max(end, passage.end)
    return "".join(texts)


def split_documents(
    ids: Collection[str], held_out: float, seed: int, copies: Mapping[str, str] | None = None
) -> dict[str, Split]:
    """Return on which side each document stands.

    A document is held out when its hash falls into the given share, so that adding or removing
    documents never moves another. The one exception keeps both sides non-empty: where all documents
    fall on one side, that with the lowest hash (or, to have something to train on, the highest)
    changes sides. A single one is trained on. A share of 0 holds nothing out.

    Args:
        ids: The documents.
        held_out: The share that is held out.
        seed: Another one splits otherwise.
        copies: What to go by for documents that say the same, instead of their ids.
    """
    units = {document: (copies or {}).get(document, document) for document in ids}
    position = {unit: _hash_position(unit, seed, "split") for unit in units.values()}
    split: dict[str, Split] = {
        unit: "held_out" if place < held_out else "train" for unit, place in position.items()
    }
    by_position = sorted(position, key=lambda unit: (position[unit], unit))
    if split and "train" not in split.values():
        split[by_position[-1]] = "train"
    elif held_out > 0 and len(split) > 1 and "held_out" not in split.values():
        split[by_position[0]] = "held_out"
    return {document: split[unit] for document, unit in units.items()}


def order_items(items: Iterable[SeedItem], seed: int) -> list[SeedItem]:
    """Return the items so that every prefix is spread over documents and over their length.

    Documents and the items of each stand in hashed order; one item of every document comes before a
    second of any.
    """
    by_document: dict[str, list[SeedItem]] = {}
    for item in items:
        by_document.setdefault(get_document_id(item), []).append(item)
    columns = [
        sorted(by_document[document], key=lambda item: _sort_key(item.id, seed))
        for document in sorted(
            by_document, key=lambda name: (_hash_position(name, seed, "order"), name)
        )
    ]
    rounds = zip_longest(*columns)
    return [item for row in rounds for item in row if item is not None]


def _sort_key(name: str, seed: int) -> tuple[float, str]:
    return _hash_position(name, seed), name


def iter_work_items(
    items: Sequence[SeedItem], split: Split, *, seed: int, attempts: int
) -> Iterator[WorkItem]:
    """Yield every unit of one side in order: all items once, then all again, and so on."""
    for attempt in range(attempts):
        for item in items:
            yield WorkItem(item, split, attempt, seed)


def iter_draws(split: Split, *, seed: int, count: int) -> Iterator[WorkItem]:
    """Yield ``count`` numbered draws of one side."""
    for number in range(count):
        yield WorkItem(NoSeed(split, number), split, 0, seed)


def _hash_position(*parts: object) -> float:
    return int(digest_json(parts)[:16], 16) / _HASH_RANGE


_SPLITS: tuple[Split, ...] = ("held_out", "train")
_KINDS: tuple[SeedKind, ...] = ("records", "topics")


@dataclass(frozen=True, slots=True)
class PipelineInputs:
    """What a graph starts from, split into sides, and how many passages each word occurs in."""

    sources: Mapping[str, SeedSet]
    sides: Mapping[str, Split]
    items: Mapping[tuple[str, Split], list[SeedItem]]
    frequency: Mapping[str, int]

    def context(self, models: ModelPool, held_out: Sequence[Record], seed: int) -> FilterContext:
        """Return what filters may know."""
        by_id = {one.id: one for source in self.sources.values() for one in source.passages}
        return FilterContext(by_id, self.frequency, held_out, models, seed)


def read_inputs(recipe: SynthRecipe) -> PipelineInputs:
    """Read what a graph starts from; documents stand on one side of the split in all of it.

    Raises:
        DataError: If a file is missing or broken, or holds nothing of the kind that is taken.
    """
    sources: dict[str, SeedSet] = {}
    for name, place in (("index", recipe.index), ("seeds", recipe.seeds)):
        takers = [step for key, step in recipe.steps.items() if name in recipe.sources[key]]
        if place and takers:
            sources[name] = read_seeds(place, _accepted_kinds(name, takers))
    read = [item for source in sources.values() for item in source.items]
    sides = split_items(read, recipe.held_out, recipe.seed)
    items: dict[tuple[str, Split], list[SeedItem]] = {}
    for name, source in sources.items():
        for split in _SPLITS:
            mine = (item for item in source.items if sides[get_document_id(item)] == split)
            items[name, split] = order_items(mine, recipe.seed)
    return PipelineInputs(sources, sides, items, DocumentFrequency(read))


def _accepted_kinds(name: str, takers: Sequence[GraphStep]) -> tuple[SeedKind, ...]:
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


def list_seed_texts(start: PipelineInputs) -> list[str]:
    """Return the texts that training records start from."""
    return [
        get_item_text(item)
        for (_, side), items in start.items.items()
        if side == "train"
        for item in items
    ]


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """Inputs of a run: its seeds, the split of each group, and what filters compare with."""

    source: SeedSet | None
    sides: Mapping[str, Split]
    items: Mapping[Split, list[SeedItem]]
    frequency: Mapping[str, int]

    def context(
        self, models: ModelPool, held_out: Sequence[Record] = (), seed: int = 0
    ) -> FilterContext:
        """Return the filters' context for one split."""
        by_id = {passage.id: passage for passage in self.source.passages} if self.source else {}
        return FilterContext(by_id, self.frequency, held_out, models, seed)
