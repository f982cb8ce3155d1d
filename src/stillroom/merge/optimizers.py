"""Optimizers of a search: they ask for points between 0 and 1, and are told what those cost.

Both are libraries of the extra ``search``. Each depends on its seed and on what it was told alone,
so a search that is told the same again asks the same again.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

from stillroom.errors import MissingExtraError
from stillroom.merge.search_recipe import SearchSettings

__all__ = ["Optimizer", "open_optimizer"]

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


def open_optimizer(search: SearchSettings, start: Sequence[float], seed: int) -> Optimizer:
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
