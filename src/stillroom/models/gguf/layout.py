"""GGUF metadata keys and tensor names (name map) of each supported architecture; vocabulary.

For architectures of kind ``llama``, llama.cpp rotates adjacent pairs of a head's components where
transformers pairs the first half with the second, so the rows of the query and key matrices are
permuted. ``qwen2`` and ``qwen3`` rotate as transformers does. Unknown architectures, settings and
tensors are refused by name, as llama.cpp would load the file and compute something else.
Sliding-window attention equals full attention within one window, so the file's context length is
limited to it.

Source: Su et al. 2021, arXiv:2104.09864 (rotary positions); Peng et al. 2023, arXiv:2309.00071
(their scaling); the GGUF specification of the ggml project. Reads no tokenizer and writes no file.

Read from the tokenizer as loaded by transformers, not from its files, so that it is the one of
training. Two kinds are supported: byte-level BPE (GGUF's ``gpt2``), and SentencePiece BPE with byte
fallback (``llama``). Others are refused by name.

Sources: Sennrich et al. 2016, arXiv:1508.07909 (BPE); Kudo and Richardson 2018, arXiv:1808.06226.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.checkpoints.gguf import detect_pretokenizer
from stillroom.errors import CheckpointError

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from stillroom.checkpoints import Checkpoint

__all__ = [
    "GgufLayout",
    "GgufVocabulary",
    "plan_gguf_layout",
    "read_vocabulary",
]

_ARCHITECTURES: Mapping[str, str] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""GGUF name of each transformers architecture."""

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_DERIVED = "rotary_emb.inv_freq"
"""Suffix of tensors in some folders that transformers recomputes."""


@dataclass(frozen=True, slots=True)
class GgufLayout:
    """Layout of one checkpoint in a GGUF file.

    ``names`` maps the file's tensors to the checkpoint's, in file order; ``heads`` is the number of
    heads of tensors with permuted rows; ``left_out`` maps omitted tensors to the reason;
    ``frequencies`` divide the rotary frequencies, (D/2,).
    """

    architecture: str
    names: Mapping[str, str]
    heads: Mapping[str, int]
    left_out: Mapping[str, str]
    settings: Sequence[Callable[[GGUFWriter], None]]
    frequencies: Sequence[float] = ()
    notes: tuple[str, ...] = ()


class _ModelShape:
    """Shape settings of a config."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.heads = int(config["num_attention_heads"])
        self.key_heads = int(config.get("num_key_value_heads") or self.heads)
        width = int(config["hidden_size"])
        self.head_dim = int(config.get("head_dim") or width // self.heads)


def plan_gguf_layout(checkpoint: Checkpoint, config: Mapping[str, Any]) -> GgufLayout:
    """Return the layout of a checkpoint in a GGUF file.

    Args:
        checkpoint: Checkpoint, of which names and shapes are read.
        config: Its config.json with all derived values.

    Raises:
        CheckpointError: If the architecture, a setting or a tensor is not supported.
    """
    named = _architecture_of(checkpoint)
    shape = _ModelShape(config)
    _refuse_settings(named, shape, checkpoint)
    names, left_out = _name_tensors(checkpoint, named, int(config["num_hidden_layers"]))
    heads: dict[str, int] = {}
    if named == "llama":
        for gguf_name, name in names.items():
            if ".attn_q." in gguf_name:
                heads[name] = shape.heads
            elif ".attn_k." in gguf_name:
                heads[name] = shape.key_heads
    # The rotary settings in the form of transformers 5.
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    rope["rope_theta"] = float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    frequencies = _llama3_factors(rope, shape) if rope["rope_type"] == "llama3" else ()
    settings = [*_plain_settings(config, shape), *_rope_settings(rope, config, checkpoint)]
    return GgufLayout(named, names, heads, left_out, settings, frequencies, _collect_notes(config))


def _architecture_of(checkpoint: Checkpoint) -> str:
    known = ", ".join(_ARCHITECTURES)
    if checkpoint.config.get("stillroom_backend"):
        named = str(checkpoint.config["stillroom_backend"])
        raise _unsupported_error(
            checkpoint, f"a {named} model, which llama.cpp would read left to right"
        )
    listed = checkpoint.config.get("architectures") or ["a config.json without architectures"]
    if listed[0] not in _ARCHITECTURES:
        raise CheckpointError(
            f"{listed[0]} cannot be exported to GGUF",
            code="checkpoint.gguf-architecture",
            where=str(checkpoint.folder),
            expected=f"one of: {known}",
            next="use llama.cpp's converter for other architectures",
        )
    return _ARCHITECTURES[listed[0]]


def _refuse_settings(named: str, shape: _ModelShape, checkpoint: Checkpoint) -> None:
    """Refuse settings that have no key in GGUF and change llama.cpp's results."""
    config = shape.config
    act = config.get("hidden_act", "silu")
    if act not in {"silu", "swish"}:
        raise _unsupported_error(checkpoint, f"hidden_act: {act}")
    if named == "qwen3" and config.get("attention_bias"):
        raise _unsupported_error(checkpoint, "attention_bias: true")
    if float(config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise _unsupported_error(
            checkpoint, f"partial_rotary_factor: {config['partial_rotary_factor']}"
        )
    if shape.head_dim % 2 or shape.heads % shape.key_heads:
        raise _unsupported_error(checkpoint, f"head_dim: {shape.head_dim} with {shape.heads} heads")


def _window_of(config: Mapping[str, Any]) -> int:
    """Return the attention window if shorter than the context; else 0."""
    window = config.get("sliding_window") or 0
    is_used = config.get("use_sliding_window", True)
    return int(window) if is_used and window < config["max_position_embeddings"] else 0


def _collect_notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    window = _window_of(config)
    note = (
        f"attention is limited to {window} tokens, which llama.cpp does not apply: the file's "
        f"context length is {window}, within which both are equal"
    )
    return (note,) if window else ()


def _name_tensors(
    checkpoint: Checkpoint, named: str, layers: int
) -> tuple[dict[str, str], dict[str, str]]:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == named)
    known = get_tensor_name_map(kind, layers)
    names: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name in checkpoint.names():
        if name.endswith(_DERIVED):
            left_out[name] = "computed from the settings"
        elif name == _HEAD and checkpoint.is_tied and _EMBEDDING in checkpoint:
            left_out[name] = "tied to the input embedding"
        else:
            gguf_name = known.get_name(name, try_suffixes=(".weight", ".bias"))
            if gguf_name is None:
                raise CheckpointError(
                    f"the tensor '{name:.120}' has no equivalent in GGUF architecture {named}",
                    code="checkpoint.gguf-tensor",
                    where=str(checkpoint.folder),
                    expected=f"the tensors of a stock {named} model of {layers} layers",
                    next="merge adapters into the weights first, or use llama.cpp's converter",
                )
            names[gguf_name] = name
    return dict(sorted(names.items(), key=_file_order)), left_out


def _file_order(pair: tuple[str, str]) -> tuple[int, int, str]:
    """Sort key of tensors: embedding, layers by number, then the rest."""
    name = pair[0]
    if name.startswith("blk."):
        return (1, int(name.split(".")[1]), name)
    return (0 if name.startswith("token_embd") else 2, 0, name)


def _plain_settings(
    config: Mapping[str, Any], shape: _ModelShape
) -> list[Callable[[GGUFWriter], None]]:
    context_length = _window_of(config) or int(config["max_position_embeddings"])
    return [
        lambda out: out.add_context_length(context_length),
        lambda out: out.add_embedding_length(int(config["hidden_size"])),
        lambda out: out.add_block_count(int(config["num_hidden_layers"])),
        lambda out: out.add_feed_forward_length(int(config["intermediate_size"])),
        lambda out: out.add_head_count(shape.heads),
        lambda out: out.add_head_count_kv(shape.key_heads),
        lambda out: out.add_key_length(shape.head_dim),
        lambda out: out.add_value_length(shape.head_dim),
        lambda out: out.add_layer_norm_rms_eps(float(config["rms_norm_eps"])),
        lambda out: out.add_vocab_size(int(config["vocab_size"])),
        lambda out: out.add_rope_dimension_count(shape.head_dim),
    ]


def _rope_settings(
    rope: Mapping[str, Any], config: Mapping[str, Any], checkpoint: Checkpoint
) -> list[Callable[[GGUFWriter], None]]:
    from gguf import RopeScalingType

    settings: list[Callable[[GGUFWriter], None]] = [
        lambda out: out.add_rope_freq_base(rope["rope_theta"])
    ]
    kind = rope["rope_type"]
    if kind in {"default", "llama3"}:  # the factors of llama3 are a tensor of the file
        return settings
    if kind not in {"linear", "yarn"}:
        raise _unsupported_error(checkpoint, f"rope_type: {kind}")
    stretched = {"linear": RopeScalingType.LINEAR, "yarn": RopeScalingType.YARN}[kind]
    settings += [
        lambda out: out.add_rope_scaling_type(stretched),
        lambda out: out.add_rope_scaling_factor(float(rope["factor"])),
    ]
    if kind == "yarn":
        for key in ("attention_factor", "mscale", "mscale_all_dim"):
            if rope.get(key) is not None:
                raise _unsupported_error(checkpoint, f"{key}: {rope[key]} of yarn")
        before = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
        settings += [
            lambda out: out.add_rope_scaling_orig_ctx_len(int(before)),
            lambda out: out.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32)),
            lambda out: out.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1)),
        ]
    return settings


def _llama3_factors(rope: Mapping[str, Any], shape: _ModelShape) -> list[float]:
    """Return the divisors of Llama 3.1's rotary frequencies, (D/2,).

    Long wavelengths are scaled by the whole factor, short ones not at all, those between in part:
    Grattafiori et al. 2024 (arXiv:2407.21783, section 3.4.2).
    """
    factor, low, high = (
        float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")
    )
    before = int(rope["original_max_position_embeddings"])
    factors = []
    for dimension in range(0, shape.head_dim, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (dimension / shape.head_dim)
        share = (before / wave - low) / (high - low)
        factors.append(1 / ((1 - min(max(share, 0), 1)) / factor + min(max(share, 0), 1)))
    return factors


def _unsupported_error(checkpoint: Checkpoint, setting: str) -> CheckpointError:
    return CheckpointError(
        f"GGUF does not support {setting}",
        code="checkpoint.gguf-setting",
        where=str(checkpoint.folder / "config.json"),
        expected="a decoder with silu, full attention and plain, linear, llama3 or yarn positions",
        next="use the checkpoint with transformers, or llama.cpp's converter",
    )


_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "mask")
_PROBE = "a"
_MARK = "\u2581"
"""SentencePiece's space: ``▁``."""

_PREPEND = {"type": "Prepend", "prepend": _MARK}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _MARK}


class _TokenKind(IntEnum):
    """Token types of GGUF."""

    NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """Values of the keys ``tokenizer.*``."""

    model: str
    splitting: str
    tokens: Sequence[str]
    kinds: Sequence[int]
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    special: Mapping[str, int] = field(default_factory=dict)
    adds: Mapping[str, bool] = field(default_factory=dict)
    template: str | Sequence[Mapping[str, str]] | None = None
    notes: tuple[str, ...] = ()

    def write_to(self, out: GGUFWriter) -> None:
        """Write all keys."""
        out.add_tokenizer_model(self.model)
        out.add_tokenizer_pre(self.splitting)
        out.add_token_list(list(self.tokens))
        if self.scores:
            out.add_token_scores(list(self.scores))
        out.add_token_types(list(self.kinds))
        if self.merges:
            out.add_token_merges(list(self.merges))
        for name, token in self.special.items():
            getattr(out, f"add_{name}_token_id")(token)
        for name, is_added in self.adds.items():
            getattr(out, f"add_add_{name}")(is_added)
        if self.template:
            out.add_chat_template(self.template)


def read_vocabulary(tokenizer: Any, rows: int, folder: Path, ends: Sequence[int]) -> GgufVocabulary:
    """Return the tokenizer section of a GGUF file.

    Args:
        tokenizer: Fast tokenizer of transformers.
        rows: Rows of the embedding; those without a token are marked as unused.
        folder: Folder of the tokenizer, for errors.
        ends: All end tokens, including the tokenizer's.

    Raises:
        CheckpointError: If the tokenizer is not supported, or has more tokens than rows.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unsupported_tokenizer_error(
            folder, f"{type(tokenizer).__name__} has no tokenizer.json"
        )
    state = json.loads(backend.to_str())
    model = state["model"]
    if model.get("type") != "BPE":
        raise _unsupported_tokenizer_error(folder, f"its model is {model.get('type')}")
    tokens, kinds, notes = _list_tokens(state, rows, folder)
    special = {
        name: getattr(tokenizer, f"{name}_token_id")
        for name in _SPECIAL
        if getattr(tokenizer, f"{name}_token_id", None) is not None
    }
    other_ends = [token for token in ends if token != special.get("eos")]
    if other_ends:
        special["eot"] = other_ends[0]
    adds = _find_added(tokenizer, special)
    template = _template_of(tokenizer)
    merges = [_join(merge) for merge in model.get("merges") or ()]
    if model.get("byte_fallback"):
        adds["space_prefix"] = _adds_space(state, folder)
        scores = _score_tokens(tokens, model)
        return GgufVocabulary(
            "llama", "default", tokens, _mark_bytes(tokens, kinds, model), (), scores,
            special, adds, template, notes,
        )  # fmt: skip
    splitting = detect_pretokenizer(state.get("pre_tokenizer"))
    if not splitting:
        raise _unsupported_tokenizer_error(
            folder, f"its pre-tokenizer is {_describe(state.get('pre_tokenizer'))}"
        )
    if (state.get("normalizer") or {}).get("type") not in {None, "NFC"}:
        raise _unsupported_tokenizer_error(
            folder, f"its normalizer is {state['normalizer']['type']}"
        )
    if state.get("normalizer"):
        notes = (*notes, "llama.cpp does not apply the tokenizer's NFC normalization")
    return GgufVocabulary(
        "gpt2", splitting, tokens, kinds, merges, (), special, adds, template, notes
    )


def _list_tokens(
    state: Mapping[str, Any], rows: int, folder: Path
) -> tuple[list[str], list[int], tuple[str, ...]]:
    numbered: dict[int, str] = {number: token for token, number in state["model"]["vocab"].items()}
    kinds = dict.fromkeys(numbered, int(_TokenKind.NORMAL))
    for added in state.get("added_tokens") or ():
        numbered[added["id"]] = added["content"]
        kind = _TokenKind.CONTROL if added.get("special") else _TokenKind.USER_DEFINED
        kinds[added["id"]] = int(kind)
    if max(numbered) >= rows:
        raise CheckpointError(
            f"the tokenizer has token ids up to {max(numbered)}, the embedding {rows} rows",
            code="checkpoint.gguf-tokenizer",
            where=str(folder),
            expected="an embedding row for every token",
            next="resize the embedding with transformers, or use its original tokenizer",
        )
    unused = [number for number in range(rows) if number not in numbered]
    tokens = [numbered.get(number, f"[PAD{number}]") for number in range(rows)]
    listed = [kinds.get(number, int(_TokenKind.UNUSED)) for number in range(rows)]
    notes = (f"{len(unused)} embedding rows have no token: marked as unused",)
    return tokens, listed, notes if unused else ()


def _find_added(tokenizer: Any, special: Mapping[str, int]) -> dict[str, bool]:
    """Return whether beginning and end tokens are added, as observed on a probe.

    Explicit, as llama.cpp's defaults may differ.
    """
    ids = list(tokenizer(_PROBE)["input_ids"])
    return {
        "bos_token": bool(ids) and ids[0] == special.get("bos", -1),
        "eos_token": bool(ids) and ids[-1] == special.get("eos", -1),
    }


def _template_of(tokenizer: Any) -> str | list[dict[str, str]] | None:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        return [{"name": name, "template": text} for name, text in template.items()]
    return template if isinstance(template, str) else None


def _join(merge: str | Sequence[str]) -> str:
    """Return a merge as one string; spaces within a part are written as ``Ġ``."""
    if isinstance(merge, str):
        return merge
    return " ".join(part.replace(" ", "\u0120") for part in merge)


def _score_tokens(tokens: Sequence[str], model: Mapping[str, Any]) -> list[float]:
    """Return scores that make llama.cpp apply the merges in order.

    It merges the pair whose result has the highest score: minus the rank of the first merge that
    produces it. Tokens without a merge (bytes, single characters) are last.
    """
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model.get("merges") or ()):
        parts = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault("".join(parts), rank)
    return [-float(ranks.get(token, len(ranks))) for token in tokens]


def _mark_bytes(tokens: Sequence[str], kinds: Sequence[int], model: Mapping[str, Any]) -> list[int]:
    unknown = model.get("unk_token")
    return [
        int(_TokenKind.UNKNOWN)
        if token == unknown
        else int(_TokenKind.BYTE)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        else kind
        for token, kind in zip(tokens, kinds, strict=True)
    ]


def _adds_space(state: Mapping[str, Any], folder: Path) -> bool:
    """Return whether a space is prepended to texts; spaces must be replaced by ``▁``.

    llama.cpp prepends a space to the text and after every special token, and merges across words.
    ``Prepend`` does the same. A ``Metaspace`` that prepends one to the first piece only, or only
    where there is none, tokenizes some texts differently.
    """
    steps = state.get("normalizer") or {}
    listed = steps.get("normalizers", [steps]) if steps else []
    split = state.get("pre_tokenizer") or {}
    if any(step not in (_PREPEND, _REPLACE) for step in listed):
        raise _unsupported_tokenizer_error(folder, f"its normalizer is {_describe(steps)}")
    if split:
        _refuse_metaspace(split, state["model"]["vocab"], folder)
    elif _REPLACE not in listed:
        raise _unsupported_tokenizer_error(folder, f"its normalizer is {_describe(steps)}")
    return _PREPEND in listed


def _refuse_metaspace(split: Mapping[str, Any], vocab: Mapping[str, int], folder: Path) -> None:
    if split.get("type") != "Metaspace" or split.get("replacement", _MARK) != _MARK:
        raise _unsupported_tokenizer_error(folder, f"its pre-tokenizer is {_describe(split)}")
    scheme = split.get("prepend_scheme", "always")
    if scheme != "never":
        where = "first piece only" if scheme == "first" else "pieces without one"
        raise _unsupported_tokenizer_error(
            folder, f"it prepends a space to the {where} (Metaspace, prepend_scheme: {scheme})"
        )
    across = sorted(token for token in vocab if _MARK in token[1:])
    if split.get("split", True) and across:
        raise _unsupported_tokenizer_error(
            folder, f"it splits at spaces and has the token {across[0]!r:.40}"
        )


def _describe(step: Mapping[str, Any] | None) -> str:
    return json.dumps(step, ensure_ascii=False)[:120] if step else "no rule"


def _unsupported_tokenizer_error(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"the tokenizer cannot be exported to GGUF: {why}",
        code="checkpoint.gguf-tokenizer",
        where=str(folder),
        expected="byte-level BPE (GPT-2, SmolLM, Llama 3, Qwen 2), or BPE with byte fallback",
        next="use llama.cpp's converter for this tokenizer",
    )
