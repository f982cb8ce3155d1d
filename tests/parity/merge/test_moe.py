"""mergekit-moe's files, run by mergekit-moe 0.1.5 and by us: what transformers loads is the same.

``STILLROOM_PEER_MERGEKIT`` is the path of a ``mergekit-yaml``; ``mergekit-moe`` lies beside it. The
two write the same weights under other names (it fuses experts), so loaded models are compared, bit
for bit. Its ``shared_experts`` must be among its experts, or it ends with an error.
"""

import os
import subprocess
import textwrap

import pytest
import torch
from click.testing import CliRunner
from tests.parity.merge.harness import find_mergekit
from tests.unit.merge.conftest import fine_tune
from tests.unit.merge.planning.test_moe import qwen
from transformers import AutoModelForCausalLM

from stillroom.cli.app import stillroom
from stillroom.testing import tiny_checkpoint

pytestmark = pytest.mark.peer

EXPERTS = """
    base_model: KIND-base
    experts:
      - source_model: KIND-1
        positive_prompts: ["def add(a, b):", "import this, and then do more"]
        negative_prompts: ["a pinch of salt"]
      - source_model: KIND-2
        positive_prompts: ["a pinch of salt", "stir the soup"]
        residual_scale: 0.5
"""
SHARED = """
    architecture: qwen
    shared_experts: [{source_model: KIND-1, positive_prompts: [all of it], residual_scale: 0.25}]
"""
CASES = {
    f"mixtral-{mode}": ("llama", f"    gate_mode: {mode}\n    dtype: float32\n")
    for mode in ("hidden", "hidden_last", "hidden_avg", "cheap_embed", "random", "uniform_random")
} | {
    "mixtral-half": ("llama", "    dtype: bfloat16\n    experts_per_token: 1\n"),
    "qwen2": ("qwen2", f"    gate_mode: hidden_avg\n    dtype: bfloat16\n{SHARED}"),
    "qwen2-drawn": ("qwen2", f"    gate_mode: random\n{SHARED}"),
    "qwen2-of-llama": ("llama", f"    gate_mode: hidden\n{SHARED}"),
    "qwen3": ("qwen3", "    gate_mode: hidden\n    architecture: qwen3\n"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moe")
    tiny_checkpoint(folder / "llama-base", hidden=32, layers=3)
    for kind in ("qwen2", "qwen3"):
        qwen(folder / f"{kind}-base", kind)
    for kind in ("llama", "qwen2", "qwen3"):
        for seed in (1, 2):
            fine_tune(folder / f"{kind}-base", folder / f"{kind}-{seed}", seed)
    return folder


def load(path):
    model, loading = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    return model


@pytest.mark.parametrize("name", CASES)
def test_their_mixture_is_ours(name, folder):
    kind, more = CASES[name]
    path = folder / f"{name}.yml"
    path.write_text(textwrap.dedent(EXPERTS + more).replace("KIND", kind))
    theirs, ours = folder / f"theirs-{name}", folder / f"ours-{name}"
    program = find_mergekit().with_name("mergekit-moe")
    flags = ["--random-seed", "3", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    subprocess.run(
        [str(program), path.name, str(theirs), *flags],
        check=True,
        cwd=folder,
        env=environment,
        capture_output=True,
        timeout=120,
    )
    told = CliRunner().invoke(
        stillroom,
        ["merge", "run", str(path), "seed=3", "--out", str(ours), "--quiet"],
        catch_exceptions=False,
    )
    assert told.exit_code == 0, told.output
    found, wanted = load(ours / "output"), load(theirs)
    assert type(found) is type(wanted)
    assert found.state_dict().keys() == wanted.state_dict().keys()
    differing = [
        key
        for key, tensor in wanted.state_dict().items()
        if not torch.equal(tensor, found.state_dict()[key])
    ]
    assert differing == []
