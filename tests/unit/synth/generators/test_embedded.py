"""Every generator with the embedded model: a small teacher is hostile enough by itself."""

import json

import pytest
from tests.unit.synth.conftest import make_passage
from tests.unit.synth.generators.hostile import BLANK, SUM, TASK, TOPIC

from stillroom.synth.interfaces import GENERATORS
from stillroom.synth.types import GeneratorContext, WorkItem

TOOL = {
    "name": "set_timer",
    "description": "Sets a timer",
    "parameters": {
        "type": "object",
        "properties": {"minutes": {"type": "integer", "minimum": 1, "maximum": 600}},
        "required": ["minutes"],
        "additionalProperties": False,
    },
}
TEXT = make_passage(
    "bees",
    "Honey bees live in colonies. A honey bee colony keeps its brood nest at 35 degrees Celsius. "
    "Worker bees produce wax from glands below the abdomen.",
)
OTHER = make_passage("tea", "Green tea contains less caffeine than coffee.")
SMALL = {
    "dialogue": {"max_turns": 2, "min_turns": 1, "max_user_tokens": 40, "max_answer_tokens": 60},
    "evol_instruct": {"rounds": 1, "max_instruction_tokens": 60, "max_answer_tokens": 60},
    "grounded_qa": {"openings": False},
    "magpie": {"max_question_tokens": 40, "max_answer_tokens": 60},
    "metamath": {"tries": 1, "max_answer_tokens": 80},
    "persona": {"max_task_tokens": 50, "max_answer_tokens": 60},
    "pivotal_tokens": {"samples": 4, "pairs": 1, "max_answer_tokens": 24, "min_chance": 0},
    "preference_delta": {"max_answer_tokens": 60, "weaker_temperature": 1.5},
    "preference_judge": {"max_answer_tokens": 60},
    "rationale": {"tries": 1, "max_answer_tokens": 80},
    "rejection_sampling": {"samples": 2, "max_answer_tokens": 80},
    "retrieval_triples": {"negatives": 1, "embedder": "builtin:static", "max_query_characters": 80},
    "revision": {"rounds": 1, "max_answer_tokens": 60},
    "self_instruct": {"tasks": 1, "max_list_tokens": 60, "max_output_characters": 80},
    "table_rows": {
        "columns": [
            {"name": "price", "type": "number", "min": 1, "max": 9},
            {"name": "note", "type": "text", "max_characters": 40},
        ]
    },
    "taxonomy": {"questions": 1, "sessions": 2, "concepts": 2, "max_answer_tokens": 60},
    "textbook": {"max_new_tokens": 80},
    "tool_calls": {"none_fits": 0, "max_answer_tokens": 40, "max_request_characters": 80},
    "translation": {"max_new_tokens": 60, "min_chrf": 0.0},
}
ITEMS = {"passages": TEXT, "topics": TOPIC, "nothing": BLANK}


@pytest.fixture(scope="module")
def embedded():
    from stillroom.models import open_text_model
    from stillroom.models.hub import DEFAULT_TEACHER

    model = open_text_model(DEFAULT_TEACHER, context_length=2048)
    yield model
    model.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATORS.names())
def test_everything_that_was_asked_is_accounted_for(name, embedded, tmp_path):
    settings = dict(SMALL.get(name, {}))
    if name == "tool_calls":
        (tmp_path / "tools.json").write_text(json.dumps([TOOL]))
        settings["tools"] = str(tmp_path / "tools.json")
    method = GENERATORS.build({"name": name, **settings})
    kind = method.seed_kinds[0]
    item = ITEMS.get(kind, SUM if name in {"metamath", "rationale"} else TASK)
    if name in {"pivotal_tokens", "rejection_sampling"}:
        item = SUM
    items = (item, OTHER) if kind == "passages" else (item,)
    writer = method.start(GeneratorContext("train", items))
    (made,) = writer.generate(
        [WorkItem(BLANK if method.samples_seeds else item, "train")], embedded
    )
    made = writer.finalize(made)
    assert 0 < made.asked <= max(method.max_requests, 1) + 8
    assert made.records or made.failures
    assert not made.counts.get("JSON unreadable")
    for record in made.records:
        assert record.origin.kind == "synthetic"
        assert record.origin.chain[-1].model == embedded.fingerprint
        json.dumps(record.to_json())
