"""Questions that need no model: the form of a statement in five languages."""

import pytest

from stillroom.synth.prompting.english_questions import name_subject, write_english_questions
from stillroom.synth.prompting.general_forms import refers_back
from stillroom.synth.prompting.question_templates import write_template_questions


@pytest.mark.parametrize(
    ("language", "statement", "question"),
    [
        (
            "de",
            "Wenn ein Volk im Winter hungert, geht die Königin als letzte ein.",
            "Was geschieht, wenn ein Volk im Winter hungert?",
        ),
        (
            "de",
            "Um Wachs zu schmelzen, stellen Sie den Topf in ein Wasserbad.",
            "Was ist zu tun, um Wachs zu schmelzen?",
        ),
        (
            "de",
            "Die Königin ist ein ausgewachsenes Weibchen mit langem Hinterleib.",
            "Was ist die Königin?",
        ),
        (
            "de",
            "Der Stock besteht aus mehreren Kästen übereinander.",
            "Woraus besteht der Stock?",
        ),
        (
            "de",
            "Das Bienenhaus wurde 1874 von Ida Klein in Celle gegründet.",
            "Wann wurde das Bienenhaus gegründet?",
        ),
        (
            "de",
            "Weil der Honig viel Zucker enthält, verdirbt das Futter im Keller nicht.",
            "Warum verdirbt das Futter im Keller nicht?",
        ),
        (
            "fr",
            "Si la colonie manque de nourriture, elle quitte la ruche.",
            "Que se passe-t-il si la colonie manque de nourriture ?",
        ),
        (
            "fr",
            "Pour ouvrir la ruche, il faut de la fumée.",
            "Comment ouvrir la ruche ?",
        ),
        (
            "fr",
            "La propolis est une résine que les abeilles récoltent sur les bourgeons.",
            "Qu’est-ce que la propolis ?",
        ),
        (
            "es",
            "Si la colmena queda vacía, las polillas destruyen los panales.",
            "¿Qué ocurre si la colmena queda vacía?",
        ),
        (
            "es",
            "La jalea real contiene agua, azúcares y proteínas.",
            "¿Qué contiene la jalea real?",
        ),
        (
            "es",
            "La caja de madera te permite abrir la colmena sin humo.",
            "¿Qué te permite la caja de madera?",
        ),
        (
            "es",
            "Si la colmena pesa poco, puede dar azúcar en otoño.",
            "¿Qué se puede hacer si la colmena pesa poco?",
        ),
        (
            "es",
            "Si la reina muere, la colmena cría una nueva.",
            "¿Qué ocurre si la reina muere?",
        ),
        (
            "fr",
            "La caisse de bois vous permet une visite sans fumée.",
            "Que vous permet la caisse de bois ?",
        ),
        (
            "zh",
            "如果蜂群在冬天缺少食物，蜂王最后死去。",
            "如果蜂群在冬天缺少食物，会怎么样？",
        ),
        ("zh", "蜂箱的温度显示格式取决于型号和电池。", "蜂箱的温度显示格式取决于什么？"),
        ("zh", "要取出装满的蜂框，请先吹入一点烟。", "如何取出装满的蜂框？"),
        ("zh", "蜂群由蜂王、工蜂和雄蜂组成。", "蜂群由什么组成？"),
        (
            "fr",
            "Lorsqu’une colonie manque de nourriture, elle quitte la ruche.",
            "Que se passe-t-il lorsqu’une colonie manque de nourriture ?",
        ),
        (
            "fr",
            "Quand la colonie manque de place, ajoutez une hausse.",
            "Que faut-il faire quand la colonie manque de place ?",
        ),
        ("zh", "当蜂箱太重时，请取出一个蜂框。", "当蜂箱太重时，应该怎么做？"),
        ("zh", "新版本蜂箱支持十个蜂框和一个隔板。", "新版本蜂箱支持什么？"),
        (
            "es",
            "Si la colmena pesa poco, use azúcar en otoño.",
            "¿Qué hay que hacer si la colmena pesa poco?",
        ),
        (
            "es",
            "Si desea una cera clara, el agua del baño debe ser blanda.",
            "¿Qué hay que hacer si desea una cera clara?",
        ),
        (
            "es",
            "Si tienes una colmena ligera, añade azúcar en otoño.",
            "¿Qué hay que hacer si tienes una colmena ligera?",
        ),
        (
            "fr",
            "Si vous souhaitez une cire claire, un bain d’eau douce convient.",
            "Que faut-il faire si vous souhaitez une cire claire ?",
        ),
        ("zh", "如果蜂箱使用金属盖，可选的木盖将被取下。", "如果蜂箱使用金属盖，会怎么样？"),
        ("zh", "如果希望蜂蜡颜色更浅，软水是最合适的。", "如果希望蜂蜡颜色更浅，应该怎么做？"),
        # a verb of a statement, a pronoun and a noun are no orders
        (
            "es",
            "Si la colmena pesa poco, se mostrará una luz.",
            "¿Qué ocurre si la colmena pesa poco?",
        ),
        (
            "es",
            "Si la colmena pesa poco, muestra una luz roja.",
            "¿Qué ocurre si la colmena pesa poco?",
        ),
        ("zh", "蜂王浆是一种由工蜂分泌的乳白色物质。", "蜂王浆是什么？"),
    ],
)
def test_the_words_that_answer_are_replaced(language, statement, question):
    assert write_template_questions(statement, language) == [question]


@pytest.mark.parametrize(
    ("language", "statement"),
    [
        # the condition goes on, nothing is to be done, a cross-reference, a subject without a trait
        ("de", "Falls Sie Waben haben, die leer sind, schmelzen Sie das Wachs."),
        ("de", "Falls der Stock zwar voll ist, jedoch brummt, öffnen Sie den Deckel."),
        ("de", "Wenn Sie einen Stock kaufen, haben Sie viele Waben zur Auswahl."),
        ("de", "Der Stock wird in einem anderen Buch erläutert."),
        ("de", "Falls Sie bemerken, dass der Stock brummt, öffnen Sie den Deckel."),
        ("de", "Die von vielen Imkern verwendeten neuen Waben sind leer."),
        ("de", "Die erste Prüfung ist eine Zählung der Waben."),
        ("de", "Eine Methode nutzt den Rauch einer Pfeife."),
        ("de", "Ein Stock kann immer auch als Kasten verwendet werden."),
        ("fr", "Si la colonie a un rucher, qui est plein, elle quitte la ruche."),
        ("de", "Wenn dies geschieht, geht die Königin als letzte ein."),
        ("de", "Deshalb verwendet der Imker eine Pfeife."),
        ("de", "Schließlich enthält der Stock einen neuen Schwarm."),
        ("fr", "Si elle manque de nourriture, la colonie quitte la ruche."),
        ("es", "Para abrirla mejor, hace falta humo."),
        ("es", "Si ésta queda vacía, las polillas destruyen los panales."),
        ("zh", "这是一种由工蜂分泌的乳白色物质。"),
        # a noun of a verb's form, a clause for a subject, a cut bracket, no subject of its own
        ("zh", "蜂箱的温度支持，包括对幼虫的保温。"),
        ("zh", "如果需要的话，蜂箱可以在秋天搬到屋里。"),
        ("zh", "养蜂规则包含在蜂场的手册附录之中。"),
        ("zh", "蜂箱支持的每一种巢框都可以互换。"),
        ("zh", "蜂箱默认的温度显示格式就是温度计的格式。"),
        ("zh", "养蜂手册说明了蜂场的要求，也就是蜂箱的位置。"),
        ("zh", "一个蜂箱（包括巢框和蜂王隔板）可能很重。"),
        ("zh", "养蜂人对于提供清洁的水是非常认真的。"),
        ("zh", "尽管蜂箱支持十个蜂框，有时只用八个。"),
        ("zh", "选择一个合适的蜂箱是一个重要的决定。"),
        ("zh", "一个蜂箱包含十个蜂框和一个隔板。"),
        ("zh", "如果由于某些理由，蜂王会离开蜂箱。"),
        ("zh", "本蜂场包含六十个蜂箱和一个仓库。"),
        ("de", "Der alte Kasten kann durch Klopfen viele Bienen vertreiben."),
        ("de", "Das Öffnen des Stocks ändert nicht die Temperatur der Brut."),
        ("de", "Ein ähnlicher Kasten wird in Celle verwendet."),
        ("fr", "Si active, la colonie quitte la ruche."),
        ("es", "Si vacía, la colmena pesa poco."),
        ("it", "Se la colonia ha fame, la regina muore per ultima."),
    ],
)
def test_what_refers_to_another_sentence_or_has_no_form_asks_nothing(language, statement):
    assert write_template_questions(statement, language) == []


@pytest.mark.parametrize(
    ("statement", "question"),
    [
        (
            "To restore the lost comb frames, use a wooden press.",
            "How can one restore the lost comb frames?",
        ),
        (
            "You can calm an angry hive by blowing cool smoke into the entrance.",
            "How can one calm an angry hive?",
        ),
        (
            "You may convey verbatim copies of the Program in any medium, provided that you "
            "publish a notice on each copy.",
            "On what condition may one convey verbatim copies of the Program in any medium?",
        ),
        (
            "When a colony is short of honey in winter, the bees eat the pollen first.",
            "What happens when a colony is short of honey in winter?",
        ),
        (
            "Mr. Weston was a native of Highbury in Surrey, and born of a respectable family.",
            "Who was a native of Highbury in Surrey?",
        ),
        # the subject of a thing is no riddle; a list, a denial or a connection is cut or hangs
        ("The yield of a large hive reaches some thirty kilos of honey a year.", ""),
        ("Mr. Weston danced once with Mrs. Hill, sang a song with Miss Bates, and left.", ""),
        ("Mr. Weston had not been in the house for two years.", ""),
        ("You can assign a static address to the hive if necessary.", ""),
        ("You may paint the boxes of the hive, if you really want to.", ""),
        ("Miss Bates was therefore called a sweet girl by all of Highbury.", ""),
        ("Something will happen to throw a hero in the way of Miss Bates.", ""),
        ("If one wishes the hive to grow, the same queen must be used in both boxes.", ""),
        (
            "If the Hive has no license number, you may choose any number ever published.",
            "What may one do if the Hive has no license number?",
        ),
        (
            "In 1874, the first honey extractor was shown to farmers in Brno.",
            "",
        ),
    ],
)
def test_english_statements_have_questions_of_their_own(statement, question):
    assert write_english_questions(statement) == ([question] if question else [])


def test_a_sentence_about_she_is_taken_with_the_one_that_names_her():
    before = "Miss Taylor had lived in the house for sixteen years."
    after = "She had been a friend and companion such as few possessed."
    assert name_subject(before, after, "")
    assert not name_subject("Mr. Taylor had lived in the house for sixteen years.", after, "")
    assert not name_subject("Miss Taylor had lived with Miss Bates for years.", after, "")
    assert write_english_questions(f"{before} {after}") == [
        "Who had been a friend and companion such as few possessed?"
    ]


def test_words_that_refer_are_known_by_language():
    assert refers_back("wenn dies geschieht", "de")
    assert not refers_back("wenn der Honig fließt", "de")
    assert not refers_back("questa cosa", "it")
