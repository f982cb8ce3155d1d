"""A small world to write about, and a teacher that behaves."""

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from stillroom.jobs import Job
from stillroom.recipes import dump_recipe
from stillroom.records import Link, Location, Origin, Passage, Record, make_content_id
from stillroom.synth.interfaces import FilterContext
from stillroom.synth.jobs.records import RecordsRecipe
from stillroom.synth.model_pool import ModelPool
from stillroom.synth.pipeline.executor import PipelineExecutor
from stillroom.synth.pipeline.inputs import PipelineInputs
from stillroom.synth.types import WorkItem
from stillroom.testing import scripted_model

TEXTS = {
    "bees": [
        "Honey bees live in colonies. A honey bee colony keeps its brood nest at 35 degrees "
        "Celsius. Worker bees produce wax from glands below the abdomen. If the queen dies in "
        "winter, the whole colony starves before spring.",
        "Beekeepers harvest honey in late summer. A smoker calms the colony before the hive opens. "
        "Varroa mites weaken every colony within three years.",
    ],
    "bridges": [
        "Suspension bridges carry roads over wide rivers. The main cables transfer the load to "
        "two towers. When a hanger breaks, its load passes to the neighboring hangers.",
        "Engineers inspect every cable once a year. Rust weakens the anchor blocks from within.",
    ],
    "bread": [
        "Bakers feed a sourdough starter with flour and water. Wild yeast raises the dough in "
        "eight hours. Salt slows the fermentation of the dough by half.",
    ],
    "glass": [
        "Glass consists of quartz sand, soda and lime. Furnaces melt the mixture at 1500 degrees "
        "Celsius. Tempered glass breaks into small blunt pieces.",
    ],
    "tea": [
        "Green tea contains less caffeine than coffee. Workers dry the leaves in large iron pans. "
        "Boiling water destroys the delicate taste of green tea.",
    ],
    "salt": [
        "Salt workers collect sea water in shallow basins. The sun evaporates the water within two "
        "weeks. Rock salt forms thick layers below the northern plain.",
    ],
}


def make_passage(name, text, start=0, **more):
    document = make_content_id("doc", name)
    origin = Origin("human", (Link("text.chunkers.heading", "", (document,)),), "CC-BY-4.0")
    place = Location(f"{name}.md", "0" * 64, start, start + len(text))
    return Passage(
        document,
        start,
        start + len(text),
        text,
        place,
        more.get("headings", (name.title(),)),
        more.get("title", name.title()),
        more.get("language", "en"),
        more.get("origin", origin),
    )


def make_passages():
    passages = []
    for name, texts in TEXTS.items():
        start = 0
        for text in texts:
            passages.append(make_passage(name, text, start))
            start += len(text) + 2
    return passages


def make_seed(text, name="bees", **more):
    return WorkItem(make_passage(name, text), **{"split": "train", **more})


ENDS = {"live": " in?", "consist": " of?", "pass": " to?", "break": " into?"}
TRANSITIVE = frozenset(
    str.split(
        "keep produce harvest calm weaken carry transfer inspect feed raise slow melt contain dry "
        "destroy collect evaporate form"
    )
)


def behave(prompt):
    """Answer as a good teacher would: end an opened question, fill a schema, copy a sentence."""
    if prompt.schema is not None:
        return json.dumps({"question": "What do honey bees live in?", "answer": "In colonies."})
    if prompt.prefix.startswith("Question: "):
        last = prompt.prefix.rsplit(" ", 1)[-1]
        is_whole = last in TRANSITIVE or prompt.prefix.startswith("Question: What happens")
        return ENDS.get(last, "?" if is_whole else " do?")
    if prompt.prefix == "Question:":
        return " What do honey bees live in?"
    if prompt.prefix == "Answer:":
        return " Honey bees live in colonies."
    return "What is this all about?"


def run_in(out, work, recipe, *given, engine=None, resume=False, overwrite=False):
    """Run the work of a job kind in a folder; return what it returns."""
    text = dump_recipe(recipe)
    job = Job.start(out, text, seed=recipe.seed, resume=resume, overwrite=overwrite)
    job.engine = engine or job.engine
    try:
        return work(recipe, job, *given)
    finally:
        job.close()


class Shelf(dict):
    """A cache in memory."""

    name = "shelf"

    def put(self, key, value):
        self[key] = value


def collect(model, generator, filters=(), items=(), *, shelf=None, target=100, draws=1, **more):
    """Run a generator and its filters over items, or as many draws; return what they gave."""
    source = "seeds" if items and isinstance(items[0], Record) else "index"
    recipe = RecordsRecipe(
        pipeline={"generator": generator, "filters": filters, "attempts": 1},
        num_records={"train": draws},
        **({source: "none"} if items else {}),
        **more,
    )
    shelves = {"units": Shelf() if shelf is None else shelf, "measures": Shelf()}
    caches = SimpleNamespace(open=lambda kind, *depends: shelves[kind])
    inputs = PipelineInputs({}, {}, {(source, "train"): list(items)}, {})
    context = FilterContext(models=ModelPool(models={("text", recipe.model): model}))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as closing:
        executor = PipelineExecutor(recipe, inputs, "train", context, caches, Path(folder))
        result = executor.run(target, closing)
        return SimpleNamespace(
            records=list(result.records),
            rejected=list(result.rejected),
            reasons=result.count_reasons(),
            requests=result.requests,
            units=result.steps["generate"].units,
            parsed=result.steps["generate"].given,
        )


@pytest.fixture
def teacher():
    return scripted_model(behave, fingerprint="scripted:behaves")


@pytest.fixture
def index(tmp_path):
    folder = tmp_path / "index"
    folder.mkdir()
    lines = [json.dumps(passage.to_json()) for passage in make_passages()]
    (folder / "passages.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
