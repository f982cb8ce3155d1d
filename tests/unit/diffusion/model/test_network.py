"""Attention is what the metadata says, whatever transformers would do by itself."""

import json

import pytest
import torch
from tests.unit.diffusion.conftest import MASK, say_diffusion

from stillroom.diffusion.model.loading import check_attention, open_diffusion
from stillroom.diffusion.model.metadata import DiffusionMetadata
from stillroom.diffusion.model.network import (
    DiffusionModel,
    ForwardRequest,
    build_attention_mask,
    build_block_diff_mask,
    format_mask,
)
from stillroom.errors import CheckpointError, RecipeError
from stillroom.testing import tiny_checkpoint


def read(model, ids, want=None):
    ids = torch.as_tensor(ids)
    at = torch.arange(len(ids))
    want = at if want is None else torch.as_tensor(want)
    with torch.inference_mode():
        (states,) = model.read([ForwardRequest(ids, at, model.attention_mask(at, at), want)])
        return model.logits(states)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_later_token_changes_earlier_logits_under_full_attention_only(plain, implementation):
    from stillroom.models import load_causal_lm

    network, _ = load_causal_lm(plain, dtype="float32")
    network.set_attn_implementation(implementation)
    one = list(range(5, 17))
    other = [*one[:-1], 40]
    moved = {}
    for kind, size in (("full", None), ("block_causal", 4), ("causal", None)):
        metadata = DiffusionMetadata(mask_token_id=MASK, attention=kind, block_size=size)
        model = DiffusionModel(network, metadata)
        check_attention(model)
        moved[kind] = (read(model, one) != read(model, other)).any(-1).tolist()
    assert moved["full"] == [True] * 12
    assert moved["block_causal"] == [False] * 8 + [True] * 4
    assert moved["causal"] == [False] * 11 + [True]


def test_causal_attention_is_what_the_stock_model_does_by_itself(make_model):
    model = make_model(attention="causal")
    ids = torch.arange(4, 20)
    with torch.inference_mode():
        stock = model.network(input_ids=ids[None]).logits[0]
    assert torch.allclose(read(model, ids), stock, atol=1e-6)
    assert not torch.allclose(read(make_model(), ids), stock, atol=1e-2)


@pytest.mark.parametrize("metadata", [{}, {"attention": "block_causal", "block_size": 4}])
def test_a_row_alone_is_the_row_beside_longer_and_shorter_ones(make_model, metadata):
    model = make_model(double=True, **metadata)
    rows = [list(range(3, 3 + n)) for n in (9, 4, 13, 1)]
    readings = []
    for row in rows:
        at = torch.arange(len(row))
        readings.append(ForwardRequest(torch.tensor(row), at, model.attention_mask(at, at), at))
    with torch.inference_mode():
        together = model.read(readings)
        for row, states in zip(rows, together, strict=True):
            assert torch.allclose(model.logits(states), read(model, row), atol=1e-12)


def test_the_mask_of_one_pass_lets_noise_see_its_block_and_what_was_clean_before():
    mask = build_block_diff_mask(6, 2)
    block = [0, 0, 1, 1, 2, 2]
    for q in range(12):
        for k in range(12):
            b_q, b_k = block[q % 6], block[k % 6]
            of_noise = b_q == b_k if k < 6 else b_q > b_k
            of_clean = k >= 6 and b_q >= b_k
            assert bool(mask[q, k]) is (of_noise if q < 6 else of_clean)


def test_block_causal_with_one_block_sees_all_and_with_blocks_of_one_is_causal():
    at = torch.arange(7)
    assert build_attention_mask("block_causal", 7, at, at).all()
    assert torch.equal(
        build_attention_mask("block_causal", 1, at, at),
        build_attention_mask("causal", None, at, at),
    )


def test_an_attention_function_without_known_masks_is_refused(make_model):
    class Config:
        _attn_implementation = "flash_attention_2"

    class Network:
        config = Config()

    with pytest.raises(CheckpointError) as caught:
        format_mask(Network(), torch.ones(1, 2, 2, dtype=torch.bool), torch.float32)
    assert caught.value.code == "diffusion.attention"


def test_a_model_whose_layers_ignore_the_mask_is_found_out(plain):
    from stillroom.models import load_causal_lm

    network, _ = load_causal_lm(plain, dtype="float32")
    model = DiffusionModel(network, DiffusionMetadata(mask_token_id=MASK))
    forward = model.body.forward

    def deaf(**given):
        return forward(**{**given, "attention_mask": None})

    model.body.forward = deaf
    with pytest.raises(CheckpointError) as caught:
        check_attention(model, "here")
    assert caught.value.code == "diffusion.attention"
    assert "does not see" in str(caught.value)


def test_an_autoregressive_checkpoint_is_refused(plain):
    with pytest.raises(CheckpointError) as caught:
        open_diffusion(str(plain))
    assert caught.value.code == "diffusion.not-diffusion"


@pytest.mark.parametrize(
    "said",
    [
        {"mask_token_id": 2, "end_token_ids": [2]},
        {"mask_token_id": 5, "pad_token_id": 5},
        {"mask_token_id": 99999},
        {"mask_token_id": 5, "attention": "block_causal"},
        {"mask_token_id": 5, "block_size": 4},
        {"mask_token_id": 5, "attention": "sideways"},
        {"attention": "full"},
        {"mask_token_id": 5, "colour": "red"},
    ],
)
def test_metadata_that_contradicts_itself_is_refused(tmp_path, said):
    folder = tiny_checkpoint(tmp_path / "m", hidden=32)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "stillroom_diffusion": said}))
    with pytest.raises(CheckpointError) as caught:
        open_diffusion(str(folder))
    assert caught.value.code == "diffusion.metadata"


def test_what_is_known_better_may_be_said_and_nothing_else(tmp_path):
    folder = say_diffusion(tiny_checkpoint(tmp_path / "m", hidden=32))
    model = open_diffusion(str(folder), overrides={"attention": "block_causal", "block_size": 8})
    assert model.metadata.block_size == 8
    assert model.metadata.mask_token_id == MASK
    with pytest.raises(RecipeError) as caught:
        open_diffusion(str(folder), overrides={"blocks": 3})
    assert caught.value.code == "recipe.unknown-key"


def test_a_model_whose_tokens_change_little_opens_in_half_precision(tmp_path):
    """What one token changes of another's state is below what bfloat16 tells apart."""
    from safetensors.torch import load_file, save_file

    folder = say_diffusion(tiny_checkpoint(tmp_path / "m", layers=1, hidden=32))
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    for name in tensors:
        if name.endswith("o_proj.weight"):
            tensors[name] *= 1e-5
    save_file(tensors, file, metadata={"format": "pt"})
    assert open_diffusion(str(folder), dtype="bfloat16").dtype == torch.bfloat16
