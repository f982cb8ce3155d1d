"""Small corpora with a graph over each, for the tests of graphs."""

import shutil

from tests.unit.rag.jobs import run_with_model

from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.rag.extractors.noun_phrases import NounPhrases
from stillroom.rag.graph.types import read_graph_description
from stillroom.rag.jobs.graph import GraphRecipe
from stillroom.rag.jobs.graph import run as run_graph
from stillroom.rag.jobs.index import IndexRecipe, run

# Who runs the yard that built the Aurora? Two documents bear the answer, and only one of them
# shares a word with the question; the others are there to be in the way.
HOPS = {
    "aurora.md": "The Aurora was built at Fairhaven Yard. The Aurora sails to the north.\n",
    "yard.md": "Fairhaven Yard belongs to Matilda Brook. Fairhaven Yard employs ninety people.\n",
    "brook.md": "Matilda Brook studied in Lund. Matilda Brook plays chess.\n",
    "lund.md": "Lund has a cathedral. Students come to Lund in autumn.\n",
    **{
        f"noise{at}.md": f"Who runs a marathon of number {at}? Sport Club {at} runs races. "
        f"Sport Club {at} built a hall.\n"
        for at in range(12)
    },
}
# Eight topics of four documents each; one topic speaks the words of the question.
TOPICS = ["Bees", "Clocks", "Dams", "Eels", "Flutes", "Glaciers", "Harbours", "Inks"]
THEMES = {
    f"{topic.lower()}{at}.md": f"The guild of {topic} meets Master {topic}son. "
    f"Master {topic}son praised the guild of {topic}. "
    + (
        "The main themes of the collection are discussed in the main collection.\n"
        if topic == "Bees"
        else f"Paper {at} about {topic} was read.\n"
    )
    for topic in TOPICS
    for at in range(4)
}


def write_pages(root, pages):
    shutil.rmtree(root, ignore_errors=True)
    for name, text in pages.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def make_index(place, pages, name="index"):
    """Index pages, in place of what an earlier call left."""
    write_pages(place / "documents", pages)
    recipe = IndexRecipe(documents=str(place / "documents"), embedder="static")
    job = Job.start(place / name, "recipe\n", overwrite=True)
    try:
        run(recipe, job, embedder=open_embedder("static"))
    finally:
        job.close()
    return place / name


def make_graph(index, out, *, model=None, overwrite=True, resume=False, **settings):
    """Make a graph of noun phrases, or by the extractor given."""
    extractor = settings.pop("extractor", None) or NounPhrases(min_count=1, prune=0)
    writer = {"model": "scripted:none"} if model is not None else None
    recipe = GraphRecipe(index=str(index), extractor=extractor, writer=writer, **settings)
    artifact = run_with_model(
        run_graph, recipe, out, model=model, overwrite=overwrite, resume=resume
    )
    return artifact, read_graph_description(out / "output")


def bytes_of(artifact):
    """Return every output file's bytes by name."""
    return {path.name: path.read_bytes() for path in sorted((artifact / "output").rglob("*"))}
