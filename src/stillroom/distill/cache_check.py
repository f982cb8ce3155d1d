"""Whether a cache is intact, and whether its rows are what its teacher says.

Digests tell damage; only the teacher can tell words that were never its own: another checkpoint of
the same name, rows one position late, a vocabulary mixed up.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.checkpoints import Checkpoint
from stillroom.distill.cache import TeacherCache
from stillroom.distill.cache_header import UNKNOWN
from stillroom.distill.capture import Scorer
from stillroom.distill.encode import Lesson
from stillroom.errors import DataError, IntegrityError, RecipeError
from stillroom.models import load_causal_lm, resolve_checkpoint

__all__ = ["CacheCheck", "check_cache", "score_again"]

_TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1, UNKNOWN: 0.5}
_HALF_STEP = 2.0**-11  # float16 rounds by at most this share
_LEAST = -30.0  # what is less likely than e^-30 is not compared


@dataclass(frozen=True, slots=True)
class CacheCheck:
    """What checking found; differences are in nats, rounding of the stored type taken off.

    Args:
        records: Whose digests are right.
        scored: Records that the teacher scored again.
        positions: Of those.
        largest: Largest difference of a log-probability, or of the logarithm of a tail.
        mean: Mean difference.
        where: The record and position of the largest.
        tolerance: What is allowed.
    """

    records: int
    scored: int
    positions: int
    largest: float
    mean: float
    where: str
    tolerance: float

    def to_json(self) -> dict[str, Any]:
        """Return it by name."""
        return asdict(self)

    def __str__(self) -> str:
        """Return it in one or two lines."""
        line = f"{self.records} records are intact"
        if not self.scored:
            return line + "; none was scored again"
        return (
            f"{line}\n{self.scored} records ({self.positions} positions) scored again: largest "
            f"difference {self.largest:.5f} nats at {self.where}, mean {self.mean:.6f}; "
            f"allowed {self.tolerance:g}"
        )

    def refuse_apart(self, folder: Path) -> None:
        """Fail where the teacher says something else.

        Raises:
            IntegrityError: If the largest difference is above the tolerance.
        """
        if not self.largest <= self.tolerance:
            raise IntegrityError(
                f"the teacher says something else: {self.largest:.4f} nats apart",
                code="distill.cache-apart",
                where=f"{folder} {self.where}",
                expected=f"at most {self.tolerance:g} nats",
                next="capture again; or allow more with --tolerance if the cache was made in "
                "another precision or by another engine",
            )


def check_cache(
    folder: Path,
    *,
    teacher: str = "",
    records: int = 8,
    seed: int = 0,
    tolerance: float | None = None,
    say: Callable[[str], None] | None = None,
) -> CacheCheck:
    """Recompute all digests, and score a sample of the records again.

    Args:
        folder: The cache.
        teacher: A reference to it; empty takes what the header says.
        records: How many are scored; 0 needs no teacher.
        seed: Of the choice.
        tolerance: In nats; None follows from the header's precision.
        say: Told where the teacher was found.

    Raises:
        DataError: If there is no cache, or the teacher is another one.
        IntegrityError: If bytes are not what was written.
        RecipeError: If nobody says where the teacher is.
        CheckpointError: If it cannot be loaded.
    """
    with TeacherCache.open(folder) as cache:
        intact = cache.verify()
        allowed = _TOLERANCES.get(cache.header.precision, 0.5) if tolerance is None else tolerance
        if not records:
            return CacheCheck(intact, 0, 0, 0.0, 0.0, "", allowed)
        model = _load(cache, teacher or str(cache.header.about.get("reference") or ""), say)
        lessons = list(cache.lessons())
        chosen = random.Random(seed).sample(lessons, min(records, len(lessons)))
        return score_again(cache, model, chosen, intact=intact, tolerance=allowed)


def score_again(
    cache: TeacherCache,
    teacher: nn.Module,
    lessons: list[Lesson],
    *,
    intact: int = 0,
    tolerance: float = 0.0,
) -> CacheCheck:
    """Return how far the rows of these lessons are from what a teacher says now."""
    scorer = Scorer(teacher, cache.header)
    largest, where, total, count = 0.0, "", 0.0, 0
    for lesson in lessons:
        rows = cache.read(lesson)
        for start, logits in scorer.chunks(lesson):
            with torch.no_grad():
                part = slice(start, start + len(logits))
                apart = _apart(cache, rows[part], lesson.labels[part], logits)
            total, count = total + float(apart.mean(-1).sum()), count + len(apart)
            worst = apart.amax(-1)
            at = int(worst.argmax())
            if not float(worst[at]) <= largest:
                largest = float(worst[at])
                where = f"record {lesson.record_id}, position {int(lesson.positions[start + at])}"
    mean = total / count if count else 0.0
    return CacheCheck(intact, len(lessons), count, largest, mean, where, tolerance)


def _apart(cache: TeacherCache, rows: Any, labels: Any, logits: Tensor) -> Tensor:
    """Return differences beyond rounding, (n, columns)."""
    header, said = cache.header, torch.log_softmax(logits, -1)
    if header.mode == "own":
        kept = torch.from_numpy(rows["logprob"].copy()).to(said.device).unsqueeze(-1)
        return _beyond(kept, said.gather(-1, torch.from_numpy(labels).to(said.device)[:, None]), 0)
    rounding = _HALF_STEP if header.logprob_dtype == "float16" else 0.0
    kept = torch.from_numpy(rows["logprobs"].astype(np.float32)).to(said.device)
    if header.mode == "dense":
        return _beyond(kept, said, rounding)
    ids = torch.from_numpy(rows["ids"].astype(np.int64)).to(said.device)
    found = _beyond(kept, said.gather(-1, ids).masked_fill(kept.isneginf(), -torch.inf), rounding)
    if header.mode == "sampled":
        return found
    tail = torch.from_numpy(rows["tail"].copy()).to(said.device).unsqueeze(-1)
    rest = said.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([found, _beyond(tail.exp(), rest.exp(), rounding)], -1)


def _beyond(kept: Tensor, said: Tensor, rounding: float) -> Tensor:
    """Return how far two sides are apart, less what storing rounds."""
    kept, said = kept.clamp_min(_LEAST), said.clamp_min(_LEAST)
    return ((kept - said).abs() - rounding * said.abs()).clamp_min(0)


def _load(cache: TeacherCache, reference: str, say: Callable[[str], None] | None) -> nn.Module:
    if not reference:
        raise RecipeError(
            "nobody says where the teacher of this cache is",
            code="distill.no-teacher",
            where=str(cache.folder / "header.json"),
            expected="a teacher to score the sample again",
            next="add --teacher REFERENCE, or --records 0 to check digests only",
        )
    path = resolve_checkpoint(reference, say=say)
    found = Checkpoint.open(path).fingerprint
    if found != cache.header.teacher:
        raise DataError(
            f"{reference} is another teacher: its fingerprint is {found[:16]}",
            code="distill.cache-mismatch",
            where=f"{cache.folder / 'header.json'} teacher",
            expected=cache.header.teacher[:16],
            next="give the teacher that the cache was made with",
        )
    model: nn.Module = load_causal_lm(path, dtype="float32")[0]
    if cache.header.precision == "bfloat16":
        head = model.get_output_embeddings()  # type: ignore[operator]
        for module in model.modules():
            if isinstance(module, nn.Linear) and module is not head:
                module.to(torch.bfloat16)
    return model
