"""What the merge kinds' jobs share: the written checkpoint with its card, and estimates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stillroom.jobs import Estimate, Job
from stillroom.objects import is_address, resolve_local
from stillroom.provenance import (
    ARTIFACT_FILE,
    Artifact,
    Parent,
    digest_json,
    find_artifact,
    find_output,
    make_parent,
)
from stillroom.records import Link, Origin, combine_origins

if TYPE_CHECKING:
    from stillroom.checkpoints import Checkpoint, CheckpointWriter
    from stillroom.merge.engine.merge import Merge, MergeResult
    from stillroom.merge.jobs.recipe import MergeInput, MergeJobRecipe
    from stillroom.merge.planning.inputs import MergeSource
    from stillroom.merge.planning.plan import MergePlan, PlannedTensor
    from stillroom.merge.settings import SearchSettings, SelectionSettings

__all__ = [
    "TENSORS",
    "Outcome",
    "estimate_merge",
    "estimate_scoring",
    "open_limited",
    "publish",
    "publish_merge",
]

R = TypeVar("R", bound="MergeJobRecipe")

_BYTES_PER_SECOND = 2e8
_OPERATIONS_PER_SECOND = 1.5e10
_TOKENS_PER_RECORD = 300
_GGUF_GROWTH = 7
_COMPARED_ELEMENTS = 1 << 18
TENSORS = "tensors/"
"""Start of the names of the segments that are tensors."""


@dataclass(frozen=True)
class Outcome:
    """What a job writes, where that is not simply the recipe's merge.

    Attributes:
        merge: The merge to write.
        recipe: The recipe of the result; None: that of the job.
        sources: Sources of the result; None: those of the recipe's merge.
        details: Details for the artifact.
        card: Paragraph for the card.
        records: References of records that are parents of the result.
        finish: Called after the checkpoint was written.
    """

    merge: Merge
    recipe: MergeJobRecipe | None = None
    sources: tuple[MergeSource, ...] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    card: str = ""
    records: tuple[str, ...] = ()
    finish: Callable[[], None] = lambda: None


def open_limited(recipe: R, job: Job) -> tuple[R, Merge]:
    """Return the recipe with the checkpoints that runs have, and its merge.

    Raises:
        CheckpointError: If a source is missing or broken, or has too few run checkpoints.
    """
    from stillroom.merge.engine.merge import open_merge

    recipe = recipe.limit(job)
    return recipe, open_merge(recipe, job)


def publish_merge(recipe: MergeJobRecipe, job: Job) -> Artifact:
    """Write the merge that a recipe describes; raises as ``publish``."""
    recipe, merge = open_limited(recipe, job)
    return publish(recipe, merge, Outcome(merge), job)


def publish(recipe: MergeJobRecipe, started: Merge, outcome: Outcome, job: Job) -> Artifact:
    """Write a merge and publish the checkpoint.

    Raises:
        CheckpointError: If a source is broken, or sources do not match.
        ShapeError: If a tensor's shapes differ.
        Cancelled: If the user stopped it; ``--resume`` continues.
    """
    from stillroom.checkpoints import Checkpoint
    from stillroom.merge.interfaces import MergeMethod
    from stillroom.merge.planning.plan import list_warnings
    from stillroom.merge.tensors.linear_algebra import warn_unused_device

    merge, made_by = outcome.merge, outcome.recipe or recipe
    sources = list(outcome.sources or started.sources)
    plan, journal = merge.plan(), job.journal("tensors")
    for note in plan.notes:
        job.say(note)
    unused = warn_unused_device(started.device, started.method, started.rules.arithmetic)
    for warning in (*unused, *list_warnings(plan, merge.sources)):
        job.warn(warning)
    before = set(journal.keys())
    done = sum(tensor.size_bytes for tensor in plan.tensors if tensor.name in before)
    weight, pending = plan.written_bytes - done, iter(plan.tensors)
    with job.phase("merge", len(plan.tensors), "tensors", weight=weight) as progress:

        def on_tensor() -> None:
            tensor = next(pending)
            progress.advance(weight=0 if tensor.name in before else tensor.size_bytes)
            job.check_cancelled()

        merged = merge.write(
            job.output,
            shard_size=recipe.out.shard_size,
            journal=journal,
            on_tensor=on_tensor,
            finish=lambda writer: _write_card(writer, made_by, sources, outcome.card),
        )
    outcome.finish()
    details = dict(outcome.details)
    if recipe.smoke_test:
        details["smoke_test"] = _run_smoke_test(recipe, started, job)
    if merged.error:
        job.say(
            f"relative error against float64 {merged.error['stored']:.2e}; rounding to the storage "
            f"type alone {merged.error['least']:.2e} ({merged.error['blocks']} blocks)"
        )
    if merged.copied:
        job.say(f"copied, not merged: {', '.join(merged.copied)}")
    warnings = _list_equal_sources(plan, Checkpoint.open(job.output), merge.sources)
    if warnings:
        with (job.output / "README.md").open("a", encoding="utf-8") as card:
            card.write("".join(f"\nWarning: {warning}.\n" for warning in warnings))
    warnings += recipe.review(Checkpoint.open(job.output))
    if not isinstance(started.method, MergeMethod):
        details["notes"] = list(plan.notes)
    for warning in warnings:
        job.warn(warning)
    _commit_tensors(job, sources, merged.digests)
    return job.finish(
        "checkpoint",
        parents=_list_parents(recipe, started, outcome.records, job.out),
        origin=_combine_origin(recipe, sources).to_json(),
        details=_build_details(made_by, merged, sources) | details,
    )


def _list_equal_sources(
    plan: MergePlan, output: Checkpoint, sources: Sequence[MergeSource]
) -> list[str]:
    """Return a warning for each source that the merge of several left unchanged.

    Settings at an extreme (weights or a scale of 0, a density of 0, t of 0 or 1) are valid for some
    tensors, so the result is compared rather than the settings. A source is read up to its first
    difference. Tables of tokens, whose rows may be rearranged, are not compared.
    """
    if len(sources) > 1 and not any(one.is_merged for one in plan.tensors):
        copied = {home.source for tensor in plan.tensors for home in tensor.inputs}
        names = [sources[number].name for number in copied]
        # copies of several are a mixture of experts, or layers that are stacked
        return [f"no tensor was merged: all are copies of {names[0]}"] if len(names) == 1 else []
    tensors = [one for one in plan.tensors if one.is_merged and not one.is_token_table]
    used = {home.source for tensor in tensors for home in tensor.inputs}
    return [
        f"the result equals {sources[number].name} in all {len(tensors)} merged tensors: the "
        "weights and settings leave nothing of the other models, or these are the same"
        for number in sorted(used if len(used) > 1 else ())
        if all(_is_equal(tensor, output, number, sources[number]) for tensor in tensors)
    ]


def _is_equal(tensor: PlannedTensor, output: Checkpoint, number: int, source: MergeSource) -> bool:
    import numpy as np

    from stillroom.checkpoints.dtypes import narrow

    name = next((home.name for home in tensor.inputs if home.source == number), None)
    rows = tensor.shape[0] if tensor.shape else 1
    step = max(1, _COMPARED_ELEMENTS // max(math.prod(tensor.shape[1:]), 1))
    return name is not None and all(
        narrow(
            source.read(name, start, min(start + step, rows), np.float64), tensor.dtype
        ).tobytes()
        == bytes(output.read(tensor.name, start, min(start + step, rows)))
        for start in range(0, rows, step)
    )


def _commit_tensors(job: Job, sources: list[MergeSource], digests: Mapping[str, str]) -> None:
    """Commit each tensor: from the recipe and the fingerprints of the merged models."""
    start = digest_json([job.recipe_digest, [source.fingerprint for source in sources]])
    for name, digest in digests.items():
        job.commit(f"{TENSORS}{name}", start, digest)


def _run_smoke_test(recipe: MergeJobRecipe, merge: Merge, job: Job) -> dict[str, Any]:
    """Check the written checkpoint against the parents of the recipe's initial merge."""
    from stillroom.merge.search.selection import list_parent_candidates
    from stillroom.merge.verification import run_smoke_test

    copies = {
        candidate.name: candidate.merge for candidate in list_parent_candidates(recipe, merge)
    }
    return run_smoke_test(job.output, copies, recipe.smoke_test, seed=recipe.seed, log=job)


def estimate_merge(recipe: MergeJobRecipe, *, by_size: bool = False) -> Estimate:
    """Estimate the cost of a merge from headers; missing sources count as zero.

    Args:
        recipe: The recipe.
        by_size: Use the sizes of the files, because the layers of the result are not known.
    """
    references = [model.reference for model in recipe.list_inputs()]
    try:
        if by_size or any(_is_unavailable(reference) for reference in references):
            raise FileNotFoundError
        plan = recipe.limit().open().plan()
        read, written = plan.read_bytes * plan.passes, plan.written_bytes
        memory, basis = plan.memory_bytes, "headers of the models"
    except FileNotFoundError:
        sizes = [_measure_size(reference) for reference in references]
        read, written = sum(sizes), max(sizes)
        memory, basis = 100_000_000, "sizes of the available models"
    return Estimate(
        memory_bytes=memory + 300_000_000,
        disk_bytes=written,
        seconds=(read + written) / _BYTES_PER_SECOND,
        memory_knob="",
        disk_knob="store as out.dtype=bfloat16",
        basis=basis,
    )


def estimate_scoring(
    merge: Estimate, section: str, settings: SelectionSettings | SearchSettings, candidates: int
) -> Estimate:
    """Add to a merge's estimate the cost of scoring candidates on records."""
    written = merge.disk_bytes
    tokens = settings.max_records * min(settings.max_tokens, _TOKENS_PER_RECORD)
    each = merge.seconds + written / 4 * 2 * tokens / _OPERATIONS_PER_SECOND
    return Estimate(
        memory_bytes=merge.memory_bytes + 2 * written + 500_000_000,
        disk_bytes=2 * written,
        seconds=merge.seconds + candidates * each,
        memory_knob=f"lower {section}.batch_tokens",
        disk_knob=merge.disk_knob,
        basis=merge.basis,
    )


def _is_unavailable(reference: str) -> bool:
    """Whether a reference is expensive to read: missing, remote, or quantized."""
    path = Path(reference)
    return not path.is_dir() or not any(
        (folder / "config.json").is_file() for folder in (path, path / "output")
    )


def _measure_size(reference: str) -> int:
    path = Path(reference)
    if path.is_file():
        return path.stat().st_size * _GGUF_GROWTH
    folder = find_output(path) if path.is_dir() else path
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _list_parents(
    recipe: MergeJobRecipe, merge: Merge, records: tuple[str, ...], near: Path
) -> list[Parent]:
    listed, stop = [], 0
    for model in recipe.list_inputs():
        stop += model.sources
        listed.append(_describe_parent(model, merge.sources[stop - 1], near))
    smoke_records = recipe.smoke_test.records if recipe.smoke_test else None
    return listed + [
        make_parent("records", resolve_local(reference), near)
        for reference in (*records, smoke_records)
        if reference
    ]


def _describe_parent(model: MergeInput, source: MergeSource, near: Path) -> Parent:
    path = Path(model.reference)
    if not is_address(model.reference) and (path / ARTIFACT_FILE).is_file():
        return make_parent(model.role, path, near)
    artifact = find_artifact(model.reference)  # from a published job
    if artifact is not None:
        return Parent(model.role, model.reference, artifact.digest, artifact.kind, artifact.claim)
    shown = str(path.absolute()) if path.exists() else model.reference
    return Parent(model.role, shown, source.fingerprint, "checkpoint")


def _combine_origin(recipe: MergeJobRecipe, sources: list[MergeSource]) -> Origin:
    """Return the origin of the result: those of all parents combined, and this step."""
    artifacts = [find_artifact(model.reference) for model in recipe.list_inputs()]
    origins = [
        Origin.from_json(artifact.origin) if artifact.origin else Origin()
        for artifact in artifacts
        if artifact is not None
    ]
    licenses = [Origin(license=source.license) for source in sources]
    fingerprints = tuple(source.fingerprint for source in sources)
    return combine_origins([*origins, *licenses]).then(
        Link(recipe.origin_step, parents=fingerprints)
    )


def _list_dequantized(sources: list[MergeSource]) -> dict[str, str]:
    """Return the original format of each dequantized source."""
    return {
        source.name: source.checkpoint.dequantized_from
        for source in sources
        if source.checkpoint.dequantized_from
    }


def _build_details(
    recipe: MergeJobRecipe, merged: MergeResult, sources: list[MergeSource]
) -> dict[str, Any]:
    return {
        "method": recipe.describe_method()[0],
        "fingerprint": merged.fingerprint,
        "sources": {source.name: source.fingerprint for source in sources},
        **({"dequantized": dequantized} if (dequantized := _list_dequantized(sources)) else {}),
        "merged": merged.merged,
        "copied": list(merged.copied),
        "tied": list(merged.tied),
        "error": dict(merged.error) if merged.error else None,
        **({"made": dict(merged.notes)} if merged.notes else {}),
    }


def _write_card(
    writer: CheckpointWriter, recipe: MergeJobRecipe, sources: list[MergeSource], more: str
) -> None:
    settings, paper = recipe.describe_method()
    name = settings["name"]
    lines = [f"Made by Stillroom with the method `{name}`", ""]
    lines[0] += f" ({paper})." if paper else "."
    lines += ["| setting | value |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in settings.items()]
    lines += ["", "| model | weight | fingerprint |", "|---|---|---|"]
    lines += [
        f"| {source.name} | {source.weight:g} | `{source.fingerprint}` |" for source in sources
    ]
    dequantized = _list_dequantized(sources)
    if dequantized:
        listed = ", ".join(f"{source} from {kind}" for source, kind in dequantized.items())
        lines += ["", f"Dequantized before they were merged: {listed}."]
    if more:
        lines += ["", more]
    licenses = combine_origins(Origin(license=source.license) for source in sources)
    writer.write_card(
        f"{name} merge",
        "\n".join(lines),
        license=licenses.license,
        base_models=[source.name for source in sources],
        relation="merge",
        tags=["merge", name],
    )
