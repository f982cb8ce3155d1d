import json

import pytest
from pydantic import ValidationError
from tests.unit.distill.conftest import make_records
from tests.unit.distill.kinds import build, run

from stillroom.jobs import Job
from stillroom.records import Record, read_records, write_records

FAST = {"steps": 6, "batch_size": 4, "threads": 1, "learning_rate": 3e-3, "precision": "float32"}


@pytest.fixture
def do(teacher_folder, tmp_path):
    def do(records=None, **changes):
        path = tmp_path / "given.jsonl"
        write_records(path, records or make_records(8))
        fields = {
            "teacher": str(teacher_folder),
            "records": str(path),
            "student": {"keep": (0, 2, 3), "max_parameters": 0.85},
            "targets": {"mode": "top_k", "k": 16},
            "train": FAST,
            "fidelity": {"baseline": False, "answers": 0, "speed": False},
        }
        job = Job.start(tmp_path / "out", "kind: test\n")
        try:
            return run(build({**fields, **changes}), job), job.out
        finally:
            job.close()

    return do


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.json"
    path.write_text(json.dumps({"*": "It boils because it is hot.", "Question 1?": "  "}))
    return f"scripted:{path}"


def losses_of(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["value"] for row in rows if row["name"] == "loss"]


def test_a_student_learns_what_another_model_wrote(do, script):
    artifact, folder = do(
        sequence={"model": script, "attempts": 1, "temperature": 0, "scorers": []},
        kind="distill.supervised",
        targets=None,
        include_prompt=False,
    )
    counts = artifact.details["records"]["sequences"]
    assert (counts["prompts"], counts["prompts_lost"]) == (6, 1)
    written = list(read_records(folder / "output" / "written.jsonl"))
    assert {one.messages[-1].content for one in written} == {"It boils because it is hot."}
    assert all(one.origin.kind == "synthetic" for one in written)
    assert [parent.role for parent in artifact.parents] == ["teacher", "records", "writer"]
    losses = losses_of(folder)
    assert losses[-1] < losses[0]


def test_rationales_are_learned_with_their_weight(do, script):
    records = [
        Record(one.messages, {**one.fields, "rationale": "Since it is so."}) if n % 2 else one
        for n, one in enumerate(make_records(8))
    ]
    artifact, _ = do(
        records,
        rationale={"form": "tasks", "weight": 0.5, "generate": {"model": script, "temperature": 0}},
    )
    counts = artifact.details["records"]
    assert counts["rationales"] == {"with a rationale": 6}
    assert counts["records"] == 12


def test_a_student_learns_what_its_teacher_reads_in_context(do):
    records = [
        Record(one.messages, {**one.fields, "passage": "Every still is hot."})
        for one in make_records(8)
    ]
    context = {"field": "passage", "text": "{context} "}
    train = {**FAST, "steps": 12}
    artifact, folder = do(records, context=context, include_prompt=False, train=train)
    assert artifact.details["records"]["context"]["other_tokens"] == 0
    losses = losses_of(folder)
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    summary = artifact.details["fidelity"]["summary"]
    assert summary["final"]["kl"]["value"] < 0.8 * summary["initial"]["kl"]["value"]


def test_a_student_is_compared_with_its_teacher_in_context(do, loaded):
    import torch

    from stillroom.distill.data.preparation import add_context, encode_with_context
    from stillroom.distill.settings import TeacherContextSettings
    from stillroom.models.tokenization.assistant_mask import encode_conversation

    records = [
        Record(one.messages, {**one.fields, "passage": "Every still is hot."})
        for one in make_records(4)
    ]
    context = {"field": "passage", "text": "{context} "}
    artifact, _ = do(
        records,
        context=context,
        include_prompt=False,
        student={"max_parameters": 1.0, "layers": 4},
    )
    model, tokenizer = loaded
    held_out = records[0]
    own = encode_conversation(tokenizer, held_out, max_tokens=512)
    told = encode_with_context(TeacherContextSettings(**context), tokenizer, held_out, own)
    assert add_context(TeacherContextSettings(**context), held_out) is not None
    sides = [
        torch.log_softmax(
            model(input_ids=torch.tensor(one.ids)[None]).logits[0, torch.tensor(one.targets) - 1],
            -1,
        )
        for one in (own, told)
    ]
    wanted = float((sides[1].exp() * (sides[1] - sides[0])).sum(-1).mean())
    rows = artifact.details["fidelity"]["initial"]  # the start is the teacher itself
    assert rows[0]["kl"] == pytest.approx(wanted, rel=2e-2)


def test_context_compares_the_assistants_tokens_alone():
    with pytest.raises(ValidationError, match="include_prompt: false"):
        build({"teacher": "t", "records": "r", "context": {"field": "passage"}})
