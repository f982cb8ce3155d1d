"""Sounds: forged, marked so that it stays, judged; published weights turned the right way round."""

import io
import json
import subprocess
import wave
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.unit.forensics.conftest import widen
from tests.unit.forensics.sounds import write_sound

from stillroom.cli.app import stillroom
from stillroom.errors import DataError, IntegrityError, MissingExtraError, RecipeError
from stillroom.flow import estimate_recipe, run_recipe
from stillroom.forensics.c2pa.credentials import read_credentials
from stillroom.forensics.check.check import check_file
from stillroom.forensics.inference.conversion import import_aasist
from stillroom.forensics.inference.domain import FileTraits
from stillroom.forensics.inference.tracks import score_recording
from stillroom.forensics.inference.trained_detector import TrainedDetector
from stillroom.forensics.interfaces import AUDIO_DETECTORS, AUDIO_FORGERIES
from stillroom.forensics.labeling.audio import AUDIO_LABELS, GeneratedAudio, LabeledAudioWriter
from stillroom.forensics.labeling.dataset_writer import find_unmarked_files
from stillroom.forensics.labeling.lookup import look_up_file
from stillroom.forensics.media.audio import (
    SAMPLE_RATE,
    compute_stft,
    invert_stft,
    load_waveform,
    make_mel_filterbank,
    read_audio,
    resample,
)
from stillroom.forensics.modalities.audio import AudioModality, add_noise, apply_audio_codec
from stillroom.forensics.synthesis.voices import draw_voice
from stillroom.forensics.watermark.audio import AudioWatermark, measure_snr
from stillroom.recipes import parse_recipe

pytest.importorskip("av")


@pytest.fixture(scope="module")
def voices():
    return [draw_voice(4, number, 4.0) for number in range(4)]


def test_a_spectrum_comes_back_as_the_sound(voices):
    given = voices[0].samples
    back = invert_stft(compute_stft(given, 1024, 256), 1024, 256, len(given))
    np.testing.assert_allclose(back, given, atol=1e-4)
    assert make_mel_filterbank(40, 1024).shape == (40, 513)
    assert np.all(make_mel_filterbank(40, 1024).sum(axis=1) > 0)


def test_resampling_keeps_what_both_rates_hold():
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    there = resample(tone, SAMPLE_RATE, 44_100)
    assert len(there) == 44_100
    np.testing.assert_allclose(resample(there, 44_100, SAMPLE_RATE), tone, atol=1e-3)


def test_drawn_voices_are_of_their_seed_and_of_a_speaker(voices):
    again = draw_voice(4, 0, 4.0)
    np.testing.assert_array_equal(again.samples, voices[0].samples)
    assert voices[0].identity == voices[1].identity == voices[2].identity != voices[3].identity
    assert np.abs(voices[0].samples).max() == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize("name", [name for name in AUDIO_FORGERIES.names() if name != "espeak"])
def test_each_method_forges_where_it_says(name, voices):
    method = AUDIO_FORGERIES.build(name)
    given = [voices[0], voices[3]][: method.num_waveforms]
    forged = method.forge(given, np.random.default_rng(2))
    again = method.forge(given, np.random.default_rng(2))
    np.testing.assert_array_equal(forged.samples, again.samples)
    assert forged.samples.shape == forged.mask.shape == forged.twin.shape == voices[0].samples.shape
    assert forged.samples.dtype == np.float32
    assert np.abs(forged.samples).max() <= 1
    outside = forged.mask == 0
    np.testing.assert_array_equal(forged.samples[outside], forged.twin[outside])
    assert (forged.samples != forged.twin).any()


def test_a_vocoder_keeps_the_loudness_of_bands(voices):
    forged = AUDIO_FORGERIES.build("vocoder").forge(voices[:1], np.random.default_rng(0))
    filters = make_mel_filterbank(20, 1024)
    bands = [
        np.log(np.abs(compute_stft(one, 1024, 256)) @ filters.T + 1e-3)
        for one in (forged.samples, forged.twin)
    ]
    assert np.corrcoef(bands[0].ravel(), bands[1].ravel())[0, 1] > 0.9


def test_espeak_speaks_and_is_missed_where_it_is_not(voices, monkeypatch):
    import shutil

    if shutil.which("espeak-ng") is not None:
        made = AUDIO_FORGERIES.build("espeak").forge(voices[:1], np.random.default_rng(0))
        assert made.samples.std() > 0.01
    monkeypatch.setattr(shutil, "which", lambda name: None)
    method = AUDIO_FORGERIES.build({"name": "espeak", "program": "espeak"})
    with pytest.raises(MissingExtraError, match="espeak is not installed"):
        method.forge(voices[:1], np.random.default_rng(0))
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/false")

    def fail(*given, **more):
        raise subprocess.CalledProcessError(1, "espeak-ng")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(DataError) as caught:
        AUDIO_FORGERIES.build("espeak").forge(voices[:1], np.random.default_rng(0))
    assert caught.value.code == "forensics.speaking"


@pytest.mark.parametrize("program", ["sh", "/bin/sh", "./espeak-ng", "espeak-ng; sh"])
def test_a_recipe_names_no_program_to_run(program):
    with pytest.raises(RecipeError, match="espeak"):
        parse_recipe(
            "version: 1\nkind: forensics.audio_set\n"
            f"forgeries: [{{name: espeak, program: '{program}'}}]\n"
        )


@pytest.mark.parametrize(
    ("channels", "width", "count"), [(1, 2, 0), (1, 1, 100), (2, 2, 100)], ids=str
)
def test_a_program_that_speaks_nothing_is_said(channels, width, count, voices, monkeypatch):
    import shutil

    def answer(*given, **more):
        return subprocess.CompletedProcess(given, 0, stdout=wave_bytes(channels, width, count))

    monkeypatch.setattr(shutil, "which", lambda name: "/bin/true")
    monkeypatch.setattr(subprocess, "run", answer)
    with pytest.raises(DataError, match=r"espeak-ng produced (no audio|another format)") as caught:
        AUDIO_FORGERIES.build("espeak").forge(voices[:1], np.random.default_rng(0))
    assert caught.value.code == "forensics.speaking"


def wave_bytes(channels, width, count):
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(22_050)
        file.writeframes(bytes(channels * width * count))
    return out.getvalue()


@pytest.fixture(scope="module")
def marked(voices):
    forged = AUDIO_FORGERIES.build("vocoder").forge(voices[:1], np.random.default_rng(0)).samples
    mark = AudioWatermark(b"k" * 32)
    return mark, forged, mark.embed(forged, 0xDEADBEEF, snr=18)


class TestMark:
    def test_one_that_cannot_be_read_back_is_made_louder(self, marked, monkeypatch):
        mark, plain, _ = marked
        read, asked = AudioWatermark.read, []

        def fail_once(self, values):
            asked.append(values)
            return read(self, values if len(asked) > 1 else plain)

        monkeypatch.setattr(AudioWatermark, "read", fail_once)
        there = mark.embed(plain, 0xDEADBEEF, snr=18)
        assert measure_snr(plain, there) == pytest.approx(16, abs=0.1)

    def test_it_is_as_quiet_as_asked(self, marked):
        _, plain, there = marked
        assert measure_snr(plain, there) == pytest.approx(18, abs=0.1)
        assert there.shape == plain.shape

    @pytest.mark.parametrize(
        "attack",
        [
            lambda values: values,
            lambda values: apply_audio_codec(values, "mp3", 64_000),
            lambda values: apply_audio_codec(values, "aac", 64_000),
            lambda values: resample(resample(values, SAMPLE_RATE, 44_100), 44_100, SAMPLE_RATE),
            lambda values: resample(resample(values, SAMPLE_RATE, 12_000), 12_000, SAMPLE_RATE),
            lambda values: add_noise(values, 20.0, np.random.default_rng(3)),
            lambda values: values[3000:-5000],
            lambda values: values * np.float32(0.2),
        ],
        ids=["none", "mp3", "aac", "44100", "12000", "noise20", "crop", "quieter"],
    )
    def test_it_stays(self, attack, marked):
        mark, _, there = marked
        assert mark.read(attack(there)).payload == 0xDEADBEEF

    def test_nobody_elses_sound_carries_it(self, marked, voices):
        mark, plain, there = marked
        assert mark.read(plain).payload is None
        assert AudioWatermark(b"x" * 32).read(there).payload is None
        for wave_ in voices:
            assert mark.read(wave_.samples).payload is None
        assert mark.read(np.zeros(100, np.float32)).payload is None

    def test_what_cannot_carry_it_is_said(self, marked):
        mark, plain, _ = marked
        with pytest.raises(DataError) as caught:
            mark.embed(plain[:SAMPLE_RATE], 1)
        assert caught.value.code == "forensics.too-short"
        with pytest.raises(DataError) as caught:
            mark.embed(np.zeros(4 * SAMPLE_RATE, np.float32), 1)
        assert caught.value.code == "forensics.mark-failed"


SET = """
version: 1
kind: forensics.audio_set
count: 2
seed: 5
forgeries: [sound_splice, vocoder]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory, lab):
    out = tmp_path_factory.mktemp("sounds") / "set"
    return out, run_recipe(parse_recipe(SET), out)


def rows_of(run):
    lines = (run / "output/manifest.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_set_of_sounds_is_marked_in_four_ways(made, lab):
    out, artifact = made
    assert artifact.kind == "media"
    rows = rows_of(out)
    assert [row["label"] for row in rows] == [1, 0, 1, 0]
    assert find_unmarked_files(out / "output", lab) == {}
    data = (out / "output" / rows[0]["path"]).read_bytes()
    found = read_credentials(data, "audio/wav", [lab.trust])
    assert (found.integrity, found.trust) == ("intact", "lab")
    assert AUDIO_LABELS["forged"].encode() in data
    mark = rows[0]["watermark"]
    assert lab.ledger.find_all([mark])[mark]["file"] == "000000.wav"
    mask = np.load(out / "output" / rows[0]["mask"])
    assert mask.shape == (1, 400)


def test_the_same_seed_gives_the_same_samples(made, tmp_path):
    out, artifact = made
    again = run_recipe(parse_recipe(SET), tmp_path / "again")
    assert rows_of(out) == rows_of(tmp_path / "again")
    assert again.digest == artifact.digest


def test_a_stripped_and_cut_sound_is_found_again_and_said(made, lab, tmp_path):
    out, _ = made
    row = rows_of(out)[0]
    values = load_waveform(out / "output" / row["path"])[2000:]
    write_sound(tmp_path / "cut.wav", values)
    assert look_up_file(tmp_path / "cut.wav", lab).watermark == row["watermark"]
    found = check_file(tmp_path / "cut.wav", lab=lab)
    assert found.credentials.lines()[0].startswith("no provenance")
    assert found.verdict == "carries this lab's watermark: made by this lab, to test detectors"
    done = CliRunner().invoke(stillroom, ["forensics", "trace", str(tmp_path / "cut.wav")])
    assert f"ledger row {found.trace.row['number']}" in done.output


def test_a_trace_says_what_was_read_and_how_often_chance_could_have_fitted(made, lab, tmp_path):
    out, _ = made
    marked = look_up_file(out / "output" / rows_of(out)[0]["path"], lab)
    assert 1 <= marked.decodings <= 8
    assert marked.chance == marked.decodings * 2**-24
    assert f"of files without one, {marked.chance:.1g} show as much by chance" in marked.line()
    # 30 s: runs of 12 s from 0, 6, 12, 18 s on, and no part a second time.
    long = np.concatenate([draw_voice(9, at, 10.0).samples for at in range(3)])
    plain = look_up_file(write_sound(tmp_path / "long.wav", long), lab)
    assert (plain.watermark, plain.decodings) == ("", 4 * 8)
    assert plain.covered == "the first 30.0 s of sound"
    assert "no watermark of this lab in the first 30.0 s of sound" in plain.line()
    assert plain.to_json()["chance"] == 32 * 2**-24


def test_only_the_first_minutes_are_read_and_that_is_said(lab, tmp_path, monkeypatch):
    from stillroom.forensics.labeling import lookup

    monkeypatch.setattr(lookup, "_MAX_AUDIO_SAMPLES", 12 * SAMPLE_RATE)
    long = np.concatenate([draw_voice(9, at, 10.0).samples for at in range(3)])
    found = look_up_file(write_sound(tmp_path / "long.wav", long), lab)
    assert (found.covered, found.decodings) == ("the first 18.0 s of sound", 2 * 8)


def test_a_sound_that_lacks_a_mark_is_never_written(lab, voices, tmp_path, monkeypatch):
    from stillroom.forensics.labeling import marks

    made = GeneratedAudio(voices[0].samples, "vocoder", 1, "run", "algorithmicMedia")
    for owner, part, broken in (
        (marks, "sign_bytes", lambda data, *rest, **more: data),
        (LabeledAudioWriter, "_read_label", lambda self, data: AUDIO_LABELS["real"]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, part, broken)
            with pytest.raises(IntegrityError) as caught:
                LabeledAudioWriter(lab).write(made, tmp_path / "a.wav")
            assert caught.value.code == "forensics.unmarked"
    marker = LabeledAudioWriter(lab)
    monkeypatch.setattr(marker._watermark, "embed", lambda values, payload, snr: values)
    with pytest.raises(IntegrityError, match="watermark"):
        marker.write(made, tmp_path / "a.wav")
    assert not list(tmp_path.iterdir())


def test_a_strange_sound_in_a_set_is_named(lab, tmp_path, voices):
    write_sound(tmp_path / "b.wav", voices[0].samples)
    (tmp_path / "c.wav").write_bytes(b"RIFF")
    (tmp_path / "d.mp3").write_bytes(b"ID3")
    assert set(find_unmarked_files(tmp_path, lab)) == {"b.wav", "c.wav", "d.mp3"}


@pytest.mark.parametrize(
    "text",
    [
        "image_detector\nmodel: lfcc",
        "audio_detector\nmodel: npr",
        "audio_detector\nimage_size: 64",
        "audio_detector\nteacher: x",
        "audio_detector\naugmentation: {flip: false}",
        "audio_detector\nwatermark: {snr: 20}",
        "audio_set\nbenign_edits: [retouch]",
        "audio_set\nwatermark: {psnr: 40}",
        "audio_set\noutput: {format: png}",
        "image_set\nseconds: 4",
    ],
)
def test_settings_of_the_other_modality_cannot_be_written(text):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(f"kind: forensics.{text}\n")
    assert caught.value.code in {"recipe.unknown-key", "recipe.unknown-method"}


def test_sounds_too_short_for_a_mark_are_refused_before_any_is_made():
    with pytest.raises(RecipeError, match=r"seconds cannot be 2\.9"):
        parse_recipe("kind: forensics.audio_set\nseconds: 2.9\n")
    assert parse_recipe("kind: forensics.audio_set\nseconds: 3\n").seconds == 3
    assert parse_recipe("kind: forensics.audio_detector\nseconds: 2.9\n").seconds == 2.9


def test_estimates_of_sounds_speak_of_sounds():
    assert estimate_recipe(parse_recipe(SET)).seconds > 0
    light, heavy = (
        estimate_recipe(parse_recipe(LEARN.replace("{name: lfcc, width: 4}", model)))
        for model in ("lfcc", "{name: aasist, size: full}")
    )
    assert "4 recordings and as many fakes of 0.5 s" in light.basis
    assert "pixels" not in f"{light.basis} {light.memory_knob}"
    assert heavy.seconds > 10 * light.seconds
    assert heavy.memory_bytes > light.memory_bytes + 8 * 0.5 * 100_000_000


LEARN = """
version: 1
kind: forensics.audio_detector
seed: 2
model: {name: lfcc, width: 4}
forgeries: [{name: vocoder, iterations: 2}]
count: 18
seconds: 0.5
split: {test: 0.3, validation: 0.35}
train: {steps: 3, batch_size: 4, threads: 1, learning_rate: 0.003, save_every_s: 0}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("ear") / "run"
    run_recipe(parse_recipe(LEARN), out)
    return out


def test_a_detector_of_sounds_is_learned_with_a_card(trained):
    detector = TrainedDetector.open(trained)
    assert detector.name == "lfcc of vocoder"
    assert detector.audio_input.num_samples == SAMPLE_RATE // 2
    assert set(detector.metadata.metrics["auc"]) == {
        *("clean", "mp3_64", "aac_64", "noise20", "telephone")
    }
    card = (trained / "output/README.md").read_text()
    assert "its scores are not valid for recordings" in card
    assert "after MP3 at 64 kbit/s" in card


def test_a_detector_of_sounds_goes_on_from_one_of_its_make_and_size(trained, tmp_path):
    start = f"initial_weights: {trained}\n"
    run_recipe(parse_recipe(LEARN + start), tmp_path / "on")
    for number, other in enumerate(("{name: lfcc, width: 8}", "{name: aasist, size: tiny}")):
        recipe = parse_recipe(LEARN.replace("{name: lfcc, width: 4}", other) + start)
        with pytest.raises(DataError, match="initial_weights is a lfcc") as caught:
            run_recipe(recipe, tmp_path / str(number))
        assert caught.value.code == "forensics.other-detector"


@pytest.mark.slow  # test_train_image stops the same trainer
def test_a_stopped_run_goes_on_to_the_same_bytes(trained, tmp_path, monkeypatch):
    from stillroom.forensics.training.train_audio import AudioPairDataset

    load, calls = AudioPairDataset.load, []

    def dies(self, group):
        calls.append(group)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return load(self, group)

    monkeypatch.setattr(AudioPairDataset, "load", dies)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(parse_recipe(LEARN), tmp_path / "run")
    run_recipe(parse_recipe(LEARN), tmp_path / "run", resume=True)
    name = "output/model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (trained / name).read_bytes()


def test_check_hears_recordings(trained, made, tmp_path):
    out, _ = made
    words = ["forensics", "check", str(out / "output/fake/000001.wav"), "--detector", str(trained)]
    done = CliRunner().invoke(stillroom, [*words, "--json", "--html", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    (finding,) = json.loads(done.stdout)["files"][0]["detectors"]
    assert finding["face"] is None
    assert (
        "it was trained on drawn voices only, which do not represent others" in finding["reasons"]
    )
    assert finding["learned"]["name"] == "drawn voices"
    assert finding["times"] == [0.5 * at for at in range(8)]
    assert "chance over time, sound" in (tmp_path / "page.html").read_text()


def test_a_recording_unlike_those_learned_from_is_not_judged(trained, tmp_path):
    detector = TrainedDetector.open(trained, device="cpu")
    domain = replace(detector.metadata.domain, known=FileTraits((), 1000.0, ("mp3",)))
    detector.metadata = replace(widen(detector.metadata), source="person", is_validated=True)

    def reasons(values):
        path = write_sound(tmp_path / "a.wav", values)
        (course,) = score_recording([detector], path, read_audio(path), 0.5)
        return " ".join(course.reasons)

    voice = draw_voice(6, 0, 2.0).samples
    for word in ("unlike", "coded as", "detail up to"):
        assert word not in reasons(voice)
    detector.metadata = replace(detector.metadata, domain=domain)
    assert "coded as lossless, but trained on mp3" in reasons(voice)
    assert "Hz, beyond the 1000 of its training data" in reasons(voice)


def test_what_of_a_recording_was_not_heard_is_counted(trained, tmp_path, monkeypatch):
    from stillroom.forensics.inference import tracks

    half = SAMPLE_RATE // 2
    voice = draw_voice(6, 0, 4.0).samples
    values = np.concatenate([voice[: 6 * half], np.zeros(2 * half, np.float32), voice[: half // 4]])
    path = write_sound(tmp_path / "a.wav", values)
    words = ["forensics", "check", str(path), "--detector", str(trained)]

    def said():
        return json.loads(CliRunner().invoke(stillroom, [*words, "--json"]).stdout)["files"][0][
            "detectors"
        ][0]

    assert said()["notes"] == [
        "skipped 2 segments of 0.5 s, nearly silent",
        "the last 0.1 s, too short for a segment, not scored",
    ]
    monkeypatch.setattr(tracks, "_MAX_SEGMENTS", 3)
    found = said()
    assert len(found["times"]) == 2
    assert found["notes"][:2] == [
        "skipped 5 segments of 0.5 s, between scored segments",
        "skipped 1 segment of 0.5 s, nearly silent",
    ]
    assert "between scored segments; skipped" in CliRunner().invoke(stillroom, words).output


def test_cepstral_numbers_do_not_change_with_loudness_but_the_first():
    front = AUDIO_DETECTORS.build("lfcc").build(8000).front
    waves = torch.randn(1, 8000, generator=torch.Generator().manual_seed(1)) * 0.1
    one, other = front(waves), front(waves * 2)
    assert torch.allclose(one[:, 0, 1:], other[:, 0, 1:], atol=1e-3)
    assert (other[:, 0, 0] - one[:, 0, 0]).mean() == pytest.approx(
        2 * np.log(2) * 20**0.5, rel=0.01
    )


@pytest.mark.parametrize(
    "method", [{"name": "lfcc", "width": 4}, {"name": "aasist", "size": "tiny"}], ids=str
)
def test_one_sound_is_judged_as_in_a_batch(method):
    waves = torch.randn(2, 8000, generator=torch.Generator().manual_seed(3)) * 0.1
    network = AUDIO_DETECTORS.build(method).build(8000).eval()
    with torch.inference_mode():
        both, one = network.forward_features(waves), network.forward_features(waves[:1])
    assert both.logits.shape == (2,)
    assert torch.allclose(both.logits[:1], one.logits, atol=1e-4)


@pytest.mark.parametrize(("size", "wanted"), [("full", 297_866), ("light", 85_306)])
def test_aasist_has_the_papers_number_of_weights(size, wanted):
    network = AUDIO_DETECTORS.build({"name": "aasist", "size": size}).build(8000)
    second_output = network.head.in_features + 1  # theirs has two
    assert sum(value.numel() for value in network.parameters()) + second_output == wanted


def as_published(network, bona_fide):
    """Return a network's weights by their published names; the second output is bona fide."""
    from stillroom.forensics.inference import conversion as ours

    back = {}
    for name in network.state_dict():
        for theirs in candidates(ours):
            if ours._translate_name(theirs) == name:
                back[theirs] = name
                break
    state = {theirs: network.state_dict()[name].clone() for theirs, name in back.items()}
    wide = network.head.in_features
    state["out_layer.weight"] = torch.zeros(2, wide)
    state["out_layer.bias"] = torch.tensor([-bona_fide, bona_fide])
    return state


def candidates(ours):
    ends = ("", ".weight", ".bias", ".running_mean", ".running_var")
    for theirs in ours._WHOLE:
        yield from (theirs + end for end in ends)
    for number in range(6):
        for part in ours._BLOCK:
            yield from (f"encoder.{number}.0.{part}{end}" for end in ends)
    for first, (_, table) in ours._PARTS.items():
        yield from (f"{first}.{part}{end}" for part in table for end in ends)


def test_published_weights_of_aasist_are_turned_round(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = {"name": "aasist", "size": "light", "as_released": True}
        network = AUDIO_DETECTORS.build(method).build(8000)
    torch.save(as_published(network, bona_fide=3.0), tmp_path / "AASIST-L.pth")
    import_aasist(tmp_path / "AASIST-L.pth", tmp_path / "out")
    detector = TrainedDetector.open(tmp_path / "out", device="cpu")
    assert detector.metadata.method.size == "light"
    assert not detector.metadata.is_validated
    quiet = np.zeros(8000, np.float32)
    detector.metadata = replace(detector.metadata, modality=AudioModality(8000))
    assert detector.logits([quiet])[0] == pytest.approx(-6.0, abs=1e-4)  # bona fide is not forged
    for name, value in network.state_dict().items():
        if not name.endswith("num_batches_tracked") and not name.startswith("head"):
            assert torch.equal(value, detector.network.cpu().state_dict()[name]), name


def test_what_is_not_aasist_is_refused(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"nothing")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "b.pth")
    torch.save({"pos_S": torch.zeros(1, 23, 24)}, tmp_path / "c.pth")
    torch.save([1], tmp_path / "d.pth")
    torch.save({"pos_S": torch.zeros(1).as_strided((2**40,), (0,))}, tmp_path / "e.pth")
    head = {f"out_layer.{name}": torch.zeros(()) for name in ("weight", "bias")}
    torch.save({"pos_S": torch.zeros(1, 23, 24), **head}, tmp_path / "f.pth")
    for name in "abcdef":
        with pytest.raises(DataError) as caught:
            import_aasist(tmp_path / f"{name}.pth", tmp_path / "out")
        assert caught.value.code == "forensics.import"


def test_a_sound_that_cannot_be_coded_is_said(monkeypatch):
    from stillroom.forensics.modalities import audio

    monkeypatch.setitem(audio._CODECS, "mp3", ("no such codec", "mp3", 44_100))
    with pytest.raises(DataError) as caught:
        apply_audio_codec(np.zeros(SAMPLE_RATE, np.float32), "mp3", 64_000)
    assert caught.value.code == "forensics.sound-coding"
