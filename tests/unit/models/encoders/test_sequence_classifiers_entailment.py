"""Models of natural language inference: labels by name, the same chances as transformers gives."""

import json

import pytest
import torch
from tests.unit.models.tiny_encoders import make_classifier
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stillroom.errors import BackendError, CheckpointError
from stillroom.models.encoders.sequence_classifiers import NLIModel

LABELS = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_classifier(tmp_path_factory.mktemp("nli"), LABELS)


def test_chances_are_those_of_transformers(folder):
    ours = NLIModel(folder)
    premises = ["Cats purr when they rest.", "A dog barks.", "Paris is big. " * 9]
    hypotheses = ["Cats purr.", "A dog is silent.", "Paris is big."]
    found = ours.entail(premises, hypotheses)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    for premise, hypothesis, chance in zip(premises, hypotheses, found, strict=True):
        with torch.inference_mode():
            logits = model(**tokenizer(premise, hypothesis, return_tensors="pt")).logits
        assert chance == pytest.approx(float(logits.softmax(-1)[0, 2]), abs=1e-5)
    assert ours.entail(premises[::-1], hypotheses[::-1])[::-1] == pytest.approx(found, abs=1e-5)
    assert ours.entail([], []) == []


def test_only_the_premise_is_cut(folder):
    ours = NLIModel(folder)
    ours.entail(["word " * 2 * ours.max_tokens], ["Cats purr."])
    assert ours.truncated == 1
    with pytest.raises(BackendError) as caught:
        ours.entail(["Cats purr."], ["word " * 2 * ours.max_tokens])
    assert caught.value.code == "backend.context"


@pytest.mark.parametrize("labels", [{0: "LABEL_0", 1: "LABEL_1"}, {0: "entailment"}])
def test_labels_are_never_guessed(folder, tmp_path, labels):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    config["id2label"] = {str(at): name for at, name in labels.items()}
    config["label2id"] = {name: at for at, name in labels.items()}
    (copy / "config.json").write_text(json.dumps(config))
    for file in copy.glob("*.safetensors"):
        from safetensors.torch import load_file, save_file

        tensors = load_file(file)
        tensors["score.weight"] = tensors["score.weight"][: len(labels)].clone()
        save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        NLIModel(copy)
    assert caught.value.code == "checkpoint.not-an-entailment-model"
