import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

from stillroom.errors import CheckpointError
from stillroom.models.encoders.vision import build_vision, load_vision

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


def test_without_the_weights_of_a_pooler_the_vector_is_the_first_tokens_state(tmp_path):
    """The checkpoints of DINO have none: a random pooler gave other vectors at every load."""
    ViTModel(ViTConfig(**SIZES), add_pooling_layer=False).save_pretrained(tmp_path)
    images = torch.randn(1, 3, 32, 32)
    vision = load_vision(tmp_path)
    with torch.inference_mode():
        expected = vision.model(pixel_values=images).last_hidden_state[:, 0]
        assert torch.equal(vision.vectors(images), expected)
        assert torch.equal(load_vision(tmp_path).vectors(images), expected)
    assert not build_vision(vision.to_json()).has_pooler


def test_a_clip_without_its_projection_is_refused(tmp_path):
    CLIPVisionModel(CLIPVisionConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"visual_projection\.weight"):
        load_vision(tmp_path)
