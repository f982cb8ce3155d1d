import sys

import pytest

from stillroom.errors import MissingExtraError, RecipeError
from stillroom.flow import FlowRecipe, run_recipe
from stillroom.recipes import dump_recipe, parse_recipe

FLOW = """\
version: 1
kind: flow
seed: 5
inputs:
  first: hub:org/first
steps:
  averaged:
    kind: merge.weights
    method: linear
    models:
      - {model: {from: inputs.first}}
      - {model: ./second}
  trimmed:
    kind: merge.weights
    method: {name: ties, density: 0.5}
    base_model: {from: inputs.first}
    models:
      - {model: {from: averaged}}
"""


def problems(text):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "flow.yaml")
    return caught.value.problems


def test_steps_take_inputs_and_earlier_steps():
    recipe = parse_recipe(FLOW, "flow.yaml")
    assert isinstance(recipe, FlowRecipe)
    assert recipe.steps["trimmed"].sources == ("inputs.first", "averaged")


def test_step_is_built_with_real_paths_and_the_flows_seed():
    recipe = parse_recipe(FLOW, "flow.yaml")
    built = recipe.steps["trimmed"].build({"inputs.first": "/a", "averaged": "/b"}, recipe.seed)
    assert built.base_model == "/a"
    assert built.models[0].model == "/b"
    assert built.seed == 5


def test_a_steps_own_seed_wins():
    recipe = parse_recipe(
        FLOW.replace("method: linear", "method: linear\n    seed: 9", 1), "flow.yaml"
    )
    assert recipe.steps["averaged"].build({"inputs.first": "/a"}, recipe.seed).seed == 9


def test_dumped_flow_is_the_same_flow():
    recipe = parse_recipe(FLOW, "flow.yaml")
    again = parse_recipe(dump_recipe(recipe), "again.yaml")
    assert dump_recipe(again) == dump_recipe(recipe)
    assert "from: averaged" in dump_recipe(recipe)


def test_problems_of_all_steps_come_at_once_with_their_places():
    text = FLOW.replace("density: 0.5", "densty: 0.5").replace("method: linear", "method: liner")
    found = problems(text)
    assert [problem.code for problem in found] == ["recipe.unknown-method", "recipe.unknown-key"]
    assert found[0].where.startswith("flow.yaml:9:")
    assert found[1].where.startswith("flow.yaml:15:")
    assert "did you mean 'density'?" in found[1].next


def test_later_or_unknown_steps_cannot_be_taken():
    found = problems(FLOW.replace("{from: averaged}", "{from: avraged}"))
    assert [problem.code for problem in found] == ["recipe.unknown-step"]
    assert "did you mean 'averaged'?" in found[0].next
    assert problems(FLOW.replace("{from: inputs.first}", "{from: trimmed}", 1))


def test_a_flow_is_no_step_and_a_step_has_a_kind():
    nested = FLOW.replace("  averaged:\n    kind: merge.weights", "  averaged:\n    kind: flow")
    assert problems(nested)[0].code == "recipe.step"
    assert problems("version: 1\nkind: flow\nsteps: {a: 3}\n")[0].code == "recipe.step"


def test_answer_names_steps():
    found = problems(FLOW + "answer: {index: averaged, model: mergd}\n")
    assert [problem.code for problem in found] == ["recipe.unknown-step"]


TWO = """\
version: 1
kind: flow
engine: {whole}
steps:
  index: {{kind: rag.index, documents: papers, engine: {one}}}
  records: {{kind: synth.records, index: {{from: index}}, engine: {two}}}
"""


@pytest.mark.parametrize(
    ("whole", "one", "two", "refused"),
    [
        ("local", '{ray: {address: "a:1"}}', '{ray: {address: "b:1"}}', 1),
        ('{ray: {address: "a:1"}}', "ray", '{concurrency: 4, ray: {address: "b:1"}}', 2),
        ("local", "ray", "{ray: {num_workers: 2}}", 0),
        ('{ray: {address: "a:1"}}', "local", '{ray: {address: "a:1", num_workers: 2}}', 0),
    ],
)
def test_steps_that_name_two_clusters_are_refused(whole, one, two, refused):
    text = TWO.format(whole=whole, one=one, two=two)
    if not refused:
        parse_recipe(text, "flow.yaml")
        return
    found = problems(text)
    assert [problem.code for problem in found] == ["recipe.engine"] * refused
    assert "the Ray cluster is at 'b:1', and at 'a:1' in" in "".join(one.what for one in found)
    assert all(problem.where.startswith("flow.yaml:") for problem in found)


def test_an_engine_that_a_step_lacks_ends_a_flow_before_its_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "papers").mkdir()
    text = TWO.format(whole="local", one="local", two="ray").replace(
        "papers", str(tmp_path / "papers")
    )
    with pytest.raises(MissingExtraError):
        run_recipe(parse_recipe(text, "flow.yaml"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_input_that_nothing_refers_to_is_listed():
    recipe = parse_recipe(FLOW, "flow.yaml")
    assert recipe.list_unused_inputs() == []
    more = recipe.model_copy(update={"inputs": {**recipe.inputs, "spare": "x"}})
    assert more.list_unused_inputs() == ["spare"]
