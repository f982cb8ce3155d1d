"""What files say of themselves without a signature is told as that."""

import json
import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from tests.unit.forensics.media.test_video import write_clip

from stillroom.forensics.check.check import check_file
from stillroom.forensics.check.origin import examine_origin
from stillroom.forensics.check.report_page import render_check_page
from stillroom.records import Origin

IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SETTINGS = (
    "a castle, watercolour\nNegative prompt: blurry\nSteps: 24, Sampler: DPM++ 2M, Schedule type: "
    "Karras, CFG scale: 7, Seed: 1, Size: 512x512, Model hash: 0123abcd, Model: castle_<b>v2"
)
PROMPT = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 1, "model": ["4", 0]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
}
WORKFLOW = {"nodes": [{"id": 3, "type": "KSampler"}], "links": [], "version": 0.4}
RESIZE = {"nodes": [{"id": 3, "type": "ImageScale"}], "links": [], "version": 0.4}


def packet(name, *, how="attribute"):
    said = {
        "attribute": f'<rdf:Description Iptc4xmpExt:DigitalSourceType="{IPTC}{name}"/>',
        "element": f"<rdf:Description><i:DigitalSourceType>{IPTC}{name}</i:DigitalSourceType>"
        "</rdf:Description>",
        "resource": f'<rdf:Description><i:DigitalSourceType rdf:resource="{IPTC}{name}"/>'
        "</rdf:Description>",
    }[how]
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF>{said}</rdf:RDF></x:xmpmeta>'


def picture(path, *, texts=None, xmp="", comment=b"", exif=None):
    """Write a picture with metadata as other programs write them."""
    image = Image.new("RGB", (32, 32), (90, 120, 60))
    tags = Image.Exif()
    if comment:
        tags.get_ifd(0x8769)[0x9286] = comment
    for tag, value in (exif or {}).items():
        tags[tag] = value
    info = PngImagePlugin.PngInfo()
    for key, value in (texts or {}).items():
        info.add_text(key, value)
    more = {"pnginfo": info} if path.suffix == ".png" else {}
    if path.suffix == ".png" and xmp:
        info.add_itxt("XML:com.adobe.xmp", xmp, zip=True)
    elif path.suffix == ".tif" and xmp:
        more["tiffinfo"] = {700: xmp.encode()}
    elif xmp:
        more["xmp"] = xmp.encode()
    image.save(path, exif=tags, **more)
    return path


@pytest.mark.parametrize("how", ["attribute", "element", "resource"])
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_the_digital_source_type_in_xmp_is_told(ending, how, tmp_path):
    path = picture(tmp_path / f"a.{ending}", xmp=packet("trainedAlgorithmicMedia", how=how))
    found = check_file(path)
    assert found.verdict == (
        "says of itself, unsigned, that a program made or composed it (XMP, IPTC's digital source "
        "type: trainedAlgorithmicMedia); anyone can write or remove that"
    )
    assert found.to_json()["claims"] == [
        {
            "where": "XMP, IPTC's digital source type",
            "says": "trainedAlgorithmicMedia",
            "is_made": True,
        }
    ]
    assert "trainedAlgorithmicMedia" in render_check_page([found])
    assert any("unsigned: XMP" in line for line in found.lines())
    origin, told = examine_origin(path, Origin("human"))
    assert (origin.kind, origin.chain[-1].method) == ("synthetic", "forensics.check.generated")
    assert "unsigned" in told[0]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            f'<r i:DigitalSourcefileType="{IPTC}trainedAlgorithmicMedia"/>',
            "trainedAlgorithmicMedia",
        ),
        ('<r i:AISystemUsed="Imagine 3"/>', "XMP, IPTC's AI system used: Imagine 3"),
        ("<i:AIPromptInformation>a castle</i:AIPromptInformation>", "AI prompt: a castle"),
        ("<i:AIPromptInformation>\n'a castle'</i:AIPromptInformation>", "AI prompt: a castle"),
    ],
)
def test_other_properties_of_iptc_for_generated_media_are_told(said, told, tmp_path):
    path = picture(
        tmp_path / "a.jpg", xmp=f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{said}</x:xmpmeta>'
    )
    assert told in check_file(path).verdict
    assert "a program made or composed it" in check_file(path).verdict


@pytest.mark.parametrize(
    "said",
    [
        '<r i:AISystemUsed="" x:Rating="5"/>',
        "<i:AISystemUsed></i:AISystemUsed>\n  <x:Rating>5</x:Rating>",
        "<i:AISystemUsed/>\n<i:AIPromptInformation> </i:AIPromptInformation>",
    ],
)
def test_properties_of_iptc_that_are_empty_tell_nothing(said, tmp_path):
    path = picture(
        tmp_path / "a.jpg", xmp=f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{said}</x:xmpmeta>'
    )
    assert check_file(path).claims == ()


@pytest.mark.parametrize(
    ("number", "value", "told"),
    [
        (65, "Stable Diffusion", "IPTC OriginatingProgram: Stable Diffusion"),
        (120, SETTINGS, "IPTC Caption: settings of a Stable Diffusion interface"),
        (65, "Stable Diffusion" + "x" * 40_000, ""),  # a long form of the length, not used by any
        (65, "Darktable", ""),
        (120, "made on a morning of steady diffusion", ""),
    ],
    ids=str,
)
def test_the_older_block_of_iptc_in_a_jpeg_is_read(number, value, told, tmp_path):
    path = picture(tmp_path / "a.jpg")
    size = struct.pack(">H", min(len(value), 0xFFFF))
    block = b"\x1c\x02" + bytes([number]) + size + value.encode()
    body = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(block)) + block
    body += b"\0" * (len(block) % 2)
    whole = path.read_bytes()
    marker = b"\xff\xed" + struct.pack(">H", len(body) + 2) + body
    path.write_bytes(whole[:2] + marker + whole[2:])
    found = check_file(path)
    assert (told in found.verdict) if told else (found.claims == ())


def test_a_camera_in_xmp_is_told_and_makes_nothing_synthetic(tmp_path):
    path = picture(tmp_path / "a.jpg", xmp=packet("digitalCapture"))
    found = check_file(path)
    assert "says of itself, unsigned, something of its making" in found.verdict
    assert "digitalCapture" in found.verdict
    assert examine_origin(path, Origin("human"))[0].kind == "human"


@pytest.mark.parametrize("ending", ["jpg", "gif"])
def test_settings_in_a_comment_are_told(ending, tmp_path):
    path = tmp_path / f"a.{ending}"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    image.save(path, comment=SETTINGS.encode())
    assert "(comment: settings of a Stable Diffusion interface" in check_file(path).verdict
    image.save(path, comment=b"Created with GIMP")
    assert check_file(path).claims == ()


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("a.png", {"texts": {"parameters": SETTINGS}}, "Diffusion interface, model castle"),
        ("a.jpg", {"comment": b"UNICODE\0" + SETTINGS.encode("utf-16-be")}, "a Stable Diffusion"),
        ("a.webp", {"comment": b"UNICODE\0" + SETTINGS.encode("utf-16-le")}, "a Stable Diffusion"),
        ("a.png", {"texts": {"prompt": json.dumps(PROMPT)}}, "ComfyUI graph that samples"),
        ("a.png", {"texts": {"workflow": json.dumps(WORKFLOW)}}, "ComfyUI graph that samples"),
        ("a.webp", {"exif": {0x010F: "workflow:" + json.dumps(WORKFLOW)}}, "ComfyUI graph that"),
        ("a.png", {"texts": {"invokeai_metadata": "{}"}}, "InvokeAI"),
        ("a.png", {"texts": {"Dream": '"a cat" -s 50 -S 12 -W 512 -C 7.5'}}, "InvokeAI"),
        ("a.png", {"texts": {"Software": "NovelAI"}}, "NovelAI"),
        ("a.jpg", {"exif": {0x0131: "Adobe Firefly"}}, "Adobe Firefly"),
        ("a.jpg", {"xmp": '<x:xmpmeta xmlns:x="adobe:ns:meta/"><d photoshop:Credit='
          '"Made with Google AI"/></x:xmpmeta>'}, "Made with Google AI"),
        ("a.jpg", {"xmp": '<x:xmpmeta xmlns:x="adobe:ns:meta/"><d xmp:CreatorTool="Draw Things"/>'
          '</x:xmpmeta>'}, "creator tool: Draw Things"),
        ("a.png", {"texts": {"Description": "a cat --v 6 Job ID: " + "0" * 8 + "-0000-0000-0000-"
          + "0" * 12}}, "Midjourney"),
        ("a.png", {"texts": {"Comment": '{"prompt": "x", "steps": 28, "seed": 1, "scale": 5}'}},
         "settings of an image model"),
        ("a.jpg", {"xmp": '<x:xmpmeta xmlns:x="adobe:ns:meta/"><exif:UserComment><rdf:Alt><rdf:li>'
          '{&quot;seed&quot;:1,&quot;steps&quot;:20,&quot;model&quot;:&quot;m&quot;}</rdf:li>'
          '</rdf:Alt></exif:UserComment></x:xmpmeta>'}, "settings of an image model"),
        ("a.png", {"texts": {"Comment": "made with suno; created=2025"}}, "made with suno"),
        ("a.png", {"texts": {"parameters": '{"sui_image_params": {"model": "m"}}'}}, "SwarmUI"),
    ],
)  # fmt: skip
def test_settings_that_programs_of_image_models_leave_are_told(name, given, says, tmp_path):
    found = check_file(picture(tmp_path / name, **given))
    assert "that a program made or composed it" in found.verdict
    assert says in found.verdict
    assert "<b>v2" not in render_check_page([found])


def test_a_packet_in_utf_16_is_read(tmp_path):
    path = tmp_path / "a.jpg"
    wide = packet("trainedAlgorithmicMedia").encode("utf-16")
    Image.new("RGB", (32, 32)).save(path, xmp=wide)
    assert "trainedAlgorithmicMedia" in check_file(path).verdict


@pytest.mark.parametrize("name", ["trainedAlgorithmicMedia", "digitalCapture"])
def test_a_document_is_believed_as_little_as_a_picture(tmp_path, name):
    path = tmp_path / "a.pdf"
    path.write_bytes(
        b"%PDF-1.7\n1 0 obj\n<</Type/Catalog>>\nendobj\n2 0 obj\n<</Type/Metadata>>stream\n"
        + packet(name).encode()
        + b"\nendstream\nendobj\ntrailer<</Root 1 0 R>>\n%%EOF"
    )
    assert name in check_file(path).verdict
    origin, _ = examine_origin(path, Origin("human"))
    assert origin.kind == ("human" if name == "digitalCapture" else "synthetic")


@pytest.mark.parametrize(
    "texts",
    [
        {"parameters": "Steps: climb the 20 stairs, then turn left"},
        {"prompt": "What is shown here?", "workflow": "scanned, cropped, filed"},
        {"Comment": '{"seed": 1, "title": "grass"}', "Software": "GIMP"},
        {"Comment": "{" * 5000},
        {"Dream": "a picture of my dream", "Description": "not by Midjourney"},
        {"prompt": json.dumps({"a": {"class_type": "x"}})},
    ],
)
def test_other_texts_are_not_taken_for_settings(texts, tmp_path):
    found = check_file(picture(tmp_path / "a.png", texts=texts))
    assert found.claims == ()
    assert found.verdict.startswith("its origin is unknown")


def test_a_graph_without_a_sampler_is_told_and_not_called_made(tmp_path):
    found = check_file(picture(tmp_path / "a.png", texts={"workflow": json.dumps(RESIZE)}))
    assert "a ComfyUI graph without a sampler" in found.verdict
    assert "that a program made" not in found.verdict


def test_a_film_says_it_in_its_tags_and_in_xmp(tmp_path):
    av = pytest.importorskip("av")
    frame = np.zeros((48, 64, 3), np.uint8)
    write_clip(tmp_path / "a.mp4", [frame] * 10)
    xmp = packet("trainedAlgorithmicMedia").encode()
    data = (tmp_path / "a.mp4").read_bytes()
    box = struct.pack(">I", 24 + len(xmp)) + b"uuid" + bytes(16) + xmp
    (tmp_path / "xmp.mp4").write_bytes(data + box)
    assert "XMP" in check_file(tmp_path / "xmp.mp4").verdict
    for comment in (
        {"prompt": PROMPT, "extra_data": {}},
        {"prompt": json.dumps(PROMPT), "workflow": WORKFLOW},
        {"workflow": WORKFLOW},
    ):
        with av.open(str(tmp_path / "b.mkv"), "w") as container:
            container.metadata["comment"] = json.dumps(comment)
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        assert "a ComfyUI graph that samples" in check_file(tmp_path / "b.mkv").verdict
