"""The loss head beside trl 1.16's two paths: hidden states to loss to both gradients.

V 49152, 1020 positions, hidden 384 and 576, float32, one thread. Each run is a process of its own,
ours and the peer's in turn; equality of loss and gradients is checked first. Processor seconds are
those of one pass after a first one; memory is the peak above what the process held after that first
pass, with the head's gradient still there, for all alike.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from commands import print_figure
from peers import peer_command

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "bench" / "distill"
WORKER = Path(__file__).with_name("loss_head_worker.py")
REPEATS = int(os.environ.get("STILLROOM_BENCH_REPEATS", "3"))
BETAS = {"forward_kl": "0", "jsd": "0.5"}
PEERS = {"trl_gkd": "trl 1.16 GKDTrainer", "trl_chunked": "trl 1.16 DistillationTrainer"}
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4


def run_worker(python: Path, way: str, beta: str, *more: str) -> dict[str, object]:
    """Run one way in a process of its own and return what it said."""
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        [str(python), str(WORKER), way, "--beta", beta, *more],
        env={**os.environ, **threads, "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def check_equal(peer: Path, beta: str) -> None:
    """Compare loss and both gradients of all three ways; stop where they differ."""
    found = {}
    for way in ("ours", *PEERS):
        path = WORK / f"{way}.pt"
        python = Path(sys.executable) if way == "ours" else peer
        run_worker(python, way, beta, "--repeats", "0", "--keep", str(path))
        found[way] = torch.load(path)
        path.unlink()
    loss, *gradients = found.pop("ours")
    for way, (other, *theirs) in found.items():
        apart = abs(loss - other) / abs(other)
        worst = max(
            float((mine - their).abs().max() / their.abs().max())
            for mine, their in zip(gradients, theirs, strict=True)
        )
        print(f"beta {beta}, {way}: loss {apart:.1e}, gradients {worst:.1e} apart", file=sys.stderr)
        if apart > LOSS_TOLERANCE or worst > GRADIENT_TOLERANCE:
            raise SystemExit(f"beta {beta}: ours and {way} differ")


def measure(peer: Path, name: str, beta: str) -> None:
    """Run all three ways in turn and print processor seconds and memory beside each peer."""
    cpu: dict[str, list[float]] = {way: [] for way in ("ours", *PEERS)}
    memory: dict[str, list[float]] = {way: [] for way in cpu}
    for _ in range(REPEATS):
        for way in cpu:
            python = Path(sys.executable) if way == "ours" else peer
            said = run_worker(python, way, beta)
            cpu[way].append(statistics.median(said["cpu"]))
            memory[way].append(said["mb"])
    for way, title in PEERS.items():
        where = f"distill/loss_head/{name}"
        peer_cpu, peer_memory = (title, cpu[way]), (title, memory[way])
        print_figure(f"{where}/cpu_vs_{way}", "CPU s", cpu["ours"], peer_cpu, None)
        print_figure(f"{where}/memory_vs_{way}", "MB", memory["ours"], peer_memory, None)


def measure_ourselves() -> None:
    """Half the positions masked: half the time. Twice the positions: the same memory."""
    us = Path(sys.executable)
    whole, half, memory, longer = [], [], [], []
    for _ in range(REPEATS):
        said = run_worker(us, "ours", "0")
        whole.append(statistics.median(said["cpu"]))
        memory.append(said["mb"])
        half.append(statistics.median(run_worker(us, "ours", "0", "--valid", "0.5")["cpu"]))
        longer.append(run_worker(us, "ours", "0", "--positions", "2040")["mb"])
    named = ("ours, all positions valid", whole)
    print_figure("distill/loss_head/half_masked/speedup", "CPU s", half, named, None)
    named = ("ours, 1020 positions", memory)
    print_figure("distill/loss_head/double_positions/memory", "MB", longer, named, None)


def main() -> None:
    """Equality, then cost."""
    peer = peer_command("trl", "1.16.0", "python")
    WORK.mkdir(parents=True, exist_ok=True)
    for beta in BETAS.values():
        check_equal(peer, beta)
    measure_ourselves()
    for name, beta in BETAS.items():
        measure(peer, name, beta)


if __name__ == "__main__":
    main()
