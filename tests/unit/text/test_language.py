import tempfile

import pytest

from stillroom.text import detect_language
from stillroom.text import language as languages
from stillroom.text.language import select_language


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "The committee will publish its report on the river before the end of the year."),
        ("de", "Der Ausschuss wird seinen Bericht über den Fluss noch in diesem Jahr vorlegen."),
        ("fr", "Le comité publiera son rapport sur la rivière avant la fin de cette année."),
        ("zh", "委员会将在今年年底之前公布关于这条河流的报告。"),
        ("ru", "Комитет опубликует свой отчёт о реке до конца этого года."),
    ],
)
def test_languages_are_told_from_a_sentence(code, text):
    assert detect_language(text) == code


@pytest.mark.parametrize("text", ["", "ok", "12345 67890 !!!", "\ud800 x", "{}[]();" * 50])
def test_too_little_text_has_no_language(text):
    assert detect_language(text) == ""


@pytest.mark.parametrize(
    ("language", "question"),
    [
        ("de", "Wo liegt die Datei?"),
        ("de", "Was kostet ein Bier?"),
        ("fr", "Combien de temps ?"),
        ("es", "¿Cuánto cuesta la cerveza?"),
        ("en", "What nationality was Friedrich Schleiermacher?"),
        ("en", "Qual è il prezzo?"),
        ("en", "Wo?"),
        ("en", "\ud800"),
    ],
)
def test_the_language_of_a_short_question_is_selected_among_some(language, question):
    assert select_language(question, {"de", "fr", "es", "en"}) == language


def test_the_identifier_needs_no_temporary_file(monkeypatch):
    def refuse(*settings, **named):
        raise FileNotFoundError("No usable temporary directory found")

    usual = languages._load_identifier()
    languages._load_identifier.cache_clear()
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    unpacked = languages._load_identifier()
    assert unpacked is not usual
    for text in ("Wo liegt die Datei?", "Le comité publiera son rapport.", "东京是首都。"):
        assert unpacked.rank(text) == usual.rank(text)
