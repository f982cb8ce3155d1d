import numpy as np
import pytest
import torch
from tests.unit.models.tiny_encoders import make_colbert, make_masked_lm, write_json
from transformers import BertModel, PreTrainedTokenizerFast

from stillroom.errors import CheckpointError, DataError
from stillroom.models import open_embedder
from stillroom.models.encoders.retrieval import ColbertEncoder, open_multi_vector_encoder


def reference(folder, text, marker, *, length, fill, attend, skipped):
    """Return what ColBERT's own code computes, step by step."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    torch.manual_seed(1)  # as the folder was drawn
    BertModel(model.config, add_pooling_layer=False)
    weight = torch.randn(16, 32) * 0.2
    markers = [tokenizer.convert_tokens_to_ids(marker)] if marker else []
    ids = tokenizer(text, truncation=True, max_length=length - len(markers))["input_ids"]
    ids = [ids[0], *markers, *ids[1:]]
    mask = [1] * len(ids)
    if fill:
        mask += [int(attend)] * (length - len(ids))
        ids += [tokenizer.mask_token_id] * (length - len(ids))
    with torch.inference_mode():
        states = model(torch.tensor([ids]), attention_mask=torch.tensor([mask]))[0][0]
        rows = torch.nn.functional.normalize(states @ weight.T, dim=1).numpy()
    gone = {tokenizer.convert_tokens_to_ids(mark) for mark in skipped}
    return rows[[at for at, one in enumerate(ids) if one not in gone]]


@pytest.mark.parametrize("layout", ["pylate", "authors"])
@pytest.mark.parametrize("attend", [False, True])
def test_vectors_are_those_of_the_papers_steps(tmp_path, layout, attend):
    name = "attend_to_expansion_tokens" if layout == "pylate" else "attend_to_mask_tokens"
    folder = make_colbert(tmp_path / "c", layout, **{name: attend})
    encoder = ColbertEncoder(folder)
    query, passage = "the cat sleeps ?", "the dog barks , at night . " * 6
    asks, says = ("[Q] ", "[D] ") if layout == "pylate" else ("[unused0]", "[unused1]")
    (asked,) = encoder.encode([query], kind="query")
    (read,) = encoder.encode([passage], kind="passage")
    told = reference(folder, query, asks, length=12, fill=True, attend=attend, skipped=())
    assert asked.shape == (12, 16)
    np.testing.assert_allclose(asked, told, atol=1e-5)
    skipped = (".", ",") if layout == "pylate" else (".", ",", "!", "?")
    told = reference(folder, passage, says, length=20, fill=False, attend=False, skipped=skipped)
    assert read.shape == told.shape
    np.testing.assert_allclose(read, told, atol=1e-5)
    assert encoder.truncated == 1
    encoder.close()


def test_an_empty_prefix_and_an_empty_skip_list_are_kept(tmp_path):
    """PyLate saves "" for a model without a marker, and [] for one that keeps punctuation."""
    none = {"query_prefix": "", "document_prefix": "", "skiplist_words": []}
    encoder = ColbertEncoder(make_colbert(tmp_path / "c", **none))
    passage = "the dog barks , at night . " * 6
    for kind, length, fill in (("query", 12, True), ("passage", 20, False)):
        (found,) = encoder.encode([passage], kind=kind)
        expected = reference(
            tmp_path / "c", passage, "", length=length, fill=fill, attend=False, skipped=()
        )
        np.testing.assert_allclose(found, expected, atol=1e-5)
    encoder.close()


def test_a_texts_vectors_do_not_depend_on_the_texts_beside_it(tmp_path):
    encoder = ColbertEncoder(make_colbert(tmp_path / "c"))
    texts = ["the cat", "a dog barks at night", "paris is the capital of france"]
    for kind in ("query", "passage"):
        together = encoder.encode(texts, kind=kind)
        for text, own in zip(texts, together, strict=True):
            assert np.array_equal(encoder.encode([text], kind=kind)[0], own)


def test_an_embedders_token_states_serve_as_well(tmp_path):
    folder = make_masked_lm(tmp_path / "sentence")
    embedder = open_embedder(str(folder))
    encoder = open_multi_vector_encoder("builtin:embedder", embedder)
    (rows,) = encoder.encode(["the cat sleeps"], kind="passage")
    assert (rows.shape, encoder.width) == ((3, 32), 32)
    assert np.array_equal(rows, embedder.embed_tokens(["the cat sleeps"], kind="passage")[0])
    with pytest.raises(DataError) as caught:
        open_multi_vector_encoder("builtin:embedder", open_embedder("static"))
    assert caught.value.code == "rag.no-token-states"


def test_what_is_no_colbert_is_refused(tmp_path):
    cases = [tmp_path / "none", make_masked_lm(tmp_path / "mlm")]
    lacking = make_colbert(tmp_path / "lacking")
    (lacking / "1_Dense" / "model.safetensors").unlink()
    outside = make_colbert(tmp_path / "outside")
    write_json(outside / "modules.json", [{"path": "../mlm", "type": "x.Dense"}])
    unmarked = make_colbert(tmp_path / "unmarked", query_prefix="two words")
    short = make_colbert(tmp_path / "short", query_length=4)
    for folder in (*cases, lacking, outside, unmarked, short):
        with pytest.raises(CheckpointError) as caught:
            ColbertEncoder(folder)
        assert caught.value.code in {"checkpoint.not-a-colbert", "checkpoint.no-weights"}
