"""Web console over a served folder, built on the Python API of ``serve``.

Server-rendered, with a little plain JavaScript; all assets come from this package, and the content
security policy allows nothing else. In: a folder of runs. Out: pages on this machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.console.app import create_console, run_console

__all__ = ["create_console", "run_console"]

_HOMES = {"create_console": "app", "run_console": "app"}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use; jinja2 is imported with the app only."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"stillroom.console.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
