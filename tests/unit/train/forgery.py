"""A forger who computes every digest of a finished training anew."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from stillroom.jobs.journal import Journal, read_journal
from stillroom.jobs.segments import commit_segments
from stillroom.provenance import digest_json, digest_text, read_artifact
from stillroom.provenance.artifact import list_files
from stillroom.train.commitment import digest_tensors

_SIGNED = ("model.sig", "claims.jsonl", "signer.pub")


def reseal(folder: Path, *, recipe=None, parents=None, plan=None, rows=None, state=None) -> None:
    """Make a job's digests agree with its files, as whoever forged them would.

    Args:
        folder: The job's folder.
        recipe: Text of the recipe that the forger claims.
        parents: Parents that the forger claims.
        plan: Changes of the first row of the training.
        rows: Changes of other rows, by key, after these were chained again.
        state: Step after which the kept state was changed, whose row is to follow it.
    """
    artifact = read_artifact(folder)
    if recipe is not None:
        (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
        artifact = replace(artifact, recipe_digest=digest_text(recipe))
    artifact = replace(artifact, parents=parents if parents is not None else artifact.parents)
    path = folder / "committed" / "train.jsonl"
    table = forge_rows(folder, read_journal(path), plan or {}, state)
    for key, changes in (rows or {}).items():
        table[key].update(changes)
    others = [one for one in path.parent.glob("*.jsonl") if one != path]
    kept = {one.stem: read_journal(one) for one in others} | {"train": table}
    start = digest_json([artifact.recipe_digest, [parent.digest for parent in artifact.parents]])
    with ExitStack() as stack:
        journals = {}
        for name, values in kept.items():
            scratch = folder.with_name(f"{folder.name}-{name}.jsonl")
            scratch.unlink(missing_ok=True)
            journals[name] = stack.enter_context(Journal(scratch))
            for key, value in values.items():
                journals[name].put(key, value)
        committed = commit_segments(folder, start, journals, frozenset(), None)
    artifact = replace(
        artifact,
        files=list_files(folder),
        timed_files=list_files(folder, "", {"output", "recipe.yaml", "artifact.json", *_SIGNED}),
        details={**artifact.details, **committed},
    )
    (folder / "artifact.json").write_text(json.dumps(artifact.to_json()), encoding="utf-8")


def forge_rows(folder: Path, rows: Mapping, plan: Mapping, state: int | None) -> dict:
    """Return changed rows, each chained to the row before it."""
    table, before = {}, None
    for key, row in rows.items():
        row = dict(row)
        if before is None:
            row.update(plan)
        else:
            row["before"] = digest_json(before)
        if state is not None and key.endswith(f"-{state}"):
            tensors = load_file(folder / "committed" / f"train-{state:06d}.safetensors")
            weights = {name: t for name, t in tensors.items() if name.startswith("weights/")}
            moments = {name: t for name, t in tensors.items() if name not in weights}
            row["weights"], row["moments"] = digest_tensors(weights), digest_tensors(moments)
        table[key] = before = row
    return table
