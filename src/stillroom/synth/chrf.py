"""chrF: how like two texts are by their runs of characters.

Source: Popović 2015 (character n-grams to 6, beta 2, spaces left out), averaged over the orders
that both texts have.
"""

from __future__ import annotations

from collections import Counter

__all__ = ["chrf"]

_ORDERS = 6
_BETA = 2.0


def chrf(text: str, reference: str) -> float:
    """Return chrF of a text against a reference, from 0 to 1; two empty texts are equal."""
    one, other = "".join(text.split()), "".join(reference.split())
    if not one or not other:
        return float(one == other)
    precisions, recalls = [], []
    for order in range(1, _ORDERS + 1):
        left, right = _runs(one, order), _runs(other, order)
        if not left or not right:
            continue
        same = sum((left & right).values())
        precisions.append(same / left.total())
        recalls.append(same / right.total())
    precision = sum(precisions) / len(precisions)
    recall = sum(recalls) / len(recalls)
    if not precision or not recall:
        return 0.0
    weight = _BETA**2
    return (1 + weight) * precision * recall / (weight * precision + recall)


def _runs(text: str, order: int) -> Counter[str]:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))
