"""Job kinds (task types): what a room declares to have its recipes checked, estimated and run.

A module ``stillroom/<room>/jobs/<name>.py`` declares the kind ``room.name``: its recipe class, its
functions, and ``JOB_KIND``. The command line, flows, the server and the reference read the
declaration and know no room by name. The module is imported to validate a recipe, so it names what
computes by ``defer``, or imports it inside its functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, Protocol, TypeVar

from stillroom.jobs.job import Job
from stillroom.jobs.preflight import Estimate, PreflightReport
from stillroom.jobs.segments import Replayer
from stillroom.provenance import Artifact
from stillroom.recipes import Recipe

__all__ = ["JobKind", "Preflight", "defer"]

R = TypeVar("R", bound=Recipe)


def defer(path: str) -> Callable[..., Any]:
    """Return a function that is imported when it is called, named as ``module:function``."""
    module, _, name = path.partition(":")

    def call(*args: Any, **options: Any) -> Any:
        return getattr(import_module(module), name)(*args, **options)

    return call


class Preflight(Protocol):
    """Check a recipe before its job starts."""

    def __call__(
        self, recipe: Any, job_folder: Any, *, loads: bool, fetch: bool, machine: bool
    ) -> PreflightReport | None:
        """Return the findings; None if the recipe has nothing to check.

        Args:
            recipe: Validated recipe of the kind.
            job_folder: Planned output folder.
            loads: Whether models are loaded and compared.
            fetch: Whether checkpoints on a hub are downloaded for the check.
            machine: Whether memory and disk are compared with the free amounts.
        """
        ...


@dataclass(frozen=True)
class JobKind(Generic[R]):
    """Declaration of one kind of job.

    Args:
        recipe: Recipe class; the default of its field ``kind`` is the kind's name.
        run: Runs a started job and returns what ``job.finish`` returns.
        estimate: Estimates memory, disk and time without loading models.
        preflight: Checks records and models before the job starts.
        outline: Returns lines that draw the steps inside the job, for ``check``.
        is_distributed: Whether several processes of one launcher can run it as one job.
        extras: Extras that every job of the kind needs and that ``run`` does not import at once.
        replayer: Recomputes parts of finished jobs for ``verify --replay``; without one, jobs of
            the kind are listed as open.
        surroundings: Returns what of this machine decides the result, such as the models that are
            installed; a step of a flow is run again where it has changed.
    """

    recipe: type[R]
    run: Callable[[R, Job], Artifact]
    estimate: Callable[[R], Estimate]
    preflight: Preflight | None = None
    outline: Callable[[R], list[str]] | None = None
    is_distributed: bool = False
    extras: tuple[str, ...] = ()
    replayer: Replayer | None = None
    surroundings: Callable[[R], list[str]] | None = None
