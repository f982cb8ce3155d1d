"""From a recipe's choice to an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stillroom.errors import MissingExtraError
from stillroom.jobs.engines.local import LocalEngine
from stillroom.jobs.engines.work import Engine

if TYPE_CHECKING:
    from stillroom.recipes.engine import EngineChoice

__all__ = ["open_engine", "refuse_missing"]


def refuse_missing(choice: EngineChoice | None) -> None:
    """Refuse an engine that is not installed, before a job's folder is made.

    Raises:
        MissingExtraError: If Ray is chosen and not installed.
    """
    if choice is not None and choice.ray is not None:
        try:
            import ray  # noqa: F401  # only whether it is here
        except ImportError as error:
            raise MissingExtraError.of("ray", "ray", "engine: ray") from error


@contextmanager
def open_engine(
    choice: EngineChoice | None, tell: Callable[[str], None] = lambda line: None
) -> Iterator[Engine]:
    """Open the chosen engine until the body ends.

    Args:
        choice: What the recipe says; None is this process.
        tell: Told of workers that were lost.

    Raises:
        MissingExtraError: If Ray is chosen and not installed.
        ResourceError: If the cluster cannot be reached.
    """
    engine: Engine = LocalEngine()
    refuse_missing(choice)
    if choice is not None and choice.ray is not None:
        from stillroom.jobs.engines.ray import RayEngine

        engine = RayEngine(choice.ray, tell)
    try:
        yield engine
    finally:
        engine.close()
