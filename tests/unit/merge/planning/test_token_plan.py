"""Which row of which model every row of the merged embedding comes from."""

import json

import numpy as np
import pytest
from pydantic import ValidationError
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, Unigram, WordPiece
from transformers import AutoTokenizer

from stillroom.errors import CheckpointError, RecipeError
from stillroom.merge.planning.token_plan import plan_tokenizer
from stillroom.merge.planning.vocabulary import adapt_config, read_vocabulary, write_tokenizer
from stillroom.merge.settings import TokenizerSettings

WIDTH = 3


def byte_bpe(folder, sentences, size, special=("<|end|>",), added=(), padding=0, **config):
    """Write a folder with a byte-level BPE tokenizer and a config."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return save(folder, tokenizer, padding, **config)


def unigram(folder, pieces):
    tokenizer = Tokenizer(Unigram([("<unk>", 0.0), *pieces], unk_id=0, byte_fallback=False))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Metaspace()
    return save(folder, tokenizer)


def save(folder, tokenizer, padding=0, **config):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size() + padding
    (folder / "config.json").write_text(
        json.dumps({"hidden_size": 64, "vocab_size": size, "eos_token_id": 0} | config)
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|end|>",
                "chat_template": "{{ messages }}",
            }
        )
    )
    return folder


@pytest.fixture
def pair(tmp_path):
    """Two tokenizers that share bytes and one word, each with words of its own."""
    first = byte_bpe(tmp_path / "first", ["red red red house"], 262, padding=10)
    other = byte_bpe(
        tmp_path / "other",
        ["red red red blue blue blue blue"],
        270,
        ("<|pad|>", "<|end|>"),
        added=["<tool>"],
    )
    return first, other


def tables(plan):
    """Return a table a source whose rows tell where they come from, and the read for it."""
    drawn = np.random.default_rng(0)
    made = [drawn.standard_normal((v.rows, WIDTH)).astype(np.float32) for v in plan.sources]

    def read(source, rows):
        assert rows.dtype == np.int64
        return made[source][rows]

    return made, read


def ids_of(folder):
    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)


def rows_of(plan, source, read):
    return plan.rows(source, 0, plan.size, read)


def test_union_keeps_every_row_of_every_model(pair):
    plan = plan_tokenizer(TokenizerSettings(source="union"), None, pair)
    made, read = tables(plan)
    for number, folder in enumerate(pair):
        rows = rows_of(plan, number, read)
        for token, row in ids_of(folder).items():
            assert (rows[plan.vocabulary.ids[token]] == made[number][row]).all(), token


def test_union_lists_the_first_models_tokens_first(pair):
    plan = plan_tokenizer(TokenizerSettings(source="union"), None, pair)
    first, other = map(ids_of, pair)
    assert {token: plan.vocabulary.ids[token] for token in first} == first
    new = sorted(set(other) - set(first), key=other.get)
    assert list(plan.vocabulary.tokens[len(first) :]) == new


def test_a_missing_token_takes_the_only_owners_row(pair):
    plan = plan_tokenizer(TokenizerSettings(source="union"), None, pair)
    made, read = tables(plan)
    rows = rows_of(plan, 0, read)
    assert (rows[plan.vocabulary.ids["<tool>"]] == made[1][ids_of(pair[1])["<tool>"]]).all()


def test_a_missing_token_takes_the_bases_row_before_all_others(pair, tmp_path):
    third = byte_bpe(tmp_path / "third", ["red blue blue blue blue"], 264)
    base, other = pair[1], pair[0]
    plan = plan_tokenizer(TokenizerSettings(source="union"), base, [other, third])
    made, read = tables(plan)
    token = "Ġblue"
    assert token in ids_of(third)
    assert token not in ids_of(other)
    rows = rows_of(plan, 1, read)
    assert (rows[plan.vocabulary.ids[token]] == made[0][ids_of(base)[token]]).all()


def test_a_token_of_several_models_is_their_mean_for_the_one_that_lacks_it(pair, tmp_path):
    third = byte_bpe(tmp_path / "third", ["red blue blue blue blue"], 264)
    plan = plan_tokenizer(TokenizerSettings(source="union"), None, [*pair, third])
    made, read = tables(plan)
    row = plan.vocabulary.ids["Ġblue"]
    mean = (made[1][ids_of(pair[1])["Ġblue"]] + made[2][ids_of(third)["Ġblue"]]) / 2
    assert np.allclose(rows_of(plan, 0, read)[row], mean)
    assert plan.report()["sources"][0]["mean"] > 0


def test_rows_do_not_depend_on_where_blocks_begin(pair, tmp_path):
    third = byte_bpe(tmp_path / "third", ["red blue blue blue blue"], 264)
    plan = plan_tokenizer(
        TokenizerSettings(source="union", pad_to_multiple_of=64), None, [*pair, third]
    )
    _, read = tables(plan)
    whole = rows_of(plan, 0, read)
    parts = [plan.rows(0, at, min(at + 7, plan.size), read) for at in range(0, plan.size, 7)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_padding_rows_of_the_base_are_kept(pair):
    first, other = pair
    plan = plan_tokenizer(TokenizerSettings(source="base"), first, [first, other])
    assert plan.size == len(ids_of(first)) + 10
    assert plan.is_identity(0)
    assert plan.is_identity(1)
    assert not plan.is_identity(2)
    assert plan.report()["padding"] == 10
    made, read = tables(plan)
    assert (rows_of(plan, 2, read)[-1] == made[0][-1]).all()


def test_rows_beyond_all_models_are_the_mean_of_the_others(pair):
    plan = plan_tokenizer(TokenizerSettings(source="base", pad_to_multiple_of=512), None, [pair[1]])
    made, read = tables(plan)
    assert plan.size == 512
    assert np.allclose(rows_of(plan, 0, read)[-1], made[0].mean(0), atol=1e-6)
    assert plan.report()["sources"][0]["mean_padding"] == 512 - len(made[0])


def test_pad_to_one_drops_padding(pair):
    settings = TokenizerSettings(source="base", pad_to_multiple_of=1)
    assert plan_tokenizer(settings, None, [pair[0]]).size == len(ids_of(pair[0]))


def test_new_tokens_fill_padding_first(pair):
    plan = plan_tokenizer(TokenizerSettings(source="union"), None, pair)
    new = len(set(ids_of(pair[1])) - set(ids_of(pair[0])))
    assert plan.size == max(len(ids_of(pair[0])) + new, len(ids_of(pair[0])) + 10)


def test_the_vocabulary_of_a_model_by_its_index(pair):
    plan = plan_tokenizer(TokenizerSettings(source=1), pair[0], pair)
    assert plan.vocabulary.ids == ids_of(pair[1])
    assert plan.is_identity(2)
    assert plan.report()["sources"][1]["left_out"] == len(
        set(ids_of(pair[0])) - set(ids_of(pair[1]))
    )


@pytest.mark.parametrize("force", [False, True])
def test_a_token_takes_the_row_it_is_told(pair, force):
    tokens = {"red": {"source": 1, "force": force}, "<tool>": {"source": "zero", "force": force}}
    plan = plan_tokenizer(TokenizerSettings(source="union", tokens=tokens), None, pair)
    made, read = tables(plan)
    rows = [rows_of(plan, number, read) for number in (0, 1)]
    red, tool = plan.vocabulary.ids["red"], plan.vocabulary.ids["<tool>"]
    theirs = made[1][ids_of(pair[1])["red"]]
    assert (rows[0][red] == theirs).all() == force
    assert not rows[0][tool].any()
    assert rows[1][tool].any() != force


def test_a_token_takes_another_tokens_row(pair):
    tokens = {
        "<tool>": {"source": {"model": 0, "token": "<|end|>"}, "force": True},
        "red": {"source": {"model": "base", "row": 5}, "force": True},
    }
    plan = plan_tokenizer(TokenizerSettings(source="union", tokens=tokens), None, pair)
    made, read = tables(plan)
    rows = rows_of(plan, 1, read)
    assert (rows[plan.vocabulary.ids["<tool>"]] == made[0][ids_of(pair[0])["<|end|>"]]).all()
    assert (rows[plan.vocabulary.ids["red"]] == made[0][5]).all()


def test_a_row_is_named_by_its_token_or_its_index_and_not_by_both():
    source = {"model": 0, "token": "a", "row": 1}
    with pytest.raises(ValidationError, match="either token or row"):
        TokenizerSettings(source="union", tokens={"red": {"source": source}})


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        ({"<tol>": {"source": 0}}, "did you mean '<tool>'"),
        ({"<tool>": {"source": 0}}, "'<tool>' is not in 'first'"),
        ({"<tool>": {"source": {"model": 0, "row": 9999}}}, "no row 9999"),
    ],
)
def test_a_token_that_is_not_there_is_named(pair, tokens, named):
    with pytest.raises(RecipeError, match=named) as caught:
        plan_tokenizer(TokenizerSettings(source="union", tokens=tokens), None, pair)
    assert caught.value.code == "merge.tokenizer-token"


@pytest.mark.parametrize(
    "settings", [{"source": 2}, {"source": "union", "tokens": {"red": {"source": 7}}}]
)
def test_a_model_that_is_not_there_is_refused(pair, settings):
    with pytest.raises(RecipeError, match="from 0 to 1") as caught:
        plan_tokenizer(TokenizerSettings(**settings), None, pair)
    assert caught.value.code == "merge.tokenizer-source"


def test_a_folder_without_tokenizer_is_refused(pair, tmp_path):
    (tmp_path / "bare").mkdir()
    with pytest.raises(CheckpointError, match="save_pretrained") as caught:
        plan_tokenizer(TokenizerSettings(), pair[0], [tmp_path / "bare"])
    assert caught.value.code == "merge.tokenizer-missing"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"model": {"vocab": {"a": -1}}}',
        '{"model": {"vocab": {"a": 99999999999999}}}',
        '{"model": {"vocab": {"a": "b"}}}',
        '{"model": {"vocab": {"a": true}}}',
        '{"model": {"vocab": [[]]}}',
        '{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1}]}',
    ],
)
def test_a_hostile_tokenizer_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read_vocabulary(tmp_path)
    assert caught.value.code == "checkpoint.tokenizer"


def test_two_kinds_of_tokenizer_have_no_union(pair, tmp_path):
    other = unigram(tmp_path / "unigram", [("▁blue", -1.0), ("▁sea", -2.0)])
    with pytest.raises(CheckpointError, match="transplant") as caught:
        plan_tokenizer(TokenizerSettings(source="union"), None, [pair[0], other])
    assert caught.value.code == "merge.tokenizer-kind"


def test_two_kinds_of_tokenizer_share_what_spells_the_same_text(pair, tmp_path):
    other = unigram(tmp_path / "unigram", [("▁blue", -1.0), ("r", -2.0)])
    plan = plan_tokenizer(TokenizerSettings(source="base"), pair[1], [other])
    assert plan.own_rows[1][plan.vocabulary.ids["Ġblue"]] == 1
    assert plan.own_rows[1][plan.vocabulary.ids["r"]] == 2


def test_the_union_of_unigram_models_is_written(tmp_path):
    first = unigram(tmp_path / "a", [("▁blue", -1.0), ("b", -3.0)])
    other = unigram(tmp_path / "b", [("▁sea", -2.0), ("b", -3.0), ("s", -4.0)])
    plan = plan_tokenizer(TokenizerSettings(source="union"), None, [first, other])
    (tmp_path / "out").mkdir()
    write_tokenizer(plan, tmp_path / "out")
    made = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert made.encode(" blue sea").tokens == ["▁blue", "▁sea"]


def test_the_union_of_wordpiece_models_is_written(tmp_path):
    folders = []
    for name, words in (("a", ["[UNK]", "red", "##s"]), ("b", ["[UNK]", "blue", "##s"])):
        tokenizer = Tokenizer(
            WordPiece({word: row for row, word in enumerate(words)}, unk_token="[UNK]")
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.decoder = decoders.WordPiece()
        folders.append(save(tmp_path / name, tokenizer))
    plan = plan_tokenizer(TokenizerSettings(source="union"), None, folders)
    (tmp_path / "out").mkdir()
    write_tokenizer(plan, tmp_path / "out")
    made = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert made.encode("reds blues").tokens == ["red", "##s", "blue", "##s"]


def test_the_written_union_loads_in_transformers(pair, tmp_path):
    plan = plan_tokenizer(TokenizerSettings(source="union"), None, pair)
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert "tokenizer.json" in write_tokenizer(plan, out)
    loaded = AutoTokenizer.from_pretrained(out)
    vocabulary = loaded.get_vocab()
    assert {token: vocabulary[token] for token in plan.vocabulary.ids} == plan.vocabulary.ids
    text = "red blue house <tool> and 漢字 😀"
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.convert_tokens_to_ids("<tool>") in loaded("a <tool>")["input_ids"]
    assert loaded.chat_template == "{{ messages }}"
    assert loaded.tokenize(" blue") == ["Ġblue"]


def test_a_sources_own_tokenizer_is_copied_byte_for_byte(pair, tmp_path):
    plan = plan_tokenizer(TokenizerSettings(source="base"), pair[0], [pair[1]])
    (tmp_path / "out").mkdir()
    write_tokenizer(plan, tmp_path / "out")
    copied = (tmp_path / "out" / "tokenizer.json").read_bytes()
    assert copied == (pair[0] / "tokenizer.json").read_bytes()


def test_new_added_tokens_are_listed_where_the_config_lists_them(pair, tmp_path):
    path = pair[0] / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"added_tokens_decoder": {"0": {"content": "<|end|>"}}}))
    plan = plan_tokenizer(TokenizerSettings(source="union"), None, pair)
    (tmp_path / "out").mkdir()
    write_tokenizer(plan, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    listed = {entry["content"] for entry in written["added_tokens_decoder"].values()}
    assert listed == {"<|end|>", "<|pad|>", "<tool>"}


def test_a_tokenizer_that_cannot_be_read_back_is_refused(pair, tmp_path):
    data = json.loads((pair[0] / "tokenizer.json").read_text())
    data["model"]["merges"].append(["no", "where"])
    (pair[0] / "tokenizer.json").write_text(json.dumps(data))
    plan = plan_tokenizer(TokenizerSettings(source="base"), None, [pair[0]])
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError) as caught:
        write_tokenizer(plan, tmp_path / "out")
    assert caught.value.code == "merge.tokenizer-round-trip"


def test_the_config_follows_the_vocabulary(pair):
    plan = plan_tokenizer(TokenizerSettings(source=1), pair[0], pair)
    adapted = adapt_config(
        plan,
        {"vocab_size": 1, "eos_token_id": 0, "image_token_id": 0, "pad_token_id": 9999}
        | {"text_config": {"vocab_size": 2, "hidden_size": 8}},
    )
    end = ids_of(pair[1])["<|end|>"]
    assert adapted["vocab_size"] == plan.size
    assert adapted["text_config"] == {"vocab_size": plan.size, "hidden_size": 8}
    assert adapted["image_token_id"] == end
    assert adapted["pad_token_id"] is None
    assert adapted["eos_token_id"] == 0  # the config of the vocabulary's own model says so


@pytest.mark.parametrize(
    ("name", "is_table"),
    [
        ("model.embed_tokens.weight", True),
        ("lm_head.weight", True),
        ("lm_head.bias", True),
        ("transformer.wte.weight", True),
        ("gpt_neox.embed_in.weight", True),
        ("embed_out.weight", True),
        ("shared.weight", True),
        ("bert.embeddings.word_embeddings.weight", True),
        ("cls.predictions.decoder.weight", True),
        ("cls.predictions.bias", True),
        ("model.language_model.embed_tokens.weight", True),
        ("some.table.nobody.knows", True),
        ("model.layers.0.mlp.up_proj.weight", False),
        ("model.layers.0.mlp.shared_expert.up_proj.weight", False),
    ],
)
def test_token_tables_are_known_by_name_and_size(pair, name, is_table):
    plan = plan_tokenizer(TokenizerSettings(), pair[0], [pair[1]])
    rows = plan.sources[0].rows
    assert plan.is_token_table(name, (rows, 64)[: 1 if name.endswith("bias") else 2], 0) == is_table


def test_a_size_that_could_be_another_is_no_token_table_by_size_alone(pair):
    rows = json.loads((pair[0] / "config.json").read_text())["vocab_size"]
    byte_bpe(pair[0], ["red red red house"], 262, padding=10, intermediate_size=rows)
    plan = plan_tokenizer(TokenizerSettings(), pair[0], [pair[1]])
    assert not plan.is_token_table("encoder.dense.weight", (rows, 64), 0)
    assert plan.is_token_table("model.embed_tokens.weight", (rows, 64), 0)


def test_a_table_that_is_not_the_configs_size_is_refused(pair):
    plan = plan_tokenizer(TokenizerSettings(), pair[0], [pair[1]])
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        plan.is_token_table("model.embed_tokens.weight", (7, 64), 0)
    assert caught.value.code == "merge.tokenizer-rows"


def test_tokens_without_a_row_count_as_missing(tmp_path):
    first = byte_bpe(tmp_path / "first", ["red"], 257, added=["<tool>"], padding=-1)
    plan = plan_tokenizer(TokenizerSettings(), first, [first])
    assert plan.size == 258
    assert plan.report()["sources"][0]["zero"] == 1


def test_the_digest_follows_what_is_asked(pair):
    one = plan_tokenizer(TokenizerSettings(source="union"), None, pair)
    same = plan_tokenizer(TokenizerSettings(source="union"), None, pair)
    other = plan_tokenizer(TokenizerSettings(source="base"), None, pair)
    assert one.digest == same.digest != other.digest


def test_biases_have_one_number_a_token(pair):
    plan = plan_tokenizer(TokenizerSettings(source="union"), None, pair)
    made = [np.arange(v.rows, dtype=np.float64) for v in plan.sources]
    rows = plan.rows(0, 0, plan.size, lambda source, at: made[source][at])
    assert rows.shape == (plan.size,)
    assert rows.dtype == np.float64


def test_a_union_holds_no_token_that_no_model_has_a_row_for(tmp_path):
    texts = ["red red red house"]
    first = byte_bpe(tmp_path / "first", texts, 262, added=["<one>", "<both>", "<none>"])
    other = byte_bpe(tmp_path / "other", texts, 262, added=["<both>", "<last>"])
    for folder, lacking in ((first, 3), (other, 1)):
        config = json.loads((folder / "config.json").read_text())
        config["vocab_size"] -= lacking
        (folder / "config.json").write_text(json.dumps(config))
    told = json.loads((first / "tokenizer_config.json").read_text())
    told["additional_special_tokens"] = ["<both>", "<none>"]
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    rows = {"<one>": 262, "<both>": 263, "<none>": 264}
    told["added_tokens_decoder"] = {
        str(row): {"content": token, "special": False, **flags} for token, row in rows.items()
    }
    (first / "tokenizer_config.json").write_text(json.dumps(told))
    settings = TokenizerSettings(source="union", pad_to_multiple_of=1)
    plan = plan_tokenizer(settings, None, [first, other])
    assert plan.size == 263
    assert plan.vocabulary.ids["<both>"] == 262
    assert not {"<one>", "<none>", "<last>"} & plan.vocabulary.ids.keys()
    assert not (plan.fill == -1).any()
    assert [each["left_out"] for each in plan.report()["sources"]] == [2, 1]
    assert sorted(plan.dropped) == ["<last>", "<none>", "<one>"]
    out = tmp_path / "out"
    out.mkdir()
    write_tokenizer(plan, out)
    loaded = AutoTokenizer.from_pretrained(out)
    assert len(loaded) == 263
    assert loaded.convert_tokens_to_ids("<both>") == 262


def test_a_union_keeps_what_a_token_of_its_own_was_given(tmp_path):
    first = byte_bpe(tmp_path / "first", ["red"], 262, added=["<none>"])
    config = json.loads((first / "config.json").read_text())
    config["vocab_size"] -= 1
    (first / "config.json").write_text(json.dumps(config))
    settings = TokenizerSettings(
        source="union", tokens={"<none>": {"add": True, "source": "zero"}}, pad_to_multiple_of=1
    )
    plan = plan_tokenizer(settings, None, [first, first])
    assert plan.vocabulary.ids["<none>"] == plan.size - 1
    assert plan.fill[-1] == -1
