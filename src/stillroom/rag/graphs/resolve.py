"""Which mentions are one entity: normalized names, plurals, acronyms, and near vectors if asked.

``merge_key`` folds case, width, possessives and the plural of the last word. An acronym stands for
the long form that its own document defines; elsewhere for the one that the other documents agree
on, and where they disagree it stays an entity of its own. Descriptions of one entity are joined.

Does not know: what else two names have in common. ``IBM`` and ``Big Blue`` stay two.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from stillroom.rag.graphs.parts import Entity, SourcePassage, Span

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.extraction import Extraction

__all__ = ["Resolved", "merge_key", "resolve_entities"]

_POSSESSIVE = re.compile(r"['’]s?\b")
_SPACES = re.compile(r"[\s\-‐-―]+")
_NUMBER = re.compile(r"\d+")
_BLOCK = 1024


@dataclass(slots=True)
class _Draft:
    """An entity in the making."""

    names: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    descriptions: dict[str, None] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Resolved:
    """Entities in order of key, and the number of each mention's: ``of[row][mention]``.

    None stands for a mention whose entity was in too few passages. ``descriptions`` are the
    distinct ones of each entity, in order of passages. ``numbers`` finds an entity by a row and the
    key of a name there.
    """

    entities: tuple[Entity, ...]
    descriptions: tuple[tuple[str, ...], ...]
    of: tuple[tuple[int | None, ...], ...]
    numbers: Callable[[int, str], int | None]


def merge_key(name: str) -> str:
    """Return what two names of one entity have in common; empty where there is no letter."""
    text = unicodedata.normalize("NFKC", name).casefold()
    text = _SPACES.sub(" ", _POSSESSIVE.sub("", text)).strip(" .,;:!?\"'`()[]{}<>*")
    text = text.removeprefix("the ")
    if not any(character.isalpha() for character in text):
        return ""
    head, space, last = text.rpartition(" ")
    return f"{head}{space}{_singular(last)}"


def resolve_entities(
    sources: Sequence[SourcePassage],
    extractions: Sequence[Extraction],
    *,
    min_count: int,
    embed: Callable[[Sequence[str]], NDArray[np.float32]] | None = None,
    similarity: float = 0.0,
) -> Resolved:
    """Join the mentions of all passages to entities.

    Args:
        sources: The passages, in order of rows.
        extractions: What each speaks of.
        min_count: In how many passages an entity must be mentioned to stay.
        embed: Gives vectors of names, (N, D); needed where ``similarity`` is above 0.
        similarity: Cosine from which two names are one entity; 0 joins none by vectors.
    """
    expand = _Aliases(sources, extractions)
    keys = [
        [expand(row, merge_key(mention.name)) for mention in one.mentions]
        for row, one in enumerate(extractions)
    ]
    moved: Mapping[str, str] = {}
    if embed is not None and similarity > 0:
        moved = _join_near(keys, embed, similarity)
        keys = [[moved.get(key, key) for key in row] for row in keys]
    drafts = _gather(keys, extractions)
    kept = [key for key in sorted(drafts) if _count(drafts[key]) >= min_count]
    numbers = {key: number for number, key in enumerate(kept)}

    def number_of(row: int, key: str) -> int | None:
        full = expand(row, key)
        return numbers.get(moved.get(full, full))

    return Resolved(
        tuple(_finish(key, drafts[key]) for key in kept),
        tuple(tuple(drafts[key].descriptions) for key in kept),
        tuple(tuple(numbers.get(key) for key in row) for row in keys),
        number_of,
    )


class _Aliases:
    """What an acronym stands for, by the passage where it stands."""

    def __init__(self, sources: Sequence[SourcePassage], extractions: Sequence[Extraction]) -> None:
        own: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        everywhere: dict[str, set[str]] = defaultdict(set)
        for source, one in zip(sources, extractions, strict=True):
            for short, long in one.aliases:
                pair = merge_key(short), merge_key(long)
                if all(pair) and pair[0] != pair[1]:
                    own[source.document_id, pair[0]][pair[1]] += 1
                    everywhere[pair[0]].add(pair[1])
        self._documents = [source.document_id for source in sources]
        self._own = {place: _most(counts) for place, counts in own.items()}
        self._agreed = {
            short: next(iter(longs)) for short, longs in everywhere.items() if len(longs) == 1
        }

    def __call__(self, row: int, key: str) -> str:
        return self._own.get((self._documents[row], key)) or self._agreed.get(key, key)


def _gather(keys: Sequence[Sequence[str]], extractions: Sequence[Extraction]) -> dict[str, _Draft]:
    drafts: dict[str, _Draft] = defaultdict(_Draft)
    for row, one in enumerate(extractions):
        for key, mention in zip(keys[row], one.mentions, strict=True):
            if not key:
                continue
            draft = drafts[key]
            draft.names[mention.name] += 1
            draft.spans.append((row, mention.start, mention.end))
            if mention.type:
                draft.types[mention.type] += 1
            if mention.description:
                draft.descriptions.setdefault(mention.description)
    return drafts


def _finish(key: str, draft: _Draft) -> Entity:
    name = _most(draft.names)
    aliases = sorted(other for other in draft.names if other != name)
    spans = tuple(sorted(set(draft.spans)))
    return Entity(key, name, _most(draft.types), tuple(aliases), "", spans)


def _count(draft: _Draft) -> int:
    return len({row for row, _, _ in draft.spans})


def _most(counts: Counter[str]) -> str:
    """Return what was counted most; of equals the longest, then the first by letters."""
    return min(counts, key=lambda name: (-counts[name], -len(name), name)) if counts else ""


def _join_near(
    keys: Sequence[Sequence[str]],
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
    similarity: float,
) -> dict[str, str]:
    """Return for each name that is near a more frequent one that one; numbers must agree."""
    counts = Counter(key for row in keys for key in row if key)
    names = sorted(counts, key=lambda key: (-counts[key], key))
    vectors = embed(names) if names else np.zeros((0, 1), dtype=np.float32)
    moved: dict[str, str] = {}
    for start in range(0, len(names), _BLOCK):
        near = vectors[start : start + _BLOCK] @ vectors.T >= similarity
        for at, row in enumerate(near, start=start):
            for other in np.flatnonzero(row[:at]):
                first = names[int(other)]
                if first not in moved and _numbers(first) == _numbers(names[at]):
                    moved[names[at]] = first
                    break
    return moved


def _numbers(name: str) -> list[str]:
    return _NUMBER.findall(name)


def _singular(word: str) -> str:
    """Return an English word without its plural's ending; words that only look like one keep it."""
    if len(word) < 4 or not word.isalpha() or not word.isascii():
        return word
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("sses", "xes", "ches", "shes", "zzes")):
        return word[:-2]
    return word if word.endswith(("ss", "us", "is")) or not word.endswith("s") else word[:-1]
