"""Sentence reader (extractive QA): a LoRA encoder scores sentences, short answers and no answer.

For each passage, the encoder reads question and passage together; a linear head over the mean state
of a sentence's tokens gives its logit, and one over ``[CLS]`` the logit that the passage holds no
answer. The sentences of all passages and the mean of the latter compete in one softmax. Heads for
the first and last token find a short answer within a sentence. To a sentence's logit the idf of the
words that it shares with the question and the logits of its short answer are added, and the rank of
its passage is subtracted, with weights that validation chose. From the logits of the best sentence,
of its short answer and of no answer, and from the cosine that the encoder without the updates gives
question and sentence, a logistic model gives the probability that the best sentence answers.

Source: Garg et al. 2020, "TANDA", arXiv:1911.04118 (transfer to answer sentence selection, AS2);
Clark and Gardner 2018, "Simple and Effective Multi-Paragraph Reading Comprehension",
arXiv:1710.10723 (one normalization over all passages). Differs: sentences are read within their
passage, and the encoder is a sentence embedder with low-rank updates (Hu et al. 2021,
arXiv:2106.09685).

The folder of a reader holds ``reader.json`` and ``reader.safetensors``; no torch is imported.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from filecmp import cmpfiles
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import CheckpointError, StillroomError
from stillroom.models.encoders.int8_layers import QUANTIZATION, can_quantize
from stillroom.models.hub import is_local, resolve_checkpoint
from stillroom.provenance import ARTIFACT_FILE, digest_json, read_artifact
from stillroom.provenance.digests import load_json
from stillroom.rag.answer_selection.adapted_bert import (
    adapt_base,
    digest_tensors,
    find_special_tokens,
    load_tensors,
    read_numbers,
)
from stillroom.rag.answer_selection.encoding import EncodedPassage, Span, encode_passages
from stillroom.rag.answer_selection.overlap import (
    OverlapReader,
    QuestionOverlap,
    Reading,
    ScoredSentence,
)
from stillroom.text.unicode import UNSPACED_SCRIPTS, normalize_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BUILTIN_READER",
    "FEATURES",
    "LARGE_READER",
    "MAX_READ_PASSAGES",
    "MULTILINGUAL_READER",
    "OVERLAP_READER",
    "PACKAGED_READERS",
    "READ_PASSAGES",
    "SMALL_READER",
    "SentenceReader",
    "choose_reader",
    "describe_reading",
    "find_reader",
    "is_foreign",
    "list_installed_readers",
    "open_available_reader",
    "open_reader",
    "weigh_sentence",
]

READ_PASSAGES, MAX_READ_PASSAGES = 5, 50
"""Passages that a reader is calibrated for unless its file says otherwise, and at most."""
BUILTIN_READER, OVERLAP_READER = "builtin:reader", "builtin:overlap"
LARGE_READER, MULTILINGUAL_READER = "builtin:reader-large", "builtin:reader-multilingual"
SMALL_READER = "builtin:reader-small"
PACKAGED_READERS = (BUILTIN_READER, LARGE_READER, MULTILINGUAL_READER)
"""Readers that answer where no other one is named."""
_BUILTIN_FOLDERS = {
    BUILTIN_READER: "builtin",
    SMALL_READER: "builtin",
    LARGE_READER: "builtin_large",
    MULTILINGUAL_READER: "builtin_multilingual",
}
_MAX_SHORT_TOKENS = 24
_LEAST_CHANCE = 1e-9
_CODE_LETTERS = 2
_LETTER = re.compile(rf"[^\W\d{UNSPACED_SCRIPTS}]")
# Words of scripts without spaces are not told apart.
_WORD = re.compile(rf"[^\W{UNSPACED_SCRIPTS}]+")
_NUMBER = re.compile(r"(?:(?<![\w)])[-+−])?\d+(?:[.,:]\d+)*(?:[eE][-+]?\d+)?")
_SCORE_WEIGHTS = ("overlap", "short", "rank")
FEATURES = ("margin", "short", "no_answer", "cosine", "rank", "intercept")
_HEADS = {"sentence": 1, "no_answer": 1, "ends": 2}
CONFIG_FILE, WEIGHTS_FILE = "reader.json", "reader.safetensors"


class SentenceReader:
    """Reader of passages; use ``open_reader``."""

    def __init__(self, folder: Path) -> None:
        """Open a folder.

        Raises:
            CheckpointError: If the folder holds no reader, or its base model cannot be opened.
        """
        try:
            self.config: dict[str, Any] = load_json((folder / CONFIG_FILE).read_bytes())
            tensors = load_tensors(folder / WEIGHTS_FILE)
            self._adopt(folder, tensors)
        except CheckpointError:  # of the base: it tells what to install
            raise
        except (OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
            raise CheckpointError(
                f"{folder} holds no sentence reader: {error!r}",
                code="checkpoint.not-a-reader",
                expected=f"{CONFIG_FILE} and {WEIGHTS_FILE} of a job of kind rag.reader",
                next="train one: stillroom new rag.reader",
            ) from error

    def _adopt(self, folder: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._base, self._encoder, held = adapt_base(
            folder, self.config, tensors, _HEADS, may_round=True
        )
        self.precision = "int8" if self._encoder.is_quantized else "float32"
        self._sentence, self._none = held["sentence.weight"][0], held["no_answer.weight"][0]
        self._sentence_bias = float(held["sentence.bias"][0])
        self._none_bias = float(held["no_answer.bias"][0])
        self._ends, self._ends_bias = held["ends.weight"], held["ends.bias"]
        self._shared = held["shared"]
        self._weights = read_numbers(self.config["weights"], _SCORE_WEIGHTS)
        calibration = {"rank": 0.0, **self.config["calibration"]}  # of readers from before it
        self._calibration = read_numbers(calibration, FEATURES)
        if not 0 <= read_numbers(self.config, ("threshold",))["threshold"] <= 1:
            raise ValueError(f"the threshold {self.threshold} is not a probability")
        if not 1 <= self.passages <= MAX_READ_PASSAGES:
            raise ValueError(f"{self.passages} passages cannot be read")
        rounding = [QUANTIZATION] if self._encoder.is_quantized else []
        self.fingerprint = digest_json([self.config, digest_tensors(tensors), *rounding])

    @property
    def passages(self) -> int:
        """Number of passages that it is calibrated for."""
        return int(self.config.get("passages", READ_PASSAGES))

    @property
    def threshold(self) -> float:
        """Probability below which the reader's own default gives no answer."""
        return float(self.config["threshold"])

    def read(
        self,
        question: str,
        passages: Sequence[tuple[str, str, Sequence[Span]]],
        overlap: QuestionOverlap,
    ) -> Reading:
        """Score the sentences of passages as answers to a question."""
        tokenizer, weights = self._encoder.tokenizer, self._weights
        sentences: list[ScoredSentence] = []
        none_logits: list[float] = []
        windows = encode_passages(
            tokenizer,
            question,
            passages,
            special=find_special_tokens(tokenizer),
            max_tokens=self._encoder.max_positions,
        )
        # Threads divide the passages of an encoder in 8-bit integers; others have a lock.
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            encoded = list(pool.map(self._encode, windows))
        for window, (states, ends) in zip(windows, encoded, strict=True):
            none_logits.append(float(states[0] @ self._none) + self._none_bias)
            for (start, end), (first, last) in zip(window.sentences, window.tokens, strict=True):
                if last > first:
                    logit = float(states[first:last].mean(axis=0) @ self._sentence)
                    logit += self._sentence_bias
                    text = passages[window.passage][1]
                    shared = overlap(text[start:end])
                    span, value = _find_short(window, ends, first, last)
                    score = logit + weights["overlap"] * shared + weights["short"] * value
                    score -= weights["rank"] * window.passage
                    short = _find_whole_words(text, span, (start, end))
                    sentences.append(
                        ScoredSentence(
                            window.passage, start, end, logit, shared, score, short, value
                        )
                    )
        sentences.sort(key=lambda sentence: (-sentence.score, sentence.passage, sentence.start))
        no_answer = float(np.mean(none_logits)) if none_logits else 0.0
        if not sentences:
            return Reading((), no_answer, 0.0)
        probability = self.rate(question, passages, sentences, no_answer, overlap)
        return Reading(tuple(sentences), no_answer, probability)

    def rate(
        self,
        question: str,
        passages: Sequence[tuple[str, str, Sequence[Span]]],
        sentences: Sequence[ScoredSentence],
        no_answer: float,
        overlap: QuestionOverlap,
    ) -> float:
        """Return the probability that the first of some sentences that were read answers."""
        best = sentences[0]
        cosine = self.compare(question, passages[best.passage][1][best.start : best.end])
        features = describe_reading(sentences, no_answer, cosine)
        value = sum(self._calibration[name] * feature for name, feature in features.items())
        value += self._calibration["intercept"]
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, value))))

    def _encode(self, window: EncodedPassage) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the states of a window, (T, D), and logits of first and last token, (T, 2)."""
        added = np.outer(np.array(window.shared, dtype=np.float32), self._shared)
        states = self._encoder.states(window.ids, window.segments, added)
        return states, states @ self._ends.T + self._ends_bias

    def compare(self, question: str, sentence: str) -> float:
        """Return the cosine of two texts' mean states, by the encoder without the updates."""
        first, second = (self._embed(text) for text in (question, sentence))
        return float(first @ second)

    def _embed(self, text: str) -> NDArray[np.float32]:
        ids = self._base.tokenizer(text, truncation=True, max_length=self._base.max_positions)
        vector: NDArray[np.float32] = self._base.states(ids["input_ids"]).mean(axis=0)
        return vector / np.linalg.norm(vector)


def describe_reading(
    sentences: Sequence[ScoredSentence], no_answer: float, cosine: float
) -> dict[str, float]:
    """Return what the probability of an answer is computed from, of sentences, best first.

    Returns:
        ``margin``: the best sentence's logit above that of no answer; ``short``: the logits of its
            short answer; ``no_answer``: that logit; ``cosine``: of question and sentence; ``rank``:
            mean rank, from 0, of the passages of the best three, as retrieved.
    """
    best, places = sentences[0], [sentence.passage for sentence in sentences[:3]]
    return {
        "margin": best.logit - no_answer,
        "short": best.short_logit,
        "no_answer": no_answer,
        "cosine": cosine,
        "rank": sum(places) / len(places),
    }


def weigh_sentence(
    reader: SentenceReader | OverlapReader,
    question: str,
    passages: Sequence[tuple[str, str, Sequence[Span]]],
    reading: Reading,
    overlap: QuestionOverlap,
    sentence: ScoredSentence,
) -> tuple[float, float]:
    """Return the log-odds that a sentence of a reading answers: by the reader, by word overlap."""
    ranked = [sentence, *(other for other in reading.sentences if other != sentence)]
    chances = (
        one.rate(question, passages, ranked, reading.no_answer, overlap)
        for one in (reader, OverlapReader())
    )
    own, shared = (min(max(chance, _LEAST_CHANCE), 1 - _LEAST_CHANCE) for chance in chances)
    return math.log(own / (1 - own)), math.log(shared / (1 - shared))


def _find_short(
    window: EncodedPassage, ends: NDArray[np.float32], first: int, last: int
) -> tuple[Span, float]:
    """Return the most probable answer within a sentence, perhaps all of it, and its logits."""
    sums = _sum_ends(ends[first:last])
    begin, stop = divmod(int(sums.argmax()), last - first)
    span = (window.offsets[first + begin][0], window.offsets[first + stop][1])
    return span, float(sums[begin, stop])


def _find_whole_words(text: str, span: Span, sentence: Span) -> Span | None:
    """Return the span of a short answer without a quotation mark that only one end has.

    None if it has no word, is the whole sentence or one letter, or begins or ends inside a word, a
    number or brackets.
    """
    start, end = span
    if text[start:end].count('"') % 2:
        start += text.startswith('"', start, end)
        end -= text.endswith('"', start, end)
    short = text[start:end]
    words = normalize_text(short)
    if words in {"", normalize_text(text[slice(*sentence)])} or _LETTER.fullmatch(words):
        return None
    is_open = any(short.count(left) != short.count(right) for left, right in ("()", "[]", "{}"))
    is_open |= short.startswith("<") and ">" not in short
    is_open |= short.endswith(">") and "<" not in short
    is_cut = any(
        part.start() < edge < part.end()
        for pattern in (_WORD, _NUMBER)
        for part in pattern.finditer(text, *sentence)
        for edge in (start, end)
    )
    return None if is_open or is_cut else (start, end)


def _sum_ends(ends: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the summed logits of each answer from token i to token j, (T, T)."""
    sums: NDArray[np.float32] = ends[:, 0][:, None] + ends[:, 1][None, :]
    length = np.arange(len(ends))
    distance = length[None, :] - length[:, None]
    sums[(distance < 0) | (distance >= _MAX_SHORT_TOKENS)] = -np.inf
    return sums


_OPEN_LOCK = threading.Lock()


def open_reader(reference: str) -> SentenceReader | OverlapReader:
    """Return the reader of a reference; the last four stay open, each opened by one thread.

    Args:
        reference: Folder or artifact of a reader; ``builtin:reader-small`` (or
            ``builtin:reader``), ``-large`` or ``-multilingual`` for a packaged one, or
            ``builtin:overlap`` for word overlap without a model.

    Raises:
        CheckpointError: If there is none, or its base is neither cached nor installed.
    """
    with _OPEN_LOCK:
        return _open_cached(reference)


@lru_cache(maxsize=4)
def _open_cached(reference: str) -> SentenceReader | OverlapReader:
    if reference == OVERLAP_READER:
        return OverlapReader()
    return SentenceReader(find_reader(reference))


def open_available_reader(
    reference: str, languages: Iterable[str] = ()
) -> tuple[SentenceReader | OverlapReader, str]:
    """Return the reader for documents, and a warning if it is not the one that suits them best.

    That is the one of ``choose_reader``; where the base of ``builtin:reader`` is missing, word
    overlap.

    Args:
        reference: As for ``open_reader``.
        languages: Languages of the documents to be read, as ISO 639-1 codes; empty where unknown.

    Raises:
        CheckpointError: If there is no such reader, and it is not the packaged one.
    """
    chosen, warning = choose_reader(reference, languages)
    try:
        return open_reader(chosen), warning
    except CheckpointError as error:
        if chosen != BUILTIN_READER:
            raise
        return OverlapReader(), (
            "sentences are selected by word overlap only, since "
            f"{BUILTIN_READER} cannot be opened ({error.code})"
        )


def choose_reader(reference: str, languages: Iterable[str]) -> tuple[str, str]:
    """Return the reader for documents in such languages, and a warning if it cannot be opened.

    In place of ``builtin:reader``, and of a training that kept it unchanged (not of one that
    started from ``builtin:reader-small``), that is
    ``builtin:reader-multilingual`` for documents of which most are not in English, and for others
    ``builtin:reader-large`` where its base is on this machine and onnxruntime is installed.

    Args:
        reference: As for ``open_reader``.
        languages: Languages of the documents; what is no ISO 639-1 code counts as unknown.

    Raises:
        CheckpointError: If the reference leads nowhere.
    """
    if not _is_packaged(reference):
        return reference, ""
    known = _select_known(languages)
    if not is_foreign(known):
        return _prefer_large(reference)
    try:
        open_reader(MULTILINGUAL_READER)
    except CheckpointError as error:
        foreign = ", ".join(sorted({*known} - {"en"}))
        return reference, (
            f"most documents to be read are in {foreign}, which {BUILTIN_READER} was not trained "
            f"on; {MULTILINGUAL_READER} cannot be opened: {error.problems[0].next}"
        )
    return MULTILINGUAL_READER, ""


def is_foreign(languages: Iterable[str]) -> bool:
    """Return whether most of the languages that are known are not English."""
    known = _select_known(languages)
    return 2 * known.count("en") < len(known)


def _select_known(languages: Iterable[str]) -> list[str]:
    return [language for language in languages if len(language) == _CODE_LETTERS]


def _prefer_large(reference: str) -> tuple[str, str]:
    """Return the large reader if it can be opened here, and a warning if it is here but broken."""
    if not _has_large_reader():
        return reference, ""
    try:
        open_reader(LARGE_READER)
    except StillroomError as error:  # of the base, or of onnxruntime
        return reference, (
            f"{LARGE_READER} is installed but cannot be opened ({error.code}), so the small reader "
            f"answers; --answering quote:reader={LARGE_READER} says more"
        )
    return LARGE_READER, ""


def _is_packaged(reference: str) -> bool:
    """Return whether a reader is ``builtin:reader``, perhaps as a training kept it unchanged."""
    if reference == OVERLAP_READER or reference in _BUILTIN_FOLDERS:
        return reference == BUILTIN_READER
    files = [CONFIG_FILE, WEIGHTS_FILE]
    own, packaged = map(find_reader, (reference, BUILTIN_READER))
    is_same = cmpfiles(own, packaged, files, shallow=False)[0] == files
    return is_same and SMALL_READER not in _list_starts(Path(reference))


def _list_starts(folder: Path) -> Iterator[str]:
    """Yield the readers that a reader was trained from, the nearest first, as recorded."""
    seen: set[Path] = set()
    while folder.resolve() not in seen:
        seen.add(folder.resolve())
        places = [place for place in (folder, folder.parent) if (place / ARTIFACT_FILE).is_file()]
        parents = read_artifact(places[0]).parents if places else ()
        start = next((parent.path for parent in parents if parent.role == "start"), "")
        if not start:
            return
        yield start
        folder = places[0] / start


@cache
def _has_large_reader() -> bool:
    """Return whether the large reader's base is on this machine, to be read in 8-bit integers."""
    return can_quantize() and LARGE_READER in _BUILTIN_FOLDERS and _has_base(LARGE_READER)


def _has_base(reference: str) -> bool:
    config = load_json((find_reader(reference) / CONFIG_FILE).read_bytes())
    return is_local(str(config["base"]))


def list_installed_readers() -> list[str]:
    """Return the packaged readers whose base is here; they decide which one ``builtin:reader`` is.

    Nothing is opened or downloaded.
    """
    return [
        name
        for name in PACKAGED_READERS
        if (_has_large_reader() if name == LARGE_READER else _has_base(name))
    ]


def find_reader(reference: str) -> Path:
    """Return the folder of a reader.

    Raises:
        CheckpointError: If the reference leads nowhere.
    """
    if reference in _BUILTIN_FOLDERS:
        return Path(__file__).parent / _BUILTIN_FOLDERS[reference]
    folder = resolve_checkpoint(reference, builtin=(*_BUILTIN_FOLDERS, OVERLAP_READER))
    return folder / "output" if (folder / "output" / CONFIG_FILE).is_file() else folder
