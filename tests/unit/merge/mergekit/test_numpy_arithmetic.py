"""mergekit's arithmetic in numpy: the bits of whole tensors in torch, and of its sorts."""

import _ctypes
import platform
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.checkpoints.dtypes import narrow, widen
from stillroom.merge.interfaces import METHODS, BlockContext, InMemoryBlocks
from stillroom.merge.mergekit import numpy_arithmetic, torch_library
from stillroom.merge.mergekit.exact import has_exact_blocks, merge_blocks, merge_whole_tensor
from stillroom.merge.mergekit.numpy_arithmetic import (
    add_products,
    fused_multiply_add,
    round_scalar,
)
from stillroom.merge.mergekit.torch_emulation import (
    TorchGenerator,
    select_largest,
    sum_bfloat16,
    to_draw_levels,
)
from stillroom.merge.mergekit.torch_library import TorchLibrary, open_torch_library
from stillroom.train.precision import limit_threads

TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
CASES = [
    {"name": "linear"},
    {"name": "linear", "normalize": False},
    {"name": "task_arithmetic"},
    {"name": "task_arithmetic", "normalize": True, "scale": 0.7},
    {"name": "ties", "density": 0.37},
    {"name": "ties", "density": 0.8, "normalize": False, "scale": 1.3},
    {"name": "ties", "density": 1.0},
    {"name": "ties", "density": 0.0},
    {"name": "dare_linear", "density": 0.4},
    {"name": "dare_ties", "density": 0.7, "rescale": False},
    {"name": "della", "density": 0.5, "epsilon": 0.1},
    {"name": "della_linear", "density": 0.6, "epsilon": 0.2, "rescale": False},
    {"name": "della", "density": 1.0},
    {"name": "della_linear", "density": 0.0},
    {"name": "slerp", "t": 0.37},
    {"name": "slerp", "t": 0.0},
]


def make_tensors(rng, count, shape, kind, *, related):
    """A base and models as they are stored, with some equal elements and zeros of both signs."""
    base = np.asarray(rng.standard_normal(shape, np.float32) * np.float32(0.02))
    step = 0.002 if related else 0.02
    listed = [base]
    for _ in range(count):
        model = np.asarray(base + rng.standard_normal(shape, np.float32) * np.float32(step))
        model[rng.random(shape) < 0.1] = 0
        model[rng.random(shape) < 0.1] = -0.0
        same = rng.random(shape) < 0.1
        model[same] = base[same]
        listed.append(model)
    return [widen(narrow(each, kind), kind) for each in listed]


class Cast(InMemoryBlocks):
    """Blocks of tensors in memory that are of one storage type."""

    def __init__(self, base, parents, at, kind):
        base, *parents = (np.atleast_1d(each) for each in (base, *parents))
        super().__init__(base, parents, at, rows=10)
        self.kind = kind

    def base(self, number):
        return self[number]

    def first_row(self, number):
        return 10 * number


@pytest.mark.parametrize("settings", CASES, ids=lambda case: "-".join(map(str, case.values())))
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(67, 33), (513,), (1, 4000), ()], ids=str)
def test_blocks_give_what_whole_tensors_give(settings, kind, shape):
    method = METHODS.build(settings)
    rng = np.random.default_rng(len(str(settings)) + sum(shape[:1]))
    for count, related in ((1, True), (2, False), (4, True), (7, False)):
        if not has_exact_blocks(method, kind, shape, count):
            continue  # torch computes it
        base, *parents = make_tensors(rng, count, shape, kind, related=related)
        weights = tuple(float(weight) for weight in rng.normal(0.5, 0.5, count))
        keys = tuple(str(number) for number in range(count))
        at = BlockContext("tensor", shape, keys, weights)
        blocks = Cast(base, parents, at, kind)
        draws = TorchGenerator(5)
        combine = merge_blocks(method, blocks, draws)
        made = np.concatenate([combine(number) for number in range(len(blocks))])
        torch.manual_seed(5)
        whole = [torch.from_numpy(each).to(TYPES[kind]) for each in (base, *parents)]
        expected = merge_whole_tensor(method, whole[0], whole[1:], at).float().numpy()
        assert np.array_equal(made.view(np.uint32), np.atleast_1d(expected).view(np.uint32))
        after = (torch.rand(4) * 2**24).numpy().astype(np.uint32)
        assert np.array_equal(draws.draw(4), after)  # the generators stand at the same place


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("width", [1, 1000, (1 << 20) // 10 + 7])
@pytest.mark.parametrize("step", [1e-4, 0.01, 1.0, -1.0, 0.0], ids=lambda step: f"step{step}")
def test_angles_of_any_size_are_torchs(kind, width, step):
    """From models alike over perpendicular ones to opposites and zeros, beyond one chunk too."""
    rng = np.random.default_rng(width)
    first, noise = rng.standard_normal((2, 10, width), np.float32)
    second = -first if step < 0 else step * (first + step * noise)
    parents = [widen(narrow(each, kind), kind) for each in (first, second)]
    method = METHODS.build({"name": "slerp", "t": 0.61})
    at = BlockContext("tensor", first.shape, ("0", "1"), (1.0, 1.0))
    combine = merge_blocks(method, Cast(parents[0], parents, at, kind), TorchGenerator(0))
    with limit_threads(1):
        whole = [torch.from_numpy(each).to(TYPES[kind]) for each in parents]
        expected = merge_whole_tensor(method, None, whole, at).float().numpy()
    assert np.array_equal(combine(0).view(np.uint32), expected.view(np.uint32))


def test_torchs_library_gives_torchs_numbers_and_keeps_its_threads():
    library = open_torch_library()
    if library is None:
        pytest.skip("this torch has no C interface")
    before = torch.get_num_threads()
    cosines = np.random.default_rng(0).uniform(-1, 1, 2000).astype(np.float32)
    with library.single_threaded():
        assert torch.get_num_threads() == 1
        angles = np.array([library.arccos(cosine) for cosine in cosines])
        sines = np.array([library.sin(angle) for angle in angles])
    assert torch.get_num_threads() == before
    one_by_one = [torch.arccos(cosine) for cosine in torch.from_numpy(cosines)]
    assert np.array_equal(angles, torch.stack(one_by_one).numpy())
    assert np.array_equal(sines, torch.stack([torch.sin(each) for each in one_by_one]).numpy())
    with pytest.raises(ValueError, match="strides"):
        library.sum(cosines[::2])


@pytest.mark.parametrize("operator", ["norm", "sum", "arccos", "argsort"])
def test_a_torch_that_refuses_an_operator_or_computes_otherwise_is_not_called(
    operator, monkeypatch
):
    def refuse(*_):
        raise RuntimeError("torch refuses it")

    for broken in (refuse, lambda *_: np.float32(1)):
        monkeypatch.setattr(TorchLibrary, operator, broken)
        open_torch_library.cache_clear()
        assert open_torch_library() is None
    monkeypatch.undo()
    open_torch_library.cache_clear()


@pytest.mark.parametrize("library", [None, "not a library", "lacks the functions"])
def test_a_torch_without_the_c_interface_merges_to_the_same_bits(library, tmp_path, monkeypatch):
    """No file as on other systems, a broken one, and one that loads, as of an older torch."""
    (tmp_path / "lib").mkdir()
    path = tmp_path / "lib" / "libtorch_cpu.so"
    if library == "lacks the functions":
        path.symlink_to(_ctypes.__file__)
    elif library:
        path.write_text(library)
    shape = (300, 40)
    first, second = make_tensors(np.random.default_rng(3), 1, shape, "BF16", related=True)
    method = METHODS.build({"name": "slerp", "t": 0.3})
    at = BlockContext("tensor", shape, ("0", "1"), (1.0, 1.0))
    blocks = Cast(None, [first, second], at, "BF16")
    expected = merge_blocks(method, blocks, TorchGenerator(0))(0)
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(torch_library.importlib.util, "find_spec", lambda name: found)
    open_torch_library.cache_clear()
    try:
        assert open_torch_library() is None
        assert not has_exact_blocks(method, "BF16", shape, 2)
    finally:
        open_torch_library.cache_clear()
    whole = [torch.from_numpy(each).to(torch.bfloat16) for each in (first, second)]
    merged = merge_whole_tensor(method, None, whole, at).float().numpy()
    assert np.array_equal(merged[:10], expected)


@pytest.mark.parametrize("density", [0.5, 0.1, 0.9, 1e-8, 0.99999])
@pytest.mark.parametrize("kind", ["BF16", "F32"])
def test_draws_are_torchs(density, kind):
    torch.manual_seed(9)
    shares = torch.full((5000,), density, dtype=TYPES[kind])
    drawn = torch.bernoulli(shares).float().numpy().astype(bool)
    level = to_draw_levels(shares[:1].float().numpy())[0]
    assert np.array_equal(TorchGenerator(9).draw(5000) < level, drawn)


def test_draws_go_on_where_they_stood():
    draws = TorchGenerator(3)
    draws.draw(1000)
    state = draws.state
    expected = draws.draw(1000)
    other = TorchGenerator(4)
    other.state = state
    assert np.array_equal(other.draw(1000), expected)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(17, 70_000),
    values=st.sampled_from([1, 2, 5, 40, 1000, 1 << 30]),
    share=st.floats(0, 1),
    shape=st.sampled_from(["random", "rising", "falling", "waves"]),
    seed=st.integers(0, 1000),
)
def test_what_is_kept_of_equal_magnitudes_is_what_torchs_sort_puts_first(
    size, values, share, shape, seed
):
    keys = np.random.default_rng(seed).integers(0, values, size).astype(np.uint32)
    if shape != "random":
        keys.sort()
    if shape == "falling":
        keys = keys[::-1].copy()
    if shape == "waves":
        keys = np.concatenate([keys[::2], keys[1::2][::-1]])
    count = max(1, int(share * size))
    kept = select_largest(keys, count)
    if kept is None:
        return  # torch is asked then
    order = torch.argsort(torch.from_numpy(keys.view(np.float32)), descending=True)
    assert np.array_equal(np.flatnonzero(kept), np.sort(order[:count].numpy()))


def test_a_heap_is_left_to_torch(monkeypatch):
    from stillroom.merge.mergekit import numpy_arithmetic

    monkeypatch.setattr(numpy_arithmetic, "select_largest", lambda *_: None)
    test_blocks_give_what_whole_tensors_give({"name": "ties", "density": 0.4}, "BF16", (67, 33))


@pytest.mark.parametrize("machine", ["x86_64", "another"])
def test_an_order_of_adding_that_shows_is_torchs(monkeypatch, machine):
    monkeypatch.setattr(numpy_arithmetic, "_SUM_ERROR", 0.5)
    monkeypatch.setattr("platform.machine", lambda: machine)
    case = {"name": "dare_ties", "density": 0.4}
    test_blocks_give_what_whole_tensors_give(case, "BF16", (67, 33))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="torch adds otherwise")
@pytest.mark.parametrize("size", [1, 15, 16, 1000, 4096, 66_000, (1 << 18) + 77])
def test_a_sum_is_added_in_torchs_order(size):
    """Three elements at the end lead next to a tie of bfloat16, where the order shows."""
    rng = np.random.default_rng(size)
    for _ in range(20):
        drawn = np.abs(rng.standard_normal(size, np.float32)) * np.exp(
            rng.standard_normal(size, np.float32)
        )
        bits = narrow(drawn, "BF16")
        total = sum_bfloat16(bits)
        tie = (total.view(np.uint32) & 0xFFFF0000 | 0x8000).view(np.float32)
        for _ in range(3):
            rest = np.array([max(tie - sum_bfloat16(bits), 0)], np.float32)
            bits = np.append(bits, (rest.view(np.uint32) >> 16).astype(np.uint16))
        with limit_threads(1):
            expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).sum()
        assert round_scalar(float(sum_bfloat16(bits)), "BF16") == float(expected)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(2, 700),
    values=st.sampled_from([2, 5, 40, 1000]),
    window=st.sampled_from([(0.5, 0.1), (0.3, 0.0), (0.02, 0.015), (0.9, 0.09), (0.123, 0.1)]),
    seed=st.integers(0, 1000),
)
def test_what_is_kept_by_rank_is_what_torch_keeps(width, values, window, seed):
    """Most rows have equal magnitudes on both sides of where the probability rises."""
    density, epsilon = window
    drawn = np.random.default_rng(seed).integers(0, values, (300, width)) / 64 + 1
    parent = widen(narrow(drawn.astype(np.float32), "BF16"), "BF16")
    method = METHODS.build({"name": "della", "density": density, "epsilon": epsilon})
    at = BlockContext("tensor", parent.shape, ("0",), (1.0,))
    blocks = Cast(np.zeros_like(parent), [parent], at, "BF16")
    combine = merge_blocks(method, blocks, TorchGenerator(seed))
    made = np.concatenate([combine(number) for number in range(len(blocks))])
    torch.manual_seed(seed)
    whole = torch.from_numpy(parent).to(torch.bfloat16)
    with limit_threads(1):  # as the engine does: sums split over threads round differently
        expected = merge_whole_tensor(method, torch.zeros_like(whole), [whole], at)
    assert np.array_equal(made, expected.float().numpy())


def test_ranks_are_the_same_where_torchs_library_cannot_be_called(monkeypatch):
    monkeypatch.setattr(torch_library, "open_torch_library", lambda: None)
    case = {"name": "della", "density": 0.5, "epsilon": 0.1}
    test_blocks_give_what_whole_tensors_give(case, "BF16", (67, 33))


@pytest.mark.parametrize("kind", TYPES)
def test_products_of_all_sizes_are_added_with_one_rounding(kind):
    """Small ones are those whose float64 sum is inexact; ties of float32 are frequent there."""
    rng = np.random.default_rng(3)
    sizes = np.float32(2) ** rng.integers(-40, 3, (3, 50_000)).astype(np.float32)
    drawn = (rng.integers(-128, 129, sizes.shape) / np.float32(128) * sizes).astype(np.float32)
    values = list(widen(narrow(drawn, kind), kind))
    for weights in ((1.0, 1 + 2.0**-23, 2.0**-24), (0.5137, 0.3071, -0.1963), (1.0, 0.0, 0.7)):
        total = torch.from_numpy(values[0] * np.float32(weights[0]))
        for each, weight in zip(values[1:], weights[1:], strict=True):
            total.add_(torch.from_numpy(each), alpha=float(np.float32(weight)))
        made = add_products(values, weights, kind)
        assert np.array_equal(made.view(np.uint32), total.numpy().view(np.uint32))


def test_a_product_is_added_with_one_rounding():
    # 1 + 2**-24 lies halfway between two float32; what is far below decides.
    total = np.array([1, 1, 1, -1], np.float32)
    tiny = np.array([2**-24, 2**-24 * (1 + 2**-23), 2**-24 * (1 - 2**-24), -(2**-24)], np.float32)
    expected = torch.from_numpy(total.copy()).add_(torch.from_numpy(tiny), alpha=1.0).numpy()
    assert np.array_equal(fused_multiply_add(total.copy(), tiny, 1.0), expected)
    # The float64 sum of these rounds to a tie of float32, and the exact sum is not one.
    total = np.full(4, 1 + 2**-23, np.float32)
    parts = np.array([1, -1, 1, -1], np.float32) * np.float32(2**-24) * np.float32(1 + 2**-22)
    values = parts * np.float32(1)
    weight = float(np.float32(1 + 2**-23))
    exact = [float(t) + float(v) * weight for t, v in zip(total, values, strict=True)]
    expected = torch.from_numpy(total.copy()).add_(torch.from_numpy(values), alpha=weight).numpy()
    assert np.allclose(expected, exact)
    assert np.array_equal(fused_multiply_add(total, values, weight), expected)
