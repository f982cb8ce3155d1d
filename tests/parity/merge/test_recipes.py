# ruff: noqa: E501
"""mergekit's own files, run by mergekit 0.1.5 and by us: every tensor, bit for bit.

``STILLROOM_PEER_MERGEKIT`` is the path of a ``mergekit-yaml`` program; see the harness beside.
"""

import json
import os
import subprocess
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.parity.merge import harness
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from stillroom.checkpoints import Checkpoint
from stillroom.merge.engine.merge import Merge
from stillroom.merge.mergekit.recipe_files import read_mergekit_config
from stillroom.merge.planning.inputs import open_sources, read_rules
from stillroom.recipes import build_recipe
from stillroom.testing import tiny_checkpoint

pytestmark = pytest.mark.peer

LAYERS = 6
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# BASE, ONE, TWO and THREE are folders of one family; HALF- before them is the one in bfloat16;
# OTHER has another tokenizer.
RECIPES = {
    "linear-by-name": """
        merge_method: linear
        models:
          - model: ONE
            parameters: {weight: [{filter: self_attn, value: 0.2113}, {filter: mlp, value: [0.9, 0.1]}, {value: 0.5}]}
          - model: TWO
            parameters: {weight: [{filter: q_proj, value: 0.7071}, {value: [0.31, 0.77, 0.13]}]}
          - model: THREE
            parameters: {weight: 0.1963}
        dtype: float32
    """,
    "linear-base-listed-second": """
        merge_method: linear
        base_model: BASE
        models:
          - {model: ONE, parameters: {weight: 0.3137}}
          - {model: BASE, parameters: {weight: 0.6871}}
        parameters: {normalize: false}
        dtype: float32
    """,
    "linear-base-not-listed": """
        merge_method: linear
        base_model: BASE
        models: [{model: ONE}, {model: TWO, parameters: {weight: 0.91}}]
        parameters: {weight: 0.4137}
        dtype: float32
    """,
    "slerp-as-everybody-does": """
        slices:
          - sources:
              - {model: ONE, layer_range: [0, 6]}
              - {model: TWO, layer_range: [0, 6]}
        merge_method: slerp
        base_model: ONE
        parameters:
          t:
            - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
            - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
            - value: 0.5
        dtype: bfloat16
    """,
    "slerp-base-second": """
        merge_method: slerp
        base_model: TWO
        models: [{model: ONE}, {model: TWO}]
        parameters: {t: [0.1137, 0.7971]}
        dtype: float32
    """,
    "frankenmerge": """
        merge_method: passthrough
        slices:
          - sources: [{model: ONE, layer_range: [0, 4]}]
          - sources: [{model: TWO, layer_range: [2, 6]}]
            parameters: {scale: [{filter: o_proj, value: 0.0}, {filter: down_proj, value: 0.0}, {value: 1.0}]}
          - sources:
              - {model: ONE, layer_range: [5, 6], parameters: {scale: 1.137}}
        dtype: bfloat16
    """,
    "slices-of-linear": """
        merge_method: linear
        slices:
          - sources:
              - {model: ONE, layer_range: [0, 2], parameters: {weight: 0.3137}}
              - {model: TWO, layer_range: [1, 3], parameters: {weight: [0.1, 0.9]}}
          - sources:
              - {model: THREE, layer_range: [3, 4], parameters: {weight: [0.2, 0.6]}}
              - {model: TWO, layer_range: [0, 1], parameters: {weight: 0.5}}
            parameters: {normalize: false}
          - sources:
              - {model: ONE, layer_range: [2, 6]}
              - {model: THREE, layer_range: [1, 5]}
            parameters: {weight: 0.71}
        dtype: float32
    """,
    "slices-of-ties": """
        merge_method: ties
        base_model: BASE
        slices:
          - sources:
              - {model: ONE, layer_range: [0, 3], parameters: {weight: 0.3137, density: 0.41}}
              - {model: BASE, layer_range: [0, 3]}
              - {model: TWO, layer_range: [0, 3], parameters: {weight: 0.8713}}
          - sources:
              - {model: BASE, layer_range: [2, 6]}
              - {model: THREE, layer_range: [2, 6], parameters: {weight: [0.21, 0.93]}}
              - {model: TWO, layer_range: [1, 5], parameters: {weight: 0.37}}
            parameters: {lambda: 0.77}
        parameters: {density: [0.3, 0.8]}
        dtype: float32
    """,
    "ties-by-layer": """
        merge_method: ties
        base_model: BASE
        models:
          - model: ONE
            parameters: {density: [1, 0.7, 0.1], weight: 0.5137}
          - model: TWO
            parameters: {density: 0.5, weight: [0, 0.3, 0.7, 0.97]}
          - model: THREE
            parameters: {density: 0.33, weight: [{filter: mlp, value: 0.5171}, {value: 0.0}]}
        parameters: {normalize: true, int8_mask: true}
        dtype: float32
    """,
    "dare-by-layer": """
        merge_method: dare_ties
        base_model: BASE
        models:
          - model: BASE
          - model: ONE
            parameters: {density: [0.9, 0.4], weight: 0.5137}
          - model: TWO
            parameters: {density: 0.53, weight: 0.3071}
        parameters: {normalize: true, rescale: [{filter: mlp, value: false}, {value: true}]}
        dtype: float32
    """,
    "dare-linear-in-half": """
        merge_method: dare_linear
        base_model: HALF-BASE
        models:
          - {model: HALF-ONE, parameters: {density: 0.53, weight: 0.5137}}
          - {model: HALF-TWO, parameters: {density: 0.31, weight: 0.3071}}
        dtype: float32
        out_dtype: bfloat16
    """,
    "task-arithmetic-by-layer": """
        merge_method: task_arithmetic
        base_model: BASE
        models:
          - {model: ONE, parameters: {weight: 0.5137}}
          - {model: TWO, parameters: {weight: -0.3071}}
        parameters: {lambda: [{filter: norm, value: 0.5}, {value: [0.2, 1.3]}]}
        dtype: float32
    """,
    "task-arithmetic-in-half": """
        merge_method: task_arithmetic
        base_model: HALF-BASE
        models:
          - {model: HALF-ONE, parameters: {weight: 0.5137}}
          - {model: HALF-TWO, parameters: {weight: [0.3, 0.9]}}
    """,
    "breadcrumbs-by-name": """
        merge_method: breadcrumbs
        base_model: BASE
        models:
          - {model: ONE, parameters: {weight: 0.5137, density: 0.61, gamma: [{filter: mlp, value: 0.05}]}}
          - {model: TWO, parameters: {weight: 0.3071, density: [0.9, 0.2]}}
        dtype: float32
    """,
    "della-by-layer": """
        merge_method: della
        base_model: BASE
        models:
          - {model: ONE, parameters: {weight: 0.5137, density: 0.6, epsilon: [0.05, 0.2]}}
          - {model: TWO, parameters: {weight: 0.3071, density: [0.4, 0.7]}}
        parameters: {lambda: 1.1}
        dtype: float32
    """,
    "sce": """
        merge_method: sce
        base_model: BASE
        models: [{model: ONE}, {model: TWO}, {model: THREE}]
        parameters: {select_topk: [0.9, 0.1]}
        dtype: float32
    """,
    "model-stock": """
        merge_method: model_stock
        base_model: BASE
        models: [{model: ONE}, {model: BASE}, {model: TWO}, {model: THREE}]
        parameters: {filter_wise: [{filter: self_attn, value: true}]}
        dtype: float32
    """,
    "multislerp-from-a-base": """
        merge_method: multislerp
        base_model: BASE
        models:
          - {model: ONE, parameters: {weight: 0.5137}}
          - {model: TWO, parameters: {weight: [0.3071, 0.9]}}
          - {model: THREE, parameters: {weight: 0.1}}
        dtype: float32
    """,
    "nuslerp-by-row": """
        merge_method: nuslerp
        models:
          - {model: ONE, parameters: {weight: 0.5137}}
          - {model: TWO, parameters: {weight: [0.3071, 0.9]}}
        parameters: {nuslerp_flatten: false}
        dtype: float32
    """,
    "karcher": """
        merge_method: karcher
        models: [{model: ONE}, {model: TWO}, {model: THREE}]
        parameters: {max_iter: 7}
        dtype: float32
    """,
    "nearswap": """
        merge_method: nearswap
        base_model: BASE
        models: [{model: ONE}]
        parameters: {t: [0.0013, 0.01]}
        dtype: float32
    """,
    "union": """
        merge_method: linear
        base_model: BASE
        models:
          - {model: BASE, parameters: {weight: 0.3137}}
          - {model: OTHER, parameters: {weight: 0.7071}}
          - {model: TWO, parameters: {weight: 0.1963}}
        tokenizer_source: union
        dtype: float32
    """,
    "union-of-differences": """
        merge_method: task_arithmetic
        base_model: BASE
        models:
          - {model: OTHER, parameters: {weight: 0.7071}}
          - {model: TWO, parameters: {weight: 0.1963}}
        tokenizer:
          source: union
          tokens:
            "<|other|>": {source: OTHER, force: true}
            "<|im_start|>": {source: {kind: zero}}
            "<|new|>": {source: {kind: model_token, model: TWO, token: "<|im_end|>"}}
        dtype: float32
    """,
    "vocabulary-of-the-base": """
        merge_method: linear
        base_model: BASE
        models:
          - {model: BASE, parameters: {weight: 0.3137}}
          - {model: OTHER, parameters: {weight: 0.7071}}
        tokenizer: {source: base, pad_to_multiple_of: 64}
        dtype: float32
    """,
    "vocabulary-of-another": """
        merge_method: linear
        base_model: BASE
        models:
          - {model: BASE, parameters: {weight: 0.3137}}
          - {model: OTHER, parameters: {weight: 0.7071}}
        tokenizer: {source: OTHER}
        dtype: float32
    """,
}  # fmt: skip

# Where elements may differ: units in the last place, and why.
REASONS = {
    "vocabulary-of-the-base": (None, "padding rows are a mean, added up in another order"),
}

STEPS = """
name: first
merge_method: linear
models:
  - {model: ONE, parameters: {weight: 0.3137}}
  - {model: TWO, parameters: {weight: 0.6871}}
dtype: float32
---
name: second
merge_method: slerp
base_model: first
models: [{model: first}, {model: THREE}]
parameters: {t: 0.3137}
dtype: float32
---
merge_method: task_arithmetic
base_model: BASE
models:
  - {model: first, parameters: {weight: 0.3071}}
  - {model: second, parameters: {weight: 0.5137}}
dtype: float32
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A family in two types, and a model of its shape with another tokenizer."""
    folder = tmp_path_factory.mktemp("recipes")
    shape = {"layers": LAYERS, "hidden": 32, "tie": False}
    for prefix, dtype in (("", torch.float32), ("HALF-", torch.bfloat16)):
        base = tiny_checkpoint(folder / f"{prefix}BASE", dtype=dtype, **shape)
        for seed, name in enumerate(("ONE", "TWO", "THREE"), 1):
            harness._tune(base, folder / f"{prefix}{name}", seed)
    other = tiny_checkpoint(folder / "OTHER", seed=9, **shape)
    size = write_tokenizer(other)
    tensors = load_file(other / "model.safetensors")
    rng = torch.Generator().manual_seed(3)
    for name in (EMBEDDING, HEAD):
        tensors[name] = torch.randn(size + 6, 32, generator=rng)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"vocab_size": size + 6}))
    return folder


def write_tokenizer(folder):
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ("<|endoftext|>", "<|other|>", "<|im_end|>", "<|im_start|>")
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["The zebra zigzags over quartz and the still house"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.get_vocab_size()


@pytest.fixture(scope="module")
def theirs(folder):
    """What mergekit makes of every file."""
    jobs = []
    for name, text in RECIPES.items():
        path = folder / f"{name}.yml"
        path.write_text(place(textwrap.dedent(text), folder))
        flags = [flag for flag in harness.FLAGS if flag != "--no-copy-tokenizer"]
        jobs.append((str(path), str(folder / f"theirs-{name}"), flags))
    run_all(folder, jobs)
    return folder


def run_all(folder, jobs):
    program = harness.find_mergekit()
    (folder / "driver.py").write_text(harness._DRIVER)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    python = program.read_text().splitlines()[0].removeprefix("#!").strip()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [python, str(folder / "driver.py"), str(folder / "jobs.json")],
        check=True, env=environment, capture_output=True, timeout=280,
    )  # fmt: skip


def place(text, folder):
    """Put the folders in a file's place of names."""
    for name in ("BASE", "ONE", "TWO", "THREE"):
        for prefix in ("HALF-", ""):
            text = text.replace(f" {prefix}{name}", f" {folder / (prefix + name)}")
    return text.replace(" OTHER", f" {folder / 'OTHER'}")


def merge_ours(path, folder):
    """Run a file of mergekit's; returns the folder of the last merge."""
    made = {}
    for imported in read_mergekit_config(path):
        text = json.dumps(imported.recipe)
        for name, done in made.items():
            text = text.replace(f'"step:{name}"', json.dumps(str(done)))
        recipe = build_recipe(json.loads(text) | {"seed": harness.SEED})
        base, parents = open_sources(recipe)
        merge = Merge(recipe.method, base, parents, read_rules(recipe), recipe.seed)
        made[imported.name] = folder / imported.name
        merge.write(made[imported.name])
    return made[imported.name]


@pytest.mark.parametrize("name", RECIPES)
def test_their_file_gives_their_weights(name, theirs, tmp_path):
    peer = theirs / f"theirs-{name}"
    failed = peer.with_name(peer.name + ".failed")
    assert not failed.exists(), failed.read_text()[-1500:]
    ours = merge_ours(theirs / f"{name}.yml", tmp_path)
    compare(ours, peer, REASONS.get(name, (0, ""))[0])


def test_merges_that_build_on_each_other(folder, tmp_path):
    program = harness.find_mergekit().with_name("mergekit-multi")
    path = tmp_path / "steps.yml"
    path.write_text(place(STEPS, folder))
    subprocess.run(
        [str(program), str(path), "--out-path", str(tmp_path / "theirs"), "-I",
         str(tmp_path / "between"), "--no-copy-tokenizer", "--quiet", "--allow-crimes"],
        check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=280,
    )  # fmt: skip
    compare(merge_ours(path, tmp_path / "ours"), tmp_path / "theirs", 0)


def compare(ours, theirs, allowed):
    """Compare all tensors bit for bit; rows of token tables by the token, padding by closeness."""
    ours, theirs = Checkpoint.open(ours), Checkpoint.open(theirs)
    assert ours.names() == theirs.names()
    rows = {}
    if vocabulary(theirs) and vocabulary(ours) != vocabulary(theirs):
        rows = vocabulary(theirs)
        assert set(rows) == set(vocabulary(ours))
    assert ours.shape(EMBEDDING) == theirs.shape(EMBEDDING)
    for name in ours.names():
        one, two = ours.tensor(name), theirs.tensor(name)
        assert (one.dtype, one.shape) == (two.dtype, two.shape), name
        if rows and name in (EMBEDDING, HEAD):
            at = vocabulary(ours)
            one = one[[at[token] for token in rows]]
            two = two[list(rows.values())]
        if allowed is None and name in (EMBEDDING, HEAD):
            count = len(vocabulary(ours))
            assert torch.allclose(one[count:], two[count:], atol=1e-6)
            one, two = one[:count], two[:count]
        steps = np.abs(harness._ordered(one) - harness._ordered(two))
        assert steps.max(initial=0) <= (allowed or 0), (
            f"{name}: {np.count_nonzero(steps)} of {steps.size} elements differ, "
            f"by up to {steps.max()} units in the last place"
        )


def vocabulary(checkpoint):
    path = checkpoint.folder / "tokenizer.json"
    if not path.is_file():
        return {}
    return Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
