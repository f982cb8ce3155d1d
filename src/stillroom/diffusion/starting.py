"""What training starts from, as a folder that says it is a diffusion model.

A diffusion checkpoint is taken as it is, one of a published layout in stock terms; an
autoregressive one gets a mask token whose embedding is the mean of all; a new network is drawn.
Whatever it was, afterwards it is an ordinary checkpoint with metadata, and training knows one kind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.diffusion.metadata import DiffusionMetadata
from stillroom.diffusion.opening import translate
from stillroom.diffusion.recipe import DiffusionRecipe, ScratchSettings
from stillroom.diffusion.vocabulary import BUILTIN, MASK, build_tokenizer
from stillroom.errors import CheckpointError, DataError
from stillroom.models import resolve_checkpoint
from stillroom.models.causal import load_tokenizer

__all__ = ["check_start", "draw_network", "prepare_start", "read_json", "rewrite_checkpoint"]

_EMBEDDINGS = ("model.embed_tokens.weight", "gpt_neox.embed_in.weight")
_HEADS = ("lm_head.weight", "embed_out.weight")


def prepare_start(recipe: DiffusionRecipe, texts: Callable[[], Iterable[str]], folder: Path) -> str:
    """Write the folder that training starts from; one that stands there already is kept.

    Args:
        recipe: Says what to start from, and the attention to be learned.
        texts: The records' texts, where a tokenizer is made of them.
        folder: Where to.

    Returns:
        In words, what was done.

    Raises:
        CheckpointError: If the start cannot be made a diffusion model.
        RecipeError: If a setting contradicts the start.
    """
    done = folder / "start.txt"
    if done.is_file():
        return done.read_text(encoding="utf-8")
    if isinstance(recipe.start, ScratchSettings):
        said = _begin_anew(recipe, recipe.start, texts, folder)
    else:
        said = _take_over(recipe, Checkpoint.open(resolve_checkpoint(recipe.start)), folder)
    done.write_text(said, encoding="utf-8")
    return said


def check_start(recipe: DiffusionRecipe) -> None:
    """Refuse an autoregressive start where the objective needs a diffusion model.

    Raises:
        CheckpointError: If it is one, or is missing.
    """
    if isinstance(recipe.start, ScratchSettings) or not recipe.objective.needs_model:
        return
    stored = Checkpoint.open(resolve_checkpoint(recipe.start))
    known = DiffusionMetadata.from_config(stored.config, str(stored.folder))
    if known is None and translate(stored) is None:
        raise CheckpointError(
            f"objective {recipe.objective.method_name()} goes on from a diffusion model, and this "
            "is an autoregressive checkpoint",
            code="diffusion.not-diffusion",
            where=str(stored.folder / "config.json"),
            expected="a diffusion checkpoint that answers already",
            next="train it first with objective: bound",
        )


def rewrite_checkpoint(reference: str, out: Path, *, overwrite: bool = False) -> str:
    """Write a diffusion checkpoint of a published layout in stock terms, with its metadata.

    Args:
        reference: The checkpoint.
        out: Where to; the folder appears when it is whole.
        overwrite: Replace a folder that stands there.

    Returns:
        In words, what it was.

    Raises:
        CheckpointError: If it is no diffusion checkpoint: an autoregressive one has to be trained.
        DataError: If ``out`` stands already.
    """
    if out.exists() and not overwrite:
        raise DataError(
            f"{out} exists already",
            code="data.exists",
            expected="a new folder",
            next="choose another --out, or replace it with --overwrite",
        )
    stored = Checkpoint.open(resolve_checkpoint(reference))
    translation = translate(stored)
    known = DiffusionMetadata.from_config(stored.config, str(stored.folder))
    known = known if translation is None else translation.metadata
    if known is None:
        raise CheckpointError(
            "this is an autoregressive checkpoint: it has to be trained on masked text",
            code="diffusion.not-diffusion",
            where=str(stored.folder / "config.json"),
            expected="a diffusion checkpoint, or records to train on",
            next="add --records RECORDS",
        )
    config = dict(stored.config if translation is None else translation.config)
    names = stored.names() if translation is None else list(translation.names)
    read = stored.tensor if translation is None else translation.tensor
    metadata = known.model_copy(update={"layout": "stillroom"})
    with CheckpointWriter(out, config=metadata.to_config(config)) as writer:
        for name in names:
            writer.add(name, read(name).contiguous())
        writer.copy_tokenizer(stored.folder)
    return f"a diffusion checkpoint of layout {known.layout}"


def _begin_anew(
    recipe: DiffusionRecipe,
    start: ScratchSettings,
    texts: Callable[[], Iterable[str]],
    folder: Path,
) -> str:
    words = folder.with_name(f"{folder.name}-tokenizer")
    if start.tokenizer in BUILTIN or start.tokenizer.startswith("builtin:"):
        size = build_tokenizer(start.tokenizer, texts(), words, start.context_length)
        tokenizer = load_tokenizer(words)
    else:
        tokenizer = load_tokenizer(resolve_checkpoint(start.tokenizer))
        size = len(tokenizer)
    mask, size = _mask_in(tokenizer, size)
    tokenizer.save_pretrained(words)
    config = _scratch_config(start, tokenizer, size)
    shift = recipe.noising.is_causal if recipe.logit_shift is None else recipe.logit_shift
    tensors = draw_network(start, config, recipe.seed)
    _write(folder, words, _with_metadata(recipe, config, mask, shift=shift), tensors)
    count = sum(t.numel() for t in tensors.values())
    return f"a new network of {count} parameters, {size} tokens"


def _scratch_config(start: ScratchSettings, tokenizer: Any, size: int) -> dict[str, Any]:
    inner = start.inner or max(8, start.width * 8 // 3 // 8 * 8)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": start.width,
        "intermediate_size": inner,
        "num_hidden_layers": start.layers,
        "num_attention_heads": start.heads,
        "num_key_value_heads": start.kv_heads or start.heads,
        "head_dim": start.width // start.heads,
        "vocab_size": size,
        "max_position_embeddings": start.context_length,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": start.tie,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _take_over(recipe: DiffusionRecipe, stored: Checkpoint, folder: Path) -> str:
    """Write a checkpoint anew, with metadata; return what it was."""
    translation = translate(stored)
    config = dict(stored.config if translation is None else translation.config)
    names: Sequence[str] = stored.names() if translation is None else translation.names
    read = stored.tensor if translation is None else translation.tensor
    known = DiffusionMetadata.from_config(stored.config, str(stored.folder))
    known = known if translation is None else translation.metadata
    config.pop("stillroom_backend", None)
    tokenizer = load_tokenizer(stored.folder)
    words = folder.with_name(f"{folder.name}-tokenizer")
    if known is not None:
        tokenizer.save_pretrained(words)
        shift = known.logit_shift if recipe.logit_shift is None else recipe.logit_shift
        config = _with_metadata(recipe, config, known.mask_token_id, shift=shift, known=known)
        _write(folder, words, config, {name: read(name) for name in names})
        return f"a diffusion checkpoint of layout {known.layout}"
    size = int(config["vocab_size"])
    mask, needed = _mask_in(tokenizer, len(tokenizer))
    tokenizer.save_pretrained(words)
    tensors = {name: read(name) for name in names if not _is_tied_head(name, config)}
    said = "an autoregressive checkpoint"
    # A twin that learns the next token gets the row too: it has the tokenizer, and the mask is
    # given no probability in training, so that it costs its loss nothing.
    tensors = _add_mask(tensors, mask, max(size, needed), str(stored.folder))
    said += f", its mask token {mask} " + ("added" if needed > size else "one it kept in reserve")
    config["vocab_size"] = max(size, needed)
    shift = True if recipe.logit_shift is None else recipe.logit_shift
    _write(folder, words, _with_metadata(recipe, config, mask, shift=shift), tensors)
    return said


def _mask_in(tokenizer: Any, size: int) -> tuple[int, int]:
    """Return a tokenizer's mask token, added where it has none, and its number of tokens."""
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    return int(tokenizer.mask_token_id), max(size, len(tokenizer))


def _add_mask(tensors: dict[str, Tensor], mask: int, size: int, where: str) -> dict[str, Tensor]:
    """Return tensors with rows for ``size`` tokens; that of the mask is the mean of all others."""
    found = [name for name in (*_EMBEDDINGS, *_HEADS) if name in tensors]
    if not any(name in _EMBEDDINGS for name in found):
        raise CheckpointError(
            "the embeddings of this architecture are not known, so no mask token can be added",
            code="diffusion.layout",
            where=where,
            expected=f"a tensor named {' or '.join(_EMBEDDINGS)}",
            next="use a Llama, Qwen2 or Qwen3 checkpoint",
        )
    made = dict(tensors)
    for name in found:
        rows = tensors[name]
        mean = rows.float().mean(0, keepdim=True).to(rows.dtype)
        grown = torch.cat([rows, mean.expand(max(size - len(rows), 0), -1)]).clone()
        grown[mask] = mean[0]
        made[name] = grown
    return made


def _is_tied_head(name: str, config: dict[str, Any]) -> bool:
    return name in _HEADS and bool(config.get("tie_word_embeddings"))


def _with_metadata(
    recipe: DiffusionRecipe,
    config: dict[str, Any],
    mask: int,
    *,
    shift: bool,
    known: DiffusionMetadata | None = None,
) -> dict[str, Any]:
    ends = config.get("eos_token_id")
    listed = ends if isinstance(ends, list) else [ends] if ends is not None else []
    pad = config.get("pad_token_id")
    metadata = DiffusionMetadata(
        mask_token_id=mask,
        attention=recipe.attention,
        block_size=recipe.block_size,
        logit_shift=shift,
        schedule=recipe.schedule.method_name(),
        end_token_ids=known.end_token_ids if known else tuple(int(end) for end in listed),
        pad_token_id=known.pad_token_id if known else None if pad == mask else pad,
        head_bias=known.head_bias if known else False,
        layout="stillroom",
    )
    return metadata.to_config(config)


def _write(folder: Path, words: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    with CheckpointWriter(folder, config=config) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor.contiguous())
        writer.copy_tokenizer(words)


def draw_network(start: ScratchSettings, config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Draw a Llama network's weights: 0.02 wide, what is added to the residual less by depth."""
    rng = torch.Generator().manual_seed(seed)
    width, inner = start.width, int(config["intermediate_size"])
    kv = width // start.heads * int(config["num_key_value_heads"])
    shapes: dict[str, tuple[int, ...]] = {_EMBEDDINGS[0]: (int(config["vocab_size"]), width)}
    for layer in range(start.layers):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (width,),
            f"{at}.self_attn.q_proj.weight": (width, width),
            f"{at}.self_attn.k_proj.weight": (kv, width),
            f"{at}.self_attn.v_proj.weight": (kv, width),
            f"{at}.self_attn.o_proj.weight": (width, width),
            f"{at}.post_attention_layernorm.weight": (width,),
            f"{at}.mlp.gate_proj.weight": (inner, width),
            f"{at}.mlp.up_proj.weight": (inner, width),
            f"{at}.mlp.down_proj.weight": (width, inner),
        }
    shapes["model.norm.weight"] = (width,)
    if not start.tie:
        shapes[_HEADS[0]] = shapes[_EMBEDDINGS[0]]
    narrow = 0.02 / math.sqrt(2 * start.layers)
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            tensors[name] = torch.ones(shape)
        else:
            spread = narrow if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            tensors[name] = torch.randn(shape, generator=rng) * spread
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return dict(found)
