import pytest
from pydantic import ValidationError

from stillroom.distill.jobs.logits import LogitsRecipe
from stillroom.distill.settings import PruneSettings
from stillroom.errors import RecipeError
from stillroom.recipes import dump_recipe, parse_recipe

TEXT = "version: 1\nkind: distill.logits\nteacher: ./t\nrecords: ./r.jsonl\n"


def test_a_short_recipe_is_enough_and_round_trips():
    recipe = parse_recipe(TEXT, "recipe.yaml", ())
    assert isinstance(recipe, LogitsRecipe)
    assert recipe.method.method_name() == "forward_kl"
    assert parse_recipe(dump_recipe(recipe), "again", ()) == recipe


def test_a_student_is_a_way_to_make_one_or_a_checkpoint():
    made = parse_recipe(TEXT + "student: {layers: 3}\n", "r", ())
    given = parse_recipe(TEXT + "student: ./s\n", "r", ())
    assert isinstance(made.student, PruneSettings)
    assert str(given.student).endswith("s")


@pytest.mark.parametrize(
    "bad",
    [
        {"targets": {"mode": "sampled"}, "method": "reverse_kl"},
        {"targets": {"mode": "top_k", "k": 0}},
        {"method": {"name": "jsd", "beta": 1.5}},
        {"method": {"name": "forward_kl", "temperature": 0}},
        {"student": {"keep": [3, 1]}},
        {"student": {"keep": [0, 1], "layers": 2}},
        {"max_tokens": 1},
        {"keep_checkpoints": -1},
    ],
)
def test_refuses_what_cannot_be_done(bad):
    with pytest.raises(ValidationError):
        LogitsRecipe.model_validate({"teacher": "t", "records": "r", **bad})


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("on_policy", "teacher: ./t\nmethod: {name: jsd, kd_weight: 0}\n"),
        (
            "endpoint_on_policy",
            "teacher: {endpoint: 'http://h/v1', tokenizer: ./t}\n"
            "method: {name: forward_kl, kd_weight: 0}\n",
        ),
        (
            "cross_tokenizer",
            "teacher: ./t\ncross_tokenizer_loss: {name: chunk_likelihood, kd_weight: 0}\n",
        ),
    ],
)
def test_a_loss_whose_weights_are_all_zero_is_refused(kind, lines):
    text = f"version: 1\nkind: distill.{kind}\nrecords: ./r.jsonl\nstudent: ./s\n{lines}"
    with pytest.raises(RecipeError, match="every weight of the loss is 0"):
        parse_recipe(text, "r", ())
    parse_recipe(text.replace("kd_weight: 0", "kd_weight: 0, ce_weight: 1"), "r", ())


@pytest.mark.parametrize(
    ("kind", "lines", "wanted"),
    [
        (
            "endpoint_logits",
            "teacher: {endpont: 'http://h/v1', tokenizer: ./t}\nstudent: ./s\n",
            ["teacher.endpoint is missing", "teacher.endpont is not a setting of 'teacher'"],
        ),
        (
            "multi_teacher",
            "teachers: [{teacher: ./a, weigt: 2}, {teacher: ./b}]\n",
            ["teachers.0.weigt is not a setting of 'teachers.0'"],
        ),
        (
            "logits",
            "teacher: ./t\nstudent: {layrs: 3}\n",
            ["student.layrs is not a setting of 'student'"],
        ),
        ("logits", "teacher: ./t\nstudent: {layers: -3}\n", ["student.layers cannot be -3"]),
        ("logits", "teacher: 5\n", ["teacher cannot be 5"]),
        ("logits", "teacher: ./t\nrecords: [a]\n", ["records does not fit"]),
        (
            "supervised",
            "teacher: ./t\ntargets: {}\n",
            ["targets is not a setting of 'distill.supervised'"],
        ),
    ],
)
def test_a_slip_within_one_shape_is_told_without_the_others(kind, lines, wanted):
    text = f"version: 1\nkind: distill.{kind}\n{lines}"
    if "records" not in lines:
        text += "records: ./r.jsonl\n"
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r", ())
    assert [problem.what for problem in caught.value.problems] == wanted
    if "weigt" in lines:
        assert caught.value.problems[0].expected == "one of: teacher, weight, source"
