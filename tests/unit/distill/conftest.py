"""A tiny teacher, a few records, and lessons made of them."""

import pytest
from tests.unit.distill.kinds import run

from stillroom.distill.data.tokenized import tokenize_records
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.logit_cache.capture import capture_teacher
from stillroom.distill.logit_cache.storage import CacheHeader
from stillroom.jobs import Job
from stillroom.models import load_causal_lm
from stillroom.records import Message, Record, write_records
from stillroom.testing import tiny_checkpoint

SENTENCES = (
    "A still turns wine into spirit.",
    "The old house kept its stillroom beside the kitchen.",
    "Water boils at one hundred degrees.",
)


def make_records(count=12):
    return [
        Record(
            (
                Message("user", f"Question {n}? {SENTENCES[n % 3]}"),
                Message("assistant", f"{SENTENCES[(n + 1) % 3]} {n}"),
            ),
            {"split": "held_out" if n % 4 == 0 else "train"},
        )
        for n in range(count)
    ]


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("teacher") / "tiny", layers=4)


@pytest.fixture(scope="session")
def loaded(teacher_folder):
    model, tokenizer = load_causal_lm(teacher_folder, dtype="float32", device="cpu")
    model.requires_grad_(False)
    return model, tokenizer


@pytest.fixture
def lessons(loaded):
    found, _ = tokenize_records(loaded[1], make_records(6), max_tokens=128, include_prompt=False)
    return found


@pytest.fixture
def make_header(loaded):
    def make(**changes):
        fields = {
            "teacher": "f00",
            "tokenizer": "70c",
            "template": "7e3",
            "vocabulary": loaded[0].config.vocab_size,
            "mode": "top_k",
            "width": 8,
            "temperature": 1.0,
            "precision": "float32",
            "logprob_dtype": "float32",
        }
        return CacheHeader(**{**fields, **changes})

    return make


@pytest.fixture
def job(tmp_path):
    job = Job.start(tmp_path / "job", "kind: test\n")
    yield job
    job.close()


@pytest.fixture
def make_cache(tmp_path, make_header, loaded, lessons, job):
    """Return a function that opens (and by default fills) a cache."""
    opened = []

    def make(folder="cache", *, fill=True, shard_bytes=1 << 30, on_damage=None, **changes):
        header, options = make_header(**changes), {"on_damage": on_damage}
        cache = LogitCache.open(tmp_path / folder, header, shard_bytes=shard_bytes, **options)
        opened.append(cache)
        if fill:
            capture_teacher(loaded[0], lessons, cache, job)
        return cache

    yield make
    for cache in opened:
        cache.close()


@pytest.fixture
def records_file(tmp_path):
    path = tmp_path / "records.jsonl"
    write_records(path, make_records(12))
    return path


@pytest.fixture
def do(tmp_path):
    """Run a recipe of any kind; return its artifact and folder."""

    def do(recipe, name="out", *, resume=False):
        job = Job.start(tmp_path / name, "kind: test\n", resume=resume)
        try:
            return run(recipe, job), tmp_path / name
        finally:
            job.close()

    return do
