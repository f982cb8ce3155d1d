"""How byte-level tokenizers split text into words before merging: GGUF's names for the rules.

A GGUF file names its rule (``tokenizer.ggml.pre``); tokenizer.json spells it out. This knows both,
for those rules whose spelling is settled. Knows no vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["KNOWN_RULES", "PLAIN_RULES", "name_splitting", "split_as"]

_DIGITS = {"smollm", "refact", "codeshell", "starcoder", "command-r", "exaone", "minerva-7b"}
PLAIN_RULES = frozenset({"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "default", ""})
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REGEXES = {
    "llama-bpe": _CONTRACTIONS + _WORDS % "{1,3}",
    "llama3": _CONTRACTIONS + _WORDS % "{1,3}",
    "qwen2": _CONTRACTIONS + _WORDS % "",
    "deepseek-r1-qwen": _CONTRACTIONS + _WORDS % "",
}
KNOWN_RULES = frozenset(_DIGITS | (PLAIN_RULES - {""}) | set(_REGEXES))


def split_as(name: str) -> Any:
    """Return the pre-tokenizer that a rule of ``KNOWN_RULES`` means, or None for a plain one."""
    from tokenizers import Regex, pre_tokenizers

    if name in PLAIN_RULES:
        return None
    if name in _DIGITS:
        first: Any = pre_tokenizers.Digits(individual_digits=True)
        second = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        first = pre_tokenizers.Split(Regex(_REGEXES[name]), behavior="isolated")
        second = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([first, second])


def name_splitting(pre_tokenizer: Mapping[str, Any] | None) -> str:
    """Return GGUF's name of the rule that tokenizer.json spells out; empty where it has none.

    Args:
        pre_tokenizer: What tokenizer.json holds under that key.
    """
    steps = [_shorten(step) for step in _flatten(pre_tokenizer)]
    named = {
        ("bytes+words",): "gpt-2",
        ("digits", "bytes+words"): "smollm",
        (f"split {_REGEXES['llama-bpe']}", "bytes"): "llama-bpe",
        (f"split {_REGEXES['qwen2']}", "bytes"): "qwen2",
    }
    return named.get(tuple(steps), "")


def _flatten(step: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if not step:
        return []
    if step.get("type") == "Sequence":
        return [inner for one in step.get("pretokenizers", ()) for inner in _flatten(one)]
    return [step]


def _shorten(step: Mapping[str, Any]) -> str:
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space", True):
        return "bytes+words" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return "digits"
    pattern = step.get("pattern") or {}
    is_isolated = str(step.get("behavior", "")).lower() == "isolated" and not step.get("invert")
    if kind == "Split" and is_isolated and "Regex" in pattern:
        return f"split {pattern['Regex']}"
    return f"unknown {kind}"
