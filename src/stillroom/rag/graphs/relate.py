"""Edges between entities: what the extractor relates, or what stands near each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from stillroom.rag.graphs.parts import Edge, Span
from stillroom.rag.graphs.resolve import Resolved, merge_key

if TYPE_CHECKING:
    from stillroom.rag.extraction import Extraction, Extractor

__all__ = ["drop_lonely", "relate_entities"]

_MOST_KEYWORDS = 12


@dataclass(slots=True)
class _Draft:
    """An edge in the making; ``strengths`` are the strongest of each passage."""

    spans: set[Span] = field(default_factory=set)
    keywords: dict[str, None] = field(default_factory=dict)
    descriptions: dict[str, None] = field(default_factory=dict)
    strengths: dict[int, float] = field(default_factory=dict)


def relate_entities(
    extractions: Sequence[Extraction], resolved: Resolved, extractor: Extractor
) -> list[Edge]:
    """Return the edges in order of their ends, without the lightest ones.

    Args:
        extractions: What each passage speaks of, in order of rows.
        resolved: Whose mentions are which entity's.
        extractor: Weighs; where it has a reach, mentions within so many sentences are related.
    """
    drafts: dict[tuple[int, int], _Draft] = defaultdict(_Draft)
    for row, one in enumerate(extractions):
        if extractor.reach:
            _relate_near(row, one, resolved, extractor.reach, drafts)
        else:
            _relate_told(row, one, resolved, drafts)
    counts = [len(entity.rows) for entity in resolved.entities]
    edges = []
    for (source, target), draft in sorted(drafts.items()):
        together = sum(draft.strengths.values())
        weight = extractor.weigh(together, counts[source], counts[target], len(extractions))
        if weight > 0:
            edges.append(_finish(source, target, weight, draft))
    return _prune(edges, extractor.pruned)


def drop_lonely(resolved: Resolved, edges: Sequence[Edge]) -> tuple[Resolved, list[Edge]]:
    """Return entities and edges without the entities that lead nowhere.

    Those are named by no edge and mentioned in one passage alone.
    """
    ends = {end for edge in edges for end in (edge.source, edge.target)}
    named = [at for at, one in enumerate(resolved.entities) if at in ends or len(one.rows) > 1]
    new = {old: number for number, old in enumerate(named)}

    def number_of(row: int, key: str) -> int | None:
        old = resolved.numbers(row, key)
        return None if old is None else new.get(old)

    fewer = Resolved(
        tuple(resolved.entities[old] for old in named),
        tuple(resolved.descriptions[old] for old in named),
        tuple(tuple(None if old is None else new.get(old) for old in row) for row in resolved.of),
        number_of,
    )
    moved = [replace(edge, source=new[edge.source], target=new[edge.target]) for edge in edges]
    return fewer, moved


def _relate_near(
    row: int,
    one: Extraction,
    resolved: Resolved,
    reach: int,
    drafts: dict[tuple[int, int], _Draft],
) -> None:
    """Relate every two different entities whose mentions are less than ``reach`` sentences apart.

    One that lies within the other (a name within a longer phrase) is no neighbour of it.
    """
    known = [
        (mention, number)
        for mention, number in zip(one.mentions, resolved.of[row], strict=True)
        if number is not None
    ]
    for at, (mention, number) in enumerate(known):
        for other, second in known[at + 1 :]:
            if other.sentence - mention.sentence >= reach:
                break
            if number == second or other.start < mention.end:
                continue
            pair = (number, second) if number < second else (second, number)
            drafts[pair].spans.add((row, mention.start, other.end))
            drafts[pair].strengths[row] = 1.0


def _relate_told(
    row: int, one: Extraction, resolved: Resolved, drafts: dict[tuple[int, int], _Draft]
) -> None:
    for relation in one.relations:
        ends = [
            resolved.numbers(row, merge_key(name)) for name in (relation.source, relation.target)
        ]
        if ends[0] is None or ends[1] is None or ends[0] == ends[1]:
            continue
        draft = drafts[min(ends[0], ends[1]), max(ends[0], ends[1])]
        draft.spans.add((row, relation.start, relation.end))
        draft.keywords.update(dict.fromkeys(relation.keywords))
        if relation.description:
            draft.descriptions.setdefault(relation.description)
        draft.strengths[row] = max(draft.strengths.get(row, 0.0), relation.strength)


def _finish(source: int, target: int, weight: float, draft: _Draft) -> Edge:
    return Edge(
        source,
        target,
        round(weight, 6),
        tuple(list(draft.keywords)[:_MOST_KEYWORDS]),
        " ".join(draft.descriptions),
        tuple(sorted(_shortest(draft.spans))),
    )


def _shortest(spans: set[Span]) -> list[Span]:
    """Return of each passage's spans the shortest: where the two stand nearest."""
    best: dict[int, Span] = {}
    for span in sorted(spans, key=lambda span: (span[2] - span[1], span)):
        best.setdefault(span[0], span)
    return list(best.values())


def _prune(edges: list[Edge], share: float) -> list[Edge]:
    """Return the edges without the given share of them, the lightest; equal ones go together."""
    if not edges or share <= 0:
        return edges
    weights = sorted(edge.weight for edge in edges)
    floor = weights[min(int(share * len(weights)), len(weights) - 1)]
    return [edge for edge in edges if edge.weight >= floor]
