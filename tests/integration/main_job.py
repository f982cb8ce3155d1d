"""A small main job: real documents, a scripted writer of questions, a tiny teacher."""

import io
import json
import os
import shutil
import signal
import sys
import time

import spdx_python_model
from click.testing import CliRunner
from tests.processes import Process
from tests.unit.models.tiny_encoders import make_encoder

from stillroom.cli.app import stillroom
from stillroom.provenance import read_artifact
from stillroom.recipes import render_template
from stillroom.testing import tiny_checkpoint

_TOWNS = ("Alder", "Birch", "Cedar", "Damson", "Elm", "Fir", "Gorse", "Hazel")
_TRADES = (
    ("mill", "grinds", "sacks of barley", "morning"),
    ("dairy", "churns", "wheels of cheese", "week"),
    ("press", "prints", "almanacs", "spring"),
    ("kiln", "fires", "earthen jugs", "month"),
    ("orchard", "ripens", "baskets of pears", "autumn"),
)


def write_documents(folder):
    """Write eight documents of five facts each; return the script that asks about them."""
    folder.mkdir(parents=True)
    script = {}
    for number, town in enumerate(_TOWNS):
        lines = [f"# The trades of {town}", ""]
        for index, (place, verb, goods, time_of) in enumerate(_TRADES):
            count = 12 + 7 * number + 3 * index
            fact = f"The old {place} of {town} {verb} {count} {goods} every {time_of}."
            lines += [fact, ""]
            stem = verb.removesuffix("es") if verb.endswith(("shes", "ches")) else verb[:-1]
            script[fact] = f" What does the old {place} of {town} {stem} every {time_of}?"
        (folder / f"{town.lower()}.md").write_text("\n".join(lines), encoding="utf-8")
    return {**script, "*": " What is it?"}


class MainJob:
    """Arguments and processes of a small main job under one folder."""

    questions = 2  # that the report asks of each reader and of the model

    def __init__(self, folder):
        self.folder = folder
        self.documents = folder / "documents"
        (folder / "script.json").write_text(json.dumps(write_documents(self.documents)))
        self.teacher = tiny_checkpoint(folder / "teacher", layers=4, seed=1, context_length=2048)
        self.encoder = make_encoder(folder / "encoder")

    def inputs(self):
        """Return the settings that every recipe of the job has."""
        return [
            f"inputs.teacher={self.teacher}",
            "inputs.embedder=builtin:static",
            "steps.index.origin={kind: human, license: CC0-1.0}",
            f"steps.records.model=scripted:{self.folder / 'script.json'}",
        ]

    def arguments(self, out, *more):
        """Return the command line of one make."""
        return [
            sys.executable, "-m", "stillroom", "make", str(self.documents), "--out", str(out),
            *self.inputs(),
            "steps.records.num_records={train: 30, held_out: 0}",
            "steps.records.pipeline.filters=[shape, question_form, grounded, duplicate]",
            f"steps.reader.base={self.encoder}",
            "steps.reader.start=null",
            "steps.reader.train={steps: 12, batch_size: 2, threads: 1, save_every_s: 0}",
            f"steps.report.compare.model_questions={self.questions}",
            f"steps.report.max_questions={self.questions}",
            "steps.report.max_new_tokens=8",
            *more,
        ]  # fmt: skip

    def start(self, out, *more):
        """Start one make."""
        return Process(self.arguments(out, *more), env={**os.environ, "OMP_NUM_THREADS": "1"})

    def make(self, out, *more):
        """Run one make to its end; return its exit code and what it said."""
        process = self.start(out, *more)
        told, talked = process.communicate(timeout=240)
        return process.returncode, told + talked

    def kill_in(self, out, step, delay_s, before=()):
        """Start a make and kill it so many seconds into a step; return whether it was alive.

        ``before`` are folders of a finished run: of the steps that were done by then.
        """
        for folder in before:
            shutil.copytree(folder, out / "steps" / folder.name)
        process = self.start(out, "--resume")
        until = time.monotonic() + 200
        while not list(out.glob(f"steps/.{step}-*.partial")):
            if process.poll() is not None or time.monotonic() > until:
                break
            time.sleep(0.005)
        time.sleep(delay_s)
        alive = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return alive


class StudentJob(MainJob):
    """The same documents, for the recipe that prunes and distills a student."""

    def arguments(self, out, *more):
        """Return the command line of one run of the recipe."""
        recipe = self.folder / "student.yaml"
        recipe.write_text(render_template("flow", "student"), encoding="utf-8")
        return [
            sys.executable, "-m", "stillroom", "run", str(recipe), "--out", str(out),
            f"inputs.documents={self.documents}",
            *self.inputs(),
            "steps.records.num_records={train: 16, held_out: 6}",
            "steps.records.pipeline.filters=[shape, question_form, grounded, duplicate]",
            "steps.records.pipeline.include_passages=8",
            "steps.records.pipeline.filters=[shape, question_form, grounded, duplicate]",
            "steps.student.train={steps: 6, batch_size: 4, precision: float32, save_every_s: 0, "
            "threads: 1}",
            "steps.student.student={layers: 2, max_parameters: 1.0}",
            "steps.student.max_tokens=96",
            "steps.export.max_questions=2",
            "steps.export.max_new_tokens=4",
            "steps.report.sampling={max_new_tokens: 8}",
            "steps.report.max_questions=4",
            *more,
        ]  # fmt: skip


def step_folders(run, names):
    """Return the folders of steps of a finished run."""
    steps = read_artifact(run).details["steps"]
    return [run / steps[name] for name in names]


def digests(out):
    """Return every step's digest of a finished run."""
    return {
        name: step["digest"] for name, step in json.loads((out / "steps.json").read_text()).items()
    }


def check_papers(run, out):
    """Write the papers of a run in under five seconds; validate both inventories."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    start = time.process_time()
    done = CliRunner().invoke(stillroom, ["attest", str(run), "--format", "all", "--out", str(out)])
    seconds = time.process_time() - start  # of this process alone, whatever else runs
    assert done.exit_code == 0, done.output
    assert "fields unknown: " in done.output
    assert len(list(out.iterdir())) == 6
    text = (out / "bom.cdx.json").read_text(encoding="utf-8")
    errors = JsonStrictValidator(SchemaVersion.V1_7).validate_str(text, all_errors=True)
    assert list(errors or ()) == []
    model, objects = spdx_python_model.load_data(json.loads((out / "bom.spdx.json").read_text()))
    model.JSONLDSerializer().write(objects, io.BytesIO())
    assert seconds < 5
