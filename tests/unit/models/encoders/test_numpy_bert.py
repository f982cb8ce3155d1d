"""A query is read in numpy as torch would read it, and without torch."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    MPNetConfig,
    MPNetModel,
)

from stillroom.models import open_embedder
from stillroom.models.encoders.numpy_bert import erf, open_bert

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = "the a river mill ##s ##ing ##er ground corn sugar cafe naive : , . ? ! ' -".split()
LETTERS = [mark + one for one in "abcdefghijklmnopqrstuvwxyz0123456789" for mark in ("", "##")]
TEXTS = [
    "the river mills, grinding corn?",
    "Café NAÏVE",
    "corn",
    "[SEP] the mill's [MASK] 日本 🎉 \u00ad\u200b ﬁne",
    "x" * 130,
    "the river " * 80,
]


@pytest.fixture
def folder(tmp_path):
    """Write a small BERT with a word-piece tokenizer, as its authors' tools leave it."""
    import torch

    vocabulary = {one: at for at, one in enumerate([*SPECIAL, *PIECES, *LETTERS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.enable_padding(length=64)  # as some folders have it: neither is meant for a query
    tokenizer.enable_truncation(64)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    told = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 128}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=128,
    )
    model = BertModel(config)
    for weight in model.parameters():  # so that no part is lost in rounding
        weight.data.mul_(3)
    model.save_pretrained(tmp_path)
    return tmp_path


def make_mpnet(folder):
    """Replace the weights and the tokenizer's class of a small BERT by MPNet's."""
    import torch

    config = MPNetConfig(
        vocab_size=len((folder / "vocab.txt").read_text().split("\n")),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=130,
    )
    torch.manual_seed(0)
    model = MPNetModel(config)
    for weight in model.parameters():
        weight.data.mul_(3)
    model.save_pretrained(folder)
    change(
        folder / "tokenizer_config.json",
        tokenizer_class="MPNetTokenizer",
        **{"cls_token": "[CLS]", "sep_token": "[SEP]", "bos_token": "[CLS]", "eos_token": "[SEP]"},
        **{"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"},
    )


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_tokens_and_states_are_those_of_transformers(folder, kind):
    import torch

    if kind == "mpnet":
        make_mpnet(folder)
    bert, tokenizer = open_bert(folder), AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    for text in TEXTS:
        ids = tokenizer(text, truncation=True, max_length=100)["input_ids"]
        assert bert.tokenizer(text, truncation=True, max_length=100)["input_ids"] == ids
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
        np.testing.assert_allclose(bert.states(ids), expected, atol=5e-6)
    assert bert.tokenizer(TEXTS[0])["input_ids"] == tokenizer(TEXTS[0])["input_ids"]
    assert set(bert.tokenizer.all_special_ids) == set(tokenizer.all_special_ids)
    assert bert.max_positions == 128


def test_an_mpnet_without_its_bias_by_distance_is_left_to_torch(folder):
    make_mpnet(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["encoder.relative_attention_bias.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    assert open_bert(folder) is None


def test_a_query_lies_where_the_same_passage_lies(folder):
    embedder = open_embedder(str(folder))
    assert embedder.max_tokens == 128
    queries = embedder.embed(TEXTS, kind="query")
    assert embedder.truncated == 1
    np.testing.assert_allclose(queries, embedder.embed(TEXTS, kind="passage"), atol=1e-6)
    assert embedder.truncated == 2
    assert queries.tobytes() == embedder.embed(TEXTS, kind="query").tobytes()


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"hidden_act": "gelu_new"}),
        ("config.json", {"position_embedding_type": "relative_key"}),
        ("config.json", {"model_type": "roberta"}),
        ("config.json", {"is_decoder": True}),
        ("config.json", {"num_hidden_layers": "many"}),
        ("tokenizer_config.json", {"do_lower_case": False}),
        ("tokenizer_config.json", {"strip_accents": False}),
        ("tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"}),
    ],
)
def test_what_may_be_read_otherwise_is_left_to_torch(folder, file, values):
    assert open_bert(folder) is not None
    change(folder / file, **values)
    assert open_bert(folder) is None


def test_tensors_of_other_names_or_shapes_are_left_to_torch(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    expected = open_embedder(str(folder)).embed(TEXTS, kind="query")
    bias = "encoder.layer.1.output.dense.bias"
    save_file({**tensors, bias: tensors[bias][:7]}, path, metadata={"format": "pt"})
    assert open_bert(folder) is None
    save_file({name: one for name, one in tensors.items() if name != bias}, path)
    assert open_bert(folder) is None
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}  # as of 2018
    for now, then in old.items():
        tensors = {name.replace(now, then): one for name, one in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    assert open_bert(folder) is None
    found = open_embedder(str(folder)).embed(TEXTS, kind="query")
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_half_a_character_is_read_as_one_that_is_not_known(folder):
    embedder = open_embedder(str(folder))
    for kind in ("query", "passage"):
        odd, whole = embedder.embed(["the \ud800 mill", "the \ufffd mill"], kind=kind)
        np.testing.assert_allclose(odd, whole, atol=1e-6)
    assert embedder.count_tokens("the \ud800 mill") == embedder.count_tokens("the \ufffd mill")


def test_the_error_function_is_exact_to_single_precision():
    values = np.linspace(-6, 6, 4001, dtype=np.float32)
    expected = [math.erf(float(one)) for one in values]
    np.testing.assert_allclose(erf(values), expected, atol=5e-7)


def test_a_search_imports_no_torch(folder, tmp_path):
    code = (
        "import sys; from stillroom.models import open_embedder;"
        f"one = open_embedder({str(folder)!r});"
        "one.embed(['the mill'], kind='query'); one.count_tokens('the mill'); one.fingerprint;"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert told.stdout == "[]\n"
