"""Whose voices: consent of people, claims of nobody held against what recorders write."""

import json
import struct
from datetime import date

import numpy as np
import pytest
from click.testing import CliRunner
from tests.unit.forensics.sounds import write_sound

from stillroom.cli.app import stillroom
from stillroom.errors import DataError, RecipeError
from stillroom.flow import run_recipe
from stillroom.forensics.c2pa.signer import sign_bytes
from stillroom.forensics.labeling.audio import AUDIO_LABELS
from stillroom.forensics.media.audio import SAMPLE_RATE, load_waveform
from stillroom.forensics.settings import LicensedSource
from stillroom.forensics.synthesis.consent import find_recorder_evidence, write_consent
from stillroom.forensics.synthesis.voices import draw_voice, open_voices
from stillroom.provenance import digest_file
from stillroom.recipes import parse_recipe

pytest.importorskip("av")


@pytest.fixture(scope="module")
def voices():
    return [draw_voice(4, number, 4.0) for number in range(4)]


def write_flac(path, values):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE)
        stream.layout = "mono"
        pcm = (values * 32767).astype(np.int16)
        for start in range(0, len(pcm), 4096):
            frame = av.AudioFrame.from_ndarray(pcm[None, start : start + 4096], "s16", "mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def rows_of(run):
    lines = (run / "output/manifest.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_voices_of_people_need_consent(tmp_path, voices):
    folder = tmp_path / "anna"
    write_sound(folder / "a.wav", voices[0].samples)

    def forge(more, out):
        source = f"{{type: people, folder: {folder}{more}}}"
        text = f"version: 1\nkind: forensics.audio_set\ncount: 1\nvoices: {source}\n"
        return run_recipe(parse_recipe(text), tmp_path / out)

    for more in ("", ", basis: a license"):
        with pytest.raises(RecipeError) as caught:
            forge(more, "none")
        assert caught.value.code == "forensics.whose-faces"
    fields = {"who": "Anna", "basis": "form", "expires": date(2999, 1, 1)}
    write_consent(tmp_path / "c.json", [folder / "a.wav"], scope=["sound_splice"], **fields)
    with pytest.raises(DataError, match="does not cover 'vocoder'"):
        forge(f", consent: {tmp_path / 'c.json'}", "other")
    words = ["forensics", "consent", str(folder), "--who", "Anna", "--basis", "form"]
    words += ["--scope", "vocoder", "--expires", "2999-01-01", "--out", str(tmp_path / "d.json")]
    done = CliRunner().invoke(stillroom, words)
    assert "for 1 file\n" in done.output
    forge(f", consent: {tmp_path / 'd.json'}", "set")
    row = rows_of(tmp_path / "set")[0]
    assert row["consent"]
    assert row["identity"] == "a"
    twin = (tmp_path / "set" / "output" / "real" / "000000.wav").read_bytes()
    assert AUDIO_LABELS["real"].encode() in twin
    assert b"Not a true recording" not in twin
    with pytest.raises(DataError) as caught:
        run_recipe(
            parse_recipe(
                "version: 1\nkind: forensics.audio_set\n"
                f"voices: {{type: synthetic, folder: {tmp_path}/none/output, generator: x}}\n"
            ),
            tmp_path / "empty",
        )
    assert caught.value.code in {"forensics.no-voices", "recipe.missing-path", "data.missing"}


def forge_claimed(folder, out, generator="a synthesizer"):
    text = "version: 1\nkind: forensics.audio_set\ncount: 1\n"
    source = f"{{type: synthetic, folder: {folder}, generator: {generator}}}"
    return run_recipe(parse_recipe(f"{text}voices: {source}\n"), out)


def chunk(name, body):
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def tagged(path, values, **tags):
    """Write a sound as a phone's recorder does: M4A with tags."""
    import av

    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata.update(tags)
        stream = container.add_stream("aac", rate=SAMPLE_RATE)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(values[None], format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for part in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(part)


BEXT = b"a scene".ljust(256, b"\0") + b"Recorder".ljust(32, b"\0") + b"R123".ljust(32, b"\0")
BEXT += b"2026-01-0112:00:00" + bytes(8) + struct.pack("<H", 1) + bytes(64 + 190)


@pytest.mark.parametrize(
    ("name", "more", "tags", "says"),
    [
        ("a.wav", chunk(b"bext", BEXT), {}, "a broadcast recorder's reference"),
        ("a.wav", chunk(b"iXML", b"<BWFXML/>"), {}, "a field recorder's notes"),
        ("a.m4a", b"", {"com.android.manufacturer": "a maker"}, "the recorder's make"),
        ("a.m4a", b"", {"location": "+51.5-000.1/"}, "where it was recorded"),
        ("a.m4a", b"", {"artist": "Anna Example"}, "a performer's name"),
    ],
)
def test_recordings_do_not_pass_for_voices_of_nobody(name, more, tags, says, tmp_path, voices):
    path = write_sound(tmp_path / "voices" / "a.wav", voices[0].samples)
    data = path.read_bytes() + more
    path.write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])
    if tags:
        path.unlink()
        tagged(tmp_path / "voices" / name, voices[0].samples, **tags)
    assert find_recorder_evidence(tmp_path / "voices" / name) == says
    with pytest.raises(
        DataError, match="declared as generated by a synthesizer, but holds"
    ) as caught:
        forge_claimed(tmp_path / "voices", tmp_path / "run")
    assert caught.value.code == "forensics.recording"
    assert not (tmp_path / "run" / "output").exists() or not rows_of(tmp_path / "run")


def test_a_synthesizer_that_names_itself_is_no_performer(tmp_path, voices):
    tagged(tmp_path / "a.m4a", voices[0].samples, artist="A Synthesizer", model="xtts")
    assert find_recorder_evidence(tmp_path / "a.m4a", "a synthesizer 2") == ""
    assert find_recorder_evidence(tmp_path / "a.m4a", "another") == "a performer's name"
    (tmp_path / "b.wav").write_bytes(b"no sound")
    assert find_recorder_evidence(tmp_path / "b.wav") == ""


def test_credentials_of_a_captured_sound_do_not_pass_either(tmp_path, voices, lab):
    path = write_sound(tmp_path / "a.wav", voices[0].samples)
    made = {"title": "a"}
    signed = sign_bytes(
        path.read_bytes(), "audio/wav", made, lab.signer, source_type="digitalCapture"
    )
    path.write_bytes(signed)
    assert find_recorder_evidence(path) == "credentials of a captured sound"


def test_a_claim_that_nobody_speaks_is_recorded_and_labels_the_twin(tmp_path, voices, lab):
    write_sound(tmp_path / "voices" / "a.wav", voices[0].samples)
    artifact = forge_claimed(tmp_path / "voices", tmp_path / "run")
    assert artifact.details["voices"] == "synthetic: a synthesizer"
    assert [row["whose"] for row in rows_of(tmp_path / "run")] == ["synthetic: a synthesizer"] * 2
    rows = {row["sha256"]: row for row in lab.ledger.rows()}
    for name, kind in (("fake", "forged"), ("real", "synthetic")):
        path = tmp_path / "run" / "output" / name / "000000.wav"
        row = rows[digest_file(path)]
        assert (row["kind"], row["whose"]) == (kind, "synthetic: a synthesizer")
        assert AUDIO_LABELS[kind].encode() in path.read_bytes()
        assert b"synthetic: a synthesizer" in path.read_bytes()


def test_voices_of_one_file_are_its_own(tmp_path, voices):
    path = write_sound(tmp_path / "people" / "anna.wav", voices[0].samples)
    source = LicensedSource(type="licensed", folder=str(path), basis="a license")
    found = open_voices(source, [], seconds=4.0, seed=0, count=3, warn=lambda line: None)
    assert [wave_.identity for wave_ in found.waves] == ["anna"]


def test_recordings_of_a_speaker_are_of_one_whatever_folders_lie_below(tmp_path, voices):
    for name in ("anna/1/a.wav", "anna/2/b.wav", "bob/1/c.wav", "clara.wav"):
        write_sound(tmp_path / "people" / name, voices[0].samples)
    (tmp_path / "people" / "bob" / "d.wav").write_bytes(b"no sound")
    people, said = str(tmp_path / "people"), []
    source = LicensedSource(type="licensed", folder=people, basis="a license")
    found = open_voices(source, [], seconds=4.0, seed=0, count=9, warn=said.append)
    assert sorted({wave_.identity for wave_ in found.waves}) == ["anna", "bob", "clara"]
    assert found.num_skipped == 1
    assert "1 of 5 recordings were skipped" in said


def test_recordings_are_decoded_when_they_are_needed(tmp_path, voices, monkeypatch):
    for name in ("anna/a", "anna/b", "anna/c", "bob/a", "bob/b"):
        write_sound(tmp_path / f"people/{name}.wav", voices[0].samples[:48_000])
    source = LicensedSource(type="licensed", folder=str(tmp_path / "people"), basis="a license")
    read = []
    monkeypatch.setattr(
        "stillroom.forensics.synthesis.voices.load_waveform",
        lambda path: read.append(path.parent.name + path.stem) or load_waveform(path),
    )
    found = open_voices(source, [], seconds=2.0, seed=0, count=3, warn=print)
    assert [one.name for one in found.waves] == ["anna-0", "bob-0", "anna-1"]
    assert read == ["annaa", "boba", "annab"]
    assert all(one.samples.base is None for one in found.waves)  # no recording stays in memory
    whole = open_voices(source, [], seconds=2.0, seed=0, count=99, warn=print).waves
    assert [one.name for one in whole[3:]] == ["bob-1", "anna-2", "bob-2", "anna-3"]
    joined = np.concatenate([one.samples for one in whole if one.identity == "bob"])
    recording = load_waveform(tmp_path / "people/bob/a.wav")
    np.testing.assert_array_equal(joined, np.tile(recording, 2))
    (short,) = open_voices(source, [], seconds=10.0, seed=0, count=1, warn=print).waves
    np.testing.assert_array_equal(short.samples, np.tile(recording, 4)[: 10 * SAMPLE_RATE])


@pytest.mark.parametrize("what", ["cut", "hole"])
def test_a_damaged_recording_is_no_shorter_one(what, tmp_path, voices):
    (tmp_path / "people").mkdir()
    write_sound(tmp_path / "people/bob/a.wav", voices[0].samples)
    path = tmp_path / "people/anna.flac"
    write_flac(path, voices[0].samples)
    source = LicensedSource(type="licensed", folder=str(tmp_path / "people"), basis="a license")
    assert len(open_voices(source, [], seconds=1.0, seed=0, count=99, warn=print).waves) == 8
    data, said = path.read_bytes(), []
    third = len(data) // 3
    tail = b"" if what == "cut" else b"\xff" * third + data[2 * third :]
    path.write_bytes(data[:third] + tail)
    found = open_voices(source, [], seconds=1.0, seed=0, count=99, warn=said.append)
    assert {one.identity for one in found.waves} == {"bob"}
    assert found.num_skipped == 1
    assert said[0].startswith("skipped: ")
    assert "damaged" in said[0]


@pytest.mark.parametrize("name", ["fake", "1_fake", "FAKE"])
def test_a_folder_of_fakes_is_no_person(name, tmp_path, voices):
    for path in ("real/a.wav", f"{name}/a.wav"):
        write_sound(tmp_path / "set" / path, voices[0].samples)
    source = LicensedSource(type="licensed", folder=str(tmp_path / "set"), basis="a license")
    with pytest.raises(DataError) as caught:
        open_voices(source, [], seconds=4.0, seed=0, count=9, warn=print)
    assert caught.value.code == "forensics.whose-faces"
    assert f"{name}/a.wav" in caught.value.problems[0].what
    real = LicensedSource(type="licensed", folder=str(tmp_path / "set/real"), basis="a license")
    assert open_voices(real, [], seconds=4.0, seed=0, count=9, warn=print).waves
