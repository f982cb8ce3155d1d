import json

import pytest
import torch
from tests.unit.distill.conftest import make_records
from tests.unit.distill.kinds import estimate, run
from tests.unit.distill.test_run import FAST
from tests.unit.distill.test_run import make_recipe as make_quick

from stillroom.checkpoints import Checkpoint
from stillroom.distill.data.tokenized import make_batch
from stillroom.distill.evaluator import BaselineLoss, compute_baseline_batch_size
from stillroom.errors import Cancelled
from stillroom.jobs import Job
from stillroom.models import load_causal_lm
from stillroom.testing import tiny_checkpoint

__all__ = ["make_quick", "make_recipe"]


@pytest.fixture
def make_recipe(make_quick):
    """Measure all that is measured where nothing is set, with short answers to few questions."""
    short = {"answers": 3, "max_new_tokens": 6}
    return lambda fidelity=None, **changes: make_quick(
        fidelity={**short, **(fidelity or {})}, **changes
    )


def test_loss_and_gradient_are_those_of_cross_entropy(tmp_path, lessons):
    folder = tiny_checkpoint(tmp_path / "m", tie=False)
    ours, theirs = (load_causal_lm(folder, dtype="float32", device="cpu")[0] for _ in range(2))
    batch, rows = make_batch(lessons[:3], None), ours.config.vocab_size - 1
    found = BaselineLoss(rows)(ours, batch)
    found.total.backward()
    logits = theirs(input_ids=batch.input_ids).logits.flatten(0, 1)[batch.flat][:, :rows]
    loss = torch.nn.functional.cross_entropy(logits, batch.labels)
    (loss * len(batch.labels)).backward()
    assert int(batch.labels.max()) < rows
    assert found.total.item() == pytest.approx(loss.item() * len(batch.labels), rel=1e-5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)


def test_weights_of_lessons_are_left_aside(loaded, lessons):
    from dataclasses import replace

    model, _ = loaded
    heavy = [replace(lesson, weight=7.0) for lesson in lessons[:2]]
    losses = [
        BaselineLoss(model.config.vocab_size)(model, make_batch(chosen, None)).total.item()
        for chosen in (lessons[:2], heavy)
    ]
    assert losses[0] == losses[1]


def test_budget_is_equal_in_tokens(make_recipe, lessons):
    recipe = make_recipe()
    positions = sum(len(lesson.positions) for lesson in lessons) / len(lessons)
    plain = positions * FAST["steps"] * FAST["batch_size"]
    for share, wanted in ((1, 4), (1.05, 4), (2, 8), (0.01, 1)):
        assert compute_baseline_batch_size(recipe, lessons, round(plain * share)) == wanted


def test_baseline_learns_beside_the_student_and_is_not_shipped(make_recipe, do):
    artifact, folder = do(make_recipe())
    written = json.loads((folder / "output" / "fidelity.json").read_text())
    assert set(written["summary"]) == {"initial", "final", "baseline"}
    assert (
        written["summary"]["baseline"]["loss"]["value"]
        < written["summary"]["initial"]["loss"]["value"]
    )
    budget = written["budget"]
    assert budget["baseline"] == budget["final"]
    assert budget["teacher"]["parameters"] > budget["final"]["parameters"]
    assert not (folder / "output" / "baseline").exists()
    metrics = (folder / "metrics.jsonl").read_text()
    assert metrics.count('"baseline/loss"') == FAST["steps"] == metrics.count('"loss"')
    page = (folder / "output" / "fidelity.html").read_text()
    assert "student − baseline" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert artifact.details["fidelity"]["baseline"]
    report = written["report"]
    names = {metric["name"] for metric in report["metrics"]}
    assert {
        f"{side}/{what}"
        for side in ("baseline", "student", "student_minus_baseline")
        for what in ("kl", "reverse_kl", "top5_overlap", "loss", "ece", "brier", "kl_free", "flips")
    } <= names
    assert {"teacher/ece", "teacher/loss", "student/excess_error", "teacher/distinct_2"} <= names
    for metric in report["metrics"]:
        assert set(metric) >= {"name", "value", "low", "high", "n", "unit"}


def test_baseline_can_be_kept(make_recipe, do):
    _, folder = do(make_recipe(fidelity={"keep_baseline": True, "answers": 0, "speed": False}))
    baseline, student = (Checkpoint.open(folder / "output" / name) for name in ("baseline", "."))
    assert baseline.parameters == student.parameters
    assert baseline.fingerprint != student.fingerprint
    assert not (folder / "timings.json").exists()


def test_report_says_in_words_that_there_is_no_baseline(make_recipe, do):
    _, folder = do(make_recipe(fidelity={"baseline": False}))
    page = (folder / "output" / "fidelity.html").read_text()
    assert "There is no baseline" in page
    assert "student − baseline" not in page
    timings = json.loads((folder / "timings.json").read_text())
    names = {metric["name"] for metric in timings["metrics"]}
    assert {"teacher/decode_ms", "student/prefill_ms"} <= names


def test_estimate_says_what_the_baseline_costs(make_recipe):
    long = {**FAST, "steps": 500_000}
    with_it, without = (
        estimate(make_recipe(train=long, fidelity={"baseline": chosen})) for chosen in (True, False)
    )
    assert with_it.seconds > 1.5 * without.seconds
    assert with_it.disk_bytes > without.disk_bytes
    assert "fidelity.baseline: false" in with_it.basis
    assert "no baseline" in without.basis


def test_estimate_counts_the_baseline_of_several_teachers(make_recipe):
    one = make_recipe(train={**FAST, "steps": 500_000})
    several = [{"teacher": one.teacher, "weight": weight} for weight in (0.4, 0.6)]
    found = [
        estimate(
            make_recipe(
                teacher=None, teachers=several, train=one.train, fidelity={"baseline": chosen}
            )
        )
        for chosen in (True, False)
    ]
    assert found[0].seconds > 1.5 * found[1].seconds
    assert "fidelity.baseline: false" in found[0].basis


class _Stopping(Job):
    """A job that is cancelled when a phase has come some way."""

    stop_at: tuple[str, float] = ("", 0)

    def metric(self, name, value, **fields):
        super().metric(name, value, **fields)
        if name == self.stop_at[0] and fields["step"] == self.stop_at[1]:
            self.cancel()


def test_a_job_stopped_twice_goes_on_to_the_same_bytes(make_recipe, do, tmp_path):
    recipe = make_recipe(fidelity={"speed": False})
    whole, _ = do(recipe, "whole")
    for stop in (("loss", 3), ("baseline/loss", 3)):
        stopped = _Stopping.start(tmp_path / "again", "kind: test\n", resume=True)
        stopped.stop_at = stop
        with pytest.raises(Cancelled):
            run(recipe, stopped)
        stopped.close()
    job = Job.start(tmp_path / "again", "kind: test\n", resume=True)
    again = run(recipe, job)
    job.close()
    assert again.digest == whole.digest
    phases = [
        json.loads(line)["name"]
        for line in (tmp_path / "again" / "events.jsonl").read_text().splitlines()
        if '"phase"' in line
    ]
    assert phases.count("fidelity, teacher") == phases.count("fidelity, final") == 1


def test_records_that_cannot_be_answered_are_counted(make_recipe, do, tmp_path):
    from stillroom.records import Message, Record, write_records

    plain = Record((Message("assistant", "A plain text of some length."),), {"split": "held_out"})
    write_records(tmp_path / "r.jsonl", [*make_records(8), plain])
    _, folder = do(make_recipe(records=str(tmp_path / "r.jsonl"), fidelity={"speed": False}))
    written = json.loads((folder / "output" / "fidelity.json").read_text())
    assert written["passed_over"] == {"no question before its last answer": 1}
    assert len(written["answers"]["teacher"]) == 2
    assert "Left out" in (folder / "output" / "fidelity.html").read_text()
