import json
from types import SimpleNamespace

import pytest
import torch
from tests.unit.merge.conftest import fine_tune, rewrite

from stillroom.checkpoints import Checkpoint
from stillroom.errors import CheckpointError, DataError
from stillroom.jobs import Job
from stillroom.merge.engine.merge import open_merge
from stillroom.merge.jobs.weights import MergeWeightsRecipe, run
from stillroom.merge.search.selection import list_parent_candidates
from stillroom.merge.settings import SmokeTestSettings
from stillroom.merge.verification import run_smoke_test
from stillroom.recipes import dump_recipe
from stillroom.records import Message, Record, write_records
from stillroom.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("smoke_test") / "base")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    turns = [(Message("user", f"Why {n}?"), Message("assistant", f"as {n}")) for n in range(8)]
    write_records(path, [Record(messages, {"split": "held_out"}) for messages in turns])
    return path


def parents_of(*paths):
    models = [{"model": str(path)} for path in paths]
    recipe = MergeWeightsRecipe.model_validate({"method": "linear", "models": models})
    return {each.name: each.merge for each in list_parent_candidates(recipe, open_merge(recipe))}


def logs(said):
    return SimpleNamespace(say=said.append, warn=said.append)


def settings(records, **more):
    return SmokeTestSettings.model_validate({"records": str(records)} | more)


def test_a_sound_result_loads_and_gives_a_token(base):
    said = []
    found = run_smoke_test(base, {}, log=logs(said))
    assert found["loads"] is True
    assert 0 <= found["token"] < Checkpoint.open(base).config["vocab_size"]
    assert found["tensors"] == len(Checkpoint.open(base).names())
    assert said == []


def test_perplexity_stands_beside_the_parents(base, records, tmp_path):
    from stillroom.evaluate.lm.loss import held_out_loss, perplexity
    from stillroom.models import load_causal_lm
    from stillroom.records import read_records

    tune = fine_tune(base, tmp_path / "tune", 1)
    said = []
    found = run_smoke_test(
        tune,
        parents_of(base, tune),
        settings(records),
        log=logs(said),
    )
    assert said == []
    assert found["parents"]["tune"]["value"] == pytest.approx(found["perplexity"]["value"])
    model, tokenizer = load_causal_lm(base, dtype="float32")
    losses = held_out_loss(model, tokenizer, list(read_records(records)))
    assert found["parents"]["base"]["value"] == pytest.approx(perplexity(losses).value, rel=1e-6)


def test_a_result_far_above_its_parents_is_said(base, records, tmp_path):
    rng = torch.Generator().manual_seed(1)
    broken = rewrite(
        base,
        tmp_path / "broken",
        lambda name, tensor: tensor + torch.randn(tensor.shape, generator=rng),
    )
    said = []
    found = run_smoke_test(
        broken,
        parents_of(base),
        settings(records),
        log=logs(said),
    )
    assert len(said) == 1
    assert found["warning"] in said[0]
    quiet = run_smoke_test(broken, parents_of(base), settings(records, margin=1000))
    assert quiet["warning"] == ""


def test_numbers_that_are_not_finite_are_named(base, tmp_path):
    def spoil(name, tensor):
        return tensor.clone().fill_(float("nan")) if name == "model.norm.weight" else tensor

    with pytest.raises(CheckpointError, match=r"model\.norm\.weight") as caught:
        run_smoke_test(rewrite(base, tmp_path / "spoiled", spoil), {})
    assert caught.value.code == "merge.smoke"


def test_logits_that_are_not_finite_are_refused(base, tmp_path):
    scales = {"model.norm.weight": 1e38, "model.embed_tokens.weight": 1e3}
    huge = rewrite(base, tmp_path / "huge", lambda name, tensor: tensor * scales.get(name, 1))
    with pytest.raises(CheckpointError, match="logits") as caught:
        run_smoke_test(huge, {})
    assert caught.value.code == "merge.smoke"


def test_what_is_no_language_model_is_checked_for_numbers_and_said(base, tmp_path):
    folder = rewrite(base, tmp_path / "encoder", lambda name, tensor: tensor)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["BertModel"]}))
    said = []
    found = run_smoke_test(folder, {}, log=logs(said))
    assert found["loads"] is False
    assert "BertModel" in said[0]


def test_records_that_measure_nothing_are_refused(base, tmp_path):
    path = tmp_path / "asked.jsonl"
    write_records(path, [Record((Message("user", "why?"),), {"split": "held_out"})])
    with pytest.raises(DataError) as caught:
        run_smoke_test(base, {}, settings(path))
    assert caught.value.code == "merge.no-records"


def test_a_recipe_with_smoke_says_it_in_the_artifact(base, records, tmp_path):
    tune = fine_tune(base, tmp_path / "tune", 1)
    recipe = MergeWeightsRecipe.model_validate(
        {
            "method": "linear",
            "models": [{"model": str(base)}, {"model": str(tune)}],
            "smoke_test": {"records": str(records)},
        }
    )
    artifact = run(recipe, Job.start(tmp_path / "out", dump_recipe(recipe)))
    smoke = artifact.details["smoke_test"]
    assert smoke["loads"] is True
    assert set(smoke["parents"]) == {"base", "tune"}
    assert "records" in [parent.role for parent in artifact.parents]


def test_what_another_backend_reads_is_not_run_as_a_causal_model(tmp_path):
    folder = tiny_checkpoint(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "stillroom_backend": "diffusion"}))
    said = []
    found = run_smoke_test(folder, {}, log=logs(said))
    assert found["loads"] is False
    assert found["not_loaded"] == "it is read by backend 'diffusion'"
    assert len(said) == 1
