"""Tokenizer files of a merge, written so that transformers loads them, and read back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import CheckpointError
from stillroom.jobs import atomic_write

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from stillroom.merge.tokenizer import TokenPlan

__all__ = ["adapt_config", "write_tokenizer"]

_COPIED = (
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
_COUNTED = ("merges.txt", "tokenizer.model", "vocab.json", "vocab.txt", "added_tokens.json")
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
_TEXTS = (
    "The still house kept 27 jars; what was in them, nobody knows.",
    "  def add(a, b):\n\treturn a + b  # 3.14\n",
    "Grüße, señor: 你好, мир, שלום, नमस्ते!",
    "naïve café 😀 e\u0301",
)


def write_tokenizer(plan: TokenPlan, folder: Path) -> list[str]:
    """Write the files of a plan's tokenizer; return their names, sorted.

    A tokenizer that is one of the sources' is copied file by file. Of a new one the older forms
    (vocab.json, merges.txt, tokenizer.model) are not written, and taken away if they are there:
    they would count differently.

    Raises:
        CheckpointError: If the written tokenizer numbers or spells anything differently.
    """
    origin = plan.sources[plan.definer].folder
    names = _COPIED if plan.is_new else ("tokenizer.json", *_COPIED, *_COUNTED)
    written = [name for name in names if (origin / name).is_file()]
    for name in {"tokenizer.json", *_COPIED, *_COUNTED} - set(written):
        (folder / name).unlink(missing_ok=True)  # of another tokenizer
    for name in written:
        shutil.copyfile(origin / name, folder / name)
    if plan.is_new:
        with atomic_write(folder / "tokenizer.json") as file:
            file.write(json.dumps(plan.vocabulary.data, ensure_ascii=False, indent=2) + "\n")
        written.append("tokenizer.json")
        _extend_config(plan, folder / "tokenizer_config.json")
    _check_written(plan, folder / "tokenizer.json")
    return sorted(written)


def adapt_config(plan: TokenPlan, config: Mapping[str, Any], donor: int) -> dict[str, Any]:
    """Return config.json with the result's vocab_size and its special tokens' ids.

    An id is that of the vocabulary's own model where that names it, else that of the same token.
    """
    definer = plan.sources[plan.definer].config
    adapted: dict[str, Any] = {}
    for key, value in config.items():
        if key == "vocab_size":
            adapted[key] = plan.size
        elif isinstance(value, Mapping) and "vocab_size" in value:
            adapted[key] = adapt_config(plan, value, donor)
        elif key.endswith(("_token_id", "_token_ids", "_token_index")) and donor != plan.definer:
            adapted[key] = definer[key] if key in definer else _translate(plan, value, donor)
        else:
            adapted[key] = value
    return adapted


def _translate(plan: TokenPlan, value: Any, donor: int) -> Any:
    """Return the row that a token of the donor has in the result; None where it has none."""
    if isinstance(value, list):
        return [row for row in (_translate(plan, part, donor) for part in value) if row is not None]
    tokens = plan.sources[donor].tokens
    if type(value) is not int or not 0 <= value < len(tokens):
        return None
    return plan.vocabulary.ids.get(tokens[value] or "")


def _extend_config(plan: TokenPlan, path: Path) -> None:
    """Name the new added tokens in tokenizer_config.json, where it lists them, and no others.

    A token that is named there and is not in tokenizer.json would be added when it is loaded.
    """
    if not path.is_file():
        return
    config, known = json.loads(path.read_bytes()), plan.vocabulary.ids
    for key in ("additional_special_tokens", "extra_special_tokens"):
        if isinstance(config.get(key), list):
            config[key] = [one for one in config[key] if not isinstance(one, str) or one in known]
    listed = config.get("added_tokens_decoder")
    if isinstance(listed, dict):
        gone = [row for row, one in listed.items() if known.get(one.get("content")) != int(row)]
        for row in gone:
            del listed[row]
        for token in plan.vocabulary.added:
            flags = {flag: bool(token.get(flag)) for flag in _FLAGS}
            listed.setdefault(str(token["id"]), {"content": token["content"], **flags})
    with atomic_write(path) as file:
        file.write(json.dumps(config, ensure_ascii=False, indent=2) + "\n")


def _check_written(plan: TokenPlan, path: Path) -> None:
    from tokenizers import Tokenizer

    try:
        made = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise _unfit(path, f"cannot be read back: {error!s:.120}") from error
    numbered = made.get_vocab(with_added_tokens=True)
    for token, row in plan.vocabulary.ids.items():
        if numbered.get(token) != row and plan.vocabulary.tokens[row] == token:
            raise _unfit(path, f"gives {token!r} the number {numbered.get(token)} instead of {row}")
    if not plan.is_new:
        return
    before = [
        Tokenizer.from_file(str(folder / "tokenizer.json"))
        for folder in dict.fromkeys(source.folder for source in plan.sources)
    ]
    for text in _TEXTS:
        spelled = _spell(made, text)
        if spelled != text and all(_spell(other, text) != spelled for other in before):
            raise _unfit(path, f"spells {text!r} as {spelled!r}")


def _spell(tokenizer: Tokenizer, text: str) -> str:
    encoded = tokenizer.encode(text, add_special_tokens=False)
    return str(tokenizer.decode(encoded.ids, skip_special_tokens=False))


def _unfit(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"the merged tokenizer {what}",
        code="merge.tokenizer-round-trip",
        where=str(path),
        expected="the same numbers and texts as those of the models",
        next="set tokenizer.source to 'base' or to the index of a model",
    )
