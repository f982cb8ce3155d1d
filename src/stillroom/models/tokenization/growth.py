"""How many times a tokenizer.json may lengthen a text, from its steps alone.

Forty steps that double a text fill any memory, so such a file is refused before a text is read.
What a kind of step does once is not counted (Unicode's longest expansion, of U+FDFA, has 18
characters): most tokenizers have one such step. What is counted is replacements, templates that
repeat a text, and steps that find again what they or a replacement have put in.
"""

from __future__ import annotations

import base64
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stillroom.errors import CheckpointError
from stillroom.provenance.digests import load_json

__all__ = ["check_growth", "measure_growth"]

_MAX_GROWTH = 256
_MAX_TOKEN_LENGTH = 10_000
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_MODEL = {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "x"}
_INNER = ("normalizers", "pretokenizers", "processors", "decoders")
_UNICODE = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase"}
_UNICODE_GROWTH = 18.0
_REPEATED = {"ByteLevel": 4.0, "BertNormalizer": 3.0, "Metaspace": 2.0, "WordPiece": 2.0}
"""The longest result of one character: its bytes, or it with spaces beside it."""
_MATCHES_EMPTY = re.compile(r"\(\?<?[=!]|\\[bBGKyY]|(?<!\[)\^|\$")
_UNMATCHED = "\ue000"


def check_growth(tokenizer: Path | str) -> None:
    """Refuse a tokenizer that multiplies a text, or has tokens of whole books.

    Args:
        tokenizer: Path of a tokenizer.json, or its text.

    Raises:
        CheckpointError: If it does. If it cannot be read, the library that opens it names that.
    """
    try:
        content = tokenizer.read_bytes() if isinstance(tokenizer, Path) else tokenizer
        values = load_json(content)
        longest = _find_longest_token(values)
    except (OSError, ValueError, TypeError, AttributeError, LookupError):
        return
    growth = measure_growth(values)
    if growth > _MAX_GROWTH:
        problem = f"replaces parts of a text by up to {growth:.3g} times their length"
    elif longest > _MAX_TOKEN_LENGTH:
        problem = f"has a token of {longest:,} characters"
    else:
        return
    raise CheckpointError(
        f"tokenizer.json {problem}",
        code="checkpoint.unloadable",
        where=str(tokenizer) if isinstance(tokenizer, Path) else "",
        expected=f"steps that lengthen a text at most {_MAX_GROWTH} times, and tokens of at most "
        f"{_MAX_TOKEN_LENGTH:,} characters",
        next="use tokenizer.json of the base model, and distrust the checkpoint",
    )


def measure_growth(tokenizer: Mapping[str, Any]) -> float:
    """Return how many times encoding or decoding may lengthen a text, all steps multiplied.

    Args:
        tokenizer: The content of a tokenizer.json. Its steps are read as the library of tokenizers
            does: it goes by their fields where a type is missing or unknown. Of steps that it
            refuses, the growth is 1.

    Raises:
        CheckpointError: If a step makes the library panic.
    """
    from tokenizers import Tokenizer

    parts = {name: tokenizer.get(name) for name in _PARTS}
    try:
        opened = Tokenizer.from_str(json.dumps({**parts, "model": _MODEL}))
    except Exception:  # noqa: BLE001  # the library raises it bare, and again for the whole file
        return 1.0
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust: it has no place to import it from
            raise
        raise CheckpointError(
            f"tokenizer.json cannot be read: {error!s:.200}",
            code="checkpoint.unloadable",
            expected="a tokenizer as written by the tokenizers library",
            next="use tokenizer.json of the base model",
        ) from error
    tokenizer = json.loads(opened.to_str())
    steps = (step for key in ("normalizer", "pre_tokenizer") for step in _list(tokenizer.get(key)))
    repeats = math.prod(map(_count_repeats, _list(tokenizer.get("post_processor"))))
    return max(_measure(steps) * repeats, _measure(_list(tokenizer.get("decoder"))))


def _list(part: Any) -> list[dict[str, Any]]:
    """Return the steps within nested sequences, in order."""
    steps, left = [], [part]
    while left:
        step = left.pop()
        inner = [one for key in _INNER for one in step.get(key) or ()] if step else ()
        left += reversed(inner)
        if step and not inner:
            steps.append(step)
    return steps


def _measure(steps: Iterable[dict[str, Any]]) -> float:
    growth, seen = 1.0, set()
    expandable = False  # whether Unicode expands what was put in since it was last normalized
    for step in steps:
        kind, content = str(step.get("type")), ""
        if kind in _UNICODE:
            growth *= _UNICODE_GROWTH if expandable else 1.0
            expandable = False
        elif kind == "Precompiled":
            longest = _find_longest_value(step["precompiled_charsmap"])
            is_first = kind not in seen and not expandable
            growth *= max(1.0, longest / _UNICODE_GROWTH if is_first else longest)
            expandable = True
        elif kind == "Replace":
            content = step["content"]
            growth *= max(1.0, _measure_replacement(step["pattern"], content))
        elif kind == "Prepend":  # to every part between added tokens, which may be one character
            content = step["prepend"]
            growth *= 1 + len(content)
        elif "" in (step.get("suffix"), step.get("word_delimiter_token")):
            growth *= 3  # these decoders put a space around every character then
        elif kind in seen:
            growth *= _REPEATED.get(kind, 1.0)
        seen.add(kind)
        expandable |= len(unicodedata.normalize("NFKD", content.lower())) > len(content)
    return growth


def _measure_replacement(pattern: Mapping[str, str], content: str) -> float:
    """Return the length of a replacement by that of what it replaces, which may be nothing."""
    from tokenizers import Regex, normalizers

    if pattern.get("String"):
        return len(content) / len(pattern["String"])
    regex = pattern.get("Regex", "")
    found = normalizers.Replace(Regex(regex), "x").normalize_str(_UNMATCHED)
    may_be_empty = {"x", _UNMATCHED} <= set(found) or _MATCHES_EMPTY.search(regex)
    return len(content) + float(bool(may_be_empty))


def _find_longest_value(charsmap: str) -> int:
    """Return the length of the longest text in a SentencePiece map of characters.

    The map is the size of a trie (32 bits), the trie, and texts that end with a zero byte.
    """
    data = base64.b64decode(charsmap or "")
    texts = data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")
    return max(len(text.decode(errors="replace")) for text in texts)


def _count_repeats(step: Mapping[str, Any]) -> int:
    """Return how often a template repeats a text, or how many special tokens it adds."""
    counts = [1]
    for name in ("single", "pair") if step["type"] == "TemplateProcessing" else ():
        texts = [piece["Sequence"]["id"] for piece in step[name] if "Sequence" in piece]
        added = [piece["SpecialToken"]["id"] for piece in step[name] if "SpecialToken" in piece]
        counts += map(texts.count, set(texts))
        counts.append(sum(len(step["special_tokens"][token]["ids"]) for token in added))
    return max(counts)


def _find_longest_token(tokenizer: Mapping[str, Any]) -> int:
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or ()
    tokens = [token if isinstance(token, str) else token[0] for token in vocabulary]
    tokens += [token["content"] for token in tokenizer.get("added_tokens") or ()]
    return max(map(len, tokens), default=0)
