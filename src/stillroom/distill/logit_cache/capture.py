"""Capture of teacher logits, with its cost estimate and the verification of a cache.

One lesson at a time: a batch of several would round differently, and what is kept must not depend
on which lessons were captured before. Draws have one random number a position, which follows from
the seed, the record's tokens and the position alone.

The mass that top-k leaves outside, and the noise of drawn tokens, are computed from the teacher's
whole distributions at the probed positions; sizes are exact.

Digests tell damage; only the teacher can tell words that were never its own: another checkpoint of
the same name, rows one position late, a vocabulary mixed up.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from stillroom.checkpoints import Checkpoint
from stillroom.distill.data.tokenized import TokenizedRecord, make_batch
from stillroom.distill.logit_cache.cache import LogitCache, digest_tokens
from stillroom.distill.logit_cache.storage import UNKNOWN, CacheHeader, row_bytes, row_dtype
from stillroom.distill.losses.lm_head import CHUNK_ROWS, LMHead, compute_teacher_hidden
from stillroom.distill.losses.targets import TILE_ROWS, reduce_to_top_k, sample_distinct
from stillroom.errors import DataError, IntegrityError, RecipeError
from stillroom.jobs import Job
from stillroom.models import load_causal_lm, resolve_checkpoint
from stillroom.provenance import digest_json
from stillroom.train.precision import autocast_body, matmul_dtype

__all__ = [
    "CacheCost",
    "CacheVerification",
    "LogitCapturer",
    "capture_teacher",
    "estimate_cache_cost",
    "rescore",
    "verify_cache",
]


def capture_teacher(
    teacher: nn.Module, lessons: Sequence[TokenizedRecord], cache: LogitCache, job: Job
) -> int:
    """Run the teacher over every lesson that the cache lacks.

    Args:
        teacher: In evaluation mode.
        lessons: What to capture.
        cache: Where to.
        job: For progress and cancellation.

    Returns:
        How many lessons were captured now.

    Raises:
        DataError: If the teacher gives a number that is not finite; record and position are named.
        ResourceError: If another process is adding to the cache, or the disk is full.
        Cancelled: If the user asked for it; what was captured is kept.
    """
    if not cache.lacking(lessons):
        return 0
    scorer = LogitCapturer(teacher, cache.header)
    with cache.writing():
        missing = cache.lacking(lessons)
        tokens = sum(len(lesson.ids) for lesson in missing)
        with job.phase("teacher", tokens, "tokens") as progress:
            for lesson in missing:
                job.check_cancelled()
                cache.add(lesson, scorer.rows(lesson))
                progress.advance(len(lesson.ids))
    return len(missing)


@dataclass(slots=True)
class LogitCapturer:
    """A teacher that says its words in the form of a cache."""

    teacher: nn.Module
    header: CacheHeader
    _head: LMHead = field(init=False, repr=False)
    _operand: Tensor = field(init=False, repr=False)
    _space: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Cut the teacher's head to the vocabulary."""
        self._head = LMHead.of(self.teacher, self.header.vocabulary)
        self._operand = self._head.operand(matmul_dtype(self.header.precision)).detach()
        full = torch.promote_types(self._operand.dtype, torch.float32)
        self._space = self._operand.new_empty(CHUNK_ROWS, self._head.rows, dtype=full)

    def rows(self, lesson: TokenizedRecord) -> npt.NDArray[np.void]:
        """Return what the cache keeps of one lesson, (N,) of the header's ``row_dtype``.

        Raises:
            DataError: If the teacher gives a number that is not finite.
        """
        rows = np.zeros(len(lesson.positions), dtype=row_dtype(self.header))
        offsets = self._offsets(lesson)
        for start, logits in self.chunks(lesson):
            tile = TILE_ROWS if logits.device.type == "cpu" else len(logits)
            for at in range(0, len(logits), tile):
                part = slice(start + at, start + at + tile)
                with torch.no_grad():
                    found = self._condense(logits[at : at + tile], offsets[part])
                for name, values in found.items():
                    rows[name][part] = values.cpu().numpy()
        return rows

    def chunks(self, lesson: TokenizedRecord) -> Iterator[tuple[int, Tensor]]:
        """Return the teacher's logits at the lesson's positions, a chunk of rows at a time.

        Each comes with its first row: (n, V), divided by the header's temperature, in space that
        the next one overwrites.

        Raises:
            DataError: If the teacher gives a number that is not finite.
        """
        header, device = self.header, self._operand.device
        batch = make_batch([lesson], None, device)
        with autocast_body(header.precision, device):
            hidden = compute_teacher_hidden(self.teacher, batch.input_ids, batch.flat)
        for start in range(0, len(hidden), CHUNK_ROWS):
            part = hidden[start : start + CHUNK_ROWS]
            with torch.no_grad():
                raw = self._head.project(part, self._operand, self._space[: len(part)])
                logits = self._head.shape_logits(raw)
                if header.temperature != 1:
                    logits = logits.div_(header.temperature)
            _check_finite(logits.sum(-1), lesson, start)  # inf and nan survive a sum
            yield start, logits

    def _condense(self, logits: Tensor, offsets: Tensor) -> Mapping[str, Tensor]:
        if self.header.mode == "dense":
            return {"logprobs": torch.log_softmax(logits, -1)}
        if self.header.mode == "top_k":
            return reduce_to_top_k(logits, self.header.width)
        drawn = sample_distinct(
            logits,
            self.header.width,
            offsets.to(logits.device),
            sampling_temperature=self.header.sampling_temperature,
        )
        return {"ids": drawn.ids, "logprobs": drawn.logprobs, "scale": drawn.scale}

    def _offsets(self, lesson: TokenizedRecord) -> Tensor:
        seed = int(digest_json(["draw", self.header.seed, digest_tokens(lesson.ids)])[:15], 16)
        drawn = torch.rand(len(lesson.ids), generator=torch.Generator().manual_seed(seed))
        return drawn[torch.from_numpy(lesson.positions)]


def _check_finite(sums: Tensor, lesson: TokenizedRecord, start: int) -> None:
    fine = sums.isfinite()
    if not bool(fine.all()):
        position = int(lesson.positions[start + int((~fine).nonzero()[0])])
        where = f"record {lesson.record_id}, position {position}"
        raise DataError(
            f"the teacher's logits at {where} are not finite",
            code="distill.teacher-not-finite",
            where=where,
            expected="finite numbers",
            next="set train.precision to float32, or check the teacher's weights",
        )


_PROBED_RECORDS = 4


_PROBED_POSITIONS = 128


@dataclass(frozen=True, slots=True)
class CacheCost:
    """Size and fidelity of a cache that is not there yet.

    Args:
        mode: Of the cache.
        bytes_per_position: All bytes over all positions, token ids included.
        size_bytes: Of what is still to be captured.
        positions: How many those are.
        probed: How many positions the rest was measured on.
        outside: Mean mass outside the k likeliest tokens; mode top_k only.
        noise: Root of the mean squared distance between a drawn row and the teacher's distribution,
            as vectors of probabilities; mode sampled only. It is the noise of the gradient of a
            position's forward KL by the logits.
        noise_replaced: The same of as many draws with replacement.
    """

    mode: str
    bytes_per_position: float
    size_bytes: int
    positions: int
    probed: int
    outside: float | None = None
    noise: float | None = None
    noise_replaced: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)

    def __str__(self) -> str:
        """Return it as one sentence."""
        line = (
            f"the teacher's words take {self.bytes_per_position:.1f} bytes a position, "
            f"{_format_size(self.size_bytes)} for {self.positions} positions"
        )
        if self.outside is not None:
            return (
                f"{line}; {self.outside:.2%} of its mass lies outside what is kept (on "
                f"{self.probed} positions), which counts as one outcome"
            )
        if self.noise is not None:
            return (
                f"{line}; no bias, and noise of {self.noise:.3f} in a position's gradient (on "
                f"{self.probed} positions; draws with replacement: {self.noise_replaced:.3f})"
            )
        return line


def estimate_cache_cost(
    teacher: nn.Module, header: CacheHeader, missing: Sequence[TokenizedRecord]
) -> CacheCost:
    """Return what capturing these lessons costs, and how far what is kept is from the teacher.

    Args:
        teacher: In evaluation mode.
        header: Of the cache.
        missing: What would be captured; the first few records are probed.

    Raises:
        DataError: If the teacher gives a number that is not finite.
    """
    row, token = row_bytes(header)
    positions = sum(len(lesson.positions) for lesson in missing)
    size = row * positions + token * sum(len(lesson.ids) for lesson in missing)
    sums, probed = dict.fromkeys(("outside", "noise", "replaced"), 0.0), 0
    if header.mode in ("top_k", "sampled"):
        scorer = LogitCapturer(teacher, header)
        for lesson in itertools.islice(missing, _PROBED_RECORDS):
            short = TokenizedRecord(
                lesson.record_id, lesson.ids, lesson.positions[:_PROBED_POSITIONS]
            )
            for _, logits in scorer.chunks(short):
                probed += len(logits)
                for name, value in _measure_rows(header, logits).items():
                    sums[name] += value
    means = {name: total / probed if probed else 0.0 for name, total in sums.items()}
    is_drawn = header.mode == "sampled"
    return CacheCost(
        header.mode,
        size / positions if positions else float(row),
        size,
        positions,
        probed,
        outside=means["outside"] if header.mode == "top_k" else None,
        noise=math.sqrt(means["noise"]) if is_drawn else None,
        noise_replaced=math.sqrt(means["replaced"]) if is_drawn else None,
    )


def _measure_rows(header: CacheHeader, logits: Tensor) -> dict[str, float]:
    """Return sums over rows: mass outside top-k; squared noise of draws, distinct or replaced."""
    if header.mode == "top_k":
        return {"outside": float(reduce_to_top_k(logits, header.width)["tail"].exp().sum())}
    heat = header.sampling_temperature
    offsets = torch.full((len(logits),), 0.5, device=logits.device)
    drawn = sample_distinct(logits, header.width, offsets, sampling_temperature=heat)
    own = torch.log_softmax(logits, -1)
    chance = (own / heat + drawn.scale.unsqueeze(-1)).clamp_max(0)
    replaced = (2 * own - torch.log_softmax(own / heat, -1)).exp().sum() - own.mul(2).exp().sum()
    return {
        "noise": float(((2 * own - chance).exp() - own.mul(2).exp()).sum()),
        "replaced": float(replaced) / header.width,
    }


def _format_size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


_TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1, UNKNOWN: 0.5}


_HALF_STEP = 2.0**-11  # float16 rounds by at most this share


_MIN_LOGPROB = -30.0  # what is less likely than e^-30 is not compared


@dataclass(frozen=True, slots=True)
class CacheVerification:
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


def verify_cache(
    folder: Path,
    *,
    teacher: str = "",
    records: int = 8,
    seed: int = 0,
    tolerance: float | None = None,
    say: Callable[[str], None] | None = None,
) -> CacheVerification:
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
    with LogitCache.open(folder) as cache:
        intact = cache.verify()
        allowed = _TOLERANCES.get(cache.header.precision, 0.5) if tolerance is None else tolerance
        if not records:
            return CacheVerification(intact, 0, 0, 0.0, 0.0, "", allowed)
        model = _load_teacher(cache, teacher or str(cache.header.about.get("reference") or ""), say)
        lessons = list(cache.lessons())
        chosen = random.Random(seed).sample(lessons, min(records, len(lessons)))
        return rescore(cache, model, chosen, intact=intact, tolerance=allowed)


def rescore(
    cache: LogitCache,
    teacher: nn.Module,
    lessons: list[TokenizedRecord],
    *,
    intact: int = 0,
    tolerance: float = 0.0,
) -> CacheVerification:
    """Return how far the rows of these lessons are from what a teacher says now."""
    scorer = LogitCapturer(teacher, cache.header)
    largest, where, total, count = 0.0, "", 0.0, 0
    for lesson in lessons:
        rows = cache.read(lesson)
        for start, logits in scorer.chunks(lesson):
            with torch.no_grad():
                part = slice(start, start + len(logits))
                apart = _measure_differences(cache, rows[part], lesson.labels[part], logits)
            total, count = total + float(apart.mean(-1).sum()), count + len(apart)
            worst = apart.amax(-1)
            at = int(worst.argmax())
            if not float(worst[at]) <= largest:
                largest = float(worst[at])
                where = f"record {lesson.record_id}, position {int(lesson.positions[start + at])}"
    mean = total / count if count else 0.0
    return CacheVerification(intact, len(lessons), count, largest, mean, where, tolerance)


def _measure_differences(cache: LogitCache, rows: Any, labels: Any, logits: Tensor) -> Tensor:
    """Return differences beyond rounding, (n, columns)."""
    header, said = cache.header, torch.log_softmax(logits, -1)
    if header.mode == "own":
        kept = torch.from_numpy(rows["logprob"].copy()).to(said.device).unsqueeze(-1)
        return _exceed_rounding(
            kept, said.gather(-1, torch.from_numpy(labels).to(said.device)[:, None]), 0
        )
    rounding = _HALF_STEP if header.logprob_dtype == "float16" else 0.0
    kept = torch.from_numpy(rows["logprobs"].astype(np.float32)).to(said.device)
    if header.mode == "dense":
        return _exceed_rounding(kept, said, rounding)
    ids = torch.from_numpy(rows["ids"].astype(np.int64)).to(said.device)
    found = _exceed_rounding(
        kept, said.gather(-1, ids).masked_fill(kept.isneginf(), -torch.inf), rounding
    )
    if header.mode == "sampled":
        return found
    tail = torch.from_numpy(rows["tail"].copy()).to(said.device).unsqueeze(-1)
    rest = said.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([found, _exceed_rounding(tail.exp(), rest.exp(), rounding)], -1)


def _exceed_rounding(kept: Tensor, said: Tensor, rounding: float) -> Tensor:
    """Return how far two sides are apart, less what storing rounds."""
    kept, said = kept.clamp_min(_MIN_LOGPROB), said.clamp_min(_MIN_LOGPROB)
    return ((kept - said).abs() - rounding * said.abs()).clamp_min(0)


def _load_teacher(
    cache: LogitCache, reference: str, say: Callable[[str], None] | None
) -> nn.Module:
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
