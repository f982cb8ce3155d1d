"""Verification of a written merge: replay from its recipe, and a smoke test.

What ``stillroom verify`` cannot know: it finds changed files, this finds a result that its recipe
does not give. Inputs are read whole and their fingerprints taken anew, not from a cache. Tensors
are drawn by a seed; where a method of ``compat: mergekit`` draws random numbers, all are made
again, since there each depends on those before it.

Every number finite; it loads in transformers; it gives a token; and, with records, its loss stands
beside its parents'. A merge far above every parent is said, not refused: somebody may have wanted
it. Says nothing of quality beyond that.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.safetensors_format import FLOATS
from stillroom.errors import CheckpointError, DataError, IntegrityError, Problem
from stillroom.merge.engine.executor import MergeExecutor, OrderedThreadPool, as_bytes
from stillroom.merge.engine.merge import Merge, open_merge, reconfigure_merge
from stillroom.merge.planning.inputs import limit_run_checkpoints
from stillroom.merge.recipe import MergeRecipe
from stillroom.merge.search.selection import MergeCandidate, list_candidates, list_parent_candidates
from stillroom.merge.search.space import apply_changes
from stillroom.merge.settings import SmokeSettings
from stillroom.provenance import Artifact, digest_file, digest_json, read_artifact, resolve_parent
from stillroom.provenance.sources import is_reference

if TYPE_CHECKING:
    from stillroom.merge.planning.inputs import MergeSource
    from stillroom.merge.planning.plan import MergePlan, PlannedTensor
    from stillroom.merge.search.scoring import Score
    from stillroom.records import Record

__all__ = [
    "TensorMismatch",
    "Verification",
    "run_smoke_test",
    "verify_merge",
]


@dataclass(frozen=True, slots=True)
class TensorMismatch:
    """A tensor that is not what the recipe gives: how many numbers differ, and the first's index.

    ``elements`` is 0 where it is another tensor altogether, and ``what`` says how.
    """

    name: str
    elements: int = 0
    first: int = 0
    what: str = ""

    def __str__(self) -> str:
        """Return what continues a sentence that begins with the tensor's name."""
        if self.what:
            return self.what
        return f"differs in {self.elements} numbers, the first at {self.first}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What was compared: inputs by name, how many tensors of how many, and what differs."""

    inputs: Mapping[str, str]
    tensors: int
    replayed: tuple[str, ...]
    is_whole: bool
    differences: tuple[TensorMismatch, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "inputs": dict(self.inputs),
            "tensors": self.tensors,
            "replayed": list(self.replayed),
            "whole": self.is_whole,
            "differences": [
                {"name": each.name, "elements": each.elements, "what": str(each)}
                for each in self.differences
            ],
        }

    def check(self, folder: Path) -> None:
        """Refuse a result that its recipe does not give.

        Raises:
            IntegrityError: If a tensor differs; every one is named.
        """
        if self.differences:
            raise IntegrityError(
                [
                    Problem(
                        f"tensor '{each.name}' {each}",
                        "merge.not-replayed",
                        str(folder),
                        "the bytes that the recipe gives with these inputs",
                        "merge again, or find who changed the weights",
                    )
                    for each in self.differences
                ]
            )


def verify_merge(
    folder: Path,
    *,
    share: float = 0.1,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
    threads: int = 0,
) -> Verification:
    """Replay a share of a merge's tensors and compare them with what lies there.

    Args:
        folder: What a job of kind merge left.
        share: How many of the tensors, from 0 to 1; at least one.
        seed: Which tensors.
        say: Hears that all tensors are replayed, where that is needed.
        threads: How many blocks are worked on at once, 0 as many as pay; changes no bit.

    Raises:
        DataError: If the folder is not a merge's.
        IntegrityError: If the recipe or an input is not what it was.
        CheckpointError: If an input or the result cannot be opened.
    """
    artifact = read_artifact(folder)
    recipe = _read_recipe(folder, artifact)
    placed = limit_run_checkpoints(_find_inputs(recipe, artifact, folder), say)
    merge = open_merge(placed, say)
    recipe = recipe.model_copy(update={"models": placed.models})
    inputs = _check_inputs(merge, artifact, folder)
    kept = _find_written_merge(recipe, merge, artifact)
    output = Checkpoint.open(folder)
    plan = kept.plan()
    wrong = list(_compare_layout(plan, output))
    spoiled = {each.name for each in wrong}
    listed = [tensor for tensor in plan.tensors if tensor.name not in spoiled]
    count = min(len(listed), max(1, round(share * len(listed))))
    picked = set(random.Random(seed).sample([tensor.name for tensor in listed], count))
    with OrderedThreadPool(threads) as workers:
        replay = _Replay(kept, plan, output, workers)
        chosen = [tensor for tensor in listed if tensor.name in picked]
        found = replay.compare(chosen)
        if replay.is_random and len(chosen) < len(plan.tensors):
            if say:
                say("random numbers of one tensor depend on those before: all are replayed")
            replay = _Replay(kept, plan, output, workers)
            found = replay.compare(plan.tensors, skip=spoiled)
            chosen = listed
    names = tuple(tensor.name for tensor in chosen)
    whole = len(names) == len(plan.tensors)
    return Verification(inputs, len(plan.tensors), names, whole, (*wrong, *found))


class _Replay:
    """Makes tensors again, in the plan's order."""

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
        found = []
        for tensor in tensors:
            difference = self._compare(tensor)
            if difference is not None and tensor.name not in (skip or ()):
                found.append(difference)
        self.is_random = before != self.engine.state()
        return found

    def _compare(self, tensor: PlannedTensor) -> TensorMismatch | None:
        width = int(np.prod(tensor.shape[1:], dtype=np.int64))
        start = different = 0
        first = -1
        for bits in self.engine.make(tensor):
            stop = start + (len(bits) if tensor.shape else 1)
            kept = np.frombuffer(self.output.read(tensor.name, start, stop), np.uint8)
            ours = np.frombuffer(as_bytes(bits), np.uint8)
            if not np.array_equal(ours, kept):
                size = max(bits.dtype.itemsize, 1)
                at = (ours.reshape(-1, size) != kept.reshape(-1, size)).any(axis=1)
                different += int(at.sum())
                first = start * width + int(at.argmax()) if first < 0 else first
            start = stop
        return TensorMismatch(tensor.name, different, first) if different else None


def _read_recipe(folder: Path, artifact: Artifact) -> MergeRecipe:
    from stillroom.recipes import load_recipe

    path = folder / "recipe.yaml"
    if artifact.kind != "checkpoint" or "merged" not in artifact.details or not path.is_file():
        raise DataError(
            f"{folder} was not made by a merge",
            code="merge.not-a-merge",
            where=str(folder),
            expected="the folder of a job of kind merge",
            next=f"stillroom show {folder} says what it is",
        )
    if digest_file(path) != artifact.recipe_digest:
        raise _changed_file_error(
            path, "is not the recipe that artifact.json names", "integrity.changed"
        )
    recipe = load_recipe(path)
    if not isinstance(recipe, MergeRecipe):
        raise _changed_file_error(path, f"is of kind {recipe.kind}", "integrity.changed")
    return recipe


def _find_inputs(recipe: MergeRecipe, artifact: Artifact, folder: Path) -> MergeRecipe:
    """Return the recipe with references to where the inputs lie now, if a run was moved."""
    data = recipe.model_dump(mode="json")
    models = iter(data["models"])
    for parent in artifact.parents:
        if parent.role not in ("base", "model"):
            continue
        entry = data if parent.role == "base" else next(models, {})
        key = "base" if parent.role == "base" else "checkpoint"
        if isinstance(parent.path, str) and not is_reference(parent.path):
            path = resolve_parent(folder, parent)
            if path.exists():
                entry[key] = str(path)
    data["search"] = data["select"] = None
    return MergeRecipe.model_validate(data)


def _check_inputs(merge: Merge, artifact: Artifact, folder: Path) -> dict[str, str]:
    """Return every input's fingerprint, taken anew, by its name.

    Raises:
        IntegrityError: If one is not what the artifact says.
    """
    recorded = _read_fingerprints(artifact)
    if len(recorded) != len(merge.sources):
        raise _changed_file_error(
            folder / "artifact.json",
            f"names {len(recorded)} inputs and the recipe {len(merge.sources)}",
            "integrity.changed",
        )
    taken: dict[str, str] = {}
    problems = []
    for source, expected in zip(merge.sources, recorded, strict=True):
        found = _compute_fingerprint(source)
        name = source.name if source.name not in taken else f"{source.name} ({len(taken)})"
        taken[name] = found
        if found != expected:
            problems.append(
                Problem(
                    f"the weights of {source.name} are not what was merged",
                    "merge.input-changed",
                    str(source.checkpoint.folder),
                    f"fingerprint {expected}, not {found}",
                    "restore that checkpoint, or merge again",
                )
            )
    if problems:
        raise IntegrityError(problems)
    return taken


def _read_fingerprints(artifact: Artifact) -> list[Any]:
    """Return the fingerprints that the artifact names, in the recipe's order; it may hold any."""
    chain = artifact.origin.get("chain")
    last = chain[-1] if isinstance(chain, list) and chain else None
    named = last.get("parents") if isinstance(last, Mapping) else None
    return list(named) if isinstance(named, list) else []


def _compute_fingerprint(source: MergeSource) -> str:
    """Return a source's fingerprint with every byte read, none taken from a cache."""
    plain = source.checkpoint.rehash()
    if source.adapted is None:
        return plain
    return digest_json([plain, source.adapted.adapter.fingerprint])


def _find_written_merge(recipe: MergeRecipe, merge: Merge, artifact: Artifact) -> Merge:
    """Return the merge that was written: the recipe's, or the one that was selected or found."""
    details = artifact.details
    if recipe.search is not None:
        found = details.get("search")
        found = found if isinstance(found, Mapping) else {}
        if found.get("changes") is None:
            return _find_candidate(list_parent_candidates(recipe, merge), found)
        try:
            return reconfigure_merge(merge, apply_changes(recipe, found["changes"]))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise IntegrityError(
                "the changes that the artifact names are not of this recipe",
                code="merge.not-replayed",
                expected="settings that the recipe's search could have found",
                next="merge again",
            ) from error
    if recipe.select is not None:
        return _find_candidate(list_candidates(recipe, merge), details)
    return merge


def _find_candidate(candidates: Sequence[MergeCandidate], details: Mapping[str, Any]) -> Merge:
    for candidate in candidates:
        if candidate.name == details.get("kept"):
            return candidate.merge
    raise IntegrityError(
        f"the artifact keeps '{details.get('kept')}', and the recipe has no such candidate",
        code="merge.not-replayed",
        expected=f"one of: {', '.join(each.name for each in candidates)}",
        next="merge again",
    )


def _compare_layout(plan: MergePlan, output: Checkpoint) -> Iterator[TensorMismatch]:
    """Yield tensors that only one side has, or that have another shape or type."""
    planned = {tensor.name: tensor for tensor in plan.tensors}
    for name in sorted({*planned, *output.names()}):
        if name not in planned:
            yield TensorMismatch(name, what="is not in the plan of the merge")
        elif name not in output:
            yield TensorMismatch(name, what="is missing")
        else:
            entry, wanted = output.entry(name), planned[name]
            if (entry.dtype, entry.shape) != (wanted.stored, wanted.shape):
                yield TensorMismatch(
                    name,
                    what=f"is {entry.dtype} {entry.shape}, not {wanted.stored} {wanted.shape}",
                )


def _changed_file_error(path: Path, what: str, code: str) -> IntegrityError:
    return IntegrityError(
        f"{path.name} {what}",
        code=code,
        where=str(path),
        expected="what the job wrote",
        next="restore the file, or merge again",
    )


_CAUSAL_SUFFIX = ("ForCausalLM", "LMHeadModel")


_BLOCK_BYTES = 4 << 20


_SHOWN = 5


_PROMPT = range(1, 9)


def run_smoke_test(
    folder: Path,
    parents: Mapping[str, Merge],
    settings: SmokeSettings | None = None,
    *,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Check a written checkpoint, and return what was found as JSON values.

    Args:
        folder: The checkpoint.
        parents: What it was made of, by name, each as a merge that copies it; looked at only where
            records are given.
        settings: Which records, and how many; default none.
        seed: Which records are drawn.
        say: Hears warnings, and what was not checked.

    Returns:
        ``tensors`` that are finite, whether it ``loads``, the ``token`` it gave, and with records
        the ``perplexity`` of the result and of every parent, and ``warning`` where it is far off.

    Raises:
        CheckpointError: If a number is not finite, or it does not load, or gives no finite logits.
        DataError: If the records have nothing to measure.
    """
    chosen = settings or SmokeSettings.model_validate({})
    checkpoint = Checkpoint.open(folder)
    found: dict[str, Any] = {"tensors": _check_finite(checkpoint), "loads": False}
    named = checkpoint.config.get("stillroom_backend")
    if named:
        found["not_loaded"] = f"it is read by backend '{named}'"
        say(f"checked for finite numbers only: {found['not_loaded']}")
        return found
    names = checkpoint.config.get("architectures") or ["an unnamed architecture"]
    if not str(names[0]).endswith(_CAUSAL_SUFFIX):
        found["not_loaded"] = f"{names[0]} is no causal language model"
        say(f"checked for finite numbers only: {found['not_loaded']}")
        return found
    from stillroom.merge.search.scoring import MergeScorer, ScoringSettings
    from stillroom.models import load_causal_lm

    records = _draw_records(chosen, seed, say)
    model, tokenizer = load_causal_lm(checkpoint.folder, dtype="float32")
    found |= {"loads": True, "token": _generate_token(model, checkpoint.folder)}
    if records:
        bounds = ScoringSettings(max_tokens=chosen.max_tokens, batch_tokens=chosen.batch_tokens)
        with tempfile.TemporaryDirectory(prefix="stillroom-smoke-") as scratch:
            scorer = MergeScorer(bounds, Path(scratch) / "parent", say)
            ours = scorer.measure_model(model, tokenizer, records)
            del model
            theirs = {name: scorer.score(merge, records) for name, merge in parents.items()}
        found |= _compare_perplexity(ours, theirs, chosen, seed)
        if found["warning"]:
            say(f"warning: {found['warning']}")
    return found


def _check_finite(checkpoint: Checkpoint) -> int:
    """Return how many tensors there are, all of them finite."""
    import numpy as np

    from stillroom.checkpoints.dtypes import BIT_TYPES, has_not_finite

    guilty = []
    for name in checkpoint.names():
        entry = checkpoint.entry(name)
        step = max(1, _BLOCK_BYTES // max(entry.row_bytes, 1))
        if entry.dtype not in FLOATS:
            continue
        for start in range(0, entry.rows, step):
            data = checkpoint.read(name, start, min(start + step, entry.rows))
            if has_not_finite(np.frombuffer(data, BIT_TYPES[entry.dtype]), entry.dtype):
                guilty.append(name)
                break
    if guilty:
        more = f" and {len(guilty) - _SHOWN} more" if len(guilty) > _SHOWN else ""
        raise CheckpointError(
            f"the result holds numbers that are not finite, in {', '.join(guilty[:_SHOWN])}{more}",
            code="merge.smoke",
            where=str(checkpoint.folder),
            expected="finite numbers in every tensor",
            next="look for the model that has them: stillroom merge inspect MODEL...",
        )
    return len(checkpoint.names())


def _generate_token(model: Any, folder: Path) -> int:
    """Let it give one token."""
    import torch

    rows = int(model.get_input_embeddings().weight.shape[0])
    ids = torch.tensor([[at % rows for at in _PROMPT]], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        drawn = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=1,
            do_sample=False,
            pad_token_id=0,
        )
    if not bool(torch.isfinite(logits).all()):
        raise CheckpointError(
            "the result loads, and its logits are not finite",
            code="merge.smoke",
            where=str(folder),
            expected="finite logits after eight tokens",
            next="store as bfloat16 or float32, or lower the weights",
        )
    return int(drawn[0, ids.shape[1]])


def _draw_records(settings: SmokeSettings, seed: int, say: Callable[[str], None]) -> list[Record]:
    from stillroom.merge.search.scoring import draw_records

    if settings.records is None:
        return []
    return draw_records(
        settings.records,
        split=settings.split,
        limit=settings.max_records,
        seed=seed,
        say=say,
        setting="smoke",
    )


def _compare_perplexity(
    ours: Sequence[Score],
    theirs: Mapping[str, Sequence[Score]],
    settings: SmokeSettings,
    seed: int,
) -> dict[str, Any]:
    """Return perplexities of the result and its parents, and a warning where it is far above."""
    from stillroom.evaluate.lm.loss import perplexity

    for name, losses in {"the result": ours, **theirs}.items():
        if not any(tokens for _, tokens in losses):
            raise DataError(
                f"none of {len(losses)} records has an assistant's token to measure {name} by",
                code="merge.no-records",
                where=str(settings.records),
                expected="conversations with an answer",
                next="choose other records, or raise smoke.max_tokens",
            )
    merge = perplexity(ours, name="merge", seed=seed)
    parents = {name: perplexity(losses, name=name, seed=seed) for name, losses in theirs.items()}
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
