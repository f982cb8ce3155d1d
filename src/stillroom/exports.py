"""Public names of a package, imported on first use.

A package lists its exports once, in its ``if TYPE_CHECKING`` block, which type checkers and editors
read; ``export_lazily`` reads the same block, so importing the package loads nothing heavy.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pkgutil import get_data
from typing import Any

__all__ = ["export_lazily"]


def export_lazily(package: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package: it imports what the TYPE_CHECKING block imports."""

    @cache
    def read_modules() -> dict[str, str]:
        source = get_data(package, "__init__.py") or b""
        blocks = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
        return {
            alias.name: node.module
            for block in blocks
            for node in block.body
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }

    def load(name: str) -> Any:
        if name not in read_modules():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(read_modules()[name]), name)

    return load
