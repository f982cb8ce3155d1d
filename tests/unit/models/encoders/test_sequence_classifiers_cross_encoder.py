import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.models.tiny_encoders import config_of, write_tokenizer
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from stillroom.errors import BackendError, CheckpointError
from stillroom.models import RerankerModel, open_reranker

WORDS = "the river mill ground corn sugar lemon north of a and".split()
TEXTS = ["the mill ground corn", "lemon", "sugar and lemon of the north " * 3, "a river", "corn"]


@pytest.fixture
def checkpoint(tmp_path):
    """Return a function that saves a tiny cross-encoder with that many labels."""

    def make(labels=1):
        size = write_tokenizer(tmp_path, WORDS)
        torch.manual_seed(0)
        config = config_of(
            size, max_position_embeddings=48, initializer_range=0.5, num_labels=labels
        )
        BertForSequenceClassification(config).save_pretrained(tmp_path)
        return tmp_path

    return make


def reference(folder, query, text, max_length=48):
    """Score one pair alone."""
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    given = tokenizer(
        query, text, return_tensors="pt", truncation="only_second", max_length=max_length
    )
    with torch.inference_mode():
        logits = model(**given).logits[0]
    return float(logits[0] if len(logits) == 1 else logits[1] - logits[0])


@pytest.mark.parametrize("labels", [1, 2])
def test_scores_are_those_of_each_pair_alone(checkpoint, labels):
    folder = checkpoint(labels)
    reader = open_reranker(str(folder))
    assert isinstance(reader, RerankerModel)
    expected = [reference(folder, "ground corn", text) for text in TEXTS]
    assert reader.score("ground corn", TEXTS) == pytest.approx(expected, rel=1e-5)
    assert len(set(expected)) == len(TEXTS)


def test_a_score_does_not_depend_on_the_texts_beside_it(checkpoint):
    reader = open_reranker(str(checkpoint()))
    together = reader.score("river", TEXTS * 4)
    alone = [reader.score("river", [text])[0] for text in TEXTS]
    assert together == pytest.approx(alone * 4, abs=1e-5)
    assert reader.score("river", TEXTS[::-1]) == pytest.approx(alone[::-1], abs=1e-5)
    assert reader.score("river", []) == []


def test_only_the_passage_is_cut_and_it_is_counted(checkpoint):
    folder = checkpoint()
    reader = open_reranker(str(folder))
    query, long = "the river and the mill", "corn sugar lemon north " * 40
    assert reader.score(query, [long, "corn"]) == pytest.approx(
        [reference(folder, query, long), reference(folder, query, "corn")], abs=1e-5
    )
    assert reader.truncated == 1


def test_a_query_that_leaves_no_room_is_refused(checkpoint):
    reader = open_reranker(str(checkpoint()))
    with pytest.raises(BackendError) as caught:
        reader.score("corn " * 40, ["lemon"])
    assert caught.value.code == "backend.context"


def test_three_labels_and_other_folders_are_refused(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="3 labels") as caught:
        open_reranker(str(checkpoint(3)))
    assert caught.value.code == "checkpoint.not-a-cross-encoder"


def test_an_encoder_without_a_head_is_refused(tmp_path, checkpoint):
    folder = checkpoint()
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        config.replace("BertForSequenceClassification", "BertModel")
    )
    with pytest.raises(CheckpointError, match="BertModel"):
        open_reranker(str(folder))


def test_a_head_that_would_be_drawn_at_random_is_refused(checkpoint):
    weights = checkpoint() / "model.safetensors"
    held = {name: value for name, value in load_file(weights).items() if "classifier" not in name}
    save_file(held, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks classifier\.bias"):
        open_reranker(str(weights.parent))


def test_other_weights_or_limits_have_another_fingerprint(checkpoint):
    folder = str(checkpoint())
    assert open_reranker(folder).fingerprint == open_reranker(folder).fingerprint
    assert open_reranker(folder).fingerprint != open_reranker(folder, max_tokens=40).fingerprint
