import json
import multiprocessing
import os
import resource
import signal

import numpy as np
import pytest
import torch

from stillroom.distill.data.tokenized import TokenizedRecord, make_batch
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.logit_cache.capture import capture_teacher, verify_cache
from stillroom.distill.logit_cache.storage import CacheHeader, row_bytes
from stillroom.distill.losses.targets import DenseTargets, SampledTargets, TopKTargets
from stillroom.distill.teachers.local import fill_cache
from stillroom.errors import Cancelled, DataError, IntegrityError, ResourceError
from stillroom.jobs import Job


def logprobs_of(model, lesson, heat=1.0):
    batch = make_batch([lesson], None)
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids).logits[0].float()
    return torch.log_softmax(logits[batch.flat] / heat, -1)


def all_logprobs(model, lessons, heat=1.0):
    return torch.cat([logprobs_of(model, lesson, heat) for lesson in lessons])


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("heat", [1.0, 2.0])
def test_keeps_the_teachers_likeliest_and_the_rest(make_cache, loaded, lessons, heat):
    target = make_cache(temperature=heat).target(lessons)
    assert isinstance(target, TopKTargets)
    top = all_logprobs(loaded[0], lessons, heat).topk(8, -1)
    torch.testing.assert_close(target.logprobs, top.values, rtol=1e-4, atol=1e-4)
    mass = target.logprobs.exp().sum(-1) + target.tail.exp()
    torch.testing.assert_close(mass, torch.ones_like(mass), rtol=1e-4, atol=1e-4)
    assert target.temperature == heat


@pytest.mark.parametrize(("dtype", "apart"), [("float32", 1e-4), ("float16", 1e-2)])
def test_keeps_the_whole_vocabulary(make_cache, loaded, lessons, dtype, apart):
    size = loaded[0].config.vocab_size
    cache = make_cache(mode="dense", width=size, logprob_dtype=dtype)
    target = cache.target(lessons)
    assert isinstance(target, DenseTargets)
    exact = all_logprobs(loaded[0], lessons)
    torch.testing.assert_close(target.logits, exact, rtol=1e-3, atol=apart)
    assert row_bytes(cache.header)[0] == size * (4 if dtype == "float32" else 2)


@pytest.mark.parametrize("heat", [0.7, 1.0, 2.0])
def test_draws_are_distinct_and_follow_the_seed(make_cache, loaded, lessons, heat):
    how = {"mode": "sampled", "width": 40, "sampling_temperature": heat}
    one = make_cache("a", seed=1, **how).target(lessons)
    same = make_cache("b", seed=1, **how).target(lessons)
    other = make_cache("c", seed=2, **how).target(lessons)
    assert isinstance(one, SampledTargets)
    assert torch.equal(one.ids, same.ids)
    assert not torch.equal(one.ids, other.ids)
    exact = all_logprobs(loaded[0], lessons)
    torch.testing.assert_close(one.logprobs, exact.gather(-1, one.ids), rtol=1e-4, atol=1e-4)
    assert all(len(set(row.tolist())) == 40 for row in one.ids)
    if heat == 1:
        torch.testing.assert_close(one.weights.sum(-1), torch.ones(len(one.ids)))


def test_a_row_is_small():
    fields = {"teacher": "", "tokenizer": "", "template": "", "vocabulary": 49152}
    fields |= {"temperature": 1.0, "precision": "float32", "logprob_dtype": "float16"}
    assert row_bytes(CacheHeader(**fields, mode="top_k", width=64)) == (260, 3)
    assert row_bytes(CacheHeader(**fields, mode="sampled", width=12)) == (52, 3)
    fields["vocabulary"] = 100_000
    assert row_bytes(CacheHeader(**fields, mode="top_k", width=64)) == (388, 5)


def test_is_taken_up_again_and_shared(make_cache, loaded, lessons, job):
    first = make_cache()
    again = make_cache(fill=False)  # both stay open: readers do not exclude each other
    assert all(lesson in again for lesson in lessons)
    assert capture_teacher(loaded[0], lessons, again, job) == 0
    assert again.rows == first.rows == sum(len(lesson.positions) for lesson in lessons)
    assert torch.equal(again.target(lessons).logprobs, first.target(lessons).logprobs)
    on_disk = sum(path.stat().st_size for path in again.folder.glob("*.bin"))
    assert again.size_bytes == on_disk


def test_more_is_added_while_others_read(make_cache, loaded, lessons, job):
    reader = make_cache(fill=False)
    assert "missing" not in str(reader.cover(lessons))  # of a first run all are
    capture_teacher(loaded[0], lessons[:2], reader, job)
    before = reader.target(lessons[:2])
    adder = make_cache(fill=False)
    assert capture_teacher(loaded[0], lessons, adder, job) == len(lessons) - 2
    assert torch.equal(reader.target(lessons[:2]).logprobs, before.logprobs)
    assert str(reader.cover(lessons)).startswith(f"2 of {len(lessons)} records")
    assert adder.cover(lessons).missing == ()


def test_shards_end_before_they_are_too_large(make_cache, loaded, lessons, job):
    whole = make_cache("whole")
    cut = make_cache("cut", shard_bytes=600)
    shards = sorted(path.name for path in cut.folder.glob("rows-*.bin"))
    assert len(shards) > 1
    assert torch.equal(cut.target(lessons).logprobs, whole.target(lessons).logprobs)
    again = make_cache("cut", fill=False, shard_bytes=600)
    assert again.verify() == len(lessons)
    (cut.folder / shards[0]).write_bytes(b"")
    with pytest.raises(IntegrityError, match="truncated"):
        make_cache("cut", fill=False, shard_bytes=600)


def test_other_positions_of_known_tokens(make_cache, loaded, lessons, job):
    cache = make_cache(mode="sampled", width=6)
    first = lessons[0]
    some = TokenizedRecord("again", first.ids, first.positions[1::2])
    assert some in cache
    assert np.array_equal(cache.read(some), cache.read(first)[1::2])
    more = TokenizedRecord("more", first.ids, np.arange(len(first.ids) - 1))
    assert more not in cache
    kept = cache.read(first).copy()
    assert capture_teacher(loaded[0], [more], cache, job) == 1
    assert more in cache
    assert np.array_equal(cache.read(first), kept)  # draws do not depend on what else is wanted


def test_the_records_can_be_told_from_the_cache_alone(make_cache, lessons):
    make_cache().close()
    found = list(make_cache(fill=False).records())
    for lesson, kept in zip(lessons, found, strict=True):
        assert kept.record_id == lesson.record_id
        assert np.array_equal(kept.ids, lesson.ids)
        assert np.array_equal(kept.positions, lesson.positions)


def test_a_torn_tail_ends_with_the_same_bytes(make_cache, loaded, lessons, job, tmp_path):
    make_cache("whole").close()
    part = make_cache("part", fill=False)
    capture_teacher(loaded[0], lessons[:2], part, job)
    for name in ("rows-00000.bin", "tokens-00000.bin", "index.jsonl"):
        with (tmp_path / "part" / name).open("ab") as file:
            file.write(b"half of a record")
    resumed = make_cache("part", fill=False)
    assert capture_teacher(loaded[0], lessons, resumed, job) == len(lessons) - 2
    for path in (tmp_path / "whole").glob("[!.]*"):
        assert path.read_bytes() == (tmp_path / "part" / path.name).read_bytes()


def _capture_and_die(folder, header, loaded, lessons, out):
    """Capture with a journal that kills the process, as kill -9 does, amid the third record."""
    from stillroom.jobs import Journal

    put, done = Journal.put, []

    def put_or_die(self, key, value):
        if self.path.name == "index.jsonl":
            done.append(key)
            if len(done) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        put(self, key, value)

    Journal.put = put_or_die
    torch.set_num_threads(1)
    with LogitCache.open(folder, header) as cache:
        capture_teacher(loaded[0], lessons, cache, Job.start(out, "kind: test\n"))


def test_kill_9_loses_one_record_and_no_byte(make_cache, make_header, loaded, lessons, tmp_path):
    whole = make_cache("whole")
    folder = tmp_path / "killed"
    child = multiprocessing.get_context("fork").Process(
        target=_capture_and_die, args=(folder, make_header(), loaded, lessons, tmp_path / "dead")
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert (folder / "rows-00000.bin").stat().st_size > 0
    killed = make_cache("killed", fill=False)
    assert [lesson in killed for lesson in lessons[:3]] == [True, True, False]
    make_cache("killed").close()
    for path in whole.folder.glob("[!.]*"):
        assert path.read_bytes() == (folder / path.name).read_bytes()


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
        ("sampling_temperature", 2.0),
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


def test_license_and_about_are_kept_but_not_compared(make_cache, tmp_path):
    make_cache(license="MIT", about={"name": "here"}).close()
    make_cache(fill=False, license="Apache-2.0", about={"name": "there"})
    kept = json.loads((tmp_path / "cache" / "header.json").read_text())
    assert (kept["license"], kept["about"]) == ("MIT", {"name": "here"})


def test_what_was_made_elsewhere_serves_any_template(make_cache, lessons):
    make_cache(template="unknown", precision="unknown").close()
    assert lessons[0] in make_cache(fill=False)


@pytest.mark.parametrize("name", ["rows-00000.bin", "tokens-00000.bin"])
def test_a_flipped_bit_is_found(make_cache, lessons, tmp_path, name):
    make_cache().close()
    flip_bit(tmp_path / "cache" / name)
    cache = make_cache(fill=False)
    with pytest.raises(IntegrityError) as caught:
        cache.verify()
    assert caught.value.code == "distill.cache-damaged"


def test_records_behind_a_changed_line_of_the_index_are_told_of(
    make_cache, make_header, lessons, tmp_path, job, loaded
):
    make_cache().close()
    path, found = tmp_path / "cache/index.jsonl", []
    make_cache(fill=False, on_damage=found.append)
    assert not found
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1].replace(b'"rows":', b'"sows":'), *lines[2:]]))
    with pytest.raises(IntegrityError, match="is broken at line 2") as caught:
        verify_cache(tmp_path / "cache", records=0)
    assert caught.value.code == "distill.cache-damaged"
    cache = make_cache(fill=False, on_damage=found.append)
    assert f"{len(lines) - 1} lines from there on are lost" in found[0]
    assert capture_teacher(loaded[0], lessons, cache, job) == len(lessons) - 1
    assert cache.verify() == len(lessons)


def test_damage_in_a_record_that_a_job_does_not_use_is_found(make_cache, lessons, tmp_path, job):
    make_cache().close()
    with (tmp_path / "cache" / "rows-00000.bin").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    cache = make_cache(fill=False)
    with pytest.raises(IntegrityError) as caught:
        fill_cache(cache, None, lessons[:1], job)
    assert caught.value.code == "distill.cache-damaged"
    assert lessons[-1].record_id in str(caught.value)


@pytest.mark.parametrize("name", ["rows-00000.bin", "tokens-00000.bin"])
def test_a_cut_file_is_found(make_cache, tmp_path, name):
    make_cache().close()
    path = tmp_path / "cache" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="truncated"):
        make_cache(fill=False)


def test_a_header_that_is_no_json_is_found(make_cache, tmp_path):
    make_cache().close()
    (tmp_path / "cache" / "header.json").write_text("{")
    with pytest.raises(IntegrityError, match="header"):
        make_cache(fill=False)


def test_a_folder_without_a_header_is_no_cache(tmp_path):
    with pytest.raises(DataError) as caught:
        LogitCache.open(tmp_path)
    assert caught.value.code == "distill.no-cache"


def test_one_adds_at_a_time(make_cache, loaded, lessons, job):
    one, other = make_cache(fill=False), make_cache(fill=False)
    with one.writing(), pytest.raises(ResourceError) as caught:
        capture_teacher(loaded[0], lessons, other, job)
    assert caught.value.code == "distill.cache-busy"
    assert capture_teacher(loaded[0], lessons, other, job) == len(lessons)


def test_a_record_that_was_never_captured_is_named(make_cache, lessons):
    cache = make_cache()
    stranger = TokenizedRecord("rec-x", np.arange(4), np.arange(2))
    with pytest.raises(DataError, match="rec-x") as caught:
        cache.target([stranger])
    assert caught.value.code == "distill.cache-missing"


def test_a_token_outside_the_vocabulary_is_refused(make_cache):
    cache = make_cache(fill=False)
    odd = TokenizedRecord("rec-y", np.array([1, cache.header.vocabulary]), np.array([0]))
    with cache.writing(), pytest.raises(DataError, match="rec-y") as caught:
        cache.add(odd, np.zeros(1, cache.dtype))
    assert caught.value.code == "distill.token-id"


@pytest.mark.parametrize("mode", ["top_k", "sampled", "dense"])
def test_a_teacher_that_gives_no_numbers_is_named(make_cache, loaded, lessons, job, mode):
    import copy

    lesson = lessons[1]
    spot = int(lesson.positions[2])
    broken = copy.deepcopy(loaded[0])

    def spoil(module, args, kwargs, output):
        output.last_hidden_state[0, spot] = torch.nan

    broken.model.register_forward_hook(spoil, with_kwargs=True)
    width = loaded[0].config.vocab_size if mode == "dense" else 8
    cache = make_cache(fill=False, mode=mode, width=width)
    with pytest.raises(DataError, match=f"record {lesson.record_id}, position {spot}") as caught:
        capture_teacher(broken, [lesson], cache, job)
    assert caught.value.code == "distill.teacher-not-finite"
    assert len(cache) == 0


def test_what_is_kept_does_not_depend_on_order(make_cache, loaded, lessons, job):
    forward = make_cache("a", mode="sampled")
    backward = make_cache("b", fill=False, mode="sampled")
    capture_teacher(loaded[0], lessons[::-1], backward, job)
    for lesson in lessons:
        assert np.array_equal(forward.read(lesson), backward.read(lesson))


def test_a_write_that_is_cut_short_is_not_indexed(make_cache, lessons):
    """A full disk takes the beginning of a record: it is not indexed, and the others stay."""
    cache = make_cache()
    longer = TokenizedRecord("new", np.append(lessons[0].ids, 1), lessons[0].positions)
    rows = np.zeros(len(longer.positions), cache.dtype)
    size = max(path.stat().st_size for path in cache.folder.glob("rows-*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with cache.writing():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + rows.nbytes // 2, hard))
        try:
            with pytest.raises(OSError, match="too large"):
                cache.add(longer, rows)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with LogitCache.open(cache.folder) as again:
        assert again.verify() == len(again) == len(lessons)
