"""What the emitter writes, the reader reads back; what neither knows breaks neither."""

import math

from hypothesis import example, given, settings
from hypothesis import strategies as st

from stillroom.errors import RecipeError
from stillroom.recipes.loader import apply_overrides
from stillroom.recipes.yaml_text import MAX_DEPTH, emit_yaml, read_yaml

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.sampled_from(
        ["yes", "null", "1e3", "- a", "a: b", "#", "...", "---", "a\nb\n", "\n x", "~"]
    )
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(texts, values, max_size=5))
@example({"a": {"b": [[1, ["x\ny"]], {}]}})
@example({"a": "x\n\n y \nz\n\n"})
@example({"\x85": "\u2028\ufeff\x7f"})
def test_what_is_written_is_read_back(data):
    text = "\n".join(emit_yaml(data)) + "\n"
    tree = read_yaml(text, "r.yaml")
    assert not tree.problems
    assert tree.data == (data or None)
    assert repr(tree.data) == repr(data or None)  # also tells 1 from 1.0 and from True


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        tree = read_yaml(text, "r.yaml")
    except RecipeError:
        return
    assert isinstance(tree.data, str | int | float | list | dict | None)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("ab0.=:[]{} ,", max_size=12), max_size=4))
def test_any_override_is_taken_or_said(overrides):
    tree = read_yaml("a: {b: 1}\nb: [0, 1]\n", "r.yaml")
    apply_overrides(tree, overrides)
    assert all(problem.where for problem in tree.problems)


@given(st.integers(1, MAX_DEPTH - 1))
def test_depth_up_to_the_limit_is_read(depth):
    assert read_yaml("[" * depth + "]" * depth, "r").data is not None
    assert math.isfinite(depth)
