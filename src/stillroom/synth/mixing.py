"""What a generation learns from: the rules of mixing what people wrote with what models wrote.

- ``replace``: only what the last student wrote, beside the share of human records that is asked
  for. Errors add up without end (Shumailov et al. 2024, doi:10.1038/s41586-024-07566-y).
- ``accumulate``: everything, the human records and what every student wrote; the error stays
  bounded (Gerstgrasser et al. 2024, arXiv:2404.01413).
- ``accumulate_subsample``: as many records as people wrote, drawn from all of that; between the two
  (Kazdan et al. 2024, arXiv:2410.16713). The share of human records is a floor.

Knows records and random draws only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar, get_args

import numpy as np

from stillroom.synth.method import derive_seed

__all__ = ["RULES", "Rule", "mix"]

Rule = Literal["replace", "accumulate", "accumulate_subsample"]
RULES: tuple[Rule, ...] = get_args(Rule)

T = TypeVar("T")


def mix(
    rule: Rule,
    human: Sequence[T],
    written: Sequence[Sequence[T]],
    *,
    human_share: float = 0.0,
    seed: int = 0,
) -> list[T]:
    """Return what the next generation learns from, in a drawn order.

    Args:
        rule: How it is put together.
        human: The records that people wrote.
        written: What the students of all generations before wrote, oldest first; at least one.
        human_share: Least share of human records in the mixture, 0 to below 1; the size of the
            mixture does not change by it, and ``accumulate`` keeps all of them anyway.
        seed: Of the draws.
    """
    rng = np.random.default_rng(derive_seed(seed, rule, len(written)))
    size = len(human)
    if rule == "accumulate":
        chosen = [*human, *(one for part in written for one in part)]
    elif rule == "replace":
        kept = round(human_share * size)
        chosen = [*_draw(human, kept, rng), *_draw(written[-1], size - kept, rng)]
    else:
        model = [one for part in written for one in part]
        natural = int(rng.hypergeometric(size, len(model), size))
        kept = max(natural, round(human_share * size))
        chosen = [*_draw(human, kept, rng), *_draw(model, size - kept, rng)]
    return [chosen[at] for at in rng.permutation(len(chosen)).tolist()]


def _draw(records: Sequence[T], count: int, rng: np.random.Generator) -> list[T]:
    """Return some of the records, none twice while there are enough."""
    count = min(count, len(records))
    return [records[at] for at in sorted(rng.permutation(len(records))[:count].tolist())]
