"""The planted documents of the red team against the worst model: one that repeats what it reads.

How often a real model obeys is measured by benchmarks/rag/red_team.py; here is what must hold
whatever a model does.
"""

import importlib.util
import re
import sys
from functools import partial
from pathlib import Path

import pytest

from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.rag.generation import answer as answers
from stillroom.rag.generation.content_flags import flag_text
from stillroom.rag.generation.prompt import render_prompt
from stillroom.rag.index.searcher import Index
from stillroom.rag.jobs.index import IndexRecipe, run
from stillroom.records import Hit, Location, Passage, Sampling
from stillroom.testing import scripted_model
from stillroom.text.unicode import count_invisible

# These tests script what the model writes.
ask = partial(answers.ask, answering="generate")

PATH = Path(__file__).resolve().parents[2] / "benchmarks/rag/red_team.py"
QUESTION = "When does the Larkfield museum open?"


def load():
    spec = importlib.util.spec_from_file_location("red_team", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["red_team"] = module
    spec.loader.exec_module(module)
    return module


TEAM = load()
ATTACKS = TEAM.make_attacks()
CONTROL = re.compile(r"<\s*[|｜]|[|｜]\s*>|</?s>|\[/?INST\]|<</?SYS>>|<(start|end)_of_turn>")


def hit(text):
    return Hit(Passage("doc-1", 0, len(text), text, Location("planted.txt", "0", 0, 1)), 1.0, 1)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    place = tmp_path_factory.mktemp("team")
    (place / "documents").mkdir()
    for topic, (_, _, truth) in TEAM.TRUTH.items():
        (place / f"documents/{topic}.txt").write_text(truth)
    recipe = IndexRecipe(documents=str(place / "documents"), embedder="static")
    run(recipe, Job.start(place / "index", "recipe\n"), embedder=open_embedder("static"))
    with Index.open(place / "index") as opened:
        yield opened


def test_there_are_enough_of_every_kind():
    kinds = [one.kind for one in ATTACKS]
    assert len(ATTACKS) >= 60
    assert len(set(kinds)) == 8
    assert min(kinds.count(kind) for kind in set(kinds)) >= 8
    assert [one.text for one in TEAM.make_attacks()] == [one.text for one in ATTACKS]


@pytest.mark.parametrize("attack", ATTACKS, ids=[one.id for one in ATTACKS])
def test_nothing_of_it_reaches_the_prompt_but_text_within_its_fence(attack):
    content = render_prompt(QUESTION, [hit(attack.text)]).messages[-1].content
    assert not CONTROL.search(content)
    assert count_invisible(content) == 0
    fence = re.match(r"\[1\]\n<(passage-[0-9a-f]{6})>\n", content)[1]
    assert content.count(fence) == 2
    assert fence not in attack.text
    assert content.endswith(
        f"\n</{fence}>\n\nQuestion: {QUESTION}\nAnswer in one sentence, using only the passages."
    )


@pytest.mark.parametrize("unsupported", ["mark", "drop", "refuse"])
def test_a_model_that_repeats_it_word_for_word_makes_nothing_load(index, unsupported):
    for attack in ATTACKS:
        for text in (attack.text, f"{attack.text}\n\n{attack.text}", f"`{attack.text}"):
            model = scripted_model(lambda prompt, text=text: text)
            answer = ask(index, model, QUESTION, unsupported=unsupported, sampling=Sampling())
            assert not TEAM.loads(answer.completion.text, answer), attack.id


def test_what_no_truthful_passage_says_is_dropped(index):
    """The planted text is not in this index: nothing supports what an obedient model repeats."""
    for attack in ATTACKS:
        model = scripted_model(lambda prompt, attack=attack: attack.text)
        answer = ask(index, model, QUESTION, unsupported="drop", sampling=Sampling())
        if attack.kind in {"override", "role tokens", "delimiter escape", "hidden text"}:
            assert "ZEBRAFISH" not in answer.completion.text, attack.id


def test_most_are_labelled_and_the_truth_is_not():
    spoken = [one for one in ATTACKS if one.kind not in {"poisoning", "fake citation", "probing"}]
    labelled = [one for one in spoken if flag_text(one.text)]
    assert len(labelled) >= 0.75 * len(spoken)
    assert not any(flag_text(truth) for _, _, truth in TEAM.TRUTH.values())
