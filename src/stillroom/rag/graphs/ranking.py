"""From entities, edges and reports of a graph to ranked passages of an index."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING

from stillroom.rag.graphs.graph import Graph, Sight

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stillroom.rag.graphs.parts import Span

__all__ = [
    "best_reports",
    "lend_entities",
    "list_passages",
    "rank_passages",
    "round_robin",
    "specificity",
    "spread",
]


def spread(
    graph: Graph, sight: Sight, seeds: Mapping[int, float], *, hops: int, damping: float
) -> dict[int, float]:
    """Return the activation of entities: the seeds', and what their edges carry on.

    An entity gives each neighbour ``damping`` times its own activation of that hop, shared by the
    weights of its edges. Edges that no visible passage bears carry nothing.

    Args:
        graph: Whose edges.
        sight: What can be seen.
        seeds: Activation of the first entities, above 0.
        hops: How many edges far.
        damping: What share goes on from hop to hop.
    """
    total: dict[int, float] = dict(seeds)
    wave: Mapping[int, float] = seeds
    for _ in range(hops):
        reached: dict[int, float] = defaultdict(float)
        for number in sorted(wave):
            edges = [graph.edges[at] for at in graph.edges_of.get(number, ())]
            seen = [edge for edge in edges if sight.sees(edge)]
            weights = sum(edge.weight for edge in seen)
            for edge in seen:
                other = edge.target if edge.source == number else edge.source
                reached[other] += damping * wave[number] * edge.weight / weights
        for number, value in reached.items():
            total[number] = total.get(number, 0.0) + value
        wave = reached
    return total


def rank_passages(
    graph: Graph,
    sight: Sight,
    activation: Mapping[int, float],
    own: Mapping[int, float] = MappingProxyType({}),
) -> list[tuple[int, float]]:
    """Return the index rows that mention activated entities, best first.

    A passage's score is the sum of its entities' activation, each divided by how many passages
    mention it: what everything speaks of points nowhere. ``own`` is added, by index
    row.
    """
    scores: dict[int, float] = defaultdict(float)
    for number in sorted(activation):
        rows = graph.entities[number].rows
        share = activation[number] * specificity(graph, number)
        for row in rows:
            scores[row] += share
    total: dict[int, float] = defaultdict(float, own)
    for source, score in scores.items():
        place = sight.row(source)
        if place is not None:
            total[place] += score
    return sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))


def specificity(graph: Graph, entity: int) -> float:
    """Return how much an entity says of a passage: 1 over how many mention it.

    Source: Gutierrez et al. 2024, arXiv:2405.14831, section 2.3 (node specificity).
    """
    return 1.0 / len(graph.entities[entity].rows)


def lend_entities(graph: Graph, sources: Mapping[int, float]) -> dict[int, float]:
    """Return what passages lend their entities: each its weight, shared by their specificity.

    An entity that no other passage mentions leads nowhere else, neither itself nor by its edges:
    what it were lent would only come back.

    Args:
        graph: Whose sources and entities.
        sources: Weight of each source.
    """
    lent: dict[int, float] = defaultdict(float)
    for source, weight in sources.items():
        numbers = [at for at in graph.entities_of.get(source, ()) if _leads_on(graph, at)]
        shares = [specificity(graph, number) for number in numbers]
        for number, share in zip(numbers, shares, strict=True):
            lent[number] += weight * share / sum(shares)
    return lent


def _leads_on(graph: Graph, entity: int) -> bool:
    return len(graph.entities[entity].rows) > 1


def best_reports(
    graph: Graph, sight: Sight, likeness: NDArray[np.float32], *, level: int, count: int
) -> list[int]:
    """Return the communities whose reports are likest a query and may be seen, best first.

    Args:
        graph: Whose communities.
        sight: What can be seen.
        likeness: Of the query with each report, (C,).
        level: Those of this level, and those above it that are not divided so far.
        count: How many at most.
    """
    parents = {one.parent for one in graph.communities if one.level <= level}
    usable = [
        at
        for at, one in enumerate(graph.communities)
        if one.level == level or (one.level < level and one.id not in parents)
    ]
    usable.sort(key=lambda at: (-float(likeness[at]), at))
    return list(islice((at for at in usable if sight.sees_all(graph.communities[at].rows)), count))


def list_passages(sight: Sight, groups: Iterable[Sequence[Span]]) -> list[int]:
    """Return index rows in the order in which ranked parts name them.

    Within a part, passages that more of the parts name come first.
    """
    parts = [sorted({row for row, _, _ in spans}) for spans in groups]
    counts: dict[int, int] = defaultdict(int)
    for rows in parts:
        for row in rows:
            counts[row] += 1
    ordered = [sight.row(row) for rows in parts for row in sorted(rows, key=lambda r: -counts[r])]
    return list(dict.fromkeys(row for row in ordered if row is not None))


def round_robin(lists: Sequence[Sequence[int]]) -> list[int]:
    """Return rows by turns: the first of each list, then the second of each; each row once."""
    longest = max(map(len, lists), default=0)
    turns = (rows[at] for at in range(longest) for rows in lists if at < len(rows))
    return list(dict.fromkeys(turns))
