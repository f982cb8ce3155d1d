import json
from dataclasses import replace

import peft
import pytest
import torch
from tests.unit.distill.conftest import make_records
from tests.unit.distill.kinds import build, estimate

from stillroom.checkpoints import Checkpoint
from stillroom.distill.evaluation.metrics import Fidelity, measure_fidelity
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.teachers.local import LocalTeacher, count_shared_rows
from stillroom.errors import CheckpointError, DataError, RecipeError
from stillroom.flow import run_recipe
from stillroom.models import load_causal_lm
from stillroom.recipes import parse_recipe
from stillroom.records import Message, Record, write_records
from stillroom.testing import tiny_checkpoint
from stillroom.train.loop import train

FAST = {"steps": 6, "batch_size": 4, "threads": 1, "learning_rate": 3e-3, "precision": "float32"}


@pytest.fixture
def make_recipe(teacher_folder, records_file):
    def make(**changes):
        fields = {
            "teacher": str(teacher_folder),
            "records": str(records_file),
            "student": {"keep": (0, 2, 3), "max_parameters": 0.85},
            "targets": {"mode": "top_k", "k": 16},
            "train": FAST,
            "fidelity": {"baseline": False, "answers": 0, "speed": False},
        }
        return build({**fields, **changes})

    return make


def test_cards_say_what_was_done_and_nothing_else(make_recipe, do, tmp_path):
    """Of what has weight 0, is not measured or not kept, cards once told as if it were."""
    turns = (Message("user", "Why?"), Message("assistant", "Heat rises."))
    rows = [
        Record((*turns[:1], Message("assistant", f"Heat rises in May {n}.")), {"split": "train"})
        for n in range(6)
    ]
    write_records(tmp_path / "rows.jsonl", [*rows, Record(turns, {"split": "held_out"})])
    artifact, folder = do(
        make_recipe(
            records=str(tmp_path / "rows.jsonl"),
            kind="distill.supervised",
            targets=None,
            train={**FAST, "steps": 1},
            keep_checkpoints=0,
            fidelity={"records": 0, "baseline": False, "answers": 0, "speed": False},
        )
    )
    card = (folder / "output/README.md").read_text()
    assert "the objective cross-entropy with the text's own tokens" in card
    assert "on 4 of 6 records (as many as its steps reach) of 1 prompts" in card
    assert not any(name in card for name in ("forward_kl", "candidates/", "fidelity.html"))
    assert artifact.origin["chain"][0]["method"] == "distill.cross_entropy"


def test_leaves_a_checkpoint_that_is_nearer_to_its_teacher(make_recipe, do, teacher_folder):
    artifact, folder = do(make_recipe(fidelity={"answers": 3, "max_new_tokens": 6}))
    assert artifact.kind == "checkpoint"
    model, tokenizer = load_causal_lm(folder / "output", dtype="float32", device="cpu")
    assert model.config.num_hidden_layers == 3
    assert tokenizer.chat_template
    before, after = (
        Fidelity.from_json(artifact.details["fidelity"][name]) for name in ("initial", "final")
    )
    assert after.mean("kl") < 0.8 * before.mean("kl")
    assert {row.record for row in after.rows} == {
        record.id for record in make_records(12) if record.fields["split"] == "held_out"
    }
    written = json.loads((folder / "output" / "fidelity.json").read_text())
    assert written["summary"]["final"]["kl"]["value"] == pytest.approx(after.mean("kl"))
    opened = Checkpoint.open(folder)
    assert artifact.details["fingerprint"] == opened.fingerprint
    share = opened.parameters / Checkpoint.open(teacher_folder).parameters
    assert artifact.details["parameters"] == opened.parameters
    assert share <= 0.85
    candidates = sorted(path.name for path in (folder / "output" / "candidates").iterdir())
    assert candidates == ["000003", "000006"]
    assert Checkpoint.open(folder / "output/candidates/000006").fingerprint == opened.fingerprint
    card = (folder / "output/README.md").read_text()
    assert "`candidates/` holds 2 checkpoints" in card
    assert "the objective `forward_kl`" in card
    assert "`candidates/`" not in (folder / "output/candidates/000003/README.md").read_text()
    assert [parent.role for parent in artifact.parents] == ["teacher", "records"]
    assert artifact.origin["kind"] == "synthetic"
    assert artifact.origin["chain"][0]["method"] == "distill.methods.forward_kl"
    assert not any(entry.path.startswith("scratch") for entry in artifact.files)


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": {"mode": "live"}, "method": {"name": "jsd", "normalize": True}},
        {"targets": {"mode": "dense"}, "method": {"name": "jsd", "temperature": 2}},
        {"targets": {"mode": "sampled", "samples": 60}},
        {"train": {**FAST, "lora": {"rank": 4}}},
        {"train": {**FAST, "gradient_checkpointing": True}, "include_prompt": False},
        {
            "student": {"choose": "influence", "layers": 2},
            "method": {"name": "skew_kl"},
            "train": {**FAST, "steps": 25},
        },
        {"method": {"name": "forward_kl", "temperature": 2.0, "ce_weight": 0.02}},
        {"train": {**FAST, "precision": "bfloat16"}},
        {
            "targets": None,
            "feature_losses": [{"name": "hidden_state", "weight": 0.1}, "attention", "relation"],
            "train": {**FAST, "precision": "bfloat16", "steps": 12},
        },
        {
            "targets": None,
            "method": {"name": "forward_kl", "kd_weight": 0},
            "feature_losses": [{"name": "hidden_state", "weight": 5.0, "projector": "none"}],
            "train": {**FAST, "lora": {"rank": 4}, "steps": 20},
        },
    ],
    ids=str,
)
def test_every_way_learns(make_recipe, do, changes):
    artifact, _ = do(make_recipe(**changes))
    before, after = (
        Fidelity.from_json(artifact.details["fidelity"][name]).mean("kl")
        for name in ("initial", "final")
    )
    assert after < before


def test_a_student_of_no_gradient_says_so_in_its_card(make_recipe, do, monkeypatch):
    def train_flat(*args, **settings):
        return replace(train(*args, **settings), had_gradient=False)

    monkeypatch.setattr("stillroom.distill.trainers.student.train", train_flat)
    artifact, folder = do(make_recipe(fidelity={"records": 0, "baseline": False}))
    assert artifact.details["train"]["had_gradient"] is False
    assert "zero in every step" in (folder / "output" / "README.md").read_text()


def test_same_seed_same_bytes_and_a_shared_cache_changes_nothing(make_recipe, do, tmp_path):
    shared = {"k": 16, "cache": str(tmp_path / "cache")}
    digests = {
        do(make_recipe(), "a")[0].digest,
        do(make_recipe(targets=shared), "b")[0].digest,
        do(make_recipe(targets=shared), "c")[0].digest,
    }
    assert len(digests) == 1
    assert do(make_recipe(seed=1), "d")[0].digest not in digests


def test_projectors_are_trained_beside_the_student_and_never_written(make_recipe, do, tmp_path):
    student = tiny_checkpoint(tmp_path / "student", layers=2, hidden=32, seed=5)
    features = [{"name": "hidden_state", "layers": "uniform"}]
    recipe = make_recipe(student=str(student), targets=None, feature_losses=features)
    artifact, folder = do(recipe)
    wanted = set(Checkpoint.open(student).names())
    assert set(Checkpoint.open(folder).names()) == wanted
    assert set(Checkpoint.open(folder / "output/candidates/000006").names()) == wanted
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [line["value"] for line in lines if line["name"] == "feature_hidden_state"]
    assert len(curve) == 6
    assert curve[-1] < curve[0]
    assert artifact.details["cache"] is None


def test_a_checkpoint_can_be_the_student(make_recipe, do, tmp_path):
    student = tiny_checkpoint(tmp_path / "student", layers=1, seed=5)
    artifact, folder = do(make_recipe(student=str(student)))
    assert Checkpoint.open(folder).config["num_hidden_layers"] == 1
    assert [parent.role for parent in artifact.parents] == ["teacher", "records", "student"]


def test_refuses_a_student_of_another_vocabulary(teacher_folder, tmp_path, job):
    other = tiny_checkpoint(tmp_path / "other", vocabulary=300)
    student, tokenizer = load_causal_lm(other, dtype="float32", device="cpu")
    with pytest.raises(CheckpointError) as caught:
        count_shared_rows(LocalTeacher.find(str(teacher_folder), job), student, tokenizer)
    assert caught.value.code == "distill.vocabulary"


def test_refuses_records_without_any_to_learn(make_recipe, do, tmp_path):
    path = tmp_path / "held.jsonl"
    write_records(path, [r for r in make_records() if r.fields["split"] == "held_out"])
    with pytest.raises(DataError) as caught:
        do(make_recipe(records=str(path)))
    assert caught.value.code == "train.no-records"


def test_refuses_records_without_an_answer_in_reach(make_recipe, do):
    with pytest.raises(DataError) as caught:
        do(make_recipe(max_tokens=4))
    assert caught.value.code == "distill.no-positions"


def test_data_without_splits_is_split_by_id(tmp_path):
    from stillroom.train.data import split_records

    records = [Record((Message("user", f"{n}?"), Message("assistant", "Yes."))) for n in range(200)]
    write_records(tmp_path / "r.jsonl", records)
    write_records(tmp_path / "again.jsonl", records[::-1])
    split, again = split_records(tmp_path / "r.jsonl"), split_records(tmp_path / "again.jsonl")
    assert 5 < len(split.held_out) < 40
    assert len(split.train) + len(split.held_out) == 200
    assert {r.id for r in split.held_out} == {r.id for r in again.held_out}


def test_says_when_nothing_was_held_out(make_recipe, do, tmp_path):
    path = tmp_path / "train.jsonl"
    write_records(path, [r for r in make_records() if r.fields["split"] == "train"])
    artifact, folder = do(make_recipe(records=str(path)))
    assert artifact.details["fidelity"]["initial"] == []
    assert "remains unknown" in (folder / "events.jsonl").read_text()


def test_fidelity_of_a_model_with_itself(loaded):
    model, tokenizer = loaded
    found = measure_fidelity(model, model, tokenizer, make_records(4))
    assert found.mean("kl") == pytest.approx(0, abs=1e-6)
    assert found.mean("agreement") == 1.0
    assert found.mean("loss") > 1
    summary = found.summarize()
    assert (summary["records"], summary["kl"]["value"]) == (4, pytest.approx(0, abs=1e-6))
    assert Fidelity.from_json(found.to_json()) == found


def test_estimates_before_anything_is_loaded(make_recipe):
    small = estimate(make_recipe())
    longer = estimate(make_recipe(train={**FAST, "steps": 60}))
    assert longer.seconds > small.seconds
    assert small.memory_bytes > 0 < small.disk_bytes
    absent = build({"teacher": "hub:org/name", "records": "nowhere.jsonl"})
    assert estimate(absent).memory_bytes > 1_000_000_000
    assert "135M" in estimate(absent).basis


def test_what_one_process_does_is_refused_to_several(make_recipe, do, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    student = tiny_checkpoint(tmp_path / "student", layers=1, seed=5)
    fields = {"student": str(student), "targets": None, "cross_tokenizer_loss": "chunk_likelihood"}
    with pytest.raises(RecipeError, match=r"a recipe of kind distill\.cross_tokenizer") as caught:
        run_recipe(make_recipe(**fields), tmp_path / "crossed")
    assert caught.value.code == "job.one-process"
    merge = parse_recipe(
        f"version: 1\nkind: merge.weights\nmethod: linear\n"
        f"models: [{{model: {student}}}, {{model: {student}}}]\n",
        "test",
    )
    with pytest.raises(RecipeError, match="2 were started"):
        run_recipe(merge, tmp_path / "merged")


def test_rollouts_and_shares_of_a_student_exclude_each_other(make_recipe):
    with pytest.raises(ValueError, match=r"train\.sharding"):
        make_recipe(
            targets=None,
            rollout_policy="on_policy",
            train={**FAST, "sharding": "fsdp"},
        )


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers in an older way
def test_an_adapter_is_kept_that_gives_the_written_student(make_recipe, do, tmp_path):
    student = tiny_checkpoint(tmp_path / "student", layers=2, seed=5)
    fields = {
        "student": str(student),
        "train": {**FAST, "lora": {"rank": 4, "keep_adapter": True}},
    }
    artifact, folder = do(make_recipe(**fields))
    base, _ = load_causal_lm(student, dtype="float32", device="cpu")
    plain = {name: value.detach().clone() for name, value in base.named_parameters()}
    kept = peft.PeftModel.from_pretrained(base, folder / "output" / "adapter").merge_and_unload()
    written = Checkpoint.open(folder / "output")
    for name, value in kept.named_parameters():  # one set of weights, bit for bit
        assert torch.equal(value.half(), written.tensor(name)), name
    changed = [name for name, value in kept.named_parameters() if not value.equal(plain[name])]
    assert len(changed) == 2 * 7
    config = json.loads((folder / "output/adapter/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == (str(student), 4)
    card = (folder / "output/README.md").read_text()
    assert "base_model:\n- student\n" in card
    assert "The initial student was student (fingerprint" in card
    adapter = artifact.details["adapter"]
    assert adapter["base"] == Checkpoint.open(student).fingerprint
    assert adapter["base"] in {parent.digest for parent in artifact.parents}
    paths = {entry.path for entry in artifact.files}
    assert "output/adapter/adapter_model.safetensors" in paths
    with pytest.raises(ValueError, match="no published base checkpoint"):
        make_recipe(train={**FAST, "lora": {"keep_adapter": True}})


def test_the_teacher_speaks_of_no_record_that_no_step_reads(make_recipe, do, tmp_path):
    cache = tmp_path / "kept"
    recipe = make_recipe(
        targets={"mode": "top_k", "k": 8, "cache": str(cache)},
        train={**FAST, "steps": 1, "batch_size": 3},
    )
    do(recipe)
    with LogitCache.open(cache) as opened:
        assert len(list(opened.records())) == 3
    again = make_recipe(
        targets={"mode": "top_k", "k": 8, "cache": str(cache)},
        train={**FAST, "steps": 2, "batch_size": 3},
    )
    do(again, "again")
    with LogitCache.open(cache) as opened:
        assert len(list(opened.records())) == 6
