"""Several teachers: by weight, by source, what their mixture comes to, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from tests.unit.distill.conftest import make_records
from tests.unit.distill.kinds import build, run
from tests.unit.distill.targets import keep_top
from tests.unit.distill.teacher_servers import TeacherServer, serving

from stillroom.checkpoints import Checkpoint
from stillroom.distill.data.tokenized import make_batch
from stillroom.distill.interfaces import METHODS
from stillroom.distill.losses.targets import DenseTargets
from stillroom.distill.teachers.local import LocalTeacher, count_shared_rows
from stillroom.distill.trainers import student as student_module
from stillroom.distill.trainers.loss import DistillationLoss, MultiTeacherObjective
from stillroom.errors import CheckpointError, DataError
from stillroom.jobs import Job
from stillroom.models import load_causal_lm
from stillroom.records import Record, write_records
from stillroom.testing import tiny_checkpoint

FAST = {"steps": 30, "batch_size": 4, "threads": 1, "learning_rate": 3e-3, "precision": "float32"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return two teachers and a student, of one vocabulary."""
    root = tmp_path_factory.mktemp("folders")
    return [
        tiny_checkpoint(root / name, layers=2, seed=seed)
        for name, seed in (("one", 11), ("two", 12), ("student", 13))
    ]


@pytest.fixture
def make_recipe(folders, tmp_path):
    records = [
        Record(record.messages, {**record.fields, "source": "ab"[at % 2]})
        for at, record in enumerate(make_records(16))
    ]
    write_records(tmp_path / "sourced.jsonl", records)

    def make(shares, **changes):
        fields = {
            "teachers": shares,
            "records": str(tmp_path / "sourced.jsonl"),
            "student": str(folders[2]),
            "targets": {"mode": "top_k", "k": 16},
            "train": FAST,
            "keep_checkpoints": 0,
            "fidelity": {"baseline": False, "answers": 0, "speed": False},
        }
        return build({**fields, **changes})

    return make


def shares(folders, **each):
    return [
        {"teacher": str(folder), **{name: values[at] for name, values in each.items()}}
        for at, folder in enumerate(folders[:2])
    ]


def student_and_batch(folders, lessons):
    student, _ = load_causal_lm(folders[2], dtype="float32", device="cpu")
    batch = make_batch(lessons[:2], None)
    rng = torch.Generator().manual_seed(3)
    logits = [
        torch.randn(batch.valid, student.config.vocab_size, generator=rng) * 2 for _ in range(2)
    ]
    return student.double(), batch, [each.double() for each in logits]


def gradient_of(student, loss):
    student.zero_grad()
    loss.total.backward()
    return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("method", "mean"),
    [
        ("forward_kl", lambda a, b: (0.7 * a.softmax(-1) + 0.6 * b.softmax(-1)).div(1.3).log()),
        (
            "reverse_kl",
            lambda a, b: (0.7 * a.log_softmax(-1) + 0.6 * b.log_softmax(-1)).div(1.3),
        ),
    ],
)
def test_by_weight_is_the_divergence_to_the_teachers_mean(folders, lessons, method, mean):
    """Forward KL: to the arithmetic mean of probabilities; reverse KL: to the geometric one."""
    student, batch, (one, two) = student_and_batch(folders, lessons)
    rows = student.config.vocab_size
    objective = METHODS.build(method)

    def learn(weights, *targets):
        loss = DistillationLoss(MultiTeacherObjective(objective, weights), rows=rows)
        return gradient_of(student, loss(student, replace(batch, target=targets)))

    mixed = learn((0.7, 0.6), DenseTargets(one), DenseTargets(two))
    alone = learn((1.3,), DenseTargets(mean(one, two)))
    torch.testing.assert_close(mixed, alone, atol=1e-9, rtol=1e-7)


def test_by_weight_sums_each_divergence_and_the_cross_entropy_once(folders, lessons):
    student, batch, (one, two) = student_and_batch(folders, lessons)
    rows = student.config.vocab_size
    objective = METHODS.build({"name": "jsd", "ce_weight": 0.5, "kd_weight": 2.0})
    targets = (keep_top(one, 8), keep_top(two, 5))
    both = DistillationLoss(MultiTeacherObjective(objective, (3.0, 0.25)), rows=rows)
    loss = both(student, replace(batch, target=targets))
    logits = student(input_ids=batch.input_ids).logits.reshape(-1, rows)[batch.flat]
    each = [objective.divergence(logits.detach(), target)[0].sum() for target in targets]
    nats = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
    expected = 2.0 * (3.0 * each[0] + 0.25 * each[1]) + 0.5 * nats
    torch.testing.assert_close(
        loss.total, expected.detach(), rtol=1e-6, atol=1e-8, check_dtype=False
    )
    assert loss.parts["cross_entropy"] == pytest.approx(nats.item())


def test_two_teachers_by_weight_both_come_nearer(make_recipe, do, folders):
    recipe = make_recipe(shares(folders, weight=(1.0, 1.0)), fidelity={"baseline": True})
    artifact, folder = do(recipe)
    for part in artifact.details["fidelity"]["teachers"]:
        assert {"initial", "final", "baseline"} <= part["summary"].keys()
        before, after = (part["summary"][name]["kl"]["value"] for name in ("initial", "final"))
        assert after < before
    assert [parent.role for parent in artifact.parents] == [
        "teacher",
        "teacher",
        "records",
        "student",
    ]
    assert len(artifact.origin["chain"]) == 2
    card = (folder / "output" / "README.md").read_text()
    assert "- one (fingerprint" in card
    assert "- two (fingerprint" in card


def test_by_source_each_teaches_its_own_records(make_recipe, do, folders):
    artifact, _ = do(make_recipe(shares(folders, source=("a", "b"))))
    one, two = artifact.details["fidelity"]["teachers"]
    assert not {row["record"] for row in one["final"]} & {row["record"] for row in two["final"]}
    assert artifact.details["records"]["taught"] == [
        sum(1 for at in range(16) if at % 4 and "ab"[at % 2] == source) for source in "ab"
    ]
    for part in (one, two):
        if part["final"]:
            assert (
                part["summary"]["final"]["kl"]["value"] < part["summary"]["initial"]["kl"]["value"]
            )


def test_a_teacher_none_of_whose_records_is_measured_is_named(make_recipe, folders, job):
    fidelity = {"baseline": False, "answers": 0, "speed": False, "records": 1}
    told, job.warn = [], lambda line: told.append(line)
    run(make_recipe(shares(folders, source=("a", "b")), fidelity=fidelity), job)
    assert sum(" is not measured: no held-out record of the 1 record" in line for line in told) == 1


def test_a_record_without_a_teacher_is_counted_and_refused(make_recipe, do, folders):
    with pytest.raises(DataError) as caught:
        do(make_recipe(shares(folders, source=("a", "z"))))
    assert caught.value.code == "distill.no-teacher"
    assert "of 'b'" in str(caught.value)
    artifact, _ = do(make_recipe(shares(folders, source=("a", "*"))), "rest")
    assert sum(artifact.details["records"]["taught"]) == 12


def test_a_teacher_without_a_record_is_refused(make_recipe, do, folders):
    with pytest.raises(
        DataError, match=r"no training record is for the teacher .*source 'z'"
    ) as at:
        do(make_recipe(shares(folders, source=("z", "*"))))
    assert at.value.code == "distill.unused-teacher"
    with pytest.raises(ValueError, match="listed twice"):
        make_recipe([{"teacher": str(folders[0])}] * 2)


def test_the_origin_can_choose(make_recipe, do, folders):
    with pytest.raises(DataError) as caught:
        do(make_recipe(shares(folders, source=("human", "synthetic")), source_field="origin"))
    assert "'unknown'" in str(caught.value)


def test_a_teacher_of_another_vocabulary_is_named(make_recipe, do, folders, tmp_path):
    odd = tiny_checkpoint(tmp_path / "odd", vocabulary=300)
    with pytest.raises(CheckpointError) as caught:
        do(make_recipe([{"teacher": str(folders[0])}, {"teacher": str(odd)}]))
    assert caught.value.code == "distill.vocabulary"
    assert "odd" in str(caught.value)


@pytest.mark.parametrize(
    ("each", "named"),
    [
        ({"source": ("a", None)}, "by source or by weight"),
        ({"source": ("a", "a")}, "two teachers"),
        ({"weight": (1.0, 0.0)}, "greater than 0"),
    ],
    ids=str,
)
def test_shares_that_contradict_are_refused(make_recipe, folders, each, named):
    with pytest.raises(ValidationError, match=named):
        make_recipe(shares(folders, **each))


def test_no_teacher_and_a_crossing_of_several_are_refused(make_recipe, folders):
    with pytest.raises(ValidationError, match="at least 1 item"):
        make_recipe([])
    with pytest.raises(ValidationError, match="teachers"):
        make_recipe(shares(folders), kind="distill.cross_tokenizer", targets=None)


def test_a_server_and_a_checkpoint_teach_together_and_licenses_are_told(
    make_recipe, do, folders, capsys, tmp_path
):
    model, tokenizer = load_causal_lm(folders[1], dtype="float32", device="cpu")
    told = []
    with serving(TeacherServer(model, tokenizer, "prompt_logprobs")) as address:
        licensed = tiny_checkpoint(tmp_path / "licensed", seed=11)
        (licensed / "README.md").write_text("---\nlicense: mit\n---\n")
        server = {"endpoint": address, "tokenizer": str(folders[1]), "license": "apache-2.0"}
        recipe = make_recipe([{"teacher": str(licensed)}, {"teacher": server, "weight": 0.5}])
        job = Job.start(tmp_path / "both", "kind: test\n")
        job.warn = told.append
        try:
            artifact = run(recipe, job)
        finally:
            job.close()
    said = "the teachers have different licenses (apache-2.0, mit)"  # under --quiet, too
    assert any(line.startswith(said) for line in told)
    assert artifact.origin["license"] == "apache-2.0 AND mit"
    front = (tmp_path / "both" / "output" / "README.md").read_text()
    assert "apache-2.0 AND mit" in front
    kept = json.loads((tmp_path / "both" / "artifact.json").read_text())["details"]["teachers"]
    assert [one["license"] for one in kept] == ["mit", "apache-2.0"]


def test_heads_padded_to_different_widths_share_the_narrower(folders, tmp_path, job):
    """As Qwen's: 151936 rows in small ones, 152064 in large ones, fewer tokens than both."""
    heads = []
    for name, extra in (("narrow", 8), ("wide", 40)):
        model, tokenizer = load_causal_lm(folders[0], dtype="float32", device="cpu")
        model.resize_token_embeddings(len(tokenizer) + extra)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        heads.append(len(tokenizer) + extra)
    student, tokenizer = load_causal_lm(tmp_path / "wide", dtype="float32", device="cpu")
    assert (
        count_shared_rows(LocalTeacher.find(str(tmp_path / "narrow"), job), student, tokenizer)
        == heads[0]
    )


def test_weights_of_a_quantized_file_are_named(folders, tmp_path, job):
    folder = tiny_checkpoint(tmp_path / "quantized")
    (folder / "README.md").write_text("---\ntags: [gguf, dequantized-from-q4_1]\n---\n")
    teacher = LocalTeacher.find(str(folder), job)
    assert teacher.about["weights"] == "dequantized from Q4_1 (GGUF)"
    header = teacher.own_header("float32")
    assert header.about["weights"] == teacher.about["weights"]


def test_no_two_teachers_are_in_memory_together_and_none_while_the_student_learns(
    make_recipe, do, folders, monkeypatch
):
    loaded, most, while_training = set(), [], []
    real_model, real_unload, real_train = (
        LocalTeacher.model.fget,
        LocalTeacher.unload,
        student_module.train,
    )

    def model(self):
        found = real_model(self)
        loaded.add(self.name)
        most.append(len(loaded))
        return found

    def unload(self):
        real_unload(self)
        loaded.discard(self.name)

    def train(*arguments, **settings):
        while_training.append(set(loaded))
        return real_train(*arguments, **settings)

    monkeypatch.setattr(LocalTeacher, "model", property(model))
    monkeypatch.setattr(LocalTeacher, "unload", unload)
    monkeypatch.setattr(student_module, "train", train)
    do(make_recipe(shares(folders, weight=(1.0, 1.0)), train={**FAST, "steps": 2}))
    assert max(most) == 1
    assert while_training == [set()]


def test_a_teacher_that_was_lowered_is_measured_in_float32_again(tmp_path):
    folder = tiny_checkpoint(tmp_path / "teacher")
    teacher = LocalTeacher(Checkpoint.open(folder), "teacher")
    lowered = teacher.in_precision("bfloat16")
    assert {one.dtype for one in lowered.parameters()} == {torch.float32, torch.bfloat16}
    assert teacher.in_precision("bfloat16") is lowered
    assert {one.dtype for one in teacher.model.parameters()} == {torch.float32}
    assert teacher.model is not lowered
