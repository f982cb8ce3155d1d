"""Training run of a claim checker: plant edits, fit, and choose the threshold of support.

Claims about other passages are made, too: a claim shown with another passage than its own is not
supported, however new its words are there. The threshold is chosen by the scores that each claim
gets from a fit to the other documents, so that no claim is judged by a model that has seen its
document.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import DataError
from stillroom.evaluate.metrics.calibration import fit_logistic_weights
from stillroom.jobs import atomic_write
from stillroom.provenance import digest_text, make_parent
from stillroom.provenance.digests import load_json
from stillroom.rag.claim_checking.alignment import FEATURES, AlignedPassage, describe_claim
from stillroom.rag.claim_checking.checker import (
    CONFIG_FILE,
    estimate_support,
    expand_features,
    list_values,
)
from stillroom.rag.claim_checking.edits import plant_claims
from stillroom.rag.groundedness.score import SourceTexts
from stillroom.rag.index.searcher import Index
from stillroom.rag.types import format_heading_path, get_readable_text
from stillroom.records import Link, Origin

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.jobs import Job
    from stillroom.provenance import Artifact
    from stillroom.rag.jobs.checker import CheckerRecipe

__all__ = ["train_checker"]

_FOREIGN_SHARE, _FOREIGN_PASSAGES = 0.5, 3
_FOLDS = 5
_MIN_SHARED = 40  # characters
_RIDGE = 1.0
_FOREIGN, _JUDGED, _JUDGED_FOREIGN = "foreign", "judged", "judged_foreign"


@dataclass(frozen=True, slots=True)
class _Claim:
    """A claim about a passage, whether that supports it, and how much it counts.

    ``group`` names the document; claims of one are never in fit and judgment at once.
    """

    text: str
    passage: str
    heading: str
    group: str
    kind: str
    is_supported: bool
    weight: float = 1.0


def train_checker(recipe: CheckerRecipe, job: Job) -> Artifact:
    """Run the job ``rag.checker``; see ``stillroom.rag.jobs.checker.run``."""
    judged = list(_read_judged(recipe))
    with Index.open(Path(recipe.index)) as index:
        claims = [*_plant(recipe, index, job), *judged]
        labels = np.array([claim.is_supported for claim in claims], dtype=np.float64)
        folds = np.array([_draw(recipe.seed, claim.group) % _FOLDS for claim in claims])
        if any(len(set(labels[folds != fold])) < 2 for fold in range(_FOLDS)):
            raise DataError(
                f"{len(claims)} claims of {len({claim.group for claim in claims})} documents are "
                "too few to fit and to judge a checker",
                code="data.no-claims",
                where=recipe.index,
                expected="an index of several documents with English sentences",
                next="index more documents, or add judged claims",
            )
        rows = _describe(claims, index, job)
    values = list_values(rows)
    mean, scale = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-6)
    design = expand_features((values - mean) / scale)
    weights = np.array([claim.weight for claim in claims])
    chances = np.empty(len(claims))
    for fold in range(_FOLDS):
        job.check_cancelled()
        rest = folds != fold
        fitted = fit_logistic_weights(
            design[rest], labels[rest], ridge=_RIDGE, counts=weights[rest]
        )
        chances[~rest] = estimate_support(design[~rest], fitted)
    threshold = _choose_threshold(chances, labels, weights, recipe.precision)
    figures = _summarize(claims, chances >= threshold)
    _report(figures, recipe.precision, job)
    weights = fit_logistic_weights(design, labels, ridge=_RIDGE, counts=weights)
    config = {
        "features": FEATURES,
        "mean": [round(float(value), 6) for value in mean],
        "scale": [round(float(value), 6) for value in scale],
        "weights": [round(float(value), 5) for value in weights],
        "threshold": round(threshold, 6),
    }
    with atomic_write(job.output / CONFIG_FILE) as file:
        json.dump(config, file, sort_keys=True)
        file.write("\n")
    return job.finish(
        "checkpoint",
        parents=[
            make_parent("index", Path(recipe.index), job.out),
            *(make_parent("claims", Path(path), job.out) for path in recipe.claims),
        ],
        origin=Origin("synthetic").then(Link("rag.checker")).to_json(),
        details={"checker": True, "validation": figures},
    )


def _plant(recipe: CheckerRecipe, index: Index, job: Job) -> list[_Claim]:
    """Return claims about drawn passages, and half of them with the passage that follows."""
    claims: list[_Claim] = []
    rng = np.random.default_rng(recipe.seed)
    with job.phase("plant", recipe.max_claims, "claims") as progress:
        for row in rng.permutation(len(index)).tolist():
            job.check_cancelled()
            passage = index.passage_at(row)
            text, heading = get_readable_text(passage), format_heading_path(passage)
            group = passage.document_id
            before = len(claims)
            for planted in plant_claims(text, rng, recipe.sentences):
                claims.append(
                    _Claim(planted.text, text, heading, group, planted.kind, planted.is_supported)
                )
                if rng.random() < _FOREIGN_SHARE:
                    other = index.passage_at((row + 1) % len(index))
                    shown = get_readable_text(other)
                    if not _share_words(planted.text, shown):
                        path = format_heading_path(other)
                        claims.append(_Claim(planted.text, shown, path, group, _FOREIGN, False))
            del claims[recipe.max_claims :]
            progress.advance(len(claims) - before)
            if len(claims) >= recipe.max_claims:
                break
    return claims


def _share_words(claim: str, passage: str) -> bool:
    """Return whether a passage overlaps the one of the claim, and has its beginning."""
    return claim[:_MIN_SHARED] in " ".join(passage.split())


def _read_judged(recipe: CheckerRecipe) -> Iterator[_Claim]:
    """Yield the judged claims, and each with the passages of others.

    Raises:
        DataError: If a line is none.
    """
    found: list[_Claim] = []
    for path in recipe.claims:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise _no_claim_error(str(error), path, "check the path") from error
        read = [
            _read_claim(line, f"{path}:{number}", recipe.judged_weight)
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
        if not read:
            raise _no_claim_error("the file is empty", path, "add lines, or leave the file out")
        found += read
    yield from found
    for number, claim in enumerate(found):
        for step in range(1, _FOREIGN_PASSAGES + 1):
            place = number + step * len(found) // (_FOREIGN_PASSAGES + 1)
            other = found[place % len(found)]
            if other.group != claim.group:
                yield replace(
                    claim,
                    passage=other.passage,
                    heading=other.heading,
                    kind=_JUDGED_FOREIGN,
                    is_supported=False,
                    weight=claim.weight / _FOREIGN_PASSAGES,
                )


def _read_claim(line: str, where: str, weight: float) -> _Claim:
    try:
        row: Mapping[str, Any] = load_json(line)
        text, passage, label = (row[name] for name in ("claim", "passage", "supported"))
        if not (text and isinstance(text, str) and isinstance(passage, str)):
            raise TypeError("no text")
        if not isinstance(label, bool):
            raise TypeError("supported is neither true nor false")
    except (ValueError, LookupError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, LookupError) else str(error)
        raise _no_claim_error(what, where, "correct the line") from error
    heading = str(row.get("title", ""))
    group = str(row.get("document", digest_text(passage)))
    return _Claim(text, passage, heading, group, _JUDGED, label, weight)


def _no_claim_error(what: str, where: str, next: str) -> DataError:
    return DataError(
        f"no judged claim: {what}",
        code="data.no-claims",
        where=where,
        expected='{"claim": TEXT, "passage": TEXT, "supported": true or false}',
        next=next,
    )


def _describe(claims: Sequence[_Claim], index: Index, job: Job) -> list[dict[str, float]]:
    """Return the features of each claim."""
    texts = SourceTexts([], index.analyzer, index.lexicon)
    stem, weigh = lru_cache(maxsize=None)(texts.stem), lru_cache(maxsize=None)(index.lexicon.idf)
    rows = []
    with job.phase("describe", len(claims), "claims") as progress:
        for claim in claims:
            job.check_cancelled()
            passage = AlignedPassage.of(claim.passage, claim.heading, stem)
            rows.append(describe_claim(claim.text, passage, stem=stem, weigh=weigh))
            progress.advance()
    return rows


def _draw(seed: int, name: str) -> int:
    """Return a number that depends on seed and name alone."""
    return int(digest_text(f"{seed}:{name}")[:8], 16)


def _choose_threshold(
    chances: NDArray[np.float64],
    labels: NDArray[np.float64],
    weights: NDArray[np.float64],
    precision: float,
) -> float:
    """Return the lowest probability above which the share of true claims reaches a precision."""
    order = np.argsort(-chances, kind="stable")
    shares = np.cumsum((labels * weights)[order]) / np.cumsum(weights[order])
    reached = np.flatnonzero(shares >= precision)
    return float(chances[order[reached[-1]]]) if len(reached) else 1.0


def _name_set(claim: _Claim) -> str:
    """Return the set of a claim: judged by people, shown with a passage of others, or planted."""
    return claim.kind if claim.kind in {_JUDGED, _JUDGED_FOREIGN} else "planted"


def _report(figures: Mapping[str, Any], precision: float, job: Job) -> None:
    """Say how good the checker is, and warn of one that supports nothing."""
    for name in ("planted", "judged"):
        row = figures[name]
        if row["recall"] is not None:
            share = "none" if row["precision"] is None else f"{row['precision']:.3f}"
            job.say(
                f"of {row['claims']} {name} claims, {row['recall']:.3f} of the true ones are "
                f"supported; of the supported ones true: {share}"
            )
    if figures["planted"]["precision"] is figures["judged"]["precision"] is None:
        job.warn(
            f"no threshold reaches a precision of {precision}: only sentences that a "
            "passage has word for word will be supported; give more documents or judged claims"
        )


def _summarize(claims: Sequence[_Claim], supported: NDArray[np.bool_]) -> dict[str, Any]:
    """Return precision and recall of planted and judged claims, and what passed of each kind."""
    passed: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for claim, is_called in zip(claims, supported.tolist(), strict=True):
        passed[claim.kind][0] += is_called
        passed[claim.kind][1] += 1
    figures: dict[str, Any] = {"supported_by_kind": dict(sorted(passed.items()))}
    for name in ("planted", _JUDGED):
        chosen = np.array([_name_set(claim) == name for claim in claims])
        true = np.array([claim.is_supported for claim in claims])
        called = chosen & supported
        figures[name] = {
            "claims": int(chosen.sum()),
            "precision": float(true[called].mean()) if called.any() else None,
            "recall": float(supported[chosen & true].mean()) if (chosen & true).any() else None,
        }
    return figures
