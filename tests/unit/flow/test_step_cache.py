"""Keys of steps: what decides a step's result, and so whether it is run again."""

import pytest

from stillroom.flow.make import read_make_recipe
from stillroom.flow.step_cache import prepare_step
from stillroom.rag.answer_selection import reader
from stillroom.rag.ingestion import embedder_choice
from stillroom.recipes import parse_recipe


@pytest.mark.parametrize(
    ("installed", "changed"),
    [
        ("builtin:reader-large", {"reader", "report"}),
        ("builtin:reader-multilingual", {"reader", "report"}),
        ("embedder", {"index"}),
    ],
)
def test_what_is_installed_decides_which_steps_are_run_again(
    tmp_path, monkeypatch, installed, changed
):
    flow = read_make_recipe(tmp_path)

    def name_folders(*models):
        readers = [name for name in models if name.startswith("builtin:reader")]
        monkeypatch.setattr(reader, "list_installed_readers", lambda: readers)
        embedders = [name for name in models if name == "embedder"]
        monkeypatch.setattr(embedder_choice, "list_installed_embedders", lambda: embedders)
        done = dict.fromkeys(flow.steps, tmp_path / "none")
        return {
            name: prepare_step(flow, name, done, tmp_path, step).folder.name
            for name, step in flow.steps.items()
        }

    before, after = name_folders(), name_folders(installed)
    assert {name for name, folder in before.items() if after[name] != folder} == changed
    assert name_folders() == before


def test_a_reader_with_another_start_is_the_same_whatever_is_installed(tmp_path, monkeypatch):
    flow = read_make_recipe(tmp_path, ["steps.reader.start=builtin:reader-small"])
    done = dict.fromkeys(flow.steps, tmp_path / "none")
    folders = set()
    for installed in ([], ["builtin:reader-large"]):
        monkeypatch.setattr(reader, "list_installed_readers", lambda names=installed: names)
        step = prepare_step(flow, "reader", done, tmp_path, flow.steps["reader"])
        folders.add(step.folder)
    assert len(folders) == 1


def test_installed_readers_are_those_whose_base_is_here(monkeypatch):
    monkeypatch.setattr(reader, "_has_large_reader", lambda: True)
    monkeypatch.setattr(reader, "is_local", lambda base: "MiniLM" in base)
    assert reader.list_installed_readers() == ["builtin:reader", "builtin:reader-large"]


def _name_folder(tmp_path, step):
    flow = parse_recipe(f"kind: flow\nsteps:\n  only: {step}\n", "flow")
    return prepare_step(flow, "only", {}, tmp_path, flow.steps["only"]).folder.name


@pytest.mark.parametrize(
    "step",
    [
        "{kind: synth.decontaminate, records: [RECORDS], against: [CHANGED]}",
        "{kind: synth.records, seeds: RECORDS, pipeline: {generator: evol_instruct,"
        " filters: [{name: decontaminate, against: [CHANGED]}]}}",
        "{kind: merge.weights, method: linear, models: [{model: RECORDS}, {model: CHANGED}]}",
    ],
)
def test_a_changed_file_of_a_list_or_a_group_runs_its_step_again(tmp_path, step):
    changed, records = tmp_path / "changed.jsonl", tmp_path / "records.jsonl"
    changed.write_text("{}\n")
    records.write_text("{}\n")
    step = step.replace("CHANGED", str(changed)).replace("RECORDS", str(records))
    before = _name_folder(tmp_path, step)
    assert _name_folder(tmp_path, step) == before
    changed.write_text('{"question": "one more"}\n')
    assert _name_folder(tmp_path, step) != before


def test_a_cache_that_a_step_itself_fills_does_not_run_it_again(tmp_path):
    cache, seeds = tmp_path / "cache.sqlite", tmp_path / "seeds.jsonl"
    kind = "kind: synth.records, pipeline: {generator: evol_instruct}"
    step = f"{{{kind}, seeds: {seeds}, cache: {cache}}}"
    before = _name_folder(tmp_path, step)
    cache.write_bytes(b"completions")
    assert _name_folder(tmp_path, step) == before
