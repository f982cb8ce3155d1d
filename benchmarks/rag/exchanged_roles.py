"""How many sentences that exchange a verb's subject and object the support check lets pass.

Each passage comes with sentences that say the same in another order or voice, and with sentences
of the same words that do not. The rule of ``rag.groundedness.roles`` was made while looking at
``SEEN``; ``HELD_OUT`` was written with it and not looked at.

    python benchmarks/rag/exchanged_roles.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stillroom.rag.analysis.analyzer import Analyzer
from stillroom.rag.groundedness.score import SourceTexts

SEEN = [
    (
        "Marie Curie discovered polonium in 1898. The committee praised Curie.",
        [
            "Polonium was discovered by Marie Curie in 1898.",
            "In 1898 Marie Curie discovered polonium.",
        ],
        [
            "Curie praised the committee.",
            "The committee was praised by no one but Curie praised the committee in 1898.",
        ],
    ),
    (
        "Brazil defeated Italy in the final of 1970.",
        [
            "Italy was defeated by Brazil in the final of 1970.",
            "In 1970 Brazil defeated Italy.",
        ],
        [
            "Italy defeated Brazil in the final of 1970.",
            "Brazil was defeated by Italy in the final.",
            "In the final of 1970, Italy defeated Brazil.",
        ],
    ),
    (
        "The server sends a token to the client after login.",
        [
            "A token is sent by the server to the client after login.",
            "After login the server sends a token to the client.",
        ],
        [
            "The client sends a token to the server after login.",
            "A token is sent by the client to the server.",
            "The token sends the server to the client.",
        ],
    ),
    (
        "Google acquired YouTube in 2006 for 1.65 billion dollars.",
        [
            "YouTube was acquired by Google in 2006.",
            "In 2006 Google acquired YouTube.",
        ],
        [
            "YouTube acquired Google in 2006.",
            "Google was acquired by YouTube in 2006 for 1.65 billion dollars.",
        ],
    ),
    (
        "Shakespeare influenced Goethe, who translated Voltaire.",
        [
            "Goethe translated Voltaire.",
            "Goethe was influenced by Shakespeare.",
        ],
        [
            "Goethe influenced Shakespeare.",
            "Voltaire translated Goethe.",
            "Goethe was translated by Voltaire.",
        ],
    ),
    (
        "The moon orbits the earth, and the earth orbits the sun.",
        [
            "The earth is orbited by the moon.",
            "The earth orbits the sun.",
        ],
        [
            "The sun orbits the earth.",
            "The earth orbits the moon.",
        ],
    ),
]

HELD_OUT = [
    (
        "The compiler calls the linker once all objects exist.",
        [
            "The linker is called by the compiler.",
            "Once all objects exist, the compiler calls the linker.",
        ],
        [
            "The linker calls the compiler once all objects exist.",
            "The compiler is called by the linker.",
        ],
    ),
    (
        "Rome conquered Carthage in 146 BC after three wars.",
        [
            "Carthage was conquered by Rome in 146 BC.",
            "After three wars, Rome conquered Carthage.",
        ],
        [
            "Carthage conquered Rome in 146 BC.",
            "Rome was conquered by Carthage after three wars.",
        ],
    ),
    (
        "The Senate rejected the bill that the House had passed.",
        [
            "The bill was rejected by the Senate.",
            "The House had passed the bill.",
        ],
        [
            "The House rejected the bill that the Senate had passed.",
            "The bill was rejected by the House.",
        ],
    ),
    (
        "Plato taught Aristotle, and Aristotle taught Alexander.",
        [
            "Aristotle was taught by Plato.",
            "Alexander was taught by Aristotle.",
        ],
        [
            "Aristotle taught Plato.",
            "Alexander taught Aristotle.",
            "Plato was taught by Aristotle.",
        ],
    ),
    (
        "The iterator yields values to the generator until it stops.",
        [
            "Values are yielded by the iterator.",
            "The iterator yields values to the generator.",
        ],
        [
            "The generator yields values to the iterator.",
            "The values yield the iterator to the generator.",
        ],
    ),
    (
        "In 1804 Napoleon appointed Talleyrand as chamberlain.",
        [
            "Talleyrand was appointed as chamberlain by Napoleon in 1804.",
            "Napoleon appointed Talleyrand in 1804.",
        ],
        [
            "Talleyrand appointed Napoleon as chamberlain in 1804.",
            "Napoleon was appointed as chamberlain by Talleyrand.",
        ],
    ),
    (
        "The subclass overrides the method of the base class.",
        [
            "The method of the base class is overridden by the subclass.",
        ],
        [
            "The base class overrides the method of the subclass.",
            "The method of the subclass is overridden by the base class.",
        ],
    ),
    (
        "Wolves hunt deer in winter, while bears eat berries.",
        [
            "Deer are hunted by wolves in winter.",
            "Bears eat berries.",
        ],
        [
            "Deer hunt wolves in winter.",
            "Wolves are hunted by deer.",
            "Berries eat bears.",
        ],
    ),
    (
        "The nurse accused the doctor of negligence.",
        [
            "The doctor was accused of negligence by the nurse.",
        ],
        [
            "The doctor accused the nurse of negligence.",
            "The nurse was accused by the doctor of negligence.",
        ],
    ),
    (
        "Nokia sold its phone division to Microsoft in 2014.",
        [
            "In 2014 Nokia sold its phone division to Microsoft.",
            "Nokia's phone division was sold to Microsoft.",
        ],
        [
            "Microsoft sold its phone division to Nokia in 2014.",
            "In 2014 its phone division was sold to Nokia by Microsoft.",
        ],
    ),
    (
        "The catalyst accelerates the reaction, which heats the vessel.",
        [
            "The reaction is accelerated by the catalyst.",
            "The reaction heats the vessel.",
        ],
        [
            "The reaction accelerates the catalyst.",
            "The vessel heats the reaction.",
        ],
    ),
    (
        "Darwin admired Lyell, whose book Wallace had read.",
        [
            "Lyell was admired by Darwin.",
            "Wallace had read the book.",
        ],
        [
            "Lyell admired Darwin.",
            "Darwin was admired by Lyell.",
        ],
    ),
]


class Even:
    """A lexicon in which all words are equally rare."""

    def idf(self, term: str) -> float:
        return 3.0


def check(passage: str, sentence: str, *, by_roles: bool) -> bool:
    """Return whether a passage supports a sentence, with or without the rule."""
    texts = SourceTexts([passage], Analyzer(), Even())
    if not by_roles:
        texts._reverses_roles = lambda *_: False
    return texts.measure(sentence, 1) >= texts.threshold


def main() -> None:
    for name, pairs in (("seen", SEEN), ("held out", HELD_OUT)):
        for kind, place in (("right", 1), ("wrong", 2)):
            said = [(pair[0], sentence) for pair in pairs for sentence in pair[place]]
            before, after = (sum(check(*one, by_roles=on) for one in said) for on in (False, True))
            print(f"{name}, {kind}: {len(said)}, supported {before}, by roles {after}")


if __name__ == "__main__":
    main()
