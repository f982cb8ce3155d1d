"""Registries of interchangeable methods: folders with one method class per file.

``catalog`` reads the first docstring lines with ``ast`` and imports nothing, so that the command
line can list a hundred methods without torch or pydantic. ``method`` holds ``Method``, the base
class of every interchangeable algorithm, and ``Registry``, a folder of methods; both are loaded on
first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily
from stillroom.registry.catalog import (
    MethodListing,
    find_registries,
    list_kinds,
    list_methods,
    list_names,
    read_docstring,
    suggest,
)

if TYPE_CHECKING:
    from stillroom.registry.method import Method, Registry

__all__ = [
    "Method",
    "MethodListing",
    "Registry",
    "find_registries",
    "list_kinds",
    "list_methods",
    "list_names",
    "read_docstring",
    "suggest",
]

__getattr__ = export_lazily(__name__)
