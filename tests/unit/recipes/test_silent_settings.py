"""Settings without effect are refused, and names that are no UTF-8 are named."""

import json
import os
from pathlib import Path

import pytest

from stillroom.diffusion.sampling.settings import DecodeSettings
from stillroom.errors import RecipeError
from stillroom.recipes import load_recipe

SAMPLED = "pipeline={generator: {name: grounded_qa, top_p: 0.5}}"


@pytest.mark.parametrize(
    ("kind", "overrides", "unused"),
    [
        ("rag.index", ["limits.ocr=never", "limits.ocr_language=de"], "ocr_language"),
        ("evaluate.report", ["models={a: m}", "sampling.top_p=0.5"], "top_p"),
        (
            "synth.records",
            ["index=i", "pipeline={generator: {name: grounded_qa, top_p: 0.5}}"],
            "top_p",
        ),
        ("distill.supervised", ["teacher=t", "sequence={temperature: 0, top_p: 0.9}"], "top_p"),
        ("distill.supervised", ["teacher=t", "student={keep: [0, 1], choose: kl}"], "choose"),
        ("distill.supervised", ["teacher=t", "fidelity={records: 0, answers: 4}"], "answers"),
    ],
)
def test_settings_without_effect_are_refused(kind, overrides, unused):
    inputs = {"rag.index": "documents=d"}.get(kind, "records=r")
    with pytest.raises(RecipeError, match=f"without effect: {unused}"):
        load_recipe(Path(kind), [*([inputs] if kind != "synth.records" else []), *overrides])


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


def test_a_diffusion_sampler_refuses_top_k_at_temperature_0():
    with pytest.raises(ValueError, match="without effect: top_k"):
        DecodeSettings(top_k=3)
    assert DecodeSettings(top_k=3, temperature=0.5).top_k == 3


def test_a_list_that_repeats_an_entry_is_refused():
    with pytest.raises(RecipeError, match=r"listed twice: 0\.5"):
        load_recipe(Path("diffusion.train"), ["records=r", "validation.times=[0.5, 0.5]"])
