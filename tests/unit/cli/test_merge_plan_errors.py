from click.testing import CliRunner

from stillroom.cli.merge_plan import command
from stillroom.errors import RecipeError


def test_a_recipe_of_another_kind_has_no_merge_plan(tmp_path):
    recipe = tmp_path / "index.yaml"
    recipe.write_text("version: 1\nkind: rag\ndocuments: documents\nembedder: static\n")
    error = CliRunner().invoke(command, [str(recipe)]).exception
    assert isinstance(error, RecipeError)
    assert error.code == "recipe.wrong-kind"
    assert error.exit_code == 2
