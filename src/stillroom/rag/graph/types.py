"""Elements of a knowledge graph (entities, edges, communities), their files, and GraphML export.

Every element records the spans it is derived from: ``(row, start, end)`` is ``text[start:end]`` of
the graph's source at that row, which refers to a passage by id.

``graph.json`` is written last and records the size and digest of every other file.
It contains no timestamp and no history: an updated graph has the same bytes as one built from
scratch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar
from xml.sax.saxutils import escape

import numpy as np
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from stillroom.errors import DataError, IntegrityError
from stillroom.jobs import atomic_write
from stillroom.provenance import canonical_json, digest_file, digest_json, find_output
from stillroom.provenance.digests import load_json
from stillroom.rag.storage.snapshots import check_file, make_format_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "COMMUNITIES",
    "EDGES",
    "ENTITIES",
    "ENTITY_VECTORS",
    "EXTRACTIONS",
    "GENERATED_TEXTS",
    "GRAPH_FILE",
    "REPORT_VECTORS",
    "SOURCES",
    "Community",
    "CommunityReport",
    "Entity",
    "GraphDescription",
    "GraphEdge",
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


Element = TypeVar("Element")
Span = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class SourcePassage:
    """A passage of the graph: its id, its document's id, and the key of its extraction."""

    passage_id: str
    document_id: str
    key: str


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


@dataclass(frozen=True, slots=True)
class GraphEdge:
    """A relation between two entities, by their numbers; ``source`` is the smaller one."""

    source: int
    target: int
    weight: float
    keywords: tuple[str, ...]
    description: str
    mentions: tuple[Span, ...]


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


@dataclass(frozen=True, slots=True)
class Community:
    """Cluster of entities more related to each other than to others, by their numbers.

    ``id`` is computed from the level and the members' keys; ``parent`` is the id of the enclosing
    community, empty at level 0; ``rows`` are the passages that support its report.
    """

    id: str
    level: int
    parent: str
    entities: tuple[int, ...]
    rows: tuple[int, ...]
    report: CommunityReport


GRAPH_FILE = "graph.json"
SOURCES = "sources.jsonl"
EXTRACTIONS = "extractions.jsonl"
ENTITIES = "entities.jsonl"
EDGES = "edges.jsonl"
COMMUNITIES = "communities.jsonl"
GENERATED_TEXTS = "written.jsonl"
ENTITY_VECTORS = "entity_vectors.npy"
REPORT_VECTORS = "report_vectors.npy"
_FORMAT = 2
_FILES = (
    SOURCES,
    EXTRACTIONS,
    ENTITIES,
    EDGES,
    COMMUNITIES,
    GENERATED_TEXTS,
    ENTITY_VECTORS,
    REPORT_VECTORS,
)


@dataclass(frozen=True, slots=True)
class GraphDescription:
    """Contents of graph.json; ``index`` is the digest of the source index.

    ``files`` has the size in bytes and the digest of every other file.
    """

    index: str
    settings: Mapping[str, Any]
    embedder: str
    counts: Mapping[str, int]
    files: Mapping[str, tuple[int, str]]
    format: int = _FORMAT

    @property
    def digest(self) -> str:
        """Digest of settings and all files."""
        return digest_json(asdict(self))


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value, or one dataclass, per line."""
    with atomic_write(path) as file:
        for row in rows:
            file.write(canonical_json(to_jsonable_python(row)) + "\n")


def read_rows(path: Path, element: type[Element]) -> list[Element]:
    """Parse the output of ``write_rows``.

    Raises:
        IntegrityError: If a line is not an ``element``.
    """
    adapter = TypeAdapter(element)
    try:
        return [adapter.validate_json(line) for line in path.read_bytes().splitlines()]
    except (OSError, ValueError) as error:
        raise _make_damage_error(path, str(error)) from error


def write_vectors(path: Path, vectors: NDArray[np.float32]) -> None:
    """Write vectors, (N, D) float32."""
    with atomic_write(path, "wb") as file:
        np.save(file, np.ascontiguousarray(vectors, dtype=np.float32))


def write_graph_description(
    folder: Path,
    *,
    index: str,
    settings: Mapping[str, Any],
    embedder: str,
    counts: Mapping[str, int],
) -> GraphDescription:
    """Write graph.json; the other files must be complete."""
    files = {name: ((folder / name).stat().st_size, digest_file(folder / name)) for name in _FILES}
    description = GraphDescription(index, settings, embedder, counts, files)
    with atomic_write(folder / GRAPH_FILE) as file:
        data = {**asdict(description), "digest": description.digest}
        json.dump(data, file, ensure_ascii=False, indent=1)
    return description


def find_graph(path: Path) -> Path:
    """Return the folder with the files of a graph, given the job's folder or its output.

    Raises:
        DataError: If the path is missing or another kind of artifact.
    """
    try:
        return find_output(path, "index")
    except DataError as error:
        problem = error.problems[0]
        if problem.code == "data.unfinished":
            raise
        raise DataError(
            problem.what,
            code=problem.code,
            expected=f"the folder that '{_COMMAND}' wrote",
            next=f"check the path, or build it: {_COMMAND}",
        ) from error


def read_graph_description(folder: Path, *, verify: bool = True) -> GraphDescription:
    """Read graph.json and verify the other files.

    Without ``verify`` only the files' sizes are compared.

    Raises:
        IntegrityError: If a file is missing or differs from what was written.
    """
    path = folder / GRAPH_FILE
    try:
        data = load_json(path.read_text(encoding="utf-8"))
        if data.get("format") != _FORMAT:
            raise make_format_error(path, data.get("format"), _FORMAT)
        digest = data.pop("digest", None)
        description = TypeAdapter(GraphDescription).validate_python(data)
        if description.digest != digest:
            raise ValueError("it was changed after it was written")
    except FileNotFoundError as error:
        raise IntegrityError(
            f"{folder} has no {GRAPH_FILE}: it is not a graph, or an unfinished one",
            code="rag.no-graph",
            where=str(folder),
            expected=f"the folder that '{_COMMAND}' wrote",
            next="build it, or finish it with --resume",
        ) from error
    except (OSError, ValueError, AttributeError) as error:
        raise _make_damage_error(path, str(error)) from error
    for name in _FILES:
        recorded = description.files.get(name)
        if recorded is None:
            raise _make_damage_error(folder / name, "it is missing")
        check_file(folder / name, recorded, verify=verify, damage=_make_damage_error)
    return description


_COMMAND = "stillroom run rag.graph index=INDEX --out GRAPH"


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


def _make_damage_error(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        f"the graph is damaged: {path.name}: {reason}",
        code="rag.graph-damaged",
        where=str(path),
        expected="the file that the job wrote",
        next="build it again with --overwrite",
    )
