"""Training run of a claim checker: read judged claims, train, and choose the threshold of support.

The threshold is chosen on claims about documents that were not trained on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import DataError, count_noun
from stillroom.jobs import atomic_write
from stillroom.models.embedders.sentence import not_embedder_error
from stillroom.models.encoders.text_encoder import load_encoder
from stillroom.models.hub import resolve_checkpoint
from stillroom.models.local.causal_lm import choose_device
from stillroom.objects.disk import require_file
from stillroom.provenance import ARTIFACT_FILE, Parent, digest_file, digest_text, make_parent
from stillroom.provenance.digests import load_json
from stillroom.rag.answer_selection.adapted_bert import (
    describe_base,
    find_special_tokens,
    open_base,
)
from stillroom.rag.answer_selection.encoding import Span
from stillroom.rag.claim_checking.checker import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    ClaimChecker,
    find_start,
)
from stillroom.rag.claim_checking.training import (
    ClaimNetwork,
    LabeledClaim,
    build_source,
    compute_loss,
)
from stillroom.records import Link, Origin
from stillroom.train.loop import train
from stillroom.train.precision import limit_threads

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.jobs import Job
    from stillroom.provenance import Artifact
    from stillroom.rag.jobs.checker import CheckerRecipe

__all__ = ["train_checker"]

_FIELDS = {"claim", "passage", "supported", "title", "document", "unsupported"}


def train_checker(recipe: CheckerRecipe, job: Job) -> Artifact:
    """Run the job ``rag.checker``; see ``stillroom.rag.jobs.checker.run``."""
    claims = [claim for path in recipe.claims for claim in _read_claims(Path(path), job.warn)]
    training, held_out = _split(claims, recipe.validation, recipe.seed)
    if any(len({claim.is_supported for claim in part}) < 2 for part in (training, held_out)):
        raise _claims_error(
            f"{len(claims)} claims about {len({claim.document for claim in claims})} documents are "
            "too few to train and to judge a checker",
            ", ".join(map(str, recipe.claims)),
            "add supported and unsupported claims about more passages",
        )
    steps = recipe.train.count_steps(len(training))
    settings = recipe.train.model_copy(update={"steps": steps})
    recipe = recipe.model_copy(update={"train": settings})
    with limit_threads(recipe.train.threads):
        trained = _fit(recipe, training, job)
    chances = _measure(ClaimChecker(job.output), held_out, job)
    labels = np.array([claim.is_supported for claim in held_out])
    threshold = _choose_threshold(chances, labels, recipe.precision)
    figures = _summarize(chances, labels, threshold)
    _report(figures, recipe.precision, job)
    _write_config(recipe, threshold, job)
    return job.finish(
        "checkpoint",
        parents=[
            *(make_parent("claims", Path(path), job.out) for path in recipe.claims),
            describe_base(recipe.base),
            *([_describe_start(recipe.start, job)] if recipe.start is not None else []),
        ],
        origin=Origin("synthetic").then(Link("rag.checker")).to_json(),
        details={"train": trained, "checker": True, "validation": figures},
    )


def _read_claims(path: Path, warn: Callable[[str], None]) -> Iterator[LabeledClaim]:
    """Yield the claims of a file of JSON lines; ``warn`` receives the fields that are not read.

    Raises:
        DataError: If the file holds none, or a line is none.
    """
    try:
        lines = require_file(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _claims_error(str(error), str(path), "check the path") from error
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise _claims_error("the file is empty", str(path), "add lines, or leave the file out")
    ignored = Counter[str]()
    for number, line in rows:
        yield _read_claim(line, f"{path}:{number}", ignored)
    if ignored:
        fields = ", ".join(f"{name!r} ({count})" for name, count in ignored.most_common())
        warn(f"{path}: fields that no claim has, not used, by number of lines: {fields}")


def _read_claim(line: str, where: str, ignored: Counter[str]) -> LabeledClaim:
    try:
        row: Mapping[str, Any] = load_json(line)
        ignored.update(set(row) - _FIELDS)
        text, passage, label = (row[name] for name in ("claim", "passage", "supported"))
        title, name = row.get("title") or "", row.get("document") or ""
        if not all(isinstance(value, str) for value in (text, passage, title, name)):
            raise TypeError("claim, passage, title or document is not a text")
        if not (text.strip() and passage.strip()):
            raise ValueError("claim or passage is empty")
        if not isinstance(label, bool):
            raise TypeError("supported is neither true nor false")
        spans = tuple(_read_span(span, len(text)) for span in row.get("unsupported") or ())
        if spans and label:
            raise ValueError("a supported claim has unsupported characters")
    except (ValueError, LookupError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, LookupError) else str(error)
        raise _claims_error(what, where, "correct the line") from error
    document, id = name or digest_text(passage), digest_text(json.dumps([text, title, passage]))
    return LabeledClaim(id, text, title, passage, document, label, spans)


def _read_span(span: Sequence[Any], length: int) -> Span:
    start, end = span
    if not (type(start) is type(end) is int and 0 <= start < end <= length):
        raise ValueError(f"unsupported {span} is not a span of the claim's {length} characters")
    return start, end


def _claims_error(what: str, where: str, next: str) -> DataError:
    return DataError(
        what,
        code="data.no-claims",
        where=where,
        expected='{"claim": TEXT, "passage": TEXT, "supported": true or false}',
        next=next,
    )


def _split(
    claims: Sequence[LabeledClaim], share: float, seed: int
) -> tuple[list[LabeledClaim], list[LabeledClaim]]:
    """Return the claims that train, and those about the held-out share of the documents."""
    documents = sorted(
        {claim.document for claim in claims}, key=lambda name: digest_text(f"{seed}:{name}")
    )
    held = set(documents[: max(1, round(share * len(documents)))])
    parts: tuple[list[LabeledClaim], list[LabeledClaim]] = ([], [])
    for claim in claims:
        parts[claim.document in held].append(claim)
    return parts


def _fit(recipe: CheckerRecipe, claims: Sequence[LabeledClaim], job: Job) -> dict[str, Any]:
    """Train and write the checker without its threshold; return a summary."""
    from safetensors.numpy import save_file

    lora = recipe.train.lora
    plain, device = open_base(recipe.base), choose_device("auto")
    encoder = load_encoder(resolve_checkpoint(recipe.base), not_embedder_error)[1]
    network = ClaimNetwork(encoder, lora, recipe.seed)
    if recipe.start is not None:
        network.load(*find_start(recipe.start), base=recipe.base, alpha=lora.alpha)
    network.to(device)
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
    _write_config(recipe, 0.5, job)
    return asdict(summary)


def _write_config(recipe: CheckerRecipe, threshold: float, job: Job) -> None:
    lora = recipe.train.lora
    config = {"base": recipe.base, "rank": lora.rank, "alpha": lora.alpha, "threshold": threshold}
    with atomic_write(job.output / CONFIG_FILE) as file:
        json.dump(config, file, indent=1, sort_keys=True)
        file.write("\n")


def _describe_start(reference: str, job: Job) -> Parent:
    weights = find_start(reference)[1]
    if (Path(reference) / ARTIFACT_FILE).is_file():
        return make_parent("start", Path(reference), job.out)
    return Parent("start", reference, digest_file(weights))


def _measure(
    checker: ClaimChecker, claims: Sequence[LabeledClaim], job: Job
) -> NDArray[np.float64]:
    """Return the probability of support of each claim."""
    chances = []
    with job.phase("validate", len(claims), "claims") as progress:
        for claim in claims:
            job.check_cancelled()
            chances.append(checker.measure(claim.text, claim.title, claim.passage))
            progress.advance()
    return np.array(chances)


def _choose_threshold(
    chances: NDArray[np.float64], labels: NDArray[np.bool_], precision: float
) -> float:
    """Return the lowest threshold that reaches a precision; 1 if none does.

    It is rounded down, lest the claim that reaches it falls below it, and never 0, the score of a
    claim with a wrong number or name.
    """
    lowered = np.maximum(np.floor(chances * 1e6), 1) / 1e6
    order = np.argsort(-lowered, kind="stable")
    shares = np.cumsum(labels[order]) / np.arange(1, len(labels) + 1)
    is_last = np.append(np.diff(lowered[order]) != 0, True)  # equal ones are supported together
    reached = np.flatnonzero((shares >= precision) & is_last)
    return float(lowered[order[reached[-1]]]) if len(reached) else 1.0


def _summarize(
    chances: NDArray[np.float64], labels: NDArray[np.bool_], threshold: float
) -> dict[str, Any]:
    """Return the area under the ROC curve of held-out claims, and what the threshold does."""
    called = chances >= threshold
    right, wrong = chances[labels], chances[~labels]
    wins = (right[:, None] > wrong[None, :]).mean() + (right[:, None] == wrong[None, :]).mean() / 2
    return {
        "claims": len(labels),
        "area": round(float(wins), 4),
        "threshold": threshold,
        "supported_true": float(called[labels].mean()),
        "supported_wrong": float(called[~labels].mean()),
        "precision": float(labels[called].mean()) if called.any() else None,
    }


def _report(figures: Mapping[str, Any], precision: float, job: Job) -> None:
    """Say how good the checker is, and warn of one that supports nothing."""
    job.say(
        f"{count_noun(figures['claims'], 'claim')} about other passages: area under the ROC curve "
        f"{figures['area']:.3f}; supported: {figures['supported_true']:.3f} of the true ones, "
        f"{figures['supported_wrong']:.3f} of the wrong ones"
    )
    if figures["precision"] is None:
        job.warn(
            f"no threshold reaches a precision of {precision}: only sentences that a "
            "passage has word for word will be supported; give more claims, or lower precision"
        )
