from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from stillroom.errors import Cancelled, DataError
from stillroom.jobs import Job
from stillroom.jobs.progress import QuietReporter
from stillroom.models import open_embedder
from stillroom.models.hub import MULTILINGUAL_EMBEDDER
from stillroom.provenance.sources import locate_document
from stillroom.rag.index import builder
from stillroom.rag.index.searcher import Index
from stillroom.rag.jobs.index import IndexRecipe, estimate, run
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.text.reader import map_suffixes


class Watched:
    """An embedder that runs a hook before every call."""

    def __init__(self, hook):
        self.inner = open_embedder("static")
        self.hook = hook
        self.truncated = 0
        self.dimensions = self.inner.dimensions
        self.max_tokens = self.inner.max_tokens
        self.fingerprint = self.inner.fingerprint
        self.count_tokens = self.inner.count_tokens

    def embed(self, texts, *, kind):
        changed = self.hook(texts)
        return self.inner.embed(texts, kind=kind) if changed is None else changed


def test_the_index_holds_every_document_in_order_of_path(build, tmp_path):
    artifact = build()
    with Index.open(tmp_path / "index") as index:
        paths = [index.passage_at(row).location.path for row in range(len(index))]
    assert paths == sorted(paths)
    assert set(paths) >= {"animals/cats.md", "places/tokyo.txt"}
    assert artifact.kind == "index"
    assert artifact.details["documents"] == 6
    assert artifact.details["embedded"] == artifact.details["passages"]
    assert [parent.role for parent in artifact.parents] == ["documents", "embedder"]


def test_two_builds_are_the_same_bytes(build):
    assert build("one").files == build("two").files


def test_an_unchanged_folder_parses_and_embeds_nothing(build, tmp_path):
    first = build()
    second = build("again", previous=tmp_path / "index")
    assert second.digest == first.digest
    assert second.details["parsed"] == second.details["embedded"] == 0
    assert second.details["reused"] == 6


def test_an_incremental_build_is_that_from_scratch(build, folder, tmp_path):
    build()
    (folder / "animals/cats.md").write_text("# Cats\n\nA cat has nine lives.\n")
    (folder / "animals/birds.md").write_text("Birds sing at dawn.\n")
    (folder / "code/cpp.md").unlink()
    incremental = build("next", previous=tmp_path / "index")
    assert incremental.details["parsed"] == 2
    assert incremental.details["reused"] == 4
    assert incremental.digest == build("scratch").digest


def test_other_settings_take_nothing_over(build, tmp_path):
    build()
    again = build("again", previous=tmp_path / "index", embedding={"with_headings": False})
    assert again.details["reused"] == 0
    assert again.digest == build("scratch", embedding={"with_headings": False}).digest


def test_keyword_settings_alone_keep_passages_and_vectors(build, tmp_path):
    build()
    again = build("again", previous=tmp_path / "index", keyword={"stemming": "none", "k1": 0.9})
    assert again.details["embedded"] == 0
    assert again.digest == build("scratch", keyword={"stemming": "none", "k1": 0.9}).digest


def test_a_damaged_previous_index_is_not_used(build, tmp_path):
    first = build()
    vectors = tmp_path / "index/output/segments/000001/vectors.npy"
    vectors.write_bytes(vectors.read_bytes()[:-4] + b"\1\2\3\4")
    again = build("again", previous=tmp_path / "index")
    assert again.details["reused"] == 0
    assert again.digest == first.digest


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_stopped_job_resumes_to_the_same_bytes(build, folder, tmp_path, after):
    whole = build("whole")
    recipe = IndexRecipe(documents=str(folder), embedder="static")
    job = Job.start(tmp_path / "part", "recipe\n")
    calls = []

    def stop(texts):
        calls.append(texts)
        if len(calls) > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, job, embedder=Watched(stop))
    job.close()
    job = Job.start(tmp_path / "part", "recipe\n", resume=True)
    resumed = run(recipe, job, embedder=open_embedder("static"))
    assert resumed.digest == whole.digest
    assert resumed.details["parsed"] == 6 - after


class Listener(QuietReporter):
    """A display that keeps the shares of a phase as they are told."""

    every_s = 0.0

    def __init__(self):
        self.shares = []

    def hear(self, kind, fields):
        if kind == "progress" and fields["name"] == "index":
            self.shares.append(fields["share"])


def test_one_long_document_is_counted_while_it_is_embedded_and_resumes_in_its_middle(tmp_path):
    folder = tmp_path / "long"
    folder.mkdir()
    rows = (f"# Part {part}\n\n{f'The number is {part}. ' * 60}\n" for part in range(400))
    (folder / "a.md").write_text("\n".join(rows))
    recipe = IndexRecipe(documents=str(folder), embedder="static")
    told = Listener()
    job = Job.start(tmp_path / "whole", "recipe\n", reporter=told)
    whole = run(recipe, job, embedder=open_embedder("static"))
    assert told.shares == sorted(told.shares)
    assert sum(0 < share < 1 for share in told.shares) >= 10
    job = Job.start(tmp_path / "part", "recipe\n")
    calls = []

    def stop(texts):
        calls.append(len(texts))
        if len(calls) == 10:
            job.cancel()

    with pytest.raises(Cancelled):
        run(recipe, job, embedder=Watched(stop))
    job.close()
    assert len(calls) == 10  # the next batch was not begun
    job = Job.start(tmp_path / "part", "recipe\n", resume=True)
    resumed = run(recipe, job, embedder=open_embedder("static"))
    assert resumed.details["embedded"] == whole.details["embedded"] - sum(calls)
    assert resumed.digest == whole.digest


def test_scratch_files_that_were_lost_are_made_again(build, folder, tmp_path):
    recipe = IndexRecipe(documents=str(folder), embedder="static")
    job = Job.start(tmp_path / "part", "recipe\n")
    with pytest.raises(Cancelled):
        run(recipe, job, embedder=Watched(lambda texts: job.cancel()))
    stored = sorted((job.work / "scratch/documents").glob("*.npy"))
    job.close()
    assert stored
    stored[0].write_bytes(b"torn")
    job = Job.start(tmp_path / "part", "recipe\n", resume=True)
    assert run(recipe, job, embedder=open_embedder("static")).digest == build("whole").digest


def test_one_broken_file_is_listed_and_the_rest_goes_on(build, folder):
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    (folder / "broken.docx").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match=r"2 of 8 documents cannot be used") as caught:
        build("refused")
    told = caught.value.problems[0].next
    assert "--overwrite max_failed=0.25 (of make: steps.index.max_failed=0.25)" in told
    (folder / "empty.txt").write_bytes(b"")
    (folder / "empty.csv").write_bytes(b"")  # no copy of the other: neither is found
    artifact = build(max_failed=0.4)
    assert not any("copies" in warning for warning in artifact.details["warnings"])
    failed = {item["path"]: item for item in artifact.details["failed"]}
    assert set(failed) == {"broken.docx", "broken.pdf", "empty.csv", "empty.txt"}
    assert all(item["reason"] and item["code"] for item in failed.values())
    assert artifact.details["documents"] == 6


def test_an_empty_folder_is_refused(tmp_path, folder):
    (tmp_path / "none").mkdir()
    recipe = IndexRecipe(documents=str(tmp_path / "none"), embedder="static")
    job = Job.start(tmp_path / "out", "recipe\n")
    with pytest.raises(DataError, match=r"has no documents") as caught:
        run(recipe, job, embedder=open_embedder("static"))
    job.close()
    assert caught.value.code == "rag.no-documents"
    with pytest.raises(DataError, match=r"has no documents"):
        estimate(recipe)


def test_only_broken_files_are_refused_with_their_reasons(tmp_path):
    root = tmp_path / "broken"
    root.mkdir()
    (root / "a.pdf").write_bytes(b"%PDF-1.4 nothing")
    (root / "b.txt").write_bytes(b"")
    recipe = IndexRecipe(documents=str(root), embedder="static", max_failed=0.99)
    job = Job.start(tmp_path / "out", "recipe\n")
    with pytest.raises(DataError) as caught:
        run(recipe, job, embedder=open_embedder("static"))
    job.close()
    assert caught.value.code == "rag.documents-failed"
    assert {problem.where for problem in caught.value.problems[1:]} == {"a.pdf", "b.txt"}


def test_too_many_failures_are_refused(build, folder):
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    with pytest.raises(DataError, match=r"1 of 7 documents cannot be used"):
        build(max_failed=0.1)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_vectors_without_a_direction_are_refused(build, value):
    def spoil(texts):
        if any("cat" in text for text in texts):
            return np.full((len(texts), 1024), value, dtype=np.float32)
        return None

    artifact = build(embedder=Watched(spoil))
    assert [item["code"] for item in artifact.details["failed"]] == ["rag.bad-vector"]


def test_vectors_of_another_width_are_refused(build):
    with pytest.raises(DataError) as caught:
        build(embedder=Watched(lambda texts: np.ones((len(texts), 3), dtype=np.float32)))
    assert "rag.bad-vector" in {problem.code for problem in caught.value.problems}


def test_half_precision_halves_the_vectors(build, tmp_path):
    build("whole")
    build("half", vectors="float16")
    whole = (tmp_path / "whole/output/segments/000001/vectors.npy").stat().st_size
    half = (tmp_path / "half/output/segments/000001/vectors.npy").stat().st_size
    assert half < whole * 0.55
    with Index.open(tmp_path / "half") as index:
        assert retrieve(index, "capital of France", 1)[0].passage.location.path.endswith(
            "paris.txt"
        )


def test_repeated_passages_are_counted(build, folder):
    (folder / "copy.txt").write_text((folder / "places/paris.txt").read_text())
    assert build().details["duplicates"] == 1


def test_origin_and_license_reach_every_passage(build, tmp_path):
    build(origin={"kind": "human", "license": "CC-BY-4.0"})
    with Index.open(tmp_path / "index") as index:
        origins = {index.passage_at(row).origin for row in range(len(index))}
    assert {(origin.kind, origin.license) for origin in origins} == {("human", "CC-BY-4.0")}


def test_the_estimate_grows_with_the_folder(folder, monkeypatch):
    recipe = IndexRecipe(documents=str(folder), embedder="static")
    before = estimate(recipe)
    (folder / "long.txt").write_text("word " * 100_000)
    after = estimate(recipe)
    assert after.seconds > before.seconds > 0
    assert after.disk_bytes > before.disk_bytes
    assert "passages" in after.basis
    assert "20 of 200 tokens a second (MiniLM-L6 on" in before.basis
    for is_here, rate, chosen in (
        (False, 20, "MiniLM-L6"),
        (True, 10, "all-mpnet-base-v2 in 8-bit integers"),
    ):
        monkeypatch.setattr(builder, "has_large_embedder", lambda found=is_here: found)
        auto = estimate(recipe.model_copy(update={"embedder": "builtin:auto"})).basis
        assert f"at {rate} of 200 tokens a second ({chosen}, or multilingual-e5-small at 10" in auto
    multilingual = recipe.model_copy(update={"embedder": MULTILINGUAL_EMBEDDER})
    assert estimate(multilingual).seconds == 2 * after.seconds


def test_a_single_file_can_be_indexed(folder, tmp_path):
    recipe = IndexRecipe(documents=str(folder / "animals/cats.md"), embedder="static")
    job = Job.start(tmp_path / "one", "recipe\n")
    assert run(recipe, job, embedder=open_embedder("static")).details["documents"] == 1


def test_passages_that_the_embedder_cuts_are_counted(build):
    class Short(Watched):
        def embed(self, texts, *, kind):
            self.truncated += sum("purr" in text for text in texts)
            return super().embed(texts, kind=kind)

    assert build(embedder=Short(lambda texts: None)).details["truncated"] == 1


def test_headings_are_embedded_but_never_stored(build, folder, tmp_path):
    seen = []
    build(embedder=Watched(lambda texts: seen.extend(texts)))
    assert any(text.startswith("Cats\n") for text in seen)
    with Index.open(tmp_path / "index") as index:
        for row in range(len(index)):
            passage = index.passage_at(row)
            source = (folder / passage.location.path).read_text(encoding="utf-8")
            assert passage.text in source


def test_documents_that_were_named_from_elsewhere_are_found_beside_a_citation(
    tmp_path, monkeypatch
):
    """Jobs of a server name what is in their folder from there."""
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "mill.txt").write_text("The mill grinds at noon.\n")
    monkeypatch.chdir(tmp_path)
    recipe = IndexRecipe(documents="documents", embedder="static")
    run(recipe, Job.start(Path("jobs/one"), "kind: rag.index"))
    monkeypatch.chdir("/")
    with Index.open(tmp_path / "jobs/one") as index:
        place = index.passage_at(0).location
    found = locate_document(tmp_path / "jobs/one", place.path, place.digest)
    assert found == (tmp_path / "documents" / "mill.txt", ())


def test_a_recipe_chooses_a_plug_in_parser_by_name(build, folder, tmp_path, monkeypatch, request):
    (tmp_path / "plug").mkdir()
    (tmp_path / "plug/shouted.py").write_text(
        "from dataclasses import replace\n"
        "from stillroom.text.parsers.txt import Txt\n\n"
        "class Shouted(Txt):\n"
        '    suffixes = (".txt", ".shout")\n\n'
        "    def parse(self, data, source):\n"
        "        return super().parse(data.upper(), source)\n"
    )
    entry = EntryPoint("shouted", "shouted:Shouted", "stillroom.text.parsers")
    monkeypatch.setattr(
        "stillroom.registry.method.entry_points",
        lambda group: [entry] if group == entry.group else [],
    )
    monkeypatch.syspath_prepend(tmp_path / "plug")
    map_suffixes.cache_clear()
    request.addfinalizer(map_suffixes.cache_clear)  # it knows the plug-in
    (folder / "news.shout").write_text("a whisper of the wind\n")
    (folder / "plain.txt").write_text("a note")
    build("chosen", parsers=["shouted"])
    build("detected")

    def read(name):
        with Index.open(tmp_path / name) as index:
            passages = (index.passage_at(row) for row in range(len(index)))
            return {passage.location.path: passage.text for passage in passages}

    chosen, detected = read("chosen"), read("detected")
    assert "A WHISPER" in chosen["news.shout"]
    assert "A WHISPER" in detected["news.shout"]  # no parser of ours has that suffix
    assert chosen["plain.txt"] == "A NOTE"
    assert detected["plain.txt"] == "a note"
    assert (
        build("again", previous=tmp_path / "detected", parsers=["shouted"]).details["reused"] == 0
    )
