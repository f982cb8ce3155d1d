"""The merge plan (merge graph): sources, shape, type, method and settings of every tensor.

A plan is data: the executor interprets it, and ``to_json`` writes it. Its explanation (sources
beside each other, warnings, duration) reads headers and a sample of the bytes.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from stillroom.checkpoints.digests import describe_equal_models
from stillroom.checkpoints.layers import count_layers
from stillroom.checkpoints.safetensors_format import DTYPE_SIZES
from stillroom.errors import RecipeError
from stillroom.merge.interfaces import METHODS, Array
from stillroom.merge.planning.inputs import GatePrompts, MergeSource, ResolvedSettings
from stillroom.merge.settings import GateMode
from stillroom.merge.tensors.structure import EMBEDDING, HEAD
from stillroom.provenance import digest_bytes
from stillroom.records import find_license_warnings
from stillroom.registry import suggest

if TYPE_CHECKING:
    from stillroom.merge.planning.token_plan import TokenPlan

__all__ = [
    "BLOCK_ELEMENTS",
    "SAFETENSORS_DTYPES",
    "Computation",
    "GatePlan",
    "GateRows",
    "MergePlan",
    "PlannedTensor",
    "SourceTensor",
    "TokenMatch",
    "TransplantedTable",
    "Zeros",
    "compare_sources",
    "estimate_seconds",
    "explain_tensor",
    "find_widest_dtype",
    "list_warnings",
]

BLOCK_ELEMENTS = 1 << 17
SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def find_widest_dtype(dtypes: Sequence[str]) -> str:
    """Return the storage type of some floats: their own, or of several F64 if held, else F32."""
    kinds = set(dtypes)
    return dtypes[0] if len(kinds) == 1 else "F64" if "F64" in kinds else "F32"


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor of a source: the source's index (the base first), and its name there."""

    source: int
    name: str


@dataclass(frozen=True, slots=True)
class Zeros:
    """A tensor of zeros."""


@dataclass(frozen=True, slots=True)
class GateRows:
    """Rows ``start`` to ``stop`` of the gate of one layer, as the plan's ``gates`` describe it."""

    layer: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TransplantedTable:
    """A token table of the target with the donor's tokens, as the plan's ``match`` maps them.

    ``donor`` is the donor's counterpart, in which new tokens are approximated; empty: the mean.
    """

    target: str
    donor: str


Computation: TypeAlias = Zeros | GateRows | TransplantedTable
"""How the executor computes a tensor that is in no source."""


@dataclass(frozen=True, slots=True)
class GatePlan:
    """How the gates of a mixture of experts are computed.

    Attributes:
        mode: Source of the rows.
        prompts: Prompts of every gate row.
        layers: Number of layers.
        is_mergekit: Whether they are computed as in mergekit.
    """

    mode: GateMode
    prompts: tuple[GatePrompts, ...]
    layers: int
    is_mergekit: bool


@dataclass(frozen=True, slots=True)
class TokenMatch:
    """How a transplant maps rows of the donor to rows of the target.

    Attributes:
        k: Maximum number of shared tokens per new token.
        rows: The target's row of each donor row, or -1.
        named: Whether a row has a token.
        dictionary: Rows of the shared tokens.
        by_role: Special tokens matched by their role.
    """

    k: int
    rows: Array
    named: Array
    dictionary: Array
    by_role: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the result.

    Attributes:
        name: Name in the result.
        dtype: Storage type in the result.
        shape: Shape in the result.
        base: Input from the base, if any.
        parents: Inputs from the models; a copied tensor has one.
        layer: Relative depth, 0 to 1, or None outside the layers.
        settings: Resolved settings; None if it is not merged.
        is_token_table: Whether rows are mapped through the plan's tokens.
        is_placed: Whether a mixture or a transplant assigned the tensor to its place.
        computed: How it is computed, if it is in no source.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    base: SourceTensor | None
    parents: tuple[SourceTensor, ...]
    layer: float | None = None
    settings: ResolvedSettings | None = None
    is_token_table: bool = False
    is_placed: bool = False
    computed: Computation | None = None

    @property
    def is_merged(self) -> bool:
        """Whether it is merged; else it is copied, placed or computed."""
        return self.settings is not None

    @property
    def is_copied(self) -> bool:
        """Whether it is copied from one source although the method merges."""
        return self.settings is None and not self.is_placed

    @property
    def inputs(self) -> tuple[SourceTensor, ...]:
        """All inputs, the base first."""
        return (*([self.base] if self.base else []), *self.parents)

    @property
    def size_bytes(self) -> int:
        """Size in the result, in bytes."""
        return math.prod(self.shape) * DTYPE_SIZES[self.dtype]

    @property
    def how(self) -> str:
        """How it is made: the method's name, ``copy``, or the kind of computation."""
        if self.computed is not None:
            return _COMPUTATIONS[type(self.computed)]
        return self.settings.method.method_name() if self.settings else "copy"

    def to_json(self, sources: Sequence[str]) -> dict[str, Any]:
        """Return JSON-serializable values."""
        described: dict[str, Any] = {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "bytes": self.size_bytes,
            "how": self.how,
            "sources": [
                {"source": sources[home.source], "tensor": home.name} for home in self.inputs
            ],
        }
        if self.computed is not None:
            described |= asdict(self.computed)
        if self.layer is not None:
            described["layer"] = self.layer
        if self.settings is not None:
            described["settings"] = self.settings.method.model_dump(mode="json")
            described["models"] = [
                {"weight": weight, **settings}
                for weight, settings in zip(
                    self.settings.weights, self.settings.per_model, strict=True
                )
            ]
        return described


_COMPUTATIONS = {Zeros: "zeros", GateRows: "gate", TransplantedTable: "transplant"}


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Every tensor of the result ordered by name, and the cost of the merge."""

    method: str
    sources: tuple[str, ...]
    tensors: tuple[PlannedTensor, ...]
    tied: tuple[str, ...]
    config: Mapping[str, Any] = field(repr=False)
    read_bytes: int
    passes: int
    tokens: TokenPlan | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    held_bytes: int = 0
    gates: GatePlan | None = field(default=None, repr=False)
    match: TokenMatch | None = field(default=None, repr=False)

    @property
    def written_bytes(self) -> int:
        """Total bytes of the result's tensors."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def memory_bytes(self) -> int:
        """Peak memory of blocks: inputs in storage and compute type, and temporaries.

        Includes what a mixture or a transplant holds: a model that is run, whole tables.
        """
        widest = max((self._widest(tensor) for tensor in self.tensors), default=0)
        return widest * 8 * (2 * len(self.sources) + 6) + self.held_bytes

    def count(self, *, merged: bool) -> int:
        """Return the number of merged (or placed) tensors, or of copied ones."""
        return sum(tensor.is_copied != merged for tensor in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-serializable values."""
        return {
            "method": self.method,
            "sources": list(self.sources),
            "merged": self.count(merged=True),
            "copied": [tensor.name for tensor in self.tensors if tensor.is_copied],
            "tied": list(self.tied),
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
            "memory_bytes": self.memory_bytes,
            "passes": self.passes,
            "tokens": self.tokens.report() if self.tokens else None,
            "notes": list(self.notes),
            "tensors": [tensor.to_json(self.sources) for tensor in self.tensors],
        }

    def __str__(self) -> str:
        """Return the printed plan."""
        copied = [tensor.name for tensor in self.tensors if tensor.is_copied]
        lines = [
            f"{self.method} of {', '.join(self.sources)}",
            f"  merges {self.count(merged=True)} tensors, copies {len(copied)}",
            f"  reads {self.read_bytes / 1e6:.1f} MB, up to {self.passes} times; "
            f"writes {self.written_bytes / 1e6:.1f} MB",
            f"  holds about {self.memory_bytes / 1e6:.0f} MB of blocks in memory",
        ]
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  copies {name}" for name in copied]
        lines += [f"  leaves out {name}: it is tied to {EMBEDDING}" for name in self.tied]
        if self.tokens:
            lines += _format_tokens(self.tokens.report())
        return "\n".join(lines)

    @staticmethod
    def _widest(tensor: PlannedTensor) -> int:
        is_whole = tensor.settings is not None and tensor.settings.method.needs_whole(
            tensor.name, tensor.shape
        )
        return max(BLOCK_ELEMENTS, math.prod(tensor.shape if is_whole else tensor.shape[1:]))


def _format_tokens(report: Mapping[str, Any]) -> list[str]:
    lines = [
        f"  {report['tokens']} tokens in {report['rows']} rows "
        f"({report['padding']} padding, {report['new_tokens']} new)"
    ]
    for source in report["sources"]:
        parts = [
            f"{count} {kind.replace('_', ' ')}"
            for kind, count in source.items()
            if isinstance(count, int) and count
        ]
        lines.append(f"    {source['name']}: {', '.join(parts)}")
    return lines


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
    """Return warnings about a plan: settings, equal models, lacking tensors, licenses, types."""
    warnings = [*plan.warnings, *_list_equal_sources(plan, sources)]
    every = {name for source in sources for name in source.checkpoint.names()}
    for source in sources:
        lacking = sorted(every - set(source.checkpoint.names()) - set(plan.tied))
        if lacking:
            more = f" and {len(lacking) - 4} more" if lacking[4:] else ""
            shown = ", ".join(lacking[:4]) + more
            warnings.append(f"{source.name} lacks {len(lacking)} tensors that others have: {shown}")
        adapter = source.adapted.adapter if source.adapted else ()
        if source.checkpoint.is_tied and EMBEDDING in adapter and HEAD not in adapter:
            warnings.append(
                f"{source.name}: the adapter changes the input embedding, to which the model ties"
                " its output head: merged, the head changes with it, unlike where peft applies the"
                " adapter"
            )
    if len(sources) == 1 and sources[0].adapted is None and plan.count(merged=True):
        warnings.append(f"{sources[0].name} is merged with no other model: its weights stay")
    if plan.tokens and (dropped := plan.tokens.dropped):
        more = f" and {len(dropped) - 4} more" if dropped[4:] else ""
        shown = ", ".join(map(repr, dropped[:4])) + more
        warnings.append(f"tokens without a row in any model are left out ({len(dropped)}): {shown}")
    licenses = [(source.name, source.license) for source in sources]
    warnings += find_license_warnings(licenses, "the models", "this merge")
    kinds = {tensor.dtype for tensor in plan.tensors if tensor.is_merged}
    if len(kinds) > 1:
        warnings.append(f"the result will hold several storage types: {', '.join(sorted(kinds))}")
    return warnings


def _list_equal_sources(plan: MergePlan, sources: Sequence[MergeSource]) -> list[str]:
    """Return a warning for each model that is merged twice, or that is the base of its method.

    Whole fingerprints, which read every byte, are compared only where the first rows are equal.
    """
    import numpy as np

    needs_base = plan.method in METHODS.names() and METHODS.get(plan.method).needs_base
    names = [source.name for source in sources]
    rows: dict[int, list[bytes]] = {}
    for tensor in (one for one in plan.tensors if one.is_merged or one.is_placed):
        if tensor.base:
            names[tensor.base.source] = f"the base {sources[tensor.base.source].name}"
        for home in tensor.inputs if needs_base else tensor.parents:
            row = sources[home.source].read(home.name, 0, 1, np.float32)
            rows.setdefault(home.source, []).append(digest_bytes(row.tobytes()).encode())
    firsts = {number: b"".join(digests) for number, digests in sorted(rows.items())}
    counts = Counter(firsts.values())
    alike = [number for number, first in firsts.items() if counts[first] > 1]
    return describe_equal_models((names[one], sources[one].fingerprint) for one in alike)


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
