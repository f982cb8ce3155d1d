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
            "Benchmark detectors: manifests, splits, audits, scores and stress tests.",
        ),
        "check": (
            "stillroom.cli.forensics.check:check_command",
            "Check files: content credentials, this lab's watermark, detectors and limitations.",
        ),
        "consent": (
            "stillroom.cli.forensics.lab:consent_command",
            "Write a consent record for images or recordings of a person.",
        ),
        "export": (
            "stillroom.cli.forensics.detectors:export_command",
            "Export a detector as an ONNX file.",
        ),
        "import": (
            "stillroom.cli.forensics.detectors:import_command",
            "Convert the weights of a published detector.",
        ),
        "ledger": (
            "stillroom.cli.forensics.lab:ledger_command",
            "Verify the lab's ledger, row by row.",
        ),
        "provenance": (
            "stillroom.cli.forensics.provenance:provenance_group",
            "Provenance: sign media, and verify content credentials.",
        ),
        "trace": (
            "stillroom.cli.forensics.lab:trace_command",
            "Detect the lab's watermark in files, with or without metadata.",
        ),
        "train": (
            "stillroom.cli.forensics.detectors:train_command",
            "Train a detector from a recipe.",
        ),
    },
    epilog="""
\b
Examples:
  stillroom new forensics.image_set/sbi > forge.yaml
  stillroom forensics provenance verify photo.jpg
""",
)
def forensics_group() -> None:
    """Forensics: check provenance, train and benchmark detectors."""
