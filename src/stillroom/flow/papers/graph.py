"""Provenance graph (lineage graph) of a run: the one reader from which every paper is written.

A node is an artifact, or an input from outside: a base model, a folder of documents, a file, or one
that is gone. Facts are read from artifact.json, from recipes whose digest is recorded, from records
and documents, and from headers of weights. A fact that none of them holds is None; nothing is
looked up in tables of known models, and no model is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.flow.opening import find_step
from stillroom.flow.papers.node import DATA_KINDS, Node, NodeKind, hide_places
from stillroom.provenance import ARTIFACT_FILE, Artifact, Parent, read_artifact
from stillroom.provenance.digests import load_json
from stillroom.provenance.sources import (
    has_path,
    is_path_parent,
    is_reference,
    list_ancestors,
    resolve_parent,
)

__all__ = ["Edge", "ProvenanceGraph", "read_graph"]

_CHOOSING_KINDS = ("merge.", "distill.prune")
"""Beginnings of the kinds of jobs that measure models on records and train none."""
MODEL_ROLES = frozenset({"teacher", "base", "model", "student", "start", "embedder", "reader"})


@dataclass(frozen=True, slots=True)
class Edge:
    """``child`` was made from ``parent``, which had that role; both are ids of nodes."""

    child: str
    parent: str
    role: str


@dataclass
class ProvenanceGraph:
    """Nodes in order from the run to its sources, edges, and what the run is about.

    ``subject`` is the node that the papers describe: a model, or records. ``metrics`` are rows of
    evaluation reports (name, value, low, high, n, unit); ``provider`` is who answers for the model,
    which no lineage can know; ``compared`` are the readers that the reports compared.
    """

    root: Path
    artifact: Artifact
    nodes: dict[str, Node]
    edges: tuple[Edge, ...]
    subject: Node
    metrics: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    compared: set[str] = field(default_factory=set)
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

    def list_training_data(self, node: Node, *, is_tested: bool = False) -> list[Node]:
        """Return the data that a model learned from, itself or before it was trained further.

        What the data were made from, and what a teacher learned from, is not among them.

        With ``is_tested``, return the data on which a merge or a pruning was measured instead.
        """
        found: dict[str, Node] = {}
        waiting = [node]
        for model in waiting:  # grows during iteration
            chooses = str(model.recipe.get("kind", "")).startswith(_CHOOSING_KINDS)
            for role, parent in self.list_parents(model):
                is_data = parent.kind in (*DATA_KINDS, "documents", "file")
                if is_data and chooses == is_tested:
                    found[parent.id] = parent
                is_further = role != "teacher" and parent not in waiting
                if parent.kind == "checkpoint" and is_further:
                    waiting.append(parent)
        return list(found.values())

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
) -> ProvenanceGraph:
    """Read the lineage of a run, or of a job that produced a checkpoint, records or an index.

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
    if kind not in ("checkpoint", "records", "index"):
        is_run = bool(artifact.details.get("steps"))
        raise DataError(
            f"{path} is a run without `answer:` in its recipe"
            if is_run
            else f"{path} is an artifact of kind {kind}",
            code="data.wrong-kind",
            expected="a run that answers, or a job that produced a checkpoint, records or an index",
            next=f"name one of its steps, in {path / 'steps'}"
            if is_run
            else f"stillroom show {path}",
        )
    builder = _GraphBuilder(root)
    builder.add_artifacts()
    decision = artifact.details.get("decision") or ""
    graph = ProvenanceGraph(
        root,
        artifact,
        builder.nodes,
        tuple(dict.fromkeys(builder.edges)),
        builder.nodes[builder.ids[subject]],
        name=name,
        provider=provider,
        decision=str(decision["line"] if isinstance(decision, Mapping) else decision),
    )
    for report in report_paths:
        _read_report(graph, report)
    if not report_paths:
        graph.metrics += _read_fidelity(graph.subject_folder / "output" / "fidelity.json")
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
        node = Node(
            f"{artifact.kind}:{name}",
            name,
            artifact.kind,
            artifact.digest,
            "" if location is None else location.as_posix(),
            str(artifact.origin.get("license") or ""),
            folder,
            artifact,
        )
        if node.text:
            node.license = node.text.combine_licenses(node.license)
        self.ids[folder] = self._add(node)

    def _add_parent(self, folder: Path, parent: Parent, names: Mapping[Path, str]) -> str:
        is_model = parent.kind == "checkpoint" or parent.role in MODEL_ROLES
        if not has_path(parent):
            return self._add(Node(f"missing:{parent.role}", parent.role, "missing"))
        if is_reference(parent.path):
            reference, digest = hide_places(parent.path), hide_places(parent.digest)
            name = reference.removeprefix("hub:").partition("@")[0]
            kind: NodeKind = "model" if is_model else "file"
            return self._add(Node(f"{kind}:{reference}", name, kind, digest, reference))
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


def _read_report(graph: ProvenanceGraph, path: Path) -> None:
    file = path if path.is_file() else path / "report.json"
    if not file.is_file():
        file = path / "output" / "report.json"
    try:
        report = load_json(file.read_text(encoding="utf-8"))
        graph.metrics += _list_metrics(report)
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
                graph.compared |= {one.path for one in artifact.parents if one.role == "reader"}


def _read_fidelity(file: Path) -> list[dict[str, Any]]:
    """Return what a distillation measured of its student on held-out records; counts left out."""
    try:
        rows = _list_metrics(load_json(file.read_text(encoding="utf-8"))["report"])
    except (OSError, ValueError, KeyError, TypeError):  # no distillation, or nothing held out
        return []
    return [
        row
        for row in rows
        if row["name"].startswith("student")
        and (row["low"] is not None or row.get("note") == "one value has no interval")
    ]


def _list_metrics(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {**metric, "low": _get_finite(metric.get("low")), "high": _get_finite(metric.get("high"))}
        for metric in report["metrics"]
        if _get_finite(metric["value"]) is not None
    ]


def _get_finite(value: float | None) -> float | None:
    """Return a number unless it is missing or not finite; bounds of one value are NaN."""
    return value if value is not None and math.isfinite(value) else None
