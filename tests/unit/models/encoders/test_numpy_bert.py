"""A query is read in numpy as torch would read it, and without torch."""

import gc
import json
import math
import mmap
import os
import struct
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    MPNetConfig,
    MPNetModel,
)

from stillroom.errors import CheckpointError
from stillroom.models import open_embedder
from stillroom.models.encoders.numpy_bert import PlainTokenizer, erf, open_bert

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


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_layers_of_8_bit_integers_give_nearly_the_same_states(folder, kind):
    if kind == "mpnet":
        make_mpnet(folder)
    bert = open_bert(folder)
    quantized = bert.adapt({}, 1.0, to_int8=True)
    assert quantized.is_quantized
    assert not bert.is_quantized
    for text in TEXTS:
        ids = bert.tokenizer(text, truncation=True, max_length=100)["input_ids"]
        exact, rounded = bert.states(ids), quantized.states(ids)
        assert np.array_equal(quantized.states(ids), rounded)
        cosine = (exact * rounded).sum() / np.linalg.norm(exact) / np.linalg.norm(rounded)
        assert cosine > 0.98
        assert not np.array_equal(exact, rounded)


@pytest.mark.parametrize(
    "setting",
    [{"num_attention_heads": 8}, {"num_hidden_layers": 2}],
    ids=lambda setting: next(iter(setting)),
)
def test_equal_weights_with_other_settings_share_no_quantized_layers(folder, setting):
    before = open_bert(folder).quantize().states([2, 5, 7, 3])
    change(folder / "config.json", **setting)
    bert = open_bert(folder)
    exact, rounded = bert.states([2, 5, 7, 3]), bert.quantize().states([2, 5, 7, 3])
    assert np.linalg.norm(exact - rounded) < 0.5 * np.linalg.norm(exact - before)


def test_an_mpnet_whose_bias_by_distance_has_other_heads_is_left_to_torch(folder):
    make_mpnet(folder)
    change(folder / "config.json", num_attention_heads=6)
    assert open_bert(folder) is None


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


ADDED = {"content": "mill", "special": True, "normalized": False}


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("tokenizer_config.json", {"additional_special_tokens": ["<odd>"]}),
        ("tokenizer_config.json", {"extra_special_tokens": {"odd_token": "<odd>"}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"8": ADDED}}),
        ("tokenizer_config.json", {"split_special_tokens": True}),
        ("tokenizer_config.json", {"truncation_side": "left"}),
        ("tokenizer_config.json", {"cls_token": "[SEP]", "sep_token": "[CLS]"}),
        ("tokenizer_config.json", {"unk_token": "[PAD]"}),
        ("special_tokens_map.json", {"cls_token": "[SEP]", "sep_token": "[CLS]"}),
        ("added_tokens.json", {"<odd>": 94}),
        ("tokenizer.json", {"post_processor": None}),
        ("tokenizer.json", {"added_tokens": []}),
        ("tokenizer.json", {"model": {"unk_token": "[PAD]"}}),
        ("tokenizer.json", {"model": {"max_input_chars_per_word": 5}}),
        ("tokenizer.json", {"model": {"continuing_subword_prefix": "@@"}}),
    ],
)
def test_tokens_that_only_transformers_adds_are_left_to_it(folder, kind, file, values):
    if kind == "mpnet":
        make_mpnet(folder)
    path = folder / file
    written = json.loads(path.read_text()) if path.exists() else {}
    if "model" in values:
        values = {"model": {**written["model"], **values["model"]}}
    path.write_text(json.dumps({**written, **values}))
    tokenizer = AutoTokenizer.from_pretrained(folder)  # which differs from the file
    plain = PlainTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), 128)
    texts = [*TEXTS, "an <odd> mills"]
    read = {"truncation": True, "max_length": 61}
    found = [plain(text, **read)["input_ids"] for text in texts]
    assert found != [tokenizer(text, **read)["input_ids"] for text in texts]
    assert open_bert(folder) is None


def test_an_mpnet_with_other_buckets_than_transformers_uses_is_left_to_it(folder):
    make_mpnet(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "encoder.relative_attention_bias.weight"
    tensors[name] = tensors[name].repeat(2, 1)
    save_file(tensors, path, metadata={"format": "pt"})
    change(folder / "config.json", relative_attention_num_buckets=64)
    AutoModel.from_pretrained(folder)  # it uses 32 of the 64
    assert open_bert(folder) is None


XLM_PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁the", "▁mill", "s", "a", "b", "é", ",", "日"]
XLM_TEXTS = [
    "the mills", "  the\tmill,  \n mills ", "<mask> the<mask>mill", "</s> a <s>b", "Ab é",
    "日日 a 🎉", "a\u1680b\u00a0\x85\u2028a ", "", " ", "\t", "▁the a▁b", "the mill " * 80,
]  # fmt: skip


def make_charsmap(mapped):
    """Return SentencePiece's map of one-byte characters: a double-array trie, and the results."""
    units, results = [0] * 512, b""
    units[0] = 256 << 10
    for number, (character, result) in enumerate(mapped.items(), 1):
        cell = 256 ^ ord(character)
        units[cell] = (cell ^ number) << 10 | 1 << 8 | ord(character)
        units[number] = len(results) | 1 << 31
        results += result.encode() + b"\0"
    return struct.pack("<I512I", 2048, *units) + results


@pytest.fixture(params=["as now", "as in 2023", "as in 2024"])
def xlm_folder(request, folder):
    """Give the small BERT a tokenizer of XLM-RoBERTa, as versions of transformers wrote it."""
    vocabulary = [(piece, -float(number)) for number, piece in enumerate([*XLM_PIECES, "<mask>"])]
    tokenizer = Tokenizer(models.Unigram(vocabulary, 3, False))
    charsmap = normalizers.Precompiled(make_charsmap({"\t": " ", "A": "ab"}))
    blanks = normalizers.Replace(Regex(" {2,}"), " " if request.param == "as in 2023" else "▁")
    space = pre_tokenizers.Metaspace()
    if request.param == "as now":
        tokenizer.normalizer = charsmap
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    else:
        tokenizer.normalizer = normalizers.Sequence([charsmap, blanks])
        tokenizer.pre_tokenizer = space
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens([*XLM_PIECES[:4], AddedToken("<mask>", lstrip=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = "XLMRobertaTokenizerFast" if request.param == "as in 2024" else "XLMRobertaTokenizer"
    settings = {"tokenizer_class": kind, "model_max_length": 100, "mask_token": "<mask>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_tokens_of_xlm_roberta_are_those_of_transformers(xlm_folder):
    bert, tokenizer = open_bert(xlm_folder), AutoTokenizer.from_pretrained(xlm_folder)
    assert type(tokenizer).__name__ == "XLMRobertaTokenizer"
    assert bert.tokenizer("A\tthe")["input_ids"] == [0, 4, 8, 9, 5, 2]  # mapped to "ab the"
    for text in XLM_TEXTS:
        ids = tokenizer(text, truncation=True, max_length=100)["input_ids"]
        assert bert.tokenizer(text, truncation=True, max_length=100)["input_ids"] == ids, text
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert bert.tokenizer(text, add_special_tokens=False)["input_ids"] == plain, text
    assert set(bert.tokenizer.all_special_ids) == set(tokenizer.all_special_ids)


@pytest.mark.parametrize(
    "values",
    [
        {"add_prefix_space": False},
        {"additional_special_tokens": ["<odd>"]},
        {"split_special_tokens": True},
        {"truncation_side": "left"},
        {"mask_token": "[MASK]"},
        {"bos_token": {"__type": "AddedToken", "content": "<b>"}},
    ],
)
def test_other_settings_of_xlm_roberta_are_left_to_torch(xlm_folder, values):
    change(xlm_folder / "tokenizer_config.json", **values)
    assert open_bert(xlm_folder) is None


def test_other_tokenizers_of_xlm_roberta_are_left_to_torch(xlm_folder):
    file = xlm_folder / "tokenizer.json"
    written = json.loads(file.read_text())
    without_mask = written["added_tokens"][:-1]
    for values in ({"normalizer": None}, {"added_tokens": without_mask}, {"added_tokens": None}):
        file.write_text(json.dumps({**written, **values}))
        assert open_bert(xlm_folder) is None
    change(file, **{**written, "model": {**written["model"], "unk_id": 1}})
    assert open_bert(xlm_folder) is None


def test_a_malformed_tokenizer_is_left_to_transformers(folder):
    change(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    change(folder / "tokenizer.json", model={"type": "WordPiece"})
    assert open_bert(folder) is None
    with pytest.raises(CheckpointError):
        open_embedder(str(folder))


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "XLMRobertaTokenizer"])
def test_a_tokenizer_that_makes_its_library_panic_is_named(folder, kind):
    change(folder / "tokenizer_config.json", tokenizer_class=kind)
    steps = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    change(folder / "tokenizer.json", normalizer=steps)
    with pytest.raises(CheckpointError, match="charsmap") as caught:
        open_embedder(str(folder))
    assert caught.value.code == "checkpoint.unloadable"


def test_threads_that_truncate_do_not_truncate_for_others(folder):
    tokenizer, text = open_bert(folder).tokenizer, TEXTS[-1]

    def count(limit):
        more = {"truncation": True, "max_length": limit} if limit else {}
        return {len(tokenizer(text, **more)["input_ids"]) for _ in range(700)}

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(count, [16, 0, 16, 0])) == [{16}, {162}, {16}, {162}]


def test_an_encoder_that_is_open_is_read_once_and_shared(folder):
    name, path = "embeddings.word_embeddings.weight", folder / "model.safetensors"
    first, second = open_bert(folder), open_bert(folder)
    assert second._weights[name] is first._weights[name]
    first.tokenizer.model_max_length = 7
    assert second.tokenizer.model_max_length != 7
    before = second.states([2, 5, 3])
    save_file({key: 2 * one for key, one in load_file(path).items()}, path)
    assert not np.array_equal(open_bert(folder).states([2, 5, 3]), before)
    held = weakref.ref(second._weights[name])
    del first, second
    gc.collect()
    assert held() is None


def test_weights_are_mapped_from_their_file_unless_they_lie_at_odd_offsets(folder):
    name, path = "encoder.layer.1.output.dense.weight", folder / "model.safetensors"
    before = len(list(Path("/proc/self/fd").iterdir()))
    bert = open_bert(folder)
    assert isinstance(bert._weights[name].base.base.obj, mmap.mmap)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2  # not one for each tensor
    states = bert.states([2, 5, 3])
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    moved = path.with_name("moved")
    moved.write_bytes((end - 7).to_bytes(8, "little") + data[8:end] + b" " + data[end:])
    moved.replace(path)  # mapped files are replaced, not written over
    unaligned = open_bert(folder)
    assert unaligned._weights[name].flags.aligned
    assert unaligned._weights[name].base is not bert._weights[name].base
    assert unaligned.states([2, 5, 3]).tobytes() == states.tobytes()


def test_word_embeddings_in_half_precision_are_not_widened_as_a_whole(folder):
    path = folder / "model.safetensors"
    tensors = {name: one.half() for name, one in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    bert, ids = open_bert(folder), [2, 5, 7, 3]
    name = "embeddings.word_embeddings.weight"
    assert bert._weights[name].dtype == np.float16
    added = np.full((4, 48), 0.1, np.float32)
    rows, width = bert._weights[name].shape
    zeros = np.zeros((2, width), np.float16), np.zeros((rows, 2), np.float16)
    adapted = bert.adapt({name: zeros}, 1.0)
    save_file({key: one.float() for key, one in tensors.items()}, path, metadata={"format": "pt"})
    wide = open_bert(folder)
    assert wide._weights[name].dtype == np.float32
    for one in (bert, adapted):
        assert one.states(ids).tobytes() == wide.states(ids).tobytes()
        assert one.states(ids, added=added).tobytes() == wide.states(ids, added=added).tobytes()


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
