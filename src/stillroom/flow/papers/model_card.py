"""Model card of a checkpoint, compiled from its lineage and evaluation reports.

Model cards describe a model's data, metrics and limitations. All three are recorded in the
artifacts that the checkpoint derives from, so the card is generated: base models and records with
their shares of human and synthetic text, the method with its settings, the report with its
intervals. A limitation is listed if a metric or a gap in the lineage shows it. Nothing is claimed
that was not recorded.

Source: Mitchell et al. 2019 (arXiv:1810.03993).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.errors import DataError, count_noun
from stillroom.flow.papers.facts import format_counts, select_metrics
from stillroom.flow.papers.graph import ProvenanceGraph
from stillroom.flow.papers.node import Node, read_recipe
from stillroom.provenance import ARTIFACT_FILE, Artifact, read_artifact
from stillroom.provenance.sources import has_path, is_reference

__all__ = [
    "PACKAGED_LICENSE",
    "PACKAGED_READERS",
    "describe_reader",
    "describe_reader_training",
    "fill_card",
    "find_license",
    "find_reader_bases",
    "list_bases",
    "list_licenses",
    "list_limitations",
    "render_card",
    "require_model",
]

_MAX_SHOWN = 12
_SMALL_SAMPLE = 100
_BASE_ROLES = {"teacher", "base", "model", "student"}


def require_model(graph: ProvenanceGraph) -> None:
    """Check that the papers of a language model can be written.

    Raises:
        DataError: If the subject is no checkpoint, or a detector.
    """
    if graph.subject.kind != "checkpoint":
        raise DataError(
            f"{graph.subject_folder} is an artifact of kind {graph.subject.kind}",
            code="data.wrong-kind",
            expected="the folder of a run or of a job that produced a checkpoint",
            next=f"stillroom show {graph.subject_folder}",
        )
    if graph.is_detector:
        raise DataError(
            f"{graph.subject_folder} is a detector of forgeries, not a language model",
            code="data.wrong-kind",
            expected="a language model or a sentence reader",
            next="read the detector's own card, output/README.md; or write cyclonedx or spdx",
        )


def list_bases(graph: ProvenanceGraph, *, is_tuned: bool = False) -> list[str]:
    """Return the names of the models that the subject was made from, without duplicates.

    ``is_tuned`` leaves out teachers of a student that has weights of another model.
    """
    subject = graph.subject
    names = []
    for node in graph.select("checkpoint", of=subject):
        parents = graph.list_parents(node)
        is_own = is_tuned and any(role == "student" for role, _ in parents)
        roles = _BASE_ROLES - {"teacher"} if is_own else _BASE_ROLES
        names += [one.name for role, one in parents if one.kind == "model" and role in roles]
    if graph.is_reader and subject.folder and subject.artifact:
        names += find_reader_bases(subject.folder, subject.artifact)
    return list(dict.fromkeys(names))


def render_card(graph: ProvenanceGraph) -> str:
    """Return the card as Markdown with front matter.

    Raises:
        DataError: If the subject is no checkpoint.
    """
    from stillroom.checkpoints.card import compose_card

    require_model(graph)

    chain = [
        link.get("method", "")
        for link in graph.subject_artifact.origin.get("chain", ())
        if not _is_refused_merge(graph.subject_artifact, link)
    ]
    is_distilled = any(
        link.get("method", "").startswith("distill.")
        for node in graph.select("checkpoint", of=graph.subject)
        for link in _get_artifact(node).origin.get("chain", ())
    )
    bases = list_bases(graph, is_tuned=True)
    shares = {
        node.name: dict(sorted(node.text.origins.items())) if node.text else {}
        for node in graph.select("records", of=graph.subject)
    }
    called = graph.title
    body = "\n\n".join(
        part
        for part in (
            _describe_model(graph, called),
            _describe_method(graph),
            _describe_data(graph, shares),
            _describe_evaluation(graph),
            "\n".join(["## Limitations", "", *(f"- {line}" for line in list_limitations(graph))]),
            _describe_verification(graph),
        )
        if part
    )
    return compose_card(
        called,
        body,
        license=find_license(graph),
        base_models=bases,
        relation=(
            ""
            if _is_start_kept(graph.subject_artifact)
            else "finetune"
            if is_distilled or graph.is_reader
            else "merge"
            if len(bases) > 1
            else ""
        ),
        tags=[method.rpartition(".")[2] for method in chain if method],
        fields=_build_front_matter(graph, called, shares),
    )


def fill_card(graph: ProvenanceGraph) -> dict[str, object]:
    """Return the card's fields by name; None and empty values are unknown."""
    license = find_license(graph)
    origins = [node.text for node in graph.data if node.text]
    return {
        "name": graph.title,
        "developed by": graph.provider,
        "license": None if "unknown" in license.split() else license,
        "base models": ", ".join(list_bases(graph)),
        "training data": ", ".join(node.name for node in graph.data),
        "origin of the data": None
        if not origins or any(text.origins["unknown"] or text.problem for text in origins)
        else "known",
        "training procedure": _describe_method(graph),
        "evaluation": "known" if select_metrics(graph, quality=True) else None,
        "intended uses": None,
        "safety and bias": None,
    }


def _get_artifact(node: Node) -> Artifact:
    if node.artifact is None:
        raise TypeError(f"{node.id} is no artifact")
    return node.artifact


def _is_refused_merge(artifact: Artifact, link: Mapping[str, Any]) -> bool:
    """Return whether a link names a merge that was tried and not kept."""
    method = str(link.get("method", ""))
    return artifact.details.get("helped") is False and method.startswith("merge.")


def _build_front_matter(
    graph: ProvenanceGraph, name: str, shares: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    task_name = "question-answering" if graph.is_reader else "text-generation"
    fields: dict[str, Any] = {"pipeline_tag": task_name}
    if graph.is_reader:
        fields["library_name"] = "stillroom"
    if shares and not _is_start_kept(graph.subject_artifact):
        fields["datasets"] = list(shares)
    measured = [
        {
            "type": metric["name"],
            "name": f"{metric['name']} {_format_interval(metric)}",
            "value": metric["value"],
        }
        for metric in select_metrics(graph, quality=True)
        if metric["name"].startswith("reader/owned/" if graph.is_reader else "")
        and ("student/" in metric["name"] or graph.is_reader)
        and not _is_replaced(graph)
    ]
    if measured:
        task = {"task": {"type": task_name}, "metrics": measured}
        asked = "questions about its own documents" if graph.is_reader else "held-out records"
        dataset = {"type": "held-out", "name": asked}
        fields["model-index"] = [{"name": name, "results": [{**task, "dataset": dataset}]}]
    fields["stillroom"] = {
        "digest": graph.subject_artifact.digest,
        "origin": graph.subject_artifact.origin.get("kind", "unknown"),
        "records": {name: dict(counts) for name, counts in shares.items()},
    }
    return fields


def _is_start_kept(artifact: Artifact) -> bool:
    """Return whether a reader is its start, unchanged."""
    return bool(artifact.details.get("reader")) and artifact.details.get("kept") == "start"


def _is_replaced(graph: ProvenanceGraph) -> bool:
    """Return whether the reports measured the large reader in the place of the packaged start."""
    artifact = graph.subject_artifact
    starts = set(_list_starts(graph.subject_folder, artifact))
    is_kept = _is_start_kept(artifact) and "builtin:reader" in starts
    return is_kept and "builtin:reader-large" in graph.compared


def _describe_model(graph: ProvenanceGraph, name: str) -> str:
    if graph.is_reader:
        license = find_license(graph)
        text = describe_reader(graph.subject_folder, graph.subject_artifact, name, license)
        return text + (
            " **The evaluation below is of builtin:reader-large,** which answered in place of "
            "these weights where it was measured."
            if _is_replaced(graph)
            else ""
        )
    origin = graph.subject_artifact.origin.get("kind", "unknown")
    bases = ", ".join(list_bases(graph)) or "no recorded model"
    return (
        f"{name} is a language model built by Stillroom from {bases}. Its origin is **{origin}**; "
        f"its combined license is {find_license(graph) or 'not recorded'}."
    )


def find_license(graph: ProvenanceGraph) -> str:
    """Return the licenses of all parts, joined; ``unknown`` where data has none on record."""
    own = str(graph.subject_artifact.origin.get("license", ""))
    parts = [part for part in own.split(" AND ") if part]
    if graph.is_reader:
        parts += list_licenses(graph.subject_folder, graph.subject_artifact)
        parts += [node.license for node in graph.data if node.license]
    sources = [node for node in graph.data if node is not graph.subject]
    sources += [node for role, node in graph.models if role in _BASE_ROLES and node.kind == "model"]
    if any(not node.license for node in sources if node.folder):
        parts.append("unknown")
    return " AND ".join(dict.fromkeys(parts))


def _describe_method(graph: ProvenanceGraph) -> str:
    if graph.is_reader:
        return describe_reader_training(graph.subject_folder, graph.subject_artifact)
    rows = []
    for node in graph.select("checkpoint", of=graph.subject):
        artifact, name = _get_artifact(node), node.name
        if artifact.details.get("helped") is False:
            kept = artifact.details.get("kept", "one parent")
            rows.append(f"| {name} | no merge was kept | kept: {kept} | {artifact.seed} |")
            continue
        for link in artifact.origin.get("chain", ()):
            settings = artifact.details.get("method")
            method = settings if isinstance(settings, Mapping) else {}
            shown = ", ".join(f"{key} {value}" for key, value in method.items() if key != "name")
            rows.append(f"| {name} | `{link.get('method')}` | {shown} | {artifact.seed} |")
    if not rows:
        return ""
    head = ["## Training procedure", "", "Latest first.", "", "| step | method | settings | seed |"]
    return "\n".join([*head, "|---|---|---|---|", *rows])


def _describe_data(graph: ProvenanceGraph, shares: Mapping[str, Mapping[str, int]]) -> str:
    indexes = graph.select("index", of=graph.subject)
    if not shares and not indexes:
        return ""
    lines = ["## Training data", "", "| data | human | synthetic | unknown | license |"]
    lines.append("|---|---|---|---|---|")
    lines += [
        _format_share_row(f"records of {node.name}", shares[node.name], node)
        for node in graph.select("records", of=graph.subject)
    ]
    for node in indexes:
        counts = node.text.origins if node.text else {}
        lines.append(_format_share_row(f"documents of {node.name}", counts, node))
    if _is_start_kept(graph.subject_artifact):
        lines += ["", "The training on these data was not kept: nothing of them is in the weights."]
    return "\n".join(lines)


def _format_share_row(name: str, counts: Mapping[str, int], node: Node) -> str:
    total = sum(counts.values()) or 1
    cells = [
        f"{counts.get(kind, 0)} ({counts.get(kind, 0) / total:.0%})"
        for kind in ("human", "synthetic", "unknown")
    ]
    license = node.license or "unknown"
    if not node.license and node.text and any(node.text.licenses):
        license = format_counts(node.text.licenses)
    return f"| {name} | {' | '.join(cells)} | {license} |"


def _format_interval(metric: Mapping[str, Any]) -> str:
    if metric.get("low") is None or metric["low"] == metric.get("high"):
        return f"(n={metric['n']})"
    return f"[{metric['low']:.3g}, {metric['high']:.3g}] (n={metric['n']})"


def _describe_evaluation(graph: ProvenanceGraph) -> str:
    if not graph.metrics:
        return ""
    note = graph.decision or "On held-out records, with 95 % intervals."
    if not select_metrics(graph, quality=True):
        note = "No quality was measured on held-out records, only sizes and times."
    lines = ["## Evaluation", "", note, ""]
    lines += ["| metric | value | interval | n |", "|---|---|---|---|"]
    for metric in graph.metrics:
        low, high = metric.get("low"), metric.get("high")
        shown = f"{low:.4g} to {high:.4g}" if low is not None and low != high else ""
        lines.append(
            f"| {metric['name']} | {metric['value']:.5g} {metric['unit']} | {shown} | "
            f"{metric['n']} |"
        )
    return "\n".join(lines)


def list_limitations(graph: ProvenanceGraph) -> list[str]:
    """Return what a metric or a gap in the lineage shows to be a limitation, one sentence each."""
    return [
        *_list_evaluation_limitations(graph),
        *_list_data_limitations(graph),
        "Safety, bias, and behavior on anything else were not measured.",
    ]


def _list_evaluation_limitations(graph: ProvenanceGraph) -> Iterator[str]:
    yield from _list_sample_size_limitations(select_metrics(graph, quality=True))
    for metric in graph.metrics:
        if metric["name"].endswith("_minus_teacher") and metric.get("high") is not None:
            metric_name = metric["name"].removeprefix("answers/").removesuffix("_minus_teacher")
            if metric["high"] < 0:
                shown = f"{metric['value']:.3g} {_format_interval(metric)}"
                yield f"It is worse than its teacher at {metric_name}: {shown}."
    for why, count in list(graph.left_out.items())[:_MAX_SHOWN]:
        yield f"Evaluation: {why}: {count}."
    for node in graph.select("checkpoint", of=graph.subject):
        artifact = _get_artifact(node)
        if artifact.details.get("unchanged"):
            yield f"Training changed no weight ({node.name}): it is its initial student."
        elif (artifact.details.get("train") or {}).get("had_gradient") is False:
            yield (
                f"The gradient was zero in every step ({node.name}): nothing was learned, and only "
                "weight decay changed the weights."
            )
        if "left_out" in artifact.details and "kept" in artifact.details:
            yield (f"No merge was evaluated ({node.name}): {artifact.details['left_out']}.")
        elif artifact.details.get("helped") is False:
            yield f"Merging ({node.name}) did not lower the held-out loss."


def _list_sample_size_limitations(measured: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    small = min((metric["n"] for metric in measured), default=0)
    if not measured:
        yield "No evaluation is recorded."
    elif small == 1:
        yield "Some metrics come from one record and have no interval: they do not generalize."
    elif small < _SMALL_SAMPLE:
        yield f"Some metrics come from {count_noun(small, 'record')} only; see their intervals."


def _list_data_limitations(graph: ProvenanceGraph) -> Iterator[str]:
    records = [node for node in graph.select("records", of=graph.subject) if node.text]
    total = sum(node.text.count for node in records if node.text)
    written = sum(node.text.origins["synthetic"] for node in records if node.text)
    if total:
        yield f"{written / total:.0%} of {total} records are synthetic: models or rules wrote them."
    for node in graph.select("checkpoint", of=graph.subject):
        artifact = _get_artifact(node)
        cache = (artifact.details.get("cache") or {}).get("about") or {}
        if "dequantized" in str(cache.get("weights", "")):
            yield f"Its teacher's weights were {cache['weights']}, not the original ones."
    if " AND " in find_license(graph):
        joined = find_license(graph)
        yield f"Its parts have several licenses ({joined}): check that all of them allow your use."
    for node in records:
        if node.text and node.text.problem:
            yield f"The records of {node.name} were deleted and cannot be counted."
    for node in graph.list_ancestors(graph.subject):
        if node.kind == "missing":
            roles = [
                role
                for child in graph.nodes.values()
                for role, parent in graph.list_parents(child)
                if parent is node
            ]
            yield f"A parent artifact was deleted: {roles[0]} {node.name}."


def _describe_verification(graph: ProvenanceGraph) -> str:
    artifact = graph.subject_artifact
    versions = ", ".join(f"{name} {version}" for name, version in artifact.versions.items())
    lines = [
        "## Verification",
        "",
        f"Digest `{artifact.digest}`, recipe `{artifact.recipe_digest}`, seed {artifact.seed}.",
    ]
    if versions:
        lines.append(f"Built with {versions}.")
    lines.append(
        "`stillroom verify` recomputes every digest; `stillroom show --lineage` lists the sources."
    )
    return "\n".join(lines)


PACKAGED_LICENSE = "CC-BY-SA-4.0"
_SQUAD = "SQuAD 1.1 (Rajpurkar et al. 2016)"
_SMALL_SOURCES = f"{_SQUAD} and XQuAD (Artetxe et al. 2020), which are under CC BY-SA 4.0"
_PACKAGED_SOURCES = {
    "builtin:reader": _SMALL_SOURCES,
    "builtin:reader-small": _SMALL_SOURCES,
    "builtin:reader-large": f"{_SQUAD}, which is under CC BY-SA 4.0",
    "builtin:reader-multilingual": f"{_SQUAD}, which is under CC BY-SA 4.0, and of the help of "
    "LibreOffice (MPL-2.0) and GNOME (CC BY-SA 3.0)",
}
PACKAGED_READERS = frozenset(_PACKAGED_SOURCES)
"""References of the sentence readers whose weights come with the package."""


def describe_reader(folder: Path, artifact: Artifact, name: str, license: str) -> str:
    """Return what a reader is, in a paragraph."""
    recipe = _read_settings(folder, artifact)
    base = str(recipe.get("base", "an encoder that is not recorded")).removeprefix("hub:")
    text = (
        f"{name} is a sentence reader: an encoder ({base} with low-rank updates) that picks the "
        "sentences of retrieved passages that answer a question. They are quoted; it writes no "
        f"text. Its combined license is {license or 'not recorded'}."
    )
    starts = list(_list_starts(folder, artifact))
    if _is_start_kept(artifact):
        start = starts[0] if starts else "its start"
        text += f" {_describe_training(artifact)} They are those of {start}."
        if start == "builtin:reader":
            text += (
                " For documents in English, builtin:reader-large answers in their place where its "
                "base and onnxruntime are installed."
            )
    notices = [
        "The packaged reader that it starts from was trained on questions and passages of "
        f"{source}."
        for start, source in _PACKAGED_SOURCES.items()
        if start in starts
    ]
    return " ".join([text, *notices])


def describe_reader_training(folder: Path, artifact: Artifact) -> str:
    """Return what the training did, and whether its result was kept."""
    start = _read_settings(folder, artifact).get("start")
    steps = (artifact.details.get("train") or {}).get("steps", "an unknown number of")
    lines = [
        "## Training procedure",
        "",
        f"Low-rank updates were trained for {steps} steps, "
        f"seed {artifact.seed}, from {start or 'the base'}.",
    ]
    if result := _describe_training(artifact):
        lines.append(
            f"**{result}**"
            if _is_start_kept(artifact)
            else f"{result} The same questions are not an independent test of it."
        )
    return "\n".join(lines)


def _describe_training(artifact: Artifact) -> str:
    from stillroom.rag.answer_selection.judging import describe_training

    return describe_training(artifact.parents, artifact.details)


def find_reader_bases(folder: Path, artifact: Artifact) -> dict[str, str]:
    """Return the encoder of a reader, as a card lists it, with an empty digest."""
    base = _read_settings(folder, artifact).get("base")
    return {str(base).removeprefix("hub:").partition("@")[0]: ""} if base else {}


def list_licenses(folder: Path, artifact: Artifact) -> list[str]:
    """Return the licenses of the weights that a reader starts from."""
    is_packaged = _PACKAGED_SOURCES.keys() & set(_list_starts(folder, artifact))
    return [PACKAGED_LICENSE] if is_packaged else []


def _list_starts(folder: Path, artifact: Artifact) -> Iterator[str]:
    """Yield the readers that a reader was trained from, the nearest first."""
    seen: set[Path] = set()
    while folder not in seen:
        seen.add(folder)
        start = _read_settings(folder, artifact).get("start")
        if not start:
            return
        yield str(start)
        folder = Path(str(start))
        if not (folder / ARTIFACT_FILE).is_file():
            return
        artifact = read_artifact(folder)


def _read_settings(folder: Path, artifact: Artifact) -> dict[str, Any]:
    """Return the recipe of a reader, with the base and start that its training took."""
    taken = {
        parent.role: parent.path
        for parent in artifact.parents
        if parent.role in ("base", "start") and has_path(parent) and is_reference(parent.path)
    }
    return {**read_recipe(folder, artifact), **taken}
