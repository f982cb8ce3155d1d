import pytest

from stillroom.recipes import parse_recipe
from stillroom.synth.generators.grounded_qa import GroundedQa
from stillroom.synth.jobs.records import RecordsRecipe

TEXT = """
version: 1
kind: synth.records
index: runs/index
pipeline:
  generator: {name: grounded_qa, questions: 3}
  filters: [shape, {name: grounded, min_support: 0.9}]
num_records: {train: 10, held_out: 4}
"""


def test_recipe_reads_methods_with_their_settings():
    recipe = parse_recipe(TEXT)
    assert isinstance(recipe, RecordsRecipe)
    assert recipe.pipeline.generator.questions == 3
    assert [chosen.method_name() for chosen in recipe.filters] == ["shape", "grounded"]
    assert recipe.pipeline.filters[1].min_support == 0.9


def test_defaults_are_every_filter_once():
    recipe = RecordsRecipe(index="runs/index")
    assert tuple(chosen.method_name() for chosen in recipe.filters) == GroundedQa.default_filters
    assert recipe.pipeline.generator.method_name() == "grounded_qa"


@pytest.mark.parametrize(
    "change", [{"held_out": 1.0}, {"num_records": {"train": 0}}, {"batch_size": 0}, {"colour": 1}]
)
def test_what_makes_no_sense_is_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        RecordsRecipe(index="runs/index", **change)
