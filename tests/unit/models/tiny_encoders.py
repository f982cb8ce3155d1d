"""Tiny encoders with random weights, in the folders that real ones come in."""

import json

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from stillroom.testing import tiny_checkpoint

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]", "[Q] ", "[D] "]
WORDS = (
    "the a of and is it when they at in river mill ground corn sugar lemon north cat cats sleeps "
    "purr rest dog dogs barks strangers guard house night capital france paris python compiler "
    ". , ! ?"
).split()


def write_tokenizer(folder, words=WORDS):
    vocabulary = {word: at for at, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    return len(vocabulary)


def config_of(size, **more):
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    return BertConfig(vocab_size=size, **sizes | more)


def make_encoder(folder, seed=3):
    """Write a BERT of two layers; return its folder."""
    size = write_tokenizer(folder)
    torch.manual_seed(seed)
    BertModel(config_of(size), add_pooling_layer=False).save_pretrained(folder)
    return folder


def make_masked_lm(folder, seed=0):
    size = write_tokenizer(folder)
    torch.manual_seed(seed)
    BertForMaskedLM(config_of(size)).save_pretrained(folder)
    return folder


def make_colbert(folder, layout="pylate", width=16, **told):
    """Write a ColBERT of 16 numbers a token in PyLate's layout or its authors'."""
    size = write_tokenizer(folder)
    torch.manual_seed(1)
    model = BertModel(config_of(size), add_pooling_layer=False)
    weight = torch.randn(width, 32) * 0.2
    if layout == "pylate":
        model.save_pretrained(folder)
        (folder / "1_Dense").mkdir()
        save_file({"linear.weight": weight}, folder / "1_Dense" / "model.safetensors")
        write_json(folder / "1_Dense" / "config.json", {"in_features": 32, "out_features": width})
        listed = [
            ("", "sentence_transformers.models.Transformer"),
            ("1_Dense", "pylate.models.Dense"),
        ]
        write_json(folder / "modules.json", [{"path": path, "type": kind} for path, kind in listed])
        own = {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 12}
        own |= {"document_length": 20, "skiplist_words": [".", ","], **told}
        write_json(folder / "config_sentence_transformers.json", own)
        return folder
    config = {**json.loads(model.config.to_json_string()), "architectures": ["HF_ColBERT"]}
    write_json(folder / "config.json", config)
    held = {f"bert.{name}": one.contiguous() for name, one in model.state_dict().items()}
    held["linear.weight"] = weight
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "artifact.metadata", {"query_maxlen": 12, "doc_maxlen": 20, **told})
    return folder


def make_classifier(folder, labels):
    """Write a random classifier of these labels over a real tokenizer; return its folder."""
    path = tiny_checkpoint(folder / "model")
    config = AutoConfig.from_pretrained(path)
    config.id2label, config.label2id = labels, {name: at for at, name in labels.items()}
    config.architectures = ["LlamaForSequenceClassification"]
    config.pad_token_id = AutoTokenizer.from_pretrained(path).pad_token_id
    torch.manual_seed(3)
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight.normal_(0, 1)
    for old in path.glob("*.safetensors"):
        old.unlink()
    model.save_pretrained(path)
    return path


def write_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
