"""Replacing degrades and accumulating does not; a killed experiment ends with the same bytes."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from pydantic import ValidationError
from tests.unit.synth.conftest import run_in

from stillroom.cli import stillroom
from stillroom.errors import Cancelled, DataError, RecipeError
from stillroom.records import Message, Origin, Record, read_records, write_records
from stillroom.synth.experiments import model_collapse
from stillroom.synth.experiments.human_records import read_human_records, split_human_records
from stillroom.synth.experiments.model_collapse import run_collapse_study
from stillroom.synth.experiments.model_collapse_report import judge_rules
from stillroom.synth.experiments.students import TRUNCATED, StudentTrainer
from stillroom.synth.jobs.collapse import CollapseRecipe, estimate
from stillroom.synth.selection import MIX_RULES, mix_generation
from stillroom.synth.settings import FreshStudent

SMALL = FreshStudent(
    layers=1,
    hidden=32,
    vocabulary=300,
    max_tokens=24,
    train={
        "steps": 40,
        "batch_size": 8,
        "micro_tokens": 2048,
        "learning_rate": 1e-2,
        "threads": 1,
        "log_every": 100,
    },
)


@pytest.fixture(scope="module")
def human(tmp_path_factory):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 3)) for _ in range(60)]
    weights = 1 / np.arange(1, 61)
    texts = [" ".join(rng.choice(words, 8, p=weights / weights.sum())) + "." for _ in range(160)]
    path = tmp_path_factory.mktemp("human") / "human.jsonl"
    write_records(path, [Record((Message("assistant", t),), {}, Origin("human")) for t in texts])
    return path


def plan_of(human, **more):
    told = {"generations": 2, "num_seeds": 1, "num_records": 64, "num_held_out": 40}
    return CollapseRecipe(**({"human": str(human), "student": SMALL} | told | more))


@pytest.fixture(scope="module")
def finished(human, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "out"
    return (*run_in(out, run_collapse_study, plan_of(human)), out)


def test_replacing_raises_held_out_loss_and_accumulating_less(finished):
    _, report, _, _ = finished
    last = {
        rule: report.metrics[f"rise of held-out loss/{rule}/generation 2"] for rule in MIX_RULES
    }
    assert last["replace"].low > 0
    assert last["replace"].low > last["accumulate"].high
    assert last["replace"].low > last["accumulate_subsample"].high
    assert last["replace"].note == "1 run"
    titles = [section.title for section in report.sections]
    assert titles[:2] == ["Held-out loss", "The monitor's warning"]
    assert "Data: tail" in titles
    assert {one.rule for one in judge_rules(finished[2])} == set(MIX_RULES)


def test_what_students_wrote_is_kept_and_called_synthetic(finished):
    artifact, _, _, out = finished
    names = {path.stem for path in (out / "output/written").iterdir()}
    assert names == {
        f"{name}-seed{seed}"
        for seed in range(1)
        for name in ("human-0", *(f"{rule}-1" for rule in MIX_RULES))
    }
    records = list(read_records(out / "output/written/replace-1-seed0.jsonl"))
    assert len(records) == 64
    assert {record.origin.kind for record in records} == {"synthetic"}
    assert records[0].origin.chain[-1].method == "synth.generations.replace"
    assert artifact.origin["kind"] == "human"


def test_a_stopped_experiment_goes_on_to_the_same_bytes(human, tmp_path, monkeypatch):
    plan = plan_of(human, rules=("accumulate",))
    wanted, _, _ = run_in(tmp_path / "whole", run_collapse_study, plan)
    seen = []
    whole = model_collapse._Experiment._run_unit

    def stop(self, *given):
        if len(seen) == 2:
            raise Cancelled("stopped", code="job.cancelled")
        seen.append(given[0])
        return whole(self, *given)

    out = tmp_path / "out"
    monkeypatch.setattr(model_collapse._Experiment, "_run_unit", stop)
    with pytest.raises(Cancelled):
        run_in(out, run_collapse_study, plan)
    monkeypatch.setattr(model_collapse._Experiment, "_run_unit", whole)
    artifact, _, _ = run_in(out, run_collapse_study, plan, resume=True)
    assert artifact.digest == wanted.digest
    report = (out / "output/report.json").read_bytes()
    assert report == (tmp_path / "whole/output/report.json").read_bytes()


def test_a_kind_and_its_settings_are_checked_and_run_without_a_file(human, tmp_path):
    settings = [
        f"human={human}",
        "rules=[replace]",
        "generations=1",
        "num_seeds=1",
        "num_records=40",
        "num_held_out=24",
    ]
    student = "{layers: 1, hidden: 32, vocabulary: 300, max_tokens: 24}"
    settings += [f"student={student}", "student.train.steps=10", "student.train.threads=1"]
    told = CliRunner().invoke(stillroom, ["check", "synth.collapse", *settings, "--json"])
    assert "2 students" in json.loads(told.stdout)["basis"]
    words = ["run", "synth.collapse", *settings, "--out", str(tmp_path / "out"), "--quiet"]
    done = CliRunner().invoke(stillroom, words, catch_exceptions=False)
    assert "Held-out loss after 1 generations" in done.output
    assert "data of generation 1" in done.output or "never" in done.output
    wrong = CliRunner().invoke(stillroom, [*words, "student.hidden=7"])
    assert wrong.exception.problems[0].code == "recipe.value"


@pytest.mark.parametrize(
    "wrong", [{"generations": 0}, {"human_share": 1.0}, {"rules": ()}, {"num_records": 2}]
)
def test_an_experiment_that_cannot_be_is_refused(human, wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        plan_of(human, **wrong)


def test_a_recipe_gives_its_passages_or_its_seeds(human, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    shown = "version: 1\nkind: synth.records\n"
    recipe.write_text(f"{shown}index: {human}\n")
    texts = {record.messages[0].content for record in read_human_records(recipe)}
    assert texts == {record.messages[0].content for record in read_human_records(human)}
    recipe.write_text("version: 1\nkind: evaluate.report\nrecords: r\nmodels: {m: m}\n")
    with pytest.raises(RecipeError) as caught:
        read_human_records(recipe)
    assert caught.value.problems[0].code == "recipe.wrong-kind"


def test_too_few_records_are_refused(human):
    with pytest.raises(DataError) as caught:
        split_human_records(read_human_records(human)[:9], 0.5, 0)
    assert caught.value.problems[0].code == "synth.too-few"


def test_conversations_too_long_for_a_student_are_refused(human, tmp_path):
    path = tmp_path / "long.jsonl"
    asked = [
        (Message("user", "Tell. " * 30 + str(at)), Message("assistant", "No.")) for at in range(40)
    ]
    write_records(path, [Record(turns, {"document_id": str(at)}) for at, turns in enumerate(asked)])
    with pytest.raises(DataError) as caught:
        run_in(tmp_path / "out", run_collapse_study, plan_of(path, num_records=20, num_held_out=20))
    assert caught.value.problems[0].code == "synth.too-long"


@pytest.mark.parametrize("rule", MIX_RULES)
def test_mixtures_have_the_size_and_the_share_of_human_records_that_was_asked(rule):
    human = [f"h{at}" for at in range(50)]
    written = [[f"{part}-{at}" for at in range(50)] for part in range(4)]
    for share in (0.0, 0.3):
        mixed = mix_generation(rule, human, written, human_share=share, seed=1)
        assert len(set(mixed)) == len(mixed) == (250 if rule == "accumulate" else 50)
        kept = sum(one.startswith("h") for one in mixed)
        if rule == "replace":
            assert kept == round(50 * share)
            assert {one[:2] for one in mixed if not one.startswith("h")} == {"3-"}
        elif rule == "accumulate":
            assert kept == 50
        else:
            assert 15 <= kept < 30 if share else 2 <= kept < 20
        assert mixed == mix_generation(rule, human, written, human_share=share, seed=1)


def test_a_long_text_is_learned_in_pieces_that_go_on(finished, human, tmp_path):
    class Scratch:
        scratch = tmp_path

    text = "abc def " * 40
    students = StudentTrainer(SMALL, [text], Scratch())
    pieces = students.cut(Record((Message("assistant", text),), {"k": 1}))
    assert "".join(piece.messages[0].content for piece in pieces) == text
    assert [bool(piece.fields.get(TRUNCATED)) for piece in pieces] == [True] * (len(pieces) - 1) + [
        False
    ]
    first, last = students.encode([pieces[0], pieces[-1]])
    end = students.tokenizer.eos_token_id
    assert end not in first.ids
    assert last.ids[-1] == end
    assert max(len(one.ids) for one in (first, last)) <= SMALL.max_tokens


def test_the_estimate_knows_the_student_without_making_it(human, tmp_path):
    class Scratch:
        scratch = tmp_path

    plan = plan_of(human)
    texts = [record.messages[0].content for record in read_human_records(human)]
    parameters = StudentTrainer(SMALL, texts, Scratch()).parameters
    assert abs(SMALL.count_parameters() / parameters - 1) < 0.1
    assert estimate(plan).seconds > 0
    assert plan.num_students == 7
