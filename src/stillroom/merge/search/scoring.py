"""Fitness of merges in a search: scores in memory on held-out records, and trials.

No checkpoint is written, except for models that transformers stores under other names than those of
its modules: these are written to scratch and loaded, with a log message. Does not compare
candidates. One that cannot be merged is a failed trial with its reason; the search continues.
"""

from __future__ import annotations

import gc
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pydantic import ValidationError

from stillroom.errors import CheckpointError, DataError, RecipeError, ShapeError
from stillroom.evaluate.metrics.bootstrap import bootstrap
from stillroom.jobs.engines import Engine, WorkerResources, open_processes
from stillroom.merge.engine.merge import Merge, open_merge, reconfigure_merge
from stillroom.merge.search.space import apply_changes
from stillroom.merge.settings import (
    HIGHER_IS_BETTER,
    AnswerObjective,
    LossObjective,
    Objective,
    TeacherObjective,
)
from stillroom.objects import resolve_local
from stillroom.provenance import digest_json
from stillroom.recipes import find_recipe_class
from stillroom.records import Message, Prompt, Record

if TYPE_CHECKING:
    from stillroom.merge.jobs.search import MergeSearchRecipe
    from stillroom.merge.planning.plan import MergePlan

__all__ = [
    "MergeScorer",
    "Score",
    "ScoringSettings",
    "TrialResult",
    "TrialRunner",
    "build_score_row",
    "draw_records",
    "mean_over_records",
    "mean_per_token",
    "open_trials",
]

Score = tuple[float, int]
"""Score of one record: the sum of the measure, and the number of tokens (or answers)."""


@dataclass(frozen=True, slots=True)
class ScoringSettings:
    """The measure, and its limits."""

    objective: Objective = field(default_factory=LossObjective)
    max_tokens: int = 1024
    batch_tokens: int = 2048

    @property
    def sign(self) -> int:
        """1 if lower is better, else -1."""
        return -1 if self.objective.name in HIGHER_IS_BETTER else 1


class MergeScorer:
    """A model in memory that receives the weights of one candidate after another.

    ``truncated`` is the number of records longer than ``max_tokens`` in the last measurement.
    """

    def __init__(
        self, settings: ScoringSettings, scratch: Path, say: Callable[[str], None]
    ) -> None:
        """Create a scorer; models are loaded on first use."""
        self.settings, self.scratch, self.say = settings, scratch, say
        self.truncated = 0
        self._model: Any = None
        self._config_key = ""
        self._kind: tuple[Any, Any, Any] | None = None
        self._tokenizers: dict[str, Any] = {}
        self._teacher: Any = None
        self._has_warned = False

    def score(self, merge: Merge, records: Sequence[Record]) -> list[Score]:
        """Return the score of a merge on every record, (0.0, 0) for records without scored tokens.

        Raises:
            CheckpointError: If the sources do not match, or a value is not finite.
            RecipeError: If the method cannot merge these models.
        """
        plan = merge.plan()
        folder = merge.sources[0].checkpoint.folder
        model = self._prepare(plan, folder)
        if model is not None:
            _fill(model, merge)
            return self.measure_model(model, self._tokenizer(merge, plan), records)
        return self._score_written(merge, records)

    def measure_model(self, model: Any, tokenizer: Any, records: Sequence[Record]) -> list[Score]:
        """Return the score of a loaded model on every record."""
        truncated: list[int] = []
        bounds: dict[str, Any] = {
            "max_tokens": self.settings.max_tokens,
            "batch_tokens": self.settings.batch_tokens,
            "on_truncated": lambda index, tokens: truncated.append(index),
        }
        objective = self.settings.objective
        if isinstance(objective, LossObjective):
            from stillroom.evaluate.lm.loss import held_out_loss

            scores = held_out_loss(model, tokenizer, records, **bounds)
        elif isinstance(objective, TeacherObjective):
            from stillroom.evaluate.lm.divergence import measure_agreement

            agreements = measure_agreement(
                model, self._load_teacher(objective), tokenizer, records, **bounds
            )
            scores = [
                (getattr(agreement, objective.name) * agreement.tokens, agreement.tokens)
                for agreement in agreements
            ]
        else:
            limit = self.settings.max_tokens
            scores = _answer(model, tokenizer, records, objective, limit)
        self.truncated = len(truncated)
        return scores

    def close(self) -> None:
        """Release the models."""
        self._model = self._teacher = None
        self._config_key = ""
        gc.collect()

    def _prepare(self, plan: MergePlan, folder: Path) -> Any:
        """Return a model with the plan's tensors that can be filled, or None."""
        key = digest_json(plan.config)
        if key != self._config_key:
            self._model = self._build(plan, folder)
            self._config_key = key
        if self._model is None or not _fits(self._model, plan):
            return None
        return self._model

    def _build(self, plan: MergePlan, folder: Path) -> Any:
        """Return a model for the plan's config: loaded from its donor if equal, else created."""
        from stillroom.checkpoints import Checkpoint

        donor_config = Checkpoint.open(folder).config
        if self._kind is not None and not _is_config(plan, donor_config, self._kind[1]):
            return self._make(plan)
        from stillroom.models import load_model_only

        model = load_model_only(folder, dtype="float32")
        self._kind = (type(model), model.config, model.device)
        return model if _is_config(plan, donor_config, model.config) else self._make(plan)

    def _make(self, plan: MergePlan) -> Any:
        """Return a randomly initialized model of a config that no source has."""
        if self._kind is None:
            raise AssertionError("no model was loaded before")
        kind, config, device = self._kind
        self._model = None
        model: Any = kind(type(config).from_dict(dict(plan.config)))
        return model.float().to(device).eval()

    def _tokenizer(self, merge: Merge, plan: MergePlan) -> Any:
        """Return the result's tokenizer: its donor's, or a merged one."""
        from stillroom.models.local.causal_lm import load_tokenizer

        folder = merge.sources[0].checkpoint.folder
        key = f"{folder} {digest_json(plan.tokens.report()) if plan.tokens else ''}"
        if key not in self._tokenizers:
            if plan.tokens is None:
                self._tokenizers[key] = load_tokenizer(folder)
            else:
                try:
                    merge.write(self.scratch)
                    self._tokenizers[key] = load_tokenizer(self.scratch)
                finally:
                    shutil.rmtree(self.scratch, ignore_errors=True)
        return self._tokenizers[key]

    def _score_written(self, merge: Merge, records: Sequence[Record]) -> list[Score]:
        from stillroom.models import load_causal_lm

        if not self._has_warned:
            self.say(
                "candidates are written to scratch: this architecture cannot be filled in memory"
            )
            self._has_warned = True
        try:
            merge.write(self.scratch)
            model, tokenizer = load_causal_lm(self.scratch, dtype="float32")
            return self.measure_model(model, tokenizer, records)
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _load_teacher(self, objective: TeacherObjective) -> Any:
        from stillroom.models import load_model_only, resolve_checkpoint

        if self._teacher is None:
            reference = Path(objective.teacher)
            path = reference if reference.exists() else resolve_checkpoint(str(reference))
            self._teacher = load_model_only(_find_folder(path), dtype="float32")
        return self._teacher


def draw_records(
    reference: str,
    *,
    split: str,
    limit: int,
    seed: int,
    warn: Callable[[str], None],
    setting: str = "select",
) -> list[Record]:
    """Sample the records used for scoring, in an order determined by the seed and their ids.

    Args:
        reference: A records artifact or file.
        split: Use only records with this ``fields.split``; empty: all.
        limit: Maximum number of records.
        seed: Seed of sample and order.
        warn: Called with the number of unreadable rows.
        setting: Section of the recipe, for the error.

    Raises:
        DataError: If no record matches.
    """
    from stillroom.evaluate.qa.questions import find_records
    from stillroom.records import read_records

    path = find_records(resolve_local(reference))
    dropped: list[int] = []
    fitting = {
        record.id: record
        for record in read_records(path, on_drop=lambda row, why: dropped.append(row))
        if not split or record.fields.get("split") == split
    }
    if dropped:
        warn(f"{len(dropped)} rows of {path.name} cannot be read and are skipped")
    if not fitting:
        raise DataError(
            f"no record has fields.split '{split}'" if split else f"{path.name} contains no record",
            code="merge.no-records",
            where=str(path),
            expected="records that no model was trained on",
            next=f"set {setting}.split to another split, or to '' for all records"
            if split
            else "pass a file with records",
        )
    record_ids = sorted(fitting, key=lambda record_id: digest_json([seed, record_id]))[:limit]
    return [fitting[record_id] for record_id in record_ids]


def mean_per_token(score: Score) -> float:
    """Return a record's mean per token (or answer)."""
    return score[0] / score[1]


def mean_over_records(scores: Sequence[Score], indices: Sequence[int]) -> float:
    """Return the mean over all tokens of the records at ``indices``."""
    return math.fsum(scores[i][0] for i in indices) / sum(scores[i][1] for i in indices)


def build_score_row(
    name: str, scores: Sequence[Score], indices: Sequence[int], seed: int, key: str = "loss"
) -> dict[str, Any]:
    """Return a candidate's name, and its mean (as ``key``) with its interval over records."""
    metric = bootstrap(
        [mean_per_token(scores[i]) for i in indices],
        weights=[scores[i][1] for i in indices],
        seed=seed,
    )
    low, high = metric.low, metric.high
    return {
        "name": name,
        key: metric.value,
        "low": metric.value if math.isnan(low) else low,
        "high": metric.value if math.isnan(high) else high,
        "n": len(indices),
    }


def _is_config(plan: MergePlan, donor_config: Mapping[str, Any], loaded: Any) -> bool:
    """Return whether a donor's config equals the plan's, including tied embeddings."""
    tied = "tie_word_embeddings"
    plan_config = {key: value for key, value in plan.config.items() if key != tied}
    other_config = {key: value for key, value in donor_config.items() if key != tied}
    return plan_config == other_config and plan.config.get(
        tied, loaded.tie_word_embeddings
    ) == getattr(loaded, tied)


def _fits(model: Any, plan: MergePlan) -> bool:
    """Return whether the plan's tensors are exactly those of the model, by name and shape."""
    state = model.state_dict()
    covered = set()
    for tensor in plan.tensors:
        target = state.get(tensor.name)
        if target is None or tuple(target.shape) != tensor.shape:
            return False
        covered.add(target.data_ptr())
    return all(target.data_ptr() in covered for target in state.values())


def _fill(model: Any, merge: Merge) -> None:
    """Copy a merge's tensors into the model, as if it was written and loaded."""
    import numpy as np
    import torch

    from stillroom.checkpoints.dtypes import widen
    from stillroom.checkpoints.safetensors_format import FLOATS

    state = model.state_dict()
    for name, kind, bits in merge.tensors():
        target = state[name]
        wide = np.float64 if kind == "F64" else np.float32
        values = widen(bits, kind, wide) if kind in FLOATS else bits
        source = torch.from_numpy(np.ascontiguousarray(values)).reshape(target.shape)
        target.copy_(source)


def _answer(
    model: Any,
    tokenizer: Any,
    records: Sequence[Record],
    objective: AnswerObjective,
    max_tokens: int,
) -> list[Score]:
    """Generate greedily; score F1 or exact match with the record's last turn."""
    import torch

    from stillroom.models.tokenization.chat_template import render_prompt
    from stillroom.text.unicode import exact_match, token_f1

    compare = token_f1 if objective.name == "f1" else exact_match
    scores: list[Score] = []
    for record in records:
        prompt_messages, expected = _split_answer(record.messages)
        if not expected or not prompt_messages:
            scores.append((0.0, 0))
            continue
        text = render_prompt(tokenizer, Prompt(prompt_messages), record.tools)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        ids = ids[:, -max_tokens:].to(model.device)
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=objective.max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        answer = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        scores.append((float(compare(answer, expected)), 1))
    return scores


def _split_answer(messages: Sequence[Message]) -> tuple[tuple[Message, ...], str]:
    """Return the turns before the assistant's last, and its text."""
    if not messages or messages[-1].role != "assistant":
        return (), ""
    return tuple(messages[:-1]), messages[-1].content.strip()


def _find_folder(path: Path) -> Path:
    return path / "output" if (path / "output" / "config.json").is_file() else path


@dataclass(frozen=True, slots=True)
class TrialResult:
    """Result of a trial: the scores by record, or the reason of its failure."""

    scores: tuple[Score, ...] = ()
    failed: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return JSON-serializable values."""
        return {"failed": self.failed} if self.failed else {"scores": [*map(list, self.scores)]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrialResult:
        """Create a result from the output of ``to_json``."""
        scores = tuple((value, count) for value, count in data.get("scores", ()))
        return cls(scores, data.get("failed", ""))


@dataclass(frozen=True)
class TrialRunner:
    """Builds and scores candidates, one at a time."""

    recipe: MergeSearchRecipe
    merge: Merge
    scorer: MergeScorer

    def build(self, changes: Mapping[str, Any]) -> Merge:
        """Return the merge of a changed recipe.

        Raises:
            RecipeError: If the changed recipe is invalid.
        """
        return reconfigure_merge(self.merge, apply_changes(self.recipe, changes))

    def try_changes(self, changes: Mapping[str, Any], records: Sequence[Record]) -> TrialResult:
        """Build and score the candidate of a changed recipe."""
        try:
            scores = self.scorer.score(self.build(changes), records)
        except (RecipeError, ShapeError, ValidationError) as error:
            return TrialResult(failed=_first_line(error))
        except CheckpointError as error:
            if error.code != "merge.not-finite":
                raise
            return TrialResult(failed=_first_line(error))
        if not all(math.isfinite(value) for value, _ in scores):
            return TrialResult(failed="its scores are not finite")
        return TrialResult(tuple(scores))


@contextmanager
def open_trials(
    runner: TrialRunner, records: Sequence[Record], engine: Engine
) -> Iterator[Callable[[Sequence[Mapping[str, Any]]], Iterable[TrialResult]]]:
    """Yield a function that returns the result of every candidate on some records, in order.

    Candidates are tried here, in the processes of ``search.workers``, or on a cluster.
    """
    work = _TrialWork(
        json.dumps(runner.recipe.model_dump(mode="json")),
        tuple(records),
        runner.scorer.settings,
        "" if engine.is_remote else str(runner.scorer.scratch),
    )
    workers = runner.recipe.search.workers
    if engine.is_remote:
        yield partial(engine.stream, work)
    elif workers == 1:
        yield partial(map, lambda changes: runner.try_changes(changes, records))
    else:
        import torch

        # Same number of threads: the last bits of a score depend on it.
        arguments = (work, torch.get_num_threads())
        with open_processes(workers, "search.workers", _start_worker, arguments) as pool:
            yield partial(pool.map, _run_trial)


@dataclass(frozen=True)
class _TrialWork:
    """Work of another process, with its own runner; ``scratch`` is empty on a cluster."""

    recipe: str
    records: tuple[Record, ...] = field(hash=False)
    settings: ScoringSettings
    scratch: str
    concurrency: int = 1

    def open(self) -> WorkerResources[Mapping[str, Any], TrialResult]:
        recipe: Any = find_recipe_class("merge.search").model_validate_json(self.recipe)
        # The scorer creates and removes the folder when needed.
        scratch = self.scratch or str(Path(tempfile.gettempdir()) / "stillroom-candidate")
        scorer = MergeScorer(self.settings, Path(f"{scratch}-{uuid4().hex}"), lambda line: None)
        runner = TrialRunner(recipe, open_merge(recipe), scorer)

        def try_all(candidates: Sequence[Mapping[str, Any]]) -> list[TrialResult]:
            return [runner.try_changes(changes, self.records) for changes in candidates]

        return WorkerResources(try_all, (scorer.close,))


_STATE: dict[str, WorkerResources[Mapping[str, Any], TrialResult]] = {}


def _start_worker(work: _TrialWork, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    _STATE["work"] = work.open()


def _run_trial(changes: Mapping[str, Any]) -> TrialResult:
    return _STATE["work"]([changes])[0]


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0]
