"""``stillroom forensics``: provenance, detectors and benchmarks of media."""

from __future__ import annotations

from stillroom.cli.app import command_group

__all__ = ["forensics_group"]


@command_group(
    "forensics",
    {
        "benchmark": (
            "forensics.benchmark",
            "Benchmark detectors: manifests, splits, audits, scores and stress tests.",
        ),
        "check": (
            "forensics.provenance",
            "Check files: content credentials, this lab's watermark, detectors and limitations.",
        ),
        "consent": (
            "forensics.lab",
            "Write a consent record for images or recordings of a person.",
        ),
        "export": ("forensics.detectors", "Export a detector as an ONNX file."),
        "import": ("forensics.detectors", "Convert the weights of a published detector."),
        "ledger": ("forensics.lab", "Verify the lab's ledger, row by row."),
        "provenance": (
            "forensics.provenance",
            "Provenance: sign media, and verify content credentials.",
        ),
        "trace": (
            "forensics.lab",
            "Detect the lab's watermark in files, with or without metadata.",
        ),
        "train": ("forensics.detectors", "Train a detector from a recipe."),
    },
    "stillroom new forensics.image_set/sbi > forge.yaml",
    "stillroom forensics provenance verify photo.jpg",
)
def forensics_group() -> None:
    """Forensics: check provenance, train and benchmark detectors."""
