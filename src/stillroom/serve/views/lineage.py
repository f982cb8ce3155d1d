"""Lineage for pages: the tree of ``stillroom show --lineage`` with the names that open its nodes.

Of what was made from an index with tenants no text is walked: its records hold words of all of
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stillroom.errors import DataError
from stillroom.provenance import Node, read_artifact, walk_lineage, walk_record
from stillroom.provenance.sources import list_ancestors
from stillroom.serve.views.found import find_inside, is_artifact, name_of
from stillroom.serve.views.sources import has_tenants

__all__ = ["Branch", "come_from_tenants", "trace"]

_KINDS = ("human", "synthetic", "unknown", "suspected-fake")
_MOST_EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class Branch:
    """A node of a lineage: what it is, and the name in the folder that opens it, if there is one.

    ``origin`` is one of the four kinds or empty; ``says`` is what the node says of its origin.
    """

    title: str
    kind: str
    digest: str
    name: str
    place: str
    origin: str
    says: str
    notes: tuple[str, ...]
    children: tuple[Branch, ...]


def come_from_tenants(folder: Path) -> bool:
    """Return whether an artifact is, or was made from, an index with tenants."""
    return any(
        artifact.kind == "index" and has_tenants(place)
        for place, artifact in list_ancestors(folder)
    )


def trace(root: Path, name: str, *, record: str = "", examples: int = 3) -> Branch:
    """Return the tree of an artifact, or of one record or passage of it.

    Args:
        root: The served folder.
        name: The artifact's name.
        record: The id of a record or passage to walk from.
        examples: How many records and passages are followed.

    Raises:
        DataError: If there is no such artifact or record, or it holds words of tenants.
    """
    folder = find_inside(root, name)
    is_guarded = come_from_tenants(folder)
    if record:
        if is_guarded:
            raise DataError(
                "what was made from an index with tenants is not opened record by record",
                code="rag.access-needed",
                expected="an artifact whose sources all may see",
                next="ask the index itself, as one of its tenants",
            )
        return _branch(walk_record(folder, record), root)
    count = 0 if is_guarded else min(examples, _MOST_EXAMPLES)
    if is_artifact(folder):
        read_artifact(folder)
    return _branch(walk_lineage(folder, examples=count), root)


def _branch(node: Node, root: Path) -> Branch:
    name = name_of(root, node.path) if node.path.startswith("/") else ""
    kind, _, _ = node.origin.partition(",")
    return Branch(
        node.title,
        node.kind,
        node.digest,
        name,
        name or node.path,
        kind if kind in _KINDS else "",
        node.origin,
        node.notes,
        tuple(_branch(child, root) for child in node.children),
    )
