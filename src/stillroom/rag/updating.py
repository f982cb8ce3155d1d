"""Update: an index follows its folder. What did not change costs a digest of its bytes.

Every file is compared by the digest of its bytes. A new or changed one is parsed and cut, and of
its passages those are embedded whose text no document of the index had; one that stands under
another path is renamed; one that is gone is deleted. Nothing is deleted because a listing failed:
a folder that cannot be read in full changes nothing, and a file that cannot be read keeps what it
was.

The work is journaled beside the index and goes on after a kill; the index changes once, at the end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, IntegrityError
from stillroom.jobs import Job
from stillroom.provenance import ARTIFACT_FILE, find_output, read_artifact
from stillroom.rag.approximation import keep_recall
from stillroom.rag.contextual import open_context_writer
from stillroom.rag.cutting import fit_chunker
from stillroom.rag.encoders import open_encoders
from stillroom.rag.ingest import Failed, Ingester
from stillroom.rag.listing import (
    Found,
    check_failures,
    describe_index,
    digest_files,
    documents_parent,
    find_documents,
    read_facts,
)
from stillroom.rag.recipe import RagRecipe
from stillroom.rag.store.manifest import renew_manifest
from stillroom.rag.store.parts import Facts, Part, Relabelled, can_relabel
from stillroom.rag.store.protocol import Store, StoreWriter, Told
from stillroom.rag.store.publishing import Change
from stillroom.rag.store.writer import KEPT_SNAPSHOTS
from stillroom.rag.storing import open_store
from stillroom.recipes import parse_recipe
from stillroom.text.worker import Worker

if TYPE_CHECKING:
    from stillroom.jobs import Reporter
    from stillroom.models import Embedder

__all__ = ["Update", "find_home", "update_index"]


@dataclass(frozen=True, slots=True)
class Update:
    """What an update did: documents by what became of them, and what it cost.

    ``told`` are those of which only something else is said: fields, tenant or labels.
    """

    added: int = 0
    changed: int = 0
    renamed: int = 0
    deleted: int = 0
    told: int = 0
    unchanged: int = 0
    failed: int = 0
    parsed: int = 0
    embedded: int = 0
    snapshot: int = 0
    digest: str = ""

    def __str__(self) -> str:
        """Return the counts as a person reads them."""
        return (
            f"{self.added} added, {self.changed} changed, {self.renamed} renamed, "
            f"{self.deleted} deleted, {self.unchanged} unchanged, {self.failed} failed; "
            f"{self.parsed} documents parsed, {self.embedded} texts embedded"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(slots=True)
class _Plan:
    """What is to be done with the files that were found, by path."""

    puts: list[tuple[Part, Facts]] = field(default_factory=list)
    moves: list[tuple[Part, Facts, int]] = field(default_factory=list)
    told: dict[int, Facts] = field(default_factory=dict)
    ingests: list[Found] = field(default_factory=list)
    removes: list[int] = field(default_factory=list)
    failures: list[Failed] = field(default_factory=list)
    unchanged: int = 0


def update_index(
    index: Path,
    folder: Path | None = None,
    *,
    embedder: Embedder | None = None,
    reporter: Reporter | None = None,
) -> Update:
    """Bring an index up to what its folder of documents holds now.

    Args:
        index: The artifact's folder, or the folder of a step of a run.
        folder: The documents; by default the folder that the index was made from.
        embedder: What makes vectors; by default the one that the index names, opened only where
            something is to be embedded.
        reporter: What draws progress.

    Raises:
        DataError: If the folder is missing, empty or cannot be listed in full, or too many files
            fail; the index is then as it was.
        ResourceError: If another process writes the index.
        IntegrityError: If the index was prepared by another version, or another embedder is given.
    """
    home, output = find_home(index)
    recipe = _read_recipe(home, folder)
    store = open_store(output)
    with store.write() as writer:
        text = f"{writer.description['preparation']}\n{recipe.documents}\n"
        job = _start_job(home, text, reporter)
        try:
            with job.interruptible():
                done = _Updating(recipe, store, writer, job, embedder).run()
        finally:
            job.close()
        shutil.rmtree(job.work)
    return done


def find_home(index: Path) -> tuple[Path, Path]:
    """Return an index's artifact folder and the folder of its ledger.

    Raises:
        DataError: If there is no artifact: what the index was made from is then not known.
    """
    output = find_output(index, "index")
    home = output.parent
    if not (home / ARTIFACT_FILE).is_file():
        read_artifact(index)
    return home, output


def _read_recipe(home: Path, folder: Path | None) -> RagRecipe:
    text = (home / "recipe.yaml").read_text(encoding="utf-8")
    recipe = parse_recipe(text, str(home / "recipe.yaml"), folder=home)
    if not isinstance(recipe, RagRecipe):
        raise DataError(
            f"{home} was not made by a recipe of kind rag",
            code="data.wrong-kind",
            where=str(home),
            expected="an index that 'stillroom rag index' built",
            next=f"stillroom show {home}",
        )
    return recipe if folder is None else recipe.model_copy(update={"documents": str(folder)})


def _start_job(home: Path, text: str, reporter: Reporter | None) -> Job:
    """Go on with an update that was killed, or begin one."""
    place = home.with_name(f".{home.name}.update")
    try:
        return Job.start(place, text, resume=True, reporter=reporter)
    except DataError as error:
        if error.problems[0].code != "data.other-recipe":
            raise
        return Job.start(place, text, overwrite=True, reporter=reporter)


class _Updating:
    """One update from listing to commit."""

    def __init__(
        self,
        recipe: RagRecipe,
        store: Store,
        writer: StoreWriter,
        job: Job,
        embedder: Embedder | None,
    ) -> None:
        self.recipe, self.output, self.writer, self.job = recipe, writer.folder, writer, job
        self.embedder = embedder
        self.held = store.hold()
        self.facts: dict[str, Facts] = {}
        self.embedded = self.parsed = 0
        self.recall: dict[str, Any] | None = None

    def run(self) -> Update:
        """Do it, and say what was done."""
        try:
            root, scan = find_documents(self.recipe.documents)
            _check_listing(root)
            found, unread = digest_files(root, scan, self.job)
            self.facts = read_facts(self.recipe, [one.path for one in found], self.job)
            plan, before = self._plan(found, unread)
            self._ingest(root, plan)
            kept = plan.unchanged + len(plan.told)
            total = kept + len(plan.puts) + len(plan.moves) + len(plan.failures)
            check_failures(plan.failures, total, self.recipe.max_failed, str(root))
            done = self._commit(plan, before)
        finally:
            self.held.close()
        renew_manifest(
            self.writer,
            parents=[documents_parent(root, found)],
            details={
                "parsed": self.parsed,
                "embedded": self.embedded,
                "reused": done.unchanged + done.renamed + done.told,
                "hidden": scan.hidden,
                **({"approximate": self.recall} if self.recall else {}),
                "updated": {name: n for name, n in done.to_json().items() if name != "digest"},
            },
        )
        return done

    def _plan(
        self, found: Sequence[Found], unread: Sequence[Failed]
    ) -> tuple[_Plan, dict[str, Told]]:
        """Decide by digests alone what is to be done with each file."""
        before = self.writer.list_documents()
        known = {one.path: one.digest for one in found}
        unreadable = {one.path for one in unread if one.code == "rag.unreadable"}
        plan = _Plan(failures=list(unread))
        gone: dict[str, list[str]] = {}
        for path, (key, digest, _) in before.items():
            if path not in known and path not in unreadable:
                plan.removes.append(key)
                gone.setdefault(digest, []).append(path)
        for item in found:
            held = before.get(item.path)
            if held is not None and held[1] == item.digest:
                self._compare_facts(item.path, held[0], held[2], plan)
            elif not self._take_over(item, gone, before, plan):
                plan.ingests.append(item)
        return plan, before

    def _compare_facts(self, path: str, key: int, before: Facts, plan: _Plan) -> None:
        now = self._facts_of(path)
        if now == before:
            plan.unchanged += 1
        else:
            plan.told[key] = now

    def _facts_of(self, path: str) -> Facts:
        return self.facts.get(path, Facts())

    def _take_over(
        self,
        item: Found,
        gone: dict[str, list[str]],
        before: dict[str, Told],
        plan: _Plan,
    ) -> bool:
        """Rename or copy a document of the same bytes, where it would be parsed to the same."""
        for part in self.held.find_same(item.digest):
            if not can_relabel(part, item.path):
                continue
            old = part.entry.path
            key = before[old][0]
            facts = self._facts_of(item.path)
            if item.path not in before and old in gone.get(item.digest, ()):
                gone[item.digest].remove(old)
                plan.removes.remove(key)
                plan.moves.append((Relabelled(part, item.path), facts, key))
            else:
                plan.puts.append((Relabelled(part, item.path), facts))
            return True
        return False

    def _ingest(self, root: Path, plan: _Plan) -> None:
        """Parse, cut and embed what is new; what cannot be used becomes a failure."""
        if not plan.ingests:
            return
        embedder, recipe = self._prepare()
        contexts, encoders = (
            open_context_writer(recipe, self.job),
            open_encoders(recipe.sparse, recipe.tokens, embedder),
        )
        described = describe_index(recipe, embedder, contexts, encoders)
        self._check_preparation(described.preparation)
        with (
            Worker() as worker,
            contexts or nullcontext(),
            self.job.phase("index", len(plan.ingests), "documents") as progress,
        ):
            ingester = Ingester(
                recipe, root, embedder, worker, self.job, self.held, contexts, encoders
            )
            for item in plan.ingests:
                self.job.check_cancelled()
                part = ingester.recall(item.path, item.digest)
                part = part or ingester.ingest(item.file, item.path, item.digest)
                if isinstance(part, Failed):
                    plan.failures.append(part)
                    self.job.say(f"left out: {part.path}: {part.reason}  [{part.code}]")
                else:
                    plan.puts.append((part, self._facts_of(item.path)))
                progress.advance(note=item.path)
        self.parsed, self.embedded = ingester.parsed, ingester.embedded

    def _prepare(self) -> tuple[Embedder, RagRecipe]:
        """Open the embedder that made the vectors, and fit the chunker to it as the build did."""
        told = self.writer.description["embedder"]
        if self.embedder is None:
            from stillroom.models import open_embedder

            self.embedder = open_embedder(str(told["reference"]))
        if self.embedder.fingerprint != told["fingerprint"]:
            raise IntegrityError(
                f"the index was made by embedder {told['fingerprint']} ({told['reference']}), "
                f"but {self.embedder.fingerprint} is given",
                code="rag.embedder-mismatch",
                where=str(self.output),
                expected="the embedder that made the vectors: others do not compare",
                next="restore that embedder, or build the index again with the new one",
            )
        return self.embedder, fit_chunker(self.recipe, self.embedder, lambda line: None)

    def _check_preparation(self, preparation: str) -> None:
        if preparation != self.writer.description["preparation"]:
            raise IntegrityError(
                "the index was prepared by other settings or another version than would now be "
                "used, so that its documents would differ by when they came",
                code="rag.other-preparation",
                where=str(self.output),
                expected="the recipe.yaml and the version that built it",
                next="build the index again with --overwrite: vectors of equal texts are kept",
            )

    def _commit(self, plan: _Plan, before: dict[str, Told]) -> Update:
        """Publish the plan where it changes anything."""
        failed = {one.path for one in plan.failures if one.code != "rag.unreadable"}
        # A file whose new bytes cannot be used is not what the index says any more.
        removes = [*plan.removes, *(key for path, (key, *_) in before.items() if path in failed)]
        failures = sorted(plan.failures, key=lambda one: one.path)
        told = [(one.path, one.code, one.reason) for one in failures]
        known = self.writer.list_failures()
        changed = sum(part.entry.path in before for part, _ in plan.puts)
        done = Update(
            added=len(plan.puts) - changed,
            changed=changed,
            renamed=len(plan.moves),
            deleted=len(removes),
            told=len(plan.told),
            unchanged=plan.unchanged,
            failed=len(failures),
            parsed=self.parsed,
            embedded=self.embedded,
        )
        if plan.puts or plan.moves or plan.told or removes or told != known:
            change = Change(
                sorted(plan.puts, key=lambda put: put[0].entry.path),
                plan.moves,
                plan.told,
                removes,
                [one.to_json() for one in failures],
            )
            reason = f"updated: {_describe(done)}"
            self.writer.commit(
                change, reason=reason, keep=KEPT_SNAPSHOTS, check=self.job.check_cancelled
            )
            self.recall = keep_recall(self.writer, self.embedder)
        latest = self.writer.find_snapshot()
        return replace(done, snapshot=latest.number, digest=latest.digest)


def _check_listing(root: Path) -> None:
    """Refuse to go by a listing that is not complete: what it lacks would be deleted.

    Raises:
        DataError: If a folder below the root cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(
            f"the folder of documents cannot be listed in full: {error.strerror or error}",
            code="rag.partial-listing",
            where=str(error.filename or root),
            expected="folders that may be read: nothing is deleted by half a listing",
            next="check permissions and mounts, then update again",
        ) from error

    for _ in os.walk(root, onerror=refuse):
        pass


def _describe(done: Update) -> str:
    counts = [(n, name) for name, n in done.to_json().items() if name in _SAID and n]
    return ", ".join(f"{n} {name}" for n, name in counts) or "failures alone"


_SAID = ("added", "changed", "renamed", "deleted", "told")
