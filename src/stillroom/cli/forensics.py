"""``stillroom forensics``: forensics' own verbs."""

from __future__ import annotations

import click

from stillroom.cli.app import LazyGroup

__all__ = ["command"]


@click.group(
    "forensics",
    cls=LazyGroup,
    lazy={
        "benchmark": (
            "stillroom.cli.forensics_benchmark",
            "Measure detectors so that the figures hold: manifests, splits, audits, one protocol.",
        ),
        "check": (
            "stillroom.cli.forensics_check",
            "Say what is known of files: credentials, this lab's watermark, limits.",
        ),
        "consent": (
            "stillroom.cli.forensics_consent",
            "Write a record of who agreed to the use of which pictures or recordings.",
        ),
        "export": ("stillroom.cli.forensics_export", "Write a detector as an ONNX file."),
        "import": (
            "stillroom.cli.forensics_import",
            "Bring a published detector's weights into this program's files.",
        ),
        "ledger": ("stillroom.cli.forensics_ledger", "Prove the lab's ledger, row by row."),
        "provenance": (
            "stillroom.cli.forensics_provenance",
            "Sign media, and read what they say of their own origin.",
        ),
        "trace": (
            "stillroom.cli.forensics_trace",
            "Find the lab's own files by their watermark, stripped or not.",
        ),
        "train": ("stillroom.cli.forensics_train", "Learn a detector from a recipe."),
    },
    epilog="""
\b
Examples:
  stillroom new forensics/sbi > forge.yaml
  stillroom forensics provenance verify photo.jpg
""",
)
def command() -> None:
    """Forensics' own verbs."""
