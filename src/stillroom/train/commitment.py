"""Commitment of a training run's states, so that a stranger can recompute some of its steps.

After every N steps the job's journal ``train`` receives a row: the losses and records of those
steps, the digests of the weights and of the optimizer's moments after them, and the digest of the
row before. Some states are kept as safetensors in ``committed/``; a replay loads the nearest one
and takes the steps again (``stillroom.train.replay``).

N and the choice of kept states depend on the sizes of model and step alone, never on the clock: a
resumed run writes the same rows.

Source: Jia et al. 2021, "Proof-of-Learning", arXiv:2103.05633 (checkpoints of a training run, of
which a verifier repeats some intervals); here the bytes are compared, and targets and data are
recomputed from the job's recipe.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from stillroom.checkpoints.safetensors_format import read_header
from stillroom.errors import IntegrityError
from stillroom.jobs import Job, atomic_write
from stillroom.jobs.segments import COMMITTED_FOLDER
from stillroom.provenance import canonical_json, digest_json
from stillroom.train.checkpoint import named_buffers, named_trainable
from stillroom.train.replay import INITIAL_ROW, name_segment, name_state_file

__all__ = [
    "StateCommitter",
    "StepNote",
    "digest_tensors",
]

_MAX_SEGMENTS = 64
_MIN_SEGMENTS = 4
_SHARE = 0.02
# Measured on one core with SHA extensions: 9 ms to digest 16 MB, 20 ms to write them; a step of the
# reader (5,300 tokens, 24 million parameters) takes 4.6 s, one of a 260,000-parameter model 15 ms.
_COMMIT_SECONDS, _COMMIT_SECONDS_PER_BYTE = 2e-3, 2e-9
_STEP_SECONDS, _STEP_SECONDS_PER_OPERATION = 5e-3, {"cpu": 5e-12, "cuda": 1e-14}


@dataclass(frozen=True, slots=True)
class StepNote:
    """One finished step: its loss, the digest of the ids of its records, tokens and positions."""

    loss: float
    records: str
    tokens: int
    positions: int


class StateCommitter:
    """Writes the rows of one training run, and reads its kept states back."""

    def __init__(
        self,
        job: Job,
        name: str,
        modules: Sequence[nn.Module],
        optimizer: torch.optim.Optimizer,
        *,
        steps: int,
        identity: str,
        precision: str,
        state_bytes: int,
    ) -> None:
        """Initialize; nothing is written before the first step is done.

        Args:
            job: Its journal of the run's name receives the rows.
            name: Name of the run.
            modules: Trained modules.
            optimizer: Their optimizer.
            steps: Number of steps of the run.
            identity: Digest of settings, data and seed.
            precision: That of matrix products: ``float32`` or ``bfloat16``.
            state_bytes: Limit of all kept states, in bytes.
        """
        self.job, self.name, self.steps, self.identity = job, name, steps, identity
        self.precision, self.state_bytes = precision, state_bytes
        self.notes: list[StepNote] = []
        self._optimizer, self._parameters = optimizer, dict(named_trainable(modules))
        self._buffers = dict(named_buffers(modules))
        self._size = sum(value.numel() for module in modules for value in module.parameters())
        self._initial: dict[str, str] = {}
        self._row: dict[str, Any] = {}  # the newest row
        self._plan: dict[str, Any] = {}  # the first row
        self._origin: dict[str, Tensor] = {}  # weights at the start of replayed steps

    def begin(self, done: int, notes: Sequence[StepNote] = ()) -> None:
        """Continue after ``done`` steps; ``notes`` are those since the newest row.

        A run that was begun by a version without commitments is not committed.
        """
        self.notes = list(notes)
        if not done:
            self._initial = self.digest_state()
            return
        journal = self.job.journal(self.name)
        self._plan = journal.get(INITIAL_ROW, {})
        first = done - len(self.notes)
        self._row = journal.get(name_segment(self._plan, first), {}) if first else self._plan
        if not self._row:
            self._plan = {}
            self.job.warn(
                "the first steps of this run were not committed: it cannot be verified by replay"
            )

    def note(self, loss: float, records: Sequence[str], tokens: int, positions: int) -> None:
        """Record one finished step: its loss, ids of its records, tokens and loss positions."""
        if self._initial:
            self._plan = self._row = self._make_plan(tokens)
            self._initial = {}
            self._put(INITIAL_ROW, self._plan)
        self.notes.append(StepNote(loss, digest_json(list(records)), tokens, positions))

    def commit(self, step: int) -> None:
        """Write a row if the ``step`` finished steps end a segment."""
        if not self._plan or (step % self._plan["every"] and step != self.steps):
            return
        self._row = self.describe(self._row)
        if step in self._plan["kept"]:
            path = self.job.work / COMMITTED_FOLDER / name_state_file(self.name, step)
            tensors = self._list_weights() | (self._list_moments() if step != self.steps else {})
            with atomic_write(path, "wb") as file:
                file.write(save({name: value.cpu() for name, value in tensors.items()}))
        self._put(name_segment(self._plan, step), self._row)

    def describe(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row of the steps noted since ``before``, and forget their notes."""
        notes, self.notes = self.notes, []
        return {
            "before": digest_json(before),
            "losses": [note.loss for note in notes],
            "records": digest_json([note.records for note in notes]),
            "tokens": sum(note.tokens for note in notes),
            "positions": sum(note.positions for note in notes),
            **self.digest_state(),
        }

    @property
    def numerics(self) -> dict[str, Any]:
        """What the last bits of a step depend on besides its inputs.

        They are the processor's instructions as torch uses them, its maker (libraries choose
        kernels by it), the version of torch, the number of threads and the precision; of a GPU its
        model.
        """
        device = next(iter(self._parameters.values())).device
        numerics: dict[str, Any] = {
            "device": device.type,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "maker": _find_processor_maker(),
        }
        if device.type == "cuda":
            numerics["gpu"] = torch.cuda.get_device_name(device)
        return {**numerics, "precision": self.precision}

    def digest_state(self) -> dict[str, str]:
        """Return the digests of the weights with buffers, and of the optimizer's moments."""
        return {
            "weights": digest_tensors(self._list_weights()),
            "moments": digest_tensors(self._list_moments()),
        }

    def digest_file(self, path: Path) -> dict[str, str]:
        """Return the digests of a kept state: of the weights, and of the moments if it has some.

        Raises:
            IntegrityError: If the file is missing, damaged, or of another network.
        """
        tensors, weights = self._read(path), self._list_weights()
        moments = {name: value for name, value in tensors.items() if name not in weights}
        digests = {"weights": digest_tensors({name: tensors[name] for name in weights})}
        return {**digests, "moments": digest_tensors(moments)} if moments else digests

    def load(self, path: Path) -> None:
        """Load a kept state; a parameter without moments has had no gradient yet.

        Raises:
            IntegrityError: If the file is missing, damaged, or of another network.
        """
        tensors = self._read(path)
        with torch.no_grad():
            for name, value in self._list_weights().items():
                value.copy_(tensors[name])
        for name, parameter in self._parameters.items():
            self._optimizer.state[parameter] = {
                kind: tensors[key].to(parameter.device if kind != "step" else "cpu")
                for kind in ("step", "exp_avg", "exp_avg_sq")
                if (key := f"{kind}/{name}") in tensors
            }
        self.mark_origin()

    def mark_origin(self) -> None:
        """Let ways of the weights begin here."""
        self._origin = {name: value.clone() for name, value in self._list_weights().items()}

    def measure_distance(self, path: Path) -> float:
        """Return how far the weights are from a kept state, as a share of the way to it.

        The way begins where it was marked: at the state that was loaded, or at the initial one.
        Both are Euclidean lengths over all weights.

        Raises:
            IntegrityError: If the file is missing, damaged, or of another network.
        """
        weights, kept = self._list_weights(), self._read(path)
        gap = way = 0.0
        for name, value in weights.items():
            wanted = kept[name].to(value.device, torch.float64)
            gap += float((value.double() - wanted).square().sum())
            way += float((self._origin[name].double() - wanted).square().sum())
        return math.sqrt(gap / way) if way else math.inf if gap else 0.0

    def _list_weights(self) -> dict[str, Tensor]:
        named = {**self._parameters, **self._buffers}
        return {f"weights/{name}": value.detach() for name, value in named.items()}

    def _list_moments(self) -> dict[str, Tensor]:
        return {
            f"{kind}/{name}": value
            for name, parameter in self._parameters.items()
            for kind, value in self._optimizer.state.get(parameter, {}).items()
        }

    def _read(self, path: Path) -> dict[str, Tensor]:
        """Return the tensors of a kept state that fits the network."""
        try:
            read_header(path)  # a stranger's file: its number of tensors is bounded first
            tensors = load_file(path)
            for name, value in self._list_weights().items():
                if name not in tensors or tensors[name].shape != value.shape:
                    raise ValueError(f"{name} is missing or has another shape")
        except (OSError, ValueError, SafetensorError) as error:
            raise IntegrityError(
                f"the kept training state cannot be used: {error}",
                code="replay.state",
                where=str(path),
                expected="the weights and moments that the job committed",
                next="restore the file, or make the artifact again",
            ) from error
        return tensors

    def _put(self, key: str, row: Mapping[str, Any]) -> None:
        journal = self.job.journal(self.name)
        if journal.get(key) != row:  # a resumed run repeats the rows since its saved state
            journal.put(key, row)

    def _make_plan(self, tokens: int) -> dict[str, Any]:
        """Return the first row: which steps are committed, and which states are kept."""
        weights = sum(value.nbytes for value in self._list_weights().values())
        whole = weights + 2 * sum(value.nbytes for value in self._parameters.values())
        device = next(iter(self._parameters.values())).device
        operations = 6 * self._size * tokens
        commit = _COMMIT_SECONDS + _COMMIT_SECONDS_PER_BYTE * whole
        step = _STEP_SECONDS + operations * _STEP_SECONDS_PER_OPERATION.get(device.type, 0)
        every = max(math.ceil(commit / (_SHARE * step)), math.ceil(self.steps / _MAX_SEGMENTS))
        every = min(every, math.ceil(self.steps / _MIN_SEGMENTS))
        ends = [*range(every, self.steps, every), self.steps]
        room = (self.state_bytes - weights) // whole
        stride = math.ceil(len(ends) / (room + 1)) if room >= 0 else 0
        kept = [*ends[stride - 1 : -1 : stride], self.steps] if stride else []
        return {
            "identity": self.identity,
            "steps": self.steps,
            "every": every,
            "kept": kept,
            "numerics": self.numerics,
            **self._initial,
        }


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of tensors, in order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].cpu().contiguous()
        digest.update(canonical_json([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _find_processor_maker() -> str:
    """Return the vendor of the processor; platform.processor() is empty on many systems."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = (line.partition(":") for line in lines)
    return next((row[2].strip() for row in rows if row[0].strip() == "vendor_id"), "unknown")
