"""``stillroom forensics``: provenance, detectors and benchmarks of media."""

from __future__ import annotations

from stillroom.cli.app import command_group

__all__ = ["forensics_group"]


@command_group(
    "forensics",
    "stillroom new forensics.image_set/sbi > forge.yaml",
    "stillroom forensics provenance verify photo.jpg",
    package=__name__,
)
def forensics_group() -> None:
    """Forensics: check provenance, convert and benchmark detectors."""
