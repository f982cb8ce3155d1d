import pytest
import torch
from tests.unit.models.tiny_encoders import make_colbert, make_masked_lm
from transformers import BertForMaskedLM, PreTrainedTokenizerFast

from stillroom.errors import CheckpointError, DataError
from stillroom.models.encoders.retrieval import SparseEncoder

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
