"""Devices and pipes in the place of a user's file: refused by name, not read without end."""

import importlib
import os
from pathlib import Path

import pytest

from stillroom.errors import StillroomError
from stillroom.flow import check_inputs
from stillroom.objects.disk import read_secret
from stillroom.provenance.signing.keys import load_public_key
from stillroom.recipes import parse_recipe
from stillroom.serve.access import read_keys

READERS = {
    "evaluate.qa.questions:read_question_set": (),
    "evaluate.qa.collections:read_run": (),
    "evaluate.qa.collections:read_queries": (),
    "rag.evaluation.answer_job:read_labels": (),
    "rag.storage.filters:read_metadata": (),
    "rag.claim_checking.training_run:_read_claims": (print,),
    "cli.diffusion.options:read_schema": (),
    "synth.generators.table_rows:read_seed_rows": ([],),
    "synth.generators.tool_calls:_read": (),
    "distill.cross_tokenizer.report:_read_text": (),
    "provenance.digests:digest_file": (),
    "provenance.evidence:read_evidence": (),
    "forensics.c2pa.signature:verify_text": ([],),
    "forensics.c2pa.credentials:verify_file": (),
    "forensics.media.images:load_image": (),
    "forensics.media.file_types:identify_bytes": (),
    "forensics.benchmark.evaluation:read_scores": (),
    "forensics.benchmark.evaluation:read_evaluation": (),
    "forensics.benchmark.manifest:read_items": (),
    "forensics.benchmark.manifest:import_deepfakebench": (),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("target", READERS)
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(target, tmp_path):
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    module, name = target.split(":")
    read = getattr(importlib.import_module(f"stillroom.{module}"), name)
    with pytest.raises((StillroomError, OSError)) as caught:
        list(read(path, *READERS[target]) or ())
    assert "pipe.png" in str(caught.value)


def test_a_recipe_names_no_device(tmp_path):
    text = f"kind: distill.logits\nteacher: {tmp_path}\nstudent: {tmp_path}\nrecords: /dev/zero\n"
    with pytest.raises(StillroomError, match="/dev/zero is a device or a pipe"):
        check_inputs(parse_recipe(text))


@pytest.mark.parametrize("read", [load_public_key, read_keys])
def test_keys_are_not_read_without_end(read):
    with pytest.raises(StillroomError, match="more than 1048576 bytes"):
        read(Path("/dev/zero"))


def test_a_key_may_come_through_a_pipe():
    reader, writer = os.pipe()
    os.write(writer, b"-----BEGIN")
    os.close(writer)
    assert read_secret(Path(f"/dev/fd/{reader}")) == b"-----BEGIN"
    os.close(reader)
