"""The chat template of a merge is that of most models, a known one, or the user's own."""

import json
import shutil
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from stillroom.checkpoints import Checkpoint
from stillroom.errors import CheckpointError, RecipeError
from stillroom.merge import METHODS
from stillroom.merge.engine.merge import Merge, open_merge
from stillroom.merge.jobs.weights import MergeWeightsRecipe
from stillroom.merge.planning.chat_templates import (
    KNOWN_TEMPLATES,
    choose_chat_template,
    read_chat_template,
)
from stillroom.merge.planning.inputs import MergeSource


def merge_with(template, folders, out):
    sources = [MergeSource(folder.name, Checkpoint.open(folder)) for folder in folders]
    Merge(METHODS.build("linear"), None, sources, chat_template=template).write(out)
    return read_chat_template(out)


def test_auto_takes_what_most_models_have(family, tmp_path):
    _, tunes = family
    usual = read_chat_template(tunes[1])
    assert usual
    assert merge_with("auto", tunes, tmp_path / "out") == usual


def test_known_names_and_own_texts_are_written_and_used(family, tmp_path):
    from transformers import AutoTokenizer

    _, tunes = family
    assert "<|im_start|>" in merge_with("chatml", tunes, tmp_path / "chatml")
    own = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    assert merge_with(own, tunes, tmp_path / "own") == own
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "own")
    said = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert said == "[hi]"


TALK = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "Q"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "R"},
]
SAID = {
    "alpaca": "S\n\n### Instruction:\nQ\n\n### Response:\nA\n\n### Instruction:\nR\n\n"
    "### Response:\n",
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n"
    "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n",
    "exaone": "[|system|]S[|endofturn|]\n[|user|]Q\n[|assistant|]A[|endofturn|]\n[|user|]R\n"
    "[|assistant|]",
    "llama3": "(<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nR<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "( [INST] S\n\nQ [/INST] A) [INST] R [/INST]",
}


@pytest.mark.parametrize("name", KNOWN_TEMPLATES)
def test_a_known_template_writes_the_form_that_its_makers_published(name, tmp_path):
    from transformers import PreTrainedTokenizerFast

    text = choose_chat_template(name, [])
    inner = Tokenizer(WordLevel({"(": 0, ")": 1}, unk_token="("))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="(", eos_token=")")
    said = tokenizer.apply_chat_template(
        TALK, chat_template=text, tokenize=False, add_generation_prompt=True
    )
    assert said == SAID[name]


def test_where_no_model_has_one_auto_warns_and_writes_none(family, tmp_path):
    bare = []
    for tune in family[1][:2]:
        folder = shutil.copytree(tune, tmp_path / tune.name)
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config.pop("chat_template", None)
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        bare.append({"model": str(folder)})
    recipe = MergeWeightsRecipe.model_validate(
        {"method": "linear", "models": bare, "chat_template": "auto"}
    )
    told = []
    open_merge(recipe, SimpleNamespace(say=print, warn=told.append)).write(tmp_path / "out")
    assert told == ["no model has a chat template, and so the result has none"]
    assert read_chat_template(tmp_path / "out") == ""


def test_an_unknown_name_is_told_and_nothing_is_left(family, tmp_path):
    with pytest.raises(RecipeError) as caught:
        merge_with("no such", family[1], tmp_path / "out")
    assert caught.value.code == "merge.chat-template"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text",
    [
        *("{% for m in messages %}", "{{ messages[0] }", "{% loop %}"),
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{{ " + "9" * 5000 + " }}",
    ],
    ids=range(5),
)
def test_a_text_that_is_no_template_is_refused(family, tmp_path, text):
    with pytest.raises(RecipeError) as caught:
        merge_with(text, family[1], tmp_path / "out")
    assert caught.value.code == "merge.chat-template"
    assert "is no Jinja template" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_template_with_the_tags_of_transformers_is_kept(tmp_path):
    text = (
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}"
        "{%- generation -%}{{ m['content'] }}{%+ endgeneration +%}{% endfor %}"
    )
    assert choose_chat_template(text, [tmp_path]) == text


def test_a_template_that_is_a_link_out_of_a_model_is_not_published(tmp_path):
    (tmp_path / "secret").write_text("a key")
    (tmp_path / "model").mkdir()
    link = tmp_path / "model" / "chat_template.jinja"
    link.symlink_to("../secret")
    with pytest.raises(CheckpointError) as caught:
        choose_chat_template("auto", [tmp_path / "model"])
    assert caught.value.code == "checkpoint.link"
    link.unlink()
    (tmp_path / "model" / "template").write_text("{{ messages }}")
    link.symlink_to("template")
    assert choose_chat_template("auto", [tmp_path / "model"]) == "{{ messages }}"


def test_a_recipe_sets_the_template_and_the_threads(family, tmp_path):
    base, tunes = family
    recipe = MergeWeightsRecipe.model_validate(
        {
            "method": "task_arithmetic",
            "base_model": str(base),
            "models": [{"model": str(path)} for path in tunes],
            "chat_template": "chatml",
            "threads": 3,
        }
    )
    merge = open_merge(recipe)
    assert merge.threads == 3
    merge.write(tmp_path / "out")
    assert "<|im_start|>" in read_chat_template(tmp_path / "out")
