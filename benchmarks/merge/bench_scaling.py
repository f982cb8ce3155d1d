"""How a merge's cost grows: 1 M to 1.2 B parameters, and 2 to 8 parents, whole commands.

Processor seconds are the least of the repeats, since noise only adds. Exponents are slopes of
log(seconds above the start) against log(parameters) or log(parents); the start is what the smallest
model takes. ``cached`` is the share of the inputs' bytes that lay in memory before the run.
STILLROOM_BENCH_LARGE=0 leaves out the 1.2 B parameters (10 GB of disk).
"""

import math
import os
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from commands import Cost, cached_share, compile_package, print_figure, run_command
from family import SHAPES, make_family

from stillroom.checkpoints import Checkpoint

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "bench" / "merge"
REPEATS = int(os.environ.get("STILLROOM_BENCH_REPEATS", "3"))
STILLROOM = str(Path(sys.executable).parent / "stillroom")
METHODS = {"linear": "{name: linear}", "ties": "{name: ties, density: 0.5}"}
PARENTS = (2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Point:
    """One measured merge: what it was made of, and what it took."""

    parameters: int
    parents: int
    costs: tuple[Cost, ...]
    cached: float

    @property
    def cpu(self) -> float:
        """The least processor seconds."""
        return min(cost.cpu for cost in self.costs)


def measure(method: str, size: str, count: int) -> Point:
    """Merge ``count`` fine-tunes of a size, once to warm up and then ``REPEATS`` times."""
    base, parents = make_family(WORK / "checkpoints", size, count)
    recipe, out = WORK / "scaling.yaml", WORK / "scaling"
    lines = [
        "version: 1",
        "kind: merge.weights",
        f"method: {METHODS[method]}",
        f"base_model: {base}",
        "models:",
    ]
    if method == "linear":
        del lines[3]
    lines += [
        f"  - {{model: {path}, weight: {1 + 0.1 * number:.1f}}}"
        for number, path in enumerate(parents)
    ]
    recipe.write_text("\n".join(lines) + "\n")
    files = [path / "model.safetensors" for path in parents]
    costs, cached = [], 0.0
    for repeat in range(REPEATS + 1):
        shutil.rmtree(out, ignore_errors=True)
        cached = cached_share(files)
        cost = run_command([STILLROOM, "merge", "run", str(recipe), "--out", str(out), "--quiet"])
        costs += [cost] if repeat else []
    shutil.rmtree(out, ignore_errors=True)
    return Point(Checkpoint.open(parents[0]).parameters, count, tuple(costs), cached)


def report(what: str, point: Point) -> None:
    """Print a point's processor seconds and its peak anonymous memory."""
    more = {
        "least": round(point.cpu, 3),
        "parameters": point.parameters,
        "parents": point.parents,
        "wall": round(min(cost.wall for cost in point.costs), 3),
        "anon_mb": round(max(cost.anon_mb for cost in point.costs), 1),
        "cached": round(point.cached, 2),
    }
    print_figure(f"{what}/cpu", "CPU s", [cost.cpu for cost in point.costs], None, None, **more)


def slope(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the slope of log(y) against log(x) by least squares."""
    logs = [(math.log(x), math.log(y)) for x, y in pairs]
    return statistics.linear_regression(*zip(*logs, strict=True)).slope


def sizes() -> Iterator[str]:
    """Yield the sizes, from the smallest up."""
    for size in SHAPES:
        if size != "1200m" or os.environ.get("STILLROOM_BENCH_LARGE") != "0":
            yield size


def main() -> None:
    """Measure the two curves of every method and fit their exponents."""
    compile_package("stillroom")
    for method in METHODS:
        points = []
        for size in sizes():
            points.append(measure(method, size, 3))
            report(f"merge/scaling/{method}/{size}", points[-1])
        start, *rest = points
        pairs = [(point.parameters, point.cpu - start.cpu) for point in rest]
        what = f"merge/scaling/{method}/exponent_of_parameters"
        print_figure(what, "exponent", [slope(pairs)], None, 1.0, points=len(pairs))
        grown = []
        for count in PARENTS:
            grown.append(measure(method, "135m", count))
            report(f"merge/scaling/{method}/135m/{count}_parents", grown[-1])
        pairs = [(point.parents, point.cpu - start.cpu) for point in grown]
        what = f"merge/scaling/{method}/exponent_of_parents"
        print_figure(what, "exponent", [slope(pairs)], None, 1.0, points=len(pairs))


if __name__ == "__main__":
    main()
