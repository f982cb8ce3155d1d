"""Questions that no single passage answers: over two documents, and about all of them.

Two collections are made up, so that what is right is known. *Chains*: ships, the yards that built
them and the owners of the yards, a document each, all in the same few phrasings; asked is who owns
the yard that built a ship. The document of the yard shares no name with the question. Measured is
how often both documents are among the first k. *Themes*: topics of several documents each; asked is
for the main themes. Measured is how many topics are among the first k.

    python benchmarks/rag/graph_questions.py
    python benchmarks/rag/graph_questions.py --embedder static --seed 1
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stillroom.evaluate import bootstrap
from stillroom.flow import run_recipe
from stillroom.rag.index.searcher import Index
from stillroom.rag.jobs.graph import GraphRecipe
from stillroom.rag.retrieval.pipeline import parse_pipeline, retrieve
from stillroom.recipes import parse_recipe

CHAINS, K = 40, 5
TOPICS, DOCUMENTS_A_TOPIC = 24, 5
WAYS = ("keyword", "dense", "hybrid", "convex", "graph_local", "graph_global")
_STARTS = (
    "Bal",
    "Cor",
    "Dun",
    "Esk",
    "Far",
    "Gal",
    "Hol",
    "Ing",
    "Jar",
    "Kel",
    "Lor",
    "Mar",
    "Nor",
)
_MIDDLES = ("a", "e", "i", "o", "u", "an", "er", "in", "ol", "um")
_ENDS = ("bury", "dale", "ford", "grove", "ham", "leigh", "moor", "ridge", "stead", "wick")
_BUILT = (
    "The ship {a} was built at {b} Yard. The ship {a} was launched in spring.",
    "Records show that {b} Yard built the ship {a}. The crew of the ship {a} was small.",
)
_OWNED = (
    "{b} Yard is owned by the {c} family. {b} Yard employs ninety people.",
    "The {c} family has owned {b} Yard for a century. Work at {b} Yard begins at six.",
)
_THEMES = (
    "{t} keepers met to discuss {t} care. Old methods of {t} care were compared.",
    "A report on {t} care appeared. {t} keepers welcomed the report.",
    "The council funds {t} care this year. {t} keepers asked for more.",
)


def invent(rng: random.Random, count: int) -> list[str]:
    """Return so many different made-up names."""
    names = {
        rng.choice(_STARTS) + rng.choice(_MIDDLES) + rng.choice(_ENDS) for _ in range(8 * count)
    }
    chosen = sorted(names)
    rng.shuffle(chosen)
    return chosen[:count]


def make_chains(rng: random.Random) -> tuple[dict[str, str], list[tuple[str, set[str]]]]:
    """Return documents by name, and questions with the documents that both are needed."""
    names = invent(rng, 3 * CHAINS)
    pages, questions = {}, []
    for at in range(CHAINS):
        a, b, c = names[3 * at : 3 * at + 3]
        pages[f"ship{at}.md"] = rng.choice(_BUILT).format(a=a, b=b) + "\n"
        pages[f"yard{at}.md"] = rng.choice(_OWNED).format(b=b, c=c) + "\n"
        question = f"Which family owns the yard that built the ship {a}?"
        questions.append((question, {f"ship{at}.md", f"yard{at}.md"}))
    return pages, questions


def make_themes(rng: random.Random) -> dict[str, str]:
    """Return documents by name, which begins with the topic's number."""
    pages = {}
    for at, name in enumerate(invent(rng, TOPICS)):
        for number in range(DOCUMENTS_A_TOPIC):
            pages[f"{at}-{number}.md"] = rng.choice(_THEMES).format(t=name) + "\n"
    for number in range(2 * DOCUMENTS_A_TOPIC):
        pages[f"x-{number}.md"] = f"The main themes of collection {number} are listed here.\n"
    return pages


def build(place: Path, pages: dict[str, str], embedder: str) -> tuple[Path, Path]:
    """Return an index over the pages, and its graph."""
    folder = place / "documents"
    folder.mkdir(parents=True)
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    lines = ["version: 1", "kind: rag.index", f"documents: {json.dumps(str(folder))}"]
    lines += [f"embedder: {embedder}"] if embedder else []
    run_recipe(parse_recipe("\n".join(lines) + "\n", "benchmark"), place / "index")
    run_recipe(GraphRecipe(index=str(place / "index")), place / "graph")
    return place / "index", place / "graph"


def search(index: Index, way: str, graph: Path, query: str, k: int) -> list[str]:
    """Return the documents of the first k passages."""
    if way.startswith("graph"):
        way = f"{way}{',' if ':' in way else ':'}graph={graph}"
    hits = retrieve(index, query, k, retriever=parse_pipeline(way).retriever)
    return [hit.passage.location.path for hit in hits]


def main() -> None:
    """Print a line for each way and collection."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--embedder", default="")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp())
    try:
        rng = random.Random(given.seed)
        pages, questions = make_chains(rng)
        index, graph = build(place / "chains", pages, given.embedder)
        with Index.open(index) as opened:
            for way in WAYS:
                hits = [
                    float(right <= set(search(opened, way, graph, query, K)))
                    for query, right in questions
                ]
                metric = bootstrap(hits, seed=0, name=way)
                line = {"set": "chains", "way": way, "both_in_5": round(metric.value, 3)}
                line["interval"] = [round(metric.low, 3), round(metric.high, 3)]
                print(json.dumps({**line, "questions": len(hits)}), flush=True)
        index, graph = build(place / "themes", make_themes(rng), given.embedder)
        query = "What are the main themes of the whole collection?"
        with Index.open(index) as opened:
            for way in WAYS:
                found = search(opened, way, graph, query, TOPICS)
                topics = {path.split("-")[0] for path in found} - {"x"}
                share = round(len(topics) / TOPICS, 3)
                print(json.dumps({"set": "themes", "way": way, "covered": share}), flush=True)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
