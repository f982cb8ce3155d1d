"""Comparing two stores of one index: they must hold the same, and find the same with equal scores.

Questions are a few words in a row of passages drawn at random, for keyword search, and vectors of
passages drawn at random, for dense search, and where they are kept their term weights and token
vectors; all are exact, so that rows must be equal and scores, too. What is compared is all that the
stores hold, whoever may see it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import IntegrityError
from stillroom.rag.filters import Condition
from stillroom.rag.store.description import Description, open_analyzer
from stillroom.rag.view import View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stillroom.rag.store.protocol import Reading
    from stillroom.rag.view import Ranking

__all__ = ["Comparison", "compare_readings", "draw_questions"]

_DEPTH = 20
_FEWEST_WORDS, _MOST_WORDS = 4, 12
_MOST_CHARACTERS = 300
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found equal, and the greatest difference of two scores of one row."""

    documents: int
    passages: int
    digest: str
    queries: int
    difference: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def compare_readings(
    old: Reading, new: Reading, where: Path, *, queries: int, seed: int = 0
) -> Comparison:
    """Hold a store against the one that it was made from.

    Args:
        old: The source, open.
        new: What was made of it, open.
        where: The index, for errors.
        queries: How many questions of each kind are put to both.
        seed: Which passages they are drawn from.

    Raises:
        IntegrityError: If counts, digest, rows, vectors or scores differ.
    """
    if old.snapshot.counts != new.snapshot.counts:
        raise _differs(where, f"counts are {new.snapshot.counts}, not {old.snapshot.counts}")
    if old.snapshot.digest != new.snapshot.digest:
        raise _differs(where, f"the digest is {new.snapshot.digest}, not {old.snapshot.digest}")
    views = View(old, Condition()), View(new, Condition())
    rng = np.random.default_rng(seed)
    size = len(views[0].rows)
    count = min(queries, size)
    asked = draw_questions(old, views[0], rng, count)
    greatest = 0.0
    for text in asked:
        found = [_search_keyword(view, text, where) for view in views]
        greatest = max(greatest, _compare(found[0], found[1], where, f"words {text[:60]!r}"))
    rows = rng.choice(size, count, replace=False) if size else np.zeros(0, dtype=np.int64)
    for row in rows:
        vectors = [view.opened.vectors_at(view.rows.places[[row]])[0] for view in views]
        if not np.array_equal(vectors[0], vectors[1]):
            raise _differs(where, f"passage {row} has another vector")
        found = [_search_dense(view, vectors[0]) for view in views]
        greatest = max(greatest, _compare(found[0], found[1], where, f"the vector of {row}"))
    greatest = max(greatest, _compare_extras(views, rows, where))
    snapshot = new.snapshot
    return Comparison(snapshot.documents, snapshot.passages, snapshot.digest, count, greatest)


def _compare_extras(views: Sequence[View], rows: NDArray[np.int64], where: Path) -> float:
    """Return the greatest difference of two scores by term weights or token vectors.

    Raises:
        IntegrityError: If only one store keeps them, or they find or are something else.
    """
    for name in ("sparse", "tokens"):
        if len({getattr(view, name) is None for view in views}) > 1:
            raise _differs(where, f"only one of both keeps what is asked for as {name}")
    greatest = 0.0
    for row in rows.tolist():
        for ask, what in ((_ask_terms, "term weights"), (_ask_tokens, "token vectors")):
            (kept, found), (other, again) = (ask(view, row, rows) for view in views)
            if not np.array_equal(kept, other):
                raise _differs(where, f"passage {row} has other {what}")
            greatest = max(greatest, _compare(found, again, where, f"the {what} of {row}"))
    return greatest


def _ask_terms(view: View, row: int, rows: NDArray[np.int64]) -> tuple[Any, Ranking]:
    """Return the term weights of a row, and what is found by them."""
    engine = view.sparse
    if engine is None:
        return [], []
    terms = engine.terms_of(int(view.rows.places[row]))
    kept = np.array(list(terms.items()), dtype=object)
    return kept, view.rank(lambda depth: engine.search(terms, depth), _DEPTH)


def _ask_tokens(view: View, row: int, rows: NDArray[np.int64]) -> tuple[Any, Ranking]:
    """Return the token vectors of a row, and what of some rows is found by them."""
    engine = view.tokens
    if engine is None:
        return [], []
    places = view.rows.places[rows]
    own = engine.vectors_of(int(view.rows.places[row]))
    if not len(own):
        return own, []
    return own, view.rank(lambda depth: engine.search(own, depth, rows=places), _DEPTH)


def draw_questions(reading: Reading, view: View, rng: np.random.Generator, count: int) -> list[str]:
    """Return some words of some passages each, in order of the passages.

    Args:
        reading: The snapshot.
        view: What of it is drawn from.
        rng: Draws.
        count: How many; at most as many as there are passages.
    """
    if not count:
        return []
    rows = np.sort(rng.choice(len(view.rows), count, replace=False))
    asked = []
    for row in rows:
        words = json.loads(reading.passage(*view.rows.locate(int(row))))["text"].split()
        size = int(rng.integers(_FEWEST_WORDS, _MOST_WORDS + 1))
        start = int(rng.integers(0, max(1, len(words) - size)))
        asked.append(" ".join(words[start : start + size])[:_MOST_CHARACTERS])
    return asked


def _search_keyword(view: View, text: str, where: Path) -> Ranking:
    description = Description.from_json(view.opened.description)
    terms = open_analyzer(description, where).query_terms(text)
    told = description.settings["keyword"]
    return view.rank(
        lambda depth: view.keywords.search(
            terms,
            depth,
            k1=float(told["k1"]),
            b=float(told["b"]),
            heading_weight=float(told["heading_weight"]),
            variant=told.get("variant", "lucene"),
            delta=told.get("delta"),
        ),
        _DEPTH,
    )


def _search_dense(view: View, vector: Any) -> Ranking:
    return view.rank(lambda depth: view.search_dense(vector, depth, "exact"), _DEPTH)


def _compare(old: Ranking, new: Ranking, where: Path, what: str) -> float:
    """Return the greatest difference of two scores.

    Raises:
        IntegrityError: If other rows are found, or with other scores.
    """
    if [row for row, _ in old] != [row for row, _ in new]:
        raise _differs(where, f"other passages are found by {what}")
    greatest = max((abs(a[1] - b[1]) for a, b in zip(old, new, strict=True)), default=0.0)
    if greatest > _TOLERANCE:
        raise _differs(where, f"a score is {greatest:.3g} off, by {what}")
    return greatest


def _differs(where: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"the copy is not the index: {what}",
        code="rag.copy-differs",
        where=str(where),
        expected="equal counts, digests, rows and scores",
        next="stillroom rag verify INDEX; nothing was switched, and the source is as it was",
    )
