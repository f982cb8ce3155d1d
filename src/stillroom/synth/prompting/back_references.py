"""Words of a German, French, Spanish or Chinese text that need the sentence before it, or its page.

Own method: lists of pronouns, demonstratives, ordinals and names of parts of a page.
"""

from __future__ import annotations

import re

__all__ = ["refers_back"]

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
