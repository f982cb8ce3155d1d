"""CycloneDX ML-BOM of a run: models, data, how each was made, and a model card.

Models are components of type ``machine-learning-model`` whose pedigree lists what they were made
from; records and documents are of type ``data``; each job is a workflow of the formulation, with
its inputs, outputs, settings and seed. ``compositions`` say which ingredients are complete. The
minimum elements of an SBOM for AI that the lineage does not hold are listed in the properties of
the metadata. The serial number is derived from the content.

Source: CycloneDX 1.7 (ECMA-424, 2nd edition), JSON schema bom-1.7.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stillroom.flow.papers.facts import (
    UNKNOWN,
    FieldSheet,
    Paper,
    derive_uuid,
    describe_metric,
    describe_texts,
    describe_training,
    find_filters,
    find_hub_purl,
    format_counts,
    format_json,
    format_time,
    is_known_license,
    list_methods,
    list_settings,
    normalize_license,
    select_metrics,
)
from stillroom.flow.papers.graph import ProvenanceGraph
from stillroom.flow.papers.model_card import find_license, list_bases, list_limitations
from stillroom.flow.papers.node import Node
from stillroom.provenance import FileEntry
from stillroom.provenance.signing import CLAIMS_FILE, SIGNATURE_FILE

__all__ = ["CLUSTERS", "fill_elements", "write_cyclonedx"]

_TYPES = {
    "checkpoint": "machine-learning-model",
    "model": "machine-learning-model",
    "records": "data",
    "dataset": "data",
    "index": "data",
    "documents": "data",
    "file": "data",
    "media": "data",
    "report": "data",
    "missing": "data",
}
_TASKS = {"merge": "merge", "evaluate": "test"}


def write_cyclonedx(graph: ProvenanceGraph) -> Paper:
    """Return the BOM, valid by the JSON schema of CycloneDX 1.7."""
    sheet = fill_elements(graph, "CycloneDX", "1.7")
    root = next(node for node in graph.nodes.values() if node.folder == graph.root)
    main = root if graph.is_run else graph.subject
    components = [_make_component(graph, node) for node in graph.nodes.values() if node is not main]
    unknown = [{"name": "stillroom:unknown", "value": name} for name in sheet.unknown]
    metadata: dict[str, Any] = {
        "timestamp": format_time(graph.artifact.created) or None,
        "lifecycles": [{"phase": "post-build"}],
        "tools": {"components": [_make_tool()]},
        "authors": [{"name": graph.provider}] if graph.provider else None,
        "component": _make_system(graph, root) if graph.is_run else _make_component(graph, main),
        "properties": unknown,
    }
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "version": 1,
        "metadata": _drop_empty(metadata),
        "components": components,
        "dependencies": _list_dependencies(graph),
        "compositions": _list_compositions(graph),
        "formulation": [{"bom-ref": "formulation", "workflows": _list_workflows(graph)}],
    }
    document["serialNumber"] = f"urn:uuid:{derive_uuid(document)}"
    return sheet.make_paper(
        "cyclonedx", "bom.cdx.json", "CycloneDX 1.7 ML-BOM", format_json(document)
    )


def _drop_empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, "", [], {})}


def _make_tool() -> dict[str, Any]:
    from stillroom import __version__

    return {"type": "application", "name": "Stillroom", "version": __version__}


def _make_system(graph: ProvenanceGraph, root: Node) -> dict[str, Any]:
    """Return the run as the system that its models, records and indexes make up."""
    return _drop_empty(
        {
            "type": "application",
            "bom-ref": root.id,
            "name": root.name,
            "version": root.digest,
            "manufacturer": {"name": graph.provider} if graph.provider else None,
            "description": graph.decision,
            "components": [_make_file(entry, root) for entry in root.files],
            "externalReferences": _list_references(root),
            "properties": _list_properties(root),
        }
    )


def _make_component(graph: ProvenanceGraph, node: Node) -> dict[str, Any]:
    is_subject = node is graph.subject
    kind = _TYPES[node.kind]
    is_model = kind == "machine-learning-model"
    license = find_license(graph) if is_subject and is_model else node.license
    fields: dict[str, Any] = {
        "type": kind,
        "bom-ref": node.id,
        "name": graph.title if is_subject else node.name,
        "version": node.digest or UNKNOWN,
        "manufacturer": {"name": graph.provider} if is_subject and graph.provider else None,
        "description": describe_texts(node)
        or ("This input is gone." if node.kind == "missing" else ""),
        "licenses": _list_licenses(license),
        "purl": find_hub_purl(node) if is_model else "",
        "pedigree": _make_pedigree(graph, node) if is_model else None,
        "externalReferences": _list_references(node),
        "components": [_make_file(entry, node) for entry in node.files]
        + [_make_document(node, one) for one in (node.text.documents if node.text else ())],
        "modelCard": _make_card(graph, node) if is_model and node.kind == "checkpoint" else None,
        "data": None if is_model else [_make_data(graph, node)],
        "properties": _list_properties(node),
    }
    return _drop_empty(fields)


def _list_licenses(license: str) -> list[dict[str, Any]]:
    """Return an id, an expression, or (of names that are no SPDX ids) the text as a name."""
    text = normalize_license(license)
    if not text:
        return [{"license": {"name": UNKNOWN}}]
    if not is_known_license(text):
        return [{"license": {"name": text}}]
    return [{"expression": text}] if " " in text else [{"license": {"id": text}}]


def _make_file(entry: FileEntry, node: Node) -> dict[str, Any]:
    algorithm, _, digest = entry.digest.rpartition(":")
    return {
        "type": "file",
        "bom-ref": f"{node.id}/{entry.path}",
        "name": entry.path,
        "hashes": [{"alg": "BLAKE3" if algorithm == "blake3" else "SHA-256", "content": digest}],
        "properties": [{"name": "stillroom:size_bytes", "value": str(entry.size_bytes)}],
    }


def _make_document(node: Node, document: Any) -> dict[str, Any]:
    return _drop_empty(
        {
            "type": "file",
            "bom-ref": f"{node.id}/documents/{document.path}",
            "name": document.path,
            "mime-type": document.media_type,
            "hashes": [{"alg": "SHA-256", "content": document.digest}],
            "licenses": _list_licenses(document.license),
            "properties": [{"name": "stillroom:origin", "value": document.origin}],
        }
    )


def _list_references(node: Node) -> list[dict[str, Any]]:
    if node.location.startswith("hub:"):
        name = node.location.removeprefix("hub:").partition("@")[0]
        return [{"type": "distribution", "url": f"https://huggingface.co/{name}"}]
    if "://" in node.location:
        return [{"type": "distribution", "url": node.location}]
    if not node.signer:
        return []
    files = {"attestation": CLAIMS_FILE, "digital-signature": SIGNATURE_FILE}
    return [{"type": kind, "url": f"{node.location}/{name}"} for kind, name in files.items()]


def _make_pedigree(graph: ProvenanceGraph, node: Node) -> dict[str, Any]:
    """Return the models that a model was made from, each as a short component."""
    ancestors = [
        _drop_empty(
            {
                "type": "machine-learning-model",
                "name": parent.name,
                "version": parent.digest or UNKNOWN,
                "purl": find_hub_purl(parent),
                "properties": [
                    {"name": "stillroom:role", "value": role},
                    {"name": "stillroom:ref", "value": parent.id},
                ],
            }
        )
        for role, parent in graph.list_parents(node)
        if _TYPES[parent.kind] == "machine-learning-model"
    ]
    if not ancestors:
        return {"notes": "Its ancestors are not recorded."}
    methods = ", ".join(list_methods(graph, node))
    return {
        "ancestors": ancestors,
        "notes": f"Made by {methods or 'a method that is not recorded'}.",
    }


def _make_data(graph: ProvenanceGraph, node: Node) -> dict[str, Any]:
    owner = {"organization": {"name": graph.provider}} if graph.provider else None
    is_own = owner is not None and node.kind in ("records", "index")
    return _drop_empty(
        {
            "type": "dataset",
            "name": node.name,
            "description": describe_texts(node),
            "classification": UNKNOWN,
            "governance": {"custodians": [owner]} if is_own else None,
        }
    )


def _make_card(graph: ProvenanceGraph, node: Node) -> dict[str, Any]:
    """Return the model card; evaluation and limitations are the subject's alone."""
    is_subject = node is graph.subject
    facts = node.model
    data = graph.list_training_data(node) + graph.list_training_data(node, is_tested=True)
    measured = select_metrics(graph, quality=True) if is_subject else []
    settings = [
        {"name": f"stillroom:setting:{name}", "value": value}
        for name, value in list_settings(node.recipe)
    ]
    parameters = {"name": "stillroom:parameters", "value": str(facts.parameters or UNKNOWN)}
    context = {"name": "stillroom:context_tokens", "value": str(facts.context or UNKNOWN)}
    details = node.artifact.details if node.artifact else {}
    is_text = not details.get("detector")
    detector = details.get("detector") or {}
    limits = list_limitations(graph) if is_subject and is_text else detector.get("limitations")
    task = "question-answering" if details.get("reader") else "text-generation" if is_text else ""
    return _drop_empty(
        {
            "bom-ref": f"{node.id}/card",
            "modelParameters": _drop_empty(
                {
                    "approach": {"type": "supervised"} if details.get("reader") else None,
                    "task": task or "forgery-detection",
                    "architectureFamily": facts.family,
                    "modelArchitecture": facts.architecture,
                    "datasets": [{"ref": ref} for ref in _unique(one.id for one in data)],
                    "inputs": [{"format": "text"}] if is_text else None,
                    "outputs": [{"format": "text"}] if is_text else None,
                }
            ),
            "quantitativeAnalysis": _drop_empty(
                {"performanceMetrics": [_make_metric(metric) for metric in measured]}
            ),
            "considerations": _drop_empty({"technicalLimitations": limits}),
            "properties": [parameters, context, *settings],
        }
    )


def _make_metric(metric: Mapping[str, Any]) -> dict[str, Any]:
    low, high = metric.get("low"), metric.get("high")
    bounds = {"lowerBound": low, "upperBound": high}
    return _drop_empty(
        {
            "type": metric["name"],
            "value": str(metric["value"]),
            "slice": f"n={metric['n']}",
            "confidenceInterval": {name: str(value) for name, value in bounds.items()}
            if low is not None and high is not None
            else None,
        }
    )


def _list_properties(node: Node) -> list[dict[str, str]]:
    artifact = node.artifact
    fields: dict[str, object] = {"digest": node.digest, "location": node.location}
    if artifact is not None:
        fields |= {
            "claim": artifact.claim,
            "signer": node.signer,
            "origin": node.origin,
            "created": artifact.created,
            "recipe_digest": artifact.recipe_digest,
            "seed": artifact.seed,
            **{f"version:{name}": version for name, version in artifact.versions.items()},
            **{f"host:{name}": value for name, value in artifact.host.items()},
        }
    return [
        {"name": f"stillroom:{name}", "value": str(value)}
        for name, value in fields.items()
        if value not in (None, "")
    ]


def _list_dependencies(graph: ProvenanceGraph) -> list[dict[str, Any]]:
    return [
        _drop_empty(
            {
                "ref": node.id,
                "dependsOn": _unique(parent.id for _, parent in graph.list_parents(node)),
            }
        )
        for node in graph.nodes.values()
    ]


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _list_compositions(graph: ProvenanceGraph) -> list[dict[str, Any]]:
    """Return which nodes' inputs are all listed, lack one that is gone, or are not recorded."""
    groups: dict[str, list[str]] = {"complete": [], "incomplete": [], "unknown": []}
    for node in graph.nodes.values():
        parents = [parent.kind for _, parent in graph.list_parents(node)]
        is_broken = "missing" in parents or bool(node.text and node.text.problem)
        state = "incomplete" if is_broken else "complete" if node.artifact else "unknown"
        groups[state].append(node.id)
    return [{"aggregate": name, "dependencies": refs} for name, refs in groups.items() if refs]


def _list_workflows(graph: ProvenanceGraph) -> list[dict[str, Any]]:
    """Return one workflow for each job, earliest first, with its inputs, output and settings."""
    jobs = [node for node in graph.nodes.values() if node.artifact and node.recipe]
    jobs.sort(key=lambda node: (node.created, node.id))
    return [_make_workflow(graph, node) for node in jobs]


def _make_workflow(graph: ProvenanceGraph, node: Node) -> dict[str, Any]:
    kind = str(node.recipe.get("kind", UNKNOWN))
    inputs: list[dict[str, Any]] = [
        {
            "resource": {"ref": parent.id},
            "properties": [{"name": "stillroom:role", "value": role}],
        }
        for role, parent in graph.list_parents(node)
    ]
    settings = [
        {"name": name, "value": value, "dataType": "string"}
        for name, value in list_settings(node.recipe)
    ]
    if settings:
        inputs.append({"parameters": settings})
    seconds = [
        {"name": f"stillroom:seconds:{name}", "value": str(value)}
        for name, value in node.seconds.items()
    ]
    seed = node.artifact.seed if node.artifact else 0
    return _drop_empty(
        {
            "bom-ref": f"job:{node.id}",
            "uid": node.artifact.recipe_digest if node.artifact else UNKNOWN,
            "name": kind,
            "taskTypes": [_TASKS.get(kind.partition(".")[0], "build")],
            "inputs": inputs,
            "outputs": [{"type": "artifact", "resource": {"ref": node.id}}],
            "timeEnd": format_time(node.created),
            "properties": [{"name": "stillroom:seed", "value": str(seed)}, *seconds],
        }
    )


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
    """Return the 50 elements by ``cluster/element`` with their values."""
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
