"""Initial checkpoints: random weights, AR-to-diffusion adaptation (mask token), or conversion.

A diffusion checkpoint is copied, one of a published format converted to its stock architecture; an
autoregressive checkpoint gets a mask token whose embedding is the mean of all embeddings; a new
network gets random weights. The result is always a checkpoint with diffusion metadata, the only
kind that training reads.

Built-in tokenizers (characters or words of the records) are for models trained from scratch on
small corpora, where a vocabulary of 50,000 would be most of the network.

Sources of the expected quality by number of tokens: our own figures
(docs/explanation/lab-notebook.md, "How far a bound is from a loss"); Wu et al. 2025,
arXiv:2509.26328 (Fast-dLLM v2: 1e9 tokens, block-causal); Gong et al. 2024, arXiv:2410.17891
(DiffuLLaMA: 65e9, full attention); Ye et al. 2025, arXiv:2508.15487 (Dream: 580e9). Budgets between
1e6 and 1e9 tokens were not measured here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.checkpoints.random_init import list_llama_shapes
from stillroom.diffusion.model.loading import convert_format
from stillroom.diffusion.model.metadata import DiffusionMetadata, TargetMetadata
from stillroom.diffusion.settings import NewNetworkSettings
from stillroom.errors import CheckpointError, DataError, RecipeError
from stillroom.jobs import atomic_write
from stillroom.models import resolve_checkpoint
from stillroom.models.local.causal_lm import load_tokenizer
from stillroom.provenance import trace_sources

__all__ = [
    "BOS_TOKEN",
    "BUILTIN_TOKENIZERS",
    "EOS_TOKEN",
    "MASK_TOKEN",
    "build_tokenizer",
    "convert_checkpoint",
    "describe_expected_quality",
    "init_weights",
    "prepare_initial_checkpoint",
    "read_json",
]

_EMBEDDINGS = ("model.embed_tokens.weight", "gpt_neox.embed_in.weight")
_HEADS = ("lm_head.weight", "embed_out.weight")


def prepare_initial_checkpoint(
    model: NewNetworkSettings | str,
    target: TargetMetadata | None,
    texts: Callable[[], Iterable[str]],
    folder: Path,
    *,
    seed: int,
) -> str:
    """Write the initial checkpoint to a folder; an existing one is kept.

    Args:
        model: New network, or checkpoint.
        target: Attention and logit shift; None keeps those of a diffusion checkpoint.
        texts: Texts of the records, for a built-in tokenizer.
        folder: Output folder.
        seed: Random seed of a new network.

    Returns:
        A description of the initial checkpoint.

    Raises:
        CheckpointError: If the checkpoint cannot be made a diffusion model, or without a target is
            none.
        RecipeError: If a setting contradicts the checkpoint.
    """
    done = folder / "start.txt"
    if done.is_file():
        return done.read_text(encoding="utf-8")
    if isinstance(model, str):
        description = _convert_initial(Checkpoint.open(resolve_checkpoint(model)), target, folder)
    else:
        if target is None:
            raise TypeError("a new network needs a target")
        description = _create_checkpoint(model, target, texts, folder, seed)
    done.write_text(description, encoding="utf-8")
    return description


def convert_checkpoint(reference: str, out: Path, *, overwrite: bool = False) -> str:
    """Convert a diffusion checkpoint of a published format to its stock architecture.

    Returns:
        A description of the checkpoint.

    Raises:
        CheckpointError: If it is not a diffusion checkpoint; an autoregressive one needs training.
        DataError: If ``out`` exists.
    """
    if out.exists() and not overwrite:
        raise DataError(
            f"{out} exists already",
            code="data.exists",
            expected="a new folder",
            next="choose another --out, or replace it with --overwrite",
        )
    stored = Checkpoint.open(resolve_checkpoint(reference))
    translation = convert_format(stored)
    known = DiffusionMetadata.from_config(stored.config, str(stored.folder))
    known = known if translation is None else translation.metadata
    if known is None:
        raise CheckpointError(
            "this is an autoregressive checkpoint: it needs training on masked text",
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
        writer.copy_tokenizer(stored.folder)  # first: it may be refused
        for name in names:
            writer.add(name, read(name).contiguous())
        source = ("model", stored.folder, stored.fingerprint, stored.license)
        parents, origin = trace_sources("diffusion.convert", [source], out)
        writer.state_artifact(parents, origin, {"layout": known.layout})
    return f"a diffusion checkpoint of layout {known.layout}"


def _create_checkpoint(
    start: NewNetworkSettings,
    target: TargetMetadata,
    texts: Callable[[], Iterable[str]],
    folder: Path,
    seed: int,
) -> str:
    words = folder.with_name(f"{folder.name}-tokenizer")
    if start.tokenizer in BUILTIN_TOKENIZERS or start.tokenizer.startswith("builtin:"):
        size = build_tokenizer(start.tokenizer, texts(), words, start.context_length)
        tokenizer = load_tokenizer(words)
    else:
        tokenizer = load_tokenizer(resolve_checkpoint(start.tokenizer))
        size = len(tokenizer)
    mask, size = _find_mask_token(tokenizer, size)
    tokenizer.save_pretrained(words)
    config = _scratch_config(start, tokenizer, size)
    tensors = init_weights(config, seed)
    config = _add_metadata(target, config, mask, shift=bool(target.logit_shift))
    _write(folder, words, config, tensors)
    count = sum(t.numel() for t in tensors.values())
    return f"a new network of {count} parameters, {size} tokens"


def _scratch_config(start: NewNetworkSettings, tokenizer: Any, size: int) -> dict[str, Any]:
    inner = start.intermediate_size or max(8, start.hidden_size * 8 // 3 // 8 * 8)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": start.hidden_size,
        "intermediate_size": inner,
        "num_hidden_layers": start.num_hidden_layers,
        "num_attention_heads": start.num_attention_heads,
        "num_key_value_heads": start.num_key_value_heads or start.num_attention_heads,
        "head_dim": start.hidden_size // start.num_attention_heads,
        "vocab_size": size,
        "max_position_embeddings": start.context_length,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": start.tie_word_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _convert_initial(stored: Checkpoint, target: TargetMetadata | None, folder: Path) -> str:
    """Write a checkpoint with diffusion metadata; return its description."""
    translation = convert_format(stored)
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
        if target is None:
            config = known.model_copy(update={"layout": "stillroom"}).to_config(config)
        else:
            shift = known.logit_shift if target.logit_shift is None else target.logit_shift
            config = _add_metadata(target, config, known.mask_token_id, shift=shift, known=known)
        _write(folder, words, config, {name: read(name) for name in names})
        return f"a diffusion checkpoint of layout {known.layout}"
    if target is None:
        raise CheckpointError(
            "this job starts from a diffusion model, and this is an autoregressive checkpoint",
            code="diffusion.not-diffusion",
            where=str(stored.folder / "config.json"),
            expected="a diffusion checkpoint trained on answers",
            next="train it first by a recipe of kind diffusion.train",
        )
    size = int(config["vocab_size"])
    mask, needed = _find_mask_token(tokenizer, len(tokenizer))
    tokenizer.save_pretrained(words)
    tied = _HEADS if config.get("tie_word_embeddings") else ()
    tensors = {name: read(name) for name in names if name not in tied}
    description = "an autoregressive checkpoint"
    # The autoregressive baseline gets the row, too, as it shares the tokenizer; the mask token has
    # probability 0 in training, so its loss does not change.
    tensors = _add_mask_rows(tensors, mask, max(size, needed), str(stored.folder))
    description += f", its mask token {mask} " + (
        "added" if needed > size else "one it kept in reserve"
    )
    config["vocab_size"] = max(size, needed)
    shift = target.logit_shift is not False
    _write(folder, words, _add_metadata(target, config, mask, shift=shift), tensors)
    return description


def _find_mask_token(tokenizer: Any, size: int) -> tuple[int, int]:
    """Return the mask token, added to the tokenizer if missing, and the number of tokens."""
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": MASK_TOKEN})
    return int(tokenizer.mask_token_id), max(size, len(tokenizer))


def _add_mask_rows(
    tensors: dict[str, Tensor], mask: int, size: int, where: str
) -> dict[str, Tensor]:
    """Return tensors with ``size`` rows; that of the mask token is the mean of all others."""
    present = [name for name in (*_EMBEDDINGS, *_HEADS) if name in tensors]
    if not any(name in _EMBEDDINGS for name in present):
        raise CheckpointError(
            "no mask token can be added: the embeddings of this architecture are unknown",
            code="diffusion.layout",
            where=where,
            expected=f"a tensor named {' or '.join(_EMBEDDINGS)}",
            next="use a Llama, Qwen2 or Qwen3 checkpoint",
        )
    extended = dict(tensors)
    for name in present:
        rows = tensors[name]
        mean = rows.float().mean(0, keepdim=True).to(rows.dtype)
        grown = torch.cat([rows, mean.expand(max(size - len(rows), 0), -1)]).clone()
        grown[mask] = mean[0]
        extended[name] = grown
    return extended


def _add_metadata(
    target: TargetMetadata,
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
        attention=target.attention,
        block_size=target.block_size,
        logit_shift=shift,
        schedule=target.schedule,
        end_token_ids=known.end_token_ids if known else tuple(int(end) for end in listed),
        pad_token_id=known.pad_token_id if known else None if pad == mask else pad,
        head_bias=known.head_bias if known else False,
        layout="stillroom",
    )
    return metadata.to_config(config)


def _write(folder: Path, words: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    with CheckpointWriter(folder, config=config) as writer:
        writer.copy_tokenizer(words)  # first: it may be refused
        for name, tensor in tensors.items():
            writer.add(name, tensor.contiguous())


def init_weights(config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Draw Llama weights: normal, std 0.02; residual projections scaled down by depth."""
    rng = torch.Generator().manual_seed(seed)
    narrow = 0.02 / math.sqrt(2 * config["num_hidden_layers"])
    tensors = {}
    for name, shape in list_llama_shapes(config).items():
        if len(shape) == 1:
            tensors[name] = torch.ones(shape)
        else:
            spread = narrow if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            tensors[name] = torch.randn(shape, generator=rng) * spread
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file."""
    value = json.loads(path.read_text(encoding="utf-8"))
    return dict(value)


_BUDGETS = (
    (
        1e6,
        "it predicts a token or two from their neighbors, and no sentences (SmolLM2-135M after 15 "
        "thousand tokens: a bound of 5.8 nats per token, 9.1 before; its autoregressive loss was "
        "3.7)",
    ),
    (1e7, "words and phrases of the records, and no sentences"),
    (
        1e9,
        "more than phrases, if the records are similar; less than the autoregressive model (not "
        "measured here)",
    ),
)


def describe_expected_quality(tokens: int, *, by_blocks: bool) -> str:
    """Return a sentence on the expected quality of a model converted from an autoregressive one.

    Args:
        tokens: Number of training tokens.
        by_blocks: Whether attention is block-causal, else full.
    """
    published = (
        "a published conversion to block-causal attention took 1e9 (Fast-dLLM v2)"
        if by_blocks
        else "published conversions to full attention took 6.5e10 (DiffuLLaMA) and 5.8e11 (Dream)"
    )
    for most, quality in _BUDGETS:
        if tokens < most:
            return f"expected after {tokens:,} tokens: {quality}; {published}"
    return f"{tokens:,} tokens are enough for a model that writes text: {published}"


BOS_TOKEN, EOS_TOKEN, MASK_TOKEN, UNKNOWN_TOKEN = "<|begin|>", "<|end|>", "<|mask|>", "<|unknown|>"

BUILTIN_TOKENIZERS = ("builtin:characters", "builtin:words")


def build_tokenizer(kind: str, texts: Iterable[str], folder: Path, context_length: int) -> int:
    """Write tokenizer.json and tokenizer_config.json; return the number of tokens.

    Args:
        kind: One of ``BUILTIN_TOKENIZERS``. Words are separated by white space, which is decoded as
            one space.
        texts: Texts of the vocabulary; anything else becomes the unknown token.
        folder: Output folder.
        context_length: Context length of the model.

    Raises:
        RecipeError: If the kind is unknown.
    """
    if kind not in BUILTIN_TOKENIZERS:
        raise RecipeError(
            f"'{kind}' is not a built-in tokenizer",
            code="diffusion.tokenizer",
            where="model.tokenizer",
            expected=f"one of: {', '.join(BUILTIN_TOKENIZERS)}, or a checkpoint",
            next="use builtin:characters for small corpora",
        )
    is_words = kind == "builtin:words"
    symbols: set[str] = set()
    for text in texts:
        symbols.update(text.split() if is_words else text)
    special = [UNKNOWN_TOKEN, BOS_TOKEN, EOS_TOKEN, MASK_TOKEN]
    vocabulary = {
        token: index for index, token in enumerate([*special, *sorted(symbols - set(special))])
    }
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN_TOKEN))
    if is_words:
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS_TOKEN} $A",
        pair=f"{BOS_TOKEN} $A $B",
        special_tokens=[(BOS_TOKEN, vocabulary[BOS_TOKEN])],
    )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "tokenizer.json") as file:
        file.write(tokenizer.to_str(pretty=True))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNKNOWN_TOKEN,
        "bos_token": BOS_TOKEN,
        "eos_token": EOS_TOKEN,
        "pad_token": EOS_TOKEN,
        "mask_token": MASK_TOKEN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
    }
    with atomic_write(folder / "tokenizer_config.json") as file:
        file.write(json.dumps(config, indent=1) + "\n")
    return len(vocabulary)
