"""The files of a graph or tree and the description that ties them together; GraphML.

``graph.json`` (``tree.json``) is written last and names the size and digest of every other file.
Nothing in it depends on the clock or on how it came about: one that was brought up to date has the
bytes of one made from scratch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal
from xml.sax.saxutils import escape

import numpy as np

from stillroom.errors import DataError, IntegrityError
from stillroom.jobs import atomic_write
from stillroom.provenance import canonical_json, digest_file, digest_json, find_output

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.graphs.parts import Edge, Entity

__all__ = [
    "COMMUNITIES",
    "EDGES",
    "EDGE_VECTORS",
    "ENTITIES",
    "ENTITY_VECTORS",
    "EXTRACTIONS",
    "GRAPH",
    "NODES",
    "NODE_VECTORS",
    "REPORT_VECTORS",
    "SOURCES",
    "TREE",
    "WRITTEN",
    "GraphDescription",
    "What",
    "find_graph",
    "read_graph_description",
    "read_rows",
    "write_graph_description",
    "write_graphml",
    "write_rows",
    "write_vectors",
]

GRAPH = "graph.json"
SOURCES = "sources.jsonl"
EXTRACTIONS = "extractions.jsonl"
ENTITIES = "entities.jsonl"
EDGES = "edges.jsonl"
COMMUNITIES = "communities.jsonl"
WRITTEN = "written.jsonl"
ENTITY_VECTORS = "entity_vectors.npy"
EDGE_VECTORS = "edge_vectors.npy"
REPORT_VECTORS = "report_vectors.npy"
_FORMAT = 1
TREE = "tree.json"
NODES = "nodes.jsonl"
NODE_VECTORS = "node_vectors.npy"
_GRAPH_FILES = (
    SOURCES,
    EXTRACTIONS,
    ENTITIES,
    EDGES,
    COMMUNITIES,
    WRITTEN,
    ENTITY_VECTORS,
    EDGE_VECTORS,
    REPORT_VECTORS,
)
_TREE_FILES = (SOURCES, NODES, WRITTEN, NODE_VECTORS)
_LAYOUTS = {"graph": (GRAPH, _GRAPH_FILES), "tree": (TREE, _TREE_FILES)}
What = Literal["graph", "tree"]


@dataclass(frozen=True, slots=True)
class GraphDescription:
    """What graph.json or tree.json says; ``index`` is the digest of the state it was made from."""

    what: What
    index: str
    settings: Mapping[str, Any]
    embedder: str
    counts: Mapping[str, int]
    files: Mapping[str, tuple[int, str]]

    @property
    def digest(self) -> str:
        """The digest of the whole: settings and every file's bytes."""
        return digest_json(self._body())

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, the digest included."""
        return {**self._body(), "digest": self.digest}

    def _body(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "what": self.what,
            "index": self.index,
            "settings": dict(self.settings),
            "embedder": self.embedder,
            "counts": dict(self.counts),
            "files": {name: list(entry) for name, entry in sorted(self.files.items())},
        }


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line."""
    with atomic_write(path) as file:
        for row in rows:
            file.write(canonical_json(row) + "\n")


def read_rows(path: Path) -> list[Any]:
    """Read what ``write_rows`` wrote.

    Raises:
        IntegrityError: If a line is no JSON.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error


def write_vectors(path: Path, vectors: NDArray[np.float32]) -> None:
    """Write vectors, (N, D) float32."""
    with atomic_write(path, "wb") as file:
        np.save(file, np.ascontiguousarray(vectors, dtype=np.float32))


def write_graph_description(
    folder: Path,
    what: What,
    *,
    index: str,
    settings: Mapping[str, Any],
    embedder: str,
    counts: Mapping[str, int],
) -> GraphDescription:
    """Write graph.json or tree.json; the other files must be finished."""
    mark, names = _LAYOUTS[what]
    files = {name: ((folder / name).stat().st_size, digest_file(folder / name)) for name in names}
    description = GraphDescription(what, index, settings, embedder, counts, files)
    with atomic_write(folder / mark) as file:
        json.dump(description.to_json(), file, ensure_ascii=False, indent=1)
    return description


def find_graph(path: Path, what: What) -> Path:
    """Return the folder of a graph's or tree's own files: that of the job, or its output.

    Raises:
        DataError: If the path is missing or another kind of artifact.
    """
    try:
        return find_output(path, "index")
    except DataError as error:
        problem = error.problems[0]
        raise DataError(
            problem.what,
            code=problem.code,
            expected=_wanted(what),
            next=f"check the path, or make it: {_making(what)}",
        ) from error


def read_graph_description(folder: Path, what: What, *, verify: bool = True) -> GraphDescription:
    """Read graph.json or tree.json and hold the other files against it.

    Args:
        folder: The folder that holds it.
        what: Which of the two.
        verify: Recompute the files' digests; otherwise only their sizes are compared.

    Raises:
        IntegrityError: If a file is missing or is not what was written.
    """
    mark, names = _LAYOUTS[what]
    path = folder / mark
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("format") != _FORMAT:
            raise ValueError(f"format {data.get('format')!r}, expected {_FORMAT}")
        description = GraphDescription(
            what,
            data["index"],
            data["settings"],
            data["embedder"],
            data["counts"],
            {name: (int(size), str(mark)) for name, (size, mark) in data["files"].items()},
        )
        if description.digest != data.get("digest"):
            raise ValueError("it was changed after it was written")
    except FileNotFoundError as error:
        raise IntegrityError(
            f"{folder} holds no {mark}: it is no {what}, or a half-written one",
            code="rag.no-graph",
            where=str(folder),
            expected=_wanted(what),
            next="make it, or finish it with --resume",
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, str(error)) from error
    for name in names:
        _check_file(folder / name, description.files.get(name), verify=verify)
    return description


def _wanted(what: What) -> str:
    return f"the folder that '{_making(what)}' wrote"


def _making(what: What) -> str:
    return f"stillroom rag {what} INDEX --out {what.upper()}"


def write_graphml(file: IO[str], entities: Sequence[Entity], edges: Sequence[Edge]) -> None:
    """Write entities and edges as GraphML 1.0, which Gephi, yEd, igraph and networkx read.

    Source: Brandes et al. 2001, http://graphml.graphdrawing.org/specification.html.
    """
    file.write('<?xml version="1.0" encoding="UTF-8"?>\n')
    file.write('<graphml xmlns="http://graphml.graphdrawing.org/xmlns">\n')
    keys = (
        ("name", "node", "string"),
        ("type", "node", "string"),
        ("passages", "node", "int"),
        ("weight", "edge", "double"),
        ("description", "edge", "string"),
    )
    for name, owner, kind in keys:
        file.write(f' <key id="{name}" for="{owner}" attr.name="{name}" attr.type="{kind}"/>\n')
    file.write(' <graph edgedefault="undirected">\n')
    for number, entity in enumerate(entities):
        values = {"name": entity.name, "type": entity.type, "passages": len(entity.rows)}
        file.write(f'  <node id="n{number}">{_data(values)}</node>\n')
    for edge in edges:
        values = {"weight": edge.weight, "description": edge.description}
        ends = f'source="n{edge.source}" target="n{edge.target}"'
        file.write(f"  <edge {ends}>{_data(values)}</edge>\n")
    file.write(" </graph>\n</graphml>\n")


def _data(values: Mapping[str, Any]) -> str:
    return "".join(
        f'<data key="{name}">{escape(_printable(str(value)))}</data>'
        for name, value in values.items()
    )


def _printable(text: str) -> str:
    """Return text without what XML 1.0 cannot hold: control characters and half surrogates."""
    return "".join(
        one
        for one in text
        if one in "\t\n\r"
        or (one >= " " and not "\ud800" <= one <= "\udfff" and one < "\ufffe")
        or one > "\uffff"
    )


def _check_file(path: Path, entry: tuple[int, str] | None, *, verify: bool) -> None:
    if entry is None or not path.is_file():
        raise _damaged(path, "it is missing")
    size, digest = entry
    if path.stat().st_size != size:
        raise _damaged(path, f"it has {path.stat().st_size} bytes instead of {size}")
    if verify and digest_file(path) != digest:
        raise _damaged(path, "its bytes are not those that were written")


def _damaged(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        f"the graph or tree is damaged: {path.name}: {reason}",
        code="rag.graph-damaged",
        where=str(path),
        expected="the file that the job wrote",
        next="make it again with --overwrite",
    )
