"""What a tokenizer.json may make of a text: no usual one is refused, no multiplier is opened."""

import base64
import json
import struct

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from stillroom.errors import CheckpointError
from stillroom.models.tokenization.growth import check_growth, measure_growth

NORMALIZERS, PRE, DECODERS = normalizers.Sequence, pre_tokenizers.Sequence, decoders.Sequence
SPECIAL = [("[CLS]", 0), ("[SEP]", 1)]
LIGATURE = "\ufdfa"


def make_charsmap(*texts):
    trie = struct.pack("<4I", 0, 0, 0, 0)
    values = b"".join(text.encode() + b"\0" for text in texts)
    data = struct.pack("<I", len(trie)) + trie + values
    return base64.b64encode(data).decode()


def make(normalizer=None, pre=None, processor=None, decoder=None, **changes):
    tokenizer = Tokenizer(models.WordLevel({"[CLS]": 0, "[SEP]": 1, "x": 2}, unk_token="x"))
    for name, part in (
        ("normalizer", normalizer),
        ("pre_tokenizer", pre),
        ("post_processor", processor),
        ("decoder", decoder),
    ):
        if part is not None and not isinstance(part, dict):
            setattr(tokenizer, name, part)
        elif part is not None:
            changes[name] = part
    return {**json.loads(tokenizer.to_str()), **changes}


def precompiled(*texts):
    return {"type": "Precompiled", "precompiled_charsmap": make_charsmap(*texts)}


def read(normalizer):
    return make(normalizer)["normalizer"]


def replace(found, content):
    return normalizers.Replace(found, content)


NFKC_VALUES = ("a", " ", "1⁄4", "صلى الله عليه وسلم")
TEMPLATE = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=SPECIAL
)
LLAMA_DECODERS = [
    decoders.Replace("▁", " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
]
ALBERT = [
    read(step)
    for step in (
        replace("``", '"'),
        replace("''", '"'),
        normalizers.NFKD(),
        normalizers.StripAccents(),
        normalizers.Lowercase(),
    )
]
USUAL = {
    "llama 2": make(
        NORMALIZERS([normalizers.Prepend("▁"), replace(" ", "▁")]),
        processor=TEMPLATE,
        decoder=DECODERS(LLAMA_DECODERS),
    ),
    "llama 3": make(
        pre=PRE(
            [
                pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}{1,3}|\s+(?!\S)"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        processor=processors.Sequence([processors.ByteLevel(), TEMPLATE]),
        decoder=decoders.ByteLevel(),
    ),
    "qwen": make(normalizers.NFC(), pre=pre_tokenizers.ByteLevel(), decoder=decoders.ByteLevel()),
    "gemma": make(replace(" ", "▁"), pre=pre_tokenizers.Split(" ", "merged_with_previous")),
    "clip": make(
        NORMALIZERS([normalizers.NFC(), replace(Regex(r"\s+"), " "), normalizers.Lowercase()]),
        pre=PRE([pre_tokenizers.Split(Regex("[^x]"), "removed"), pre_tokenizers.ByteLevel()]),
        processor=processors.RobertaProcessing(*SPECIAL),
    ),
    "bert": make(
        normalizers.BertNormalizer(),
        pre=pre_tokenizers.BertPreTokenizer(),
        processor=processors.BertProcessing(*SPECIAL),
        decoder=decoders.WordPiece(),
    ),
    "t5": make(
        precompiled(*NFKC_VALUES),
        pre=PRE([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
        processor=TEMPLATE,
        decoder=decoders.Metaspace(),
    ),
    "albert": make(
        {
            "type": "Sequence",
            "normalizers": [
                *ALBERT,
                precompiled(*NFKC_VALUES),
                read(replace(Regex(" {2,}"), " ")),
            ],
        },
        pre=pre_tokenizers.Metaspace(),
        processor=TEMPLATE,
        decoder=decoders.Metaspace(),
    ),
    "precompiled, then lower case": make(
        {
            "type": "Sequence",
            "normalizers": [precompiled(*NFKC_VALUES), read(normalizers.Lowercase())],
        },
        pre=PRE([pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True)]),
    ),
    "every form of Unicode": make(
        NORMALIZERS(
            [
                normalizers.Nmt(),
                normalizers.NFC(),
                normalizers.NFD(),
                normalizers.NFKD(),
                normalizers.NFKC(),
                normalizers.Strip(),
                normalizers.StripAccents(),
                normalizers.Lowercase(),
            ]
        ),
        pre=pre_tokenizers.ByteLevel(),
    ),
    "signs by name": make(
        NORMALIZERS([normalizers.NFKC(), replace("\n", "<NL>"), replace("\t", "<TAB>")]),
        pre=pre_tokenizers.Metaspace(),
    ),
    "many patterns": make(
        NORMALIZERS([replace(Regex(f"{sign} {{2,}}"), " ") for sign in "abcdefghijklmnop"])
    ),
    "signs of quotes": make(
        NORMALIZERS(
            [replace("…", "..."), replace("“", '"'), replace("—", " - "), normalizers.NFKC()]
        )
    ),
    "byte-level normalizer": make(NORMALIZERS([normalizers.NFC(), normalizers.ByteLevel()])),
    "ctc": make(decoder=decoders.CTC()),
    "bpe": make(decoder=decoders.BPEDecoder()),
    "two texts": make(
        processor=processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] [SEP] $B [SEP]", special_tokens=SPECIAL
        )
    ),
}
REPEATED = processors.TemplateProcessing(single=["$A"] * 300, pair="$A $B", special_tokens=[])
MANY = processors.TemplateProcessing(
    single=["$A", *["[CLS]"] * 300], pair="$A $B", special_tokens=SPECIAL
)
DOUBLE = {"pattern": {"String": "a"}, "content": "aa"}
HOSTILE = {
    "doubled": make(NORMALIZERS([replace("a", "aa")] * 40)),
    "doubled, without a type": make({"normalizers": [DOUBLE] * 40}),
    "doubled, of an unknown type": make(
        {"type": "Sequence", "normalizers": [{"type": "Other", **DOUBLE}] * 40}
    ),
    "at every place": make(NORMALIZERS([replace("", "x")] * 40)),
    "before every character": make(NORMALIZERS([replace(Regex("(?=.)"), "x")] * 40)),
    "where nothing matches": make(NORMALIZERS([replace(Regex("z*"), "x")] * 40)),
    "one long replacement": make(replace("a", "a" * 300)),
    "one long prefix": make(normalizers.Prepend("a" * 300)),
    "expanded again": make(NORMALIZERS([replace(" ", LIGATURE), normalizers.NFKD()] * 20)),
    "lower case again": make(
        NORMALIZERS([replace(Regex("[i\u0307]"), "\u0130"), normalizers.Lowercase()] * 20)
    ),
    "bytes again": make(NORMALIZERS([normalizers.ByteLevel()] * 20)),
    "bytes of pieces again": make(pre=PRE([pre_tokenizers.ByteLevel()] * 20)),
    "spaces again": make(NORMALIZERS([replace(" ", "中"), normalizers.BertNormalizer()] * 20)),
    "a map again": make({"type": "Sequence", "normalizers": [precompiled("aa", "b")] * 20}),
    "a map and a form": make(
        {
            "type": "Sequence",
            "normalizers": [precompiled(LIGATURE), read(normalizers.NFKD())] * 20,
        }
    ),
    "a map to long texts": make(precompiled("a" * 9_000)),
    "decoded": make(decoder=DECODERS([decoders.Replace("a", "aa")] * 40)),
    "an empty suffix": make(decoder=DECODERS([decoders.BPEDecoder(suffix="")] * 20)),
    "an empty mark of words": make(decoder=DECODERS([decoders.CTC(word_delimiter_token="")] * 20)),
    "a text repeated": make(processor=REPEATED),
    "a text repeated in a sequence": make(processor=processors.Sequence([REPEATED])),
    "many special tokens": make(processor=MANY),
    "a long token": make(model={"type": "WordLevel", "vocab": {"x" * 20_000: 0}}),
    "a long added token": make(added_tokens=[{"id": 9, "content": "x" * 20_000}]),
}


@pytest.mark.parametrize("name", USUAL)
def test_a_usual_tokenizer_is_not_refused(name):
    Tokenizer.from_str(json.dumps(USUAL[name]))
    assert 1 <= measure_growth(USUAL[name]) <= 256
    check_growth(json.dumps(USUAL[name]))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_tokenizer_that_multiplies_a_text_is_refused(tmp_path, name):
    (tmp_path / "tokenizer.json").write_text(json.dumps(HOSTILE[name]))
    with pytest.raises(CheckpointError, match=r"times their length|has a token of") as caught:
        check_growth(tmp_path / "tokenizer.json")
    assert caught.value.code == "checkpoint.unloadable"


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"normalizer": 3}', '{"normalizer": {"type": "Replace", "content": "a"}}'],
)
def test_what_is_no_tokenizer_is_left_to_the_library(text):
    check_growth(text)
