"""What a plan says to a person: the models side by side, what differs, the cost, one tensor's part.

Reads headers, configs and a sample of the bytes to time the disk; never a whole model.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from stillroom.errors import RecipeError
from stillroom.merge.architecture import layer_count
from stillroom.merge.plan import MergePlan, PlannedTensor
from stillroom.merge.sources import Source
from stillroom.records import warn_of_licenses
from stillroom.registry import suggest

__all__ = ["compare_sources", "estimate_seconds", "explain_tensor", "list_warnings"]

_SAMPLE_BYTES = 64 << 20
_READ_BYTES = 4 << 20
_ARITHMETIC_BYTES_PER_SECOND = 1.0e9
_SHOWN = ("model_type", "hidden_size", "num_attention_heads", "vocab_size")


def compare_sources(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Return one row a source: what its config, tokenizer and headers say."""
    rows = []
    for source in sources:
        checkpoint = source.checkpoint
        kinds = Counter(checkpoint.entry(name).dtype for name in checkpoint.names())
        rows.append(
            {
                "name": source.name,
                **{key: checkpoint.config.get(key) for key in _SHOWN},
                "layers": layer_count(checkpoint.config),
                "parameters": checkpoint.parameters,
                "dtypes": dict(kinds.most_common()),
                "tied": checkpoint.is_tied,
                "vocabulary": checkpoint.vocabulary_digest[:12],
                "license": source.license,
                "bytes": checkpoint.size_bytes,
            }
        )
    return rows


def list_warnings(plan: MergePlan, sources: Sequence[Source]) -> list[str]:
    """Return what a user should know before the merge: one-sided tensors, licenses, mixed types."""
    found = []
    every = {name for source in sources for name in source.checkpoint.names()}
    for source in sources:
        lacking = sorted(every - set(source.checkpoint.names()) - set(plan.tied))
        if lacking:
            more = f" and {len(lacking) - 4} more" if lacking[4:] else ""
            shown = ", ".join(lacking[:4]) + more
            found.append(f"{source.name} lacks {len(lacking)} tensors that others have: {shown}")
    licenses = [(source.name, source.license) for source in sources]
    found += warn_of_licenses(licenses, "the models", "this merge")
    kinds = {tensor.stored for tensor in plan.tensors if tensor.is_merged}
    if len(kinds) > 1:
        found.append(f"the result will hold several storage types: {', '.join(sorted(kinds))}")
    return found


def estimate_seconds(plan: MergePlan, sources: Sequence[Source]) -> tuple[float, float]:
    """Return how long the merge will take, and the bytes a second that a sample was read with.

    The sample is what lies on disk now; a file that was just read comes from memory, faster.
    """
    rate = _read_rate(sources)
    moved = plan.read_bytes * plan.passes
    return (moved + plan.written_bytes) / rate + moved / _ARITHMETIC_BYTES_PER_SECOND, rate


def explain_tensor(plan: MergePlan, sources: Sequence[Source], name: str) -> dict[str, Any]:
    """Return what becomes of one tensor, with every setting as it holds there.

    Raises:
        RecipeError: If the result has no such tensor.
    """
    tensor = next((each for each in plan.tensors if each.name == name), None)
    if tensor is None:
        near = suggest(name, [each.name for each in plan.tensors])
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
    if tensor.tuned is not None:
        for row, weight, own in zip(inputs, tensor.tuned.weights, tensor.tuned.own, strict=True):
            row |= {"weight": weight, **dict(own)}
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "stored": tensor.stored,
        "layer": tensor.layer,
        "is_token_table": tensor.is_table,
        "method": tensor.tuned.method.model_dump(mode="json") if tensor.tuned else _place(tensor),
        "base": tensor.base.name if tensor.base else None,
        "parents": inputs,
    }


def _place(tensor: PlannedTensor) -> str:
    return "made" if tensor.made else "copy"


def _read_rate(sources: Sequence[Source]) -> float:
    """Time reading up to 64 MB from the sources' files, bytes a second."""
    files = [path for source in sources for path in source.checkpoint.files]
    share = max(_READ_BYTES, _SAMPLE_BYTES // max(len(files), 1))
    done, begun = 0, time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            size = path.stat().st_size
            file.seek(max(0, (size - share) // 2), os.SEEK_SET)
            left = share
            while left > 0 and (data := file.read(min(left, _READ_BYTES))):
                left -= len(data)
                done += len(data)
    return max(done, 1) / max(time.perf_counter() - begun, 1e-6) if done else math.inf
