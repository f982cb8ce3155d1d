"""Planning of a merge: slices stack layers (frankenmerge, ``layer_range``); the rest is merged.

Every tensor of every source is merged, copied, or reported as a problem.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stillroom.checkpoints.layers import read_layer_values, restack_config, set_layer_values
from stillroom.checkpoints.safetensors_format import FLOATS
from stillroom.errors import CheckpointError, Problem, RecipeError, ShapeError
from stillroom.merge.interfaces import MergeMethod, missing_base_error
from stillroom.merge.mergekit.parameters import check_weights
from stillroom.merge.planning.inputs import TensorRules, check_configs, limit_problems
from stillroom.merge.planning.plan import (
    SAFETENSORS_DTYPES,
    MergePlan,
    PlannedTensor,
    SourceTensor,
    find_widest_dtype,
)
from stillroom.merge.planning.vocabulary import adapt_config
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
    idle = rules.find_unused([tensor.name for tensor in plan.tensors], planner.output_name)
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
    """A tensor of the result before validation, and the tensors of the sources it is made from."""

    name: str
    inputs: tuple[SourceTensor, ...]
    layer: float | None
    layer_slice: Slice | None = None
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
        self.parent_offset = 0 if base is None else 1
        """Number of sources before the parents: the base, if there is one."""
        self.sources = [*([base] if base else []), *parents]
        self.tokens = _plan_tokenizer(rules, base, parents)
        self.problems: list[Problem] = []
        self.shape_problems: list[Problem] = []
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
            requests, config = self._request_stack(tensor_names)
        else:
            stacks = find_stacks(tensor_names)
            requests = [
                self._request_tensor(name, self._relative_depth(name, stacks))
                for name in tensor_names
            ]
        planned = [
            planned_tensor for request in requests if (planned_tensor := self._plan_tensor(request))
        ]
        for kind, problems in ((ShapeError, self.shape_problems), (CheckpointError, self.problems)):
            if problems:
                raise kind(limit_problems(problems))
        if self.rules.arithmetic == "mergekit":
            self.warnings[
                describe_expert_differences(config, tensor_names, self.method.method_name())
            ] = None
        if "tie_word_embeddings" in config or not all_tied:
            config["tie_word_embeddings"] = all_tied
        if self.tokens is not None:
            config = adapt_config(self.tokens, config)
        return MergePlan(
            self.method.method_name(),
            tuple(source.name for source in self.sources),
            tuple(sorted(planned, key=lambda tensor: (self.output_name(tensor.name), tensor.name))),
            tied,
            config,
            sum(
                int(self._get_entry(home).size_bytes)
                for tensor in planned
                if tensor.is_merged
                for home in tensor.inputs
            ),
            self._count_passes(),
            self.tokens,
            warnings=tuple(filter(None, self.warnings)),
        )

    def _relative_depth(self, name: str, stacks: Mapping[str, LayerStack]) -> float | None:
        """Return 0 in the first layer, 1 in the last, None outside the layers."""
        if (prefix_and_layer := split_layer_name(name)) is None:
            return None
        prefix, layer = prefix_and_layer[:2]
        return layer / max(stacks[prefix].count - 1, 1)

    def _request_tensor(self, name: str, layer: float | None) -> _TensorRequest:
        """Return a tensor with the sources that take part in it, those of its group if any."""
        group = self.rules.group_of(name)
        inputs = tuple(
            SourceTensor(number, source_name)
            for number in self._list_members(group)
            if (source_name := _find_source_name(self.sources[number], name))
        )
        return _TensorRequest(name, inputs, layer, None, group)

    def _list_members(self, group: TensorGroup | None) -> list[int]:
        """Return the indices of a group's sources, always including the base."""
        if group is None or group.models is None:
            return list(range(len(self.sources)))
        parents = (number + self.parent_offset for number in group.models)
        return [*range(self.parent_offset), *parents]

    def _list_slice_sources(self, layer_slice: Slice) -> list[int]:
        """Return the indices of a slice's sources."""
        return [entry.model + self.parent_offset for entry in layer_slice.sources]

    def _request_stack(self, names: Sequence[str]) -> tuple[list[_TensorRequest], dict[str, Any]]:
        """Return the tensors of the slices' layers and those outside the layers, and the config."""
        stacks = [find_main_stack(s.checkpoint.names(), s.checkpoint.config) for s in self.sources]
        if any(stack is None for stack in stacks) or len({s.prefix for s in stacks if s}) > 1:
            raise _slice_error(
                "slices",
                "the layers of these models cannot be identified by name",
                "one stack of numbered layers, as many as in config.json, in every model",
            )
        prefix = stacks[0].prefix if stacks[0] else ""
        requests: list[_TensorRequest] = []
        layers: list[tuple[int, int]] = []
        """Source of each layer of the result, and its number there."""
        for number, layer_slice in enumerate(self.rules.slices):
            for offset in range(layer_slice.count):
                layer = offset / (layer_slice.count - 1) if layer_slice.count > 1 else 1.0
                out = f"{prefix}{len(layers)}"
                requests += self._request_layer(layer_slice, number, offset, prefix, out, layer)
                source = self._list_slice_sources(layer_slice)[0]
                layers.append((source, layer_slice.sources[0].layer_range[0] + offset))
        stacks_by_prefix = find_stacks(names)
        outer_names = [
            name for name in names if not name.startswith(prefix) or not split_layer_name(name)
        ]
        for name in outer_names:
            if self.rules.group_of(name) is not None:
                depth = self._relative_depth(name, stacks_by_prefix)
                requests.append(self._request_tensor(name, depth))
                continue
            layer_slice = self.rules.slices[0 if is_embedding(name) else -1]
            inputs = [
                SourceTensor(number, name)
                for number in self._list_slice_sources(layer_slice)
                if _find_source_name(self.sources[number], name)
            ]
            requests.append(_TensorRequest(name, tuple(inputs), None, layer_slice))
        donor = self.base or self.sources[self._list_slice_sources(self.rules.slices[0])[0]]
        return requests, self._stack_config(donor.checkpoint.config, layers)

    def _stack_config(
        self, config: Mapping[str, Any], layers: Sequence[tuple[int, int]]
    ) -> dict[str, Any]:
        """Return the config of a stack, in which an architecture derives what it did of each layer.

        What an architecture derives from a layer's place, such as whether its attention slides, is
        written out, where it may be.
        """
        from stillroom.models.local.runtime import derive_text_config

        known = {}
        for number in {source for source, _ in layers}:
            stated = self.sources[number].checkpoint.config
            own = read_layer_values(stated)  # refuses a number of layers that would be derived from
            derived = read_layer_values(derive_text_config(stated) or {})
            known[number] = (derived | own, derived)
        numbers = [layer for _, layer in layers]
        stacked = restack_config(config, numbers, [known[source][0] for source, _ in layers])
        wanted = {
            key: [known[source][1][key][layer] for source, layer in layers]
            for key in known[layers[0][0]][1]
            if all(key in derived for _, derived in known.values())
        }

        def list_lost(stacked: Mapping[str, Any]) -> dict[str, list[Any]]:
            found = read_layer_values(derive_text_config(stacked) or {})
            return {key: values for key, values in wanted.items() if found.get(key) != values}

        lost = list_lost(stacked)
        written = set_layer_values(stacked, lost) if lost else stacked
        if lost and (lost := list_lost(written)):
            raise _slice_error(
                "slices",
                f"the architecture derives {', '.join(sorted(lost))} from the places of layers",
                "layers in an order that keeps it",
            )
        return written

    def _request_layer(
        self, layer_slice: Slice, number: int, offset: int, prefix: str, out: str, layer: float
    ) -> Iterator[_TensorRequest]:
        """Yield the tensors of one layer of a slice, renamed to ``out``, prefix and new number."""
        inputs_by_suffix: dict[str, list[SourceTensor]] = {}
        source_numbers = self._list_slice_sources(layer_slice)
        for position, entry in enumerate(layer_slice.sources):
            source = self.sources[source_numbers[position]]
            start = f"{prefix}{entry.layer_range[0] + offset}."
            names = [name for name in source.checkpoint.names() if name.startswith(start)]
            if not names:
                raise _slice_error(
                    f"slices.{number}.sources.{position}.layer_range",
                    f"{source.name} has no layer {entry.layer_range[0] + offset}",
                    f"a range within [0, {self._count_layers(source)}], whose end is not included",
                )
            for name in names:
                suffix = name.removeprefix(start)
                input_tensor = SourceTensor(source_numbers[position], name)
                inputs_by_suffix.setdefault(suffix, []).append(input_tensor)
        for suffix, inputs in inputs_by_suffix.items():
            yield _TensorRequest(f"{out}.{suffix}", tuple(inputs), layer, layer_slice)

    def _count_layers(self, source: MergeSource) -> int:
        stack = find_main_stack(source.checkpoint.names(), source.checkpoint.config)
        return stack.count if stack else 0

    def _plan_tensor(self, request: _TensorRequest) -> PlannedTensor | None:
        name, rules = request.name, self.rules
        entries = [self._get_entry(input_tensor) for input_tensor in request.inputs]
        # The sources that should have the tensor and do not.
        present = {input_tensor.source for input_tensor in request.inputs}
        expected = (
            self._list_members(request.group)
            if request.layer_slice is None
            else self._list_slice_sources(request.layer_slice)
        )
        missing_in = [self.sources[number].name for number in sorted({*expected} - present)]
        if missing_in and rules.missing_tensors == "refuse" and rules.merges(name):
            self.problems.append(
                Problem(
                    f"tensor '{name}' is missing in {', '.join(missing_in)}",
                    "merge.missing-tensor",
                    name,
                    "the same tensors in every model",
                    "merge models of one architecture; 'missing_tensors: copy' takes such "
                    "tensors from the first model that has them, unmerged",
                )
            )
            return None
        if not entries or missing_in or not rules.merges(name):
            return self._plan_copied(request)
        # A token table has one row per token, in every source.
        tokens = self.tokens
        is_token_table = tokens is not None and all(
            tokens.is_token_table(input_tensor.name, entry.shape, input_tensor.source)
            for input_tensor, entry in zip(request.inputs, entries, strict=True)
        )
        if is_token_table:
            rows = tokens.size if tokens else 0
            entries = [replace(entry, shape=(rows, *entry.shape[1:])) for entry in entries]
        if len({entry.shape for entry in entries}) > 1:
            self._add_shape_problem(request, entries)
            return None
        if any(entry.dtype not in FLOATS for entry in entries) or 0 in entries[0].shape:
            return self._plan_copied(request)
        return self._plan_merged(request, entries, is_token_table)

    def _plan_merged(
        self, request: _TensorRequest, entries: Sequence[Any], is_token_table: bool
    ) -> PlannedTensor:
        dtype = self.rules.dtype or self.rules.compute_dtype
        widest = find_widest_dtype([entry.dtype for entry in entries])
        stored_dtype = SAFETENSORS_DTYPES[dtype] if dtype else widest
        base = next((tensor for tensor in request.inputs if self._is_base(tensor)), None)
        parents = tuple(tensor for tensor in request.inputs if not self._is_base(tensor))
        sources = [self.sources[tensor.source] for tensor in parents]
        settings = self.rules.resolve(
            self.method,
            tuple(source.weight for source in sources),
            tuple(source.settings for source in sources),
            self._number_parents(request, parents),
            self.output_name(request.name),
            request.layer,
            request.layer_slice or request.group,
        )
        if self.rules.arithmetic == "mergekit":
            self.warnings[check_weights(settings.method, settings.weights)] = None
        else:
            settings.method.check(settings.weights)
        if self.method.needs_base and base is None and request.layer_slice is not None:
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
            is_token_table,
        )

    def _is_base(self, tensor: SourceTensor) -> bool:
        return tensor.source < self.parent_offset

    def output_name(self, name: str) -> str:
        """Return the name of a tensor, in mergekit's arithmetic that of its fused tensor."""
        is_mergekit = self.rules.arithmetic == "mergekit"
        if is_mergekit and has_fused_experts(self.sources[0].checkpoint.config):
            return to_mergekit_name(name)
        return name

    def _number_parents(
        self, request: _TensorRequest, parents: Sequence[SourceTensor]
    ) -> tuple[int, ...]:
        """Return each parent's index in the list that overrides refer to."""
        if request.layer_slice is None:
            return tuple(input_tensor.source - self.parent_offset for input_tensor in parents)
        listed = self._list_slice_sources(request.layer_slice)
        numbers: list[int] = []
        for input_tensor in parents:  # a model may be listed twice
            start = numbers[-1] + 1 if numbers else 0
            numbers.append(listed.index(input_tensor.source, start))
        return tuple(numbers)

    def _plan_copied(self, request: _TensorRequest) -> PlannedTensor | None:
        if not request.inputs:
            return None
        entry = self._get_entry(request.inputs[0])
        stored_dtype = entry.dtype
        dtype = self.rules.dtype or self.rules.compute_dtype
        if dtype and stored_dtype in FLOATS:
            stored_dtype = SAFETENSORS_DTYPES[dtype]
        return PlannedTensor(
            request.name, stored_dtype, entry.shape, None, request.inputs[:1], request.layer
        )

    def _add_shape_problem(self, request: _TensorRequest, entries: Sequence[Any]) -> None:
        listed = ", ".join(
            f"{self.sources[input_tensor.source].name} {entry.shape}"
            for input_tensor, entry in zip(request.inputs, entries, strict=True)
        )
        rows = {entry.shape[:1] for entry in entries}
        only_rows = len({entry.shape[1:] for entry in entries}) == 1 and len(rows) > 1
        is_table = only_rows and (is_embedding(request.name) or request.name == HEAD)
        self.shape_problems.append(
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

    def _get_entry(self, input_tensor: SourceTensor) -> Any:
        return self.sources[input_tensor.source].checkpoint.entry(input_tensor.name)

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


def _slice_error(where: str, problem: str, expected: str) -> RecipeError:
    return RecipeError(
        problem, code="merge.slice", where=where, expected=expected, next="change the slices"
    )
