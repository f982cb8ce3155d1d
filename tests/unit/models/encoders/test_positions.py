"""Encoders whose positions start after that of the padding read no more tokens than they have."""

import math

import pytest
import torch
import transformers
from tests.unit.models.tiny_encoders import write_tokenizer

from stillroom.models.encoders.sequence_classifiers import CrossEncoder


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "XLMRoberta", "MPNet"])
def test_a_text_longer_than_the_positions_is_cut_to_them(kind, tmp_path):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=66, pad_token_id=1, num_labels=1,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    reader = CrossEncoder(tmp_path)
    assert reader.max_tokens == (66 if kind == "Bert" else 64)
    scores = reader.score("the river", ["river " * 100, "river"])
    assert all(map(math.isfinite, scores))
