"""Room 4: masked diffusion language models, that write in any order and see both ways.

The idea: a network that sees every position learns to fill in masked tokens. Text is written by
unmasking, the surest places first, many at once where they do not depend on each other; holes
anywhere are filled with regard to what stands after them; a bound on the likelihood comes with its
error.

Papers: MDLM, Sahoo et al. 2024, arXiv:2406.07524; LLaDA, Nie et al. 2025, arXiv:2502.09992; block
diffusion, Arriola et al. 2025, arXiv:2503.09573. Each method names its own.

In: a checkpoint (ours, of a published layout, or autoregressive to be trained on) and records.
Out: an artifact of kind checkpoint, a Hugging Face folder whose config.json says how it is read.
The job itself is ``stillroom.diffusion.run.run``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.diffusion.canvas import Request
    from stillroom.diffusion.decoding import DecodeSettings
    from stillroom.diffusion.layout import LAYOUTS, Layout
    from stillroom.diffusion.likelihood import score_text
    from stillroom.diffusion.metadata import DiffusionMetadata
    from stillroom.diffusion.model import DiffusionModel, Reading
    from stillroom.diffusion.opening import open_diffusion
    from stillroom.diffusion.recipe import DiffusionRecipe
    from stillroom.diffusion.sampling import generate
    from stillroom.diffusion.scoring import Bound

__all__ = [
    "LAYOUTS",
    "Bound",
    "DecodeSettings",
    "DiffusionMetadata",
    "DiffusionModel",
    "DiffusionRecipe",
    "Layout",
    "Reading",
    "Request",
    "generate",
    "open_diffusion",
    "score_text",
]

_HOMES = {
    "Bound": "scoring",
    "score_text": "likelihood",
    "generate": "sampling",
    "Request": "canvas",
    "DecodeSettings": "decoding",
    "DiffusionRecipe": "recipe",
    "LAYOUTS": "layout",
    "DiffusionMetadata": "metadata",
    "DiffusionModel": "model",
    "Layout": "layout",
    "Reading": "model",
    "open_diffusion": "opening",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use; most of them need torch."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"stillroom.diffusion.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
