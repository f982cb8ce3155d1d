import numpy as np
import pytest

from stillroom.rag.extractors.noun_phrases import NounPhrases
from stillroom.rag.graph.entities import (
    drop_isolated_nodes,
    normalize_name,
    relate_entities,
    resolve_entities,
)
from stillroom.rag.graph.types import SourcePassage, read_rows, write_rows
from stillroom.rag.interfaces import Mention, PassageExtraction, Relation


def made(*rows, aliases=None, documents=None):
    """Return sources and extractions, each name one sentence after the other."""
    sources, extractions = [], []
    for number, names in enumerate(rows):
        mentions = tuple(Mention(name, 10 * at, 10 * at + 5, at) for at, name in enumerate(names))
        pairs = tuple((aliases or {}).get(number, ()))
        extractions.append(PassageExtraction(mentions, (), pairs))
        sources.append(SourcePassage(f"pas-{number}", (documents or {}).get(number, "doc"), "k"))
    return sources, extractions


def keys(resolved):
    return [entity.key for entity in resolved.entities]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Context Manager", "context managers"),
        ("the European Union", "European  union"),
        ("Claude's", "CLAUDE"),
        ("policy", "Policies"),
        ("box", "boxes"),
        ("ＡＰＩ", "api"),
        ("end-to-end test", "end to end tests"),
    ],
)
def test_names_of_one_thing_have_one_key(one, other):
    assert normalize_name(one) == normalize_name(other) != ""


@pytest.mark.parametrize(
    ("one", "other"), [("bus", "bu"), ("GPT-3", "GPT-4"), ("class", "clas"), ("foo_1", "foo_2")]
)
def test_names_of_two_things_have_two(one, other):
    assert normalize_name(one) != normalize_name(other)


def test_an_acronym_is_what_its_own_document_says_and_else_what_all_agree_on():
    sources, extractions = made(
        ["World Bank Group", "WBG"],
        ["WBG"],
        ["Wide Bridge Gap", "WBG"],
        ["IMF", "International Monetary Fund"],
        ["IMF"],
        aliases={
            0: [("WBG", "World Bank Group")],
            2: [("WBG", "Wide Bridge Gap")],
            3: [("IMF", "International Monetary Fund")],
        },
        documents={0: "a", 1: "b", 2: "c", 3: "d", 4: "e"},
    )
    resolved = resolve_entities(sources, extractions, min_count=1)
    assert keys(resolved) == [
        "international monetary fund",
        "wbg",  # two documents disagree, so that a third one's is neither
        "wide bridge gap",
        "world bank group",
    ]
    fund = resolved.entities[0]
    assert fund.rows == [3, 4]
    assert set(fund.aliases) | {fund.name} == {"IMF", "International Monetary Fund"}


def test_rare_entities_are_left_out_and_their_mentions_with_them():
    sources, extractions = made(["cat", "dog"], ["cat"])
    resolved = resolve_entities(sources, extractions, min_count=2)
    assert keys(resolved) == ["cat"]
    assert resolved.entity_numbers == ((0, None), (0,))


def test_a_relation_weighs_what_stands_together_more_often_than_chance():
    """By hand: N ln-based PMI times count; two that stand everywhere together weigh nothing."""
    rows = [["cat", "purr", "thing"], ["cat", "purr", "thing"], ["thing"], ["thing", "once"]]
    sources, extractions = made(*rows)
    resolved = resolve_entities(sources, extractions, min_count=1)
    edges = relate_entities(extractions, resolved, NounPhrases(prune=0, window=5))
    edges = [edge for edge in edges if "once" not in resolved.entities[edge.target].key]
    edges = [edge for edge in edges if "once" not in resolved.entities[edge.source].key]
    names = [entity.key for entity in resolved.entities]
    weights = {(names[one.source], names[one.target]): one.weight for one in edges}
    assert weights == {("cat", "purr"): pytest.approx(2 * np.log(2 * 4 / (2 * 2)), abs=1e-6)}
    assert edges[0].mentions == ((0, 0, 15), (1, 0, 15))
    fewer, moved = drop_isolated_nodes(resolved, edges)
    assert keys(fewer) == ["cat", "purr", "thing"]  # "once" leads nowhere
    assert (moved[0].source, moved[0].target) == (0, 1)
    assert fewer.entity_numbers[3] == (2, None)


def test_phrases_further_apart_than_the_window_are_not_related():
    rows = [["cat", "a", "b", "purr"]] * 2 + [["dog"]]
    sources, extractions = made(*rows)
    resolved = resolve_entities(sources, extractions, min_count=1)
    near = relate_entities(extractions, resolved, NounPhrases(prune=0, window=2))
    pairs = {(resolved.entities[one.source].key, resolved.entities[one.target].key) for one in near}
    assert ("cat", "purr") not in pairs
    assert ("a", "cat") in pairs


def test_an_extraction_survives_its_file(tmp_path):
    one = PassageExtraction(
        (Mention("cat", 0, 3, 0, "animal", "sleeps"),),
        (Relation("cat", "dog", 0, 9, ("fights",), "they fight", 2.0),),
        (("NPC", "Nobel Prize Committee"),),
        {"ungrounded": 2},
    )
    write_rows(tmp_path / "rows.jsonl", [one])
    assert read_rows(tmp_path / "rows.jsonl", PassageExtraction) == [one]
