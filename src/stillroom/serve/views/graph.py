"""The graph of what was made from what, laid out in columns: sources left, what came of them right.

A node stands one column right of the rightmost of its parents; rows are ordered so that lines cross
little. Knows places and names, nothing of what they hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stillroom.provenance import read_artifact
from stillroom.provenance.sources import names_something, resolve_parent
from stillroom.serve.views.found import find_inside, is_artifact, kind_of, name_of

__all__ = ["Edge", "Graph", "Spot", "draw_graph"]

_MOST = 40
WIDE, HIGH, GAP_X, GAP_Y = 168, 46, 44, 18


@dataclass(frozen=True, slots=True)
class Spot:
    """A node with its place, in pixels; ``name`` opens it where it lies in the folder."""

    key: str
    label: str
    kind: str
    name: str
    x: int
    y: int
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class Edge:
    """A line from a parent to what was made of it, and the part that it took."""

    role: str
    path: str


@dataclass(frozen=True, slots=True)
class Graph:
    """Everything to draw, and the same in words."""

    width: int
    height: int
    spots: tuple[Spot, ...]
    edges: tuple[Edge, ...]
    words: tuple[str, ...]
    is_cut: bool


def draw_graph(root: Path, names: Iterable[str]) -> Graph:
    """Return the graph of some artifacts and all that they were made from.

    Args:
        root: The served folder.
        names: The artifacts' names.
    """
    chosen = list(names)
    kinds, links, is_cut = _collect(root, chosen)
    columns = _columns(kinds, links)
    rows = _rows(columns, links)
    spots = {
        key: Spot(
            key,
            key.removeprefix("hub:").rstrip("/").rpartition("/")[2] or key,
            kinds[key],
            key if kinds[key] not in {"reference", "elsewhere"} else "",
            columns[key] * (WIDE + GAP_X),
            round(rows[key] * (HIGH + GAP_Y)),
            key in chosen,
        )
        for key in kinds
    }
    edges = tuple(Edge(role, _curve(spots[parent], spots[child])) for parent, child, role in links)
    words = tuple(
        f"{spots[child].label} was made from {spots[parent].label} as its {role}"
        for parent, child, role in links
    )
    width = max((spot.x for spot in spots.values()), default=0) + WIDE
    height = max((spot.y for spot in spots.values()), default=0) + HIGH
    return Graph(width, height, tuple(spots.values()), edges, words, is_cut)


def _collect(
    root: Path, chosen: list[str]
) -> tuple[dict[str, str], list[tuple[str, str, str]], bool]:
    """Return kinds by key, links of parent, child and role, and whether there were too many."""
    kinds: dict[str, str] = {}
    links: list[tuple[str, str, str]] = []
    waiting = list(chosen)
    for name in waiting:  # grows while it is walked
        if name in kinds:
            continue
        if len(kinds) >= _MOST:
            return kinds, [one for one in links if one[0] in kinds], True
        if name.startswith(("hub:", "…/")):
            kinds[name] = "reference" if name.startswith("hub:") else "elsewhere"
            continue
        folder = find_inside(root, name)
        kinds[name] = kind_of(folder)
        if not is_artifact(folder) or kinds[name] == "broken":
            continue
        for parent in read_artifact(folder).parents:
            if not names_something(parent):
                continue
            key = parent.path
            if not key.startswith("hub:"):
                place = resolve_parent(folder, parent)
                key = name_of(root, place) if place.exists() else ""
                key = key or f"…/{place.name}"
            if (key, name, parent.role) not in links:
                links.append((key, name, parent.role))
            waiting.append(key)
    return kinds, links, False


def _columns(kinds: dict[str, str], links: list[tuple[str, str, str]]) -> dict[str, int]:
    columns = dict.fromkeys(kinds, 0)
    for _ in kinds:  # a circle cannot go on for longer
        moved = False
        for parent, child, _ in links:
            if columns[child] <= columns[parent] < len(kinds):
                columns[child], moved = columns[parent] + 1, True
        if not moved:
            break
    return columns


def _rows(columns: dict[str, int], links: list[tuple[str, str, str]]) -> dict[str, float]:
    """Return rows: within a column by the middle of the parents, each its own."""
    rows: dict[str, float] = {}
    for column in range(max(columns.values(), default=0) + 1):
        keys = [key for key in columns if columns[key] == column]
        wanted = {}
        for at, key in enumerate(keys):
            above = [rows[parent] for parent, child, _ in links if child == key and parent in rows]
            wanted[key] = sum(above) / len(above) if above else float(at)
        free = 0.0
        for key in sorted(keys, key=lambda one: wanted[one]):
            rows[key] = max(free, wanted[key])
            free = rows[key] + 1
    return rows


def _curve(parent: Spot, child: Spot) -> str:
    x0, y0 = parent.x + WIDE, parent.y + HIGH // 2
    x1, y1 = child.x, child.y + HIGH // 2
    bend = max(20, (x1 - x0) // 2)
    return f"M{x0} {y0}C{x0 + bend} {y0} {x1 - bend} {y1} {x1} {y1}"
