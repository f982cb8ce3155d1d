"""Wording of refusals, in the language of the question.

Questions in other languages than those of ``_WORDINGS`` are refused in English, as are those whose
language is unsure. Codes (``refusal`` in an answer's details) are the same in all languages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from stillroom.rag.generation.prompt import ABSTENTION
from stillroom.text.language import select_language

__all__ = [
    "ABSTENTIONS",
    "REFUSAL",
    "AbstentionTranslator",
    "RefusalWording",
    "detect_refusal_language",
    "get_refusal_wording",
    "is_abstention",
    "is_declined",
]


REFUSAL = "No passage found answers this."
"""Our own refusal: passages that were not found may answer."""


@dataclass(frozen=True, slots=True)
class RefusalWording:
    """Sentences of refusals in one language.

    ``nearest`` is of one passage, ``nearest_two`` of two, and ``nearest_quotes`` stands above
    sentences that may answer; ``reasons`` are by code, that of ``""``
    for all other codes; ``language_notice`` names the languages of the question and the passages;
    ``read_as`` names what a question was read as, and ``follow_up`` the question that a follow-up
    was read with, before its answer or refusal.
    """

    abstention: str
    refusal: str
    nothing_asked: str
    nearest: str
    nearest_two: str
    nearest_quotes: str
    language_notice: str
    follow_up: str
    read_as: str
    reasons: Mapping[str, str]

    def open_refusal(self, code: str) -> str:
        """Return the sentence that refuses, by the code of its reason."""
        return self.nothing_asked if code == "no-question" else self.refusal

    def describe_nearest(self, numbers: Sequence[int]) -> str:
        """Return the sentence that names the nearest passages; empty if there are none."""
        if not numbers:
            return ""
        form = self.nearest if len(numbers) == 1 else self.nearest_two
        return form.format(*(f"[{number}]" for number in numbers))

    def describe_reason(self, code: str) -> str:
        """Return why there is no answer, and what to do."""
        return self.reasons.get(code, self.reasons[""])


_ENGLISH = RefusalWording(
    abstention=ABSTENTION,
    refusal=REFUSAL,
    nothing_asked="This asks nothing that can be looked up.",
    nearest="The nearest passage, {}, does not support an answer.",
    nearest_two="The nearest passages, {} and {}, do not support an answer.",
    nearest_quotes="The nearest sentences, perhaps about something else:",
    language_notice="the question is in another language ({}) than the passages found ({}): "
    "ask in theirs",
    follow_up="(Read as a follow-up to “{}”. If it is none, ask a whole question.)",
    read_as="(Read as “{}”.)",
    reasons={
        "model": "the model found no answer in the passages",
        "no-question": "no word of the question says what it is about: ask a whole question",
        "nothing-found": "no passage was found",
        "no-answer": "no sentence of the passages answers the question with enough probability: "
        "look at the nearest passages, or ask in their words",
        "judged-absent": "the documents hold no answer, as a person judged",
        "empty": "the model returned no text",
        "restated": "the model only repeated the question",
        "": "no passage supports an answer",
    },
)
_WORDINGS = {
    "en": _ENGLISH,
    "de": RefusalWording(
        abstention="Die Dokumente beantworten das nicht.",
        refusal="Keine gefundene Textstelle beantwortet das.",
        nothing_asked="Das fragt nach nichts, was sich nachschlagen lässt.",
        nearest="Die nächstliegende Textstelle, {}, stützt keine Antwort.",
        nearest_two="Die nächstliegenden Textstellen, {} und {}, stützen keine Antwort.",
        nearest_quotes="Die nächstliegenden Sätze, vielleicht zu etwas anderem:",
        language_notice="die Frage ist in einer anderen Sprache ({}) als die gefundenen "
        "Textstellen ({}): bitte in deren Sprache fragen",
        follow_up="(Gelesen als Folgefrage zu „{}“. Ist es keine, bitte eine ganze Frage stellen.)",
        read_as="(Gelesen als „{}“.)",
        reasons={
            "model": "das Modell hat in den Textstellen keine Antwort gefunden",
            "no-question": "kein Wort der Frage sagt, worum es geht: bitte eine ganze Frage "
            "stellen",
            "nothing-found": "es wurde keine Textstelle gefunden",
            "no-answer": "kein Satz der Textstellen beantwortet die Frage mit genügender "
            "Wahrscheinlichkeit: bitte in den nächstliegenden nachsehen oder mit deren Worten "
            "fragen",
            "judged-absent": "die Dokumente enthalten nach dem Urteil einer Person keine Antwort",
            "empty": "das Modell hat keinen Text geliefert",
            "restated": "das Modell hat nur die Frage wiederholt",
            "": "keine Textstelle stützt eine Antwort",
        },
    ),
    "fr": RefusalWording(
        abstention="Les documents ne répondent pas à cette question.",
        refusal="Aucun passage trouvé ne répond à cette question.",
        nothing_asked="Cela ne demande rien que l'on puisse chercher.",
        nearest="Le passage le plus proche, {}, ne permet pas de répondre.",
        nearest_two="Les passages les plus proches, {} et {}, ne permettent pas de répondre.",
        nearest_quotes="Les phrases les plus proches, peut-être sur un autre sujet :",
        language_notice="la question est dans une autre langue ({}) que les passages trouvés "
        "({}) : posez-la dans la leur",
        follow_up="(Lu comme la suite de « {} ». Sinon, posez une question entière.)",
        read_as="(Lu comme « {} ».)",
        reasons={
            "model": "le modèle n'a pas trouvé de réponse dans les passages",
            "no-question": "aucun mot de la question ne dit de quoi il s'agit : posez une question "
            "entière",
            "nothing-found": "aucun passage n'a été trouvé",
            "no-answer": "aucune phrase des passages ne répond à la question avec une probabilité "
            "suffisante : consultez les passages les plus proches, ou reprenez leurs mots",
            "judged-absent": "selon le jugement d'une personne, les documents ne contiennent pas "
            "de réponse",
            "empty": "le modèle n'a renvoyé aucun texte",
            "restated": "le modèle n'a fait que répéter la question",
            "": "aucun passage ne permet de répondre",
        },
    ),
    "es": RefusalWording(
        abstention="Los documentos no responden a esta pregunta.",
        refusal="Ningún pasaje encontrado responde a esta pregunta.",
        nothing_asked="Esto no pregunta nada que se pueda buscar.",
        nearest="El pasaje más cercano, {}, no permite responder.",
        nearest_two="Los pasajes más cercanos, {} y {}, no permiten responder.",
        nearest_quotes="Las frases más cercanas, quizá sobre otra cosa:",
        language_notice="la pregunta está en otro idioma ({}) que los pasajes encontrados ({}): "
        "pregunte en el de ellos",
        follow_up="(Leído como continuación de «{}». Si no lo es, haga una pregunta completa.)",
        read_as="(Leído como «{}».)",
        reasons={
            "model": "el modelo no encontró una respuesta en los pasajes",
            "no-question": "ninguna palabra de la pregunta dice de qué se trata: haga una pregunta "
            "completa",
            "nothing-found": "no se encontró ningún pasaje",
            "no-answer": "ninguna frase de los pasajes responde a la pregunta con suficiente "
            "probabilidad: consulte los pasajes más cercanos, o pregunte con sus palabras",
            "judged-absent": "según el juicio de una persona, los documentos no contienen una "
            "respuesta",
            "empty": "el modelo no devolvió ningún texto",
            "restated": "el modelo solo repitió la pregunta",
            "": "ningún pasaje permite responder",
        },
    ),
}
ABSTENTIONS = frozenset(wording.abstention for wording in _WORDINGS.values())
"""``ABSTENTION`` in every language."""
_OPENINGS = tuple(
    opening.rstrip(".")
    for wording in _WORDINGS.values()
    for opening in (wording.abstention, wording.refusal, wording.nothing_asked)
)


def detect_refusal_language(question: str) -> str:
    """Return the language of a question that is refused in it; empty if in English."""
    code = select_language(question, _WORDINGS)
    return "" if code == "en" else code


def get_refusal_wording(question: str) -> RefusalWording:
    """Return the wording in the language of a question; in English if there is none or unsure.

    The first call loads the language identifier: 0.5 CPU s and 100 MB.
    """
    return _WORDINGS[select_language(question, _WORDINGS)]


def is_abstention(text: str) -> bool:
    """Return whether a text is ``ABSTENTION`` alone, in any language."""
    return " ".join(text.split()).rstrip(".") + "." in ABSTENTIONS


def is_declined(text: str) -> bool:
    """Return whether an answer begins with a refusal, of a model or of ours, in any language."""
    return " ".join(text.split()).startswith(_OPENINGS)


class AbstentionTranslator:
    """Translates ``ABSTENTION`` in a stream, if a model writes nothing else."""

    def __init__(self, question: str) -> None:
        """Translate into the language of ``question``."""
        self._question = question
        self._held = ""
        self._is_open = True

    @cached_property
    def wording(self) -> RefusalWording:
        """Wording in the language of the question, which most answers do not need."""
        return get_refusal_wording(self._question)

    def feed(self, text: str) -> str:
        """Return the text to be shown; nothing while all of it may be an abstention."""
        if not self._is_open:
            return text
        self._held += text
        if ABSTENTION.startswith(" ".join(self._held.split())):
            return ""
        self._is_open = False
        return self._held

    def finish(self) -> str:
        """Return what was held back, translated; in English as it was written."""
        held = self._held if self._is_open else ""
        is_translated = is_abstention(held) and self.wording is not _ENGLISH
        return self.wording.abstention if is_translated else held
