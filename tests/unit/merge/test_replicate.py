"""``compat: mergekit`` end to end: the same bytes whatever torch would use of the machine."""

import json
import os
import subprocess
import sys

from tests.unit.merge.conftest import fine_tune

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
