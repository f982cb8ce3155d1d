"""Methods on singular directions, each beside its formula in float64, or a property of it."""

import numpy as np
import pytest
import torch

from stillroom.errors import RecipeError
from stillroom.merge.interfaces import METHODS, BlockContext, merge_arrays
from stillroom.merge.tensors.linear_algebra import decompose

NAMES = ("tsv_m", "iso_c", "iso_cts", "wudi")


def named(name, **settings):
    return METHODS.build({"name": name, **settings})


def merge(method, base, parents, name="model.layers.0.self_attn.q_proj.weight"):
    keys = tuple(f"p{number}" for number in range(len(parents)))
    at = BlockContext(name, parents[0].shape, keys, (1.0,) * len(parents))
    return merge_arrays(method, base, parents, at)


def family(shape=(9, 6), count=3, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(shape)
    return base, [base + 0.1 * rng.standard_normal(shape) for _ in range(count)]


def polar(matrix):
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


def test_tsv_m_keeps_the_strongest_directions_and_parts_them():
    base, parents = family()
    kept, left, values, right = 2, [], [], []
    for parent in parents:
        one, middle, other = np.linalg.svd(parent - base, full_matrices=False)
        left.append(one[:, :kept])
        values.append(middle[:kept])
        right.append(other[:kept])
    expected = polar(np.hstack(left)) @ np.diag(np.hstack(values)) @ polar(np.vstack(right))
    merged = merge(named("tsv_m"), base, parents)
    np.testing.assert_allclose(merged, base + expected, atol=1e-12)
    scaled = merge(named("tsv_m", scale=0.5), base, parents)
    np.testing.assert_allclose(scaled, base + 0.5 * expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (5, 5)])
def test_tsv_m_of_one_model_is_that_model(shape):
    base, (parent,) = family(shape, 1)
    np.testing.assert_allclose(merge(named("tsv_m"), base, [parent]), parent, atol=1e-12)


def test_tsv_m_of_equal_models_keeps_their_strongest_directions():
    base, (parent,) = family(count=1)
    left, values, right = np.linalg.svd(parent - base, full_matrices=False)
    expected = base + left[:, :2] @ np.diag(values[:2]) @ right[:2]
    merged = merge(named("tsv_m"), base, [parent] * 3)
    np.testing.assert_allclose(merged, expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_iso_c_makes_all_singular_values_the_mean_one(shape):
    base, parents = family(shape)
    total = sum(parent - base for parent in parents)
    mean = np.linalg.svd(total, compute_uv=False).mean()
    merged = merge(named("iso_c", scale=1.3), base, parents) - base
    np.testing.assert_allclose(np.linalg.svd(merged, compute_uv=False), 1.3 * mean, rtol=1e-11)
    np.testing.assert_allclose(merged, 1.3 * mean * polar(total), atol=1e-12)


def test_iso_c_makes_up_no_directions():
    base = np.zeros((8, 5))
    rng = np.random.default_rng(1)
    thin = rng.standard_normal((8, 2)) @ rng.standard_normal((2, 5))
    values = np.linalg.svd(merge(named("iso_c"), base, [thin, thin]), compute_uv=False)
    np.testing.assert_allclose(values[:2], values[0])
    np.testing.assert_allclose(values[2:], 0, atol=1e-12)


def test_iso_cts_follows_the_algorithm():
    base, parents = family((12, 10), 2, seed=3)
    deltas = [parent - base for parent in parents]
    left, values, right = np.linalg.svd(sum(deltas), full_matrices=False)
    shared, own = 6, 2
    lefts, rights, lengths = [left[:, :shared]], [right[:shared]], [values[:shared]]
    for delta in deltas:
        rest = delta - left[:, :shared] @ left[:, :shared].T @ delta
        one, middle, other = np.linalg.svd(rest, full_matrices=False)
        lefts.append(one[:, :own])
        rights.append(other[:own])
        lengths.append(middle[:own])
    mean = np.hstack(lengths).mean()
    expected = base + mean * polar(np.hstack(lefts)) @ polar(np.vstack(rights))
    merged = merge(named("iso_cts", common=0.6), base, parents)
    np.testing.assert_allclose(merged, expected, atol=1e-12)


def test_iso_cts_with_only_common_directions_is_iso_c():
    base, parents = family()
    one = merge(named("iso_cts", common=1), base, parents)
    np.testing.assert_allclose(one, merge(named("iso_c"), base, parents), atol=1e-12)


def interference(point, deltas):
    return sum(((point - delta) @ delta.T).pow(2).sum() / delta.pow(2).sum() for delta in deltas)


def test_wudi_takes_the_same_steps_as_adam_on_the_loss():
    base, parents = family()
    deltas = [torch.from_numpy(parent - base) for parent in parents]
    point = sum(deltas).clone().requires_grad_()
    adam = torch.optim.Adam([point], lr=1e-3)
    for _ in range(40):
        adam.zero_grad()
        interference(point, deltas).backward()
        adam.step()
    merged = merge(named("wudi", steps=40, lr=1e-3), base, parents)
    np.testing.assert_allclose(merged - base, point.detach().numpy(), atol=1e-10)


def test_wudi_without_a_step_is_task_arithmetic():
    base, parents = family()
    merged = merge(named("wudi", steps=0), base, parents)
    np.testing.assert_allclose(merged, base + sum(parent - base for parent in parents))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        ("model.norm.weight", (6,)),
        ("scalar", ()),
        ("conv.weight", (4, 3, 2)),
        ("column.weight", (7, 1)),
        ("model.embed_tokens.weight", (9, 6)),
        ("lm_head.weight", (9, 6)),
        ("transformer.wte.weight", (9, 6)),
    ],
)
def test_what_is_no_matrix_is_averaged(name, tensor, shape):
    base, parents = family(shape)
    merged = merge(named(name), np.asarray(base), [np.asarray(p) for p in parents], tensor)
    np.testing.assert_allclose(merged, np.mean(parents, axis=0), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_are_matrices_on_request(name):
    base, parents = family()
    method = named(name, embeddings="matrix")
    merged = merge(method, base, parents, "model.embed_tokens.weight")
    np.testing.assert_array_equal(merged, merge(method, base, parents))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(9, 6), (6,), (), (0, 4), (2, 2)])
def test_models_that_equal_the_base_change_nothing(name, shape):
    base = np.asarray(np.random.default_rng(0).standard_normal(shape))
    for count in (1, 3):
        merged = merge(named(name), base, [base.copy() for _ in range(count)])
        assert merged.tobytes() == base.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_one_silent_model_leaves_numbers_finite(name):
    base, parents = family(count=2)
    merged = merge(named(name), base, [parents[0], base.copy()])
    assert np.isfinite(merged).all()


@pytest.mark.parametrize("name", NAMES)
def test_order_of_models_changes_nothing(name):
    base, parents = family()
    one = merge(named(name), base, parents)
    np.testing.assert_allclose(one, merge(named(name), base, parents[::-1]), atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_visible(name, bad):
    base, parents = family()
    parents[1][2, 3] = bad
    assert not np.isfinite(merge(named(name), base, parents)).all()


@pytest.mark.parametrize("name", NAMES)
def test_single_precision_stays_close_to_double(name):
    base, parents = family((40, 24), 2, seed=4)
    exact = merge(named(name), base, parents)
    narrow = [parent.astype(np.float32) for parent in parents]
    got = merge(named(name), base.astype(np.float32), narrow)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, exact, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_base_is_needed(name):
    _, parents = family(count=2)
    with pytest.raises(RecipeError) as error:
        merge(named(name), None, parents)
    assert error.value.code == "merge.base"


def test_a_decomposition_that_does_not_converge_is_tried_in_double_precision(monkeypatch):
    real = np.linalg.svd

    def stubborn(matrix, **options):
        if matrix.dtype == np.float32 or not matrix.any():
            raise np.linalg.LinAlgError("SVD did not converge")
        return real(matrix, **options)

    monkeypatch.setattr(np.linalg, "svd", stubborn)
    matrix = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    left, values, right = decompose(matrix)
    assert left.dtype == values.dtype == right.dtype == np.float32
    np.testing.assert_allclose((left * values) @ right, matrix, atol=1e-6)
    with pytest.raises(np.linalg.LinAlgError):
        decompose(np.zeros((5, 4)))
