"""Questions name the product, law or novel that their document is about."""

import pytest
from tests.unit.synth.conftest import make_passage

from stillroom.synth.prompting.question_topics import (
    find_topic,
    head_question,
    is_untold,
    name_topic,
    strip_topic,
)

TOLD = "Miss Bates smiled. She gave her niece a letter, and he read it while she cried."


def place(title, text="The window shows the hives.", language="en", headings=()):
    return make_passage("page", text, title=title, headings=headings, language=language)


@pytest.mark.parametrize(
    ("title", "topic"),
    [
        ("HiveBook Tutorial and Concepts Guide", ("product", "HiveBook")),
        ("Honey / Wax 12 Handbuch", ("product", "Honey")),
        ("HiveBook - Manuel de l'utilisateur", ("product", "HiveBook")),
        ("Die Honig/Wachs-FAQ", ("product", "Honig/Wachs")),
        ("Guide de référence pour HiveBook", ("product", "HiveBook")),
        ("Leitfaden für Waben", ("product", "Waben")),
        ("apiary user's manual", ("product", "apiary")),
        ("Meadow Public License 2.0", ("law", "Meadow Public License 2.0")),
        ("Regulation on Honey", ("law", "Regulation on Honey")),
        ("Steam engine", None),
        ("Chapter 3. The Hive Manual", None),
        ("User's Guide", None),
        ("The Long Winter", None),
    ],
)
def test_a_title_of_a_manual_or_a_law_names_its_topic(title, topic):
    assert find_topic(place(title)) == topic


def test_a_novel_is_named_where_a_passage_tells_a_story():
    assert find_topic(place("The Long Winter", TOLD)) == ("work", "The Long Winter")


def test_a_heading_names_the_topic_of_a_file_without_a_title():
    assert find_topic(place("page", headings=("HiveBook Manual",))) == ("product", "HiveBook")
    assert find_topic(place("HiveBook: MothTrap", headings=("MothTrap",))) is None


@pytest.mark.parametrize(
    ("title", "language", "question", "named"),
    [
        (
            "HiveBook Manual",
            "en",
            "How can one open all frames?",
            "In HiveBook, how can one open all frames?",
        ),
        (
            "Bee Image Program – User Manual",
            "en",
            "What does the frame contain?",
            "In the Bee Image Program, what does the frame contain?",
        ),
        (
            "Meadow Public License 2.0",
            "en",
            'What does "Author" mean?',
            'Under the Meadow Public License 2.0, what does "Author" mean?',
        ),
        (
            "HiveBook-Handbuch",
            "de",
            "Was ist zu tun, um Waben zu öffnen?",
            "Was ist in HiveBook zu tun, um Waben zu öffnen?",
        ),
        (
            "HiveBook-Handbuch",
            "de",
            "Was stellt die Waben-Ansicht bereit?",
            "Was stellt die Waben-Ansicht in HiveBook bereit?",
        ),
        (
            "Manuel de HiveBook",
            "fr",
            "Comment ouvrir la ruche ?",
            "Dans HiveBook, comment ouvrir la ruche ?",
        ),
        (
            "Manual de HiveBook",
            "es",
            "¿Qué contiene la jalea?",
            "En HiveBook, ¿qué contiene la jalea?",
        ),
        ("HiveBook 手册", "zh", "蜂王浆是什么？", "在HiveBook中，蜂王浆是什么？"),
        # it is named, or an event is asked for
        ("HiveBook Manual", "en", "What does HiveBook open?", "What does HiveBook open?"),
        ("HiveBook Manual", "en", "When was Ida Klein born?", "When was Ida Klein born?"),
        # nothing tells which one is meant
        ("Chapter 3", "en", "How can one open all frames?", ""),
        ("Chapter 3", "en", "Who opened the frames?", ""),
        ("Kapitel 3", "de", "Was benötigt der Stock?", ""),
        ("HiveBook-Handbuch", "de", "Was benötigt der Stock?", ""),
        ("HiveBook-Handbuch", "de", "Was ist Propolis?", "Was ist Propolis?"),
        ("HiveBook-Handbuch", "de", "Was ist der Stock?", "Was ist der Stock in HiveBook?"),
        ("HiveBook-Handbuch", "de", "Was ist zu tun, wenn das Volk hungert?", ""),
    ],
)
def test_the_topic_is_named_as_the_language_does_or_the_question_is_dropped(
    title, language, question, named
):
    assert name_topic(question, place(title, language=language)) == named


def test_who_did_it_is_asked_of_a_novel_by_name():
    named = name_topic("Who gave her niece a letter?", place("The Long Winter", TOLD))
    assert named == 'In "The Long Winter", who gave her niece a letter?'
    assert strip_topic(named) == "Who gave her niece a letter?"
    assert name_topic("What is happiness?", place("The Long Winter", TOLD)) == ""


@pytest.mark.parametrize(
    ("language", "question", "is_told"),
    [
        ("fr", "Que représente la courbe ?", False),
        ("fr", "De quoi dépend la couleur ?", False),
        ("fr", "Que se passe-t-il si la case est cochée ?", False),
        ("fr", "Que représente la courbe des températures ?", True),
        ("fr", "Qu’est-ce que la propolis ?", True),
        ("es", "¿Qué indica la acción?", False),
        ("es", "¿Qué indica la acción «Cosechar»?", True),
        ("es", "¿Qué es la jalea?", True),
        ("es", "¿Qué ocurre si la casilla está marcada?", False),
    ],
)
def test_french_and_spanish_things_without_a_trait_need_the_name_of_their_document(
    language, question, is_told
):
    passage = place("Chapitre 3", "Texto.", language)
    assert (name_topic(question, passage) == question) is is_told


@pytest.mark.parametrize(
    ("title", "headings", "question", "named"),
    [
        (
            "4.2. Queens",
            ("4.2. Queens", "4.2.1. Winter Feeding"),
            "What does the box contain?",
            "Queens - Winter Feeding: What does the box contain?",
        ),
        ("Smokers", (), "What does the lid cover?", "Smokers: What does the lid cover?"),
        (
            "Smokers",
            ("Bellows", "Notes:"),
            "What does the lid cover?",
            "Smokers - Bellows: What does the lid cover?",
        ),
        ("Smokers", (), "What does a smoker burn?", "What does a smoker burn?"),
        (
            "Winter Feeding - HiveBook Manual",
            (),
            "What does the box contain?",
            "Winter Feeding: What does the box contain?",
        ),
        ("x" * 80, (), "What does the lid cover?", ""),
        ("What is a hive?", (), "What does the lid cover?", "What does the lid cover?"),
        (
            "Chapter 3: Smokers",
            ("Chapter 3: Smokers", "Tips"),
            "What does the lid cover?",
            "Smokers: What does the lid cover?",
        ),
        ("index.html", ("Introduction",), "What is wax?", "What is wax?"),
        ("User's Guide", ("Overview",), "What is wax?", "What is wax?"),
        (
            "Die Menüs „Wabe“ und „Honig“",
            (),
            "What does the lid cover?",
            "Die Menüs „Wabe“ und „Honig“: What does the lid cover?",
        ),
    ],
)
def test_a_question_stands_behind_the_headings_that_it_does_not_name(
    title, headings, question, named
):
    assert head_question(question, place(title, headings=headings)) == named


def test_a_heading_before_a_question_is_stripped_in_any_language():
    assert strip_topic("Winter Feeding: What does the box contain?") == "What does the box contain?"
    assert strip_topic("蜂箱: 如果蜂王死亡，会怎么样？") == "如果蜂王死亡，会怎么样？"
    assert strip_topic("What does the label „to: queen“ mean?").startswith("What does the label")
    assert strip_topic('What does "to: queen" mean?') == 'What does "to: queen" mean?'
    assert strip_topic("Rucher: Que contient la ruche ?") == "Que contient la ruche ?"


def test_the_site_behind_a_page_title_is_not_the_page_topic():
    assert find_topic(place("Winter Feeding - HiveBook Manual")) is None
    assert find_topic(place("HiveBook Manual - Bees")) == ("product", "HiveBook")


@pytest.mark.parametrize(
    ("title", "subject"),
    [
        ("chroot()", "chroot()"),
        ("Links and chroot(2)", "Links and chroot(2)"),
        ("The chroot(2) call", "The chroot(2) call"),
        ("os.path.join(path, *paths)", "os.path.join(path, *paths)"),
        ("Map(K, V) - Go", "Map(K, V)"),
        ("fork() (since 2.4)", "fork()"),
        ("Feeding (optional)", "Feeding"),
        ("bees(queen - drone)", ""),  # what is left of it would be no bracket's end
    ],
)
def test_only_brackets_behind_a_space_are_left_out_of_the_heading_before_a_question(title, subject):
    question = "What does the lid cover?"
    expected = f"{subject}: {question}" if subject else question
    assert head_question(question, place(title)) == expected


@pytest.mark.parametrize(
    ("title", "name"),
    [("Reference Manual (R)", "R"), ("Hive (bees) Manual", "Hive"), ("hive() Manual", "hive()")],
)
def test_a_product_is_named_in_or_before_the_brackets_of_its_manual(title, name):
    assert find_topic(place(title)).name == name


@pytest.mark.parametrize(
    ("title", "headings", "headed"),
    [
        ("HiveBook: Moths", ("Moths",), "HiveBook - Moths: What does the trap catch?"),
        ("HiveBook: Wax Moths", (), "HiveBook - Wax Moths: What does the trap catch?"),
        ("Appendix: Wax Moths", (), "Wax Moths: What does the trap catch?"),
        ("Wax Moths", ("DESCRIPTION",), "Wax Moths: What does the trap catch?"),
        ("HiveBook module hive_trap", (), "HiveBook module hive_trap: What does the trap catch?"),
    ],
)
def test_the_heading_of_a_question_says_what_the_page_is_about(title, headings, headed):
    assert head_question("What does the trap catch?", place(title, headings=headings)) == headed


def test_a_question_about_a_thing_without_a_trait_is_untold_unless_a_heading_names_it():
    assert is_untold("What does the solution depend on?", place("Wax Moths"))
    assert not is_untold("What does the solution depend on?", place("Sugar Solutions"))
    assert not is_untold("What does the sugar solution depend on?", place("Wax Moths"))
    assert not is_untold("What may the licensor grant?", place("Meadow Public License 2.0"))
