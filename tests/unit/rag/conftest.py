"""Small folders of documents, and indexes over them made with hashed words for vectors."""

import pytest

from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.rag.index.searcher import Index
from stillroom.rag.jobs.index import IndexRecipe, run

PAGES = {
    "animals/cats.md": "# Cats\n\nA cat sleeps sixteen hours a day. Cats purr when they rest.\n",
    "animals/dogs.md": "# Dogs\n\nA dog barks at strangers. Dogs guard the house at night.\n",
    "code/cpp.md": "# C++\n\nUse `foo_bar` in C++ 17. The flag --std=c++17 is needed.\n",
    "code/python.md": "# Python\n\nPython 3.11.7 fixes CVE-2024-1. It does not need a compiler.\n",
    "places/paris.txt": "Paris is the capital of France. It has 2.1 million inhabitants.\n",
    "places/tokyo.txt": "東京は日本の首都です。人口は多い。\n",
}


def write_pages(root):
    for name, text in PAGES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    write_pages(tmp_path / "documents")
    return tmp_path / "documents"


@pytest.fixture
def build(folder, tmp_path):
    """Return a function that indexes the folder and gives the artifact."""

    def make(name="index", *, embedder=None, previous=None, job=None, **settings):
        recipe = IndexRecipe(documents=str(folder), embedder="static", **settings)
        if job is None:
            job = Job.start(tmp_path / name, f"{recipe!r}\n", overwrite=True)
        if previous is not None:
            job.previous = previous
        try:
            return run(recipe, job, embedder=embedder or open_embedder("static"))
        finally:
            job.close()

    return make


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Index the folder once, for tests that only read."""
    place = tmp_path_factory.mktemp("rag")
    write_pages(place / "documents")
    recipe = IndexRecipe(documents=str(place / "documents"), embedder="static")
    run(recipe, Job.start(place / "index", "recipe\n"), embedder=open_embedder("static"))
    return place / "index"


@pytest.fixture
def index(built):
    with Index.open(built) as opened:
        yield opened
