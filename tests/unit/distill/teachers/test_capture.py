import json

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from tests.unit.distill.targets import draw_any, draw_distinct

from stillroom.cli.app import stillroom
from stillroom.distill.data.tokenized import make_batch
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.logit_cache.capture import CacheVerification, estimate_cache_cost
from stillroom.distill.teachers import local
from stillroom.errors import ResourceError, StillroomError
from stillroom.jobs import Machine


@pytest.fixture
def invoke():
    def run(*arguments, code=0):
        done = CliRunner().invoke(stillroom, [str(each) for each in arguments])
        if not code:
            assert done.exception is None, (done.output, done.exception)
            return done.stdout
        assert isinstance(done.exception, StillroomError), done.output
        assert done.exception.exit_code == code
        return str(done.exception)

    return run


@pytest.fixture
def recipe_file(tmp_path, teacher_folder, records_file):
    fields = {
        "version": 1,
        "kind": "distill.logits",
        "teacher": str(teacher_folder),
        "records": str(records_file),
        "targets": {"mode": "top_k", "k": 8, "logprob_dtype": "float32"},
        "train": {"precision": "float32", "threads": 1},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields, sort_keys=False))
    return path


def probabilities(model, lessons):
    rows = []
    for lesson in lessons:
        batch = make_batch([lesson], None)
        with torch.no_grad():
            logits = model(input_ids=batch.input_ids).logits[0][batch.flat]
        rows.append(torch.softmax(logits.double(), -1))
    return torch.cat(rows)


def test_the_mass_outside_top_k_is_told_beforehand(make_header, loaded, lessons):
    cost = estimate_cache_cost(loaded[0], make_header(), lessons[:4])
    exact = 1 - probabilities(loaded[0], lessons[:4]).topk(8, -1).values.sum(-1).mean()
    assert cost.outside == pytest.approx(float(exact), rel=1e-4)
    tokens = sum(len(lesson.ids) for lesson in lessons[:4])
    assert cost.size_bytes == cost.positions * (8 * (2 + 4) + 4) + 3 * tokens


@pytest.mark.parametrize("heat", [1.0, 1.5])
def test_the_noise_of_draws_is_told_beforehand(make_header, loaded, lessons, heat):
    header = make_header(mode="sampled", width=5, sampling_temperature=heat)
    cost = estimate_cache_cost(loaded[0], header, lessons[:1])
    exact = probabilities(loaded[0], lessons[:1]).float()
    many = exact.log().repeat(400, 1)
    for told, draw in ((cost.noise, draw_distinct), (cost.noise_replaced, draw_any)):
        rng = torch.Generator().manual_seed(0)
        target = draw(many, 5, rng, heat=heat)
        row = torch.zeros_like(many).scatter_add_(-1, target.ids, target.weights)
        measured = (row - exact.repeat(400, 1)).square().sum(-1).mean().sqrt()
        assert told == pytest.approx(float(measured), rel=0.05)
    assert cost.noise < cost.noise_replaced


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    make_cache, loaded, lessons, job, monkeypatch
):
    class Known:
        def in_precision(self, precision):
            return loaded[0]

    cache = make_cache(fill=False)
    monkeypatch.setattr(local, "describe_machine", lambda out: Machine(10**12, 100, 2))
    with pytest.raises(ResourceError) as caught:
        local.fill_cache(cache, Known(), lessons, job)
    assert caught.value.code == "resource.disk"
    assert "targets.mode sampled" in str(caught.value)
    assert not list(cache.folder.glob("*.bin"))


def test_capture_verify_and_show(recipe_file, tmp_path, invoke):
    out = tmp_path / "cache"
    said = invoke("distill", "capture", recipe_file, "--out", out, "--estimate")
    assert "bytes per position" in said
    assert "0 of " in said
    assert not list(out.glob("*.bin"))
    first = json.loads(invoke("distill", "capture", recipe_file, "--out", out, "--json", "--quiet"))
    assert first["wanted"] == {
        "records": first["cache"]["records"],
        "positions": first["cache"]["positions"],
    }
    again = json.loads(invoke("distill", "capture", recipe_file, "--out", out, "--json", "--quiet"))
    assert again["found_before"] == again["wanted"]
    assert again["cost"] is None
    assert {path.name for path in out.iterdir()} == {
        ".lock", "header.json", "index.jsonl", "rows-00000.bin", "tokens-00000.bin"
    }  # fmt: skip
    checked = json.loads(invoke("distill", "verify", out, "--json"))
    assert checked["records"] == first["cache"]["records"]
    assert checked["largest"] < 1e-4
    assert "logit cache" in invoke("show", out)
    assert json.loads(invoke("show", out, "--json"))["cache"]["header"]["mode"] == "top_k"


def test_where_nothing_differs_no_place_is_named():
    found = CacheVerification(3, 3, 20, largest=0.0, mean=0.0, where="", tolerance=0.01)
    assert "difference 0.00000 nats, mean 0.000000;" in str(found)


@pytest.mark.parametrize("mode", ["top_k", "sampled", "dense"])
def test_words_that_are_not_the_teachers_are_found(recipe_file, tmp_path, invoke, mode):
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    override = (f"targets={{mode: {mode}, logprob_dtype: float16}}",)
    invoke("distill", "capture", recipe_file, *override, "--out", right, "--quiet")
    invoke("distill", "verify", right)
    good = LogitCache.open(right)
    bad = LogitCache.open(wrong, good.header)
    with bad.writing():
        for lesson in good.records():
            bad.add(lesson, np.roll(good.read(lesson), 1))  # one position late, digests right
    said = invoke("distill", "verify", wrong, code=1)
    assert "distill.cache-apart" in said
    invoke("distill", "verify", wrong, "--records", 0)


def test_verify_wants_the_teacher_that_spoke(make_cache, teacher_folder, invoke):
    cache = make_cache()
    assert "distill.no-teacher" in invoke("distill", "verify", cache.folder, code=2)
    said = invoke("distill", "verify", cache.folder, "--teacher", teacher_folder, code=1)
    assert "distill.cache-mismatch" in said
    assert "is another teacher" in said


@pytest.mark.parametrize(
    ("override", "code", "exit"),
    [("targets={mode: live}", "distill.nothing-kept", 2), ("targets.k=4000", "distill.shape", 1)],
)
def test_capture_refuses(recipe_file, tmp_path, invoke, override, code, exit):
    assert code in invoke(
        "distill", "capture", recipe_file, override, "--out", tmp_path / "c", code=exit
    )
