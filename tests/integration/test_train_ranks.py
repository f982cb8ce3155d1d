"""Two processes give the loss curve of one, whole or in shares; one's failure stops both."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.processes import Process
from tests.ranks import rank_environments

WORKER = """
import json, os, sys
from pathlib import Path
import torch
from stillroom.jobs import Job
from stillroom.train.loop import Loss, train
from stillroom.train.lora import gather_tensor
from stillroom.train.distributed import ProcessGroup, exit_process
from stillroom.train.settings import TrainSettings
from stillroom.train.data import RecordSource

out, poison, rank = Path(sys.argv[1]), int(sys.argv[2]), os.environ.get("RANK", "0")
sharding, stop, resume = sys.argv[3], sys.argv[4] == "stop", sys.argv[4] == "resume"
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

job = Job.start(out / f"rank{rank}", "kind: test\\n", resume=resume)
settings = TrainSettings(steps=15, learning_rate=0.02, precision="float32", threads=1,
    sharding=sharding)

def on_step(step, model):
    if stop and step == 8 and rank == "1":  # not the one that writes
        job.cancel()

with ProcessGroup() as ranks:
    try:
        result = train(model, source, objective, settings, job, on_step=on_step, ranks=ranks)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        exit_process(3)
    weights = {name: gather_tensor(value.detach()) for name, value in model.named_parameters()}
    held = [getattr(value, "to_local", lambda: value)().numel() for value in model.parameters()]
torch.save(weights, out / f"weights{rank}.pt")
print(json.dumps({"ranks": result.ranks, "tokens": result.tokens, "held": sum(held)}))
exit_process(0)
"""


def launch(
    folder: Path,
    ranks: int,
    *,
    poison: int = -1,
    sharding: str = "none",
    how: str = "whole",
    script: str = WORKER,
) -> list[subprocess.CompletedProcess[str]]:
    folder.mkdir(exist_ok=True)
    worker = folder / "worker.py"
    worker.write_text(script)
    command = [sys.executable, str(worker), str(folder), str(poison), sharding, how]
    running = [Process(command, env=env) for env in rank_environments(ranks)]
    done = []
    for process in running:
        out, err = process.communicate(timeout=120)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done


def curve(folder: Path, name: str) -> list[float]:
    text = (folder / ".rank0.partial" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [line["value"] for line in lines if line["name"] == name]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "one"
    (done,) = launch(folder, 1)
    assert done.returncode == 0, done.stderr
    (folder / "told.json").write_text(done.stdout)
    return folder


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_ranks_have_the_loss_curve_of_one(one: Path, tmp_path: Path, sharding: str) -> None:
    import torch

    told = json.loads((one / "told.json").read_text())
    two = launch(tmp_path / "two", 2, sharding=sharding)
    assert [process.returncode for process in two] == [0, 0], two[0].stderr + two[1].stderr
    assert json.loads(two[0].stdout)["ranks"] == 2
    assert json.loads(two[0].stdout)["tokens"] == told["tokens"]
    held = [json.loads(process.stdout)["held"] for process in two]
    if sharding == "fsdp":  # each holds a part, both together all
        assert max(held) < 0.6 * told["held"]
        assert sum(held) == told["held"]
    else:
        assert held == [told["held"]] * 2
    for name in ("loss", "absolute", "grad_norm"):
        wanted = curve(one, name)
        assert len(wanted) == 15
        assert curve(tmp_path / "two", name) == pytest.approx(wanted, rel=1e-4)
    assert not (tmp_path / "two" / ".rank1.partial" / "metrics.jsonl").exists()
    left, right = (torch.load(tmp_path / "two" / f"weights{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(left[name], right[name]) for name in left)


SHARDED = ["fsdp", pytest.param("none", marks=pytest.mark.slow)]


@pytest.mark.parametrize("sharding", SHARDED)
def test_stopped_by_one_rank_both_go_on_to_the_same_weights(tmp_path: Path, sharding: str) -> None:
    import torch

    stopped = launch(tmp_path / "two", 2, sharding=sharding, how="stop")
    assert [process.returncode for process in stopped] == [3, 3], stopped[0].stderr
    assert all("Cancelled" in process.stdout for process in stopped)
    again = launch(tmp_path / "two", 2, sharding=sharding, how="resume")
    assert [process.returncode for process in again] == [0, 0], again[0].stderr
    whole = launch(tmp_path / "whole", 2, sharding=sharding)
    assert [process.returncode for process in whole] == [0, 0], whole[0].stderr
    left, right = (torch.load(tmp_path / name / "weights0.pt") for name in ("two", "whole"))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert len(curve(tmp_path / "two", "loss")) == 15


@pytest.mark.parametrize("sharding", SHARDED)
def test_a_bad_record_stops_every_rank(tmp_path: Path, sharding: str) -> None:
    done = launch(tmp_path / "bad", 2, poison=7, sharding=sharding)
    assert [process.returncode for process in done] == [3, 3], done[0].stderr + done[1].stderr
    told = [process.stdout for process in done]
    assert all("train.loss-not-finite" in text for text in told)
    assert all("records 7" in text for text in told)  # every rank knows what was bad


def test_what_the_main_process_cannot_do_no_process_waits_for(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom stillroom.train.distributed import ProcessGroup, exit_process\n"
        "with ProcessGroup() as ranks:\n"
        "    assert ranks.on_main(lambda: 40 + 2 + ranks.rank) == 42\n"
        "    try:\n        ranks.on_main(lambda: [][7])\n"
        "    except Exception as error:\n"
        "        print(getattr(error, 'code', type(error).__name__), flush=True)\n"
        "        exit_process(3)\n"
    )
    done = launch(tmp_path / "fails", 2, script=script)
    assert [process.returncode for process in done] == [3, 3], done[0].stderr + done[1].stderr
    codes = [process.stdout.strip() for process in done]
    assert codes == ["IndexError", "train.rank-failed"]
