"""A diffusion model beside its twin: equal recipes, facts without leaks, a report that is whole."""

import json

import pytest
from click.testing import CliRunner

from stillroom.cli.app import stillroom
from stillroom.diffusion.evaluation.comparison import count_cooccurrences, find_facts
from stillroom.diffusion.jobs.autoregressive import derive_baseline_recipe
from stillroom.diffusion.jobs.train import DiffusionTrainRecipe
from stillroom.errors import RecipeError, StillroomError
from stillroom.provenance import render_tree, verify_artifact, walk_lineage
from stillroom.records import Message, Record, write_records


def told(*texts):
    return [Record((Message("assistant", text),)) for text in texts]


def test_facts_told_both_ways_are_left_out():
    records = told("A1 is B1 .", "B2 is A2 .", "A3 is B3 .", "B3 is A3 .", "hello")
    facts, turned, both = find_facts(records, "{a} is {b} .")
    assert {fact.text for fact in facts} == {"A1 is B1 .", "B2 is A2 ."}
    assert {fact.text for fact in turned} == {"B1 is A1 .", "A2 is B2 ."}
    assert both == 2
    for one, other in zip(facts, turned, strict=True):
        assert one.names == other.names[::-1]
    long, back, _ = find_facts(
        told("the old mill is known as Ann's rest!"), "the {a} is known as {b}!"
    )
    assert long[0].names == ("old mill", "Ann's rest")
    assert back[0].text == "the Ann's rest is known as old mill!"


def test_a_fact_that_leaked_within_a_longer_text_is_not_asked():
    hidden = Record((Message("user", "So B1 is A1 . True?"), Message("assistant", "Yes.")))
    records = [*told("A1 is B1 .", "A2 is B2 .", "A3 is B3 .", "of B3 and A3", "A22 at B2"), hidden]
    facts, turned, both = find_facts(records, "{a} is {b} .")
    assert [fact.text for fact in facts] == ["A2 is B2 .", "A3 is B3 ."]
    assert len(turned) == 2
    assert both == 1
    assert count_cooccurrences(facts, records) == 1


@pytest.mark.parametrize("template", ["{a} is .", "{b} is {a} .", "{a} {a} {b}", "{a} was {b} ."])
def test_a_template_that_finds_nothing_is_refused(template):
    with pytest.raises(RecipeError) as caught:
        find_facts(told("A1 is B1 ."), template)
    assert caught.value.code == "diffusion.no-facts"


def test_the_twin_differs_in_noise_and_attention_alone():
    blocks = {"name": "block_causal", "block_size": 4, "growth": [1]}
    recipe = DiffusionTrainRecipe(records="r", attention=blocks, seed=5)
    twin = derive_baseline_recipe(recipe)
    assert twin.kind == "diffusion.autoregressive"
    assert (twin.model, twin.seed) == (recipe.model, 5)
    # by blocks each text is read twice, so that the twin takes twice the steps
    assert twin.train == recipe.train.model_copy(update={"epochs": 2 * recipe.train.epochs})
    plain = DiffusionTrainRecipe(records="r", train={"steps": 7})
    assert derive_baseline_recipe(plain).train == plain.train
    both = DiffusionTrainRecipe(records="r", train={"steps": 7}, corruption="complementary")
    assert derive_baseline_recipe(both).train.steps == 14


@pytest.mark.parametrize("attention", ["full", "block_causal"])
def test_both_are_trained_and_asked_and_the_report_says_what_is_a_bound(tmp_path, attention):
    records = told(*(f"A{n} is B{n} ." for n in range(6)), "A99 is B98 .", "B98 is A99 .")
    write_records(tmp_path / "records.jsonl", records)
    recipe = tmp_path / "recipe.yaml"
    block = ", block_size: 2" if attention == "block_causal" else ""
    recipe.write_text(
        "version: 1\nkind: diffusion.train\n"
        "model: {tokenizer: 'builtin:words', num_hidden_layers: 1, hidden_size: 32, "
        "num_attention_heads: 2}\nrecords: ./records.jsonl\nstage: pretraining\n"
        f"attention: {{name: {attention}{block}}}\n"
        "train: {steps: 3, batch_size: 8}\nvalidation: {samples: 2, records: 2}\n"
    )
    words = ["diffusion", "compare", str(recipe), "--out", str(tmp_path / "both"), "--quiet"]
    rows = [{"prompt": f"A{n} is", "completion": f"B{n} ."} for n in range(3)]
    asked = tmp_path / "asked.jsonl"
    asked.write_text("\n".join(map(json.dumps, rows)))
    wrong = CliRunner().invoke(stillroom, [*words, "--ask", str(asked)])
    assert wrong.exit_code == 2
    words += ["--ask", f"mine={asked}"]
    done = CliRunner().invoke(stillroom, [*words, "--facts", "{a} is {b} .", "--json"])
    assert done.exit_code == 0, done.output
    found = {metric["name"]: metric for metric in json.loads(done.stdout)["metrics"]}
    for side in ("diffusion", "autoregressive"):
        assert {f"{side}/forward", f"{side}/infill", f"{side}/reversed"} <= set(found)
        assert 0 <= found[f"{side}/forward"]["value"] <= 1
        assert found[f"{side}/mine"]["n"] == 3
    if "diffusion/nats_per_token" in found:
        assert found["diffusion/nats_per_token"]["note"].startswith("upper bound")
        assert found["autoregressive/nats_per_token"]["note"] == "exact"
    tree = render_tree(walk_lineage(tmp_path / "both"))
    assert str(tmp_path / "records.jsonl") in tree
    assert not verify_artifact(tmp_path / "both")
    page = (tmp_path / "both" / "report.html").read_text()
    assert "occurs in no record" in page
    assert "mine: 0 of 3" in page
    (table,) = [
        part["table"]
        for part in json.loads((tmp_path / "both" / "report.json").read_text())["sections"]
        if part["title"] == "Training cost"
    ]
    (one, other) = table["rows"]
    assert one[1] == other[1]  # parameters
    assert float(one[4]) == pytest.approx(float(other[4]), rel=0.2)  # drawn records differ
    again = CliRunner().invoke(stillroom, [*words, "--resume"])
    assert again.exit_code == 0, again.output
    assert "report" in again.stdout
    assert not verify_artifact(tmp_path / "both")
    with (tmp_path / "both" / "report.html").open("a") as file:
        file.write(" ")
    assert [found.path for found in verify_artifact(tmp_path / "both")] == ["report.html"]
    stranger = [*words[:4], str(tmp_path / "both" / "diffusion"), "--quiet"]
    refused = CliRunner().invoke(stillroom, stranger)
    assert refused.exception.code == "data.exists"
    assert not verify_artifact(tmp_path / "both" / "diffusion")


def test_nothing_is_trained_for_a_template_that_fits_nothing(tmp_path):
    write_records(tmp_path / "records.jsonl", told("A is B ."))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("version: 1\nkind: diffusion.train\nrecords: ./records.jsonl\n")
    words = ["diffusion", "compare", str(recipe), "--out", str(tmp_path / "x"), "--facts", "{a}!"]
    done = CliRunner().invoke(stillroom, words)
    assert isinstance(done.exception, StillroomError)
    assert not (tmp_path / "x").exists()
