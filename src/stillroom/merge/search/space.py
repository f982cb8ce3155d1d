"""Search space (genome) of a merge: numeric settings, and paths through layers.

Source: Akiba et al. 2024 (arXiv:2403.13187): merging coefficients in parameter space, and paths
through layers. A path is a bit for every entry of a list of all layers, repeated several times;
here, a number above 0.5 is a 1. Differs: scales between layers are not searched, and the result's
length is bounded by keeping the entries with the largest numbers.

``optimizers`` proposes the points.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillroom.errors import Problem, RecipeError
from stillroom.merge.settings import LayerPathSettings, SearchParameter
from stillroom.recipes import find_recipe_class

if TYPE_CHECKING:
    from stillroom.merge.jobs.recipe import MergeRecipe
    from stillroom.merge.jobs.search import MergeSearchRecipe

__all__ = [
    "SearchSpace",
    "apply_changes",
    "build_plain_recipe",
    "find_space_problems",
    "list_baselines",
]

_IN, _OUT = 0.8, 0.2  # start of a path: the first model's layers in, all others out
_MIDDLE = 0.5


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Search space of a recipe.

    ``layers`` lists the entries of a path, (model, layer); empty without a path.
    """

    recipe: MergeSearchRecipe
    items: tuple[SearchParameter, ...]
    path: LayerPathSettings | None = None
    layers: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, recipe: MergeSearchRecipe, counts: Sequence[int]) -> SearchSpace:
        """Return the search space of a recipe.

        Raises:
            RecipeError: If nothing is searched.
        """
        search = recipe.search
        if not search.space and search.layer_path is None:
            raise RecipeError(
                [_problem("nothing is searched", "search", "space or layer_path", "set one")]
            )
        layers = _list_layers(search.layer_path, counts) if search.layer_path else ()
        return cls(recipe, search.space, search.layer_path, layers)

    @property
    def labels(self) -> list[str]:
        """Name of every dimension."""
        names: list[str] = []
        for item in self.items:
            if item.gradient is None:
                names.append(item.label)
            else:
                names += [f"{item.label}.gradient.{knot}" for knot in range(item.gradient)]
        counts: dict[tuple[int, int], int] = {}
        for model, layer in self.layers:
            counts[model, layer] = counts.get((model, layer), 0) + 1
            names.append(f"path.{model}.{layer}.{counts[model, layer]}")
        return names

    @property
    def size(self) -> int:
        """Number of dimensions."""
        return sum(item.gradient or 1 for item in self.items) + len(self.layers)

    def begin(self) -> list[float]:
        """Return the point of the recipe as written, clipped to the space."""
        point: list[float] = []
        for item in self.items:
            value = _read_written_value(self.recipe, item)
            middle = item.low + (item.high - item.low) / 2
            share = ((middle if value is None else value) - item.low) / (item.high - item.low)
            point += [min(max(share, 0.0), 1.0)] * (item.gradient or 1)
        visited: set[tuple[int, int]] = set()
        first = self.layers[0][0] if self.layers else 0
        for entry in self.layers:
            is_in = entry[0] == first and entry not in visited
            point.append(_IN if is_in else _OUT)
            visited.add(entry)
        return point

    def read(self, point: Sequence[float]) -> dict[str, Any]:
        """Return a point's changes of the recipe, as JSON values."""
        changes: dict[str, Any] = {"models": {}, "method": {}, "parameters": []}
        start = 0
        for item in self.items:
            count = item.gradient or 1
            values = [self._value(item, share) for share in point[start : start + count]]
            start += count
            if item.gradient is None and item.tensors == ("*",):
                if item.model is None:
                    changes["method"][item.setting] = values[0]
                else:
                    model_changes = changes["models"].setdefault(str(item.model), {})
                    model_changes[item.setting] = values[0]
            else:
                changes["parameters"].append(
                    {
                        "setting": item.setting,
                        "model": item.model,
                        "tensors": list(item.tensors),
                        "value": values[0] if item.gradient is None else values,
                    }
                )
        if self.path is not None:
            changes["slices"] = self._walk(point[start:])
        return changes

    def _value(self, item: SearchParameter, share: float) -> float | int | bool:
        value = float(item.low + (item.high - item.low) * share)
        if item.model is None:
            kind = type(self.recipe.method).model_fields[item.setting].annotation
            if kind is bool:
                return value > _MIDDLE
            if kind is int:
                return round(value)
        return value

    def _walk(self, scores: Sequence[float]) -> list[dict[str, Any]]:
        """Return the path as slices, joining consecutive layers of one model."""
        selected = [index for index, mark in enumerate(scores) if mark > _MIDDLE]
        selected = selected or [max(range(len(scores)), key=lambda index: (scores[index], -index))]
        limit = self._limit()
        if len(selected) > limit:
            best = sorted(selected, key=lambda index: (-scores[index], index))[:limit]
            selected = sorted(best)
        runs: list[list[int]] = []
        for index in selected:
            model, layer = self.layers[index]
            if runs and runs[-1][0] == model and runs[-1][2] == layer:
                runs[-1][2] = layer + 1
            else:
                runs.append([model, layer, layer + 1])
        return [
            {"sources": [{"model": model, "layer_range": [start, stop]}]}
            for model, start, stop in runs
        ]

    def _limit(self) -> int:
        if self.path is not None and self.path.length is not None:
            return self.path.length
        first = self.layers[0][0]
        return 2 * len({entry for entry in self.layers if entry[0] == first})


def apply_changes(recipe: MergeSearchRecipe, changes: Mapping[str, Any]) -> MergeRecipe:
    """Return the validated recipe of a plain merge with changes applied.

    Raises:
        ValueError: If a changed setting is invalid (including RecipeError).
    """
    data = recipe.model_dump(mode="json", exclude={"search", "engine"})
    for number, model_changes in changes.get("models", {}).items():
        data["models"][int(number)].update(model_changes)
    data["method"].update(changes.get("method", {}))
    data["parameters"] = [*changes.get("parameters", ()), *data["parameters"]]
    if "slices" in changes:
        data["slices"] = changes["slices"]
    return build_plain_recipe(data)


def build_plain_recipe(settings: Mapping[str, Any]) -> MergeRecipe:
    """Return the validated recipe of a plain merge, kind ``merge.weights``.

    Raises:
        ValueError: If a setting is invalid (including RecipeError).
    """
    kind = "merge.weights"
    recipe: Any = find_recipe_class(kind).model_validate({**settings, "kind": kind})
    plain: MergeRecipe = recipe
    return plain


def list_baselines(recipe: MergeSearchRecipe) -> dict[str, dict[str, Any]]:
    """Return the changes of hand-made baselines: as written, and equal weights."""
    if recipe.search.layer_path is not None:
        return {}
    baselines: dict[str, dict[str, Any]] = {"as written": {}}
    weights = {model.weight for model in recipe.models}
    share = 1 / len(recipe.models)
    if recipe.method.uses_weights and weights != {share}:
        numbers = range(len(recipe.models))
        baselines["equal weights"] = {
            "models": {str(number): {"weight": share} for number in numbers}
        }
    return baselines


def _list_layers(path: LayerPathSettings, counts: Sequence[int]) -> tuple[tuple[int, int], ...]:
    models = path.models or tuple(range(len(counts)))
    once = [(model, layer) for model in models for layer in range(counts[model])]
    if path.order == "layers":
        once.sort(key=lambda entry: (entry[1], models.index(entry[0])))
    return tuple(once) * path.repeats


def _read_written_value(recipe: MergeSearchRecipe, item: SearchParameter) -> float | None:
    """Return the value set in the recipe, if it is a number."""
    value: Any = getattr(recipe.method, item.setting, None)
    if item.model is not None:
        model = recipe.models[item.model]
        value = (
            model.weight if item.setting == "weight" else model.settings.get(item.setting, value)
        )
    for parameter in recipe.parameters:
        same = (parameter.setting, parameter.model) == (item.setting, item.model)
        if same and parameter.tensors == item.tensors:
            value = parameter.value_at(0.0)
            break
    return float(value) if isinstance(value, int | float) else None


def find_space_problems(recipe: MergeSearchRecipe) -> list[Problem]:
    """Return the problems of what a recipe searches."""
    search = recipe.search
    problems: list[Problem] = []
    for number, item in enumerate(search.space):
        problems += _check_item(recipe, item, f"search.space.{number}")
    if search.layer_path is not None:
        problems += _check_path(recipe, search.layer_path)
    is_sliced = bool(recipe.slices) or search.layer_path is not None
    if is_sliced and any(item.model is not None for item in search.space):
        problem = _problem(
            "settings of a model cannot be searched with slices, which have their own model "
            "indices",
            "search.space",
            "settings of the method, or no slices",
            "omit 'model' or the slices",
        )
        problems.append(problem)
    return problems


def _check_item(recipe: MergeSearchRecipe, item: SearchParameter, where: str) -> Iterator[Problem]:
    method = recipe.method.method_name()
    if item.model is None:
        fields = type(recipe.method).model_fields
        known = [
            name for name in fields if fields[name].annotation in (float, int, bool, float | None)
        ]
        if item.setting not in known:
            yield _problem(
                f"{item.setting} is not a numeric setting of {method}",
                f"{where}.setting",
                f"one of: {', '.join(sorted(known))}" if known else "no setting",
                "a setting of a model needs 'model', its index in 'models'",
            )
        return
    if item.model >= len(recipe.models):
        yield _problem(
            f"model {item.model} does not exist",
            f"{where}.model",
            f"a number from 0 to {len(recipe.models) - 1}",
            "count the models from 0",
        )
        return
    weight = ("weight",) if recipe.method.uses_weights else ()
    allowed = [*weight, *recipe.method.per_model_settings()]
    if item.setting not in allowed:
        listed = f"one of: {', '.join(allowed)}"
        yield _problem(
            f"{method} does not use the {item.setting} of a model",
            f"{where}.setting",
            listed if allowed else "a setting of the method, without 'model'",
            "change the setting, or choose another method",
        )


def _check_path(recipe: MergeSearchRecipe, path: LayerPathSettings) -> Iterator[Problem]:
    if recipe.slices:
        yield _problem(
            "search.layer_path generates slices, but the recipe has some",
            "slices",
            "none",
            "remove them",
        )
    if recipe.method.min_models > 1:
        yield _problem(
            f"{recipe.method.method_name()} merges several models in every layer",
            "search.layer_path",
            "a method for one model, such as passthrough",
            "set method to passthrough, or search without a path",
        )
    missing = [number for number in path.models if number >= len(recipe.models)]
    if missing:
        yield _problem(
            f"model {missing[0]} does not exist",
            "search.layer_path.models",
            f"numbers from 0 to {len(recipe.models) - 1}",
            "count the models from 0",
        )


def _problem(text: str, where: str, expected: str, next_step: str) -> Problem:
    return Problem(text, "merge.search", where, expected, next_step)
