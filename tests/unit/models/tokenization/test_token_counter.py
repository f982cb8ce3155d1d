import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stillroom.models.tokenization.token_counter import (
    CachedWordTokenizer,
    TokenCounter,
    build_token_counter,
    is_word_boundary,
)
from stillroom.records import Document
from stillroom.text import CHUNKERS

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
MARKS = ".,;:!?#-_|()[]{}'\"`。，"


def _make_tokenizer(lowercase: bool = True) -> PreTrainedTokenizerFast:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += [*LETTERS, *(f"##{letter}" for letter in LETTERS), *MARKS, *"春眠不觉晓あ한"]
    pieces += ["the", "bee", "##s", "##ing", "honey", "##ey", "work", "un", "##able"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.enable_padding(length=64)  # as MiniLM's own file does
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


TOKENIZER = _make_tokenizer()
COUNTER = build_token_counter(TOKENIZER, threading.Lock())


def _count(text: str) -> int:
    return len(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def test_the_tokens_of_words_are_the_tokens_of_the_text():
    assert isinstance(COUNTER, CachedWordTokenizer)
    text = "The bees' working honey, unable. 春眠不觉晓! [SEP] a\x0cb\x1cc\u00a0d e\u0301"
    located = COUNTER.locate(text)
    assert len(located.starts) >= _count(text)
    plain = text.replace("[SEP]", "")
    starts = COUNTER.locate(plain).starts
    expected = TOKENIZER(plain, add_special_tokens=False, return_offsets_mapping=True)
    offsets = [start for start, _ in expected["offset_mapping"]]
    assert len(starts) == len(offsets)
    for place in range(len(plain) + 1):  # within a word places are only about right
        if is_word_boundary(plain, place):
            before = sum(start < place for start in offsets)
            assert sum(start < place for start in starts) == before


@given(st.text(alphabet=st.sampled_from(LETTERS + "AÉ" + MARKS + "  \n\t春晓あ한é👍\x0c\u0301€")))
@settings(max_examples=200, deadline=None)
def test_a_cut_at_an_edge_keeps_the_count(text):
    located = COUNTER.locate(text)
    assert len(located.starts) == _count(text)
    for position in range(len(text) + 1):
        if located.is_edge(text, position):
            assert _count(text[:position]) + _count(text[position:]) == _count(text)


TEXTS = {
    "prose": "The bees work, unable to rest; honey is what they make. They do. " * 60,
    "chinese": "春眠不觉晓，春眠不觉晓。" * 200,
    "kana": "あああああああ。ああああ" * 200,
    "emoji": "👩‍👧 honey 🇩🇪🇫🇷 bees 👍🏽é\u0301 " * 100,
    "surrogates": "bee \ud83d honey\udc1d work. " * 100,
    "special": "the [SEP] bees [MASK]working [CLS], " * 100,
    "one line": "x" * 1_000_000,
    "one line of words": "honey, " * 143_000,
    "nothing": " \n\x0c ",
}


@pytest.mark.parametrize("name", ["fixed", "heading", "recursive", "sentence"])
@pytest.mark.parametrize("kind", [kind for kind in TEXTS if not kind.startswith("one line")])
def test_no_passage_is_over_the_limit_and_all_is_covered(name, kind):
    _check(name, TEXTS[kind], size=16)


@pytest.mark.parametrize("kind", ["one line", "one line of words"])
def test_a_line_of_a_megabyte_is_cut_like_any_text(kind):
    _check("recursive", TEXTS[kind], size=500)


def _check(name: str, text: str, size: int) -> None:
    document = Document("a.txt", "0" * 64, "text/plain", text)
    chunker = CHUNKERS.build({"name": name, "size": size})
    spans = [(one.start, one.end) for one in chunker.chunk(document, count=COUNTER)]
    again = build_token_counter(TOKENIZER, threading.Lock())
    assert spans == [(one.start, one.end) for one in chunker.chunk(document, count=again)]
    done = 0
    for start, end in spans:
        assert done <= start < end
        assert not text[done:start].strip()
        assert COUNTER(text[start:end]) <= size
        done = end
    assert not text[done:].strip()


def test_the_whole_text_is_tokenized_once_and_a_known_word_never_again():
    calls = []

    class Watched(CachedWordTokenizer):
        def __call__(self, text: str) -> int:
            calls.append(text)
            return super().__call__(text)

    counter = Watched(TOKENIZER, threading.Lock())
    document = Document("a.txt", "0" * 64, "text/plain", TEXTS["prose"])
    assert len(
        list(CHUNKERS.build({"name": "recursive", "size": 16}).chunk(document, count=counter))
    )
    assert not [text for text in calls if text]  # nothing is counted a second time


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("added", [[], ["hon"]])
def test_words_of_the_vocabulary_count_as_the_tokenizer_counts_them(lowercase, added):
    tokenizer = _make_tokenizer(lowercase)
    tokenizer.add_tokens(added)
    counter = build_token_counter(tokenizer, threading.Lock())
    for text in ("honey", "The the THE", "bees", "Honey bee", "work-ing 42", "h\x01oney", "é bee"):
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(counter.locate(text).starts) == len(expected) == counter(text), text


def test_another_kind_of_tokenizer_is_counted_and_not_located():
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    counter = build_token_counter(
        PreTrainedTokenizerFast(tokenizer_object=backend), threading.Lock()
    )
    assert type(counter) is TokenCounter
    assert counter("a b a") == 3
    assert counter("a \ud800") == 2


def test_edges_are_at_spaces_and_punctuation():
    text = "ab, c\x0cd"
    assert [is_word_boundary(text, at) for at in range(len(text) + 1)] == [
        True, False, True, True, True, False, False, True,
    ]  # fmt: skip
