"""Settings are measured on records, what nothing beats is told, and the choice becomes a preset."""

import json

import pytest
from click.testing import CliRunner
from tests.unit.diffusion.conftest import say_diffusion

from stillroom.cli import stillroom
from stillroom.diffusion.evaluation.sweep import (
    DecodingSweepResult,
    SweepCandidate,
    SweepTrial,
    choose_setting,
    expand_grid,
    find_pareto_front,
)
from stillroom.diffusion.jobs.tune import DecodingTuneRecipe
from stillroom.diffusion.model.loading import open_diffusion
from stillroom.diffusion.sampling.settings import (
    DecodeSettings,
    DecodingPreset,
    read_preset,
    write_preset,
)
from stillroom.errors import DataError, RecipeError
from stillroom.evaluate.report import Report
from stillroom.flow import run_recipe
from stillroom.models import open_text_model
from stillroom.records import Message, Prompt, Record, Sampling, write_records
from stillroom.testing import tiny_checkpoint

SMALL = {
    "commit.threshold": (0.5, 0.9),
    "block_length": (4,),
    "cache": (None, "dual"),
    "order": ("confidence",),
}
SMALL_ROWS = ("commit.threshold=0.5,0.9", "block_length=4", "cache=null,dual", "order=confidence")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return say_diffusion(
        tiny_checkpoint(tmp_path_factory.mktemp("tune") / "model", layers=1, hidden=32)
    )


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "records.jsonl"
    rows = [
        Record((Message("user", f"ask {n}"), Message("assistant", "the still")), {"split": "train"})
        for n in range(3)
    ]
    write_records(path, rows)
    return path


def outcome(label, quality, nfe, cpu):
    return DecodingSweepResult(
        SweepCandidate(label, DecodeSettings()), (SweepTrial(quality, nfe, cpu, 4, None),) * 2
    )


def test_what_nothing_beats_is_kept_and_the_cheapest_good_one_chosen():
    base = outcome("base", 0.9, 48, 1.0)
    quick = outcome("quick", 0.9, 6, 0.1)
    bold = outcome("bold", 0.7, 2, 0.05)
    worse = outcome("worse", 0.85, 7, 0.2)
    twin = outcome("twin", 0.9, 6, 0.1)
    every = [base, quick, bold, worse, twin]
    assert find_pareto_front(every) == [bold, quick, twin]
    assert choose_setting(every, 0.01) is quick
    assert choose_setting(every, 0.3) is bold
    assert choose_setting([base, bold], 0.0) is base


def test_the_grid_holds_the_baseline_and_what_the_model_can_do(make_model):
    found, left_out = expand_grid(make_model(), {"cache": (None, "block")}, {"temperature": 0.5}, 7)
    assert found[0].settings.commit.method_name() == "top_k"
    assert found[0].settings.cache.method_name() == "whole"
    assert all(one.settings.temperature == 0.5 for one in found)
    assert all(one.settings.max_new_tokens == 7 for one in found)
    assert left_out
    assert all("cache=block" in label for label in left_out)
    assert found[1].label == "threshold=0.7 block_length=null cache=null order=confidence"
    assert len({one.settings.model_dump_json() for one in found}) == len(found)
    by_blocks, _ = expand_grid(make_model(attention="block_causal", block_size=4), {}, {}, 8)
    assert {one.settings.block_length for one in by_blocks} == {None}
    with pytest.raises(RecipeError) as caught:
        expand_grid(make_model(), {"order": ("sideways",)}, {}, 4)
    with pytest.raises(RecipeError) as caught:
        expand_grid(make_model(), {"cache": ("block",)}, {}, 4)
    assert caught.value.code == "diffusion.tune"


def test_a_run_that_was_stopped_goes_on_to_the_same_choice(folder, records, tmp_path, monkeypatch):
    import stillroom.diffusion.evaluation.sweep as job

    model, calls = open_diffusion(str(folder)), []
    recipe = DecodingTuneRecipe(
        model=str(folder),
        records=str(records),
        grid=SMALL,
        decode={"max_new_tokens": 6},
        metric="same",
    )
    plain = job.run_trial

    def stop(*args):
        calls.append(args[2].label)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(job, "run_trial", stop)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "out")
    begun = len(calls)
    calls.extend(["ran on"])
    artifact = run_recipe(recipe, tmp_path / "out", resume=True)
    report, preset = Report.from_json(artifact.details), read_preset(tmp_path / "out")
    every = 3 * 5
    assert len(calls) - begun - 1 == every - 4 + 1  # one to warm up, four were done before
    assert artifact.details["preset"] == preset.model_dump(mode="json")
    assert preset.checkpoint == model.fingerprint
    assert artifact.details["preset"]["measured"]["records"] == 3
    assert "times fewer forward passes" in report.summary
    assert "use another measure" in report.summary
    table = report.sections[1].table
    assert len(table.rows) == 5
    again = run_recipe(recipe, tmp_path / "again")
    assert again.digest == artifact.digest  # seconds are no part of it


def test_the_front_is_printed_and_a_run_records_the_preset(folder, records, tmp_path):
    out = tmp_path / "out"
    grid = ", ".join(f"{key}: [{values}]" for key, values in (r.split("=") for r in SMALL_ROWS))
    words = ["run", "diffusion.tune", f"model={folder}", f"records={records}", "--out", str(out)]
    words += ["max_records=2", "decode.max_new_tokens=4", "name=brisk", "--quiet"]
    done = CliRunner().invoke(stillroom, [*words, f"grid={{{grid}}}"])
    assert done.exit_code == 0, done.output
    assert "Pareto set" in done.stdout
    sample = ["diffusion", "sample", str(folder), "ask", "--preset", str(out), "--json"]
    done = CliRunner().invoke(stillroom, [*sample, "--set", "order=margin"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["preset"] == "brisk"
    assert told["settings"]["max_new_tokens"] == 4
    assert told["settings"]["order"]["name"] == "margin"
    model = open_text_model(str(folder), backend="diffusion", preset=str(out))
    plain = open_text_model(str(folder), backend="diffusion")
    try:
        (answer,) = model.generate([Prompt(text="ask")], Sampling(max_new_tokens=4))
        assert ":brisk-" in answer.model
        assert answer.model != plain.fingerprint
    finally:
        model.close()
        plain.close()


def test_a_preset_of_other_weights_is_refused(folder, tmp_path):
    write_preset(tmp_path / "p.yaml", DecodingPreset(name="p", checkpoint="0" * 64))
    for words in (["--preset", str(tmp_path / "p.yaml")], ["--preset", str(tmp_path / "none")]):
        done = CliRunner().invoke(stillroom, ["diffusion", "sample", str(folder), "x", *words])
        assert done.exception.code == "diffusion.preset"
    write_preset(tmp_path / "any.yaml", DecodingPreset(name="p"))
    assert read_preset(tmp_path / "any.yaml").settings == DecodeSettings()
    both = {"preset": str(tmp_path / "any.yaml"), "block_length": 4}
    with pytest.raises(RecipeError) as caught:
        open_text_model(str(folder), backend="diffusion", **both)
    assert caught.value.code == "diffusion.preset"


def test_a_preset_that_was_left_at_the_checkpoint_is_used(tmp_path):
    folder = say_diffusion(tiny_checkpoint(tmp_path / "m", layers=1, hidden=32))
    write_preset(folder / "preset.yaml", DecodingPreset(name="left"))
    for more, is_used in (({}, True), ({"preset": "none"}, False), ({"block_length": 4}, False)):
        model = open_text_model(str(folder), backend="diffusion", **more)
        assert (":left-" in model.fingerprint) == is_used
        model.close()


def test_records_without_answers_are_refused(folder, tmp_path):
    write_records(tmp_path / "r.jsonl", [Record((Message("user", "ask"),))])
    recipe = DecodingTuneRecipe(model=str(folder), records=str(tmp_path / "r.jsonl"))
    with pytest.raises(DataError) as caught:
        run_recipe(recipe, tmp_path / "out")
    assert caught.value.code == "diffusion.tune"


def test_values_that_exclude_each_other_are_left_out_of_the_grid(make_model):
    grid = {"end.never": (False, True), "end.penalty": (0.0, 1.0)}
    found, left_out = expand_grid(make_model(), grid, {}, 4)
    assert {(one.settings.end.never, one.settings.end.penalty) for one in found} == {
        (False, 0.0), (False, 1.0), (True, 0.0),
    }  # fmt: skip
    assert any("never=true penalty=1.0" in label for label in left_out)


def test_a_split_that_no_record_has_is_refused(folder, records, tmp_path):
    recipe = DecodingTuneRecipe(
        model=str(folder), records=str(records), split="nowhere", max_records=1
    )
    with pytest.raises(DataError, match=r"no record has fields.split 'nowhere'"):
        run_recipe(recipe, tmp_path / "out")
