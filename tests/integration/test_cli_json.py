"""Every command that is asked for JSON prints one JSON value, and nothing beside it."""

import json
import os
import shutil
import sys

import click
import numpy as np
import pytest
from PIL import Image
from tests.console_folder import build_folder
from tests.contracts.test_cli import COMMANDS
from tests.processes import Process
from tests.unit.forensics.keras import keras_arrays

from stillroom.testing import tiny_checkpoint

MERGE = "kind: merge.weights\nmethod: linear\nmodels: [{model: a}, {model: b}]\n"
DISTILL = """
kind: distill.logits
teacher: a
student: {layers: 1, max_parameters: 1.0}
records: records.jsonl
method: forward_kl
max_tokens: 32
train: {steps: 1, batch_size: 2, precision: float32}
"""
SYNTH = """
kind: synth.records
index: run/steps/index
model: scripted:script.json
pipeline: {generator: grounded_qa, filters: [shape, question_form, grounded, duplicate]}
num_records: {train: 1, held_out: 0}
"""
FORGE = "kind: forensics.image_set\ncount: 2\nimage_size: 128\n"

CHEAP = {
    "ask": "run river",
    "attest": "records --format cyclonedx",
    "check": "merge.yaml",
    "checkpoint export": "a --to gguf --out a.gguf",
    "diffusion convert": "diffusion --out converted",
    "diffusion sample": "diffusion The --set max_new_tokens=4",
    "diffusion score": "diffusion --prompt The --answer river --answer sea",
    "distill align": "a b documents/rivers.txt",
    "distill import": "logprobs.jsonl --format axolotl --teacher a --out imported-cache",
    "distill texts": "documents --tokenizer a --out texts",
    "doctor": "",
    "forensics benchmark audit": "forged/output",
    "forensics benchmark split": "forged/output --by source --out split.csv",
    "forensics check": "picture.png",
    "forensics consent": "picture.png --who Ann --basis form --scope any --expires 2099-01-01 "
    "--out consent.json",
    "fetch": "s3://printed/published fetched",
    "forensics import": "meso4 weights.npz --out meso4",
    "forensics ledger": "",
    "forensics provenance init-ca": "ca",
    "forensics provenance verify": "picture.png",
    "forensics trace": "forged/output/fake/000000.jpg",
    "keys new": "key",
    "list": "methods",
    "merge extract": "a --base b --out vector --as task_vector",
    "merge inspect": "a b c --out inspection",
    "merge plan": "merge.yaml",
    "merge run": "merge.yaml --out merged",
    "merge calibrate": "a b --records records.jsonl --for fisher --out statistics --max-records 2",
    "merge verify": "merged-before",
    "publish": "merged-before s3://printed/merged",
    "rag compact": "index-of-compact",
    "rag delete": "index-of-delete rivers.txt",
    "rag index": "documents --out indexed embedder=builtin:static",
    "rag log": "run/steps/index",
    "rag rebuild": "index-of-rebuild chunker.size=90",
    "rag score": "qrels.txt ours.trec",
    "rag search": "run/steps/index river",
    "rag unpack": "corpus.jsonl --out unpacked",
    "rag update": "index-of-update",
    "rag verify": "run/steps/index",
    "run": "merge.yaml --out run-of-merge",
    "show": "run",
    "sign": "forged --key signer.key",
    "synth drops": "records",
    "synth export": "records --out exported",
    "synth preview": "synth.yaml --n 1",
    "verify": "forged --key signer.pub",
}

LONGER = {
    "diffusion compare",
    "distill capture",
    "distill verify",
    "forensics benchmark compare",
    "forensics benchmark import",
    "forensics export",
    "forensics provenance sign",
    "judge",
    "make",
    "merge adapters",
    "merge learn",
    "merge search",
    "rag graph-show",
    "rag migrate",
}
"""Commands that take seconds, or need what is not made in a moment."""
FINDS_SOMETHING = {"forensics benchmark audit"}
"""Commands that end with 1 here, as they do where they find what they look for."""
FAILS = (
    "distill import nothing.jsonl --format axolotl --teacher a --out cache",
    "fetch nothing fetched-nothing",
    "fetch s3://printed/nothing fetched-nothing",
    "forensics import meso4 human.jsonl --out meso4-of-nothing",
    "publish documents s3://printed/documents",
    "publish merged-before s3://printed/published",
    "publish merged-before s3://no-such-bucket/published",
    "rag migrate documents --to postgres",
    "sign nothing --key signer.key",
    "sign records --key nothing.key",
    "verify records --key nothing.pub",
)


@pytest.fixture(scope="module")
def stores(object_store):
    """Give the settings of an S3 server with one bucket."""
    return object_store("printed")


@pytest.fixture(scope="module")
def place(tmp_path_factory, stores):
    place = build_folder(tmp_path_factory.mktemp("json"))
    (place / "stores.json").write_text(json.dumps(stores))
    np.savez(place / "weights.npz", **keras_arrays(np.random.default_rng(5)))
    spoken = {
        "input_ids": [5, 6, 7],
        "target_token_ids": [[0, 1, 2, 3]] * 3,
        "target_logprobs": [[-1e9] * 4, *[[-2.0] * 4] * 2],
        "target_mask": [[0] * 4, *[[1] * 4] * 2],
    }
    write(place, "logprobs.jsonl", [spoken])
    for seed, name in enumerate("abc"):
        tiny_checkpoint(place / name, seed=seed, layers=2, hidden=16, context_length=512)
    lines = []
    for at in range(40):
        turns = [("user", f"What is number {at}?"), ("assistant", f"It is {at} and no other.")]
        lines.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    write(place, "records.jsonl", lines)
    write(place, "human.jsonl", [{"text": f"The mill of {at} grinds barley."} for at in range(40)])
    write(place, "corpus.jsonl", [{"_id": "1", "title": "Mills", "text": "The mill grinds."}])
    for name, recipe in {
        "merge": MERGE,
        "distill": DISTILL,
        "synth": SYNTH,
        "forge": FORGE,
    }.items():
        (place / f"{name}.yaml").write_text(recipe)
    (place / "script.json").write_text(json.dumps({"*": "What does the river do? It rises."}))
    (place / "queries.tsv").write_text("q1\triver\nq2\tferry\n")
    (place / "qrels.txt").write_text("q1 0 rivers.txt 1\nq2 0 hostile.txt 1\n")
    (place / "ours.trec").write_text("q1 Q0 rivers.txt 1 2.0 ours\nq2 Q0 rivers.txt 1 1.0 ours\n")
    Image.effect_noise((96, 64), 60).save(place / "picture.png")
    for line in (
        "run merge.yaml --out merged-before",
        "run forge.yaml --out forged",
        "keys new signer",
        "sign forged --key signer.key",
        "publish merged-before s3://printed/published",
    ):
        code, _, talked = run(place, line)
        assert code == 0, talked
    for command in ("compact", "delete", "rebuild", "update"):
        shutil.copytree(place / "run/steps/index", place / f"index-of-{command}")
    return place


def write(place, name, rows):
    (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(place, line):
    """Run a command; return its exit code, what it printed and what it said."""
    words = line.replace("{here}", str(place)).split()
    told = json.loads((place / "stores.json").read_text())
    environment = {**os.environ, **told, "OMP_NUM_THREADS": "1", "STILLROOM_LAB": f"{place}/lab"}
    command = [sys.executable, "-m", "stillroom", *words]
    process = Process(command, cwd=place, env=environment)
    told, talked = process.communicate(timeout=120)
    return process.returncode, told, talked


@pytest.mark.parametrize("command", CHEAP)
def test_what_is_printed_is_one_json_value(place, command):
    code, told, talked = run(place, f"{command} {CHEAP[command]} --json")
    assert code == (command in FINDS_SOMETHING), talked + told
    assert isinstance(json.loads(told), dict)
    assert "Traceback" not in talked


@pytest.mark.parametrize("line", FAILS)
def test_what_went_wrong_is_one_json_value(place, line):
    code, told, talked = run(place, f"{line} --json")
    assert code == 1, talked + told
    problems = json.loads(told)["problems"]
    assert all(one["code"] and one["expected"] and one["next"] for one in problems)
    assert "Traceback" not in talked


def test_no_command_is_forgotten():
    found = {
        " ".join(path)
        for path, command, _ in COMMANDS
        if not isinstance(command, click.Group)
        and "--json" in {name for option in command.params for name in option.opts}
    }
    assert found == CHEAP.keys() | LONGER
    assert not CHEAP.keys() & LONGER
