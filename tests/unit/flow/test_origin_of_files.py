"""Files that say where they are from: passages, and the sources of answers, carry it on."""

import os

import pytest
from PIL import Image
from tests.unit.text.parsers.test_office import make_pdf

from stillroom.flow import run_recipe
from stillroom.rag.generation.answer import describe_sources
from stillroom.rag.index.searcher import Index
from stillroom.recipes import parse_recipe
from stillroom.records import Hit, Origin
from stillroom.records.origin import check_origin, use_origin_check
from stillroom.text.reader import parse_file

pytest.importorskip("c2pa")


@pytest.fixture(scope="module", autouse=True)
def _own_lab(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "STILLROOM_LAB", str(tmp_path_factory.mktemp("lab")))
        yield


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A folder with a plain file, a signed one, one that a program made, one that was changed."""
    from stillroom.forensics.c2pa.signature import init_ca, sign_file
    from stillroom.forensics.labeling.lookup import refuse_lab_file

    base = tmp_path_factory.mktemp("documents")
    init_ca(base / "ca")
    folder = base / "papers"
    folder.mkdir()
    (folder / "plain.txt").write_text("Herring are counted in spring by boats.\n")
    for name, made_by in (("signed", ""), ("made", "a generator")):
        (base / f"{name}.pdf").write_bytes(make_pdf([f"The {name} report counts cod."]))
        sign_file(
            base / f"{name}.pdf",
            folder / f"{name}.pdf",
            base / "ca",
            made_by=made_by,
            refuse=refuse_lab_file,
        )
    data = (folder / "signed.pdf").read_bytes()
    assert b"counts cod" in data
    (folder / "changed.pdf").write_bytes(data.replace(b"counts cod", b"counts eel"))
    return folder


@pytest.fixture(scope="module")
def passages(documents, tmp_path_factory):
    out = tmp_path_factory.mktemp("index") / "run"
    text = (
        f"version: 1\nkind: rag.index\ndocuments: {documents}\nembedder: static\n"
        "origin: {kind: human, license: CC0-1.0}\n"
    )
    run_recipe(parse_recipe(text), out)
    with Index.open(out) as index:
        rows = [index.passage_at(row) for row in range(len(index))]
    return {passage.location.path: passage for passage in rows}


def test_passages_carry_what_a_check_of_their_file_found(passages):
    found = {
        path: (one.origin.kind, next(link.method for link in one.origin.chain))
        for path, one in passages.items()
    }
    assert found["changed.pdf"] == ("human", "forensics.check.changed")
    assert found["made.pdf"] == ("synthetic", "forensics.check.generated")
    assert found["signed.pdf"] == ("human", "forensics.check.signed")
    assert not found["plain.txt"][1].startswith("forensics")
    assert {one.origin.license for one in passages.values()} == {"CC0-1.0"}


def test_sources_of_an_answer_say_it(passages):
    hits = [Hit(passages[name], 1.0, rank) for rank, name in enumerate(sorted(passages), 1)]
    told = {one["path"]: (one["origin"], one["checked"]) for one in describe_sources(hits)}
    assert told == {
        "changed.pdf": ("human", "changed"),
        "made.pdf": ("synthetic", "generated"),
        "plain.txt": ("human", ""),
        "signed.pdf": ("human", "signed"),
    }


def test_a_forgery_of_the_lab_is_synthetic_whatever_its_folder_is_said_to_be(tmp_path):
    from stillroom.forensics.check.origin import examine_origin
    from stillroom.forensics.labeling.image import GeneratedImage, LabeledImageWriter, decode_image
    from stillroom.forensics.labeling.lab import open_lab
    from stillroom.forensics.synthesis.faces import draw_face

    made = GeneratedImage(draw_face(1, 1, 160).image, "sbi", 1, "run", "trainedAlgorithmicMedia")
    LabeledImageWriter(open_lab()).write(made, tmp_path / "a.png")
    Image.fromarray(decode_image((tmp_path / "a.png").read_bytes())).save(
        tmp_path / "stripped.jpg", quality=80
    )
    Image.effect_noise((160, 160), 40).convert("RGB").save(tmp_path / "plain.png")
    human = Origin("human")
    for name in ("a.png", "stripped.jpg"):
        origin, told = examine_origin(tmp_path / name, human)
        assert (origin.kind, origin.chain[-1].method) == ("synthetic", "forensics.check.lab")
        assert "watermark" in told[0]
    origin, told = examine_origin(tmp_path / "plain.png", human)
    assert (origin.kind, told) == ("human", ())
    assert origin.chain[-1].method == "forensics.check.unknown"
    face = draw_face(1, 2, 160).image
    twin = GeneratedImage(face, "twin", 1, "run", "humanEdits", kind="real", source="person")
    LabeledImageWriter(open_lab()).write(twin, tmp_path / "twin.png")
    origin, told = examine_origin(tmp_path / "twin.png", human)
    assert (origin.kind, origin.chain[-1].method) == ("human", "forensics.check.lab")
    assert "real twin of a forgery" in told[0]
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    assert examine_origin(tmp_path / "broken.png", human) == (human, ())


def test_what_was_found_is_told_with_the_document(documents):
    from stillroom.forensics.check.origin import examine_origin

    with use_origin_check(examine_origin):
        document = parse_file(documents / "made.pdf")
    assert "made or composed by a program" in document.metadata["notices"][-1]
    assert document.origin.kind == "synthetic"
    plain = parse_file(documents / "made.pdf")
    assert plain.origin == Origin()
    assert check_origin(documents / "made.pdf", Origin()) == (Origin(), ())


def test_without_the_packages_it_is_said_that_nothing_was_checked(documents, monkeypatch):
    from stillroom.errors import MissingExtraError
    from stillroom.forensics.check import origin as examiner

    def missing(*given, **more):
        raise MissingExtraError.of("c2pa", "forensics", "the forensics room")

    monkeypatch.setattr(examiner, "require_packages", missing)
    origin, told = examiner.examine_origin(documents / "made.pdf", Origin())
    assert origin == Origin()
    assert told[0].startswith("where it is from was not checked: ")


def test_a_film_that_says_it_was_generated_is_synthetic_and_so_is_what_it_says(tmp_path):
    from tests.unit.text.parsers.test_clip import write_clip

    from stillroom.forensics.c2pa.signature import init_ca, sign_file
    from stillroom.forensics.labeling.lookup import refuse_lab_file

    pytest.importorskip("av")
    init_ca(tmp_path / "ca")
    (tmp_path / "talk.mp4").write_bytes(write_clip(title="Cod are counted.", form="mp4"))
    (tmp_path / "films").mkdir()
    film = tmp_path / "films" / "talk.mp4"
    sign_file(
        tmp_path / "talk.mp4", film, tmp_path / "ca", made_by="a generator", refuse=refuse_lab_file
    )
    from stillroom.forensics.check.origin import examine_origin

    with use_origin_check(examine_origin):
        document = parse_file(film, origin=Origin("human"))
    assert document.text == "Title: Cod are counted."
    assert document.origin.kind == "synthetic"
    assert document.origin.chain[-1].method == "forensics.check.generated"
    assert document.metadata["notices"]
