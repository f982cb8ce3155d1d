"""Communities of a graph: hierarchical Leiden, by a library, the same for the same graph.

Source: Traag, Waltman and van Eck 2019, "From Louvain to Leiden", arXiv:1810.08473, as
graspologic-native implements it; communities larger than a bound are divided again (Edge et al.
2024, arXiv:2404.16130). Edges are given in order of their ends' keys, with a fixed seed: what comes
out follows from the graph alone. A community's id is made of its level and its members' keys, so
that one which a change elsewhere leaves as it is keeps its id.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from stillroom.errors import MissingExtraError
from stillroom.rag.graphs.parts import Edge, Entity
from stillroom.records import content_id

__all__ = ["Group", "find_communities"]


@dataclass(frozen=True, slots=True)
class Group:
    """A community's id, level, parent's id and the numbers of its entities, ascending."""

    id: str
    level: int
    parent: str
    entities: tuple[int, ...]


def find_communities(
    entities: Sequence[Entity],
    edges: Sequence[Edge],
    *,
    max_size: int = 10,
    resolution: float = 1.0,
    seed: int = 0,
) -> list[Group]:
    """Return the communities of every level, larger ones first, in order of level and members.

    Args:
        entities: In order of key.
        edges: In order of their ends.
        max_size: A community with more entities is divided, into those of the next level.
        resolution: Higher gives more and smaller communities; above 0.
        seed: Of the library's random numbers.

    Raises:
        MissingExtraError: If the library is not installed.
    """
    if not edges:
        return []
    try:
        from graspologic_native import hierarchical_leiden
    except ImportError as error:
        raise MissingExtraError.of(
            "graspologic-native", "graph", "finding the communities of a graph"
        ) from error
    # Numbers of equal width, so that the library's own order of names is that of the keys.
    width = len(str(len(entities)))
    found = hierarchical_leiden(
        edges=[
            (f"{edge.source:0{width}}", f"{edge.target:0{width}}", edge.weight) for edge in edges
        ],
        resolution=resolution,
        max_cluster_size=max_size,
        seed=seed,
    )
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    parents: dict[tuple[int, int], int | None] = {}
    for one in found:
        members[one.level, one.cluster].append(int(one.node))
        parents[one.level, one.cluster] = one.parent_cluster
    ids = {
        place: content_id("com", place[0], *(entities[number].key for number in sorted(numbers)))
        for place, numbers in members.items()
    }
    groups = []
    for place, numbers in members.items():
        level, parent = place[0], parents[place]
        above = ids.get((level - 1, parent), "") if parent is not None else ""
        groups.append(Group(ids[place], level, above, tuple(sorted(numbers))))
    return sorted(groups, key=lambda group: (group.level, group.entities))
