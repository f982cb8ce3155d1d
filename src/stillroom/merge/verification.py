"""Verification of a written merge: replay from its recipe, and a smoke test.

The replay complements ``stillroom verify``: that finds changed files, this a result that its recipe
does not reproduce. Inputs are read completely and their fingerprints recomputed instead of cached.
Tensors are sampled by a seed; if a method of ``arithmetic: mergekit`` draws random numbers, all
tensors are recomputed, because each depends on the previous ones.

The smoke test checks that all values are finite, and that the checkpoint loads in transformers and
generates a token; with records, its loss is compared with its parents'. A merge far above every
parent gives a warning instead of an error, since it may be intended. It does not measure quality
beyond that.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.safetensors_format import FLOATS
from stillroom.errors import CheckpointError, DataError, IntegrityError, Problem
from stillroom.jobs import MessageLog, QuietReporter
from stillroom.merge.engine.executor import MergeExecutor, OrderedThreadPool
from stillroom.merge.engine.merge import Merge, open_merge, reconfigure_merge
from stillroom.merge.search.selection import MergeCandidate, list_candidates, list_parent_candidates
from stillroom.merge.search.space import apply_changes
from stillroom.merge.settings import SmokeTestSettings
from stillroom.merge.tensors.storage import array_to_bytes
from stillroom.provenance import Artifact, digest_file, digest_json, read_artifact, resolve_parent
from stillroom.provenance.sources import is_reference

if TYPE_CHECKING:
    from stillroom.merge.jobs.recipe import MergeJobRecipe
    from stillroom.merge.jobs.search import MergeSearchRecipe
    from stillroom.merge.jobs.select import MergeSelectRecipe
    from stillroom.merge.planning.plan import MergePlan, PlannedTensor
    from stillroom.merge.search.scoring import Score

__all__ = ["TensorMismatch", "Verification", "run_smoke_test", "verify_merge"]

_ROLES = ("base", "model")


@dataclass(frozen=True, slots=True)
class TensorMismatch:
    """A tensor that differs from the replay: number of differing elements, and index of the first.

    ``elements`` is 0 if the tensor does not match at all, as described by ``what``.
    """

    name: str
    elements: int = 0
    first: int = 0
    what: str = ""

    def __str__(self) -> str:
        """Return a predicate for a sentence that starts with the tensor's name."""
        if self.what:
            return self.what
        return f"differs in {self.elements} elements, the first at {self.first}"


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of a replay: input fingerprints, number of tensors, replayed names, differences."""

    inputs: Mapping[str, str]
    tensors: int
    replayed: tuple[str, ...]
    is_whole: bool
    differences: tuple[TensorMismatch, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON-serializable values."""
        return {
            "inputs": dict(self.inputs),
            "tensors": self.tensors,
            "replayed": list(self.replayed),
            "whole": self.is_whole,
            "differences": [
                {"name": mismatch.name, "elements": mismatch.elements, "what": str(mismatch)}
                for mismatch in self.differences
            ],
        }

    def check(self, folder: Path) -> None:
        """Raise an error if the result differs from the replay.

        Raises:
            IntegrityError: If tensors differ; one problem per tensor.
        """
        if self.differences:
            raise IntegrityError(
                [
                    Problem(
                        f"tensor '{mismatch.name}' {mismatch}",
                        "merge.not-replayed",
                        str(folder),
                        "the bytes that the recipe reproduces from these inputs",
                        "merge again, or find out what changed the weights",
                    )
                    for mismatch in self.differences
                ]
            )


def verify_merge(
    folder: Path,
    *,
    share: float = 0.1,
    seed: int = 0,
    log: MessageLog | None = None,
    tensors: frozenset[str] | None = None,
    recipe: MergeJobRecipe | None = None,
) -> Verification:
    """Replay a share of a merge's tensors and compare them with the written ones.

    Args:
        folder: Output of a merge job.
        share: Share of the tensors, from 0 to 1; at least one tensor.
        seed: Random seed of the sample.
        log: Receives notes and warnings.
        tensors: Names of the tensors to replay, instead of a share.
        recipe: The recipe with the present places of its inputs, by default the folder's.

    Raises:
        DataError: If the folder is not a merge's.
        IntegrityError: If the recipe or an input has changed.
        CheckpointError: If an input or the result cannot be opened.
    """
    log = log or QuietReporter()
    artifact = read_artifact(folder)
    recorded = _read_recipe(folder, artifact)
    recipe = recipe or _find_inputs(recorded, artifact, folder)
    recipe = recipe.limit(log)
    merge = open_merge(recipe, log)
    inputs = _check_inputs(merge, artifact, folder)
    written_merge = _find_written_merge(recipe, merge, artifact)
    output = Checkpoint.open(folder)
    plan = written_merge.plan()
    wrong = list(_compare_layout(plan, output))
    mismatched_names = {mismatch.name for mismatch in wrong}
    listed = [tensor for tensor in plan.tensors if tensor.name not in mismatched_names]
    count = min(len(listed), max(1, round(share * len(listed))))
    picked = tensors
    if picked is None:
        picked = frozenset(random.Random(seed).sample([one.name for one in listed], count))
    with OrderedThreadPool(0) as workers:
        replay = _Replay(written_merge, plan, output, workers)
        selected = [tensor for tensor in listed if tensor.name in picked]
        mismatches = replay.compare(selected)
        if replay.is_random and len(selected) < len(plan.tensors):
            log.say("random numbers of a tensor depend on the previous ones: all are replayed")
            replay = _Replay(written_merge, plan, output, workers)
            mismatches = replay.compare(plan.tensors, skip=mismatched_names)
            selected = listed
    names = tuple(tensor.name for tensor in selected)
    is_whole = len(names) == len(plan.tensors)
    return Verification(inputs, len(plan.tensors), names, is_whole, (*wrong, *mismatches))


class _Replay:
    """Recomputes tensors in the plan's order."""

    def __init__(
        self, merge: Merge, plan: MergePlan, output: Checkpoint, workers: OrderedThreadPool
    ) -> None:
        self.engine: MergeExecutor = merge.engine(plan, workers, None)
        self.output = output
        self.is_random = False

    def compare(
        self, tensors: Sequence[PlannedTensor], skip: set[str] | None = None
    ) -> list[TensorMismatch]:
        before = self.engine.state()
        mismatches = []
        for tensor in tensors:
            difference = self._compare(tensor)
            if difference is not None and tensor.name not in (skip or ()):
                mismatches.append(difference)
        self.is_random = before != self.engine.state()
        return mismatches

    def _compare(self, tensor: PlannedTensor) -> TensorMismatch | None:
        width = int(np.prod(tensor.shape[1:], dtype=np.int64))
        start = different = 0
        first = -1
        for bits in self.engine.make(tensor):
            stop = start + (len(bits) if tensor.shape else 1)
            stored = np.frombuffer(self.output.read(tensor.name, start, stop), np.uint8)
            replayed = np.frombuffer(array_to_bytes(bits), np.uint8)
            if not np.array_equal(replayed, stored):
                size = max(bits.dtype.itemsize, 1)
                differs = (replayed.reshape(-1, size) != stored.reshape(-1, size)).any(axis=1)
                different += int(differs.sum())
                first = start * width + int(differs.argmax()) if first < 0 else first
            start = stop
        return TensorMismatch(tensor.name, different, first) if different else None


def _read_recipe(folder: Path, artifact: Artifact) -> MergeJobRecipe:
    from stillroom.recipes import load_recipe

    path = folder / "recipe.yaml"
    if artifact.kind != "checkpoint" or "merged" not in artifact.details or not path.is_file():
        raise DataError(
            f"{folder} is not the result of a merge",
            code="merge.not-a-merge",
            where=str(folder),
            expected="the folder of a merge job",
            next=f"stillroom show {folder} describes it",
        )
    if digest_file(path) != artifact.recipe_digest:
        raise _changed_file_error(path, "is not the recipe recorded in artifact.json")
    recipe = load_recipe(path)
    if not recipe.kind.startswith("merge."):
        raise _changed_file_error(path, f"is of kind {recipe.kind}")
    return cast("MergeJobRecipe", recipe)


def _find_inputs(recipe: MergeJobRecipe, artifact: Artifact, folder: Path) -> MergeJobRecipe:
    """Return the recipe with the current locations of the inputs, if a run was moved."""
    data = recipe.model_dump(mode="json")
    inputs = {role: [m for m in recipe.list_inputs() if m.role == role] for role in _ROLES}
    for parent in artifact.parents:
        if not inputs.get(parent.role):
            continue
        *path, key = inputs[parent.role].pop(0).key
        if isinstance(parent.path, str) and not is_reference(parent.path):
            moved = resolve_parent(folder, parent)
            if moved.exists():
                entry: Any = data
                for part in path:
                    entry = entry[part]
                entry[key] = str(moved)
    return type(recipe).model_validate(data)


def _check_inputs(merge: Merge, artifact: Artifact, folder: Path) -> dict[str, str]:
    """Recompute the fingerprint of every input; return them by name.

    Raises:
        IntegrityError: If a fingerprint differs from the artifact's.
    """
    # The recorded fingerprints in the recipe's order; they may have any type.
    chain = artifact.origin.get("chain")
    last = chain[-1] if isinstance(chain, list) and chain else None
    named = last.get("parents") if isinstance(last, Mapping) else None
    recorded = list(named) if isinstance(named, list) else []
    if len(recorded) != len(merge.sources):
        raise _changed_file_error(
            folder / "artifact.json",
            f"records {len(recorded)} inputs, but the recipe has {len(merge.sources)}",
        )
    fingerprints: dict[str, str] = {}
    problems = []
    for source, expected in zip(merge.sources, recorded, strict=True):
        fingerprint = source.checkpoint.rehash()  # of every byte, instead of the cache
        if source.adapted is not None:
            fingerprint = digest_json([fingerprint, source.adapted.adapter.fingerprint])
        is_new = source.name not in fingerprints
        name = source.name if is_new else f"{source.name} ({len(fingerprints)})"
        fingerprints[name] = fingerprint
        if fingerprint != expected:
            problems.append(
                Problem(
                    f"the weights of {source.name} differ from those that were merged",
                    "merge.input-changed",
                    str(source.checkpoint.folder),
                    f"fingerprint {expected}, not {fingerprint}",
                    "restore that checkpoint, or merge again",
                )
            )
    if problems:
        raise IntegrityError(problems)
    return fingerprints


def _find_written_merge(recipe: MergeJobRecipe, merge: Merge, artifact: Artifact) -> Merge:
    """Return the merge that was written: the recipe's, the selected, or the found one."""
    details = artifact.details
    if recipe.kind == "merge.select":
        candidates = list_candidates(cast("MergeSelectRecipe", recipe), merge)
        return _find_candidate(candidates, details)
    if recipe.kind != "merge.search":
        return merge
    search_details = details.get("search")
    search_details = search_details if isinstance(search_details, Mapping) else {}
    if search_details.get("changes") is None:
        return _find_candidate(list_parent_candidates(recipe, merge), search_details)
    try:
        changed = apply_changes(cast("MergeSearchRecipe", recipe), search_details["changes"])
        return reconfigure_merge(merge, changed)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise IntegrityError(
            "the changes recorded in the artifact do not fit this recipe",
            code="merge.not-replayed",
            expected="settings within the recipe's search",
            next="merge again",
        ) from error


def _find_candidate(candidates: Sequence[MergeCandidate], details: Mapping[str, Any]) -> Merge:
    for candidate in candidates:
        if candidate.name == details.get("kept"):
            return candidate.merge
    raise IntegrityError(
        f"the artifact records '{details.get('kept')}', but the recipe has no such candidate",
        code="merge.not-replayed",
        expected=f"one of: {', '.join(option.name for option in candidates)}",
        next="merge again",
    )


def _compare_layout(plan: MergePlan, output: Checkpoint) -> Iterator[TensorMismatch]:
    """Yield tensors that are missing on one side, or differ in shape or type."""
    planned = {tensor.name: tensor for tensor in plan.tensors}
    for name in sorted({*planned, *output.names()}):
        if name not in planned:
            yield TensorMismatch(name, what="is not in the merge plan")
        elif name not in output:
            yield TensorMismatch(name, what="is missing")
        else:
            entry, tensor = output.entry(name), planned[name]
            if (entry.dtype, entry.shape) != (tensor.dtype, tensor.shape):
                what = f"is {entry.dtype} {entry.shape}, not {tensor.dtype} {tensor.shape}"
                yield TensorMismatch(name, what=what)


def _changed_file_error(path: Path, problem: str) -> IntegrityError:
    return IntegrityError(
        f"{path.name} {problem}",
        code="integrity.changed",
        where=str(path),
        expected="the file written by the job",
        next="restore the file, or merge again",
    )


_CAUSAL_SUFFIX = ("ForCausalLM", "LMHeadModel")
_BLOCK_BYTES = 4 << 20
_SHOWN = 5
_PROMPT = range(1, 9)


def run_smoke_test(
    folder: Path,
    parents: Mapping[str, Merge],
    settings: SmokeTestSettings | None = None,
    *,
    seed: int = 0,
    log: MessageLog | None = None,
) -> dict[str, Any]:
    """Check a written checkpoint; return the results as JSON values.

    Args:
        folder: Folder of the checkpoint.
        parents: Its parents by name, each as a merge that copies it; used with records only.
        settings: Records and limits; default no records.
        seed: Random seed of the sampled records.
        log: Receives notes, warnings and skipped checks.

    Returns:
        Number of finite ``tensors``, whether it ``loads``, the generated ``token``, and with
        records the ``perplexity`` of the result and of every parent, and a ``warning`` if it is far
        above.

    Raises:
        CheckpointError: If a value is not finite, it does not load, or its logits are not finite.
        DataError: If the records have no assistant tokens.
    """
    log = log or QuietReporter()
    smoke_settings = settings or SmokeTestSettings.model_validate({})
    checkpoint = Checkpoint.open(folder)
    report: dict[str, Any] = {"tensors": _check_finite(checkpoint), "loads": False}
    named = checkpoint.config.get("stillroom_backend")
    names = checkpoint.config.get("architectures") or ["an unnamed architecture"]
    if named or not str(names[0]).endswith(_CAUSAL_SUFFIX):
        report["not_loaded"] = (
            f"it is read by backend '{named}'"
            if named
            else f"{names[0]} is not a causal language model"
        )
        log.warn(f"checked for finite numbers only: {report['not_loaded']}")
        return report
    from stillroom.merge.search.scoring import MergeScorer, ScoringSettings, draw_records
    from stillroom.models import load_causal_lm

    records = []
    if smoke_settings.records is not None:
        records = draw_records(
            smoke_settings.records,
            split=smoke_settings.split,
            limit=smoke_settings.max_records,
            seed=seed,
            warn=log.warn,
            setting="smoke_test",
        )
    model, tokenizer = load_causal_lm(checkpoint.folder, dtype="float32")
    report |= {"loads": True, "token": _generate_token(model, checkpoint.folder)}
    if records:
        bounds = ScoringSettings(
            max_tokens=smoke_settings.max_tokens, batch_tokens=smoke_settings.batch_tokens
        )
        with tempfile.TemporaryDirectory(prefix="stillroom-smoke-") as scratch:
            scorer = MergeScorer(bounds, Path(scratch) / "parent", log.say)
            result_scores = scorer.measure_model(model, tokenizer, records)
            del model
            parent_scores = {name: scorer.score(merge, records) for name, merge in parents.items()}
        report |= _compare_perplexity(result_scores, parent_scores, smoke_settings, seed)
        if report["warning"]:
            log.warn(report["warning"])
    return report


def _check_finite(checkpoint: Checkpoint) -> int:
    """Check that all tensors are finite; return their number."""
    import numpy as np

    from stillroom.checkpoints.dtypes import BIT_TYPES, has_not_finite

    guilty = []
    for name in checkpoint.names():
        entry = checkpoint.entry(name)
        if entry.dtype in FLOATS and any(
            has_not_finite(
                np.frombuffer(checkpoint.read(name, *rows), BIT_TYPES[entry.dtype]), entry.dtype
            )
            for rows in entry.row_ranges(_BLOCK_BYTES)
        ):
            guilty.append(name)
    if guilty:
        more = f" and {len(guilty) - _SHOWN} more" if len(guilty) > _SHOWN else ""
        raise CheckpointError(
            f"the result has values that are not finite, in {', '.join(guilty[:_SHOWN])}{more}",
            code="merge.smoke",
            where=str(checkpoint.folder),
            expected="finite values in every tensor",
            next="find the model that has them: stillroom merge inspect MODEL...",
        )
    return len(checkpoint.names())


def _generate_token(model: Any, folder: Path) -> int:
    """Generate one token."""
    import torch

    rows = int(model.get_input_embeddings().weight.shape[0])
    ids = torch.tensor([[index % rows for index in _PROMPT]], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=1,
            do_sample=False,
            pad_token_id=0,
        )
    if not bool(torch.isfinite(logits).all()):
        raise CheckpointError(
            "the result loads, but its logits are not finite",
            code="merge.smoke",
            where=str(folder),
            expected="finite logits after eight tokens",
            next="store as bfloat16 or float32, or lower the weights",
        )
    return int(output[0, ids.shape[1]])


def _compare_perplexity(
    result_scores: Sequence[Score],
    parent_scores: Mapping[str, Sequence[Score]],
    settings: SmokeTestSettings,
    seed: int,
) -> dict[str, Any]:
    """Return perplexities of the result and its parents, and a warning if it is far above."""
    from stillroom.evaluate.lm.loss import perplexity

    for name, losses in {"the result": result_scores, **parent_scores}.items():
        if not any(tokens for _, tokens in losses):
            raise DataError(
                f"none of {len(losses)} records has an assistant token to measure {name} on",
                code="merge.no-records",
                where=str(settings.records),
                expected="conversations with an answer",
                next="choose other records, or raise smoke_test.max_tokens",
            )
    merge = perplexity(result_scores, name="merge", seed=seed)
    parents = {
        name: perplexity(losses, name=name, seed=seed) for name, losses in parent_scores.items()
    }
    warning = ""
    worst = max((metric.value for metric in parents.values()), default=math.inf)
    if math.log(merge.value) > math.log(worst) + settings.margin:
        warning = (
            f"the result's perplexity is {merge.value:.4g}, that of the worst parent {worst:.4g}: "
            "the models may not be related, or the weights too large"
        )
    return {
        "perplexity": merge.to_json(),
        "parents": {name: metric.to_json() for name, metric in parents.items()},
        "warning": warning,
    }
