"""C2PA credentials in text: signed, found, verified, and forged in ways that must not hold."""

import base64
import datetime
import hashlib
import itertools
import random
import re
import statistics
import sys
import time
import unicodedata
from pathlib import Path

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from stillroom.errors import DataError
from stillroom.provenance.text_marks import mark_text, open_marker
from stillroom.records import Link, Message, Origin, Record, read_records, write_records
from stillroom.records.text_credentials import (
    Disclosure,
    add_credentials,
    find_spans,
    read_credentials,
    remove_marks,
)
from stillroom.records.text_credentials.carriers import CARRIERS, encode_selectors, find_stores
from stillroom.records.text_credentials.cose import ClaimSigner
from stillroom.records.text_credentials.jumbf import (
    _box,
    _read_boxes,
    _wrap,
    build_claim,
    build_store,
)

TEXT = 'A still — "alambic", naïve Zoë’s 蒸留器 👩‍👩‍👧 — boils wine.\nIt has a head.\n'
PAGE = "<!doctype html><html><head><title>x</title></head><body><p>Wine ü boils.</p></body></html>"
TEXTS = {"text/plain": TEXT, "text/markdown": f"# Stills\n\n{TEXT}", "text/html": PAGE}
MODEL = Disclosure(model_name="Small", model_identifier="gguf:" + "ab" * 32)
FOREIGN = Path(__file__).parent / "marked_by_c2patxt.txt"
KEYS = {
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "p256": ec.generate_private_key(ec.SECP256R1()),
    "p384": ec.generate_private_key(ec.SECP384R1()),
}
SIGNER = ClaimSigner(KEYS["ed25519"], name="Tests")


def read_one(text, **settings):
    (found,) = read_credentials(text, **settings)
    return found


@pytest.mark.parametrize("media_type", TEXTS)
@pytest.mark.parametrize("key", KEYS)
def test_a_marked_text_says_what_wrote_it_and_holds(media_type, key):
    text = TEXTS[media_type]
    marked = mark_text(text, MODEL, ClaimSigner(KEYS[key], name="Tests"), media_type)
    found = read_one(marked)
    assert (found.state, found.codes) == ("valid", ())
    assert (found.model_name, found.model_identifier) == ("Small", MODEL.model_identifier)
    assert found.says_synthetic
    assert found.signer == "Tests"
    assert found.key_id == ClaimSigner(KEYS[key]).key_id
    assert remove_marks(marked) == text


@pytest.mark.parametrize("media_type", TEXTS)
def test_one_changed_word_is_named_as_a_change(media_type):
    marked = mark_text(TEXTS[media_type], MODEL, SIGNER, media_type)
    found = read_one(marked.replace("boils", "burns"))
    assert (found.state, found.codes) == ("changed", ("assertion.dataHash.mismatch",))
    assert "changed since it was signed" in str(found)
    assert found.says_synthetic


def test_text_in_another_normal_form_is_left_as_it_is():
    text = unicodedata.normalize("NFD", TEXT)
    marked = mark_text(text, MODEL, SIGNER)
    assert marked.startswith(text)
    assert read_one(marked).state == "valid"


def test_texts_pasted_into_another_hold_for_themselves():
    first, second = (mark_text(text, MODEL, SIGNER) for text in (TEXT, "Another answer."))
    found = read_credentials(f"Ü: {first} and {second} said the model.")
    assert [one.state for one in found] == ["partial", "partial"]
    start, end = found[0].covered
    assert f"Ü: {first}"[start:end] == TEXT


def test_a_cut_mark_still_says_that_a_model_wrote():
    found = read_one(mark_text(TEXT, MODEL, SIGNER)[:-200])
    assert (found.state, found.says_synthetic) == ("damaged", True)
    assert found.codes == ("manifest.text.corruptedWrapper",)


@pytest.mark.parametrize("lost", [1, 3, 20, 60, 400])
def test_a_mark_that_lost_its_beginning_still_says_that_a_model_wrote(lost):
    """As where a program takes what it does not know off a line's end, or splits the line."""
    marked = "Words \N{HEAVY BLACK HEART}" + mark_text("", MODEL, SIGNER)[lost:]
    one = read_one(marked)
    assert one.says_synthetic
    assert one.state == ("changed" if lost == 1 else "damaged")
    assert remove_marks(marked) == "Words \N{HEAVY BLACK HEART}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('type="application/c2pa"', "TYPE='application/c2pa' data-x=\"a>b\""),
        ('type="application/c2pa"', 'type="application/c2pa; v=1"'),
        ("+", "-"),
        ("=</script>", "=\n</script>"),
    ],
)
def test_the_mark_of_a_page_is_read_however_its_element_is_written(old, new):
    page = mark_text(PAGE, MODEL, SIGNER, "text/html")
    head, element, tail = re.split("(<script.*</script>)", page)
    assert read_one(head + element.replace(old, new) + tail).says_synthetic


def test_what_a_person_is_said_to_have_written_changes_no_origin():
    found = read_one(mark_text(TEXT, Disclosure("humanEdits"), SIGNER))
    assert found.state == "valid"
    assert add_credentials(Origin(), [found]).kind == "unknown"
    quoted = read_one(mark_text(TEXT, Disclosure("composite"), SIGNER))
    assert add_credentials(Origin("human"), [quoted]).kind == "human"


def test_a_models_text_is_synthetic_even_if_declared_human():
    found = read_one(mark_text(TEXT, MODEL, SIGNER))
    origin = add_credentials(Origin("human", license="MIT"), [found])
    assert (origin.kind, origin.license) == ("synthetic", "MIT")
    assert origin.chain == (Link("c2pa.valid", MODEL.model_identifier, (found.manifest,)),)


def test_a_text_of_another_program_is_read():
    text = FOREIGN.read_bytes().decode()
    found = read_one(text)
    assert (found.state, found.generator, found.model_name) == ("valid", "c2patxt", "Theirs")
    assert found.says_synthetic
    assert read_one(text.replace("other", "nother")).state == "changed"


def forge(assertions, *, claimed=None, sign=SIGNER, text=TEXT, edit=lambda store: store):
    """Return a text with a store of the given assertions, as someone else might write it."""
    boxes, claim = build_claim(claimed or assertions, "xmp:iid:1", {"name": "forger"})
    boxes = build_claim(assertions, "xmp:iid:1", {"name": "forger"})[0] if claimed else boxes
    store = build_store("urn:c2pa:1", boxes, claim, sign.wrap(sign.sign(claim)))
    return text + encode_selectors(edit(store))


def test_assertions_that_the_claim_does_not_name_do_not_hold():
    good = {**MODEL.build_assertions(), "c2pa.hash.data": {"hash": b"", "exclusions": []}}
    swapped = {**good, "c2pa.ai-disclosure": {"modelType": "c2pa.types.model", "modelName": "Big"}}
    found = read_one(forge(swapped, claimed=good))
    assert (found.state, found.codes[0]) == ("invalid", "assertion.hashedURI.mismatch")
    less = {name: good[name] for name in good if name != "c2pa.ai-disclosure"}
    assert read_one(forge(good, claimed=less)).codes == ("assertion.undeclared",)
    assert read_one(forge(less, claimed=good)).codes == ("assertion.missing",)
    unbound = MODEL.build_assertions()
    assert read_one(forge(unbound)).codes == ("claim.hardBindings.missing",)


@pytest.mark.parametrize(
    "bound",
    [
        {},
        {"exclusions": [{"start": 0, "length": 10**9}], "hash": b"x" * 32, "alg": "sha256"},
        {"exclusions": [{"start": -1, "length": 9}], "hash": b"x" * 32},
        {"exclusions": [{"start": "0", "length": 9}], "hash": b"x" * 32},
        {"exclusions": 5, "hash": "x", "alg": ["sha256"]},
        [1],
    ],
)
def test_a_binding_without_sense_does_not_hold(bound):
    found = read_one(forge({**MODEL.build_assertions(), "c2pa.hash.data": bound}))
    assert (found.state, found.says_synthetic) == ("changed", True)


def test_words_cannot_be_left_out_of_what_is_signed():
    marked = mark_text(PAGE, MODEL, SIGNER, "text/html")
    store = find_stores(marked)[0]
    covered = PAGE.replace("boils", "")  # what the forger's signature leaves out besides its own
    start = PAGE.encode().index(b"boils")
    bound = {
        "exclusions": [{"start": start, "length": 5}],
        "hash": hashlib.sha256(covered.encode()).digest(),
    }
    boxes, claim = build_claim({"c2pa.hash.data": bound}, "xmp:iid:1", {"name": "forger"})
    forged = build_store("urn:c2pa:1", boxes, claim, SIGNER.wrap(SIGNER.sign(claim)))
    element = f'<script type="application/c2pa">{base64.b64encode(forged).decode()}</script>'
    assert read_one(marked[: store.start] + element + marked[store.end :]).state == "changed"


def test_a_signature_of_another_key_or_an_expired_one_does_not_hold():
    marked = mark_text(TEXT, MODEL, SIGNER)
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=365 * 11)
    found = read_one(marked, now=later)
    assert (found.state, found.codes) == ("invalid", ("claimSignature.outsideValidity",))
    other = ClaimSigner(ed25519.Ed25519PrivateKey.generate())

    class Liar(ClaimSigner):
        protected = SIGNER.protected  # the certificate of one, the key of another

    found = read_one(mark_text(TEXT, MODEL, Liar(other.private_key)))
    assert (found.state, found.codes) == ("invalid", ("claimSignature.mismatch",))


def test_without_cryptography_a_mark_is_read_and_said_to_be_unverified(monkeypatch):
    marked = mark_text(TEXT, MODEL, SIGNER)
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    found = read_one(marked)
    assert (found.state, found.model_name, found.says_synthetic) == ("unverified", "Small", True)
    assert "stillroom[sign]" in str(found)
    assert read_one(marked.replace("boils", "burns")).state == "changed"


def test_broken_stores_are_reported_and_nothing_else_happens():
    rng = random.Random(1)
    store = find_stores(mark_text(TEXT, MODEL, SIGNER))[0].data
    valid = 0
    for _ in range(300):
        broken = bytearray(store)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        found = read_credentials(TEXT + encode_selectors(bytes(broken)))
        assert len(found) == 1
        valid += found[0].state == "valid"
    assert valid <= 30  # bytes that no signature covers: padding, and the types of boxes
    for junk in (b"", b"\0" * 40, cbor2.dumps([[[]]]), rng.randbytes(5000)):
        assert read_one(TEXT + encode_selectors(junk)).state == "damaged"


def plant(*, bound=None, model=None, action="trainedAlgorithmicMedia", message=None, raw=None):
    """Return a text with a mark that ``mark_text`` would not write."""
    said = {"digitalSourceType": f"x/{action}" if isinstance(action, str) else action}
    bound = {"exclusions": [{"start": 5, "length": 300}], "hash": b"x" * 32} | (bound or {})
    assertions = {"c2pa.actions.v2": {"actions": [said]}, "c2pa.hash.data": bound}
    assertions |= {} if model is None else {"c2pa.ai-disclosure": {"modelName": model}}
    boxes, claim = build_claim(assertions, "xmp:iid:1", {"name": "x"})
    if raw is not None:
        boxes["c2pa.ai-disclosure"] = _box(b"cbor", "c2pa.ai-disclosure", (b"cbor", raw))
    message = message or SIGNER.wrap(SIGNER.sign(claim))
    return "Text." + encode_selectors(build_store("urn:c2pa:x", boxes, claim, message))


def share(levels):
    """Return CBOR of a list whose shared lists hold one another eight times, level by level."""
    data = b"\xd8\x1c" + cbor2.dumps(["word"] * 8)
    for level in range(levels, 0, -1):
        data = b"\xd8\x1c\x88" + data + (b"\xd8\x1d" + cbor2.dumps(level)) * 7
    return b"\xa1" + cbor2.dumps("modelName") + data


def sign_one(header, signature):
    return cbor2.dumps(cbor2.CBORTag(18, [cbor2.dumps(header), {}, None, signature]))


HOSTILE = {
    "a start between two characters": plant(bound={"exclusions": [{"start": 1.5, "length": 2.5}]}),
    "a start of letters": plant(bound={"exclusions": [{"start": "a", "length": "b"}]}),
    "a hash of eight gigabytes": plant(bound={"hash": 2**33}),
    "a name that is a long number": plant(model=2**20000),
    "a source that is a long number": plant(action=2**20000),
    "an algorithm that is a list": plant(
        message=sign_one({1: [1], 33: ClaimSigner(KEYS["p256"]).chain[0]}, b"x" * 64)
    ),
    "a signature of a terabyte": plant(message=sign_one({1: -8, 33: SIGNER.chain[0]}, 2**40)),
    "a chain of fifty": plant(message=sign_one({1: -8, 33: [SIGNER.chain[0]] * 50}, b"x")),
    "lists of lists": plant(raw=share(12)),
    "a fraction of long numbers": plant(raw=b"\xd8\x1e" + cbor2.dumps([2**800000 + 1, 3**500000])),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_mark_breaks_nothing_and_its_text_is_no_persons(name):
    begun = time.perf_counter()
    found = read_one(HOSTILE[name])
    assert time.perf_counter() - begun < 1
    assert found.state in {"changed", "invalid", "damaged"}
    assert len(str(found)) < 1000
    assert add_credentials(Origin("unknown"), [found]).kind != "human"
    if "source" not in name:
        assert found.says_synthetic


def test_many_marks_that_each_cover_the_whole_text_take_no_time():
    marked = mark_text("Hi.", MODEL, SIGNER)
    text, comment, begun = "x" * 2_000_000, CARRIERS["text/markdown"], time.process_time()
    bound = {"exclusions": [{"start": 0, "length": 300}], "hash": b"x" * 32}
    for _ in range(600):
        bound["exclusions"][0] |= {"start": len(text) + 1}
        boxes, claim = build_claim({"c2pa.hash.data": bound}, "x", {})
        text += comment.wrap(build_store("x", boxes, claim, b"x"))
    assert len(read_credentials(text)) == 600
    states = [one.state for one in read_credentials(marked * 1500)]
    assert states == ["partial"] * 1500
    assert remove_marks("a\ufeffb" * 9 + marked * 1500) == "a\ufeffb" * 9 + "Hi." * 1500
    assert time.process_time() - begun < 6


def test_a_text_edited_from_a_models_text_is_a_models_too():
    """The active manifest tells of the edit alone; what it began with stands in another."""
    boxes, claim = build_claim({"c2pa.actions.v2": {"actions": []}, "c2pa.hash.data": {}}, "x", {})
    earlier = plant().partition("\ufeff")[2]
    first = find_stores("Text.\ufeff" + earlier)[0].data
    last = build_store("urn:c2pa:y", boxes, claim, SIGNER.wrap(SIGNER.sign(claim)))
    ((_, old),), ((_, new),) = ([*_read_boxes(one)] for one in (first, last))
    parts = [b"".join(_wrap(*box) for box in [*_read_boxes(one)][1:]) for one in (old, new)]
    both = _box(b"c2pa", "c2pa", *((b"", part) for part in parts))
    found = read_one("Text, edited." + encode_selectors(both))
    assert (found.manifest, found.says_synthetic) == ("urn:c2pa:y", True)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("!!! @ ???", "!!!  ???"),
        ("“ ”\n@\n“ ”", "“ ”\n“ ”"),
        ("a\n# @\nb", "a\nb"),
        ("a\n/* @ */\nb", "a\nb"),
        ("a <!-- @ --> <!-- b -->", "a <!-- b -->"),
    ],
)
def test_only_the_comment_around_a_mark_is_taken_out(text, kept):
    armor = CARRIERS["text/markdown"].wrap(b"\0\0\0\x08jumb").strip()[5:-4]
    plain = mark_text("Hi.", MODEL, SIGNER)[3:]
    assert remove_marks(text.replace("@", armor)) == kept
    text = "Hi." + plain + "<!-- " + armor + "-->" + armor + plain
    assert remove_marks(text) == "Hi."
    spans = find_spans(text)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))


def test_text_about_credentials_carries_none():
    texts = [
        "-----BEGIN C2PA MANIFEST----- <manifest-reference> -----END C2PA MANIFEST-----",
        "-----BEGIN C2PA MANIFEST----- https://example.com/m.c2pa -----END C2PA MANIFEST-----",
        '<script type="application/c2pa">...</script> is how HTML carries one',
        '<script type="application/c2pa">AAAA</script>',
        "-----BEGIN C2PA MANIFEST-----data:application/c2pa;base64,AA==-----END C2PA MANIFEST-----",
        "c2pa.ai-disclosure trainedAlgorithmicMedia C2PATXT\0",
        "\ufeffA file with a byte order mark, an emoji ❤\ufe0f and a variant 葛\U000e0100.",
    ]
    for text in texts:
        assert read_credentials(text) == []
        assert find_spans(text) == []
        assert remove_marks(text) == text


def test_hostile_white_space_and_marks_take_no_time():
    begun = time.perf_counter()
    read_credentials("-----BEGIN C2PA MANIFEST-----" + " " * 2_000_000)
    read_credentials('<script type="application/c2pa">' + "A" * 2_000_000)
    read_credentials(('<script type="application/c2pa">' + "A" * 10) * 50_000)
    bound = {"exclusions": [{"start": 4_000_001, "length": 9}], "hash": b"x" * 32}
    read_credentials(forge({"c2pa.hash.data": bound}, text="a" + "\u0301\u0316" * 1_000_000))
    assert time.perf_counter() - begun < 10


def test_a_mark_costs_little(record_property):
    times, size = [], 0
    for number in range(100):
        text = f"Answer {number} of the model. " * 8
        begun = time.perf_counter()
        marked = mark_text(text, MODEL, SIGNER)
        times.append(time.perf_counter() - begun)
        size = max(size, len(marked.encode()) - len(text.encode()))
    record_property("median_ms", statistics.median(times) * 1000)
    assert statistics.median(times) < 0.05  # 0.4 ms measured; loaded machines are slower
    assert size <= 8192


def test_equal_texts_of_a_key_have_equal_marks():
    assert mark_text(TEXT, MODEL, SIGNER) == mark_text(TEXT, MODEL, SIGNER)


@pytest.mark.parametrize(
    ("text", "media_type", "what"),
    [
        ("plain", "application/json", "carries no content credential"),
        ("<p>no head</p>", "text/html", "no </head>"),
        ("a\ud800", "text/plain", "surrogates"),
    ],
)
def test_what_cannot_be_marked_is_refused(text, media_type, what):
    with pytest.raises(DataError, match=what) as raised:
        mark_text(text, MODEL, SIGNER, media_type)
    assert raised.value.code == "data.mark"


def test_a_marked_text_is_not_marked_again():
    with pytest.raises(DataError, match="already"):
        mark_text(mark_text(TEXT, MODEL, SIGNER), MODEL, SIGNER)


def test_the_configured_key_signs_and_without_one_the_mark_says_so(tmp_path, monkeypatch):
    from stillroom.provenance.signing.keys import (
        KEY_VARIABLE,
        certificate_key,
        create_key_pair,
        load_trust,
    )

    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    unkept = read_one(open_marker().mark(TEXT, MODEL))
    assert unkept.signer == "Stillroom (key not kept)"
    assert not open_marker().is_kept
    private, public = create_key_pair(tmp_path / "me")
    monkeypatch.setenv(KEY_VARIABLE, str(private))
    found = read_one(open_marker().mark(TEXT, MODEL))
    trust = load_trust([public])
    assert trust.covers(certificate_key(found.chain[0], ""), found.chain)
    assert not trust.covers(certificate_key(unkept.chain[0], ""), unkept.chain)


def test_records_are_read_with_their_marks_origin_and_without_the_marks(tmp_path):
    marked = mark_text("Wine boils.", MODEL, SIGNER)
    rows = [
        Record((Message("user", "What boils?"), Message("assistant", marked)), {"n": 1}),
        Record((Message("assistant", "Wine."),), {"answer": marked}, Origin("human")),
        Record((Message("assistant", "Wine."),), {}, Origin("human")),
    ]
    write_records(tmp_path / "r.jsonl", rows)
    read = list(read_records(tmp_path / "r.jsonl"))
    assert [one.origin.kind for one in read] == ["synthetic", "synthetic", "human"]
    assert read[0].messages[-1].content == "Wine boils."
    assert read[1].fields["answer"] == "Wine boils."
    assert read[0].origin.chain[-1].model == MODEL.model_identifier
    assert not re.search("[\ufe00-\ufe0f]", str(read))
    assert read[2] == rows[2]
