"""Test kit: tiny checkpoints, a scripted model, and contract checks of methods and stores.

``tiny_checkpoint`` writes a real Llama-architecture folder with a real tokenizer in a fraction of a
second; ``scripted_model`` gives a TextModel that answers from a function; ``check_method`` runs the
contract checks of a method of any registry; ``check_store`` those of an index store. Everything is
loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily

if TYPE_CHECKING:
    from stillroom.testing.checkpoint import tiny_checkpoint
    from stillroom.testing.method import check_method
    from stillroom.testing.model import read_stream, scripted_model
    from stillroom.testing.store import check_store

__all__ = ["check_method", "check_store", "read_stream", "scripted_model", "tiny_checkpoint"]

__getattr__ = export_lazily(__name__)
