"""Forms of statements that name no verbs: German, French, Spanish and Chinese.

Word order tells what ``question_templates`` looks up in lists: what stands between a subject and a
determiner without a preposition is the verb ("La sintaxis abarca todos los alias"); a German verb
stands second, so a question word before it and the subject behind it ask for the clause at the end;
reflexive and passive verbs are marked; and a purpose, a reason or a means behind the main clause
asks as one before it does.

Words that need the sentence before them, or their page, are listed too: pronouns, demonstratives,
ordinals and names of parts of a page. Own method.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from stillroom.synth.lexical_overlap import word_set

__all__ = [
    "Form",
    "Subjects",
    "any_of",
    "refers_back",
    "strip_asides",
    "write_general_forms",
]


class Form:
    """A form of statement and the question that it answers; an empty question is none."""

    def __init__(self, pattern: str, write: Callable[[re.Match[str]], str]) -> None:
        """Compile ``pattern``, which is that of a whole statement."""
        self.pattern = re.compile(rf"^{pattern}$")
        self.write = write


class Subjects(NamedTuple):
    """A language's subjects: their pattern, with the group ``s``, and their form in a question."""

    pattern: str
    lower: Callable[[str], str]


_DE_DETERMINER = (
    r"(?:eine?n?|die|das|den|alle|mehrere|verschiedene|zwei|drei|jede[ns]?|keine?n?|"
    r"[a-zäöüß]+e[ns] [A-ZÄÖÜ])"
)
_DE_STATING = (
    "ist|sind|war|waren|wird|werden|wurde|wurden|kann|können|muss|müssen|darf|dürfen|soll|sollen|"
    "sollte|sollten|hat|haben"
)
_DE_CLAUSES = {
    "wenn": "Wann",
    "sobald": "Wann",
    "weil": "Warum",
    "indem": "Wodurch",
    "damit": "Wozu",
}
_DE_SPLIT = word_set(
    """teilt teilen setzt setzen nimmt nehmen schließt schließen bindet binden lädt laden hebt
    heben bricht brechen schaltet schalten fügt fügen richtet richten ruft rufen hält halten
    fasst fassen wendet wenden weist weisen stellt stellen legt legen gibt geben führt führen
    zieht ziehen wählt wählen schlägt schlagen tritt treten sieht sehen lässt lassen geht gehen
    nennt nennen macht machen bringt bringen"""
)
"""Verbs that mostly have another part at the end of the clause, which a long sentence hides."""

_FR_NO_VERBS = (
    "dans|avec|sans|pour|par|sur|sous|entre|contre|comme|selon|pendant|durant|avant|après|depuis|"
    "dès|vers|chez|tout|toute|tous|toutes|et|ou|que|dont|mais|donc|car|est|sont|était|vient|fait|"
    "soit|de|ne|se|me|te|ce|une|le|elle|même|autre|chaque|fut|suivant|concernant|moyennant|devant|outre|même|malgré|parce|peut|doit|via"
)
_FR_DETERMINER = (
    r"(?:(?:un|une|les?|la|plusieurs|deux|trois|chaque|certaine?s|différente?s) (?!plus\b|\d)|"
    r"l['’])"
)
_FR_PLACES = {
    "dans": "Où",
    "sur": "Où",
    "sous": "Où",
    "lorsque": "Quand",
    "lors": "Quand",
    "quand": "Quand",
    "à l’aide": "Comment",
    "à l'aide": "Comment",
    "en utilisant": "Comment",
    "grâce": "Comment",
    "via": "Comment",
}
_FR_TO_DO = (
    r"(?:(?:(?:Vous|On) (?:pouvez|devez|peut|doit)|Il (?:suffit|faut|est (?:possible|nécessaire)))"
    r"(?! (?:d['’e] ?)?(?:(?:les?|la|en|y) |l['’])\w+(?:er|ir|re) )|"
    r"(?!(?:Chez|Assez)\b)[A-ZÉ]\w+ez)"
)
_ES_NO_VERBS = (
    "para|entre|sobre|ante|bajo|desde|hacia|durante|mediante|aunque|mientras|que|cuando|donde|"
    r"como|porque|salvo|excepto|es|son|era|fue|sea|sean|está|están|hasta|dentro|fuera|\w+mente|"
    "toda|todas|otra|cada|una|esta|esa|la|otras|incluso|contra|tras|de"
)
_ES_DETERMINER = (
    r"(?:un|una|unos|unas|el|la|los|las|tod[oa]s?|cada|vari[oa]s|much[oa]s|dos|tres|algun[oa]s?|"
    r"distint[oa]s|diferentes) "
)
_ES_PLACES = {
    "en": "¿Dónde",
    "mediante": "¿Cómo",
    "usando": "¿Cómo",
    "utilizando": "¿Cómo",
    "con": "¿Con qué",
    "para": "¿Para qué",
    "cuando": "¿Cuándo",
}
_ES_TIME = re.compile(
    r"(?:(?:el )?(?:año|mes)|enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|"
    r"noviembre|diciembre|\d{4})\b"
)
_ES_TO_DO = (
    r"(?:(?:Puede|Debe|Tiene que|Deberá|Podrá|Hay que|Se (?:puede|debe)|Es (?:posible|necesario))|"
    r"(?!(?:La|Una|Para|Esta|Esa|Este|Ese|Cada|Desde|Entre|Sobre)\b)[A-ZÁÉÍÓÚ]\w*[ea](?= (?:el|la|"
    r"los|las|un|una|en|al?|sobre|clic|su|sus|«|\"|“)))"
)
_ZH_ACTS = "点击|单击|双击|按下|按住|按|选择|选中|勾选|拖动|启用|禁用|打开|运行|执行|输入"
_ZH_NO_END = "(?<!对于|关于|由于)"
_ZH_PERSON = re.compile("[^，；]{0,20}(?:作者|设计师|专家|工程师|创始人|开发者|维护者)(?:[，；]|$)")
_ZH_UNTOLD = "[否由在从不很可必这如最指用以对与和]|因为|为了|通过|非常|基于|一[个种款项套类份组]"

_ASIDE = re.compile(r" ?[(（][^()（）]{2,80}[)）]")
_FRONTED = {
    "fr": re.compile(
        r"(?!(?:Si|Pour|Lorsqu\w*|Quand|Afin|Bien|Comme|Sans|Avant|Après|Les?|La|Une?|Des)\b|"
        r"En \w+ant\b)"
        r"[A-ZÀÉ][^,;:]{3,40}, (?=(?:les?|la|une?|l['’]))"
    ),
    "es": re.compile(
        r"(?!(?:Si|Para|Cuando|Aunque|Como|Al|Sin|Antes|Después|El|La|Los|Las|Una?)\b|\w+ndo\b)"
        r"[A-ZÁÉ][^,;:]{3,40}, (?=(?:el|la|los|las|un|una) )"
    ),
    "zh": re.compile(
        "(?!如|若|当|因|由于|为|虽|除|但|而|然|所以|[^，]*[时后前]，)[^，；：]{2,10}，"
    ),
}
"""What stands before the subject of a statement: an adverb, a place."""


def any_of(table: Mapping[str, str]) -> str:
    """Return the pattern of any word of a table, the longest first."""
    return "|".join(sorted(table, key=len, reverse=True))


def strip_asides(line: str, language: str) -> str:
    """Return a statement without what stands in brackets, or before its subject."""
    bare = _ASIDE.sub("", line)
    front = _FRONTED[language].match(bare) if language in _FRONTED else None
    rest = bare[front.end() :] if front is not None else bare
    return rest[:1].upper() + rest[1:]


def write_general_forms(subjects: Mapping[str, Subjects]) -> dict[str, tuple[Form, ...]]:
    """Return the forms by ISO 639-1 code of their language.

    Args:
        subjects: Subjects of German, French, Spanish and Chinese statements.
    """
    return {
        "de": _write_german(*subjects["de"]),
        "fr": _write_french(*subjects["fr"]),
        "es": _write_spanish(*subjects["es"]),
        "zh": _write_chinese(*subjects["zh"]),
    }


def _write_german(subject: str, lower: Callable[[str], str]) -> tuple[Form, ...]:
    def ask_clause(match: re.Match[str]) -> str:
        rest = match["n"]
        if re.search(r"\b(?:nur|dann|und|oder|aber|sich)$", rest):
            return ""
        return f"{_DE_CLAUSES[match['w']]} {match['v']} {lower(match['s'])} {rest}?"

    def ask_object(match: re.Match[str]) -> str:
        is_split = match["v"] in _DE_SPLIT or re.search(r"\b(?:und|sowie)\b", match["r"])
        return "" if is_split else f"Was {match['v']} {lower(match['s'])}?"

    return (
        Form(
            r"(?:(?:Sie|Man) (?:können|müssen|sollten|kann|muss|sollte)|[A-ZÄÖÜ]\w+en Sie) "
            r"(?P<m>[^,;:]+), um (?P<c>[^,;:]+(?: zu \w+n|\w+zu\w+n))",
            lambda match: f"Was ist zu tun, um {match['c']}?",
        ),
        Form(
            rf"{subject} (?P<v>{_DE_STATING}|(?!nicht )[a-zäöüß]+t) (?P<n>[^,;:]+), "
            rf"(?P<w>{any_of(_DE_CLAUSES)}) (?P<r>[^;:]+)",
            ask_clause,
        ),
        Form(
            rf"{subject} (?!(?:{_DE_STATING}|nicht|selbst|statt|samt|mit|seit|fast|meist|erst|"
            rf"sonst|jetzt|oft|heißt|gilt) )(?P<v>[a-zäöüß]+(?:[^e]t|et)) "
            rf"(?P<r>{_DE_DETERMINER}[^,;:]*)(?:[,;:].*)?",
            ask_object,
        ),
    )


def _write_french(subject: str, lower: Callable[[str], str]) -> tuple[Form, ...]:
    def ask_object(match: re.Match[str]) -> str:
        asking = "Qu’" if match["v"][0] in "aeiouéèêh" else "Que "
        return f"{asking}{match['v']} {lower(match['s'])} ?"

    participle = r"\w+(?:ée?s?|[iu]e?s?|ite?s?|erte?s?)"
    return (
        Form(
            rf"{_FR_TO_DO} (?P<m>[^,;:]+?),? (?:pour|afin de|afin d['’]) ?"
            r"(?P<c>(?!en\b|l['’]|[nv]otre\b|autre\b|quatre\b|(?:prem|dern)ier\b)"
            r"\w+(?:er|ir|re) [^,;:]+)",
            lambda match: f"Comment {match['c']} ?",
        ),
        Form(
            r"(?:(?:Vous|On) (?:pouvez|peut)|Il est possible (?:de|d['’])) ?"
            r"(?P<c>(?!l['’]|les? |la )\w+(?:er|ir|re) [^,;:]+?),? "
            r"(?P<n>(?:en (?:en |y |les? |la |l['’])?\w+ant|à "
            r"l['’]aide|grâce|au moyen|via|avec la (?:commande|touche))\b[^;:]+)",
            lambda match: f"Comment {match['c']} ?",
        ),
        Form(
            rf"{subject} (?P<v>est|sont|peut être|peuvent être|doit être|doivent être) "
            rf"(?P<e>{participle}) (?P<p>{any_of(_FR_PLACES)})\b(?P<r>.+)",
            lambda match: (
                f"{_FR_PLACES[match['p']]} {match['v']} {match['e']} {lower(match['s'])} ?"
            ),
        ),
        Form(
            rf"{subject} (?!(?:{_FR_NO_VERBS}|\w+(?:ment|ant|[aî]tre|dre|ire)) )"
            rf"(?P<v>[a-zàâçéèêëîïôûù]+(?:e|ent|it|t|nt)) "
            rf"(?P<r>{_FR_DETERMINER}.+)",
            ask_object,
        ),
    )


def _write_spanish(subject: str, lower: Callable[[str], str]) -> tuple[Form, ...]:
    def ask_place(match: re.Match[str]) -> str:
        is_time = match["p"] == "en" and _ES_TIME.match(match["r"])
        return "¿Cuándo" if is_time else _ES_PLACES[match["p"]]

    return (
        Form(
            rf"{_ES_TO_DO} (?P<m>[^,;:]+?),? para (?P<c>\w+(?:ar|er|ir|arse|erse|irse) [^,;:]+)",
            lambda match: f"¿Qué hay que hacer para {match['c']}?",
        ),
        Form(
            r"(?:Usted )?(?:[Pp]uede|Se puede|Es posible|Podrá) "
            r"(?P<c>\w+(?:ar|er|ir) [^,;:]+?),? "
            r"(?P<n>(?:\w{3,}ndo|mediante|a través de|por medio de|con ayuda de)\b[^;:]+)",
            lambda match: f"¿Cómo se puede {match['c']}?",
        ),
        Form(
            rf"{subject} (?P<v>se [a-záéíóú]+(?:[ae]n?|ó)) (?P<p>{any_of(_ES_PLACES)}) (?P<r>.+)",
            lambda match: f"{ask_place(match)} {match['v']} {lower(match['s'])}?",
        ),
        Form(
            rf"{subject} (?P<v>está|están|puede ser|pueden ser) (?P<e>\w+[ai]d[oa]s?) "
            rf"(?P<p>{any_of(_ES_PLACES)}) (?P<r>.+)",
            lambda match: f"{ask_place(match)} {match['v']} {match['e']} {lower(match['s'])}?",
        ),
        Form(
            rf"{subject} (?!(?:{_ES_NO_VERBS}) )(?P<v>[a-záéíóúñ]+(?:[ae]n?|i?ó|aron|ieron)) "
            rf"(?P<r>(?!el \d){_ES_DETERMINER}.+)",
            lambda match: f"¿Qué {match['v']} {lower(match['s'])}?",
        ),
    )


def _write_chinese(subject: str, lower: Callable[[str], str]) -> tuple[Form, ...]:
    del lower  # no capitals
    return (
        Form(
            "(?:因为|由于)(?P<n>[^，；：]{4,40})，(?:因此|所以|故)?(?P<c>(?![而但])[^，；：]{5,40})",
            lambda match: f"为什么{match['c']}？",
        ),
        Form(
            "(?:通过|使用|利用|借助|用(?!户))(?P<n>[^，；：]{2,40}?)，?(?:[你您]|用户)?"
            "(?:可以|能够|就能|可|即可|来)(?P<c>[^，；：使]{4,40})",
            lambda match: f"如何{match['c']}？",
        ),
        Form(
            f"(?:请|[你您]可以?|可以?)?(?P<m>(?:使用|{_ZH_ACTS})[^，；：]{{2,40}}?)，?"
            "(?:以便|来|即可|就可以|便可)(?P<c>[^，；：源自]{4,40})",
            lambda match: f"如何{match['c']}？",
        ),
        Form(
            f"(?P<w>{_ZH_ACTS})(?P<c>[^，；：]{{2,24}}?)(?:后?，|后)?(?:则?会|将|就会|可以?|则)"
            "(?P<r>.{4,})",
            lambda match: f"{match['w']}{match['c']}会怎么样？",
        ),
        Form(
            "(?P<w>在)(?P<c>[^，；：]{4,40}?)(?P<e>时|之前|之后|期间)，(?:[你您]|用户)?"
            "(?P<m>(?:请|应|需|必须|可以|最好|不要|建议|务必).+)",
            lambda match: f"在{match['c']}{match['e']}，应该怎么做？",
        ),
        Form(
            f"{subject}(?P<v>可以|能够)(?P<r>(?!的|能|在|被|通过|由|从|使用|是|以).{{5,}})",
            lambda match: f"{match['s']}可以做什么？",
        ),
        Form(
            f"(?![^，是]*[的之只]|许多|有些|一些|大多|特别|尤其|首先|其次|只|问题|原因|至少|[^，]*(?:例[子外]|最后)|[^，]{{0,4}}第[一二三]){subject}{_ZH_NO_END}(?P<v>是)(?P<r>(?!{_ZH_UNTOLD}).{{4,}}(?<!的))",
            lambda match: f"{match['s']}是{'谁' if _ZH_PERSON.match(match['r']) else '什么'}？",
        ),
    )


_REFERRING = {
    "de": re.compile(
        r"\b(?:[Dd]ies\w*|[Jj]en(?:e[rsmn]?|seits)|er|sie|es|ihn|ihm|ihr\w*|sein(?:e[rsmn]?)|dort|"
        r"hier\w*|da(?:bei|mit|für|zu|von|rin|rauf|ran|raus|rum|nach|her|gegen|zwischen|durch|"
        r"rüber|runter)|deshalb|deren|dessen|solch\w*|(?:erste|zweite|dritte|letzte|nächste|andere|beiden?)[nrsm]?|"
        r"das (?=nicht\b|auch\b|so\b)|ähnlich\w*|oben\w*|unten\w*|(?:nach|vorher|voran)?"
        r"(?:folg|geh)end\w*|vorherig\w*|letzter\w*|erster(?:e[rsmn]?)|wir|uns\w*|ich|"
        r"mein\w*|beide[nrs]?|[Aa]bschnitt\w*|Kapitel\w*|Abbildung\w*|Tabelle)\b"
    ),
    "fr": re.compile(
        r"\b(?:cet?|cette|ces|cel(?:ui|le|les|a)|ceux|ceci|ça|ils?|elles?|lui|leurs?|eux|son|sa|"
        r"ses|nous|notre|nos|je|mon|ci-dessus|ci-dessous|suivante?s?|précédente?s?|dernier|"
        r"dernière|ici|là|même|tels?|telles?|autres?|similaires?|premi(?:er|ère)s?|seconde?s?|"
        r"\w+ième|(?:de|à|pour|sans) (?:l['’]|les? |la )\w+(?:er|ir|re)|"
        r"chapitre|section|figure|tableau)\b|\b[cj]['’]",
        re.IGNORECASE,
    ),
    "es": re.compile(
        r"\b(?:[eé]st[aeo]s?|[eé]s[ao]s?|[eé]se|aqu[eé]l\w*|él|ellas?|ellos?|ello|lo|le|les|sus?|nuestr\w+|mi|"
        r"aquí|allí|ahí|nos|nosotros|anterior\w*|siguientes?|tal|tales|otr[oa]s?|mism[oa]s?|"
        r"últim[oa]s?|primer[oa]?s?|segund[oa]s?|tercer[oa]?|ambos|similar(?:es)?|"
        r"capítulo|sección|figura|tabla)\b|\b\w+(?:ar|er|ir)l[aeo]s?\b",
        re.IGNORECASE,
    ),
    "zh": re.compile(
        "[这那它他她其该此您我]|上述|下述|以下|以上|如下|上面|下面|(?:(?<![\u4e00-\u9fff])|(?<=[在由对从于]))本(?![地身质来机体])|[前后]者|你|"
        "同样|也|类似|某些|第[一二三]|(?<!归)还(?!原)|更多"
    ),
}
"""Words that refer to another sentence, or to the page."""


def refers_back(text: str, language: str) -> bool:
    """Return whether a text holds a word that refers to another sentence or to the page.

    False for a language whose words are not listed.
    """
    pattern = _REFERRING.get(language)
    return pattern is not None and pattern.search(text) is not None
