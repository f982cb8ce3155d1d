"""mergekit's parameters, filters and gradients, read into the overrides of a recipe.

Values of a gradient: ``merge.settings.ParameterOverride.value_at``. A parameter is looked up from
the narrowest level to the widest; within a level, the first entry counts whose filter is part of
the tensor's name. Names and defaults are those reported by mergekit's registry at run time; the
scope of each parameter (all models or one) and the role of the base were determined by running it.

mergekit addresses modules by role (text_decoder, vision_tower) for architectures it has definitions
for, else by the name prefix before the layer numbers. Checkpoints name the same module in several
ways; the patterns cover those that transformers writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from stillroom.errors import Problem, RecipeError
from stillroom.recipes.yaml_text import KeyPath, YamlTree, format_path

if TYPE_CHECKING:
    from stillroom.merge.interfaces import MergeMethod

__all__ = [
    "ALL_TENSORS",
    "DTYPES",
    "MERGEKIT_METHODS",
    "PARAMETERS",
    "ConditionalParameter",
    "MergekitMethod",
    "MergekitParameter",
    "ParameterValues",
    "check_weights",
    "find_default",
    "find_values",
    "has_main_layers",
    "list_module_patterns",
    "mergekit_unsupported_error",
    "read_parameter",
    "read_scalar",
    "weights_cancel",
]

_BOOLEAN_WORDS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
Scalar = float | bool


@dataclass(frozen=True, slots=True)
class ConditionalParameter:
    """A parameter's value for tensors whose name contains ``word``; for all if it is empty."""

    value: Scalar | tuple[float, ...]
    word: str = ""

    def to_override(self, setting: str, model: int | None = None) -> dict[str, Any]:
        """Return the value as an entry of the recipe's ``parameters``."""
        override: dict[str, Any] = {"setting": setting}
        if model is not None:
            override["model"] = model
        if self.word:
            # Any name that contains the word.
            override["tensors"] = ["*" + re.sub(r"([*?[])", r"[\1]", self.word) + "*"]
        value = list(self.value) if isinstance(self.value, tuple) else self.value
        return override | {"value": value}


@dataclass(frozen=True, slots=True)
class ParameterValues:
    """Values of a parameter; the first matching condition counts."""

    conditions: tuple[ConditionalParameter, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether there is a value for every tensor."""
        return bool(self.conditions) and not self.conditions[-1].word

    @property
    def scalar(self) -> Scalar | None:
        """The single value for all tensors, or None."""
        if len(self.conditions) != 1 or self.conditions[0].word:
            return None
        value = self.conditions[0].value
        return None if isinstance(value, tuple) else value

    def to_overrides(self, setting: str, model: int | None = None) -> list[dict[str, Any]]:
        """Return the values as entries of the recipe's ``parameters``."""
        return [condition.to_override(setting, model) for condition in self.conditions]

    def before(self, wider: ParameterValues) -> ParameterValues:
        """Return both, these first, without conditions that can never match."""
        conditions: list[ConditionalParameter] = []
        for condition in (*self.conditions, *wider.conditions):
            conditions.append(condition)
            if not condition.word:
                break
        return ParameterValues(tuple(conditions))


def read_parameter(
    tree: YamlTree, path: KeyPath, value: Any, problems: list[Problem], *, wants_bool: bool = False
) -> ParameterValues:
    """Read the value at a path; append invalid values to ``problems``."""
    return ParameterValues(tuple(_read(tree, path, value, problems, wants_bool=wants_bool)))


def _read(
    tree: YamlTree, path: KeyPath, value: Any, problems: list[Problem], *, wants_bool: bool
) -> Iterator[ConditionalParameter]:
    if isinstance(value, dict):
        listed = [(path, value)]
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        listed = [((*path, number), part) for number, part in enumerate(value)]
    else:
        yield ConditionalParameter(_read_value(tree, path, value, problems, wants_bool=wants_bool))
        return
    for here, part in listed:
        if not isinstance(part, dict) or "value" not in part or part.keys() - {"value", "filter"}:
            expected = "{filter: PART_OF_A_NAME, value: X}"
            problems.append(_problem(tree, here, "is not a condition", expected))
            continue
        read = _read_value(tree, (*here, "value"), part["value"], problems, wants_bool=wants_bool)
        word = part.get("filter")
        yield ConditionalParameter(read, "" if word in (None, "*") else str(word))


def _read_value(
    tree: YamlTree, path: KeyPath, value: Any, problems: list[Problem], *, wants_bool: bool
) -> Scalar | tuple[float, ...]:
    """Return the value; 0, with a problem, if it cannot be read."""
    if isinstance(value, list):
        parts = [read_scalar(part, wants_bool=False) for part in value]
        numbers = tuple(float(part) for part in parts if not isinstance(part, bool | None))
        if not wants_bool and numbers and len(numbers) == len(parts):
            return numbers
        expected = "one value for all layers" if wants_bool else "a list of numbers"
        problems.append(_problem(tree, path, "is not a supported gradient", expected))
        return (0.0,)
    read = read_scalar(value, wants_bool=wants_bool)
    if read is None:
        expected = "true or false" if wants_bool else "a number, or a list of numbers"
        problems.append(_problem(tree, path, f"cannot be {value!r:.60}", expected))
    return 0.0 if read is None else read


def read_scalar(value: Any, *, wants_bool: bool) -> Scalar | None:
    """Return a number or truth value, in YAML 1.1 spellings too; None if it is neither."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _BOOLEAN_WORDS:
            value = _BOOLEAN_WORDS[word]
        elif _NUMBER.fullmatch(word):
            value = float(word)
    if wants_bool:
        return bool(value) if isinstance(value, bool) or value in (0, 1) else None
    if isinstance(value, bool):
        return None
    is_finite = isinstance(value, int | float) and abs(value) < float("inf")
    return float(value) if is_finite else None


def _problem(tree: YamlTree, path: KeyPath, problem: str, expected: str) -> Problem:
    return Problem(
        f"{format_path(path)} {problem}",
        "merge.mergekit-value",
        tree.place_of_value(path),
        expected,
        "change the value",
    )


BaseRole = Literal["input", "delta", "pair", "optional"]


@dataclass(frozen=True, slots=True)
class MergekitParameter:
    """A parameter of mergekit: its name in Stillroom, default in mergekit, and scope.

    Without a name it is converted specially; without a default it is required.
    """

    name: str
    default: float | bool | None = None
    is_own: bool = False


@dataclass(frozen=True, slots=True)
class MergekitMethod:
    """A method of mergekit.

    ``base`` is its role: an ``input`` like the models; the reference of a ``delta``; the first of a
    ``pair``; or ``optional``, the reference of a delta if given.
    """

    base: BaseRole
    parameters: Mapping[str, MergekitParameter] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


def _shared(name: str = "", default: float | bool | None = None) -> MergekitParameter:
    return MergekitParameter(name, default)


_WEIGHT = MergekitParameter("weight", is_own=True)
_DENSITY = MergekitParameter("density", 1.0, is_own=True)


def _arithmetic(
    *,
    normalize: bool,
    rescale: bool = False,
    per_model: Mapping[str, float] | None = None,
    **extra: Any,
) -> MergekitMethod:
    """Return a method that sums task vectors."""
    parameters = {
        "weight": _WEIGHT,
        "normalize": _shared("normalize", default=normalize),
        "rescale": _shared("rescale", default=rescale),
        "lambda": _shared("scale", default=1.0),
    }
    if per_model is None:
        del parameters["rescale"]  # nothing is dropped
    parameters |= {
        name: MergekitParameter(name, default, is_own=True)
        for name, default in (per_model or {}).items()
    }
    return MergekitMethod("delta", parameters, extra)


MERGEKIT_METHODS: Mapping[str, MergekitMethod] = {
    "linear": MergekitMethod(
        "input", {"weight": _WEIGHT, "normalize": _shared("normalize", default=True)}
    ),
    "slerp": MergekitMethod("pair", {"t": _shared("t")}),
    "nuslerp": MergekitMethod(
        "optional",
        {
            "weight": _WEIGHT,
            "nuslerp_flatten": _shared(default=True),
            "nuslerp_row_wise": _shared(default=False),
        },
    ),
    "multislerp": MergekitMethod(
        "optional",
        {
            "weight": _WEIGHT,
            "normalize_weights": _shared("normalize", default=True),
            "eps": _shared("eps", default=1e-8),
        },
    ),
    "karcher": MergekitMethod(
        "input",
        {
            "max_iter": _shared("max_iter", default=10),
            "tol": _shared("tol", default=1e-5),
        },
    ),
    "task_arithmetic": _arithmetic(normalize=False),
    "ties": _arithmetic(normalize=True, per_model={"density": 1.0}, trim="tensor"),
    "dare_linear": _arithmetic(normalize=False, rescale=True, per_model={"density": 1.0}),
    "dare_ties": _arithmetic(normalize=False, rescale=True, per_model={"density": 1.0}),
    "della": _arithmetic(normalize=True, rescale=True, per_model={"density": 1.0, "epsilon": 0.15}),
    "della_linear": _arithmetic(
        normalize=False, rescale=True, per_model={"density": 1.0, "epsilon": 0.15}
    ),
    "breadcrumbs": _arithmetic(normalize=False, per_model={"density": 1.0, "gamma": 0.01}),
    "breadcrumbs_ties": _arithmetic(normalize=False, per_model={"density": 1.0, "gamma": 0.01}),
    "sce": MergekitMethod(
        "delta",
        {
            "select_topk": _shared("density", default=1.0),
        },
    ),
    "model_stock": MergekitMethod("delta", {"filter_wise": _shared("by_row", default=False)}),
    "nearswap": MergekitMethod("pair", {"t": _shared("t")}),
    "arcee_fusion": MergekitMethod("pair"),
    "passthrough": MergekitMethod("input", {"scale": MergekitParameter("scale", 1.0)}),
    "ram": MergekitMethod("delta", {"epsilon": _shared("epsilon", default=1e-5)}),
    "ramplus_tl": MergekitMethod(
        "delta",
        {
            "r": _shared("r", default=0.1),
            "alpha": _shared("alpha", default=0.2),
            "epsilon": _shared("epsilon", default=1e-5),
        },
    ),
}
"""Every method of mergekit 0.1.5, by the name used here, too."""

PARAMETERS: frozenset[str] = frozenset(
    name for method in MERGEKIT_METHODS.values() for name in method.parameters
)
"""Parameter names read by any method of mergekit; other methods ignore them."""


def mergekit_unsupported_error(name: str) -> RecipeError:
    """Return the error for a method that mergekit does not have."""
    return RecipeError(
        f"mergekit 0.1.5 has no {name}",
        code="merge.arithmetic",
        where="arithmetic",
        expected="a method that mergekit has, too",
        next="omit arithmetic",
    )


def check_weights(method: MergeMethod, weights: Sequence[float]) -> str:
    """Raise an error for parents that mergekit cannot merge.

    Returns:
        A note on the result for weights that only mergekit's arithmetic accepts; else empty.

    Raises:
        RecipeError: As for the method's ``check``.
    """
    if method.method_name() != "nuslerp" or not weights_cancel(weights):
        method.check(weights)
        return ""
    method.check([1.0] * len(weights))
    return "the weights of nuslerp add up to zero, which mergekit treats as equal weights"


def weights_cancel(weights: Sequence[float]) -> bool:
    """Return whether the weights of nuslerp cancel, so that mergekit uses equal ones."""
    return abs(sum(weights)) < 1e-6


ALL_TENSORS = ("*",)
DTYPES = ("float32", "bfloat16", "float16")

_MODULE_NAMES = {
    "multi_modal_projector": (
        "multi_modal_projector",
        "mm_projector",
        "visual.merger",
        "visual.deepstack_merger_list",
        "connector",
    ),
    "vision_tower": ("vision_tower", "vision_model", "visual", "vision_encoder"),
    "vision_model": ("vision_tower", "vision_model", "visual", "vision_encoder"),
    "audio_tower": ("audio_tower", "audio_model", "audio_encoder"),
    "encoder": ("encoder",),
    "decoder": ("decoder", "lm_head", "proj_out"),
    "shared": ("shared",),
}

_MAIN = ("text_decoder", "default", "decoder", "language_model")


def list_module_patterns(module: str) -> tuple[str, ...]:
    """Return the name patterns of a module; ``ALL_TENSORS`` for the main module."""
    if module in ("text_decoder", "default", "language_model"):
        return ALL_TENSORS
    words = _MODULE_NAMES.get(module)
    if words is None:  # inferred by mergekit: the prefix before the layer numbers
        path = module.removeprefix("model.").rstrip(".")
        words = (path, path.replace("language_model.", "language_model.model.", 1))
    patterns = [pattern for word in words for pattern in (f"{word}.*", f"*.{word}.*")]
    return tuple(dict.fromkeys(patterns))


def has_main_layers(module: str) -> bool:
    """Return whether a module's layers are those stacked by ``slices`` of a recipe."""
    return module in _MAIN or "language_model" in module


def find_values(key: str, *levels: Mapping[str, ParameterValues]) -> ParameterValues:
    """Return a parameter's values at all levels; the narrower, first ones take precedence."""
    values = ParameterValues()
    for level in levels:
        values = values.before(level.get(key, ParameterValues()))
    return values


def find_default(parameter: MergekitParameter) -> ParameterValues:
    """Return the default of a parameter as values; empty if it has none."""
    return (
        ParameterValues()
        if parameter.default is None
        else ParameterValues((ConditionalParameter(parameter.default),))
    )
