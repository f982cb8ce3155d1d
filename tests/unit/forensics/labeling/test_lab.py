"""The lab's rules, each tried to be broken: consent, marks that cannot be left out, the ledger."""

import ast
import json
import os
import re
from datetime import date
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner
from tests.contracts.sources import PACKAGE, tree_of

from stillroom.cli.app import stillroom
from stillroom.errors import DataError, IntegrityError, RecipeError
from stillroom.forensics.c2pa.credentials import read_credentials
from stillroom.forensics.jobs.audio_set import AudioSetRecipe
from stillroom.forensics.jobs.image_set import ImageSetRecipe
from stillroom.forensics.labeling.dataset_writer import MANIFEST, find_unmarked_files
from stillroom.forensics.labeling.image import (
    IMAGE_LABELS,
    GeneratedImage,
    LabeledImageWriter,
    decode_image,
)
from stillroom.forensics.labeling.lab import Ledger, has_lab, open_lab
from stillroom.forensics.labeling.lookup import look_up_file
from stillroom.forensics.media.transforms import compress_jpeg
from stillroom.forensics.synthesis.consent import Consent, write_consent
from stillroom.forensics.watermark.image import ImageWatermark
from stillroom.recipes import parse_recipe

ROOM = PACKAGE / "forensics"
WRITERS = {
    *("imwrite", "imwritemulti", "imencode", "imencodemulti", "VideoWriter", "save", "savetxt"),
    *("savez", "savez_compressed", "tofile", "write_array", "write_bytes", "write_text"),
    *("writeframes", "writeframesraw", "add_stream", "add_stream_from_template", "mux", "mux_one"),
    *(
        "atomic_write",
        "atomic_path",
        "replace_file",
        "write_secret",
        "copyfile",
        "copy2",
        "copytree",
    ),
}
WRITING = re.compile(r"[rbt]*[wax+][wrbaxt+]*")
ALLOWED = {
    # What each of these writes is no picture and no sound: keys, certificates, JSON, networks,
    # masks, files that the user already has and signs.
    "labeling/marks.py": {"atomic_write"},  # what is marked and proved: the one way out
    "labeling/dataset_writer.py": {"atomic_write"},
    "synthesis/consent.py": {"atomic_write"},
    "inference/conversion.py": {"atomic_write"},
    "labeling/lab.py": {"atomic_write", "write_secret", "open"},  # the key and the ledger
    "synthesis/pair_writer.py": {"atomic_write", "write_array"},  # masks
    "c2pa/signature.py": {"atomic_write", "write_secret"},  # texts, and files that are signed
    "benchmark/manifest.py": {"atomic_write"},
    "benchmark/report.py": {"atomic_write"},
    # Encode to an array.
    "media/transforms.py": {"imencode"},
    "check/report_page.py": {"imencode"},  # small previews inside a page
}
IN_MEMORY = {
    # Encode into a buffer, which is looked at: what is proved is written by marks.py alone, the
    # rest is decoded again.
    "c2pa/signature.py": {"save"},
    "labeling/audio.py": {"open", "writeframes"},
    "labeling/image.py": {"save", "open"},
    "benchmark/robustness.py": {"save"},
    "modalities/audio.py": {"open", "add_stream", "mux"},
    "media/images.py": {"save"},
    "media/video.py": {"open", "add_stream", "mux"},
}


def made(faces, **changes):
    fields = {
        "content": faces[0].image,
        "generator": "sbi",
        "seed": 1,
        "run": "test",
        "source_type": "compositeWithTrainedAlgorithmicMedia",
        "box": (10, 20, 50, 60),
    }
    return GeneratedImage(**{**fields, **changes})


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_every_file_carries_all_four_marks(ending, lab, faces, tmp_path):
    path = tmp_path / f"a.{ending}"
    row = LabeledImageWriter(lab).write(made(faces), path)
    data = path.read_bytes()
    found = read_credentials(data, f"image/{'jpeg' if ending == 'jpg' else 'png'}", [lab.trust])
    assert (found.integrity, found.trust) == ("intact", "lab")
    assert any(kind.endswith("compositeWithTrainedAlgorithmicMedia") for kind in found.source_types)
    assert len(found.soft_bindings) == 1
    assert IMAGE_LABELS["forged"].encode() in data
    assert ImageWatermark(lab.key).read(decode_image(path.read_bytes())).payload == int(
        row["watermark"], 16
    )
    assert lab.ledger.find_all([row["watermark"]])[row["watermark"]]["file"] == path.name
    assert find_unmarked_files(tmp_path, lab) == {}


def test_manifest_names_region_generator_seed_and_consent(lab, faces, tmp_path):
    LabeledImageWriter(lab).write(made(faces, consent="abc"), tmp_path / "a.png")
    store = read_credentials((tmp_path / "a.png").read_bytes(), "image/png", [lab.trust]).manifests
    said = json.dumps(store)
    own = next(
        assertion["data"]
        for assertion in store["manifests"][store["active_manifest"]]["assertions"]
        if assertion["label"] == "io.stillroom.lab"
    )
    assert own["region"] == {"x": 10, "y": 20, "width": 50, "height": 60}
    assert (own["generator"], own["seed"], own["consent"]) == ("sbi", 1, "abc")
    assert '"width": 50' in said


@pytest.mark.parametrize(
    ("part", "broken"),
    [
        ("embed", lambda image, payload, psnr: image),
        ("_encode", None),
    ],
)
def test_a_file_that_lacks_a_mark_is_never_written(part, broken, lab, faces, tmp_path, monkeypatch):
    marker = LabeledImageWriter(lab)
    if part == "embed":
        monkeypatch.setattr(marker._watermark, "embed", broken)
    else:
        import io

        from PIL import Image

        def encode(image, mime, made):
            out = io.BytesIO()
            Image.fromarray(image).save(out, "PNG")
            return out.getvalue()

        monkeypatch.setattr(marker, "_encode", encode)
    with pytest.raises(IntegrityError) as caught:
        marker.write(made(faces), tmp_path / "a.png")
    assert caught.value.code == "forensics.unmarked"
    assert not list(tmp_path.iterdir())


def test_an_unsigned_file_is_never_written(lab, faces, tmp_path, monkeypatch):
    from stillroom.forensics.labeling import marks

    monkeypatch.setattr(marks, "sign_bytes", lambda data, *rest, **more: data)
    with pytest.raises(IntegrityError) as caught:
        LabeledImageWriter(lab).write(made(faces), tmp_path / "a.png")
    assert "credentials" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_no_setting_of_any_recipe_switches_a_mark_off():
    for recipe, setting in ((ImageSetRecipe, "psnr"), (AudioSetRecipe, "snr")):
        with pytest.raises(ValueError, match="extra"):
            recipe.model_validate({"watermark": {"enabled": False}})
        with pytest.raises(ValueError, match="watermark"):
            recipe.model_validate({"watermark": False})
        assert set(recipe.model_fields["watermark"].annotation.model_fields) == {setting}


def name_of(call):
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def opens_to_write(call):
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    modes = [one.value for one in given if isinstance(one, ast.Constant)]
    return any(isinstance(mode, str) and WRITING.fullmatch(mode) for mode in modes)


def writing_calls(tree):
    """Yield the calls that write, and the names they go by."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = name_of(node)
            if name in WRITERS:
                yield node, name
            elif name in {"open", "fdopen"} and opens_to_write(node):
                yield node, "open"


@pytest.mark.parametrize(
    "text",
    [
        "cv2.VideoWriter(path, code, 25, size)",
        "file.writeframes(data)",
        "container.add_stream('aac')",
        "container.mux(packet)",
        "wave.open(str(path), 'wb')",
        "path.open('xb')",
        "av.open(path, mode='w')",
        "open(path, 'r+b')",
        "picture.save(path)",
    ],
)
def test_the_search_for_writers_knows(text):
    assert len(list(writing_calls(ast.parse(text)))) == 1


def test_reading_is_no_writing():
    for text in ("path.open('rb')", "av.open(path)", "wave.open(path)", "open(path, 'r')"):
        assert not list(writing_calls(ast.parse(text)))


def test_no_other_module_of_the_room_writes_media():
    used = set()
    for path in sorted(ROOM.rglob("*.py")):
        place = path.relative_to(ROOM).as_posix()
        called = {name for _, name in writing_calls(tree_of(path))}
        assert called <= ALLOWED.get(place, set()) | IN_MEMORY.get(place, set()), path
        used |= {place} if called else set()
    assert used == {*ALLOWED, *IN_MEMORY}, "what writes nothing any more needs no leave"


@pytest.mark.parametrize("place", IN_MEMORY)
def test_what_encodes_media_encodes_into_memory(place):
    """The first thing given to what opens a file for writing, or saves, is a buffer made there."""
    for function in ast.walk(tree_of(ROOM / place)):
        if not isinstance(function, ast.FunctionDef):
            continue
        for call, name in writing_calls(function):
            if name in {"open", "save"}:
                assert isinstance(call.args[0], ast.Name), ast.unparse(call)
                assert call.args[0].id in buffers_of(function), ast.unparse(call)


def buffers_of(function):
    """Return the names in a function that are only ever bound to new buffers."""
    bound = {}
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            for name, value in pairs:
                if isinstance(name, ast.Name):
                    bound.setdefault(name.id, set()).add(ast.unparse(value))
    return {name for name, values in bound.items() if values == {"io.BytesIO()"}}


def test_a_stranger_in_the_folder_is_named(lab, faces, tmp_path):
    LabeledImageWriter(lab).write(made(faces), tmp_path / "a.png")
    from PIL import Image

    Image.fromarray(faces[1].image).save(tmp_path / "b.png")
    (tmp_path / "c.bmp").write_bytes(b"BM")
    assert set(find_unmarked_files(tmp_path, lab)) == {"b.png", "c.bmp"}


def test_what_links_and_archives_hold_is_not_taken_for_marked(lab, faces, tmp_path):
    import zipfile

    from PIL import Image

    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "folder"
    elsewhere.mkdir()
    folder.mkdir()
    LabeledImageWriter(lab).write(made(faces), folder / "a.png")
    Image.fromarray(faces[1].image).save(elsewhere / "b.png")
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)  # each folder is read once
    with zipfile.ZipFile(folder / "c.zip", "w") as archive:
        archive.write(elsewhere / "b.png", "b.png")
    assert set(find_unmarked_files(folder, lab)) == {"linked/b.png", "c.zip"}


def test_a_stripped_and_cropped_file_is_found_again(lab, faces, tmp_path):
    from PIL import Image

    row = LabeledImageWriter(lab).write(made(faces, seed=9), tmp_path / "a.jpg")
    pixels = compress_jpeg(decode_image((tmp_path / "a.jpg").read_bytes()), 60)[8:-4, 4:-8]
    Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / "stripped.png")
    found = look_up_file(tmp_path / "stripped.png", lab)
    assert found.watermark == row["watermark"]
    assert found.row["seed"] == 9
    assert "made by this lab" in found.line()


def test_a_file_of_nobody_traces_to_nothing(lab, faces, tmp_path):
    from PIL import Image

    Image.fromarray(faces[2].image).save(tmp_path / "a.png")
    assert "says nothing" in look_up_file(tmp_path / "a.png", lab).line()


class TestLedger:
    def test_rows_are_chained(self, tmp_path):
        ledger = Ledger(tmp_path, b"k" * 32)
        rows = [ledger.append({"file": str(number)}) for number in range(4)]
        assert [row["previous"] for row in rows[1:]] == [row["digest"] for row in rows[:-1]]
        assert ledger.verify() == 4

    @pytest.mark.parametrize(
        "tamper",
        [
            lambda lines: [lines[0].replace(b'"file": "0"', b'"file": "x"'), *lines[1:]],
            lambda lines: [lines[0], *lines[2:]],
            lambda lines: [lines[1], lines[0], *lines[2:]],
            lambda lines: lines[:-1],
            lambda lines: [*lines, lines[-1]],
            lambda lines: [*lines[:-1], b"{nonsense"],
            lambda lines: [],
        ],
        ids=["changed", "removed", "swapped", "cut", "repeated", "torn", "emptied"],
    )
    def test_tampering_is_detected(self, tamper, tmp_path):
        ledger = Ledger(tmp_path, b"k" * 32)
        for number in range(4):
            ledger.append({"file": str(number)})
        lines = ledger.path.read_bytes().splitlines()
        ledger.path.write_bytes(b"".join(line + b"\n" for line in tamper(lines)))
        with pytest.raises(IntegrityError) as caught:
            ledger.verify()
        assert caught.value.code == "forensics.ledger"

    def test_a_lost_or_forged_head_is_detected(self, tmp_path):
        ledger = Ledger(tmp_path, b"k" * 32)
        ledger.append({"file": "a"})
        head = ledger.head.read_text()
        ledger.head.write_text(head.replace('"count": 1', '"count": 0'))
        with pytest.raises(IntegrityError):
            ledger.append({"file": "b"})
        ledger.head.unlink()
        with pytest.raises(IntegrityError):
            ledger.verify()

    def test_a_ledger_that_was_removed_is_not_called_unchanged(self, tmp_path, monkeypatch):
        monkeypatch.setenv("STILLROOM_LAB", str(tmp_path))
        lab = open_lab()
        lab.ledger.append({"file": "a"})
        verify = partial(CliRunner().invoke, stillroom, ["forensics", "ledger"])
        assert "1 rows, all unchanged" in verify().output
        lab.ledger.path.unlink()
        lab.ledger.head.unlink()
        assert "all are lost" in verify().output

    def test_a_kill_between_row_and_head_is_gone_on_from(self, tmp_path):
        ledger = Ledger(tmp_path, b"k" * 32)
        ledger.append({"file": "a"})
        head = ledger.head.read_bytes()
        ledger.append({"file": "b"})
        ledger.head.write_bytes(head)
        assert ledger.append({"file": "c"})["number"] == 2
        assert ledger.verify() == 3

    def test_another_key_cannot_read_it_as_its_own(self, tmp_path):
        Ledger(tmp_path, b"k" * 32).append({"file": "a"})
        with pytest.raises(IntegrityError):
            Ledger(tmp_path, b"x" * 32).verify()


class TestConsent:
    def write(self, folder, **changes):
        picture = folder / "anna.png"
        picture.write_bytes(b"a picture")
        fields = {
            "who": "Anna",
            "basis": "form",
            "scope": ["sbi"],
            "expires": date(2999, 1, 1),
        }
        return picture, write_consent(folder / "c.json", [picture], **{**fields, **changes})

    def test_covers_what_it_says(self, tmp_path):
        _, consent = self.write(tmp_path)
        consent.check("sbi", consent.files)
        assert Consent.read(tmp_path / "c.json") == consent

    @pytest.mark.parametrize(
        ("changes", "method", "more"),
        [
            ({"expires": date(2020, 1, 1)}, "sbi", ()),
            ({}, "swap", ()),
            ({}, "sbi", ("another picture",)),
        ],
        ids=["expired", "other-use", "other-person"],
    )
    def test_refuses_the_rest(self, changes, method, more, tmp_path):
        _, consent = self.write(tmp_path, **changes)
        with pytest.raises(DataError) as caught:
            consent.check(method, [*consent.files, *more])
        assert caught.value.code == "forensics.consent"

    def test_a_record_says_everything(self, tmp_path):
        with pytest.raises(DataError) as caught:
            self.write(tmp_path, who="  ")
        assert caught.value.code == "forensics.consent-record"
        assert not (tmp_path / "c.json").exists()

    def test_a_folder_needs_someone_who_answers(self):
        for text in (
            "{folder: people}",
            "{generator: a generator}",
            "{type: people, folder: people}",
            "{type: licensed, folder: people, basis: a license}",
            "{type: synthetic, generator: a generator}",
            "{type: synthetic, folder: people, generator: a generator, consent: c.json}",
            "{type: drawn, folder: people}",
        ):
            with pytest.raises(RecipeError) as caught:
                parse_recipe(f"version: 1\nkind: forensics.image_set\nfaces: {text}\n", "test")
            assert caught.value.code == "forensics.whose-faces"

    def test_faces_are_drawn_by_default(self):
        assert ImageSetRecipe().faces.type == "drawn"


def test_many_lookups_read_the_ledger_once_and_see_every_change(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path, b"k" * 32)
    for number in range(6):
        mark = f"{number // 2}"
        ledger.append({"watermark": mark, "run": "r", "file": mark, "side": number % 2})
    passes = []
    rows = Ledger.rows
    monkeypatch.setattr(Ledger, "rows", lambda ledger: passes.append(1) or rows(ledger))
    for mark in ("0", "1", "2", "3"):
        opened = Ledger(tmp_path, b"k" * 32)  # every document that is parsed opens the lab
        found = opened.find_all([mark])
        related = opened.find_related(found.values())
        if mark == "3":
            assert (found, related) == ({}, {})
            continue
        assert (found[mark]["number"], found[mark]["side"]) == (2 * int(mark), 0)
        assert [row["number"] for row in related[2 * int(mark)]] == [2 * int(mark) + 1]
    assert len(passes) == 1
    ledger.append({"watermark": "3"})
    assert ledger.find_all(["3"])["3"]["number"] == 6
    stat = ledger.path.stat()
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b'"side": 1', b'"side": 2'))
    os.utime(ledger.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(IntegrityError):
        ledger.find_all(["0"])


def test_a_lab_without_its_key_makes_nothing(tmp_path):
    made_once = open_lab(tmp_path / "lab")
    made_once.ledger.append({"file": "a"})
    (tmp_path / "lab" / "lab.key").unlink()
    with pytest.raises(IntegrityError) as caught:
        open_lab(tmp_path / "lab")
    assert caught.value.code == "forensics.lab"
    assert has_lab()


def test_manifest_name_is_known():
    assert MANIFEST == "manifest.jsonl"


def test_a_damaged_detector_is_said(tmp_path):
    from stillroom.forensics.media.face_detection import FaceFinder

    (tmp_path / "yunet.onnx").write_bytes(b"nothing")
    with pytest.raises(DataError) as caught:
        FaceFinder(detector=tmp_path / "yunet.onnx")
    assert caught.value.code == "forensics.model"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.png", b""),
        ("a.jpg", b"\xff\xd8\xff\xe0"),
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0"),
        ("missing.png", None),
    ],
)
def test_what_is_no_picture_is_said(name, data, tmp_path):
    from stillroom.forensics.media.images import load_image

    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        load_image(tmp_path / name)
    assert caught.value.code == "forensics.picture"


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    import struct
    import zlib

    from stillroom.forensics.media.images import load_image

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    (tmp_path / "bomb.png").write_bytes(data + chunk(b"IEND", b""))
    with pytest.raises(DataError) as caught:
        load_image(tmp_path / "bomb.png")
    assert "pixels" in str(caught.value)


@pytest.mark.parametrize("mode", ["CMYK", "L", "LA", "P", "I;16", "RGBA", "1"])
def test_pictures_of_every_mode_become_rgb(mode, tmp_path):
    from PIL import Image

    from stillroom.forensics.media.images import load_image

    ending = "tif" if mode in {"CMYK", "I;16"} else "png"
    if mode == "I;16":
        picture = Image.fromarray(np.full((40, 30), 30000, dtype=np.uint16))
    else:
        picture = Image.new("RGB", (30, 40), (200, 100, 50)).convert(mode)
    picture.save(tmp_path / f"a.{ending}")
    found = load_image(tmp_path / f"a.{ending}")
    assert found.image.shape == (40, 30, 3)
    assert found.image.dtype == np.uint8
    if mode == "I;16":
        assert abs(int(found.image[0, 0, 0]) - 117) <= 1


def test_exif_orientation_and_jpeg_quality_are_read(tmp_path):
    from PIL import Image

    from stillroom.forensics.media.images import load_image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", quality=70, exif=exif)
    found = load_image(tmp_path / "a.jpg")
    assert found.image.shape == (40, 20, 3)
    assert found.jpeg_quality == pytest.approx(70, abs=3)
    assert any("orientation" in note for note in found.notes)


def test_pictures_of_iphones_are_read_where_their_decoder_is_here(tmp_path, faces, monkeypatch):
    import importlib.util

    from stillroom.forensics.media.images import load_image

    heif = pytest.importorskip("pillow_heif")
    heif.from_bytes("RGB", (160, 160), faces[0].image.tobytes()).save(str(tmp_path / "a.heic"))
    found = load_image(tmp_path / "a.heic")
    assert found.image.shape == (160, 160, 3)
    assert np.abs(found.image.astype(int) - faces[0].image).mean() < 6
    (tmp_path / "b.heic").write_bytes((tmp_path / "a.heic").read_bytes()[:200])
    with pytest.raises(DataError, match="damaged"):
        load_image(tmp_path / "b.heic")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pillow_heif" else find(name)
    )
    with pytest.raises(DataError, match="no decoder is installed"):
        load_image(tmp_path / "b.heic")
