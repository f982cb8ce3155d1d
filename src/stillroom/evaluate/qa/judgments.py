"""Human feedback (judgments, ratings) on answers, stored as question sets beside a run or index.

The folder ``NAME.judgments`` stands next to ``NAME``, which may be made anew. ``train.jsonl`` and
``test.jsonl`` hold one judgment a line, as ``read_question_set`` reads them; the side is chosen by
the digest of the question's words, so that a question never changes sides and the same question is
never on both. ``answers.jsonl`` holds the last answers of the command line, which a judgment names
by their ids.

Lines are appended under a lock and are on disk when the call returns. A line that a kill has cut
off is no judgment: it was never confirmed, is not read, and is removed by the next writer.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from stillroom.errors import DataError, ResourceError
from stillroom.jobs.files import lock_folder, sync_folder
from stillroom.objects.disk import atomic_write, full_disk_as_error
from stillroom.provenance import ARTIFACT_FILE, digest_json, digest_text
from stillroom.provenance.digests import load_json
from stillroom.records import Origin
from stillroom.text.unicode import fold_case, normalize_text

__all__ = [
    "JUDGMENTS_ROLE",
    "JUDGMENTS_SUFFIX",
    "AskedAnswer",
    "Judgment",
    "JudgmentSide",
    "JudgmentStore",
    "Verdict",
    "are_judgments",
    "drop_torn_line",
    "find_judgments",
    "make_moment",
    "merge_judgments",
]

Verdict = Literal["right", "wrong", "quote", "absent"]
"""The answer is right; it is wrong; this text answers; the documents do not hold an answer."""
JudgmentSide = Literal["train", "test"]
JUDGMENTS_SUFFIX = ".judgments"
"""End of the name of a folder of judgments."""
JUDGMENTS_ROLE = "judgments"
"""Role, among the inputs of a job, of question sets that hold judgments."""
_SIDES: tuple[JudgmentSide, ...] = ("train", "test")
_TEST_OF = 5  # one question in five is for tests
_ANSWERS_FILE = "answers.jsonl"
_MAX_ANSWERS = 20
_ID_DIGITS = 10
_SPACE = re.compile(r"\s+")
_PAUSE = re.compile(r"[,;]+(?=\s)")
_END = re.compile(r"\s*[.?？。]$")
_TEXTS = ("text", "quote", "document_id", "passage", "file")
_PLACES = ("start", "end", "answer_start", "short_start")
_KINDS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(_TEXTS, str),
    **dict.fromkeys(_PLACES, int),
}
_QuestionKey = tuple[str, ...]
RowT = TypeVar("RowT", "AskedAnswer", "Judgment")


@dataclass(frozen=True, slots=True)
class AskedAnswer:
    """An answer that can be judged.

    Args:
        question: Question.
        text: Text of the answer, with citation marks.
        citations: Ids of the cited passages by their numbers in the text.
        index: Digest of the index's state.
        reader: Fingerprint of the reader or model that answered; empty if unknown.
        tenant: Tenant who asked; empty for an index without tenants.
        principals: Principals who asked, sorted.
        time: Time of the answer, ISO 8601 in UTC.
        quotes: Verbatim quotes of the text, in its order: ``text``, ``answer_start`` and, where
            the reader found a short answer, ``start``, ``short`` and ``short_start``.
    """

    question: str
    text: str
    citations: Mapping[int, str] = field(default_factory=dict)
    index: str = ""
    reader: str = ""
    tenant: str = ""
    principals: tuple[str, ...] = ()
    time: str = ""
    quotes: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Replace lone surrogates, which no file of UTF-8 holds."""
        for name in ("question", "text"):
            clean = getattr(self, name).encode("utf-8", "replace").decode("utf-8")
            object.__setattr__(self, name, clean)

    @property
    def id(self) -> str:
        """Short id: the same answer from the same documents to the same person has the same."""
        return digest_json([self.question, self.text, self.index, self.scope])[:_ID_DIGITS]

    @property
    def scope(self) -> tuple[str, ...]:
        """Tenant and principals, who alone see the answer and its judgments."""
        return (self.tenant, *self.principals)

    @property
    def words(self) -> str:
        """The question without case and punctuation, which decide its side."""
        return normalize_text(self.question) or self.question.strip()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        citations = [[number, name] for number, name in self.citations.items()]
        quotes = [dict(quote) for quote in self.quotes]
        return {"id": self.id, **asdict(self), "citations": citations, "quotes": quotes}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Parse the output of ``to_json``; fields of later versions are left out."""
        known = {field.name for field in fields(cls)}
        read = {key: value for key, value in data.items() if key in known}
        read["citations"] = {int(number): str(name) for number, name in data["citations"]}
        read["principals"] = tuple(data["principals"])
        read["quotes"] = tuple(_read_fields(one, "text") for one in data.get("quotes", ()))
        return cls(**read)


@dataclass(frozen=True, slots=True)
class Judgment:
    """A verdict on an answer, as a row of a question set.

    Args:
        verdict: Verdict.
        asked: The judged answer.
        answers: Accepted answers; empty if it is wrong or the documents hold none.
        evidence: Spans of documents that answer: ``document_id``, ``passage``, ``start``,
            ``end``, ``quote`` and ``file``.
        time: Time of the verdict, ISO 8601 in UTC.
        state: Digest of the state of the index that was judged by.
    """

    verdict: Verdict
    asked: AskedAnswer
    answers: tuple[str, ...] = ()
    evidence: tuple[Mapping[str, Any], ...] = ()
    time: str = ""
    state: str = ""

    @property
    def id(self) -> str:
        """Short id, of verdict and answer."""
        return digest_json([self.verdict, self.answers, self.asked.id])[:_ID_DIGITS]

    @property
    def question_key(self) -> tuple[str, ...]:
        """The question as ``find`` compares it, and who asked."""
        return (_fold_question(self.asked.question), *self.asked.scope)

    @property
    def side(self) -> JudgmentSide:
        """``test`` for one question in five by the digest of its words, else ``train``."""
        return "test" if int(digest_text(self.asked.words)[:8], 16) % _TEST_OF == 0 else "train"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, with the keys of a question set."""
        asked = self.asked.to_json()
        asked.pop("question")
        return {
            "id": self.id,
            "time": self.time,
            "verdict": self.verdict,
            "question": self.asked.question,
            "answers": list(self.answers),
            "evidence": [dict(part) for part in self.evidence],
            "state": self.state,
            "judged": {**asked, "digest": digest_text(self.asked.text)},
            "origin": Origin("human").to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Parse the output of ``to_json``.

        Raises:
            ValueError: If the verdict is unknown.
        """
        if data["verdict"] not in get_args(Verdict):
            raise ValueError(f"the verdict is {data['verdict']!r:.40}")
        asked = {key: value for key, value in data["judged"].items() if key != "digest"}
        return cls(
            data["verdict"],
            AskedAnswer.from_json({**asked, "question": data["question"]}),
            tuple(data["answers"]),
            tuple(_read_fields(part, "quote") for part in data["evidence"]),
            str(data["time"]),
            str(data.get("state", "")),
        )


class JudgmentStore:
    """Judgments and judgeable answers of one run or index."""

    def __init__(self, folder: Path) -> None:
        """Open a folder, which the first writer creates."""
        self.folder = folder
        self._parsed: dict[Path, tuple[tuple[int, ...], dict[_QuestionKey, list[Judgment]]]] = {}

    def path_of(self, side: JudgmentSide) -> Path:
        """Return the question set of a side."""
        return self.folder / f"{side}.jsonl"

    def add(self, judgment: Judgment) -> None:
        """Append a judgment to its side; it is on disk when this returns.

        Raises:
            ResourceError: If the folder cannot be written, or the disk is full.
        """
        with self._writing():
            _append_line(self.path_of(judgment.side), _encode(judgment.to_json()))

    def read(self) -> list[Judgment]:
        """Return the current judgments, oldest first: of each answer the last one.

        Raises:
            DataError: If a line is not a judgment.
        """
        rows = [("", row) for side in _SIDES for row in self._read(self.path_of(side), Judgment)]
        current = [judgment for _, judgment in _keep_last(rows)]
        return sorted(current, key=lambda judgment: judgment.time)

    def find(
        self, question: str, scope: tuple[str, ...], *, replaced: bool = False
    ) -> list[Judgment]:
        """Return the current judgments of the same question by who has the scope, oldest first.

        The same question has the same characters in the same order, but for case outside options
        such as -v, white space, commas and semicolons before white space, and one full stop or
        question mark at its end: any other may change what is asked, as in C and C++, or 5 and 5!.
        With ``replaced``, judgments that a later one replaced are returned, too. The files are
        parsed again only after they changed.

        Raises:
            DataError: If a line is not a judgment.
            OSError: If a file cannot be read.
        """
        key = (_fold_question(question), *scope)
        rows = [("", one) for side in _SIDES for one in self._group(side).get(key, ())]
        kept = rows if replaced else _keep_last(rows)
        return sorted((one for _, one in kept), key=lambda judgment: judgment.time)

    def _group(self, side: JudgmentSide) -> dict[_QuestionKey, list[Judgment]]:
        """Return the judgments of a side by question and scope."""
        path = self.path_of(side)
        if not path.exists():
            return {}
        state = path.stat()
        signature = (state.st_ino, state.st_size, state.st_mtime_ns)
        known, groups = self._parsed.get(path, ((), {}))
        if known != signature:
            groups = {}
            for one in self._read(path, Judgment):
                groups.setdefault(one.question_key, []).append(one)
            self._parsed[path] = signature, groups
        return groups

    def keep_answer(self, answer: AskedAnswer) -> None:
        """Store an answer so that it can be judged; the last 20 are kept.

        A damaged file of answers is begun anew: it holds nothing that was judged.

        Raises:
            ResourceError: If the folder cannot be written, or the disk is full.
        """
        with self._writing():
            path = self.folder / _ANSWERS_FILE
            try:
                kept = [one for one in self._read(path, AskedAnswer) if one.id != answer.id]
            except DataError:
                kept = []
            rows = [one.to_json() for one in [*kept, answer][-_MAX_ANSWERS:]]
            self._rewrite(path, map(_encode, rows))

    def find_answer(self, name: str, scope: tuple[str, ...]) -> AskedAnswer:
        """Return a stored answer by its id, or the last one for an empty name.

        ``scope`` is that of the answers that may be seen; ``name`` may be the first characters of
        an id.

        Raises:
            DataError: If no such answer is stored.
        """
        answers = self._read(self.folder / _ANSWERS_FILE, AskedAnswer)
        seen = [answer for answer in answers if answer.scope == scope]
        for answer in reversed(seen):
            if answer.id.startswith(name):
                return answer
        listed = ", ".join(answer.id for answer in reversed(seen[-5:]))
        raise DataError(
            f"there is no answer {name!r:.40} to judge" if name else "there is no answer to judge",
            code="judge.no-answer",
            where=str(self.folder),
            expected=f"one of: {listed}" if listed else "an answer of `stillroom ask`",
            next=f"the last {_MAX_ANSWERS} answers are kept: ask the question again",
        )

    def delete(self, name: str, scope: tuple[str, ...]) -> int:
        """Delete everything stored about the question of a judgment or an answer.

        ``name`` is the id of a judgment or an answer; ``scope`` is that of those that may be seen.

        Returns:
            Number of deleted judgments and answers.

        Raises:
            DataError: If neither has the id.
            ResourceError: If the folder cannot be written, or the disk is full.
        """
        paths = [*(self.path_of(side) for side in _SIDES), self.folder / _ANSWERS_FILE]
        with self._writing():
            lines = {path: _read_lines(path) for path in paths}
            every = [row for rows in lines.values() for _, row in rows if row is not None]
            found = {key for row in every for key in [_key_of(row)] if name in _ids_of(row)}
            found = {key for key in found if key[1:] == scope}
            if not found:
                raise DataError(
                    f"there is no judgment or answer {name!r:.40}",
                    code="judge.no-answer",
                    where=str(self.folder),
                    expected="an id that `stillroom judge RUN --list` shows",
                    next="stillroom judge RUN --list",
                )
            count = 0
            for path, rows in lines.items():
                kept = [line for line, row in rows if row is None or _key_of(row) not in found]
                count += len(rows) - len(kept)
                if path.exists():  # also without a gone row: the torn last line goes, too
                    self._rewrite(path, kept)
            return count

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Create the folder, readable by its owner alone, and hold its lock during the body.

        Raises:
            ResourceError: If it cannot be written, or the disk is full.
        """
        busy = ResourceError(
            f"{self.folder} is being written",
            code="resource.busy",
            where=str(self.folder),
            expected="one writer at a time",
            next="try again",
        )
        try:
            with full_disk_as_error(self.folder):
                self.folder.mkdir(mode=0o700, exist_ok=True)
                with lock_folder(self.folder, busy, wait=True):
                    yield
        except OSError as error:
            raise ResourceError(
                f"judgments cannot be stored: {error.strerror or error}",
                code="judge.unwritable",
                where=str(self.folder),
                expected="a folder next to the run or index that this user may write",
                next="check its permissions",
            ) from error

    def _rewrite(self, path: Path, lines: Iterable[bytes]) -> None:
        with atomic_write(path, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.writelines(lines)

    def _read(self, path: Path, kind: type[RowT]) -> list[RowT]:
        """Return the rows of a file; none if it does not exist."""
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except UnicodeDecodeError as error:
            raise _row_error(str(path), error) from error
        rows = []
        for number, line in enumerate(drop_torn_line(text).split("\n"), 1):
            if not line.strip():
                continue
            try:
                rows.append(kind.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise _row_error(f"{path}:{number}", error) from error
        return rows


def find_judgments(path: Path) -> JudgmentStore:
    """Return the store of a run or index; the index of a run has the run's."""
    folder = path.resolve()
    run = folder.parent.parent
    if folder.parent.name == "steps" and (run / ARTIFACT_FILE).is_file():
        folder = run
    return JudgmentStore(folder.with_name(f"{folder.name}{JUDGMENTS_SUFFIX}"))


def make_moment() -> str:
    """Return the time now, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def are_judgments(text: str) -> bool:
    """Return whether the first line of a file is a judgment."""
    first = text.lstrip().partition("\n")[0]
    try:
        row = load_json(first)
    except ValueError:
        return False
    return isinstance(row, dict) and {"verdict", "judged"} <= row.keys()


def drop_torn_line(text: str) -> str:
    """Return a file's text without a last line that a kill has cut off."""
    whole, newline, last = text.rpartition("\n")
    return text if not last or _is_json(last) else whole + newline


def merge_judgments(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield one row of a question set for each judged question, with its place in the file.

    Of each answer the last verdict counts. Right answers and quotes add up if they were judged by
    the same state of the documents as the last one: what an older state holds may no longer be
    true. The last of them and ``absent`` decides whether the question has an answer. A question of
    which only wrong answers are known is no row: what answers it is unknown.

    Raises:
        DataError: If a row is not a judgment.
    """
    judgments = []
    for place, row in rows:
        try:
            judgments.append((place, Judgment.from_json(row)))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise _row_error(place, error) from error
    groups: dict[tuple[str, ...], list[tuple[str, Judgment]]] = {}
    for place, judgment in _keep_last(judgments):
        if judgment.verdict == "wrong":
            continue
        group = groups.setdefault(judgment.question_key, [])
        group[:] = [one for one in group if _adds_up(one[1], judgment)]
        group.append((place, judgment))
    for group in groups.values():
        place, last = group[-1]
        answers = dict.fromkeys(text for _, one in group for text in one.answers)
        evidence = {digest_json(part): part for _, one in group for part in one.evidence}
        yield place, {**last.to_json(), "answers": [*answers], "evidence": [*evidence.values()]}


def _fold_question(question: str) -> str:
    text = _END.sub("", fold_case(question).strip())
    return _SPACE.sub(" ", _PAUSE.sub("", text))


def _read_fields(data: Mapping[str, Any], required: str) -> dict[str, Any]:
    """Return a quote or evidence with values of the right kinds: no damaged row fails later."""
    names = _KINDS.keys() & {required, *data}
    return {**data, **{name: _KINDS[name](data[name]) for name in names}}


def _adds_up(earlier: Judgment, later: Judgment) -> bool:
    return "absent" not in {earlier.verdict, later.verdict} and earlier.state == later.state


def _keep_last(judgments: Iterable[tuple[str, Judgment]]) -> list[tuple[str, Judgment]]:
    """Return the last judgment of each answer, with its place, in the order of these."""
    current: dict[tuple[str, ...], tuple[str, Judgment]] = {}
    for place, judgment in judgments:
        key = (*judgment.question_key, judgment.asked.text)
        current.pop(key, None)
        current[key] = place, judgment
    return list(current.values())


def _encode(row: Mapping[str, Any]) -> bytes:
    """Return a row as one line of ASCII, which a cut leaves readable."""
    return json.dumps(row).encode() + b"\n"


def _append_line(path: Path, line: bytes) -> None:
    """Append a line after the last whole one, and force it to disk."""
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        text = file.read().decode("utf-8", "surrogateescape")
        whole = drop_torn_line(text)
        file.truncate(len(whole.encode("utf-8", "surrogateescape")))
        file.seek(0, os.SEEK_END)
        file.write(line if not whole or whole.endswith("\n") else b"\n" + line)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


def _read_lines(path: Path) -> list[tuple[bytes, dict[str, Any] | None]]:
    """Return the lines of a file with their rows, None for one that is no row; none is refused."""
    if not path.exists():
        return []
    text = drop_torn_line(path.read_bytes().decode("utf-8", "surrogateescape"))
    found: list[tuple[bytes, dict[str, Any] | None]] = []
    for line in filter(str.strip, text.split("\n")):
        row = json.loads(line) if _is_json(line) else None
        written = f"{line}\n".encode("utf-8", "surrogateescape")
        found.append((written, row if isinstance(row, dict) else None))
    return found


def _ids_of(row: Mapping[str, Any]) -> set[str]:
    """Return the ids of the judgment or answer of a row, and of the answer that it judges."""
    judged = row.get("judged")
    return {str(one.get("id")) for one in (row, judged) if isinstance(one, dict)}


def _key_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return ``question_key`` of a row, also of one that is not readable otherwise."""
    judged = row["judged"] if isinstance(row.get("judged"), dict) else row
    principals = judged.get("principals")
    asked = AskedAnswer(
        str(row.get("question", "")),
        "",
        tenant=str(judged.get("tenant", "")),
        principals=tuple(map(str, principals)) if isinstance(principals, list) else (),
    )
    return (_fold_question(asked.question), *asked.scope)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _row_error(where: str, error: Exception) -> DataError:
    return DataError(
        f"the row is not a judgment: {type(error).__name__}: {error}",
        code="data.question-set",
        where=where,
        expected="a row that `stillroom judge` wrote",
        next="restore the row, or delete it",
    )
