"""``stillroom forensics``: provenance, detectors and benchmarks of media."""

from __future__ import annotations

import click

from stillroom.cli.app import LazyGroup

__all__ = ["forensics_group"]


@click.group(
    "forensics",
    cls=LazyGroup,
    lazy={
        "benchmark": (
            "stillroom.cli.forensics.benchmark:benchmark_group",
            "Measure detectors so that the figures hold: manifests, splits, audits, one protocol.",
        ),
        "check": (
            "stillroom.cli.forensics.check:check_command",
            "Say what is known of files: credentials, this lab's watermark, limits.",
        ),
        "consent": (
            "stillroom.cli.forensics.lab:consent_command",
            "Write a record of who agreed to the use of which pictures or recordings.",
        ),
        "export": (
            "stillroom.cli.forensics.detectors:export_command",
            "Write a detector as an ONNX file.",
        ),
        "import": (
            "stillroom.cli.forensics.detectors:import_command",
            "Bring a published detector's weights into this program's files.",
        ),
        "ledger": (
            "stillroom.cli.forensics.lab:ledger_command",
            "Prove the lab's ledger, row by row.",
        ),
        "provenance": (
            "stillroom.cli.forensics.provenance:provenance_group",
            "Sign media, and read what they say of their own origin.",
        ),
        "trace": (
            "stillroom.cli.forensics.lab:trace_command",
            "Find the lab's own files by their watermark, stripped or not.",
        ),
        "train": (
            "stillroom.cli.forensics.detectors:train_command",
            "Learn a detector from a recipe.",
        ),
    },
    epilog="""
\b
Examples:
  stillroom new forensics/sbi > forge.yaml
  stillroom forensics provenance verify photo.jpg
""",
)
def forensics_group() -> None:
    """Forensics' own verbs."""
