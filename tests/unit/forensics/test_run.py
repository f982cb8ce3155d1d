"""The job: marked forgeries with masks and twins, the same pixels however it is run."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from stillroom.cli.app import stillroom
from stillroom.errors import DataError, IntegrityError
from stillroom.flow import estimate_recipe, run_recipe
from stillroom.forensics.benchmark.audit import audit_items
from stillroom.forensics.benchmark.manifest import read_items
from stillroom.forensics.labeling.dataset_writer import MANIFEST, find_unmarked_files
from stillroom.forensics.labeling.image import decode_image
from stillroom.recipes import parse_recipe


def recipe(**changes):
    lines = {"count": 3, "image_size": 128, "seed": 4, **changes}
    text = "version: 1\nkind: forensics.image_set\n"
    return parse_recipe(text + "".join(f"{key}: {value}\n" for key, value in lines.items()), "test")


def rows_of(run):
    lines = (run / "output" / MANIFEST).read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def made(tmp_path_factory, lab):
    out = tmp_path_factory.mktemp("run") / "set"
    return out, run_recipe(recipe(benign_edits="[recompress]"), out)


def test_each_fake_has_a_mask_and_a_real_twin(made):
    out, artifact = made
    rows = rows_of(out)
    assert [row["label"] for row in rows] == [1, 0] * 3
    assert artifact.kind == "media"
    assert artifact.origin["kind"] == "synthetic"
    for fake, real in zip(rows[::2], rows[1::2], strict=True):
        assert fake["identity"] == real["identity"]
        assert fake["split"] == real["split"]
        assert fake["compression"] == real["compression"]
        mask = np.load(out / "output" / fake["mask"])
        assert mask.shape == (128, 128)
        assert mask.max() > 0
        assert real["generator"] == "recompress"


def test_a_set_has_no_leaks(made):
    out, _ = made
    found = audit_items(read_items(out), out / "output")
    assert (found.leaks, found.twins, found.unread) == ((), (), ())


def test_every_image_is_marked(made, lab):
    out, _ = made
    assert find_unmarked_files(out / "output", lab) == {}
    assert len(list((out / "output").rglob("*.jpg"))) == 6


def test_same_seed_same_pixels_for_any_number_of_workers(made, tmp_path):
    out, artifact = made
    again = run_recipe(recipe(benign_edits="[recompress]", workers=2), tmp_path / "again")
    assert rows_of(out) == rows_of(tmp_path / "again")
    for path in sorted((out / "output").rglob("*.*")):
        other = tmp_path / "again" / path.relative_to(out)
        if path.suffix == ".jpg":  # a signature is of its moment, the pixels are not
            np.testing.assert_array_equal(
                decode_image(path.read_bytes()), decode_image(other.read_bytes())
            )
        else:
            assert path.read_bytes() == other.read_bytes()
    assert again.digest == artifact.digest


def test_no_split_shares_a_person_with_another(tmp_path):
    run_recipe(
        recipe(count=8, forgery="{name: swap}", split="{test: 0.4, validation: 0}"),
        tmp_path / "set",
    )
    splits = {}
    for row in rows_of(tmp_path / "set"):
        for name in (row["identity"], *row["others"]):
            assert splits.setdefault(name, row["split"]) == row["split"]
    assert set(splits.values()) == {"train", "test"}


def test_a_killed_run_goes_on_to_the_same_digest(made, tmp_path, monkeypatch):
    from stillroom.forensics.labeling.image import LabeledImageWriter

    _, artifact = made
    emit, count = LabeledImageWriter.write, []

    def fail(self, *given):
        count.append(1)
        if len(count) > 3:
            raise KeyboardInterrupt
        return emit(self, *given)

    monkeypatch.setattr(LabeledImageWriter, "write", fail)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe(benign_edits="[recompress]"), tmp_path / "killed")
    monkeypatch.setattr(LabeledImageWriter, "write", emit)
    resumed = run_recipe(recipe(benign_edits="[recompress]"), tmp_path / "killed", resume=True)
    assert resumed.digest == artifact.digest


def test_a_file_put_beside_the_others_fails_the_run(tmp_path, monkeypatch, lab):
    from stillroom.forensics.synthesis.pair_writer import PairWriter

    write = PairWriter.write

    def smuggle(self, *args, **fields):
        (self.job.output / "extra.bmp").write_bytes(b"BM")
        return write(self, *args, **fields)

    monkeypatch.setattr(PairWriter, "write", smuggle)
    with pytest.raises(IntegrityError) as caught:
        run_recipe(recipe(count=1), tmp_path / "set")
    assert caught.value.code == "forensics.unmarked"
    assert not (tmp_path / "set").exists()


def test_faces_of_a_folder_need_a_face(tmp_path):
    pytest.importorskip("cv2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        run_recipe(
            recipe(faces=f"{{type: synthetic, folder: {tmp_path}/empty, generator: nobody}}"),
            tmp_path / "set",
        )
    assert caught.value.code == "forensics.no-faces"


def test_estimate_grows_with_the_set():
    small, large = (estimate_recipe(recipe(count=count)) for count in (10, 100))
    assert large.seconds > small.seconds
    assert large.disk_bytes == 10 * small.disk_bytes


class TestCommands:
    def ask(self, *words):
        return CliRunner().invoke(stillroom, ["forensics", *map(str, words)])

    def test_sign_and_verify(self, made, tmp_path):
        out, _ = made
        picture = out / "output" / "real" / "000000.jpg"
        assert self.ask("provenance", "init-ca", tmp_path / "ca").exit_code == 0
        signed = tmp_path / "signed.jpg"
        words = ("sign", picture, "--ca", tmp_path / "ca", "--out", signed, "--made-by", "the lab")
        done = self.ask("provenance", *words)
        assert "intact, user" in done.output
        done = self.ask("provenance", "verify", signed, "--trust", tmp_path / "ca" / "ca.pem")
        assert "trust: user" in done.output
        done = self.ask("provenance", "verify", signed, "--json")
        assert json.loads(done.output)["files"][str(signed)]["trust"] == "untrusted"
        data = bytearray(signed.read_bytes())
        data[-30] ^= 1
        signed.write_bytes(bytes(data))
        done = self.ask("provenance", "verify", signed)
        assert done.exit_code == 1
        assert "integrity: broken" in done.output

    def test_ledger_and_trace(self, made):
        out, _ = made
        done = self.ask("ledger", "--unmarked", out / "output")
        assert "every media file carries every mark" in done.output
        picture = out / "output" / "fake" / "000001.jpg"
        assert "made by this lab: sbi, seed 4" in self.ask("trace", picture).output
        found = json.loads(self.ask("trace", picture, "--json").output)["files"][str(picture)]
        assert found["row"]["generator"] == "sbi"

    def test_consent_covers_a_folder(self, made, tmp_path):
        out, _ = made
        words = ("consent", out / "output" / "real", "--who", "Nobody", "--basis", "drawn")
        words += ("--scope", "sbi", "--expires", "2999-01-01", "--out", tmp_path / "c.json")
        assert "for 3 files" in self.ask(*words).output

    def test_a_folder_of_people_needs_their_consent(self, made, tmp_path):
        out, _ = made
        folder = tmp_path / "people"
        folder.mkdir()
        picture = folder / "a.jpg"
        picture.write_bytes((out / "output" / "real" / "000000.jpg").read_bytes())
        words = ("consent", folder, "--who", "Nobody", "--basis", "drawn", "--scope", "swap")
        self.ask(*words, "--expires", "2999-01-01", "--out", tmp_path / "c.json")
        with pytest.raises(DataError) as caught:
            run_recipe(
                recipe(faces=f"{{type: people, folder: {folder}, consent: {tmp_path}/c.json}}"),
                tmp_path / "set",
            )
        assert caught.value.code == "forensics.consent"


def test_pixels_of_a_written_file_are_those_of_its_row(made):
    from stillroom.provenance import digest_bytes

    out, _ = made
    for row in rows_of(out):
        assert (
            digest_bytes(decode_image((out / "output" / row["path"]).read_bytes()).tobytes())
            == row["pixels"]
        )
