"""Model card of a checkpoint, compiled from its lineage and evaluation reports.

Model cards describe a model's data, metrics and limitations. All three are recorded in the
artifacts that the checkpoint derives from, so the card is generated: base models and records with
their shares of human and synthetic text, the method with its settings, the report with its
intervals. A limitation is listed if a metric or a gap in the lineage shows it. Nothing is claimed
that was not recorded.

Source: Mitchell et al. 2019 (arXiv:1810.03993).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.flow.reader_card import (
    describe_reader,
    describe_reader_training,
    find_reader_bases,
    list_licenses,
)
from stillroom.provenance import ARTIFACT_FILE, Artifact, read_artifact
from stillroom.provenance.sources import (
    has_path,
    is_path_parent,
    is_reference,
    list_ancestors,
    resolve_parent,
)
from stillroom.records import find_record_file, read_records

__all__ = ["CardContext", "collect_card_context", "render_card"]

_MAX_SHOWN = 12
_SMALL_SAMPLE = 100
_CHECKPOINT_ROLES = {"teacher", "base", "model", "student"}


@dataclass
class CardContext:
    """Sources of a card: artifacts by kind, nearest first, and parents outside the lineage."""

    folder: Path
    artifact: Artifact
    checkpoints: list[tuple[Path, Artifact]] = field(default_factory=list)
    records: list[tuple[Path, Artifact]] = field(default_factory=list)
    indexes: list[tuple[Path, Artifact]] = field(default_factory=list)
    bases: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    decision: str = ""

    @property
    def is_reader(self) -> bool:
        """Whether it is a sentence reader, not a language model."""
        return bool(self.artifact.details.get("reader"))

    def names(self) -> dict[Path, str]:
        """Return a unique name of each folder: its last path parts."""
        parts = (*self.checkpoints, *self.records, *self.indexes)
        return _shorten_paths([folder for folder, _ in parts])


def collect_card_context(path: Path, reports: Sequence[Path] = ()) -> CardContext:
    """Read the lineage of a checkpoint.

    Args:
        path: Folder of a job of kind checkpoint, or of a run, whose model (or reader, where an
            input is the model) and report are used.
        reports: Additional jobs of kind report, or report files.

    Raises:
        DataError: If the checkpoint is not an artifact, or a report cannot be read.
    """
    from stillroom.flow.opening import find_step

    artifact = read_artifact(path)
    decision = artifact.details.get("decision", "")
    report_paths = list(reports)
    if artifact.kind == "report" and artifact.details.get("answer"):
        report_paths.append(path)
        answer = artifact.details["answer"]
        is_trained = answer["model"] in artifact.details["steps"] or "reader" not in answer
        reads = "trained_reader" if "trained_reader" in answer else "reader"  # another one won
        path = find_step(path, "model" if is_trained else reads)
        artifact = read_artifact(path)
    if artifact.kind != "checkpoint":
        raise DataError(
            f"{path} is an artifact of kind {artifact.kind}",
            code="data.wrong-kind",
            expected="the folder of a run or of a job that produced a checkpoint",
            next=f"stillroom show {path}",
        )
    lineage = CardContext(path, artifact)
    bases: dict[str | Path, str] = {}
    for folder, ancestor in list_ancestors(path):
        kinds = {
            "checkpoint": lineage.checkpoints,
            "records": lineage.records,
            "index": lineage.indexes,
        }
        if ancestor.kind in kinds:
            kinds[ancestor.kind].append((folder, ancestor))
        if ancestor.kind == "checkpoint":
            _add_parents(lineage, bases, folder, ancestor)
    names = _shorten_paths([base for base in bases if isinstance(base, Path)])
    lineage.bases = {names[base] if isinstance(base, Path) else base: bases[base] for base in bases}
    if lineage.is_reader:
        lineage.bases |= find_reader_bases(path, artifact)
    for report in report_paths:
        _read_report(lineage, report)
    if decision:
        lineage.decision = str(decision)
    return lineage


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


def _add_parents(
    lineage: CardContext, bases: dict[str | Path, str], folder: Path, artifact: Artifact
) -> None:
    for parent in artifact.parents:
        if not has_path(parent) or parent.role not in _CHECKPOINT_ROLES:
            continue
        if is_reference(parent.path):
            bases[parent.path.removeprefix("hub:").partition("@")[0]] = parent.digest
        elif is_path_parent(parent):
            parent_folder = resolve_parent(folder, parent)
            if not parent_folder.exists():
                lineage.missing.append(f"{parent.role} {parent.path}")
            elif not (parent_folder / ARTIFACT_FILE).is_file():
                bases[parent_folder] = parent.digest


def _read_report(lineage: CardContext, path: Path) -> None:
    file = path if path.is_file() else path / "report.json"
    if not file.is_file():
        file = path / "output" / "report.json"
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        lineage.metrics += [
            artifact for artifact in report["metrics"] if artifact["value"] is not None
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
                lineage.left_out.update(artifact.details.get("left_out") or {})


def render_card(lineage: CardContext, name: str = "") -> str:
    """Return the card as Markdown with front matter.

    Args:
        lineage: Result of ``collect_card_context``.
        name: Name of the model; by default the folder's name.
    """
    from stillroom.checkpoints.card import compose_card

    chain = [
        link.get("method", "")
        for link in lineage.artifact.origin.get("chain", ())
        if not _is_refused_merge(lineage.artifact, link)
    ]
    is_distilled = any(
        link.get("method", "").startswith("distill.")
        for _, artifact in lineage.checkpoints
        for link in artifact.origin.get("chain", ())
    )
    names = lineage.names()
    shares = {names[folder]: _count_records(folder) for folder, _ in lineage.records}
    called = name or lineage.folder.name
    body = "\n\n".join(
        part
        for part in (
            _describe_model(lineage, called),
            _describe_method(lineage),
            _describe_data(lineage, shares),
            _describe_evaluation(lineage),
            _describe_limitations(lineage, shares),
            _describe_verification(lineage),
        )
        if part
    )
    return compose_card(
        called,
        body,
        license=_find_license(lineage),
        base_models=list(lineage.bases),
        relation=(
            "finetune"
            if is_distilled or lineage.is_reader
            else "merge"
            if len(lineage.bases) > 1
            else ""
        ),
        tags=[method.rpartition(".")[2] for method in chain if method],
        fields=_build_front_matter(lineage, called, shares),
    )


def _is_refused_merge(artifact: Artifact, link: Mapping[str, Any]) -> bool:
    """Return whether a link names a merge that was tried and not kept."""
    method = str(link.get("method", ""))
    return artifact.details.get("helped") is False and method.startswith("merge.")


def _build_front_matter(
    lineage: CardContext, name: str, shares: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    task_name = "question-answering" if lineage.is_reader else "text-generation"
    fields: dict[str, Any] = {"pipeline_tag": task_name}
    if lineage.is_reader:
        fields["library_name"] = "stillroom"
    if shares:
        fields["datasets"] = list(shares)
    measured = [
        {
            "type": metric["name"],
            "name": f"{metric['name']} {_format_interval(metric)}",
            "value": metric["value"],
        }
        for metric in _select_quality_metrics(lineage.metrics)
        if metric["name"].startswith("reader/owned/" if lineage.is_reader else "")
        and ("student/" in metric["name"] or lineage.is_reader)
    ]
    if measured:
        task = {"task": {"type": task_name}, "metrics": measured}
        asked = "questions about" if lineage.is_reader else "held-out records of"
        dataset = {"type": "held-out", "name": f"{asked} its own documents"}
        fields["model-index"] = [{"name": name, "results": [{**task, "dataset": dataset}]}]
    fields["stillroom"] = {
        "digest": lineage.artifact.digest,
        "origin": lineage.artifact.origin.get("kind", "unknown"),
        "records": {name: dict(counts) for name, counts in shares.items()},
    }
    return fields


def _describe_model(lineage: CardContext, name: str) -> str:
    if lineage.is_reader:
        license = _find_license(lineage)
        return describe_reader(lineage.folder, lineage.artifact, name, license)
    origin = lineage.artifact.origin.get("kind", "unknown")
    bases = ", ".join(lineage.bases) or "no recorded model"
    return (
        f"{name} is a language model built by Stillroom from {bases}. Its origin is **{origin}**; "
        f"its combined license is {_find_license(lineage) or 'not recorded'}."
    )


def _find_license(lineage: CardContext) -> str:
    """Return the licenses of all parts, joined; ``unknown`` where data has none on record."""
    own = str(lineage.artifact.origin.get("license", ""))
    parts = [part for part in own.split(" AND ") if part]
    if lineage.is_reader:
        parts += list_licenses(lineage.folder, lineage.artifact)
        data = (*lineage.records, *lineage.indexes)
        parts += [str(one.origin["license"]) for _, one in data if one.origin.get("license")]
    if any(not one.origin.get("license") for _, one in (*lineage.records, *lineage.indexes)):
        parts.append("unknown")
    return " AND ".join(dict.fromkeys(parts))


def _describe_method(lineage: CardContext) -> str:
    if lineage.is_reader:
        return describe_reader_training(lineage.folder, lineage.artifact)
    rows, names = [], lineage.names()
    for folder, artifact in lineage.checkpoints:
        if artifact.details.get("helped") is False:
            kept = artifact.details.get("kept", "one parent")
            rows.append(f"| {names[folder]} | no merge was kept | kept: {kept} | {artifact.seed} |")
            continue
        for link in artifact.origin.get("chain", ()):
            settings = artifact.details.get("method")
            method = settings if isinstance(settings, Mapping) else {}
            shown = ", ".join(f"{key} {value}" for key, value in method.items() if key != "name")
            rows.append(f"| {names[folder]} | `{link.get('method')}` | {shown} | {artifact.seed} |")
    if not rows:
        return ""
    head = ["## Training procedure", "", "Latest first.", "", "| step | method | settings | seed |"]
    return "\n".join([*head, "|---|---|---|---|", *rows])


def _count_records(folder: Path) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for record in _iter_origin_kinds(folder):
        counts[record] += 1
    return dict(sorted(counts.items()))


def _iter_origin_kinds(folder: Path) -> Iterator[str]:
    try:
        file = find_record_file(folder / "output")
    except DataError:  # removed since: listed among the limitations
        return
    for record in read_records(file):
        yield record.origin.kind


def _describe_data(lineage: CardContext, shares: Mapping[str, Mapping[str, int]]) -> str:
    if not shares and not lineage.indexes:
        return ""
    lines = ["## Training data", "", "| data | human | synthetic | unknown | license |"]
    lines.append("|---|---|---|---|---|")
    names = lineage.names()
    licenses = {
        names[folder]: artifact.origin.get("license", "") for folder, artifact in lineage.records
    }
    for name, counts in shares.items():
        lines.append(_format_share_row(f"records of {name}", counts, licenses[name]))
    for folder, artifact in lineage.indexes:
        count = int(artifact.details.get("documents", 0))
        kind = str(artifact.origin.get("kind", "unknown"))
        named = f"documents of {names[folder]}"
        lines.append(_format_share_row(named, {kind: count}, artifact.origin.get("license", "")))
    return "\n".join(lines)


def _format_share_row(name: str, counts: Mapping[str, int], license: str) -> str:
    total = sum(counts.values()) or 1
    cells = [
        f"{counts.get(kind, 0)} ({counts.get(kind, 0) / total:.0%})"
        for kind in ("human", "synthetic", "unknown")
    ]
    return f"| {name} | {' | '.join(cells)} | {license or 'unknown'} |"


def _select_quality_metrics(metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return quality metrics, without sizes and times."""
    skipped = ("/size_bytes", "/parameters", "/tokens_per_second")
    return [
        metric
        for metric in metrics
        if not metric["name"].startswith("seconds/") and not metric["name"].endswith(skipped)
    ]


def _format_interval(metric: Mapping[str, Any]) -> str:
    if metric.get("low") is None or metric["low"] == metric.get("high"):
        return f"(n={metric['n']})"
    return f"[{metric['low']:.3g}, {metric['high']:.3g}] (n={metric['n']})"


def _describe_evaluation(lineage: CardContext) -> str:
    if not lineage.metrics:
        return ""
    note = lineage.decision or "On held-out records, with 95 % intervals."
    if not _select_quality_metrics(lineage.metrics):
        note = "No quality was measured on held-out records, only sizes and times."
    lines = ["## Evaluation", "", note, ""]
    lines += ["| metric | value | interval | n |", "|---|---|---|---|"]
    for metric in lineage.metrics:
        low, high = metric.get("low"), metric.get("high")
        shown = f"{low:.4g} to {high:.4g}" if low is not None and low != high else ""
        lines.append(
            f"| {metric['name']} | {metric['value']:.5g} {metric['unit']} | {shown} | "
            f"{metric['n']} |"
        )
    return "\n".join(lines)


def _describe_limitations(lineage: CardContext, shares: Mapping[str, Mapping[str, int]]) -> str:
    limitations = [*_list_evaluation_limitations(lineage), *_list_data_limitations(lineage, shares)]
    limitations.append("Safety, bias, and behavior outside its documents were not measured.")
    return "\n".join(["## Limitations", "", *(f"- {line}" for line in limitations)])


def _list_evaluation_limitations(lineage: CardContext) -> Iterator[str]:
    yield from _list_sample_size_limitations(_select_quality_metrics(lineage.metrics))
    for metric in lineage.metrics:
        if metric["name"].endswith("_minus_teacher") and metric.get("high") is not None:
            metric_name = metric["name"].removeprefix("answers/").removesuffix("_minus_teacher")
            if metric["high"] < 0:
                shown = f"{metric['value']:.3g} {_format_interval(metric)}"
                yield f"It is worse than its teacher at {metric_name}: {shown}."
    for why, count in list(lineage.left_out.items())[:_MAX_SHOWN]:
        yield f"Evaluation: {why}: {count}."
    for folder, artifact in lineage.checkpoints:
        if "left_out" in artifact.details and "kept" in artifact.details:
            yield (
                f"No merge was evaluated ({lineage.names()[folder]}): "
                f"{artifact.details['left_out']}."
            )
        elif artifact.details.get("helped") is False:
            yield f"Merging ({lineage.names()[folder]}) did not lower the held-out loss."


def _list_sample_size_limitations(measured: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    small = min((metric["n"] for metric in measured), default=0)
    if not measured:
        yield "No evaluation is recorded."
    elif small == 1:
        yield "Some metrics come from one record and have no interval: they do not generalize."
    elif small < _SMALL_SAMPLE:
        yield f"Some metrics come from {small} records only; see their intervals."


def _list_data_limitations(
    lineage: CardContext, shares: Mapping[str, Mapping[str, int]]
) -> Iterator[str]:
    total = sum(sum(counts.values()) for counts in shares.values())
    written = sum(counts.get("synthetic", 0) for counts in shares.values())
    if total:
        yield f"{written / total:.0%} of {total} records were generated by models."
    for _, artifact in lineage.checkpoints:
        cache = (artifact.details.get("cache") or {}).get("about") or {}
        if "dequantized" in str(cache.get("weights", "")):
            yield f"Its teacher's weights were {cache['weights']}, not the original ones."
    if " AND " in _find_license(lineage):
        joined = _find_license(lineage)
        yield f"Its parts have several licenses ({joined}): check that all of them allow your use."
    for name, counts in shares.items():
        if not counts:
            yield f"The records of {name} were deleted and cannot be counted."
    for name in lineage.missing:
        yield f"A parent artifact was deleted: {name}."


def _describe_verification(lineage: CardContext) -> str:
    artifact = lineage.artifact
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
