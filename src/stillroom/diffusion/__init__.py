"""Masked diffusion language models: training, sampling in any order, infilling and likelihood.

The network sees every position and learns to predict masked tokens. Sampling unmasks positions in
order of confidence, several per step where they are nearly independent; masked spans anywhere are
infilled from the context on both sides; the log-likelihood is bounded from below, and every
estimate of the bound has a standard error.

Papers: MDLM, Sahoo et al. 2024, arXiv:2406.07524; LLaDA, Nie et al. 2025, arXiv:2502.09992; block
diffusion, Arriola et al. 2025, arXiv:2503.09573. Each method names its own.

Input: a checkpoint (ours, a published format, or an autoregressive model to continue training from)
and records. Output: an artifact of kind checkpoint, a Hugging Face folder whose config.json holds
the diffusion metadata. The kinds of jobs are in ``stillroom.diffusion.jobs``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily

if TYPE_CHECKING:
    from stillroom.diffusion.evaluation.likelihood import score_text
    from stillroom.diffusion.interfaces import (
        CHECKPOINT_FORMATS,
        CheckpointFormat,
        LikelihoodEstimate,
    )
    from stillroom.diffusion.jobs.train import DiffusionTrainRecipe
    from stillroom.diffusion.model.loading import open_diffusion
    from stillroom.diffusion.model.metadata import DiffusionMetadata
    from stillroom.diffusion.model.network import DiffusionModel, ForwardRequest
    from stillroom.diffusion.sampling.sampler import generate
    from stillroom.diffusion.sampling.sequence import InfillRequest
    from stillroom.diffusion.sampling.settings import DecodeSettings

__all__ = [
    "CHECKPOINT_FORMATS",
    "CheckpointFormat",
    "DecodeSettings",
    "DiffusionMetadata",
    "DiffusionModel",
    "DiffusionTrainRecipe",
    "ForwardRequest",
    "InfillRequest",
    "LikelihoodEstimate",
    "generate",
    "open_diffusion",
    "score_text",
]

__getattr__ = export_lazily(__name__)
