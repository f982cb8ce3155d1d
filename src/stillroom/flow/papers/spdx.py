"""SPDX document of a run, with packages of the AI and Dataset profiles, as JSON-LD.

Models are ``ai_AIPackage``, records and documents ``dataset_DatasetPackage``, jobs ``build_Build``
with their inputs, outputs and settings; ``trainedOn``, ``testedOn`` and ``descendantOf`` link them.
Every package has one declared and one concluded license, as both profiles demand: what nobody
declared is NoAssertion. An unknown property is left out, or NoAssertion where there is such a
value, and named in the annotation of its package. Ids and bytes are derived from the content.

The supplier of a job's output is who answers for it, or the holder of the key that signed it; of a
model of the Hugging Face hub the account that publishes it. Data of a job originate from its
supplier; who wrote the documents, no lineage holds.

The document does not state conformance to the AI and Dataset profiles: these demand a release time
and a download location of every package, which no lineage holds.

Source: SPDX 3.0.1 (ISO/IEC 5962), model and JSON-LD serialization.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stillroom.flow.papers.facts import (
    FieldSheet,
    Paper,
    derive_uuid,
    describe_metric,
    describe_texts,
    describe_training,
    find_filters,
    find_hub_purl,
    format_json,
    format_time,
    is_known_license,
    list_methods,
    list_settings,
    normalize_license,
    select_metrics,
)
from stillroom.flow.papers.graph import ProvenanceGraph
from stillroom.flow.papers.model_card import find_license, list_limitations
from stillroom.flow.papers.node import DATA_KINDS, Node
from stillroom.provenance import FileEntry

__all__ = ["write_spdx"]

_CONTEXT = "https://spdx.org/rdf/3.0.1/spdx-context.jsonld"
_NO_LICENSE = "https://spdx.org/rdf/3.0.1/terms/ExpandedLicensing/NoAssertionLicense"
_CREATION = "_:creation"
_UNDATED = "1970-01-01T00:00:00Z"
_PROFILES = ("core", "software", "simpleLicensing", "build")
_DEMANDED = {
    "ai_AIPackage": ("suppliedBy", "software_downloadLocation", "releaseTime"),
    "dataset_DatasetPackage": (
        "builtTime",
        "originatedBy",
        "software_downloadLocation",
        "releaseTime",
    ),
}
"""Properties of packages that may be absent from SPDX, but not from their profile: sections
"External properties restrictions" of AIPackage and DatasetPackage, those that may be unknown."""
_NO_PROFILES = (
    "Packages of the AI and Dataset profiles, without their conformance: a release time and a "
    "download location, which these profiles demand, are in no lineage."
)
_MODEL_KINDS = ("checkpoint", "model")
_AVAILABLE = ("checkpoint", "records", "dataset", "index", "report", "media")


def write_spdx(graph: ProvenanceGraph) -> Paper:
    """Return the document, which spdx-python-model reads and validates."""
    writer = _SpdxWriter(graph)
    document = writer.write()
    return writer.sheet.make_paper(
        "spdx", "bom.spdx.json", "SPDX 3.0.1 AI and data BOM", format_json(document)
    )


class _SpdxWriter:
    """Collects elements; ids are the namespace of the document and a name within it."""

    def __init__(self, graph: ProvenanceGraph) -> None:
        self.graph = graph
        self.sheet = FieldSheet()
        self.elements: list[dict[str, Any]] = []
        self.ids: set[str] = set()
        self.licenses: dict[str, str] = {}
        self.agents: dict[str, str] = {}
        self.provider = ""
        self.space = "urn:uuid:" + derive_uuid(
            {
                "root": graph.artifact.to_json(),
                "subject": graph.subject.id,
                "name": graph.name,
                "provider": graph.provider,
                "metrics": [repr(metric) for metric in graph.metrics],
            }
        )

    def write(self) -> dict[str, Any]:
        graph = self.graph
        provider = graph.provider or "unknown"
        self.provider = agent = self._add("Organization", "provider", name=provider)
        tool = self._add("Tool", "tool", name=_name_tool())
        created = format_time(graph.artifact.created)
        creation = {
            "type": "CreationInfo",
            "@id": _CREATION,
            "specVersion": "3.0.1",
            "created": created or _UNDATED,
            "createdBy": [agent],
            "createdUsing": [tool],
        }
        if not created:
            creation["comment"] = "The time is not recorded; the date given stands for none."
        self.sheet.fill("document/createdBy", graph.provider)
        self.sheet.fill("document/created", created)
        ids = {node.id: self._add_node(node) for node in graph.nodes.values()}
        self._add_relations(ids)
        bom = self._add(  # checkers of minimum elements ask for it and for its type
            "software_Sbom",
            "sbom",
            profileConformance=list(_PROFILES),
            software_sbomType=["build"],
            rootElement=[ids[graph.subject.id]],
            element=[element["spdxId"] for element in self.elements],
        )
        self._add(
            "SpdxDocument",
            "document",
            name=f"{graph.title}: lineage",
            comment=_NO_PROFILES,
            profileConformance=list(_PROFILES),
            rootElement=[bom],
            element=[element["spdxId"] for element in self.elements],
        )
        return {"@context": _CONTEXT, "@graph": [creation, *self.elements]}

    def _add(self, kind: str, local_id: str, **fields: Any) -> str:
        """Add an element without its empty fields; return its id."""
        spdx_id = f"{self.space}#{re.sub(r'[^A-Za-z0-9._/:-]', '-', local_id)}"
        while spdx_id in self.ids:
            spdx_id += "-"
        self.ids.add(spdx_id)
        element = {"type": kind, "spdxId": spdx_id, "creationInfo": _CREATION}
        element |= {key: value for key, value in fields.items() if value not in (None, "", [])}
        self.elements.append(element)
        return spdx_id

    def _relate(self, kind: str, source: str, targets: Iterable[str], name: str) -> None:
        to = list(dict.fromkeys(targets))
        if to:
            self._add(
                "Relationship", f"{name}/{kind}", relationshipType=kind, **{"from": source}, to=to
            )

    def _add_node(self, node: Node) -> str:
        if node.kind in _MODEL_KINDS:
            fields = self._describe_model(node)
            kind = "ai_AIPackage"
        elif node.kind == "report":
            fields, kind = {}, "software_Package"
        else:
            fields, kind = self._describe_dataset(node), "dataset_DatasetPackage"
        fields = {name: value for name, value in fields.items() if value}
        fields |= {name: value for name, value in self._describe_package(node).items() if value}
        spdx_id = self._add(kind, node.id, **fields)
        wanted = {*_WANTED.get(kind, ()), *_DEMANDED.get(kind, ()), "suppliedBy"}
        if missing := sorted(wanted - fields.keys()):
            self._add(
                "Annotation",
                f"{node.id}/unknown",
                annotationType="other",
                subject=spdx_id,
                statement=f"unknown: {', '.join(missing)}",
            )
        if kind != "software_Package":
            self._license(node, spdx_id)
        if node.artifact is not None:
            files = [self._add_file(node, entry) for entry in node.files]
            documents = node.text.documents if node.text else ()
            files += [
                self._add(
                    "software_File",
                    f"{node.id}/documents/{one.path}",
                    name=one.path,
                    contentType=one.media_type,
                    verifiedUsing=[_make_hash("sha256", one.digest)],
                    comment=f"origin: {one.origin}; license: {one.license or 'unknown'}",
                )
                for one in documents
            ]
            self._relate("contains", spdx_id, files, node.id)
        return spdx_id

    def _describe_package(self, node: Node) -> dict[str, Any]:
        is_subject = node is self.graph.subject
        hub = node.location.removeprefix("hub:").partition("@")[0]
        purpose = "model" if node.kind in _MODEL_KINDS else "data"
        return {
            "name": self.graph.title if is_subject else node.name,
            "software_packageVersion": node.digest or "unknown",
            "software_primaryPurpose": purpose,
            "software_packageUrl": find_hub_purl(node) if purpose == "model" else None,
            "software_downloadLocation": f"https://huggingface.co/{hub}"
            if node.location.startswith("hub:")
            else None,
            "builtTime": format_time(node.created) or None,
            **self._find_agents(node),
            "summary": describe_texts(node) or None,
            "comment": "This input is gone." if node.kind == "missing" else None,
        }

    def _find_agents(self, node: Node) -> dict[str, Any]:
        """Return who supplied a package and, of data, from whom it came, as the lineage knows them.

        Of a job's output that is who answers for the run, or the holder of the key that signed it;
        of a model of the Hugging Face hub the account that publishes it. Documents are somebody's
        whom no lineage names.
        """
        owner, hub = "", node.location.removeprefix("hub:").partition("@")[0]
        if node.kind in _AVAILABLE and not node.location.startswith("hub:"):
            if self.graph.provider:
                owner = self.provider
            elif node.signer:
                note = "The key signed the output; whose it is, nobody states here."
                owner = self._add_agent(f"holder of key {node.signer}", "", note)
        elif node.location.startswith("hub:") and "/" in hub:
            account = hub.partition("/")[0]
            owner = self._add_agent(account, f"https://huggingface.co/{account}", "")
        is_data = node.kind in DATA_KINDS
        return {"suppliedBy": owner, "originatedBy": [owner] if owner and is_data else []}

    def _add_agent(self, name: str, address: str, comment: str) -> str:
        if name not in self.agents:
            identifier = {
                "type": "ExternalIdentifier",
                "externalIdentifierType": "urlScheme",
                "identifier": address,
            }
            self.agents[name] = self._add(
                "Agent",
                f"agent/{name}",
                name=name,
                comment=comment,
                externalIdentifier=[identifier] if address else [],
            )
        return self.agents[name]

    def _describe_model(self, node: Node) -> dict[str, Any]:
        graph, facts = self.graph, node.model
        is_subject = node is graph.subject
        settings = [_make_entry(*pair) for pair in list_settings(node.recipe)]
        metrics = [
            _make_entry(metric["name"], describe_metric(metric))
            for metric in (select_metrics(graph, quality=True) if is_subject else ())
        ]
        filters = [name for one in graph.select("records", of=node) for name in find_filters(one)]
        fields = {
            "ai_typeOfModel": [facts.architecture] if facts.architecture else [],
            "ai_hyperparameter": settings,
            "ai_metric": metrics,
            "ai_informationAboutTraining": describe_training(graph, node),
            "ai_modelDataPreprocessing": list(dict.fromkeys(filters)),
            "ai_metricDecisionThreshold": [_make_entry(*pair) for pair in _list_thresholds(node)],
            "ai_limitation": " ".join(list_limitations(graph))
            if is_subject and not graph.is_detector
            else "",
        }
        if is_subject:
            for name in _WANTED["ai_AIPackage"]:
                self.sheet.fill(name.removeprefix("ai_"), _show(fields.get(name)))
            for name, known in (
                ("suppliedBy", graph.provider or node.signer),
                ("downloadLocation", None),
                ("releaseTime", None),
            ):
                self.sheet.fill(name, known)
        presence = dict.fromkeys(
            ("ai_autonomyType", "ai_useSensitivePersonalInformation"), "noAssertion"
        )
        return {name: value for name, value in fields.items() if value} | presence

    def _describe_dataset(self, node: Node) -> dict[str, Any]:
        facts, graph = node.text, self.graph
        is_readable = facts is not None and not facts.problem
        is_text = node.kind in ("records", "dataset", "index", "documents")
        uses = {
            f"{edge.role} of {graph.nodes[edge.child].recipe.get('kind') or 'a job'}"
            for edge in graph.edges
            if edge.parent == node.id
        }
        methods = list_methods(graph, node)
        fields: dict[str, Any] = {
            "dataset_datasetType": ["text" if is_text else "noAssertion"],
            "dataset_datasetSize": facts.count if facts and is_readable else None,
            "dataset_dataCollectionProcess": ", ".join(methods),
            "dataset_dataPreprocessing": find_filters(node),
            "dataset_intendedUse": ", ".join(sorted(uses)),
        }
        if node in graph.data:
            for name in _WANTED["dataset_DatasetPackage"]:
                short = name.removeprefix("dataset_")
                self.sheet.fill(f"{node.name} {short}", _show(fields.get(name)))
        presence = {"dataset_hasSensitivePersonalInformation": "noAssertion"}
        return {name: value for name, value in fields.items() if value} | presence

    def _license(self, node: Node, spdx_id: str) -> None:
        """Add one declared and one concluded license; a model's is concluded from its parts."""
        is_model = node is self.graph.subject and node.kind == "checkpoint"
        text = find_license(self.graph) if is_model else node.license
        concluded = self._find_license(text)
        declared = _NO_LICENSE if node.kind in _MODEL_KINDS else concluded
        self._relate("hasDeclaredLicense", spdx_id, [declared], node.id)
        self._relate("hasConcludedLicense", spdx_id, [concluded], node.id)
        if node is self.graph.subject:
            is_full = bool(text) and "unknown" not in text.split()
            self.sheet.fill("concludedLicense", text if is_full else None)

    def _find_license(self, license: str) -> str:
        text = normalize_license(license)
        if not text or "unknown" in text.split():
            return _NO_LICENSE
        if not is_known_license(text):
            text = "LicenseRef-" + re.sub(r"[^A-Za-z0-9.-]+", "-", text)
        if text not in self.licenses:
            self.licenses[text] = self._add(
                "simplelicensing_LicenseExpression",
                f"license/{text}",
                simplelicensing_licenseExpression=text,
            )
        return self.licenses[text]

    def _add_file(self, node: Node, entry: FileEntry) -> str:
        algorithm, _, digest = entry.digest.rpartition(":")
        return self._add(
            "software_File",
            f"{node.id}/{entry.path}",
            name=entry.path,
            verifiedUsing=[_make_hash(algorithm or "sha256", digest)],
            comment=f"{entry.size_bytes} bytes",
        )

    def _add_relations(self, ids: Mapping[str, str]) -> None:
        graph = self.graph
        for node in graph.nodes.values():
            parents = graph.list_parents(node)
            if node.kind in _MODEL_KINDS:
                models = [ids[one.id] for _, one in parents if one.kind in _MODEL_KINDS]
                for kind, is_tested in (("trainedOn", False), ("testedOn", True)):
                    data = graph.list_training_data(node, is_tested=is_tested)
                    self._relate(kind, ids[node.id], [ids[one.id] for one in data], node.id)
                self._relate("descendantOf", ids[node.id], models, node.id)
            if node.artifact is not None and node.recipe:
                self._add_build(node, [ids[one.id] for _, one in parents], ids[node.id])

    def _add_build(self, node: Node, inputs: list[str], output: str) -> None:
        artifact = node.artifact
        if artifact is None:
            return
        parameters = [_make_entry(*pair) for pair in list_settings(node.recipe)]
        build = self._add(
            "build_Build",
            f"job/{node.id}",
            build_buildType=f"urn:stillroom:job:{node.recipe.get('kind', 'unknown')}",
            build_buildId=artifact.claim,
            build_buildEndTime=format_time(artifact.created) or None,
            build_configSourceDigest=[_make_hash("sha256", artifact.recipe_digest)]
            if artifact.recipe_digest
            else None,
            build_environment=[_make_entry(*pair) for pair in artifact.versions.items()],
            build_parameter=[_make_entry("seed", str(artifact.seed)), *parameters],
        )
        self._relate("hasInput", build, inputs, f"job/{node.id}")
        self._relate("hasOutput", build, [output], f"job/{node.id}")


_WANTED = {
    "ai_AIPackage": (
        "ai_typeOfModel",
        "ai_hyperparameter",
        "ai_metric",
        "ai_informationAboutTraining",
        "ai_informationAboutApplication",
        "ai_modelDataPreprocessing",
        "ai_modelExplainability",
        "ai_limitation",
        "ai_domain",
        "ai_energyConsumption",
        "ai_metricDecisionThreshold",
        "ai_safetyRiskAssessment",
        "ai_standardCompliance",
        "ai_autonomyType",
        "ai_useSensitivePersonalInformation",
    ),
    "dataset_DatasetPackage": (
        "dataset_datasetSize",
        "dataset_dataCollectionProcess",
        "dataset_dataPreprocessing",
        "dataset_intendedUse",
        "dataset_knownBias",
        "dataset_datasetNoise",
        "dataset_anonymizationMethodUsed",
        "dataset_confidentialityLevel",
        "dataset_datasetAvailability",
        "dataset_datasetUpdateMechanism",
        "dataset_hasSensitivePersonalInformation",
    ),
}


def _list_thresholds(node: Node) -> Iterator[tuple[str, str]]:
    """Yield the values from which a model's figures decide, as its job states them."""
    details = node.artifact.details if node.artifact else {}
    validation = details.get("validation")
    threshold = validation.get("threshold") if isinstance(validation, Mapping) else None
    if isinstance(threshold, int | float):
        yield "probability from which a sentence answers", f"{threshold:.6g}"


def _name_tool() -> str:
    from stillroom import __version__

    return f"Stillroom {__version__}"


def _show(value: Any) -> Any:
    """Return a property's value for the sheet; entries as key and value."""
    if not isinstance(value, list):
        return value
    return [f"{one['key']} {one['value']}" if isinstance(one, dict) else one for one in value]


def _make_entry(key: str, value: str) -> dict[str, str]:
    return {"type": "DictionaryEntry", "key": key, "value": value}


def _make_hash(algorithm: str, digest: str) -> dict[str, str]:
    return {"type": "Hash", "algorithm": algorithm, "hashValue": digest}
