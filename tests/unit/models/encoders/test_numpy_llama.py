import json

import pytest
import torch

from stillroom.models.encoders.numpy_llama import open_llama
from stillroom.models.interfaces import BACKENDS
from stillroom.records import Prompt
from stillroom.testing import tiny_checkpoint


@pytest.mark.parametrize(
    ("settings", "most"),
    [({}, 1e-4), ({"tie": False}, 1e-4), ({"dtype": torch.bfloat16}, 1e-4)],
    ids=["tied", "untied", "bfloat16"],
)
def test_scores_are_those_of_transformers(tmp_path, settings, most):
    folder = tiny_checkpoint(tmp_path, **settings)
    model = open_llama(folder)
    engine = BACKENDS.build({"name": "transformers", "dtype": "float32"}).open(str(folder))
    for context, completion in [("The mill ground corn.", " What ground corn?"), ("a", "b")]:
        found = model.score(model.encode(context), model.encode(completion))
        (expected,) = engine.score([Prompt((), context)], [completion])
        assert found == pytest.approx(expected.total, abs=most * len(expected.logprobs))
    assert model.score(model.encode("a"), []) == 0.0


@pytest.mark.parametrize(
    "setting",
    [
        {"attention_bias": True},
        {"model_type": "qwen2"},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"num_hidden_layers": 9},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_what_would_be_computed_wrongly_is_not_opened(tmp_path, setting):
    folder = tiny_checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | setting
    if "rope_scaling" in setting:
        config.pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps(config))
    assert open_llama(folder) is None
