"""The two forms of the EU AI Act for general-purpose models, filled from the lineage.

What only the provider can know (contact, market, rights, uses) is unknown. A form says of data what
the lineage holds; it does not say that no other data were used.

Sources: European Commission, "Template for the Public Summary of Training Content for
general-purpose AI models" (24 July 2025; C(2025) 8311), Article 53(1)(d) of Regulation (EU)
2024/1689; Model Documentation Form, General-Purpose AI Code of Practice, Transparency chapter
(10 July 2025), Article 53(1)(a) and (b).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from stillroom.errors import count_noun
from stillroom.evaluate.qa.judgments import JUDGMENTS_ROLE
from stillroom.flow.papers.facts import (
    UNKNOWN,
    FieldSheet,
    Paper,
    describe_metric,
    describe_texts,
    describe_training,
    find_filters,
    find_training_seconds,
    format_counts,
    list_methods,
    list_settings,
    select_metrics,
)
from stillroom.flow.papers.graph import ProvenanceGraph
from stillroom.flow.papers.model_card import find_license, list_bases, require_model
from stillroom.flow.papers.node import Node

__all__ = ["write_documentation_form", "write_training_summary"]

_BILLION = 1_000_000_000
_CLEANING = {"shape", "language", "repetition", "duplicate", "question_form", "standalone"}
_LEGALITY = {"personal", "toxicity", "license"}

Sections = Mapping[str, Mapping[str, object]]


def write_training_summary(graph: ProvenanceGraph) -> Paper:
    """Return the public summary of training content, as Markdown with the template's headings.

    Raises:
        DataError: If the subject is no checkpoint.
    """
    require_model(graph)
    sections: Sections = {
        "1.1 Provider identification": {
            "Provider name and contact details": graph.provider,
            "Authorised representative name and contact details": None,
        },
        "1.2 Model identification": {
            "Versioned model name(s)": f"{graph.title} (digest {graph.subject.digest})",
            "Model dependencies": ", ".join(_list_dependencies(graph)),
            "Date of placement of the model on the Union market": None,
        },
        "1.3 Modalities, overall training data size and other characteristics": _list_sizes(graph),
        "2.1 Publicly available datasets": {
            "Have you used publicly available datasets to train the model?": None,
            "List of large publicly available datasets": None,
            "General description of other publicly available datasets": None,
        },
        "2.2 Private non-publicly available datasets obtained from third parties": {
            "Datasets commercially licensed by rightsholders": None,
            "Private datasets obtained from other third parties": None,
        },
        "2.3 Data crawled and scraped from online sources": {
            "Were crawlers used by the provider or on its behalf?": None,
            "Crawlers, their purposes and behaviour, and the period of collection": None,
            "Most relevant domain names": None,
        },
        "2.4 User data": {
            "Was data from user interactions with the AI model used?": _describe_judgments(graph),
            "Was data from user interactions with other services used?": None,
        },
        "2.5 Synthetic data": _list_synthetic(graph),
        "2.6 Other sources of data": {
            "Description of these data sources and the data": _describe_documents(graph),
        },
        "3.1 Respect of reservation of rights from text and data mining": {
            "Are you a signatory to the Code of Practice?": None,
            "Measures implemented to respect reservations of rights": None,
        },
        "3.2 Removal of illegal content": {
            "General description of measures taken": _describe_filters(graph, _LEGALITY),
        },
        "3.3 Other information": {
            "Other relevant information about data processing": _describe_filters(graph, _CLEANING),
        },
    }
    return _write(
        graph,
        sections,
        "eu-summary",
        "training-content-summary.md",
        "Public Summary of Training Content",
        "Template of 24 July 2025, Article 53(1)(d) of Regulation (EU) 2024/1689.",
    )


def write_documentation_form(graph: ProvenanceGraph) -> Paper:
    """Return the Model Documentation Form, as Markdown with the form's headings.

    Raises:
        DataError: If the subject is no checkpoint.
    """
    require_model(graph)
    sections: Sections = {
        "1. General information": _list_general(graph),
        "2. Model properties": _list_properties(graph),
        "3. Methods of distribution and licenses": {
            "Distribution channels": None,
            "License": find_license(graph) if _has_license(graph) else None,
        },
        "4. Use": {
            "Acceptable use policy": None,
            "Intended uses": None,
            "Type and nature of AI systems in which it can be integrated": None,
            "Technical means for model integration": None,
            "Required hardware": None,
            "Required software": ", ".join(
                f"{name} {version}" for name, version in graph.subject_artifact.versions.items()
            ),
        },
        "5. Training process": {
            "Design specifications of the training process": _describe_training(graph),
            "Decision rationale": graph.decision,
        },
        "6. Data used for training, testing, and validation": _list_data(graph),
        "7. Computational resources (during training)": {
            "Training time": _describe_time(graph),
            "Amount of computation used for training": None,
            "Measurement methodology": "seconds of the phases in the job's events"
            if find_training_seconds(graph)
            else None,
        },
        "8. Energy consumption (during training and inference)": {
            "Amount of energy used for training": None,
            "Measurement methodology (training)": None,
            "Benchmarked amount of computation used for inference": _describe_inference(graph),
            "Measurement methodology (inference)": "measured by the run's report, with n"
            if _describe_inference(graph)
            else None,
        },
    }
    return _write(
        graph,
        sections,
        "eu-form",
        "model-documentation.md",
        "Model Documentation Form",
        "General-Purpose AI Code of Practice, Transparency chapter, July 2025.",
    )


def _write(
    graph: ProvenanceGraph, sections: Sections, format: str, file: str, title: str, source: str
) -> Paper:
    sheet = FieldSheet()
    lines = [f"# {title}: {_escape(graph.title)}", "", source, ""]
    lines += [f"Filled by Stillroom from the lineage of digest `{graph.artifact.digest}`.", ""]
    lines += ["Last update: " + sheet.fill("Last update", graph.artifact.created[:10])]
    for heading, fields in sections.items():
        lines += ["", f"## {heading}", ""]
        for name, value in fields.items():
            text = sheet.fill(f"{heading.partition(' ')[0]} {name}", value)
            lines.append(f"- **{name}:** {_escape(text)}")
    if graph.open_ends:
        lines += [
            "",
            "## Open ends of the lineage",
            "",
            *(f"- {_escape(one)}" for one in graph.open_ends),
        ]
    return sheet.make_paper(format, file, title, "\n".join(lines) + "\n")


def _escape(text: str) -> str:
    """Return a text on one line without HTML; names of folders and models may hold anything."""
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())


def _describe_judgments(graph: ProvenanceGraph) -> str | None:
    """Return how people's verdicts on answers were learned from; None if no lineage names them."""
    lineage = [graph.subject, *graph.list_ancestors(graph.subject)]
    roles = [role for node in lineage for role, _ in graph.list_parents(node)]
    if JUDGMENTS_ROLE not in roles:
        return None
    return (
        "Yes: questions that people asked it, their verdicts on its answers, and the sentences of "
        "the documents that they chose"
    )


def _list_dependencies(graph: ProvenanceGraph) -> list[str]:
    """Return the model's bases, and the models whose training it continues."""
    starts = [node.name for role, node in graph.models if role == "start" and node.kind == "model"]
    return list(dict.fromkeys([*list_bases(graph), *starts]))


def _has_license(graph: ProvenanceGraph) -> bool:
    license = find_license(graph)
    return bool(license) and UNKNOWN not in license.split()


def _sum_counts(graph: ProvenanceGraph, name: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for node in graph.data:
        if node.text is not None:
            total.update(getattr(node.text, name))
    return total


def _list_sizes(graph: ProvenanceGraph) -> dict[str, object]:
    learned = graph.list_training_data(graph.subject)
    texts = [node.text for node in learned if node.text and not node.text.problem]
    size = sum(text.training[1] for text in texts)
    counted = ", ".join(f"{text.training[0]} {text.unit}" for text in texts)
    span = (
        "Less than 1 billion tokens, since a token holds at least a byte" if size < _BILLION else ""
    )
    read = [node.created[:10] for node in graph.select("index", of=graph.subject) if node.created]
    origins = format_counts(_sum_counts(graph, "origins"))
    return {
        "Modality": "Text" if texts else None,
        "Training data size": f"{size} bytes of text in {counted}. {span}".strip()
        if texts and len(texts) == len(learned)
        else None,
        "Types of content": format_counts(_sum_counts(graph, "media_types")),
        "Latest date of data acquisition": f"documents were last read on {max(read)}"
        if read
        else None,
        "Linguistic characteristics": format_counts(
            {name: n for name, n in _sum_counts(graph, "languages").items() if name}
        ),
        "Other relevant characteristics": f"origin of the texts: {origins}" if origins else None,
    }


def _list_synthetic(graph: ProvenanceGraph) -> dict[str, object]:
    origins = _sum_counts(graph, "origins")
    texts = origins["synthetic"]
    is_decided = bool(texts) or (bool(origins) and not origins["unknown"])
    known: list[str] = []
    other: list[str] = []
    for fingerprint, count in sorted(_sum_counts(graph, "models").items()):
        node = graph.find_model(fingerprint)
        is_public = node is not None and node.location.startswith("hub:")
        name = node.name if node else fingerprint
        (known if is_public else other).append(
            f"{name} ({fingerprint}): {count_noun(count, 'text')}"
        )
    teachers = [node.name for role, node in graph.models if role == "teacher"]
    none = "none was used" if is_decided and not texts else None
    return {
        "Was synthetic AI-generated data created to train the model?": ("Yes" if texts else "No")
        if is_decided
        else None,
        "Modality of the synthetic data": "Text" if texts else none,
        "General-purpose AI models used to generate it": "; ".join(known)
        or ("none is recorded" if other else none),
        "Other AI models used to generate it": "; ".join(other)
        or ("none is recorded" if known else none),
        "Additional comments": f"{count_noun(texts, 'text')} by "
        f"{', '.join(sorted(_sum_counts(graph, 'methods')))}; teachers: "
        f"{', '.join(dict.fromkeys(teachers)) or 'none'}"
        if texts
        else none,
    }


def _describe_documents(graph: ProvenanceGraph) -> str:
    parts = []
    for node in graph.select("index", of=graph.subject):
        if node.text and not node.text.problem:
            folders = [one.name for role, one in graph.list_parents(node) if role == "documents"]
            parts.append(
                f"{count_noun(node.text.count, 'document')} of {', '.join(folders) or node.name}: "
                f"{format_counts(node.text.media_types)}; license: "
                f"{format_counts(node.text.licenses)}; origin: {format_counts(node.text.origins)}"
            )
    return "; ".join(parts)


def _describe_filters(graph: ProvenanceGraph, names: set[str]) -> str:
    nodes = graph.select("records", of=graph.subject)
    ran = [name for node in nodes for name in find_filters(node) if name in names]
    return f"records passed the filters {', '.join(dict.fromkeys(ran))}" if ran else ""


def _list_general(graph: ProvenanceGraph) -> dict[str, object]:
    files = [f"{entry.path} {entry.digest}" for entry in graph.subject_artifact.files]
    signer = graph.subject.signer
    signed = f"; signed by key {signer} (check it with stillroom verify)" if signer else ""
    dependencies = [
        f"{parent.name} ({role}, {parent.digest or 'no digest'})"
        for node in graph.select("checkpoint", of=graph.subject)
        for role, parent in graph.list_parents(node)
        if parent.kind == "model"
    ]
    return {
        "Legal name for the model provider": graph.provider,
        "Model name": f"{graph.title} (digest {graph.subject.digest})",
        "Model authenticity": f"SHA-256 of the files: {', '.join(files)}{signed}"
        if files
        else None,
        "Release date": None,
        "Union market release date": None,
        "Model dependencies": "; ".join(dict.fromkeys(dependencies)),
    }


def _list_properties(graph: ProvenanceGraph) -> dict[str, object]:
    facts = graph.subject.model
    architecture = facts.architecture
    if graph.is_reader:
        architecture = "sentence reader: an encoder with low-rank updates that picks sentences"
    parameters = f"{facts.parameters} parameters" if facts.parameters else ""
    if parameters and graph.is_reader:
        parameters += " in the updates; those of the encoder are not counted"
    return {
        "Model architecture": architecture,
        "Design specifications of the model": ", ".join(list_methods(graph, graph.subject)),
        "Input modalities": "Text",
        "Maximum input size": f"{facts.context} tokens" if facts.context else None,
        "Output modalities": "Text, quoted from documents" if graph.is_reader else "Text",
        "Maximum output size": None,
        "Total model size": parameters,
    }


def _describe_training(graph: ProvenanceGraph) -> str:
    parts = []
    for node in graph.select("checkpoint", of=graph.subject):
        settings = [f"{name} {value}" for name, value in list_settings(node.recipe)]
        seed = f"seed {node.artifact.seed}" if node.artifact else ""
        listed = [describe_training(graph, node), seed, ", ".join(settings)]
        parts.append(f"{node.name}: {', '.join(part for part in listed if part)}")
    return "; ".join(parts)


def _list_data(graph: ProvenanceGraph) -> dict[str, object]:
    counts = [describe_texts(node) for node in graph.data]
    return {
        "Data type/modality": "Text" if any(counts) else None,
        "Data provenance": "; ".join(_describe_source(graph, node) for node in graph.data),
        "How data was obtained and selected": ", ".join(
            dict.fromkeys(name for node in graph.data for name in list_methods(graph, node))
        ),
        "Number of data points": "; ".join(
            f"{node.name}: {text}" for node, text in zip(graph.data, counts, strict=True) if text
        ),
        "Scope and main characteristics": format_counts(_sum_counts(graph, "media_types")),
        "Data curation methodologies": _describe_filters(graph, _CLEANING),
        "Measures to detect unsuitability of data sources": _describe_filters(
            graph, _LEGALITY | {"injection"}
        ),
        "Measures to detect identifiable biases": None,
    }


def _describe_source(graph: ProvenanceGraph, node: Node) -> str:
    parents = ", ".join(f"{one.name} ({role})" for role, one in graph.list_parents(node))
    return f"{node.name} from {parents or 'inputs that are not recorded'}"


def _describe_time(graph: ProvenanceGraph) -> str:
    seconds = find_training_seconds(graph)
    host = graph.subject_artifact.host
    where = f"; on {host['cores']} cores, {host['platform']}" if host.get("platform") else ""
    shown = ", ".join(f"{name} {total:.3g} s" for name, total in seconds.items())
    return f"{shown}{where}" if shown else ""


def _describe_inference(graph: ProvenanceGraph) -> str:
    measured = select_metrics(graph, quality=False)
    return "; ".join(
        f"{metric['name']} {describe_metric(metric)}"
        for metric in measured
        if "cpu_s" in metric["name"] or "tokens_per_second" in metric["name"]
    )
