"""Graph of a run's lineage: the one reader from which every paper is written.

A node is an artifact, or an input from outside: a base model, a folder of documents, a file, or one
that is gone. Facts are read from artifact.json, from recipes whose digest is recorded, from records
and documents, and from headers of weights. A fact that none of them holds is None; nothing is
looked up in tables of known models, and no model is loaded.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from stillroom.errors import DataError, StillroomError
from stillroom.flow.opening import find_step
from stillroom.provenance import ARTIFACT_FILE, Artifact, Parent, digest_text, read_artifact
from stillroom.provenance.signing import read_claims
from stillroom.provenance.sources import (
    has_passages,
    has_path,
    is_path_parent,
    is_reference,
    iter_documents,
    list_ancestors,
    resolve_parent,
)
from stillroom.records import Record, find_record_file, read_records

__all__ = [
    "DATA_KINDS",
    "DocumentFacts",
    "Edge",
    "LineageGraph",
    "ModelFacts",
    "Node",
    "TextFacts",
    "hide_folders",
    "read_graph",
    "read_recipe",
]

NodeKind = Literal[
    "checkpoint", "records", "index", "media", "report", "model", "documents", "file", "missing"
]
DATA_KINDS: tuple[NodeKind, ...] = ("records", "index", "media")
MODEL_ROLES = frozenset({"teacher", "base", "model", "student", "start", "embedder", "reader"})


@dataclass(frozen=True, slots=True)
class DocumentFacts:
    """One document of an index: path in its folder, SHA-256, media type, language, origin."""

    path: str
    digest: str
    media_type: str
    language: str
    origin: str
    license: str
    text_bytes: int


@dataclass
class TextFacts:
    """Counts over the texts of one node: records, or documents.

    ``text_bytes`` is the size of the text in UTF-8; the counters count texts by value, with an
    empty string for those of which it is unknown. ``problem`` says why they could not be read.
    """

    unit: str
    count: int = 0
    text_bytes: int = 0
    origins: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    media_types: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    documents: tuple[DocumentFacts, ...] = ()
    problem: str = ""

    def add_record(self, record: Record) -> None:
        """Count one record."""
        self.count += 1
        texts = (message.content for message in record.messages)
        self.text_bytes += sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        self.origins[record.origin.kind] += 1
        self.licenses[record.origin.license] += 1
        self.splits[str(record.fields.get("split") or "")] += 1
        for link in record.origin.chain:
            self.methods[link.method] += 1
            if link.model:
                self.models[link.model] += 1


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the files of a checkpoint say: architecture, family, parameters, context in tokens."""

    architecture: str = ""
    family: str = ""
    parameters: int | None = None
    context: int | None = None
    dtypes: tuple[str, ...] = ()


@dataclass(eq=False)
class Node:
    """An artifact or an outside input; ``id`` is unique in the graph and the same on every machine.

    ``location`` is its folder relative to the run, or its reference; empty where neither is known
    without a local path. ``license`` is an SPDX expression or empty.
    """

    id: str
    name: str
    kind: NodeKind
    digest: str = ""
    location: str = ""
    license: str = ""
    folder: Path | None = None
    artifact: Artifact | None = None

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        """Settings of the job, as resolved; empty if the recipe is gone or was changed."""
        if self.folder is None or self.artifact is None:
            return {}
        return read_recipe(self.folder, self.artifact)

    @cached_property
    def text(self) -> TextFacts | None:
        """Counts over the records or documents; None for other kinds."""
        if self.folder is None:
            return None
        if self.kind == "records":
            return _read_record_facts(self.folder)
        return _read_document_facts(self.folder) if self.kind == "index" else None

    @cached_property
    def model(self) -> ModelFacts:
        """Facts of a checkpoint's files; empty for other kinds."""
        if self.folder is None or self.kind != "checkpoint":
            return ModelFacts()
        return _read_model_facts(self.folder / "output")

    @cached_property
    def seconds(self) -> Mapping[str, float]:
        """Seconds of each phase, from the job's events."""
        return {} if self.folder is None else _read_phases(self.folder / "events.jsonl")

    @cached_property
    def signer(self) -> str:
        """Key id that the newest claim names, unchecked; empty for a folder without claims.

        Raises:
            IntegrityError: If the claims cannot be read.
        """
        claims = read_claims(self.folder) if self.folder is not None and self.artifact else []
        signatures = claims[-1].get("signatures") if claims else None
        return str(signatures[0].get("keyid", "")) if signatures else ""

    @property
    def origin(self) -> str:
        """``human``, ``synthetic`` or ``unknown``."""
        return str(self.artifact.origin.get("kind", "unknown")) if self.artifact else "unknown"

    @property
    def created(self) -> str:
        """Time at which the job finished, ISO 8601; empty if it is not recorded."""
        return self.artifact.created if self.artifact else ""


@dataclass(frozen=True, slots=True)
class Edge:
    """``child`` was made from ``parent``, which had that role; both are ids of nodes."""

    child: str
    parent: str
    role: str


@dataclass
class LineageGraph:
    """Nodes in order from the run to its sources, edges, and what the run is about.

    ``subject`` is the node that the papers describe: a model, or records. ``metrics`` are rows of
    evaluation reports (name, value, low, high, n, unit); ``provider`` is who answers for the model,
    which no lineage can know.
    """

    root: Path
    artifact: Artifact
    nodes: dict[str, Node]
    edges: tuple[Edge, ...]
    subject: Node
    metrics: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    decision: str = ""
    name: str = ""
    provider: str = ""

    @property
    def subject_artifact(self) -> Artifact:
        """Artifact of the subject."""
        if self.subject.artifact is None:
            raise TypeError(f"{self.subject.id} is no artifact")
        return self.subject.artifact

    @property
    def subject_folder(self) -> Path:
        """Folder of the subject."""
        return self.subject.folder or self.root

    @property
    def title(self) -> str:
        """Name of the subject: as given, or its folder's."""
        return self.name or self.subject.name

    @property
    def is_run(self) -> bool:
        """Whether the root is a run of several jobs, so a system, not the subject itself."""
        return self.subject.folder != self.root

    @property
    def is_reader(self) -> bool:
        """Whether the subject is a sentence reader, not a language model."""
        return bool(self.subject.artifact and self.subject.artifact.details.get("reader"))

    @property
    def is_detector(self) -> bool:
        """Whether the subject is a detector of forgeries, not a language model."""
        return bool(self.subject.artifact and self.subject.artifact.details.get("detector"))

    def list_parents(self, node: Node) -> list[tuple[str, Node]]:
        """Return role and node of every direct input."""
        return [
            (edge.role, self.nodes[edge.parent]) for edge in self.edges if edge.child == node.id
        ]

    def list_ancestors(self, node: Node) -> list[Node]:
        """Return all inputs, direct and indirect, nearest first, without the node itself."""
        found = {node.id: node}
        waiting = [node]
        for current in waiting:  # grows during iteration
            for _, parent in self.list_parents(current):
                if parent.id not in found:
                    found[parent.id] = parent
                    waiting.append(parent)
        return waiting[1:]

    def select(self, *kinds: NodeKind, of: Node | None = None) -> list[Node]:
        """Return nodes of some kinds: all, or those that a node was made from and itself."""
        nodes = self.nodes.values() if of is None else [of, *self.list_ancestors(of)]
        return [node for node in nodes if node.kind in kinds]

    @property
    def data(self) -> list[Node]:
        """Records, indexes of documents and media that the subject was made from, or is."""
        return self.select(*DATA_KINDS, of=self.subject)

    @property
    def models(self) -> list[tuple[str, Node]]:
        """Role and node of the models from which the subject and its data came."""
        pairs = [
            (edge.role, self.nodes[edge.parent])
            for child in [self.subject, *self.list_ancestors(self.subject)]
            for edge in self.edges
            if edge.child == child.id and self.nodes[edge.parent].kind in ("model", "checkpoint")
        ]
        return list(dict.fromkeys(pairs))

    def find_model(self, fingerprint: str) -> Node | None:
        """Return the model of a fingerprint that a link names; None if the graph has none."""
        return next(
            (
                node
                for node in self.nodes.values()
                if node.kind in ("model", "checkpoint") and node.digest == fingerprint
            ),
            None,
        )

    @property
    def open_ends(self) -> list[str]:
        """Inputs that are gone or cannot be read, one line each."""
        gone = [f"{node.name} is gone" for node in self.select("missing")]
        texts = ((node.name, node.text) for node in self.nodes.values())
        return gone + [f"{name}: {text.problem}" for name, text in texts if text and text.problem]


def read_graph(
    path: Path, *, reports: Sequence[Path] = (), name: str = "", provider: str = ""
) -> LineageGraph:
    """Read the lineage of a run, or of a job that produced a checkpoint or records.

    Args:
        path: Folder of the run or job. Of a run, the subject is the model or reader that it trained
            (a reader where an input is the model).
        reports: Additional jobs of kind report, or report files, whose figures are included.
        name: Name of the subject; by default its folder's.
        provider: Name and contact of who answers for it; empty means unknown.

    Raises:
        DataError: If the path is no finished job, has no such subject, or a report cannot be read.
    """
    root = path.absolute()
    artifact = read_artifact(root)
    report_paths = list(reports)
    subject = root
    if artifact.kind == "report" and artifact.details.get("answer"):
        report_paths.append(root)
        subject = _find_subject(root, artifact)
    kind = read_artifact(subject).kind
    if kind not in ("checkpoint", "records"):
        raise DataError(
            f"{path} is an artifact of kind {kind}",
            code="data.wrong-kind",
            expected="the folder of a run, or of a job that produced a checkpoint or records",
            next=f"stillroom show {path}",
        )
    builder = _GraphBuilder(root)
    builder.add_artifacts()
    graph = LineageGraph(
        root,
        artifact,
        builder.nodes,
        tuple(dict.fromkeys(builder.edges)),
        builder.nodes[builder.ids[subject]],
        name=name,
        provider=provider,
        decision=str(artifact.details.get("decision") or ""),
    )
    for report in report_paths:
        _read_report(graph, report)
    return graph


def _find_subject(root: Path, artifact: Artifact) -> Path:
    answer = artifact.details["answer"]
    is_trained = answer["model"] in artifact.details["steps"] or "reader" not in answer
    reads = "trained_reader" if "trained_reader" in answer else "reader"  # another one won
    return find_step(root, "model" if is_trained else reads)


class _GraphBuilder:
    """Collects nodes; artifacts first, then the inputs of theirs that are none."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.nodes: dict[str, Node] = {}
        self.edges: list[Edge] = []
        self.ids: dict[Path, str] = {}

    def add_artifacts(self) -> None:
        artifacts = list(list_ancestors(self.root))
        steps = read_artifact(self.root).details.get("steps") or {}
        known = {folder for folder, _ in artifacts}
        for step in steps.values():  # a step that no other one reads
            folder = (self.root / step).absolute()
            if folder not in known and (folder / ARTIFACT_FILE).is_file():
                artifacts += [pair for pair in list_ancestors(folder) if pair[0] not in known]
                known = {folder for folder, _ in artifacts}
        names = _shorten_paths([folder for folder, _ in artifacts])
        for folder, artifact in artifacts:
            self._add_artifact(folder, artifact, names[folder])
        outside = [
            resolve_parent(folder, parent)
            for folder, artifact in artifacts
            for parent in artifact.parents
            if has_path(parent) and is_path_parent(parent)
        ]
        outside_names = _shorten_paths([one for one in dict.fromkeys(outside) if one not in known])
        for folder, artifact in artifacts:
            for parent in artifact.parents:
                parent_id = self._add_parent(folder, parent, outside_names)
                self.edges.append(Edge(self.ids[folder], parent_id, parent.role))

    def _add_artifact(self, folder: Path, artifact: Artifact, name: str) -> None:
        location = folder.relative_to(self.root) if folder.is_relative_to(self.root) else None
        self.ids[folder] = self._add(
            Node(
                f"{artifact.kind}:{name}",
                name,
                artifact.kind,
                artifact.digest,
                "" if location is None else location.as_posix(),
                str(artifact.origin.get("license") or ""),
                folder,
                artifact,
            )
        )

    def _add_parent(self, folder: Path, parent: Parent, names: Mapping[Path, str]) -> str:
        is_model = parent.kind == "checkpoint" or parent.role in MODEL_ROLES
        if not has_path(parent):
            return self._add(Node(f"missing:{parent.role}", parent.role, "missing"))
        if is_reference(parent.path):
            reference = hide_folders(parent.path)
            name = reference.removeprefix("hub:").partition("@")[0]
            kind: NodeKind = "model" if is_model else "file"
            return self._add(Node(f"{kind}:{reference}", name, kind, parent.digest, reference))
        path = resolve_parent(folder, parent)
        if path in self.ids:
            return self.ids[path]
        if not path.exists():
            kind = "missing"
        elif is_model:
            kind = "model"
        else:
            kind = "documents" if parent.role == "documents" else "file"
        name = names.get(path, path.name)
        license = _read_license(path) if kind == "model" else ""
        self.ids[path] = self._add(
            Node(f"{kind}:{name}", name, kind, parent.digest, license=license, folder=path)
        )
        return self.ids[path]

    def _add(self, node: Node) -> str:
        """Add a node unless there is one of the same id and digest; return its id."""
        taken = self.nodes.get(node.id)
        if taken is not None and taken.digest != node.digest:
            node.id = f"{node.id}#{node.digest[:12]}"
        self.nodes.setdefault(node.id, node)
        return node.id


def hide_folders(text: str) -> str:
    """Return a path or a reference to one without its folders; other texts unchanged."""
    local = re.fullmatch(r"((?:[a-z][a-z0-9+.-]+:)?)(/(?!/).*|\.{1,2}/.*|[A-Za-z]:[\\/].*)", text)
    if local is None:
        return text
    return local[1] + re.split(r"[\\/]", local[2].rstrip("\\/"))[-1]


def _read_license(folder: Path) -> str:
    """Return the license that a model's own card names; empty without one."""
    from stillroom.checkpoints.card import read_card

    return str(read_card(folder).get("license") or "") if folder.is_dir() else ""


def _shorten_paths(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the shortest unique suffix of each path."""
    names = {}
    for path in paths:
        for count in range(1, len(path.parts) + 1):
            tail = path.parts[-count:]
            if sum(other_path.parts[-count:] == tail for other_path in paths) == 1:
                break
        names[path] = "/".join(tail)
    return names


def _read_report(graph: LineageGraph, path: Path) -> None:
    file = path if path.is_file() else path / "report.json"
    if not file.is_file():
        file = path / "output" / "report.json"
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        graph.metrics += [
            {
                **metric,
                "low": _get_finite(metric.get("low")),
                "high": _get_finite(metric.get("high")),
            }
            for metric in report["metrics"]
            if _get_finite(metric["value"]) is not None
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as a report: {error!s:.80}",
            code="data.not-a-report",
            where=str(file),
            expected="the folder of an evaluation job, or its report.json",
            next="list artifacts with stillroom list jobs",
        ) from error
    if (path / ARTIFACT_FILE).is_file():
        for _, artifact in list_ancestors(path):
            if artifact.kind == "report":
                graph.left_out.update(artifact.details.get("left_out") or {})


def _get_finite(value: float | None) -> float | None:
    """Return a number unless it is missing or not finite; bounds of one value are NaN."""
    return value if value is not None and math.isfinite(value) else None


def read_recipe(folder: Path, artifact: Artifact) -> Mapping[str, Any]:
    """Return the settings of a job; empty if its recipe is gone or was changed."""
    from stillroom.recipes import parse_recipe

    try:
        text = (folder / "recipe.yaml").read_text(encoding="utf-8")
        if digest_text(text) != artifact.recipe_digest:
            return {}
        return parse_recipe(text, folder=folder).model_dump(mode="json")
    except (OSError, StillroomError):
        return {}


def _read_record_facts(folder: Path) -> TextFacts:
    facts = TextFacts("records")
    try:
        file = find_record_file(folder / "output")
    except DataError:
        facts.problem = "its records were deleted and cannot be counted"
        return facts
    for record in read_records(file):
        facts.add_record(record)
    return facts


def _read_document_facts(folder: Path) -> TextFacts:
    facts = TextFacts("documents")
    if not has_passages(folder):
        facts.problem = "its documents were deleted and cannot be counted"
        return facts
    documents = []
    try:
        for row in iter_documents(folder):
            origin = row.get("origin") if isinstance(row.get("origin"), Mapping) else {}
            text = str(row.get("text") or "")
            document = DocumentFacts(
                str(row["path"]),
                str(row["digest"]),
                str(row.get("media_type") or ""),
                str(row.get("language") or ""),
                str((origin or {}).get("kind", "unknown")),
                str((origin or {}).get("license") or ""),
                len(text.encode("utf-8", "surrogatepass")),
            )
            documents.append(document)
    except DataError as error:  # an index with tenants is not read without saying who asks
        facts.problem = error.problems[0].what
        return facts
    facts.documents = tuple(sorted(documents, key=lambda one: (one.path, one.digest)))
    facts.count = len(documents)
    for one in facts.documents:
        facts.text_bytes += one.text_bytes
        facts.origins[one.origin] += 1
        facts.licenses[one.license] += 1
        facts.languages[one.language] += 1
        facts.media_types[one.media_type] += 1
    return facts


def _read_model_facts(output: Path) -> ModelFacts:
    from stillroom.checkpoints.safetensors_format import read_header

    config: dict[str, Any] = {}
    try:
        loaded = json.loads((output / "config.json").read_text(encoding="utf-8"))
        config = loaded if isinstance(loaded, dict) else {}
    except (OSError, ValueError):
        config = {}
    count, dtypes = 0, set()
    try:
        for file in sorted(output.glob("*.safetensors")):
            for entry in read_header(file).values():
                size = 1
                for length in entry.shape:
                    size *= length
                count += size
                dtypes.add(entry.dtype)
    except StillroomError:
        count = 0
    names = config.get("architectures")
    context = config.get("max_position_embeddings")
    return ModelFacts(
        str(names[0]) if isinstance(names, list) and names else "",
        str(config.get("model_type") or ""),
        count or None,
        context if isinstance(context, int) else None,
        tuple(sorted(dtypes)),
    )


def _read_phases(path: Path) -> Mapping[str, float]:
    seconds: Counter[str] = Counter()
    for event in _iter_events(path):
        if event.get("event") == "phase" and isinstance(event.get("seconds"), int | float):
            seconds[str(event.get("name"))] += event["seconds"]
    return {name: round(total, 3) for name, total in seconds.items()}


def _iter_events(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # the last line of a killed job
            continue
        if isinstance(event, dict):
            yield event
