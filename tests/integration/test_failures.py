"""What goes wrong for a user: one screen, the right exit code, and nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tests.integration.main_job import StudentJob, digests
from tests.processes import run_process

from stillroom.provenance import read_artifact

STATIC = "inputs.embedder=builtin:static"
SCREEN_LINES = 24
MERGE = """\
version: 1
kind: merge.weights
method: {name: ties, densty: 0.5}
modles:
  - {model: ./a}
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return StudentJob(tmp_path_factory.mktemp("failures"))


@pytest.fixture(scope="module")
def run(job):
    out = job.folder / "run"
    code, said = job.make(out)
    assert code == 0, said
    return out


@pytest.fixture(scope="module")
def index(run):
    return run / read_artifact(run).details["steps"]["index"]


@pytest.fixture
def half(run, tmp_path):
    """Return a folder in which the steps before the student are done."""
    return take_over(run, tmp_path / "half", ("index", "records"))


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("mount is not installed")
    if made.returncode:
        pytest.skip(f"mounting is not permitted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def take_over(run, out, names):
    steps = read_artifact(run).details["steps"]
    for name in names:
        shutil.copytree(run / steps[name], out / steps[name])
    return out


def stillroom(*arguments, **environment):
    return run_process(
        [sys.executable, "-m", "stillroom", *map(str, arguments)],
        timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def make(job, out, *more):
    process = job.start(out, "--quiet", *more)
    told, talked = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, told, talked)


def fails(told, exit_code, code, *mentioned):
    """Assert one screen with the exit code, the error's code, what is expected and what to do."""
    assert told.returncode == exit_code, told.stderr
    assert told.stdout == ""
    assert "Traceback" not in told.stderr
    assert len(told.stderr.splitlines()) <= SCREEN_LINES
    assert f"[{code}]" in told.stderr
    assert "\n  expected " in told.stderr
    assert "\n  next: " in told.stderr
    for text in mentioned:
        assert str(text) in told.stderr
    return True


def snapshot(folder):
    """Return every file below a folder with its bytes, but for locks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def wait_for(out, pattern, process):
    until = time.monotonic() + 60
    while not list(out.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)


def write_broken(folder):
    folder.mkdir()
    (folder / "a.pdf").write_bytes(b"not a pdf")
    (folder / "b.docx").write_bytes(b"PK\x03\x04junk")
    (folder / "c.txt").write_bytes(b"")
    return folder


# The folder of documents.


def test_empty_folder_leaves_nothing_behind(job, tmp_path):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    told = stillroom("make", tmp_path / "empty", "--out", out, f"inputs.teacher={job.teacher}")
    fails(told, 1, "rag.no-documents", tmp_path / "empty")
    assert not out.exists()


def test_missing_folder(tmp_path):
    fails(stillroom("make", tmp_path / "none", "--out", tmp_path / "out"), 1, "data.missing")
    told = stillroom("rag", "index", tmp_path / "none", "--out", tmp_path / "out")
    fails(told, 1, "data.missing", tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_only_broken_files_end_in_an_empty_index_and_are_listed(job, tmp_path):
    folder = write_broken(tmp_path / "broken")
    told = stillroom(
        "make",
        folder,
        "--out",
        tmp_path / "out",
        "--quiet",
        STATIC,
        f"inputs.teacher={job.teacher}",
    )
    assert told.returncode == 0
    for reason in ("a.pdf: ", "b.docx: ", "c.txt: the file is empty", "[document.unreadable]"):
        assert reason in told.stderr


def test_a_broken_file_among_good_ones_is_left_out_and_listed(tmp_path):
    folder = write_broken(tmp_path / "some")
    for name in ("one", "two", "three"):
        (folder / f"{name}.md").write_text(f"# Mills\n\nThe mill number {name} grinds barley.\n")
    command = ("rag", "index", folder, "embedder=builtin:static", "--out")
    refused = stillroom(*command, tmp_path / "refused")
    fails(refused, 1, "rag.documents-failed", "3 of 6 documents", "at most 20%", "max_failed=0.4 ")
    told = stillroom(*command, tmp_path / "index", "max_failed=0.5")
    assert told.returncode == 0, told.stderr
    assert told.stderr.count("left out: ") == 3
    failed = read_artifact(tmp_path / "index").details["failed"]
    assert [row["path"] for row in failed] == ["a.pdf", "b.docx", "c.txt"]
    assert all(row["reason"] for row in failed)


# Recipes and overrides: exit 2 before anything is done.


def test_every_problem_of_a_recipe_comes_at_once_with_its_place(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(MERGE)
    for told in (stillroom("check", path), stillroom("run", path, "--out", tmp_path / "out")):
        fails(told, 2, "recipe.unknown-key", f"{path}:3:22", f"{path}:4:1")
        assert "did you mean 'density'?" in told.stderr
        assert "did you mean 'models'?" in told.stderr
        assert "[recipe.missing]" in told.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "code", "mentioned"),
    [
        ("steps.index.chunker=headng", "recipe.unknown-method", "did you mean 'heading'?"),
        ("steps.reader.tarin={steps: 3}", "recipe.unknown-key", "did you mean 'train'?"),
        ("steps.nosuch.kind=merg", "recipe.unknown-kind", "merge"),
        ("seed=[", "recipe.yaml", "seed=["),
    ],
)
def test_overrides_that_cannot_be(job, tmp_path, override, code, mentioned):
    told = stillroom("make", job.documents, "--out", tmp_path / "out", override)
    fails(told, 2, code, mentioned)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "code"), [("noequals", "recipe.override"), ("seed=abc", "recipe.value")]
)
def test_overrides_that_are_none(job, tmp_path, override, code):
    told = stillroom("make", job.documents, "--out", tmp_path / "out", override)
    assert told.returncode == 2
    assert f"override '{override}'" in told.stderr
    assert f"[{code}]\n  expected " in told.stderr


def test_missing_recipe_and_long_lists_of_problems_fit_a_screen(tmp_path):
    fails(stillroom("check", tmp_path / "none.yaml"), 2, "recipe.not-found")
    path = tmp_path / "many.yaml"
    path.write_text(MERGE + "".join(f"unknown_{n}: 1\n" for n in range(40)))
    told = stillroom("check", path)
    fails(told, 2, "recipe.unknown-key", "more; --debug shows them all")


# Checkpoints and endpoints.


def test_missing_checkpoint_ends_before_the_first_step(job, tmp_path):
    out = tmp_path / "out"
    told = stillroom("make", job.documents, "--out", out, STATIC, "inputs.teacher=./nowhere")
    fails(told, 1, "data.missing", "inputs.teacher", "nowhere does not exist")
    told = stillroom("make", job.documents, "--out", out, STATIC, "inputs.teacher=org/name")
    fails(told, 1, "data.missing", "hub:org/name")
    assert not out.exists()


def test_hub_name_that_is_found_nowhere_names_the_places(job, tmp_path):
    out = tmp_path / "out"
    begun = time.monotonic()
    told = stillroom(
        *("make", job.documents, "--out", out, STATIC, "inputs.teacher=hub:nobody/nothing"),
        HF_HUB_OFFLINE="0",
        HF_ENDPOINT="http://127.0.0.1:9",
        http_proxy="",
        STILLROOM_MODELS=str(tmp_path),
    )
    assert time.monotonic() - begun < 40
    fails(told, 1, "checkpoint.not-found", "$STILLROOM_MODELS", "Hugging Face cache", "the hub")
    assert not out.exists()


def test_endpoint_that_is_down_loses_nothing(job, run, tmp_path):
    pytest.importorskip("aiohttp")
    out = tmp_path / "run"
    shutil.copytree(run, out)
    begun = time.monotonic()
    asks = "steps.records.pipeline.generator={name: grounded_qa, openings: false}"
    told = make(job, out, "steps.records.model=http://127.0.0.1:9/v1#m", asks)
    assert time.monotonic() - begun < 60
    fails(told, 1, "backend.down", "127.0.0.1:9", "curl ")
    assert list(out.glob("steps/.records-*.partial/units"))
    assert digests(out) == digests(run)
    found = stillroom("ask", out, "What does the old mill of Alder grind?")
    assert found.returncode == 0, found.stderr
    assert make(job, out, "--resume").returncode == 0
    assert digests(out) == digests(run)
    assert not list(out.glob("steps/.*"))


# Machines that are too small.


def test_disk_that_is_too_small_is_refused_before_the_first_step(job, small_disk):
    (small_disk / "ballast").write_bytes(bytes(62 << 20))
    told = make(job, small_disk / "run")
    fails(told, 3, "resource.disk", "MB that are free", "free some space")
    assert not (small_disk / "run").exists()


def test_disk_that_fills_up_and_is_enlarged_ends_with_the_same_digests(job, run, small_disk):
    """Takes over 10 s."""
    out = take_over(run, small_disk / "run", ("index", "records"))
    process = job.start(out, "--quiet")
    wait_for(out, "steps/.student-*.partial/**/preflight.json", process)  # which looks at the disk
    fill(small_disk / "ballast")
    told, talked = process.communicate(timeout=60)
    full = subprocess.CompletedProcess((), process.returncode, told, talked)
    fails(full, 3, "resource.disk-full", "free some space", "--resume", small_disk)
    enlarge = ["mount", "-o", "remount,size=200m", str(small_disk)]
    subprocess.run(enlarge, check=True, capture_output=True)
    told = make(job, out, "--resume")
    assert told.returncode == 0, told.stderr
    assert digests(out) == digests(run)


def fill(path, left=20_000):
    with path.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)) == 1 << 16 and shutil.disk_usage(path.parent).free > left:
            pass


@pytest.mark.parametrize("step", ["records", pytest.param("report", marks=pytest.mark.slow)])
def test_disk_that_fills_up_in_other_steps_is_the_same_error(job, run, small_disk, step):
    steps = list(read_artifact(run).details["steps"])
    out = take_over(run, small_disk / "run", steps[: steps.index(step)])
    process = job.start(out, "--quiet")
    wait_for(out, f"steps/.{step}-*.partial/recipe.yaml", process)
    fill(small_disk / "ballast")
    told, talked = process.communicate(timeout=60)
    full = subprocess.CompletedProcess((), process.returncode, told, talked)
    fails(full, 3, "resource.disk-full", "free some space", "--resume")


def test_job_that_cannot_fit_names_the_knob(job, tmp_path):
    path, records = tmp_path / "distill.yaml", tmp_path / "records.jsonl"
    asked = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "so."}
    records.write_text(
        "".join(
            json.dumps({"messages": asked, "fields": {"split": split, "number": number}}) + "\n"
            for number, split in enumerate(["train", "train", "held_out"])
        )
    )
    path.write_text(
        "version: 1\nkind: distill.logits\n"
        f"teacher: {job.teacher}\nrecords: {records}\n"
        "train: {steps: 6, batch_size: 4, micro_tokens: 1000000000}\n"
    )
    told = stillroom("check", path)
    assert told.stdout.startswith("memory")
    told.stdout = ""
    fails(told, 3, "resource.memory", "train.micro_tokens", path)
    again = stillroom("run", path, "--out", tmp_path / "out")
    fails(again, 3, "resource.memory", "train.micro_tokens")
    assert not (tmp_path / "out").exists()


# Bytes that are not what was written.


@pytest.mark.parametrize(
    "name",
    ["segments/000001/vectors.npy", "segments/000001/postings.safetensors", "ledger.sqlite"],
)
@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_damaged_index_names_the_file(index, tmp_path, name, how):
    copy = tmp_path / "index"
    shutil.copytree(index, copy)
    path = copy / "output" / name
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 1
    path.write_bytes(data)
    fails(stillroom("rag", "search", copy, "barley"), 1, "rag.index-damaged", path.name)


def test_damaged_index_of_a_run_is_not_asked(run, index, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    with (copy / index.relative_to(run) / "output" / "ledger.sqlite").open("ab") as file:
        file.write(b"{}\n")
    fails(stillroom("ask", copy, "What?"), 1, "rag.index-damaged", "ledger.sqlite")
    fails(stillroom("verify", copy), 1, "integrity.changed", "output/ledger.sqlite")


def test_half_written_index_is_recognized(index, tmp_path):
    copy = tmp_path / "index"
    shutil.copytree(index, copy)
    (copy / "output" / "ledger.sqlite").unlink()
    fails(stillroom("rag", "search", copy, "barley"), 1, "rag.index-unfinished", "ledger.sqlite")


# Folders that are taken.


def test_unfinished_run_is_neither_forgotten_nor_asked(job, half):
    (half / "recipe.yaml").write_text("kind: flow\n")
    before = snapshot(half)
    fails(make(job, half), 1, "data.unfinished", "--resume", "--overwrite")
    fails(stillroom("ask", half, "What?"), 1, "data.not-an-artifact", "--resume")
    assert snapshot(half) == before


@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
def test_folder_that_is_no_run_is_kept(job, tmp_path, flag):
    mine = tmp_path / "mine"
    (mine / "steps").mkdir(parents=True)
    (mine / "steps" / "one.txt").write_text("mine")
    (mine / "notes.txt").write_text("mine")
    before = snapshot(mine)
    fails(make(job, mine, flag), 1, "data.exists", mine)
    told = stillroom("rag", "index", job.documents, "--out", mine, "embedder=builtin:static", flag)
    fails(told, 1, "data.exists", mine)
    assert snapshot(mine) == before


def test_out_that_is_a_file_is_kept(job, tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    fails(make(job, path), 1, "data.exists")
    fails(make(job, path, "--overwrite"), 1, "data.exists")
    assert path.read_text() == "mine"


def test_overwrite_that_cannot_start_keeps_the_finished_run(job, run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    before = snapshot(out)
    fails(make(job, out, "--overwrite", "steps.index.chunkr=1"), 2, "recipe.unknown-key")
    fails(make(job, out, "--overwrite", "inputs.teacher=./none"), 1, "data.missing")
    assert snapshot(out) == before


def test_second_job_in_one_folder_does_not_clear_the_first(job, tmp_path):
    from stillroom.jobs import Job

    first = Job.start(tmp_path / "index", "kind: rag.index\n")
    (first.output / "kept").write_text("kept")
    index = ("rag", "index", job.documents, "--out", tmp_path / "index", "embedder=builtin:static")
    for flag in ("--overwrite", "--resume", "--quiet"):
        fails(stillroom(*index, flag), 3, "resource.busy", "index")
    assert (first.output / "kept").read_text() == "kept"
    first.close()


# Stopping.


def test_second_run_waits_and_an_interrupted_one_resumes_to_the_same_digests(job, run, half):
    """Takes over 10 s."""
    process = job.start(half, "--quiet")
    wait_for(half, "steps/.student-*.partial/recipe.yaml", process)
    fails(make(job, half, "--overwrite"), 3, "resource.busy", half)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    told, talked = process.communicate(timeout=60)
    assert process.returncode == 130, talked
    assert "[job.cancelled]" in talked
    assert "--resume" in talked
    assert "Traceback" not in talked
    assert told == ""
    fails(make(job, half), 1, "data.unfinished")
    done = make(job, half, "--resume")
    assert done.returncode == 0, done.stderr
    assert digests(half) == digests(run)


# Things that are not what a command wants.


def test_paths_that_are_no_artifact(run, index, tmp_path):
    for command in ("show", "verify"):
        fails(stillroom(command, tmp_path), 1, "data.not-an-artifact", tmp_path)
    fails(stillroom("ask", tmp_path / "none", "What?"), 1, "data.missing", "does not exist")
    fails(stillroom("verify", tmp_path / "none"), 1, "data.missing")
    fails(stillroom("show", "tiess"), 1, "data.missing", "did you mean 'ties'?")
    records = next(index.parent.glob("records-*"))
    fails(stillroom("ask", records, "What?"), 1, "data.wrong-kind")
    fails(stillroom("rag", "search", run, "barley"), 1, "data.wrong-kind")


def test_many_changed_files_fit_a_screen(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for path in copy.rglob("output/*.json*"):
        path.write_bytes(path.read_bytes() + b"\n")
    fails(stillroom("verify", copy), 1, "integrity.changed", "more; --debug shows them all")
    told = stillroom("verify", copy, "--json")
    assert len(json.loads(told.stdout)["findings"]) > SCREEN_LINES / 3


def test_unknown_names_are_answered_with_the_known_ones():
    fails(stillroom("list", "methods", "nosuch"), 2, "recipe.unknown-registry", "merge.methods")
    for arguments, near in ((("mkae",), "make"), (("rag", "serch"), "rag search")):
        told = stillroom(*arguments)
        assert told.returncode == 2
        assert f"No such command '{arguments[-1]}'; did you mean 'stillroom {near}'?" in told.stderr
        assert "Traceback" not in told.stderr


def test_no_arguments_print_the_help():
    told = stillroom()
    assert "Usage: " in told.stdout + told.stderr
    assert "Turn a folder of documents into a model you own." in told.stdout + told.stderr


@pytest.mark.parametrize("arguments", [("ask", "run"), ("make", "."), ("rag", "search", "x", "y")])
def test_bad_usage_exits_with_2(arguments):
    told = stillroom(*arguments, *(["--k", "0"] if arguments[0] == "rag" else []))
    assert told.returncode == 2
    assert "Error: " in told.stderr
    assert "Traceback" not in told.stderr
