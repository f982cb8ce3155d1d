"""The merge job: its estimate, its plan explained, and the run that publishes a checkpoint.

Estimates read headers, configs and a sample of the bytes to time the disk, never a whole model.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.errors import RecipeError
from stillroom.jobs import Estimate, Job
from stillroom.merge.engine.merge import Merge, MergeResult, open_merge
from stillroom.merge.interfaces import ArchitectureMerge
from stillroom.merge.planning.inputs import MergeSource, limit_run_checkpoints
from stillroom.merge.planning.plan import MergePlan, PlannedTensor, plan_merge
from stillroom.merge.recipe import MergeRecipe
from stillroom.merge.tensors.linear_algebra import warn_unused_device
from stillroom.merge.tensors.structure import count_layers
from stillroom.objects import is_address, resolve_local
from stillroom.provenance import ARTIFACT_FILE, Artifact, Parent, find_artifact, make_parent
from stillroom.records import Link, Origin, combine_origins, find_license_warnings
from stillroom.registry import suggest

if TYPE_CHECKING:
    from stillroom.merge.search.run import SearchResult

__all__ = [
    "compare_sources",
    "estimate",
    "estimate_seconds",
    "explain_tensor",
    "list_warnings",
    "run",
]


_BYTES_PER_SECOND = 2e8


_OPERATIONS_PER_SECOND = 1.5e10


_TOKENS_PER_RECORD = 300


_GGUF_GROWTH = 7


def run(recipe: MergeRecipe, job: Job) -> Artifact:
    """Merge, or select among candidate merges, and publish the checkpoint.

    Raises:
        CheckpointError: If a source is missing or broken, or sources do not match.
        ShapeError: If a tensor's shapes differ.
        DataError: If the records for scoring have no tokens to score.
        Cancelled: If the user stopped it; ``--resume`` continues.
    """
    recipe = limit_run_checkpoints(recipe, job.say)
    started = open_merge(recipe, job.say)
    base, parents, sources = started.base, list(started.parents), list(started.sources)
    merge, details, search_result = _select_or_search(recipe, started, job)
    result_recipe = search_result.recipe if search_result else recipe
    if search_result is not None and search_result.details["helped"]:
        sources = list(merge.sources)
    unused = warn_unused_device(recipe.device, recipe.method, recipe.compat)
    for line in (*unused, *merge.plan().notes):
        job.say(line)
    journal = job.journal("tensors")
    plan = merge.plan()
    with job.phase("merge", len(plan.tensors), "tensors") as progress:

        def on_tensor() -> None:
            progress.advance()
            job.check_cancelled()

        merged = merge.write(
            job.output,
            shard_size=recipe.out.shard_size,
            journal=journal,
            on_tensor=on_tensor,
            finish=lambda writer: _write_card(writer, result_recipe, sources, details),
        )
    if search_result is not None:
        from stillroom.merge.search.run import write_search_result

        write_search_result(search_result, job)
    if recipe.smoke:
        details = {**details, "smoke": _run_smoke_test(recipe, started, job)}
    if merged.error:
        job.say(
            f"relative error against float64 {merged.error['stored']:.2e}; rounding to the storage "
            f"type alone {merged.error['least']:.2e} ({merged.error['blocks']} blocks)"
        )
    if merged.copied:
        job.say(f"copied, not merged: {', '.join(merged.copied)}")
    if isinstance(recipe.method, ArchitectureMerge):
        warnings = recipe.method.review(Checkpoint.open(job.output))
        for warning in warnings:
            job.say(f"warning: {warning}")
        details = {**details, "notes": list(plan.notes), "warnings": list(warnings)}
    return job.finish(
        "checkpoint",
        parents=_list_parents(recipe, base, parents, job.out),
        origin=_combine_origin(recipe, sources).to_json(),
        details=_build_details(result_recipe, merged, sources) | details,
    )


def _select_or_search(
    recipe: MergeRecipe, merge: Merge, job: Job
) -> tuple[Merge, dict[str, Any], SearchResult | None]:
    """Return the merge to write, the details of the choice, and the result of a search.

    Scoring modules are imported only if needed: importing takes longer than a small merge.
    """
    details: dict[str, Any] = {}
    if recipe.select:
        from stillroom.merge.search.selection import select_merge

        merge, details = select_merge(recipe, merge, job)
    if recipe.search:
        from stillroom.merge.search.run import search_merge

        search_result = search_merge(recipe, merge, job)
        return search_result.merge, {"search": search_result.details}, search_result
    return merge, details, None


def _run_smoke_test(recipe: MergeRecipe, merge: Merge, job: Job) -> dict[str, Any]:
    """Check the written checkpoint against the parents of the recipe's initial merge."""
    from stillroom.merge.search.selection import list_parent_candidates
    from stillroom.merge.verification import run_smoke_test

    copies = {
        candidate.name: candidate.merge for candidate in list_parent_candidates(recipe, merge)
    }
    return run_smoke_test(job.output, copies, recipe.smoke, seed=recipe.seed, say=job.say)


def estimate(recipe: MergeRecipe) -> Estimate:
    """Estimate the cost of a merge from headers; missing sources count as zero."""
    try:
        if any(_is_unavailable(reference) for reference in _list_references(recipe)):
            raise FileNotFoundError
        plan = plan_merge(recipe)
        read, written = plan.read_bytes * plan.passes, plan.written_bytes
        memory, basis = plan.memory_bytes, "headers of the models"
    except FileNotFoundError:
        sizes = [_measure_size(reference) for reference in _list_references(recipe)]
        read, written = sum(sizes), max(sizes)
        memory, basis = 100_000_000, "sizes of the available models"
    seconds = (read + written) / _BYTES_PER_SECOND
    memory += 300_000_000
    scoring = recipe.search or recipe.select
    if scoring:
        from stillroom.merge.search.selection import count_candidates

        count = count_candidates(recipe) + (recipe.search.count_scored() if recipe.search else 0)
        tokens = scoring.max_records * min(scoring.max_tokens, _TOKENS_PER_RECORD)
        seconds += count * (seconds + written / 4 * 2 * tokens / _OPERATIONS_PER_SECOND)
        memory += 2 * written + 500_000_000
    return Estimate(
        memory_bytes=memory,
        disk_bytes=written * (2 if scoring else 1),
        seconds=seconds,
        memory_knob="lower batch_tokens of select or search" if scoring else "",
        disk_knob="store as out.dtype=bfloat16",
        basis=basis,
    )


def _list_references(recipe: MergeRecipe) -> list[str]:
    return [*([recipe.base] if recipe.base else []), *(m.checkpoint for m in recipe.models)]


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
    folder = path / "output" if (path / ARTIFACT_FILE).is_file() else path
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _list_parents(
    recipe: MergeRecipe, base: MergeSource | None, parents: list[MergeSource], near: Path
) -> list[Parent]:
    listed = [_describe_parent("base", recipe.base, base, near)] if base and recipe.base else []
    stops = accumulate(max(entry.along_run, 1) for entry in recipe.models)
    listed += [
        _describe_parent("model", entry.checkpoint, parents[stop - 1], near)
        for entry, stop in zip(recipe.models, stops, strict=True)
    ]
    for scoring in (recipe.select, recipe.search, recipe.smoke):
        if scoring and scoring.records:
            listed.append(make_parent("records", resolve_local(scoring.records), near))
    return listed


def _describe_parent(role: str, reference: str, source: MergeSource, near: Path) -> Parent:
    path = Path(reference)
    if not is_address(reference) and (path / ARTIFACT_FILE).is_file():
        return make_parent(role, path, near)
    artifact = find_artifact(reference)  # from a published job
    if artifact is not None:
        return Parent(role, reference, artifact.digest, artifact.kind)
    shown = str(path.absolute()) if path.exists() else reference
    return Parent(role, shown, source.fingerprint, "checkpoint")


def _combine_origin(recipe: MergeRecipe, sources: list[MergeSource]) -> Origin:
    """Return the origin of the result: those of all parents combined, and this step."""
    artifacts = [find_artifact(reference) for reference in _list_references(recipe)]
    origins = [
        Origin.from_json(artifact.origin) if artifact.origin else Origin()
        for artifact in artifacts
        if artifact is not None
    ]
    licenses = [Origin(license=source.license) for source in sources]
    return combine_origins([*origins, *licenses]).then(
        Link(
            f"merge.methods.{recipe.method.method_name()}",
            parents=tuple(source.fingerprint for source in sources),
        )
    )


def _list_dequantized(sources: list[MergeSource]) -> dict[str, str]:
    """Return the original format of each dequantized source."""
    return {
        source.name: source.checkpoint.dequantized_from
        for source in sources
        if source.checkpoint.dequantized_from
    }


def _build_details(
    recipe: MergeRecipe, merged: MergeResult, sources: list[MergeSource]
) -> dict[str, Any]:
    return {
        "method": recipe.method.model_dump(mode="json"),
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
    writer: CheckpointWriter,
    recipe: MergeRecipe,
    sources: list[MergeSource],
    details: Mapping[str, Any],
) -> None:
    name = recipe.method.method_name()
    lines = [f"Made by Stillroom with the method `{name}`", ""]
    lines[0] += f" ({recipe.method.paper})." if recipe.method.paper else "."
    settings = recipe.method.model_dump(mode="json")
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
    if details:
        from stillroom.merge.search.run import format_search

        searched = details.get("search")
        lines += ["", format_search(searched) if searched else _format_selection(details)]
    licenses = combine_origins(Origin(license=source.license) for source in sources)
    writer.write_card(
        f"{name} merge",
        "\n".join(lines),
        license=licenses.license,
        base_models=[source.name for source in sources],
        relation="merge",
        tags=["merge", name],
    )


def _format_selection(details: Mapping[str, Any]) -> str:
    if "left_out" in details:
        return f"No merge was judged: {details['left_out']}. Kept as it is: {details['kept']}."
    helped = "did" if details["helped"] else "did not"
    return (
        f"Kept of {len(details['candidates'])} candidates: {details['kept']}. "
        f"Merging {helped} lower the held-out loss."
    )


_SAMPLE_BYTES = 64 << 20


_READ_BYTES = 4 << 20


_ARITHMETIC_BYTES_PER_SECOND = 1.0e9


_SHOWN = ("model_type", "hidden_size", "num_attention_heads", "vocab_size")


def compare_sources(sources: Sequence[MergeSource]) -> list[dict[str, Any]]:
    """Return one row per source, from its config, tokenizer and headers."""
    rows = []
    for source in sources:
        checkpoint = source.checkpoint
        kinds = Counter(checkpoint.entry(name).dtype for name in checkpoint.names())
        rows.append(
            {
                "name": source.name,
                **{key: checkpoint.config.get(key) for key in _SHOWN},
                "layers": count_layers(checkpoint.config),
                "parameters": checkpoint.parameters,
                "dtypes": dict(kinds.most_common()),
                "tied": checkpoint.is_tied,
                "vocabulary": checkpoint.vocabulary_digest[:12],
                "license": source.license,
                "bytes": checkpoint.size_bytes,
            }
        )
    return rows


def list_warnings(plan: MergePlan, sources: Sequence[MergeSource]) -> list[str]:
    """Return warnings about a plan: one-sided tensors, licenses, mixed storage types."""
    warnings = []
    every = {name for source in sources for name in source.checkpoint.names()}
    for source in sources:
        lacking = sorted(every - set(source.checkpoint.names()) - set(plan.tied))
        if lacking:
            more = f" and {len(lacking) - 4} more" if lacking[4:] else ""
            shown = ", ".join(lacking[:4]) + more
            warnings.append(f"{source.name} lacks {len(lacking)} tensors that others have: {shown}")
    licenses = [(source.name, source.license) for source in sources]
    warnings += find_license_warnings(licenses, "the models", "this merge")
    kinds = {tensor.dtype for tensor in plan.tensors if tensor.is_merged}
    if len(kinds) > 1:
        warnings.append(f"the result will hold several storage types: {', '.join(sorted(kinds))}")
    return warnings


def estimate_seconds(plan: MergePlan, sources: Sequence[MergeSource]) -> tuple[float, float]:
    """Return the estimated seconds of the merge, and the measured read rate in bytes per second.

    The sample is read from the sources' files; recently read files come from the page cache, which
    is faster.
    """
    rate = _measure_read_rate(sources)
    moved = plan.read_bytes * plan.passes
    return (moved + plan.written_bytes) / rate + moved / _ARITHMETIC_BYTES_PER_SECOND, rate


def explain_tensor(plan: MergePlan, sources: Sequence[MergeSource], name: str) -> dict[str, Any]:
    """Describe one tensor of the plan, with its resolved settings.

    Raises:
        RecipeError: If the result has no such tensor.
    """
    tensor = next((candidate for candidate in plan.tensors if candidate.name == name), None)
    if tensor is None:
        near = suggest(name, [candidate.name for candidate in plan.tensors])
        raise RecipeError(
            f"the result has no tensor '{name}'",
            code="merge.no-tensor",
            where=name,
            expected=f"one of its {len(plan.tensors)} tensors",
            next=f"did you mean '{near}'?" if near else "stillroom merge plan --json lists them",
        )
    inputs: list[dict[str, Any]] = [
        {"source": sources[home.source].name, "tensor": home.name} for home in tensor.parents
    ]
    if tensor.settings is not None:
        for row, weight, settings in zip(
            inputs, tensor.settings.weights, tensor.settings.per_model, strict=True
        ):
            row |= {"weight": weight, **dict(settings)}
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "stored": tensor.dtype,
        "layer": tensor.layer,
        "is_token_table": tensor.is_token_table,
        "method": tensor.settings.method.model_dump(mode="json")
        if tensor.settings
        else _describe_copy(tensor),
        "base": tensor.base.name if tensor.base else None,
        "parents": inputs,
    }


def _describe_copy(tensor: PlannedTensor) -> str:
    return "made" if tensor.made else "copy"


def _measure_read_rate(sources: Sequence[MergeSource]) -> float:
    """Measure the read rate on up to 64 MB of the sources' files, in bytes per second."""
    files = [path for source in sources for path in source.checkpoint.files]
    share = max(_READ_BYTES, _SAMPLE_BYTES // max(len(files), 1))
    done, started = 0, time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            size = path.stat().st_size
            file.seek(max(0, (size - share) // 2), os.SEEK_SET)
            remaining = share
            while remaining > 0 and (data := file.read(min(remaining, _READ_BYTES))):
                remaining -= len(data)
                done += len(data)
    return max(done, 1) / max(time.perf_counter() - started, 1e-6) if done else math.inf
