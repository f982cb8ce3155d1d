"""``compat: mergekit`` end to end: the same bytes whatever torch would use of the machine."""

import json
import os
import subprocess
import sys

import pytest
from tests.unit.merge.conftest import fine_tune

from stillroom.errors import RecipeError
from stillroom.merge.opening import open_merge
from stillroom.merge.recipe import MergeRecipe
from stillroom.testing import tiny_checkpoint


def test_torchs_number_of_threads_never_changes_a_bit(tmp_path):
    # Large enough for torch to split sums; in processes of their own, where torch is loaded late.
    base = tiny_checkpoint(tmp_path / "base", layers=1, hidden=512)
    tunes = [fine_tune(base, tmp_path / f"tune{seed}", seed) for seed in (1, 2)]
    recipe = tmp_path / "merge.yaml"
    lines = ["version: 1", "kind: merge", "compat: mergekit", "method: dare_linear"]
    lines += [f"base: {base}", "models:", *(f"  - checkpoint: {tune}" for tune in tunes)]
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


@pytest.mark.parametrize("weights", [(1, -1), (0, 0)])
def test_nuslerp_of_weights_that_cancel_is_the_middle_as_in_mergekit_with_a_warning(
    half_family, tmp_path, weights
):
    def merge(name, weights, compat="mergekit"):
        models = [
            {"checkpoint": str(path), "weight": weight}
            for path, weight in zip(half_family[1], weights, strict=False)
        ]
        values = {"method": "nuslerp", "models": models, "compat": compat}
        made = open_merge(MergeRecipe.model_validate(values))
        return made.write(tmp_path / name).fingerprint, made.plan().notes

    found, notes = merge("cancel", weights)
    middle, none = merge("middle", (0.5, 0.5))
    assert found == middle
    assert [note.partition(":")[0] for note in notes] == ["warning"]
    assert none == ()
    with pytest.raises(RecipeError, match="add up to zero"):
        merge("paper", weights, compat="paper")
