"""Content credentials: the public test files one by one, and a second reader beside ours.

Files are looked for in FILES (the C2PA's public test files, JPEG and PDF; default the shared data).
Expected verdicts are those that the files' names and dumps stand for; Truepic's are refused
by today's rules, since their signatures leave out the whole head, and have to be told as that. Who
signed which manifest is held against the dumps that are published beside the files.
"""

import json
import os
import platform
import sys
from pathlib import Path

from stillroom.forensics.c2pa.credentials import read_credentials, verify_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.parity.c2pa_reader import read  # noqa: E402  # it lies beside the tests

MEDIA = Path(os.environ.get("MEDIA", ROOT / "../shared/data/media"))
FILES = Path(os.environ.get("FILES", MEDIA / "c2pa-public-testfiles"))
BROKEN = {
    "E-clm-CAICAI": "assertion.hashedURI.mismatch",
    "E-dat-CA": "assertion.dataHash.mismatch",
    "E-sig-CA": "claimSignature.mismatch",
    "E-uri-CA": "assertion.hashedURI.mismatch",
    "E-uri-CIE-sig-CA": "assertion.hashedURI.mismatch",
    "XCA": "assertion.dataHash.mismatch",
    "XCI": "assertion.dataHash.mismatch",
}
OF_INGREDIENTS = {"E-uri-CIE-sig-CA"}  # the second reader verifies the active manifest alone


def expected(name: str) -> tuple[str, str]:
    """Return integrity and a word that the findings have to hold."""
    maker, _, kind = name.split("-", 2)
    if maker == "truepic":
        return "broken", "leaves out"
    if maker == "nikon":
        return "intact", "expired"
    if kind in {"A", "I"}:
        return "none", "no provenance"
    return ("broken", BROKEN[kind]) if kind in BROKEN else ("intact", "untrusted")


def tell(what: str, value: float, **more: object) -> None:
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    line = {"what": what, "value": round(value, 4), **more, "machine": machine}
    print(json.dumps(line), flush=True)


def agrees_with_dump(path: Path) -> bool | None:
    """Return whether the manifest and its signer are those of the published dump."""
    dump = path.parent / "manifests" / path.stem / "manifest_store.json"
    if not dump.is_file():
        return None
    wanted, found = json.loads(dump.read_text()), verify_file(path)
    active = wanted["manifests"][wanted["active_manifest"]]
    return (
        found.manifests.get("active_manifest") == wanted["active_manifest"]
        and set(found.manifests["manifests"]) == set(wanted["manifests"])
        and found.issuer == active["signature_info"].get("issuer")
    )


def is_broken_by_a_byte(path: Path) -> bool:
    """Return whether a file that is intact is so no more where one byte of its content changed."""
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    return read_credentials(bytes(data), "application/pdf").integrity == "broken"


def main() -> None:
    paths = sorted(FILES.rglob("*/jpeg/*.jp*g"))
    if not paths:
        print(json.dumps({"what": "forensics/credentials/public_files", "skipped": "no files"}))
        return
    documents = sorted(FILES.rglob("pdf/*.pdf"))
    right, agree, wrong = 0, 0, []
    for path in documents:
        found = verify_file(path)
        tell(
            f"forensics/credentials/{path.name}",
            float((found.integrity, found.trust) == ("intact", "untrusted")),
            issuer=found.issuer,
            one_byte_changed=is_broken_by_a_byte(path),
        )
    dumps = [(path, agrees_with_dump(path)) for path in (*paths, *documents)]
    known = [held for _, held in dumps if held is not None]
    tell(
        "forensics/credentials/dumps_agree",
        sum(known) / len(known),
        n=len(known),
        differ=[path.name for path, held in dumps if held is False],
    )
    for path in paths:
        integrity, word = expected(path.stem)
        found = verify_file(path)
        said = " ".join([*found.lines(), *found.ingredient_codes, *found.codes, found.trust])
        is_right = found.integrity == integrity and word in said
        second = read(path.read_bytes())
        is_same = second.state == found.integrity
        if path.stem.startswith("truepic"):
            is_same = second.state == "intact"  # it takes any exclusions: the bytes are as signed
        right += is_right
        agree += is_same
        if not is_right or not is_same:
            wrong.append(path.name)
    tell("forensics/credentials/public_files", right / len(paths), n=len(paths))
    tell(
        "forensics/credentials/second_reader_agrees",
        agree / len(paths),
        n=len(paths),
        differ=wrong,
        verifies="the active manifest alone",
    )


if __name__ == "__main__":
    main()
