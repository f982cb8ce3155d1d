"""``stillroom forensics benchmark``: manifests, splits, audits, figures under one protocol."""

from __future__ import annotations

import click

from stillroom.cli.app import LazyGroup

__all__ = ["command"]


@click.group(
    "benchmark",
    cls=LazyGroup,
    lazy={
        "attack": (
            "stillroom.cli.forensics_benchmark_attack",
            "Measure what is left of a detector under adversarial noise and search.",
        ),
        "audit": (
            "stillroom.cli.forensics_benchmark_audit",
            "Look for leaks, near duplicates, and files that tell fake from real by themselves.",
        ),
        "compare": (
            "stillroom.cli.forensics_benchmark_compare",
            "Compare two detectors that were measured under one protocol.",
        ),
        "import": (
            "stillroom.cli.forensics_benchmark_import",
            "Read DeepfakeBench's or FaceForensics++'s lists into a manifest.",
        ),
        "score": (
            "stillroom.cli.forensics_benchmark_score",
            "Measure a table of scores, with intervals, under a protocol with a digest.",
        ),
        "split": (
            "stillroom.cli.forensics_benchmark_split",
            "Split a manifest so that no person, recording or generator is on both sides.",
        ),
        "stress": (
            "stillroom.cli.forensics_benchmark_stress",
            "Draw curves of a detector under JPEG, blur, crops and eight other treatments.",
        ),
    },
    epilog="""
\b
Examples:
  stillroom forensics benchmark audit run/output
  stillroom forensics benchmark score run/output scores.csv --out standing.json
""",
)
def command() -> None:
    """Measure detectors so that the figures hold: manifests, splits, audits, one protocol."""
