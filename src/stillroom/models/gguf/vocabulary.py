"""Tokenizer section of a GGUF file: tokens, token types, merges, pre-tokenizer, chat template.

Taken from the tokenizer as transformers opens it, not from the files it lies in, so that what
llama.cpp is told is what the model was trained with. Two kinds are known: byte-level BPE (GGUF's
``gpt2``), and SentencePiece's BPE with byte fallback (``llama``). Others are refused by name.

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
"""What stands for a space: ``▁``."""
_PREPEND = {"type": "Prepend", "prepend": _MARK}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _MARK}


class _TokenKind(IntEnum):
    """GGUF's numbers for kinds of tokens."""

    NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """What goes under ``tokenizer.*``."""

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
        """Write every key."""
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
    """Return a tokenizer as a GGUF file holds it.

    Args:
        tokenizer: A fast tokenizer of transformers.
        rows: Of the embedding; those beyond the tokenizer's tokens are named as unused.
        folder: Where it came from, for errors.
        ends: Every token that ends a turn or a text, the tokenizer's own among them.

    Raises:
        CheckpointError: If the tokenizer is of another kind, or has more tokens than rows.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unsupported_tokenizer_error(
            folder, f"{type(tokenizer).__name__} has no tokenizer.json"
        )
    told = json.loads(backend.to_str())
    model = told["model"]
    if model.get("type") != "BPE":
        raise _unsupported_tokenizer_error(folder, f"its model is {model.get('type')}")
    tokens, kinds, notes = _list_tokens(told, rows, folder)
    special = {
        name: getattr(tokenizer, f"{name}_token_id")
        for name in _SPECIAL
        if getattr(tokenizer, f"{name}_token_id", None) is not None
    }
    others = [token for token in ends if token != special.get("eos")]
    if others:
        special["eot"] = others[0]
    adds = _find_added(tokenizer, special)
    template = _template_of(tokenizer)
    merges = [_join(merge) for merge in model.get("merges") or ()]
    if model.get("byte_fallback"):
        adds["space_prefix"] = _adds_space(told, folder)
        scores = _score_tokens(tokens, model)
        return GgufVocabulary(
            "llama", "default", tokens, _mark_bytes(tokens, kinds, model), (), scores,
            special, adds, template, notes,
        )  # fmt: skip
    splitting = detect_pretokenizer(told.get("pre_tokenizer"))
    if not splitting:
        raise _unsupported_tokenizer_error(
            folder, f"it splits words by {_describe(told.get('pre_tokenizer'))}"
        )
    if (told.get("normalizer") or {}).get("type") not in {None, "NFC"}:
        raise _unsupported_tokenizer_error(folder, f"it normalizes by {told['normalizer']['type']}")
    if told.get("normalizer"):
        notes = (*notes, "llama.cpp does not compose characters (NFC) before it cuts text")
    return GgufVocabulary(
        "gpt2", splitting, tokens, kinds, merges, (), special, adds, template, notes
    )


def _list_tokens(
    told: Mapping[str, Any], rows: int, folder: Path
) -> tuple[list[str], list[int], tuple[str, ...]]:
    numbered: dict[int, str] = {number: token for token, number in told["model"]["vocab"].items()}
    kinds = dict.fromkeys(numbered, int(_TokenKind.NORMAL))
    for added in told.get("added_tokens") or ():
        numbered[added["id"]] = added["content"]
        kind = _TokenKind.CONTROL if added.get("special") else _TokenKind.USER_DEFINED
        kinds[added["id"]] = int(kind)
    if max(numbered) >= rows:
        raise CheckpointError(
            f"the tokenizer has tokens up to number {max(numbered)}, the embedding {rows} rows",
            code="checkpoint.gguf-tokenizer",
            where=str(folder),
            expected="a row of the embedding for every token",
            next="resize the embedding with transformers, or take the tokenizer it came with",
        )
    unused = [number for number in range(rows) if number not in numbered]
    tokens = [numbered.get(number, f"[PAD{number}]") for number in range(rows)]
    listed = [kinds.get(number, int(_TokenKind.UNUSED)) for number in range(rows)]
    notes = (f"{len(unused)} rows of the embedding have no token: written as unused",)
    return tokens, listed, notes if unused else ()


def _find_added(tokenizer: Any, special: Mapping[str, int]) -> dict[str, bool]:
    """Return whether the beginning and end are marked, by what the tokenizer does.

    llama.cpp has defaults of its own where a file says nothing.
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
    """Return a merge as one string; a space within a part is written as bytes are: ``Ġ``."""
    if isinstance(merge, str):
        return merge
    return " ".join(part.replace(" ", "\u0120") for part in merge)


def _score_tokens(tokens: Sequence[str], model: Mapping[str, Any]) -> list[float]:
    """Return scores by which llama.cpp merges in the order of the merges.

    It joins the pair whose whole has the highest score: a token's is minus the rank of the first
    merge that makes it. What no merge makes (bytes, single characters) comes last.
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


def _adds_space(told: Mapping[str, Any], folder: Path) -> bool:
    """Return whether a text gets a space before it; spaces must become ``▁``.

    llama.cpp puts that space before the text and after every special token, whatever comes next,
    and merges across words. ``Prepend`` does the same. A ``Metaspace`` that puts one before the
    first piece alone, or none where a space stands already, cuts some texts otherwise.
    """
    steps = told.get("normalizer") or {}
    listed = steps.get("normalizers", [steps]) if steps else []
    split = told.get("pre_tokenizer") or {}
    if any(step not in (_PREPEND, _REPLACE) for step in listed):
        raise _unsupported_tokenizer_error(folder, f"it normalizes by {_describe(steps)}")
    if split:
        _refuse_metaspace(split, told["model"]["vocab"], folder)
    elif _REPLACE not in listed:
        raise _unsupported_tokenizer_error(folder, f"it splits words by {_describe(steps)}")
    return _PREPEND in listed


def _refuse_metaspace(split: Mapping[str, Any], vocab: Mapping[str, int], folder: Path) -> None:
    if split.get("type") != "Metaspace" or split.get("replacement", _MARK) != _MARK:
        raise _unsupported_tokenizer_error(folder, f"it splits words by {_describe(split)}")
    scheme = split.get("prepend_scheme", "always")
    if scheme != "never":
        where = "first piece alone" if scheme == "first" else "pieces that begin with none"
        raise _unsupported_tokenizer_error(
            folder, f"it puts a space before the {where} (Metaspace, prepend_scheme: {scheme})"
        )
    across = sorted(token for token in vocab if _MARK in token[1:])
    if split.get("split", True) and across:
        raise _unsupported_tokenizer_error(
            folder, f"it cuts at each space and has the token {across[0]!r:.40}"
        )


def _describe(step: Mapping[str, Any] | None) -> str:
    return json.dumps(step, ensure_ascii=False)[:120] if step else "no rule"


def _unsupported_tokenizer_error(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"the tokenizer cannot be written as GGUF: {why}",
        code="checkpoint.gguf-tokenizer",
        where=str(folder),
        expected="byte-level BPE as GPT-2, SmolLM, Llama 3 or Qwen 2 split, or BPE with bytes",
        next="use llama.cpp's own converter for this tokenizer",
    )
