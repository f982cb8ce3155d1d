"""Repeated entries are refused, and names that are no UTF-8 are named."""

import json
import os
from pathlib import Path

import pytest

from stillroom.errors import RecipeError
from stillroom.recipes import load_recipe


def test_a_path_that_is_no_utf8_is_named_as_that(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    (folder / "recipe.yaml").write_text("version: 1\nkind: synth.dedup\nrecords: [r.jsonl]\n")
    (folder / "r.jsonl").write_text(json.dumps({"id": "1"}))
    with pytest.raises(RecipeError) as caught:
        load_recipe(folder / "recipe.yaml", [])
    assert "recipe.reference" in {problem.code for problem in caught.value.problems}
    with pytest.raises(RecipeError, match="UTF-8"):
        load_recipe(Path("rag.index"), [f"documents={folder}"])


def test_a_list_that_repeats_an_entry_is_refused():
    with pytest.raises(RecipeError, match=r"listed twice: 0\.5"):
        load_recipe(Path("diffusion.train"), ["records=r", "validation.times=[0.5, 0.5]"])
