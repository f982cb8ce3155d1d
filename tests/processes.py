"""Processes that begin with the libraries already loaded: seconds less for every one of a test.

A server that has imported the heavy libraries forks a process for each command. What runs there
is what ``python -m``, ``python FILE`` and ``python -c`` would run, with its own arguments,
environment, output and signals; only the imports are not its own, and no disk is waited for.
"""

import functools
import io
import multiprocessing
import os
import runpy
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

_PRELOADED = [
    "torch",
    "torch.distributed",
    "torch.distributed.fsdp",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "tokenizers",
    "pydantic",
    "rich.progress",
    "stillroom.cli",
    "stillroom.distill.trainers.logits",
    "stillroom.flow",
    "stillroom.rag.index.searcher",
    "stillroom.merge.jobs.publication",
    "stillroom.train.loop",
    "stillroom.train.distributed",
    "tests.preloaded",
]


class _UnsyncedConnection(sqlite3.Connection):
    def execute(self, sql, *values):
        is_about_disks = sql.startswith("PRAGMA synchronous")
        return super().execute("PRAGMA synchronous=OFF" if is_about_disks else sql, *values)


def skip_disk_syncs():
    """Let this process never wait until a disk has written: a kill loses nothing by it."""

    def check(descriptor):
        os.fstat(descriptor if isinstance(descriptor, int) else descriptor.fileno())

    os.fsync = check
    sqlite3.connect = functools.partial(sqlite3.connect, factory=_UnsyncedConnection)


class Process:
    """As much of ``subprocess.Popen`` as the tests use; the output is text."""

    def __init__(self, arguments, *, env=None, cwd=None):
        """Start ``arguments``, which begin with ``sys.executable``."""
        self.args = [str(argument) for argument in arguments]
        assert self.args[0] == sys.executable, "only Python can be started here"
        self._told, self._talked = _output(), _output()
        self._process = preloaded_context().Process(
            target=_run,
            args=(
                self.args[1:],
                dict(os.environ if env is None else env),
                os.fspath(cwd or Path.cwd()),
                (self._told.name, self._talked.name),
            ),
        )
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self):
        """Return the exit code, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout=None):
        """Wait for the end; return the exit code."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._process.exitcode

    def communicate(self, timeout=None):
        """Wait for the end; return what it wrote to standard output and to standard error."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.send_signal(signal.SIGKILL)
            self.wait(60)
            raise
        written = []
        for file in (self._told, self._talked):
            written.append(Path(file.name).read_text(encoding="utf-8"))
            file.close()
        return tuple(written)

    def send_signal(self, number):
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def run_process(arguments, *, env=None, cwd=None, timeout=None):
    """Run to the end; return what ``subprocess.run`` returns."""
    process = Process(arguments, env=env, cwd=cwd)
    told, talked = process.communicate(timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, told, talked)


def preloaded_context():
    """Return the context whose processes begin with the libraries loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _output():
    return tempfile.NamedTemporaryFile(prefix="stillroom-test-")  # closed when read


def _run(arguments, environment, folder, outputs):
    """Become the command: this is the body of the forked process."""
    skip_disk_syncs()
    for descriptor, name in enumerate(outputs, start=1):
        file = os.open(name, os.O_WRONLY)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", write_through=True)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    how, *rest = arguments
    if how == "-m":
        sys.argv = [rest[0], *rest[1:]]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif how == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
    else:
        sys.argv = [how, *rest]
        runpy.run_path(how, run_name="__main__")
