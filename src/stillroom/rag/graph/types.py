"""Elements of a knowledge graph or summary tree, and their files.

Every element records the spans it is derived from: ``(row, start, end)`` is ``text[start:end]`` of
the graph's source at that row, which refers to a passage by id.

``graph.json`` (``tree.json``) is written last and records the size and digest of every other file.
It contains no timestamp and no history: an updated graph has the same bytes as one built from
scratch.
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

__all__ = [
    "COMMUNITIES",
    "EDGES",
    "EDGE_VECTORS",
    "ENTITIES",
    "ENTITY_VECTORS",
    "EXTRACTIONS",
    "GENERATED_TEXTS",
    "NODES",
    "NODE_VECTORS",
    "REPORT_VECTORS",
    "SOURCES",
    "TREE_FILE",
    "Community",
    "CommunityReport",
    "Entity",
    "GraphDescription",
    "GraphEdge",
    "GraphKind",
    "ReportFinding",
    "SourcePassage",
    "Span",
    "find_graph",
    "read_graph_description",
    "read_rows",
    "write_graph_description",
    "write_graphml",
    "write_rows",
    "write_vectors",
]


Span = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class SourcePassage:
    """A passage of the graph: its id, its document's id, and the key of its extraction."""

    passage_id: str
    document_id: str
    key: str

    def to_json(self) -> list[str]:
        """Convert to a compact list."""
        return [self.passage_id, self.document_id, self.key]


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity mentioned in passages, with all its names.

    ``key`` is its normalized name; a ``description`` is always written by a model.
    """

    key: str
    name: str
    type: str
    aliases: tuple[str, ...]
    description: str
    mentions: tuple[Span, ...]

    @property
    def rows(self) -> list[int]:
        """Rows of the passages that mention it, unique, ascending."""
        return sorted({row for row, _, _ in self.mentions})

    @property
    def text(self) -> str:
        """The text that is embedded."""
        return f"{self.name}\n{self.description}" if self.description else self.name

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            "key": self.key,
            "name": self.name,
            "type": self.type,
            "aliases": list(self.aliases),
            "description": self.description,
            "mentions": [list(span) for span in self.mentions],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entity:
        """Parse the output of ``to_json``."""
        return cls(
            data["key"],
            data["name"],
            data["type"],
            tuple(data["aliases"]),
            data["description"],
            _parse_spans(data["mentions"]),
        )


@dataclass(frozen=True, slots=True)
class GraphEdge:
    """A relation between two entities, by their numbers; ``source`` is the smaller one."""

    source: int
    target: int
    weight: float
    keywords: tuple[str, ...]
    description: str
    mentions: tuple[Span, ...]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            "source": self.source,
            "target": self.target,
            "weight": self.weight,
            "keywords": list(self.keywords),
            "description": self.description,
            "mentions": [list(span) for span in self.mentions],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GraphEdge:
        """Parse the output of ``to_json``."""
        return cls(
            data["source"],
            data["target"],
            data["weight"],
            tuple(data["keywords"]),
            data["description"],
            _parse_spans(data["mentions"]),
        )


@dataclass(frozen=True, slots=True)
class ReportFinding:
    """A statement of a report, and the spans that support it."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class CommunityReport:
    """The report of a community; ``origin`` is ``source`` (quoted sentences) or ``synthetic``."""

    title: str
    summary: str
    findings: tuple[ReportFinding, ...]
    origin: str

    @property
    def text(self) -> str:
        """The text that is embedded."""
        return "\n".join(
            [self.title, self.summary, *(finding.text for finding in self.findings)]
        ).strip()

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            "title": self.title,
            "summary": self.summary,
            "findings": [
                [finding.text, [list(span) for span in finding.spans]] for finding in self.findings
            ],
            "origin": self.origin,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CommunityReport:
        """Parse the output of ``to_json``."""
        return cls(
            data["title"],
            data["summary"],
            tuple(ReportFinding(text, _parse_spans(spans)) for text, spans in data["findings"]),
            data["origin"],
        )


@dataclass(frozen=True, slots=True)
class Community:
    """Entities that are more related to each other than to others, by their numbers.

    ``id`` is computed from the level and the members' keys; ``parent`` is the id of the enclosing
    community, empty at level 0; ``rows`` are the passages that support its report.
    """

    id: str
    level: int
    parent: str
    entities: tuple[int, ...]
    rows: tuple[int, ...]
    report: CommunityReport

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            "id": self.id,
            "level": self.level,
            "parent": self.parent,
            "entities": list(self.entities),
            "rows": list(self.rows),
            "report": self.report.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Community:
        """Parse the output of ``to_json``."""
        return cls(
            data["id"],
            data["level"],
            data["parent"],
            tuple(data["entities"]),
            tuple(data["rows"]),
            CommunityReport.from_json(data["report"]),
        )


def _parse_spans(rows: list[list[int]]) -> tuple[Span, ...]:
    return tuple((row, start, end) for row, start, end in rows)


_GRAPH_FILE = "graph.json"
SOURCES = "sources.jsonl"
EXTRACTIONS = "extractions.jsonl"
ENTITIES = "entities.jsonl"
EDGES = "edges.jsonl"
COMMUNITIES = "communities.jsonl"
GENERATED_TEXTS = "written.jsonl"
ENTITY_VECTORS = "entity_vectors.npy"
EDGE_VECTORS = "edge_vectors.npy"
REPORT_VECTORS = "report_vectors.npy"
_FORMAT = 1
TREE_FILE = "tree.json"
NODES = "nodes.jsonl"
NODE_VECTORS = "node_vectors.npy"

_GRAPH_FILES = (
    SOURCES,
    EXTRACTIONS,
    ENTITIES,
    EDGES,
    COMMUNITIES,
    GENERATED_TEXTS,
    ENTITY_VECTORS,
    EDGE_VECTORS,
    REPORT_VECTORS,
)

_TREE_FILES = (SOURCES, NODES, GENERATED_TEXTS, NODE_VECTORS)
_LAYOUTS = {"graph": (_GRAPH_FILE, _GRAPH_FILES), "tree": (TREE_FILE, _TREE_FILES)}
GraphKind = Literal["graph", "tree"]


@dataclass(frozen=True, slots=True)
class GraphDescription:
    """Contents of graph.json or tree.json; ``index`` is the digest of the source index."""

    what: GraphKind
    index: str
    settings: Mapping[str, Any]
    embedder: str
    counts: Mapping[str, int]
    files: Mapping[str, tuple[int, str]]

    @property
    def digest(self) -> str:
        """Digest of settings and all files."""
        return digest_json(self._body())

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values, including the digest."""
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
    """Write one JSON value per line."""
    with atomic_write(path) as file:
        for row in rows:
            file.write(canonical_json(row) + "\n")


def read_rows(path: Path) -> list[Any]:
    """Parse the output of ``write_rows``.

    Raises:
        IntegrityError: If a line is not valid JSON.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise _make_damage_error(path, str(error)) from error


def write_vectors(path: Path, vectors: NDArray[np.float32]) -> None:
    """Write vectors, (N, D) float32."""
    with atomic_write(path, "wb") as file:
        np.save(file, np.ascontiguousarray(vectors, dtype=np.float32))


def write_graph_description(
    folder: Path,
    kind: GraphKind,
    *,
    index: str,
    settings: Mapping[str, Any],
    embedder: str,
    counts: Mapping[str, int],
) -> GraphDescription:
    """Write graph.json or tree.json; the other files must be complete."""
    mark, names = _LAYOUTS[kind]
    files = {name: ((folder / name).stat().st_size, digest_file(folder / name)) for name in names}
    description = GraphDescription(kind, index, settings, embedder, counts, files)
    with atomic_write(folder / mark) as file:
        json.dump(description.to_json(), file, ensure_ascii=False, indent=1)
    return description


def find_graph(path: Path, kind: GraphKind) -> Path:
    """Return the folder with the files of a graph or tree, given the job's folder or its output.

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
            expected=_describe_expected(kind),
            next=f"check the path, or build it: {_format_command(kind)}",
        ) from error


def read_graph_description(
    folder: Path, kind: GraphKind, *, verify: bool = True
) -> GraphDescription:
    """Read graph.json or tree.json and verify the other files.

    Args:
        folder: The folder that contains it.
        kind: ``graph`` or ``tree``.
        verify: Recompute the files' digests; if false, only sizes are compared.

    Raises:
        IntegrityError: If a file is missing or differs from what was written.
    """
    mark, names = _LAYOUTS[kind]
    path = folder / mark
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("format") != _FORMAT:
            raise ValueError(f"format {data.get('format')!r}, expected {_FORMAT}")
        description = GraphDescription(
            kind,
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
            f"{folder} has no {mark}: it is not a {kind}, or an unfinished one",
            code="rag.no-graph",
            where=str(folder),
            expected=_describe_expected(kind),
            next="build it, or finish it with --resume",
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _make_damage_error(path, str(error)) from error
    for name in names:
        _check_file(folder / name, description.files.get(name), verify=verify)
    return description


def _describe_expected(kind: GraphKind) -> str:
    return f"the folder that '{_format_command(kind)}' wrote"


def _format_command(kind: GraphKind) -> str:
    return f"stillroom rag {kind} INDEX --out {kind.upper()}"


def write_graphml(file: IO[str], entities: Sequence[Entity], edges: Sequence[GraphEdge]) -> None:
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
        file.write(f'  <node id="n{number}">{_format_graphml_data(values)}</node>\n')
    for edge in edges:
        values = {"weight": edge.weight, "description": edge.description}
        ends = f'source="n{edge.source}" target="n{edge.target}"'
        file.write(f"  <edge {ends}>{_format_graphml_data(values)}</edge>\n")
    file.write(" </graph>\n</graphml>\n")


def _format_graphml_data(values: Mapping[str, Any]) -> str:
    return "".join(
        f'<data key="{name}">{escape(_strip_unprintable(str(value)))}</data>'
        for name, value in values.items()
    )


def _strip_unprintable(text: str) -> str:
    """Drop characters that XML 1.0 does not allow: control characters and lone surrogates."""
    return "".join(
        character
        for character in text
        if character in "\t\n\r"
        or (character >= " " and not "\ud800" <= character <= "\udfff" and character < "\ufffe")
        or character > "\uffff"
    )


def _check_file(path: Path, entry: tuple[int, str] | None, *, verify: bool) -> None:
    if entry is None or not path.is_file():
        raise _make_damage_error(path, "it is missing")
    size, digest = entry
    if path.stat().st_size != size:
        raise _make_damage_error(path, f"it has {path.stat().st_size} bytes instead of {size}")
    if verify and digest_file(path) != digest:
        raise _make_damage_error(path, "its bytes are not those that were written")


def _make_damage_error(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        f"the graph or tree is damaged: {path.name}: {reason}",
        code="rag.graph-damaged",
        where=str(path),
        expected="the file that the job wrote",
        next="build it again with --overwrite",
    )
