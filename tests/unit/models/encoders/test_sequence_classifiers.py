"""Classifiers: the chances that transformers gives, in windows where a text is long."""

import pytest
import torch
from tests.unit.models.tiny_encoders import make_classifier
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stillroom.errors import CheckpointError
from stillroom.models.encoders.sequence_classifiers import TextClassifier

LABELS = {0: "toxic", 1: "insult", 2: "neutral"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_classifier(tmp_path_factory.mktemp("toxic"), LABELS)


def reference(folder, text):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(**tokenizer(text, return_tensors="pt")).logits[0]


def test_chances_are_those_of_transformers(folder):
    ours = TextClassifier(folder)
    texts = ["Bees make wax.", "You are late again, my friend.", "No."]
    found = ours.classify(texts)
    for text, chances in zip(texts, found, strict=True):
        wanted = reference(folder, text).softmax(-1).tolist()
        assert list(chances.values()) == pytest.approx(wanted, abs=1e-5)
    assert ours.classify(texts[::-1])[::-1] == [pytest.approx(one, abs=1e-5) for one in found]
    assert ours.classify([]) == []


def test_independent_labels_are_sigmoids(folder):
    ours = TextClassifier(folder)
    ours.independent = True
    (found,) = ours.classify(["Bees make wax."])
    wanted = reference(folder, "Bees make wax.").sigmoid().tolist()
    assert list(found.values()) == pytest.approx(wanted, abs=1e-5)


def test_a_long_text_is_read_to_its_end(folder):
    ours = TextClassifier(folder)
    ours.max_tokens = 32
    text = " ".join(f"word{number}" for number in range(60))
    windows = [window["input_ids"] for window in ours._windows(text)]
    assert len(windows) > 2
    assert max(map(len, windows)) <= 32
    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    assert set(ids) <= {token for window in windows for token in window}
    assert windows[-1][-3:] == ids[-3:]
    (whole,) = ours.classify([text])
    parts = [ours._run([window])[0] for window in ours._windows(text)]
    highest = [max(column) for column in zip(*parts, strict=True)]
    assert list(whole.values()) == pytest.approx(highest, abs=1e-5)


def test_labels_are_named_not_guessed(folder):
    ours = TextClassifier(folder)
    assert ours.find_labels(["TOXIC"]) == ("toxic",)
    with pytest.raises(CheckpointError) as caught:
        ours.find_labels(["rude"])
    assert caught.value.code == "checkpoint.labels"
