"""Ours beside mergekit: the same small checkpoints through both, compared tensor by tensor.

``STILLROOM_PEER_MERGEKIT`` is the path of a ``mergekit-yaml`` program; it is run as it is, once for
each case of a table. A case says what mergekit is told and what we are told.
"""

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from stillroom.checkpoints import Checkpoint
from stillroom.merge.engine.merge import Merge
from stillroom.merge.interfaces import METHODS, BlockContext
from stillroom.merge.mergekit.exact import merge_whole_tensor
from stillroom.merge.mergekit.recipe_files import read_mergekit_config
from stillroom.merge.planning.inputs import open_sources, read_rules
from stillroom.recipes import build_recipe
from stillroom.testing import tiny_checkpoint
from stillroom.train.precision import limit_threads

WEIGHTS = (0.5137, 0.3071, 0.1963)
SEED = 1
FLAGS = [
    "--no-copy-tokenizer", "--no-write-model-card", "--quiet", "--allow-crimes",
    "--num-threads", "1", "--random-seed", str(SEED),
]  # fmt: skip

# Starts once and forks for every case: each is a run of its own, without seconds of imports.
_DRIVER = """
import json, os, sys, traceback
from mergekit.scripts.run_yaml import main
for recipe, out, flags in json.load(open(sys.argv[1])):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    try:
        main([recipe, out, *flags], standalone_mode=False)
    except BaseException:
        open(out + ".failed", "w").write(traceback.format_exc())
    os._exit(0)
"""


@dataclass(frozen=True)
class Case:
    """One merge, as both tools are told.

    Attributes:
        name: Names the case.
        theirs: mergekit's YAML without models, base and dtype, as ``merge_method: ties``.
        ours: The method's name and settings.
        per_model: What each model has in mergekit's ``parameters``; default the irregular weights.
        own: What each model has of its own in ours, beside its weight.
        models: How many of the fine-tunes are merged.
        base: ``apart`` where both take the base as such; ``first`` where mergekit's ``base_model``
            is the first model (slerp); None where there is none.
        dtypes: The storage types that are compared; computed in as well.
        ulps: How many units in the last place of its type an element may differ by, a type.
        share: How many of the elements may differ at all, a type.
        reason: Why, where anything may.
        wide: Merge a wider family, with tensors of more than 2**20 elements.
    """

    name: str
    theirs: dict
    ours: dict
    per_model: tuple = ()
    own: tuple = ()
    weights: tuple = WEIGHTS
    models: int = 3
    base: str | None = "apart"
    dtypes: tuple = ("float32", "bfloat16", "float16")
    ulps: dict = field(default_factory=dict)
    share: dict = field(default_factory=dict)
    reason: str = ""
    wide: bool = False


def find_mergekit():
    """The path of mergekit-yaml, or a skipped test."""
    path = os.environ.get("STILLROOM_PEER_MERGEKIT", "")
    if not path or not Path(path).is_file():
        pytest.skip("STILLROOM_PEER_MERGEKIT is not the path of a mergekit-yaml")
    return Path(path)


def make_families(folder):
    """Families by type and width."""
    return {
        (dtype, wide): make_family(folder / f"{dtype}-{wide}", dtype, wide=wide)
        for dtype in ("float32", "bfloat16", "float16")
        for wide in (False, True)
    }


def make_family(folder, dtype, *, wide=False):
    """A base and three fine-tunes of it; layer 10 is there so that names do not sort as numbers."""
    layers, hidden = (1, 768) if wide else (11, 32)
    base = tiny_checkpoint(
        folder / "base", layers=layers, hidden=hidden, dtype=getattr(torch, dtype)
    )
    return base, [_tune(base, folder / f"tune{seed}", seed) for seed in (1, 2, 3)]


def _tune(source, folder, seed):
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    for file in source.iterdir():
        if file.suffix == ".json":
            (folder / file.name).write_bytes(file.read_bytes())
    rng = torch.Generator().manual_seed(100 + seed)
    shared = torch.Generator().manual_seed(7)
    tensors = {}
    for name, tensor in sorted(load_file(source / "model.safetensors").items()):
        own = torch.randn(tensor.shape, generator=rng)
        common = torch.randn(tensor.shape, generator=shared)
        tensors[name] = (tensor.float() + 0.01 * (own + 0.7 * common)).to(tensor.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_theirs(case, dtype, family, path):
    """Write mergekit's recipe of a case."""
    base, tunes = family
    entries = []
    per_model = case.per_model or tuple({"weight": weight} for weight in case.weights)
    for tune, settings in zip(tunes[: case.models], per_model, strict=False):
        entries.append({"model": str(tune), "parameters": settings})
    recipe = {"models": entries, "dtype": dtype, **case.theirs}
    if case.base == "apart":
        recipe["base_model"] = str(base)
    if case.base == "first":
        recipe["base_model"] = str(tunes[0])
    path.write_text(json.dumps(recipe))  # JSON is YAML


def run_theirs(cases, families, folder):
    """Run mergekit over all cases; returns the folder of each (case, dtype)."""
    program, jobs, done = find_mergekit(), [], {}
    for case in cases:
        for dtype in case.dtypes:
            out = folder / f"{case.name}-{dtype}"
            recipe = out.with_suffix(".yml")
            write_theirs(case, dtype, families[dtype, case.wide], recipe)
            jobs.append((str(recipe), str(out), FLAGS))
            done[case.name, dtype] = out
    (folder / "driver.py").write_text(_DRIVER)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    # The program's own interpreter, so that this runs what the program would.
    python = program.read_text().splitlines()[0].removeprefix("#!").strip()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [python, str(folder / "driver.py"), str(folder / "jobs.json")],
        check=True,
        env=environment,
        capture_output=True,
        timeout=1500,  # on a crowded machine
    )
    return done


def run_ours(case, dtype, family):
    """Replicate a case: tensors by name, one seed before the first."""
    base, tunes = family
    opened = [Checkpoint.open(tune) for tune in tunes[: case.models]]
    origin = Checkpoint.open(base) if case.base == "apart" else None
    method = METHODS.build(case.ours)
    torch.manual_seed(SEED)
    merged = {}
    for name in sorted(opened[0].names()):
        parents = [each.tensor(name).to(getattr(torch, dtype)) for each in opened]
        start = origin.tensor(name).to(getattr(torch, dtype)) if origin else None
        weights = tuple(case.weights[: case.models])
        keys = tuple(str(number) for number in range(case.models))
        at = BlockContext(name, tuple(parents[0].shape), keys, weights, case.own, SEED)
        with limit_threads(1):  # as mergekit is held to
            merged[name] = merge_whole_tensor(method, start, parents, at)
    return merged


def run_their_file(path, out):
    """Run a file of mergekit's with our engine; returns the tensors."""
    (imported,) = read_mergekit_config(path)
    recipe = build_recipe(imported.recipe | {"seed": SEED})
    base, parents = open_sources(recipe)
    Merge(recipe.method, base, parents, read_rules(recipe), recipe.seed).write(out)
    made = Checkpoint.open(out)
    return {name: made.tensor(name) for name in made.names()}


def compare(case, dtype, ours, theirs):
    """Check every tensor, bit for bit where nothing else is said."""
    failed = theirs.with_name(theirs.name + ".failed")
    assert not failed.exists(), failed.read_text()[-2000:]
    found = Checkpoint.open(theirs)
    assert sorted(found.names()) == sorted(ours)
    allowed, share = case.ulps.get(dtype, 0), case.share.get(dtype, 0.0)
    assert not allowed or case.reason, "a difference needs a reason"
    differing = total = 0
    for name, tensor in ours.items():
        other = found.tensor(name)
        assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape), name
        steps = np.abs(_ordered(tensor) - _ordered(other))
        assert steps.max(initial=0) <= allowed, (
            f"{name}: {np.count_nonzero(steps)} of {steps.size} elements differ, "
            f"by {steps.max()} units in the last place"
        )
        differing += np.count_nonzero(steps)
        total += steps.size
    assert differing <= share * total, f"{differing} of {total} elements differ"


def _ordered(tensor):
    """The bits as integers that are neighbors where the numbers are; both zeros are 0."""
    wide = {2: np.int16, 4: np.int32, 8: np.int64}[tensor.element_size()]
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.contiguous().view(kind).numpy().astype(np.int64)
    return np.where(bits < 0, np.int64(np.iinfo(wide).min) - bits, bits)
