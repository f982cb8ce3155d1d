"""What every kind of teacher has in common: one way through a job, one report at its end."""

import json

import pytest
from pydantic import ValidationError
from tests.unit.distill.conftest import make_records
from tests.unit.distill.kinds import build, preflight
from tests.unit.distill.teacher_servers import TeacherServer, serving

from stillroom.errors import CheckpointError
from stillroom.records import Record, read_records, write_records
from stillroom.testing import tiny_checkpoint

FAST = {"steps": 12, "batch_size": 4, "threads": 1, "learning_rate": 5e-3, "precision": "float32"}
TEXT_ALONE = {"name": "forward_kl", "kd_weight": 0.5, "ce_weight": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    made = {
        name: tiny_checkpoint(root / name, layers=1, seed=seed)
        for name, seed in (("one", 21), ("two", 22), ("student", 23))
    }
    return {**made, "narrow": tiny_checkpoint(root / "narrow", vocabulary=300, seed=4)}


@pytest.fixture
def server(loaded):
    server = TeacherServer(*loaded, "prompt_logprobs")
    with serving(server) as address:
        server.address = address
        yield server


@pytest.fixture
def make_recipe(server, folders, teacher_folder, tmp_path):
    records = [
        Record(
            one.messages,
            {**one.fields, "passage": "Every still is hot.", "rationale": "Since it is so."},
        )
        for one in make_records(12)
    ]
    write_records(tmp_path / "given.jsonl", records)
    served = {"endpoint": server.address, "tokenizer": str(teacher_folder), "tries": 1}
    both = [{"teacher": str(folders[name]), "weight": 0.5} for name in ("one", "two")]
    kinds = {
        "served": {"teacher": served},
        "several": {"teachers": both},
        "crossing": {
            "teacher": str(teacher_folder),
            "student": str(folders["narrow"]),
            "cross_tokenizer_loss": {"name": "chunk_likelihood", "ce_weight": 0.2},
        },
    }

    def make(kind, **changes):
        fields = {
            "records": str(tmp_path / "given.jsonl"),
            "student": str(folders["student"]),
            "targets": None if kind == "crossing" else {"k": 16},
            "train": FAST,
            "keep_checkpoints": 0,
            "include_prompt": False,
            "fidelity": {"baseline": False, "answers": 0, "speed": False},
            **kinds[kind],
        }
        return build({**fields, **changes})

    return make


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.json"
    path.write_text(json.dumps({"*": "It boils because it is hot."}))
    return f"scripted:{path}"


NEAR = {
    "served": {"student/kl", "student_minus_baseline/kl", "teacher/teacher_loss"},
    "several": {"student/one/kl", "student/two/reverse_kl", "baseline/two/agreement"},
    "crossing": {
        "student/divergence",
        "teacher/student_bits",
        "teacher/ece",
        "student/flips",
    },
}

TOO = ["served", "crossing", pytest.param("several", marks=pytest.mark.slow)]


@pytest.mark.parametrize("kind", NEAR)
def test_every_kind_of_teacher_leaves_the_whole_report(make_recipe, do, kind):
    fidelity = {"baseline": True, "answers": 2, "max_new_tokens": 6, "speed": kind == "several"}
    artifact, folder = do(make_recipe(kind, fidelity=fidelity))
    page = (folder / "output" / "fidelity.html").read_text()
    written = json.loads((folder / "output" / "fidelity.json").read_text())
    names = {metric["name"] for metric in written["report"]["metrics"]}
    of_models = {"loss", "entropy", "ece", "brier", "brier_scaled", "f1", "length", "ended"}
    assert {f"student_minus_baseline/{name}" for name in of_models} <= names
    assert {f"{side}/steps" for side in ("student", "baseline")} <= names
    assert NEAR[kind] <= names
    assert "Nearness to" in page
    assert "Calibration" in page
    assert "student − baseline" in page
    assert written["budget"]["baseline"] == written["budget"]["final"]
    assert len(written["by_themselves"]["final"]) == 3
    assert {len(rows) for rows in written["answers"].values()} == {2}
    key = "cross_tokenizer_fidelity" if kind == "crossing" else "fidelity"
    assert set(artifact.details[key]["summary"]) == {"initial", "final", "baseline"}
    if kind == "several":
        timings = json.loads((folder / "timings.json").read_text())
        found = {metric["name"] for metric in timings["metrics"]}
        assert {"teacher 1/decode_ms", "teacher 2/decode_ms", "student/decode_ms"} <= found
    told = (folder / "events.jsonl").read_text()
    assert "held-out records the student's divergence from" in told


def test_two_teachers_of_one_name_are_told_apart(make_recipe, do, tmp_path):
    both = [
        {"teacher": str(tiny_checkpoint(tmp_path / place / "model", layers=1, seed=seed))}
        for place, seed in (("a", 31), ("b", 32))
    ]
    _, folder = do(make_recipe("several", teachers=both))
    report = json.loads((folder / "output" / "fidelity.json").read_text())["report"]
    names = {metric["name"] for metric in report["metrics"]}
    assert {"student/model (1)/kl", "student/model (2)/kl"} <= names


@pytest.mark.parametrize("kind", ["served", "several"])
def test_another_vocabulary_is_found_before_a_teacher_is_asked(
    make_recipe, tmp_path, folders, server, kind
):
    recipe = make_recipe(kind, student=str(folders["narrow"]))
    flight = preflight(recipe, tmp_path, fetch=False)
    with pytest.raises(CheckpointError) as caught:
        flight.raise_errors()
    assert caught.value.code == "distill.vocabulary"
    assert server.bodies == []


@pytest.mark.parametrize("kind", TOO)
def test_what_another_model_wrote_is_learned_with_any_teacher(make_recipe, do, kind, script):
    method = {} if kind == "crossing" else {"method": TEXT_ALONE}
    sequence = {"model": script, "attempts": 1, "temperature": 0, "scorers": []}
    artifact, folder = do(make_recipe(kind, sequence=sequence, **method))
    assert artifact.details["records"]["sequences"]["prompts"] == 9
    written = list(read_records(folder / "output" / "written.jsonl"))
    assert {one.messages[-1].content for one in written} == {"It boils because it is hot."}
    assert artifact.parents[-1].role == "writer"
    assert artifact.details["train"]["last_loss"] < artifact.details["train"]["first_loss"]


@pytest.mark.parametrize("kind", TOO)
def test_rationales_are_learned_from_any_teacher(make_recipe, do, kind):
    artifact, _ = do(make_recipe(kind, rationale={"form": "tasks"}))
    counts = artifact.details["records"]
    assert counts["rationales"] == {"with a rationale": 9}
    assert counts["records"] == 18


@pytest.mark.parametrize("kind", TOO)
def test_any_teacher_may_read_more_than_its_student(make_recipe, do, kind, server, loaded):
    context = {"field": "passage", "text": "{context} "}
    plain, _ = do(make_recipe(kind), "plain")
    server.bodies.clear()
    artifact, folder = do(make_recipe(kind, context=context), "context")
    assert artifact.details["fingerprint"] != plain.details["fingerprint"]
    assert artifact.details["records"]["records"] == 9
    if kind == "served":
        texts = [loaded[1].decode(body["prompt"]) for body in server.bodies]
        assert sum("Every still is hot." in text for text in texts) == 9 + 3
    rows = json.loads((folder / "output" / "fidelity.json").read_text())["final"]
    assert len(rows) == 3


def test_several_teachers_in_this_process_may_keep_whole_distributions(make_recipe, do):
    artifact, _ = do(make_recipe("several", targets={"mode": "dense"}))
    assert {cache["mode"] for cache in artifact.details["caches"]} == {"dense"}
    assert artifact.details["train"]["last_loss"] < artifact.details["train"]["first_loss"]


def test_an_adapter_is_kept_whoever_teaches(make_recipe, do, folders):
    train = {**FAST, "lora": {"rank": 2, "keep_adapter": True}}
    artifact, folder = do(make_recipe("served", train=train))
    assert (folder / "output" / "adapter" / "adapter_model.safetensors").is_file()
    assert artifact.details["adapter"]["folder"] == "adapter"


def test_a_server_that_tells_own_tokens_alone_teaches_by_draws(
    make_recipe, do, server, monkeypatch
):
    monkeypatch.setattr(TeacherServer, "marks", False)
    server.dialect = "echo"
    rollouts = {"name": "on_policy", "max_new_tokens": 6, "student_share": 1.0}
    artifact, folder = do(
        make_recipe("served", method="sampled_reverse_kl", rollout_policy=rollouts)
    )
    assert artifact.details["teachers"][0]["about"]["probe"]["granted"] == 0
    written = json.loads((folder / "output" / "fidelity.json").read_text())
    assert written["teachers"] == []
    assert "remains unknown" in written["report"]["summary"]
    assert "student/ece" in {metric["name"] for metric in written["report"]["metrics"]}


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("several", {"sequence": {}}, "sequence.model"),
        ("several", {"rationale": {"form": "tasks", "generate": {}}}, "rationale.generate.model"),
        ("several", {"targets": {"mode": "live"}}, "targets"),
        ("served", {"targets": {"mode": "dense"}}, "targets"),
        (
            "served",
            {"feature_losses": [{"name": "relation"}]},
            "teacher",
        ),
        ("crossing", {"rationale": {"form": "tasks", "weight": 0.5}}, "rationale.weight"),
    ],
    ids=str,
)
def test_what_is_in_principle_impossible_is_refused_with_its_reason(
    make_recipe, kind, changes, named
):
    with pytest.raises(ValidationError, match=named):
        make_recipe(kind, **changes)
