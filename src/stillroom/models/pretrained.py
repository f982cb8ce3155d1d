"""The one call of transformers that reads a folder's weights, for every kind of model.

The headers are looked at first, as hostile as they may be. A model that is quantized is read by
transformers with the library of its kind where that is installed and has the device that it needs;
otherwise its plain tensors are, which Stillroom dequantizes itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillroom.checkpoints import Checkpoint

__all__ = ["load_pretrained"]


def load_pretrained(loader: Any, folder: Path, **settings: Any) -> Any:
    """Return what ``from_pretrained`` of a class of transformers gives for a folder.

    Args:
        loader: The class, such as AutoModel.
        folder: With config.json and safetensors; no code of its own is run, no pickle read.
        settings: Passed on.

    Raises:
        CheckpointError: If the weights are broken, or quantized in a way that neither an installed
            library nor Stillroom reads.
        OSError, ValueError, KeyError, RuntimeError, ImportError: As transformers raises them.
    """
    stored = Checkpoint.open(folder)
    safe = {"trust_remote_code": False, "local_files_only": True}
    try:
        return loader.from_pretrained(folder, use_safetensors=True, **safe, **settings)
    except (ImportError, RuntimeError, ValueError):
        if stored.quantization is None:
            raise
    import torch
    from transformers import AutoConfig

    config: Any = settings.pop("config", None) or AutoConfig.from_pretrained(folder, **safe)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if hasattr(loader, "from_config"):  # a class that chooses another takes a folder alone
        with torch.device("meta"):
            loader = type(loader.from_config(config))
    tensors = {name: stored.tensor(name) for name in stored.names()}
    return loader.from_pretrained(None, config=config, state_dict=tensors, **settings)
