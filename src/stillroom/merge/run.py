"""The job of kind ``merge``: checkpoints in, one checkpoint out."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.jobs import Estimate, Job
from stillroom.merge.device import tell_unused
from stillroom.merge.method import Assembly
from stillroom.merge.opening import open_merge
from stillroom.merge.plan import plan_merge
from stillroom.merge.recipe import MergeRecipe
from stillroom.merge.sources import Source, shorten_runs
from stillroom.merge.stream import Merge, Merged
from stillroom.objects import is_address, local
from stillroom.provenance import ARTIFACT_FILE, Artifact, Parent, find_artifact, make_parent
from stillroom.records import Link, Origin, combine_origins

if TYPE_CHECKING:
    from stillroom.merge.search_result import Found

__all__ = ["estimate", "run"]

_BYTES_PER_SECOND = 2e8
_OPERATIONS_PER_SECOND = 1.5e10
_TOKENS_PER_RECORD = 300
_GGUF_GROWTH = 7


def run(recipe: MergeRecipe, job: Job) -> Artifact:
    """Merge, or choose among candidate merges, and publish the checkpoint.

    Raises:
        CheckpointError: If a source is missing or broken, or sources do not belong together.
        ShapeError: If a tensor's shapes differ.
        DataError: If the records that should judge have nothing to judge by.
        Cancelled: If the user stopped it; ``--resume`` goes on.
    """
    recipe = shorten_runs(recipe, job.say)
    started = open_merge(recipe, job.say)
    base, parents, sources = started.base, list(started.parents), list(started.sources)
    merge, details, found = _choose(recipe, started, job)
    made = found.recipe if found else recipe
    if found is not None and found.details["helped"]:
        sources = list(merge.sources)
    unused = tell_unused(recipe.device, recipe.method, recipe.compat)
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
            finish=lambda writer: _write_card(writer, made, sources, details),
        )
    if found is not None:
        from stillroom.merge.search_result import write_found

        write_found(found, job)
    if recipe.smoke:
        details = {**details, "smoke": _smoke(recipe, started, job)}
    if merged.error:
        job.say(
            f"relative error against float64 {merged.error['stored']:.2e}; the storage type alone "
            f"makes {merged.error['least']:.2e} ({merged.error['blocks']} blocks)"
        )
    if merged.copied:
        job.say(f"copied, not merged: {', '.join(merged.copied)}")
    if isinstance(recipe.method, Assembly):
        warnings = recipe.method.review(Checkpoint.open(job.output))
        for warning in warnings:
            job.say(f"warning: {warning}")
        details = {**details, "notes": list(plan.notes), "warnings": list(warnings)}
    return job.finish(
        "checkpoint",
        parents=_parents(recipe, base, parents, job.out),
        origin=_origin(recipe, sources).to_json(),
        details=_details(made, merged, sources) | details,
    )


def _choose(
    recipe: MergeRecipe, merge: Merge, job: Job
) -> tuple[Merge, dict[str, Any], Found | None]:
    """Return the merge to write, what is to be said of the choice, and what a search found.

    What judges merges is loaded where it is asked for: that takes longer than a small merge does.
    """
    details: dict[str, Any] = {}
    if recipe.select:
        from stillroom.merge.select import select_merge

        merge, details = select_merge(recipe, merge, job)
    if recipe.search:
        from stillroom.merge.search import search_merge

        found = search_merge(recipe, merge, job)
        return found.merge, {"search": found.details}, found
    return merge, details, None


def _smoke(recipe: MergeRecipe, merge: Merge, job: Job) -> dict[str, Any]:
    """Check what was written, beside the parents of the merge that the recipe began with."""
    from stillroom.merge.select import list_parents
    from stillroom.merge.smoke import check_output

    copies = {each.name: each.merge for each in list_parents(recipe, merge)}
    return check_output(job.output, copies, recipe.smoke, seed=recipe.seed, say=job.say)


def estimate(recipe: MergeRecipe) -> Estimate:
    """Say what a merge will need, from headers alone; sources that do not exist yet count zero."""
    try:
        if any(_is_far(reference) for reference in _references(recipe)):
            raise FileNotFoundError
        plan = plan_merge(recipe)
        read, written = plan.read_bytes * plan.passes, plan.written_bytes
        memory, basis = plan.memory_bytes, "headers of the models"
    except FileNotFoundError:
        sizes = [_weigh(reference) for reference in _references(recipe)]
        read, written = sum(sizes), max(sizes)
        memory, basis = 100_000_000, "sizes of those models that are there"
    seconds = (read + written) / _BYTES_PER_SECOND
    memory += 300_000_000
    judge = recipe.search or recipe.select
    if judge:
        from stillroom.merge.select import count_candidates

        count = count_candidates(recipe) + (recipe.search.count_scored() if recipe.search else 0)
        tokens = judge.max_records * min(judge.max_tokens, _TOKENS_PER_RECORD)
        seconds += count * (seconds + written / 4 * 2 * tokens / _OPERATIONS_PER_SECOND)
        memory += 2 * written + 500_000_000
    return Estimate(
        memory_bytes=memory,
        disk_bytes=written * (2 if judge else 1),
        seconds=seconds,
        memory_knob="lower batch_tokens of select or search" if judge else "",
        disk_knob="store as out.dtype=bfloat16",
        basis=basis,
    )


def _references(recipe: MergeRecipe) -> list[str]:
    return [*([recipe.base] if recipe.base else []), *(m.checkpoint for m in recipe.models)]


def _is_far(reference: str) -> bool:
    """Whether a reference cannot be read cheaply now: not there yet, remote, or quantized."""
    path = Path(reference)
    return not path.is_dir() or not any(
        (folder / "config.json").is_file() for folder in (path, path / "output")
    )


def _weigh(reference: str) -> int:
    path = Path(reference)
    if path.is_file():
        return path.stat().st_size * _GGUF_GROWTH
    folder = path / "output" if (path / ARTIFACT_FILE).is_file() else path
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _parents(
    recipe: MergeRecipe, base: Source | None, parents: list[Source], near: Path
) -> list[Parent]:
    listed = [_parent("base", recipe.base, base, near)] if base and recipe.base else []
    stops = accumulate(max(entry.along_run, 1) for entry in recipe.models)
    listed += [
        _parent("model", entry.checkpoint, parents[stop - 1], near)
        for entry, stop in zip(recipe.models, stops, strict=True)
    ]
    for judged in (recipe.select, recipe.search, recipe.smoke):
        if judged and judged.records:
            listed.append(make_parent("records", local(judged.records), near))
    return listed


def _parent(role: str, reference: str, source: Source, near: Path) -> Parent:
    path = Path(reference)
    if not is_address(reference) and (path / ARTIFACT_FILE).is_file():
        return make_parent(role, path, near)
    artifact = find_artifact(reference)  # of a job that was published
    if artifact is not None:
        return Parent(role, reference, artifact.digest, artifact.kind)
    shown = str(path.absolute()) if path.exists() else reference
    return Parent(role, shown, source.fingerprint, "checkpoint")


def _origin(recipe: MergeRecipe, sources: list[Source]) -> Origin:
    """Return the origin of the result: that of all parents together, and this step."""
    made = [find_artifact(reference) for reference in _references(recipe)]
    origins = [
        Origin.from_json(artifact.origin) if artifact.origin else Origin()
        for artifact in made
        if artifact is not None
    ]
    licenses = [Origin(license=source.license) for source in sources]
    return combine_origins([*origins, *licenses]).then(
        Link(
            f"merge.methods.{recipe.method.method_name()}",
            parents=tuple(source.fingerprint for source in sources),
        )
    )


def _dequantized(sources: list[Source]) -> dict[str, str]:
    """Return from what the weights of each source were dequantized, of those that were."""
    return {
        source.name: source.checkpoint.dequantized_from
        for source in sources
        if source.checkpoint.dequantized_from
    }


def _details(recipe: MergeRecipe, merged: Merged, sources: list[Source]) -> dict[str, Any]:
    return {
        "method": recipe.method.model_dump(mode="json"),
        "fingerprint": merged.fingerprint,
        "sources": {source.name: source.fingerprint for source in sources},
        **({"dequantized": made} if (made := _dequantized(sources)) else {}),
        "merged": merged.merged,
        "copied": list(merged.copied),
        "tied": list(merged.tied),
        "error": dict(merged.error) if merged.error else None,
        **({"made": dict(merged.notes)} if merged.notes else {}),
    }


def _write_card(
    writer: CheckpointWriter,
    recipe: MergeRecipe,
    sources: list[Source],
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
    made = _dequantized(sources)
    if made:
        listed = ", ".join(f"{source} from {kind}" for source, kind in made.items())
        lines += ["", f"Dequantized before they were merged: {listed}."]
    if details:
        from stillroom.merge.search_result import say_found

        searched = details.get("search")
        lines += ["", say_found(searched) if searched else _say_selection(details)]
    licenses = combine_origins(Origin(license=source.license) for source in sources)
    writer.write_card(
        f"{name} merge",
        "\n".join(lines),
        license=licenses.license,
        base_models=[source.name for source in sources],
        relation="merge",
        tags=["merge", name],
    )


def _say_selection(details: Mapping[str, Any]) -> str:
    if "left_out" in details:
        return f"No merge was judged: {details['left_out']}. Kept as it is: {details['kept']}."
    helped = "did" if details["helped"] else "did not"
    return (
        f"Kept of {len(details['candidates'])} candidates: {details['kept']}. "
        f"Merging {helped} lower the held-out loss."
    )
