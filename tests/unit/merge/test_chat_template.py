"""The chat template of a merge is that of most models, a known one, or the user's own."""

import pytest

from stillroom.checkpoints import Checkpoint
from stillroom.errors import RecipeError
from stillroom.merge import METHODS
from stillroom.merge.chat_template import read_chat_template
from stillroom.merge.opening import open_merge
from stillroom.merge.recipe import MergeRecipe
from stillroom.merge.sources import Source
from stillroom.merge.stream import Merge


def merge_with(template, folders, out):
    sources = [Source(folder.name, Checkpoint.open(folder)) for folder in folders]
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


def test_an_unknown_name_is_told_and_nothing_is_left(family, tmp_path):
    with pytest.raises(RecipeError) as caught:
        merge_with("no such", family[1], tmp_path / "out")
    assert caught.value.code == "merge.chat-template"
    assert not (tmp_path / "out").exists()


def test_a_recipe_sets_the_template_and_the_threads(family, tmp_path):
    base, tunes = family
    recipe = MergeRecipe.model_validate(
        {
            "method": "task_arithmetic",
            "base": str(base),
            "models": [{"checkpoint": str(path)} for path in tunes],
            "chat_template": "chatml",
            "threads": 3,
        }
    )
    merge = open_merge(recipe)
    assert merge.threads == 3
    merge.write(tmp_path / "out")
    assert "<|im_start|>" in read_chat_template(tmp_path / "out")
