"""The search space of a merge, and the optimizers that sample it.

Source: Akiba et al. 2024 (arXiv:2403.13187): merging coefficients in the space of parameters, and
paths through layers. Their path is a bit for every entry of a list of all layers, gone through
several times; so is ours, a number above the middle standing for 1. What they scale between layers
is not searched, and the result's length is bounded: the entries with the largest numbers stay.

Both are libraries of the extra ``search``. Each depends on its seed and on what it was told alone,
so a search that is told the same again asks the same again.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stillroom.errors import MissingExtraError, Problem, RecipeError
from stillroom.merge.recipe import MergeRecipe, ModelEntry
from stillroom.merge.settings import LayerPathSettings, SearchParameter, SearchSettings

__all__ = [
    "Optimizer",
    "SearchSpace",
    "apply_changes",
    "create_optimizer",
    "list_baselines",
]


_IN, _OUT = 0.8, 0.2  # where a path begins: the first model's layers in, all others out


_MIDDLE = 0.5


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """What a recipe's ``search`` goes through.

    ``layers`` is the list of a path's entries, (model, layer), empty without a path.
    """

    recipe: MergeRecipe
    items: tuple[SearchParameter, ...]
    path: LayerPathSettings | None = None
    layers: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, recipe: MergeRecipe, counts: Sequence[int]) -> SearchSpace:
        """Return the space of a recipe.

        Args:
            recipe: A recipe with ``search``.
            counts: How many layers each of its models has; looked at for a path only.

        Raises:
            RecipeError: If what is searched is not in the recipe.
        """
        search = recipe.search
        if search is None:
            raise ValueError("the recipe searches nothing")
        problems = _find_problems(recipe)
        if problems:
            raise RecipeError(problems)
        layers = _list_layers(search.path, counts) if search.path else ()
        return cls(recipe, search.space, search.path, layers)

    @property
    def labels(self) -> list[str]:
        """The name of every number."""
        names: list[str] = []
        for item in self.items:
            if item.layers is None:
                names.append(item.label)
            else:
                names += [f"{item.label}.layers.{knot}" for knot in range(item.layers)]
        seen: dict[tuple[int, int], int] = {}
        for model, layer in self.layers:
            seen[model, layer] = seen.get((model, layer), 0) + 1
            names.append(f"path.{model}.{layer}.{seen[model, layer]}")
        return names

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return sum(item.layers or 1 for item in self.items) + len(self.layers)

    def begin(self) -> list[float]:
        """Return the point that the recipe as written is, or lies next to."""
        point: list[float] = []
        for item in self.items:
            value = _read_written_value(self.recipe, item)
            middle = item.low + (item.high - item.low) / 2
            share = ((middle if value is None else value) - item.low) / (item.high - item.low)
            point += [min(max(share, 0.0), 1.0)] * (item.layers or 1)
        passed: set[tuple[int, int]] = set()
        first = self.layers[0][0] if self.layers else 0
        for entry in self.layers:
            is_in = entry[0] == first and entry not in passed
            point.append(_IN if is_in else _OUT)
            passed.add(entry)
        return point

    def read(self, point: Sequence[float]) -> dict[str, Any]:
        """Return the changes of the recipe that a point stands for, as JSON values."""
        changes: dict[str, Any] = {"models": {}, "method": {}, "vary": []}
        at = 0
        for item in self.items:
            count = item.layers or 1
            values = [self._value(item, share) for share in point[at : at + count]]
            at += count
            is_own = item.model is None or item.setting in ModelEntry.model_fields
            if item.layers is None and item.tensors == ("*",) and is_own:
                if item.model is None:
                    changes["method"][item.setting] = values[0]
                else:
                    own = changes["models"].setdefault(str(item.model), {})
                    own[item.setting] = values[0]
            else:
                what = {"value": values[0]} if item.layers is None else {"layers": values}
                place = {"setting": item.setting, "model": item.model}
                changes["vary"].append({**place, "tensors": list(item.tensors), **what})
        if self.path is not None:
            changes["slices"] = self._walk(point[at:])
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

    def _walk(self, marks: Sequence[float]) -> list[dict[str, Any]]:
        """Return the path as slices; layers that follow each other in one model are one slice."""
        chosen = [at for at, mark in enumerate(marks) if mark > _MIDDLE]
        chosen = chosen or [max(range(len(marks)), key=lambda at: (marks[at], -at))]
        limit = self._limit()
        if len(chosen) > limit:
            best = sorted(chosen, key=lambda at: (-marks[at], at))[:limit]
            chosen = sorted(best)
        runs: list[list[int]] = []
        for at in chosen:
            model, layer = self.layers[at]
            if runs and runs[-1][0] == model and runs[-1][2] == layer:
                runs[-1][2] = layer + 1
            else:
                runs.append([model, layer, layer + 1])
        return [{"models": [{"model": m, "layers": [start, stop]}]} for m, start, stop in runs]

    def _limit(self) -> int:
        if self.path is not None and self.path.length is not None:
            return self.path.length
        first = self.layers[0][0]
        return 2 * len({entry for entry in self.layers if entry[0] == first})


def apply_changes(recipe: MergeRecipe, changes: Mapping[str, Any]) -> MergeRecipe:
    """Return a recipe with changes made, checked as any; it searches and selects nothing more.

    Raises:
        ValueError: If a changed setting is not allowed (RecipeError is one).
    """
    data = recipe.model_dump(mode="json")
    for number, own in changes.get("models", {}).items():
        data["models"][int(number)].update(own)
    data["method"].update(changes.get("method", {}))
    data["vary"] = [*changes.get("vary", ()), *data["vary"]]
    if "slices" in changes:
        data["slices"] = changes["slices"]
    data["search"] = data["select"] = None
    return MergeRecipe.model_validate(data)


def list_baselines(recipe: MergeRecipe) -> dict[str, dict[str, Any]]:
    """Return the changes that make what one would try by hand: as written, and equal weights."""
    if recipe.search is not None and recipe.search.path is not None:
        return {}
    found: dict[str, dict[str, Any]] = {"as written": {}}
    weights = {model.weight for model in recipe.models}
    share = 1 / len(recipe.models)
    if recipe.method.uses_weights and weights != {share}:
        numbers = range(len(recipe.models))
        found["equal weights"] = {"models": {str(at): {"weight": share} for at in numbers}}
    return found


def _list_layers(path: LayerPathSettings, counts: Sequence[int]) -> tuple[tuple[int, int], ...]:
    models = path.models or tuple(range(len(counts)))
    once = [(model, layer) for model in models for layer in range(counts[model])]
    if path.order == "layers":
        once.sort(key=lambda entry: (entry[1], models.index(entry[0])))
    return tuple(once) * path.repeats


def _read_written_value(recipe: MergeRecipe, item: SearchParameter) -> float | None:
    """Return what the recipe itself sets, where that is a number."""
    value: Any = getattr(recipe.method, item.setting, None)
    if item.model is not None:
        model = recipe.models[item.model]
        value = model.weight if item.setting == "weight" else model.own.get(item.setting, value)
    for variation in recipe.vary:
        same = (variation.setting, variation.model) == (item.setting, item.model)
        if same and variation.tensors == item.tensors:
            value = variation.at(0.0)
            break
    return float(value) if isinstance(value, int | float) else None


def _find_problems(recipe: MergeRecipe) -> list[Problem]:
    search = recipe.search
    if search is None:
        return []
    found: list[Problem] = []
    for number, item in enumerate(search.space):
        found += _check_item(recipe, item, f"search.space.{number}")
    if search.path is not None:
        found += _check_path(recipe, search.path)
    is_sliced = bool(recipe.slices) or search.path is not None
    if is_sliced and any(item.model is not None for item in search.space):
        found.append(
            _problem(
                "a model's settings are searched beside slices, which count models of their own",
                "search.space",
                "settings of the method, or no slices",
                "leave out 'model' or the slices",
            )
        )
    if recipe.select is not None:
        found.append(
            _problem(
                "select and search both choose what is kept",
                "search",
                "one of them",
                "leave out select: a search scores the parents too",
            )
        )
    return found


def _check_item(recipe: MergeRecipe, item: SearchParameter, where: str) -> list[Problem]:
    if item.model is None:
        fields = type(recipe.method).model_fields
        known = [
            name for name in fields if fields[name].annotation in (float, int, bool, float | None)
        ]
        if item.setting in known:
            return []
        return [
            _problem(
                f"{item.setting} is not a number that {recipe.method.method_name()} has",
                f"{where}.setting",
                f"one of: {', '.join(sorted(known))}" if known else "(it has none)",
                "a model's own setting needs 'model', its number in 'models'",
            )
        ]
    if item.model >= len(recipe.models):
        return [
            _problem(
                f"there is no model {item.model}",
                f"{where}.model",
                f"a number from 0 to {len(recipe.models) - 1}",
                "count the models from 0",
            )
        ]
    weight = ("weight",) if recipe.method.uses_weights else ()
    own = [*weight, *recipe.method.per_model]
    if item.setting in own:
        return []
    return [
        _problem(
            f"{recipe.method.method_name()} does not use the {item.setting} of a model",
            f"{where}.setting",
            f"one of: {', '.join(own)}" if own else "a setting of the method, without 'model'",
            "change the setting, or choose another method",
        )
    ]


def _check_path(recipe: MergeRecipe, path: LayerPathSettings) -> list[Problem]:
    found = []
    if recipe.slices:
        found.append(
            _problem(
                "search.path makes slices, and there are some", "slices", "none", "remove them"
            )
        )
    if recipe.method.least_parents > 1:
        found.append(
            _problem(
                f"{recipe.method.method_name()} merges several models in every layer",
                "search.path",
                "a method that takes one model, as passthrough",
                "set method to passthrough, or search without a path",
            )
        )
    missing = [number for number in path.models if number >= len(recipe.models)]
    if missing:
        found.append(
            _problem(
                f"there is no model {missing[0]}",
                "search.path.models",
                f"numbers from 0 to {len(recipe.models) - 1}",
                "count the models from 0",
            )
        )
    return found


def _problem(what: str, where: str, expected: str, next_step: str) -> Problem:
    return Problem(what, "merge.search", where, expected, next_step)


_PURPOSE = "search a merge"


_START_SHARE = 2


class Optimizer(Protocol):
    """Chooses the points of a search; less is better."""

    def ask(self) -> list[list[float]]:
        """Return the next points, each number between 0 and 1."""

    def tell(self, costs: Sequence[float]) -> None:
        """Hear what the points last asked for cost, in their order."""

    def is_done(self) -> bool:
        """Return whether going on is of no use."""


def create_optimizer(search: SearchSettings, start: Sequence[float], seed: int) -> Optimizer:
    """Return the optimizer that a recipe names.

    Args:
        search: The recipe's section.
        start: Where to begin, each number between 0 and 1.
        seed: Of all it draws.

    Raises:
        MissingExtraError: If its library is not installed.
    """
    if search.method == "cma":
        return _Cma(search, start, seed)
    return _Bayes(search, start, seed)


class _Cma:
    """CMA-ES: Hansen 2016 (arXiv:1604.00772), as the package ``cma`` has it."""

    def __init__(self, search: SearchSettings, start: Sequence[float], seed: int) -> None:
        import numpy as np

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns that it cannot plot
                import cma
        except ImportError as error:
            raise MissingExtraError.of("cma", "search", _PURPOSE) from error
        self.size = len(start)
        padded = [*start, *([0.5] if self.size == 1 else [])]  # it knows no search in one dimension
        rng = np.random.default_rng(seed)
        options: dict[str, Any] = {
            "bounds": [0, 1],
            "randn": lambda *shape: rng.standard_normal(shape),
            "seed": float("nan"),
            "verbose": -9,
            "verb_log": 0,
        }
        if search.population is not None:
            options["popsize"] = search.population
        self._strategy = cma.CMAEvolutionStrategy(padded, search.sigma, options)
        self._asked: list[Any] = []

    def ask(self) -> list[list[float]]:
        self._asked = self._strategy.ask()
        return [[float(number) for number in point[: self.size]] for point in self._asked]

    def tell(self, costs: Sequence[float]) -> None:
        self._strategy.tell(self._asked, list(costs))

    def is_done(self) -> bool:
        return bool(self._strategy.stop())


class _Bayes:
    """The tree-structured Parzen estimator of Bergstra et al. 2011, as ``optuna`` has it."""

    def __init__(self, search: SearchSettings, start: Sequence[float], seed: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise MissingExtraError.of("optuna", "search", _PURPOSE) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.batch = search.population or 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls settings of the sampler experimental
            sampler = optuna.samplers.TPESampler(
                seed=seed % 2**32,
                n_startup_trials=max(_START_SHARE * len(start), 5),
                multivariate=True,
                constant_liar=self.batch > 1,
            )
        self._study = optuna.create_study(sampler=sampler)
        self._spread: dict[str, Any] = {
            f"{number:04d}": optuna.distributions.FloatDistribution(0, 1)
            for number in range(len(start))
        }
        self._study.enqueue_trial(dict(zip(self._spread, start, strict=True)))
        self._asked: list[Any] = []

    def ask(self) -> list[list[float]]:
        self._asked = [self._study.ask(self._spread) for _ in range(self.batch)]
        return [[float(trial.params[name]) for name in self._spread] for trial in self._asked]

    def tell(self, costs: Sequence[float]) -> None:
        for trial, cost in zip(self._asked, costs, strict=True):
            self._study.tell(trial, cost)

    def is_done(self) -> bool:
        return False
