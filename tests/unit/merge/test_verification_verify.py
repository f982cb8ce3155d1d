import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tests.unit.merge.conftest import fine_tune

from stillroom.cli.merge.run import verify_command
from stillroom.errors import DataError, IntegrityError
from stillroom.flow.job import run_job
from stillroom.jobs import Job
from stillroom.merge.verification import verify_merge
from stillroom.provenance import ARTIFACT_FILE
from stillroom.recipes import build_recipe, dump_recipe
from stillroom.records import Message, Record, write_records
from stillroom.testing import tiny_checkpoint


def make_trio(folder):
    base = tiny_checkpoint(folder / "base")
    return base, [fine_tune(base, folder / f"tune{seed}", seed) for seed in (1, 2)]


@pytest.fixture
def trio(tmp_path):
    return make_trio(tmp_path)


@pytest.fixture(scope="module")
def searched_once(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    space = [{"setting": "scale", "low": 0, "high": 1}]
    search = {"records": str(records), "split": "", "space": space}
    search |= {"evaluations": 4, "optimizer": {"name": "cma", "population": 4}}
    return merge(make_trio(folder), folder / "out", "task_arithmetic", search=search)


@pytest.fixture
def searched(searched_once):
    """Yield a merge by a search; put its artifact.json back afterwards."""
    path = searched_once / ARTIFACT_FILE
    before = path.read_bytes()
    yield searched_once
    path.write_bytes(before)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    turns = [(Message("user", f"Why {n}?"), Message("assistant", f"as {n}")) for n in range(16)]
    write_records(path, [Record(messages) for messages in turns])
    return path


def merge(trio, out, method="ties", /, **settings):
    base, tunes = trio
    kind = next((kind for kind in ("select", "search") if kind in settings), "weights")
    recipe = build_recipe(
        {
            "version": 1,
            "kind": f"merge.{kind}",
            "method": method,
            "base_model": str(base),
            "models": [{"model": str(path)} for path in tunes],
        }
        | settings
    )
    run_job(recipe, Job.start(out, dump_recipe(recipe), seed=recipe.seed))
    return out


def spoil(path, name, number=3):
    tensors = load_file(path)
    tensors[name].view(-1)[number] += 1
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("ties", {}),
        ("ties", {"arithmetic": "mergekit"}),
        ("dare_linear", {}),
        ({"name": "dare_linear"}, {"arithmetic": "mergekit"}),
        ("task_arithmetic", {"out": {"dtype": "bfloat16"}, "exclude": ["*norm*"]}),
        ("linear", {"slices": [{"sources": [{"model": 0, "layer_range": [1, 2]}]}]}),
    ],
)
def test_what_a_recipe_gives_is_confirmed(method, settings, trio, tmp_path):
    out = merge(trio, tmp_path / "out", method, **settings)
    found = verify_merge(out, share=1.0)
    assert found.differences == ()
    assert found.is_whole
    assert len(found.inputs) == 3
    found = verify_merge(out, share=0.2)
    assert found.differences == ()
    is_random = settings.get("arithmetic") == "mergekit" and method != "ties"
    assert found.is_whole == is_random


def test_a_changed_number_is_found_and_named(trio, tmp_path):
    out = merge(trio, tmp_path / "out")
    spoil(out / "output" / "model.safetensors", "model.norm.weight")
    found = verify_merge(out, share=1.0)
    assert [(each.name, each.elements, each.first) for each in found.differences] == [
        ("model.norm.weight", 1, 3)
    ]
    with pytest.raises(IntegrityError, match=r"model.norm.weight.*differs in 1 elements") as caught:
        found.check(out)
    assert caught.value.code == "merge.not-replayed"


def test_the_sample_follows_the_seed(trio, tmp_path):
    out = merge(trio, tmp_path / "out")
    drawn = [verify_merge(out, share=0.3, seed=seed).replayed for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_tensor_of_another_type_or_none_is_a_difference(trio, tmp_path):
    out = merge(trio, tmp_path / "out")
    path = out / "output" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float16)
    tensors["more"] = torch.zeros(2)
    save_file(tensors, path, metadata={"format": "pt"})
    found = {each.name: str(each) for each in verify_merge(out).differences}
    assert found.keys() == {"model.norm.weight", "more"}
    assert "F16" in found["model.norm.weight"]


def test_a_changed_input_is_found_whatever_the_cache_says(trio, tmp_path):
    out = merge(trio, tmp_path / "out")
    spoil(trio[1][0] / "model.safetensors", "model.norm.weight")
    with pytest.raises(IntegrityError, match="tune1") as caught:
        verify_merge(out)
    assert caught.value.code == "merge.input-changed"


def test_a_changed_recipe_is_found(trio, tmp_path):
    out = merge(trio, tmp_path / "out")
    path = out / "recipe.yaml"
    path.write_text(path.read_text().replace("density: 0.2", "density: 0.3"))
    with pytest.raises(IntegrityError) as caught:
        verify_merge(out)
    assert caught.value.code == "integrity.changed"


def test_an_artifact_that_names_other_inputs_is_refused(trio, tmp_path):
    out = merge(trio, tmp_path / "out")
    data = json.loads((out / ARTIFACT_FILE).read_text())
    data["origin"]["chain"][-1]["parents"].pop()
    (out / ARTIFACT_FILE).write_text(json.dumps(data))
    with pytest.raises(IntegrityError, match="records 2 inputs"):
        verify_merge(out)


def test_a_run_that_was_moved_finds_its_inputs(trio, tmp_path):
    first = merge(trio, tmp_path / "run" / "first")
    second = merge((trio[0], [first, trio[1][1]]), tmp_path / "run" / "second")
    assert second.exists()
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert verify_merge(tmp_path / "moved" / "second", share=1.0).differences == ()


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("origin", {"chain": "x"}),
        ("origin", {"chain": [7]}),
        ("origin", {}),
        ("search", {"changes": {"models": {"9": {"weight": 1}}}}),
        ("search", {"changes": {"method": {"name": "none"}}}),
        ("search", {"changes": [1]}),
        ("search", 7),
    ],
)
def test_an_artifact_that_holds_anything_is_refused(section, value, searched):
    data = json.loads((searched / ARTIFACT_FILE).read_text())
    (data["details"] if section == "search" else data)[section] = value
    (searched / ARTIFACT_FILE).write_text(json.dumps(data))
    with pytest.raises(IntegrityError):
        verify_merge(searched)


@pytest.mark.parametrize("kind", ["select", "search"])
def test_selections_and_searches_are_replayed(kind, searched, trio, records, tmp_path):
    out = searched
    if kind == "select":
        select = {"records": str(records), "split": ""}
        out = merge(trio, tmp_path / "out", "task_arithmetic", select=select)
    assert verify_merge(out, share=1.0).differences == ()
    data = json.loads((out / ARTIFACT_FILE).read_text())
    kept = {"kept": "nothing", "changes": None}
    data["details"] |= {"search": kept} if kind == "search" else kept
    (out / ARTIFACT_FILE).write_text(json.dumps(data))
    with pytest.raises(IntegrityError) as caught:
        verify_merge(out)
    assert caught.value.code == "merge.not-replayed"


def test_what_no_merge_made_is_refused(trio, tmp_path):
    out = merge(trio, tmp_path / "out")
    data = json.loads((out / ARTIFACT_FILE).read_text())
    del data["details"]["merged"]
    (out / ARTIFACT_FILE).write_text(json.dumps(data))
    with pytest.raises(DataError) as caught:
        verify_merge(out)
    assert caught.value.code == "merge.not-a-merge"


def test_the_command_tells_in_words_and_json(trio, tmp_path):
    out = merge(trio, tmp_path / "out")
    shown = CliRunner().invoke(verify_command, [str(out), "--all"])
    assert shown.exit_code == 0
    assert "20 of 20 tensors" in shown.output
    spoil(out / "output" / "model.safetensors", "model.norm.weight")
    shown = CliRunner().invoke(verify_command, [str(out), "--all", "--json"])
    data = json.loads(shown.stdout)
    assert [each["name"] for each in data["differences"]] == ["model.norm.weight"]
    assert isinstance(shown.exception, IntegrityError)
