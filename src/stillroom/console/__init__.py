"""Web console over a served folder, built on the Python API of ``serve``.

Server-rendered, with a little plain JavaScript; all assets come from this package, and the content
security policy allows nothing else. In: a folder of runs. Out: pages on this machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily

if TYPE_CHECKING:
    from stillroom.console.app import create_console, run_console

__all__ = ["create_console", "run_console"]

__getattr__ = export_lazily(__name__)
