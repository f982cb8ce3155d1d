"""Two processes give the loss curve of one, and one's failure stops both."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = """
import json, os, sys
from pathlib import Path
import torch
from stillroom.jobs import Job
from stillroom.train.loop import Loss, train
from stillroom.train.ranks import leave
from stillroom.train.settings import TrainSettings
from stillroom.train.source import RecordSource

out, poison, rank = Path(sys.argv[1]), int(sys.argv[2]), os.environ.get("RANK", "0")
generator = torch.Generator().manual_seed(0)
records = []
for number in range(20):
    x = torch.randn(1 + number % 5, 4, generator=generator)
    records.append((str(number), x, x.sum(-1) * (float("nan") if number == poison else 1.0)))

class Points:
    def __init__(self, group):
        self.x = torch.cat([x for _, x, _ in group])
        self.y = torch.cat([y for _, _, y in group])
        self.record_ids = [name for name, _, _ in group]
        self.valid = self.tokens = len(self.y)

sizes = [len(x) for _, x, _ in records]
source = RecordSource(records, ids=[n for n, _, _ in records], lengths=sizes, valid=sizes,
    load=Points, batch_size=5, micro_tokens=4, seed=1)
torch.manual_seed(2)
model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))

def objective(model, batch):
    error = (model(batch.x).squeeze(-1) - batch.y).square()
    return Loss(error.sum(), {"absolute": float(error.detach().sqrt().sum())})

job = Job.start(out / f"rank{rank}", "kind: test\\n")
settings = TrainSettings(steps=15, learning_rate=0.02, precision="float32", threads=1)
try:
    result = train(model, source, objective, settings, job)
except Exception as error:
    print(f"{type(error).__name__}: {error}", flush=True)
    leave(3)
torch.save(model.state_dict(), out / f"weights{rank}.pt")
print(json.dumps({"ranks": result.ranks, "tokens": result.tokens}))
leave(0)
"""


def launch(folder: Path, ranks: int, poison: int = -1) -> list[subprocess.CompletedProcess[str]]:
    folder.mkdir()
    script = folder / "worker.py"
    script.write_text(WORKER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []
    for rank in range(ranks):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if ranks > 1:
            env |= {
                "WORLD_SIZE": str(ranks),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        command = [sys.executable, str(script), str(folder), str(poison)]
        running.append(
            subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    done = []
    for process in running:
        out, err = process.communicate(timeout=120)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done


def curve(folder: Path, name: str) -> list[float]:
    text = (folder / ".rank0.partial" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [line["value"] for line in lines if line["name"] == name]


def test_two_ranks_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    import torch

    (one,) = launch(tmp_path / "one", 1)
    assert one.returncode == 0, one.stderr
    two = launch(tmp_path / "two", 2)
    assert [process.returncode for process in two] == [0, 0], two[0].stderr + two[1].stderr
    assert json.loads(two[0].stdout)["ranks"] == 2
    assert json.loads(two[0].stdout)["tokens"] == json.loads(one.stdout)["tokens"]
    for name in ("loss", "absolute", "grad_norm"):
        wanted = curve(tmp_path / "one", name)
        assert len(wanted) == 15
        assert curve(tmp_path / "two", name) == pytest.approx(wanted, rel=1e-4)
    assert not (tmp_path / "two" / ".rank1.partial" / "metrics.jsonl").exists()
    left, right = (torch.load(tmp_path / "two" / f"weights{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_bad_record_stops_every_rank(tmp_path: Path) -> None:
    done = launch(tmp_path / "bad", 2, poison=7)
    assert [process.returncode for process in done] == [3, 3], done[0].stderr + done[1].stderr
    told = [process.stdout for process in done]
    assert all("train.loss-not-finite" in text for text in told)
    assert all("records 7" in text for text in told)  # every rank knows what was bad
