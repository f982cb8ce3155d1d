"""Whole merges beside mergekit 0.1.5 on the same files; equality first, then cost.

Processor seconds are those of the whole commands, start-up included; mergekit is held to one thread
(more cost it more). STILLROOM_BENCH_LARGE=0 leaves out the 1.2 B parameters (12 GB of disk), and
STILLROOM_BENCH_LARGE=peer has mergekit merge them by TIES too, which takes it minutes and 13 GB.
"""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from commands import Cost, compile_package, interleave, print_figure, run_command
from family import make_family
from peers import peer_command

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.numbers import BIT_TYPES

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


def write_recipes(method: str, base: Path, parents: list[Path], compat: str) -> tuple[Path, Path]:
    """Write the same merge for both; return our recipe and theirs."""
    WORK.mkdir(parents=True, exist_ok=True)
    ours, theirs = WORK / f"{method}.{compat}.yaml", WORK / f"{method}.mergekit.yml"
    settings = METHODS[method]
    own = {key: value for key, value in settings.items() if key != "t"}
    needs_base = method not in {"linear", "slerp"}
    used = parents[:2] if method == "slerp" else parents
    lines = ["version: 1", "kind: merge", f"compat: {compat}"]
    extra = {"trim": "tensor"} if method == "ties" and compat == "mergekit" else {}
    if compat == "mergekit" and method.startswith("dare"):
        extra |= {"normalize": "false"}
    chosen = {"name": method, **settings, **extra}
    lines.append("method: {" + ", ".join(f"{key}: {value}" for key, value in chosen.items()) + "}")
    if needs_base:
        lines.append(f"base: {base}")
    lines.append("models:")
    for path, weight in zip(used, WEIGHTS, strict=False):
        shown = "" if method == "slerp" else f", weight: {weight}"
        lines.append(f"  - {{checkpoint: {path}{shown}}}")
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


def run_ours(recipe: Path) -> Cost:
    """Merge with Stillroom."""
    out = WORK / "ours"
    shutil.rmtree(out, ignore_errors=True)
    return run_command([STILLROOM, "merge", "run", str(recipe), "--out", str(out), "--quiet"])


def run_theirs(mergekit: Path, recipe: Path) -> Cost:
    """Merge with mergekit, as its own measurements in the field do."""
    out = WORK / "theirs"
    shutil.rmtree(out, ignore_errors=True)
    flags = "--no-copy-tokenizer --no-write-model-card --quiet --random-seed 1 --num-threads 1"
    return run_command([str(mergekit), str(recipe), str(out), *flags.split()], threads=1)


def differing_share() -> tuple[float, float]:
    """Return the share of differing elements, and the largest difference in bfloat16 steps."""
    ours, theirs = Checkpoint.open(WORK / "ours"), Checkpoint.open(WORK / "theirs")
    differing = total = steps = 0
    for name in theirs.names():
        pair = []
        for checkpoint in (ours, theirs):
            entry = checkpoint.entry(name)
            data = checkpoint.read(name, 0, entry.rows)
            pair.append(np.frombuffer(data, BIT_TYPES[entry.dtype]))
        left, right = pair
        total += left.size
        unequal = np.flatnonzero(left != right)
        differing += len(unequal)
        if len(unequal):
            gap = np.abs(left[unequal].astype(np.int64) - right[unequal].astype(np.int64))
            steps = max(steps, int(gap.max()))
            del gap
    return differing / total, float(steps)


def copy_cost(parents: list[Path], out: Path) -> Cost:
    """Return the cost of reading every parent and writing one result with cat and cp."""
    files = " ".join(str(parent / "model.safetensors") for parent in parents)
    copy = WORK / "copy.safetensors"
    command = f"cat {files} > /dev/null; cp {out / 'model.safetensors'} {copy}"
    cost = run_command(["sh", "-c", command])
    copy.unlink()
    return cost


def small(mergekit: Path) -> None:
    """Three related checkpoints of 135 M parameters: six methods, processor seconds and memory."""
    base, parents = make_family(WORK / "checkpoints", "135m", 3)
    for method in METHODS:
        recipe, theirs = write_recipes(method, base, parents, "paper")
        run_ours(recipe)
        ours, peer = interleave(
            REPEATS, partial(run_ours, recipe), partial(run_theirs, mergekit, theirs)
        )
        out = next((WORK / "ours").glob("**/model.safetensors")).parent
        read = [*parents, *([base] if method not in {"linear", "slerp"} else [])]
        print_figure(
            f"merge/{method}/135m/cpu",
            "CPU s",
            [cost.cpu for cost in ours],
            ("mergekit 0.1.5", [cost.cpu for cost in peer]),
            copy_cost(read, out).cpu,
        )
        if method == "ties":
            print_figure(
                "merge/ties/135m/anon_memory",
                "MB",
                [cost.anon_mb for cost in ours],
                ("mergekit 0.1.5", [cost.anon_mb for cost in peer]),
                None,
            )


def large(mergekit: Path) -> None:
    """The same at 1.2 B parameters: linear against copying, the memory of TIES."""
    base, parents = make_family(WORK / "checkpoints", "1200m", 3)
    recipe, theirs = write_recipes("linear", base, parents, "paper")
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
    recipe, theirs = write_recipes("ties", base, parents, "paper")
    costs = [run_ours(recipe)]
    with_peer = os.environ.get("STILLROOM_BENCH_LARGE") == "peer"
    peers = [run_theirs(mergekit, theirs)] if with_peer else []
    named = ("mergekit 0.1.5", [cost.anon_mb for cost in peers])
    print_figure("merge/ties/1200m/anon_mb", "MB", [cost.anon_mb for cost in costs], named, None)
    named = ("mergekit 0.1.5", [cost.cpu for cost in peers])
    print_figure("merge/ties/1200m/cpu", "CPU s", [cost.cpu for cost in costs], named, None)


def main() -> None:
    """Measure, after the equality that tests/parity/merge shows method by method."""
    compile_package("stillroom")
    mergekit = peer_command("mergekit", "0.1.5", "mergekit-yaml")
    subprocess.run([str(mergekit), "--help"], check=True, capture_output=True)
    base, parents = make_family(WORK / "checkpoints", "135m", 3)
    recipe, theirs = write_recipes("linear", base, parents, "mergekit")
    run_ours(recipe)
    run_theirs(mergekit, theirs)
    share, steps = differing_share()
    if steps > 1:
        raise SystemExit(f"linear differs from mergekit by {steps} steps in {share:.1e} of it")
    print(f"linear, compat mergekit: {share:.1e} of the elements differ", file=sys.stderr)
    small(mergekit)
    if os.environ.get("STILLROOM_BENCH_LARGE") != "0":
        large(mergekit)


if __name__ == "__main__":
    main()
