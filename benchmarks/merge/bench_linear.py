"""Averaging three checkpoints: our stream beside loading all three and averaging with torch.

The peer is the plain way (safetensors' load_file, a float32 mean, save_file); a comparison with
mergekit belongs to the merge room's own issue. Equality is checked first.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measuring import measure

from stillroom.merge import merge_checkpoints
from stillroom.merge.method import METHODS
from stillroom.testing import tiny_checkpoint

COUNT = 3


def main() -> None:
    """Make the checkpoints, compare the two results, measure."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parents = [
            tiny_checkpoint(folder / f"parent{seed}", seed=seed, layers=8, hidden=512)
            for seed in range(COUNT)
        ]
        method = METHODS.build("linear")

        def ours() -> None:
            shutil.rmtree(folder / "ours", ignore_errors=True)
            merge_checkpoints(method, None, parents, folder / "ours")

        def peer() -> None:
            loaded = [load_file(parent / "model.safetensors") for parent in parents]
            merged = {
                key: (sum(one[key].float() for one in loaded) / COUNT).to(loaded[0][key].dtype)
                for key in loaded[0]
            }
            save_file(merged, folder / "peer.safetensors", metadata={"format": "pt"})

        def bound() -> None:
            for parent in parents:
                (parent / "model.safetensors").read_bytes()
            shutil.copyfile(parents[0] / "model.safetensors", folder / "copy.safetensors")

        ours()
        peer()
        ours_tensors = load_file(folder / "ours" / "model.safetensors")
        for key, tensor in load_file(folder / "peer.safetensors").items():
            torch.testing.assert_close(ours_tensors[key], tensor, rtol=1e-6, atol=1e-7)
        measure("merge/linear/small/cpu", ours, ("plain torch", peer), bound)


if __name__ == "__main__":
    main()
