"""Whole merges beside mergekit 0.1.5 on the same files: a recipe's, and its own file's bytes.

Processor seconds are those of the whole commands, start-up included; mergekit is held to one thread
(more cost it more). ``exact`` is mergekit's own file run here, and its result must equal mergekit's
bit for bit. Parents are checkpoints drawn at random, and fine-tunes of a base.
STILLROOM_BENCH_LARGE=0 leaves out the 1.2 B parameters (12 GB of disk), and
STILLROOM_BENCH_LARGE=peer has mergekit merge them by TIES too, which takes it minutes and 13 GB.
"""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from commands import Cost, compile_package, interleave, print_figure, run_command
from family import make_family
from peers import peer_command

from stillroom.checkpoints import Checkpoint

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "bench" / "merge"
REPEATS = int(os.environ.get("STILLROOM_BENCH_REPEATS", "3"))
WEIGHTS = (0.5137, 0.3071, 0.1963)
METHODS = {
    "linear": {},
    "slerp": {"t": 0.37},
    "task_arithmetic": {},
    "ties": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "della": {"density": 0.5, "epsilon": 0.1},
}
STILLROOM = str(Path(sys.executable).parent / "stillroom")


def write_recipes(method: str, base: Path, parents: list[Path]) -> tuple[Path, Path]:
    """Write the same merge for both; return our recipe and theirs."""
    WORK.mkdir(parents=True, exist_ok=True)
    ours, theirs = WORK / f"{method}.yaml", WORK / f"{method}.mergekit.yml"
    settings = METHODS[method]
    own = {key: value for key, value in settings.items() if key != "t"}
    needs_base = method not in {"linear", "slerp"}
    used = parents[:2] if method == "slerp" else parents
    lines = ["version: 1", "kind: merge.weights"]
    chosen = {"name": method, **settings}
    lines.append("method: {" + ", ".join(f"{key}: {value}" for key, value in chosen.items()) + "}")
    if needs_base:
        lines.append(f"base_model: {base}")
    lines.append("models:")
    for path, weight in zip(used, WEIGHTS, strict=False):
        shown = "" if method == "slerp" else f", weight: {weight}"
        lines.append(f"  - {{model: {path}{shown}}}")
    ours.write_text("\n".join(lines) + "\n")
    lines = [f"merge_method: {method}", "dtype: bfloat16"]
    if method == "slerp":
        lines += [f"base_model: {used[0]}", "parameters:", f"  t: {settings['t']}"]
    elif needs_base:
        lines.append(f"base_model: {base}")
    lines.append("models:")
    for path, weight in zip(used, WEIGHTS, strict=False):
        lines.append(f"  - model: {path}")
        if method != "slerp":
            values = {"weight": weight, **own}
            lines.append("    parameters:")
            lines += [f"      {key}: {value}" for key, value in values.items()]
    theirs.write_text("\n".join(lines) + "\n")
    return ours, theirs


def run_ours(recipe: Path, name: str = "ours") -> Cost:
    """Merge with Stillroom; a mergekit file with the seed that mergekit is given."""
    out = WORK / name
    shutil.rmtree(out, ignore_errors=True)
    seed = ["seed=1"] if recipe.suffix == ".yml" else []
    return run_command(
        [STILLROOM, "merge", "run", str(recipe), *seed, "--out", str(out), "--quiet"]
    )


def run_theirs(mergekit: Path, recipe: Path) -> Cost:
    """Merge with mergekit, as its own measurements in the field do."""
    out = WORK / "theirs"
    shutil.rmtree(out, ignore_errors=True)
    flags = "--no-copy-tokenizer --no-write-model-card --quiet --random-seed 1 --num-threads 1"
    return run_command([str(mergekit), str(recipe), str(out), *flags.split()], threads=1)


def check_equal(method: str) -> None:
    """Stop unless mergekit's file gave mergekit's bits."""
    ours, theirs = Checkpoint.open(WORK / "exact"), Checkpoint.open(WORK / "theirs")
    for name in theirs.names():
        rows = theirs.entry(name).rows
        if bytes(ours.read(name, 0, rows)) != bytes(theirs.read(name, 0, rows)):
            raise SystemExit(f"{method}: {name} differs from mergekit's")


def copy_cost(parents: list[Path], out: Path) -> Cost:
    """Return the cost of reading every parent and writing one result with cat and cp."""
    files = " ".join(str(parent / "model.safetensors") for parent in parents)
    copy = WORK / "copy.safetensors"
    command = f"cat {files} > /dev/null; cp {out / 'model.safetensors'} {copy}"
    cost = run_command(["sh", "-c", command])
    copy.unlink()
    return cost


def small(mergekit: Path, related: bool) -> None:
    """Three checkpoints of 135 M parameters: six methods, processor seconds and memory."""
    base, parents = make_family(WORK / "checkpoints", "135m", 3, related=related)
    kind = "135m" if related else "135m_random"
    for method in METHODS:
        recipe, theirs = write_recipes(method, base, parents)
        run_ours(recipe)
        ours, exact, peer = interleave(
            REPEATS,
            partial(run_ours, recipe),
            partial(run_ours, theirs, "exact"),
            partial(run_theirs, mergekit, theirs),
        )
        check_equal(method)
        out = next((WORK / "ours").glob("**/model.safetensors")).parent
        read = [*parents, *([base] if method not in {"linear", "slerp"} else [])]
        bound = copy_cost(read, out).cpu
        named = ("mergekit 0.1.5", [cost.cpu for cost in peer])
        for what, costs in ((method, ours), (f"{method}/exact", exact)):
            shown = [cost.cpu for cost in costs]
            print_figure(f"merge/{what}/{kind}/cpu", "CPU s", shown, named, bound)
        if method == "ties":
            print_figure(
                f"merge/ties/{kind}/anon_memory",
                "MB",
                [cost.anon_mb for cost in ours],
                ("mergekit 0.1.5", [cost.anon_mb for cost in peer]),
                None,
            )


def large(mergekit: Path) -> None:
    """The same at 1.2 B parameters: linear against copying, the memory of TIES."""
    base, parents = make_family(WORK / "checkpoints", "1200m", 3)
    recipe, theirs = write_recipes("linear", base, parents)
    run_ours(recipe)
    out = next((WORK / "ours").glob("**/model.safetensors")).parent
    walls, cpus, ratios = [], [], []
    for _ in range(REPEATS):
        bound = copy_cost(parents, out).wall
        cost = run_ours(recipe)
        walls.append(cost.wall)
        cpus.append(cost.cpu)
        ratios.append(cost.wall / bound)
    peer = run_theirs(mergekit, theirs)
    print_figure("merge/linear/1200m/wall_over_copy", "ratio", ratios, None, 1.0)
    print_figure("merge/linear/1200m/cpu", "CPU s", cpus, ("mergekit 0.1.5", [peer.cpu]), None)
    recipe, theirs = write_recipes("ties", base, parents)
    costs = [run_ours(recipe)]
    with_peer = os.environ.get("STILLROOM_BENCH_LARGE") == "peer"
    peers = [run_theirs(mergekit, theirs)] if with_peer else []
    named = ("mergekit 0.1.5", [cost.anon_mb for cost in peers])
    print_figure("merge/ties/1200m/anon_mb", "MB", [cost.anon_mb for cost in costs], named, None)
    named = ("mergekit 0.1.5", [cost.cpu for cost in peers])
    print_figure("merge/ties/1200m/cpu", "CPU s", [cost.cpu for cost in costs], named, None)


def main() -> None:
    """Measure; the equality is also what tests/parity/merge shows method by method."""
    compile_package("stillroom")
    mergekit = peer_command("mergekit", "0.1.5", "mergekit-yaml")
    subprocess.run([str(mergekit), "--help"], check=True, capture_output=True)
    for related in (False, True):
        small(mergekit, related)
    if os.environ.get("STILLROOM_BENCH_LARGE") != "0":
        large(mergekit)


if __name__ == "__main__":
    main()
