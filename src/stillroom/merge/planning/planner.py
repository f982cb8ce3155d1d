"""Planning of a merge from the names, shapes and configs of its sources.

Every tensor of every source is merged, copied, or reported as a problem. Slices stack layers of one
or several models (frankenmerge, ``layer_range``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stillroom.checkpoints.safetensors_format import FLOATS
from stillroom.errors import CheckpointError, Problem, RecipeError, ShapeError
from stillroom.merge.interfaces import MergeMethod, missing_base_error
from stillroom.merge.mergekit.parameters import check_weights
from stillroom.merge.planning.inputs import TensorRules, check_configs, limit_problems
from stillroom.merge.planning.plan import SAFETENSORS_DTYPES, MergePlan, PlannedTensor, SourceTensor
from stillroom.merge.settings import Slice, TensorGroup
from stillroom.merge.tensors.structure import (
    EMBEDDING,
    HEAD,
    LayerStack,
    describe_expert_differences,
    find_main_stack,
    find_stacks,
    has_fused_experts,
    is_embedding,
    restack_config,
    split_layer_name,
    to_mergekit_name,
)

if TYPE_CHECKING:
    from stillroom.merge.planning.inputs import MergeSource
    from stillroom.merge.planning.token_plan import TokenPlan

__all__ = ["list_source_notes", "plan_sources"]


def plan_sources(
    method: MergeMethod,
    base: MergeSource | None,
    parents: Sequence[MergeSource],
    rules: TensorRules,
) -> MergePlan:
    """Return the plan for opened sources.

    Raises:
        CheckpointError: If the sources do not match.
        ShapeError: If a tensor's shapes differ.
        RecipeError: If slices name missing layers.
    """
    planner = _Planner(method, base, parents, rules)
    plan = planner.plan()
    idle = rules.find_unused([tensor.name for tensor in plan.tensors], planner.called)
    notes = list_source_notes([*([base] if base else []), *parents])
    return replace(plan, notes=tuple(notes), warnings=(*plan.warnings, *idle))


def list_source_notes(sources: Sequence[MergeSource]) -> list[str]:
    """Return a note for every dequantized source."""
    return [
        f"note: {source.name} is dequantized from {source.checkpoint.dequantized_from}"
        for source in sources
        if source.checkpoint.dequantized_from
    ]


@dataclass(frozen=True, slots=True)
class _TensorRequest:
    """A tensor of the result before validation: its name in every source."""

    name: str
    homes: tuple[SourceTensor, ...]
    layer: float | None
    part: Slice | None = None
    group: TensorGroup | None = None


class _Planner:
    """Plans one merge, and collects its problems."""

    def __init__(
        self,
        method: MergeMethod,
        base: MergeSource | None,
        parents: Sequence[MergeSource],
        rules: TensorRules,
    ) -> None:
        self.method, self.rules = method, rules
        self.base = base
        self.shift = 1 if base is not None else 0
        self.sources = [*([base] if base else []), *parents]
        self.tokens = _plan_tokenizer(rules, base, parents)
        self.problems: list[Problem] = []
        self.shapes: list[Problem] = []
        self.warnings: dict[str, None] = {}

    def plan(self) -> MergePlan:
        if self.method.needs_base and self.base is None:
            raise missing_base_error(self.method.method_name())
        check_configs(
            self.sources, stacked=bool(self.rules.slices), shared_vocabulary=self.tokens is None
        )
        all_tied = all(source.checkpoint.is_tied for source in self.sources)
        names = sorted({name for source in self.sources for name in source.checkpoint.names()})
        tied = tuple(name for name in names if name == HEAD and all_tied and EMBEDDING in names)
        tensor_names = [name for name in names if name not in tied]
        config: dict[str, Any] = dict(self.sources[0].checkpoint.config)
        if self.rules.slices:
            requests, config = self._stack(tensor_names, config)
        else:
            requests = list(self._place(tensor_names))
        planned = [
            planned_tensor for request in requests if (planned_tensor := self._plan_tensor(request))
        ]
        for kind, problems in ((ShapeError, self.shapes), (CheckpointError, self.problems)):
            if problems:
                raise kind(limit_problems(problems))
        if self.rules.arithmetic == "mergekit":
            self.warnings[
                describe_expert_differences(config, tensor_names, self.method.method_name())
            ] = None
        if "tie_word_embeddings" in config or not all_tied:
            config["tie_word_embeddings"] = all_tied
        if self.tokens is not None:
            config = self.tokens.adapt_config(config)
        return MergePlan(
            self.method.method_name(),
            tuple(source.name for source in self.sources),
            tuple(sorted(planned, key=lambda tensor: (self.called(tensor.name), tensor.name))),
            tied,
            config,
            sum(self._read_bytes(tensor) for tensor in planned if tensor.is_merged),
            self._count_passes(),
            self.tokens,
            warnings=tuple(filter(None, self.warnings)),
        )

    def _place(self, names: Sequence[str]) -> Iterator[_TensorRequest]:
        """Yield every tensor at its own name."""
        stacks = find_stacks(names)
        for name in names:
            layer = self._depth(name, stacks)
            yield self._gather(name, layer)

    def _depth(self, name: str, stacks: Mapping[str, LayerStack]) -> float | None:
        parts = split_layer_name(name)
        return parts[1] / max(stacks[parts[0]].count - 1, 1) if parts else None

    def _gather(self, name: str, layer: float | None) -> _TensorRequest:
        """Return a tensor with the sources that take part in it, those of its group if any."""
        group = self.rules.group_of(name)
        homes = tuple(
            SourceTensor(number, home)
            for number in self._members(group)
            if (home := _find_source_name(self.sources[number], name))
        )
        return _TensorRequest(name, homes, layer, None, group)

    def _members(self, group: TensorGroup | None) -> list[int]:
        """Return the indices of a group's sources, always including the base."""
        if group is None or group.models is None:
            return list(range(len(self.sources)))
        return [*range(self.shift), *(number + self.shift for number in group.models)]

    def _stack(
        self, names: Sequence[str], config: dict[str, Any]
    ) -> tuple[list[_TensorRequest], dict[str, Any]]:
        """Return the tensors of the slices' layers and those outside the layers."""
        stacks = [find_main_stack(s.checkpoint.names(), s.checkpoint.config) for s in self.sources]
        if any(stack is None for stack in stacks) or len({s.prefix for s in stacks if s}) > 1:
            raise _slice_error(
                "slices",
                "the layers of these models cannot be identified by name",
                "one stack of numbered layers, as many as in config.json, in every model",
            )
        prefix = stacks[0].prefix if stacks[0] else ""
        requests: list[_TensorRequest] = []
        origin: list[int] = []
        for number, part in enumerate(self.rules.slices):
            for offset in range(part.count):
                layer = offset / (part.count - 1) if part.count > 1 else 1.0
                requests += self._stack_layer(part, number, offset, prefix, len(origin), layer)
                origin.append(part.sources[0].layer_range[0] + offset)
        stack_of = find_stacks(names)
        outer_names = [
            name for name in names if not name.startswith(prefix) or not split_layer_name(name)
        ]
        for name in outer_names:
            if self.rules.group_of(name) is not None:
                requests.append(self._gather(name, self._depth(name, stack_of)))
                continue
            part = self.rules.slices[0 if is_embedding(name) else -1]
            homes = [SourceTensor(entry.model + self.shift, name) for entry in part.sources]
            homes = [home for home in homes if _find_source_name(self.sources[home.source], name)]
            requests.append(_TensorRequest(name, tuple(homes), None, part))
        first = self.rules.slices[0].sources[0].model + self.shift
        donor = self.base or self.sources[first]
        return requests, restack_config(dict(donor.checkpoint.config), origin)

    def _stack_layer(
        self, part: Slice, number: int, offset: int, prefix: str, out: int, layer: float
    ) -> Iterator[_TensorRequest]:
        homes_by_suffix: dict[str, list[SourceTensor]] = {}
        for position, entry in enumerate(part.sources):
            source = self.sources[entry.model + self.shift]
            start = f"{prefix}{entry.layer_range[0] + offset}."
            names = [name for name in source.checkpoint.names() if name.startswith(start)]
            if not names:
                raise _slice_error(
                    f"slices.{number}.sources.{position}.layer_range",
                    f"{source.name} has no layer {entry.layer_range[0] + offset}",
                    f"existing layers: 0 to {self._count_layers(source)}",
                )
            for name in names:
                home = SourceTensor(entry.model + self.shift, name)
                homes_by_suffix.setdefault(name.removeprefix(start), []).append(home)
        for suffix, homes in homes_by_suffix.items():
            yield _TensorRequest(f"{prefix}{out}.{suffix}", tuple(homes), layer, part)

    def _count_layers(self, source: MergeSource) -> int:
        stack = find_main_stack(source.checkpoint.names(), source.checkpoint.config)
        return stack.count if stack else 0

    def _plan_tensor(self, request: _TensorRequest) -> PlannedTensor | None:
        name, rules = request.name, self.rules
        entries = [self._entry(home) for home in request.homes]
        lacking = self._lacking(request)
        if lacking and rules.missing_tensors == "refuse" and rules.merges(name):
            self.problems.append(
                Problem(
                    f"tensor '{name}' is missing in {', '.join(lacking)}",
                    "merge.missing-tensor",
                    name,
                    "the same tensors in every model",
                    "merge models of one architecture; 'missing_tensors: copy' takes such "
                    "tensors from the first model that has them, unmerged",
                )
            )
            return None
        if not entries or lacking or not rules.merges(name):
            return self._copied(request)
        if self._is_table(request.homes, entries):
            entries = [replace(entry, shape=self._table_shape(entry)) for entry in entries]
        if len({entry.shape for entry in entries}) > 1:
            self._refuse_shapes(request, entries)
            return None
        if any(entry.dtype not in FLOATS for entry in entries) or 0 in entries[0].shape:
            return self._copied(request)
        return self._merged(request, entries)

    def _merged(self, request: _TensorRequest, entries: Sequence[Any]) -> PlannedTensor:
        dtype = self.rules.dtype or self.rules.compute_dtype
        stored_dtype = (
            SAFETENSORS_DTYPES[dtype]
            if dtype
            else _widest_dtype([entry.dtype for entry in entries])
        )
        is_base = [self.base is not None and home.source == 0 for home in request.homes]
        base = next(
            (
                home
                for home, is_base_home in zip(request.homes, is_base, strict=True)
                if is_base_home
            ),
            None,
        )
        parents = tuple(
            home
            for home, is_base_home in zip(request.homes, is_base, strict=True)
            if not is_base_home
        )
        sources = [self.sources[home.source] for home in parents]
        settings = self.rules.resolve(
            self.method,
            tuple(source.weight for source in sources),
            tuple(source.settings for source in sources),
            self._numbers(request, parents),
            self.called(request.name),
            request.layer,
            request.part or request.group,
        )
        if self.rules.arithmetic == "mergekit":
            self.warnings[check_weights(settings.method, settings.weights)] = None
        else:
            settings.method.check(settings.weights)
        if self.method.needs_base and base is None and request.part is not None:
            raise _slice_error(
                "slices",
                f"no slice gives the base's '{request.name}'",
                "the base (-1) in every slice of a method that needs it",
            )
        return PlannedTensor(
            request.name,
            stored_dtype,
            entries[0].shape,
            base,
            parents,
            request.layer,
            settings,
            self._is_table(request.homes, [self._entry(home) for home in request.homes]),
        )

    def called(self, name: str) -> str:
        """Return the name of a tensor, in mergekit's arithmetic that of its fused tensor."""
        is_mergekit = self.rules.arithmetic == "mergekit"
        if is_mergekit and has_fused_experts(self.sources[0].checkpoint.config):
            return to_mergekit_name(name)
        return name

    def _is_table(self, homes: Sequence[SourceTensor], entries: Sequence[Any]) -> bool:
        """Return whether a tensor has one row per token, in every source."""
        tokens = self.tokens
        return tokens is not None and all(
            tokens.is_token_table(home.name, entry.shape, home.source)
            for home, entry in zip(homes, entries, strict=True)
        )

    def _table_shape(self, entry: Any) -> tuple[int, ...]:
        return (self.tokens.size if self.tokens else entry.shape[0], *entry.shape[1:])

    def _numbers(self, request: _TensorRequest, parents: Sequence[SourceTensor]) -> tuple[int, ...]:
        """Return each parent's index in the list that overrides refer to."""
        if request.part is None:
            return tuple(home.source - self.shift for home in parents)
        listed = [entry.model + self.shift for entry in request.part.sources]
        numbers, begin = [], 0
        for home in parents:
            begin = listed.index(home.source, begin)
            numbers.append(begin)
            begin += 1
        return tuple(numbers)

    def _copied(self, request: _TensorRequest) -> PlannedTensor | None:
        if not request.homes:
            return None
        entry = self._entry(request.homes[0])
        stored_dtype = entry.dtype
        dtype = self.rules.dtype or self.rules.compute_dtype
        if dtype and stored_dtype in FLOATS:
            stored_dtype = SAFETENSORS_DTYPES[dtype]
        return PlannedTensor(
            request.name, stored_dtype, entry.shape, None, request.homes[:1], request.layer
        )

    def _lacking(self, request: _TensorRequest) -> list[str]:
        having = {home.source for home in request.homes}
        if request.part is None:
            expected = set(self._members(request.group))
        else:
            expected = {entry.model + self.shift for entry in request.part.sources}
        return [self.sources[number].name for number in sorted(expected - having)]

    def _refuse_shapes(self, request: _TensorRequest, entries: Sequence[Any]) -> None:
        names = [self.sources[home.source].name for home in request.homes]
        listed = ", ".join(
            f"{name} {entry.shape}" for name, entry in zip(names, entries, strict=True)
        )
        rows = {entry.shape[:1] for entry in entries}
        only_rows = len({entry.shape[1:] for entry in entries}) == 1 and len(rows) > 1
        is_table = only_rows and (is_embedding(request.name) or request.name == HEAD)
        self.shapes.append(
            Problem(
                f"tensor '{request.name}' has different shapes: {listed}",
                "merge.shape",
                request.name,
                "one shape in every model",
                "the vocabularies differ in size: add 'tokenizer: {source: union}' or base"
                if is_table
                else "merge models of one architecture and vocabulary, or exclude this tensor",
            )
        )

    def _entry(self, home: SourceTensor) -> Any:
        return self.sources[home.source].checkpoint.entry(home.name)

    def _read_bytes(self, tensor: PlannedTensor) -> int:
        return sum(int(self._entry(home).size_bytes) for home in tensor.inputs)

    def _count_passes(self) -> int:
        kind = type(self.method)
        measures = kind.measure is not MergeMethod.measure
        surveys = kind.survey is not MergeMethod.survey
        return 1 + measures + 2 * surveys


def _plan_tokenizer(
    rules: TensorRules, base: MergeSource | None, parents: Sequence[MergeSource]
) -> TokenPlan | None:
    if rules.tokenizer is None:
        return None
    from stillroom.merge.planning.token_plan import plan_tokenizer

    return plan_tokenizer(
        rules.tokenizer,
        base.checkpoint.folder if base else None,
        [parent.checkpoint.folder for parent in parents],
    )


def _find_source_name(source: MergeSource, name: str) -> str:
    """Return a source's name for a tensor; a tied output embedding is the input embedding."""
    tied = name == HEAD and source.checkpoint.is_tied and EMBEDDING in source.checkpoint
    if tied:
        return EMBEDDING
    return name if name in source.checkpoint else ""


def _widest_dtype(dtypes: Sequence[str]) -> str:
    kinds = set(dtypes)
    if len(kinds) == 1:
        return dtypes[0]
    return "F64" if "F64" in kinds else "F32"


def _slice_error(where: str, problem: str, expected: str) -> RecipeError:
    return RecipeError(
        problem, code="merge.slice", where=where, expected=expected, next="change the slices"
    )
