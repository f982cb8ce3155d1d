"""Optimizers of a merge search: CMA-ES (evolutionary, mergekit-evolve) and TPE propose candidates.

``run`` has ``scoring`` score them. The optimizers are libraries of the extra ``search``. Each is
determined by its seed and the reported costs, so that the same costs propose the same points.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

from stillroom.errors import MissingExtraError
from stillroom.merge.settings import CmaSettings, SearchSettings, TpeSettings

__all__ = ["Optimizer", "create_optimizer"]

_PURPOSE = "search a merge"
_START_SHARE = 2


class Optimizer(Protocol):
    """Proposes the points of a search; lower costs are better."""

    def ask(self) -> list[list[float]]:
        """Return the next points, with coordinates between 0 and 1."""

    def tell(self, costs: Sequence[float]) -> None:
        """Report the costs of the points proposed last, in order."""

    def is_done(self) -> bool:
        """Return whether the optimizer has converged."""


def create_optimizer(search: SearchSettings, start: Sequence[float], seed: int) -> Optimizer:
    """Create the optimizer named in a recipe.

    Raises:
        MissingExtraError: If its library is not installed.
    """
    if isinstance(search.optimizer, CmaSettings):
        return _Cma(search.optimizer, start, seed)
    return _Tpe(search.optimizer, start, seed)


class _Cma:
    """CMA-ES: Hansen 2016 (arXiv:1604.00772), from the package ``cma``."""

    def __init__(self, settings: CmaSettings, start: Sequence[float], seed: int) -> None:
        import numpy as np

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warns about missing matplotlib
                import cma
        except ImportError as error:
            raise MissingExtraError.of("cma", "search", _PURPOSE) from error
        self.size = len(start)
        padded = [*start, *([0.5] if self.size == 1 else [])]  # one dimension is not supported
        rng = np.random.default_rng(seed)
        options: dict[str, Any] = {
            "bounds": [0, 1],
            "randn": lambda *shape: rng.standard_normal(shape),
            "seed": float("nan"),
            "verbose": -9,
            "verb_log": 0,
        }
        if settings.population is not None:
            options["popsize"] = settings.population
        self._strategy = cma.CMAEvolutionStrategy(padded, settings.sigma, options)
        self._asked: list[Any] = []

    def ask(self) -> list[list[float]]:
        self._asked = self._strategy.ask()
        return [[float(number) for number in point[: self.size]] for point in self._asked]

    def tell(self, costs: Sequence[float]) -> None:
        self._strategy.tell(self._asked, list(costs))

    def is_done(self) -> bool:
        return bool(self._strategy.stop())


class _Tpe:
    """The tree-structured Parzen estimator of Bergstra et al. 2011, from ``optuna``."""

    def __init__(self, settings: TpeSettings, start: Sequence[float], seed: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise MissingExtraError.of("optuna", "search", _PURPOSE) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.batch = settings.batch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warns about experimental sampler settings
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
