"""Object stores, against an S3 server on this machine."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from stillroom.checkpoints import Checkpoint
from stillroom.cli.app import stillroom
from stillroom.errors import CheckpointError, DataError, MissingExtraError
from stillroom.flow import run_recipe
from stillroom.models.hub import resolve_checkpoint
from stillroom.objects import (
    connect,
    exists,
    is_address,
    mirror_folder,
    open_for_writing,
    publish_folder,
    read_range,
)
from stillroom.provenance import digest_file, read_artifact
from stillroom.provenance.artifact import digest_claim
from stillroom.recipes import parse_recipe
from stillroom.records import Message, Record, RecordWriter, read_records, write_records
from stillroom.testing import tiny_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

RECORDS = [
    Record((Message("user", f"How many {n}?"), Message("assistant", f"There are {n} änd more.")))
    for n in range(300)
]


@pytest.fixture(scope="module")
def server(object_store):
    """Give the address of a bucket; credentials and server come from the environment alone."""
    patch = pytest.MonkeyPatch()
    for name, value in object_store("objects").items():
        patch.setenv(name, value)
    yield "s3://objects"
    patch.undo()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.zst", "parquet"])
def test_records_go_out_and_come_back(server, suffix, tmp_path):
    address = f"{server}/made/{suffix}/records.{suffix}"
    assert write_records(address, RECORDS) == 300
    assert list(read_records(address)) == RECORDS
    assert list(read_records(f"{server}/made/{suffix}")) == RECORDS  # by the folder's name
    write_records(tmp_path / f"records.{suffix}", RECORDS)
    store, path = connect(address)
    assert store.cat_file(path) == (tmp_path / f"records.{suffix}").read_bytes()  # the same bytes


def test_what_breaks_off_leaves_the_old_object(server):
    address = f"{server}/broken/records.jsonl"
    write_records(address, RECORDS[:1])

    def fail():
        with RecordWriter(address) as writer:
            for record in RECORDS:
                writer.write(record)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(read_records(address)) == RECORDS[:1]
    with pytest.raises(TypeError), open_for_writing(f"{server}/broken/new") as file:
        list(map(file.write, [b"x" * (20 << 20), None]))  # more than one part
    assert not exists(f"{server}/broken/new")


@pytest.mark.slow
def test_an_object_of_several_parts_is_whole(server):
    data = bytes(range(256)) * (40 << 12)  # 40 MiB
    with open_for_writing(f"{server}/large") as file:
        for start in range(0, len(data), 1 << 20):
            file.write(data[start : start + (1 << 20)])
    assert read_range(f"{server}/large", 0, len(data)) == data
    assert read_range(f"{server}/large", 1000, 1010) == data[1000:1010]
    with pytest.raises(DataError, match="ended at byte") as caught:
        read_range(f"{server}/large", len(data) - 1, len(data) + 1)
    assert caught.value.code == "object.changed"


def merge(folder, *models):
    listed = ", ".join(f'{{model: "{model}"}}' for model in models)
    text = f"version: 1\nkind: merge.weights\nmethod: linear\nmodels: [{listed}]\n"
    return parse_recipe(text, "merge")


@pytest.mark.slow
def test_a_merge_reads_rows_where_they_lie_and_is_published_whole(server, tmp_path, cache):
    parents = [tiny_checkpoint(tmp_path / name, seed=at) for at, name in enumerate("ab")]
    here = run_recipe(merge(tmp_path, *parents), tmp_path / "here")
    places = []
    for parent in parents:
        store, path = connect(f"{server}/parents/{parent.name}")
        store.put(str(parent), path, recursive=True)
        places.append(f"{server}/parents/{parent.name}")

    there = run_recipe(merge(tmp_path, *places), tmp_path / "there")
    assert Checkpoint.open(tmp_path / "there").fingerprint == (
        Checkpoint.open(tmp_path / "here").fingerprint
    )
    weights = [entry for entry in here.files if entry.path.endswith(".safetensors")]
    assert weights == [entry for entry in there.files if entry.path.endswith(".safetensors")]
    assert not list(cache.rglob("*.safetensors"))  # no weights were copied

    run = CliRunner().invoke
    address = f"{server}/merged"
    sent = run(stillroom, ["publish", str(tmp_path / "there"), address])
    assert sent.exit_code == 0, sent.output
    came = run(stillroom, ["fetch", address, str(tmp_path / "back"), "--json"])
    assert json.loads(came.output)["digest"] == there.digest
    again = run(stillroom, ["publish", str(tmp_path / "there"), address])
    assert again.exception.code == "object.exists"
    run(stillroom, ["publish", str(tmp_path / "here"), address, "--overwrite"])
    assert Checkpoint.open(resolve_checkpoint(address)).fingerprint  # a published job's, whole


def test_a_merge_of_published_jobs_keeps_what_they_came_from(server, tmp_path):
    parents = []
    for at, kind in enumerate(("human", "synthetic")):
        made = run_recipe(
            merge(tmp_path, tiny_checkpoint(tmp_path / f"m{at}", seed=at)), tmp_path / f"run{at}"
        )
        told = made.to_json() | {"origin": {"kind": kind, "chain": [], "license": f"L-{at}"}}
        (tmp_path / f"run{at}" / "artifact.json").write_text(json.dumps(told))
        publish_folder(tmp_path / f"run{at}", f"{server}/kept/run{at}")
        parents.append(made)
    here = run_recipe(merge(tmp_path, tmp_path / "run0", tmp_path / "run1"), tmp_path / "here")
    there = run_recipe(
        merge(tmp_path, f"{server}/kept/run0", f"{server}/kept/run1"), tmp_path / "there"
    )
    assert there.origin == here.origin
    assert there.origin["kind"] == "synthetic"
    assert there.origin["license"] == "L-0 AND L-1"
    assert [(one.digest, one.kind) for one in there.parents] == [
        (one.digest, "checkpoint") for one in parents
    ]
    assert [one.path for one in there.parents] == [f"{server}/kept/run{at}" for at in range(2)]


KINDS = {
    "merge.select": """
method: linear
models: [{{model: "{model}"}}]
select: {{records: "{records}", split: held_out}}
""",
    "evaluate.report": """
models: {{one: "scripted:{script}"}}
fidelity: null
records: "{records}"
""",
    "distill.logits": """
teacher: "{model}"
records: "{records}"
student: {{layers: 1, max_parameters: 0.9}}
train: {{steps: 2, batch_size: 2, threads: 1, precision: float32}}
fidelity: {{baseline: false, answers: 0, speed: false}}
""",
    "diffusion.train": """
model: "{model}"
records: "{records}"
train: {{steps: 2, batch_size: 2, threads: 1, precision: float32}}
""",
}


@pytest.mark.parametrize(
    "kind",
    [
        "evaluate.report",
        pytest.param("merge.select", marks=pytest.mark.slow),
        pytest.param("distill.logits", marks=pytest.mark.slow),
        pytest.param("diffusion.train", marks=pytest.mark.slow),
    ],
)
def test_a_job_takes_records_from_a_bucket_and_says_so(server, tmp_path, kind):
    """A published job's folder or a file of it, and the same bytes come of them as from here."""
    records = tmp_path / "records"
    write_records(
        records / "output" / "records.jsonl",
        [
            Record(record.messages, {"split": ("held_out", "train")[at % 4 != 0]})
            for at, record in enumerate(RECORDS[:24])
        ],
    )
    told = {"format": 1, "kind": "records", "files": [["output/records.jsonl", 1, "d"]]}
    (records / "artifact.json").write_text(json.dumps({**told, "parents": []}))
    publish_folder(records, f"{server}/{kind}/records")
    (tmp_path / "script.json").write_text(json.dumps({"*": "There are 4."}))
    model = tiny_checkpoint(tmp_path / "model")

    def do(place, out):
        text = KINDS[kind].format(model=model, script=tmp_path / "script.json", records=place)
        recipe = parse_recipe(f"version: 1\nkind: {kind}{text}", "x")
        return run_recipe(recipe, tmp_path / out / "made")

    here = do(records, "here")
    there = do(f"{server}/{kind}/records", "there")
    assert there.digest == here.digest
    parents = {one.role: one for one in there.parents}
    assert parents["records"].path == f"{server}/{kind}/records"
    assert parents["records"].digest == read_artifact(records).digest
    file = do(f"{server}/{kind}/records/output/records.jsonl", "file")
    assert file.digest == here.digest
    (named,) = (one for one in file.parents if one.role == "records")
    assert named.path == f"{server}/{kind}/records/output/records.jsonl"
    assert named.digest == digest_file(records / "output" / "records.jsonl")


def test_a_flow_does_a_step_again_when_its_objects_have_changed(server, tmp_path):
    address = f"{server}/flowing/records.jsonl"
    (tmp_path / "script.json").write_text(json.dumps({"*": "There are 4."}))
    text = f"""
version: 1
kind: flow
inputs: {{records: "{address}"}}
steps:
  report:
    kind: evaluate.report
    models: {{one: "scripted:{tmp_path / "script.json"}"}}
    fidelity: null
    records: {{from: inputs.records}}
"""
    recipe = parse_recipe(text, "flow")
    made = []
    for count in (4, 4, 6):
        write_records(address, RECORDS[:count])
        made.append(run_recipe(recipe, tmp_path / "run").details["steps"]["report"])
    assert made[0] == made[1] != made[2]


def test_a_folder_without_a_manifest_is_not_fetched(server, tmp_path):
    run_recipe(merge(tmp_path, tiny_checkpoint(tmp_path / "a")), tmp_path / "run")
    publish_folder(tmp_path / "run", f"{server}/half")
    store, path = connect(f"{server}/half/artifact.json")
    store.rm_file(path)
    done = CliRunner().invoke(stillroom, ["fetch", f"{server}/half", str(tmp_path / "half")])
    assert done.exception.code == "object.unfinished"
    with pytest.raises(DataError, match="not a finished job"):
        publish_folder(tmp_path / "a", f"{server}/no")


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    """A merge that Alice signed, and her keys beside it."""
    pytest.importorskip("cryptography")
    from stillroom.provenance.signing import create_key_pair, load_signing_key, sign_artifact

    folder = tmp_path_factory.mktemp("signed")
    create_key_pair(folder / "alice")
    parents = [tiny_checkpoint(folder / name, seed=at) for at, name in enumerate("ab")]
    run_recipe(merge(folder, *parents), folder / "run")
    sign_artifact(folder / "run", load_signing_key(folder / "alice.key"))
    return folder / "run"


def send(folder, store, name):
    """Publish a folder; give its address, and what fetches it and verifies it with Alice's key."""
    address = f"{store}/{name}"
    CliRunner().invoke(
        stillroom, ["publish", str(folder), address], catch_exceptions=False, standalone_mode=False
    )

    def verify(out, *words):
        fetched = CliRunner().invoke(stillroom, ["fetch", address, str(out)])
        if fetched.exception:
            return fetched
        key = str(folder.parent / "alice.pub")
        return CliRunner().invoke(stillroom, ["verify", str(out), "--key", key, *words])

    return address, verify


@pytest.mark.parametrize("kind", ["s3", "memory"])
def test_a_signed_job_comes_back_signed(server, signed, kind, tmp_path):
    store = server if kind == "s3" else "memory://bucket"
    _, verify = send(signed, store, "whole")
    told = verify(tmp_path / "back", "--replay", "all", "--json")
    assert told.exit_code == 0, told.output
    assert json.loads(told.output)["replay"]["drawn"] > 0
    files = {
        folder: {path.relative_to(folder): digest_file(path) for path in folder.rglob("*.*")}
        for folder in (signed, tmp_path / "back")
    }
    assert files[signed] == files[tmp_path / "back"]


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("output/model.safetensors", "integrity.changed", "model.safetensors"),
        ("artifact.json", "integrity.claim", "artifact.json"),
        ("events.jsonl", "integrity.changed", "events.jsonl"),
        ("model.sig", "integrity.signature", "model.sig"),
        ("claims.jsonl", "integrity.signature", "claims.jsonl"),
        ("signer.pub", "integrity.signature", "signer.pub"),
    ],
)
@pytest.mark.parametrize("how", ["changed", "removed"])
def test_what_was_changed_at_the_store_is_named(server, signed, name, code, said, how, tmp_path):
    if how == "removed" and name in {"artifact.json", "signer.pub"}:
        pytest.skip("without artifact.json nothing is fetched; signer.pub is a name plate alone")
    address, verify = send(signed, server, f"{how}/{name}")
    store, path = connect(f"{address}/{name}")
    if how == "removed":
        store.rm_file(path)
    elif name == "artifact.json":  # with digests that fit
        data = json.loads(store.cat_file(path))
        data["origin"]["license"] = "MIT"
        data["claim"] = digest_claim(data)
        store.pipe_file(path, json.dumps(data).encode())
    elif name == "signer.pub":
        from stillroom.provenance.signing import create_key_pair

        store.pipe_file(path, create_key_pair(tmp_path / "eve")[1].read_bytes())
    else:
        data = bytearray(store.cat_file(path))
        data[-9] ^= 1
        store.pipe_file(path, bytes(data))
    told = verify(tmp_path / "back")
    assert told.exception.code == code
    assert said in str(told.exception)


def test_a_shortened_checkpoint_is_refused(server, tmp_path):
    parent = tiny_checkpoint(tmp_path / "short")
    store, path = connect(f"{server}/short")
    store.put(str(parent), path, recursive=True)
    whole = (parent / "model.safetensors").read_bytes()
    store.pipe_file(f"{path}/model.safetensors", whole[:-8])
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(resolve_checkpoint(f"{server}/short", weights=False))
    assert caught.value.code == "checkpoint.broken"


@pytest.mark.slow
def test_documents_in_a_bucket_make_the_index_of_a_folder(server, tmp_path):
    (tmp_path / "documents" / "deep").mkdir(parents=True)
    for name in ("one.md", "deep/two.txt"):
        (tmp_path / "documents" / name).write_text(f"The file {name} tells of rivers and mills.\n")
    store, path = connect(f"{server}/documents")
    store.put(str(tmp_path / "documents"), path, recursive=True)

    def index(documents, out):
        text = (
            f'version: 1\nkind: rag.index\nembedder: "builtin:static"\ndocuments: "{documents}"\n'
        )
        return run_recipe(parse_recipe(text, "rag"), tmp_path / out)

    here = index(tmp_path / "documents", "here")
    there = index(f"{server}/documents", "there")
    assert there.digest == here.digest
    assert read_artifact(tmp_path / "there").parents[0].path == f"{server}/documents"
    store.rm_file(f"{path}/one.md")
    assert [file.name for file in mirror_folder(f"{server}/documents").rglob("*.*")] == ["two.txt"]


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("ftp://host/x.jsonl", "object.scheme"),
        ("s3:///", "object.scheme"),
        ("http://169.254.169.254/latest.jsonl", "object.scheme"),
        ("s3://key:secret@bucket/x.jsonl", "object.credentials"),
        ("s3://bucket/x.jsonl?endpoint=evil", "object.credentials"),
    ],
)
def test_what_is_no_store_is_refused(address, code):
    with pytest.raises(DataError) as caught:
        list(read_records(address))
    assert caught.value.code == code
    assert "secret" not in str(caught.value)


def test_what_is_not_there_is_said(server):
    with pytest.raises(DataError, match="holds no records"):
        list(read_records(f"{server}/nothing"))
    with pytest.raises(DataError) as caught:
        mirror_folder(f"{server}/nothing")
    assert caught.value.code == "object.missing"


def test_a_store_that_does_not_answer_is_said(server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(DataError) as caught:
        exists("s3://bucket/x")
    assert caught.value.code == "object.unreachable"
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_name_that_leads_outside_is_refused(server):
    store, path = connect(f"{server}/evil")
    store.pipe_file(f"{path}/a/../../../x.md", b"x")
    with pytest.raises(DataError) as caught:
        mirror_folder(f"{server}/evil")
    assert caught.value.code in {"object.name", "object.missing"}


def test_a_missing_library_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingExtraError, match="gcsfs"):
        connect("gs://bucket/x")
    assert is_address("gs://bucket/x")
    assert not is_address("C:/x")
