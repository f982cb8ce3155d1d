"""The bytes of every token, of every scheme of tokenizer, and where each stands in a text."""

import json

import numpy as np
import pytest
from tests.unit.distill.zoo import EXACT, LINES, MAKERS, make
from tokenizers import AddedToken, Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from stillroom.distill.cross_tokenizer.spans import (
    locate_tokens,
    map_tokens,
    match_tokens,
)
from stillroom.errors import CheckpointError, DataError
from stillroom.models.tokenization.token_bytes import (
    SPECIAL,
    TEXT,
    UNKNOWN,
    UNUSED,
    read_token_bytes,
)

HARD = (
    "",
    " ",
    "   leading and trailing   ",
    "12345 67 8",
    "e\u0301 é \ufb01 ½",
    "🙂👩‍👩‍👧🏳️‍🌈",
    "蒸餾酒，東京",
    "a\r\nb\r\n\r\nc\td",
    "\x00\x01\x7f",
    "x" * 300,
)


@pytest.mark.parametrize("name", EXACT)
def test_bytes_of_tokens_join_to_the_text(name):
    tokenizer, tokens = make(name)
    assert all(locate_tokens(tokenizer, tokens, text).is_exact for text in (*LINES, *HARD))


@pytest.mark.parametrize("name", sorted(set(MAKERS) - set(EXACT) - {"words"}))
def test_what_a_normalizer_changes_is_stated_and_counted(name):
    tokenizer, tokens = make(name)
    exact = [locate_tokens(tokenizer, tokens, text).is_exact for text in (*LINES, *HARD)]
    assert tokens.lossy
    assert {*exact} == {True, False}


def test_lossy_steps_are_named():
    assert make("wordpiece")[1].lossy[:2] == ("lowercases", "strips accents")
    assert "drops white space" in make("wordpiece")[1].lossy
    assert make("byte_level_nfc")[1].lossy == ("brings text to NFC",)
    assert make("byte_level")[1].lossy == make("llama_legacy")[1].lossy == ()


def test_byte_level_stand_ins_are_bytes():
    tokenizer, tokens = make("byte_level")
    for char, raw in (("Ġ", b" "), ("Ċ", b"\n"), ("Ã", b"\xc3"), ("Ń", b"\xad"), ("!", b"!")):
        assert tokens.of(tokenizer.token_to_id(char)) == raw
    singles = {tokens.of(at) for at in range(len(tokens)) if tokens.kinds[at] == TEXT}
    assert {bytes([byte]) for byte in range(256)} <= singles


def test_sentencepiece_bytes_and_spaces():
    tokenizer, tokens = make("llama_legacy")
    assert tokens.of(tokenizer.token_to_id("<0x0A>")) == b"\n"
    assert tokens.of(tokenizer.token_to_id("▁")) == b" "
    assert tokens.prepends == "always"
    assert make("metaspace_first")[1].prepends == "missing"
    assert make("byte_level_prefix")[1].prepends == "missing"


def test_byte_tokens_are_text_where_the_model_has_no_byte_fallback():
    tokenizer = Tokenizer(models.BPE({"<0x41>": 0, "▁": 1}, []))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    assert read_token_bytes(tokenizer).of(0) == b"<0x41>"


def test_wordpiece_drops_its_prefix():
    tokenizer, tokens = make("wordpiece")
    inner = next(token for token in tokenizer.get_vocab() if token.startswith("##"))
    assert tokens.of(tokenizer.token_to_id(inner)) == inner[2:].encode()
    assert tokens.kinds[tokenizer.token_to_id("[UNK]")] == UNKNOWN


def test_ids_without_a_token_are_unused_and_ids_outside_are_refused():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 3}, unk_token="a"))
    tokens = read_token_bytes(tokenizer)
    assert tokens.kinds.tolist() == [UNKNOWN, UNUSED, UNUSED, TEXT]
    for outside in (4, -1):
        with pytest.raises(CheckpointError, match="outside a vocabulary of 4") as error:
            tokens.of(outside)
        assert error.value.code == "distill.token-id"


def test_an_id_that_ends_and_pads_is_the_end():
    backend = make("byte_level")[0]
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokens = read_token_bytes(wrapped)
    assert tokens.roles[wrapped.eos_token_id] == "eos"
    assert tokens.roles[wrapped.convert_tokens_to_ids("<|im_start|>")] == "control"


def test_a_token_that_only_a_wrapper_calls_unknown_keeps_its_bytes():
    backend = make("byte_level")[0]
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<|im_start|>")
    tokens = read_token_bytes(wrapped)
    assert tokens.kinds[wrapped.unk_token_id] == SPECIAL
    assert locate_tokens(wrapped, tokens, "a<|im_start|>b").is_exact


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(CheckpointError, match="dict is not a fast tokenizer") as error:
        read_token_bytes({"a": 1})
    assert error.value.code == "distill.slow-tokenizer"


def test_an_unknown_model_is_refused():
    class Foreign:
        def to_str(self):
            return json.dumps({"model": {"type": "Syllables", "vocab": {}}})

    with pytest.raises(CheckpointError, match="'Syllables' is not supported") as error:
        read_token_bytes(Foreign())
    assert error.value.code == "distill.tokenizer-scheme"


# --- places ------------------------------------------------------------------------------------


def spans(placed):
    raw = placed.text.tobytes()
    return [raw[a:b] for a, b in zip(placed.starts, placed.ends, strict=True)]


def test_a_character_split_over_tokens_has_exact_spans():
    tokenizer, tokens = make("byte_level")
    placed = locate_tokens(tokenizer, tokens, "ok 🦉")
    assert placed.is_exact
    assert b"".join(spans(placed)) == "ok 🦉".encode()
    assert b"\xa6" in spans(placed)


def test_the_space_put_before_a_text_covers_nothing():
    tokenizer, tokens = make("llama_legacy")
    placed = locate_tokens(tokenizer, tokens, "the wine", add_special_tokens=True)
    assert placed.is_exact
    assert b"".join(tokens.of(at) for at in placed.ids[1:]) == b" the wine"
    assert b"".join(spans(placed)) == b"the wine"
    assert placed.roles == {0: ("bos", b"<s>")} or placed.roles[0][1] == b"<s>"
    two = locate_tokens(tokenizer, tokens, " the")
    assert b"".join(spans(two)) == b" the"


def test_special_tokens_cover_their_surface_only_where_it_stands():
    tokenizer, tokens = make("llama_legacy")
    written = locate_tokens(tokenizer, tokens, "a</s>b")
    assert b"</s>" in spans(written)
    added = locate_tokens(tokenizer, tokens, "ab", add_special_tokens=True)
    assert spans(added)[0] == b""
    assert written.is_exact
    assert added.is_exact


def test_special_tokens_that_swallow_white_space():
    tokenizer = Tokenizer.from_str(make("byte_level")[0].to_str())
    tokenizer.add_special_tokens(
        [
            AddedToken("<mask>", special=True, lstrip=True, normalized=False),
            AddedToken("<end>", special=True, rstrip=True, normalized=False),
        ]
    )
    tokens = read_token_bytes(tokenizer)
    text = "one  <mask> two<end> \n three"
    placed = locate_tokens(tokenizer, tokens, text)
    assert placed.is_exact
    assert b"  <mask>" in spans(placed)
    assert b"<end> \n " in spans(placed)


def test_white_space_that_a_tokenizer_drops_belongs_to_the_next_word():
    tokenizer, tokens = make("wordpiece")
    placed = locate_tokens(tokenizer, tokens, "The  WINE ", add_special_tokens=True)
    assert not placed.is_exact
    assert b"".join(spans(placed)) == b"The  WINE"
    joined = [raw for raw in spans(placed) if raw]
    assert any(raw.startswith(b"  ") for raw in joined)


def test_ids_of_another_text_do_not_match():
    tokenizer, tokens = make("byte_level")
    ids = np.asarray(tokenizer.encode("wine").ids)
    assert match_tokens(tokens, ids, "wine") is not None
    for other in ("wines", "win", "vine", "", " wine"):
        assert match_tokens(tokens, ids, other) is None


def test_a_tokenizer_that_cuts_is_not_let_to_and_not_changed():
    tokenizer = Tokenizer.from_str(make("byte_level")[0].to_str())
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    placed = locate_tokens(tokenizer, read_token_bytes(tokenizer), "a long enough text")
    assert placed.is_exact
    assert b"".join(spans(placed)) == b"a long enough text"
    assert tokenizer.truncation["max_length"] == 2


def test_a_lone_surrogate_is_refused():
    with pytest.raises(DataError, match="cannot be encoded as UTF-8") as error:
        locate_tokens(*make("byte_level"), "ok \ud800 no")
    assert error.value.code == "distill.text"


# --- the map of two vocabularies ---------------------------------------------------------------


def test_tokens_map_by_bytes_and_not_by_spelling():
    (one, ours), (other, theirs) = make("byte_level"), make("llama_legacy")
    found = map_tokens(ours, theirs)
    at, mate = one.token_to_id("Ġ"), other.token_to_id("▁")
    assert found.teacher[at] == found.student[mate] > 0
    newline = other.token_to_id("<0x0A>")
    assert found.student[newline] == found.teacher[one.token_to_id("Ċ")] > 0
    for tokens, groups in ((ours, found.teacher), (theirs, found.student)):
        assert len(groups) == len(tokens)
        assert set(groups) - {0} == set(range(1, found.groups))


def test_byte_tokens_share_the_group_of_the_same_character():
    _, tokens = make("llama_legacy")
    found = map_tokens(tokens, tokens)
    a_byte = make("llama_legacy")[0].token_to_id("<0x74>")
    assert found.teacher[a_byte] == found.teacher[make("llama_legacy")[0].token_to_id("t")]


def test_heads_wider_than_the_vocabulary_give_the_rest_their_rows():
    _, tokens = make("byte_level")
    wide = map_tokens(tokens, tokens).cut(len(tokens) + 8, len(tokens) - 3)
    assert wide.teacher[-8:].tolist() == [0] * 8
    assert len(wide.student) == len(tokens) - 3
