"""Entry script of the sandbox, run by path: starts the processes of one check.

Holds none of the inputs: each process reads its own part after the fork, so that the memory of the
program's process never contains the tests or the secret that proves a pass.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from types import ModuleType

TYPE_CHECKING = False  # avoids importing typing, which would cost more than a check


def _import_apart() -> None:
    """Make these modules importable without importing the package."""
    folder = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  # no pathlib here
    for name in ("stillroom.evaluate.isolation", "stillroom.evaluate", "stillroom"):
        package = ModuleType(name)
        package.__path__ = [folder]
        sys.modules[name] = package
        folder = os.path.dirname(folder)  # noqa: PTH120


if __name__ == "__main__":
    _import_apart()

from stillroom.evaluate.isolation.checker import examine  # noqa: E402
from stillroom.evaluate.isolation.confinement import (  # noqa: E402
    die_with_parent,
    enter_namespaces,
    set_own_user,
)
from stillroom.evaluate.isolation.program import run_program  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from stillroom.evaluate.isolation.confinement import Order

__all__ = ["main"]


def main() -> None:
    """Enter namespaces, fork the first process in them, and wait for it."""
    order: Order = json.loads(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    nowhere = os.open("/dev/null", os.O_RDWR)
    isolation = {"namespaces": False, "view": False}
    set_own_user()
    if order["namespaces"]:
        isolation = enter_namespaces(libc, order["readable"])
    first = os.fork()
    if not first:
        _supervise(libc, order, isolation, nowhere)
    os.waitpid(first, 0)


def _supervise(libc: ctypes.CDLL, order: Order, isolation: dict[str, bool], nowhere: int) -> None:
    """Parent of one program and its tests."""
    die_with_parent(libc)
    if order["tests"] < 0:
        program = _fork(lambda: run_program(libc, order, None, isolation))
        ended = {"program": os.waitpid(program, 0)[1]}
    else:
        requests, answered = os.pipe(), os.pipe()
        program = _fork(lambda: run_program(libc, order, (requests[0], answered[1]), isolation))
        tests = _fork(lambda: _examine(libc, order, (answered[0], requests[1]), isolation, nowhere))
        for descriptor in (*requests, *answered):
            os.close(descriptor)
        ended = {"tests": os.waitpid(tests, 0)[1]}
        os.kill(program, 9)
        ended["program"] = os.waitpid(program, 0)[1]
    os.write(order["report"], json.dumps({"ended": ended}).encode() + b"\n")
    os._exit(0)


def _examine(
    libc: ctypes.CDLL,
    order: Order,
    pipes: tuple[int, int],
    isolation: dict[str, bool],
    nowhere: int,
) -> None:
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    examine(libc, order, pipes, isolation)


def _fork(work: Callable[[], None]) -> int:
    process = os.fork()
    if process:
        return process
    try:
        work()
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
