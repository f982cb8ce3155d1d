"""Training run of a claim checker: plant edits, train, calibrate on other documents, write.

Source of the calibration: Platt 1999 (a logistic function of the logits).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import DataError
from stillroom.jobs import atomic_write
from stillroom.models.embedders.sentence import load_encoder
from stillroom.models.hub import resolve_checkpoint
from stillroom.models.local.causal_lm import choose_device
from stillroom.provenance import Parent, digest_text, make_parent
from stillroom.rag.answer_selection.reader import find_special_tokens, open_base
from stillroom.rag.claim_checking.checker import CONFIG_FILE, WEIGHTS_FILE, ClaimChecker
from stillroom.rag.claim_checking.edits import plant_claims
from stillroom.rag.claim_checking.training import (
    CheckerNetwork,
    LabeledClaim,
    build_source,
    compute_loss,
)
from stillroom.rag.index.searcher import Index
from stillroom.rag.types import format_heading_path, get_readable_text
from stillroom.records import Link, Origin
from stillroom.train.loop import train
from stillroom.train.precision import limit_threads

if TYPE_CHECKING:
    from stillroom.jobs import Job
    from stillroom.provenance import Artifact
    from stillroom.rag.jobs.checker import CheckerRecipe

__all__ = ["train_checker"]

_FOREIGN_SHARE = 0.05
_NEWTON_STEPS = 50
_UNCALIBRATED = {"support": 1.0, "wrong": 0.0, "intercept": 0.0}


def train_checker(recipe: CheckerRecipe, job: Job) -> Artifact:
    """Run the job ``rag.checker``; see ``stillroom.rag.jobs.checker.run``."""
    claims, held_out = _plant(recipe, job)
    if not claims or not held_out:
        raise DataError(
            f"{len(claims)} claims can be made for training, and {len(held_out)} for validation",
            code="data.no-claims",
            where=recipe.index,
            expected="an index of several documents with English sentences",
            next="index more documents, or raise validation",
        )
    judged = [_read_claim(line, where) for where, line in _read_lines(recipe.claims)]
    claims += judged * recipe.repeats
    kinds = Counter(claim.kind for claim in claims)
    job.say(f"{len(claims)} claims for training, {len(held_out)} held out: {dict(kinds)}")
    with limit_threads(recipe.train.threads):
        trained = _fit(recipe, claims, job)
    found = _calibrate(ClaimChecker(job.output), held_out, recipe.precision, job)
    _write_config(job.output, recipe, found["config"])
    return job.finish(
        "checkpoint",
        parents=[
            make_parent("index", Path(recipe.index), job.out),
            *(make_parent("claims", Path(path), job.out) for path in recipe.claims),
            Parent("base", recipe.base, _fingerprint(recipe.base), "checkpoint"),
        ],
        origin=Origin("synthetic").then(Link("rag.checker")).to_json(),
        details={"train": trained, "checker": True, "validation": found["figures"]},
    )


def _fingerprint(base: str) -> str:
    from stillroom.checkpoints import Checkpoint

    return Checkpoint.open(resolve_checkpoint(base)).fingerprint


def _plant(recipe: CheckerRecipe, job: Job) -> tuple[list[LabeledClaim], list[LabeledClaim]]:
    """Return the claims of each passage, those of a share of the documents apart."""
    training: list[LabeledClaim] = []
    held_out: list[LabeledClaim] = []
    with Index.open(Path(recipe.index)) as index:
        passages = [index.passage_at(row) for row in range(len(index))]
    with job.phase("plant", len(passages), "passages") as progress:
        for row, passage in enumerate(passages):
            rng = np.random.default_rng([recipe.seed, row])
            text, title = get_readable_text(passage), _make_title(format_heading_path(passage))
            is_held_out = _draw(recipe.seed, passage.document_id) < recipe.validation
            found = held_out if is_held_out else training
            neighbor = passages[row - 1] if row else passage
            for number, claim in enumerate(plant_claims(text, rng, recipe.sentences)):
                name = f"{passage.id}:{number}"
                is_foreign = claim.is_supported and rng.random() < _FOREIGN_SHARE
                if is_foreign and claim.text not in (other := get_readable_text(neighbor)):
                    found.append(LabeledClaim(name, claim.text, other, title, False, None, "foreign"))
                    continue
                wrong = claim.wrong if claim.wrong or claim.is_supported else None
                found.append(
                    LabeledClaim(name, claim.text, text, title, claim.is_supported, wrong, claim.kind)
                )
            progress.advance()
    held_out.sort(key=lambda claim: digest_text(f"{recipe.seed}:{claim.id}"))
    return training, held_out[: recipe.max_validation]


def _make_title(headings: str) -> str:
    return " > ".join(headings.split("\n"))


def _draw(seed: int, name: str) -> float:
    """Return a number in [0, 1) that depends on seed and name alone."""
    return int(digest_text(f"{seed}:{name}")[:8], 16) / 16**8


def _read_lines(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    for path in paths:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        yield from ((f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line)


def _read_claim(line: str, where: str) -> LabeledClaim:
    try:
        row: Mapping[str, Any] = json.loads(line)
        texts = [row[name] for name in ("claim", "passage")]
        label = row["supported"]
        if not all(isinstance(text, str) and text for text in texts) or not isinstance(label, bool):
            raise TypeError("wrong types")
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"no judged claim: {error!r}",
            code="data.no-claims",
            where=where,
            expected='{"claim": TEXT, "passage": TEXT, "supported": true or false}',
            next="correct the line",
        ) from error
    name = digest_text(line)
    title = str(row.get("title", ""))
    return LabeledClaim(name, texts[0], texts[1], title, label, () if label else None, "judged")


def _fit(recipe: CheckerRecipe, claims: Sequence[LabeledClaim], job: Job) -> dict[str, Any]:
    """Train and write the checker without calibration; return a summary."""
    from safetensors.numpy import save_file

    plain = open_base(recipe.base)
    device = choose_device("auto")
    encoder = load_encoder(resolve_checkpoint(recipe.base), "cpu")[1]
    network = CheckerNetwork(encoder, recipe.train.lora, recipe.seed).to(device)
    source = build_source(
        claims,
        plain.tokenizer,
        special=find_special_tokens(plain.tokenizer),
        batch_size=recipe.train.batch_size,
        micro_tokens=recipe.train.micro_tokens,
        seed=recipe.seed,
        device=device,
    )
    summary = train(network, source, compute_loss, recipe.train, job, seed=recipe.seed)
    save_file(network.export(), job.output / WEIGHTS_FILE)
    _write_config(job.output, recipe, {"calibration": _UNCALIBRATED, "threshold": 0.5})
    return asdict(summary)


def _calibrate(
    checker: ClaimChecker, claims: Sequence[LabeledClaim], precision: float, job: Job
) -> dict[str, Any]:
    """Return the calibration, the threshold that reaches the precision, and figures by kind."""
    logits, labels = [], np.array([claim.is_supported for claim in claims], dtype=np.float64)
    with job.phase("validate", len(claims), "claims") as progress:
        for claim in claims:
            job.check_cancelled()
            logits.append(checker.read(checker.encode(claim.text, claim.passage, claim.title)))
            progress.advance()
    *slopes, intercept = _fit_logistic(np.array(logits), labels)
    chances = 1 / (1 + np.exp(-(np.array(logits) @ np.array(slopes) + intercept)))
    threshold = _choose_threshold(chances, labels, precision)
    supported = chances >= threshold
    kinds = {
        kind: [
            sum(bool(one) for one, claim in zip(supported, claims, strict=True) if claim.kind == kind),
            count,
        ]
        for kind, count in sorted(Counter(claim.kind for claim in claims).items())
    }
    calibration = {"support": slopes[0], "wrong": slopes[1], "intercept": intercept}
    return {
        "config": {
            "calibration": {name: round(value, 6) for name, value in calibration.items()},
            "threshold": round(float(threshold), 6),
        },
        "figures": {
            "claims": len(claims),
            "precision": float(labels[supported].mean()) if supported.any() else None,
            "recall": float(supported[labels > 0].mean()),
            "supported_by_kind": kinds,
        },
    }


def _choose_threshold(
    chances: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], precision: float
) -> float:
    """Return the lowest probability above which the share of true claims reaches a precision."""
    order = np.argsort(-chances, kind="stable")
    shares = np.cumsum(labels[order]) / np.arange(1, len(order) + 1)
    reached = np.flatnonzero(shares >= precision)
    return float(chances[order[reached[-1]]]) if len(reached) else 1.0


def _fit_logistic(values: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> list[float]:
    """Return the slopes and the intercept of the probability of a label, by Newton's method."""
    design = np.column_stack([values, np.ones(len(values))])
    weights = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        chances = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        spread = chances * (1 - chances)
        hessian = design.T @ (design * spread[:, None]) + 1e-2 * np.eye(design.shape[1])
        step = np.linalg.solve(hessian, design.T @ (labels - chances) - 1e-2 * weights)
        weights += step / max(1.0, float(np.abs(step).max()))
    return [float(weight) for weight in weights]


def _write_config(folder: Path, recipe: CheckerRecipe, calibrated: Mapping[str, Any]) -> None:
    lora = recipe.train.lora
    config = {"base": recipe.base, "rank": lora.rank, "alpha": lora.alpha, **calibrated}
    with atomic_write(folder / CONFIG_FILE) as file:
        json.dump(config, file, indent=1, sort_keys=True)
        file.write("\n")
