"""Mixtures of experts and transplants, as a user makes them: recipes, mergekit-moe files, verbs."""

import json
import re
import signal
import sys
import textwrap

import pytest
import torch
from click.testing import CliRunner
from tests.processes import run_process
from tests.unit.merge.conftest import fine_tune
from tests.unit.merge.planning.test_moe import qwen
from tests.unit.merge.planning.test_transplant import refill, retokenize
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillroom.checkpoints import Checkpoint
from stillroom.cli.app import stillroom
from stillroom.errors import RecipeError
from stillroom.merge.mergekit.recipe_files import is_mergekit_config, read_mergekit_config
from stillroom.merge.verification import verify_merge
from stillroom.provenance import read_artifact
from stillroom.testing import tiny_checkpoint

MOE = """
version: 1
kind: merge.moe
gate_mode: hidden
experts_per_token: 1
base_model: BASE
experts:
  - {model: ONE, positive_prompts: ["def add(a, b):"], negative_prompts: [a pinch of salt]}
  - {model: TWO, positive_prompts: [a pinch of salt]}
"""
THEIRS = """
base_model: BASE
gate_mode: hidden
experts_per_token: 1
experts:
  - source_model: ONE
    positive_prompts: ["def add(a, b):", "import this"]
    negative_prompts: ["a pinch of salt"]
  - source_model: TWO
    positive_prompts: ["a pinch of salt"]
    residual_scale: 0.5
"""


@pytest.fixture(scope="module")
def trio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trio")
    base = tiny_checkpoint(folder / "base", hidden=32)
    return {"BASE": base, "ONE": fine_tune(base, folder / "one", 1)} | {
        "TWO": fine_tune(base, folder / "two", 2)
    }


@pytest.fixture
def strangers(tmp_path):
    """A donor with another tokenizer, and a target."""
    donor = tiny_checkpoint(tmp_path / "donor", seed=5, hidden=48)
    target = tiny_checkpoint(tmp_path / "target", seed=6, hidden=32)
    size = retokenize(donor, ["zebras zigzag over frozen quartz"] * 3, 280, ["<|stop|>"])
    refill(donor, embedding=torch.randn(size, 48, generator=torch.Generator().manual_seed(0)))
    return donor, target


def write(text, places, path):
    path.write_text(re.sub("|".join(places), lambda found: str(places[found[0]]), text))
    return path


def tell(*words):
    done = CliRunner().invoke(stillroom, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def generate(folder):
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    ids = AutoTokenizer.from_pretrained(folder)("zebras and salt", return_tensors="pt")["input_ids"]
    made = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert made.shape[1] > ids.shape[1]
    return model


def test_a_recipe_makes_a_mixture_that_says_where_it_comes_from(trio, tmp_path):
    recipe = write(MOE, trio, tmp_path / "moe.yaml")
    planned = tell("merge", "plan", recipe).stdout
    assert "mixtral: 2 experts, 1 a token: one, two" in planned
    assert "gates of 2 layers from prompts, hidden" in planned
    assert "is valid and fits" in tell("check", recipe).stdout
    out = tmp_path / "out"
    tell("merge", "run", recipe, "--out", out, "--quiet")
    assert generate(out / "output").config.num_local_experts == 2
    artifact = read_artifact(out)
    assert [parent.role for parent in artifact.parents] == ["base", "model", "model"]
    prints = [Checkpoint.open(trio[name]).fingerprint for name in ("BASE", "ONE", "TWO")]
    assert artifact.origin["chain"][-1]["method"] == "merge.moe"
    assert artifact.origin["chain"][-1]["parents"] == prints
    assert verify_merge(out, share=1).differences == ()


def test_one_tensor_of_a_mixture_is_explained(trio, tmp_path):
    recipe = write(MOE, trio, tmp_path / "moe.yaml")
    for name, how in (("gate", "gate"), ("experts.1.w2", "copy")):
        tensor = f"model.layers.1.block_sparse_moe.{name}.weight"
        told = tell("merge", "plan", recipe, "--explain", tensor, "--json")
        assert json.loads(told.stdout)["tensor"]["how"] == how


def test_prompts_that_are_alike_are_warned_of(trio, tmp_path):
    text = MOE.replace("def add(a, b):", "a pinch of salt").replace(
        ", negative_prompts: [a pinch of", ", n"
    )
    text = re.sub(r", n salt\]", "", text)
    tell("merge", "run", write(text, trio, tmp_path / "r.yaml"), "--out", tmp_path / "o", "--quiet")
    assert "cannot tell two experts apart" in read_artifact(tmp_path / "o").details["warnings"][-1]


@pytest.mark.parametrize(
    ("change", "code", "where"),
    [
        (("experts_per_token: 1", "experts_per_token: 0"), "recipe.", "experts_per_token"),
        (("experts_per_token: 1", "experts_per_token: 3"), "merge.moe-experts", "experts"),
        ((", positive_prompts: [a pinch of salt]", ""), "merge.moe-experts", "experts"),
        (("gate_mode: hidden", "gate_mode: random"), "merge.moe-experts", "omit them"),
        (("experts:", "exclude: [x]\nexperts:"), "recipe.unknown-key", "exclude"),
        (("experts:", "tokenizer: {}\nexperts:"), "recipe.unknown-key", "tokenizer"),
        (("TWO, ", "TWO, weight: 2, "), "recipe.unknown-key", "weight"),
        (("kind: merge.moe", "kind: merge.weights"), "recipe.unknown-key", "experts"),
    ],
)
def test_what_a_mixture_cannot_honor_is_refused(trio, tmp_path, change, code, where):
    assert change[0] in MOE
    recipe = write(MOE.replace(*change), trio, tmp_path / "moe.yaml")
    done = CliRunner().invoke(stillroom, ["merge", "plan", str(recipe)])
    assert isinstance(done.exception, RecipeError)
    found = [p for p in done.exception.problems if p.code.startswith(code) and where in str(p)]
    assert found, [str(problem) for problem in done.exception.problems]


def test_a_file_of_mergekit_moe_runs_unchanged(trio, tmp_path):
    path = write(THEIRS, trio, tmp_path / "theirs.yml")
    assert is_mergekit_config(path.read_text())
    out = tmp_path / "out"
    tell("merge", "run", path, "dtype=bfloat16", "seed=4", "--out", out, "--quiet")
    made = Checkpoint.open(out)
    assert {made.dtype(name) for name in made.names()} == {torch.bfloat16}
    name = "model.layers.1.block_sparse_moe.experts.1.w2.weight"
    theirs = Checkpoint.open(trio["TWO"]).tensor("model.layers.1.mlp.down_proj.weight")
    assert torch.equal(made.tensor(name), (theirs * 0.5).bfloat16())
    generate(out / "output")
    assert verify_merge(out, share=1).differences == ()


@pytest.mark.parametrize(
    ("change", "code", "what"),
    [
        (("gate_mode: hidden", "gate_mode: hiden"), "value", "hiden"),
        (("experts_per_token", "expert_per_token"), "key", "expert_per_token"),
        (("    residual_scale: 0.5", "    noise_scale: 0.1"), "value", "noise_scale"),
        (("gate_mode: hidden", "architecture: deepseek"), "value", "deepseek"),
        (('positive_prompts: ["a pinch', 'positiv_prompts: ["a pinch'), "key", "positiv_prompts"),
        (("residual_scale: 0.5", "residual_scale: much"), "value", "much"),
        (("base_model: BASE\n", ""), "value", "base_model"),
        (("gate_mode: hidden", "dtype: bf16"), "value", "bf16"),
        (("gate_mode: hidden", "shared_experts: [{source_model: ONE}]"), "value", "positive"),
        (('["a pinch of salt"]\n    residual', "salt\n    residual"), "value", "salt"),
    ],
)
def test_keys_of_mergekit_moe_that_cannot_be_honored_are_errors_with_their_line(
    trio, tmp_path, change, code, what
):
    assert change[0] in THEIRS
    path = write(THEIRS.replace(*change), trio, tmp_path / "theirs.yml")
    with pytest.raises(RecipeError) as caught:
        read_mergekit_config(path)
    found = [p for p in caught.value.problems if p.code == f"merge.mergekit-{code}"]
    assert any(what in str(problem) for problem in found), str(caught.value)
    assert all(re.search(r"theirs\.yml:\d+:\d+", problem.where) for problem in found)


def test_a_shared_expert_is_where_qwens_layout_has_it(tmp_path):
    base = qwen(tmp_path / "base", "qwen2")
    places = {"BASE": base} | {
        name: fine_tune(base, tmp_path / name, seed) for seed, name in enumerate(("ONE", "TWO"))
    }
    extra = "architecture: qwen\nshared_experts:\n  - {source_model: TWO, positive_prompts: [x]}\n"
    path = write(THEIRS + extra, places, tmp_path / "theirs.yml")
    tell("merge", "run", path, "--out", tmp_path / "out", "--quiet")
    model = generate(tmp_path / "out" / "output")
    assert type(model).__name__ == "Qwen2MoeForCausalLM"
    mine = Checkpoint.open(tmp_path / "out").tensor(
        "model.layers.0.mlp.shared_expert.up_proj.weight"
    )
    two = Checkpoint.open(places["TWO"]).tensor("model.layers.0.mlp.up_proj.weight")
    assert torch.equal(mine, two)


def test_a_transplant_is_planned_made_and_verified(strangers, tmp_path):
    models = [f"{role}={path}" for role, path in zip(("donor", "target"), strangers, strict=True)]
    out = tmp_path / "out"
    planned = tell("merge", "plan", "merge.transplant", *models).stdout
    assert "target gets the tokenizer of donor" in planned
    assert not out.exists()
    tell("run", "merge.transplant", *models, "k=8", "--out", out, "--quiet")
    artifact = read_artifact(out)
    assert [parent.role for parent in artifact.parents] == ["base", "model"]
    assert 0 < artifact.details["made"]["model.embed_tokens.weight"]["median"] < 1
    assert verify_merge(out, share=1).differences == ()
    model = generate(out / "output")
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(out / "output"))


def test_models_with_different_tokenizers_are_merged_in_one_recipe(strangers, tmp_path):
    _, target = strangers
    resident = tiny_checkpoint(tmp_path / "resident", seed=7, hidden=32)
    size = retokenize(resident, ["zebras zigzag over frozen quartz"] * 3, 280, ["<|stop|>"])
    refill(resident, embedding=torch.randn(size, 32, generator=torch.Generator().manual_seed(1)))
    flow = """
        version: 1
        kind: flow
        steps:
          moved:
            kind: merge.transplant
            k: 16
            target: TARGET
            donor: RESIDENT
          merged:
            kind: merge.weights
            method: {name: linear}
            models: [{model: RESIDENT}, {model: {from: moved}}]
    """
    places = {"TARGET": target, "RESIDENT": resident}
    path = write(textwrap.dedent(flow), places, tmp_path / "flow.yaml")
    tell("run", path, "--out", tmp_path / "out", "--quiet")
    (merged,) = (tmp_path / "out" / "steps").glob("merged-*")
    (moved,) = (tmp_path / "out" / "steps").glob("moved-*")
    generate(merged / "output")
    for name in Checkpoint.open(merged).names():
        tensors = [Checkpoint.open(each).tensor(name) for each in (resident, moved, merged)]
        assert torch.allclose((tensors[0] + tensors[1]) / 2, tensors[2], atol=1e-6)


_KILLED = """
import os, signal, sys
from stillroom.checkpoints import CheckpointWriter
from stillroom.cli.app import main
left, end = int(sys.argv.pop(1)), CheckpointWriter.end
def end_and_die(self, name):
    global left
    left -= 1
    found = end(self, name)
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return found
CheckpointWriter.end = end_and_die
main()
"""


@pytest.mark.parametrize("kind", [pytest.param("moe", marks=pytest.mark.slow), "transplant"])
def test_a_killed_assembly_goes_on_to_the_same_bytes(kind, trio, strangers, tmp_path):
    places = trio if kind == "moe" else {"BASE": strangers[1], "ONE": strangers[0]}
    text = MOE
    if kind == "transplant":
        text = "version: 1\nkind: merge.transplant\ntarget: BASE\ndonor: ONE\n"
    recipe = write(text, places, tmp_path / "recipe.yaml")
    words = ["merge", "run", str(recipe), "--quiet", "--out"]
    tell(*words, tmp_path / "whole")
    killed = [sys.executable, "-c", _KILLED, "12", *words, str(tmp_path / "out")]
    assert run_process(killed).returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "artifact.json").exists()
    tell(*words, tmp_path / "out", "--resume")
    for file in (tmp_path / "whole" / "output").iterdir():
        if file.name != "README.md":
            assert file.read_bytes() == (tmp_path / "out" / "output" / file.name).read_bytes()
    made = [read_artifact(tmp_path / name).details.get("made") for name in ("whole", "out")]
    assert made[0] == made[1]
