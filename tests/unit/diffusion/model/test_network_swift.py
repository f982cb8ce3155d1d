"""Reading by weights alone is what the library's modules compute."""

import pytest
import torch

from stillroom.diffusion.model.network import DiffusionModel, FastLlamaBody, ForwardRequest
from stillroom.models.local.attention import SlotKVCache

CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 64,
}


def build(kind, **more):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **CONFIG, **more)
    network = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").double().eval()
    for name, tensor in network.named_parameters():
        if "norm" in name or "bias" in name:
            tensor.data.normal_(1, 0.2)
    return network


def model_of(network):
    from stillroom.diffusion.model.metadata import DiffusionMetadata

    metadata = DiffusionMetadata(mask_token_id=300, attention="block_causal", block_size=4)
    return DiffusionModel(network, metadata)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 16}),
    ],
)
@torch.inference_mode()
def test_states_are_those_of_the_library(kind, more):
    model = model_of(build(kind, **more))
    swift = model._swift
    assert swift is not None
    ids = torch.arange(3, 14)
    at = torch.arange(len(ids))
    want = torch.tensor([1, 4, 10])
    found = {}
    for name, way in (("swift", swift), ("library", None)):
        model._swift = way
        keys = SlotKVCache(len(ids))
        seen = model.attention_mask(at, at)
        whole = model.read([ForwardRequest(ids, at, seen, want)])[0]
        first = model.read([ForwardRequest(ids[:8], at[:8], seen[:8, :8], at[7:8], keys, at[:8])])[
            0
        ]
        # a block that sees everything before it, then the same with one key hidden
        rest = model.read([ForwardRequest(ids[8:], at[8:], seen[8:], at[:3], keys, at[8:])])[0]
        hidden = seen[8:].clone()
        hidden[:, 2] = False
        less = model.read([ForwardRequest(ids[8:], at[8:], hidden, at[:3], keys, at[8:])])[0]
        found[name] = (whole, first, rest, less)
    for one, other in zip(found["swift"], found["library"], strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert not torch.allclose(found["swift"][2], found["swift"][3], atol=1e-5)


def test_what_is_not_known_to_be_the_same_is_left_to_the_library():
    assert FastLlamaBody.from_body(build("llama").model) is not None
    assert FastLlamaBody.from_body(build("llama", hidden_act="gelu").model) is None
    eager = build("llama").model
    eager.config._attn_implementation = "eager"
    assert FastLlamaBody.from_body(eager) is None
    hooked = build("llama").model
    hooked.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert FastLlamaBody.from_body(hooked) is None
    other = build("llama").model
    other.layers[0].self_attn.q_proj = torch.nn.Sequential(other.layers[0].self_attn.q_proj)
    assert FastLlamaBody.from_body(other) is None
