import json

import pytest
import torch
from tests.unit.models.tiny_encoders import make_classifier, make_colbert, make_masked_lm
from transformers import BertForMaskedLM, PreTrainedTokenizerFast

from stillroom.errors import CheckpointError, DataError
from stillroom.models.encoders import text_encoder
from stillroom.models.encoders.retrieval import ColbertEncoder, SparseEncoder
from stillroom.models.encoders.sequence_classifiers import CrossEncoder, NLIModel, TextClassifier
from stillroom.rag.model_calls import read_fingerprint

TEXTS = ["the cat sleeps at night", "a dog barks", "cat", "the river mill ground corn . " * 20]


def reference(folder, text):
    """Return what SPLADE's own code computes: the maximum of log(1 + relu(logits)) a term."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = BertForMaskedLM.from_pretrained(folder).eval()
    given = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
    with torch.inference_mode():
        logits = model(**given).logits
        told = torch.log1p(torch.relu(logits)) * given["attention_mask"].unsqueeze(-1)
        weights = told.max(dim=1).values[0]
    names = tokenizer.convert_ids_to_tokens(range(len(weights)))
    return {names[at]: float(weight) for at, weight in enumerate(weights) if weight > 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_masked_lm(tmp_path_factory.mktemp("mlm"))


def test_weights_are_those_of_the_papers_formula(folder):
    encoder = SparseEncoder(folder)
    for text, found in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        assert found == pytest.approx(reference(folder, text), rel=1e-5)
        assert list(found.values()) == sorted(found.values(), reverse=True)
    assert encoder.truncated == 1
    encoder.close()


def test_a_texts_weights_do_not_depend_on_the_texts_beside_it(folder):
    encoder = SparseEncoder(folder)
    together = encoder.encode(TEXTS)
    assert [encoder.encode([text])[0] for text in TEXTS] == together
    encoder.close()


def test_the_heaviest_terms_are_kept(folder):
    whole, few = SparseEncoder(folder), SparseEncoder(folder, max_terms=5)
    assert list(few.encode(TEXTS)[0].items()) == list(whole.encode(TEXTS)[0].items())[:5]
    assert whole.fingerprint != few.fingerprint
    with pytest.raises(DataError):
        whole.encode(["  "])


def test_what_has_no_head_for_it_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none", make_colbert(tmp_path / "colbert")):
        with pytest.raises(CheckpointError) as caught:
            SparseEncoder(folder)
        assert caught.value.code == "checkpoint.not-a-masked-lm"


def make_nli(folder):
    return make_classifier(folder, {0: "entailment", 1: "neutral"})


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (make_masked_lm, lambda folder: SparseEncoder(folder).fingerprint),
        (make_colbert, lambda folder: ColbertEncoder(folder).fingerprint),
        (make_nli, lambda folder: CrossEncoder(folder).fingerprint),
        (make_nli, lambda folder: NLIModel(folder).fingerprint),
        (make_nli, lambda folder: TextClassifier(folder).fingerprint),
        (make_nli, lambda folder: read_fingerprint(str(folder))),
    ],
    ids=["sparse", "colbert", "cross-encoder", "nli", "classifier", "cached answers"],
)
def test_the_fingerprint_tells_tokenizers_apart(tmp_path, make, read):
    folder = make(tmp_path)
    first = read(folder)
    assert read(folder) == first
    file = folder / "tokenizer.json"
    content = json.loads(file.read_bytes())
    content["normalizer"] = {"type": "NFC"}
    file.write_text(json.dumps(content), encoding="utf-8")
    assert read(folder) != first


def test_a_tokenizer_is_digested_again_only_if_its_file_has_changed(tmp_path, monkeypatch):
    folder = make_nli(tmp_path)
    first = read_fingerprint(str(folder))
    read: list[object] = []
    monkeypatch.setattr(text_encoder, "digest_file", read.append)
    assert read_fingerprint(str(folder)) == first
    assert not read


def test_a_tokenizer_that_cannot_be_read_has_no_fingerprint(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(text_encoder, "digest_file", refuse)
    assert read_fingerprint(str(make_nli(tmp_path))) == ""
