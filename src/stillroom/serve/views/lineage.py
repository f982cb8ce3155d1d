"""Lineage of an artifact as a tree with links, and as a graph laid out in columns.

The lineage of an artifact derived from an index with tenants is not traced to texts: its records
hold text of all tenants.

A node is one column right of its rightmost parent; rows are ordered to reduce crossings. Uses
folders and names alone, not the content of artifacts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stillroom.errors import DataError
from stillroom.provenance import ProvenanceNode, read_artifact, walk_lineage, walk_record
from stillroom.provenance.sources import has_path, is_reference, list_ancestors, resolve_parent
from stillroom.serve.views.folder import is_artifact, read_kind, resolve_name, to_name
from stillroom.serve.views.sources import has_tenants

__all__ = [
    "LineageGraph",
    "LineageGraphEdge",
    "LineageGraphNode",
    "LineageTreeNode",
    "has_tenant_sources",
    "layout_lineage_graph",
    "trace_lineage",
]

_ORIGIN_KINDS = ("human", "synthetic", "unknown", "suspected-fake")
_MAX_EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class LineageTreeNode:
    """Node of a lineage, with the name in the folder that opens it, if there is one.

    ``origin`` is one of the four kinds or empty; ``says`` describes the origin.
    """

    title: str
    kind: str
    digest: str
    name: str
    place: str
    origin: str
    says: str
    notes: tuple[str, ...]
    children: tuple[LineageTreeNode, ...]


def has_tenant_sources(folder: Path) -> bool:
    """Return whether an artifact is, or derives from, an index with tenants."""
    return any(
        artifact.kind == "index" and has_tenants(ancestor)
        for ancestor, artifact in list_ancestors(folder)
    )


def trace_lineage(root: Path, name: str, *, record: str = "", examples: int = 3) -> LineageTreeNode:
    """Return the lineage tree of an artifact, or of one of its records or passages.

    Raises:
        DataError: If there is no such artifact or record, or it holds text of tenants.
    """
    folder = resolve_name(root, name)
    is_guarded = has_tenant_sources(folder)
    if record:
        if is_guarded:
            raise DataError(
                "an artifact derived from an index with tenants is not traced record by record",
                code="rag.access-needed",
                expected="an artifact whose sources are visible to everyone",
                next="query the index itself, as one of its tenants",
            )
        return _build_node(walk_record(folder, record), root)
    count = 0 if is_guarded else min(examples, _MAX_EXAMPLES)
    if is_artifact(folder):
        read_artifact(folder)
    return _build_node(walk_lineage(folder, examples=count), root)


def _build_node(node: ProvenanceNode, root: Path) -> LineageTreeNode:
    name = to_name(root, node.path) if node.path.startswith("/") else ""
    kind, _, _ = node.origin.partition(",")
    return LineageTreeNode(
        node.title,
        node.kind,
        node.digest,
        name,
        name or node.path,
        kind if kind in _ORIGIN_KINDS else "",
        node.origin,
        node.notes,
        tuple(_build_node(child, root) for child in node.children),
    )


_MAX_NODES = 40
NODE_WIDTH, NODE_HEIGHT, COLUMN_GAP, ROW_GAP = 168, 46, 32, 18


@dataclass(frozen=True, slots=True)
class LineageGraphNode:
    """Node with its position in pixels; ``name`` opens it if it lies in the folder."""

    key: str
    label: str
    kind: str
    name: str
    x: int
    y: int
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class LineageGraphEdge:
    """Edge from a parent to a derived artifact, with the parent's role."""

    role: str
    path: str


@dataclass(frozen=True, slots=True)
class LineageGraph:
    """Graph with its geometry, and a description in words."""

    width: int
    height: int
    nodes: tuple[LineageGraphNode, ...]
    edges: tuple[LineageGraphEdge, ...]
    words: tuple[str, ...]
    is_cut: bool


def layout_lineage_graph(
    root: Path, names: Iterable[str], *, node_height: int = NODE_HEIGHT
) -> LineageGraph:
    """Return the graph of artifacts and their ancestors."""
    selected = list(names)
    kinds, links, is_cut = _collect_nodes(root, selected)
    columns = _assign_columns(kinds, links)
    rows = _assign_rows(columns, links)
    nodes = {
        key: LineageGraphNode(
            key,
            key.removeprefix("hub:").rstrip("/").rpartition("/")[2] or key,
            kinds[key],
            key if kinds[key] not in {"reference", "elsewhere"} else "",
            columns[key] * (NODE_WIDTH + COLUMN_GAP),
            round(rows[key] * (node_height + ROW_GAP)),
            key in selected,
        )
        for key in kinds
    }
    edges = tuple(
        LineageGraphEdge(role, _draw_edge(nodes[parent], nodes[child], node_height // 2))
        for parent, child, role in links
    )
    words = tuple(
        f"{nodes[child].label} was made from {nodes[parent].label} as its {role}"
        for parent, child, role in links
    )
    width = max((node.x for node in nodes.values()), default=0) + NODE_WIDTH
    height = max((node.y for node in nodes.values()), default=0) + node_height
    return LineageGraph(width, height, tuple(nodes.values()), edges, words, is_cut)


def _collect_nodes(
    root: Path, selected: list[str]
) -> tuple[dict[str, str], list[tuple[str, str, str]], bool]:
    """Return kinds by key, edges (parent, child, role), and whether the limit was exceeded."""
    kinds: dict[str, str] = {}
    links: list[tuple[str, str, str]] = []
    waiting = list(selected)
    references = {name for name in selected if name.startswith("hub:")}
    for name in waiting:  # the list grows during the walk
        if name in kinds:
            continue
        if len(kinds) >= _MAX_NODES:
            return kinds, [link for link in links if link[0] in kinds], True
        if name in references or name.startswith("…/"):
            kinds[name] = "reference" if name in references else "elsewhere"
            continue
        folder = resolve_name(root, name)
        kinds[name] = read_kind(folder)
        if not is_artifact(folder) or kinds[name] == "broken":
            continue
        for parent in read_artifact(folder).parents:
            if not has_path(parent):
                continue
            key = parent.path
            if is_reference(key):
                references.add(key)
            else:
                parent_folder = resolve_parent(folder, parent)
                key = to_name(root, parent_folder) if parent_folder.exists() else ""
                key = key or f"…/{parent_folder.name}"
            if (key, name, parent.role) not in links:
                links.append((key, name, parent.role))
            waiting.append(key)
    return kinds, links, False


def _assign_columns(kinds: dict[str, str], links: list[tuple[str, str, str]]) -> dict[str, int]:
    columns = dict.fromkeys(kinds, 0)
    for _ in kinds:  # bounds the walk in a cyclic graph
        moved = False
        for parent, child, _ in links:
            if columns[child] <= columns[parent] < len(kinds):
                columns[child], moved = columns[parent] + 1, True
        if not moved:
            break
    return columns


def _assign_rows(columns: dict[str, int], links: list[tuple[str, str, str]]) -> dict[str, float]:
    """Return a distinct row in its column for each node, near the mean row of its parents."""
    rows: dict[str, float] = {}
    for column in range(max(columns.values(), default=0) + 1):
        keys = [key for key in columns if columns[key] == column]
        targets = {}
        for index, key in enumerate(keys):
            above = [rows[parent] for parent, child, _ in links if child == key and parent in rows]
            targets[key] = sum(above) / len(above) if above else float(index)
        free = 0.0
        for key in sorted(keys, key=lambda node: targets[node]):
            rows[key] = max(free, targets[key])
            free = rows[key] + 1
    return rows


def _draw_edge(parent: LineageGraphNode, child: LineageGraphNode, middle: int) -> str:
    x0, y0 = parent.x + NODE_WIDTH, parent.y + middle
    x1, y1 = child.x, child.y + middle
    bend = max(20, (x1 - x0) // 2)
    return f"M{x0} {y0}C{x0 + bend} {y0} {x1 - bend} {y1} {x1} {y1}"
