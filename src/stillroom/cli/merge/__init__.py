"""``stillroom merge``: model merging, from plan to verification."""

from __future__ import annotations

from stillroom.cli.app import command_group

__all__ = ["merge_group"]


@command_group(
    "merge",
    "stillroom merge plan recipes/merge-ties.yaml",
    "stillroom run recipes/merge-ties.yaml --out merged",
    package=__name__,
)
def merge_group() -> None:
    """Merging: plan, run, inspect and verify merges of models and adapters."""
