import json

import numpy as np
import pytest
import torch

from stillroom.distill.cache import TeacherCache, row_dtype
from stillroom.distill.capture import capture_teacher
from stillroom.distill.encode import Lesson, make_batch
from stillroom.distill.targets import Sampled, TopKTail
from stillroom.errors import Cancelled, DataError, IntegrityError, ResourceError


def logprobs_of(model, lesson, heat=1.0):
    batch = make_batch([lesson], None)
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids).logits[0].float()
    return torch.log_softmax(logits[batch.flat] / heat, -1)


@pytest.mark.parametrize("heat", [1.0, 2.0])
def test_keeps_the_teachers_likeliest_and_the_rest(make_cache, loaded, lessons, heat):
    cache = make_cache(temperature=heat)
    target = cache.target(lessons)
    assert isinstance(target, TopKTail)
    exact = torch.cat([logprobs_of(loaded[0], lesson, heat) for lesson in lessons])
    top = exact.topk(8, -1)
    torch.testing.assert_close(target.logprobs, top.values, rtol=1e-4, atol=1e-4)
    mass = target.logprobs.exp().sum(-1) + target.tail.exp()
    torch.testing.assert_close(mass, torch.ones_like(mass), rtol=1e-4, atol=1e-4)
    assert target.temperature == heat


def test_draws_are_the_teachers_and_follow_the_seed(make_cache, loaded, lessons):
    one = make_cache("a", mode="sampled", width=40, seed=1).target(lessons)
    same = make_cache("b", mode="sampled", width=40, seed=1).target(lessons)
    other = make_cache("c", mode="sampled", width=40, seed=2).target(lessons)
    assert isinstance(one, Sampled)
    assert torch.equal(one.ids, same.ids)
    assert not torch.equal(one.ids, other.ids)
    torch.testing.assert_close(one.weights.sum(-1), torch.ones(len(one.ids)))
    exact = torch.cat([logprobs_of(loaded[0], lesson) for lesson in lessons])
    torch.testing.assert_close(one.logprobs, exact.gather(-1, one.ids), rtol=1e-4, atol=1e-4)
    for row, weights in zip(one.ids, one.weights, strict=True):
        drawn = row[weights > 0].tolist()
        assert len(set(drawn)) == len(drawn)


def test_a_row_is_small():
    from stillroom.distill.cache import CacheHeader

    fields = {"teacher": "", "tokenizer": "", "template": "", "vocabulary": 49152}
    fields |= {"temperature": 1.0, "precision": "float32", "logprob_dtype": "float16"}
    assert row_dtype(CacheHeader(**fields, mode="top_k", width=64)).itemsize == 264
    assert row_dtype(CacheHeader(**fields, mode="sampled", width=12)).itemsize == 64
    fields["vocabulary"] = 100_000
    assert row_dtype(CacheHeader(**fields, mode="top_k", width=64)).itemsize == 392


def test_is_taken_up_again_and_shared(make_cache, loaded, lessons, job):
    first = make_cache()
    wanted = first.target(lessons)
    rows = first.rows
    first.close()
    again = make_cache(fill=False)
    assert all(lesson in again for lesson in lessons)
    assert capture_teacher(loaded[0], lessons, again, job) == 0
    assert again.rows == rows
    assert torch.equal(again.target(lessons).logprobs, wanted.logprobs)
    assert again.size_bytes == (again.folder / "rows.bin").stat().st_size


def test_a_kill_in_the_middle_ends_with_the_same_bytes(make_cache, loaded, lessons, job, tmp_path):
    make_cache("whole").close()
    part = make_cache("part", fill=False)
    capture_teacher(loaded[0], lessons[:2], part, job)
    part.close()
    with (tmp_path / "part" / "rows.bin").open("ab") as file:
        file.write(b"half of a record")  # rows were written, the index entry was not
    resumed = make_cache("part", fill=False)
    assert capture_teacher(loaded[0], lessons, resumed, job) == len(lessons) - 2
    resumed.close()
    for name in ("rows.bin", "index.jsonl", "header.json"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_cancel_keeps_what_was_captured(make_cache, loaded, lessons, job):
    cache = make_cache(fill=False)
    capture_teacher(loaded[0], lessons[:1], cache, job)
    job.cancel()
    with pytest.raises(Cancelled):
        capture_teacher(loaded[0], lessons, cache, job)
    assert lessons[0] in cache


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("teacher", "another"),
        ("tokenizer", "another"),
        ("template", "another"),
        ("vocabulary", 300),
        ("width", 9),
        ("mode", "sampled"),
        ("temperature", 2.0),
        ("precision", "bfloat16"),
        ("logprob_dtype", "float16"),
    ],
)
def test_refuses_other_words_and_names_what_differs(make_cache, name, value):
    make_cache().close()
    with pytest.raises(DataError) as caught:
        make_cache(fill=False, **{name: value})
    assert caught.value.code == "distill.cache-mismatch"
    assert f"another {name}" in str(caught.value)


def test_the_license_is_kept_but_not_compared(make_cache, tmp_path):
    make_cache(license="MIT").close()
    make_cache(fill=False, license="Apache-2.0")
    assert json.loads((tmp_path / "cache" / "header.json").read_text())["license"] == "MIT"


def test_a_flipped_bit_is_found(make_cache, lessons, tmp_path):
    make_cache().close()
    path = tmp_path / "cache" / "rows.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    cache = make_cache(fill=False)
    with pytest.raises(IntegrityError) as caught:
        cache.verify(lessons)
    assert caught.value.code == "distill.cache-damaged"


def test_a_cut_file_is_found(make_cache, tmp_path):
    make_cache().close()
    path = tmp_path / "cache" / "rows.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="cut off"):
        make_cache(fill=False)


def test_a_header_that_is_no_json_is_found(make_cache, tmp_path):
    make_cache().close()
    (tmp_path / "cache" / "header.json").write_text("{")
    with pytest.raises(IntegrityError, match="header"):
        make_cache(fill=False)


def test_two_jobs_cannot_write_one_cache(make_cache):
    make_cache()
    with pytest.raises(ResourceError) as caught:
        make_cache(fill=False)
    assert caught.value.code == "distill.cache-busy"


def test_a_record_that_was_never_captured_is_named(make_cache, lessons):
    cache = make_cache()
    stranger = Lesson("rec-x", np.arange(4), np.arange(2))
    with pytest.raises(DataError, match="rec-x") as caught:
        cache.target([stranger])
    assert caught.value.code == "distill.cache-missing"


def test_a_teacher_that_gives_no_numbers_is_named(make_cache, loaded, lessons, job):
    import copy

    broken = copy.deepcopy(loaded[0])
    broken.model.norm.weight.data[0] = torch.nan
    cache = make_cache(fill=False)
    with pytest.raises(DataError, match=lessons[0].record_id) as caught:
        capture_teacher(broken, lessons, cache, job)
    assert caught.value.code == "distill.teacher-not-finite"


def test_what_is_kept_does_not_depend_on_order(make_cache, loaded, lessons, job):
    forward = make_cache("a")
    backward = make_cache("b", fill=False)
    capture_teacher(loaded[0], lessons[::-1], backward, job)
    assert isinstance(forward, TeacherCache)
    for lesson in lessons:
        assert np.array_equal(forward.read(lesson), backward.read(lesson))
