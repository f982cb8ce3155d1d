"""Rule-based question generation by templates: English, German, French, Spanish or Chinese.

The teachers of a small machine write poor questions in other languages than English, or English
ones; the English forms are in ``english_questions``. A statement with a condition, a purpose, a
definition, or one of the listed verbs behind its subject has a question that needs no model: the
words that answer it are replaced by a question word. Nothing is parsed: a statement that fits no
form yields nothing, and so does one whose question would refer to another sentence.

Own method; the answer is selected before its question as in Alberti et al. 2019, arXiv:1906.05416.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from stillroom.synth.lexical_overlap import are_balanced, collapse_whitespace, word_set
from stillroom.synth.prompting.english_questions import write_english_questions
from stillroom.synth.prompting.general_forms import (
    Form,
    Subjects,
    any_of,
    refers_back,
    strip_asides,
    write_general_forms,
)

__all__ = ["TEMPLATE_LANGUAGES", "write_template_questions"]

_MAX_SLOT, _MIN_SLOT = 90, 3

_DE_ENDS = word_set(
    """ab an auf aus bei ein fest her hin mit nach vor weg zu zurück bereit dar um durch teil
    fort zusammen frei sicher voraus"""
)
_DE_LOWER = re.compile(
    r"^(?:Der|Die|Das|Dem|Ein|Eine|Einige|Jede[rs]?|Alle|Mehrere|Viele|Manche|Beim?|Im?|Sie)\b"
)
_DE_NOUN = r"[A-ZÄÖÜ„\"«»'`][^\s,;:()]*"
_DE_PHRASE = (
    r"(?:(?:der|die|das|des|dem|den|eine[rsmn]?|ein|und|von|vom|für|zur|zum|im|in|mit|auf|bei) "
    r"|(?!(?:sollten?|sollen|können|müssen|werden|wurden|haben|hatten|sind|waren|dürfen|wollen) )"
    rf"[a-zäöüß-]+(?:e|en|er|es|em) )*{_DE_NOUN}"
)
_DE_SUBJECT = (
    r"(?P<s>(?!(?:Sie|Es|Er|Ihr\w*|Sein\w*|Wir|Ich|Man|Dies\w*|Jene\w*|Alles|Nichts|"
    r"Bei|Beim|Im?|Auf|Mit|Von|Vom|An|Am|Für|Aus|Zu|Zum|Zur|Nach|Seit|Unter|Über|Ohne|Um) )"
    r"(?:(?:Der|Die|Das|Ein|Eine|Einige|Jede[rs]?|Alle|Mehrere|Viele) )?"
    rf"(?:[a-zäöüß-]+(?:e|en|er|es) ){{0,2}}{_DE_NOUN}(?: {_DE_PHRASE}){{0,2}})"
)
_DE_NO_VERBS = word_set(
    """jetzt nicht selbst oft erst dort seit mit statt samt zumeist fast meist sonst zuerst
    damit den denn wenn dann in an von ein eine einen ohne sondern sowie außer trotz
    gegen neben zwischen wegen hinsichtlich insbesondere welchen welchem denen deren dessen
    weit bereits einschließlich nun schon eben aufgrund während"""
)
_DE_NO_ORDERS = word_set(
    """haben sind werden finden sehen erhalten bekommen wissen kennen brauchen möchten würden
    hätten wären wollen"""
)
"""Verbs before "Sie" that state something, and ask nobody to do anything."""
_DE_TOLD = re.compile(
    r"(?:erläuter|beschrieb|behandel|dokumentier|erklär|erwähn|besproch|dargestell)"
)
"""Participles of a cross-reference: where something is described, not where it is."""

_DE_STATES = word_set(
    """ist sind war waren hat haben gibt gilt muss müssen kann können sollte sollten soll
    sollen darf         dürfen könnte könnten hatte hatten bedeutet heißt möchten wäre wären"""
)
"""Verbs that begin a consequence which is no event."""

_DE_VERBS = (
    "enthält|enthalten|enthielt|bietet|bieten|ermöglicht|ermöglichen|erlaubt|erlauben|verwendet|"
    "verwenden|benutzt|benutzen|nutzt|nutzen|unterstützt|unterstützen|beschreibt|beschreiben|"
    "definiert|definieren|verwaltet|verwalten|erzeugt|erzeugen|erstellt|liefert|liefern|stellt|"
    "stellen|umfasst|umfassen|benötigt|benötigen|verhindert|verlangt|erfordert|erfordern|"
    "bezeichnet|"
    "bezeichnen|bedeutet|bedeuten|steuert|überwacht|überwachen|speichert|speichern|bestimmt|"
    "bestimmen|legt|zeigt|zeigen|besitzt|besitzen|empfiehlt|garantiert|garantieren|beinhaltet|"
    "beinhalten|vereinfacht|verbessert|erleichtert|gewährt|führt|bildet|bilden|kennt|gibt|sammelt|"
    "schützt|ersetzt|regelt|prüft|installiert|startet|öffnet|löscht|ändert|übernimmt|vertritt"
)
_DE_ABOUT = {
    "besteht aus": "Woraus besteht",
    "bestehen aus": "Woraus bestehen",
    "basiert auf": "Worauf basiert",
    "basieren auf": "Worauf basieren",
    "beruht auf": "Worauf beruht",
    "dient": "Wozu dient",
    "dienen": "Wozu dienen",
    "befindet sich": "Wo befindet sich",
    "befinden sich": "Wo befinden sich",
    "liegt in": "Wo liegt",
    "bezieht sich auf": "Worauf bezieht sich",
    "beziehen sich auf": "Worauf beziehen sich",
    "heißt": "Wie heißt",
    "beginnt mit": "Womit beginnt",
    "gehört zu": "Wozu gehört",
    "gehören zu": "Wozu gehören",
    "sorgt für": "Wofür sorgt",
}
_DE_BY_PREPOSITION = (
    (r"im Jahre?|in den Jahren|am \d|seit|\d{4}\b", "Wann"),
    (r"durch|mittels|mithilfe|anhand", "Wodurch"),
    (r"mit", "Womit"),
    (r"in|im|unter", "Wo"),
    (r"für|zum|zur", "Wofür"),
)

_FR_VERBS = (
    "contient|contiennent|permet|permettent|fournit|fournissent|offre|offrent|propose|proposent|"
    "utilise|utilisent|définit|définissent|décrit|décrivent|indique|indiquent|gère|gèrent|"
    "nécessite|nécessitent|affiche|affichent|comprend|comprennent|représente|représentent|désigne|"
    "désignent|signifie|signifient|crée|créent|regroupe|garantit|garantissent|exige|exigent|"
    "contrôle|assure|assurent|autorise|autorisent|prévoit|stocke|détermine|déterminent|énonce|"
    "possède|possèdent|inclut|incluent|facilite|remplace|protège|installe|produit|requiert"
)
_FR_ABOUT = {
    "sert à": "À quoi sert",
    "servent à": "À quoi servent",
    "consiste": "En quoi consiste",
    "se compose de": "De quoi se compose",
    "dépend de": "De quoi dépend",
    "dépendent de": "De quoi dépendent",
    "repose sur": "Sur quoi repose",
    "reposent sur": "Sur quoi reposent",
    "correspond à": "À quoi correspond",
    "correspondent à": "À quoi correspondent",
    "se trouve": "Où se trouve",
    "se trouvent": "Où se trouvent",
}
_FR_LOWER = re.compile(
    r"^(?:Les?|La|L['’]|Une?|Chaque|Des|Du|De|Vous|Tous|Toutes?|Certaine?s)(?=\b|\w)"
)
_FR_SUBJECT = (
    r"(?P<s>(?!(?:Pour|Si|Dans|En|Par|Avec|Il|Elle|Cet?|Cette|Ces|On|Mais|Et|Qui|Vous|Nous|À|"
    r"Sur|Sous|"
    r"Lors|Quand|Comme|Afin|Ainsi|Un autre|Une autre|\w+ment|\w+(?:er|ir)) )[^\s,;:()]+(?: "
    r"(?!(?:qui|que|dont|où|ne|et|"
    r"ou|mais|si|a|ont|est|sont|peut|doit|se|me|te|nous|vous|lui|leur|"
    r"pour) |[ns]['’])[^\s,;:()]+){0,8}?)"
)

_ES_VERBS = (
    "contiene|contienen|permite|permiten|proporciona|proporcionan|ofrece|ofrecen|utiliza|utilizan|"
    "usa|usan|define|definen|describe|describen|indica|indican|gestiona|gestionan|requiere|"
    "requieren|necesita|necesitan|muestra|muestran|incluye|incluyen|representa|representan|"
    "significa|significan|crea|crean|garantiza|garantizan|controla|controlan|exige|exigen|"
    "almacena|almacenan|determina|establece|establecen|posee|poseen|facilita|facilitan|evita|"
    "protege|instala|produce|especifica|especifican|recibe|reciben"
)
_ES_ABOUT = {
    "sirve para": "Para qué sirve",
    "sirven para": "Para qué sirven",
    "consiste en": "En qué consiste",
    "consisten en": "En qué consisten",
    "depende de": "De qué depende",
    "dependen de": "De qué dependen",
    "se basa en": "En qué se basa",
    "se basan en": "En qué se basan",
    "se compone de": "De qué se compone",
    "corresponde a": "A qué corresponde",
    "se encuentra en": "Dónde se encuentra",
    "se encuentran en": "Dónde se encuentran",
    "se llama": "Cómo se llama",
}
_ES_ORDERS = re.compile(
    r"(?:deben?|debería[ns]?|hay que|es (?:necesario|preciso|mejor|recomendable)|lo (?:primero|"
    r"mejor)|use|usar|pulse|haga|ponga|vea|elija|escriba|introduzca|abra|añada|ejecute|compruebe|cambie|"
    r"instale|consulte|presione|emplee|edite|ajuste|asegúrese|tenga|lea|considere|cree|"
    r"active|desactive|configure|mueva|copie|guarde|reinicie|revise|evite|intente|pruebe|utilice|"
    r"realice|(?:bus|mar|indi|apli|colo)que|(?:des)?cargue|agregue|siga|\w+(?:fique|ccione))\b"
)
"""Orders by name, since other verbs in -e and -a state as often as they order."""

_FR_ADVERB = re.compile(r" (?:\w{3,}ment|alors|ensuite|toujours|aussi)$")
_ES_ADVERB = re.compile(
    r" (?:\w+mente|luego|sol[oa]|sólo|siempre|a veces|entonces|ya|aún|todavía)$"
)
_ES_LOWER = re.compile(r"^(?:El|La|Los|Las|Un|Una|Cada|Tod[oa]s?|Algun[oa]s|Usted)\b")
_ES_SUBJECT = (
    r"(?P<s>(?!(?:Para|Si|En|Por|Con|Est[aeo]|Es|No|Se|Al|Pero|Que|Como|Cuando|Otr[oa]|También|"
    r"Desde|Su|Sus|Lo|Ya|Hay|De|\w+mente|\w+(?:ar|er|ir)) )[^\s,;:()]+(?: (?!(?:que|quien|donde|no|"
    r"y|o|pero|es|son|ha|han|puede|debe|se|me|te|nos|os|les?|para|está|están) )[^\s,;:()]+){0,8}?)"
)

_ZH_SUBJECT = (
    "(?P<s>(?!如果|如|当|若|为|要|在|从|由于|因|虽|但|而|并|所|只|通过|对|除|每当|有|还|使用|可|作为|"
    "至少|通常|一般|往往|尽管|即使|参[考见阅]|请|见|选择|人们|之后|然后|注意)"
    "[^，。；：、？！,;:?!是而了可会能将要不把被在从则都就已须常]{2,24}?)(?<!对于|关于|由于|唯一|并非)"
)
_ZH_VERBS = (
    "包含|包括|提供|支持|允许|需要|定义了|描述了|表示|负责|显示|依赖于|取决于|"
    "基于|用于|指的是|意味着|要求"
)
_ZH_ORDERS = re.compile(
    "(?:则|那么|就|也)?(?:[你您][也还]?)?(?:请|应|需|必须|可以|可[使通用在]|最好|"
    "不要|建议|务必|推荐|只需|尝试|考虑)"
)
_ZH_OBJECT = (  # behind a noun of a verb's form stand a mark, "的" or the verb
    f"(?![，的在对])(?P<r>(?![^，；]*?(?:取决于|依赖于|位于|就是)|(?:{_ZH_VERBS}|维护)).{{4,}})"
)

# What a condition that wishes something asks is what to do, in whatever words the answer is.
_FR_WISHES = re.compile(r"vous (?:souhaitez|voulez|désirez|préférez|avez (?:des )?besoin)")
_FR_TO_DO = re.compile(
    r"(?:vous|on|nous|il (?:faut|faudra|suffit|est)|mieux vaut|\w+ez|utiliser|cliquer|\w+er)\b"
)
_ES_TO_DO = re.compile(
    rf"(?:{_ES_ORDERS.pattern}|(?:se )?(?:puede|debe|deberá|podrá|necesita)n?\b|basta|tiene que|"
    r"(?!la )\w+[ea] (?:el|la|los|las|un|una|en|al?|sobre|clic|su|sus|«|\"|“))"
)
_ES_WISHES = re.compile(r"(?:no )?(?:desea|quiere|prefiere|necesita)[ns]?\b")
_ZH_WISHES = re.compile("[你您]?(?:希望|不?想|需要?|计划|打算|不?要)")
_FR_GOES_ON = re.compile(r"(?:qui|que|dont|où|et|mais|ou|sans|pour|par|avec|dans|à|de|comme)\b")
_ES_GOES_ON = re.compile(r"(?:que|quien|cuyo|donde|y|pero|o|sin|para|por|con|en|a|de|como)\b")
"""Words after the comma of a condition that go on with it."""

_Writer = Callable[[re.Match[str]], str]


def _lower(pattern: re.Pattern[str], text: str) -> str:
    """Return a phrase as within a sentence: a capital article becomes small."""
    return text[:1].lower() + text[1:] if pattern.match(text) else text


def _german(text: str) -> str:
    return text if text.startswith("Sie ") else _lower(_DE_LOWER, text)


def _german_condition(match: re.Match[str]) -> str:
    """Return what happens, or is to be done; empty if the condition goes on behind its comma."""
    word, clause, main = match["w"].lower(), match["c"], match["m"].removeprefix("dann ")
    first = main.split(" ", 1)[0]
    is_verb = re.fullmatch("[a-zäöüß]+(?:t|te|n)|muss|kann|darf|soll|sind|wird", first) is not None
    if not is_verb or first in _DE_NO_VERBS or re.search(r"\bzwar\b", clause):
        return ""
    modal = re.match(r"(können|müssen|sollten|dürfen|sollen|könnten) Sie\b", main)
    if modal is not None:
        return f"Was {modal[1]} Sie tun, {word} {clause}?"
    if re.match(r"(?:muss|sollte|kann|darf) man\b", main):
        return f"Was {first} man tun, {word} {clause}?"
    if re.match(r"\w+en Sie\b", main):
        return "" if first in _DE_NO_ORDERS else f"Was ist zu tun, {word} {clause}?"
    return "" if first in _DE_STATES else f"Was geschieht, {word} {clause}?"


def _german_purpose(match: re.Match[str]) -> str:
    main, act = match["m"], match["c"]
    if re.match(r"(?:wird|werden) .*\b(?:benötigt|gebraucht)\b", main):
        return f"Was wird benötigt, um {act}?"
    modal = re.match(r"(können|müssen|sollten) Sie\b|(muss|sollte|kann) man\b", main)
    if modal is not None:
        return f"Was {modal[0]} tun, um {act}?"
    order = re.match(r"(\w+en) Sie\b", main)
    return f"Was ist zu tun, um {act}?" if order and order[1] not in _DE_NO_ORDERS else ""


def _german_object(match: re.Match[str]) -> str:
    last = match["r"].rsplit(" ", 1)[-1]
    if match["v"] in {"stellt", "stellen", "legt", "gibt", "führt"} and last not in _DE_ENDS:
        return ""
    if match["v"] in _DE_NO_VERBS:
        return ""
    end = f" {last}" if last in _DE_ENDS else ""
    return f"Was {match['v']} {_german(match['s'])}{end}?"


def _german_passive(match: re.Match[str]) -> str:
    if (
        not match["e"].islower()
        or _DE_TOLD.search(match["e"])
        or re.search(r"\b(?:und|oder)$", match["p"])
        or (match["v"][:4] not in {"wird", "werd", "wurd"} and not match["e"].endswith(" werden"))
    ):
        return ""
    for preposition, asking in _DE_BY_PREPOSITION:
        if re.match(rf"(?:{preposition})\b", match["p"]):
            return f"{asking} {match['v']} {_german(match['s'])} {match['e']}?"
    return ""


def _french(text: str) -> str:
    return _lower(_FR_LOWER, _FR_ADVERB.sub("", text))


def _french_condition(match: re.Match[str]) -> str:
    if _FR_GOES_ON.match(match["m"]) or " " not in match["c"]:
        return ""
    is_order = re.match(r"(?:vous|il (?:faut|est)|\w+ez)\b", match["m"])
    is_order = is_order or _FR_WISHES.match(match["c"])
    asking = "faut-il faire" if is_order else "se passe-t-il"
    return f"Que {asking} {match['w'].lower()}{match['c']} ?"


def _french_object(match: re.Match[str]) -> str:
    asking = "Qu’" if match["v"][0] in "aeiouéèêh" else "Que "
    return f"{asking}{match['v']} {_french(match['s'])} ?"


def _french_definition(match: re.Match[str]) -> str:
    if match["v"] in {"sont", "étaient"}:
        return f"Que {match['v']} {_french(match['s'])} ?"
    subject = _french(match["s"])
    return f"Qu’est-ce {'qu’' if subject[:2] in {'un', 'au'} else 'que '}{subject} ?"


def _spanish(text: str) -> str:
    return _lower(_ES_LOWER, _ES_ADVERB.sub("", text))


def _spanish_condition(match: re.Match[str]) -> str:
    if _ES_GOES_ON.match(match["m"]) or " " not in match["c"]:
        return ""
    is_order = _ES_ORDERS.match(match["m"]) or _ES_WISHES.match(match["c"])
    if re.match(r"(?:no |ya )?(?:has|\w+[ae]s)\b", match["c"]):  # said to "tú": "cambia"
        is_order = is_order or re.match(r"(?!(?:l|un|cad|est)a |se )\w+[ae]\b", match["m"])
    happens = "hay que hacer" if is_order else "ocurre"
    if re.match(r"(?:puede|podría)[sn]?\b", match["m"]):  # who may, is not told
        happens = "se puede hacer"
    return f"¿Qué {happens} {match['w'].lower()} {match['c']}?"


def _chinese_condition(match: re.Match[str]) -> str:
    end = f"{match['c']}{match.groupdict().get('e', '')}"
    is_order = _ZH_ORDERS.match(match["m"]) or _ZH_WISHES.match(match["c"])
    return f"{match['w']}{end}，{'应该怎么做' if is_order else '会怎么样'}？"


def _about(table: Mapping[str, str], lower: Callable[[str], str], form: str) -> _Writer:
    return lambda match: form.format(f"{table[match['v']]} {lower(match['s'])}")


_LOWER = {"de": _DE_LOWER, "fr": _FR_LOWER, "es": _ES_LOWER}

_FORMS: dict[str, tuple[Form, ...]] = {
    "de": (
        Form(
            r"(?P<w>Wenn|Falls|Sobald|Sofern|Solange) (?P<c>[^,;:]+(?:t|"
            r"n)(?<!versucht)(?<!versuchen)), (?P<m>.+)",
            _german_condition,
        ),
        Form(
            r"Sie (?P<v>können|müssen|sollten|dürfen) (?P<c>[^,;:]+), indem (?P<m>.+)",
            lambda match: f"Wie {match['v']} Sie {match['c']}?",
        ),
        Form(
            r"(?:Weil|Da) (?P<n>[^,;:]+), (?P<c>[a-zäöüß]+(?:t|en|te|ten) [^,;:]+)",
            lambda match: f"Warum {match['c']}?",
        ),
        Form(
            r"Indem (?P<n>[^,;:]+), (?P<c>[a-zäöüß]+(?:t|en|te|ten) [^,;:]+)",
            lambda match: f"Wodurch {match['c']}?",
        ),
        Form(
            r"Mit (?P<n>(?:(?! (?:ist|sind|wird|werden|hat|haben) )[^,;:])+?) "
            r"(?P<v>können Sie|kann man|können|kann|lässt sich|lassen sich|"
            r"wird|werden) (?P<c>[^,;:]+)(?:, .+)?",
            lambda match: f"Womit {match['v']} {match['c']}?",
        ),
        Form(
            r"(?:Im|In|Unter|Auf) (?P<n>[^,;:]+?) (?P<v>wird|werden|befindet sich|"
            r"befinden sich|"
            r"steht|stehen|liegt|liegen) (?P<c>[^,;:]+)",
            lambda match: f"Wo {match['v']} {match['c']}?",
        ),
        Form(
            r"Um (?P<c>[^,;:]+(?: zu \w+n|\w+zu\w+n)), (?P<m>.+)",
            _german_purpose,
        ),
        Form(
            rf"{_DE_SUBJECT} (?P<v>ist|war) eine? "
            r"(?P<r>(?!(?:\w+e[rs]? )?(?:Faktor|Ausnahme|Schritt|Teil|Grund|"
            r"Problem|Frage|Sache|Fehler|Vorteil|Nachteil|Möglichkeit|Weg|Beispiel|Ergebnis|Muss)\b).+)",
            lambda match: f"Was {match['v']} {_german(match['s'])}?",
        ),
        Form(
            rf"{_DE_SUBJECT} (?P<v>{any_of(_DE_ABOUT)}) (?P<r>.+)",
            _about(_DE_ABOUT, _german, "{}?"),
        ),
        Form(
            rf"{_DE_SUBJECT} (?P<v>wird|werden|wurde|wurden|kann|können|muss|müssen|darf|"
            rf"dürfen|"
            r"sollte|sollten) (?P<p>[^,;:]+?) (?P<e>(?:\w*(?:ge\w+(?:t|en)|iert|"
            r"(?:be|er|ver|ent|zer|unter|über)\w+(?:t|en)))(?: werden)?|\w+en)(?: ?[,(;].*)?",
            _german_passive,
        ),
        Form(
            rf"{_DE_SUBJECT} (?P<v>{_DE_VERBS}) (?P<r>[^,;:]+)(?:[,;:].*)?",
            _german_object,
        ),
        Form(
            rf"{_DE_SUBJECT} (?!(?:sind|werden|wurden|können|müssen|sollen|dürfen|haben|waren|"
            r"wird|ist|hat|kann|muss|soll|darf|nicht) )(?P<v>[a-zäöüß]+ier(?:t|en)) "
            r"(?P<r>(?:eine?n?|die|das|den|alle|keine?n?|mehrere|[a-zäöüß]+e[nrs]? [A-ZÄÖÜ])"
            r"[^,;:]*)(?:[,;:].*)?",
            _german_object,
        ),
    ),
    "fr": (
        Form(
            r"(?P<w>Si |Lorsque |Quand |Lorsqu['’](?=une?\b))(?P<c>[^,;:]+), (?P<m>.+)",
            _french_condition,
        ),
        Form(
            r"(?:Pour|Afin de|Afin d['’]) ?(?P<c>\w+(?:er|ir|re) [^,;:]+), (?P<m>.+)",
            lambda match: f"Comment {match['c']} ?" if _FR_TO_DO.match(match["m"]) else "",
        ),
        Form(
            rf"{_FR_SUBJECT} (?P<v>est|sont|était|étaient) "
            r"(?:une?|des|l['’]une?) (?P<r>.+)",
            _french_definition,
        ),
        Form(
            rf"{_FR_SUBJECT} (?P<v>{any_of(_FR_ABOUT)}) (?P<r>.+)",
            _about(_FR_ABOUT, _french, "{} ?"),
        ),
        Form(
            rf"{_FR_SUBJECT} (?P<v>(?:[nv]ous )?(?:{_FR_VERBS})) (?P<r>.+)",
            _french_object,
        ),
    ),
    "es": (
        Form(
            r"(?P<w>Si|Cuando) "
            r"(?P<c>(?!bien\b|(?:no )?(?:son|es|está|están|ha|han|tienen?|era|fue)\b)"
            r"[^,;:]+), (?P<m>.+)",
            _spanish_condition,
        ),
        Form(
            r"Para (?P<c>\w+(?:ar|er|ir) [^,;:]+), (?P<m>.+)",
            lambda match: (
                f"¿Qué hay que hacer para {match['c']}?" if _ES_TO_DO.match(match["m"]) else ""
            ),
        ),
        Form(
            rf"{_ES_SUBJECT} (?P<v>es|son|era|fue) (?:un|una|unos|unas) (?P<r>.+)",
            lambda match: f"¿Qué {match['v']} {_spanish(match['s'])}?",
        ),
        Form(
            rf"{_ES_SUBJECT} (?P<v>{any_of(_ES_ABOUT)}) (?P<r>.+)",
            _about(_ES_ABOUT, _spanish, "¿{}?"),
        ),
        Form(
            rf"{_ES_SUBJECT} (?P<v>(?:(?:te|nos|os|les?) )?(?:{_ES_VERBS})) (?P<r>.+)",
            lambda match: f"¿Qué {match['v']} {_spanish(match['s'])}?",
        ),
    ),
    "zh": (
        Form(
            "(?P<w>如果|若|假如)(?P<c>(?!由于|需要的话|没有的话|不是|是这样)[^，；：]{4,40}?)(?:的话)?，(?P<m>.+)",
            _chinese_condition,
        ),
        Form(
            "(?P<w>当)(?P<c>[^，；：]{4,40}?)(?P<e>时|的时候)，(?P<m>.+)",
            _chinese_condition,
        ),
        Form(
            "(?:若要|如要|如需|想要|要想|要)(?P<c>(?!求)[^，；：]{4,40})，(?P<m>.+)",
            lambda match: f"如何{match['c']}？" if _ZH_ORDERS.match(match["m"]) else "",
        ),
        Form(
            f"{_ZH_SUBJECT}由(?P<r>.{{2,}})(?P<e>组成|构成)",
            lambda match: f"{match['s']}由什么{match['e']}？",
        ),
        Form(
            "为了(?P<c>[^，；：起]{4,40})，(?P<m>.+)",
            lambda match: f"为了{match['c']}，做了什么或需要做什么？",
        ),
        Form(
            f"{_ZH_SUBJECT}(?P<v>是)(?P<r>一[个种款项套类份组](?!.*(?:决定|问题|例子|选择|步骤|原因|办法)$).+)",
            lambda match: f"{match['s']}是什么？",
        ),
        Form(f"{_ZH_SUBJECT}位于(?P<r>.+)", lambda match: f"{match['s']}位于哪里？"),
        Form(
            f"{_ZH_SUBJECT}(?P<v>{_ZH_VERBS}){_ZH_OBJECT}",
            lambda match: f"{match['s']}{match['v']}什么？",
        ),
    ),
}

_GENERAL_FORMS = write_general_forms(
    {
        "de": Subjects(_DE_SUBJECT, _german),
        "fr": Subjects(_FR_SUBJECT, _french),
        "es": Subjects(_ES_SUBJECT, _spanish),
        "zh": Subjects(_ZH_SUBJECT, str),
    }
)
TEMPLATE_LANGUAGES = frozenset(_FORMS)
"""ISO 639-1 codes of the languages with forms."""


def write_template_questions(statement: str, language: str, passage: str = "") -> list[str]:
    """Return the questions that a statement answers by its form; empty if it fits none.

    Args:
        statement: One sentence.
        language: ISO 639-1 code of its language; one without forms yields nothing.
        passage: Its context.
    """
    if language == "en":
        return write_english_questions(statement, passage)
    line = collapse_whitespace(statement)
    if not line.isprintable() or line[-1:] not in {".", "。"}:
        return []
    bare = line[:-1].rstrip()
    forms = (*_GENERAL_FORMS.get(language, ()), *_FORMS.get(language, ()))
    for text in dict.fromkeys((bare, strip_asides(bare, language))):
        if question := _ask(text, forms, language, passage):
            return [question]
    return []


def _ask(line: str, forms: tuple[Form, ...], language: str, passage: str) -> str:
    """Return the question of the first form that fits a statement; empty if none does."""
    for form in forms:
        match = form.pattern.match(line)
        if match is None:
            continue
        slots = match.groupdict()
        slot = slots.get("c") or slots.get("s") or ""
        is_subject = "s" not in slots or _is_subject(slot, language, passage)
        is_subject = is_subject and are_balanced(slot) and not _NEGATED.match(slots.get("r") or "")
        is_subject = is_subject and slot.rsplit(" ", 1)[-1] not in _UNFINISHED
        is_subject = is_subject and not refers_back(slots.get("n") or "", language)
        is_defined = (slots.get("v") or "") in _BEING or "p" in slots
        is_subject = is_subject and (is_defined or _BARE.match(slots.get("s") or "") is None)
        is_sized = is_subject and (1 if language == "zh" else _MIN_SLOT) < len(slot) <= _MAX_SLOT
        question = form.write(match) if is_sized and not refers_back(slot, language) else ""
        if question:
            return question
    return ""


def _is_subject(phrase: str, language: str, passage: str) -> bool:
    """Return whether the first words of a statement are a noun phrase, not an adverb.

    A word without an article is one if it has a capital elsewhere than at a sentence's start.
    """
    first, _, rest = phrase.partition(" ")
    is_name = language in {"fr", "es"} and rest[:1].isupper()
    if language == "zh" or is_name or _LOWER[language].match(phrase):
        return True
    is_name = not first.isalpha() or not first[1:].islower()
    return is_name or re.search(rf"[^\W\d_,;)] {re.escape(first)}\b", passage) is not None


_NEGATED = re.compile(r"(?:nicht|nie|niemals|kein\w*|pas|nada|ningun[oa]?)\b")  # what is denied
_BARE = re.compile(
    r"^(?:(?:Einige|Mehrere|Viele|Manche|Des|Algun[oa]s)\b|"
    r"Eine? (?:[a-zäöüß]+ )?[A-ZÄÖÜ][a-zäöüß]+$|"
    r"(?:Une?|Una|Deux|Dos) \S+$|一[个种台类份项][^的“A-Za-z]{1,8}$|一些|许多)"
)
"""Subjects without a trait: "a method", of which only a definition can be asked."""

_BEING = word_set("ist sind war waren est sont était étaient es son era fue 是")

_UNFINISHED = word_set("de del las los la el y ya no des du les le et à ne der die das und")
