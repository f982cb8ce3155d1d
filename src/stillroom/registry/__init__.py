"""Interchangeable methods: a folder of files, one class each, found by file name.

``listing`` reads first docstring lines with ``ast`` and imports nothing, so that the command line
can list a hundred methods without torch or pydantic. ``method`` holds ``Method``, the base of every
interchangeable algorithm, and ``Seam``, the folder they are chosen from; both are loaded on first
use only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stillroom.registry.listing import (
    Listed,
    find_seams,
    list_kinds,
    list_methods,
    names_in,
    read_docstring,
    suggest,
)

if TYPE_CHECKING:
    from stillroom.registry.method import Method, Seam

__all__ = [
    "Listed",
    "Method",
    "Seam",
    "find_seams",
    "list_kinds",
    "list_methods",
    "names_in",
    "read_docstring",
    "suggest",
]


def __getattr__(name: str) -> Any:
    """Load ``Method`` and ``Seam`` (and with them pydantic) on first use."""
    if name in {"Method", "Seam"}:
        from stillroom.registry import method

        return getattr(method, name)
    raise AttributeError(name)
