"""Training loop: gradient accumulation (num_items_in_batch), clipping, checkpointing, logging.

The loss of a step is the sum over the valid positions of all micro-batches on all ranks, divided
once by their number, so that neither the split into micro-batches nor the number of ranks changes
the gradient. Every step seeds torch from (seed, step, rank): a resumed run draws the same dropout
masks.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from stillroom.errors import Cancelled, DataError
from stillroom.jobs import Job
from stillroom.jobs.progress import Progress
from stillroom.provenance import digest_json
from stillroom.train.checkpoint import load_state, named_buffers, named_trainable, save_state
from stillroom.train.commitment import StateCommitter, StepNote
from stillroom.train.data import BatchSource, MicroBatch
from stillroom.train.distributed import ProcessGroup, gather_optimizer_state, shard_modules
from stillroom.train.lora import gather_tensor
from stillroom.train.precision import autocast_body, deterministic_torch
from stillroom.train.replay import TrainingReplayJob
from stillroom.train.settings import TrainSettings, compute_learning_rate

__all__ = ["STATE_FILE", "Loss", "Objective", "TrainSummary", "make_optimizer", "train"]

STATE_FILE = "train-state.pt"

B = TypeVar("B", bound=MicroBatch)
T = TypeVar("T")
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of one micro-batch, summed over its valid positions.

    ``parts`` are further sums to log, each divided by the step's positions as ``total`` is.
    """

    total: Tensor
    parts: Mapping[str, float] = field(default_factory=dict)


Objective = Callable[[nn.Module, B], Loss]
"""Function that returns the loss of a micro-batch; called within the run's autocast context."""


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """Statistics of a run, including the steps before it was resumed.

    ``had_gradient`` is false if the gradient was zero in every step, so that nothing but weight
    decay changed the weights.
    """

    steps: int
    tokens: int
    positions: int
    first_loss: float
    last_loss: float
    precision: str
    threads: int
    ranks: int
    had_gradient: bool = True


def train(
    model: nn.Module,
    source: BatchSource[B],
    objective: Objective[B],
    settings: TrainSettings,
    job: Job,
    *,
    seed: int = 0,
    name: str = "train",
    on_step: Callable[[int, nn.Module], None] | None = None,
    reads_every: int = 0,
    auxiliary: nn.Module | None = None,
    ranks: ProcessGroup | None = None,
    unit: str = "tokens",
) -> TrainSummary:
    """Train the parameters of ``model`` that require a gradient, in place.

    A model sharded over several processes stays sharded: ``export_tensors`` gathers it.

    Args:
        model: Model in float32, on the training device.
        source: Provider of micro-batches.
        objective: Function that returns the summed loss of a micro-batch.
        settings: Optimizer, schedule, precision and logging.
        job: Stores the state in its scratch folder, metrics and progress; checked for cancellation
            between steps.
        seed: Seed of random draws within the model.
        name: Name of the phase; a job that trains twice names the second one, and its state and
            metrics are stored under that name.
        on_step: Called on every rank after each step with the number of finished steps, so that a
            sharded model can be gathered. A resumed run calls it again for steps after the saved
            state.
        reads_every: Interval in steps at which ``on_step`` reads the model, equal on every rank; 0
            if it never does. At these calls the weights of a sharded model outside of its layers
            are gathered.
        auxiliary: Module trained and saved with the model but not part of it, such as projectors.
        ranks: Process group, if the caller has joined it; None joins it here.
        unit: What the source's micro-batches count as ``tokens``; names the throughput.

    Raises:
        DataError: If a loss or gradient is not finite, or the saved state belongs to another run.
        Cancelled: If cancellation was requested; the state has been saved.
    """
    if len(source) == 0:
        raise DataError(
            "there are no training records",
            code="train.no-records",
            expected="at least one record with a loss position",
            next="check the records, their split and max_tokens",
        )
    group = contextlib.nullcontext(ranks) if ranks is not None else ProcessGroup()
    with group as joined, deterministic_torch(settings, model) as precision:
        modules = (model,) if auxiliary is None else (model, auxiliary)
        run = _TrainingRun(
            modules, source, objective, settings, job, seed, joined, precision, name, unit
        )
        return run.run(on_step, reads_every)


@dataclass
class _TrainingRun(Generic[B]):
    """One call of ``train``: its optimizer, its totals and its steps."""

    modules: Sequence[nn.Module]
    source: BatchSource[B]
    objective: Objective[B]
    settings: TrainSettings
    job: Job
    seed: int
    ranks: ProcessGroup
    precision: str
    name: str
    unit: str

    def __post_init__(self) -> None:
        self.model, settings = self.modules[0], self.settings
        self.device = next(self.model.parameters()).device
        self.steps = settings.count_steps(len(self.source))
        self.shards = None
        if settings.sharding == "fsdp" and self.ranks.count > 1:
            self.shards = shard_modules(self.modules, self.ranks.count)
        self.parameters = [value for _, value in named_trainable(self.modules)]
        self.optimizer = make_optimizer(self.parameters, settings)
        file = STATE_FILE if self.name == "train" else f"{self.name}-{STATE_FILE}"
        self.state_path = self.ranks.share_path(self.job.scratch / file)
        free = {"save_every_s", "log_every", "states_mb"}
        self.identity = digest_json(
            [settings.model_dump(exclude=free), self.source.identity, self.seed, self.steps]
        )
        self.committer = self._open_committer(settings.model_dump(exclude={*free, "threads"}))
        self.totals = {"tokens": 0.0, "positions": 0.0, "first_loss": math.nan, "last_loss": 0.0}
        self.totals["moved"] = 0.0  # steps with a gradient
        self.totals["weights"] = self._sum_weights()  # of the first step

    def _open_committer(self, settings: dict[str, Any]) -> StateCommitter | None:
        """Return what commits the states, where jobs of the kind can be replayed."""
        if self.name not in self.job.segment_journals or not self.parameters:
            return None
        if self.ranks.count > 1:
            self.job.warn("trained by several processes: its steps cannot be verified by replay")
            return None
        return StateCommitter(
            self.job,
            self.name,
            self.modules,
            self.optimizer,
            steps=self.steps,
            identity=digest_json([settings, self.source.identity, self.seed]),
            precision=self.precision,
            state_bytes=self.settings.states_mb * 10**6,
        )

    def run(
        self, on_step: Callable[[int, nn.Module], None] | None, reads_every: int
    ) -> TrainSummary:
        if isinstance(self.job, TrainingReplayJob) and self.committer is not None:
            self._replay(self.job, self.committer, on_step)
            return self._summarize()
        done, totals, notes = load_state(
            self.state_path, self.identity, self.modules, self.optimizer
        )
        self.totals.update(totals)
        if self.committer is not None:
            self.committer.begin(done, [StepNote(*note) for note in notes])
        self.ranks.wait()
        saved = time.monotonic()
        with self.job.phase(self.name, self.steps, "steps", done=done) as progress:
            for step in range(done, self.steps):
                self._check_cancelled(step)
                self._step(step, progress)
                if self.committer is not None:
                    self.committer.commit(step + 1)
                if on_step is not None:
                    reads = bool(reads_every) and (step + 1) % reads_every == 0
                    with self._gathered(reads):
                        on_step(step + 1, self.model)
                    self.ranks.wait()
                if self._is_due(time.monotonic() - saved):
                    self._save(step + 1)
                    saved = time.monotonic()
        if self.steps > done:
            self._save(self.steps)
        self._warn_unchanged()
        return self._summarize()

    def _warn_unchanged(self) -> None:
        """Say that nothing was learned, and why."""
        if not self.totals["moved"]:
            self.job.warn(
                f"{self.name}: the gradient was zero in every step, so nothing was "
                "learned: the loss, or the reward, does not depend on what the model writes"
            )
        elif self.parameters and self.totals["weights"] == self._sum_weights():
            self.job.warn(
                f"{self.name}: no weight has changed, so nothing was learned: a learning "
                f"rate of {self.settings.learning_rate:g} is too small for {self.precision}"
            )

    def _sum_weights(self) -> float:
        """Return a checksum of the bits of the weights (this rank's, where they are sharded)."""
        sums = []
        for value in self.parameters:
            local = getattr(value, "_local_tensor", value).detach().contiguous().reshape(-1)
            bits = local.view(_BITS[local.element_size()])
            sums.append(int(bits.sum(dtype=torch.int64)))
        return float(int(digest_json(sums)[:12], 16))

    def _replay(
        self,
        job: TrainingReplayJob,
        committer: StateCommitter,
        on_step: Callable[[int, nn.Module], None] | None,
    ) -> None:
        """Take the steps that a replay has drawn, without saving or committing states."""
        with job.phase(self.name, len(job.taken), "steps") as progress:

            def take_step(step: int) -> None:
                self._check_cancelled(step)
                self._step(step, progress)
                if on_step is not None:
                    on_step(step + 1, self.model)

            self.totals.update(job.take_steps(committer, take_step))

    def _summarize(self) -> TrainSummary:
        return TrainSummary(
            self.steps,
            int(self.totals["tokens"]),
            int(self.totals["positions"]),
            self.totals["first_loss"],
            self.totals["last_loss"],
            self.precision,
            torch.get_num_threads(),
            self.ranks.count,
            bool(self.totals["moved"]),
        )

    def _step(self, step: int, progress: Progress) -> None:
        started = time.monotonic()
        metrics = self.source.begin(step, self.model, self.ranks)
        plan = self.source.plan(step)
        positions = sum(self.source.valid(group) for group in plan)
        torch.manual_seed(int(digest_json(["train", self.seed, step, self.ranks.rank])[:15], 16))
        for group in self.optimizer.param_groups:
            group["lr"] = compute_learning_rate(self.settings, step, self.steps)
        sums, tokens, ids = self._accumulate(step, plan, max(positions, 1))
        if self.shards is None:
            self.ranks.sum_gradients(self.parameters)
        norm = self._clip(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        rate = tokens / max(time.monotonic() - started, 1e-9)
        self._note(step, {**sums, **metrics}, tokens, positions, norm, rate)
        if self.committer is not None:
            self.committer.note(sums["loss"], ids, tokens, positions)
        progress.advance(note=f"loss {sums['loss']:.4f}, {rate:.0f} {self.unit}/s")

    def _accumulate(
        self, step: int, plan: Sequence[Sequence[int]], positions: int
    ) -> tuple[dict[str, float], int, list[str]]:
        """Accumulate the gradients of a step; return mean loss and parts, tokens and record ids."""
        sums, tokens, ids = self.ranks.agree(partial(self._accumulate_share, step, plan, positions))
        results = self.ranks.gather((sums, tokens))
        names = dict.fromkeys(name for part, _ in results for name in part)
        totals = {name: sum(part.get(name, 0.0) for part, _ in results) for name in names}
        return totals, sum(count for _, count in results), ids

    def _accumulate_share(
        self, step: int, plan: Sequence[Sequence[int]], positions: int
    ) -> tuple[dict[str, float], int, list[str]]:
        """Accumulate the gradients of this rank's micro-batches."""
        sums = {"loss": 0.0}
        tokens, ids = 0, list[str]()
        # Nobody to agree with, and nothing has changed yet that is saved: a forward pass may move
        # buffers, as the running means of batch normalization.
        may_stop = self.ranks.count == 1 and not named_buffers(self.modules)
        for group, counts in self._share_of(plan):
            if may_stop:
                self._check_cancelled(step)
            batch = self._agreed(partial(self.source.load, group))
            loss = self._agreed(partial(self._forward, step, batch, positions))
            # Add the gradient of a micro-batch's share of the step's loss.
            if self.shards is None:
                share = loss.total / positions
            else:  # FSDP averages gradients over ranks; the loss is a sum
                share = loss.total * (self.ranks.count * counts / positions)
            share.backward()  # type: ignore[no-untyped-call]
            if counts:
                sums["loss"] += float(loss.total.detach()) / positions
                for name, part in loss.parts.items():
                    sums[name] = sums.get(name, 0.0) + part / positions
                tokens += batch.tokens
                ids.extend(batch.record_ids)
        return sums, tokens, ids

    def _share_of(self, plan: Sequence[Sequence[int]]) -> Iterator[tuple[Sequence[int], bool]]:
        """Yield this rank's micro-batches, and whether each one counts.

        Sharded ranks must run the same number: a rank with fewer repeats the first micro-batch
        without counting it.
        """
        groups = plan[self.ranks.rank :: self.ranks.count]
        yield from ((group, True) for group in groups)
        if self.shards is not None:
            most = -(-len(plan) // self.ranks.count)
            yield from ((plan[0], False) for _ in range(most - len(groups)))

    def _agreed(self, work: Callable[[], T]) -> T:
        """Return ``work()``; if the model is sharded, an error on one rank is raised on all."""
        return work() if self.shards is None else self.ranks.agree(work)

    def _forward(self, step: int, batch: B, positions: int) -> Loss:
        """Return the loss of a micro-batch, with a graph.

        Raises:
            DataError: If it is not finite.
        """
        losses: list[Loss] = []

        def run() -> Tensor:
            losses.append(self.objective(self.model, batch))
            return losses[0].total

        with autocast_body(self.precision, self.device):
            total = run() if self.shards is None else self.shards(run)
        if not math.isfinite(float(total.detach()) / positions):
            raise _not_finite_error("loss", step, batch)
        return Loss(total, losses[0].parts)

    def _clip(self, step: int) -> float:
        limit = self.settings.max_grad_norm or math.inf
        norm = float(gather_tensor(nn.utils.clip_grad_norm_(self.parameters, limit)))
        if not math.isfinite(norm):
            raise _not_finite_error("gradient", step, None)
        return norm

    def _note(
        self,
        step: int,
        sums: dict[str, float],
        tokens: int,
        positions: int,
        norm: float,
        rate: float,
    ) -> None:
        self.totals["tokens"] += tokens
        self.totals["positions"] += positions
        self.totals["moved"] += norm > 0
        if math.isnan(self.totals["first_loss"]):
            self.totals["first_loss"] = sums["loss"]
        self.totals["last_loss"] = sums["loss"]
        is_due = (step + 1) % self.settings.log_every == 0 or step + 1 == self.steps
        if not (is_due and self.ranks.is_main):
            return
        rate_now = self.optimizer.param_groups[0]["lr"]
        values = {**sums, "grad_norm": norm, "learning_rate": rate_now, f"{self.unit}_per_s": rate}
        prefix = "" if self.name == "train" else f"{self.name}/"
        for name, value in values.items():
            self.job.metric(prefix + name, value, step=step + 1)

    def _gathered(self, reads: bool) -> contextlib.AbstractContextManager[None]:
        if self.shards is None or not reads:
            return contextlib.nullcontext()
        return self.shards.gathered()

    def _check_cancelled(self, step: int) -> None:
        stopped: Cancelled | None = None
        try:
            self.job.check_cancelled()
        except Cancelled as error:
            stopped = error
        if any(self.ranks.gather(stopped is not None)):
            self._save(step)
            self.ranks.wait()
            raise stopped or Cancelled(
                "another rank was stopped at a safe point",
                code="job.cancelled",
                next="run the same command again with --resume",
            )

    def _is_due(self, seconds: float) -> bool:
        """Return whether to save the state; if sharded, by the clock of the main rank."""
        due = seconds >= self.settings.save_every_s
        return due if self.shards is None else self.ranks.gather(due)[0]

    def _save(self, step: int) -> None:
        if self.shards is None and not self.ranks.is_main:
            return
        weights = {
            name: gather_tensor(value.detach()) for name, value in named_trainable(self.modules)
        }
        moments = gather_optimizer_state(self.optimizer.state_dict())
        if self.ranks.is_main:
            buffers = {name: value.detach() for name, value in named_buffers(self.modules)}
            path = self.state_path
            notes = [astuple(note) for note in self.committer.notes] if self.committer else []
            save_state(path, self.identity, step, weights, moments, self.totals, buffers, notes)


def make_optimizer(
    parameters: list[nn.Parameter], settings: TrainSettings
) -> torch.optim.Optimizer:
    """Return AdamW over ``parameters``, with weight decay on matrices only."""
    groups = [
        {
            "params": [value for value in parameters if value.ndim >= 2],
            "weight_decay": settings.weight_decay,
        },
        {"params": [value for value in parameters if value.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )


def _not_finite_error(quantity: str, step: int, batch: MicroBatch | None) -> DataError:
    names = list(batch.record_ids) if batch is not None else []
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return DataError(
        f"the {quantity} of optimizer step {step + 1} is not finite",
        code=f"train.{quantity}-not-finite",
        where=f"records {shown}" if shown else f"step {step + 1}",
        expected="a finite number",
        next="lower train.learning_rate, set train.precision to float32, or remove those records",
    )
