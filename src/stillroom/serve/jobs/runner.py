"""Job queue of clients: a limited number of processes, cancellation, and results (``JobRunner``).

Each job runs in its own process, so that a crash or running out of memory does not affect the
server. Tenants take turns. The job records on disk are the queue: a server reads them at startup
and restarts jobs that were running when the last server ended, however it ended. Runs on one event
loop.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from stillroom.errors import Problem, ResourceError, StillroomError
from stillroom.jobs import get_working_folder
from stillroom.provenance import digest_text, list_run_folders
from stillroom.provenance.signing import find_configured_key, require_regular_files, sign_artifact
from stillroom.recipes import Recipe, dump_recipe
from stillroom.serve.errors import ApiError, server_stopping
from stillroom.serve.jobs.processes import (
    describe_crash,
    is_sandbox_available,
    read_worker_result,
    run_worker,
    send_signal,
    spawn,
)
from stillroom.serve.jobs.recipe_policy import (
    RecipePolicy,
    dump_client_recipe,
    validate_client_recipe,
)
from stillroom.serve.jobs.store import JobRecord, JobStore, format_now, new_job_id
from stillroom.serve.middleware.auth import ACCESS_KEY
from stillroom.serve.workspace import Workspace, make_path_redactor

__all__ = [
    "JobRunner",
    "RecipeSubmission",
    "find_job",
    "find_tenant",
    "read_submission",
]


_LOG = logging.getLogger("stillroom.serve")
_LOG_FILE = "log.txt"
_MAX_AUTOMATIC_ATTEMPTS = 5
_BUSY_WAIT_S = 1.0
_CHECK_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 20.0
_MAX_LISTED = 10


class JobRunner:
    """Queue that starts, cancels, resumes and deletes jobs."""

    def __init__(
        self,
        workspace: Workspace,
        *,
        policy: RecipePolicy | None = None,
        running: int = 1,
        waiting: int = 100,
    ) -> None:
        """Read the job records of an open workspace."""
        self.workspace, self.policy = workspace, policy or RecipePolicy()
        self.jobs = JobStore(workspace.control)
        self.running, self.waiting = running, waiting
        self.has_fence = is_sandbox_available()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._processes: dict[str, Process] = {}
        self._stopping = False

    def start(self) -> None:
        """Queue interrupted jobs again and start processing; call it on the event loop.

        Jobs of tenants that this server cannot place (tenants were added to or removed from the
        keys) are left unchanged and logged.
        """
        self._say_what_is_left()
        for record in list(self.jobs):
            if record.state != "running" or not self.workspace.fits(record.tenant):
                continue
            if record.is_cancelling:
                self._change(record.id, state="cancelled", is_cancelling=False, ended=format_now())
            elif record.takes >= _MAX_AUTOMATIC_ATTEMPTS:
                message = f"the server ended {record.takes} times while the job ran"
                then = "find out why, then resume it"
                problem = Problem(message, "job.too-many-takes", next=then)
                self._fail(record.id, asdict(problem))
            else:
                self._change(record.id, state="queued")
        self._pump()

    def _say_what_is_left(self) -> None:
        aside = [
            record.id
            for record in self.jobs
            if not record.is_over and not self.workspace.fits(record.tenant)
        ]
        if aside:
            was = "without tenants" if self.workspace.has_tenants else "with tenants"
            _LOG.warning(
                (
                    "%d jobs were submitted to a server %s and are ignored until such a server "
                    "runs here: %s"
                ),
                len(aside),
                was,
                ", ".join(aside[:_MAX_LISTED]),
            )
        if unread := self.jobs.unread:
            _LOG.warning(
                "%d folders in %s hold no complete job record and are ignored: %s",
                len(unread),
                self.jobs.folder,
                ", ".join(unread[:_MAX_LISTED]),
            )

    async def stop(self, grace_s: float = _STOP_TIMEOUT_S) -> None:
        """Stop running jobs at their next safe point, or kill them; all stay queued."""
        self._stopping = True
        for process in list(self._processes.values()):
            send_signal(process, signal.SIGTERM)
        tasks = list(self._tasks.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for process in list(self._processes.values()):
                send_signal(process, signal.SIGKILL)
            if late:
                await asyncio.wait(late, timeout=_STOP_TIMEOUT_S)

    def submit(
        self, recipe: Recipe, tenant: str, *, label: str = "", request_key: str = ""
    ) -> tuple[JobRecord, bool]:
        """Queue a job; return its record, and whether it is new.

        The recipe satisfies the policy; a repeated ``request_key`` (idempotency key) returns the
        same job.

        Raises:
            ApiError: If the tenant's queue is full, or the key was used for another recipe.
            ResourceError: If the disk is full.
        """
        text = dump_recipe(recipe)
        mine = [record for record in self.jobs if record.tenant == tenant]
        if request_key:
            for record in mine:
                if record.request_key != request_key:
                    continue
                if record.recipe_digest != digest_text(text):
                    raise ApiError(
                        409,
                        "Idempotency-Key was used for another recipe",
                        code="idempotency_conflict",
                    )
                return record, False
        if self._stopping:
            raise server_stopping()
        if sum(record.state == "queued" for record in mine) >= self.waiting:
            raise ApiError(
                429,
                f"{self.waiting} jobs are waiting; retry later",
                code="too_many_jobs",
                headers={"Retry-After": "30"},
            )
        record = JobRecord(
            new_job_id(recipe.kind),
            tenant,
            recipe.kind,
            label=label,
            submitted=format_now(),
            request_key=request_key,
            recipe_digest=digest_text(text),
        )
        self.jobs.add(record, text)
        self._pump()
        return self.jobs.get(record.id) or record, True

    def cancel(self, name: str) -> JobRecord:
        """Stop a job at its next safe point, or at once on a second call; its output is kept."""
        record = self.jobs.get(name)
        if record is None or record.is_over:
            raise ApiError(409, "the job has already ended", code="job_is_over")
        if record.state == "queued":
            return self._change(name, state="cancelled", ended=format_now())
        process = self._processes.get(name)
        if process is not None:
            send_signal(process, signal.SIGKILL if record.is_cancelling else signal.SIGTERM)
        return self._change(name, is_cancelling=True)

    def resume(self, name: str) -> JobRecord:
        """Queue a failed or cancelled job again; it continues from its last saved state."""
        record = self.jobs.get(name)
        if record is None or record.state not in {"failed", "cancelled"}:
            raise ApiError(
                409, "only a failed or cancelled job can be resumed", code="job_not_stopped"
            )
        self._change(name, state="queued", takes=0, ended="", problems=(), is_cancelling=False)
        self._pump()
        return self.jobs.get(name) or record

    async def remove(self, name: str) -> None:
        """Delete an ended job with its files.

        Raises:
            ApiError: If it has not ended.
        """
        record = self.jobs.get(name)
        if record is None or not record.is_over:
            raise ApiError(409, "the job has not ended; cancel it first", code="job_is_not_over")
        out = self.out_of(record)
        self.jobs.remove(name)
        for folder in (out, get_working_folder(out)):
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    @property
    def is_stopping(self) -> bool:
        """Whether the server is shutting down."""
        return self._stopping

    def begin_stop(self) -> None:
        """Start no more jobs, and end the streams of events."""
        self._stopping = True

    def position(self, record: JobRecord) -> int | None:
        """Return the number of waiting jobs of the same tenant that were submitted earlier."""
        if record.state != "queued":
            return None
        return sum(
            other.state == "queued" and other.tenant == record.tenant and other.id < record.id
            for other in self.jobs
        )

    async def check(self, text: str, tenant: str) -> dict[str, Any]:
        """Return the resources that a valid recipe needs, estimated in a separate process.

        Raises:
            ApiError: If the estimate takes too long.
        """
        root = self.workspace.root(tenant)
        order = self._order("check", text, tenant, root.jobs / "check", "")
        cache = self.workspace.cache_of(tenant)
        async with self.workspace.lend_scratch() as scratch:
            return await run_worker(
                order, root.folder, scratch, timeout_s=_CHECK_TIMEOUT_S, cache=cache
            )

    def out_of(self, record: JobRecord) -> Path:
        """Return the folder of a job's artifact."""
        return self.workspace.root(record.tenant).jobs / record.id

    def _pump(self) -> None:
        """Start the next jobs: the oldest one of the tenant with the fewest running jobs first."""
        while not self._stopping and len(self._tasks) < self.running:
            busy = Counter(record.tenant for record in self.jobs if record.id in self._tasks)
            line = [
                record
                for record in self.jobs
                if record.state == "queued"
                and record.id not in self._tasks
                and self.workspace.fits(record.tenant)
            ]
            if not line:
                return
            last = self._last_started()
            record = min(
                line,
                key=lambda candidate: (
                    busy[candidate.tenant],
                    last.get(candidate.tenant, ""),
                    candidate.id,
                ),
            )
            self._change(
                record.id,
                state="running",
                started=record.started or format_now(),
                takes=record.takes + 1,
            )
            task = asyncio.get_running_loop().create_task(self._run(record.id))
            self._tasks[record.id] = task

    def _last_started(self) -> dict[str, str]:
        last: dict[str, str] = {}
        for record in self.jobs:
            last[record.tenant] = max(last.get(record.tenant, ""), record.started)
        return last

    async def _run(self, name: str) -> None:
        result, code = None, 0
        try:
            result, code = await self._attempt(name)
        except Exception as error:  # noqa: BLE001  # the queue must continue
            _LOG.error("job %s could not be started", name, exc_info=error)
            problems = error.problems if isinstance(error, StillroomError) else [describe_crash(0)]
            result = {"state": "failed", "problems": [asdict(problem) for problem in problems]}
        finally:
            self._processes.pop(name, None)
            self._tasks.pop(name, None)
        try:
            self._settle(name, result, code)
        finally:
            self._pump()

    async def _attempt(self, name: str) -> tuple[dict[str, Any] | None, int]:
        record = self.jobs.get(name)
        if record is None:
            raise LookupError(name)
        job_folder = self.jobs.folder_of(name)
        text = self.jobs.recipe(name)
        order = self._order("run", text, record.tenant, self.out_of(record), str(job_folder))
        while not self._is_leaving(name):
            async with self.workspace.lend_scratch() as scratch:
                result, code = await self._work(record, order, scratch)
            if not _is_busy(result):
                if result and result["state"] == "finished":
                    await asyncio.to_thread(self._sign, self.out_of(record))
                return result, code
            if not self._is_leaving(name):
                await asyncio.sleep(_BUSY_WAIT_S)  # the process of a killed server is still ending
        return {"state": "cancelled"}, 0

    async def _work(
        self, record: JobRecord, order: Mapping[str, Any], scratch: Path
    ) -> tuple[dict[str, Any] | None, int]:
        """Return the result of a job's process, and its exit code."""
        root = self.workspace.root(record.tenant)
        cache = self.workspace.cache_of(record.tenant)
        with (self.jobs.folder_of(record.id) / _LOG_FILE).open("ab") as log:
            process = await spawn(order, root.folder, scratch, cache=cache, log=log.fileno())
        self._processes[record.id] = process
        if self._is_leaving(record.id):  # cancelled while the process was starting
            send_signal(process, signal.SIGTERM)
        result = await read_worker_result(process)
        code = await process.wait()
        del self._processes[record.id]
        return result, code

    def _sign(self, out: Path) -> None:
        """Sign a finished job and its steps: its own process may not read the server's key."""
        signer = find_configured_key()
        if signer is not None:
            require_regular_files(out)  # before its steps are looked for: a link could lead outside
            for folder in list_run_folders(out):
                sign_artifact(folder, signer)

    def _is_leaving(self, name: str) -> bool:
        """Return whether a job should stop: its client cancelled it, or the server shuts down."""
        record = self.jobs.get(name)
        return self._stopping or record is None or record.is_cancelling

    def _order(
        self, task: str, text: str, tenant: str, out: Path, job_folder: str
    ) -> dict[str, Any]:
        root = self.workspace.root(tenant)
        return {
            "task": task,
            "recipe": text,
            "root": str(root.folder),
            "out": str(out.relative_to(root.folder)),
            "job_folder": job_folder,
            "readable": [str(root.shared)] if root.shared else [],
            "ports": list(self.policy.ports),
            "hub": self.policy.hub,
            "sandbox": self.has_fence,
        }

    def _settle(self, name: str, result: dict[str, Any] | None, code: int) -> None:
        record = self.jobs.get(name)
        if record is None:
            return
        if result and result["state"] == "finished":
            done = {"state": "finished", "artifact": result["artifact"], "problems": ()}
            self._change(name, **done, is_cancelling=False, ended=format_now())
        elif self._stopping and not record.is_cancelling:
            self._change(name, state="queued")
        elif record.is_cancelling or (result and result["state"] == "cancelled"):
            self._change(name, state="cancelled", is_cancelling=False, ended=format_now())
        else:
            self._fail(name, *(result["problems"] if result else [asdict(describe_crash(code))]))

    def _fail(self, name: str, *problems: Mapping[str, str]) -> None:
        _LOG.warning("job %s failed: %s", name, problems[0]["code"])
        record = self.jobs.get(name)
        if record is None:
            return
        folder = self.workspace.folder
        hide = make_path_redactor(
            {self.workspace.folder_of(record.tenant): "", folder: "the served folder"}
        )
        hidden = tuple(hide(dict(problem)) for problem in problems)
        self._change(name, state="failed", problems=hidden, ended=format_now())

    def _change(self, name: str, **fields: Any) -> JobRecord:
        """Update a job record; on a full disk in memory alone, which is logged."""
        try:
            return self.jobs.change(name, **fields)
        except (OSError, ResourceError) as error:
            _LOG.error("the record of job %s could not be written: %s", name, error)
            record = self.jobs.get(name)
            if record is None:
                raise
            return record


def _is_busy(result: dict[str, Any] | None) -> bool:
    problems: Sequence[Mapping[str, str]] = (result or {}).get("problems", ())
    return bool(problems) and problems[0]["code"] == "resource.busy"


class RecipeSubmission(BaseModel):
    """Recipe as sent by a client."""

    model_config = ConfigDict(extra="forbid")

    recipe: str | dict[str, Any] = Field(
        description="YAML text, or the same structure as JSON",
        examples=["kind: merge.weights\nmethod: linear\nmodels: [{model: a}, {model: b}]\n"],
    )
    overrides: list[Annotated[str, Field(max_length=4096)]] = Field(
        default_factory=list,
        max_length=100,
        description="overrides as KEY=VALUE, as in `stillroom run`",
    )


async def read_submission(body: RecipeSubmission, runner: JobRunner, tenant: str) -> Recipe:
    """Validate a client's submission and return its recipe.

    Raises:
        RecipeError: If it is invalid or refers to anything outside the workspace.
    """
    root = runner.workspace.root(tenant)
    return await asyncio.to_thread(
        validate_client_recipe,
        dump_client_recipe(body.recipe),
        root,
        runner.policy,
        body.overrides,
    )


def find_tenant(request: Request, runner: JobRunner) -> str:
    """Return the tenant whose jobs a request refers to.

    Raises:
        ApiError: If the folder has tenants and the key names none.
    """
    access = request.scope.get(ACCESS_KEY)
    tenant = access.tenant if access else ""
    if runner.workspace.has_tenants and not tenant:
        raise ApiError(
            403, "the API key names no tenant, and jobs belong to tenants", code="no_tenant"
        )
    return tenant if runner.workspace.has_tenants else ""


def find_job(name: str, request: Request, runner: JobRunner) -> JobRecord:
    """Return a job of the tenant; the job of another tenant is reported as unknown.

    Raises:
        ApiError: If the tenant has no such job.
    """
    record = runner.jobs.get(name)
    if record is None or record.tenant != find_tenant(request, runner):
        raise ApiError(404, f"there is no job {name[:80]!r}", code="unknown_job")
    return record
