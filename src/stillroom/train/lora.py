"""LoRA through peft: low-rank layers and export of merged weights.

Source: Hu et al. 2021, arXiv:2106.09685. Merging is done on the exported copy, never in place, so
that exporting in the middle of a run leaves the run as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from stillroom.errors import MissingExtraError
from stillroom.train.settings import LoraSettings

__all__ = ["add_lora", "export_adapter", "export_tensors", "gather_tensor", "unwrap_model"]


def add_lora(model: nn.Module, settings: LoraSettings, seed: int) -> nn.Module:
    """Freeze ``model`` and add low-rank layers to it; only these will train.

    Args:
        model: A transformer in memory; changed in place.
        settings: Rank, scale and targets.
        seed: Draws the first values.

    Raises:
        MissingExtraError: If peft is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError.of("peft", "train", "training with LoRA") from error
    targets = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=cast("int", settings.alpha),
        lora_dropout=settings.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in an older way
        torch.manual_seed(seed)
        return cast("nn.Module", peft.get_peft_model(cast("Any", model), config))


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model below peft's wrapper, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return cast("nn.Module", unwrap()) if callable(unwrap) else model


def export_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the model's weights by name, tied ones once, low-rank additions merged into copies.

    Where the model is sharded, its tensors are gathered one by one, and every rank must go through
    all of them.
    """
    for name, parameter in unwrap_model(model).named_parameters():
        if ".lora_" in name:
            continue
        tensor = gather_tensor(parameter.detach())
        if ".base_layer." in name:
            owner, _, leaf = name.partition(".base_layer.")
            layer = unwrap_model(model).get_submodule(owner)
            name = f"{owner}.{leaf}"
            if leaf == "weight":
                tensor = tensor + gather_tensor(_low_rank_update(layer)).to(tensor.dtype)
        yield name, tensor


def export_adapter(model: nn.Module, base: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a model's low-rank additions as peft stores them, and adapter_config.json.

    Where the model is sharded, its tensors are gathered, and every rank must call this.

    Args:
        model: From ``add_lora``.
        base: What the additions are added to, by path or hub name.
    """
    import peft

    kept = peft.get_peft_model_state_dict(cast("Any", model), save_embedding_layers=False)
    tensors = {name: gather_tensor(tensor.detach()).contiguous() for name, tensor in kept.items()}
    said: dict[str, Any] = cast("Any", model).peft_config["default"].to_dict()
    said |= {"base_model_name_or_path": base, "inference_mode": True}
    plain = {
        name: sorted(value) if isinstance(value, set | frozenset) else value
        for name, value in said.items()
    }
    return tensors, plain


def gather_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor as it is, or gathered where each rank holds a part of it."""
    gather = getattr(tensor, "full_tensor", None)
    return cast("Tensor", gather()) if callable(gather) else tensor


@torch.no_grad()
def _low_rank_update(layer: nn.Module) -> Tensor:
    total = None
    for adapter in cast("Any", layer).active_adapters:
        part = cast("Any", layer).get_delta_weight(adapter)
        total = part if total is None else total + part
    if total is None:
        return torch.zeros(())
    return cast("Tensor", total.detach())
