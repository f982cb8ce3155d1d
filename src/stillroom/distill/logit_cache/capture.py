"""Capture of teacher logits (offline distillation), with its cost and a cache's verification.

Records are captured one at a time: a batch would round differently, and cached rows must not depend
on which records were captured before. Sampled targets use one random number per position, derived
from the seed, the record's tokens and the position.

The mass outside the top k and the noise of sampled tokens are computed from the teacher's full
distributions at probed positions; sizes are exact.

Digests detect damaged bytes. Rescoring by the teacher detects rows that never were its own: another
checkpoint of the same name, an offset of one position, a permuted vocabulary.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
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
from stillroom.jobs.preflight import format_size
from stillroom.models import load_model_only, resolve_checkpoint
from stillroom.provenance import digest_json
from stillroom.train.precision import autocast_body, matmul_dtype

__all__ = [
    "CacheCost",
    "CacheVerification",
    "LogitCapturer",
    "add_missing",
    "capture_teacher",
    "cast_linear_layers",
    "estimate_cache_cost",
    "verify_cache",
]


def capture_teacher(
    teacher: nn.Module, records: Sequence[TokenizedRecord], cache: LogitCache, job: Job
) -> int:
    """Run the teacher over every record missing from the cache.

    Returns:
        The number of records captured by this call.

    Raises:
        DataError: If a teacher's logit is not finite; record and position are named.
        ResourceError: If another process is writing to the cache, or the disk is full.
        Cancelled: If cancellation was requested; captured records are kept.
    """
    return add_missing(records, cache, job, LogitCapturer(teacher, cache.header).rows)


def add_missing(
    records: Sequence[TokenizedRecord],
    cache: LogitCache,
    job: Job,
    compute_rows: Callable[[TokenizedRecord], npt.NDArray[np.void]],
) -> int:
    """Add every record missing from the cache, with progress, and return their number."""
    if not cache.lacking(records):
        return 0
    with cache.writing():
        missing = cache.lacking(records)
        tokens = sum(len(record.ids) for record in missing)
        with job.phase("teacher", tokens, "tokens") as progress:
            for record in missing:
                job.check_cancelled()
                cache.add(record, compute_rows(record))
                progress.advance(len(record.ids))
    return len(missing)


@dataclass(slots=True)
class LogitCapturer:
    """Capturer of a teacher's outputs in the format of a cache."""

    teacher: nn.Module
    header: CacheHeader
    _head: LMHead = field(init=False, repr=False)
    _operand: Tensor = field(init=False, repr=False)
    _space: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Truncate the teacher's head to the vocabulary."""
        self._head = LMHead.of(self.teacher, self.header.vocabulary)
        self._operand = self._head.operand(matmul_dtype(self.header.precision)).detach()
        full = torch.promote_types(self._operand.dtype, torch.float32)
        self._space = self._operand.new_empty(CHUNK_ROWS, self._head.rows, dtype=full)

    def rows(self, record: TokenizedRecord) -> npt.NDArray[np.void]:
        """Return the cache rows of one record, (N,) of the header's ``row_dtype``.

        Raises:
            DataError: If a teacher's logit is not finite.
        """
        rows = np.zeros(len(record.positions), dtype=row_dtype(self.header))
        offsets = self._offsets(record)
        for start, logits in self.chunks(record):
            tile = TILE_ROWS if logits.device.type == "cpu" else len(logits)
            for offset in range(0, len(logits), tile):
                part = slice(start + offset, start + offset + tile)
                with torch.no_grad():
                    found = self._condense(logits[offset : offset + tile], offsets[part])
                for name, array in found.items():
                    rows[name][part] = array.cpu().numpy()
        return rows

    def chunks(self, record: TokenizedRecord) -> Iterator[tuple[int, Tensor]]:
        """Yield the teacher's logits at the record's positions, a block of rows at a time.

        Each block is yielded with its first row: (n, V), divided by the header's temperature, in a
        buffer that the next block overwrites.

        Raises:
            DataError: If a teacher's logit is not finite.
        """
        header, device = self.header, self._operand.device
        batch = make_batch([record], None, device)
        with autocast_body(header.precision, device):
            hidden = compute_teacher_hidden(self.teacher, batch.input_ids, batch.flat)
        for start in range(0, len(hidden), CHUNK_ROWS):
            part = hidden[start : start + CHUNK_ROWS]
            with torch.no_grad():
                raw = self._head.project(part, self._operand, self._space[: len(part)])
                logits = self._head.shape_logits(raw)
                if header.temperature != 1:
                    logits = logits.div_(header.temperature)
            _check_finite(logits.sum(-1), record, start)  # inf and nan survive a sum
            yield start, logits

    def _condense(self, logits: Tensor, offsets: Tensor) -> Mapping[str, Tensor]:
        if self.header.mode == "dense":
            return {"logprobs": torch.log_softmax(logits, -1)}
        if self.header.mode == "top_k":
            return reduce_to_top_k(logits, self.header.width)
        samples = sample_distinct(
            logits,
            self.header.width,
            offsets.to(logits.device),
            sampling_temperature=self.header.sampling_temperature,
        )
        return {"ids": samples.ids, "logprobs": samples.logprobs, "scale": samples.scale}

    def _offsets(self, record: TokenizedRecord) -> Tensor:
        seed = int(digest_json(["draw", self.header.seed, digest_tokens(record.ids)])[:15], 16)
        numbers = torch.rand(len(record.ids), generator=torch.Generator().manual_seed(seed))
        return numbers[torch.from_numpy(record.positions)]


def _check_finite(sums: Tensor, record: TokenizedRecord, start: int) -> None:
    is_finite = sums.isfinite()
    if not bool(is_finite.all()):
        position = int(record.positions[start + int((~is_finite).nonzero()[0])])
        where = f"record {record.record_id}, position {position}"
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
    """Size and accuracy of a cache to be captured.

    Args:
        mode: Mode of the cache.
        bytes_per_position: All bytes over all positions, token ids included.
        size_bytes: Size of the missing records.
        positions: Number of missing positions.
        probed: Number of positions used for the following estimates.
        outside: Mean mass outside the k most likely tokens; mode top_k only.
        noise: Root mean squared distance between a sampled row and the teacher's distribution, as
            vectors of probabilities; mode sampled only. Equals the noise of the gradient of a
            position's forward KL by the logits.
        noise_replaced: Noise of the same number of samples with replacement.
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
        """Return the estimates by name."""
        return asdict(self)

    def __str__(self) -> str:
        """Return a one-sentence summary."""
        line = (
            f"the teacher's outputs take {self.bytes_per_position:.1f} bytes per position, "
            f"{format_size(self.size_bytes)} for {self.positions} positions"
        )
        if self.outside is not None:
            return (
                f"{line}; {self.outside:.2%} of the mass is outside of the top k (on "
                f"{self.probed} positions), which counts as one outcome"
            )
        if self.noise is not None:
            return (
                f"{line}; unbiased, with noise of {self.noise:.3f} in a position's gradient (on "
                f"{self.probed} positions; samples with replacement: {self.noise_replaced:.3f})"
            )
        return line


def estimate_cache_cost(
    teacher: nn.Module, header: CacheHeader, missing: Sequence[TokenizedRecord]
) -> CacheCost:
    """Estimate the size of capturing these records, and the accuracy of the cached rows.

    Args:
        teacher: Model in evaluation mode.
        header: Header of the cache.
        missing: Records to capture; the first few are probed.

    Raises:
        DataError: If a teacher's logit is not finite.
    """
    row, token = row_bytes(header)
    positions = sum(len(record.positions) for record in missing)
    size = row * positions + token * sum(len(record.ids) for record in missing)
    sums, probed = dict.fromkeys(("outside", "noise", "replaced"), 0.0), 0
    if header.mode in ("top_k", "sampled"):
        capturer = LogitCapturer(teacher, header)
        for record in itertools.islice(missing, _PROBED_RECORDS):
            truncated = TokenizedRecord(
                record.record_id, record.ids, record.positions[:_PROBED_POSITIONS]
            )
            for _, logits in capturer.chunks(truncated):
                probed += len(logits)
                for name, value in _measure_rows(header, logits).items():
                    sums[name] += value
    means = {name: total / probed if probed else 0.0 for name, total in sums.items()}
    is_sampled = header.mode == "sampled"
    return CacheCost(
        header.mode,
        size / positions if positions else float(row),
        size,
        positions,
        probed,
        outside=means["outside"] if header.mode == "top_k" else None,
        noise=math.sqrt(means["noise"]) if is_sampled else None,
        noise_replaced=math.sqrt(means["replaced"]) if is_sampled else None,
    )


def _measure_rows(header: CacheHeader, logits: Tensor) -> dict[str, float]:
    """Return sums over rows: mass outside top-k, or squared noise of both ways of sampling."""
    if header.mode == "top_k":
        return {"outside": float(reduce_to_top_k(logits, header.width)["tail"].exp().sum())}
    temperature = header.sampling_temperature
    offsets = torch.full((len(logits),), 0.5, device=logits.device)
    samples = sample_distinct(logits, header.width, offsets, sampling_temperature=temperature)
    logprobs = torch.log_softmax(logits, -1)
    chance = (logprobs / temperature + samples.scale.unsqueeze(-1)).clamp_max(0)
    replaced = (
        2 * logprobs - torch.log_softmax(logprobs / temperature, -1)
    ).exp().sum() - logprobs.mul(2).exp().sum()
    return {
        "noise": float(((2 * logprobs - chance).exp() - logprobs.mul(2).exp()).sum()),
        "replaced": float(replaced) / header.width,
    }


_TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1, UNKNOWN: 0.5}
_HALF_STEP = 2.0**-11  # maximum relative rounding error of float16
_MIN_LOGPROB = -30.0  # lower log-probabilities are not compared


@dataclass(frozen=True, slots=True)
class CacheVerification:
    """Result of a verification; differences are in nats, minus the rounding of the stored type.

    Args:
        records: Number of records with correct digests.
        scored: Number of records rescored by the teacher.
        positions: Number of their positions.
        largest: Largest difference of a log-probability, or of the mass of a tail.
        mean: Mean difference.
        where: Record and position of the largest difference.
        tolerance: Allowed difference.
    """

    records: int
    scored: int
    positions: int
    largest: float
    mean: float
    where: str
    tolerance: float

    def to_json(self) -> dict[str, Any]:
        """Return the result by name."""
        return asdict(self)

    def __str__(self) -> str:
        """Return a summary of one or two lines."""
        line = f"{self.records} records are intact"
        if not self.scored:
            return line + "; none was rescored"
        place = f" at {self.where}" if self.where else ""
        return (
            f"{line}\n{self.scored} records ({self.positions} positions) rescored: largest "
            f"difference {self.largest:.5f} nats{place}, mean {self.mean:.6f}; "
            f"allowed {self.tolerance:g}"
        )

    def refuse_apart(self, folder: Path) -> None:
        """Raise if the teacher's outputs differ.

        Raises:
            IntegrityError: If the largest difference exceeds the tolerance.
        """
        if not self.largest <= self.tolerance:
            raise IntegrityError(
                f"the teacher's outputs differ from the cache by {self.largest:.4f} nats",
                code="distill.cache-apart",
                where=f"{folder} {self.where}",
                expected=f"at most {self.tolerance:g} nats",
                next="capture again; or raise --tolerance if the cache was made in another "
                "precision or by another engine",
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
    """Recompute all digests, and rescore a sample of the records.

    Args:
        folder: Folder of the cache.
        teacher: Reference of the teacher; empty uses the header's.
        records: Number of records to rescore; 0 needs no teacher.
        seed: Seed of the sample.
        tolerance: Allowed difference in nats; None derives it from the header's precision.
        say: Called with the location of the teacher.

    Raises:
        DataError: If there is no cache, or the teacher is another one.
        IntegrityError: If the bytes have changed, or the outputs differ.
        RecipeError: If the location of the teacher is unknown.
        CheckpointError: If it cannot be loaded.
    """
    with LogitCache.open(folder, on_damage=partial(_refuse_damage, folder)) as cache:
        intact = cache.verify()
        allowed = _TOLERANCES.get(cache.header.precision, 0.5) if tolerance is None else tolerance
        if not records:
            return CacheVerification(intact, 0, 0, 0.0, 0.0, "", allowed)
        model = _load_teacher(cache, teacher or str(cache.header.about.get("reference") or ""), say)
        stored = list(cache.records())
        sample = random.Random(seed).sample(stored, min(records, len(stored)))
        return _rescore(cache, model, sample, intact=intact, tolerance=allowed)


def _refuse_damage(folder: Path, damage: str) -> None:
    raise IntegrityError(
        damage,
        code="distill.cache-damaged",
        expected="the lines that the capture wrote",
        next=f"run the job again, which captures the lost records, or remove {folder}",
    )


def _rescore(
    cache: LogitCache,
    teacher: nn.Module,
    records: list[TokenizedRecord],
    *,
    intact: int = 0,
    tolerance: float = 0.0,
) -> CacheVerification:
    """Return the differences between the cached rows of records and a teacher's outputs."""
    capturer = LogitCapturer(teacher, cache.header)
    largest, where, total, count = 0.0, "", 0.0, 0
    for record in records:
        rows = cache.read(record)
        for start, logits in capturer.chunks(record):
            with torch.no_grad():
                part = slice(start, start + len(logits))
                differences = _measure_differences(cache, rows[part], record.labels[part], logits)
            total, count = total + float(differences.mean(-1).sum()), count + len(differences)
            worst = differences.amax(-1)
            row = int(worst.argmax())
            if not float(worst[row]) <= largest:
                largest = float(worst[row])
                where = f"record {record.record_id}, position {int(record.positions[start + row])}"
    mean = total / count if count else 0.0
    return CacheVerification(intact, len(records), count, largest, mean, where, tolerance)


def _measure_differences(cache: LogitCache, rows: Any, labels: Any, logits: Tensor) -> Tensor:
    """Return differences in excess of rounding, (n, columns)."""
    header, logprobs = cache.header, torch.log_softmax(logits, -1)
    if header.mode == "own":
        stored = torch.from_numpy(rows["logprob"].copy()).to(logprobs.device).unsqueeze(-1)
        return _exceed_rounding(
            stored, logprobs.gather(-1, torch.from_numpy(labels).to(logprobs.device)[:, None]), 0
        )
    rounding = _HALF_STEP if header.logprob_dtype == "float16" else 0.0
    stored = torch.from_numpy(rows["logprobs"].astype(np.float32)).to(logprobs.device)
    if header.mode == "dense":
        return _exceed_rounding(stored, logprobs, rounding)
    ids = torch.from_numpy(rows["ids"].astype(np.int64)).to(logprobs.device)
    differences = _exceed_rounding(
        stored, logprobs.gather(-1, ids).masked_fill(stored.isneginf(), -torch.inf), rounding
    )
    if header.mode == "sampled":
        return differences
    tail = torch.from_numpy(rows["tail"].copy()).to(logprobs.device).unsqueeze(-1)
    outside = logprobs.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([differences, _exceed_rounding(tail.exp(), outside.exp(), rounding)], -1)


def _exceed_rounding(stored: Tensor, current: Tensor, rounding: float) -> Tensor:
    """Return the absolute difference minus the rounding of storage."""
    stored, current = stored.clamp_min(_MIN_LOGPROB), current.clamp_min(_MIN_LOGPROB)
    return ((stored - current).abs() - rounding * current.abs()).clamp_min(0)


def _load_teacher(
    cache: LogitCache, reference: str, say: Callable[[str], None] | None
) -> nn.Module:
    if not reference:
        raise RecipeError(
            "the location of this cache's teacher is unknown",
            code="distill.no-teacher",
            where=str(cache.folder / "header.json"),
            expected="a teacher for rescoring",
            next="add --teacher REFERENCE, or --records 0 to check digests only",
        )
    path = resolve_checkpoint(reference, say=say)
    fingerprint = Checkpoint.open(path).fingerprint
    if fingerprint != cache.header.teacher:
        raise DataError(
            f"{reference} is another teacher: its fingerprint is {fingerprint[:16]}",
            code="distill.cache-mismatch",
            where=f"{cache.folder / 'header.json'} teacher",
            expected=cache.header.teacher[:16],
            next="pass the teacher of the cache",
        )
    model: nn.Module = load_model_only(path, dtype="float32")
    return cast_linear_layers(model) if cache.header.precision == "bfloat16" else model


def cast_linear_layers(model: nn.Module) -> nn.Module:
    """Cast the linear layers of a causal model to bfloat16 in place, except the head."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            module.to(torch.bfloat16)
    return model
