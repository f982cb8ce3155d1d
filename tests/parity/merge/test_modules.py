"""mergekit's ``modules``, run by mergekit 0.1.5 and by us on a small Llava, tensor by tensor.

mergekit infers the modules of a Llava from the names that tensors have in memory, does not find the
language model's among the files, and leaves them out without a word: its result has no language
model. What it writes is compared, bit for bit; of the rest, that ours is there. What mergekit has
lists for (Gemma 3, Qwen2-VL) it refuses in the form in which transformers 5 writes it.
"""

import json
import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file
from tests.parity.merge.harness import find_mergekit
from tests.unit.merge.test_architectures import make

from stillroom.checkpoints import Checkpoint
from stillroom.merge.engine.merge import open_merge
from stillroom.merge.mergekit.recipe_files import load_merge

pytestmark = pytest.mark.peer


@pytest.mark.filterwarnings("ignore")
def test_modules_of_a_llava(tmp_path):
    one, two = (str(make(tmp_path / f"m{seed}", "llava", seed)) for seed in (1, 2))
    modules = {
        "default": [{"weight": 0.3071}, {"weight": 0.7137}],
        "model.vision_tower.encoder.layers": [{"weight": [0.1137, 0.9]}, {"weight": 0.5}],
        "model.language_model.layers": [{"weight": 0.25}, {"weight": [0.3, 0.1, 0.77]}],
    }
    recipe = {
        "merge_method": "linear",
        "dtype": "float32",
        "modules": {
            name: {
                "models": [
                    {"model": model, "parameters": settings}
                    for model, settings in zip((one, two), each, strict=True)
                ]
            }
            for name, each in modules.items()
        },
    }
    path = tmp_path / "theirs.yml"
    path.write_text(json.dumps(recipe, indent=1))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    subprocess.run(
        [str(find_mergekit()), str(path), str(tmp_path / "theirs"), "--no-copy-tokenizer"],
        check=True,
        env=environment,
        capture_output=True,
        timeout=120,
    )
    open_merge(load_merge(path)).write(tmp_path / "ours")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    wanted = {name.removeprefix("model."): tensor for name, tensor in theirs.items()}
    ours = Checkpoint.open(tmp_path / "ours")
    assert ours.names() == Checkpoint.open(tmp_path / "m1").names()
    missing = set(ours.names()) - set(wanted)
    assert len(wanted) + len(missing) == len(ours.names())
    assert all(name.startswith("language_model.") for name in missing)
    assert [name for name in wanted if not torch.equal(wanted[name], ours.tensor(name))] == []
