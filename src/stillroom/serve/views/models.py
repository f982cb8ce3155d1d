"""Comparison of checkpoints: architecture, lineage and reported metrics.

Metrics are read from the reports of the folder; nothing is measured here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from stillroom.errors import StillroomError
from stillroom.provenance import FileEntry, find_output, read_artifact
from stillroom.provenance.sources import has_path, resolve_parent
from stillroom.serve.views.folder import (
    FolderArtifact,
    is_artifact,
    list_folder_artifacts,
    read_json,
    resolve_name,
    to_name,
)

__all__ = ["MetricValue", "ModelSummary", "list_models", "list_references"]

_WEIGHT_FILES = re.compile(
    r"output/[^/]+\.(safetensors|gguf)"
)  # metrics of the result, not of its candidates
_METRICS = {
    "kl_to_teacher/final": ("divergence from its teacher", "nats a token", "KL to teacher"),
    "agreement": ("top-1 agreement with its teacher", "share", "agreement"),
    "perplexity": ("perplexity on held-out records", "", "perplexity"),
    "closed/f1": ("F1 of answers without documents", "", "F1 closed"),
    "retrieved/f1": ("F1 of answers from documents", "", "F1 retrieved"),
    "tokens_per_second": ("speed", "tokens a second", "tokens/s"),
}


@dataclass(frozen=True, slots=True)
class MetricValue:
    """Metric with its interval, its sample size, and the report that holds it."""

    value: float
    low: float | None
    high: float | None
    n: int
    report: str


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """Checkpoint of the folder, or a reference to the parent of an artifact in it."""

    name: str
    kind: str
    made_by: str = ""
    roles: str = ""
    """What a reference is to artifacts of the folder, such as ``base, teacher``."""
    parameters: int | None = None
    size_bytes: int | None = None
    layers: int | None = None
    width: int | None = None
    origin: str = ""
    license: str = ""
    digest: str = ""
    created: str = ""
    parents: tuple[tuple[str, str], ...] = ()
    figures: Mapping[str, MetricValue] = field(default_factory=dict)
    is_diffusion: bool = False
    is_language_model: bool = True
    """False for a checkpoint without a config, such as a sentence reader or a detector."""
    same_as: str = ""
    """Name of an older checkpoint of the folder with identical weight files, or empty."""

    @property
    def is_reference(self) -> bool:
        """Whether it lies outside the folder."""
        return self.kind == "reference"


def list_models(root: Path) -> tuple[list[ModelSummary], dict[str, tuple[str, str, str]]]:
    """Return models, newest first, and the name, unit and short name of each metric."""
    artifacts = list_folder_artifacts(root)
    figures = _collect_metrics(root, artifacts)
    models = _mark_duplicates(
        root,
        [
            _summarize_model(root, artifact, figures.get(artifact.name, {}))
            for artifact in artifacts
            if artifact.kind == "checkpoint"
        ],
    )
    known = {artifact.name for artifact in models}
    for reference, roles in _collect_references(root, artifacts).items():
        if reference not in known:
            models.append(
                ModelSummary(
                    reference,
                    "reference",
                    roles=", ".join(sorted(roles)),
                    origin="unknown",
                    figures=figures.get(reference, {}),
                )
            )
    return models, _METRICS


def _mark_duplicates(root: Path, models: list[ModelSummary]) -> list[ModelSummary]:
    """Return models newest first; copies of an older one's weights are marked with its name."""
    first: dict[tuple[str, ...], str] = {}
    marked = []
    for model in reversed(models):
        files = _list_weights(resolve_name(root, model.name))
        weights = tuple(sorted(file.digest for file in files))
        same_as = first.setdefault(weights, model.name) if weights else model.name
        marked.append(model if same_as == model.name else replace(model, same_as=same_as))
    return marked[::-1]


def _list_weights(folder: Path) -> list[FileEntry]:
    files = read_artifact(folder).files if is_artifact(folder) else ()
    return [file for file in files if _WEIGHT_FILES.fullmatch(file.path)]


def list_references(root: Path) -> set[str]:
    """Return the references to models that artifacts of the folder name as their parents."""
    return set(_collect_references(root, list_folder_artifacts(root)))


def _collect_references(root: Path, artifacts: list[FolderArtifact]) -> dict[str, set[str]]:
    references: dict[str, set[str]] = {}
    for artifact in artifacts:
        for role, name in _iter_parents(root, artifact):
            if name.startswith("hub:") and role != "embedder":
                references.setdefault(name, set()).add(role)
    return references


def _iter_parents(root: Path, artifact: FolderArtifact) -> Iterator[tuple[str, str]]:
    """Yield role and name of an artifact's parents; the name is empty outside the folder."""
    folder = resolve_name(root, artifact.name)
    if not is_artifact(folder) or artifact.kind == "broken":
        return
    for parent in read_artifact(folder).parents:
        if not has_path(parent):
            continue
        if parent.path.startswith("hub:"):
            yield parent.role, parent.path
        elif ":" not in parent.path.partition("/")[0]:
            yield parent.role, to_name(root, resolve_parent(folder, parent))


def _summarize_model(
    root: Path, artifact: FolderArtifact, figures: Mapping[str, MetricValue]
) -> ModelSummary:
    folder = resolve_name(root, artifact.name)
    header = _read_header(folder, artifact.digest)
    weights = _list_weights(folder)
    parents = _iter_parents(root, artifact)
    return ModelSummary(
        artifact.name,
        "checkpoint",
        artifact.recipe,
        size_bytes=sum(file.size_bytes for file in weights) or artifact.size_bytes,
        origin=artifact.origin,
        digest=artifact.digest,
        created=artifact.created,
        parents=tuple((role, name or "outside the folder") for role, name in parents),
        figures=figures,
        is_language_model=bool(header),
        **{**header, "license": artifact.license or header.get("license", "")},
    )


@lru_cache(maxsize=256)
def _read_header(folder: Path, digest: str) -> dict[str, Any]:
    """Return the tensor header and the config of a checkpoint; empty without a config."""
    from stillroom.checkpoints import Checkpoint

    try:
        checkpoint = Checkpoint.open(find_output(folder, "checkpoint"))
    except (StillroomError, OSError):
        return {}
    try:
        parameters = checkpoint.parameters
    except StillroomError:  # of an unknown quantization layout
        parameters = None
    config = checkpoint.config
    return {
        "parameters": parameters,
        "layers": config.get("num_hidden_layers"),
        "width": config.get("hidden_size"),
        "license": checkpoint.license,
        "is_diffusion": "stillroom_diffusion" in config,
    }


def _collect_metrics(
    root: Path, artifacts: list[FolderArtifact]
) -> dict[str, dict[str, MetricValue]]:
    """Collect metrics by model, from every report whose parents are models."""
    by_model: dict[str, dict[str, MetricValue]] = {}
    for artifact in artifacts:
        if artifact.kind != "report":
            continue
        folder = resolve_name(root, artifact.name)
        metrics = [
            metric
            for name in ("output/report.json", "report.json", "timings.json")
            for metric in _read_report_metrics(read_json(folder / name))
        ]
        for role, name in _iter_parents(root, artifact):
            if not name:
                continue
            for metric in metrics:
                if key := _find_metric_key(str(metric.get("name", "")), role):
                    by_model.setdefault(name, {}).setdefault(
                        key, _build_metric_value(metric, artifact.name)
                    )
    return by_model


def _read_report_metrics(report: Any) -> list[Mapping[str, Any]]:
    metrics = report.get("metrics") if isinstance(report, dict) else None
    rows = metrics if isinstance(metrics, list) else []
    return [
        metric
        for metric in rows
        if isinstance(metric, dict) and isinstance(metric.get("value"), float)
    ]


def _find_metric_key(name: str, role: str) -> str:
    """Return the key of a metric of a role, such as ``student/agreement``."""
    for prefix in (f"{role}/", f"answers/{role}/"):
        suffix = name.removeprefix(prefix)
        if suffix != name and suffix in _METRICS:
            return suffix
    return ""


def _build_metric_value(metric: Mapping[str, Any], report: str) -> MetricValue:
    return MetricValue(
        metric["value"], metric.get("low"), metric.get("high"), int(metric.get("n", 0)), report
    )
