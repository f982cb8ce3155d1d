"""RAG metrics of one answer: correctness, faithfulness, citations, context precision, abstention.

Every measure is a function of one answer and returns a share from 0 to 1, or None where it is not
defined (no quotation, no citation). Support of a statement is decided by an ``EntailmentCheck``:
shared words, or a model as judge. ``summarize_shares`` averages many answers; undefined values are
neither averaged as 0 nor dropped silently: the metric's note has the number measured.

Sources: Rajpurkar et al. 2016, arXiv:1606.05250 (exact match and F1); Gao et al. 2023,
arXiv:2305.14627, section 4 (citation recall and precision); Es et al. 2023, arXiv:2309.15217
(faithfulness, and after it context precision and recall, noise sensitivity). Haystack's
FaithfulnessEvaluator and ContextRelevanceEvaluator are of this kind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stillroom.evaluate.metrics.bootstrap import Floats, Metric, bootstrap, bootstrap_statistic
from stillroom.text.unicode import exact_match, normalize_text, token_f1

__all__ = [
    "CitedStatement",
    "EntailmentCheck",
    "abstention_scores",
    "best_exact_match",
    "best_f1",
    "citation_scores",
    "contains_answer",
    "context_precision",
    "faithfulness",
    "noise_sensitivity",
    "quote_exactness",
    "summarize_shares",
]

EntailmentCheck = Callable[[str, Sequence[str]], bool | None]
"""Whether texts together entail a statement; None where that could not be judged."""

_QUOTED = re.compile(r"“([^“”]{8,})”|\"([^\"\n]{8,})\"|«([^«»]{8,})»")
_MIN_QUOTED_WORDS = 3


@dataclass(frozen=True, slots=True)
class CitedStatement:
    """One claiming sentence of an answer, and the texts of its citations."""

    text: str
    cited: tuple[str, ...] = ()


def best_exact_match(answer: str, accepted: Sequence[str]) -> float:
    """Return 1.0 if the answer equals an accepted one after SQuAD's normalization."""
    return max((exact_match(answer, candidate) for candidate in accepted), default=0.0)


def best_f1(answer: str, accepted: Sequence[str]) -> float:
    """Return SQuAD's maximum F1 over the accepted answers."""
    return max((token_f1(answer, candidate) for candidate in accepted), default=0.0)


def contains_answer(answer: str, accepted: Sequence[str]) -> float:
    """Return 1.0 if the answer contains an accepted one word for word.

    An accepted answer without a word does not match.
    """
    normalized = f" {normalize_text(answer)} "
    forms = (normalize_text(candidate) for candidate in accepted)
    return float(any(form and f" {form} " in normalized for form in forms))


def faithfulness(
    statements: Sequence[str], shown: Sequence[str], supports: EntailmentCheck
) -> float | None:
    """Return the share of statements supported by the shown texts.

    Returns:
        None without statements, or where a statement could not be judged.
    """
    verdicts = [supports(statement, shown) if shown else False for statement in statements]
    return _mean_verdict(verdicts)


def citation_scores(
    statements: Sequence[CitedStatement], supports: EntailmentCheck
) -> tuple[float | None, float | None]:
    """Return citation recall and precision of one answer.

    Recall: the share of statements supported by their citations together. Precision: the share
    of citations that are needed: of a supported statement, one that supports it alone, or without
    which the others do not. Citations of an unsupported statement all count as wrong.

    Source: Gao et al. 2023, arXiv:2305.14627, section 4.2.

    Returns:
        Each None where it is not defined or could not be judged.
    """
    recalls = [
        supports(statement.text, statement.cited) if statement.cited else False
        for statement in statements
    ]
    right: list[bool | None] = []
    for statement, verdict in zip(statements, recalls, strict=True):
        cited = range(len(statement.cited))
        right += [
            _is_citation_needed(statement, index, supports) if verdict else verdict
            for index in cited
        ]
    return _mean_verdict(recalls), _mean_verdict(right)


def quote_exactness(answer: str, shown: Sequence[str]) -> float | None:
    """Return the share of quotations in an answer that occur word for word in the shown texts.

    A quotation is three words or more between quotation marks; white space is ignored.

    Returns:
        None without quotations.
    """
    texts = [" ".join(quote.split()) for quote in shown]
    quotes = [" ".join("".join(groups).split()) for groups in _QUOTED.findall(answer)]
    long = [quote.rstrip(".,;:!?") for quote in quotes if len(quote.split()) >= _MIN_QUOTED_WORDS]
    return _mean_verdict([any(quote in text for text in texts) for quote in long])


def context_precision(relevant: Sequence[bool]) -> float:
    """Return the average precision of the texts shown, best first.

    The mean over relevant texts of the precision at their rank: sum(P@k * v_k) / sum(v_k); 0
    without relevant ones.
    """
    relevant_count, total = 0, 0.0
    for rank, is_relevant in enumerate(relevant, 1):
        if is_relevant:
            relevant_count += 1
            total += relevant_count / rank
    return total / relevant_count if relevant_count else 0.0


def noise_sensitivity(
    statements: Sequence[str], reference: str, shown: Sequence[str], supports: EntailmentCheck
) -> float | None:
    """Return the share of statements that are errors induced by the shown texts.

    Source: noise sensitivity of RAGAS: a statement supported by a shown text but not by the
    reference.

    Returns:
        None without statements, or where a statement could not be judged.
    """
    verdicts: list[bool | None] = []
    for statement in statements:
        is_true = supports(statement, [reference])
        is_shown = supports(statement, shown) if shown else False
        unknown = is_true is None or is_shown is None
        verdicts.append(None if unknown else bool(is_shown and not is_true))
    return _mean_verdict(verdicts)


def summarize_shares(values: Mapping[str, float | None], name: str, *, seed: int = 0) -> Metric:
    """Return the mean of the defined values with its interval; the note has their number.

    A share is None where it is not defined.
    """
    valid = [value for value in values.values() if value is not None]
    metric = bootstrap(valid, seed=seed, name=name)
    if len(valid) == len(values):
        return metric
    measured = f"measured on {len(valid)} of {len(values)}"
    note = f"{measured}; {metric.note}" if metric.note else measured
    return Metric(name, metric.value, metric.low, metric.high, metric.n, metric.unit, note)


def abstention_scores(
    should: Sequence[bool], did: Sequence[bool], name: str, *, seed: int = 0
) -> list[Metric]:
    """Return precision, recall and F1 of abstentions, with intervals."""
    expected, done = (np.asarray(side, dtype=np.float64) for side in (should, did))
    both = expected * done

    def precision(counts: Floats) -> Floats:
        return np.asarray((counts @ both) / (counts @ done))

    def recall(counts: Floats) -> Floats:
        return np.asarray((counts @ both) / (counts @ expected))

    def f1(counts: Floats) -> Floats:
        return np.asarray(2 * (counts @ both) / (counts @ (expected + done)))

    return [
        bootstrap_statistic(
            statistic, len(expected), seed=seed, name=f"{name}/abstention_{measure}"
        )
        for measure, statistic in (("precision", precision), ("recall", recall), ("f1", f1))
    ]


def _is_citation_needed(
    statement: CitedStatement, index: int, supports: EntailmentCheck
) -> bool | None:
    if len(statement.cited) == 1:
        return True
    alone = supports(statement.text, [statement.cited[index]])
    if alone is None or alone:
        return alone
    remaining = [text for position, text in enumerate(statement.cited) if position != index]
    is_supported = supports(statement.text, remaining)
    return None if is_supported is None else not is_supported


def _mean_verdict(verdicts: Sequence[bool | None]) -> float | None:
    """Return the mean; None of nothing, and None where one could not be judged."""
    if not verdicts or any(verdict is None for verdict in verdicts):
        return None
    return math.fsum(map(bool, verdicts)) / len(verdicts)
