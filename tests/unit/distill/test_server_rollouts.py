"""Text that a student learns on while it writes it, taught by a real HTTP server."""

import json

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tests.unit.distill.conftest import make_records
from tests.unit.distill.kinds import build
from tests.unit.distill.teacher_servers import TeacherServer, serving

from stillroom.distill.on_policy.source import RolloutBatchSource
from stillroom.errors import BackendError, Cancelled
from stillroom.records import read_records
from stillroom.testing import tiny_checkpoint

FAST = {"steps": 5, "batch_size": 4, "threads": 1, "learning_rate": 3e-3, "precision": "float32"}
WHOLE = 384  # the tiny model's vocabulary: its likeliest tokens are then all there are
FEW = 16  # where the bytes of two runs are compared, and not what a token's likelihoods are
OWN = {"name": "on_policy", "max_new_tokens": 8, "student_share": 1.0}


@pytest.fixture
def server(loaded):
    server = TeacherServer(*loaded, "prompt_logprobs", most=WHOLE)
    with serving(server) as address:
        server.address = address
        yield server


@pytest.fixture
def make_recipe(server, teacher_folder, records_file, tmp_path):
    student = tiny_checkpoint(tmp_path / "student", layers=1, seed=9)

    def make(*, is_served=True, top=WHOLE, **changes):
        endpoint = {
            "endpoint": server.address,
            "tokenizer": str(teacher_folder),
            "top_logprobs": top,
            "tries": 1,
        }
        kept = {"mode": "top_k", "k": top, "logprob_dtype": "float32"}
        fields = {
            "teacher": endpoint if is_served else str(teacher_folder),
            "targets": kept if is_served else None,
            "records": str(records_file),
            "student": str(student),
            "train": FAST,
            "keep_checkpoints": 0,
            "include_prompt": False,
            "fidelity": {"baseline": False, "answers": 0, "records": 2, "speed": False},
            "output": {"dtype": "float32"},
            "rollout_policy": OWN,
        }
        return build({**fields, **changes})

    return make


def weights_of(folder):
    return load_file(folder / "output" / "model.safetensors")


WAYS = {
    "sampled": {"method": {"name": "sampled_reverse_kl", "discount": 0.5}},
    "reverse_kl": {"method": "reverse_kl"},
    "a mixture with the records": {
        "method": "jsd",
        "rollout_policy": {**OWN, "student_share": 0.5, "warm_up": 0.2},
    },
    "replay": {
        "method": "forward_kl",
        "rollout_policy": {
            "name": "replay", "max_new_tokens": 8, "level": 0.7, "buffer": 4,
            "validate_every": 2, "validation_records": 2,
        },
    },
    "a contrast beside the records": {
        "method": "distillm2",
        "rollout_policy": {**OWN, "beside_records": True},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, marks=() if way == "sampled" or "contrast" in way else pytest.mark.slow)
        for way in WAYS
    ],
)
def test_a_server_teaches_what_the_same_teacher_in_this_process_does(make_recipe, do, way):
    _, ours = do(make_recipe(**WAYS[way]), "served")
    _, theirs = do(make_recipe(is_served=False, **WAYS[way]), "local")
    served, local = weights_of(ours), weights_of(theirs)
    torch.testing.assert_close(served, local, atol=2e-4, rtol=1e-3)
    told, said = (
        [record.to_json() for record in read_records(folder / "output/rollouts.jsonl")]
        for folder in (ours, theirs)
    )
    assert told == said


def test_rollouts_are_records_with_origin_and_records_are_not_asked_for_in_vain(
    make_recipe, do, server
):
    recipe = make_recipe(top=FEW, method="reverse_kl")
    artifact, folder = do(recipe)
    found = list(read_records(folder / "output/rollouts.jsonl"))
    assert len(found) == 5 * 4
    known = {record.id for record in make_records(12)}
    for record in found:
        assert record.origin.kind == "synthetic"
        assert record.origin.chain[-1].method == "distill.rollout_policies.on_policy"
        assert record.origin.chain[-1].parents[0] in known
    read = {tuple(body["prompt"]) for body in server.bodies}
    # one probe, two held-out records, and each rollout once
    assert len(read) == 1 + 2 + len({(r.fields["record"], *r.fields["token_ids"]) for r in found})
    assert artifact.parents[0].kind == "endpoint"


def test_drawn_tokens_alone_ask_for_nothing_but_their_own(make_recipe, do, server):
    method = {"name": "sampled_reverse_kl", "ce_weight": 0.1}
    policy = {**OWN, "student_share": 0.6}
    do(make_recipe(method=method, rollout_policy=policy, fidelity={"records": 0}))
    asked = [body["prompt_logprobs"] for body in server.bodies]
    assert asked[0] == WHOLE  # the probe
    assert set(asked[1:]) == {0}


@pytest.mark.parametrize(
    "way",
    ["replay", *(pytest.param(one, marks=pytest.mark.slow) for one in ("sampled", "reverse_kl"))],
)
def test_killed_and_resumed_it_ends_with_the_same_bytes(make_recipe, do, server, monkeypatch, way):
    recipe = make_recipe(top=FEW, **WAYS[way])
    whole, _ = do(recipe, "whole")
    asked = len(server.bodies)
    server.bodies.clear()
    real = RolloutBatchSource.plan

    def plan(self, step):
        if step == 3:
            raise Cancelled("stopped", code="job.cancelled")
        return real(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(RolloutBatchSource, "plan", plan)
        with pytest.raises(Cancelled):
            do(recipe, "part")
    resumed, folder = do(recipe, "part", resume=True)
    assert resumed.details["fingerprint"] == whole.details["fingerprint"]
    assert len(server.bodies) == asked + 1  # the second sitting's probe, and nothing twice
    assert len(list(read_records(folder / "output/rollouts.jsonl"))) > 0


def test_a_server_that_fails_in_the_middle_loses_nothing(make_recipe, do, server):
    recipe = make_recipe(top=FEW, method="reverse_kl")
    whole, _ = do(recipe, "whole")
    real, answered = TeacherServer.answer, []

    def answer(body):
        answered.append(1)
        return real(server, body) if len(answered) < 14 else (500, {"error": {"message": "down"}})

    server.answer = answer
    with pytest.raises(BackendError) as caught:
        do(recipe, "part")
    assert "record" in str(caught.value)
    server.answer = lambda body: real(server, body)
    resumed, _ = do(recipe, "part", resume=True)
    assert resumed.details["fingerprint"] == whole.details["fingerprint"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rollout_policy": {"name": "speculative"}}, "'speculative' also generates"),
        ({"rollout_policy": {"name": "teacher_prefix"}}, "'teacher_prefix' also generates"),
        ({"rollout_policy": {"name": "mixed_sampling"}}, "'mixed_sampling' also generates"),
        ({"rollout_policy": {**OWN, "other_text": "teacher"}}, "other_text: records"),
        ({"targets": {"mode": "live"}}, "targets.mode"),
        ({"feature_losses": [{"name": "relation"}]}, "feature_losses"),
        ({"teachers": [{"teacher": "a"}, {"teacher": "b"}]}, "teacher"),
    ],
    ids=str,
)
def test_what_a_server_cannot_do_is_refused_by_name(make_recipe, changes, named):
    with pytest.raises(ValidationError, match=named):
        make_recipe(**changes)


def test_a_method_of_draws_without_rollouts_is_refused_before_the_server_is_asked(
    make_recipe, do, server
):
    with pytest.raises(ValidationError, match="text of the student"):
        make_recipe(method="sampled_reverse_kl", rollout_policy=None)
    assert server.bodies == []


def test_it_logs_what_the_draws_say_and_tells_what_was_asked(make_recipe, do):
    _, folder = do(make_recipe(method="sampled_reverse_kl"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"sampled_reverse_kl", "rollout_tokens"} <= {line["name"] for line in lines}
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    asked = [event["requests"] for event in events if event["event"] == "endpoint"]
    assert asked[-1] == 5 * 4
