"""Model merging: one checkpoint from several of the same architecture, without training.

A merge reads row blocks of every parent, combines them in arithmetic one step wider than their
storage, and writes the result to its place: memory is a few blocks whatever the size of the models.
A method is at most two passes: ``measure`` reduces a tensor to a few numbers, ``combine`` turns row
blocks into one. Neither block size, nor order of parents, nor a kill in between changes a bit.

With ``select`` the merge is a question: several candidates are scored on held-out records beside
their parents, and where none is better, the best parent is kept and the artifact says so.

Papers: model soups (2203.05482), task arithmetic (2212.04089), TIES (2306.01708), DARE
(2311.03099), Model Stock (2403.19522), LAWA (2209.14981), WiSE-FT (2109.01903).
In: checkpoints. Out: an artifact of kind checkpoint, a Hugging Face folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.merge.engine.merge import merge_checkpoints
    from stillroom.merge.interfaces import METHODS, MergeMethod
    from stillroom.merge.recipe import MergeRecipe
    from stillroom.merge.run import estimate, run

__all__ = ["METHODS", "MergeMethod", "MergeRecipe", "estimate", "merge_checkpoints", "run"]

_HOMES = {
    "METHODS": "stillroom.merge.interfaces",
    "MergeMethod": "stillroom.merge.interfaces",
    "MergeRecipe": "stillroom.merge.recipe",
    "estimate": "stillroom.merge.run",
    "merge_checkpoints": "stillroom.merge.engine.merge",
    "run": "stillroom.merge.run",
}


def __getattr__(name: str) -> Any:
    """Load a name (and what it needs) on first use."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(name)
