"""Which documents are held out, and in which order items are asked about.

Both follow from hashes of ids and the seed: not from the order of files, nor from the number of
documents. Documents that say the same stand on one side, by the hash of what they say. Knows
nothing of models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import zip_longest

from stillroom.provenance import digest_json, digest_text
from stillroom.records import Passage
from stillroom.synth.items import Blank, Item, document_of, text_of_item
from stillroom.synth.method import Seed, Split
from stillroom.synth.wording import content_stems
from stillroom.text.normalize import fold_text

__all__ = [
    "Occurrences",
    "find_copies",
    "order_items",
    "plan_draws",
    "plan_seeds",
    "split_documents",
    "split_items",
]

_WHOLE = 1 << 64


class Occurrences(Mapping[str, int]):
    """In how many items each word's stem occurs; counted when first asked, since few filters do."""

    def __init__(self, items: Iterable[Item]) -> None:
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
            counts.update(set(content_stems(text_of_item(item))))
        return counts


def split_items(items: Iterable[Item], held_out: float, seed: int) -> dict[str, Split]:
    """Return on which side each document of the items stands, those that say the same on one."""
    parts: dict[str, list[Item]] = {}
    for item in items:
        parts.setdefault(document_of(item), []).append(item)
    copies = find_copies(parts) if held_out > 0 else {}  # where nothing is held out, none is apart
    return split_documents(parts, held_out, seed, copies)


def find_copies(parts: Mapping[str, Sequence[Item]]) -> dict[str, str]:
    """Return what names the text of each document that says the same as another.

    Letters count, not their case nor the white space between them.

    Args:
        parts: What is known of each document: its passages, or its records.
    """
    said: dict[str, list[str]] = {}
    for document, items in parts.items():
        if text := "".join(fold_text(_lay_out(items)).split()):
            said.setdefault(digest_text(text), []).append(document)
    alike = {digest: documents for digest, documents in said.items() if len(documents) > 1}
    return {document: digest for digest, documents in alike.items() for document in documents}


def _lay_out(items: Sequence[Item]) -> str:
    """Return a document's text, as far as its passages cover it; without any, what items say."""
    passages = [item for item in items if isinstance(item, Passage)]
    if not passages:
        return "\n".join(map(text_of_item, items))
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
    position = {unit: _position(unit, seed, "split") for unit in units.values()}
    split: dict[str, Split] = {
        unit: "held_out" if place < held_out else "train" for unit, place in position.items()
    }
    by_position = sorted(position, key=lambda unit: (position[unit], unit))
    if split and "train" not in split.values():
        split[by_position[-1]] = "train"
    elif held_out > 0 and len(split) > 1 and "held_out" not in split.values():
        split[by_position[0]] = "held_out"
    return {document: split[unit] for document, unit in units.items()}


def order_items(items: Iterable[Item], seed: int) -> list[Item]:
    """Return the items so that every prefix is spread over documents and over their length.

    Documents and the items of each stand in hashed order; one item of every document comes before a
    second of any.
    """
    by_document: dict[str, list[Item]] = {}
    for item in items:
        by_document.setdefault(document_of(item), []).append(item)
    columns = [
        sorted(by_document[document], key=lambda item: _placed(item.id, seed))
        for document in sorted(by_document, key=lambda name: (_position(name, seed, "order"), name))
    ]
    rounds = zip_longest(*columns)
    return [item for row in rounds for item in row if item is not None]


def _placed(name: str, seed: int) -> tuple[float, str]:
    return _position(name, seed), name


def plan_seeds(items: Sequence[Item], split: Split, *, seed: int, attempts: int) -> Iterator[Seed]:
    """Yield every unit of one side in order: all items once, then all again, and so on."""
    for attempt in range(attempts):
        for item in items:
            yield Seed(item, split, attempt, seed)


def plan_draws(split: Split, *, seed: int, count: int) -> Iterator[Seed]:
    """Yield ``count`` numbered draws of one side."""
    for number in range(count):
        yield Seed(Blank(split, number), split, 0, seed)


def _position(*parts: object) -> float:
    return int(digest_json(parts)[:16], 16) / _WHOLE
