"""Forms that name no verbs: word order, passives and clauses behind the main one."""

import pytest

from stillroom.synth.prompting.question_templates import write_template_questions


@pytest.mark.parametrize(
    ("language", "statement", "question"),
    [
        (
            "de",
            "Klicken Sie auf die Wabe, um den Honig zu schleudern.",
            "Was ist zu tun, um den Honig zu schleudern?",
        ),
        (
            "de",
            "Die Königin verlässt den Stock im Mai, weil das Volk zu groß geworden ist.",
            "Warum verlässt die Königin den Stock im Mai?",
        ),
        (
            "de",
            "Der Imker prüft die Waben im Herbst, indem er jeden Rahmen einzeln wiegt.",
            "Wodurch prüft der Imker die Waben im Herbst?",
        ),
        (
            "de",
            "Der Schwarm besiedelt einen hohlen Baum in der Nähe.",
            "Was besiedelt der Schwarm?",
        ),
        (
            "de",
            "Der Stock wird mit Tabellen (Waben) befüllt.",
            "Womit wird der Stock befüllt?",
        ),
        (
            "es",
            "En primavera, la colonia (vieja o joven) abandona el tronco.",
            "¿Qué abandona la colonia?",
        ),
        (
            "fr",
            "Soulevez le panier de la ruche pour compter les cadres pleins.",
            "Comment compter les cadres pleins ?",
        ),
        (
            "fr",
            "Vous pouvez nourrir une colonie faible en versant du sirop dans le cadre.",
            "Comment nourrir une colonie faible ?",
        ),
        (
            "fr",
            "La récolte de printemps est stockée dans une cave fraîche et sèche.",
            "Où est stockée la récolte de printemps ?",
        ),
        (
            "fr",
            "La colonie choisit une nouvelle reine au printemps.",
            "Que choisit la colonie ?",
        ),
        (
            "es",
            "Abra la tapa de la colmena para contar los marcos llenos.",
            "¿Qué hay que hacer para contar los marcos llenos?",
        ),
        (
            "es",
            "Puede alimentar una colonia débil vertiendo jarabe en el marco.",
            "¿Cómo se puede alimentar una colonia débil?",
        ),
        (
            "es",
            "La miel de primavera se guarda en una bodega fresca.",
            "¿Dónde se guarda la miel de primavera?",
        ),
        (
            "es",
            "La colonia abandona el tronco en mayo.",
            "¿Qué abandona la colonia?",
        ),
        (
            "fr",
            "Vous pouvez nourrir plusieurs colonies à la fois en en réunissant les cadres.",
            "Comment nourrir plusieurs colonies à la fois ?",
        ),
        (
            "es",
            "La miel de acacia se vendió en julio de 1998 en el mercado.",
            "¿Cuándo se vendió la miel de acacia?",
        ),
        ("zh", "蜂王是提供给蜂群的唯一产卵者。", "蜂王是什么？"),
        ("zh", "因为蜂箱里的蜂蜜太多，蜂群会在五月分家。", "为什么蜂群会在五月分家？"),
        ("zh", "使用喷烟器和长手套，可以安全打开大型蜂箱。", "如何安全打开大型蜂箱？"),
    ],
)
def test_word_order_tells_what_a_statement_answers(language, statement, question):
    assert write_template_questions(statement, language, statement) == [question]


@pytest.mark.parametrize(
    ("language", "statement"),
    [
        ("de", "Der Imker teilt im Frühling einen starken Schwarm und einen schwachen."),
        ("de", "Die Königin der Waben nicht gut klar kommt ist, wenn der Winter kalt wird."),
        ("de", "Mit jedem Frühling ist der alte Schwarm müde und wird in den Wald entlassen."),
        ("fr", "Le lendemain de la récolte avec les cadres pleins fut froid et humide."),
        ("fr", "La reine automatiquement la plus forte quitte tôt."),
        ("fr", "Pour éviter de les perdre, la reine quitte la ruche."),
        ("fr", "Vous pouvez ouvrir sous le toit la trappe pour votre colonie faible."),
        ("fr", "Vous pouvez les fermer pour protéger la colonie du froid."),
        ("fr", "La possibilité de vérifier si les cadres vides sont des cadres pleins."),
        ("fr", "La colonie finit le 18 mai."),
        ("es", "La reina vieja (Maya) murió el 18 de mayo."),
        ("es", "Para crecer en mayo, la colonia abandona el tronco viejo."),
        ("es", "Si bien la reina estaba sana, la colonia murió en invierno."),
        ("es", "Si son muy pequeñas, las abejas mueren en invierno."),
        ("zh", "蜂箱可以在春天的市场上从邻居那里买到。"),
    ],
)
def test_a_statement_whose_order_tells_nothing_has_no_question(language, statement):
    assert write_template_questions(statement, language, statement) == []


def test_an_adverb_between_subject_and_verb_is_left_out():
    statement = "La colonia fuerte generalmente abandona el tronco en mayo."
    assert write_template_questions(statement, "es", statement) == [
        "¿Qué abandona la colonia fuerte?"
    ]
