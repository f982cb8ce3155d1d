import pytest

from stillroom.errors import RecipeError
from stillroom.recipes import (
    dump_recipe,
    find_recipe_class,
    list_kinds,
    parse_recipe,
    render_template,
)
from stillroom.recipes.template import _list_registries


def list_choices():
    """Return every kind by itself, and every method with the first kind that takes it."""
    kinds = {kind: None for kind in list_kinds()}
    methods = {
        (registry.group, name): kind
        for kind in reversed(kinds)
        for registry in _list_registries(find_recipe_class(kind))
        for name in registry.names()
    }
    return [*kinds.items(), *sorted({(kind, name) for (_, name), kind in methods.items()})]


@pytest.mark.parametrize(("kind", "method"), list_choices())
def test_every_commented_recipe_runs_as_printed(kind, method):
    text = render_template(kind, method)
    assert text.startswith("# stillroom ")
    recipe = parse_recipe(text)
    dumped = dump_recipe(recipe)
    assert dump_recipe(parse_recipe(dumped)) == dumped
    if method:
        assert f"name: {method}" in text


@pytest.mark.usefixtures("rooms")
class TestSmallRooms:
    def test_each_setting_is_explained(self):
        text = render_template("merge.weights", "ties")
        assert text.startswith("# stillroom run merge-ties.yaml\n# Merge checkpoints into one.\n")
        for line in [
            "  # share of each task vector that is kept; at most 1; above 0; default 0.2",
            "  density: 0.2",
            "# the reference checkpoint; a path or hub:org/name[@revision]; required",
            "base: path/to/base",
            "    # its share; 0 to 2; default 1.0",
            "  # stored precision; one of: bfloat16, float32; default bfloat16",
            '# anything; no more than 500; default ""',
        ]:
            assert line in text.split("\n")
        recipe = parse_recipe(text)
        assert recipe.method.method_name() == "ties"
        assert len(recipe.models) == 2

    def test_without_a_method_the_first_is_taken(self):
        assert parse_recipe(render_template("merge.weights")).method.method_name() == "linear"

    def test_required_settings_of_every_type_get_a_placeholder(self):
        recipe = parse_recipe(render_template("tiny.job"))
        assert recipe.steps == 1
        assert recipe.tables == {"name": 1}
        assert recipe.words == ["TEXT"]
        assert recipe.name == "tom"

    def test_a_written_example_is_printed_as_it_is(self, rooms):
        assert render_template("tiny.job", "make") == (rooms / "tiny/make.yaml").read_text()
        assert render_template("tiny.job", "other").startswith("# another")

    @pytest.mark.parametrize(
        ("kind", "method", "code"),
        [
            ("mrge", None, "recipe.unknown-kind"),
            ("merge.weights", "tie", "recipe.unknown-method"),
            ("merge.weights", "../merge/x", "recipe.unknown-method"),
            ("tiny.job", "x", "recipe.unknown-method"),
        ],
    )
    def test_an_unknown_name_is_refused(self, kind, method, code):
        with pytest.raises(RecipeError) as caught:
            render_template(kind, method)
        assert caught.value.code == code
