import pytest

from stillroom.text.encoding import decode_text

KOREAN = "한국어는 한반도와 만주 지역에서 쓰이는 언어이다. 서울은 대한민국의 수도이다.\n"
JAPANESE = "日本語は主に日本で使われている言語である。東京は日本の首都であり、人口が最も多い。\n"
CHINESE = "漢語是世界上使用人數最多的語言之一。北京是中國的首都，也是全國的政治中心。\n"


@pytest.mark.parametrize("lead", ["", "-", "--", "---"])
@pytest.mark.parametrize(
    ("encoding", "line"),
    [
        ("johab", KOREAN),
        ("cp949", KOREAN),
        ("shift_jis", JAPANESE),
        ("euc_jp", JAPANESE),
        ("big5", CHINESE),
        ("gb18030", CHINESE),
    ],
    ids=lambda value: value if value.isalnum() else "",
)
def test_a_long_text_is_read_wherever_the_sample_of_it_ends(encoding, line, lead):
    whole = lead + line * (80_000 // len(line.encode(encoding)))
    assert decode_text(whole.encode(encoding), "x").text == whole


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Each employee may use one of the 14 spaces. Fee: £35 a month."),
        ("cp1252", "Él señor Núñez vive en España."),
        ("cp1252", "A ação não é à toa; o pão está na mesa."),
        ("cp1252", "Größe der Straße: 12 m²"),
        ("cp1250", "Mały chłopiec żyje w Łodzi i śpi do południa."),
        ("cp1254", "Ücret ayda beş liradır ve öğrenciler için değişmez."),
        ("cp1257", "Susirinkimas vyks pirmadienį vakare mažojoje salėje."),
        ("cp1252", "Müller"),
        ("iso8859_15", "Le prix est de 20 € pour l'œuvre."),
        ("iso8859_15", "Die Gebühr beträgt 30 € im Monat für Schüler."),
        ("koi8_r", "Собрание состоится в понедельник вечером."),
        ("koi8_r", "Заявление подаётся до пятницы в городскую управу."),
        ("cp866", "Собрание состоится в понедельник вечером."),
        ("cp1251", "Собрание состоится в понедельник вечером в малом зале."),
        ("cp850", "Die Größe der Straße ist über fünf Meter, und Bäume stehen für Schüler da."),
    ],
)
def test_a_short_text_is_read_in_the_code_page_of_its_language(encoding, text):
    assert decode_text(text.encode(encoding), "x").text == text


@pytest.mark.parametrize(
    ("declared", "real", "text"),
    [
        ("ISO-8859-1", "cp1252", "He said “no” – and nobody minded."),
        ("us-ascii", "cp1252", "A price of 5 € isn’t much."),
        ("iso-8859-9", "cp1254", "Kurul “evet” dedi – köprü yapılacak."),
        ("gb2312", "gbk", "朱镕基没有反对新桥的计划。"),
        ("shift_jis", "cp932", "髙橋さんは①番の計画に反対しなかった。"),
        ("euc-kr", "cp949", "똠방각하는 새 다리에 반대하지 않았다."),
    ],
)
def test_a_declared_encoding_stands_for_its_superset_as_in_browsers(declared, real, text):
    data = text.encode(real)
    decoded = decode_text(data, "a.html", declared=declared)
    assert decoded.text == text
    assert decoded.is_exact


def test_a_declared_encoding_is_used_as_it_is_where_its_superset_does_not_fit():
    data = b"\xe9clair \x81 and a reset\x90"
    assert decode_text(data, "a.html", declared="latin-1").encoding == "iso8859-1"


def test_hebrew_is_not_taken_for_russian_in_capitals():
    text = "הוועדה התכנסה ביום שלישי ואיש לא התנגד לתוכנית לגשר החדש. " * 5
    assert decode_text(text.encode("cp1255"), "a.txt").text == text
