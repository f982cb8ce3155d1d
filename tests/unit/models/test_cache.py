import pytest

from stillroom.errors import Cancelled, DataError
from stillroom.jobs import Job
from stillroom.models import open_text_model
from stillroom.models.backends.scripted import Scripted
from stillroom.models.cache import CompletionCache, wrap_with_cache
from stillroom.records import Completion, Prompt, Sampling
from stillroom.testing import read_stream, scripted_model


def test_only_what_is_missing_is_asked(tmp_path):
    model = scripted_model(lambda prompt: prompt.text.upper(), fingerprint="m1")
    first = wrap_with_cache(model, tmp_path / "c.sqlite")
    first.generate([Prompt(text="a"), Prompt(text="b")], Sampling())
    second = wrap_with_cache(model, tmp_path / "c.sqlite")
    done = second.generate([Prompt(text="b"), Prompt(text="c"), Prompt(text="a")], Sampling())
    assert [c.text for c in done] == ["B", "C", "A"]
    assert [prompt.text for prompt in model.asked] == ["a", "b", "c"]
    assert second.hits == 2
    first.cache.close()
    second.close()
    assert model.is_closed


def test_the_same_prompt_twice_in_a_call_is_asked_once_and_reported_twice(tmp_path):
    model = scripted_model({"*": "yes"})
    seen = []
    with_cache = wrap_with_cache(model, tmp_path / "c.sqlite")
    with_cache.generate(
        [Prompt(text="a")] * 3, Sampling(), on_done=lambda index, c: seen.append(index)
    )
    assert seen == [0, 1, 2]
    assert len(model.asked) == 1
    with_cache.close()


@pytest.mark.parametrize(
    "other",
    [
        ("m2", Prompt(text="a"), Sampling()),
        ("m1", Prompt(text="b"), Sampling()),
        ("m1", Prompt(text="a"), Sampling(seed=1)),
        ("m1", Prompt(text="a", prefix="x"), Sampling()),
        ("m1", Prompt(text="a", schema={"type": "string"}), Sampling()),
    ],
)
def test_everything_a_completion_depends_on_is_in_the_key(other):
    assert CompletionCache.cache_key(*other) != CompletionCache.cache_key(
        "m1", Prompt(text="a"), Sampling()
    )


def test_cancelled_completions_are_not_kept(tmp_path):
    with_cache = wrap_with_cache(scripted_model({"*": "yes"}), tmp_path / "c.sqlite")
    done = with_cache.generate([Prompt(text="a")], Sampling(), is_cancelled=lambda: True)
    assert done[0].finish_reason == "cancelled"
    assert len(with_cache.cache) == 0
    with_cache.close()


def test_a_local_model_of_a_job_keeps_each_completion_and_stops_with_it(tmp_path, monkeypatch):
    job = Job.start(tmp_path / "run", "kind: synth.records\n")
    asked = []

    def answer(prompt):
        asked.append(prompt.text)
        if len(asked) == 2:
            job.cancel()  # as an interrupt does while the second prompt is answered
        return prompt.text.upper()

    monkeypatch.setattr(Scripted, "open", lambda *_: scripted_model(answer, fingerprint="m"))
    prompts = [Prompt(text=text) for text in "abcd"]
    model = open_text_model("scripted:none", job=job)
    with pytest.raises(Cancelled):
        model.generate(prompts, Sampling())
    model.close()
    job.close()
    assert asked == ["a", "b"]

    job = Job.start(tmp_path / "run", "kind: synth.records\n", resume=True)
    model = open_text_model("scripted:none", job=job)
    assert [one.text for one in model.generate(prompts, Sampling())] == ["A", "B", "C", "D"]
    assert asked == ["a", "b", "c", "d"]
    model.close()
    job.close()


def test_the_first_completion_of_a_key_stays(tmp_path):
    cache = CompletionCache(tmp_path / "c.sqlite")
    cache.put("k", Completion("first"))
    cache.put("k", Completion("second"))
    assert cache.get("k") == Completion("first")
    assert cache.get("other") is None
    cache.close()


def test_what_is_done_before_a_failure_is_kept(tmp_path):
    def answer(prompt):
        if prompt.text == "bad":
            raise RuntimeError("broken")
        return "ok"

    with_cache = wrap_with_cache(scripted_model(answer, fingerprint="m"), tmp_path / "c.sqlite")
    with pytest.raises(RuntimeError):
        with_cache.generate([Prompt(text="good"), Prompt(text="bad")], Sampling())
    assert len(with_cache.cache) == 1
    with_cache.close()


def test_a_stream_comes_from_the_cache_when_it_can(tmp_path):
    model = scripted_model({"*": "one two"})
    with_cache = wrap_with_cache(model, tmp_path / "c.sqlite")
    assert len(list(with_cache.stream(Prompt(text="a"), Sampling()))) == 2
    with_cache.generate([Prompt(text="a")], Sampling())
    (kept,) = with_cache.generate([Prompt(text="a")], Sampling())
    assert read_stream(with_cache.stream(Prompt(text="a"), Sampling())) == (["one two"], kept)
    with_cache.close()


def test_a_file_that_is_no_cache_is_refused(tmp_path):
    path = tmp_path / "c.sqlite"
    path.write_bytes(b"not a database at all, only text" * 40)
    with pytest.raises(DataError) as caught:
        CompletionCache(path)
    assert caught.value.code == "data.cache"
