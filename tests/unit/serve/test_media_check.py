import asyncio
import re
import struct
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.unit.serve.test_app import check_error

from stillroom.errors import RecipeError
from stillroom.serve import RequestLimits, create_app
from stillroom.serve.media_check import MediaCheckService


def picture(path):
    pixels = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def bomb():
    """A PNG that says it has 60,000 by 60,000 pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def send(files, *, limits=None, data=None, headers=None, content=None):
    async def go():
        app = create_app(None, media_check=MediaCheckService(), limits=limits)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(
                "/v1/forensics/check", files=files, data=data, headers=headers, content=content
            )

    return asyncio.run(go())


def test_files_are_looked_at_and_what_cannot_be_read_costs_that_file(tmp_path):
    files = [
        ("file", ("../../etc/photo.png", picture(tmp_path / "a.png"), "image/png")),
        ("file", ("bomb.png", bomb(), "image/png")),
        ("file", ("cut.mp4", b"\0\0\0\x18ftypmp42" + bytes(64), "video/mp4")),
        ("file", ("tool.exe", b"MZ", "application/x-msdownload")),
    ]
    reply = send(files, data={"prevalence": "0.1"})
    assert reply.status_code == 200, reply.text
    photo, bombed, cut, tool = reply.json()["files"]
    assert photo["path"] == "photo.png"
    assert "not a sign of a forgery" in photo["verdict"]
    assert photo["error"] is None
    for bad in (bombed, cut, tool):
        assert bad["error"] or bad["quality"], bad
    assert reply.json()["limits"]
    assert "/tmp" not in reply.text  # noqa: S108  # where files lay is not told


def test_errors_name_files_as_the_client_does():
    files = [
        ("file", ("my photo.png", bomb(), "image/png")),
        ("file", ("0.jpg", b"\xff\xd8 no", "image/jpeg")),
        ("file", ("odd.wav", b"RIFF", "audio/wav")),
        ("file", ("clip.mp4", b"\0\0\0\x18ftypmp42" + bytes(64), "video/mp4")),
    ]
    reply = send(files)
    assert reply.status_code == 200, reply.text
    photo, jpeg, _, clip = reply.json()["files"]
    assert "my photo.png" in photo["error"]
    assert "0.jpg" in jpeg["error"]
    assert "clip.mp4" in f"{clip['error']} {clip['quality']}"
    assert not re.search(r"\b\d\.(?:png|wav|mp4)|[0-9a-f]{24}", reply.text.replace("0.jpg", ""))


@pytest.mark.parametrize(
    ("files", "data", "status", "code"),
    [
        ([], {}, 415, "unsupported_media_type"),
        ([("other", ("a.png", b"x"))], {}, 400, "unknown_parameter"),
        ([("file", ("a.png", b"x"))], {"more": "1"}, 400, "unknown_parameter"),
        ([("file", ("a.png", b"x"))], {"prevalence": "1"}, 400, "invalid_request"),
        ([("file", ("a.png", b"x"))], {"prevalence": "nan"}, 400, "invalid_request"),
        ([("file", ("a.png", b"x"))] * 9, {}, 400, "invalid_form"),
        ([("file", ("a.png", b"x" * 5000))], {}, 413, "body_too_large"),
    ],
)
def test_forms_that_are_not_served_are_refused(files, data, status, code):
    limits = RequestLimits(upload_bytes=4000)
    check_error(send(files, data=data, limits=limits), status, code)


def test_a_broken_form_and_one_without_files_are_refused():
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    check_error(send(None, headers=headers, content=b"--x\r\nodd"), 400, "invalid_input")
    check_error(send(None, headers=headers, content=b"--x--\r\n"), 400, "invalid_input")
    headers = {"Content-Type": "multipart/form-data"}
    check_error(send(None, headers=headers, content=b"x"), 400, "invalid_form")


def test_a_file_without_a_name_is_named_as_such():
    content = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\npixels\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    reply = send(None, headers=headers, content=content)
    check_error(reply, 400, "invalid_input")
    assert "no file name" in reply.text


def test_a_body_without_a_length_is_counted_as_it_comes():
    async def pieces():
        yield b"--x\r\n"
        for _ in range(100):
            yield b"y" * 100

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    reply = send(None, headers=headers, content=pieces(), limits=RequestLimits(upload_bytes=4000))
    check_error(reply, 413, "body_too_large")


def test_detectors_without_forensics_are_refused():
    from click.testing import CliRunner

    from stillroom.cli.app import stillroom

    error = CliRunner().invoke(stillroom, ["serve", "x", "--detector", "y"]).exception
    assert isinstance(error, RecipeError)
    assert error.code == "serve.nothing"
