"""Croissant metadata of a dataset, with provenance in PROV-O and responsible-AI fields.

Provenance is what the dataset was derived from, the activities that generated it, and the models
that it is attributed to. A field that nobody recorded is written as unknown; dates are left out.
``datePublished``, which readers demand, is the day on which the dataset was made.

Source: MLCommons Croissant 1.1 (29 January 2026), Croissant RAI 1.0; W3C PROV-O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["RAI_FIELDS", "CroissantFile", "DatasetFacts", "make_croissant"]

_UNKNOWN = "unknown"
_CROISSANT_TERMS = str.split(
    """arrayShape citeAs column containedIn equivalentProperty extract field fileObject
    fileProperty fileSet format includes isArray isLiveDataset jsonPath key md5 parentField
    path recordSet references regex repeated replace samplingRate separator source subField
    transform"""
)
_CONTEXT: dict[str, Any] = dict(
    sorted(
        {
            **{term: f"cr:{term}" for term in _CROISSANT_TERMS},
            "@language": "en",
            "@vocab": "https://schema.org/",
            "conformsTo": "dct:conformsTo",
            "cr": "http://mlcommons.org/croissant/",
            "data": {"@id": "cr:data", "@type": "@json"},
            "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
            "dct": "http://purl.org/dc/terms/",
            "description": {"@container": "@language"},
            "examples": {"@id": "cr:examples", "@type": "@json"},
            "name": {"@container": "@language"},
            "prov": "http://www.w3.org/ns/prov#",
            "rai": "http://mlcommons.org/croissant/RAI/",
            "sc": "https://schema.org/",
        }.items()
    )
)
_ENCODINGS = {
    "jsonl": "application/jsonlines",
    "parquet": "application/x-parquet",
    "json": "application/json",
    "csv": "text/csv",
}
RAI_FIELDS = (
    "dataCollection",
    "dataCollectionType",
    "dataCollectionMissingData",
    "dataCollectionRawData",
    "dataCollectionTimeframe",
    "dataImputationProtocol",
    "dataPreprocessingProtocol",
    "dataManipulationProtocol",
    "dataAnnotationProtocol",
    "dataAnnotationPlatform",
    "dataAnnotationAnalysis",
    "annotationsPerItem",
    "annotatorDemographics",
    "machineAnnotationTools",
    "dataBiases",
    "dataUseCases",
    "dataLimitations",
    "dataSocialImpact",
    "personalSensitiveInformation",
    "dataReleaseMaintenancePlan",
)
"""Names of the RAI vocabulary, in the order of the specification."""


@dataclass(frozen=True, slots=True)
class CroissantFile:
    """One file of rows: split, path from the metadata, SHA-256, bytes, and its text columns.

    Lists (of messages) have no data type in Croissant: they are no columns, and read from the file.
    """

    split: str
    path: str
    digest: str
    size_bytes: int
    columns: tuple[str, ...]


@dataclass(frozen=True)
class DatasetFacts:
    """What is known of a dataset; empty values are unknown.

    ``licenses`` are SPDX ids; ``created`` is an ISO date; ``sources`` are names and SHA-256 of what
    it was derived from; ``methods`` and ``models`` count rows; ``rai`` are values by name of
    ``RAI_FIELDS``.
    """

    name: str
    description: str
    licenses: tuple[str, ...] = ()
    created: str = ""
    digest: str = ""
    creator: str = ""
    languages: tuple[str, ...] = ()
    sources: tuple[tuple[str, str], ...] = ()
    methods: Mapping[str, int] = field(default_factory=dict)
    models: Mapping[str, int] = field(default_factory=dict)
    rai: Mapping[str, str | Sequence[str]] = field(default_factory=dict)


def make_croissant(facts: DatasetFacts, files: Sequence[CroissantFile]) -> dict[str, Any]:
    """Return the Croissant metadata of a dataset."""
    document: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": facts.name,
        "description": facts.description,
        "conformsTo": [
            "http://mlcommons.org/croissant/1.1",
            "http://mlcommons.org/croissant/RAI/1.0",
        ],
        "license": list(facts.licenses) or _UNKNOWN,
        "url": "./",
        "creator": {"@type": "sc:Organization", "name": facts.creator or _UNKNOWN},
        "version": f"1.0.0+{facts.digest[:12]}" if facts.digest else "1.0.0",
        "citeAs": _make_citation(facts),
    }
    if facts.created:
        document |= {"dateCreated": facts.created, "datePublished": facts.created}
    if facts.languages:
        document["inLanguage"] = list(facts.languages)
    document |= _make_provenance(facts)
    for name in RAI_FIELDS:
        value = facts.rai.get(name)
        if value or name != "dataCollectionTimeframe":  # a date, so it cannot say unknown
            document[f"rai:{name}"] = value or _UNKNOWN
    document["distribution"] = [_make_file(file) for file in files]
    document["recordSet"] = [_make_record_set(file) for file in files]
    return document


def _make_citation(facts: DatasetFacts) -> str:
    year = facts.created[:4]
    fields = [f"title={{{facts.name}}}", f"author={{{facts.creator or _UNKNOWN}}}"]
    fields += [f"year={{{year}}}"] if year else []
    fields += [f"note={{SHA-256 {facts.digest}}}"] if facts.digest else []
    key = "".join(letter for letter in facts.name if letter.isalnum()) or "dataset"
    return f"@misc{{{key}, {', '.join(fields)}}}"


def _make_provenance(facts: DatasetFacts) -> dict[str, Any]:
    derived = [
        {"@id": f"urn:sha256:{digest}" if digest else name, "prov:label": name}
        for name, digest in facts.sources
    ]
    generated = [
        {"@type": "prov:Activity", "prov:label": f"{method} ({count} rows)"}
        for method, count in facts.methods.items()
    ]
    agents = [
        {"@type": "prov:SoftwareAgent", "prov:label": f"{model} ({count} rows)"}
        for model, count in facts.models.items()
    ]
    parts = {
        "prov:wasDerivedFrom": derived,
        "prov:wasGeneratedBy": generated,
        "prov:wasAttributedTo": agents,
    }
    return {name: values for name, values in parts.items() if values}


def _make_file(file: CroissantFile) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": file.path,
        "name": file.path,
        "contentUrl": file.path,
        "contentSize": f"{file.size_bytes} B",
        "encodingFormat": _ENCODINGS.get(file.path.rpartition(".")[2], "text/plain"),
        "sha256": file.digest,
    }


def _make_record_set(file: CroissantFile) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": file.split,
        "name": file.split,
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{file.split}/{column}",
                "name": column,
                "dataType": "sc:Text",
                "source": {"fileObject": {"@id": file.path}, "extract": {"column": column}},
            }
            for column in file.columns
        ],
    }
