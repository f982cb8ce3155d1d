"""Croissant metadata of the records that a model was trained on, or of records alone.

One implementation writes Croissant (``stillroom.synth.output.croissant``); here its facts come from
the lineage. Paths of files are relative to the run's folder: saved there, the metadata loads them.
"""

from __future__ import annotations

import os
from collections import Counter

from stillroom.errors import DataError, count_noun
from stillroom.flow.papers.facts import (
    FieldSheet,
    Paper,
    find_filters,
    format_counts,
    format_json,
    list_methods,
    normalize_license,
)
from stillroom.flow.papers.graph import ProvenanceGraph
from stillroom.flow.papers.node import Node
from stillroom.records import find_record_file
from stillroom.synth.output.croissant import RAI_FIELDS, CroissantFile, DatasetFacts, make_croissant

__all__ = ["write_croissant"]

_PERSONAL = "The filter 'personal' ran over the records."


def write_croissant(graph: ProvenanceGraph) -> Paper:
    """Return the metadata, which mlcroissant reads without error or warning.

    Raises:
        DataError: If the lineage has no records, or they were deleted.
    """
    nodes = graph.select("records", of=graph.subject)
    files = [file for node in nodes if (file := _find_file(graph, node)) is not None]
    if not files:
        raise DataError(
            f"the lineage of {graph.root} has no records that could be described",
            code="attest.no-records",
            where=str(graph.root),
            expected="records among what the model was made from",
            next="write the other formats, or name the folder of the records",
        )
    facts = _collect_facts(graph, nodes)
    sheet = FieldSheet()
    sheet.fill("creator", facts.creator)
    sheet.fill("license", ", ".join(facts.licenses))
    sheet.fill("inLanguage", ", ".join(facts.languages))
    sheet.fill("dateCreated", facts.created)
    sheet.fill("url", None)
    sheet.fill("wasDerivedFrom", len(facts.sources) or None)
    sheet.fill("wasGeneratedBy", ", ".join(facts.methods))
    sheet.fill("wasAttributedTo", ", ".join(facts.models))
    for name in RAI_FIELDS:
        value = facts.rai.get(name, "")
        sheet.fill(f"rai:{name}", value if isinstance(value, str) else list(value))
    text = format_json(make_croissant(facts, files))
    return sheet.make_paper("croissant", "croissant.json", "Croissant 1.1 with RAI 1.0", text)


def _find_file(graph: ProvenanceGraph, node: Node) -> CroissantFile | None:
    if node.folder is None or node.artifact is None or (node.text and node.text.problem):
        return None
    file = find_record_file(node.folder / "output")
    inside = file.relative_to(node.folder).as_posix()
    entry = next((entry for entry in node.artifact.files if entry.path == inside), None)
    if entry is None:
        return None
    path = os.path.relpath(file, graph.root).replace(os.sep, "/")
    return CroissantFile(node.name, path, entry.digest, entry.size_bytes, ("id",))


def _collect_facts(graph: ProvenanceGraph, nodes: list[Node]) -> DatasetFacts:
    texts = [node.text for node in nodes if node.text]
    sums = {
        name: sum((getattr(text, name) for text in texts), Counter[str]())
        for name in ("origins", "licenses", "methods", "models")
    }
    indexes = [index for node in nodes for index in graph.select("index", of=node)]
    documents = [
        one for index in dict.fromkeys(indexes) if index.text for one in index.text.documents
    ]
    licenses = {normalize_license(name) for name in sums["licenses"] if name}
    licenses |= {normalize_license(one.license) for one in documents if one.license}
    total, synthetic = sum(text.count for text in texts), sums["origins"]["synthetic"]
    models = {_name_model(graph, model): count for model, count in sums["models"].items()}
    filters = list(dict.fromkeys(name for node in nodes for name in find_filters(node)))
    subject = graph.subject
    used = [f"training of {graph.title}"] if subject.kind == "checkpoint" else []
    return DatasetFacts(
        f"{graph.title}: records" if subject.kind == "checkpoint" else graph.title,
        f"{count_noun(total, 'record')}, {synthetic} of them synthetic (by models or rules), from "
        f"{count_noun(len(documents), 'document')}.",
        licenses=tuple(sorted(licenses)) if "" not in sums["licenses"] else (),
        created=max((node.created for node in nodes), default="")[:10],
        digest=subject.digest if subject.kind == "records" else graph.artifact.digest,
        creator=graph.provider,
        languages=tuple(sorted({one.language for one in documents if one.language})),
        sources=tuple((one.path, one.digest) for one in documents),
        methods=dict(sorted(sums["methods"].items())),
        models=dict(sorted(models.items())),
        rai={
            "dataCollection": format_counts(sums["origins"]),
            "dataCollectionType": ["synthetic: by models or rules, from documents"]
            if synthetic and synthetic == total
            else [],
            "dataCollectionMissingData": _describe_dropped(nodes),
            "dataCollectionRawData": f"{count_noun(len(documents), 'document')}, whose SHA-256 "
            "are listed"
            if documents
            else "",
            "dataPreprocessingProtocol": [f"filter: {name}" for name in filters],
            "dataManipulationProtocol": ", ".join(
                dict.fromkeys(name for node in nodes for name in list_methods(graph, node))
            ),
            "machineAnnotationTools": sorted(models),
            "dataUseCases": used,
            "dataLimitations": [f"{synthetic / total:.0%} of {total} records were generated."]
            if total
            else [],
            "personalSensitiveInformation": [_PERSONAL] if "personal" in filters else [],
        },
    )


def _name_model(graph: ProvenanceGraph, fingerprint: str) -> str:
    node = graph.find_model(fingerprint)
    return f"{node.name} ({fingerprint})" if node else fingerprint


def _describe_dropped(nodes: list[Node]) -> str:
    """Return the records that filters dropped, by reason, as the jobs counted them."""
    dropped: Counter[str] = Counter()
    for node in nodes:
        counts = node.artifact.details.get("counts") if node.artifact else None
        for part in (counts or {}).values():
            if isinstance(part, dict):
                dropped.update(part.get("dropped") or {})
    return f"dropped: {format_counts(dropped)}" if dropped else ""
