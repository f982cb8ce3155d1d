"""Room 4: masked diffusion language models, that write in any order and see both ways.

The idea: a network that sees every position learns to fill in masked tokens. Text is written by
unmasking, the surest places first, many at once where they do not depend on each other; holes
anywhere are filled with regard to what stands after them; a bound on the likelihood comes with its
error.

Papers: MDLM, Sahoo et al. 2024, arXiv:2406.07524; LLaDA, Nie et al. 2025, arXiv:2502.09992; block
diffusion, Arriola et al. 2025, arXiv:2503.09573. Each method names its own.

In: a checkpoint (ours, of a published layout, or autoregressive to be trained on) and records.
Out: an artifact of kind checkpoint, a Hugging Face folder whose config.json says how it is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.diffusion.layout import LAYOUTS, Layout
    from stillroom.diffusion.metadata import DiffusionMetadata
    from stillroom.diffusion.model import DiffusionModel, Reading
    from stillroom.diffusion.opening import open_diffusion

__all__ = [
    "LAYOUTS",
    "DiffusionMetadata",
    "DiffusionModel",
    "Layout",
    "Reading",
    "open_diffusion",
]

_HOMES = {
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
