"""The names and shapes of a model's tensors, from its configuration alone.

For plans that are made before weights are fetched or converted. Nothing is allocated: the model is
made on torch's meta device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillroom.checkpoints.gguf_header import check_gguf
from stillroom.errors import CheckpointError
from stillroom.models.quiet import quiet_transformers

__all__ = ["outline_model"]


def outline_model(config: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return what a configuration says, and the shape of every tensor by name; tied ones once.

    Args:
        config: A ``config.json``, or a ``.gguf`` file, of which only the metadata is read.

    Raises:
        CheckpointError: If no architecture of transformers reads it, or the file claims more than
            any model has.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    gguf = {"gguf_file": config.name} if config.suffix == ".gguf" else {}
    if gguf:
        check_gguf(config)
    with quiet_transformers():
        try:
            found: Any = AutoConfig.from_pretrained(
                config.parent, trust_remote_code=False, local_files_only=True, **gguf
            )
            with torch.device("meta"):
                maker: Any = AutoModelForCausalLM
                model = maker.from_config(found, trust_remote_code=False)
        except Exception as error:  # a configuration from elsewhere may break in any way
            raise CheckpointError(
                f"{config} describes no model that transformers makes: {error!s:.160}",
                code="checkpoint.unloadable",
                where=str(config),
                expected="the configuration of a causal language model",
                next="update transformers, or use another checkpoint",
            ) from error
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    return dict(found.to_dict()), shapes
