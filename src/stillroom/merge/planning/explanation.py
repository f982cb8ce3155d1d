"""A plan explained: its sources beside each other, warnings, duration, and single tensors.

Reads headers, configs and a sample of the bytes to time the disk, never a whole model.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from stillroom.errors import RecipeError
from stillroom.merge.planning.inputs import MergeSource
from stillroom.merge.planning.plan import MergePlan
from stillroom.merge.tensors.structure import count_layers
from stillroom.records import find_license_warnings
from stillroom.registry import suggest

__all__ = ["compare_sources", "estimate_seconds", "explain_tensor", "list_warnings"]

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


def explain_tensor(plan: MergePlan, name: str) -> dict[str, Any]:
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
    return tensor.to_json(plan.sources)


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
