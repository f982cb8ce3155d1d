"""Tokenizer section of a GGUF file: tokens, token types, merges, pre-tokenizer, chat template.

Read from the tokenizer as loaded by transformers, not from its files, so that it is the one of
training. Two kinds are supported: byte-level BPE (GGUF's ``gpt2``), and SentencePiece BPE with byte
fallback (``llama``). Others are refused by name.

Sources: Sennrich et al. 2016, arXiv:1508.07909 (BPE); Kudo and Richardson 2018, arXiv:1808.06226.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.checkpoints.gguf import detect_pretokenizer
from stillroom.errors import CheckpointError

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["GgufVocabulary", "read_vocabulary"]

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
