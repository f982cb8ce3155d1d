"""Comparison of sources before a merge: do their configs and vocabularies belong together?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stillroom.errors import CheckpointError, Problem

if TYPE_CHECKING:
    from stillroom.merge.sources import Source

__all__ = ["EMBEDDING", "HEAD", "check_configs", "shorten_problems"]

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_MOST_SHOWN = 8
_MUST_AGREE = (
    "model_type",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
)


def check_configs(
    sources: Sequence[Source], *, stacked: bool = False, shared_vocabulary: bool = True
) -> None:
    """Refuse sources whose numbers mean different things.

    Args:
        sources: All that takes part.
        stacked: Layers are taken from here and there, so their count may differ.
        shared_vocabulary: Row n of every embedding must be the same token.

    Raises:
        CheckpointError: Naming each key that differs, and every source's value.
    """
    problems = []
    for key in (*_MUST_AGREE, "rope"):
        if stacked and key == "num_hidden_layers":
            continue
        values = {source.name: _setting(source.checkpoint.config, key) for source in sources}
        if len({repr(value) for value in values.values() if value is not None}) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
            problems.append(
                Problem(
                    f"the models disagree about {key}: {listed}",
                    "merge.config",
                    "config.json",
                    "models of one family, fine-tuned from one base",
                    "merge models that share their architecture",
                )
            )
    digests = {source.name: source.checkpoint.vocabulary_digest for source in sources}
    if shared_vocabulary and len({digest for digest in digests.values() if digest}) > 1:
        problems.append(
            Problem(
                f"the models number their tokens differently: {', '.join(digests)}",
                "merge.tokenizer",
                "tokenizer.json",
                "one vocabulary, so that row n of every embedding is the same token",
                "merge models that share their tokenizer",
            )
        )
    if problems:
        raise CheckpointError(shorten_problems(problems))


def shorten_problems(problems: list[Problem]) -> list[Problem]:
    """Return the first problems, and one that counts the others."""
    left = len(problems) - _MOST_SHOWN
    if left <= 0:
        return problems
    return [*problems[:_MOST_SHOWN], Problem(f"and {left} tensors more", problems[0].code)]


def _setting(config: Mapping[str, Any], key: str) -> Any:
    if key != "rope":
        value = config.get(key)
        return float(value) if isinstance(value, int | float) else value
    rope = config.get("rope_parameters")
    theta = rope.get("rope_theta") if isinstance(rope, Mapping) else None
    theta = config.get("rope_theta") if theta is None else theta
    return float(theta) if isinstance(theta, int | float) else None
