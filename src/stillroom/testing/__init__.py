"""Test kit: tiny checkpoints, a scripted model, and contract checks of methods and stores.

``tiny_checkpoint`` writes a real Llama-architecture folder with a real tokenizer in a fraction of a
second; ``scripted_model`` gives a TextModel that answers from a function; ``check_method`` runs the
contract checks of a method of any registry; ``check_store`` those of an index store. Everything is
loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.testing.checkpoint import tiny_checkpoint
    from stillroom.testing.method import check_method
    from stillroom.testing.model import read_stream, scripted_model
    from stillroom.testing.store import check_store

__all__ = ["check_method", "check_store", "read_stream", "scripted_model", "tiny_checkpoint"]

_HOMES = {
    "check_method": "stillroom.testing.method",
    "check_store": "stillroom.testing.store",
    "read_stream": "stillroom.testing.model",
    "scripted_model": "stillroom.testing.model",
    "tiny_checkpoint": "stillroom.testing.checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import a tool of the kit on first use."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(name)
