"""A server of which only text can be had: it writes, and the student learns what it wrote."""

import json

import pytest
import torch
from pydantic import ValidationError
from tests.unit.distill.conftest import make_records
from tests.unit.distill.kinds import build
from tests.unit.models.endpoint_server import Server, completion

from stillroom.distill.interfaces import METHODS
from stillroom.distill.losses.targets import DenseTargets
from stillroom.distill.preflight.resources import ResourceEstimator
from stillroom.distill.preflight.workload import describe_workload
from stillroom.errors import BackendError, RecipeError
from stillroom.records import read_records, write_records
from stillroom.testing import tiny_checkpoint

FAST = {"steps": 20, "batch_size": 4, "threads": 1, "learning_rate": 5e-3, "precision": "float32"}
TEXT = {"name": "forward_kl", "kd_weight": 0, "ce_weight": 1}
WRITES = {"attempts": 1, "temperature": 0, "scorers": []}


@pytest.fixture
def server():
    def answer(path, body, headers):
        if path == "/models":
            return {"data": [{"id": "only"}]}
        asked = body["messages"][-1]["content"]
        return completion("Since it is so." if "step by step" in asked else "It is hot.")

    with Server(answer) as server:
        yield server


@pytest.fixture
def make_recipe(server, tmp_path):
    student = tiny_checkpoint(tmp_path / "student", layers=1, seed=9)
    write_records(tmp_path / "given.jsonl", make_records(12))

    def make(*, teacher=None, **changes):
        fields = {
            "teacher": {"endpoint": server.address, "tries": 1, **(teacher or {})},
            "records": str(tmp_path / "given.jsonl"),
            "student": str(student),
            "kind": "distill.supervised",
            "sequence": WRITES,
            "train": FAST,
            "keep_checkpoints": 0,
            "include_prompt": False,
            "fidelity": {"answers": 2, "max_new_tokens": 6, "speed": False},
        }
        return build({**fields, **changes})

    return make


def test_a_student_learns_what_a_server_wrote_without_any_other_teacher(make_recipe, do, server):
    artifact, folder = do(make_recipe(teacher={"license": "apache-2.0", "model": "large"}))
    assert {path for path, *_ in server.requests} == {"/v1/chat/completions"}
    assert len(server.requests) == 9
    written = list(read_records(folder / "output" / "written.jsonl"))
    assert {one.messages[-1].content for one in written} == {"It is hot."}
    assert artifact.details["train"]["last_loss"] < 0.5 * artifact.details["train"]["first_loss"]
    assert artifact.parents[0].kind == "endpoint"
    assert artifact.parents[0].path == f"{server.address}#large"
    assert artifact.origin["license"] == "apache-2.0"
    assert "large" in (folder / "output" / "README.md").read_text()
    found = json.loads((folder / "output" / "fidelity.json").read_text())
    assert found["kind"] == "sequence"
    assert set(found["by_themselves"]) == {"initial", "final", "baseline"}
    assert "remains unknown" in found["report"]["summary"]
    names = {metric["name"] for metric in found["report"]["metrics"]}
    assert {"student/ece", "student_minus_baseline/loss", "student/f1"} <= names
    assert "student/flips" not in names
    assert (folder / "output" / "fidelity.html").is_file()


def test_the_only_model_is_found_by_itself_and_rationales_are_written(make_recipe, do, server):
    recipe = make_recipe(sequence=None, rationale={"form": "tasks", "generate": {"temperature": 0}})
    artifact, _ = do(recipe)
    assert artifact.details["records"]["rationales"] == {"with a rationale": 9}
    assert artifact.details["records"]["records"] == 18
    assert any(path == "/v1/models" for path, *_ in server.requests)


def test_stopped_by_its_server_it_goes_on_to_the_same_bytes(make_recipe, do, server):
    whole, _ = do(make_recipe(), "whole")
    real, asked = server._answer, []

    def answer(path, body, headers):
        asked.append(path)
        return (500, {}) if len(asked) > 9 else real(path, body, headers)

    server._answer = answer
    with pytest.raises(BackendError):
        do(make_recipe(), "part")
    server._answer = real
    again, _ = do(make_recipe(), "part", resume=True)
    assert again.details["fingerprint"] == whole.details["fingerprint"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sequence": None}, "has no effect"),
        ({"context": {"field": "passage"}}, "context"),
        ({"student": {"layers": 1}}, "'student' must be a checkpoint"),
        ({"sequence": {"attempts": 2}}, "'likelihood' requires"),
        (
            {"sequence": {"model": "https://h/v1#m"}},
            "'likelihood' requires",
        ),
    ],
    ids=str,
)
def test_what_text_alone_cannot_give_is_refused(make_recipe, changes, named):
    with pytest.raises(ValidationError, match=named):
        make_recipe(**changes)


def test_its_key_goes_only_where_nobody_reads_it(make_recipe, do, server, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "s3cret")
    do(make_recipe(teacher={"api_key": "${env:TEACHER_KEY}"}))
    assert server.requests[-1][2]["Authorization"] == "Bearer s3cret"
    far = {"endpoint": "http://192.0.2.7:8000/v1", "api_key": "${env:TEACHER_KEY}"}
    with pytest.raises(RecipeError) as caught:
        do(make_recipe(teacher=far), "far")
    assert caught.value.code == "distill.server-key"


def test_at_weight_0_no_teacher_is_asked_and_the_student_is_the_same(
    teacher_folder, records_file, do
):
    """Cross-entropy beside a teacher whose words count nothing, bit for bit without it."""
    fields = {
        "teacher": str(teacher_folder),
        "records": str(records_file),
        "student": {"keep": (0, 2, 3), "max_parameters": 0.85},
        "train": FAST,
        "keep_checkpoints": 0,
        "fidelity": {"records": 0},
        "kind": "distill.supervised",
    }
    recipe = build(fields)
    assert ResourceEstimator(describe_workload(recipe)).cache_bytes == 0
    artifact, folder = do(recipe)
    assert "cache" not in artifact.details
    assert not list(folder.glob("timings.*"))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    names = {json.loads(line)["name"] for line in lines}
    assert "cross_entropy" in names
    assert "divergence" not in names


def test_cross_entropy_is_the_same_with_and_without_a_target():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 40, 33, generator=generator)
    labels = torch.randint(0, 33, (40,), generator=generator)
    method = METHODS.build({**TEXT, "ce_weight": 0.7})
    with_it = method.score(student, DenseTargets(teacher), labels)
    without = method.score(student, None, labels)
    torch.testing.assert_close(with_it[0], without[0], rtol=0, atol=0)
    torch.testing.assert_close(with_it[1], without[1], rtol=1e-6, atol=1e-7)
    assert with_it[2]["cross_entropy"] == without[2]["cross_entropy"]
    with pytest.raises(ValueError, match="needs a target"):
        METHODS.build("forward_kl").score(student, None, labels)
