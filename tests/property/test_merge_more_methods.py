"""What methods on spheres, masks and singular directions must hold for any tensors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stillroom.merge.interfaces import METHODS, BlockContext, merge_arrays

FEW = settings(max_examples=20, deadline=None)
NUMBERS = st.floats(-8, 8, width=32, allow_subnormal=False)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, max_side=6)
MATRIX = arrays.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6)

WITH_BASE = ("tsv_m", "iso_c", "iso_cts", "wudi", "ram", "ramplus_tl", "sce", "lines", "consensus")
UNORDERED = (*WITH_BASE, "emr", "multislerp", "karcher")
ALL = (*UNORDERED, "nuslerp", "nearswap", "arcee_fusion")


@st.composite
def families(draw, count=3, shapes=SHAPES):
    shape = draw(shapes)
    same = arrays.arrays(np.float32, shape, elements=NUMBERS)
    return [np.asarray(draw(same)).astype(np.float64) for _ in range(count + 1)]


def named(name, **values):
    return METHODS.build({"name": name, **values})


def merge(method, base, parents, weights=None, rows=None):
    keys = tuple("abc"[: len(parents)])
    weights = tuple(weights or [1.0] * len(parents))
    at = BlockContext("layer.weight", base.shape, keys, weights, seed=1)
    return merge_arrays(method, base, parents, at, rows=rows)


@pytest.mark.parametrize("name", ALL)
@given(family=families(), rows=st.integers(1, 5))
@FEW
def test_blocks_never_change_a_bit_and_inputs_are_left_alone(name, family, rows):
    base, *parents = family
    method = named(name)
    parents = parents[: min(method.max_models, 3)]
    before = [tensor.copy() for tensor in family]
    whole = merge(method, base, parents)
    assert np.isfinite(whole).all()
    assert merge(method, base, parents, rows=rows).tobytes() == whole.tobytes()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, family, strict=True))


@pytest.mark.parametrize("name", ALL)
@given(family=families(0))
@FEW
def test_models_that_equal_the_base_change_nothing(name, family):
    (base,) = family
    method = named(name)
    copies = [base.copy() for _ in range(min(method.max_models, 3))]
    assert (merge(method, base, copies) == base).all()


@pytest.mark.parametrize(
    "name", ["nuslerp", "multislerp", "karcher", "ram", "consensus", "emr", "sce"]
)
@given(family=families(1))
@FEW
def test_equal_models_give_themselves_back(name, family):
    base, model = family
    # Of equal models nothing is summed twice: what sums is told to average.
    own = {"consensus": {"scale": 0.5}, "ram": {"epsilon": 0}, "sce": {"density": 1}}
    merged = merge(named(name, **own.get(name, {})), base, [model, model.copy()])
    np.testing.assert_allclose(merged, model, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", UNORDERED)
@given(family=families(shapes=MATRIX), order=st.permutations(range(3)))
@FEW
def test_order_of_models_changes_nothing(name, family, order):
    base, *parents = family
    # Where differences all but vanish, directions are decided by rounding; keep well away from it.
    rng = np.random.default_rng(0)
    parents = [parent + rng.standard_normal(base.shape) for parent in parents]
    one = merge(named(name), base, parents)
    other = merge(named(name), base, [parents[number] for number in order])
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


@given(family=families(1, MATRIX), flip=st.booleans())
@FEW
def test_tsv_m_of_one_model_is_that_model(family, flip):
    base, model = (tensor.T if flip else tensor for tensor in family)
    merged = merge(named("tsv_m"), np.ascontiguousarray(base), [np.ascontiguousarray(model)])
    np.testing.assert_allclose(merged, model, atol=1e-10)


@given(family=families(shapes=MATRIX))
@FEW
def test_iso_c_leaves_one_singular_value_and_zeros(family):
    base, *parents = family
    vector = merge(named("iso_c"), base, parents) - base
    values = np.linalg.svd(vector, compute_uv=False)
    near_top = np.isclose(values, values[0], rtol=1e-6, atol=1e-9)
    near_zero = np.isclose(values, 0, atol=1e-6 * max(values[0], 1))
    assert (near_top | near_zero).all()


@given(family=families(2), share=st.floats(0, 1))
@FEW
def test_nuslerp_ends_at_its_models(family, share):
    base, one, two = family
    for per in ("tensor", "row", "column"):
        method = named("nuslerp", per=per)
        assert (merge(method, base, [one, two], [1, 0]) == one).all()
        assert (merge(method, base, [one, two], [0, 1]) == two).all()
        assert np.isfinite(merge(method, base, [one, two], [1 - share, share])).all()


@given(family=families(1), t=st.floats(0, 20))
@FEW
def test_nearswap_never_goes_farther_than_t_or_the_model(family, t):
    base, model = family
    merged = merge(named("nearswap", t=t), base, [model])
    assert (np.abs(merged - base) <= t + 1e-12).all()
    assert (np.abs(merged - model) <= np.abs(base - model) + 1e-12).all()


@given(family=families(1))
@FEW
def test_arcee_fusion_gives_an_element_of_one_or_the_other(family):
    base, model = family
    merged = merge(named("arcee_fusion"), base, [model])
    assert ((merged == base) | (merged == model)).all()


@given(family=families(), task=st.integers(0, 2))
@FEW
def test_emr_serves_only_changes_of_the_models_own_sign(family, task):
    base, *parents = family
    moved = merge(named("emr", task=task), base, parents) - base
    own = parents[task] - base
    assert (moved * own >= 0).all()
