"""mergekit config to merge recipe: checks and converts merge_method, slices, models, parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

from stillroom.errors import Problem
from stillroom.merge.interfaces import METHODS
from stillroom.merge.mergekit.moe import MoeReader, is_moe_config
from stillroom.merge.mergekit.parameters import (
    ALL_TENSORS,
    DTYPES,
    MERGEKIT_METHODS,
    PARAMETERS,
    MergekitParameter,
    ParameterValues,
    find_default,
    find_values,
    has_main_layers,
    list_module_patterns,
    read_parameter,
)
from stillroom.merge.mergekit.references import (
    ImportedMerge,
    MergedModel,
    MergedPart,
    ModelReference,
    ModelReferenceReader,
    TokenizerReader,
)
from stillroom.merge.mergekit.yaml_reader import ImportDiagnostics
from stillroom.recipes.yaml_text import KeyPath, YamlTree
from stillroom.registry.catalog import suggest

__all__ = ["ConfigConverter"]

_KEYS = (
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
)
_OTHER_TEMPLATES = frozenset({"alpaca", "exaone", "llama3"})
_OVERLOOKED = PARAMETERS | {"density", "epsilon", "gamma", "normalize", "rescale", "int8_mask"}


class ConfigConverter:
    """Converts one document, and configurations nested in place of a model."""

    def __init__(
        self, tree: YamlTree, name: str, names: frozenset[str], folder: FilePath | None
    ) -> None:
        """Create a converter; ``names`` are those of the other documents."""
        self.tree, self.name = tree, name
        self.names, self.folder = names, folder
        self.problems: list[Problem] = []
        self._recipes: list[ImportedMerge] = []

    def convert(self) -> list[ImportedMerge]:
        """Return the recipes, nested ones first; check ``problems`` before using them."""
        self._convert((), self.name)
        return self._recipes

    def _convert(self, path: KeyPath, name: str) -> None:
        data: Any = self.tree.data
        for part in path:
            data = data[part]
        report = ImportDiagnostics(self.tree, self.problems)
        if is_moe_config(data):
            reader = ModelReferenceReader(
                self.tree, self.problems, self.names, self.folder, self.nest
            )
            recipe = MoeReader(report, reader, path, data).convert()
        else:
            recipe = _DocumentConverter(self, path, data, report).convert()
        self._recipes.append(
            ImportedMerge(name, recipe, self.tree.place_of_value(path), tuple(report.warnings))
        )

    def nest(self, path: KeyPath) -> str:
        """Convert the configuration at a path, and return its generated name."""
        name = f"{self.name}-{len(self._recipes) + 1}"
        while name in self.names:
            name += "-"
        self._convert(path, name)
        return name


class _DocumentConverter:
    def __init__(
        self, owner: ConfigConverter, path: KeyPath, data: Any, report: ImportDiagnostics
    ) -> None:
        self.report = report
        self.path, self.data = path, data
        self.reader = ModelReferenceReader(
            owner.tree, owner.problems, owner.names, owner.folder, owner.nest
        )

    def convert(self) -> dict[str, Any]:
        """Return the recipe; without models if the document cannot be read."""
        if not isinstance(self.data, dict):
            self.report.refuse(self.path, "is not a configuration", "a mapping with merge_method")
            return {"models": []}
        self.check_top()
        name = str(self.data.get("merge_method") or "")
        if name not in MERGEKIT_METHODS:
            self.refuse_method(name)
            return {"models": []}
        self.spec, self.target = MERGEKIT_METHODS[name], METHODS.get(name)
        self.method = name
        self.settings: dict[str, Any] = dict(self.spec.extra)
        self.base = self.read_model("base_model")
        self.top = self.read_parameters(self.at("parameters"), self.data.get("parameters"))
        parts = self.read_parts()
        if not parts:
            return {"models": []}
        return self.assemble([self.arrange(part) for part in parts])

    def check_top(self) -> None:
        """Report unknown top-level keys, and parameters outside of 'parameters'."""
        known = {}
        for key, value in self.data.items():
            here = self.at(key)
            if key == "int8_mask":
                self.report.warn(here, "does not change the result")
            elif key in _OVERLOOKED:
                self.report.refuse_key(here, key, _KEYS, "put it under 'parameters'")
            else:
                known[key] = value
        self.report.check_keys(self.path, known, _KEYS)

    # Reading the document.

    def at(self, *keys: str | int) -> KeyPath:
        return (*self.path, *keys)

    def read_model(self, key: str) -> ModelReference | None:
        value = self.data.get(key)
        return None if value is None else self.reader.read(self.at(key), value)

    def read_parts(self) -> list[MergedPart]:
        models, slices = self.data.get("models"), self.data.get("slices")
        modules = self.data.get("modules")
        if sum(section is not None for section in (models, slices, modules)) != 1:
            problem = "needs exactly one of models, slices and modules"
            self.report.refuse(self.path, problem, "one of the three keys")
            return []
        if modules is not None:
            return self.read_modules(modules)
        return self.read_models_or_slices(
            self.path, "slices" if models is None else "models", self.data
        )

    def read_models_or_slices(
        self, path: KeyPath, key: str, data: Mapping[str, Any], module: str = ""
    ) -> list[MergedPart]:
        """Return the models of a configuration or module as one part, or each of its slices."""
        listed, here = data[key], (*path, key)
        if not isinstance(listed, list) or not listed:
            self.report.refuse(here, f"cannot be {listed!r:.40}", "a non-empty list")
            return []
        if key == "models":
            return [MergedPart(self.read_entries(here, listed, "model"), {}, here)]
        if module and not has_main_layers(module):
            self.report.refuse(here, "cannot be stacked", "slices of the text decoder only")
            return []
        return [self.read_slice((*here, number), part) for number, part in enumerate(listed)]

    def read_modules(self, modules: Any) -> list[MergedPart]:
        """Return the parts of all modules; only one of them may have slices."""
        if not isinstance(modules, dict) or not modules:
            self.report.refuse(
                self.at("modules"),
                f"cannot be {modules!r:.40}",
                "modules by name, each with models",
            )
            return []
        parts = [
            part
            for name, data in modules.items()
            for part in self.read_module(self.at("modules", name), name, data)
        ]
        if len({part.module for part in parts if part.is_sliced}) > 1:
            self.report.refuse(
                self.at("modules"), "has slices of several modules", "slices of one module"
            )
        return parts

    def read_module(self, path: KeyPath, name: str, data: Any) -> list[MergedPart]:
        if not isinstance(data, dict) or ("models" in data) == ("slices" in data):
            self.report.refuse(path, "needs either models or slices", "one of the two keys")
            return []
        self.report.check_keys(path, data, ("models", "slices", "parameters"))
        shared = self.read_parameters((*path, "parameters"), data.get("parameters"))
        key = "models" if "models" in data else "slices"
        read = self.read_models_or_slices(path, key, data, name)
        return [
            replace(part, module=name, parameters=_join(part.parameters, shared)) for part in read
        ]

    def read_slice(self, path: KeyPath, data: Any) -> MergedPart:
        listed = data.get("sources") if isinstance(data, dict) else None
        if not isinstance(listed, list) or not listed:
            self.report.refuse(
                path, "has no sources", "sources: [{model: NAME, layer_range: [0, 8]}]"
            )
            return MergedPart((), {}, path)
        self.report.check_keys(
            path, data, ("sources", "parameters"), overlooked=("residual_weight",)
        )
        entries = self.read_entries((*path, "sources"), listed, "source")
        parameters = self.read_parameters((*path, "parameters"), data.get("parameters"))
        return MergedPart(entries, parameters, path)

    def read_entries(
        self, path: KeyPath, listed: Sequence[Any], kind: str
    ) -> tuple[MergedModel, ...]:
        entries = []
        for number, data in enumerate(listed):
            here = (*path, number)
            if not isinstance(data, dict) or "model" not in data:
                self.report.refuse(here, f"is not a {kind}", "{model: NAME, parameters: {...}}")
                continue
            known = ("model", "parameters", *(["layer_range"] if kind == "source" else []))
            self.report.check_entry(here, data, known, _OVERLOOKED)
            model = self.reader.read((*here, "model"), data["model"])
            parameters = self.read_parameters(
                (*here, "parameters"), data.get("parameters"), is_own=True
            )
            layers = self.read_layers(here, data) if kind == "source" else None
            if model is not None:
                entries.append(MergedModel(model, parameters, here, layers))
        return tuple(entries)

    def read_layers(self, path: KeyPath, data: Mapping[str, Any]) -> tuple[int, int] | None:
        value = data.get("layer_range")
        is_pair = isinstance(value, list) and [type(part) for part in value] == [int, int]
        if not isinstance(value, list) or not is_pair or not 0 <= value[0] < value[1]:
            shown = (
                f"layer_range cannot be {value!r:.40}" if value is not None else "no layer_range"
            )
            self.report.refuse((*path, "layer_range"), shown, "[FIRST, AFTER_LAST], counted from 0")
            return None
        return value[0], value[1]

    def read_parameters(
        self, path: KeyPath, data: Any, *, is_own: bool = False
    ) -> dict[str, ParameterValues]:
        """Return the parameters at one level that the method reads there."""
        if data is None:
            return {}
        if not isinstance(data, dict):
            self.report.refuse(path, f"cannot be {data!r:.40}", "parameters by name")
            return {}
        parameters = {}
        for key, value in data.items():
            here = (*path, key)
            parameter = self.spec.parameters.get(key)
            if key == "int8_mask":
                self.report.warn(here, "does not change the result")
            elif parameter is None and key in _OVERLOOKED:
                self.report.warn(here, f"is not read by {self.method}")
            elif key in _KEYS and parameter is None:
                self.report.overlook(here, "it is only read at the top level of the file")
            elif parameter is None:
                self.report.weigh_key(here, key, sorted(self.spec.parameters))
            elif is_own and not parameter.is_own and self.method != "passthrough":
                self.report.warn(here, "is only read for all models together")
            else:
                parameters[key] = read_parameter(
                    self.report.tree,
                    here,
                    value,
                    self.report.problems,
                    wants_bool=isinstance(parameter.default, bool),
                )
        return parameters

    # Building the recipe.

    @property
    def has_own_base(self) -> bool:
        """Whether the recipe names the base separately from the models."""
        role = self.spec.base
        return self.base is not None and (
            role in {"delta", "optional"} or (role == "pair" and self.target.needs_base)
        )

    def arrange(self, part: MergedPart) -> MergedPart:
        """Return a part with its base first, added if mergekit adds it implicitly."""
        role = self.spec.base
        part = self.lift_scale(part)
        if self.base is None:
            if role in {"delta", "pair"}:
                self.report.refuse(
                    self.path, f"{self.method} needs a base_model", "base_model: NAME"
                )
            return part
        entries = list(part.entries)
        mine = [entry for entry in entries if entry.model == self.base]
        if not mine and not any(entry.layers for entry in entries):
            mine = [MergedModel(self.base, {}, self.at("base_model"))]
            entries += mine
        if role != "input":
            if not mine and role != "optional":
                self.report.refuse(
                    part.path, "does not list the base_model", "base_model as one of the sources"
                )
            for path in [(*entry.path, "parameters") for entry in mine if entry.parameters]:
                self.report.warn(path, "are not read for the base_model")
            entries = [*mine, *(entry for entry in entries if entry.model != self.base)]
        if role == "pair" and len(entries) != 2:
            self.report.refuse(
                part.path, f"{self.method} merges a base and one model", "two models"
            )
        return replace(part, entries=tuple(entries))

    def lift_scale(self, part: MergedPart) -> MergedPart:
        """Move the parameters of passthrough's single model to the part."""
        if self.method != "passthrough" or len(part.entries) != 1:
            return part
        (entry,) = part.entries
        joined = _join(entry.parameters, part.parameters)
        return replace(part, entries=(replace(entry, parameters={}),), parameters=joined)

    def assemble(self, parts: list[MergedPart]) -> dict[str, Any]:
        listed = dict.fromkeys(entry.model for part in parts for entry in part.entries)
        models = [model for model in listed if not (self.has_own_base and model == self.base)]
        entries = [model.to_entry() for model in models]
        parameters = self.set_shared(parts)
        stacked = [self.stack(part, models) for part in parts if part.is_sliced]
        grouped: list[dict[str, Any]] = []
        if self.data.get("modules") is not None:
            grouped = self.group(parts, models)
        elif not stacked:
            parameters += self.set_own(parts[0], models, entries)
        recipe: dict[str, Any] = {"version": 1, "kind": "merge.weights"}
        recipe["method"] = {"name": self.method, **self.settings}
        base = self.find_donor(models)
        if base is not None:
            recipe["base_model"] = base.checkpoint
            if base.adapter:
                self.report.refuse(
                    self.at("base_model"),
                    "has an adapter",
                    "a base without one: merge it first",
                )
        recipe |= {"models": entries} | self.read_types()
        for key, value in (("parameters", parameters), ("slices", stacked), ("groups", grouped)):
            if value:
                recipe[key] = value
        recipe |= self.leave_out(parts)
        tokenizer = TokenizerReader(
            self.report, self.reader, self.path, self.data, tuple(models), self.base
        )
        return recipe | tokenizer.read() | self.read_template()

    def find_donor(self, models: Sequence[ModelReference]) -> ModelReference | None:
        """Return the base of the recipe: separate, or the model that gives the config.

        If the vocabularies differ, its rows also fill in for tokens that other models lack.
        """
        has_tokenizer = {"tokenizer", "tokenizer_source"} & self.data.keys()
        if self.base is None or self.has_own_base:
            return self.base
        if self.spec.base == "pair" or (models[:1] == [self.base] and not has_tokenizer):
            return None
        if self.method == "karcher":  # its base is averaged in once
            if has_tokenizer and len(models) > 2:
                problem = "cannot both fill in for tokens and be averaged in"
                self.report.refuse(self.at("base_model"), problem, "no base_model")
            if models[:1] != [self.base]:
                self.report.warn(self.at("base_model"), "gives the config in mergekit, not here")
            return None
        return self.base

    def stack(self, part: MergedPart, models: Sequence[ModelReference]) -> dict[str, Any]:
        """Return one entry of the recipe's ``slices``."""
        sources = [
            {
                "model": -1
                if self.has_own_base and entry.model == self.base
                else models.index(entry.model),
                "layer_range": list(entry.layers or ()),
            }
            for entry in part.entries
        ]
        if len({entry.layers[1] - entry.layers[0] for entry in part.entries if entry.layers}) > 1:
            self.report.refuse(part.path, "has sources of different lengths", "equal layer counts")
        parameters = self.list_parameters(part, lambda position, entry: position)
        return {"sources": sources, **({"parameters": parameters} if parameters else {})}

    def list_parameters(
        self, part: MergedPart, number_of: Callable[[int, MergedModel], int]
    ) -> list[dict[str, Any]]:
        """Return a part's settings as overrides; ``number_of`` maps its entries to indices."""
        parameters = []
        for position, entry in enumerate(part.entries):
            for setting, values, default in self.find_own(entry, part):
                if values.scalar is None or values.scalar != default:
                    number = number_of(position, entry)
                    parameters += values.to_overrides(setting, number)
        for key, parameter in self.shared():
            parameters += find_values(key, part.parameters).to_overrides(parameter.name)
        return parameters

    def group(
        self, parts: Sequence[MergedPart], models: Sequence[ModelReference]
    ) -> list[dict[str, Any]]:
        """Return the recipe's ``groups``, with the one for all other tensors last."""
        groups = []
        for part in parts:
            if part.is_sliced:
                continue
            numbers = [models.index(entry.model) for entry in part.entries if entry.model in models]
            if len(set(numbers)) < len(numbers):
                self.report.refuse(part.path, "lists a model twice", "every model once")
            parameters = self.list_parameters(
                part, lambda position, entry: models.index(entry.model)
            )
            group = {"tensors": list(list_module_patterns(part.module)), "models": numbers}
            groups.append(group | ({"parameters": parameters} if parameters else {}))
        return sorted(groups, key=lambda group: group["tensors"] == list(ALL_TENSORS))

    def leave_out(self, parts: Sequence[MergedPart]) -> dict[str, Any]:
        """Exclude unnamed modules from the merge; mergekit would not write them."""
        named = [
            pattern
            for part in parts
            if part.module
            for pattern in list_module_patterns(part.module)
        ]
        if not named or set(ALL_TENSORS) <= set(named) or any(part.is_sliced for part in parts):
            return {}
        self.report.warn(self.at("modules"), "omits modules: their tensors are copied")
        return {"include": list(dict.fromkeys(named))}

    def set_own(
        self, part: MergedPart, models: Sequence[ModelReference], entries: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Set per-model settings; return those that vary by tensor."""
        parameters: list[dict[str, Any]] = []
        listed: set[ModelReference] = set()
        for entry in part.entries:
            if entry.model in listed:
                self.report.refuse(entry.path, "is listed twice", "every model once")
            listed.add(entry.model)
            if entry.model not in models:
                continue
            number = models.index(entry.model)
            for setting, values, default in self.find_own(entry, part):
                if values.scalar is None:
                    parameters += values.to_overrides(setting, number)
                elif values.scalar != default:
                    entries[number][setting] = values.scalar
        return parameters

    def find_own(
        self, entry: MergedModel, part: MergedPart
    ) -> list[tuple[str, ParameterValues, float]]:
        """Return a model's settings with their values and defaults."""
        if self.has_own_base and entry.model == self.base:
            return []
        settings = []
        for key, parameter in self.spec.parameters.items():
            if not parameter.is_own:
                continue
            values = find_values(key, entry.parameters, part.parameters, self.top)
            values = values.before(find_default(parameter))
            if values.is_complete:
                default = 1.0 if key == "weight" else float(parameter.default or 0)
                settings.append((parameter.name, values, default))
                continue
            some = " for some tensors" if values.conditions else ""
            self.report.refuse(
                entry.path,
                f"{key} of this model is missing{some}",
                f"parameters: {{{key}: NUMBER}} here, or for all",
            )
        return settings

    def set_shared(self, parts: Sequence[MergedPart]) -> list[dict[str, Any]]:
        """Set the method's settings; return those that vary by tensor."""
        parameters: list[dict[str, Any]] = []
        for key, parameter in self.spec.parameters.items():
            if parameter.is_own and key != "weight":
                self.settings[parameter.name] = parameter.default
        for key, parameter in self.shared():
            # the single model of passthrough may set it
            levels = [parts[0].parameters] if self.data.get("models") else []
            top = find_values(key, *levels, self.top).before(find_default(parameter))
            for part in parts:
                if not find_values(key, part.parameters).before(top).is_complete:
                    self.report.refuse(
                        part.path, f"{key} is missing", f"parameters: {{{key}: NUMBER}}"
                    )
            if top.scalar is not None:
                self.settings[parameter.name] = top.scalar
            else:
                parameters += top.to_overrides(parameter.name)
        if self.method == "nuslerp":
            self.set_unit(parts)
        return parameters

    def set_unit(self, parts: Sequence[MergedPart]) -> None:
        """Set the vector unit of nuslerp from mergekit's two switches."""
        switches = []
        for key in ("nuslerp_flatten", "nuslerp_row_wise"):
            for part in parts:
                if key in part.parameters:
                    self.report.refuse(
                        (*part.path, "parameters", key), "differs between slices", "one value"
                    )
            values = find_values(key, self.top).before(find_default(self.spec.parameters[key]))
            if values.scalar is None:
                self.report.refuse(
                    self.at("parameters", key), "differs between tensors", "one value"
                )
            switches.append(bool(values.scalar))
        is_flat, is_column = switches
        self.settings["per"] = "tensor" if is_flat else "column" if is_column else "row"

    def shared(self) -> list[tuple[str, MergekitParameter]]:
        return [
            (key, parameter)
            for key, parameter in self.spec.parameters.items()
            if not parameter.is_own and parameter.name
        ]

    def read_types(self) -> dict[str, Any]:
        dtypes: dict[str, Any] = {"arithmetic": "mergekit"}
        for key in ("dtype", "out_dtype"):
            value = self.data.get(key)
            if value is not None and value not in DTYPES:
                self.report.refuse(
                    self.at(key),
                    f"cannot be {value!r:.40}",
                    f"one of: {', '.join(DTYPES)}",
                    suggest(str(value), DTYPES),
                )
        if self.data.get("dtype") is not None:
            dtypes["arithmetic"] = {"name": "mergekit", "compute_dtype": self.data["dtype"]}
        if self.data.get("out_dtype") is not None:
            dtypes["out"] = {"dtype": self.data["out_dtype"]}
        return dtypes

    def read_template(self) -> dict[str, Any]:
        value = self.data.get("chat_template")
        if value is None:
            return {}
        if not isinstance(value, str):
            self.report.refuse(
                self.at("chat_template"), f"cannot be {value!r:.40}", "a name or a template"
            )
        if value in _OTHER_TEMPLATES:
            problem = f"{value} is the publisher's template; mergekit's differs in whitespace"
            self.report.warn(self.at("chat_template"), problem)
        return {"chat_template": value}

    # Reporting errors.

    def refuse_method(self, name: str) -> None:
        here = self.at("merge_method")
        self.report.problems.append(
            Problem(
                "merge_method is missing" if not name else f"unknown merge_method {name!r:.60}",
                "merge.mergekit-method",
                self.report.tree.place_of_value(here),
                f"one of: {', '.join(MERGEKIT_METHODS)}",
                suggest(name, MERGEKIT_METHODS) or "choose one that mergekit 0.1.5 has",
            )
        )


def _join(
    narrow: Mapping[str, ParameterValues], wide: Mapping[str, ParameterValues]
) -> dict[str, ParameterValues]:
    """Return the parameters of two levels; the narrower takes precedence."""
    return {key: find_values(key, narrow, wide) for key in dict.fromkeys([*narrow, *wide])}
