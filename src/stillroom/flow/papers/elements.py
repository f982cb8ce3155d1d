"""Minimum elements of an SBOM for AI, filled from the lineage.

Seven clusters of 50 elements; an element that the lineage does not hold is unknown.

Source: G7 Cybersecurity Working Group / BSI, "Software Bill of Materials (SBOM) for Artificial
Intelligence: Minimum Elements", 12 May 2026.
"""

from __future__ import annotations

from stillroom.flow.papers.facts import (
    UNKNOWN,
    FieldSheet,
    describe_metric,
    describe_texts,
    describe_training,
    find_filters,
    format_counts,
    select_metrics,
)
from stillroom.flow.papers.graph import ProvenanceGraph
from stillroom.flow.papers.model_card import find_license, list_bases
from stillroom.flow.papers.node import Node

__all__ = ["CLUSTERS", "fill_elements"]

CLUSTERS = (
    "metadata",
    "system",
    "models",
    "datasets",
    "infrastructure",
    "security",
    "kpis",
)
_GUARDS = {"injection", "personal", "toxicity", "decontaminate", "license", "refusal"}


def fill_elements(graph: ProvenanceGraph, format_name: str, format_version: str) -> FieldSheet:
    """Return the 50 elements by ``cluster/element`` with their values.

    Args:
        graph: The lineage.
        format_name: Data format of the SBOM, as ``CycloneDX``.
        format_version: Version of that format.
    """
    sheet = FieldSheet()
    clusters = (
        _list_metadata(graph, format_name, format_version),
        _list_system(graph),
        _list_model(graph),
        _list_datasets(graph),
        _list_infrastructure(graph),
        _list_security(graph),
        _list_kpis(graph),
    )
    for cluster, elements in zip(CLUSTERS, clusters, strict=True):
        for name, value in elements.items():
            sheet.fill(f"{cluster}/{name}", value)
    return sheet


def _list_metadata(
    graph: ProvenanceGraph, format_name: str, format_version: str
) -> dict[str, object]:
    from stillroom import __version__

    return {
        "author": graph.provider,
        "version": "1",
        "data format name": format_name,
        "data format version": format_version,
        "author signature": None,
        "tool name": "Stillroom",
        "tool version": __version__,
        "generation context": "after build",
        "timestamp": graph.artifact.created,
        "dependency relationship": f"{len(graph.edges)} relationships" if graph.edges else None,
    }


def _list_system(graph: ProvenanceGraph) -> dict[str, object]:
    """Return the elements of a run; a single job is no system, so all are unknown."""
    is_run = graph.is_run
    steps = [node.name for node in graph.nodes.values() if node.artifact and node.location]
    flow = "; ".join(
        f"{graph.nodes[edge.parent].name} -> {graph.nodes[edge.child].name} ({edge.role})"
        for edge in graph.edges
    )
    return {
        "name": graph.root.name if is_run else None,
        "components": ", ".join(steps) if is_run else None,
        "producer": graph.provider if is_run else None,
        "version": graph.artifact.digest if is_run else None,
        "timestamp": graph.artifact.created if is_run else None,
        "data flow": flow if is_run else None,
        "data usage": None,
        "input/output properties": "text in, text out"
        if is_run and not graph.is_detector
        else None,
        "intended application area": None,
    }


def _list_model(graph: ProvenanceGraph) -> dict[str, object]:
    subject = graph.subject
    if subject.kind != "checkpoint":  # records have no model, and so no elements of one
        return {}
    facts, artifact = subject.model, graph.subject_artifact
    license = find_license(graph)
    shape = [facts.architecture, f"{facts.parameters} parameters" if facts.parameters else ""]
    bases = list_bases(graph)
    context = f", context of {facts.context} tokens" if facts.context else ""
    return {
        "name": graph.title,
        "identifier": f"sha256:{subject.digest}",
        "version": subject.digest,
        "timestamp": subject.created,
        "producer": graph.provider,
        "description": f"made from {', '.join(bases)}" if bases else None,
        "hash value": ", ".join(f"{entry.path} {entry.digest}" for entry in artifact.files),
        "hash algorithm": "SHA-256" if artifact.files else None,
        "properties": ", ".join(part for part in shape if part),
        "input-output properties": None if graph.is_detector else f"text in, text out{context}",
        "training properties": describe_training(graph, subject),
        "license": None if UNKNOWN in license.split() else license,
        "external references": ", ".join(
            node.location for _, node in graph.models if node.kind == "model" and node.location
        ),
    }


def _list_datasets(graph: ProvenanceGraph) -> dict[str, object]:
    data = graph.data
    readable = [node for node in data if node.text and not node.text.problem]
    is_licensed = bool(data) and all(node.license for node in data)
    return {
        "name": ", ".join(node.name for node in data),
        "description": "; ".join(_describe_use(graph, node) for node in data),
        "content": "; ".join(filter(None, (_describe_content(node) for node in data))),
        "identifier": ", ".join(f"sha256:{node.digest}" for node in data),
        "hash": ", ".join(node.digest for node in data),
        "provenance": "; ".join(filter(None, (describe_texts(node) for node in data))),
        "statistical properties": "; ".join(
            f"{node.text.count} {node.text.unit}, {node.text.text_bytes} bytes of text"
            for node in readable
            if node.text
        ),
        "sensitivity": None,
        "dependency relationship": "; ".join(
            f"{node.name} from {', '.join(parent.name for _, parent in graph.list_parents(node))}"
            for node in data
            if graph.list_parents(node)
        ),
        "license": " AND ".join(dict.fromkeys(node.license for node in data))
        if is_licensed
        else None,
    }


def _describe_use(graph: ProvenanceGraph, node: Node) -> str:
    roles = sorted({edge.role for edge in graph.edges if edge.parent == node.id})
    return f"{node.name}: {', '.join(roles) or 'the subject'}"


def _describe_content(node: Node) -> str:
    if node.text is None or node.text.problem:
        return ""
    kinds = format_counts(node.text.media_types) if node.kind == "index" else "JSON lines of turns"
    return f"{node.name}: {kinds or UNKNOWN}"


def _list_infrastructure(graph: ProvenanceGraph) -> dict[str, object]:
    versions = graph.subject_artifact.versions
    host = graph.subject_artifact.host
    return {
        "software": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "hardware": f"made on {host['platform']}, {host.get('cores')} cores"
        if host.get("platform")
        else None,
    }


def _list_security(graph: ProvenanceGraph) -> dict[str, object]:
    filters = [
        f"{node.name}: filters {', '.join(kept)}"
        for node in graph.select("records", of=graph.subject)
        if (kept := [name for name in find_filters(node) if name in _GUARDS])
    ]
    return {
        "controls": "; ".join(filters),
        "compliance": None,
        "policy information": None,
        "vulnerability referencing": None,
    }


def _list_kpis(graph: ProvenanceGraph) -> dict[str, object]:
    measured = select_metrics(graph, quality=False)
    return {
        "security metrics": None,
        "operational performance": "; ".join(
            f"{metric['name']} {describe_metric(metric)}"
            for metric in measured
            if not metric["name"].startswith("seconds/")
        ),
    }
