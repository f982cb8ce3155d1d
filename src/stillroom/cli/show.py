"""``stillroom show`` and ``list``: runs, artifacts, jobs and methods."""

from __future__ import annotations

import shlex
import string
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stillroom.cli.completion import complete_registries, complete_shown
from stillroom.cli.options import (
    command,
    count_option,
    flag_option,
    output_options,
    path_option,
    refuse_idle_options,
)
from stillroom.cli.output import format_row, print_json, print_measurements, print_rows, print_text
from stillroom.errors import DataError, RecipeError, count_noun
from stillroom.records import describe_place

if TYPE_CHECKING:
    from stillroom.text.verbatim import VerbatimTrace

__all__ = ["list_command", "show_command", "show_trace"]


@command(
    "show",
    "stillroom show run --lineage",
    "stillroom show ties",
    "stillroom show answer.json --lineage --within run",
    "stillroom show answer.json --trace",
)
@click.argument("what", metavar="PATH|METHOD", shell_complete=complete_shown)
@flag_option("--lineage", help="Trace to documents and their byte ranges.")
@count_option(
    "--examples", default=3, show_default=True, least=0, help="Number of records to trace."
)
@click.option("--record", default="", help="Trace one record, by its id.")
@path_option("--within", help="Run or index of a served answer; with --trace, of any text.")
@flag_option("--trace", help="Find the text's words verbatim in documents and records.")
@count_option(
    "--min-words",
    default=5,
    show_default=True,
    help="With --trace: minimum number of words of a span.",
)
@output_options
def show_command(
    what: str,
    lineage: bool,
    examples: int,
    record: str,
    within: Path | None,
    trace: bool,
    min_words: int,
    as_json: bool,
) -> None:
    """Show a run, an artifact, an answer, a logit cache or a method, or trace its lineage.

    An answer is a file with its evidence, the output of 'ask --json' or a reply of the server. With
    --trace it may also be a text file, or a record (--record).
    """
    path = Path(what)
    if not path.exists():
        _show_method(what, as_json)
    elif (path / "header.json").is_file() and not (path / "artifact.json").exists():
        _show_cache(path, as_json)
    elif trace:
        refuse_idle_options({"lineage", "examples"}, "has no effect with --trace")
        show_trace(path, record, within, min_words, as_json=as_json)
    elif lineage or record:
        refuse_idle_options({"min_words"}, "needs --trace")
        _show_lineage(path, examples, record, within, as_json)
    else:
        refuse_idle_options({"examples"}, "needs --lineage")
        refuse_idle_options({"within"}, "needs --lineage or --trace")
        refuse_idle_options({"min_words"}, "needs --trace")
        if not _show_answer(path, as_json):
            _show_artifact(path, as_json)


def _refuse_options_of_artifacts() -> None:
    idle = {"lineage", "examples", "record", "within", "trace", "min_words"}
    refuse_idle_options(idle, "applies to a run, an artifact or an answer")


def _show_lineage(
    path: Path, examples: int, record: str, within: Path | None, as_json: bool
) -> None:
    from stillroom.provenance import (
        read_answer,
        render_tree,
        walk_answer,
        walk_lineage,
        walk_record,
    )

    answer = read_answer(path) if path.is_file() and not record else None
    if record or path.is_dir():
        refuse_idle_options({"within"}, "applies to answers, and to any text with --trace")
    if answer is not None or record:
        reason = "has no effect with --record" if record else "applies to a run or an artifact"
        refuse_idle_options({"examples"}, reason)
    if answer is not None:
        node = walk_answer(answer, within or _find_answer_source(answer.asked_of, path))
    else:
        node = walk_record(path, record) if record else walk_lineage(path, examples=examples)
    if as_json:
        print_json({"lineage": node.to_json()})
    else:
        print_text(render_tree(node))


def _find_answer_source(named: str, answer: Path) -> Path:
    """Return the folder that an answer names.

    Raises:
        DataError: If it names no folder.
    """
    if named:
        return Path(named)
    raise DataError(
        "the answer does not name its run or index",
        code="data.answer",
        where=str(answer),
        expected="the run or index that was served",
        next=f"stillroom show {answer} --lineage --within RUN",
    )


def _show_answer(path: Path, as_json: bool) -> bool:
    """Show the answer in a file, and what its evidence states; return whether there is one."""
    from stillroom.jobs import escape_line
    from stillroom.provenance import read_answer
    from stillroom.provenance.artifact import locate_manifest

    if locate_manifest(path).is_file() or (answer := read_answer(path)) is None:
        return False
    stated, places = _read_statement(path)
    places = places or [
        (a.number, describe_place(a.path, a.byte_start, a.byte_end, a.pages)) for a in answer.cited
    ]
    if as_json:
        print_json({"answer": {**asdict(answer), **stated}})
        return True
    print_text(f"{path}  answer")
    shown = {**stated, "asked of": answer.asked_of, "model": answer.model}
    shown["snapshot digest"] = answer.index
    if stated:
        shown["signature"] += f" (stillroom verify {shlex.quote(str(path))})"
    print_rows([(name, value) for name, value in shown.items() if value])
    print_text("\n" + "\n".join(map(escape_line, answer.text.splitlines())) + "\n")
    for number, place in places:
        print_text(escape_line(f"[{number}] {place}"))
    return True


def _read_statement(path: Path) -> tuple[dict[str, Any], list[tuple[int, str]]]:
    """Return what evidence states of an answer, and its quotes' places; nothing without it."""
    from stillroom.provenance.evidence import check_evidence, read_evidence

    try:
        evidence = read_evidence(path)
    except DataError:  # an answer alone
        return {}, []
    check, passages = check_evidence(evidence), evidence.passages
    stated = {name: evidence.predicate[name] for name in ("question", "made")}
    stated["signature"] = check.signature + f" by key {check.key_id[:16]}" * bool(check.key_id)
    stated["differences"] = [f"{finding.layer}: {finding.what}" for finding in check.findings]
    quotes = [
        (number, describe_place(passage["path"], *ends, passage["pages"]))
        for quote in evidence.predicate["answer"]["quotes"]
        if (passage := passages.get(number := quote["number"]))
        and (ends := (quote["document_start"], quote["document_end"]))
    ]
    return stated, quotes


def _show_artifact(path: Path, as_json: bool) -> None:
    from stillroom.jobs import sum_work_seconds
    from stillroom.provenance import read_artifact

    artifact = read_artifact(path)
    signature = _check_badge(path)
    if as_json:
        print_json({**artifact.to_json(), **signature.to_json()})
        return
    sizes = [entry.size_bytes for entry in (*artifact.files, *artifact.timed_files)]
    print_text(f"{path}  {artifact.kind}  {artifact.digest[:16]}")
    rows: list[tuple[str, object]] = [
        ("made", f"{artifact.created}, seed {artifact.seed}"),
        ("files", f"{len(sizes)}, {sum(sizes) / 1e6:.1f} MB"),
        ("signature", signature.describe()),
    ]
    if replayed := signature.describe_replay():
        rows.append(("replayed", replayed))
    if seconds := sum_work_seconds(path):
        rows.append(("took", f"{seconds:.1f} s"))
    if artifact.origin:
        rows.append(("origin", _describe_origin(artifact.origin)))
    rows += [(parent.role, f"{parent.path}  {parent.digest[:16]}") for parent in artifact.parents]
    words = {"index": "snapshot digest"} if artifact.kind == "index" else {}
    details = ((words.get(name, name), value) for name, value in artifact.details.items())
    print_rows([*rows, *details])
    if artifact.kind == "report":
        print_measurements(path if artifact.is_flat else path / "output")


_MAX_BYTES = 1 << 30
"""Bytes that ``show`` reads to check a signature; SHA-256 takes a second or so for them."""


@dataclass(frozen=True, slots=True)
class _SignatureBadge:
    """A folder's signature, checked against no key of the reader's, and its replay.

    ``state`` is ``unsigned``, ``valid``, ``invalid`` or ``unchecked`` (``why`` says why);
    ``replayed`` and ``segments`` count over the run's jobs, as stated by the summaries that count.
    """

    path: Path
    state: str
    key: str = ""
    why: str = ""
    replayed: int = 0
    segments: int = 0
    replay_differences: int = 0
    unknown_summaries: int = 0

    def describe(self) -> str:
        """Return who signed, in a line."""
        verify = f"stillroom verify {self.path}"
        if self.state == "valid":
            return f"valid, by key {self.key[:16]} (whose? {verify} --key THEIRS.pub)"
        if self.state == "unsigned":
            return "unsigned"
        return f"{'invalid' if self.state == 'invalid' else 'not checked'}: {self.why} ({verify})"

    def describe_replay(self) -> str:
        """Return what was replayed, in a line; empty if no summary stands there."""
        if self.segments:
            wrong = self.replay_differences
            result = f"{wrong} differed" if wrong else "all the same bytes"
            return f"{self.replayed:,} of {self.segments:,} segments, {result}, says its signer"
        many = self.unknown_summaries
        return f"{many} by keys that are not at hand: not counted" if many else ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields that ``show --json`` adds to artifact.json's."""
        replay = {
            "replayed": self.replayed,
            "segments": self.segments,
            "differences": self.replay_differences,
        }
        return {
            "signature": {"state": self.state, "key": self.key, "why": self.why},
            "replay": replay if self.segments else None,
        }


def _check_badge(path: Path) -> _SignatureBadge:
    """Check the signature of an artifact's folder, and read its verification summaries."""
    from stillroom.provenance.signing import SIGNATURE_FILE, Trust, check_signature
    from stillroom.provenance.sources import list_ancestors
    from stillroom.provenance.summaries import find_replay, read_replays

    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if (path / SIGNATURE_FILE).exists() and size > _MAX_BYTES:
        return _SignatureBadge(path, "unchecked", why=f"{size / 1e9:.1f} GB would be read")
    try:
        check = check_signature(path, Trust())
        folders = [folder for folder, _ in list_ancestors(path)]
        summaries = read_replays(folders, Trust())
    except ImportError:
        return _SignatureBadge(path, "unchecked", why="needs pip install 'stillroom[sign]'")
    found = (find_replay(folder, summaries) for folder in folders)
    jobs = [one[1] for one in found if one is not None and not one[1].open]
    name, what = check.differences[0] if check.differences else ("", "")
    more = f", and {len(check.differences) - 1} more" if len(check.differences) > 1 else ""
    return _SignatureBadge(
        path,
        check.state if check.state in {"unsigned", "invalid"} else "valid",
        check.key_id,
        f"{name} {what}{more}" if name else "",
        sum(job.replayed for job in jobs),
        sum(job.segments for job in jobs),
        sum(len(job.differences) for job in jobs),
        sum(one.verifier == "unknown" for one in summaries),
    )


def _describe_origin(origin: Mapping[str, Any]) -> str:
    parts = [str(origin.get("kind", "unknown")), f"license {origin.get('license') or 'unsaid'}"]
    steps = [str(link.get("method")) for link in origin.get("chain") or () if link.get("method")]
    return ", ".join([*parts, *([f"by {' > '.join(steps)}"] if steps else [])])


def _show_cache(path: Path, as_json: bool) -> None:
    from stillroom.distill import LogitCache
    from stillroom.distill.logit_cache.cache import describe_cache
    from stillroom.jobs import choose_reporter

    _refuse_options_of_artifacts()
    with LogitCache.open(path, on_damage=choose_reporter().warn) as cache:
        description = describe_cache(cache)
    if as_json:
        print_json({"cache": description})
        return
    print_text(
        f"{path}  logit cache, {count_noun(description['records'], 'record')}, "
        f"{description['positions']} positions, {description['size_bytes'] / 1e6:.1f} MB "
        f"({description['bytes_per_position']} bytes a position)"
    )
    print_rows(
        [(name, value) for name, value in description["header"].items() if value not in ("", {})]
    )


def _show_method(name: str, as_json: bool) -> None:
    from stillroom.provenance.artifact import refuse_unfinished
    from stillroom.registry.catalog import list_methods, read_docstring, read_settings, suggest

    known = list(list_methods())
    matches = [row for row in known if row.name == name]
    if not matches:
        refuse_unfinished(Path(name))
        raise DataError(
            f"{name} is neither a path nor a method",
            code="data.missing",
            expected="the folder of an artifact, or a name listed by `stillroom list methods`",
            next=suggest(name, [row.name for row in known]) or "stillroom list methods",
        )
    _refuse_options_of_artifacts()
    if as_json:
        descriptions = [
            {
                "name": row.name,
                "registry": row.registry,
                "settings": [asdict(setting) for setting in read_settings(row.path)],
            }
            for row in matches
        ]
        print_json({"methods": descriptions})
        return
    for row in matches:
        print_text(f"{row.name}  ({row.registry.removeprefix('stillroom.')}, {row.status})")
        print_text(read_docstring(row.path))
        settings = read_settings(row.path)
        if settings:
            print_text("\nsettings")
        names = max((len(setting.name) for setting in settings), default=0) + 2
        values = max((len(setting.default) for setting in settings), default=0) + 2
        for setting in settings:
            print_text(
                format_row(
                    f"  {setting.name:{names}}{setting.default:{values}}", setting.description
                )
            )
        print_text()


@command("list", "stillroom list methods", "stillroom list methods merge.methods")
@click.argument("what", type=click.Choice(["methods", "kinds", "backends", "jobs"]))
@click.argument("registry", default="", shell_complete=complete_registries)
@output_options
def list_command(what: str, registry: str, as_json: bool) -> None:
    """List methods, kinds, backends or jobs.

    REGISTRY restricts methods to one registry, such as `merge.methods`; with jobs it is the folder
    that holds the runs.
    """
    if registry and what in {"kinds", "backends"}:
        raise click.UsageError(f"'list {what}' takes no REGISTRY")
    rows = _list_rows(what, registry)
    if as_json:
        print_json({what: rows})
        return
    width = max((len(row["name"]) for row in rows), default=0)
    group = ""
    for row in rows:
        if row.get("registry", "") != group:
            group = row["registry"]
            print_text(f"\n{group.removeprefix('stillroom.')}")
        print_text(format_row(f"  {row['name']:{width}}  ", row["summary"]))


def _list_rows(subject: str, registry: str) -> list[dict[str, str]]:
    if subject == "kinds":
        return _list_kind_rows()
    if subject == "jobs":
        return _list_job_rows(Path(registry or "."))
    return _list_method_rows("models.backends" if subject == "backends" else registry)


def _list_method_rows(registry: str) -> list[dict[str, str]]:
    from stillroom.registry.catalog import find_registries, list_methods, suggest

    registries = find_registries()
    if registry:
        name = f"stillroom.{registry.removeprefix('stillroom.')}"
        if name not in registries:
            short = [known.removeprefix("stillroom.") for known in registries]
            raise RecipeError(
                f"'{registry}' is not a registry of methods",
                code="recipe.unknown-registry",
                expected=f"one of: {', '.join(short)}",
                next=suggest(registry, short) or "stillroom list methods",
            )
        registries = {name: registries[name]}
    return [
        {
            "name": row.name,
            "registry": row.registry,
            "summary": row.summary + (" (experimental)" if row.status == "experimental" else ""),
            "paper": row.paper,
        }
        for row in list_methods(registries)
    ]


def _list_kind_rows() -> list[dict[str, str]]:
    from stillroom.registry.catalog import list_kinds

    return [{"name": name, "summary": summary} for name, summary in list_kinds().items()]


def _list_job_rows(folder: Path) -> list[dict[str, str]]:
    from stillroom.provenance import ARTIFACT_FILE, read_artifact

    rows = []
    for path in sorted(folder.iterdir()):
        try:
            (path / ARTIFACT_FILE).lstat()
            artifact = read_artifact(path)
            line = f"{artifact.kind}, finished {artifact.created}, {artifact.digest[:12]}"
        except (FileNotFoundError, NotADirectoryError):
            continue
        except DataError as error:
            line = error.problems[0].what
        except OSError as error:  # a folder that this user may not enter, a disk that fails
            line = f"{path} cannot be read: {error.strerror}"
        rows.append({"name": path.name, "summary": line})
    for path in sorted(folder.glob(".*.partial")):
        name = path.name.removeprefix(".").removesuffix(".partial")
        rows.append({"name": name, "summary": "unfinished; continue with --resume"})
    return rows


_MAX_TEXT_BYTES = 2**20


def show_trace(
    path: Path, record: str, within: Path | None, min_words: int, *, as_json: bool
) -> None:
    """Trace an answer, a text or a record, and print the result.

    Raises:
        DataError: If there is no text, or nothing to search it in.
    """
    from stillroom.jobs import escape_line
    from stillroom.text.verbatim import trace_text

    text, cited, asked_of, notes = _read_traced(path, record, within)
    traced = trace_text(
        text,
        asked_of,
        cited=cited,
        min_words=min_words,
        record=record,
        say=lambda line: print_text(line, err=True),
    )
    if as_json:
        details = {**traced.to_json(), "notes": [*traced.notes, *notes]}
        print_json({"trace": {"within": str(asked_of), **details}})
        return
    print_text(_mark_spans(traced))
    for number in range(len(traced.spans)):
        print_text()
        for lead, line in _list_sources(traced, number):
            print_text(format_row(lead, escape_line(line)))
    print_text()
    for line in [*_summarize(traced), *notes]:
        print_text(format_row("", escape_line(line)))


def _read_traced(
    path: Path, record: str, within: Path | None
) -> tuple[str, list[int], Path, list[str]]:
    """Return the text, the numbers of its citations, what is searched, and notes on that."""
    from stillroom.provenance import note_other_index, read_answer
    from stillroom.text.verbatim.trace import find_record

    if record:
        found = find_record(path, record)
        answers = [turn.content for turn in found.messages if turn.role == "assistant"]
        return "\n\n".join(answers), [], within or path, []
    answer = read_answer(path) if path.is_file() else None
    if answer is not None:
        source = within or (Path(answer.asked_of) if answer.asked_of else None)
        text, cited = answer.text, [citation.number for citation in answer.cited]
    else:
        source, text, cited = within, _read_text(path), []
    if source is None:
        raise DataError(
            f"{path} does not name the run or records to search",
            code="data.answer",
            where=str(path),
            expected="a run, an index or a set of records",
            next=f"stillroom show {path} --trace --within RUN",
        )
    notes = note_other_index(answer, source) if answer is not None and source.exists() else []
    return text, cited, source, notes


def _read_text(path: Path) -> str:
    if path.is_file() and path.suffix != ".json" and path.stat().st_size <= _MAX_TEXT_BYTES:
        with suppress(UnicodeDecodeError):
            return path.read_text(encoding="utf-8")
    raise DataError(
        f"{path} is not a text that can be traced",
        code="data.answer",
        where=str(path),
        expected="an answer ('ask --json', a reply of the server), a text file in UTF-8 of at most "
        "1 MiB, or --record ID for a record of an artifact",
        next="save the text alone in a file, then stillroom show FILE --trace --within RUN",
    )


def _mark_spans(traced: VerbatimTrace) -> str:
    """Return the text with «spans» and their letters; spans that overlap are marked as one."""
    from stillroom.jobs import escape_line

    parts, last = [], 0
    for start, end, letters in _merge_spans(traced):
        parts += [traced.text[last:start], "«", traced.text[start:end], f"»({', '.join(letters)})"]
        last = end
    marked = "".join([*parts, traced.text[last:]])
    return "\n".join(escape_line(line) for line in marked.splitlines())


def _merge_spans(traced: VerbatimTrace) -> Iterator[tuple[int, int, list[str]]]:
    letters: list[str] = []
    start, end = -1, -1
    for number, span in enumerate(traced.spans):
        if span.start >= end:
            if letters:
                yield start, end, letters
            start, letters = span.start, []
        end = max(end, span.end)
        letters = [*letters, _letter(number)]
    if letters:
        yield start, end, letters


def _letter(number: int) -> str:
    round_, place = divmod(number, len(string.ascii_lowercase))
    return (_letter(round_ - 1) if round_ else "") + string.ascii_lowercase[place]


def _list_sources(traced: VerbatimTrace, number: int) -> Iterator[tuple[str, str]]:
    span = traced.spans[number]
    yield f"({_letter(number)}) ", f"{_count(span.words, 'word')}, {_count(span.places, 'place')}"
    for document in span.documents:
        facts = [document.origin, *([document.label] if document.label else [])]
        facts += [f"{document.places} times"] if document.places > 1 else []
        facts += [] if document.is_exact else ["these bytes hold it, within markup or packed"]
        yield "    document  ", f"{document.place}  ({', '.join([*facts, *document.notes])})"
    if span.in_documents > len(span.documents):
        yield "    document  ", f"and {span.in_documents - len(span.documents)} more"
    for record in span.records:
        facts = [f"{record.role} turn", record.origin]
        facts += [f"by {record.method}"] if record.method else []
        facts += [record.split.replace("_", " ")] if record.split not in ("", "train") else []
        yield "    record    ", f"{record.record}  ({', '.join(facts)})"
    if span.in_records > len(span.records):
        yield "    record    ", f"and {span.in_records - len(span.records)} more"


def _summarize(traced: VerbatimTrace) -> Iterator[str]:
    least = f"spans of {traced.min_words} words or more that are not common phrases"
    yield f"searched {traced.searched:,} words of documents and records for {least}"
    yield (
        f"verbatim in documents {traced.in_documents} of {_count(traced.words, 'word')}, "
        f"in records {traced.in_records}"
    )
    own = "; ".join(f"“{' '.join(traced.text[a:b].split())}”" for a, b in traced.own)
    yield f"in no span {_count(traced.own_words, 'word')}" + (f": {own}" if own else "")
    yield from traced.notes


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
