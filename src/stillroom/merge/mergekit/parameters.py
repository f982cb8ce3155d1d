"""mergekit's methods, parameters, gradients, filters and module names.

What holds is looked up from the narrowest level to the widest; within a level the first entry whose
filter is part of the tensor's name counts.

Names and defaults are those that its running registry reports; whose a parameter is (all models',
or one model's) and what becomes of the base was found by running it.

mergekit knows modules by role (text_decoder, vision_tower) for the architectures that it has a list
for, and else by what stands before their layers' numbers. Files on disk name the same module in
several ways; patterns cover those that transformers writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stillroom.errors import Problem
from stillroom.recipes.yaml_text import KeyPath, YamlTree, format_path

__all__ = [
    "ALL_TENSORS",
    "MERGEKIT_METHODS",
    "PARAMETERS",
    "ConditionalParameter",
    "MergekitMethod",
    "MergekitParameter",
    "ParameterValues",
    "find_default",
    "has_main_layers",
    "join_parameters",
    "list_module_patterns",
    "read_parameter",
    "to_name_pattern",
]


_BOOLEAN_WORDS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


Scalar = float | bool


@dataclass(frozen=True, slots=True)
class ConditionalParameter:
    """What a parameter is for tensors whose name holds ``word``; for all where that is empty."""

    value: Scalar | tuple[float, ...]
    word: str = ""

    def to_variation(self, setting: str, model: int | None = None) -> dict[str, Any]:
        """Return it as an entry of our ``vary``."""
        made: dict[str, Any] = {"setting": setting}
        if model is not None:
            made["model"] = model
        if self.word:
            made["tensors"] = [to_name_pattern(self.word)]
        if isinstance(self.value, tuple):
            return made | {"layers": list(self.value)}
        return made | {"value": self.value}


@dataclass(frozen=True, slots=True)
class ParameterValues:
    """What a parameter is, the first condition that fits counting."""

    conditions: tuple[ConditionalParameter, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether there is a value for every tensor."""
        return bool(self.conditions) and not self.conditions[-1].word

    @property
    def scalar(self) -> Scalar | None:
        """The one value for all tensors, where that is all."""
        if len(self.conditions) != 1 or self.conditions[0].word:
            return None
        value = self.conditions[0].value
        return None if isinstance(value, tuple) else value

    def before(self, wider: ParameterValues) -> ParameterValues:
        """Return both, these first; what can never count is left out."""
        found: list[ConditionalParameter] = []
        for condition in (*self.conditions, *wider.conditions):
            found.append(condition)
            if not condition.word:
                break
        return ParameterValues(tuple(found))


def to_name_pattern(word: str) -> str:
    """Return the name pattern for names that hold a word."""
    return "*" + re.sub(r"([*?[])", r"[\1]", word) + "*"


def read_parameter(
    tree: YamlTree, path: KeyPath, value: Any, problems: list[Problem], *, wants_bool: bool = False
) -> ParameterValues:
    """Return what is written at a path; what cannot be meant joins the problems."""
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
            problems.append(_problem(tree, here, "is no condition", expected))
            continue
        read = _read_value(tree, (*here, "value"), part["value"], problems, wants_bool=wants_bool)
        word = part.get("filter")
        yield ConditionalParameter(read, "" if word in (None, "*") else str(word))


def _read_value(
    tree: YamlTree, path: KeyPath, value: Any, problems: list[Problem], *, wants_bool: bool
) -> Scalar | tuple[float, ...]:
    """Return what is written; 0, with a problem, where that cannot be read."""
    if isinstance(value, list):
        return _read_gradient(tree, path, value, problems, wants_bool=wants_bool)
    read = _read_scalar(value, wants_bool=wants_bool)
    if read is None:
        expected = "true or false" if wants_bool else "a number, or a list of numbers"
        problems.append(_problem(tree, path, f"cannot be {value!r:.60}", expected))
    return 0.0 if read is None else read


def _read_gradient(
    tree: YamlTree,
    path: KeyPath,
    value: Sequence[Any],
    problems: list[Problem],
    *,
    wants_bool: bool,
) -> tuple[float, ...]:
    read = [_read_scalar(part, wants_bool=False) for part in value]
    if wants_bool or not read or any(part is None or isinstance(part, bool) for part in read):
        expected = "one value for all layers" if wants_bool else "a list of numbers"
        problems.append(_problem(tree, path, "is no gradient that can be honored", expected))
        return (0.0,)
    return tuple(float(part) for part in read if part is not None)


def _read_scalar(value: Any, *, wants_bool: bool) -> Scalar | None:
    """Return a number or truth value, also where YAML 1.1 writes it differently."""
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


def _problem(tree: YamlTree, path: KeyPath, what: str, expected: str) -> Problem:
    return Problem(
        f"{format_path(path)} {what}",
        "merge.mergekit-value",
        tree.place_of_value(path),
        expected,
        "change the value",
    )


BaseRole = Literal["input", "delta", "pair", "optional"]


@dataclass(frozen=True, slots=True)
class MergekitParameter:
    """One parameter of mergekit's: our name for it, its default there, and whose it is.

    Without a name it is read by hand; without a default it must be given.
    """

    ours: str
    default: float | bool | None = None
    is_own: bool = False


@dataclass(frozen=True, slots=True)
class MergekitMethod:
    """One method of mergekit's.

    The base is an ``input`` like the models; what a ``delta`` is taken from; the first of a
    ``pair``; or ``optional``, what a delta is taken from where it is given.
    """

    base: BaseRole
    parameters: Mapping[str, MergekitParameter] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


def _shared(ours: str = "", default: float | bool | None = None) -> MergekitParameter:
    return MergekitParameter(ours, default)


_WEIGHT = MergekitParameter("weight", is_own=True)


_DENSITY = MergekitParameter("density", 1.0, is_own=True)


def _arithmetic(
    *, normalize: bool, rescale: bool = False, own: Mapping[str, float] | None = None, **extra: Any
) -> MergekitMethod:
    """Return a method that sums task vectors."""
    parameters = {
        "weight": _WEIGHT,
        "normalize": _shared("normalize", default=normalize),
        "rescale": _shared("rescale", default=rescale),
        "lambda": _shared("scale", default=1.0),
    }
    if own is None:
        del parameters["rescale"]  # nothing is dropped that could be made up for
    parameters |= {
        name: MergekitParameter(name, default, is_own=True) for name, default in (own or {}).items()
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
    "ties": _arithmetic(normalize=True, own={"density": 1.0}, trim="tensor"),
    "dare_linear": _arithmetic(normalize=False, rescale=True, own={"density": 1.0}),
    "dare_ties": _arithmetic(normalize=False, rescale=True, own={"density": 1.0}),
    "della": _arithmetic(normalize=True, rescale=True, own={"density": 1.0, "epsilon": 0.15}),
    "della_linear": _arithmetic(
        normalize=False, rescale=True, own={"density": 1.0, "epsilon": 0.15}
    ),
    "breadcrumbs": _arithmetic(normalize=False, own={"density": 1.0, "gamma": 0.01}),
    "breadcrumbs_ties": _arithmetic(normalize=False, own={"density": 1.0, "gamma": 0.01}),
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


"""Every method of mergekit 0.1.5 by its name, which is ours too."""


PARAMETERS: frozenset[str] = frozenset(
    name for method in MERGEKIT_METHODS.values() for name in method.parameters
)


"""Every name that some method of mergekit reads; the others overlook it, and so do we."""


ALL_TENSORS = ("*",)


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
    """Return the name patterns of a module's tensors; ``ALL_TENSORS`` for all that no other has."""
    if module in ("text_decoder", "default", "language_model"):
        return ALL_TENSORS
    words = _MODULE_NAMES.get(module)
    if words is None:  # mergekit inferred it: the words before the layers' numbers
        path = module.removeprefix("model.").rstrip(".")
        words = (path, path.replace("language_model.", "language_model.model.", 1))
    found = [pattern for word in words for pattern in (f"{word}.*", f"*.{word}.*")]
    return tuple(dict.fromkeys(found))


def has_main_layers(module: str) -> bool:
    """Return whether its layers are those that ``slices`` of a recipe stack."""
    return module in _MAIN or "language_model" in module


def join_parameters(
    narrow: Mapping[str, ParameterValues], wide: Mapping[str, ParameterValues]
) -> dict[str, ParameterValues]:
    """Return the parameters of two levels, the narrower counting first."""
    return {
        key: narrow.get(key, ParameterValues()).before(wide.get(key, ParameterValues()))
        for key in dict.fromkeys([*narrow, *wide])
    }


def find_default(parameter: MergekitParameter) -> ParameterValues:
    """Return the default of a parameter as values; no default is no value."""
    return (
        ParameterValues()
        if parameter.default is None
        else ParameterValues((ConditionalParameter(parameter.default),))
    )
