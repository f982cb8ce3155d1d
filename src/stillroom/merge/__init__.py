"""Model merging: one checkpoint from several of the same architecture, without training.

A merge streams row blocks of every parent, combines them in arithmetic one step wider than the
storage type, and writes the result in place: memory is bounded by a few blocks, independent of
model size. A method has at most two passes: ``measure`` reduces a tensor to a few numbers,
``combine`` merges row blocks. Block size, order of parents and interruptions do not change a bit of
the result.

Kinds: ``merge.weights`` merges; ``merge.select`` and ``merge.search`` choose among merges;
``merge.moe`` and ``merge.transplant`` rearrange whole tensors. Candidates are scored on held-out
records together with their parents. If none is better, the best parent is kept and the artifact
records that.

Papers: model soups (2203.05482), task arithmetic (2212.04089), TIES (2306.01708), DARE
(2311.03099), Model Stock (2403.19522), LAWA (2209.14981), WiSE-FT (2109.01903).

In: checkpoints. Out: an artifact of kind checkpoint, a Hugging Face folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily

if TYPE_CHECKING:
    from stillroom.merge.engine.merge import merge_checkpoints
    from stillroom.merge.interfaces import METHODS, MergeMethod
    from stillroom.merge.jobs.weights import MergeWeightsRecipe, estimate, run

__all__ = ["METHODS", "MergeMethod", "MergeWeightsRecipe", "estimate", "merge_checkpoints", "run"]

__getattr__ = export_lazily(__name__)
