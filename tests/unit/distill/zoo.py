"""One small tokenizer of every scheme, trained on a few lines."""

import functools
import json

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

LINES = (
    "The still turns wine into spirit, and the spirit into 12 or 345 drops.",
    "In 1999 the house kept its stillroom beside the kitchen; naïve café.",
    "def boil(water):\n    return water + 100\r\n",
    "蒸餾酒 東京 你好世界 🙂 👩‍👩‍👧",
    "the  two   spaces\tand a tab, hello hello world's end's",
)
SPECIAL = ("<unk>", "<s>", "</s>")


def special(text):
    return AddedToken(text, special=True, normalized=False)


def train(tokenizer, size, *, unigram=False, **settings):
    kind = trainers.UnigramTrainer if unigram else trainers.BpeTrainer
    trainer = kind(vocab_size=size, show_progress=False, **settings)
    tokenizer.train_from_iterator(LINES * 3, trainer)
    return tokenizer


def byte_level(size=400, *, prefix=False, digits=False):
    tokenizer = Tokenizer(models.BPE())
    pre = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if digits:
        pre = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre])
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return train(
        tokenizer,
        size,
        initial_alphabet=alphabet,
        special_tokens=[special("<|im_start|>"), special("<|im_end|>")],
    )


def byte_level_nfc():
    tokenizer = byte_level(350)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def with_byte_tokens(tokenizer, model):
    """Give a trained tokenizer ``<0xNN>`` tokens behind ``<unk>``, ``<s>`` and ``</s>``."""
    state = json.loads(tokenizer.to_str())
    head = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    if model == "BPE":
        old = sorted(state["model"]["vocab"].items(), key=lambda item: item[1])
        state["model"]["vocab"] = {
            token: at for at, token in enumerate([*head, *(token for token, _ in old)])
        }
        state["model"]["unk_token"] = "<unk>"
    else:
        state["model"]["vocab"] = [
            *([token, 0.0] for token in head),
            *(row for row in state["model"]["vocab"] if row[0] not in SPECIAL),
        ]
        state["model"]["unk_id"] = 0
    state["model"]["byte_fallback"] = True
    made = Tokenizer.from_str(json.dumps(state))
    made.add_special_tokens([special(token) for token in SPECIAL])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return made


def llama_legacy():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    # Longer words than these would swallow whole lines: training splits at spaces.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), "isolated")
    made = with_byte_tokens(train(tokenizer, 200), "BPE")
    state = json.loads(made.to_str())
    state["pre_tokenizer"] = None
    return Tokenizer.from_str(json.dumps(state))


def metaspace_first():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback()])
    return with_byte_tokens(train(tokenizer, 200, unigram=True), "Unigram")


def unigram_nfkc():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    return train(tokenizer, 200, unigram=True, unk_token="<unk>", special_tokens=[special("<unk>")])


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    names = [special(name) for name in ("[UNK]", "[CLS]", "[SEP]")]
    trainer = trainers.WordPieceTrainer(vocab_size=220, show_progress=False, special_tokens=names)
    tokenizer.train_from_iterator(LINES[:3] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return tokenizer


def words():
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(show_progress=False, special_tokens=[special("<unk>")])
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


MAKERS = {
    "byte_level": byte_level,
    "byte_level_digits": functools.partial(byte_level, 300, digits=True),
    "byte_level_prefix": functools.partial(byte_level, 330, prefix=True),
    "byte_level_nfc": byte_level_nfc,
    "llama_legacy": llama_legacy,
    "metaspace_first": metaspace_first,
    "unigram_nfkc": unigram_nfkc,
    "wordpiece": wordpiece,
    "words": words,
}
EXACT = ("byte_level", "byte_level_digits", "byte_level_prefix", "llama_legacy", "metaspace_first")


@functools.cache
def make(name):
    """Return a tokenizer and its tokens' bytes."""
    from stillroom.models.tokenization.token_bytes import read_token_bytes

    tokenizer = MAKERS[name]()
    return tokenizer, read_token_bytes(tokenizer)
