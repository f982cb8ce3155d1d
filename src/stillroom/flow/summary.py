"""The run's own report: figures of its report steps, the clock's, and what each step left."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stillroom.evaluate.metrics import Metric
from stillroom.evaluate.report import Report, Section, Table, merge_reports
from stillroom.provenance import Artifact, read_artifact

__all__ = ["write_summary"]

_DIGITS = 12
_NOT_TRAINED = (
    "The documents gave too little to train on. The index answers with the model that the recipe "
    "names as its fallback; nothing here was learned from these documents."
)


def write_summary(
    out: Path,
    done: Mapping[str, Path],
    seconds: Mapping[str, float],
    skipped: Mapping[str, str],
) -> list[str]:
    """Write report.json and report.html of a run.

    Args:
        out: The run's folder.
        done: Every step's folder by name.
        seconds: Every step's seconds by name.
        skipped: Why a step was not done, by name.

    Returns:
        The names of the files that were written.
    """
    artifacts = {name: read_artifact(folder) for name, folder in done.items()}
    parts: list[Path | Report] = []
    for name, folder in done.items():
        if artifacts[name].kind == "report":
            parts.append(folder / "output")
            if (folder / "timings.json").is_file():
                parts.append(folder / "timings.json")
    steps = _describe_steps(done, artifacts, seconds)
    if skipped:
        rows = tuple(skipped.items())
        table = Table("Steps that were not done", ("step", "why"), rows)
        steps.sections.insert(0, Section("Not trained", _NOT_TRAINED, table=table))
    parts.append(steps)
    merge_reports(f"Run {out.name}", parts, folder=out)
    return ["report.json", "report.html"]


def _describe_steps(
    done: Mapping[str, Path], artifacts: Mapping[str, Artifact], seconds: Mapping[str, float]
) -> Report:
    report = Report("Steps")
    for name, spent in seconds.items():
        report.add(Metric(f"seconds/{name}", spent, n=1, unit="s", note="measured once"))
    rows = tuple(
        (name, artifact.kind, f"{seconds[name]:.1f} s", artifact.digest[:_DIGITS])
        for name, artifact in artifacts.items()
    )
    report.sections.append(
        Section(
            "Steps",
            "What each step left, how long it took, and the digest of its bytes.",
            table=Table("Steps of the run", ("step", "artifact", "took", "digest"), rows),
        )
    )
    for name, artifact in artifacts.items():
        if artifact.kind == "records":
            report.sections += list(_describe_records(name, done[name]))
        if "candidates" in artifact.details:
            report.sections.append(_describe_candidates(name, artifact.details))
    return report


def _describe_records(name: str, folder: Path) -> Iterator[Section]:
    path = folder / "output" / "report.json"
    if not path.is_file():
        return
    counts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows = tuple((label, str(number)) for label, number in _flatten(counts) if number)
    yield Section(
        f"Records ({name})",
        "Every record that was asked for is counted here: kept, or dropped with its reason.",
        table=Table("Records by what became of them", ("what", "count"), rows),
    )


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, int | float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(item, f"{prefix} / {key}" if prefix else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield prefix, value


def _describe_candidates(name: str, details: Mapping[str, Any]) -> Section:
    rows = tuple(
        (
            str(row["name"]),
            f"{row['loss']:.4f}",
            f"{row['low']:.4f} to {row['high']:.4f}",
            str(row["n"]),
        )
        for row in details["candidates"]
    )
    if "left_out" in details:
        text = f"No merge was judged: {details['left_out']}. Kept as it is: {details['kept']}."
        return Section(f"Merge candidates ({name})", text)
    text = f"Kept: {details.get('kept')}. " + (
        "Merging lowered the held-out loss." if details.get("helped") else "Merging did not help."
    )
    final = details.get("final")
    if final:
        text += (
            f" On {final['records']} records that no choice saw its loss is "
            f"{final['kept']['loss']:.4f}, the best parent's {final['best_parent']['loss']:.4f}."
        )
    return Section(
        f"Merge candidates ({name})",
        text,
        table=Table("Held-out loss of each candidate", ("candidate", "loss", "95 %", "n"), rows),
    )
