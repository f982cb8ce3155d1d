from dataclasses import replace
from pathlib import Path

import pytest

from stillroom.errors import DataError, RecipeError
from stillroom.evaluate.qa.judgments import AskedAnswer, Judgment, find_judgments
from stillroom.flow.make import read_make_recipe


def test_paths_on_the_command_line_start_at_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = read_make_recipe(
        Path("documents"), ["inputs.teacher=./teacher", "inputs.embedder=builtin:static"]
    )
    assert recipe.inputs == {
        "documents": str(tmp_path / "documents"),
        "teacher": str(tmp_path / "teacher"),
        "embedder": "builtin:static",
    }


@pytest.mark.parametrize(("count", "steps"), [(59, 4), (60, 6)])
def test_many_questions_with_evidence_teach_too(tmp_path, count, steps):
    rows = ["question;answer;evidence", *(f"Why {at}?;so;It is so." for at in range(count))]
    (tmp_path / "people.csv").write_text("\n".join(rows), encoding="utf-8")
    recipe = read_make_recipe(tmp_path / "documents", questions=tmp_path / "people.csv")
    assert len(recipe.steps) == steps
    assert recipe.steps["report"].sources[1] == ("judged" if steps == 6 else "inputs.questions")
    assert recipe.inputs["questions"] == str(tmp_path / "people.csv")


def test_what_people_judged_right_teaches_a_run_in_the_same_place(tmp_path):
    out = tmp_path / "run"
    part = {"document_id": "d", "passage": "p", "start": 0, "end": 3, "quote": "Yes"}
    judgments = [Judgment("right", AskedAnswer(f"{n}?", "Yes."), ("Yes",), ()) for n in range(20)]
    known = next(one for one in judgments if one.side == "train")
    test = next(one for one in judgments if one.side == "test")
    for one in (known, replace(test, evidence=(part,))):
        find_judgments(out).add(one)
        assert "judged" not in read_make_recipe(tmp_path, out=out).inputs
    find_judgments(out).add(replace(known, evidence=(part,)))
    recipe = read_make_recipe(tmp_path, out=out)
    assert recipe.inputs["judged"] == str(tmp_path / "run.judgments/train.jsonl")
    assert "inputs.judged" in recipe.steps["reader"].sources
    recipe = read_make_recipe(tmp_path, ["steps.reader.train.epochs=3"], out=out)
    assert list(recipe.steps) == ["index", "records", "reader", "untaught", "report", "judgments"]
    taught, control = (recipe.steps[name] for name in ("reader", "untaught"))
    assert "inputs.judged" not in control.sources
    for one in (taught, control):  # nor from the same sentence, asked in other words
        assert one.to_json()["without"] == [{"from": "inputs.judged_test"}]
    assert taught.recipe.train == control.recipe.train
    assert control.recipe.train.epochs == 3
    asked = recipe.steps["judgments"].to_json()
    assert asked["questions"] == {"from": "inputs.judged_test"}
    assert list(asked["compare"]["readers"]) == ["owned", "untaught", "packaged", "sentence"]
    assert recipe.steps["report"].recipe.compare.untaught == ""


def test_questions_that_judge_are_not_learned_from_where_they_were_judged(tmp_path):
    out, part = tmp_path / "run", {"document_id": "d", "passage": "p", "quote": "Yes"}
    judgments = [Judgment("right", AskedAnswer(f"{n}?", "Yes."), ("Yes",), ()) for n in range(9)]
    known = next(one for one in judgments if one.side == "train")
    find_judgments(out).add(replace(known, evidence=({**part, "start": 0, "end": 3},)))
    (tmp_path / "people.csv").write_text("question,answer\nWhy?,so\n", encoding="utf-8")
    recipe = read_make_recipe(tmp_path / "docs", questions=tmp_path / "people.csv", out=out)
    asked = recipe.steps["reader"].to_json()
    assert asked["without"] == [{"from": "inputs.questions"}]
    assert recipe.steps["report"].to_json()["questions"] == {"from": "inputs.questions"}


def test_without_held_out_judgments_no_control_is_trained(tmp_path):
    part = {"document_id": "d", "passage": "p", "start": 0, "end": 3, "quote": "Yes"}
    judgments = [Judgment("right", AskedAnswer(f"{n}?", "Yes."), ("Yes",), ()) for n in range(9)]
    known = next(one for one in judgments if one.side == "train")
    find_judgments(tmp_path / "run").add(replace(known, evidence=(part,)))
    recipe = read_make_recipe(tmp_path, out=tmp_path / "run")
    assert list(recipe.steps) == ["index", "records", "reader", "report"]


def test_questions_among_the_documents_are_refused(tmp_path):
    (tmp_path / "people.csv").write_text("question;answer\nWho?;I\n", encoding="utf-8")
    with pytest.raises(DataError, match="their own file would answer them"):
        read_make_recipe(tmp_path, questions=tmp_path / "people.csv")


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("make.records.num_records=20", "'steps.records.num_records'"),
        ("records.num_records=20", "'steps.records.num_records'"),
        ("steps.record.num_records=20", "'steps.records.num_records'"),
        ("records.num_records.train=9", "'steps.records.num_records.train'"),
        ("report.max_questons=3", "'steps.report.max_questions'"),
        ("steps.records.generator=qa", "'steps.records.pipeline.generator'"),
        ("steps.reader.rank=8", "'steps.reader.train.lora.rank'"),
        ("steps.report.compare.packaged=x", "'steps.report.compare.readers.packaged'"),
        ("k=3", "'steps.reader.k' or 'steps.report.k'"),
        ("steps.reader.tarin={steps: 3}", "'train'"),
    ],
)
def test_a_setting_at_the_wrong_place_names_the_right_one(tmp_path, override, near):
    with pytest.raises(RecipeError) as caught:
        read_make_recipe(tmp_path, [override])
    assert caught.value.problems[0].next == f"did you mean {near}?"


def test_a_setting_that_no_step_has_is_to_be_removed(tmp_path):
    with pytest.raises(RecipeError) as caught:
        read_make_recipe(tmp_path, ["steps.records.min_score=3"])
    assert caught.value.problems[0].next == "remove it"
