"""The seams of this room, and the base classes of what stands in them.

What each method is given and must give back is said in the module that its base class is in.
Imports no torch, so that a recipe can name methods.
"""

from __future__ import annotations

from stillroom.diffusion.caching import CACHES, CacheMethod
from stillroom.diffusion.layout import LAYOUTS, Layout
from stillroom.diffusion.learning import OBJECTIVES, Objective
from stillroom.diffusion.noise import NOISINGS, SCHEDULES, Noising, Schedule
from stillroom.diffusion.scoring import ESTIMATORS, Estimator
from stillroom.diffusion.steps import (
    COMMITS,
    LENGTHS,
    ORDERS,
    REMASKINGS,
    CommitRule,
    Length,
    Order,
    Remasking,
)

__all__ = [
    "CACHES",
    "COMMITS",
    "ESTIMATORS",
    "LAYOUTS",
    "LENGTHS",
    "NOISINGS",
    "OBJECTIVES",
    "ORDERS",
    "REMASKINGS",
    "SCHEDULES",
    "CacheMethod",
    "CommitRule",
    "Estimator",
    "Layout",
    "Length",
    "Noising",
    "Objective",
    "Order",
    "Remasking",
    "Schedule",
]
