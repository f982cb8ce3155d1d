"""What a conversion may be expected to give for the tokens that it learned from.

Sources: our own figures (docs/explanation/lab-notebook.md, "How far a bound is from a loss"); Wu et
al. 2025, arXiv:2509.26328 (Fast-dLLM v2: 1e9 tokens, by blocks); Gong et al. 2024, arXiv:2410.17891
(DiffuLLaMA: 65e9, seeing both ways); Ye et al. 2025, arXiv:2508.15487 (Dream: 580e9). Between a
million tokens and a thousand million nothing was measured here, and it says so.
"""

from __future__ import annotations

__all__ = ["expect_of"]

_BUDGETS = (
    (
        1e6,
        "it has begun to fill holes: a token or two that stand near others; no sentences "
        "(SmolLM2-135M after 15 thousand tokens: a bound of 5.8 nats a token, 9.1 before; its "
        "autoregressive loss was 3.7)",
    ),
    (1e7, "words and phrases of the records, not sentences"),
    (
        1e9,
        "more than words, if the records are alike; less than the autoregressive start, and how "
        "much was not measured here",
    ),
)


def expect_of(tokens: int, *, by_blocks: bool) -> str:
    """Return what to expect of a model converted by so many tokens, in one sentence.

    Args:
        tokens: That it learned from.
        by_blocks: Whether attention is by blocks; else it sees both ways.
    """
    published = (
        "a published conversion by blocks took 1e9 (Fast-dLLM v2)"
        if by_blocks
        else "published ones that see both ways took 6.5e10 (DiffuLLaMA) and 5.8e11 (Dream)"
    )
    for most, said in _BUDGETS:
        if tokens < most:
            return f"after {tokens:,} tokens expect this: {said}; {published}"
    return f"{tokens:,} tokens are a budget for a model that writes: {published}"
