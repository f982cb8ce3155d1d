"""LoRA through peft, added and merged, and how trained weights are stored.

The settings r and target_modules are from ``settings.LoraSettings``.

Source: Hu et al. 2021, arXiv:2106.09685. Weights are merged into exported copies, never in place,
so an export during a run does not affect it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from stillroom.checkpoints import Checkpoint
from stillroom.errors import MissingExtraError, RecipeError
from stillroom.models.local.causal_lm import outline_model
from stillroom.train.settings import LoraSettings

__all__ = [
    "add_lora",
    "check_lora_config",
    "check_lora_targets",
    "choose_dtype",
    "describe_unchanged",
    "export_adapter",
    "export_tensors",
    "gather_tensor",
    "unwrap_model",
]

_UNCHANGED = "no weight differs from those of the initial model: nothing was learned"


def add_lora(model: nn.Module, settings: LoraSettings, seed: int) -> nn.Module:
    """Freeze ``model`` and add trainable low-rank layers to it, in place.

    Raises:
        MissingExtraError: If peft is not installed.
        RecipeError: If a layer to adapt has its weight in common with another, as a tied head, or
            the model has none of the layers.
    """
    check_lora_targets(settings, model)
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
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated transformers call
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # refused below
        torch.manual_seed(seed)
        adapted = cast("nn.Module", peft.get_peft_model(cast("Any", model), config))
    _check_tied_weights(adapted)
    return adapted


def check_lora_targets(settings: LoraSettings | None, model: nn.Module) -> str:
    """Return a warning of names of layers to adapt that no layer of a model has, or nothing.

    A target is the end of a layer's dotted name, or all of it. Fused experts are peft's to find:
    it takes their names from before the fusion. The model may be on the meta device.

    Raises:
        RecipeError: If the model has none of the layers, or one names a module that is none.
    """
    if settings is None or isinstance(settings.targets, str):
        return ""
    layers = {
        name: module
        for name, module in model.named_modules()
        if (weight := getattr(module, "weight", None)) is not None and weight.dim() > 1
    }
    missing = [
        target
        for target in settings.targets
        if not any(f".{name}".endswith(f".{target}") for name in layers)
    ]
    has_experts = any(
        value.dim() > 2 and not name.endswith("weight") for name, value in model.named_parameters()
    )
    if settings.targets and (has_experts or not missing):
        return ""
    known = {
        name.rpartition(".")[2]
        for name, module in layers.items()
        if not isinstance(module, nn.Embedding)
    }
    lacking = f"the model has no layer {', '.join(missing)}" if missing else "no layer is adapted"
    listed = f"layers of the model: {', '.join(sorted(known))}"
    modules = [f".{name}" for name, _ in model.named_modules()]
    # peft adapts each module of a name, and fails at norms and blocks.
    others = [name for name in missing if any(one.endswith(f".{name}") for one in modules)]
    if others:
        lacking = f"the model's {', '.join(others)} cannot be adapted"
    elif len(missing) < len(settings.targets):
        return f"{lacking} (train.lora.targets); {listed}"
    raise RecipeError(
        lacking,
        code="train.lora-targets",
        where="train.lora.targets",
        expected=listed,
        next="correct the names, or set targets: all-linear",
    )


def check_lora_config(settings: LoraSettings | None, config: Path | None) -> str:
    """Check the layers to adapt by a ``config.json`` or ``.gguf`` file, without weights, if any.

    Returns a warning, as ``check_lora_targets`` does.

    Raises:
        RecipeError: If the model has none of the layers.
        CheckpointError: If no model can be built from the file.
    """
    if settings is None or isinstance(settings.targets, str) or config is None:
        return ""
    return check_lora_targets(settings, outline_model(config)[1])


def _check_tied_weights(model: nn.Module) -> None:
    """Refuse an update of a weight that two layers have: merged, it would change both."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for tied in names.values():
        adapted = [name for name in tied if ".base_layer." in name]
        if adapted and len(tied) > 1:
            layer = adapted[0].partition(".base_layer.")[0].rpartition(".")[2]
            raise RecipeError(
                f"the weight of {layer} is another layer's too: an update of one of them cannot be "
                "merged into a checkpoint",
                code="train.lora-head",
                where="train.lora.targets",
                expected="layers with a weight of their own",
                next=f"leave {layer} out, or train a checkpoint with tie_word_embeddings: false",
            )


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model below peft's wrapper, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return cast("nn.Module", unwrap()) if callable(unwrap) else model


def export_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Merge LoRA adapters: yield the model's weights by name, tied weights once, updates added.

    The tensors of a sharded model are gathered one by one; every rank must exhaust the iterator.
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


def choose_dtype(name: str, model: nn.Module, tensors: Mapping[str, Tensor]) -> torch.dtype:
    """Return the storage type that is named; for auto bfloat16, or what keeps low-rank updates.

    Of SmolLM2-135M tuned with LoRA, the KL of the merged checkpoint from its adapter is 4.7e-4 nats
    in bfloat16 and 4.4e-6 in float16. Numbers beyond float16's range need bfloat16.

    Args:
        name: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        model: Model in memory, with low-rank layers or without.
        tensors: Its weights from ``export_tensors``.
    """
    if name != "auto":
        return cast("torch.dtype", getattr(torch, name))
    largest = torch.finfo(torch.float16).max
    fits = unwrap_model(model) is not model and all(
        float(tensor.abs().max()) <= largest for tensor in tensors.values() if tensor.numel()
    )
    return torch.float16 if fits else torch.bfloat16


def describe_unchanged(
    tensors: Mapping[str, Tensor], before: Checkpoint, dtype: torch.dtype
) -> str:
    """Return a line if no tensor differs from a checkpoint's once both have the storage type."""
    known = set(before.names())
    has_changed = any(
        name not in known
        or not torch.equal(tensor.detach().cpu().to(dtype), before.tensor(name).to(dtype))
        for name, tensor in tensors.items()
    )
    return "" if has_changed else f"as stored in {str(dtype).removeprefix('torch.')}, {_UNCHANGED}"


def export_adapter(model: nn.Module, base: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the low-rank weights in peft's format and the content of adapter_config.json.

    The tensors of a sharded model are gathered; every rank must call this.

    Args:
        model: Model from ``add_lora``.
        base: Path or hub name of the base model.
    """
    import peft

    state = peft.get_peft_model_state_dict(cast("Any", model), save_embedding_layers=False)
    tensors = {name: gather_tensor(tensor.detach()).contiguous() for name, tensor in state.items()}
    config: dict[str, Any] = cast("Any", model).peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": base, "inference_mode": True}
    plain = {
        name: sorted(value) if isinstance(value, set | frozenset) else value
        for name, value in config.items()
    }
    return tensors, plain


def gather_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor unchanged, or gathered if it is sharded."""
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
