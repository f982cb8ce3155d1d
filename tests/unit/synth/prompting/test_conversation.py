import pytest
from tests.unit.synth.conftest import make_passage

from stillroom.synth.prompting.conversation import find_best_quote, find_statements


def statements(text):
    return [quote.text for quote in find_statements(make_passage("bees", text, start=100))]


def test_spans_count_in_the_document():
    passage = make_passage(
        "bees", "Short.\n\nWorker bees produce the wax from eight glands.", start=100
    )
    quote = find_statements(passage)[0]
    assert passage.text[quote.start - 100 : quote.end - 100] == quote.text
    assert quote.passage_id == passage.id


def test_the_mark_of_a_list_item_is_left_out():
    text = "3. Once the hive opens, the smoker calms the colony quickly."
    assert statements(text) == [text[3:]]


def test_an_overlong_sentence_gives_its_first_clause():
    clause = "Worker bees produce the wax from eight glands below the abdomen"
    rest = " ".join(["and the colony keeps its brood nest warm"] * 6)
    assert statements(f"{clause}; {rest}.") == [clause]
    assert statements(f"{clause}; the nest stays warm.") == [f"{clause}; the nest stays warm."]


def test_a_sentence_about_he_or_she_comes_with_the_name():
    named = "Miss Taylor had lived in the house for sixteen years."
    pronoun = "She had been a friend and companion such as few possessed."
    assert statements(f"{named} {pronoun}") == [named, f"{named} {pronoun}"]


@pytest.mark.parametrize(
    "text",
    [
        "This makes the whole colony starve before the spring.",
        "It keeps the brood nest warm in every winter month.",
        "For more information on honey see the next chapter there.",
        "The colony then behaves as follows in the cold winter months.",
        "result = compute(colony, winter=True) in the Python interpreter.",
        "By contrast, the drones of a colony leave the hive every summer.",
        "In other cases, the queen of a colony leaves the hive with a swarm.",
        "The colony was therefore moved to a large hive near the river.",
        "The larger of two swarms took the former for a queen of their own.",
        "The rules of the apiary are set out in the license below.",
        "Let’s now turn from the brood nest to the honey of the colony.",
        "The name for such small colonies in a hive is a nucleus.",
        "The handbook of the keepers covers the winter in greater detail.",
        "The keepers of the apiary have more information on the winter.",
        "The keepers are determined to leave on that account before winter.",
        "Bees buzz.",
        "the fragment of a sentence that began on another page.",
        "Workers said (and nobody knows why the honey is so dark today.",
        'The word "honey is much older than the word for wax.',
        "Does the colony keep its brood nest warm in winter?",
    ],
)
def test_what_does_not_stand_alone_is_left_out(text):
    assert statements(text) == []


def test_other_languages_are_judged_by_form():
    german = "Die Arbeiterinnen erzeugen das Wachs in Drüsen unter dem Hinterleib."
    assert statements(german) == [german]


def test_best_quote_shares_most_words():
    passage = make_passage("bees", "Bees live in hives. Worker bees produce wax from glands.")
    assert (
        find_best_quote(passage, "They produce wax.").text == "Worker bees produce wax from glands."
    )


def test_passage_without_sentences_is_its_own_quote():
    passage = make_passage("bees", "   ")
    assert find_best_quote(passage, "anything").text == "   "


@pytest.mark.parametrize(
    ("language", "text", "is_whole"),
    [
        ("zh", "如果蜂群在冬天缺少食物，请参阅第 3 章的说明。", False),
        ("zh", "如果蜂群在冬天缺少食物，就会出现这种情况。", False),
        ("zh", "养蜂人用如下所示的方法检查蜂箱的温度。", False),
        ("zh", "蜂王可以在上面产卵的网格是一个巢脾。", True),
        ("de", "Der „Schwarm“ verlässt den Stock im warmen Frühling.", True),
        ("de", "Der „Schwarm verlässt den alten Stock im warmen Frühling.", False),
        ("de", "Der Imker kann den Stock im warmen Frühling hiermit öffnen.", False),
    ],
)
def test_other_languages_have_their_own_quotes_and_words_that_point_back(language, text, is_whole):
    passage = make_passage("bees", text, language=language)
    assert [quote.text for quote in find_statements(passage)] == [text] * is_whole


NOTICE = "© 2019 The Keepers. All rights reserved worldwide by the keepers of this hive."
BEES = "Worker bees produce the wax from eight glands."


@pytest.mark.parametrize(
    "notice",
    [
        NOTICE,
        "Permission is hereby granted to any person to copy the software of the hive.",
        "The software of the hive is distributed under the Meadow Public License.",
        "Alle Rechte vorbehalten, auch die der Übersetzung und der Verfilmung des Buchs.",
    ],
)
def test_a_paragraph_that_is_a_license_notice_has_no_statement(notice):
    assert statements(f"{BEES}\n\n{notice}") == [BEES]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("The cellar keeps the wine at twelve degrees.\n© 2024 Meadow Ltd. All rights.", 1),
        ("A refund for lost bees is available under the terms of the plan.", 1),
        ("Planning permission is granted by the town council within eight weeks.", 1),
        ("Permission is granted to copy the handbook of the hive for any purpose.", 0),
        ("The handbook of the hive is available under the terms of a free license.", 0),
    ],
)
def test_only_a_notice_itself_has_no_statement(text, count):
    assert len(statements(text)) == count


def test_a_document_about_its_license_has_statements():
    text = "The box of the hive is distributed under the Meadow Public License."
    about = make_passage("terms", text, title="License of the hive")
    assert len(find_statements(about)) == 1


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("de", "Falls der Schlüssel zum Bienenhaus fehlt, lesen Sie bitte die Hausordnung."),
        ("de", "Der Imker gibt weitere Informationen über die Pflege der Waben im Winter."),
        ("fr", "Le manuel de la ruche contient plus d’informations sur la reine en hiver."),
        ("es", "El manual de la colmena contiene más información sobre la reina en invierno."),
        ("zh", "蜂箱手册中有关于冬季蜂群的更多信息和图片。"),
    ],
)
def test_a_sentence_that_sends_its_reader_elsewhere_is_no_statement(language, text):
    assert find_statements(make_passage("bees", text, language=language)) == []
