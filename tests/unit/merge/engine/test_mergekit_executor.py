"""``arithmetic: mergekit`` end to end: the same bytes whatever torch would use of the machine."""

import json
import os
import subprocess
import sys
from contextlib import closing

import pytest
import torch
from click.testing import CliRunner
from tests.unit.merge.conftest import fine_tune, rewrite

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.checkpoints.writer import plan_tensors
from stillroom.cli.app import stillroom
from stillroom.errors import CheckpointError, RecipeError
from stillroom.jobs import Journal
from stillroom.merge.engine.executor import OrderedThreadPool
from stillroom.merge.engine.merge import Merge, open_merge
from stillroom.merge.engine.mergekit_executor import MergekitExecutor
from stillroom.merge.interfaces import METHODS
from stillroom.merge.jobs.weights import MergeWeightsRecipe
from stillroom.merge.mergekit.recipe_files import load_merge
from stillroom.merge.planning.inputs import MergeSource, TensorRules
from stillroom.testing import tiny_checkpoint


def test_torchs_number_of_threads_never_changes_a_bit(tmp_path):
    # Large enough for torch to split sums; in processes of their own, where torch is loaded late.
    base = tiny_checkpoint(tmp_path / "base", layers=1, hidden=512)
    tunes = [fine_tune(base, tmp_path / f"tune{seed}", seed) for seed in (1, 2)]
    recipe = tmp_path / "merge.yaml"
    lines = ["version: 1", "kind: merge.weights", "arithmetic: mergekit", "method: dare_linear"]
    lines += [f"base_model: {base}", "models:", *(f"  - model: {tune}" for tune in tunes)]
    recipe.write_text("\n".join(lines))
    digests = set()
    for threads in ("1", "2"):
        out = tmp_path / threads
        code = "from stillroom.cli.app import main; main()"
        subprocess.run(
            [sys.executable, "-c", code, "merge", "run", str(recipe), "--out", str(out), "--quiet"],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )
        digests.add(json.loads((out / "artifact.json").read_text())["details"]["fingerprint"])
    assert len(digests) == 1


def test_a_mergekit_files_user_chooses_the_arithmetic(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", dtype=torch.bfloat16)
    tunes = [fine_tune(base, tmp_path / f"tune{seed}", seed) for seed in (1, 2)]
    theirs, ours = tmp_path / "theirs.yml", tmp_path / "ours.yaml"
    lines = ["merge_method: dare_ties", "dtype: bfloat16", f"base_model: {base}", "models:"]
    for tune in tunes:
        lines += [f"  - model: {tune}", "    parameters: {weight: 0.6, density: 0.5}"]
    theirs.write_text("\n".join(lines))
    lines = ["version: 1", "kind: merge.weights", "method: {name: dare_ties, density: 0.5}"]
    lines[2] = lines[2].replace("}", ", normalize: false}")
    lines += [f"base_model: {base}", "models:"]
    lines += [f"  - {{model: {tune}, weight: 0.6}}" for tune in tunes]
    ours.write_text("\n".join(lines))

    def merge(recipe, *words):
        out = tmp_path / "-".join([recipe.stem, *words]).replace("-", "")
        words = ["merge", "run", str(recipe), *words, "--out", str(out), "--quiet"]
        CliRunner().invoke(stillroom, words, catch_exceptions=False)
        return json.loads((out / "artifact.json").read_text())["details"]["fingerprint"]

    exact = merge(theirs)
    paper = merge(theirs, "--arithmetic", "paper")
    assert paper == merge(ours)
    assert (
        exact
        == merge(theirs, "--arithmetic", "mergekit")
        == merge(ours, "--arithmetic", "mergekit")
    )
    assert exact != paper


def test_paper_arithmetic_stores_what_mergekit_would_compute_in(tmp_path):
    text = "merge_method: linear\nmodels: [{model: org/a, parameters: {weight: 1}}]\n"
    path = tmp_path / "theirs.yml"
    for types, stored in (("", None), ("dtype: float16\n", "float16"),
                          ("dtype: float32\nout_dtype: bfloat16\n", "bfloat16")):  # fmt: skip
        path.write_text(text + types)
        recipe = load_merge(path, arithmetic="paper")
        assert (recipe.arithmetic.name, recipe.out.dtype) == ("paper", stored)


def write_tensors(folder, tensors, **config):
    """Write tensors of any names as a checkpoint."""
    config = {"model_type": "llama", "num_hidden_layers": 1} | config
    with CheckpointWriter(folder, config=config, plan=plan_tensors(tensors)) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    return folder


METHODS_DRAWN = ("linear", "task_arithmetic", "slerp", "ties", "dare_ties", "della")


def as_merge(name, base, tunes, **rules):
    method = METHODS.build({"name": name} | ({} if name in METHODS_DRAWN[:3] else {"density": 0.5}))
    tunes = tunes[: method.max_models]
    parents = [MergeSource(path.name, Checkpoint.open(path), 0.6) for path in tunes]
    origin = MergeSource("base", Checkpoint.open(base)) if method.needs_base else None
    return Merge(
        method, origin, parents, TensorRules(arithmetic="mergekit", **rules), seed=3, threads=2
    )


@pytest.mark.parametrize("name", METHODS_DRAWN)
@pytest.mark.parametrize("types", [{}, {"compute_dtype": "float32", "dtype": "bfloat16"}], ids=str)
def test_blocks_in_numpy_and_tensors_in_torch_give_one_result(name, types, tmp_path, monkeypatch):
    base = tiny_checkpoint(tmp_path / "base", dtype=torch.bfloat16)
    tunes = [fine_tune(base, tmp_path / f"tune{seed}", seed) for seed in (1, 2, 3)]
    one = as_merge(name, base, tunes, **types).write(tmp_path / "one")
    monkeypatch.setattr(MergekitExecutor, "_has_exact_blocks", lambda *_: False)
    assert (
        as_merge(name, base, tunes, **types).write(tmp_path / "two").fingerprint == one.fingerprint
    )


@pytest.mark.parametrize("name", [*METHODS_DRAWN, "dare_linear", "della_linear", "breadcrumbs"])
def test_scalars_and_columns_are_merged_as_torch_does(name, tmp_path, monkeypatch):
    shapes = {"scale": (), "one": (1,), "column": (5, 1), "matrix": (4, 6)}
    folders = []
    for number in range(3):
        rng = torch.Generator().manual_seed(number)
        tensors = {key: torch.randn(shape, generator=rng) for key, shape in shapes.items()}
        folders.append(write_tensors(tmp_path / str(number), tensors))
    made = {}
    for way in ("numpy", "torch"):
        made[way] = {
            key: bits.copy() for key, _, bits in as_merge(name, folders[0], folders[1:]).tensors()
        }
        monkeypatch.setattr(MergekitExecutor, "_has_exact_blocks", lambda *_: False)
    for key, shape in shapes.items():
        assert made["numpy"][key].shape == shape
        assert made["numpy"][key].tobytes() == made["torch"][key].tobytes()
    if name == "linear":
        scales = [float(Checkpoint.open(path).tensor("scale")) for path in folders[1:]]
        assert float(made["numpy"]["scale"]) == pytest.approx(sum(scales) / 2)


def test_a_killed_merge_draws_on_where_it_stood(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", dtype=torch.bfloat16)
    tunes = [fine_tune(base, tmp_path / f"tune{seed}", seed) for seed in (1, 2)]
    whole = as_merge("dare_ties", base, tunes).write(tmp_path / "whole")
    left = [None] * 5

    def stop():
        if not left:
            raise KeyboardInterrupt
        left.pop()

    with closing(Journal(tmp_path / "journal")) as journal, pytest.raises(KeyboardInterrupt):
        as_merge("dare_ties", base, tunes).write(tmp_path / "out", journal=journal, on_tensor=stop)
    with closing(Journal(tmp_path / "journal")) as journal:
        resumed = as_merge("dare_ties", base, tunes).write(tmp_path / "out", journal=journal)
    assert resumed.fingerprint == whole.fingerprint


def test_what_is_not_finite_is_refused_with_who_brought_it(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", dtype=torch.bfloat16)
    good = fine_tune(base, tmp_path / "good", 1)
    bad = rewrite(base, tmp_path / "bad", lambda name, tensor: tensor * float("inf"))
    for name in ("linear", "ties"):
        with pytest.raises(CheckpointError) as caught:
            as_merge(name, base, [good, bad]).write(tmp_path / name)
        problem = caught.value.problems[0]
        assert problem.code == "merge.not-finite"
        assert "bad" in problem.expected
        assert "good" not in problem.expected


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF], ids=hex)
@pytest.mark.parametrize(
    ("method", "compute"),
    [
        ("linear", "bfloat16"),
        ("linear", "float32"),
        ({"name": "ties", "density": 0.3}, "bfloat16"),
        ({"name": "dare_linear", "density": 0.5, "rescale": False}, "bfloat16"),
        ({"name": "dare_linear", "density": 0.5}, "float32"),
        ({"name": "della", "density": 0.5}, "bfloat16"),
    ],
    ids=str,
)
def test_no_cast_and_no_mask_hides_a_nan_of_a_parent(method, compute, bits, tmp_path, monkeypatch):
    rng = torch.Generator().manual_seed(0)
    tensors = [{"matrix": torch.randn((6, 8), generator=rng)} for _ in range(3)]
    base, good, bad = (tmp_path / name for name in ("base", "good", "bad"))
    tensors[2]["matrix"].numpy().view("u4")[2, 3] = bits
    for folder, written in zip((base, good, bad), tensors, strict=True):
        write_tensors(folder, written)
    arithmetic = {"name": "mergekit", "compute_dtype": compute}
    base_model = None if method == "linear" else str(base)
    settings = {"arithmetic": arithmetic, "base_model": base_model}
    for in_blocks in (True, False):
        if not in_blocks:
            monkeypatch.setattr(MergekitExecutor, "_has_exact_blocks", lambda *_: False)
        for seed in range(4):  # of masks: one or the other drops the element
            with pytest.raises(CheckpointError) as caught:
                list(plan_of([good, bad], method, seed=seed, **settings).tensors())
            problem = caught.value.problems[0]
            assert problem.code == "merge.not-finite"
            assert problem.expected.endswith("not finite in: bad")


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_float8_beside_another_type_is_merged_in_float32(method, tmp_path):
    """torch promotes no float8: it was an error without a code."""
    rng = torch.Generator().manual_seed(0)
    drawn = [torch.randn((6, 8), generator=rng).to(torch.float8_e4m3fn) for _ in range(3)]
    drawn[1] = drawn[1].to(torch.bfloat16)

    def merge(name, tensors):
        folders = [tmp_path / f"{name}{number}" for number in range(3)]
        for folder, tensor in zip(folders, tensors, strict=True):
            write_tensors(folder, {"matrix": tensor})
        base_model = None if method == "linear" else str(folders[0])
        ((_, dtype, merged),) = plan_of(folders[1:], method, base_model=base_model).tensors()
        return dtype, merged.tolist()

    assert merge("drawn", drawn) == merge("wide", [tensor.float() for tensor in drawn])


@pytest.mark.parametrize("weights", [(1, -1), (0, 0)])
def test_nuslerp_of_weights_that_cancel_is_the_middle_as_in_mergekit_with_a_warning(
    half_family, tmp_path, weights
):
    def merge(name, weights, arithmetic="mergekit"):
        models = [
            {"model": str(path), "weight": weight}
            for path, weight in zip(half_family[1], weights, strict=False)
        ]
        values = {"method": "nuslerp", "models": models, "arithmetic": arithmetic}
        made = open_merge(MergeWeightsRecipe.model_validate(values))
        return made.write(tmp_path / name).fingerprint, made.plan().warnings

    found, notes = merge("cancel", weights)
    middle, none = merge("middle", (0.5, 0.5))
    assert found == middle
    assert len(notes) == 1
    assert none == ()
    with pytest.raises(ValueError, match="add up to zero"):
        merge("paper", weights, arithmetic="paper")


def mixtral(folder, seed, layers=1, change=lambda name, tensor: None):
    """Write what looks like a small Mixtral: only names, shapes and config count here."""
    rng = torch.Generator().manual_seed(seed)
    shapes = {f"experts.{e}.w{n}": (8, 6) for e in range(3) for n in (1, 3)}
    shapes |= {f"experts.{e}.w2": (6, 8) for e in range(3)} | {"gate": (3, 6)}
    tensors = {
        f"model.layers.{layer}.block_sparse_moe.{name}.weight": torch.randn(shape, generator=rng)
        for layer in range(layers)
        for name, shape in shapes.items()
    }
    for name, tensor in tensors.items():
        change(name, tensor)
    return write_tensors(folder, tensors, model_type="mixtral", num_hidden_layers=layers)


def fused(folder):
    stored, start = Checkpoint.open(folder), "model.layers.0.block_sparse_moe.experts"

    def read(expert, name):
        return stored.tensor(f"{start}.{expert}.{name}.weight").double()

    up = torch.stack([torch.cat([read(e, "w1"), read(e, "w3")]) for e in range(3)])
    return up, torch.stack([read(e, "w2") for e in range(3)])


def plan_of(folders, method, **settings):
    values = {"method": method, "models": [{"model": str(path)} for path in folders]}
    return open_merge(
        MergeWeightsRecipe.model_validate(values | {"arithmetic": "mergekit"} | settings)
    )


def test_experts_are_merged_as_one_tensor_as_mergekit_does(tmp_path):
    folders = [mixtral(tmp_path / str(seed), seed) for seed in (1, 2)]
    merge = plan_of(folders, {"name": "nuslerp", "per": "tensor"})
    merge.write(tmp_path / "out")
    for one, two, found in zip(*map(fused, (*folders, tmp_path / "out")), strict=True):
        turned = torch.nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0)
        angle = torch.arccos(turned)
        assert torch.allclose(
            found, (one + two) * torch.sin(angle / 2) / torch.sin(angle), atol=1e-6
        )
    assert merge.plan().warnings == ()


def test_a_replay_of_some_experts_keeps_one_tensor_of_them_in_memory(tmp_path):
    folders = [mixtral(tmp_path / str(seed), seed, layers=12) for seed in (1, 2)]
    whole = {name: bits.copy() for name, _, bits in plan_of(folders, "linear").tensors()}
    merge = plan_of(folders, "linear")
    plan = merge.plan()
    held = []
    with OrderedThreadPool(1) as workers:
        engine = merge.engine(plan, workers, None)
        groups = {id(group): group for group in engine._experts.values()}.values()
        assert len(groups) == 24
        for tensor in plan.tensors:
            if ".experts.1." in tensor.name:  # never the last of a layer
                (bits,) = engine.make(tensor)
                assert bits.tobytes() == whole[tensor.name].tobytes()
                held.append(sum(group.merged is not None for group in groups))
    assert len(held) == 36
    assert max(held) == 1


def test_a_nan_of_an_expert_is_refused_with_its_name_and_its_models(tmp_path):
    spoiled = "model.layers.0.block_sparse_moe.experts.2.w2.weight"

    def spoil(name, tensor):
        if name == spoiled:
            tensor[0, 0] = float("nan")

    good = mixtral(tmp_path / "good", 1)
    bad = mixtral(tmp_path / "bad", 2, change=spoil)
    for method in ("linear", {"name": "slerp", "t": 0.5}):
        with pytest.raises(CheckpointError) as caught:
            list(plan_of([good, bad], method).tensors())
        problem = caught.value.problems[0]
        assert (problem.code, problem.where) == ("merge.not-finite", spoiled)
        assert problem.expected.endswith("not finite in: bad")


@pytest.mark.parametrize(
    ("pattern", "changed", "said"),
    [
        ("*experts.2.w2*", set(), "does not hold for"),
        ("*.w2.*", set(), "does not hold for"),
        ("*block_sparse_moe.gate*", set(), "does not hold for"),
        ("*nothing*", set(), "holds for no tensor"),
        ("*experts.down_proj", {"w2"}, ""),
        ("*experts.gate_up_proj", {"w1", "w3"}, ""),
        ("*.mlp.gate.*", {"gate"}, ""),
        ("*", {"w1", "w2", "w3", "gate"}, ""),
    ],
)
def test_settings_hold_for_experts_by_mergekits_name(tmp_path, pattern, changed, said):
    folders = [mixtral(tmp_path / str(seed), seed) for seed in (1, 2)]
    parameters = [{"setting": "weight", "model": 0, "tensors": [pattern], "value": 5.0}]
    plain, varied = plan_of(folders, "linear"), plan_of(folders, "linear", parameters=parameters)
    plain.write(tmp_path / "plain")
    varied.write(tmp_path / "varied")
    one, other = (Checkpoint.open(tmp_path / name) for name in ("plain", "varied"))
    found = {
        name.split(".")[-2]
        for name in one.names()
        if not torch.equal(one.tensor(name), other.tensor(name))
    }
    assert found == changed
    notes = varied.plan().warnings
    assert [said in note for note in notes] == ([True] if said else [])


def test_a_pattern_that_names_a_part_of_fused_experts_and_holds_for_all_is_said(tmp_path):
    folders = [mixtral(tmp_path / str(seed), seed) for seed in (1, 2)]
    tensors = ["*experts.0.w1*", "*experts.gate_up_proj"]
    parameters = [{"setting": "weight", "model": 0, "tensors": tensors, "value": 5.0}]
    (note,) = plan_of(folders, "linear", parameters=parameters).plan().warnings
    assert "holds for all of 'model.layers.0.mlp.experts.gate_up_proj'" in note


@pytest.mark.parametrize(
    "settings",
    [
        {"exclude": ["*experts.1.*"]},
        {"exclude": ["*.w3.*"]},
        {"include": ["*gate*", "*experts.2.w2*"]},
        {"groups": [{"tensors": ["*experts.1.w2*"], "models": [0]}, {"tensors": ["*"]}]},
    ],
    ids=str,
)
def test_experts_that_mergekit_merges_as_one_are_not_divided(tmp_path, settings):
    folders = [mixtral(tmp_path / str(seed), seed) for seed in (1, 2)]
    with pytest.raises(RecipeError) as caught:
        plan_of(folders, "linear", **settings).plan()
    assert caught.value.code == "merge.arithmetic"
    assert plan_of(folders, "linear", **settings, arithmetic="paper").plan()
    assert plan_of(folders, "linear", exclude=["*experts*"]).plan().warnings == ()


def test_where_experts_may_come_out_otherwise_than_in_mergekit_is_said(tmp_path):
    base, *folders = [mixtral(tmp_path / str(seed), seed) for seed in (1, 2, 3)]
    random = plan_of(folders, "dare_ties", base_model=str(base)).plan()
    assert any("in an order of its own" in note for note in random.warnings)
    for folder in folders:
        text = (folder / "config.json").read_text().replace("mixtral", "olmoe")
        (folder / "config.json").write_text(text)
    other = plan_of(folders, "linear").plan()
    assert any("olmoe are merged one by one" in note for note in other.warnings)


@pytest.mark.parametrize(
    ("arithmetic", "density", "epsilon", "code"),
    [
        ("mergekit", 0.8, 0.4, "merge.window"),
        ("paper", 0.8, 0.4, "merge.window"),
        ("mergekit", 0.5, 0.5, "merge.window"),
        ("mergekit", 0.75, 0.25, "merge.window"),  # mergekit wants probabilities below 1
        ("paper", 0.75, 0.25, None),
        ("mergekit", 1.0, 0.15, None),  # mergekit keeps all, and its defaults are these
        ("mergekit", 0.0, 0.15, None),
    ],
)
def test_windows_of_probabilities_are_refused_where_mergekit_refuses_them(
    tmp_path, arithmetic, density, epsilon, code
):
    base = tiny_checkpoint(tmp_path / "base")
    tune = fine_tune(base, tmp_path / "tune", 1)
    recipe = tmp_path / "della.yml"
    recipe.write_text(
        f"merge_method: della\nbase_model: {base}\nmodels:\n  - model: {tune}\n"
        f"    parameters: {{weight: 1.0, density: {density}, epsilon: {epsilon}}}\n"
    )
    words = ["merge", "run", str(recipe), "--arithmetic", arithmetic, "--out", str(tmp_path / "m")]
    ended = CliRunner().invoke(stillroom, words)
    assert getattr(ended.exception, "code", None) == code
    assert code or ended.exit_code == 0
