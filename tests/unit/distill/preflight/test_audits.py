import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tests.unit.distill.conftest import make_records
from tests.unit.distill.kinds import estimate, preflight
from tests.unit.distill.test_run import make_recipe

from stillroom.cli.app import stillroom
from stillroom.distill.evaluation.metrics import Fidelity, RecordFidelity
from stillroom.distill.preflight.audits import check_teacher_advantage
from stillroom.errors import CheckpointError, DataError, RecipeError, ResourceError
from stillroom.jobs.preflight import PreflightFinding, PreflightReport
from stillroom.objects import connect
from stillroom.records import Message, Record, write_records
from stillroom.testing import tiny_checkpoint

__all__ = ["make_recipe"]


def find(flight, check):
    return [one for one in flight.findings if one.check == check]


@pytest.fixture
def student(tmp_path):
    return tiny_checkpoint(tmp_path / "student", layers=1, seed=5)


def write(path, records):
    write_records(path, records)
    return str(path)


def test_nothing_wrong_is_ok_and_says_what_was_looked_at(make_recipe, tmp_path):
    flight = preflight(make_recipe(), tmp_path)
    assert flight.level == "note"  # the padding token of tiny checkpoints ends, too
    looked_at = {one.check for one in flight.findings}
    assert {"memory", "disk", "time", "records", "vocabulary", "chat template"} <= looked_at
    assert {"labels", "end of turn", "capacity gap", "held-out records", "padding"} <= looked_at
    flight.raise_errors()
    assert "handled" in find(flight, "padding")[0].what
    said = []
    flight.log(SimpleNamespace(say=said.append, warn=pytest.fail))
    assert said


def test_records_in_a_bucket_are_looked_at_as_files_are(
    make_recipe, tmp_path, records_file, monkeypatch
):
    pytest.importorskip("fsspec")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store, path = connect("memory://lessons/records.jsonl")
    store.pipe_file(path, records_file.read_bytes())
    here = preflight(make_recipe(), tmp_path, machine=False)
    there = preflight(
        make_recipe(records="memory://lessons/records.jsonl"), tmp_path, machine=False
    )
    assert there == here
    assert find(there, "labels")
    store.rm_file(path)
    gone = preflight(make_recipe(records="memory://lessons/records.jsonl"), tmp_path)
    assert "does not exist" in find(gone, "records")[0].what


def test_too_large_for_the_machine_stops_with_estimate_limit_and_knob(
    make_recipe, tmp_path, monkeypatch
):
    from stillroom.distill.preflight import checks
    from stillroom.jobs import Machine

    monkeypatch.setattr(checks, "describe_machine", lambda out: Machine(1000, 1000, 2))
    flight = preflight(make_recipe(), tmp_path)
    with pytest.raises(ResourceError) as caught:
        flight.raise_errors()
    assert [problem.code for problem in caught.value.problems] == [
        "resource.memory",
        "resource.disk",
    ]
    text = str(caught.value)
    assert "GB" in text
    assert "student.max_parameters" in text
    assert find(flight, "labels")  # the other checks ran


def test_another_vocabulary_stops_the_job_before_any_weight_is_loaded(make_recipe, do, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", vocabulary=300)
    recipe = make_recipe(student=str(other))
    with pytest.raises(CheckpointError) as caught:
        do(recipe)
    assert caught.value.code == "distill.vocabulary"
    crossing = make_recipe(
        student=str(other),
        targets=None,
        cross_tokenizer_loss={"name": "chunk_likelihood"},
        fidelity={},
    )
    flight = preflight(crossing, tmp_path)
    assert find(flight, "vocabulary")[0].level == "ok"
    # Such a job trains its baseline, too, and says what that takes.
    assert not find(flight, "baseline")
    assert "fidelity.baseline: false" in estimate(crossing).basis


def test_padded_head_is_noted(make_recipe, tmp_path, student):
    config = json.loads((student / "config.json").read_text())
    config["vocab_size"] += 64
    (student / "config.json").write_text(json.dumps(config))
    found = find(preflight(make_recipe(student=str(student)), tmp_path), "padded heads")
    assert found[0].level == "note"
    assert "384 and 448 rows" in found[0].what


def test_another_template_or_special_token_warns(make_recipe, tmp_path, student):
    template = student / "chat_template.jinja"
    settings = student / "tokenizer_config.json"
    if template.exists():
        template.write_text(template.read_text().replace("<|im_start|>", "<|im_start|> "))
    data = json.loads(settings.read_text())
    if "chat_template" in data:
        data["chat_template"] = data["chat_template"] + "\n"
    data["pad_token"] = "<|endoftext|>"
    settings.write_text(json.dumps(data))
    flight = preflight(make_recipe(student=str(student)), tmp_path)
    assert find(flight, "chat template")[0].level == "warning"
    assert "pad_token_id" in find(flight, "special tokens")[0].what


def test_answers_that_end_with_no_end_token_warn(make_recipe, tmp_path, teacher_folder):
    teacher = shutil.copytree(teacher_folder, tmp_path / "teacher")
    for name in ("config.json", "generation_config.json"):
        data = json.loads((teacher / name).read_text())
        (teacher / name).write_text(json.dumps({**data, "eos_token_id": [0]}))
    data = json.loads((teacher / "tokenizer_config.json").read_text())
    (teacher / "tokenizer_config.json").write_text(
        json.dumps({**data, "eos_token": "<|endoftext|>"})
    )
    found = find(preflight(make_recipe(teacher=str(teacher)), tmp_path), "end of turn")[0]
    assert found.level == "warning"
    assert "'<|im_end|>'" in found.what
    for name in ("config.json", "generation_config.json"):
        data = json.loads((teacher / name).read_text())
        (teacher / name).write_text(json.dumps({**data, "eos_token_id": [0, 2]}))
    again = find(preflight(make_recipe(teacher=str(teacher)), tmp_path), "end of turn")[0]
    assert again.level == "ok"


def test_labels_that_are_masked_cut_or_empty(make_recipe, tmp_path):
    with pytest.raises(DataError) as caught:
        preflight(make_recipe(max_tokens=4), tmp_path).raise_errors()
    assert caught.value.code == "distill.no-positions"
    empty = Record((Message("user", "Well?"), Message("assistant", " ")), {"split": "train"})
    records = write(tmp_path / "r.jsonl", [*make_records(), empty])
    flight = preflight(make_recipe(records=records, max_tokens=48), tmp_path)
    assert "1 of 10" in find(flight, "empty answers")[0].what
    assert find(flight, "cut records")[0].level == "warning"


def test_held_out_records_that_are_learned_too_are_counted(make_recipe, tmp_path):
    long = "The still stands in the old house beside the kitchen, and it turns wine into spirit "
    learned = [*make_records(), Record((Message("user", long * 3), Message("assistant", "Yes.")))]
    same = Record(learned[1].messages, {"split": "held_out"})
    near = Record(
        (Message("user", long * 3), Message("assistant", "Yes indeed.")), {"split": "held_out"}
    )
    learned[-1] = Record(learned[-1].messages, {"split": "train"})
    records = write(tmp_path / "r.jsonl", [*learned, same, near])
    found = find(preflight(make_recipe(records=records), tmp_path), "held-out records")[0]
    assert found.level == "warning"
    assert "1 of 5" in found.what
    assert "1 nearly" in found.what
    none = write(tmp_path / "t.jsonl", [r for r in learned if r.fields["split"] == "train"])
    found = find(preflight(make_recipe(records=none), tmp_path), "held-out records")[0]
    assert (found.level, found.what[:4]) == ("warning", "none")


def test_capacity_gap_warns_with_its_evidence(make_recipe, tmp_path):
    small = tiny_checkpoint(tmp_path / "small", layers=1, hidden=16)
    found = find(preflight(make_recipe(student=str(small)), tmp_path), "capacity gap")[0]
    assert found.level in ("note", "warning")
    assert "arXiv:2311.07052" in found.what
    assert find(preflight(make_recipe(), tmp_path), "capacity gap")[0].level == "ok"


def test_a_student_of_labels_may_start_as_its_teacher(make_recipe, tmp_path):
    tuned = make_recipe(kind="distill.supervised", targets=None)
    tuned = tuned.model_copy(update={"student": tuned.teacher})
    assert not find(preflight(tuned, tmp_path), "capacity gap")
    learns = make_recipe().model_copy(update={"student": tuned.teacher})
    assert "nothing to learn" in find(preflight(learns, tmp_path), "capacity gap")[0].what


def test_tools_that_the_template_does_not_show_are_said(make_recipe, tmp_path):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    records = [
        replace(record, fields={**record.fields, "tools": tools}) for record in make_records(9)
    ]
    path = write(tmp_path / "tools.jsonl", records)
    found = find(preflight(make_recipe(records=path), tmp_path), "tools")[0]
    assert found.level == "warning"
    assert "does not show the tools" in found.what
    assert not find(preflight(make_recipe(), tmp_path), "tools")


def test_turns_without_loss_and_weights_that_are_ignored_are_counted(make_recipe, tmp_path):
    path = tmp_path / "weights.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Why?"},
                {"role": "assistant", "content": "So.", "weight": weight},
            ],
            "n": number,
            **({"label": "False"} if weight == 1 else {}),
        }
        for number, weight in enumerate([0, 1, 2] * 10)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = find(preflight(make_recipe(records=str(path)), tmp_path), "weights")
    assert [finding.what.split(" records ")[1][:20] for finding in found] == [
        "have turns of weight",
        "have the text 'False",
        "give turns a weight ",
    ]


def test_a_record_without_messages_is_no_fault_of_the_estimate(make_recipe, tmp_path):
    path = write(tmp_path / "empty.jsonl", [*make_records(9), Record((), {"note": "x"})])
    flight = preflight(make_recipe(records=path), tmp_path)
    assert not [one for one in flight.findings if "internal" in str(one.error)]
    estimate(make_recipe(records=path))


def rows(losses):
    return Fidelity(tuple(RecordFidelity(str(at), 0, 0, 0, x, 9) for at, x in enumerate(losses)))


@pytest.mark.parametrize(
    ("teacher", "level"),
    [([1.0, 1.1, 1.0, 1.2], "ok"), ([3.0, 3.1, 3.0, 3.2], "warning"), ([2, 2.1, 1.9, 2], "note")],
)
def test_teacher_that_is_no_better_is_named(teacher, level):
    found = check_teacher_advantage(rows(6 * teacher), rows(6 * [2.05, 1.98, 2.0, 2.02]))
    assert found.level == level
    assert "95 %" in found.what
    few = check_teacher_advantage(rows(teacher), rows([2.05, 1.98, 2.0, 2.02]))
    assert few.level == "note"
    assert "4 held-out records are too few to conclude from" in few.what
    assert check_teacher_advantage(rows([1.0]), rows([2.0])).level == "note"


def test_job_warns_of_a_teacher_worse_than_its_student(
    make_recipe, do, tmp_path, teacher_folder, monkeypatch
):
    monkeypatch.setattr("stillroom.evaluate.metrics.bootstrap.MIN_UNITS", 2)
    worse = shutil.copytree(teacher_folder, tmp_path / "worse")
    weights = load_file(worse / "model.safetensors")
    name = "model.norm.weight"
    weights[name] = weights[name] * 8  # surer of what it does not know
    save_file(weights, worse / "model.safetensors", metadata={"format": "pt"})
    _, folder = do(make_recipe(teacher=str(worse), student=str(teacher_folder)))
    kept = json.loads((folder / "preflight.json").read_text())
    last = kept["findings"][-1]
    assert (last["check"], last["level"]) == ("teacher on this data", "warning")
    assert "worse than the student" in (folder / "events.jsonl").read_text()


def test_all_errors_are_told_at_once():
    first, second = (DataError(f"{n}", code="distill.no-positions") for n in "ab")
    flight = PreflightReport(
        [PreflightFinding.of_error("x", first), PreflightFinding.of_error("y", second)]
    )
    assert flight.level == "error"
    with pytest.raises(DataError) as caught:
        flight.raise_errors()
    assert [problem.what for problem in caught.value.problems] == ["a", "b"]
    assert flight.to_json()["findings"][0]["codes"] == ["distill.no-positions"]


def test_commands_print_the_findings(make_recipe, tmp_path, student):
    from stillroom.recipes import dump_recipe

    path = tmp_path / "r.yaml"
    path.write_text(dump_recipe(make_recipe(student=str(student))))
    runner = CliRunner()
    checked = runner.invoke(stillroom, ["check", str(path)], catch_exceptions=False)
    assert "end of turn" in checked.output
    assert "baseline" in checked.output
    flown = runner.invoke(stillroom, ["check", str(path), "--load"], catch_exceptions=False)
    assert "teacher on this data" in flown.output
    as_json = runner.invoke(
        stillroom, ["check", str(path), "--load", "--json"], catch_exceptions=False
    )
    assert json.loads(as_json.output)["preflight"]["level"] in ("note", "warning")
    other = tmp_path / "other.yaml"
    other.write_text(f"version: 1\nkind: rag.index\ndocuments: {tmp_path}\n")
    refused = runner.invoke(stillroom, ["check", str(other), "--load"])
    assert refused.exception.code == "recipe.wrong-kind"


def test_missing_inputs_are_noted_not_fetched(make_recipe, tmp_path):
    flight = preflight(make_recipe(teacher="hub:org/name"), tmp_path, fetch=False)
    assert find(flight, "teacher")[0].level == "note"
    flight = preflight(make_recipe(records="nowhere.jsonl"), tmp_path, fetch=False)
    assert "does not exist yet" in find(flight, "records")[0].what


@pytest.mark.parametrize("own", [True, False])
def test_adapted_layers_that_the_student_lacks_are_refused_before_its_data(
    make_recipe, tmp_path, student, own, do
):
    def make(*targets):
        train = {"lora": {"rank": 2, "targets": targets}}
        return make_recipe(train=train, **({"student": str(student)} if own else {}))

    (finding,) = find(preflight(make("q_proj", "c_attn"), tmp_path, fetch=False), "adapted layers")
    assert finding.level == "warning"
    assert "no layer c_attn" in finding.what
    recipe = make("v_projj")
    (finding,) = find(preflight(recipe, tmp_path, fetch=False), "adapted layers")
    assert "no layer v_projj" in finding.what
    with pytest.raises(RecipeError) as caught:
        do(recipe)
    assert caught.value.code == "train.lora-targets"
