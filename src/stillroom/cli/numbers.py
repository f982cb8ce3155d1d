"""Numbers with a fraction as options take them: ``nan`` and ``inf`` are refused where they stand.

Click's own types let NaN through every bound, as no comparison with it is true.
"""

from __future__ import annotations

import math
from typing import Any

import click
from click.types import FloatParamType

__all__ = ["Finite", "FiniteRange"]


class Finite(FloatParamType):
    """Any number but NaN and the infinite ones."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number.

        Raises:
            click.BadParameter: If it is none, not finite, or out of bounds.
        """
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"'{value}' is not a finite number.", param, ctx)
        return number


class FiniteRange(Finite, click.FloatRange):
    """A number within bounds; NaN and the infinite ones are in none."""
