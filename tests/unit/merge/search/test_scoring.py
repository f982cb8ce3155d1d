"""What is scored in memory must be what the written checkpoint would score, in every way."""

import json

import pytest
import torch
from tests.unit.merge.conftest import fine_tune, rewrite

from stillroom.checkpoints import Checkpoint
from stillroom.errors import DataError
from stillroom.evaluate.lm.loss import held_out_loss
from stillroom.merge.engine.merge import open_merge, reconfigure_merge
from stillroom.merge.jobs.weights import MergeWeightsRecipe
from stillroom.merge.search.scoring import MergeScorer, ScoringSettings, draw_records
from stillroom.merge.settings import AnswerObjective
from stillroom.models import load_causal_lm
from stillroom.records import Message, Record, write_records
from stillroom.testing import tiny_checkpoint

RECORDS = [
    Record((Message("user", f"Why {n}?"), Message("assistant", f"as {n} is old"))) for n in range(6)
]


def merge_of(method, *paths, **settings):
    models = [{"model": str(path)} for path in paths]
    return open_merge(
        MergeWeightsRecipe.model_validate({"method": method, "models": models} | settings)
    )


def score_written(merge, folder):
    merge.write(folder)
    model, tokenizer = load_causal_lm(folder, dtype="float32")
    return held_out_loss(model, tokenizer, RECORDS)


def score_filled(merge, tmp_path, before=()):
    """Score in memory, and make sure that nothing was written."""
    scorer = MergeScorer(ScoringSettings(), tmp_path / "scratch", pytest.fail)
    scorer._score_written = pytest.fail
    for each in before:
        scorer.score(each, RECORDS)
    return scorer.score(merge, RECORDS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("tie", [True, False])
def test_a_filled_model_is_the_written_one(dtype, tie, tmp_path):
    base = tiny_checkpoint(tmp_path / "base", dtype=dtype, tie=tie)
    merge = merge_of("linear", base, fine_tune(base, tmp_path / "tune", 1))
    # what was in the model before leaves no trace
    before = [merge_of("passthrough", base)]
    assert score_filled(merge, tmp_path, before) == score_written(merge, tmp_path / "out")


def test_a_model_that_is_stacked_anew_is_the_written_one(tmp_path):
    base = tiny_checkpoint(tmp_path / "base")
    parts = [{"sources": [{"model": 0, "layer_range": span}]} for span in ([0, 2], [0, 1], [1, 2])]
    merge = merge_of("passthrough", base, slices=parts)
    before = [merge_of("passthrough", base)]
    assert score_filled(merge, tmp_path, before) == score_written(merge, tmp_path / "out")


def test_a_stored_type_is_scored_as_it_will_be_stored(tmp_path):
    base = tiny_checkpoint(tmp_path / "base")
    merge = merge_of("passthrough", base, out={"dtype": "bfloat16"})
    scored = score_filled(merge, tmp_path)
    assert scored == score_written(merge, tmp_path / "out")
    assert scored != score_filled(merge_of("passthrough", base), tmp_path)


def test_a_vocabulary_of_both_models_is_scored_with_its_own_tokenizer(tmp_path):
    base = tiny_checkpoint(tmp_path / "base")
    more = rewrite(base, tmp_path / "more", lambda name, tensor: widen_table(name, tensor))
    config = more / "config.json"
    rows = Checkpoint.open(more).shape("model.embed_tokens.weight")[0]
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": rows}))
    tokenizer = json.loads((more / "tokenizer.json").read_text())
    token = {"id": rows - 1, "content": " old", "special": False, "single_word": False}
    token |= {"lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"].append(token)
    (more / "tokenizer.json").write_text(json.dumps(tokenizer))
    merge = merge_of("linear", base, more, tokenizer={"source": "union"})
    written = score_written(merge, tmp_path / "out")
    assert score_filled(merge, tmp_path) == written
    assert score_filled(merge_of("passthrough", base), tmp_path) != written


def test_an_answer_is_asked_for_with_the_tools_of_its_record(tmp_path, monkeypatch):
    model, tokenizer = load_causal_lm(tiny_checkpoint(tmp_path / "m"), dtype="float32")
    tokenizer.chat_template = "{{ tools }}{{ messages[0].content }}"
    settings = ScoringSettings(objective=AnswerObjective(name="f1"))
    scorer = MergeScorer(settings, tmp_path / "scratch", pytest.fail)
    prompts = []

    def generate(input_ids, **settings):
        prompts.append(tokenizer.decode(input_ids[0]))
        return input_ids

    monkeypatch.setattr(model, "generate", generate)
    scorer.measure_model(model, tokenizer, [Record(RECORDS[0].messages, {"tools": [{"a": 1}]})])
    assert "{'a': 1}" in prompts[0]


def widen_table(name, tensor):
    if name != "model.embed_tokens.weight":
        return tensor
    return torch.cat([tensor, tensor.mean(0, keepdim=True)])


def test_retuned_merges_have_the_settings_of_the_changed_recipe(tmp_path):
    base = tiny_checkpoint(tmp_path / "base")
    tune = fine_tune(base, tmp_path / "tune", 1)
    models = [{"model": str(base)}, {"model": str(tune)}]
    merge = open_merge(MergeWeightsRecipe.model_validate({"method": "linear", "models": models}))
    models = [models[0] | {"weight": 0.25}, models[1] | {"weight": 0.75}]
    recipe = MergeWeightsRecipe.model_validate({"method": "linear", "models": models})
    assert [source.weight for source in reconfigure_merge(merge, recipe).parents] == [0.25, 0.75]
    assert [source.weight for source in merge.parents] == [1.0, 1.0]


def test_records_are_drawn_by_seed_and_id_whatever_their_order(tmp_path):
    write_records(tmp_path / "one.jsonl", RECORDS)
    write_records(tmp_path / "two.jsonl", RECORDS[::-1])

    def draw(name, seed):
        path = str(tmp_path / name)
        drawn = draw_records(path, split="", limit=3, seed=seed, warn=pytest.fail)
        return [record.id for record in drawn]

    assert draw("one.jsonl", 1) == draw("two.jsonl", 1)
    assert len(draw("one.jsonl", 1)) == 3
    assert len({tuple(draw("one.jsonl", seed)) for seed in range(5)}) > 1
    with pytest.raises(DataError) as caught:
        draw_records(str(tmp_path / "one.jsonl"), split="no", limit=3, seed=0, warn=print)
    assert caught.value.code == "merge.no-records"
