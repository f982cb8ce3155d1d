"""Tokenizers made of the records: one token a character, or one a word.

For models that are trained from nothing on small, closed worlds, where a vocabulary of 50,000 would
be most of the network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing

from stillroom.errors import RecipeError
from stillroom.jobs import atomic_write

__all__ = ["BEGIN", "BUILTIN", "END", "MASK", "build_tokenizer"]

BEGIN, END, MASK, UNKNOWN = "<|begin|>", "<|end|>", "<|mask|>", "<|unknown|>"
BUILTIN = ("builtin:characters", "builtin:words")


def build_tokenizer(kind: str, texts: Iterable[str], folder: Path, context_length: int) -> int:
    """Write tokenizer.json and tokenizer_config.json, and return how many tokens there are.

    Args:
        kind: One of ``BUILTIN``. Words are runs without white space; what stands between them is
            taken as one space.
        texts: What the vocabulary is made of; what is not in it is one unknown token.
        folder: Where to.
        context_length: Positions that the model knows.

    Raises:
        RecipeError: If there is no such kind.
    """
    if kind not in BUILTIN:
        raise RecipeError(
            f"'{kind}' is no tokenizer that is made of records",
            code="diffusion.tokenizer",
            where="start.tokenizer",
            expected=f"one of: {', '.join(BUILTIN)}, or a checkpoint",
            next="builtin:characters for small corpora",
        )
    is_words = kind == "builtin:words"
    found: set[str] = set()
    for text in texts:
        found.update(text.split() if is_words else text)
    special = [UNKNOWN, BEGIN, END, MASK]
    vocabulary = {token: at for at, token in enumerate([*special, *sorted(found - set(special))])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    if is_words:
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A $B",
        special_tokens=[(BEGIN, vocabulary[BEGIN])],
    )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "tokenizer.json") as file:
        file.write(tokenizer.to_str(pretty=True))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNKNOWN,
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": END,
        "mask_token": MASK,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
    }
    with atomic_write(folder / "tokenizer_config.json") as file:
        file.write(json.dumps(config, indent=1) + "\n")
    return len(vocabulary)
