"""Pipeline inputs: train/validation (held-out) split of documents by hash, order of work items.

A file of records that marks test rows keeps its own split: these make no training records, and
held-out ones up to the recipe's share, which rows without a split only fill up.
Records without documents are split by ``train.data``. Both depend on hashes of ids and the seed,
not on the order of files or, but for such a file, the number of documents. Documents with the same
text are on the same side, by the hash of the text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING

from stillroom.errors import DataError
from stillroom.provenance import digest_json, digest_text
from stillroom.records import Passage, Record
from stillroom.synth.interfaces import FilterContext
from stillroom.synth.lexical_overlap import extract_content_stems
from stillroom.synth.model_pool import ModelPool
from stillroom.synth.pipeline.steps import GenerateStep, GeneratorPipeline
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
    from stillroom.synth.jobs.records import RecordsRecipe

__all__ = [
    "DocumentFrequency",
    "PipelineInputs",
    "find_duplicate_documents",
    "iter_draws",
    "iter_work_items",
    "list_train_items",
    "order_items",
    "read_inputs",
    "split_documents",
    "split_items",
]

_HASH_RANGE = 1 << 64


class DocumentFrequency(Mapping[str, int]):
    """Number of items that contain each word stem; counted on first use, as few filters need it."""

    def __init__(self, items: Iterable[SeedItem]) -> None:
        self._items = items

    def __getitem__(self, stem: str) -> int:
        return self._counts[stem]

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
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
    """Return the side of each document of the items; documents with the same text share one."""
    parts: dict[str, list[SeedItem]] = {}
    for item in items:
        parts.setdefault(get_document_id(item), []).append(item)
    # without a held-out side, no copies can be separated
    copies = find_duplicate_documents(parts) if held_out > 0 else {}
    return split_documents(parts, held_out, seed, copies)


def find_duplicate_documents(parts: Mapping[str, Sequence[SeedItem]]) -> dict[str, str]:
    """Return a common key for each document whose text equals another's.

    Texts are compared without case and white space.
    """
    by_digest: dict[str, list[str]] = {}
    for document, items in parts.items():
        if text := "".join(fold_text(_reconstruct_text(items)).split()):
            by_digest.setdefault(digest_text(text), []).append(document)
    duplicates = {
        digest: documents for digest, documents in by_digest.items() if len(documents) > 1
    }
    return {document: digest for digest, documents in duplicates.items() for document in documents}


def _reconstruct_text(items: Sequence[SeedItem]) -> str:
    """Return a document's text as covered by its passages; without any, the text of its items."""
    passages = [item for item in items if isinstance(item, Passage)]
    if not passages:
        return "\n".join(map(get_item_text, items))
    texts, end = [], 0
    for passage in sorted(passages, key=lambda passage: (passage.start, passage.end)):
        texts.append(passage.text[max(end - passage.start, 0) :])
        end = max(end, passage.end)
    return "".join(texts)


def split_documents(
    ids: Collection[str], held_out: float, seed: int, copies: Mapping[str, str] | None = None
) -> dict[str, Split]:
    """Return the side of each document.

    A document is held out if its hash falls into the given share, so that adding or removing
    documents never moves another. The one exception keeps both sides non-empty: if all documents
    fall on one side, the one with the lowest hash (or, for an empty training side, the highest)
    changes sides. A single document is for training. A share of 0 holds nothing out.

    Args:
        ids: Ids of the documents.
        held_out: Share to hold out.
        seed: Seed of the split.
        copies: Keys for documents with equal texts, used instead of their ids.
    """
    units = {document: (copies or {}).get(document, document) for document in ids}
    positions = {unit: _hash_position(unit, seed, "split") for unit in units.values()}
    split: dict[str, Split] = {
        unit: "held_out" if position_of_unit < held_out else "train"
        for unit, position_of_unit in positions.items()
    }
    by_position = sorted(positions, key=lambda unit: (positions[unit], unit))
    if split and "train" not in split.values():
        split[by_position[-1]] = "train"
    elif held_out > 0 and len(split) > 1 and "held_out" not in split.values():
        split[by_position[0]] = "held_out"
    return {document: split[unit] for document, unit in units.items()}


def order_items(items: Iterable[SeedItem], seed: int) -> list[SeedItem]:
    """Order the items so that every prefix is spread over documents and within them.

    Documents, and the items of each, are in hash order; one item of every document precedes the
    second of any.
    """
    by_document: dict[str, list[SeedItem]] = {}
    for item in items:
        by_document.setdefault(get_document_id(item), []).append(item)
    columns = [
        sorted(by_document[document], key=lambda item: (_hash_position(item.id, seed), item.id))
        for document in sorted(
            by_document, key=lambda name: (_hash_position(name, seed, "order"), name)
        )
    ]
    rounds = zip_longest(*columns)
    return [item for row in rounds for item in row if item is not None]


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
    """Inputs of a recipe, split into sides, and the number of passages that contain each word."""

    sources: Mapping[str, SeedSet]
    sides: Mapping[str, Split]
    items: Mapping[tuple[str, Split], list[SeedItem]]
    frequency: Mapping[str, int]

    def context(self, models: ModelPool, held_out: Sequence[Record], seed: int) -> FilterContext:
        """Return the context of the filters."""
        by_id = {
            passage.id: passage for source in self.sources.values() for passage in source.passages
        }
        return FilterContext(by_id, self.frequency, held_out, models, seed)


def read_inputs(recipe: RecordsRecipe) -> PipelineInputs:
    """Read the inputs of a recipe; a document is on one side of the split in all of them.

    Raises:
        DataError: If a file is missing or invalid, has no items of an accepted kind, or has test
            rows alone (``synth.test-seeds``) where a step makes records of it.
    """
    sources: dict[str, SeedSet] = {}
    for name, reference in (("index", recipe.index), ("seeds", recipe.seeds)):
        if reference:
            sources[name] = read_seeds(reference, _find_accepted_kinds(recipe, name))
    all_items = [item for source in sources.values() for item in source.items]
    made = _find_made_sources(recipe)
    own = _find_own_sides(sources)
    _refuse_test_rows([source for name, source in sources.items() if name in made], own)
    if all(own.get(get_document_id(item)) == "held_out" for item in all_items):
        own = {}  # what only filters may filter test rows
    if own and recipe.held_out:
        sides = own | _split_rest(sources, own, recipe)
    else:
        sides = split_items(all_items, recipe.held_out, recipe.seed)
    surplus = {name: _find_surplus(sources[name], own, recipe) for name in made & sources.keys()}
    items: dict[tuple[str, Split], list[SeedItem]] = {}
    for name, source in sources.items():
        left_out = surplus.get(name, ())
        used = [item for item in source.items if get_document_id(item) not in left_out]
        if count := len(source.items) - len(used):
            reason = "test rows beyond the share of held_out"
            sources[name] = replace(source, dropped={**source.dropped, reason: count})
        for split in _SPLITS:
            side_items = (item for item in used if sides[get_document_id(item)] == split)
            items[name, split] = order_items(side_items, recipe.seed)
    if any(surplus.values()):
        kept = {get_document_id(item) for part in items.values() for item in part}
        sides = {document: side for document, side in sides.items() if document in kept}
    return PipelineInputs(sources, sides, items, DocumentFrequency(all_items))


def _find_made_sources(recipe: RecordsRecipe) -> set[str]:
    """Return the names of the sources that records are made of, not filtered alone."""
    made: set[str] = set()
    pending = [key for key, step in recipe.steps.items() if isinstance(step, GenerateStep)]
    while pending:
        for source in recipe.sources.get(pending.pop(), ()):
            if source not in made:
                made.add(source)
                pending.append(source)
    return made


def _split_rest(
    sources: Mapping[str, SeedSet], own: Mapping[str, Split], recipe: RecordsRecipe
) -> dict[str, Split]:
    """Split the documents whose side no file names.

    Those beside test rows are held out only as far as these do not make up the share.
    """
    parts: dict[str, list[SeedItem]] = {}
    shares: dict[str, float] = {}
    for source in sources.values():
        documents, num_tests = _count_own_tests(source, own)
        rest = documents - own.keys()
        missing = recipe.held_out * len(documents) - num_tests
        share = min(max(missing, 0) / len(rest), recipe.held_out) if rest else 0
        for document in rest:
            shares[document] = min(share, shares.get(document, share))
        for item in source.items:
            if (document := get_document_id(item)) in rest:
                parts.setdefault(document, []).append(item)
    copies = find_duplicate_documents(parts)
    for document, copy in copies.items():
        shares[copy] = min(shares[document], shares.get(copy, 1))
    by_share: dict[float, list[str]] = {}
    for document in parts:
        by_share.setdefault(shares[copies.get(document, document)], []).append(document)
    sides: dict[str, Split] = {}
    for share, documents_of_share in by_share.items():
        sides |= split_documents(documents_of_share, share, recipe.seed, copies)
    return sides


def _find_surplus(source: SeedSet, own: Mapping[str, Split], recipe: RecordsRecipe) -> set[str]:
    """Return a file's own test documents beyond the recipe's share, by hash order."""
    documents, num_tests = _count_own_tests(source, own)
    tests = sorted(
        (document for document in documents if own.get(document) == "held_out"),
        key=lambda document: (_hash_position(document, recipe.seed, "split"), document),
    )
    share = recipe.held_out
    room = max(round(share / (1 - share) * (len(documents) - num_tests)), 1) if share else 0
    return set(tests[room:])


def _count_own_tests(source: SeedSet, own: Mapping[str, Split]) -> tuple[set[str], int]:
    """Return the documents of a source, and how many of them have test rows."""
    documents = {get_document_id(item) for item in source.items}
    return documents, sum(own.get(document) == "held_out" for document in documents)


def _find_own_sides(sources: Mapping[str, SeedSet]) -> dict[str, Split]:
    """Return the sides of documents that the files themselves name.

    A document with a test row, or with the text of one that has, is held out; one with the text of
    a training document is trained on. Files without test rows are split as others.
    """
    parts: dict[str, list[SeedItem]] = {}
    named: dict[str, set[Split]] = {}
    for source in sources.values():
        for item in source.items:
            document = get_document_id(item)
            parts.setdefault(document, []).append(item)
            if side := source.splits.get(item.id):
                named.setdefault(document, set()).add(side)
    if not any("held_out" in sides for sides in named.values()):
        return {}
    copies = find_duplicate_documents(parts)
    tests = {copies.get(name, name) for name, sides in named.items() if "held_out" in sides}
    marked = {copies.get(name, name) for name in named}
    own: dict[str, Split] = {
        name: "held_out" if copies.get(name, name) in tests else "train"
        for name in parts
        if copies.get(name, name) in marked
    }
    return own


def _refuse_test_rows(sources: Iterable[SeedSet], own: Mapping[str, Split]) -> None:
    """Refuse sources of test rows alone: they make no training records."""
    for source in sources:
        if all(own.get(get_document_id(item)) == "held_out" for item in source.items):
            raise DataError(
                f"all seeds of {source.path} are test rows: they make no training records",
                code="synth.test-seeds",
                where=str(source.path),
                expected="rows whose field 'split' is train, or names no split",
                next="name a file of training rows; or remove the field, if these are no test rows",
            )


def _find_accepted_kinds(recipe: RecordsRecipe, name: str) -> tuple[SeedKind, ...]:
    """Return the kinds of items to read from a source."""
    if isinstance(recipe.pipeline, GeneratorPipeline):
        kinds = recipe.pipeline.generator.seed_kinds
        if name == "index" and "passages" in kinds:  # the texts of records serve as passages here
            return tuple(kind for kind in kinds if kind != "records")
        return kinds
    if name == "index":
        return ("passages",)
    accepted: dict[SeedKind, None] = {}
    for key, step in recipe.steps.items():
        if name not in recipe.sources[key]:
            continue
        kinds = step.generator.seed_kinds if isinstance(step, GenerateStep) else ("records",)
        accepted |= dict.fromkeys(kind for kind in kinds if kind in _KINDS)
        if "passages" in kinds:
            accepted["records"] = None  # their texts serve as passages
    return tuple(accepted)


def list_train_items(inputs: PipelineInputs) -> list[SeedItem]:
    """Return the training side's items, source by source."""
    return [item for (_, side), items in inputs.items.items() if side == "train" for item in items]
