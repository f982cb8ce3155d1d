"""Tiny diffusion models: real checkpoints, random weights."""

import json

import pytest
import torch

from stillroom.diffusion.model.metadata import DiffusionMetadata
from stillroom.testing import tiny_checkpoint

MASK = 300


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """An autoregressive checkpoint."""
    return tiny_checkpoint(tmp_path_factory.mktemp("plain") / "model", layers=2, hidden=32)


def say_diffusion(folder, **metadata):
    """Write diffusion metadata into a checkpoint's config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    said = DiffusionMetadata(**{"mask_token_id": MASK, "end_token_ids": (2,), **metadata})
    path.write_text(json.dumps(said.to_config(config)))
    return folder


@pytest.fixture(scope="session")
def make_model(tmp_path_factory):
    """Return a function that opens a tiny model with some metadata, each once."""
    from stillroom.diffusion.model.loading import open_diffusion

    made = {}

    def make(double=False, **metadata):
        key = json.dumps([double, metadata], sort_keys=True)
        if key not in made:
            folder = tiny_checkpoint(tmp_path_factory.mktemp("model") / "m", layers=2, hidden=32)
            made[key] = open_diffusion(str(say_diffusion(folder, **metadata)), dtype="float32")
            if double:
                made[key].network.double()
        return made[key]

    return make
