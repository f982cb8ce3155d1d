import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.unit.models.tiny_encoders import config_of, write_tokenizer
from transformers import BertModel, PreTrainedTokenizerFast

from stillroom.errors import CheckpointError, DataError
from stillroom.models import Embedder, TokenEmbedder, open_embedder
from stillroom.models.encoders.text_encoder import get_max_text_tokens

WORDS = "the river mill ground corn sugar lemon north query : a of and".split()
MODULES = "sentence_transformers.models"


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def encoder(tmp_path):
    """Build a tiny BERT in sentence-transformers' layout; ``make(**parts)`` returns its folder."""

    def make(pooling=("pooling_mode_mean_tokens",), modules=(), prompts=None, longest=16):
        size = write_tokenizer(tmp_path, WORDS)
        torch.manual_seed(0)
        BertModel(config_of(size)).save_pretrained(tmp_path)
        listed = [("", "Transformer"), ("1_Pooling", "Pooling"), *modules]
        write_json(
            tmp_path / "modules.json",
            [{"path": path, "type": f"{MODULES}.{kind}"} for path, kind in listed],
        )
        write_json(tmp_path / "1_Pooling" / "config.json", dict.fromkeys(pooling, True))
        write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": longest})
        write_json(tmp_path / "config_sentence_transformers.json", {"prompts": prompts or {}})
        return tmp_path

    return make


def reference(folder, text):
    """Return the token states of one text, (T, D)."""
    model = BertModel.from_pretrained(folder)
    model.eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with torch.inference_mode():
        return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()


def unit(row):
    return row / np.linalg.norm(row)


@pytest.mark.parametrize(
    ("mode", "pool"),
    [
        ("pooling_mode_mean_tokens", lambda states: states.mean(0)),
        ("pooling_mode_cls_token", lambda states: states[0]),
        ("pooling_mode_max_tokens", lambda states: states.max(0)),
        ("pooling_mode_lasttoken", lambda states: states[-1]),
        ("pooling_mode_mean_sqrt_len_tokens", lambda states: states.sum(0)),
    ],
)
def test_the_pooling_is_the_one_the_folder_says(encoder, mode, pool):
    folder = encoder(pooling=(mode,))
    embedder = open_embedder(str(folder))
    assert isinstance(embedder, Embedder)
    row = embedder.embed(["the river mill"], kind="passage")[0]
    np.testing.assert_allclose(row, unit(pool(reference(folder, "the river mill"))), atol=1e-5)
    embedder.close()


def test_several_poolings_are_joined_in_the_order_of_sentence_transformers(encoder):
    """A dense layer behind them reads cls, max, mean and last, whatever the order in the file."""
    modes = ("lasttoken", "mean_tokens", "max_tokens", "cls_token")
    folder = encoder(pooling=[f"pooling_mode_{mode}" for mode in modes])
    row = open_embedder(str(folder)).embed(["the river mill"], kind="passage")[0]
    states = reference(folder, "the river mill")
    expected = np.concatenate([states[0], states.max(0), states.mean(0), states[-1]])
    np.testing.assert_allclose(row, unit(expected), atol=1e-5)


@pytest.mark.parametrize("kind", ["query", "passage"])
def test_a_prompt_is_left_out_of_the_pooling_if_the_folder_says_so(encoder, kind):
    folder = encoder(prompts={kind: "query : "})
    config = {"pooling_mode_mean_tokens": True, "include_prompt": False}
    write_json(folder / "1_Pooling" / "config.json", config)
    row = open_embedder(str(folder)).embed(["the river mill"], kind=kind)[0]
    states = reference(folder, "query : the river mill")[3:]  # after [CLS] query :
    np.testing.assert_allclose(row, unit(states.mean(0)), atol=1e-5)


def test_a_row_does_not_depend_on_the_texts_beside_it(encoder):
    embedder = open_embedder(str(encoder()), num_threads=2)
    texts = [" ".join(WORDS[: 1 + number % 9]) for number in range(20)]
    together = embedder.embed(texts, kind="passage")
    for text, row in zip(texts, together, strict=True):
        assert embedder.embed([text], kind="passage")[0].tobytes() == row.tobytes()
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)


def test_long_texts_are_cut_and_counted(encoder):
    embedder = open_embedder(str(encoder(longest=8)))
    assert embedder.max_tokens == 8
    long, cut = embedder.embed(["mill " * 50, "mill " * 6], kind="passage")
    assert long.tobytes() == cut.tobytes()
    assert embedder.truncated == 1


@pytest.mark.parametrize("prompts", [None, {"passage": "query : the river "}])
def test_a_text_of_as_many_tokens_as_there_is_room_for_is_read_whole(encoder, prompts):
    embedder = open_embedder(str(encoder(longest=12, prompts=prompts)))
    room = get_max_text_tokens(embedder)
    assert room == (10 if prompts is None else 5)
    text = " ".join(["mill"] * room)
    assert embedder.count_tokens(text) == room
    embedder.embed([text], kind="passage")
    assert embedder.truncated == 0


def test_cutting_on_several_threads_at_once_changes_no_row(encoder):
    embedder = open_embedder(str(encoder(longest=8)), num_threads=4)
    texts = ["mill " * (50 if number % 2 else 6) for number in range(200)]
    rows = embedder.embed(texts, kind="passage")
    assert {row.tobytes() for row in rows} == {rows[0].tobytes()}
    assert embedder.truncated == 100


@pytest.mark.parametrize("is_listed", [True, False])
def test_prompts_that_only_the_card_demands_are_used(encoder, is_listed):
    folder = encoder()
    if not is_listed:
        (folder / "modules.json").unlink()
    text = 'code\n# Each input text should start with "query: " or "passage: ", even for others.\n'
    (folder / "README.md").write_text(text)
    embedder = open_embedder(str(folder))
    for kind in ("query", "passage"):
        row = embedder.embed(["the river mill"], kind=kind)[0]
        wanted = unit(reference(folder, f"{kind}: the river mill").mean(0))
        np.testing.assert_allclose(row, wanted, atol=1e-5)
    embedder.close()


def test_prompts_come_from_the_folder(encoder):
    embedder = open_embedder(str(encoder(prompts={"query": "query: "})))
    query = embedder.embed(["river"], kind="query")[0]
    spelled = embedder.embed(["query: river"], kind="passage")[0]
    np.testing.assert_allclose(query, spelled, atol=1e-6)


def test_dense_layers_are_applied(encoder):
    folder = encoder(modules=[("2_Dense", "Dense"), ("3_Normalize", "Normalize")])
    write_json(folder / "2_Dense" / "config.json", {"activation_function": "torch.nn.modules.Tanh"})
    weight = torch.linspace(-1, 1, 8 * 32).reshape(8, 32)
    save_file({"linear.weight": weight}, folder / "2_Dense" / "model.safetensors")
    embedder = open_embedder(str(folder))
    assert embedder.dimensions == 8
    pooled = reference(folder, "corn").mean(0)
    expected = unit(np.tanh(weight.numpy() @ pooled))
    np.testing.assert_allclose(embedder.embed(["corn"], kind="query")[0], expected, atol=1e-5)


def test_the_fingerprint_tells_tokenizers_apart(encoder):
    folder = encoder()
    first = open_embedder(str(folder)).fingerprint
    file = folder / "tokenizer.json"
    content = json.loads(file.read_bytes())
    content["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(content), encoding="utf-8")
    assert open_embedder(str(folder)).fingerprint != first


def test_the_fingerprint_tells_poolings_apart(encoder):
    first = open_embedder(str(encoder())).fingerprint
    assert open_embedder(str(encoder())).fingerprint == first
    assert open_embedder(str(encoder(pooling=("pooling_mode_cls_token",)))).fingerprint != first


def test_empty_texts_are_refused_and_no_texts_give_no_rows(encoder):
    embedder = open_embedder(str(encoder()))
    with pytest.raises(DataError) as caught:
        embedder.embed(["mill", "  "], kind="passage")
    assert caught.value.code == "data.empty-text"
    assert embedder.embed([], kind="passage").shape == (0, 32)


@pytest.mark.parametrize(
    "spoil",
    [
        {"modules": [("2_Router", "Router")]},
        {"modules": [("../elsewhere", "Dense")]},
        {"modules": [("2_Dense", "Dense")]},
        {"pooling": ("pooling_mode_magic",)},
    ],
)
def test_what_is_not_understood_is_refused(encoder, spoil):
    with pytest.raises(CheckpointError) as caught:
        open_embedder(str(encoder(**spoil)))
    assert caught.value.code == "checkpoint.not-an-embedder"


def test_a_gguf_file_is_no_embedder(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError) as caught:
        open_embedder(str(tmp_path / "m.gguf"))
    assert caught.value.code == "checkpoint.not-an-embedder"


def test_token_states_are_the_models_without_special_tokens(encoder):
    folder = encoder(prompts={"query": "query: "})
    embedder = open_embedder(str(folder))
    assert isinstance(embedder, TokenEmbedder)
    texts = ["the river mill", "lemon"]
    for text, states in zip(texts, embedder.embed_tokens(texts, kind="passage"), strict=True):
        expected = reference(folder, text)[1:-1]
        assert states.dtype == np.float32
        np.testing.assert_allclose(states, [unit(row) for row in expected], atol=1e-6)
    (asked,) = embedder.embed_tokens(["lemon"], kind="query")
    assert len(asked) == len("query : lemon".split())
    (cut,) = embedder.embed_tokens(["corn " * 40], kind="passage")
    assert len(cut) == 16 - 2
    assert embedder.truncated == 1
