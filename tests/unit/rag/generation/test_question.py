"""What is read of a question: its content, what asks, its spelling, what it goes on from."""

import re
import time
from types import SimpleNamespace

import pytest

from stillroom.errors import BackendError
from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.rag import Index, ask
from stillroom.rag.analysis.analyzer import Analyzer
from stillroom.rag.generation.question import (
    add_subject,
    correct_spelling,
    has_content,
    is_follow_up,
    list_antecedents,
    read_in_turn,
    select_asking,
)
from stillroom.rag.generation.refusals import is_declined
from stillroom.rag.interfaces import Query
from stillroom.rag.jobs.index import IndexRecipe, run
from stillroom.records import Message

DOCUMENT = "\n\n".join(
    f"The length of string {n} is {n} letters. A caution: database {n} holds a journal IN a folder."
    f" A sub must do {n}."
    for n in range(30)
)
TOKENS = {*re.findall(r"\w+", DOCUMENT), "caption", "information"}
"""Usual words, which a tokenizer of words and their parts has as one token."""
PREAMBLE = (
    "Hello, I am new here. We use the program since many years in our company and yesterday my "
    "colleague told me that the disk of one server was nearly full. We also have some spreadsheets "
    "and another server for pictures of all kinds, which nobody wants to look after. "
)
OVERLAP = {"name": "quote", "reader": "builtin:overlap", "min_probability": 0.0}


class NoModel:
    """A text model that nothing may call."""

    def __getattr__(self, name):
        raise BackendError(name, code="backend.broken", expected="no call", next="")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    place = tmp_path_factory.mktemp("question")
    (place / "documents").mkdir()
    (place / "documents/manual.txt").write_text(DOCUMENT)
    recipe = IndexRecipe(
        documents=str(place / "documents"),
        embedder="static",
        chunker={"name": "sentence", "size": 24},
    )
    run(recipe, Job.start(place / "index", "recipe\n"), embedder=open_embedder("static"))
    with Index.open(place / "index") as opened, pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(opened.embedder), "count_tokens", lambda self, text: 1 + (text not in TOKENS)
        )
        yield opened


@pytest.mark.parametrize(
    "text", ["🙂", "???", "...", "the", "how", "what is it?", "https://example.com/a/b?c=d", " "]
)
def test_what_asks_nothing_is_refused_as_such(index, text):
    assert not has_content(text, index)
    for answering in (OVERLAP, "generate"):
        found = ask(index, NoModel(), text, answering=answering)
        assert found.details["refusal"] == "no-question"
        assert found.details["abstained"]
        assert "ask a whole question" in found.details["refusal_note"]
        assert found.completion.text == "This asks nothing that can be looked up."
        assert is_declined(found.completion.text)
        assert not found.hits


SHORT = ["pragma?", "WAL", "IN", "什么是索引？", "水", "42", "C++", '"to be or not to be"', "ask"]


@pytest.mark.parametrize(
    "text", [*SHORT, "What is `in`?", "was ist Öl?", "what does https://example.com/ hold?"]
)
def test_short_questions_are_asked(index, text):
    assert has_content(text, index)


def test_a_stop_word_is_one_in_the_languages_of_the_documents():
    analyzer = Analyzer("auto")
    assert not analyzer.has_content("die", ["de"])
    assert analyzer.has_content("die", ["en"])
    assert analyzer.has_content("die", ["de", "en"])
    assert not analyzer.has_content("the")


def test_a_text_of_a_stranger_costs_little(index):
    many = ["en"] * 1000
    words = " ".join("bcdfghjklmnpqrstvwxz"[n:] + "bcdfgh" for n in range(8))
    started = time.process_time()
    assert has_content("a." * 20_000, index)
    assert not Analyzer("auto").has_content("what is the " * 1000, many)
    auto = SimpleNamespace(
        analyzer=Analyzer("auto"), lexicon=index.lexicon, embedder=index.embedder, languages=many
    )
    assert correct_spelling(f"the string in a folder is a journal or {words}", auto)[1] == {}
    assert time.process_time() - started < 2


def test_of_a_long_text_the_sentences_that_ask_are_read(index):
    question = "What is the length of string 7?"
    assert select_asking(f"{PREAMBLE}{question} Thanks a lot!") == question
    found = ask(index, NoModel(), PREAMBLE + question, answering=OVERLAP)
    assert found.details["notices"] == [f"of the long question, what asks was read: {question}"]
    reworded = [step for step in found.details["trace"] if step["step"] == "reword"]
    assert [step["query"] for step in reworded] == [question]
    plain = ask(index, NoModel(), question, answering=OVERLAP)
    assert found.completion.text == f"(Read as “{question}”.) {plain.completion.text}"


def test_a_question_with_a_pronoun_is_read_with_the_sentence_before(index):
    text = f"{PREAMBLE}One file is a database with a journal. How can I shrink it? Any idea?"
    selected = "One file is a database with a journal. How can I shrink it? Any idea?"
    assert select_asking(text) == selected


@pytest.mark.parametrize(
    "plea",
    ["Can you help me?", "Any ideas?", "Why?", "What should I do? Thanks.", "Kann jemand helfen?",
     "Can anyone help me to find out what goes wrong here?", "¿Alguien puede ayudarme?",
     "Quelqu'un peut-il m'aider avec le disque, s'il vous plaît ?"],
)  # fmt: skip
def test_a_long_text_that_only_asks_for_help_is_read_whole(plea):
    assert select_asking(PREAMBLE + plea) == PREAMBLE + plea


@pytest.mark.parametrize(
    "text",
    [
        f"Hello, I am new. {'What is a journal? '}",  # short
        PREAMBLE,  # asks nothing
        "What is a journal? " * 20,  # asks with most of its words
    ],
)
def test_other_texts_are_read_whole(text):
    assert select_asking(text) == text


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("What is the lenght of a sring?", "What is the length of a string?"),
        ("Where is the jornal of the databse?", "Where is the journal of the database?"),
        ("is a file a strng?", "is a file a string?"),
        ("is the file a fle of a string?", None),  # three letters
        ("is the stub a database of a folder?", None),  # no misspelt "sub"
        ("where is the mutt of the string?", None),  # a name, and no misspelt "must"
        ("what folder hlds the length of a string?", "what folder holds the length of a string?"),
        ("where is the Jornal of it?", None),  # a name
        ("where is the jornal_mode of it?", None),  # a name with a sign
        ("what is a login of the string?", None),  # another word
        ("what is the caption of a string?", None),
        ("what is a lnth of the string?", None),  # two edits
        ("lenght sring jornal", None),  # no word is known: another language
        ("Was ist die lenght of a string in dem Ordner mit den Dateien?", None),
    ],
)
def test_words_that_no_passage_has_are_read_as_those_that_were_meant(index, text, read):
    assert correct_spelling(text, index)[0] == (read or text)


def test_an_endpoint_does_not_tell_usual_words(index, monkeypatch):
    monkeypatch.setattr(type(index.embedder), "count_tokens", lambda self, text: -(-len(text) // 4))
    assert correct_spelling("what is hould in the folder of a string?", index)[1] == {}


def test_without_the_embedder_words_are_read_as_written(index, monkeypatch):
    def fail(self):
        raise BackendError("no embedder", code="backend.broken", expected="one", next="")

    monkeypatch.setattr(Index, "embedder", property(fail))
    question = "What is the lenght of string 7?"
    found = ask(index, NoModel(), question, answering=OVERLAP, retriever="keyword")
    assert found.details["notices"] == ["words were read as they are written: no embedder"]
    assert found.details["quotes"]


def test_what_was_read_is_said(index):
    found = ask(index, NoModel(), "What is the lenght of string 7?", answering=OVERLAP)
    assert found.details["notices"] == ['"lenght", which no passage has, was read as "length"']
    assert found.details["quotes"][0]["text"].startswith("The length of string 7")
    read = "(Read as “What is the length of string 7?”.) The length of string 7"
    assert found.completion.text.startswith(read)


@pytest.mark.parametrize(
    "text",
    [
        "And for downloads?",
        "Und beim Herunterladen?",
        "what about directories?",
        "Why not?",
        "the default?",
        "What is the default?",
        "Which port?",
        "How often?",
        "for downloads?",
        "Does that also change the key?",
        "How do I turn that limit off?",
        "how do I get rid of them afterwards",
        "Should I switch to the other one?",
        "can it be more than one",
        "Can I still prune then?",
        "Which one is the default?",
        "Do I need one?",
        "Under which conditions?",
        "Since when?",
        "Any limits?",
        "And how do I pay it?",
        "And what is the default?",
        "And if the mast is broken?",
        "And how is the second one calculated?",
        "How does the second work?",
        "What is the latter?",
        "And the first?",
        "And how many in 2020?",
        "And what was sold in 2020?",
        "What is the first?",
        "Which is the third one?",
        "Are there others?",
        "What values are allowed?",
        "Which values are possible?",
        "And what is the highest value it can have?",
        "How long is the longest name it takes?",
    ],
)
def test_a_follow_up_is_told_by_what_it_leaves_out(text):
    assert is_follow_up(text)


@pytest.mark.parametrize(
    "text",
    [
        "How do I change the passphrase?",
        "If the nonce file is lost, is it created again?",
        "Can impstats offer its counters for scraping?",
        "How does template0 differ, and what is it for?",
        "Is it possible to rename a key?",
        "In which cases is it not necessary to upgrade?",
        "How much does it cost to host a server?",
        "What does this program do?",
        "How do I write text that does not get printed?",
        "How do I serve clients that only have IPv6?",
        "SMR drives ok?",
        "What is greylisting?",
        "What is a zone?",
        "Where are logs?",
        "How do I upgrade?",
        "How to uninstall?",
        "What does snooze do?",
        "Does each rule need at least one ruleset?",
        "Which of the sensors is waterproof?",
        "So-called smart hosts: how are they set?",
        "And-inverter graphs in a netlist",
        "max_output default",
        "IPv6?",
        "???",
        "prune",
        "And who counts the cash?",
        "And how do I set up a mast?",
        "So which key opens the boathouse?",
        "And what does max_size do?",
        "And what does UseMast do?",
        "And under which flag do ships sail?",
        "What are the first steps to rig a boat?",
        "Which boats are available?",
        "What is the price of a boat when it is new?",
        "Is the mast stowed if it rains?",
        "What is the maximum time it takes to rig a boat?",
        "When a race starts, what is the first buoy it passes?",
        "How is the mast raised without it breaking?",
        "Is the second mast of the boat longer?",
        "compression algorithms",
        "It asks for a password each time that a script of the night runs although the file with it"
        " is in place, why?",
    ],
)
def test_a_question_that_stands_alone_is_no_follow_up(text):
    assert not is_follow_up(text)


@pytest.mark.parametrize(
    ("asked", "antecedents"),
    [
        (["What is string 7?"], ["What is string 7?"]),
        (["What is string 7?", "Great, thank you!", "the"], ["What is string 7?"]),
        (["What is string 7?", "And a caution?"], ["What is string 7?", "And a caution?"]),
        (["Who holds a journal?", "What is string 7?"], ["What is string 7?"]),
        (["And a folder?"] * 5, ["And a folder?"] * 3),
        (
            ["What is string 7?", "And 8?", "And 9?", "And its caution?", "Why?"],
            ["What is string 7?", "And 9?", "And its caution?"],
        ),
        (["the"], []),
        ([], []),
    ],
)
def test_a_follow_up_goes_on_from_the_last_whole_question(index, asked, antecedents):
    history = [Message("system", "What is string 9?")]
    for text in asked:
        history += [Message("user", text), Message("assistant", "No.")]
    assert list_antecedents("And its length?", history, index) == antecedents
    assert not list_antecedents("What is the length of string 3?", history, index)


@pytest.mark.parametrize(
    ("asked", "read"),
    [
        (["What is the default of max_size?", "And of hard_limit?"], ["hard_limit"]),
        (["What is the default of max_size?", "What about hard_limit?"], ["hard_limit"]),
        (["What is the default of max_size?", "And hard_limit?"], ["hard_limit"]),
        (["What is the default of max_size?", "And for the hard_limit option?"], ["hard_limit"]),
        (["What is the default of max_size?", "and `hard_limit`"], ["`hard_limit`"]),
        (["What is the default of max_size?", "And of a_b?", "And of c_d?"], ["c_d"]),
    ],
)
def test_a_follow_up_that_names_another_thing_is_the_question_before_about_that(asked, read):
    assert read_in_turn(asked) == [f"What is the default of {name}?" for name in read]


@pytest.mark.parametrize(
    ("asked", "read"),
    [
        (
            ["What does --max do in log-time-format?", "And --min?"],
            ["What does --min do in log-time-format?"],
        ),
        (["Where is MaxSize set?", "And Umask?"], ["Where is Umask set?"]),
        (["How do I mend it on Linux?", "And on Windows?"], ["How do I mend it on Windows?"]),
        (
            ["What is the fee of a boat for members?", "And for guests?"],
            ["What is the fee of a boat for guests?"],
        ),
        (
            ["Was kostet das Boot für Gäste?", "Und für Kinder?"],
            ["Was kostet das Boot für Kinder?"],
        ),
        (["What is a weir?", "And a sluice?"], ["What is a sluice?"]),
        (["How do I read a PNG file?", "And SVG?"], ["How do I read an SVG file?"]),
        (["How do I read an MP3 file?", "And WAV?"], ["How do I read a WAV file?"]),
        (["How do I read a PNG file?", "And XML?"], ["How do I read an XML file?"]),
        (
            ["What is the default of the server parameter rise?", "And of fall?"],
            ["What is the default of the server parameter fall?"],
        ),
        (
            ["What is the default of the rise option?", "And of fall?"],
            ["What is the default of the fall option?"],
        ),
        (["What does curl do?", "What about tar?"], ["What does tar do?"]),
        (
            ["What does max_size do?", "And its default?", "And of hard_limit?"],
            ["What does hard_limit do?", "And its default?"],
        ),
        (["What does max_size do?", "And the default?"], None),
        (["What does max_size do?", "And its range?"], None),
        (["What does max_size do?", "And on Windows?"], None),
        (["How is max_size set?", "What about Windows?"], None),
        (["Where is the weir?", "And on Monday?"], None),
        (["What is the fee for members?", "And for those?"], None),
        (["What is the fee of A?", "And is the fee of B paid?"], None),
        (["Which port?", "And max_size?"], None),
        (["What is the size of max_size?", "And max_size?"], None),
    ],
)
def test_what_a_follow_up_does_not_replace_is_read_with_the_question_before(asked, read):
    assert read_in_turn(asked) == (read or asked)


@pytest.mark.parametrize(
    ("antecedents", "read"),
    [
        (["What does maxSize do?"], "maxSize: In which units?"),
        (["Where is --max of a queue set?", "Why?"], "--max: In which units?"),
        (["What is a weir?"], "a weir: In which units?"),
        (["How do I weigh the boat?"], "the boat: In which units?"),
        (["Where is the boat kept?"], "In which units?"),
        ([], "In which units?"),
    ],
)
def test_a_follow_up_is_read_about_what_the_first_question_names(antecedents, read):
    assert add_subject("In which units?", antecedents) == read


@pytest.mark.parametrize("told", [0, 200])
def test_what_is_read_of_a_long_message_before_is_read_of_itself_too(index, told):
    asked = "Which file holds the journal of the database that I opened yesterday with a client?"
    text = f"{asked} {'We saw it once. ' * told}{asked} {'And once more we saw a file, ' * 40} so?"
    found = list_antecedents("And its length?", [Message("user", text)], index)
    again = list_antecedents("And its length?", [Message("user", found[0])], index)
    assert found == again
    assert len(found[0]) <= 1000


def test_many_messages_without_content_cost_little(index):
    history = [Message("user", "Thanks! " * 10_000)] * 1000
    start = time.process_time()
    assert not list_antecedents("And its length?", history, index)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("before", "question", "read"),
    [
        ("What was the revenue in 2019 of ACME?", "And in 2020?", None),
        (
            "In 2019, what was the revenue of ACME?",
            "And of Initech?",
            "In 2019, what was the revenue of Initech?",
        ),
        (
            "Which SSL version does PostgreSQL support?",
            "And MySQL?",
            "Which SSL version does MySQL support?",
        ),
        ("When does the bus to Berlin leave?", "And to Hamburg?", None),
        ("When does the shop on Main Street open?", "And on Sundays?", None),
    ],
)
def test_another_thing_is_exchanged_only_for_the_one_like_it(before, question, read):
    assert read_in_turn([before, question])[-1] == (read or question)


@pytest.mark.parametrize(
    ("question", "is_said"),
    [
        ("What is the length of string 7?", False),
        ("And which journal does database 7 hold?", False),
        ("Can I start at 100?", True),
        ("Which length has string 7 if a client changed it?", True),
        ("Welche Zeichen dürfen im Ordner stehen?", True),
    ],
)
def test_unread_messages_are_told_where_a_question_may_lean_on_them(index, question, is_said):
    history = (Message("user", "Which folder holds a sub?"), Message("assistant", "None."))
    found = ask(index, NoModel(), Query(question, history=history), answering=OVERLAP)
    notices = [one for one in found.details.get("notices", ()) if "last message" in one]
    assert bool(notices) == is_said
