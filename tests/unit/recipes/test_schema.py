import pytest

from stillroom.recipes import Recipe, find_recipe_class, list_kinds


def test_every_kind_has_a_class_of_that_kind():
    assert "flow" in list_kinds()
    for kind in list_kinds():
        found = find_recipe_class(kind)
        assert issubclass(found, Recipe)
        assert found.model_fields["kind"].default == kind
        assert all(info.description for name, info in found.model_fields.items() if name != "kind")


@pytest.mark.usefixtures("rooms")
def test_kinds_are_found_by_file():
    assert list_kinds() == ["merge.weights", "tiny.job"]
    assert find_recipe_class("merge.weights").__name__ == "MergeRecipe"
