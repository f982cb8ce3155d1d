"""The run's own report: the evaluate step's figures, the clock's, and the seconds of each step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["write_summary"]


def write_summary(out: Path, done: Mapping[str, Path], seconds: Mapping[str, float]) -> list[str]:
    """Write report.json and report.html of a run.

    Args:
        out: The run's folder.
        done: Every step's folder by name.
        seconds: Every step's seconds by name.

    Returns:
        The names of the files that were written.
    """
    from stillroom.evaluate.report import merge_reports

    merge_reports(out, done, seconds)
    return ["report.json", "report.html"]
