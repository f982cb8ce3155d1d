"""What mergekit 0.1.5 calls its methods and parameters, their defaults, and what we call them.

Names and defaults are those that its running registry reports; whose a parameter is (all models',
or one model's) and what becomes of the base was found by running it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["METHODS_OF_MERGEKIT", "PARAMETERS", "Parameter", "TheirMethod"]

BaseRole = Literal["input", "delta", "pair", "optional"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of mergekit's: our name for it, its default there, and whose it is.

    Without a name it is read by hand; without a default it must be given.
    """

    ours: str
    default: float | bool | None = None
    is_own: bool = False


@dataclass(frozen=True, slots=True)
class TheirMethod:
    """One method of mergekit's.

    The base is an ``input`` like the models; what a ``delta`` is taken from; the first of a
    ``pair``; or ``optional``, what a delta is taken from where it is given.
    """

    base: BaseRole
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


def _shared(ours: str = "", default: float | bool | None = None) -> Parameter:
    return Parameter(ours, default)


_WEIGHT = Parameter("weight", is_own=True)
_DENSITY = Parameter("density", 1.0, is_own=True)


def _arithmetic(
    *, normalize: bool, rescale: bool = False, own: Mapping[str, float] | None = None, **extra: Any
) -> TheirMethod:
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
        name: Parameter(name, default, is_own=True) for name, default in (own or {}).items()
    }
    return TheirMethod("delta", parameters, extra)


METHODS_OF_MERGEKIT: Mapping[str, TheirMethod] = {
    "linear": TheirMethod(
        "input", {"weight": _WEIGHT, "normalize": _shared("normalize", default=True)}
    ),
    "slerp": TheirMethod("pair", {"t": _shared("t")}),
    "nuslerp": TheirMethod(
        "optional",
        {
            "weight": _WEIGHT,
            "nuslerp_flatten": _shared(default=True),
            "nuslerp_row_wise": _shared(default=False),
        },
    ),
    "multislerp": TheirMethod(
        "optional",
        {
            "weight": _WEIGHT,
            "normalize_weights": _shared("normalize", default=True),
            "eps": _shared("eps", default=1e-8),
        },
    ),
    "karcher": TheirMethod(
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
    "sce": TheirMethod(
        "delta",
        {
            "select_topk": _shared("density", default=1.0),
        },
    ),
    "model_stock": TheirMethod("delta", {"filter_wise": _shared("by_row", default=False)}),
    "nearswap": TheirMethod("pair", {"t": _shared("t")}),
    "arcee_fusion": TheirMethod("pair"),
    "passthrough": TheirMethod("input", {"scale": Parameter("scale", 1.0)}),
    "ram": TheirMethod("delta", {"epsilon": _shared("epsilon", default=1e-5)}),
    "ramplus_tl": TheirMethod(
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
    name for method in METHODS_OF_MERGEKIT.values() for name in method.parameters
)
"""Every name that some method of mergekit reads; the others overlook it, and so do we."""
