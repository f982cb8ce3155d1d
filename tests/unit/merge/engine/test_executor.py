import json
import shutil
from dataclasses import replace

import pytest
import torch
from tests.unit.merge.conftest import fine_tune, plain_methods, rewrite

from stillroom.checkpoints import Checkpoint
from stillroom.errors import CheckpointError, RecipeError, ShapeError
from stillroom.merge import METHODS, merge_checkpoints
from stillroom.merge.engine.merge import Merge
from stillroom.merge.planning.inputs import MergeSource, TensorRules
from stillroom.testing import tiny_checkpoint

NAMES = plain_methods()
NORM = "model.norm.weight"


def tensors_of(folder):
    checkpoint = Checkpoint.open(folder)
    return {name: checkpoint.tensor(name) for name in checkpoint.names()}


def merge_by(name, base, parents, out, **settings):
    method = METHODS.get(name)
    parents = parents[: min(len(parents), method.max_models)]
    return merge_checkpoints(name, base if method.needs_base else None, parents, out, **settings)


def as_merge(name, base, parents, **settings):
    method = METHODS.build(name)
    return Merge(
        method,
        MergeSource("base", Checkpoint.open(base)) if method.needs_base else None,
        [MergeSource(p.name, Checkpoint.open(p)) for p in parents[: method.max_models]],
        **settings,
    )


@pytest.mark.parametrize(
    ("name", "kind", "smallest"),  # tests/property cuts arrays of float32 and float64 by rows
    [
        *((name, "half_family", 300) for name in NAMES),
        *((name, "half_family", 1) for name in ("linear", "ties")),
        ("ties", "family", 5000),
    ],
)
def test_block_size_and_threads_never_change_a_bit(name, kind, smallest, request, tmp_path):
    base, parents = request.getfixturevalue(kind)
    prints = set()
    for threads, elements in ((1, smallest), (3, 1000), (1, 1 << 18)):
        merge = as_merge(name, base, parents, block_elements=elements, threads=threads)
        prints.add(merge.write(tmp_path / str(elements)).fingerprint)
    assert len(prints) == 1


def test_a_link_out_of_a_model_is_refused_before_the_first_tensor(half_family, tmp_path):
    base, parents = half_family
    linked = shutil.copytree(parents[0], tmp_path / "linked")
    (tmp_path / "tokenizer.json").write_text("{}")
    (linked / "tokenizer.json").unlink(missing_ok=True)
    (linked / "tokenizer.json").symlink_to(tmp_path / "tokenizer.json")
    tensors = []
    merge = as_merge("linear", base, [linked, *parents[1:]])
    with pytest.raises(CheckpointError, match="is a link to"):
        merge.write(tmp_path / "out", on_tensor=lambda: tensors.append(1))
    assert not tensors


@pytest.mark.parametrize("name", [n for n in NAMES if not METHODS.get(n).is_ordered])
def test_order_of_the_models_never_changes_a_bit(name, half_family, tmp_path):
    base, parents = half_family
    parents = parents[: METHODS.get(name).max_models]
    one = merge_by(name, base, parents, tmp_path / "one")
    if METHODS.get(name).max_models > 1:
        two = merge_by(name, base, parents[::-1], tmp_path / "two")
        assert one.fingerprint == two.fingerprint


@pytest.mark.parametrize(
    ("name", "kind"),  # one widening of bfloat16, whatever the method
    [*((name, "family") for name in NAMES), ("linear", "half_family"), ("ties", "half_family")],
)
def test_the_base_merged_with_itself_is_the_base(name, kind, request, tmp_path):
    base, _ = request.getfixturevalue(kind)
    merged = merge_by(name, base, [base, base, base], tmp_path / "out")
    assert merged.fingerprint == Checkpoint.open(base).fingerprint


@pytest.mark.parametrize("weights", [[0.3, 0.7], [0.1, 0.2], [5, 1e-3]])
def test_linear_of_equal_models_is_the_model_whatever_the_weights(weights, family, tmp_path):
    _, parents = family
    model = parents[0]
    merged = merge_checkpoints("linear", None, [model, model], tmp_path / "out", weights=weights)
    assert merged.fingerprint == Checkpoint.open(model).fingerprint


@pytest.mark.parametrize(("t", "end"), [(0, 0), (1, 1)])
def test_slerp_ends_are_its_models(t, end, family, tmp_path):
    _, parents = family
    merged = merge_checkpoints({"name": "slerp", "t": t}, None, parents[:2], tmp_path / "out")
    assert merged.fingerprint == Checkpoint.open(parents[end]).fingerprint


@pytest.mark.parametrize("name", ["linear", "ties"])  # without a base and with one
def test_transformers_loads_what_is_written(name, half_family, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, parents = half_family
    merge_by(name, base, parents, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("The old house", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.isfinite(model(ids).logits).all()


def test_passthrough_gives_the_same_logits(family, tmp_path):
    from transformers import AutoModelForCausalLM

    _, parents = family
    merge_checkpoints("passthrough", None, parents[:1], tmp_path / "out", shard_size=100_000)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(parents[0])(ids).logits
    assert torch.equal(ours, theirs)


def test_seed_draws_dare_and_nothing_else_does(half_family, tmp_path):
    base, parents = half_family
    prints = [
        merge_by("dare_linear", base, parents, tmp_path / f"{n}", seed=seed).fingerprint
        for n, seed in enumerate((1, 1, 2))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_dare_masks_of_a_tensor_do_not_depend_on_other_tensors(family, tmp_path):
    base, parents = family
    merge_by("dare_linear", base, parents, tmp_path / "all")
    merge_by("dare_linear", base, parents, tmp_path / "few", exclude=["*mlp*"])
    every, few = tensors_of(tmp_path / "all"), tensors_of(tmp_path / "few")
    assert torch.equal(every[NORM], few[NORM])


def test_excluded_tensors_are_copied_from_the_base_and_reported(family, tmp_path):
    base, parents = family
    merged = merge_by("task_arithmetic", base, parents, tmp_path / "out", exclude=["*norm*"])
    assert NORM in merged.copied
    assert torch.equal(tensors_of(tmp_path / "out")[NORM], tensors_of(base)[NORM])


def test_storage_type_is_the_wider_one_or_the_one_asked_for(family, tmp_path):
    narrow = rewrite(family[1][1], tmp_path / "narrow", lambda _, tensor: tensor.bfloat16())
    mixed = [family[1][0], narrow]
    merge_checkpoints("linear", None, mixed, tmp_path / "wide")
    assert Checkpoint.open(tmp_path / "wide").dtype(NORM) is torch.float32
    merge_checkpoints("linear", None, mixed, tmp_path / "half", dtype="float16")
    assert Checkpoint.open(tmp_path / "half").dtype(NORM) is torch.float16
    assert Checkpoint.open(tmp_path / "half").config["torch_dtype"] == "float16"


@pytest.mark.parametrize("settings", [{}, {"exclude": ["*norm*"]}])
def test_a_number_too_large_for_the_storage_type_is_refused_copied_or_merged(
    settings, family, tmp_path
):
    large = rewrite(family[0], tmp_path / "large", lambda n, t: t * 1e6 if n == NORM else t)
    with pytest.raises(CheckpointError) as caught:
        merge_checkpoints(
            "linear", None, [large, large], tmp_path / "out", dtype="float16", **settings
        )
    assert caught.value.code == "merge.not-finite"
    assert not (tmp_path / "out").exists()


def test_tied_stays_tied_and_untied_wins(tmp_path):
    tied = tiny_checkpoint(tmp_path / "tied")
    loose = tiny_checkpoint(tmp_path / "loose", tie=False, seed=1)
    merge_checkpoints("linear", None, [tied, tied], tmp_path / "a")
    assert "lm_head.weight" not in Checkpoint.open(tmp_path / "a")
    assert Checkpoint.open(tmp_path / "a").is_tied
    merge_checkpoints("linear", None, [tied, loose], tmp_path / "b")
    assert not Checkpoint.open(tmp_path / "b").is_tied
    head = tensors_of(tmp_path / "b")["lm_head.weight"]
    mean = (tensors_of(tied)["model.embed_tokens.weight"] + tensors_of(loose)["lm_head.weight"]) / 2
    assert torch.allclose(head, mean, atol=1e-7)


def test_a_stored_but_tied_head_is_left_out_and_named(tmp_path):
    loose = tiny_checkpoint(tmp_path / "loose", tie=False)
    stored = rewrite(loose, tmp_path / "stored", lambda n, t: t, tie_word_embeddings=True)
    merged = merge_checkpoints("linear", None, [stored, stored], tmp_path / "out")
    assert merged.tied == ("lm_head.weight",)


def test_other_shapes_are_refused_by_name(tmp_path):
    one = tiny_checkpoint(tmp_path / "one")
    two = rewrite(one, tmp_path / "two", lambda n, t: t[:32] if n == NORM else t)
    with pytest.raises(ShapeError) as caught:
        merge_checkpoints("linear", None, [one, two], tmp_path / "out")
    assert caught.value.code == "merge.shape"
    assert "one (64,), two (32,)" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_tensor_is_refused_or_copied_as_asked(family, tmp_path):
    _, parents = family
    poor = rewrite(parents[0], tmp_path / "poor", lambda n, t: None if n == NORM else t)
    with pytest.raises(CheckpointError) as caught:
        merge_checkpoints("linear", None, [parents[1], poor], tmp_path / "out")
    assert caught.value.code == "merge.missing-tensor"
    assert f"'{NORM}' is missing in poor" in str(caught.value)
    merge = as_merge("linear", None, [parents[1], poor], rules=TensorRules(missing_tensors="copy"))
    assert merge.write(tmp_path / "out").copied == (NORM,)


def test_many_problems_are_counted_not_printed_in_full(tmp_path):
    one = tiny_checkpoint(tmp_path / "one")
    two = tiny_checkpoint(tmp_path / "two", hidden=32)
    with pytest.raises((ShapeError, CheckpointError)) as caught:
        merge_checkpoints("linear", None, [one, two], tmp_path / "out")
    assert len(caught.value.problems) <= 9


def test_models_of_other_build_or_vocabulary_are_refused(family, tmp_path):
    base, _ = family
    other = rewrite(base, tmp_path / "other", lambda n, t: t, rope_theta=5e5)
    with pytest.raises(CheckpointError) as caught:
        merge_checkpoints("linear", None, [base, other], tmp_path / "out")
    assert caught.value.code == "merge.config"
    other = rewrite(base, tmp_path / "words", lambda n, t: t)
    path = other / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"]["new"] = 5
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError) as caught:
        merge_checkpoints("linear", None, [base, other], tmp_path / "out")
    assert caught.value.code == "merge.tokenizer"


def test_models_whose_positions_are_scaled_differently_are_refused(family, tmp_path):
    base, _ = family
    llama3 = {"factor": 8.0, "rope_type": "llama3", "low_freq_factor": 1.0}
    old = rewrite(base, tmp_path / "old", lambda n, t: t, rope_scaling=llama3, rope_parameters=None)
    new = rewrite(
        base, tmp_path / "new", lambda n, t: t, rope_parameters={**llama3, "rope_theta": 10000.0}
    )
    more = rewrite(
        base, tmp_path / "more", lambda n, t: t, rope_scaling={"type": "llama3", "factor": 32}
    )
    low = rewrite(
        old, tmp_path / "low", lambda n, t: t, rope_scaling={**llama3, "low_freq_factor": 2.0}
    )
    for one, other in ((base, old), (new, base), (old, more), (new, low)):
        with pytest.raises(CheckpointError, match="disagree about rope scaling") as caught:
            merge_checkpoints("linear", None, [one, other], tmp_path / "out")
        assert caught.value.code == "merge.config"
    merge_checkpoints("linear", None, [old, new], tmp_path / "both")
    plain = rewrite(base, tmp_path / "plain", lambda n, t: t, rope_scaling={"rope_type": "default"})
    merge_checkpoints("linear", None, [base, plain], tmp_path / "same")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_with_their_owner(value, family, tmp_path):
    base, parents = family

    def poison(name, tensor):
        if name == NORM:
            tensor[3] = value
        return tensor

    bad = rewrite(parents[0], tmp_path / "bad", poison)
    with pytest.raises(CheckpointError) as caught:
        merge_checkpoints("task_arithmetic", base, [parents[1], bad], tmp_path / "out")
    assert caught.value.code == "merge.not-finite"
    assert "not finite in: bad" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_overflow_of_the_storage_type_is_refused(family, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        merge_checkpoints(
            {"name": "passthrough", "scale": 1e6},
            None,
            family[1][:1],
            tmp_path / "out",
            dtype="float16",
        )
    assert "the result only" in str(caught.value)


@pytest.mark.parametrize(
    ("method", "base", "count", "weights", "code"),
    [
        ("slerp", False, 3, None, "merge.parents"),
        ("model_stock", True, 1, None, "merge.parents"),
        ("linear", False, 2, [1, -1], "merge.weights"),
        ("ties", False, 2, None, "merge.base"),
        ("no_such", False, 2, None, "recipe.unknown-method"),
    ],
)
def test_what_a_method_cannot_do_is_said(method, base, count, weights, code, family, tmp_path):
    with pytest.raises(RecipeError) as caught:
        merge_checkpoints(
            method,
            family[0] if base else None,
            family[1][:count],
            tmp_path / "out",
            weights=weights,
        )
    assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_a_share_lies_between_base_and_merge(family, tmp_path):
    base, parents = family
    full = as_merge("task_arithmetic", base, parents[:1])
    Merge(full.method, full.base, full.parents, share=0.25).write(tmp_path / "out")
    got, start, end = (tensors_of(p)[NORM] for p in (tmp_path / "out", base, parents[0]))
    assert torch.allclose(got, start + 0.25 * (end - start), atol=1e-7)


def test_whole_model_and_per_tensor_trimming_differ(family, tmp_path):
    base, parents = family
    small = fine_tune(base, tmp_path / "small", 9, scale=0.001)
    mixed = rewrite(
        parents[0],
        tmp_path / "mixed",
        lambda n, t: Checkpoint.open(small).tensor(n) if "mlp" in n else t,
    )
    for trim in ("model", "tensor"):
        method = {"name": "ties", "density": 0.3, "trim": trim}
        merge_checkpoints(method, base, [mixed], tmp_path / trim)
    name = "model.layers.0.mlp.up_proj.weight"
    changed = {
        trim: (tensors_of(tmp_path / trim)[name] != tensors_of(base)[name]).float().mean().item()
        for trim in ("model", "tensor")
    }
    assert changed["model"] < 0.01
    assert changed["tensor"] == pytest.approx(0.3, abs=0.01)


def test_density_keeps_the_exact_count_among_equal_magnitudes(tmp_path):
    base = tiny_checkpoint(tmp_path / "base")
    moved = rewrite(base, tmp_path / "moved", lambda n, t: (t * 16).round() / 16 + 0.25)
    even = rewrite(base, tmp_path / "even", lambda n, t: (t * 16).round() / 16)
    merge_checkpoints({"name": "ties", "density": 0.37}, even, [moved], tmp_path / "out")
    before, after = tensors_of(even), tensors_of(tmp_path / "out")
    kept = sum(int((before[n] != after[n]).sum()) for n in before)
    assert kept == int(0.37 * sum(t.numel() for t in before.values()))


def test_merges_that_differ_in_weights_share_what_was_surveyed(half_family, monkeypatch):
    base, tunes = half_family
    surveyed = []
    survey = METHODS.get("ties").survey
    monkeypatch.setattr(
        METHODS.get("ties"),
        "survey",
        lambda self, tensors: surveyed.append(1) or survey(self, tensors),
    )

    def fresh(density, weights, scale=1.0):
        sources = [
            MergeSource(tune.name, Checkpoint.open(tune), weight)
            for tune, weight in zip(tunes, weights, strict=True)
        ]
        method = METHODS.build({"name": "ties", "density": density, "scale": scale})
        return Merge(method, MergeSource("base", Checkpoint.open(base)), sources)

    def bits(merge):
        return [(name, array.tobytes()) for name, _, array in merge.tensors()]

    first = fresh(0.3, (1, 1, 1))
    bits(first)
    other = fresh(0.3, (0.2, 3, 0.5), scale=0.5)
    trial = replace(first, method=other.method, parents=other.parents)
    assert bits(trial) == bits(other)
    assert len(surveyed) == 2  # one for the first and its trial, one for the fresh merge
    denser = fresh(0.6, (1, 1, 1))
    assert bits(replace(first, method=denser.method)) == bits(denser)
    own = [replace(source, settings={"density": 0.9}) for source in first.parents]
    assert bits(replace(first, parents=own)) != bits(first)
    assert len(surveyed) == 5
