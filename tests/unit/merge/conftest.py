"""Small checkpoints with one base, as fine-tunes of one model are."""

import pytest
import torch

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.checkpoints.writer import plan_tensors
from stillroom.merge import METHODS
from stillroom.testing import tiny_checkpoint


def rewrite(source, folder, change, **config):
    """Write a copy of a checkpoint whose tensors went through ``change(name, tensor)``."""
    opened = Checkpoint.open(source)
    tensors = {name: change(name, opened.tensor(name)) for name in opened.names()}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with CheckpointWriter(
        folder, config=opened.config | config, plan=plan_tensors(tensors)
    ) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.copy_tokenizer(source)
    return folder


def fine_tune(source, folder, seed, scale=0.02):
    """Write a copy with a random task vector added."""
    rng = torch.Generator().manual_seed(seed)

    def change(name, tensor):
        noise = scale * torch.randn(tensor.shape, generator=rng)
        return (tensor.float() + noise).to(tensor.dtype)

    return rewrite(source, folder, change)


def plain_methods():
    """Return the names of the methods that need nothing but models."""
    names = METHODS.names()
    fields = {name: METHODS.get(name).model_fields.values() for name in names}
    return [name for name in names if not any(field.is_required() for field in fields[name])]


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """A base and three fine-tunes, float32."""
    folder = tmp_path_factory.mktemp("family")
    base = tiny_checkpoint(folder / "base")
    return base, [fine_tune(base, folder / f"tune{seed}", seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="session")
def half_family(tmp_path_factory):
    """A base and three fine-tunes, bfloat16: their task vectors are full of equal magnitudes.

    Of one layer: most tests merge every tensor with every method.
    """
    folder = tmp_path_factory.mktemp("half")
    base = tiny_checkpoint(folder / "base", layers=1, dtype=torch.bfloat16)
    return base, [fine_tune(base, folder / f"tune{seed}", seed) for seed in (1, 2, 3)]
