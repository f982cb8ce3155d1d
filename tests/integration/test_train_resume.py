"""A distillation killed with SIGKILL, resumed, ends with the bytes of one that was not."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from tests.processes import Process

from stillroom.provenance import read_artifact
from stillroom.records import Message, Record, write_records
from stillroom.testing import tiny_checkpoint

pytestmark = pytest.mark.slow  # test_student kills a distillation too, and so do unit tests

SCRIPT = """
import sys
from pathlib import Path
from stillroom.flow.job import find_job_kind
from stillroom.jobs import Job

folder, out, resume = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "resume"
kind, changes = "distill.logits", {"targets": {"k": 16}}
if "features" in out.name:
    kind, changes = "distill.features", {"feature_losses": ["hidden_state", "relation"]}
if "rollouts" in out.name:
    kind, changes = "distill.on_policy", {"rollout_policy": {"name": "replay", "level": 0.9,
        "buffer": 12, "validate_every": 10, "max_new_tokens": 8}}
declared = find_job_kind(kind)
recipe = declared.recipe.model_validate({
    "teacher": str(folder / "teacher"), "records": str(folder / "records.jsonl"),
    "student": {"max_parameters": 0.85},
    "train": {"steps": 60, "batch_size": 4, "threads": 1, "save_every_s": 0.05},
    **changes,
})
declared.run(recipe, Job.start(out, "kind: test\\n", resume=resume))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resume")
    tiny_checkpoint(root / "teacher", layers=4)
    records = [
        Record(
            (Message("user", f"Question {n}?"), Message("assistant", f"Answer {n}, a still.")),
            {"split": "held_out" if n % 5 == 0 else "train"},
        )
        for n in range(20)
    ]
    write_records(root / "records.jsonl", records)
    (root / "script.py").write_text(SCRIPT)
    return root


def start(folder: Path, out: Path, how: str = "new") -> Process:
    command = [sys.executable, str(folder / "script.py"), str(folder), str(out), how]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return Process(command, env=env)


def finish(process: Process) -> None:
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told


@pytest.mark.parametrize(
    ("kind", "signs"),
    [
        ("logits", ("scratch/cache/index.jsonl", "metrics.jsonl")),
        ("features", ("metrics.jsonl",)),
    ],
)
def test_ends_with_the_same_bytes_after_each_kill(
    folder: Path, tmp_path: Path, kind: str, signs: tuple[str, ...]
) -> None:
    whole, out = tmp_path / f"whole-{kind}", tmp_path / f"killed-{kind}"
    finish(start(folder, whole))
    for sign in signs:
        path = tmp_path / f".{out.name}.partial" / sign
        before = path.stat().st_size if path.is_file() else 0
        process = start(folder, out, "resume")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            is_saved = sign != "metrics.jsonl" or (path.parent / "scratch/train-state.pt").exists()
            if is_saved and path.is_file() and path.stat().st_size > before + 400:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.communicate()
        assert not out.exists()
    finish(start(folder, out, "resume"))
    assert read_artifact(out).digest == read_artifact(whole).digest
    assert '"resumed"' in (out / "events.jsonl").read_text()


def test_rollouts_are_the_same_bytes_after_a_kill(folder: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "rollouts-whole", tmp_path / "rollouts"
    finish(start(folder, whole))
    process = start(folder, out)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        path = tmp_path / ".rollouts.partial" / "metrics.jsonl"
        if path.is_file() and path.read_text().count('"loss"') > 12:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.communicate()
    assert not out.exists()
    finish(start(folder, out, "resume"))
    assert read_artifact(out).digest == read_artifact(whole).digest
    written = [(run / "output/rollouts.jsonl").read_bytes() for run in (out, whole)]
    assert written[0] == written[1]
    assert '"resumed"' in (out / "events.jsonl").read_text()
